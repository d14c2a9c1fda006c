package page_test

import (
	"bytes"
	"io"
	"testing"

	"github.com/drover-vm/drover/wan/page"
)

// FuzzReader reads anything: no byte is lost, no page lies outside of its block,
// and what a Reader keeps is bounded. Streams are large: with -fuzzminimizetime 10x
// it spends its time on new ones.
func FuzzReader(f *testing.F) {
	add := func(s *stream) { f.Add(s.b, uint16(1000), true) }
	add(newStream("pc").ram(2, twoBlocks...).rounds().devices())
	add(newStream("").ram(2, twoBlocks...).rounds())
	add(newStream("pc").subsection("capabilities", capabilities("x-ignore-shared")).advise(1<<21).ram(2, twoBlocks...).rounds())
	add(newStream("pc").ram(2, twoBlocks...).foreign(4, 3, "x", content[:40]).part().page(first).xbzrle(second, content[:9]).compress(third, content[:9]).eos())
	add(newStream("pc").foreign(4, 3, "x", content[:40]).ram(2, twoBlocks...).command(packaged, 0, 0, 0, 9).rounds())
	f.Add([]byte("QEVM\x00\x00\x00\x04"), uint16(1), false)
	f.Fuzz(func(t *testing.T, in []byte, piece uint16, ask bool) {
		src := &pieces{b: in, sizes: []int{int(piece) + 1}}
		r := page.NewSmallReader(src)
		out := make([]byte, 0, len(in))
		for {
			if ask && r.Buffered() == 0 {
				if held := len(in) - len(src.b) - len(out); held > page.HeldBytes {
					t.Fatalf("%d bytes are held back", held)
				}
			}
			rec, err := r.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			checkRecord(t, rec, r.Blocks())
			out = append(page.AppendHeader(out, rec, r.Blocks()), rec.Data...)
		}
		if !bytes.Equal(in, out) {
			t.Fatalf("%d bytes came out as others (%d)", len(in), len(out))
		}
	})
}

func checkRecord(t *testing.T, rec page.Record, blocks []page.Block) {
	switch rec.Kind {
	case page.Bytes:
		if len(rec.Data) == 0 {
			t.Fatal("bytes without bytes")
		}
		return
	case page.Zero:
		if rec.Data != nil {
			t.Fatal("a zero page with content")
		}
	case page.Page:
		if len(rec.Data) != page.PageBytes {
			t.Fatalf("a page of %d bytes", len(rec.Data))
		}
	}
	if rec.Block < 0 || rec.Block >= len(blocks) {
		t.Fatalf("block %d of %d", rec.Block, len(blocks))
	}
	if rec.Addr%page.PageBytes != 0 || rec.Addr+page.PageBytes > blocks[rec.Block].Bytes || rec.Addr+page.PageBytes < rec.Addr {
		t.Fatalf("page at %#x of a block of %d bytes", rec.Addr, blocks[rec.Block].Bytes)
	}
}
