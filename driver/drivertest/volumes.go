package drivertest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
	"github.com/google/go-cmp/cmp"
	"github.com/zeebo/blake3"
)

// VolumesSetup is what the conformance suite of driver.Volumes needs to know
// of an implementation.
type VolumesSetup struct {
	// New returns an empty store, closed by the test's cleanup, and a folder
	// below which it holds images. With limit above zero that folder has room
	// for about limit bytes and no more.
	New func(t *testing.T, limit drover.Bytes) (store driver.Volumes, dir string)
	// PutFile puts a file with the content there, behind the store's back.
	PutFile func(t *testing.T, store driver.Volumes, path string, content []byte)
	// Crash ends an open image's writer without a chance to save anything.
	Crash func(t *testing.T, w driver.ImageWriter)
}

// Volumes runs the conformance suite of driver.Volumes.
func Volumes(t *testing.T, setup VolumesSetup) {
	for _, c := range []struct {
		name string
		run  func(*testing.T, VolumesSetup)
	}{
		{"Lifecycle", volumesLifecycle},
		{"Missing", volumesMissing},
		{"ExclusiveCreate", volumesExclusiveCreate},
		{"BadPaths", volumesBadPaths},
		{"BadSpecs", volumesBadSpecs},
		{"Rename", volumesRename},
		{"NotAnImage", volumesNotAnImage},
		{"RawFile", volumesRawFile},
		{"FreeBytes", volumesFreeBytes},
		{"FullDisk", volumesFullDisk},
		{"Canceled", volumesCanceled},
		{"WriteReadBack", volumesWriteReadBack},
		{"Ranges", volumesRanges},
		{"Zero", volumesZero},
		{"BackingChain", volumesBackingChain},
		{"TopOnly", volumesTopOnly},
		{"TopOnlyWithoutBacking", volumesTopOnlyWithoutBacking},
		{"StopExtents", volumesStopExtents},
		{"Locks", volumesLocks},
		{"FlushThenCrash", volumesFlushThenCrash},
		{"ConcurrentReaders", volumesConcurrentReaders},
		{"CloseTwice", volumesCloseTwice},
		{"CloseStore", volumesCloseStore},
		{"Identify", volumesIdentify},
		{"IdentifyAgain", volumesIdentifyAgain},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(t, setup) })
	}
}

// testBytes is the virtual size of the suite's images: several blocks of an
// identity, the last of them short.
const testBytes = 6*drover.MiB + 128*drover.KiB

// clusterBytes is the largest unit that an implementation may allocate in.
const clusterBytes = 64 << 10

// volumeKind fails unless err is a drover.Error of the kind.
func volumeKind(t *testing.T, err error, want drover.Kind) {
	t.Helper()
	if err == nil || drover.KindOf(err) != want {
		t.Fatalf("got error %v of kind %v, want kind %v", err, drover.KindOf(err), want)
	}
}

func noError(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func create(t *testing.T, v driver.Volumes, path, format string, backing drover.Backing) {
	t.Helper()
	noError(t, v.Create(t.Context(), driver.VolumeSpec{Path: path, Format: format, VirtualBytes: testBytes, Backing: backing}))
}

// write opens an image, lets f write, flushes and closes.
func write(t *testing.T, v driver.Volumes, path string, f func(w driver.ImageWriter)) {
	t.Helper()
	w, err := v.OpenWrite(t.Context(), path)
	noError(t, err)
	f(w)
	noError(t, w.Flush(t.Context()))
	noError(t, w.Close())
}

func writeAt(t *testing.T, w driver.ImageWriter, p []byte, off int64) {
	t.Helper()
	if n, err := w.WriteAt(p, off); n != len(p) || err != nil {
		t.Fatalf("WriteAt(%d bytes, %d) = %d, %v", len(p), off, n, err)
	}
}

// content reads an image in full, byte by byte as a guest sees it.
func content(t *testing.T, v driver.Volumes, path string) []byte {
	t.Helper()
	r, err := v.OpenRead(t.Context(), path, false)
	noError(t, err)
	defer r.Close()
	return readAll(t, r)
}

// sized is what readers and writers have in common.
type sized interface {
	io.ReaderAt
	Size() int64
}

func readAll(t *testing.T, r sized) []byte {
	t.Helper()
	b := make([]byte, r.Size())
	if n, err := r.ReadAt(b, 0); int64(n) != r.Size() || err != nil && err != io.EOF {
		t.Fatalf("ReadAt(%d bytes, 0) = %d, %v", len(b), n, err)
	}
	return b
}

// sameBytes compares without printing megabytes.
func sameBytes(t *testing.T, got, want []byte) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("got %d bytes, want %d", len(got), len(want))
	}
	if bytes.Equal(got, want) {
		return
	}
	for i := range got {
		if got[i] != want[i] {
			t.Fatalf("content differs from byte %d on: got %#x, want %#x", i, got[i], want[i])
		}
	}
}

// noise returns n bytes that depend on the seed, none of them zero.
func noise(seed uint64, n int) []byte {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	b := make([]byte, n)
	rand.NewChaCha8(sha256.Sum256(key[:])).Read(b)
	for i := range b {
		b[i] |= 1
	}
	return b
}

// extents lists an image's extents and checks their form: ascending, apart or
// of another kind, within the image.
func extents(t *testing.T, v driver.Volumes, path string, topOnly bool) []driver.Extent {
	t.Helper()
	r, err := v.OpenRead(t.Context(), path, topOnly)
	noError(t, err)
	defer r.Close()
	var list []driver.Extent
	noError(t, r.Extents(t.Context(), func(e driver.Extent) bool {
		list = append(list, e)
		return true
	}))
	end, zero := int64(-1), false
	for _, e := range list {
		if e.Length <= 0 || e.Offset < end || e.Offset == end && e.Zero == zero || e.Offset+e.Length > r.Size() {
			t.Fatalf("extent %+v is empty, out of order, not merged or outside of %d bytes: %+v", e, r.Size(), list)
		}
		end, zero = e.Offset+e.Length, e.Zero
	}
	return list
}

// rebuild applies an image's extents, read through the store, to below.
func rebuild(t *testing.T, v driver.Volumes, path string, topOnly bool, below []byte) []byte {
	t.Helper()
	r, err := v.OpenRead(t.Context(), path, topOnly)
	noError(t, err)
	defer r.Close()
	b := bytes.Clone(below)
	for _, e := range extents(t, v, path, topOnly) {
		part := b[e.Offset : e.Offset+e.Length]
		if e.Zero {
			clear(part)
		} else if _, err := r.ReadAt(part, e.Offset); err != nil && err != io.EOF {
			t.Fatal(err)
		}
	}
	return b
}

// covers reports whether some extent of the kind covers the run.
func covers(list []driver.Extent, off, length int64, zero bool) bool {
	for _, e := range list {
		if e.Zero == zero && e.Offset <= off && off+length <= e.Offset+e.Length {
			return true
		}
	}
	return false
}

// touches reports whether any extent overlaps the run.
func touches(list []driver.Extent, off, length int64) bool {
	for _, e := range list {
		if e.Offset < off+length && off < e.Offset+e.Length {
			return true
		}
	}
	return false
}

// contentID is the definition of driver.ContentID, straight from its text in
// package disk.
func contentID(b []byte) driver.ContentID {
	const block = 1 << 20
	h := blake3.New()
	io.WriteString(h, "drover content 1\n")
	binary.Write(h, binary.LittleEndian, uint64(len(b)))
	for i := 0; i*block < len(b); i++ {
		part := b[i*block : min(len(b), (i+1)*block)]
		if len(bytes.Trim(part, "\x00")) == 0 {
			continue
		}
		binary.Write(h, binary.LittleEndian, uint64(i))
		sum := blake3.Sum256(part)
		h.Write(sum[:])
	}
	return driver.ContentID(h.Sum(nil))
}

func paths(list []drover.Volume) []string {
	var p []string
	for _, v := range list {
		p = append(p, v.Path)
	}
	return p
}

// listed fails unless the store lists exactly the images.
func listed(t *testing.T, v driver.Volumes, want ...string) {
	t.Helper()
	list, err := v.List(context.WithoutCancel(t.Context()))
	noError(t, err)
	if d := cmp.Diff(want, paths(list)); d != "" {
		t.Fatalf("listed images (-want +got):\n%s", d)
	}
}
