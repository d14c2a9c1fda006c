package memory_test

import (
	"errors"
	"testing"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/driver/drivertest"
	"github.com/drover-vm/drover/driver/memory"
)

func TestVolumes(t *testing.T) {
	drivertest.Volumes(t, drivertest.VolumesSetup{
		New: func(_ *testing.T, limit drover.Bytes) (driver.Volumes, string) {
			return memory.NewVolumes(memory.VolumesConfig{Dirs: []string{"/images"}, CapacityBytes: limit}), "/images"
		},
		PutFile: func(_ *testing.T, store driver.Volumes, path string, content []byte) {
			store.(*memory.Volumes).PutFile(path, content)
		},
		Crash: func(_ *testing.T, w driver.ImageWriter) { memory.CrashWriter(w) },
	})
}

// TestVolumesFault: each operation asks first, under its documented name, and
// a fault changes nothing.
func TestVolumesFault(t *testing.T) {
	fail := ""
	boom := drover.Errorf(drover.Unavailable, "", "as told")
	v := memory.NewVolumes(memory.VolumesConfig{Dirs: []string{"/images"}, Fault: func(op, _ string) error {
		if op == fail {
			return boom
		}
		return nil
	}})
	ctx, path := t.Context(), "/images/a.qcow2"
	spec := driver.VolumeSpec{Path: path, Format: "qcow2", VirtualBytes: drover.MiB}
	var w driver.ImageWriter
	var r driver.ImageReader
	for _, step := range []struct {
		op  string
		run func() error
	}{
		{"create", func() error { return v.Create(ctx, spec) }},
		{"list", func() error { _, err := v.List(ctx); return err }},
		{"observe", func() error { _, err := v.Volume(ctx, path); return err }},
		{"free bytes", func() error { _, err := v.FreeBytes(ctx, path); return err }},
		{"open write", func() (err error) { w, err = v.OpenWrite(ctx, path); return err }},
		{"write at", func() error { _, err := w.WriteAt(make([]byte, 512), 0); return err }},
		{"zero", func() error { return w.Zero(ctx, 0, 512) }},
		{"flush", func() error { err := w.Flush(ctx); return err }},
		{"read at", func() error { _, err := w.ReadAt(make([]byte, 512), 0); return err }},
		{"close", func() error { return w.Close() }},
		{"open read", func() (err error) { r, err = v.OpenRead(ctx, path, false); return err }},
		{"extents", func() error { return r.Extents(ctx, func(driver.Extent) bool { return true }) }},
		{"identify", func() error { _, err := v.Identify(ctx, path); return err }},
		{"", func() error { return r.Close() }},
		{"delete", func() error { return v.Delete(ctx, path) }},
	} {
		if step.op != "" {
			fail = step.op
			if err := step.run(); !errors.Is(err, boom) || drover.KindOf(err) != drover.Unavailable {
				t.Fatalf("%s: got %v, want the fault", step.op, err)
			}
		}
		fail = "nothing"
		if err := step.run(); err != nil {
			t.Fatalf("%s, after its fault: %v", step.op, err)
		}
	}
}

// TestVolumesCrashUndoes: without a flush nothing written survives.
func TestVolumesCrashUndoes(t *testing.T) {
	v := memory.NewVolumes(memory.VolumesConfig{Dirs: []string{"/images"}})
	path := "/images/a.raw"
	if err := v.Create(t.Context(), driver.VolumeSpec{Path: path, Format: "raw", VirtualBytes: drover.MiB}); err != nil {
		t.Fatal(err)
	}
	free, _ := v.FreeBytes(t.Context(), path)
	w, err := v.OpenWrite(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteAt([]byte("volatile"), 4096); err != nil {
		t.Fatal(err)
	}
	memory.CrashWriter(w)
	r, err := v.OpenRead(t.Context(), path, false)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got := make([]byte, 8)
	if _, err := r.ReadAt(got, 4096); err != nil || string(got) != string(make([]byte, 8)) {
		t.Errorf("after the crash: %q, %v", got, err)
	}
	if now, _ := v.FreeBytes(t.Context(), path); now != free {
		t.Errorf("free: %v, before %v", now, free)
	}
}

// TestVolumesBitmaps: records of other programs do not exist in memory.
func TestVolumesBitmaps(t *testing.T) {
	drivertest.VolumesBitmaps(t, drivertest.VolumesBitmapSetup{
		VolumesSetup: drivertest.VolumesSetup{
			New: func(*testing.T, drover.Bytes) (driver.Volumes, string) {
				return memory.NewVolumes(memory.VolumesConfig{Dirs: []string{"/images"}}), "/images"
			},
			Crash: func(_ *testing.T, w driver.ImageWriter) { memory.CrashWriter(w) },
		},
		AddBitmap: func(_ *testing.T, store driver.Volumes, path string, c driver.Checkpoint) {
			store.(*memory.Volumes).AddBitmap(path, c)
		},
		Foreign:      func(*testing.T, driver.Volumes, string) {},
		ForeignThere: func(*testing.T, driver.Volumes, string) bool { return true },
	})
}
