package drivertest

import (
	"context"
	"errors"
	"io"
	"path/filepath"
	"sync"
	"testing"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
	"github.com/google/go-cmp/cmp"
)

func volumesWriteReadBack(t *testing.T, setup VolumesSetup) {
	for _, format := range []string{"qcow2", "raw"} {
		t.Run(format, func(t *testing.T) {
			v, dir := setup.New(t, 0)
			path := filepath.Join(dir, "disk."+format)
			create(t, v, path, format, drover.Backing{})
			want := make([]byte, testBytes)
			put := func(w driver.ImageWriter, seed uint64, off, n int) {
				data := noise(seed, n)
				copy(want[off:], data)
				writeAt(t, w, data, int64(off))
			}
			write(t, v, path, func(w driver.ImageWriter) {
				put(w, 1, 512, 512)
				put(w, 2, 1<<20-512, 1024)                  // over an edge
				put(w, 3, 2<<20, int(2*drover.MiB)+512)     // more than one request
				put(w, 4, int(testBytes)-clusterBytes, 512) // in the last cluster
				put(w, 5, 2<<20+512, 512)                   // again
				sameBytes(t, readAll(t, w), want)
			})
			sameBytes(t, content(t, v, path), want)
			sameBytes(t, rebuild(t, v, path, false, make([]byte, testBytes)), want)
			list := extents(t, v, path, false)
			if !covers(list, 2<<20, 2<<20, false) || touches(list, 5<<20, clusterBytes) {
				t.Errorf("extents %+v do not fit what was written", list)
			}
			write(t, v, path, func(w driver.ImageWriter) { put(w, 6, 5<<20, clusterBytes) })
			sameBytes(t, content(t, v, path), want)
		})
	}
}

// volumesRanges: reads and writes at and beyond an image's end.
func volumesRanges(t *testing.T, setup VolumesSetup) {
	v, dir := setup.New(t, 0)
	path := filepath.Join(dir, "disk.qcow2")
	create(t, v, path, "qcow2", drover.Backing{})
	size := int64(testBytes)
	write(t, v, path, func(w driver.ImageWriter) {
		if w.Size() != size {
			t.Errorf("size %d, want %d", w.Size(), size)
		}
		last := noise(7, 512)
		writeAt(t, w, last, size-512)
		b := make([]byte, 1024)
		n, err := w.ReadAt(b, size-512)
		if n != 512 || err != io.EOF {
			t.Errorf("reading over the end: %d, %v", n, err)
		}
		sameBytes(t, b[:n], last)
		if n, err := w.ReadAt(b, size); n != 0 || err != io.EOF {
			t.Errorf("reading behind the end: %d, %v", n, err)
		}
		if n, err := w.ReadAt(nil, 0); n != 0 || err != nil {
			t.Errorf("reading nothing: %d, %v", n, err)
		}
		if n, err := w.WriteAt(nil, 0); n != 0 || err != nil {
			t.Errorf("writing nothing: %d, %v", n, err)
		}
		for _, off := range []int64{-512, size - 512, size, 1 << 62} {
			_, err := w.WriteAt(b, off)
			volumeKind(t, err, drover.Invalid)
			volumeKind(t, w.Zero(t.Context(), off, 1024), drover.Invalid)
		}
		volumeKind(t, w.Zero(t.Context(), 0, -512), drover.Invalid)
		_, err = w.ReadAt(b, -1)
		volumeKind(t, err, drover.Invalid)
		noError(t, w.Zero(t.Context(), 0, 0))
	})
}

func volumesZero(t *testing.T, setup VolumesSetup) {
	for _, format := range []string{"qcow2", "raw"} {
		t.Run(format, func(t *testing.T) {
			v, dir := setup.New(t, 0)
			path := filepath.Join(dir, "disk."+format)
			create(t, v, path, format, drover.Backing{})
			want := noise(8, int(testBytes))
			write(t, v, path, func(w driver.ImageWriter) { writeAt(t, w, want, 0) })
			full, err := v.Volume(t.Context(), path)
			noError(t, err)
			write(t, v, path, func(w driver.ImageWriter) {
				noError(t, w.Zero(t.Context(), 1<<20, 4<<20))
				noError(t, w.Zero(t.Context(), 512, 1024))
			})
			clear(want[1<<20 : 5<<20])
			clear(want[512 : 512+1024])
			sameBytes(t, content(t, v, path), want)
			if list := extents(t, v, path, false); touches(list, 1<<20, 4<<20) {
				t.Errorf("zeros are reported as data: %+v", list)
			}
			less, err := v.Volume(t.Context(), path)
			noError(t, err)
			if freed := full.AllocatedBytes - less.AllocatedBytes; freed < 3*drover.MiB {
				t.Errorf("zeroing 4 MiB freed %v", freed)
			}
		})
	}
}

// layers makes base ← middle ← top and returns their paths and contents.
func layers(t *testing.T, v driver.Volumes, dir string) (path [3]string, want [3][]byte) {
	t.Helper()
	path = [3]string{filepath.Join(dir, "base.raw"), filepath.Join(dir, "middle.qcow2"), filepath.Join(dir, "top.qcow2")}
	const k = clusterBytes
	base := make([]byte, testBytes)
	create(t, v, path[0], "raw", drover.Backing{})
	write(t, v, path[0], func(w driver.ImageWriter) {
		copy(base, noise(1, 20*k))
		writeAt(t, w, base[:20*k], 0)
	})
	middle := append([]byte(nil), base...)
	create(t, v, path[1], "qcow2", drover.Backing{Path: path[0], Format: "raw", VirtualBytes: testBytes})
	write(t, v, path[1], func(w driver.ImageWriter) {
		copy(middle[4*k:], noise(2, 4*k)) // data over data
		writeAt(t, w, middle[4*k:8*k], 4*k)
		copy(middle[30*k:], noise(3, 2*k)) // data over nothing
		writeAt(t, w, middle[30*k:32*k], 30*k)
	})
	top := append([]byte(nil), middle...)
	create(t, v, path[2], "qcow2", drover.Backing{Path: path[1], Format: "qcow2"})
	write(t, v, path[2], func(w driver.ImageWriter) {
		copy(top[6*k:], noise(4, 3*k)) // data over middle and base
		writeAt(t, w, top[6*k:9*k], 6*k)
		clear(top[10*k : 12*k]) // zeros over base
		noError(t, w.Zero(t.Context(), 10*k, 2*k))
		clear(top[31*k : 32*k]) // zeros over middle
		noError(t, w.Zero(t.Context(), 31*k, k))
		copy(top[50*k+512:], noise(5, 512)) // a little data over nothing
		writeAt(t, w, top[50*k+512:50*k+1024], 50*k+512)
		copy(top[16*k+512:], noise(6, 512)) // a little data over data: the rest of its cluster comes from below
		writeAt(t, w, top[16*k+512:16*k+1024], 16*k+512)
	})
	return path, [3][]byte{base, middle, top}
}

func volumesBackingChain(t *testing.T, setup VolumesSetup) {
	v, dir := setup.New(t, 0)
	path, want := layers(t, v, dir)
	for i, p := range path {
		sameBytes(t, content(t, v, p), want[i])
		sameBytes(t, rebuild(t, v, p, false, make([]byte, testBytes)), want[i])
	}
	got, err := v.Volume(t.Context(), path[2])
	noError(t, err)
	chain := []drover.Backing{
		{Path: path[1], Format: "qcow2", VirtualBytes: testBytes},
		{Path: path[0], Format: "raw", VirtualBytes: testBytes},
	}
	if d := cmp.Diff(chain, got.Backing); d != "" {
		t.Errorf("backing (-want +got):\n%s", d)
	}
	listed(t, v, path[:]...)
	for _, e := range extents(t, v, path[2], false) {
		if e.Zero {
			t.Errorf("extent %+v hides nothing: the whole chain is read", e)
		}
	}
	noError(t, v.Delete(t.Context(), path[2]))
	listed(t, v, path[:2]...)

	larger := filepath.Join(dir, "larger.qcow2")
	noError(t, v.Create(t.Context(), driver.VolumeSpec{
		Path: larger, Format: "qcow2", VirtualBytes: 2 * testBytes,
		Backing: drover.Backing{Path: path[1], Format: "qcow2"},
	}))
	sameBytes(t, content(t, v, larger), append(append([]byte(nil), want[1]...), make([]byte, testBytes)...))
}

func volumesTopOnly(t *testing.T, setup VolumesSetup) {
	v, dir := setup.New(t, 0)
	path, want := layers(t, v, dir)
	const k = clusterBytes
	list := extents(t, v, path[2], true)
	for _, c := range []struct {
		name       string
		at, length int64
		zero, none bool
	}{
		{name: "data over data", at: 6 * k, length: 3 * k},
		{name: "zeros over data of the base", at: 10 * k, length: 2 * k, zero: true},
		{name: "zeros over data of the middle", at: 31 * k, length: k, zero: true},
		{name: "data over nothing", at: 50*k + 512, length: 512},
		{name: "data of the base", at: 0, length: 4 * k, none: true},
		{name: "data of the middle", at: 4 * k, length: 2 * k, none: true},
		{name: "data of the middle over nothing", at: 30 * k, length: k, none: true},
		{name: "nothing", at: 60 * k, length: 8 * k, none: true},
	} {
		if c.none && touches(list, c.at, c.length) || !c.none && !covers(list, c.at, c.length, c.zero) {
			t.Errorf("%s at %d, %d bytes: extents are %+v", c.name, c.at, c.length, list)
		}
	}
	sameBytes(t, rebuild(t, v, path[2], true, want[1]), want[2])
	sameBytes(t, rebuild(t, v, path[1], true, want[0]), want[1])
}

// volumesTopOnlyWithoutBacking: there is nothing to hide, so zeros need no
// extent.
func volumesTopOnlyWithoutBacking(t *testing.T, setup VolumesSetup) {
	for _, format := range []string{"qcow2", "raw"} {
		v, dir := setup.New(t, 0)
		path := filepath.Join(dir, "disk."+format)
		create(t, v, path, format, drover.Backing{})
		write(t, v, path, func(w driver.ImageWriter) {
			writeAt(t, w, noise(9, 2*clusterBytes), 0)
			noError(t, w.Zero(t.Context(), clusterBytes, 4*clusterBytes))
		})
		want := []driver.Extent{{Length: clusterBytes}}
		if d := cmp.Diff(want, extents(t, v, path, true)); d != "" {
			t.Errorf("%s: extents (-want +got):\n%s", format, d)
		}
	}
}

func volumesStopExtents(t *testing.T, setup VolumesSetup) {
	v, dir := setup.New(t, 0)
	path, _ := layers(t, v, dir)
	r, err := v.OpenRead(t.Context(), path[2], true)
	noError(t, err)
	defer r.Close()
	calls := 0
	noError(t, r.Extents(t.Context(), func(e driver.Extent) bool {
		calls++
		_, err := r.ReadAt(make([]byte, 512), e.Offset) // reading meanwhile is fine
		noError(t, err)
		return false
	}))
	if calls != 1 {
		t.Errorf("yield was called %d times after it had returned false", calls-1)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	volumeKind(t, r.Extents(ctx, func(driver.Extent) bool { return true }), drover.Canceled)
}

// volumesLocks: an image has one writer or any number of readers, and so has
// everything below it.
func volumesLocks(t *testing.T, setup VolumesSetup) {
	v, dir := setup.New(t, 0)
	path, _ := layers(t, v, dir)
	ctx := t.Context()
	w, err := v.OpenWrite(ctx, path[2])
	noError(t, err)
	_, err = v.OpenWrite(ctx, path[2])
	volumeKind(t, err, drover.Refused)
	_, err = v.OpenRead(ctx, path[2], false)
	volumeKind(t, err, drover.Refused)
	_, err = v.OpenWrite(ctx, path[1])
	volumeKind(t, err, drover.Refused)
	volumeKind(t, v.Delete(ctx, path[2]), drover.Refused)
	volumeKind(t, v.Delete(ctx, path[0]), drover.Refused)
	if _, err := v.Volume(ctx, path[2]); err != nil {
		t.Errorf("observing an open image: %v", err)
	}
	below, err := v.OpenRead(ctx, path[1], false)
	noError(t, err)
	noError(t, below.Close())
	noError(t, w.Close())

	a, err := v.OpenRead(ctx, path[2], false)
	noError(t, err)
	b, err := v.OpenRead(ctx, path[2], true)
	noError(t, err)
	_, err = v.OpenWrite(ctx, path[2])
	volumeKind(t, err, drover.Refused)
	noError(t, a.Close())
	noError(t, b.Close())
	w, err = v.OpenWrite(ctx, path[2])
	noError(t, err)
	noError(t, w.Close())
	noError(t, v.Delete(ctx, path[2]))

	w, err = v.OpenWrite(ctx, path[0]) // a raw image is locked alike
	noError(t, err)
	_, err = v.OpenRead(ctx, path[0], false)
	volumeKind(t, err, drover.Refused)
	_, err = v.OpenRead(ctx, path[1], false)
	volumeKind(t, err, drover.Refused)
	noError(t, w.Close())
	a, err = v.OpenRead(ctx, path[0], false)
	noError(t, err)
	_, err = v.OpenWrite(ctx, path[0])
	volumeKind(t, err, drover.Refused)
	noError(t, a.Close())
}

func volumesFlushThenCrash(t *testing.T, setup VolumesSetup) {
	v, dir := setup.New(t, 0)
	path := filepath.Join(dir, "disk.qcow2")
	create(t, v, path, "qcow2", drover.Backing{})
	w, err := v.OpenWrite(t.Context(), path)
	noError(t, err)
	want := noise(10, 1<<20)
	writeAt(t, w, want, 0)
	noError(t, w.Zero(t.Context(), 4096, 4096))
	clear(want[4096:8192])
	noError(t, w.Flush(t.Context()))
	writeAt(t, w, noise(11, 1<<20), 2<<20)
	setup.Crash(t, w)
	if _, err := w.WriteAt(want, 0); err == nil {
		t.Error("a crashed writer writes")
	}
	if err := w.Flush(t.Context()); err == nil {
		t.Error("a crashed writer flushes")
	}
	w.Close() // its error is the crash
	sameBytes(t, content(t, v, path)[:1<<20], want)
	write(t, v, path, func(w driver.ImageWriter) { writeAt(t, w, noise(12, 1<<20), 1<<20) })
	got := content(t, v, path)
	sameBytes(t, got[:1<<20], want)
	sameBytes(t, got[1<<20:2<<20], noise(12, 1<<20))
}

func volumesConcurrentReaders(t *testing.T, setup VolumesSetup) {
	v, dir := setup.New(t, 0)
	path, want := layers(t, v, dir)
	r, err := v.OpenRead(t.Context(), path[2], false)
	noError(t, err)
	defer r.Close()
	// More callers than requests fit on a connection, with ranges of several
	// requests each.
	var wg sync.WaitGroup
	errs := make([]error, 24)
	for i := range errs {
		wg.Go(func() {
			b := make([]byte, 3<<20+512*i)
			for off := int64(512 * i); off < r.Size(); off += 1 << 20 {
				n, err := r.ReadAt(b, off)
				if err != nil && err != io.EOF {
					errs[i] = err
					return
				}
				if string(b[:n]) != string(want[2][off:off+int64(n)]) {
					errs[i] = errors.New("read something else than was written")
					return
				}
			}
		})
	}
	wg.Go(func() {
		for range 20 {
			if err := r.Extents(t.Context(), func(driver.Extent) bool { return true }); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Wait()
	noError(t, errors.Join(errs...))
}

func volumesCloseTwice(t *testing.T, setup VolumesSetup) {
	v, dir := setup.New(t, 0)
	path := filepath.Join(dir, "disk.qcow2")
	create(t, v, path, "qcow2", drover.Backing{})
	w, err := v.OpenWrite(t.Context(), path)
	noError(t, err)
	noError(t, w.Close())
	noError(t, w.Close())
	if _, err := w.WriteAt(make([]byte, 512), 0); err == nil {
		t.Error("a closed writer writes")
	}
	if err := w.Flush(t.Context()); err == nil {
		t.Error("a closed writer flushes")
	}
	r, err := v.OpenRead(t.Context(), path, false)
	noError(t, err)
	noError(t, r.Close())
	noError(t, r.Close())
	if _, err := r.ReadAt(make([]byte, 512), 0); err == nil || err == io.EOF {
		t.Errorf("a closed reader reads: %v", err)
	}
	if err := r.Extents(t.Context(), func(driver.Extent) bool { return true }); err == nil {
		t.Error("a closed reader has extents")
	}
	noError(t, v.Close())
	noError(t, v.Close())
	_, err = v.Volume(t.Context(), path)
	volumeKind(t, err, drover.Canceled)
	_, err = v.OpenRead(t.Context(), path, false)
	volumeKind(t, err, drover.Canceled)
}

// volumesCloseStore: what is open is closed with the store.
func volumesCloseStore(t *testing.T, setup VolumesSetup) {
	v, dir := setup.New(t, 0)
	path := filepath.Join(dir, "disk.qcow2")
	create(t, v, path, "qcow2", drover.Backing{})
	r, err := v.OpenRead(t.Context(), path, false)
	noError(t, err)
	noError(t, v.Close())
	if _, err := r.ReadAt(make([]byte, 512), 0); err == nil {
		t.Error("a reader outlives its store")
	}
	noError(t, r.Close())
}

func volumesIdentify(t *testing.T, setup VolumesSetup) {
	v, dir := setup.New(t, 0)
	path, want := layers(t, v, dir)
	identify := func(p string) driver.ContentID {
		t.Helper()
		id, err := v.Identify(t.Context(), p)
		noError(t, err)
		return id
	}
	for i, p := range path {
		if got, want := identify(p), contentID(want[i]); got != want {
			t.Errorf("identity of %s is %x, want %x", p, got, want)
		}
	}
	// The same content in other clothes: another format, no backing, zeros
	// written out in full.
	for _, format := range []string{"raw", "qcow2"} {
		p := filepath.Join(dir, "copy."+format)
		create(t, v, p, format, drover.Backing{})
		write(t, v, p, func(w driver.ImageWriter) { writeAt(t, w, want[2], 0) })
		if identify(p) != identify(path[2]) {
			t.Errorf("a %s copy with everything allocated has another identity", format)
		}
	}
	empty, longer := filepath.Join(dir, "empty.raw"), filepath.Join(dir, "longer.qcow2")
	create(t, v, empty, "raw", drover.Backing{})
	if identify(empty) != contentID(make([]byte, testBytes)) {
		t.Error("the identity of an empty image is wrong")
	}
	noError(t, v.Create(t.Context(), driver.VolumeSpec{Path: longer, Format: "qcow2", VirtualBytes: 2 * testBytes}))
	if identify(empty) == identify(longer) {
		t.Error("empty images of two sizes have one identity")
	}
	w, err := v.OpenWrite(t.Context(), path[2])
	noError(t, err)
	defer w.Close()
	copied := filepath.Join(dir, "copy.raw")
	busy, err := v.OpenWrite(t.Context(), copied)
	noError(t, err)
	defer busy.Close()
	writeAt(t, busy, noise(13, 512), 0)
	_, err = v.Identify(t.Context(), copied)
	volumeKind(t, err, drover.Refused)
}

// volumesIdentifyAgain: whatever is remembered, a changed image has another
// identity at once.
func volumesIdentifyAgain(t *testing.T, setup VolumesSetup) {
	v, dir := setup.New(t, 0)
	path, want := layers(t, v, dir)
	for i := range 3 {
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				id, err := v.Identify(t.Context(), path[2])
				if err != nil || id != contentID(want[2]) {
					t.Errorf("round %d: identity %x, %v", i, id, err)
				}
			})
		}
		wg.Wait()
		off := 40*clusterBytes + 512*i
		copy(want[2][off:], noise(uint64(20+i), 512))
		write(t, v, path[2], func(w driver.ImageWriter) { writeAt(t, w, want[2][off:off+512], int64(off)) })
	}
}
