package reduce_test

import (
	"bytes"
	"encoding/binary"
	"flag"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/zeebo/blake3"

	"github.com/drover-vm/drover/wan/chunk"
	"github.com/drover-vm/drover/wan/reduce"
)

var update = flag.Bool("update", false, "write the golden files anew: only for a new version of the format")

const goldenFile = "testdata/v1.batches"

// goldenWorld returns the storage that the golden batches were made against.
func goldenWorld() (pool [][]byte, old [][]byte) {
	r := rand.New(rand.NewPCG(11, 12))
	return textPool(r, 20), textPool(r, 61)
}

// goldenBatches makes batches of all codecs, operations and elements, and the stream that they stand for.
func goldenBatches(t *testing.T) (file []byte) {
	pool, old := goldenWorld()
	index := chunk.NewIndex(1 << 20)
	for i, b := range pool {
		index.Add(chunk.FingerprintOf(b), chunk.Ref{Source: 2, Block: uint32(i)})
	}
	m := newMirror(61, func() bool { return false })
	for i, b := range old[:30] {
		m.inherit(i, b)
	}
	g := newGuest(rand.New(rand.NewPCG(1, 2)), pool, 60, 1)
	for i := range g.memory[0] {
		if i%2 == 0 {
			g.memory[0][i] = old[i]
		}
	}
	level := reduce.LevelStored
	var stats reduce.Stats
	e := reduce.NewMemoryEncoder(reduce.MemoryEncoderOptions{
		Known: &reduce.Known{Index: index}, Mirror: m, MirrorBlocks: 61, Level: func() reduce.Level { return level }, Stats: &stats,
	})
	e.Announce(g.blocks)
	var want []byte
	d := reduce.NewMemoryDecoder(goldenOptions())
	defer d.Close()
	for i := range 12 {
		level = reduce.Level(i / 2)
		for range 4 {
			for _, rec := range g.next() {
				if e.Fits(rec) {
					if err := e.Encode(rec); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
		batch, _, err := e.Flush(nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.Open(batch); err != nil {
			t.Fatal(err)
		}
		_ = d.Emit(func(p []byte) error { want = append(want, p...); return nil })
		file = binary.BigEndian.AppendUint32(file, uint32(len(batch)))
		file = append(file, batch...)
	}
	for _, k := range reduce.Kinds() {
		if stats.Of(k).Blocks == 0 {
			t.Fatalf("no %v block among the golden batches", k)
		}
	}
	sum := blake3.Sum256(want)
	return append(sum[:], file...)
}

func goldenOptions() reduce.MemoryDecoderOptions {
	pool, old := goldenWorld()
	m := newMirror(61, func() bool { return false })
	for i, b := range old[:30] {
		m.inherit(i, b)
	}
	have := &source{blocks: pool, fail: func() bool { return false }}
	return reduce.MemoryDecoderOptions{
		Resolver: &world{sources: []*source{nil, nil, have}}, Mirror: m, MirrorBlocks: 61,
	}
}

// TestGolden decodes batches that the first release has written. They never change: a peer or a capture may
// be of that version.
func TestGolden(t *testing.T) {
	if *update {
		if err := os.WriteFile(goldenFile, goldenBatches(t), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	file, err := os.ReadFile(goldenFile)
	if err != nil {
		t.Fatal(err)
	}
	sum, rest := file[:32], file[32:]
	d := reduce.NewMemoryDecoder(goldenOptions())
	defer d.Close()
	var got []byte
	for n := 0; len(rest) > 0; n++ {
		size := binary.BigEndian.Uint32(rest)
		batch := rest[4 : 4+size]
		rest = rest[4+size:]
		miss, err := d.Open(batch)
		if err != nil {
			t.Fatalf("batch %d: %v", n, err)
		}
		if miss != nil {
			t.Fatalf("batch %d: missed", n)
		}
		if err := d.Emit(func(p []byte) error { got = append(got, p...); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	if have := blake3.Sum256(got); !bytes.Equal(have[:], sum) {
		t.Fatalf("%d bytes that are not what was encoded", len(got))
	}
}
