package reduce

import (
	"encoding/binary"
	"time"

	"github.com/zeebo/blake3"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/wan/chunk"
	"github.com/drover-vm/drover/wan/delta"
)

// When a batch is full: what Packer.Full goes by.
const (
	// batchPayload is two of zstd's blocks of 128 KiB, so that its last one is not a
	// small one with tables of its own; on a link of 100 Mbit/s it takes 7 to 20 ms.
	batchPayload = 256 << 10
	// batchSlack is what the last block and its operation may add.
	batchSlack = BlockBytes + 64
	// batchBlocks bounds how long a batch of references takes to decode: 256 blocks
	// are read and hashed in 1 to 3 ms. They fit a core's cache while they are encoded; the
	// 60 bytes that a batch costs are nothing beside them.
	batchBlocks = 256
)

// PackerOptions say what a Packer knows and how it packs.
type PackerOptions struct {
	// Known is what the receiver has; nil: nothing.
	Known *Known
	// Level is asked before each batch is compressed; nil is LevelDefault.
	Level func() Level
	// Stats is added to; nil: not counted.
	Stats *Stats
}

// Packer encodes blocks into batches. The batches of one Packer are for one Unpacker, which has to get all
// of them in order. Not for concurrent use.
type Packer struct {
	o    PackerOptions
	pool segmentPool
	seq  uint64
	d    *Draft
	free chan *Draft
	refs predictor
	lane Compressor
	old  trust // of the versions at the blocks' places and of OwnMemory
}

// NewPacker returns a Packer with an empty batch.
func NewPacker(o PackerOptions) *Packer {
	if o.Level == nil {
		o.Level = FixedLevel(LevelDefault)
	}
	if o.Stats == nil {
		o.Stats = new(Stats)
	}
	p := &Packer{o: o, free: make(chan *Draft, MaxLanes)}
	p.lane = Compressor{level: o.Level, stats: o.Stats}
	p.d = p.newDraft()
	return p
}

func (p *Packer) newDraft() *Draft {
	d := &Draft{packer: p, content: blockStore{pool: &p.pool}}
	d.hash.Reset()
	return d
}

// Meta appends caller bytes: what the blocks are and where they belong, in
// the caller's own form. The receiver gets the batch's meta as a whole. A batch takes
// MaxMeta of it.
func (p *Packer) Meta(b []byte) { p.d.meta = append(p.d.meta, b...) }

// Opaque appends guest bytes that are no blocks to the meta and counts them as such.
func (p *Packer) Opaque(b []byte) {
	p.d.meta = append(p.d.meta, b...)
	p.count(Opaque, len(b))
	p.d.tally.packed[Opaque] += int64(len(b))
}

// count notes one more of a kind that stands for guestBytes.
func (p *Packer) count(k Kind, guestBytes int) {
	p.d.tally.blocks[k]++
	p.d.tally.guest[k] += int64(guestBytes)
}

// Zero appends n blocks of zeros.
func (p *Packer) Zero(n int) {
	p.d.op(opZero, n)
	p.d.tally.blocks[Zero] += int64(n)
	p.d.tally.guest[Zero] += int64(n) * BlockBytes
}

// CountZero counts a zero block that the caller tells the receiver of by itself, in its meta.
func (p *Packer) CountZero() { p.count(Zero, BlockBytes) }

// Block appends a block of BlockBytes in the best form there is without an older version of it:
// zero, reference, compressed or raw. The content is copied.
func (p *Packer) Block(content []byte) Kind {
	if chunk.IsZero(content) {
		p.Zero(1)
		return Zero
	}
	if k := p.o.Known; k.useful() {
		if ref, ok := k.lookup(chunk.FingerprintOf(content)); ok {
			sum := blake3.Sum256(content)
			p.reference(content, ref, &sum)
			return Reference
		}
	}
	return p.Literal(content)
}

// Literal appends a block by its content, compressed or raw.
func (p *Packer) Literal(content []byte) Kind {
	d := p.d
	d.keep(content)
	if compressible(content) {
		d.op(opLiteral, 1)
		d.literals = append(d.literals, int32(d.content.n-1))
		p.count(Compressed, BlockBytes)
		d.tally.packed[Compressed] += BlockBytes
		return Compressed
	}
	d.op(opRaw, 1)
	d.raws = append(d.raws, int32(d.content.n-1))
	p.count(Raw, BlockBytes)
	return Raw
}

// Reference appends a block that the receiver has as ref. With fresh the caller has
// compared the content and the receiver wrote it in this same session; otherwise
// the receiver checks it against a hash.
func (p *Packer) Reference(content []byte, ref chunk.Ref, fresh bool) {
	if fresh {
		p.reference(content, ref, nil)
		return
	}
	sum := blake3.Sum256(content)
	p.reference(content, ref, &sum)
}

func (p *Packer) reference(content []byte, ref chunk.Ref, sum *[hashBytes]byte) {
	d := p.d
	d.depend(content, sum, ref, true)
	op := opReference
	if sum == nil {
		op |= opFresh
	}
	if d.lastOp == op && d.lastCount > 0 && ref.Source == p.refs.source && p.refs.expects(ref.Source) == int64(ref.Block) {
		d.lastCount++
		d.blocks++
	} else {
		d.op(op, 1)
		d.refArg = binary.AppendUvarint(d.refArg[:0], uint64(ref.Source))
		d.refArg = appendVarint(d.refArg, int64(ref.Block)-p.refs.expects(ref.Source))
	}
	p.refs.used(ref.Source, int64(ref.Block)+1)
	if ref.Source == OwnMemory {
		p.old.made.Add(1)
	}
	p.count(Reference, BlockBytes)
}

// Same appends a block that is equal to the version that both ends have at its place. fresh says that
// both have it from this session; otherwise the receiver checks it against a hash.
func (p *Packer) Same(content []byte, fresh bool) {
	p.depend(content, opSame, fresh)
	p.count(Same, BlockBytes)
}

// Delta appends a block as its difference from before, the version that both ends have at its
// place, and returns false without having done so when that would not be short. fresh is
// as for Same.
func (p *Packer) Delta(content, before []byte, fresh bool) bool {
	d := p.d
	n := len(d.deltas)
	var ok bool
	if d.deltas, ok = delta.Append(d.deltas, before, content); !ok {
		return false
	}
	p.depend(content, opDelta, fresh)
	p.count(Delta, BlockBytes)
	d.tally.packed[Delta] += int64(len(d.deltas) - n)
	return true
}

// TrustsOld reports whether the receiver has had the versions before that Same and Delta build on,
// and OwnMemory: false after too many misses, when a caller does better without.
func (p *Packer) TrustsOld() bool { return !p.old.gone() }

func (p *Packer) depend(content []byte, op int, fresh bool) {
	p.old.made.Add(1)
	if fresh {
		p.d.depend(content, nil, chunk.Ref{}, false)
		p.d.op(op|opFresh, 1)
		return
	}
	sum := blake3.Sum256(content)
	p.d.depend(content, &sum, chunk.Ref{}, false)
	p.d.op(op, 1)
}

// Blocks returns the number of blocks in the batch.
func (p *Packer) Blocks() int { return p.d.blocks }

// Size returns the bytes that the batch carries before compression.
func (p *Packer) Size() int { return p.d.payload() }

// Retains returns the memory that the batch will hold until it is acknowledged; 0 when it
// depends on nothing the receiver could miss.
func (p *Packer) Retains() int64 { return p.d.retains() }

// Empty reports whether nothing has been appended.
func (p *Packer) Empty() bool { return p.d.blocks == 0 && len(p.d.meta) == 0 && p.d.tally == tally{} }

// Full reports whether the batch should be flushed before more is appended.
func (p *Packer) Full() bool {
	return p.d.payload() > batchPayload-batchSlack || p.d.blocks >= batchBlocks
}

// Flush ends the batch, appends its encoding to dst, and begins a new one. The
// Retained is nil when the batch depends on nothing that the receiver could miss; otherwise the
// caller keeps it until the receiver has acknowledged the batch, and calls Release. It returns
// drover.Invalid when more was appended than a batch may hold.
func (p *Packer) Flush(dst []byte) ([]byte, *Retained, error) {
	d := p.Seal()
	dst, err := p.lane.Append(dst, d)
	if err != nil {
		return dst, nil, err
	}
	return dst, d.Done(), nil
}

// Seal ends the batch without compressing it, and begins a new one: for a
// caller that compresses elsewhere, with a Compressor.
func (p *Packer) Seal() *Draft {
	d := p.d
	d.endOp()
	d.seq = p.seq
	p.seq++
	select {
	case p.d = <-p.free:
	default:
		p.d = p.newDraft()
	}
	return d
}

// Compressor turns the drafts of one lane into batches. Drafts of one Packer may go
// over up to MaxLanes Compressors, each used by one goroutine; the batches have to be
// sent in the order in which their drafts were sealed.
type Compressor struct {
	lane  int
	level func() Level
	stats *Stats
	c     compressor
	used  Level // of the last batch
}

// NewCompressor returns the compressor of the given lane, 0 to MaxLanes-1.
func NewCompressor(lane int, level func() Level, stats *Stats) *Compressor {
	return &Compressor{lane: lane, level: level, stats: stats}
}

// Append appends the batch of a draft to dst.
func (c *Compressor) Append(dst []byte, d *Draft) ([]byte, error) {
	const op = "write batch"
	if d.payload() > MaxPayload || d.blocks > MaxBlocks || len(d.meta) > MaxMeta {
		return dst, drover.Errorf(drover.Invalid, op, "%d blocks, %d bytes of meta, %d in all: more than a batch holds",
			d.blocks, len(d.meta), d.payload())
	}
	started := time.Now()
	_, _ = d.hash.Write(d.meta)
	h := header{
		lane: c.lane, seq: d.seq, blocks: d.blocks, raw: len(d.raws), meta: len(d.meta), ops: len(d.ops),
		deltas: len(d.deltas), literals: len(d.literals), check: d.hash.Sum64(),
	}
	if len(d.digests) > 0 {
		h.verify, h.hash = true, blake3.Sum256(d.digests)
	}
	// The head tells the codec, which is known only afterwards; so the section goes
	// behind the longest head and is moved up.
	base := len(dst)
	dst = append(dst, make([]byte, maxHeaderBytes)...)
	var err error
	c.used = c.level()
	dst, h.codec, h.fresh, err = c.c.compress(dst, c.used, d.parts)
	if err != nil {
		return dst[:base], drover.E(drover.Internal, op, err)
	}
	packed := dst[base+maxHeaderBytes:]
	headed := h.append(dst[:base])
	dst = append(headed, packed...)
	compressed := int64(len(dst) - base)
	for _, i := range d.raws {
		dst = append(dst, d.content.at(int(i))...)
	}
	c.stats.CompressNanoseconds.Add(int64(time.Since(started)))
	c.stats.record(&d.tally, int64(len(d.meta)+len(d.ops)+len(d.digests)), compressed, int64(len(d.raws))*BlockBytes)
	return dst, nil
}

// appendVarint appends v with its sign in the lowest bit.
func appendVarint(dst []byte, v int64) []byte {
	return binary.AppendUvarint(dst, uint64(v)<<1^uint64(v>>63))
}

// predictor knows the block that follows the last reference to each source: both ends
// keep one, so that a run of references costs one number.
type predictor struct {
	source uint16 // of the last reference
	next   int64
	others map[uint16]int64
}

func (p *predictor) expects(source uint16) int64 {
	if source == p.source {
		return p.next
	}
	return p.others[source]
}

func (p *predictor) used(source uint16, next int64) {
	if source != p.source {
		if p.others == nil {
			p.others = make(map[uint16]int64)
		}
		p.others[p.source] = p.next
		p.source = source
	}
	p.next = next
}

// last returns where the content of the block appended last is in the draft.
func (p *Packer) last() int32 { return int32(p.d.content.n - 1) }
