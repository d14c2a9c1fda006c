package reduce_test

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/drover-vm/drover/wan/chunk"
	"github.com/drover-vm/drover/wan/page"
	"github.com/drover-vm/drover/wan/reduce"
)

// BenchmarkCapture encodes captured memory streams of real guests and reports the megabytes that
// each kind takes on the wire. DROVER_CAPTURE names a folder with *.stream files as QEMU writes them, and golden.img,
// the image that the guests were started from:
//
//	DROVER_CAPTURE=/path go test -run '^$' -bench Capture -benchtime 1x ./wan/reduce
func BenchmarkCapture(b *testing.B) {
	dir := os.Getenv("DROVER_CAPTURE")
	if dir == "" {
		b.Skip("DROVER_CAPTURE names no folder of captures")
	}
	streams, err := filepath.Glob(filepath.Join(dir, "*.stream"))
	if err != nil || len(streams) == 0 {
		b.Fatalf("no captures in %s: %v", dir, err)
	}
	golden := openImage(b, filepath.Join(dir, "golden.img"))
	for _, path := range streams {
		b.Run(strings.TrimSuffix(filepath.Base(path), ".stream"), func(b *testing.B) {
			for _, known := range []*image{nil, golden} {
				for _, level := range []reduce.Level{reduce.LevelS2, reduce.LevelFastest, reduce.LevelDefault, reduce.LevelBetter} {
					name := "alone/" + level.String()
					if known != nil {
						name = "golden/" + level.String()
					}
					b.Run(name, func(b *testing.B) {
						for b.Loop() {
							capture(b, newLibrary(b), path, chunk.SourceID{}, known, level)
						}
					})
				}
			}
			// The guest that comes back: both ends have its memory as it was when it left.
			first, back := strings.CutSuffix(path, "-later.stream")
			if !back {
				return
			}
			for _, known := range []*image{nil, golden} {
				name := "returning-alone"
				if known != nil {
					name = "returning-golden"
				}
				b.Run(name, func(b *testing.B) {
					for b.Loop() {
						library := newLibrary(b)
						base := capture(b, library, first+".stream", chunk.SourceID{}, known, reduce.LevelFastest)
						capture(b, library, path, base, known, reduce.LevelDefault)
					}
				})
			}
		})
	}
}

func newLibrary(b *testing.B) *chunk.Library {
	library, err := chunk.OpenLibrary(b.TempDir(), chunk.Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { library.Close() })
	return library
}

// image is a golden image, read in place, with its index.
type image struct {
	file  *os.File
	index *chunk.Index
}

func openImage(b *testing.B, path string) *image {
	f, err := os.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { f.Close() })
	m := &image{file: f, index: chunk.NewIndex(64 << 20)}
	buf := make([]byte, 256*reduce.BlockBytes)
	for block := uint32(0); ; {
		n, err := io.ReadFull(f, buf)
		for i := 0; i+reduce.BlockBytes <= n; i += reduce.BlockBytes {
			m.index.Add(chunk.FingerprintOf(buf[i:i+reduce.BlockBytes]), chunk.Ref{Block: block})
			block++
		}
		if err != nil {
			return m
		}
	}
}

func (m *image) ReadBlocks(_ uint16, block int64, p []byte) error {
	_, err := m.file.ReadAt(p, block*reduce.BlockBytes)
	return err
}

// capture encodes one stream, on top of the memory base if there is one, and returns what it leaves.
func capture(b *testing.B, library *chunk.Library, path string, base chunk.SourceID, known *image, level reduce.Level) chunk.SourceID {
	f, err := os.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	const mirrorBlocks = 1 << 18
	src := chunk.Source{ID: chunk.MemoryID(path, "vm"), Kind: chunk.KindMemory, Blocks: mirrorBlocks, VM: "vm"}
	memory, err := library.NewMemory(src, base)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = memory.Discard() }()
	var stats reduce.Stats
	o := reduce.MemoryEncoderOptions{Mirror: memory, MirrorBlocks: mirrorBlocks, Level: reduce.FixedLevel(level), Stats: &stats}
	if known != nil {
		o.Known = &reduce.Known{Index: known.index}
	}
	e := reduce.NewMemoryEncoder(o)
	r := page.NewReader(f)
	var batch []byte
	flush := func() {
		var retained *reduce.Retained
		if batch, retained, err = e.Flush(batch[:0]); err != nil {
			b.Fatal(err)
		}
		if retained != nil {
			retained.Release()
		}
	}
	for {
		rec, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			b.Fatal(err)
		}
		e.Announce(r.Blocks())
		for rest := rec.Data; ; rest = rest[reduce.MaxOpaque:] {
			if rec.Kind == page.Bytes {
				rec.Data = rest[:min(len(rest), reduce.MaxOpaque)]
			}
			if !e.Fits(rec) {
				flush()
			}
			if err := e.Encode(rec); err != nil {
				b.Fatal(err)
			}
			if len(rest) <= reduce.MaxOpaque {
				break
			}
		}
	}
	flush()
	if err := memory.Seal(b.Context()); err != nil {
		b.Fatal(err)
	}
	total := stats.Total()
	b.SetBytes(total.GuestBytes)
	b.ReportMetric(float64(total.WireBytes)/1e6, "MB")
	if testing.Verbose() {
		fmt.Printf("%s: %d batches, compressor %.2f s\n", b.Name(), stats.Batches.Load(), float64(stats.CompressNanoseconds.Load())/1e9)
		for _, k := range reduce.Kinds() {
			c := stats.Of(k)
			fmt.Printf("  %-10s %7d blocks %7.1f MB -> %7.3f MB\n", k, c.Blocks, float64(c.GuestBytes)/1e6, float64(c.WireBytes)/1e6)
		}
	}
	return src.ID
}
