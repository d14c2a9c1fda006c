package drivertest

import (
	"context"
	"path/filepath"
	"sync"
	"testing"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
	"github.com/google/go-cmp/cmp"
)

func volumesLifecycle(t *testing.T, setup VolumesSetup) {
	for _, format := range []string{"qcow2", "raw"} {
		t.Run(format, func(t *testing.T) {
			v, dir := setup.New(t, 0)
			listed(t, v)
			path := filepath.Join(dir, "deep", "er", "disk."+format)
			create(t, v, path, format, drover.Backing{})
			got, err := v.Volume(t.Context(), path)
			noError(t, err)
			if got.AllocatedBytes > drover.MiB {
				t.Errorf("an empty image takes %v", got.AllocatedBytes)
			}
			got.AllocatedBytes = 0
			want := drover.Volume{Path: path, Format: format, VirtualBytes: testBytes}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("observed (-want +got):\n%s", d)
			}
			listed(t, v, path)
			if got := extents(t, v, path, false); len(got) != 0 {
				t.Errorf("an empty image has extents %+v", got)
			}
			sameBytes(t, content(t, v, path), make([]byte, testBytes))
			noError(t, v.Delete(t.Context(), path))
			listed(t, v)
			create(t, v, path, format, drover.Backing{})
		})
	}
}

func volumesMissing(t *testing.T, setup VolumesSetup) {
	v, dir := setup.New(t, 0)
	ctx := t.Context()
	for _, path := range []string{filepath.Join(dir, "missing.qcow2"), filepath.Join(dir, "no", "folder", "missing.raw")} {
		_, err := v.Volume(ctx, path)
		volumeKind(t, err, drover.NotFound)
		_, err = v.OpenRead(ctx, path, false)
		volumeKind(t, err, drover.NotFound)
		_, err = v.OpenWrite(ctx, path)
		volumeKind(t, err, drover.NotFound)
		_, err = v.Identify(ctx, path)
		volumeKind(t, err, drover.NotFound)
		noError(t, v.Delete(ctx, path))
		if _, err := v.FreeBytes(ctx, path); err != nil {
			t.Errorf("free space where an image is to be: %v", err)
		}
	}
	err := v.Create(ctx, driver.VolumeSpec{
		Path: filepath.Join(dir, "new", "top.qcow2"), Format: "qcow2", VirtualBytes: testBytes,
		Backing: drover.Backing{Path: filepath.Join(dir, "missing.raw"), Format: "raw"},
	})
	volumeKind(t, err, drover.NotFound)
	listed(t, v)
}

func volumesExclusiveCreate(t *testing.T, setup VolumesSetup) {
	v, dir := setup.New(t, 0)
	path := filepath.Join(dir, "new", "disk.qcow2")
	const racers = 6
	errs := make([]error, racers)
	var wg sync.WaitGroup
	for i := range racers {
		wg.Go(func() {
			errs[i] = v.Create(t.Context(), driver.VolumeSpec{Path: path, Format: "qcow2", VirtualBytes: testBytes})
		})
	}
	wg.Wait()
	won := 0
	for _, err := range errs {
		if err == nil {
			won++
		} else {
			volumeKind(t, err, drover.Exists)
		}
	}
	if won != 1 {
		t.Fatalf("%d of %d creations of one path succeeded", won, racers)
	}
	data := noise(1, clusterBytes)
	write(t, v, path, func(w driver.ImageWriter) { writeAt(t, w, data, 0) })
	err := v.Create(t.Context(), driver.VolumeSpec{Path: path, Format: "qcow2", VirtualBytes: testBytes})
	volumeKind(t, err, drover.Exists)
	sameBytes(t, content(t, v, path)[:clusterBytes], data)
}

func volumesBadPaths(t *testing.T, setup VolumesSetup) {
	v, dir := setup.New(t, 0)
	ctx := t.Context()
	good := filepath.Join(dir, "base.raw")
	create(t, v, good, "raw", drover.Backing{})
	for _, path := range []string{
		"", "disk.raw", "./disk.raw", "/", "/etc/passwd", dir, dir + "/", dir + "x/disk.raw",
		dir + "/../disk.raw", dir + "/a/../../disk.raw", dir + "/a/./disk.raw", dir + "//disk.raw",
		dir + "/new\nline.raw", dir + "/nul\x00.raw",
	} {
		_, err := v.Volume(ctx, path)
		volumeKind(t, err, drover.Invalid)
		_, err = v.FreeBytes(ctx, path)
		volumeKind(t, err, drover.Invalid)
		volumeKind(t, v.Create(ctx, driver.VolumeSpec{Path: path, Format: "raw", VirtualBytes: testBytes}), drover.Invalid)
		volumeKind(t, v.Delete(ctx, path), drover.Invalid)
		_, err = v.OpenRead(ctx, path, true)
		volumeKind(t, err, drover.Invalid)
		_, err = v.OpenWrite(ctx, path)
		volumeKind(t, err, drover.Invalid)
		_, err = v.Identify(ctx, path)
		volumeKind(t, err, drover.Invalid)
		if path == "" {
			continue // means no backing
		}
		err = v.Create(ctx, driver.VolumeSpec{
			Path: filepath.Join(dir, "top.qcow2"), Format: "qcow2", VirtualBytes: testBytes,
			Backing: drover.Backing{Path: path, Format: "raw"},
		})
		volumeKind(t, err, drover.Invalid)
	}
	listed(t, v, good)
}

func volumesBadSpecs(t *testing.T, setup VolumesSetup) {
	v, dir := setup.New(t, 0)
	base := drover.Backing{Path: filepath.Join(dir, "base.raw"), Format: "raw"}
	create(t, v, base.Path, "raw", drover.Backing{})
	top := filepath.Join(dir, "new", "disk")
	for name, spec := range map[string]driver.VolumeSpec{
		"no format":      {Path: top, VirtualBytes: testBytes},
		"unknown format": {Path: top, Format: "vmdk", VirtualBytes: testBytes},
		"no size":        {Path: top, Format: "qcow2"},
		"negative size":  {Path: top, Format: "qcow2", VirtualBytes: -512},
		"odd size":       {Path: top, Format: "raw", VirtualBytes: testBytes + 1},
		"huge size":      {Path: top, Format: "qcow2", VirtualBytes: 1 << 62},
		"raw backed":     {Path: top, Format: "raw", VirtualBytes: testBytes, Backing: base},
		"backing format missing": {
			Path: top, Format: "qcow2", VirtualBytes: testBytes,
			Backing: drover.Backing{Path: base.Path},
		},
		"backing format wrong": {
			Path: top, Format: "qcow2", VirtualBytes: testBytes,
			Backing: drover.Backing{Path: base.Path, Format: "qcow2"},
		},
		"backing size wrong": {
			Path: top, Format: "qcow2", VirtualBytes: testBytes,
			Backing: drover.Backing{Path: base.Path, Format: "raw", VirtualBytes: testBytes / 2},
		},
		"qcow2 named raw": {Path: top + ".raw", Format: "qcow2", VirtualBytes: testBytes},
		"raw named qcow2": {Path: top + ".qcow2", Format: "raw", VirtualBytes: testBytes},
	} {
		t.Run(name, func(t *testing.T) {
			volumeKind(t, v.Create(t.Context(), spec), drover.Invalid)
			listed(t, v, base.Path)
		})
	}
}

func volumesNotAnImage(t *testing.T, setup VolumesSetup) {
	v, dir := setup.New(t, 0)
	ctx := t.Context()
	for name, text := range map[string]string{
		"notes.txt": "not an image\n", "empty": "", "liar.qcow2": string(make([]byte, 4096)),
	} {
		path := filepath.Join(dir, name)
		setup.PutFile(t, v, path, []byte(text))
		_, err := v.Volume(ctx, path)
		volumeKind(t, err, drover.Invalid)
		_, err = v.OpenRead(ctx, path, false)
		volumeKind(t, err, drover.Invalid)
		_, err = v.OpenWrite(ctx, path)
		volumeKind(t, err, drover.Invalid)
		_, err = v.Identify(ctx, path)
		volumeKind(t, err, drover.Invalid)
		err = v.Create(ctx, driver.VolumeSpec{Path: path, Format: "qcow2", VirtualBytes: testBytes})
		volumeKind(t, err, drover.Exists)
		err = v.Create(ctx, driver.VolumeSpec{
			Path: filepath.Join(dir, "top.qcow2"), Format: "qcow2", VirtualBytes: testBytes,
			Backing: drover.Backing{Path: path, Format: "qcow2"},
		})
		volumeKind(t, err, drover.Invalid)
	}
	listed(t, v)
}

// volumesRawFile: a raw image needs no store to have made it.
func volumesRawFile(t *testing.T, setup VolumesSetup) {
	v, dir := setup.New(t, 0)
	path, data := filepath.Join(dir, "disk.img"), noise(2, 3*clusterBytes)
	setup.PutFile(t, v, path, data)
	got, err := v.Volume(t.Context(), path)
	noError(t, err)
	if got.Format != "raw" || int(got.VirtualBytes) != len(data) {
		t.Errorf("observed %+v", got)
	}
	sameBytes(t, content(t, v, path), data)
}

func volumesFreeBytes(t *testing.T, setup VolumesSetup) {
	const limit = 32 * drover.MiB
	v, dir := setup.New(t, limit)
	path := filepath.Join(dir, "disk.raw")
	before, err := v.FreeBytes(t.Context(), path)
	noError(t, err)
	if before <= limit/2 || before > limit {
		t.Fatalf("free: %v, of about %v", before, limit)
	}
	create(t, v, path, "raw", drover.Backing{})
	data := noise(3, int(4*drover.MiB))
	write(t, v, path, func(w driver.ImageWriter) { writeAt(t, w, data, 0) })
	after, err := v.FreeBytes(t.Context(), path)
	noError(t, err)
	if gone := before - after; gone < drover.Bytes(len(data)) || gone > drover.Bytes(len(data))+drover.MiB {
		t.Errorf("writing %d bytes took %v", len(data), gone)
	}
	vol, err := v.Volume(t.Context(), path)
	noError(t, err)
	if vol.AllocatedBytes < drover.Bytes(len(data)) {
		t.Errorf("allocated: %v, written %d bytes", vol.AllocatedBytes, len(data))
	}
}

func volumesFullDisk(t *testing.T, setup VolumesSetup) {
	const limit = 4 * drover.MiB
	v, dir := setup.New(t, limit)
	ctx := t.Context()
	fill := filepath.Join(dir, "fill.raw")
	create(t, v, fill, "raw", drover.Backing{}) // sparse: larger than there is room for
	w, err := v.OpenWrite(ctx, fill)
	noError(t, err)
	written := int64(0)
	for data := noise(4, clusterBytes); ; written += clusterBytes {
		if written >= int64(testBytes) {
			t.Fatalf("%v fit into %v", testBytes, limit)
		}
		if _, err = w.WriteAt(data, written); err != nil {
			break
		}
	}
	volumeKind(t, err, drover.Exhausted)
	for off := written; ; off += 4096 { // what is left of the last cluster
		if _, err := w.WriteAt(noise(4, 4096), off); err != nil {
			break
		}
	}
	got := make([]byte, clusterBytes)
	if _, err := w.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	sameBytes(t, got, noise(4, clusterBytes))
	noError(t, w.Close())

	path := filepath.Join(dir, "new.qcow2")
	err = v.Create(ctx, driver.VolumeSpec{Path: path, Format: "qcow2", VirtualBytes: testBytes})
	volumeKind(t, err, drover.Exhausted)
	listed(t, v, fill)
	noError(t, v.Delete(ctx, fill))
	free, err := v.FreeBytes(ctx, path)
	noError(t, err)
	if free < limit/2 {
		t.Errorf("free: %v; something was left behind", free)
	}
	create(t, v, path, "qcow2", drover.Backing{})
}

func volumesCanceled(t *testing.T, setup VolumesSetup) {
	v, dir := setup.New(t, 0)
	path := filepath.Join(dir, "disk.qcow2")
	create(t, v, path, "qcow2", drover.Backing{})
	write(t, v, path, func(w driver.ImageWriter) { writeAt(t, w, noise(5, clusterBytes), 0) })
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	other := filepath.Join(dir, "other.qcow2")
	volumeKind(t, v.Create(ctx, driver.VolumeSpec{Path: other, Format: "qcow2", VirtualBytes: testBytes}), drover.Canceled)
	_, err := v.OpenRead(ctx, path, false)
	volumeKind(t, err, drover.Canceled)
	_, err = v.OpenWrite(ctx, path)
	volumeKind(t, err, drover.Canceled)
	_, err = v.Identify(ctx, path)
	volumeKind(t, err, drover.Canceled)
	listed(t, v, path)
	sameBytes(t, content(t, v, path)[:clusterBytes], noise(5, clusterBytes))
}
