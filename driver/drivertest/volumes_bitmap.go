package drivertest

import (
	"bytes"
	"slices"
	"testing"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// VolumesBitmapSetup is what the suite of driver.Bitmaps needs beside
// VolumesSetup.
type VolumesBitmapSetup struct {
	VolumesSetup
	// AddBitmap makes an image at rest record its changes from now on, as a
	// hypervisor would; Foreign makes one of a name that is not Drover's, and
	// ForeignThere tells whether it is still there.
	AddBitmap    func(t *testing.T, store driver.Volumes, path string, c driver.Checkpoint)
	Foreign      func(t *testing.T, store driver.Volumes, path string)
	ForeignThere func(t *testing.T, store driver.Volumes, path string) bool
}

// VolumesBitmaps runs the conformance suite of driver.Bitmaps.
func VolumesBitmaps(t *testing.T, setup VolumesBitmapSetup) {
	for _, c := range []struct {
		name string
		run  func(*testing.T, VolumesBitmapSetup)
	}{
		{"Changes", bitmapChanges},
		{"Remove", bitmapRemove},
		{"Formats", bitmapFormats},
		{"Missing", bitmapMissing},
		{"Damaged", bitmapDamaged},
		{"InUse", bitmapInUse},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(t, setup) })
	}
}

var bitmapOwner = driver.MoveOwner("m-1")

func checkpoint(n int64) driver.Checkpoint {
	return driver.Checkpoint{Owner: bitmapOwner, Number: n}
}

// extentsOf reads an image's extents and closes it.
func extentsOf(t *testing.T, r driver.ImageReader) []driver.Extent {
	t.Helper()
	var list []driver.Extent
	noError(t, r.Extents(t.Context(), func(e driver.Extent) bool { list = append(list, e); return true }))
	noError(t, r.Close())
	return list
}

func changesOf(t *testing.T, v driver.Volumes, path string, c driver.Checkpoint) []driver.Extent {
	t.Helper()
	r, err := v.OpenChanges(t.Context(), path, c)
	noError(t, err)
	return extentsOf(t, r)
}

func wantBitmaps(t *testing.T, v driver.Volumes, path string, want ...driver.Checkpoint) {
	t.Helper()
	got, err := v.Bitmaps(t.Context(), path)
	noError(t, err)
	if !slices.Equal(got, want) {
		t.Fatalf("bitmaps %v, want %v", got, want)
	}
}

// bitmapChanges: what was written, and what was made zeros, since each of two
// checkpoints, and the content that goes with it.
func bitmapChanges(t *testing.T, setup VolumesBitmapSetup) {
	v, dir := setup.New(t, 0)
	base, path := dir+"/base.qcow2", dir+"/vm.qcow2"
	create(t, v, base, "qcow2", drover.Backing{})
	write(t, v, base, func(w driver.ImageWriter) { writeAt(t, w, bytes.Repeat([]byte{7}, 2*clusterBytes), 0) })
	create(t, v, path, "qcow2", drover.Backing{Path: base, Format: "qcow2"})
	setup.AddBitmap(t, v, path, checkpoint(1))
	if got := changesOf(t, v, path, checkpoint(1)); got != nil {
		t.Errorf("changes of nothing: %v", got)
	}
	write(t, v, path, func(w driver.ImageWriter) { writeAt(t, w, []byte("first"), 3*clusterBytes+5) })
	setup.AddBitmap(t, v, path, checkpoint(2))
	write(t, v, path, func(w driver.ImageWriter) {
		writeAt(t, w, bytes.Repeat([]byte{2}, clusterBytes), 5*clusterBytes)
		noError(t, w.Zero(t.Context(), 0, clusterBytes))
	})
	cluster := func(n int64) driver.Extent { return driver.Extent{Offset: n * clusterBytes, Length: clusterBytes} }
	for n, want := range map[int64][]driver.Extent{
		1: {cluster(0), cluster(3), cluster(5)},
		2: {cluster(0), cluster(5)},
	} {
		if got := changesOf(t, v, path, checkpoint(n)); !slices.Equal(got, want) {
			t.Errorf("changes since %d: %v, want %v", n, got, want)
		}
	}
	r, err := v.OpenChanges(t.Context(), path, checkpoint(2))
	noError(t, err)
	defer r.Close()
	got := readAll(t, r)
	if !bytes.Equal(got[:clusterBytes], make([]byte, clusterBytes)) || got[clusterBytes] != 7 || got[5*clusterBytes] != 2 {
		t.Error("the content is not what the guest sees")
	}
	wantBitmaps(t, v, path, checkpoint(1), checkpoint(2))
}

// bitmapRemove: each goes by itself, as often as one likes, and nobody else's
// with it.
func bitmapRemove(t *testing.T, setup VolumesBitmapSetup) {
	v, dir := setup.New(t, 0)
	path := dir + "/vm.qcow2"
	create(t, v, path, "qcow2", drover.Backing{})
	setup.Foreign(t, v, path)
	other := driver.Checkpoint{Owner: driver.VMOwner("u-1"), Number: 1}
	for _, c := range []driver.Checkpoint{checkpoint(2), checkpoint(10), other} {
		setup.AddBitmap(t, v, path, c)
	}
	wantBitmaps(t, v, path, checkpoint(2), checkpoint(10), other)
	for range 2 {
		noError(t, v.RemoveBitmap(t.Context(), path, checkpoint(2)))
		wantBitmaps(t, v, path, checkpoint(10), other)
	}
	noError(t, v.RemoveBitmap(t.Context(), path, checkpoint(10)))
	noError(t, v.RemoveBitmap(t.Context(), path, other))
	wantBitmaps(t, v, path)
	if !setup.ForeignThere(t, v, path) {
		t.Error("another program's bitmap is gone")
	}
}

func bitmapFormats(t *testing.T, setup VolumesBitmapSetup) {
	v, dir := setup.New(t, 0)
	path := dir + "/vm.raw"
	create(t, v, path, "raw", drover.Backing{})
	_, err := v.Bitmaps(t.Context(), path)
	volumeKind(t, err, drover.Refused)
	_, err = v.OpenChanges(t.Context(), path, checkpoint(1))
	volumeKind(t, err, drover.Refused)
	noError(t, v.RemoveBitmap(t.Context(), path, checkpoint(1)))
}

func bitmapMissing(t *testing.T, setup VolumesBitmapSetup) {
	v, dir := setup.New(t, 0)
	path := dir + "/vm.qcow2"
	_, err := v.Bitmaps(t.Context(), path)
	volumeKind(t, err, drover.NotFound)
	_, err = v.OpenChanges(t.Context(), path, checkpoint(1))
	volumeKind(t, err, drover.NotFound)
	noError(t, v.RemoveBitmap(t.Context(), path, checkpoint(1)))
	create(t, v, path, "qcow2", drover.Backing{})
	_, err = v.OpenChanges(t.Context(), path, checkpoint(1))
	volumeKind(t, err, drover.NotFound)
	for _, err := range []error{
		v.RemoveBitmap(t.Context(), "/elsewhere/vm.qcow2", checkpoint(1)),
		v.RemoveBitmap(t.Context(), path, driver.Checkpoint{}),
	} {
		volumeKind(t, err, drover.Invalid)
	}
	_, err = v.OpenChanges(t.Context(), path, driver.Checkpoint{Owner: "x", Number: 1})
	volumeKind(t, err, drover.Invalid)
}

// bitmapDamaged: a record whose keeper died is not relied on, is still found,
// and can be removed.
func bitmapDamaged(t *testing.T, setup VolumesBitmapSetup) {
	v, dir := setup.New(t, 0)
	path := dir + "/vm.qcow2"
	create(t, v, path, "qcow2", drover.Backing{})
	setup.AddBitmap(t, v, path, checkpoint(1))
	w, err := v.OpenWrite(t.Context(), path)
	noError(t, err)
	writeAt(t, w, []byte("lost"), 0)
	setup.Crash(t, w)
	_ = w.Close()
	_, err = v.OpenChanges(t.Context(), path, checkpoint(1))
	volumeKind(t, err, drover.NotFound)
	wantBitmaps(t, v, path, checkpoint(1))
	noError(t, v.RemoveBitmap(t.Context(), path, checkpoint(1)))
	wantBitmaps(t, v, path)
}

func bitmapInUse(t *testing.T, setup VolumesBitmapSetup) {
	v, dir := setup.New(t, 0)
	path := dir + "/vm.qcow2"
	create(t, v, path, "qcow2", drover.Backing{})
	setup.AddBitmap(t, v, path, checkpoint(1))
	w, err := v.OpenWrite(t.Context(), path)
	noError(t, err)
	_, err = v.OpenChanges(t.Context(), path, checkpoint(1))
	volumeKind(t, err, drover.Refused)
	volumeKind(t, v.RemoveBitmap(t.Context(), path, checkpoint(1)), drover.Refused)
	noError(t, w.Close())
	noError(t, v.RemoveBitmap(t.Context(), path, checkpoint(1)))
}
