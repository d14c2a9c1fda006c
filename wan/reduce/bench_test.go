package reduce_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"

	"github.com/drover-vm/drover/wan/chunk"
	"github.com/drover-vm/drover/wan/page"
	"github.com/drover-vm/drover/wan/reduce"
)

// The encoder in isolation, on one core, each beside the bare library on the same pages in the same run:
//
//	go test -run '^$' -bench 'Known|Compressed|Resent' -cpu 1 ./wan/reduce

const benchPages = 2048

// onCPU runs f b.N times and reports the megabytes per second of processor time, which tell more than the clock
// on a machine that does other work too.
func onCPU(b *testing.B, bytes int, f func()) {
	b.SetBytes(int64(bytes))
	b.ReportAllocs()
	before := cpuTime(b)
	n := 0
	for b.Loop() {
		f()
		n++
	}
	b.ReportMetric(float64(bytes)*float64(n)/1e6/(cpuTime(b)-before).Seconds(), "cpu-MB/s")
}

func cpuTime(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// benchGuest returns pages that compress about as a guest's memory does: words of a few kinds, zeros, text.
func benchGuest() [][]byte {
	r := rand.New(rand.NewPCG(1, 2))
	phrases := make([][]byte, 400)
	for i := range phrases {
		phrases[i] = random(r)[:8+r.IntN(56)]
	}
	pages := make([][]byte, benchPages)
	for i := range pages {
		p := make([]byte, 0, 2*page.PageBytes)
		for len(p) < page.PageBytes {
			switch r.IntN(4) {
			case 0:
				p = append(p, phrases[r.IntN(len(phrases))]...)
			case 1:
				p = append(p, make([]byte, r.IntN(48))...)
			case 2:
				p = append(p, text(r)[:r.IntN(100)]...)
			default:
				p = append(p, random(r)[:r.IntN(16)]...)
			}
		}
		pages[i] = p[:page.PageBytes]
	}
	return pages
}

// encodeAll runs the pages through the encoder once and returns the wire bytes.
func encodeAll(b *testing.B, e *reduce.MemoryEncoder, pages [][]byte, batch []byte) []byte {
	flush := func() {
		var retained *reduce.Retained
		var err error
		if batch, retained, err = e.Flush(batch[:0]); err != nil {
			b.Fatal(err)
		}
		if retained != nil {
			retained.Release()
		}
	}
	rec := page.Record{Kind: page.Page, Continue: true}
	for i, p := range pages {
		rec.Addr, rec.Data = uint64(i)*page.PageBytes, p
		if !e.Fits(rec) {
			flush()
		}
		if err := e.Encode(rec); err != nil {
			b.Fatal(err)
		}
	}
	flush()
	return batch
}

func benchEncoder(index *chunk.Index, m reduce.Mirror, level reduce.Level) *reduce.MemoryEncoder {
	o := reduce.MemoryEncoderOptions{Mirror: m, MirrorBlocks: benchPages, Level: reduce.FixedLevel(level)}
	if index != nil {
		o.Known = &reduce.Known{Index: index}
	}
	e := reduce.NewMemoryEncoder(o)
	e.Announce([]page.Block{{Name: "pc.ram", Bytes: benchPages * page.PageBytes}})
	return e
}

// BenchmarkKnown is the encoding of pages that the destination has, against the bare hash.
func BenchmarkKnown(b *testing.B) {
	pages := benchGuest()
	index := chunk.NewIndex(1 << 20)
	for i, p := range pages {
		index.Add(chunk.FingerprintOf(p), chunk.Ref{Block: uint32(i)})
	}
	b.Run("bare-blake3", func(b *testing.B) {
		onCPU(b, benchPages*page.PageBytes, func() {
			for _, p := range pages {
				_ = blake3.Sum256(p)
			}
		})
	})
	b.Run("encode", func(b *testing.B) {
		e := benchEncoder(index, nil, reduce.LevelDefault)
		batch := encodeAll(b, e, pages, nil)
		onCPU(b, benchPages*page.PageBytes, func() { batch = encodeAll(b, e, pages, batch) })
	})
}

// BenchmarkCompressed is the encoding of pages that are new, against the bare compressor with batches of
// the same size; with an index that has to be asked, and without.
func BenchmarkCompressed(b *testing.B) {
	pages := benchGuest()
	const batchBytes = 63 * page.PageBytes
	var all []byte
	for _, p := range pages {
		all = append(all, p...)
	}
	other := chunk.NewIndex(1 << 20)
	for i := range 10000 {
		other.Add(chunk.Fingerprint(rand.Uint64()), chunk.Ref{Block: uint32(i)})
	}
	for _, c := range []struct {
		level reduce.Level
		zstd  zstd.EncoderLevel
	}{{reduce.LevelS2, 0}, {reduce.LevelFastest, zstd.SpeedFastest}, {reduce.LevelDefault, zstd.SpeedDefault}, {reduce.LevelBetter, zstd.SpeedBetterCompression}} {
		b.Run(fmt.Sprintf("%v/bare", c.level), func(b *testing.B) {
			var out counter
			enc, err := zstd.NewWriter(&out, zstd.WithEncoderLevel(max(c.zstd, zstd.SpeedFastest)), zstd.WithWindowSize(8<<20),
				zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false))
			if err != nil {
				b.Fatal(err)
			}
			buf := make([]byte, s2.MaxEncodedLen(batchBytes))
			onCPU(b, len(all), func() {
				for i := 0; i < len(all); i += batchBytes {
					p := all[i:min(i+batchBytes, len(all))]
					if c.level == reduce.LevelS2 {
						s2.Encode(buf, p)
						continue
					}
					_, _ = enc.Write(p)
					_ = enc.Flush()
				}
			})
		})
		for _, index := range []*chunk.Index{nil, other} {
			name := "encode"
			if index != nil {
				name = "encode-indexed"
			}
			b.Run(fmt.Sprintf("%v/%s", c.level, name), func(b *testing.B) {
				e := benchEncoder(index, nil, c.level)
				batch := encodeAll(b, e, pages, nil)
				onCPU(b, len(all), func() { batch = encodeAll(b, e, pages, batch) })
			})
		}
	}
}

type counter int

func (c *counter) Write(p []byte) (int, error) { *c += counter(len(p)); return len(p), nil }

// BenchmarkResent is the encoding of pages that crossed before, unchanged and with 20 bytes changed.
func BenchmarkResent(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 2))
	before := benchGuest()
	after := make([][]byte, len(before))
	for i, p := range before {
		after[i] = edited(r, p, 20)
	}
	for _, c := range []struct {
		name   string
		rounds [2][][]byte
	}{{"same", [2][][]byte{before, before}}, {"delta", [2][][]byte{before, after}}} {
		b.Run(c.name, func(b *testing.B) {
			library, err := chunk.OpenLibrary(b.TempDir(), chunk.Options{})
			if err != nil {
				b.Fatal(err)
			}
			defer library.Close()
			m, err := library.NewMemory(chunk.Source{ID: chunk.SourceID{1}, Kind: chunk.KindMemory, Blocks: benchPages}, chunk.SourceID{})
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _ = m.Discard() }()
			e := benchEncoder(nil, m, reduce.LevelFastest)
			batch := encodeAll(b, e, c.rounds[0], nil)
			batch = encodeAll(b, e, c.rounds[1], batch)
			i := 0
			onCPU(b, benchPages*page.PageBytes, func() {
				batch = encodeAll(b, e, c.rounds[i%2], batch)
				i++
			})
		})
	}
}

// BenchmarkDecode is the way back, for pages that are new.
func BenchmarkDecode(b *testing.B) {
	pages := benchGuest()
	e := benchEncoder(nil, nil, reduce.LevelDefault)
	d := reduce.NewMemoryDecoder(reduce.MemoryDecoderOptions{})
	defer d.Close()
	b.SetBytes(benchPages * page.PageBytes)
	b.ReportAllocs()
	var batch []byte
	for b.Loop() {
		rec := page.Record{Kind: page.Page, Continue: true}
		for i := 0; i < len(pages); {
			b.StopTimer()
			for ; i < len(pages); i++ {
				rec.Addr, rec.Data = uint64(i)*page.PageBytes, pages[i]
				if !e.Fits(rec) {
					break
				}
				if err := e.Encode(rec); err != nil {
					b.Fatal(err)
				}
			}
			var err error
			if batch, _, err = e.Flush(batch[:0]); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
			if _, err := d.Open(batch); err != nil {
				b.Fatal(err)
			}
			if err := d.Emit(func([]byte) error { return nil }); err != nil {
				b.Fatal(err)
			}
		}
	}
}
