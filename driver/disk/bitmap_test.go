package disk

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/driver/drivertest"
)

func qemuImg(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("qemu-img", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("qemu-img %v: %v\n%s", args, err, out)
	}
	return string(out)
}

func TestBitmaps(t *testing.T) {
	drivertest.VolumesBitmaps(t, drivertest.VolumesBitmapSetup{
		VolumesSetup: drivertest.VolumesSetup{
			New: func(t *testing.T, _ drover.Bytes) (driver.Volumes, string) {
				dir := filepath.Join(t.TempDir(), "images")
				return newStore(t, Config{Dirs: []string{dir}}), dir
			},
			Crash: func(t *testing.T, w driver.ImageWriter) {
				im := w.(*image)
				im.server.signal(os.Kill)
				<-im.server.exited
			},
		},
		AddBitmap: func(t *testing.T, _ driver.Volumes, path string, c driver.Checkpoint) {
			qemuImg(t, "bitmap", "--add", path, c.String())
		},
		Foreign: func(t *testing.T, _ driver.Volumes, path string) { qemuImg(t, "bitmap", "--add", path, "nightly") },
		ForeignThere: func(t *testing.T, _ driver.Volumes, path string) bool {
			return strings.Contains(qemuImg(t, "info", path), "name: nightly")
		},
	})
}

// TestOldQcow2: the first version of the format cannot record changes, and the
// refusal says what would help.
func TestOldQcow2(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, Config{Dirs: []string{dir}})
	path := filepath.Join(dir, "old.qcow2")
	qemuImg(t, "create", "-q", "-f", "qcow2", "-o", "compat=0.10", path, "1M")
	_, err := s.Bitmaps(t.Context(), path)
	if drover.KindOf(err) != drover.Refused || !strings.Contains(err.Error(), "qemu-img amend") {
		t.Errorf("bitmaps of an old image: %v", err)
	}
}

// TestScratchFile: what a hypervisor has left of a backup is no image, can be
// deleted, and is not swept away under a hypervisor that still writes to it.
func TestScratchFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, driver.ScratchName(driver.MoveOwner("m-1"), "vda"))
	qemuImg(t, "create", "-q", "-f", "qcow2", path, "1M")
	old := time.Now().Add(-2 * staleAfter)
	if err := os.Chtimes(path, old, old); err != nil {
		t.Fatal(err)
	}
	s := newStore(t, Config{Dirs: []string{dir}})
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the scratch file after a start: %v", err)
	}
	if list, err := s.List(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("listed are %v, %v", list, err)
	}
	for range 2 {
		if err := s.Delete(t.Context(), path); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("the scratch file is still there")
	}
}
