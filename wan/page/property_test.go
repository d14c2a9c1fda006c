package page_test

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/drover-vm/drover/wan/page"
)

// drawStream draws a whole stream that a Reader understands, but for sections of
// others.
func drawStream(t *rapid.T) *stream {
	machine := rapid.SampledFrom([]string{"", "pc-i440fx-7.2", "pc-q35-10.0", "microvm"}).Draw(t, "machine")
	s := newStream(machine)
	var sizes uint64
	if machine != "" {
		caps := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"x-ignore-shared", "multifd", "xbzrle"}), 0, 3, rapid.ID).Draw(t, "caps")
		for _, c := range caps {
			s.shared = s.shared || c == "x-ignore-shared"
		}
		s.subsection("capabilities", capabilities(caps...))
		if rapid.Bool().Draw(t, "uuid") {
			s.subsection("uuid", make([]byte, 16))
		}
		if rapid.Bool().Draw(t, "return path") {
			s.command(openReturnPath).command(ping, 0, 0, 0, 1)
		}
		if rapid.Bool().Draw(t, "post-copy") {
			sizes = 1<<12 | 1<<21 | 1<<30
			s.advise(sizes)
		}
		drawForeign(t, s)
	}
	blocks := drawBlocks(t)
	if sizes != 0 {
		s.sizes = rapid.SliceOfN(rapid.SampledFrom([]uint64{0, 1 << 21, 1 << 30}), len(blocks), len(blocks)).Draw(t, "sizes")
	}
	s.ram(rapid.Uint32Range(0, 40).Draw(t, "id"), blocks...)
	for range rapid.IntRange(0, 4).Draw(t, "parts") {
		drawForeign(t, s)
		s.part()
		drawRecords(t, s)
		s.eos()
	}
	if rapid.Bool().Draw(t, "announce") {
		s.command(switchoverStart)
	}
	s.end()
	drawRecords(t, s)
	return s.eos().devices()
}

func drawBlocks(t *rapid.T) []page.Block {
	names := rapid.SliceOfNDistinct(rapid.StringN(1, 20, 40), 1, 5, rapid.ID).Draw(t, "names")
	blocks := make([]page.Block, len(names))
	for i, n := range names {
		blocks[i] = page.Block{Name: n, Bytes: page.PageBytes * rapid.Uint64Range(1, 1<<20).Draw(t, "pages")}
	}
	return blocks
}

// drawForeign draws a section that the package does not know, or none.
func drawForeign(t *rapid.T, s *stream) {
	if !s.footer || rapid.IntRange(0, 3).Draw(t, "foreign") > 0 {
		return
	}
	content := rapid.SliceOfN(rapid.SampledFrom([]byte{0x7e, 0, 1, 2, 3, 0xff}), 0, 300).Draw(t, "content")
	s.foreign(rapid.SampledFrom([]byte{1, 4}).Draw(t, "kind"), 50, "dirty-bitmap", content)
	s.last = "" // nothing about the block is lost by it
}

func drawRecords(t *rapid.T, s *stream) {
	for range rapid.IntRange(0, 12).Draw(t, "records") {
		i := rapid.IntRange(0, len(s.blocks)-1).Draw(t, "block")
		rec := page.Record{
			Block:    i,
			Addr:     page.PageBytes * rapid.Uint64Range(0, s.blocks[i].Bytes/page.PageBytes-1).Draw(t, "addr"),
			Continue: s.last == s.blocks[i].Name && rapid.IntRange(0, 9).Draw(t, "named") > 0,
		}
		kind := rapid.IntRange(0, 9).Draw(t, "kind")
		if kind < 8 {
			s.last = s.blocks[i].Name
		}
		switch kind {
		case 0, 1, 2:
			rec.Kind, rec.Fill = page.Zero, rapid.SampledFrom([]byte{0, 0, 0, 0x7e}).Draw(t, "fill")
			s.page(rec)
		case 6:
			s.xbzrle(rec, make([]byte, rapid.IntRange(0, page.PageBytes).Draw(t, "difference")))
		case 7:
			s.compress(rec, make([]byte, rapid.IntRange(0, 4110).Draw(t, "deflated")))
		case 8:
			s.u64(0x200)
		case 9:
			s.u64(0x80)
		default:
			rec.Kind = page.Page
			rec.Data = bytes.Repeat(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "data"), page.PageBytes/16)
			s.page(rec)
		}
	}
}

// TestAnyStream reads streams as they come, in several pieces: the bytes remain,
// every page is found, at its place, and the pieces make no difference.
func TestAnyStream(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := drawStream(t)
		sizes := rapid.SliceOfN(rapid.IntRange(1, 9000), 1, 20).Draw(t, "pieces")
		var one reading
		for i, r := range []*page.Reader{
			page.NewReader(bytes.NewReader(s.b)),
			page.NewSmallReader(bytes.NewReader(s.b)),
			page.NewReader(iotest.OneByteReader(bytes.NewReader(s.b))),
			page.NewSmallReader(iotest.HalfReader(iotest.DataErrReader(bytes.NewReader(s.b)))),
			page.NewSmallReader(&pieces{b: s.b, sizes: sizes}),
		} {
			got, err := readAll(r)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got.bytes, s.b) {
				t.Fatalf("reader %d: %d bytes came out as others (%d)", i, len(s.b), len(got.bytes))
			}
			if i == 0 {
				one = got
			}
			if d := cmp.Diff(one.phases, got.phases); d != "" {
				t.Fatalf("reader %d: phases (-in one piece +in several):\n%s", i, d)
			}
			if d := cmp.Diff(s.pages, got.pages, wholeBytes); d != "" {
				t.Fatalf("reader %d: pages (-want +got):\n%s", i, d)
			}
			if d := cmp.Diff(s.blocks, got.blocks); d != "" {
				t.Fatalf("reader %d: blocks (-want +got):\n%s", i, d)
			}
			if got.end != page.Devices {
				t.Fatalf("reader %d: ends in phase %s", i, got.end)
			}
		}
	})
}

// pieces delivers bytes in pieces of the given sizes, over and over.
type pieces struct {
	b     []byte
	sizes []int
	n     int
}

func (p *pieces) Read(to []byte) (int, error) {
	if len(p.b) == 0 {
		return 0, io.EOF
	}
	n := copy(to[:min(len(to), p.sizes[p.n%len(p.sizes)])], p.b)
	p.b = p.b[n:]
	p.n++
	return n, nil
}

// watched counts reads and delivers up to the places at which QEMU flushes.
type watched struct {
	b       []byte
	flushed []int
	given   int
	before  func() // called before each read
}

func (w *watched) Read(to []byte) (int, error) {
	w.before()
	for len(w.flushed) > 0 && w.flushed[0] <= w.given {
		w.flushed = w.flushed[1:]
	}
	if len(w.flushed) == 0 {
		return 0, io.EOF
	}
	n := copy(to, w.b[w.given:w.flushed[0]])
	w.given += n
	return n, nil
}

// TestNothingHeldBack reads streams up to each place at which QEMU may wait for an
// answer: a Reader has returned everything before it reads on, and Buffered says
// beforehand when it will read.
func TestNothingHeldBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := drawStream(t)
		got, reads := 0, 0
		w := &watched{b: s.b, flushed: s.flushed}
		w.before = func() {
			reads++
			// Inside of a stretch, which the buffer may not hold at once, the
			// beginning of a page may wait.
			if atFlush := len(w.flushed) == 0 || w.given == 0 || w.given == w.flushed[0]; atFlush && got != w.given {
				t.Fatalf("%d bytes are held back at byte %d", w.given-got, w.given)
			}
		}
		r := page.NewReader(w)
		for {
			buffered, before := r.Buffered(), reads
			rec, err := r.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if buffered > 0 && reads != before {
				t.Fatalf("%d bytes are buffered, Next reads all the same", buffered)
			}
			if buffered == 0 && reads == before {
				t.Fatal("nothing is buffered, Next returns without reading")
			}
			got += len(page.AppendHeader(nil, rec, r.Blocks())) + len(rec.Data)
		}
		if got != len(s.b) {
			t.Fatalf("%d bytes of %d", got, len(s.b))
		}
	})
}

// TestReadError wants everything before an error, and then that error.
func TestReadError(t *testing.T) {
	broken := errors.New("broken")
	s := newStream("pc").ram(2, twoBlocks...).rounds()
	for cut := 0; cut < len(s.b); cut += 37 {
		got, err := readAll(page.NewSmallReader(io.MultiReader(bytes.NewReader(s.b[:cut]), iotest.ErrReader(broken))))
		if !errors.Is(err, broken) || !bytes.Equal(got.bytes, s.b[:cut]) {
			t.Fatalf("cut at %d: %d bytes, error %v", cut, len(got.bytes), err)
		}
	}
	if _, err := read(iotest.ErrReader(nil)); !errors.Is(err, io.ErrNoProgress) {
		t.Fatalf("a reader without progress: %v", err)
	}
}
