package reduce_test

import (
	"math/rand/v2"
	"testing"

	"github.com/drover-vm/drover/wan/chunk"
	"github.com/drover-vm/drover/wan/page"
	"github.com/drover-vm/drover/wan/reduce"
)

// seedBatches returns a batch of every codec, with every operation and every element.
func seedBatches(tb testing.TB) [][]byte {
	r := rand.New(rand.NewPCG(1, 2))
	pool := textPool(r, 20)
	index := chunk.NewIndex(1 << 20)
	for i, b := range pool {
		index.Add(chunk.FingerprintOf(b), chunk.Ref{Block: uint32(i)})
	}
	var out [][]byte
	for _, level := range []reduce.Level{reduce.LevelStored, reduce.LevelS2, reduce.LevelFastest} {
		g := newGuest(r, pool, 60, 1)
		e := reduce.NewMemoryEncoder(reduce.MemoryEncoderOptions{
			Known: &reduce.Known{Index: index}, Mirror: newMirror(61, func() bool { return false }), MirrorBlocks: 61,
			Level: reduce.FixedLevel(level),
		})
		e.Announce(g.blocks)
		for range 3 {
			for range 6 {
				for _, rec := range g.next() {
					if e.Fits(rec) {
						if err := e.Encode(rec); err != nil {
							tb.Fatal(err)
						}
					}
				}
			}
			batch, _, err := e.Flush(nil)
			if err != nil {
				tb.Fatal(err)
			}
			out = append(out, batch)
		}
	}
	return out
}

// FuzzMemoryDecoder feeds anything as two batches and a fill: errors are fine, panics and boundless
// memory are not.
func FuzzMemoryDecoder(f *testing.F) {
	seeds := seedBatches(f)
	for i, b := range seeds {
		f.Add(b, seeds[(i+1)%len(seeds)], []byte{0, 1, 1, 0})
	}
	f.Fuzz(func(t *testing.T, first, second, fill []byte) {
		d := reduce.NewMemoryDecoder(reduce.MemoryDecoderOptions{
			Mirror: newMirror(61, func() bool { return false }), MirrorBlocks: 61,
		})
		defer d.Close()
		for _, batch := range [][]byte{first, second} {
			miss, err := d.Open(batch)
			if err != nil {
				return
			}
			if miss != nil {
				if done, _, err := d.Fill(fill); err != nil || !done {
					return
				}
			}
			out := 0
			if err := d.Emit(func(p []byte) error { out += len(p); return nil }); err != nil {
				t.Fatal(err)
			}
			if limit := reduce.MaxBlocks*(page.PageBytes+300) + (1<<16)*300 + reduce.MaxMeta; out > limit {
				t.Fatalf("%d bytes from a batch of %d", out, len(batch))
			}
		}
	})
}

// FuzzUnpacker feeds anything as a batch and as fills.
func FuzzUnpacker(f *testing.F) {
	for _, b := range seedBatches(f) {
		f.Add(b, []byte{0, 1, 1, 0})
	}
	f.Fuzz(func(t *testing.T, batch, fill []byte) {
		u := reduce.NewUnpacker()
		defer u.Close()
		if u.Open(batch) != nil {
			return
		}
		w := &world{old: func(int, []byte) error { return nil }}
		miss, err := u.Resolve(w, w)
		if err != nil {
			return
		}
		if miss != nil {
			if done, _, err := u.Fill(fill); err != nil || !done {
				return
			}
		}
		for i := range u.Blocks() {
			if len(u.Block(i)) != reduce.BlockBytes || len(u.Run(i, u.Blocks()-i)) < reduce.BlockBytes {
				t.Fatalf("block %d", i)
			}
		}
	})
}

// FuzzMiss feeds anything as the miss of a batch with dependent blocks.
func FuzzMiss(f *testing.F) {
	f.Add([]byte{0, 1})
	f.Add([]byte{0, 0, 2, 0, 3})
	f.Fuzz(func(t *testing.T, miss []byte) {
		p := reduce.NewPacker(reduce.PackerOptions{})
		r := rand.New(rand.NewPCG(1, 2))
		for i := range 10 {
			b := text(r)
			p.Same(b, i%2 == 0)
		}
		_, retained, err := p.Flush(nil)
		if err != nil {
			t.Fatal(err)
		}
		fills, err := retained.Fill(miss)
		if err == nil && len(fills) == 0 {
			t.Fatal("no fill")
		}
	})
}
