package reduce

import (
	"bytes"
	"errors"

	"github.com/drover-vm/drover/wan/chunk"
	"github.com/drover-vm/drover/wan/page"
)

// outputBytes is how much a decoder gives away at a time: a few writes to
// QEMU's socket for each batch.
const outputBytes = 256 << 10

// MemoryDecoderOptions say what a MemoryDecoder has to work with.
type MemoryDecoderOptions struct {
	// Resolver reads the sources that this end has advertised, and the session's disks; nil: none.
	Resolver Resolver
	// Mirror is this end's; nil: none, and everything that builds on it is missed.
	Mirror Mirror
	// MirrorBlocks is how many blocks the mirror has.
	MirrorBlocks int64
}

// MemoryDecoder turns the batches of a MemoryEncoder into the stream again, bit for bit. For each
// batch: Open, with fills for its miss until it is complete, then Emit. Not for concurrent use.
type MemoryDecoder struct {
	u       *Unpacker
	meta    metaReader
	sources Resolver
	mirror  Mirror
	limit   int64
	places  []int64 // of the batch's blocks
	out     []byte
}

// NewMemoryDecoder returns a decoder at the beginning of a stream.
func NewMemoryDecoder(o MemoryDecoderOptions) *MemoryDecoder {
	return &MemoryDecoder{
		u: NewUnpacker(), meta: metaReader{pos: newPosition()},
		sources: o.Resolver, mirror: o.Mirror, limit: o.MirrorBlocks,
	}
}

// Close frees the decoder's memory.
func (d *MemoryDecoder) Close() { d.u.Close() }

// Open begins a batch. It returns a miss to be sent to the sender when blocks are not here as the
// sender thought. Errors are those of Unpacker.Open.
func (d *MemoryDecoder) Open(batch []byte) (miss []byte, err error) {
	if err := d.u.Open(batch); err != nil {
		return nil, err
	}
	if err := d.meta.read(d.u.Meta(), d.u.Blocks()); err != nil {
		return nil, corrupt("batch %d: %w", d.u.Seq(), err)
	}
	d.places = d.places[:0]
	for _, r := range d.meta.runs {
		if r.kind != page.Page {
			continue
		}
		place := d.meta.pos.place(r.block, r.page)
		for i := range r.pages {
			d.places = append(d.places, place+int64(i))
		}
	}
	return d.u.Resolve((*memoryResolver)(d), (*memoryResolver)(d))
}

// Fill takes a fill; see Unpacker.Fill.
func (d *MemoryDecoder) Fill(fill []byte) (done bool, miss []byte, err error) { return d.u.Fill(fill) }

// Seq returns the number of the open batch.
func (d *MemoryDecoder) Seq() uint64 { return d.u.Seq() }

// Depends reports whether the batch has blocks that the sender keeps until it hears that the
// batch is complete.
func (d *MemoryDecoder) Depends() bool { return len(d.u.deps) > 0 }

// Emit gives the stream's bytes that the batch stands for to write, piece by piece, and then notes the pages
// in the mirror. A mirror that fails is not used any more. It returns write's error.
func (d *MemoryDecoder) Emit(write func([]byte) error) error {
	d.out = d.out[:0]
	for i := range d.meta.runs {
		r := &d.meta.runs[i]
		if r.kind == page.Bytes {
			if err := d.put(r.bytes, write); err != nil {
				return err
			}
			continue
		}
		rec := page.Record{Kind: r.kind, Block: r.block, Continue: r.follows, Fill: r.fill}
		for k := range r.pages {
			rec.Addr = uint64(r.page+int64(k)) * page.PageBytes
			d.out = page.AppendHeader(d.out, rec, d.meta.pos.blocks)
			rec.Continue = true
			var content []byte
			if r.kind == page.Page {
				content = d.u.Block(r.first + k)
			}
			if err := d.put(content, write); err != nil {
				return err
			}
		}
	}
	if len(d.out) > 0 {
		if err := write(d.out); err != nil {
			return err
		}
	}
	d.reflect()
	return nil
}

// put appends to the output and writes it out when it is long.
func (d *MemoryDecoder) put(p []byte, write func([]byte) error) error {
	d.out = append(d.out, p...)
	if len(d.out) < outputBytes {
		return nil
	}
	err := write(d.out)
	d.out = d.out[:0]
	return err
}

// reflect notes the batch's pages in the mirror.
func (d *MemoryDecoder) reflect() {
	if d.mirror == nil {
		return
	}
	var err error
	for i := range d.meta.runs {
		r := &d.meta.runs[i]
		if r.kind == page.Bytes {
			continue
		}
		place := d.meta.pos.place(r.block, r.page)
		n := min(int64(r.pages), d.limit-place)
		if n <= 0 {
			continue
		}
		switch {
		case r.kind == page.Page:
			err = errors.Join(err, d.write(place, r.first, int(n)))
		case r.fill == 0:
			err = errors.Join(err, d.mirror.Zero(place, n))
		default:
			filled := bytes.Repeat([]byte{r.fill}, BlockBytes)
			for k := range n {
				err = errors.Join(err, d.mirror.Write(place+k, filled))
			}
		}
	}
	if err != nil {
		// Nothing is built on a page whose write may have failed: what the sender
		// still builds on it is missed, until it notices.
		d.mirror = nil
	}
}

// write notes n pages, the batch's blocks from first on.
func (d *MemoryDecoder) write(place int64, first, n int) error {
	for k := range n {
		var err error
		switch {
		case d.u.IsZero(first + k):
			err = d.mirror.Zero(place+int64(k), 1)
		case !d.u.Same(first + k):
			err = d.mirror.Write(place+int64(k), d.u.Block(first+k))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

var errAbsent = errors.New("not in the mirror")

// memoryResolver reads for the Unpacker.
type memoryResolver MemoryDecoder

func (d *memoryResolver) ReadBlocks(source uint16, block int64, p []byte) error {
	if source != OwnMemory {
		if d.sources == nil {
			return errAbsent
		}
		return d.sources.ReadBlocks(source, block, p)
	}
	for ; len(p) > 0; p = p[BlockBytes:] {
		if err := d.read(block, p[:BlockBytes]); err != nil {
			return err
		}
		block++
	}
	return nil
}

func (d *memoryResolver) ReadOld(i int, p []byte) error { return d.read(d.places[i], p) }

func (d *memoryResolver) read(place int64, p []byte) error {
	if d.mirror == nil || place >= d.limit {
		return errAbsent
	}
	state, err := d.mirror.Read(place, p)
	if err == nil && state == chunk.Absent {
		err = errAbsent
	}
	return err
}
