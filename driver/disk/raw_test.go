package disk

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// TestBackingOfRunningVM: a raw golden image is read while a VM runs on top of
// it, without a process of its own, and only then.
func TestBackingOfRunningVM(t *testing.T) {
	s, dir := store(t)
	base, top := filepath.Join(dir, "golden.raw"), filepath.Join(dir, "vm.qcow2")
	content := make([]byte, 4<<20)
	copy(content[1<<20:], bytes.Repeat([]byte("golden"), 1000))
	must(t, os.WriteFile(base, nil, 0o600))
	must(t, os.Truncate(base, int64(len(content))))
	f, err := os.OpenFile(base, os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteAt(content[1<<20:1<<20+8192], 1<<20)
	must(t, err)
	must(t, f.Close())
	must(t, s.Create(t.Context(), driver.VolumeSpec{
		Path: top, Format: "qcow2", VirtualBytes: 4 << 20,
		Backing: drover.Backing{Path: base, Format: "raw", VirtualBytes: 4 << 20},
	}))
	stop, err := vm(t, top, "qcow2")
	must(t, err)
	defer stop()
	r, err := s.OpenRead(t.Context(), base, true)
	must(t, err)
	if _, ok := r.(*rawFile); !ok {
		t.Errorf("opened as a %T", r)
	}
	got := make([]byte, len(content))
	if _, err := r.ReadAt(got, 0); err != nil || !bytes.Equal(got, content) {
		t.Errorf("read: %v, equal %t", err, bytes.Equal(got, content))
	}
	var sum int64
	must(t, r.Extents(t.Context(), func(e driver.Extent) bool {
		if e.Zero || e.Offset > 1<<20 || e.Offset+e.Length < 1<<20+6000 {
			t.Errorf("extent %+v", e)
		}
		sum += e.Length
		return true
	}))
	if sum < 6000 || sum > 1<<20 {
		t.Errorf("extents of %d bytes in all: holes are not seen", sum)
	}
	_, err = s.OpenWrite(t.Context(), base)
	if err == nil {
		t.Error("opened for writing below a running VM")
	}
	_, err = s.OpenRead(t.Context(), top, false)
	wantRefused(t, err)
	must(t, r.Close())
}

// TestRawShrinks: bytes that have gone are an error, not zeros.
func TestRawShrinks(t *testing.T) {
	s, dir := store(t)
	path := filepath.Join(dir, "a.raw")
	must(t, os.WriteFile(path, make([]byte, 8192), 0o600))
	r, err := s.OpenRead(t.Context(), path, false)
	must(t, err)
	must(t, os.Truncate(path, 4096))
	if n, err := r.ReadAt(make([]byte, 8192), 0); n != 4096 || drover.KindOf(err) != drover.Corrupt {
		t.Errorf("read %d, %v", n, err)
	}
	must(t, r.Close())
	if _, err := r.ReadAt(make([]byte, 1), 0); drover.KindOf(err) != drover.Canceled {
		t.Errorf("after closing: %v", err)
	}
}
