package reduce_test

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"

	"github.com/drover-vm/drover/wan/chunk"
	"github.com/drover-vm/drover/wan/page"
	"github.com/drover-vm/drover/wan/reduce"
)

// mirror is a reduce.Mirror in memory that may fail or have a stale base.
type mirror struct {
	state  []chunk.State
	blocks [][]byte
	fail   func() bool
	broken bool
}

func newMirror(n int, fail func() bool) *mirror {
	return &mirror{state: make([]chunk.State, n), blocks: make([][]byte, n), fail: fail}
}

// inherit makes b the base's block.
func (m *mirror) inherit(i int, b []byte) { m.state[i], m.blocks[i] = chunk.Inherited, bytes.Clone(b) }

func (m *mirror) Read(block int64, p []byte) (chunk.State, error) {
	if m.broken || m.fail() {
		return chunk.Absent, errBroken
	}
	if m.state[block] != chunk.Absent {
		copy(p, m.blocks[block])
	}
	return m.state[block], nil
}

func (m *mirror) Write(block int64, p []byte) error {
	if m.fail() {
		m.broken = true
	}
	if m.broken {
		return errBroken
	}
	m.state[block], m.blocks[block] = chunk.Fresh, bytes.Clone(p)
	return nil
}

func (m *mirror) Zero(block, n int64) error {
	for i := range n {
		if err := m.Write(block+i, make([]byte, reduce.BlockBytes)); err != nil {
			return err
		}
	}
	return nil
}

// guest makes records of a stream as a guest that runs might: rounds over its pages, some of them
// changed, duplicated, zeroed.
type guest struct {
	r      *rand.Rand
	blocks []page.Block
	memory [][][]byte
	pool   [][]byte
}

func newGuest(r *rand.Rand, pool [][]byte, sizes ...int) *guest {
	g := &guest{r: r, pool: pool}
	for i, n := range sizes {
		g.blocks = append(g.blocks, page.Block{Name: string(rune('a'+i)) + ".ram", Bytes: uint64(n) * page.PageBytes})
		g.memory = append(g.memory, make([][]byte, n))
		for k := range g.memory[i] {
			g.memory[i][k] = make([]byte, page.PageBytes)
		}
		for k := range n {
			g.write(i, k)
		}
	}
	return g
}

// write changes a page.
func (g *guest) write(block, n int) {
	switch m := g.memory[block]; g.r.IntN(8) {
	case 0:
		m[n] = make([]byte, page.PageBytes)
	case 1:
		m[n] = text(g.r)
	case 2:
		m[n] = random(g.r)
	case 3:
		m[n] = m[g.r.IntN(len(m))]
	case 4, 5:
		m[n] = edited(g.r, m[n], 1+g.r.IntN(30))
	default:
		m[n] = g.pool[g.r.IntN(len(g.pool))]
	}
}

// next returns some records.
func (g *guest) next() []page.Record {
	var recs []page.Record
	if g.r.IntN(3) == 0 {
		recs = append(recs, page.Record{Data: random(g.r)[:1+g.r.IntN(50)]})
	}
	block := g.r.IntN(len(g.memory))
	n := g.r.IntN(len(g.memory[block]))
	for range 1 + g.r.IntN(40) {
		if n >= len(g.memory[block]) {
			break
		}
		if g.r.IntN(3) == 0 {
			g.write(block, n)
		}
		rec := page.Record{
			Kind: page.Page, Block: block, Addr: uint64(n) * page.PageBytes, Data: g.memory[block][n],
			Continue: g.r.IntN(8) != 0,
		}
		if bytes.Equal(rec.Data, make([]byte, page.PageBytes)) && g.r.IntN(4) != 0 {
			rec.Kind, rec.Data = page.Zero, nil
			if g.r.IntN(10) == 0 {
				rec.Fill = byte(g.r.Uint32())
			}
		}
		recs = append(recs, rec)
		n += 1 + g.r.IntN(2)*g.r.IntN(4)
	}
	return recs
}

// TestMemory sends random streams between ends whose knowledge is stale and whose storage fails, and wants
// the very bytes.
func TestMemory(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		chance := func(perMille int) func() bool { return func() bool { return r.IntN(1000) < perMille } }
		staleness := rapid.SampledFrom([]int{0, 1, 10, 100}).Draw(t, "stale per mille")
		failing := rapid.SampledFrom([]int{0, 0, 1, 20}).Draw(t, "failing per mille")
		stale := chance(staleness)

		index := chunk.NewIndex(1 << 20)
		have := &source{fail: chance(failing)}
		pool := make([][]byte, 100)
		for i := range pool {
			pool[i] = text(r)
			index.Add(chunk.FingerprintOf(pool[i]), chunk.Ref{Block: uint32(i)})
			b := pool[i]
			if stale() {
				b = edited(r, b, 1)
			}
			have.blocks = append(have.blocks, b)
		}
		g := newGuest(r, pool, 100, 1, 30)
		const mirrored = 120 // of 131 pages
		here, there := newMirror(mirrored, chance(failing)), newMirror(mirrored, chance(failing))
		for i := range 100 {
			if r.IntN(2) == 0 {
				b := g.memory[0][i]
				here.inherit(i, b)
				if stale() {
					b = edited(r, b, 1)
				}
				there.inherit(i, b)
				g.write(0, i)
			}
		}
		level := reduce.LevelFastest
		var stats reduce.Stats
		eo := reduce.MemoryEncoderOptions{
			Known: &reduce.Known{Index: index}, Mirror: here, MirrorBlocks: mirrored,
			Level: func() reduce.Level { return level }, Stats: &stats,
		}
		do := reduce.MemoryDecoderOptions{Resolver: &world{sources: []*source{have}}, Mirror: there, MirrorBlocks: mirrored}
		if rapid.IntRange(0, 9).Draw(t, "without mirrors") == 0 {
			eo.Mirror, do.Mirror = nil, nil
		}
		e, d := reduce.NewMemoryEncoder(eo), reduce.NewMemoryDecoder(do)
		defer d.Close()

		var want, got []byte
		flush := func() {
			level = reduce.Level(r.IntN(3)) + reduce.LevelStored
			batch, retained, err := e.Flush(nil)
			if err != nil {
				t.Fatal(err)
			}
			miss, err := d.Open(batch)
			if err != nil {
				t.Fatal(err)
			}
			if miss != nil && staleness == 0 && failing == 0 {
				t.Fatal("missed what is there")
			}
			if (retained != nil) != d.Depends() {
				t.Fatalf("retained %v, depends %v", retained != nil, d.Depends())
			}
			for rounds := 0; miss != nil; rounds++ {
				if rounds == 2 {
					t.Fatal("endless misses")
				}
				fills, err := retained.Fill(miss)
				if err != nil {
					t.Fatal(err)
				}
				miss = nil
				for _, f := range fills {
					if _, miss, err = d.Fill(f); err != nil {
						t.Fatal(err)
					}
				}
			}
			if retained != nil {
				retained.Release()
			}
			if err := d.Emit(func(p []byte) error { got = append(got, p...); return nil }); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Fatalf("%d bytes, want %d; they differ from %d on", len(got), len(want), differ(got, want))
			}
		}
		e.Announce(g.blocks[:2])
		for i := range rapid.IntRange(1, 60).Draw(t, "sections") {
			if i == 1 {
				e.Announce(g.blocks)
			}
			for _, rec := range g.next() {
				if rec.Block == 2 && i == 0 {
					continue
				}
				if !e.Fits(rec) {
					flush()
				}
				if err := e.Encode(rec); err != nil {
					t.Fatal(err)
				}
				want = append(page.AppendHeader(want, rec, g.blocks), rec.Data...)
			}
			if r.IntN(10) == 0 {
				flush()
			}
		}
		flush()
	})
}

func differ(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}
