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
		{"section among the memory", newStream("pc").ram(2, twoBlocks...).foreign(1, 3, "dirty-bitmap", []byte{0, 2, 0x7e, 0x7e, 0, 0, 0, 2, 2}).
			part().page(first).eos().foreign(2, 3, "", bytes.Repeat([]byte{0x7e, 0, 0, 0, 3, 2, 0, 0}, 9)).
			part().page(second).eos().foreign(3, 3, "", nil).end().page(first).eos().devices(),
			"setup opaque rounds opaque rounds opaque last devices"},
		{"unknown sub-section", newStream("pc").subsection("later", content[:50]).ram(2, twoBlocks...).rounds().devices(),
			"setup opaque setup rounds last devices"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := mustRead(t, tt.stream.b)
			if d := cmp.Diff(tt.stream.pages, got.pages); d != "" {
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
