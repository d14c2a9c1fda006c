package disk

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

func store(t *testing.T) (*Store, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "images")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return newStore(t, Config{Dirs: []string{dir}}), dir
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// refuses fails unless every way to open the image gives the kind and a text
// that contains say.
func refuses(t *testing.T, s *Store, path string, kind drover.Kind, say string) {
	t.Helper()
	_, err1 := s.Volume(t.Context(), path)
	_, err2 := s.OpenRead(t.Context(), path, false)
	_, err3 := s.OpenWrite(t.Context(), path)
	_, err4 := s.Identify(t.Context(), path)
	for _, err := range []error{err1, err2, err3, err4} {
		if drover.KindOf(err) != kind || err == nil || !strings.Contains(err.Error(), say) {
			t.Errorf("%s: got %v of kind %v, want %v and %q", filepath.Base(path), err, drover.KindOf(err), kind, say)
		}
	}
	list, err := s.List(t.Context())
	must(t, err)
	for _, v := range list {
		if v.Path == path {
			t.Errorf("%s is listed", path)
		}
	}
}

func TestSymbolicLinks(t *testing.T) {
	s, dir := store(t)
	outside := filepath.Join(filepath.Dir(dir), "outside")
	must(t, os.Mkdir(outside, 0o755))
	must(t, os.WriteFile(filepath.Join(outside, "secret.raw"), make([]byte, 512), 0o600))
	must(t, os.Symlink(filepath.Join(outside, "secret.raw"), filepath.Join(dir, "link.raw")))
	must(t, os.Symlink(outside, filepath.Join(dir, "folder")))
	must(t, os.Symlink(filepath.Join(dir, "nowhere"), filepath.Join(dir, "dangling.raw")))
	must(t, os.Symlink("circle.raw", filepath.Join(dir, "circle.raw")))
	for _, name := range []string{"link.raw", "folder/secret.raw", "folder/new.raw", "folder/deep/new.raw", "dangling.raw", "circle.raw"} {
		path := filepath.Join(dir, name)
		refuses(t, s, path, drover.Invalid, name)
		err := s.Create(t.Context(), driver.VolumeSpec{Path: path, Format: "raw", VirtualBytes: 512})
		if drover.KindOf(err) != drover.Invalid {
			t.Errorf("create %s: %v", name, err)
		}
		if err := s.Delete(t.Context(), path); drover.KindOf(err) != drover.Invalid {
			t.Errorf("delete %s: %v", name, err)
		}
	}
	if list, _ := os.ReadDir(outside); len(list) != 1 {
		t.Errorf("outside of the store there is now %v", list)
	}
	// A link that stays inside is as good as what it points to.
	must(t, s.Create(t.Context(), driver.VolumeSpec{Path: filepath.Join(dir, "a.raw"), Format: "raw", VirtualBytes: 512}))
	must(t, os.Symlink("a.raw", filepath.Join(dir, "b.raw")))
	if _, err := s.Volume(t.Context(), filepath.Join(dir, "b.raw")); err != nil {
		t.Error(err)
	}
}

// forge puts a qcow2 header there that names a backing file of the format.
func forge(t *testing.T, path, backing, format string, change func(header []byte)) {
	t.Helper()
	b := forged(backing, format)
	if change != nil {
		change(b)
	}
	must(t, os.WriteFile(path, b, 0o600))
}

func forged(backing, format string) []byte {
	b := make([]byte, 65536)
	copy(b, "QFI\xfb")
	be := binary.BigEndian
	be.PutUint32(b[4:], 3)
	be.PutUint32(b[20:], 16)
	be.PutUint64(b[24:], 1<<20)
	be.PutUint32(b[96:], 4)
	be.PutUint32(b[100:], 104)
	if backing != "" {
		be.PutUint64(b[8:], 256)
		be.PutUint32(b[16:], uint32(len(backing)))
		copy(b[256:], backing)
	}
	if format != "" {
		be.PutUint32(b[104:], 0xe2792aca)
		be.PutUint32(b[108:], uint32(len(format)))
		copy(b[112:], format)
	}
	return b
}

// TestForgedHeaders: an image's header cannot make QEMU open anything but
// files of the store.
func TestForgedHeaders(t *testing.T) {
	s, dir := store(t)
	must(t, s.Create(t.Context(), driver.VolumeSpec{Path: filepath.Join(dir, "base.raw"), Format: "raw", VirtualBytes: 1 << 20}))
	be := binary.BigEndian
	for _, c := range []struct {
		name, backing, format string
		change                func(b []byte)
		kind                  drover.Kind
		say                   string
	}{
		{name: "outside", backing: "/etc/passwd", format: "raw", kind: drover.Invalid, say: "not below"},
		{name: "dots", backing: dir + "/../x", format: "raw", kind: drover.Invalid, say: "not below"},
		{name: "relative", backing: "../x", format: "raw", kind: drover.Invalid, say: "not below"},
		{name: "json", backing: `json:{"driver":"file","filename":"/etc/passwd"}`, format: "raw", kind: drover.Invalid, say: "is not a file"},
		{name: "network", backing: "nbd://127.0.0.1/x", format: "raw", kind: drover.Invalid, say: "is not a file"},
		{name: "unformatted", backing: "base.raw", kind: drover.Invalid, say: "qemu-img rebase"},
		{name: "strange", backing: "base.raw", format: "vmdk", kind: drover.Invalid, say: "qemu-img rebase"},
		{name: "wrong", backing: "base.raw", format: "qcow2", kind: drover.Invalid, say: "lacks the header"},
		{name: "gone", backing: "gone.raw", format: "raw", kind: drover.NotFound, say: "gone.raw"},
		{name: "circle", backing: "circle", format: "qcow2", kind: drover.Invalid, say: "circle"},
		{name: "corrupt", change: func(b []byte) { b[79] = 2 }, kind: drover.Corrupt, say: "qemu-img check"},
		{name: "datafile", change: func(b []byte) { b[79] = 4 }, kind: drover.Invalid, say: "external"},
		{name: "version", change: func(b []byte) { b[7] = 9 }, kind: drover.Invalid, say: "version 9"},
		{name: "bits", change: func(b []byte) { b[23] = 63 }, kind: drover.Invalid, say: "cluster bits 63"},
		{name: "size", change: func(b []byte) { be.PutUint64(b[24:], 1<<63) }, kind: drover.Invalid, say: "damaged"},
		{name: "longname", change: func(b []byte) { be.PutUint64(b[8:], 256); be.PutUint32(b[16:], 1<<31) }, kind: drover.Invalid, say: "damaged"},
		{name: "farname", change: func(b []byte) { be.PutUint64(b[8:], 1<<64-1); be.PutUint32(b[16:], 10) }, kind: drover.Invalid, say: "damaged"},
	} {
		path := filepath.Join(dir, c.name)
		forge(t, path, c.backing, c.format, c.change)
		refuses(t, s, path, c.kind, c.say)
	}
	for name, text := range map[string]string{"a.vmdk": "KDMV", "b.img": "\x1f\x8b\x08", "c": "conectix"} {
		path := filepath.Join(dir, name)
		must(t, os.WriteFile(path, append([]byte(text), make([]byte, 1024-len(text))...), 0o600))
		refuses(t, s, path, drover.Invalid, "name it .raw")
	}
}

// TestGuestHeader: what a guest writes to its raw disk stays data.
func TestGuestHeader(t *testing.T) {
	s, dir := store(t)
	for _, name := range []string{"a.img", "b.raw"} {
		path := filepath.Join(dir, name)
		must(t, s.Create(t.Context(), driver.VolumeSpec{Path: path, Format: "raw", VirtualBytes: 1 << 20}))
		forge(t, filepath.Join(dir, "header"), "/etc/passwd", "raw", nil)
		b, err := os.ReadFile(filepath.Join(dir, "header"))
		must(t, err)
		must(t, os.Remove(filepath.Join(dir, "header")))
		w, err := s.OpenWrite(t.Context(), path)
		must(t, err)
		_, err = w.WriteAt(b, 0)
		must(t, err)
		must(t, w.Close())
		if v, err := s.Volume(t.Context(), path); err != nil || v.Format != "raw" {
			t.Errorf("%s: %+v, %v", name, v, err)
		}
		r, err := s.OpenRead(t.Context(), path, false)
		must(t, err)
		got := make([]byte, len(b))
		if _, err := r.ReadAt(got, 0); err != nil || !bytes.Equal(got, b) {
			t.Errorf("%s reads differently: %v", name, err)
		}
		must(t, r.Close())
	}
}

// TestFailedCreateLeavesNothing looks at the folder itself, hidden files
// included.
func TestFailedCreateLeavesNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "images")
	mountSmall(t, dir, 64*drover.KiB)
	s := newStore(t, Config{Dirs: []string{dir}})
	err := s.Create(t.Context(), driver.VolumeSpec{Path: filepath.Join(dir, "a", "b", "c.qcow2"), Format: "qcow2", VirtualBytes: 1 << 30})
	if drover.KindOf(err) != drover.Exhausted {
		t.Errorf("create on a full disk: %v of kind %v", err, drover.KindOf(err))
	}
	if list, err := os.ReadDir(dir); err != nil || len(list) != 0 {
		t.Errorf("left behind: %v, %v", list, err)
	}
}

func TestSweep(t *testing.T) {
	dir := t.TempDir()
	old, young, image := filepath.Join(dir, "sub", ".drover-A.tmp"), filepath.Join(dir, ".drover-B.tmp"), filepath.Join(dir, "old.raw")
	must(t, os.Mkdir(filepath.Join(dir, "sub"), 0o755))
	for _, p := range []string{old, young, image} {
		must(t, os.WriteFile(p, make([]byte, 512), 0o600))
		if p != young {
			must(t, os.Chtimes(p, time.Time{}, time.Now().Add(-2*staleAfter)))
		}
	}
	s := newStore(t, Config{Dirs: []string{dir}})
	if fileExists(old) || !fileExists(young) || !fileExists(image) {
		t.Error("the wrong files were swept")
	}
	if list, err := s.List(t.Context()); err != nil || len(list) != 1 {
		t.Errorf("listed: %v, %v", list, err)
	}
}

func TestConfig(t *testing.T) {
	for _, c := range []Config{
		{},
		{Dirs: []string{"images"}},
		{Dirs: []string{"/"}},
		{Dirs: []string{"/a/../b"}},
		{Dirs: []string{"/a/"}},
		{Dirs: []string{"/a"}, RunDir: "/" + strings.Repeat("x", 60)},
	} {
		if _, err := New(slog.New(slog.DiscardHandler), c); drover.KindOf(err) != drover.Invalid {
			t.Errorf("%+v: %v", c, err)
		}
	}
	dir := t.TempDir()
	s := newStore(t, Config{Dirs: []string{dir}, QemuImg: "/nowhere/qemu-img", QemuNBD: "/nowhere/qemu-nbd"})
	err := s.Create(t.Context(), driver.VolumeSpec{Path: dir + "/a.qcow2", Format: "qcow2", VirtualBytes: 512})
	if drover.KindOf(err) != drover.Unavailable || fileExists(dir+"/a.qcow2") {
		t.Errorf("without qemu-img: %v", err)
	}
	must(t, s.Create(t.Context(), driver.VolumeSpec{Path: dir + "/a.raw", Format: "raw", VirtualBytes: 512}))
	if _, err := s.OpenWrite(t.Context(), dir+"/a.raw"); drover.KindOf(err) != drover.Unavailable {
		t.Errorf("without qemu-nbd: %v", err)
	}
}

// FuzzHeader: no file makes the header's reader panic, and what it accepts is
// sound.
func FuzzHeader(f *testing.F) {
	for _, c := range [][2]string{{"base.raw", "raw"}, {"json:{}", "qcow2"}, {"", ""}} {
		b := forged(c[0], c[1])
		f.Add(b[:512], "x", "")
	}
	f.Add(make([]byte, 512), "x.qcow2", "raw")
	f.Fuzz(func(t *testing.T, b []byte, name, known string) {
		h := header{path: "/images/" + name, fileSize: int64(len(b))}
		err := h.parse(bytes.NewReader(b), known)
		if err == nil && (h.size <= 0 || h.size%sectorBytes != 0 || h.backing != "" && !filepath.IsAbs(h.backing)) {
			t.Fatalf("accepted %+v", h)
		}
	})
}

// TestSocketsOfTheDead: what a killed process has left in the run folder goes, what
// a living one has there stays.
func TestSocketsOfTheDead(t *testing.T) {
	run := t.TempDir()
	gone := exec.Command("true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	dead := filepath.Join(run, fmt.Sprintf("%s%d-1", socketPrefix, gone.Process.Pid))
	alive := filepath.Join(run, fmt.Sprintf("%s%d-1", socketPrefix, os.Getpid()))
	other := filepath.Join(run, "other")
	for _, dir := range []string{dead, alive, other} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	s, err := New(slog.New(slog.DiscardHandler), Config{Dirs: []string{t.TempDir()}, RunDir: run})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]bool{dead: false, alive: true, other: true} {
		if there := fileExists(dir); there != want {
			t.Errorf("%s: there %v, want %v", dir, there, want)
		}
	}
}
