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

func (m *mirror) Recall(block int64, p []byte) error {
	if m.state[block] == chunk.Absent {
		return errBroken
	}
	copy(p, m.blocks[block])
	return nil
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
		staleness := rapid.SampledFrom([]int{0, 1, 30, 200}).Draw(t, "stale per mille")
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
				if r.IntN(2) == 0 {
					g.write(0, i)
				}
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
		sent := make([][]byte, mirrored) // what crossed last of each page
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
				if place := []int{0, 100, 101}[rec.Block] + int(rec.Addr/page.PageBytes); rec.Kind != page.Bytes && place < mirrored {
					sent[place] = bytes.Clone(rec.Data)
					if rec.Kind == page.Zero {
						sent[place] = bytes.Repeat([]byte{rec.Fill}, page.PageBytes)
					}
				}
			}
			if r.IntN(10) == 0 {
				flush()
			}
		}
		flush()
		// What is left for the next move is the memory as it was last, at both ends.
		for name, m := range map[string]*mirror{"sender": here, "receiver": there} {
			for place, p := range sent {
				// An end whose mirror failed, or did not seem to help, has stopped.
				if p != nil && eo.Mirror != nil && failing == 0 && stats.Missed.Load() < 64 && !bytes.Equal(m.blocks[place], p) {
					t.Fatalf("the %s's mirror has something else at %d", name, place)
				}
			}
		}
	})
}

// TestMemoryOncePerBatch: a page that crosses again begins a batch, since the mirrors show what was
// before the batch.
func TestMemoryOncePerBatch(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	m := newMirror(10, func() bool { return false })
	e := reduce.NewMemoryEncoder(reduce.MemoryEncoderOptions{Mirror: m, MirrorBlocks: 10})
	e.Announce([]page.Block{{Name: "pc.ram", Bytes: 10 * page.PageBytes}})
	for _, kind := range []page.Kind{page.Page, page.Zero, page.Page} {
		rec := page.Record{Kind: kind, Addr: 3 * page.PageBytes}
		if kind == page.Page {
			rec.Data = text(r)
		}
		if err := e.Encode(rec); err != nil {
			t.Fatal(err)
		}
		again := page.Record{Kind: page.Page, Addr: rec.Addr, Data: text(r)}
		if e.Fits(again) {
			t.Fatalf("a page fits after the same one as %v", kind)
		}
		if again.Addr = 4 * page.PageBytes; !e.Fits(again) {
			t.Fatal("another page does not fit")
		}
		if _, _, err := e.Flush(nil); err != nil {
			t.Fatal(err)
		}
		if again.Addr = rec.Addr; !e.Fits(again) {
			t.Fatal("the page does not fit into the next batch")
		}
	}
}

func differ(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// TestMemoryAllocatesNothingPerPage: what is allocated is per batch.
func TestMemoryAllocatesNothingPerPage(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	index := chunk.NewIndex(1 << 20)
	pages := make([][]byte, 512)
	for i := range pages {
		pages[i] = text(r)
		if i%2 == 0 {
			index.Add(chunk.FingerprintOf(pages[i]), chunk.Ref{Block: uint32(i)})
		}
	}
	e := reduce.NewMemoryEncoder(reduce.MemoryEncoderOptions{Known: &reduce.Known{Index: index}, Level: reduce.FixedLevel(reduce.LevelFastest)})
	e.Announce([]page.Block{{Name: "pc.ram", Bytes: 512 * page.PageBytes}})
	var batch []byte
	batches := 0
	flush := func() {
		var retained *reduce.Retained
		var err error
		if batch, retained, err = e.Flush(batch[:0]); err != nil {
			t.Fatal(err)
		}
		if retained != nil {
			retained.Release()
		}
		batches++
	}
	pass := func() {
		batches = 0
		for i, p := range pages {
			rec := page.Record{Kind: page.Page, Addr: uint64(i) * page.PageBytes, Data: p}
			if !e.Fits(rec) {
				flush()
			}
			if err := e.Encode(rec); err != nil {
				t.Fatal(err)
			}
		}
		flush()
	}
	if n := testing.AllocsPerRun(5, pass); n > float64(20*batches) {
		t.Fatalf("%v allocations for %d pages in %d batches", n, len(pages), batches)
	}
}
