package page_test

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/drover-vm/drover/wan/page"
)

// reading is what came out of a Reader.
type reading struct {
	bytes  []byte        // all of it, as AppendHeader and Data have it
	pages  []page.Record // with Data of their own
	phases []string      // in the order they came
	blocks []page.Block
	end    page.Phase
}

func read(src io.Reader) (reading, error) { return readAll(page.NewReader(src)) }

func readAll(r *page.Reader) (reading, error) {
	var got reading
	for {
		rec, err := r.Next()
		if err != nil {
			got.blocks, got.end = r.Blocks(), r.Phase()
			if err == io.EOF {
				err = nil
			}
			return got, err
		}
		got.bytes = page.AppendHeader(got.bytes, rec, r.Blocks())
		got.bytes = append(got.bytes, rec.Data...)
		if p := r.Phase().String(); len(got.phases) == 0 || got.phases[len(got.phases)-1] != p {
			got.phases = append(got.phases, p)
		}
		if rec.Kind != page.Bytes {
			rec.Data = bytes.Clone(rec.Data)
			got.pages = append(got.pages, rec)
		}
	}
}

// mustRead reads a stream and fails the test if a byte is lost.
func mustRead(t *testing.T, b []byte) reading {
	t.Helper()
	got, err := read(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.bytes, b) {
		t.Fatalf("%d bytes came out as others (%d)", len(b), len(got.bytes))
	}
	return got
}

var (
	twoBlocks = []page.Block{{Name: "pc.ram", Bytes: 64 * page.PageBytes}, {Name: "pc.bios", Bytes: 4 * page.PageBytes}}
	content   = bytes.Repeat([]byte("page"), page.PageBytes/4)
	first     = page.Record{Kind: page.Page, Block: 0, Addr: 0x3000, Data: content}
	second    = page.Record{Kind: page.Zero, Block: 0, Addr: 0x4000, Continue: true}
	third     = page.Record{Kind: page.Page, Block: 1, Addr: 0x3000, Data: content}
)

// rounds adds three rounds, the last one at the end.
func (s *stream) rounds() *stream {
	s.part().page(first).page(second).eos()
	s.part().page(page.Record{Kind: page.Zero, Addr: 0, Continue: true}).page(third).eos()
	return s.end().page(first).eos()
}

// TestShapes reads the shapes that the versions of QEMU and their
// capabilities give a stream.
func TestShapes(t *testing.T) {
	advised := func(shared bool, sizes ...uint64) *stream {
		s := newStream("pc-q35-9.2")
		s.sizes, s.shared = sizes, shared
		if shared {
			s.subsection("capabilities", capabilities("x-ignore-shared"))
		}
		return s.advise(1<<12|1<<21).ram(2, twoBlocks...).rounds().devices()
	}
	const all = "setup rounds last devices"
	for _, tt := range []struct {
		name   string
		stream *stream
		phases string
	}{
		{"plain", newStream("pc-q35-10.0").ram(2, twoBlocks...).rounds().devices(), all},
		{"machine before 2.4", newStream("").ram(2, twoBlocks...).rounds().devices(), all},
		{"return path", newStream("pc-i440fx-7.2").command(openReturnPath).command(ping, 0, 0, 0, 1).ram(2, twoBlocks...).rounds().devices(), all},
		{"uuid", newStream("pc").subsection("uuid", make([]byte, 16)).ram(2, twoBlocks...).rounds().devices(), all},
		{"target page bits", newStream("pc").subsection("target-page-bits", []byte{0, 0, 0, 12}).ram(2, twoBlocks...).rounds().devices(), all},
		{"capabilities", newStream("pc").subsection("capabilities", capabilities("multifd", "xbzrle")).ram(2, twoBlocks...).rounds().devices(), all},
		{"ignore-shared", advised(true, 0, 0), all},
		{"huge pages", advised(false, 1<<21, 0), all},
		{"huge pages in the last block", advised(false, 0, 1<<21), all},
		{"huge pages everywhere", advised(false, 1<<21, 1<<21), all},
		{"ignore-shared, huge pages", advised(true, 1<<21, 0), all},
		{"ignore-shared, huge pages in the last block", advised(true, 0, 1<<21), all},
		{"dirty bitmaps only advise", newStream("pc").command(postcopyAdvise).ram(2, twoBlocks...).rounds().devices(), all},
		{"multifd flush and RDMA hook", func() *stream {
			s := newStream("pc-q35-8.1")
			s.id = 2
			s.section(1, 2, "ram", 0, 4)
			s.list(twoBlocks)
			s.u64(0x80)
			s.u64(0x200)
			s.eos().part().page(first)
			s.u64(0x200)
			return s.page(second).eos().end().eos().devices()
		}(), all},
		{"encoded pages", newStream("pc-q35-7.2").ram(2, twoBlocks...).
			part().page(first).xbzrle(second, content[:77]).compress(third, content[:900]).page(page.Record{Kind: page.Zero, Block: 1, Continue: true}).eos().
			end().eos().devices(), all},
		{"switchover start", newStream("pc-q35-10.0").ram(2, twoBlocks...).part().page(first).eos().
			command(switchoverStart).end().page(second).eos().devices(), all},
		{"packaged", func() *stream {
			s := newStream("pc").advise(1<<12).ram(2, twoBlocks...).part().page(first).eos()
			s.command(packaged, 0, 0, 0, 60)
			s.raw(bytes.Repeat([]byte{2, 0, 0, 0, 2}, 12)) // would be parts of ram
			return s.part().page(second).eos().end().eos().devices()
		}(), all},
		{"section before the memory", newStream("pc").foreign(4, 1, "0000:00:03.0/virtio-mem-device-early", content[:999]).
			ram(2, twoBlocks...).rounds().devices(), "setup opaque setup rounds last devices"},
		{
			"section among the memory", newStream("pc").ram(2, twoBlocks...).foreign(1, 3, "dirty-bitmap", []byte{0, 2, 0x7e, 0x7e, 0, 0, 0, 2, 2}).
				part().page(first).eos().foreign(2, 3, "", bytes.Repeat([]byte{0x7e, 0, 0, 0, 3, 2, 0, 0}, 9)).
				part().page(second).eos().foreign(3, 3, "", nil).end().page(first).eos().devices(),
			"setup opaque rounds opaque rounds opaque last devices",
		},
		{
			"unknown sub-section", newStream("pc").subsection("later", content[:50]).ram(2, twoBlocks...).rounds().devices(),
			"setup opaque setup rounds last devices",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := mustRead(t, tt.stream.b)
			if d := cmp.Diff(tt.stream.pages, got.pages, wholeBytes); d != "" {
				t.Errorf("pages (-want +got):\n%s", d)
			}
			if d := cmp.Diff(twoBlocks, got.blocks); d != "" {
				t.Errorf("blocks (-want +got):\n%s", d)
			}
			if got, want := strings.Join(got.phases, " "), tt.phases; got != want {
				t.Errorf("phases %s, want %s", got, want)
			}
		})
	}
}

// TestNotUnderstood reads what is no stream, or one that the package leaves alone:
// all of it comes through, as bytes, and the phase says so.
func TestNotUnderstood(t *testing.T) {
	many := make([]page.Block, 4097)
	for i := range many {
		many[i] = page.Block{Name: strings.Repeat("x", i%200+1) + string(rune('0'+i/200)), Bytes: page.PageBytes}
	}
	in := func(rec page.Record, edit func(*stream)) *stream {
		s := newStream("pc").ram(2, twoBlocks...).part()
		if edit != nil {
			edit(s)
		}
		return s.page(rec).page(first).eos()
	}
	multifd := &stream{b: []byte{0x11, 0x22, 0x33, 0x44, 0, 0, 0, 1}}
	version4 := &stream{b: []byte("QEVM\x00\x00\x00\x04")}
	for _, tt := range []struct {
		name   string
		stream *stream
		pages  int
	}{
		{"multifd channel", multifd, 0},
		{"another version", version4.ram(2, twoBlocks...).rounds(), 0},
		{"machine type too long", newStream(strings.Repeat("x", 1025)), 0},
		{"other page size", newStream("virt").subsection("target-page-bits", []byte{0, 0, 0, 14}).ram(2, twoBlocks...).rounds(), 0},
		{"mapped-ram", newStream("pc").subsection("capabilities", capabilities("mapped-ram")).ram(2, twoBlocks...).rounds(), 0},
		{"capabilities without end", newStream("pc").subsection("capabilities", []byte{0, 1, 0, 0}), 0},
		{"other version of ram", newStream("pc").foreign(1, 2, "ram", make([]byte, 100)), 0},
		{"too many blocks", newStream("pc").ram(2, many...), 0},
		{"too much memory", newStream("pc").ram(2, page.Block{Name: "a", Bytes: 16<<40 + page.PageBytes}).part().page(first).eos(), 0},
		{"one name twice", newStream("pc").ram(2, twoBlocks[0], twoBlocks[0]).part().page(first).eos(), 0},
		{"block without name", newStream("pc").ram(2, page.Block{Bytes: page.PageBytes}), 0},
		{"block larger than all", func() *stream {
			s := newStream("pc")
			s.section(1, 2, "ram", 0, 4)
			s.u64(page.PageBytes | 4)
			s.counted("a")
			s.u64(2 * page.PageBytes)
			return s
		}(), 0},
		{"second list", func() *stream {
			s := newStream("pc").ram(2, twoBlocks...).part()
			s.list(twoBlocks)
			return s.page(first)
		}(), 0},
		{"page outside of its block", in(page.Record{Kind: page.Page, Block: 1, Addr: 4 * page.PageBytes, Data: content}, nil), 0},
		{"page far outside", in(page.Record{Kind: page.Zero, Addr: 1<<64 - page.PageBytes}, nil), 0},
		{"page of no block", in(second, nil), 0},
		{"block unheard of", in(first, func(s *stream) { s.blocks = []page.Block{{Name: "vga.vram"}, {Name: "x"}} }), 0},
		{"unknown flags", in(first, func(s *stream) { s.u64(0x408) }), 0},
		{"two kinds at once", in(first, func(s *stream) { s.u64(0x00a) }), 0},
		{"XBZRLE too long", in(first, func(s *stream) { s.xbzrle(first, make([]byte, page.PageBytes+1)) }), 0},
		{"COMPRESS too long", in(first, func(s *stream) { s.compress(first, make([]byte, 4111)) }), 0},
		{"after a page", newStream("pc").ram(2, twoBlocks...).part().page(first).foreign(4, 4, "x", nil), 1},
		{"another's footer", func() *stream {
			s := newStream("pc").ram(2, twoBlocks...).part().page(first)
			s.u64(0x10)
			s.sectionEnd(7)
			return s
		}(), 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := mustRead(t, tt.stream.b)
			if got.end != page.Opaque || len(got.pages) != tt.pages {
				t.Errorf("phase %s and %d pages, want opaque and %d", got.end, len(got.pages), tt.pages)
			}
		})
	}
}

// wholeBytes compares pages as a whole: byte by byte takes seconds.
var wholeBytes = cmp.Comparer(bytes.Equal)
