package delta_test

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"

	"github.com/drover-vm/drover/wan/delta"
)

const blockBytes = 4096

// changed returns a random block and a copy of it with n words changed.
func changed(r *rand.Rand, n int) (before, after []byte) {
	before = make([]byte, blockBytes)
	for i := range before {
		before[i] = byte(r.Uint32())
	}
	after = bytes.Clone(before)
	for range n {
		after[r.IntN(blockBytes)] ^= byte(1 + r.IntN(255))
	}
	return before, after
}

func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		before, after := changed(r, rapid.IntRange(0, 300).Draw(t, "changes"))
		prefix := []byte("prefix")
		enc, ok := delta.Append(bytes.Clone(prefix), before, after)
		if !bytes.HasPrefix(enc, prefix) {
			t.Fatalf("what was in dst is gone")
		}
		enc = enc[len(prefix):]
		if !ok {
			if len(enc) != 0 {
				t.Fatalf("gave up and left %d bytes", len(enc))
			}
			return
		}
		if len(enc) > delta.MaxBytes(blockBytes) {
			t.Fatalf("%d bytes", len(enc))
		}
		got := bytes.Clone(before)
		n, err := delta.Apply(got, append(bytes.Clone(enc), "what follows"...))
		if err != nil {
			t.Fatal(err)
		}
		if n != len(enc) {
			t.Fatalf("used %d of %d bytes", n, len(enc))
		}
		if !bytes.Equal(got, after) {
			t.Fatal("other content")
		}
		for cut := range enc {
			if _, err := delta.Apply(bytes.Clone(before), enc[:cut]); err == nil {
				t.Fatalf("cut to %d of %d bytes and accepted", cut, len(enc))
			}
		}
	})
}

func TestGivesUp(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	before, _ := changed(r, 0)
	after, _ := changed(r, 0)
	if _, ok := delta.Append(nil, before, after); ok {
		t.Fatal("a delta of two unlike blocks")
	}
	enc, ok := delta.Append(nil, before, before)
	if !ok || len(enc) > 2 {
		t.Fatalf("the same block takes %d bytes, ok %v", len(enc), ok)
	}
}

func TestNoAllocation(t *testing.T) {
	before, after := changed(rand.New(rand.NewPCG(1, 2)), 20)
	buf, block := make([]byte, 0, blockBytes), make([]byte, blockBytes)
	if n := testing.AllocsPerRun(100, func() {
		buf, _ = delta.Append(buf[:0], before, after)
		copy(block, before)
		if _, err := delta.Apply(block, buf); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}

func FuzzApply(f *testing.F) {
	before, after := changed(rand.New(rand.NewPCG(1, 2)), 20)
	enc, _ := delta.Append(nil, before, after)
	f.Add(enc)
	f.Add([]byte{0x80, 0x04})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01})
	f.Fuzz(func(t *testing.T, src []byte) {
		guarded := make([]byte, blockBytes+16)
		block := guarded[8 : 8+blockBytes]
		n, err := delta.Apply(block, src)
		if err == nil && (n <= 0 || n > len(src)) {
			t.Fatalf("used %d of %d", n, len(src))
		}
		if !bytes.Equal(guarded[:8], make([]byte, 8)) || !bytes.Equal(guarded[8+blockBytes:], make([]byte, 8)) {
			t.Fatal("wrote outside of the block")
		}
	})
}

func BenchmarkDelta(b *testing.B) {
	for _, c := range []struct {
		name    string
		changes int
	}{{"same", 0}, {"8words", 8}, {"64words", 64}, {"100words", 100}} {
		b.Run(c.name, func(b *testing.B) {
			before, after := changed(rand.New(rand.NewPCG(1, 2)), c.changes)
			buf, block := make([]byte, 0, blockBytes), make([]byte, blockBytes)
			b.SetBytes(blockBytes)
			b.ReportAllocs()
			for b.Loop() {
				var ok bool
				if buf, ok = delta.Append(buf[:0], before, after); !ok {
					b.Fatal("gave up")
				}
				copy(block, before)
				if _, err := delta.Apply(block, buf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
