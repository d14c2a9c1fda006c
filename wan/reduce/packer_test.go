package reduce_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"

	"github.com/drover-vm/drover/wan/chunk"
	"github.com/drover-vm/drover/wan/reduce"
)

// source is a source's content in memory, which may be broken.
type source struct {
	blocks [][]byte
	fail   func() bool
}

var errBroken = errors.New("broken storage")

// world is what a receiver has: sources by number, and versions by block.
type world struct {
	sources []*source
	old     func(i int, p []byte) error
}

func (w *world) ReadBlocks(n uint16, block int64, p []byte) error {
	if int(n) >= len(w.sources) {
		return errBroken
	}
	s := w.sources[n]
	for ; len(p) > 0; p = p[reduce.BlockBytes:] {
		if s.fail() || block >= int64(len(s.blocks)) {
			return errBroken
		}
		copy(p, s.blocks[block])
		block++
	}
	return nil
}

func (w *world) ReadOld(i int, p []byte) error { return w.old(i, p) }

// text returns a block that compresses, random one that does not.
func text(r *rand.Rand) []byte {
	b := make([]byte, reduce.BlockBytes)
	for i := range b {
		b[i] = "etaoin shrdlu"[r.IntN(13)]
	}
	return b
}

func random(r *rand.Rand) []byte {
	b := make([]byte, reduce.BlockBytes)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func edited(r *rand.Rand, b []byte, n int) []byte {
	b = bytes.Clone(b)
	for range n {
		b[r.IntN(len(b))] ^= byte(1 + r.IntN(255))
	}
	return b
}

// TestPacker sends random batches with stale and failing storage at the receiver, and wants the very
// blocks.
func TestPacker(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		stale := rapid.IntRange(0, 3).Draw(t, "stale")
		chance := func(percent int) bool { return r.IntN(100) < percent }
		index := chunk.NewIndex(1 << 20)
		have := &source{fail: func() bool { return stale > 0 && chance(2) }}
		for i := range 200 {
			b := text(r)
			if chance(30) {
				b = random(r)
			}
			index.Add(chunk.FingerprintOf(b), chunk.Ref{Source: 1, Block: uint32(i)})
			if stale > 1 && chance(10) {
				b = edited(r, b, 1)
			}
			have.blocks = append(have.blocks, b)
		}
		level := reduce.LevelDefault
		var stats reduce.Stats
		known := &reduce.Known{Index: index}
		p := reduce.NewPacker(reduce.PackerOptions{Known: known, Level: func() reduce.Level { return level }, Stats: &stats})
		u := reduce.NewUnpacker()
		defer u.Close()
		for range rapid.IntRange(1, 6).Draw(t, "batches") {
			if chance(30) {
				level = reduce.Level(r.IntN(int(reduce.LevelBest) + 1))
			}
			var blocks, olds [][]byte
			meta := random(r)[:r.IntN(100)]
			p.Meta(meta)
			for range r.IntN(200) {
				var b, old []byte
				fresh := chance(50)
				switch r.IntN(6) {
				case 0:
					b = make([]byte, reduce.BlockBytes)
					p.Zero(1)
				case 1:
					b = have.blocks[r.IntN(len(have.blocks))]
					p.Block(b)
				case 2:
					b = text(r)
					p.Block(b)
				case 3:
					b = random(r)
					p.Block(b)
				case 4:
					b = text(r)
					old = b
					p.Same(b, fresh)
				case 5:
					old = text(r)
					b = edited(r, old, r.IntN(200))
					if !p.Delta(b, old, fresh) {
						p.Block(b)
					}
				}
				if p.Full() {
					t.Logf("full at %d", p.Blocks())
				}
				blocks, olds = append(blocks, bytes.Clone(b)), append(olds, old)
				if p.Size() > reduce.MaxPayload-2*reduce.BlockBytes {
					break
				}
			}
			batch, retained, err := p.Flush([]byte("x"))
			if err != nil {
				t.Fatal(err)
			}
			if len(batch) > 1<<20 {
				t.Fatalf("batch of %d bytes", len(batch))
			}
			if err := u.Open(batch[1:]); err != nil {
				t.Fatal(err)
			}
			w := &world{sources: []*source{nil, have}, old: func(i int, p []byte) error {
				switch {
				case stale > 0 && chance(2):
					return errBroken
				case stale > 1 && chance(5):
					copy(p, edited(r, olds[i], 1))
				default:
					copy(p, olds[i])
				}
				return nil
			}}
			miss, err := u.Resolve(w, w)
			if err != nil {
				t.Fatal(err)
			}
			if stale == 0 && miss != nil {
				t.Fatal("missed a block that is there")
			}
			for rounds := 0; miss != nil; rounds++ {
				if rounds > 2 {
					t.Fatal("endless misses")
				}
				fills, err := retained.Fill(miss)
				if err != nil {
					t.Fatal(err)
				}
				miss = nil
				for i, f := range fills {
					var done bool
					if done, miss, err = u.Fill(f); err != nil {
						t.Fatal(err)
					}
					if done && i != len(fills)-1 || !done && i == len(fills)-1 && miss == nil {
						t.Fatalf("done %v after fill %d of %d", done, i+1, len(fills))
					}
				}
			}
			if retained != nil {
				retained.Release()
			}
			if !bytes.Equal(u.Meta(), meta) || u.Blocks() != len(blocks) {
				t.Fatalf("other meta or %d blocks, want %d", u.Blocks(), len(blocks))
			}
			for i, b := range blocks {
				if !bytes.Equal(u.Block(i), b) {
					t.Fatalf("block %d differs", i)
				}
			}
			for i := 0; i < len(blocks); {
				run := u.Run(i, len(blocks)-i)
				if !bytes.Equal(run, bytes.Join(blocks[i:i+len(run)/reduce.BlockBytes], nil)) {
					t.Fatalf("run at %d differs", i)
				}
				i += len(run) / reduce.BlockBytes
			}
		}
	})
}
