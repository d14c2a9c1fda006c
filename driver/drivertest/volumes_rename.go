package drivertest

import (
	"path/filepath"
	"testing"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// volumesRename: an image is at one path, and one that is kept aside is seen by
// those who know of it only.
func volumesRename(t *testing.T, setup VolumesSetup) {
	v, dir := setup.New(t, 0)
	ctx := t.Context()
	base := filepath.Join(dir, "base.raw")
	create(t, v, base, "raw", drover.Backing{})
	write(t, v, base, func(w driver.ImageWriter) { writeAt(t, w, noise(1, clusterBytes), clusterBytes) })
	path, aside := filepath.Join(dir, "disk.qcow2"), filepath.Join(dir, driver.AsidePrefix+"move-1-vda.qcow2")
	create(t, v, path, "qcow2", drover.Backing{Path: base, Format: "raw"})
	data := noise(2, clusterBytes)
	write(t, v, path, func(w driver.ImageWriter) { writeAt(t, w, data, 0) })
	before, err := v.Volume(ctx, path)
	noError(t, err)
	want := content(t, v, path)

	r, err := v.OpenRead(ctx, path, false)
	noError(t, err)
	volumeKind(t, v.Rename(ctx, path, aside), drover.Refused)
	noError(t, r.Close())
	volumeKind(t, v.Rename(ctx, path, base), drover.Exists)
	volumeKind(t, v.Rename(ctx, filepath.Join(dir, "missing.qcow2"), aside), drover.NotFound)
	volumeKind(t, v.Rename(ctx, path, "/etc/disk.qcow2"), drover.Invalid)
	volumeKind(t, v.Rename(ctx, "/etc/passwd", aside), drover.Invalid)
	listed(t, v, base, path)

	noError(t, v.Rename(ctx, path, aside))
	listed(t, v, base)
	_, err = v.Volume(ctx, path)
	volumeKind(t, err, drover.NotFound)
	after, err := v.Volume(ctx, aside)
	noError(t, err)
	if after.VirtualBytes != before.VirtualBytes || after.AllocatedBytes != before.AllocatedBytes || len(after.Backing) != 1 || after.Backing[0].Path != base {
		t.Errorf("aside it is %+v, before it was %+v", after, before)
	}
	sameBytes(t, content(t, v, aside), want)
	// Its old place is free, and it may go back to another.
	create(t, v, path, "qcow2", drover.Backing{})
	volumeKind(t, v.Rename(ctx, aside, path), drover.Exists)
	noError(t, v.Delete(ctx, path))
	noError(t, v.Rename(ctx, aside, path))
	sameBytes(t, content(t, v, path), want)
	noError(t, v.Rename(ctx, path, aside))
	noError(t, v.Delete(ctx, aside))
	listed(t, v, base)
	_, err = v.Volume(ctx, aside)
	volumeKind(t, err, drover.NotFound)
}
