package disk

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/driver/drivertest"
)

func TestVolumes(t *testing.T) {
	drivertest.Volumes(t, drivertest.VolumesSetup{
		New: func(t *testing.T, limit drover.Bytes) (driver.Volumes, string) {
			dir := filepath.Join(t.TempDir(), "images")
			if limit > 0 {
				mountSmall(t, dir, limit)
			}
			return newStore(t, Config{Dirs: []string{dir}, CacheDir: t.TempDir()}), dir
		},
		PutFile: func(t *testing.T, _ driver.Volumes, path string, content []byte) {
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, content, 0o600); err != nil {
				t.Fatal(err)
			}
		},
		Crash: func(t *testing.T, w driver.ImageWriter) {
			im := w.(*image)
			im.server.signal(os.Kill)
			<-im.server.exited
		},
	})
}

// newStore opens a store and checks in the end that it left neither a process
// nor a socket.
func newStore(t testing.TB, cfg Config) *Store {
	t.Helper()
	cfg.RunDir = t.TempDir()
	if len(cfg.RunDir) > 60 { // the names of sub-tests make it long
		dir, err := os.MkdirTemp("", "drover-disk-")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		cfg.RunDir = dir
	}
	s, err := New(slog.New(slog.DiscardHandler), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if list, err := os.ReadDir(cfg.RunDir); err != nil || len(list) != 0 {
			t.Errorf("left in the run folder: %v, %v", list, err)
		}
		if s.count != 0 || len(s.opened) != 0 {
			t.Errorf("%d images are still open", s.count)
		}
	})
	return s
}

// mountSmall mounts a file system of the size; see TestMain for its end.
func mountSmall(t testing.TB, dir string, size drover.Bytes) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", int64(size))); err != nil {
		t.Fatalf("mount a file system of %v (needs root): %v", size, err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
}
