package reduce

import (
	"bytes"
	"errors"

	"github.com/zeebo/xxh3"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/wan/chunk"
	"github.com/drover-vm/drover/wan/page"
)

// Mirror keeps the guest's memory as it has crossed, alike at both ends. *chunk.Memory is one.
type Mirror interface {
	// Read reads one block; an absent one leaves p alone.
	Read(block int64, p []byte) (chunk.State, error)
	// Write notes that a block now holds p.
	Write(block int64, p []byte) error
	// Zero notes that n blocks from block on are zero.
	Zero(block, n int64) error
	// Recall reads a block like Read, also after a write has failed, as it was before that. It is called beside the
	// other methods, by another goroutine.
	Recall(block int64, p []byte) error
}

const (
	// batchPages bounds the pages of a batch, zero pages included, which cost one
	// record of 9 bytes each.
	batchPages = 16 * batchBlocks
	// urgentPayload replaces batchPayload when the guest is paused: 64 KiB are compressed
	// and on their way in about 1 ms.
	urgentPayload = 64 << 10
	// MaxOpaque is how much of the stream's other bytes goes into one batch, and the most
	// that one Bytes record may hold.
	MaxOpaque = 128 << 10
	// maxOwn bounds the table of the guest's own pages: 2^20 entries of 8 bytes, for 4 GiB of
	// pages that are not zero; later pages replace earlier ones.
	maxOwn = 1 << 20
)

// MemoryEncoderOptions say what a MemoryEncoder has to work with.
type MemoryEncoderOptions struct {
	// Known is what the destination has; nil: nothing.
	Known *Known
	// Mirror is this end's, used only if the destination has one too; nil: none, which
	// leaves out same, delta and references to the guest's own memory.
	Mirror Mirror
	// MirrorBlocks is how many blocks the mirror has. Pages behind go unmirrored.
	MirrorBlocks int64
	// Level is asked before each batch is compressed; nil is LevelDefault.
	Level func() Level
	// Stats is added to; nil: not counted.
	Stats *Stats
}

// MemoryEncoder turns the records of one memory stream into batches for a MemoryDecoder. Not for
// concurrent use.
type MemoryEncoder struct {
	p       *Packer
	meta    metaWriter
	mirror  Mirror
	limit   int64 // blocks of the mirror
	own     ownIndex
	opaque  int
	records int
	deps    int  // blocks of the batch that may be missed, before the page that is added
	beyond  bool // one of them is not in the mirror
	urgent  bool
	// What the mirror will be told at the batch's end: until then it is the state that
	// the batch was encoded against, at both ends.
	places  []placed
	pending bitset
	old     [BlockBytes]byte
}

// placed is a page of the batch for the mirror.
type placed struct {
	place int64
	at    int32 // in the draft's content, or one of the following
	fill  byte
}

const (
	zeroed    = -1
	filled    = -2
	unchanged = -3
)

// NewMemoryEncoder returns an encoder at the beginning of a stream.
func NewMemoryEncoder(o MemoryEncoderOptions) *MemoryEncoder {
	e := &MemoryEncoder{
		p:      NewPacker(PackerOptions{Known: o.Known, Level: o.Level, Stats: o.Stats}),
		meta:   metaWriter{pos: newPosition()},
		mirror: o.Mirror, limit: o.MirrorBlocks,
	}
	if e.mirror != nil {
		e.own = newOwnIndex(min(o.MirrorBlocks, maxOwn))
	}
	return e
}

// Urgent says that the guest is paused: batches are small from now on.
func (e *MemoryEncoder) Urgent() { e.urgent = true }

// Announce tells the destination of RAM blocks, the stream's whole list so far. It comes before the
// first page of each block.
func (e *MemoryEncoder) Announce(blocks []page.Block) { e.meta.announce(blocks) }

// Fits reports whether rec may go into the batch as it is; if not, the batch has to be ended first. A batch
// has no page twice, because the mirrors show what was before the batch. An empty batch takes every record.
func (e *MemoryEncoder) Fits(rec page.Record) bool {
	if e.Empty() {
		return true
	}
	if e.urgent && e.p.Size()+len(e.meta.buf) >= urgentPayload {
		return false
	}
	if e.p.Full() || e.p.Size()+len(e.meta.buf) >= batchPayload || e.records >= batchPages {
		return false
	}
	if rec.Kind == page.Bytes {
		return e.opaque+len(rec.Data) <= MaxOpaque
	}
	return rec.Block >= len(e.meta.pos.blocks) || !e.pending.has(e.meta.pos.place(rec.Block, int64(rec.Addr/page.PageBytes)))
}

// Empty reports whether the batch has nothing in it.
func (e *MemoryEncoder) Empty() bool {
	return e.p.Blocks() == 0 && e.records == 0 && e.opaque == 0 && len(e.meta.buf) == 0
}

// Retains returns what the batch will hold until it is acknowledged, in bytes.
func (e *MemoryEncoder) Retains() int64 { return e.p.Retains() }

// Encode adds a record to the batch. Fits has said that it may. It returns drover.Invalid for a page of
// no announced block or outside of it, and for Bytes longer than MaxOpaque, which callers split.
func (e *MemoryEncoder) Encode(rec page.Record) error {
	if rec.Kind == page.Bytes {
		return e.bytes(rec.Data)
	}
	if rec.Block < 0 || rec.Block >= len(e.meta.pos.blocks) || rec.Addr%page.PageBytes != 0 ||
		int64(rec.Addr/page.PageBytes) >= pagesOf(e.meta.pos.blocks[rec.Block]) {
		return drover.Errorf(drover.Invalid, "encode page", "RAM block %d, address %#x: not announced", rec.Block, rec.Addr)
	}
	e.records++
	e.meta.page(rec)
	place := e.meta.pos.place(rec.Block, int64(rec.Addr/page.PageBytes))
	e.pending.add(place)
	if rec.Kind == page.Zero {
		at := int32(zeroed)
		if rec.Fill != 0 {
			at = filled
		}
		e.places = append(e.places, placed{place: place, at: at, fill: rec.Fill})
		e.p.CountZero()
		return nil
	}
	e.page(place, rec.Data)
	return nil
}

// bytes adds what is not a page.
func (e *MemoryEncoder) bytes(b []byte) error {
	if len(b) > MaxOpaque {
		return drover.Errorf(drover.Invalid, "encode bytes", "%d bytes at once", len(b))
	}
	e.meta.end()
	e.meta.element(elemBytes, uint64(len(b)))
	e.p.Meta(e.meta.buf)
	e.meta.buf = e.meta.buf[:0]
	e.p.Opaque(b)
	e.opaque += len(b)
	return nil
}

// page adds a page in the shortest form that there is.
func (e *MemoryEncoder) page(place int64, content []byte) {
	if chunk.IsZero(content) {
		e.p.Zero(1)
		e.places = append(e.places, placed{place: place, at: zeroed})
		return
	}
	e.deps = len(e.p.d.deps)
	defer e.locate(place)
	mirrored := e.mirror != nil && place < e.limit
	if mirrored && e.before(place, content) {
		return
	}
	if e.mirror == nil || !e.duplicate(place, content, mirrored) {
		e.p.Block(content)
	}
	e.places = append(e.places, placed{place: place, at: e.p.last()})
}

// locate notes where the mirror will have the block that was added, if the destination may miss it.
func (e *MemoryEncoder) locate(place int64) {
	if deps := e.p.d.deps; len(deps) > e.deps {
		deps[e.deps].place = place
		e.beyond = e.beyond || place >= e.limit
	}
}

// before tries the version at the page's place.
func (e *MemoryEncoder) before(place int64, content []byte) bool {
	state, err := e.mirror.Read(place, e.old[:])
	if err != nil || state == chunk.Absent {
		// A page that cannot be read is sent; if the mirror is broken its Write says so.
		return false
	}
	fresh := state == chunk.Fresh
	if bytes.Equal(content, e.old[:]) {
		e.p.Same(content, fresh)
		e.places = append(e.places, placed{place: place, at: unchanged})
		return true
	}
	if !e.p.Delta(content, e.old[:], fresh) {
		return false
	}
	e.places = append(e.places, placed{place: place, at: e.p.last()})
	return true
}

// duplicate tries a page of the guest that crossed before with this content.
func (e *MemoryEncoder) duplicate(place int64, content []byte, mirrored bool) bool {
	hash := xxh3.Hash(content)
	other, ok := e.own.find(hash)
	if ok {
		if e.pending.has(other) {
			// It is in this same batch; the compressor sees the likeness.
			return false
		}
		state, err := e.mirror.Read(other, e.old[:])
		if err == nil && state != chunk.Absent && bytes.Equal(content, e.old[:]) {
			e.p.Reference(content, chunk.Ref{Source: OwnMemory, Block: uint32(other)}, state == chunk.Fresh)
			return true
		}
	}
	if mirrored {
		e.own.add(hash, place)
	}
	return false
}

// Seal ends the batch, for a Compressor, and tells the mirror of it.
func (e *MemoryEncoder) Seal() *Draft {
	e.meta.end()
	e.p.Meta(e.meta.buf)
	e.meta.buf = e.meta.buf[:0]
	d := e.p.Seal()
	err := e.reflect(d)
	if err == nil && !e.beyond {
		d.mirror = e.mirror
	}
	if err != nil || !e.p.TrustsOld() {
		// Never build on a page whose write may have failed, here or there.
		e.mirror = nil
	}
	e.places, e.records, e.opaque, e.beyond = e.places[:0], 0, 0, false
	return d
}

// reflect writes a batch's pages to the mirror.
func (e *MemoryEncoder) reflect(d *Draft) error {
	for _, p := range e.places {
		e.pending.remove(p.place)
	}
	if e.mirror == nil {
		return nil
	}
	var errs error
	for _, p := range e.places {
		if p.place >= e.limit {
			continue
		}
		var err error
		switch p.at {
		default:
			err = e.mirror.Write(p.place, d.content.at(int(p.at)))
		case unchanged:
		case zeroed:
			err = e.mirror.Zero(p.place, 1)
		case filled:
			err = e.mirror.Write(p.place, bytes.Repeat([]byte{p.fill}, BlockBytes))
		}
		errs = errors.Join(errs, err)
	}
	return errs
}

// Flush ends the batch and appends it to dst; see Packer.Flush.
func (e *MemoryEncoder) Flush(dst []byte) ([]byte, *Retained, error) {
	d := e.Seal()
	dst, err := e.p.lane.Append(dst, d)
	if err != nil {
		return dst, nil, err
	}
	return dst, d.Done(), nil
}

// bitset is a growing set of places.
type bitset []uint64

func (b *bitset) add(i int64) {
	w := int(i / 64)
	if w >= len(*b) {
		*b = append(*b, make([]uint64, max(w+1-len(*b), len(*b)))...)
	}
	(*b)[w] |= 1 << (i % 64)
}

func (b bitset) has(i int64) bool { w := int(i / 64); return w < len(b) && b[w]&(1<<(i%64)) != 0 }

func (b bitset) remove(i int64) { b[i/64] &^= 1 << (i % 64) }

// ownIndex finds pages of the guest by the xxh3 of their content. What it says is a guess: the mirror tells. It is a
// table of fixed size with two places for each entry.
type ownIndex struct {
	tags   []uint32
	places []uint32
	shift  int
}

// newOwnIndex returns an index for about n pages.
func newOwnIndex(n int64) ownIndex {
	bits := 4
	for int64(1)<<bits < n && bits < 62 {
		bits++
	}
	return ownIndex{tags: make([]uint32, 1<<bits), places: make([]uint32, 1<<bits), shift: 64 - bits}
}

// slots returns where an entry may be, and its tag, never 0.
func (x *ownIndex) slots(hash uint64) (a, b int, tag uint32) {
	a = int(hash >> x.shift)
	return a, a ^ 1, uint32(hash) | 1
}

func (x *ownIndex) find(hash uint64) (int64, bool) {
	a, b, tag := x.slots(hash)
	switch tag {
	case x.tags[a]:
		return int64(x.places[a]), true
	case x.tags[b]:
		return int64(x.places[b]), true
	}
	return 0, false
}

func (x *ownIndex) add(hash uint64, place int64) {
	a, b, tag := x.slots(hash)
	at := a
	if x.tags[a] != tag && x.tags[a] != 0 && (x.tags[b] == 0 || x.tags[b] == tag) {
		at = b
	}
	x.tags[at], x.places[at] = tag, uint32(place)
}
