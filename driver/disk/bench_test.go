package disk

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// benchBytes is small enough to stay in the page cache: the benchmarks are
// about the way from QEMU to us, not about the disk.
const benchBytes = 512 * drover.MiB

// benchImage makes a fully allocated image of noise.
func benchImage(b *testing.B, s *Store, path, format string) {
	b.Helper()
	if err := s.Create(b.Context(), driver.VolumeSpec{Path: path, Format: format, VirtualBytes: benchBytes}); err != nil {
		b.Fatal(err)
	}
	w, err := s.OpenWrite(b.Context(), path)
	if err != nil {
		b.Fatal(err)
	}
	buf, random := make([]byte, 4<<20), rand.NewChaCha8([32]byte{1})
	for off := int64(0); off < int64(benchBytes); off += int64(len(buf)) {
		random.Read(buf)
		if _, err := w.WriteAt(buf, off); err != nil {
			b.Fatal(err)
		}
	}
	if err := w.Flush(b.Context()); err != nil {
		b.Fatal(err)
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkRead reads every extent of an allocated image: one caller with
// large reads, and four with reads of 1 MiB.
func BenchmarkRead(b *testing.B) {
	for _, format := range []string{"raw", "qcow2"} {
		dir := b.TempDir()
		s := newStore(b, Config{Dirs: []string{dir}})
		path := filepath.Join(dir, "disk."+format)
		benchImage(b, s, path, format)
		for _, c := range []struct {
			name    string
			callers int
			bytes   int64
		}{{"1x1MiB", 1, 1 << 20}, {"1x4MiB", 1, 4 << 20}, {"1x8MiB", 1, 8 << 20}, {"4x1MiB", 4, 1 << 20}} {
			b.Run(format+"/"+c.name, func(b *testing.B) {
				r, err := s.OpenRead(b.Context(), path, false)
				if err != nil {
					b.Fatal(err)
				}
				defer r.Close()
				bufs := make([][]byte, c.callers)
				for i := range bufs {
					bufs[i] = make([]byte, c.bytes)
				}
				b.SetBytes(int64(benchBytes))
				b.ReportAllocs()
				for b.Loop() {
					readExtents(b, r, bufs)
				}
			})
		}
	}
}

// readExtents reads everything that is allocated, each buffer by a caller of
// its own.
func readExtents(b *testing.B, r driver.ImageReader, bufs [][]byte) {
	work := make(chan driver.Extent, len(bufs))
	var wg sync.WaitGroup
	for _, buf := range bufs {
		wg.Go(func() {
			for e := range work {
				if _, err := r.ReadAt(buf[:e.Length], e.Offset); err != nil {
					b.Error(err)
				}
			}
		})
	}
	err := r.Extents(b.Context(), func(e driver.Extent) bool {
		for e.Length > 0 {
			n := min(e.Length, int64(len(bufs[0])))
			work <- driver.Extent{Offset: e.Offset, Length: n}
			e.Offset, e.Length = e.Offset+n, e.Length-n
		}
		return true
	})
	close(work)
	wg.Wait()
	if err != nil {
		b.Fatal(err)
	}
}

// BenchmarkQemuImg is what BenchmarkRead is to be measured against: QEMU's own
// copier reading the same image into nothing, through the same server ("nbd")
// and in one process, without a socket between ("file").
func BenchmarkQemuImg(b *testing.B) {
	for _, format := range []string{"raw", "qcow2"} {
		dir := b.TempDir()
		s := newStore(b, Config{Dirs: []string{dir}})
		path := filepath.Join(dir, "disk."+format)
		benchImage(b, s, path, format)
		b.Run(format+"/file", func(b *testing.B) {
			b.SetBytes(int64(benchBytes))
			for b.Loop() {
				swallow(b, format, path)
			}
		})
		b.Run(format+"/nbd", func(b *testing.B) {
			socket := filepath.Join(dir, "s")
			server, err := spawn("qemu-nbd", io.Discard, "--socket="+socket, "--format="+format, "--persistent", "--read-only", path)
			if err != nil {
				b.Fatal(err)
			}
			defer server.end(0)
			for !fileExists(socket) {
				time.Sleep(time.Millisecond)
			}
			b.SetBytes(int64(benchBytes))
			for b.Loop() {
				swallow(b, "raw", "nbd+unix:///?socket="+socket)
			}
		})
	}
}

// swallow copies an image to null-co, which takes what it is given as
// /dev/null would, and has a size.
func swallow(b *testing.B, format, from string) {
	b.Helper()
	out, err := exec.Command("qemu-img", "convert", "-n", "-W", "-m", "16", "-f", format,
		"--target-image-opts", from, fmt.Sprintf("driver=null-co,size=%d", int64(benchBytes))).CombinedOutput()
	if err != nil {
		b.Fatalf("%v: %s", err, out)
	}
}

// BenchmarkWrite overwrites an allocated image without flushing.
func BenchmarkWrite(b *testing.B) {
	for _, format := range []string{"raw", "qcow2"} {
		dir := b.TempDir()
		s := newStore(b, Config{Dirs: []string{dir}})
		path := filepath.Join(dir, "disk."+format)
		benchImage(b, s, path, format)
		b.Run(format, func(b *testing.B) {
			w, err := s.OpenWrite(b.Context(), path)
			if err != nil {
				b.Fatal(err)
			}
			defer w.Close()
			buf := make([]byte, 4<<20)
			rand.NewChaCha8([32]byte{2}).Read(buf)
			b.SetBytes(int64(benchBytes))
			b.ReportAllocs()
			for b.Loop() {
				for off := int64(0); off < int64(benchBytes); off += int64(len(buf)) {
					if _, err := w.WriteAt(buf, off); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}

// BenchmarkIdentify digests an allocated image and an empty one of 1 TiB.
func BenchmarkIdentify(b *testing.B) {
	dir := b.TempDir()
	s := newStore(b, Config{Dirs: []string{dir}})
	full, sparse := filepath.Join(dir, "full.qcow2"), filepath.Join(dir, "sparse.qcow2")
	benchImage(b, s, full, "qcow2")
	if err := s.Create(b.Context(), driver.VolumeSpec{Path: sparse, Format: "qcow2", VirtualBytes: drover.TiB}); err != nil {
		b.Fatal(err)
	}
	for name, path := range map[string]string{"allocated": full, "sparse 1 TiB": sparse} {
		b.Run(name, func(b *testing.B) {
			if path == full {
				b.SetBytes(int64(benchBytes))
			}
			for b.Loop() {
				if _, err := s.digest(b.Context(), path); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
