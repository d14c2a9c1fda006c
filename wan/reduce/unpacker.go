package reduce

import (
	"encoding/binary"
	"errors"

	"github.com/klauspost/compress/s2"
	"github.com/zeebo/blake3"
	"github.com/zeebo/xxh3"

	"github.com/drover-vm/drover/wan/chunk"
	"github.com/drover-vm/drover/wan/delta"
)

// Resolver gives the receiver content by reference.
type Resolver interface {
	// ReadBlocks fills p, whose length is a multiple of BlockBytes, with the
	// blocks of the source from block on. After an error the blocks are asked for
	// from the sender.
	ReadBlocks(source uint16, block int64, p []byte) error
}

// Old gives the receiver the versions before of the blocks of the batch that
// is open.
type Old interface {
	// ReadOld fills p with the version before of the batch's i-th block, as it was when the batch before was
	// finished. After an error the block is asked for from the sender.
	ReadOld(i int, p []byte) error
}

// Unpacker decodes the batches of one Packer, in order. For each batch: Open, then Resolve; when that
// returns a Miss, send it, and give every fill that comes to Fill until it reports that the
// batch is complete; then use the content. Not for concurrent use.
//
// After an error the Unpacker is of no more use, save that errors of drover.Corrupt from Fill and Open
// say that the stream of batches cannot go on.
type Unpacker struct {
	pool    segmentPool
	lanes   [MaxLanes]*decompressor
	next    uint64
	refs    predictor
	hash    xxh3.Hasher
	head    header
	meta    []byte
	ops     []byte
	deltas  []byte
	content blockStore
	slots   []slot
	deps    []want
	digests []byte
	named   []int
	asked   int
}

// slot is one block of the batch.
type slot struct {
	at  int32 // place in content, -1 for zeros
	dep int32 // which of deps, -1 for none
}

// want is a block to be made from what is stored.
type want struct {
	block  int32 // of the batch
	at     int32 // place in content
	op     uint8
	fresh  bool // not verified by the batch's hash
	bad    bool // could not be read or made
	filled bool // by the sender
	ref    chunk.Ref
	summed bool // digest is of the content as it is
	digest [hashBytes]byte
}

// NewUnpacker returns an Unpacker for the batches of a new Packer.
func NewUnpacker() *Unpacker {
	u := new(Unpacker)
	u.content.pool = &u.pool
	return u
}

// Close frees the Unpacker's memory.
func (u *Unpacker) Close() {
	for _, l := range u.lanes {
		if l != nil {
			l.close()
		}
	}
	u.content.drop()
}

// Open begins a batch. batch may be changed after it returns. Errors: drover.Corrupt when
// it is not the next batch of the stream or malformed, drover.Invalid when it is of a version unknown here.
func (u *Unpacker) Open(batch []byte) error {
	h, rest, err := parseHeader(batch)
	if err != nil {
		return err
	}
	if h.seq != u.next {
		return corrupt("batch %d, want %d", h.seq, u.next)
	}
	u.next++
	u.reset(h)
	lane := u.lanes[h.lane]
	if lane == nil {
		lane = new(decompressor)
		u.lanes[h.lane] = lane
	}
	raw := rest[len(rest)-h.raw*BlockBytes:]
	if err := lane.begin(rest[:len(rest)-len(raw)], h.codec, h.fresh, h.plainBytes()); err != nil {
		return corrupt("batch %d: %w", h.seq, err)
	}
	u.meta, u.ops, u.deltas = sized(u.meta, h.meta), sized(u.ops, h.ops), sized(u.deltas, h.deltas)
	for _, p := range [][]byte{u.meta, u.ops, u.deltas} {
		if err := lane.read(p); err != nil {
			return corrupt("batch %d: %w", h.seq, err)
		}
	}
	if err := u.place(lane, raw); err != nil {
		return corrupt("batch %d: %w", h.seq, err)
	}
	if err := lane.end(); err != nil {
		return corrupt("batch %d: %w", h.seq, err)
	}
	return nil
}

func (u *Unpacker) reset(h header) {
	u.head = h
	u.content.n = 0
	u.slots, u.deps, u.named = u.slots[:0], u.deps[:0], u.named[:0]
	u.asked = 0
}

// sized returns p with length n and undefined content.
func sized(p []byte, n int) []byte {
	if cap(p) < n {
		return make([]byte, n)
	}
	return p[:n]
}

// place reads the operations: gives each block its place, and fills in the literal and raw ones.
func (u *Unpacker) place(lane *decompressor, raw []byte) error {
	in := reader{p: u.ops}
	literals, left := u.head.literals, u.head.blocks
	for left > 0 {
		token := in.uvarint()
		op, fresh, more := token&opMask, token&opFresh != 0, token>>opBits
		if in.bad || op >= ops || fresh && op < opReference || more >= uint64(left) {
			return errors.New("malformed operations")
		}
		n := int(more) + 1
		left -= n
		var ref chunk.Ref
		if op == opReference {
			var ok bool
			if ref, ok = u.readRef(&in, n); !ok {
				return errors.New("malformed reference")
			}
		}
		switch op {
		case opZero:
			for range n {
				u.slots = append(u.slots, slot{-1, -1})
			}
			continue
		case opLiteral:
			if literals -= n; literals < 0 {
				return errors.New("more literal blocks than said")
			}
		case opRaw:
			if len(raw) < n*BlockBytes {
				return errors.New("more raw blocks than said")
			}
		}
		first := u.content.n
		for i := range n {
			b := u.content.add()
			u.slots = append(u.slots, slot{int32(u.content.n - 1), -1})
			switch op {
			case opRaw:
				raw = raw[copy(b, raw):]
			case opReference, opSame, opDelta:
				u.slots[len(u.slots)-1].dep = int32(len(u.deps))
				u.deps = append(u.deps, want{
					block: int32(len(u.slots) - 1), at: int32(u.content.n - 1), op: uint8(op), fresh: fresh,
					ref: chunk.Ref{Source: ref.Source, Block: ref.Block + uint32(i)},
				})
			}
		}
		if op == opLiteral {
			for n > 0 {
				run := u.content.run(first, n)
				if err := lane.read(run); err != nil {
					return err
				}
				first, n = first+len(run)/BlockBytes, n-len(run)/BlockBytes
			}
		}
	}
	if literals != 0 || len(raw) != 0 || len(in.p) != 0 {
		return errors.New("fewer blocks than said")
	}
	return nil
}

// readRef reads where a run of n references points.
func (u *Unpacker) readRef(in *reader, n int) (chunk.Ref, bool) {
	source := in.uvarint()
	if source > 1<<16-1 {
		return chunk.Ref{}, false
	}
	off := in.varint()
	block := u.refs.expects(uint16(source)) + off
	if in.bad || block < 0 || block+int64(n) > chunk.MaxBlocks {
		return chunk.Ref{}, false
	}
	u.refs.used(uint16(source), block+int64(n))
	return chunk.Ref{Source: uint16(source), Block: uint32(block)}, true
}

// Resolve makes the blocks that come from storage. It returns a miss to be sent to
// the sender when some are not what they should be, or nil. old may be nil when the batch has no block that needs
// it; one that does is missed then.
func (u *Unpacker) Resolve(r Resolver, old Old) (miss []byte, err error) {
	left := u.deltas
	for i := 0; i < len(u.deps); {
		w := &u.deps[i]
		if w.op == opReference {
			i += u.readRun(r, i)
			continue
		}
		b := u.content.at(int(w.at))
		w.bad = old == nil || old.ReadOld(int(w.block), b) != nil
		if w.op == opDelta {
			if w.bad {
				clear(b) // the delta's length is needed in any case
			}
			n, err := delta.Apply(b, left)
			if err != nil {
				return nil, corrupt("batch %d: %w", u.head.seq, err)
			}
			left = left[n:]
		}
		i++
	}
	if len(left) > 0 {
		return nil, corrupt("batch %d: %d bytes of deltas too many", u.head.seq, len(left))
	}
	if u.verify() {
		return nil, nil
	}
	if u.asked = 1; len(u.deps) == 0 {
		return nil, corrupt("batch %d has other content than was sent", u.head.seq)
	}
	return u.miss(), nil
}

// verify reports whether the batch is what was sent.
func (u *Unpacker) verify() bool {
	bad := false
	u.digests = u.digests[:0]
	for i := range u.deps {
		w := &u.deps[i]
		bad = bad || w.bad
		if !w.fresh && !w.bad {
			if !w.summed {
				w.digest, w.summed = blake3.Sum256(u.content.at(int(w.at))), true
			}
			u.digests = append(u.digests, w.digest[:]...)
		}
	}
	if bad || u.head.verify && blake3.Sum256(u.digests) != u.head.hash || !u.head.verify && len(u.digests) > 0 {
		return false
	}
	u.hash.Reset()
	for i := 0; i < u.content.n; {
		run := u.content.run(i, u.content.n-i)
		_, _ = u.hash.Write(run)
		i += len(run) / BlockBytes
	}
	_, _ = u.hash.Write(u.meta)
	return u.hash.Sum64() == u.head.check
}

// miss makes the message that asks for the blocks that are missing or wrong.
func (u *Unpacker) miss() []byte {
	p := append(binary.AppendUvarint(nil, u.head.seq), 0)
	named := 0
	for _, w := range u.deps {
		if w.bad {
			named++
		}
	}
	p = binary.AppendUvarint(p, uint64(named))
	before := -1
	for i, w := range u.deps {
		if w.bad {
			p = binary.AppendUvarint(p, uint64(i-before-1))
			before = i
		}
	}
	for _, w := range u.deps {
		if !w.bad && !w.fresh {
			p = append(p, w.digest[:8]...)
		}
	}
	return p
}

// Fill takes a fill that the sender has sent for the batch's miss. It reports whether the batch is complete
// now; another miss, when the fill was complete and the batch still is not what was sent, is to be sent as
// the first. drover.Corrupt: the fill is malformed or not for this batch, or everything was filled and
// the content is wrong all the same.
func (u *Unpacker) Fill(fill []byte) (done bool, miss []byte, err error) {
	in := reader{p: fill}
	seq, last, n := in.uvarint(), in.uvarint(), in.count(fillBlocks)
	if in.bad || n == 0 || seq != u.head.seq || u.asked == 0 {
		return false, nil, corrupt("a fill that is not for batch %d", u.head.seq)
	}
	blocks := u.named[:0]
	at := -1
	for range n {
		at += 1 + in.count(len(u.deps))
		if in.bad || at >= len(u.deps) {
			return false, nil, corrupt("malformed fill of batch %d", seq)
		}
		blocks = append(blocks, at)
	}
	u.named = blocks
	if size, err := s2.DecodedLen(in.p); err != nil || size != n*BlockBytes {
		return false, nil, corrupt("fill of batch %d: %d bytes for %d blocks: %w", seq, size, n, err)
	}
	plain, err := s2.Decode(nil, in.p)
	if err != nil {
		return false, nil, corrupt("fill of batch %d: %w", seq, err)
	}
	for i, dep := range blocks {
		w := &u.deps[dep]
		copy(u.content.at(int(w.at)), plain[i*BlockBytes:])
		w.bad, w.summed, w.filled = false, false, true
	}
	if last == 0 {
		return false, nil, nil
	}
	if u.verify() {
		u.asked = 0
		return true, nil, nil
	}
	if u.asked++; u.asked > 2 {
		return false, nil, corrupt("batch %d has other content than was sent, filled twice", seq)
	}
	return false, append(binary.AppendUvarint(nil, u.head.seq), 1), nil
}

// Seq returns the number of the open batch.
func (u *Unpacker) Seq() uint64 { return u.head.seq }

// Meta returns the caller bytes of the open batch, valid until the next Open. The
// batch's check covers them, so they are sound once it is complete.
func (u *Unpacker) Meta() []byte { return u.meta }

// Blocks returns the number of blocks of the open batch.
func (u *Unpacker) Blocks() int { return len(u.slots) }

// IsZero reports whether the i-th block is one of zeros.
func (u *Unpacker) IsZero(i int) bool { return u.slots[i].at < 0 }

// Block returns the i-th block, valid until the next Open. It must not be changed.
func (u *Unpacker) Block(i int) []byte {
	if at := u.slots[i].at; at >= 0 {
		return u.content.at(int(at))
	}
	return zeroBlock[:]
}

var zeroBlock [BlockBytes]byte

// Run returns the content of the blocks from the i-th on, n at most and at least one, as far
// as they lie together: a caller that writes consecutive blocks writes them at once. Blocks of zeros
// are runs of their own.
func (u *Unpacker) Run(i, n int) []byte {
	first := u.slots[i].at
	if first < 0 {
		return zeroBlock[:]
	}
	k := 1
	for k < n && i+k < len(u.slots) && u.slots[i+k].at == first+int32(k) {
		k++
	}
	return u.content.run(int(first), k)
}

// Same reports whether the i-th block is equal to the version before at its place, here too.
func (u *Unpacker) Same(i int) bool {
	dep := u.slots[i].dep
	return dep >= 0 && u.deps[dep].op == opSame && !u.deps[dep].filled
}

// readRun reads the references from the i-th dependent block on that follow each other in their source and in
// memory, and returns how many.
func (u *Unpacker) readRun(r Resolver, i int) int {
	first := u.deps[i]
	n := 1
	for i+n < len(u.deps) {
		w := u.deps[i+n]
		if w.op != opReference || w.ref.Source != first.ref.Source || w.at != first.at+int32(n) ||
			w.ref.Block != first.ref.Block+uint32(n) {
			break
		}
		n++
	}
	p := u.content.run(int(first.at), n)
	n = len(p) / BlockBytes
	if r != nil && r.ReadBlocks(first.ref.Source, int64(first.ref.Block), p) == nil {
		return n
	}
	// One unreadable block shall not cost the others.
	for k := range n {
		w := &u.deps[i+k]
		w.bad = r == nil || n == 1 || r.ReadBlocks(w.ref.Source, int64(w.ref.Block), p[k*BlockBytes:(k+1)*BlockBytes]) != nil
	}
	return n
}
