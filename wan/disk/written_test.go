package disk

import (
	"testing"

	"github.com/drover-vm/drover/wan/chunk"
	"pgregory.net/rapid"
)

// TestWritten compares with a map what is known after any sequence of writes,
// zeros and trims, and what is told to be forgotten.
func TestWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		blocks := rapid.Int64Range(1, 5*leafBlocks).Draw(t, "blocks")
		w := newWritten(blocks, 1<<20)
		model := map[int64]chunk.Fingerprint{}
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			first := rapid.Int64Range(0, blocks-1).Draw(t, "first")
			end := rapid.Int64Range(first+1, blocks).Draw(t, "end")
			if rapid.Bool().Draw(t, "set") {
				fp := chunk.Fingerprint(rapid.Uint64Range(0, 3).Draw(t, "fp"))
				for b := first; b < min(end, first+20); b++ {
					w.set(b, fp)
					model[b] = fp
				}
				continue
			}
			zero := rapid.Bool().Draw(t, "zero")
			want := map[int64]chunk.Fingerprint{}
			for b := first; b < end; b++ {
				if model[b] != 0 {
					want[b] = model[b]
				}
				delete(model, b)
				if zero {
					model[b] = 0
				}
			}
			w.fill(first, end, zero, func(b int64, fp chunk.Fingerprint) {
				if want[b] != fp {
					t.Fatalf("block %d: told to forget %v, want %v", b, fp, want[b])
				}
				delete(want, b)
			})
			if len(want) > 0 {
				t.Fatalf("not told to forget %v", want)
			}
		}
		for b := range blocks {
			fp, known := w.At(b)
			if want, ok := model[b]; ok != known || want != fp {
				t.Fatalf("block %d: %v %t, want %v %t", b, fp, known, want, ok)
			}
		}
		w.Each(func(b int64, fp chunk.Fingerprint) bool {
			if want, ok := model[b]; !ok || want != fp {
				t.Fatalf("yielded block %d: %v, want %v %t", b, fp, want, ok)
			}
			delete(model, b)
			return true
		})
		if len(model) > 0 {
			t.Fatalf("not yielded: %d blocks", len(model))
		}
	})
}

// TestWrittenLimit: without room blocks are unknown, never wrong, and the
// limit holds.
func TestWrittenLimit(t *testing.T) {
	const leaves = 100
	w := newWritten(leaves*leafBlocks, 10*leafBytes)
	for n := range int64(leaves) {
		w.set(n*leafBlocks+5, chunk.Fingerprint(n+1))
	}
	known := 0
	w.Each(func(b int64, fp chunk.Fingerprint) bool {
		known++
		if int64(fp) != b/leafBlocks+1 {
			t.Errorf("block %d has %v", b, fp)
		}
		return true
	})
	if known != 9 || w.used > w.limit {
		t.Errorf("%d blocks known, %d bytes used of %d", known, w.used, w.limit)
	}
	w.fill(0, w.Blocks(), true, func(int64, chunk.Fingerprint) {})
	w.set(7, 1) // its leaf must not take the zeros of the others along
	if fp, ok := w.At(8); !ok || fp != 0 || w.used > w.limit {
		t.Errorf("after zeros: %v %t", fp, ok)
	}
}
