package reduce

import (
	"encoding/binary"
	"fmt"

	"github.com/drover-vm/drover/wan/page"
)

// The elements of the memory codec's meta. Each begins with a number: the element in the lower bits,
// an argument above.
const (
	// elemBytes: argument bytes of the stream follow, as they are.
	elemBytes = iota
	// elemPages: argument+1 pages, one after another from the current place on. Their
	// contents are the batch's next blocks.
	elemPages
	// elemZeros: the same of pages that QEMU says are zero, which are no blocks of the batch.
	elemZeros
	// elemFilled: as elemZeros, with the byte that they are filled with behind.
	elemFilled
	// elemSeek: the current place is in block argument now, as many pages as the signed number behind says from
	// where the last page of that block ended.
	elemSeek
	// elemOdd: the next page's header has CONTINUE where it is not expected, or the other way round.
	elemOdd
	// elemBlocks: argument more RAM blocks: for each its name's length, the name, and its size in bytes.
	elemBlocks

	elemBits = 3
)

// Limits of what a peer can make the decoder hold; package page has the same.
const (
	maxRAMBlocks = 4096
	maxRAMName   = 255
	maxRAMBytes  = 16 << 40
	// maxPages bounds the pages of a batch, zero pages included; these cost the decoder 9 to 265 bytes of
	// output each, made piece by piece.
	maxPages = 1 << 16
)

// position follows a stream's pages: both ends keep one, so that what is as expected need not be
// said.
type position struct {
	blocks []page.Block
	first  []int64 // the place in the mirror where each block begins
	next   []int64 // the page after the last one of each block
	cur    int     // block of the page before, -1 before the first
	pages  int64   // of all blocks
}

func newPosition() position { return position{cur: -1} }

// add appends RAM blocks.
func (p *position) add(blocks ...page.Block) {
	for _, b := range blocks {
		p.blocks = append(p.blocks, b)
		p.first = append(p.first, p.pages)
		p.next = append(p.next, 0)
		p.pages += pagesOf(b)
	}
}

// pagesOf returns the number of pages of a RAM block.
func pagesOf(b page.Block) int64 { return int64((b.Bytes + page.PageBytes - 1) / page.PageBytes) }

// place returns where a page of a block is in the mirror.
func (p *position) place(block int, n int64) int64 { return p.first[block] + n }

// run is a piece of the stream: bytes, or consecutive pages of one kind.
type run struct {
	kind  page.Kind
	bytes []byte
	block int
	page  int64 // the first
	pages int
	fill  byte
	// follows is Continue of the first page; it is set in the others.
	follows bool
	// first is the batch's block that is the first page's content.
	first int
}

// metaWriter writes the meta of the memory codec.
type metaWriter struct {
	pos  position
	kind page.Kind // of the run that is being counted
	n    int
	fill byte
	buf  []byte
}

// element appends the head of an element.
func (w *metaWriter) element(elem int, arg uint64) {
	w.buf = binary.AppendUvarint(w.buf, arg<<elemBits|uint64(elem))
}

// page notes one page.
func (w *metaWriter) page(rec page.Record) {
	n, expected := int64(rec.Addr/page.PageBytes), rec.Block == w.pos.cur
	if w.n > 0 && (rec.Kind != w.kind || !expected || n != w.pos.next[rec.Block] || !rec.Continue ||
		rec.Kind == page.Zero && rec.Fill != w.fill) {
		w.end()
	}
	if w.n == 0 {
		if !expected || n != w.pos.next[rec.Block] {
			w.element(elemSeek, uint64(rec.Block))
			w.buf = appendVarint(w.buf, n-w.pos.next[rec.Block])
		}
		if rec.Continue != expected {
			w.element(elemOdd, 0)
		}
		w.kind, w.fill = rec.Kind, rec.Fill
	}
	w.n++
	w.pos.cur, w.pos.next[rec.Block] = rec.Block, n+1
}

// end writes the run that is being counted.
func (w *metaWriter) end() {
	if w.n == 0 {
		return
	}
	switch {
	case w.kind == page.Page:
		w.element(elemPages, uint64(w.n-1))
	case w.fill == 0:
		w.element(elemZeros, uint64(w.n-1))
	default:
		w.element(elemFilled, uint64(w.n-1))
		w.buf = append(w.buf, w.fill)
	}
	w.n = 0
}

// announce writes the RAM blocks that the other end does not know yet.
func (w *metaWriter) announce(blocks []page.Block) {
	more := blocks[len(w.pos.blocks):]
	if len(more) == 0 {
		return
	}
	w.end()
	w.element(elemBlocks, uint64(len(more)))
	for _, b := range more {
		w.buf = binary.AppendUvarint(w.buf, uint64(len(b.Name)))
		w.buf = append(w.buf, b.Name...)
		w.buf = binary.AppendUvarint(w.buf, b.Bytes)
	}
	w.pos.add(more...)
}

// metaReader reads it.
type metaReader struct {
	pos  position
	runs []run
}

// read takes a batch's meta apart into runs, whose bytes are part of it. blocks is how many blocks the batch
// has.
func (m *metaReader) read(meta []byte, blocks int) error {
	m.runs = m.runs[:0]
	in := reader{p: meta}
	used, total, at, odd := 0, 0, m.pos.cur, false
	for len(in.p) > 0 && !in.bad {
		head := in.uvarint()
		elem, arg := int(head&(1<<elemBits-1)), head>>elemBits
		switch elem {
		case elemBytes:
			if arg == 0 || arg > uint64(len(in.p)) {
				return fmt.Errorf("malformed meta: %d bytes", arg)
			}
			m.runs = append(m.runs, run{kind: page.Bytes, bytes: in.bytes(int(arg), nil)})
		case elemPages, elemZeros, elemFilled:
			if arg >= maxPages || total+int(arg) >= maxPages || elem == elemPages && int(arg) >= blocks-used {
				return fmt.Errorf("malformed meta: %d pages too many", arg)
			}
			r := run{kind: page.Zero, block: at, pages: int(arg) + 1, first: used, follows: (at == m.pos.cur) != odd}
			switch elem {
			case elemPages:
				r.kind = page.Page
				used += r.pages
			case elemFilled:
				r.fill = in.bytes(1, zeroNumber[:])[0]
			}
			total += r.pages
			var ok bool
			if r.page, ok = m.pos.take(at, r.pages); !ok {
				return fmt.Errorf("malformed meta: pages outside of RAM block %d", at)
			}
			odd = false
			m.runs = append(m.runs, r)
		case elemSeek:
			off := in.varint()
			if arg >= uint64(len(m.pos.blocks)) || off < -maxRAMBytes || off > maxRAMBytes {
				return fmt.Errorf("malformed meta: RAM block %d of %d", arg, len(m.pos.blocks))
			}
			at = int(arg)
			m.pos.next[at] += off
		case elemOdd:
			odd = true
		case elemBlocks:
			if err := m.announced(&in, arg); err != nil {
				return err
			}
		default:
			return fmt.Errorf("malformed meta: element %d", elem)
		}
	}
	if in.bad || used != blocks {
		return fmt.Errorf("malformed meta: %d pages for %d blocks", used, blocks)
	}
	return nil
}

// take moves the current place over n pages of a RAM block and returns the first.
func (p *position) take(block, n int) (int64, bool) {
	if block < 0 {
		return 0, false
	}
	first := p.next[block]
	if first < 0 || first+int64(n) > pagesOf(p.blocks[block]) {
		return 0, false
	}
	p.cur, p.next[block] = block, first+int64(n)
	return first, true
}

// announced reads RAM blocks.
func (m *metaReader) announced(in *reader, n uint64) error {
	if n == 0 || n > uint64(maxRAMBlocks-len(m.pos.blocks)) {
		return fmt.Errorf("malformed meta: %d RAM blocks", n)
	}
	for range n {
		name := string(in.bytes(in.count(maxRAMName), nil))
		bytes := in.uvarint()
		if in.bad || bytes > maxRAMBytes {
			return fmt.Errorf("malformed meta: RAM block of %d bytes", bytes)
		}
		m.pos.add(page.Block{Name: name, Bytes: bytes})
	}
	return nil
}
