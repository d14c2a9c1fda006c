package reduce

import (
	"encoding/binary"
	"fmt"

	"github.com/drover-vm/drover"
)

// The limits of a batch. Both ends keep them; a batch beyond is refused.
const (
	// MaxBlocks bounds the blocks of a batch, and by that what the receiver
	// holds of one: 8 MiB.
	MaxBlocks = 2048
	// MaxPayload bounds what a batch carries before compression, so that it
	// fits a message of 1 MiB even when nothing compresses.
	MaxPayload = 960 << 10
	// MaxMeta bounds a batch's caller bytes.
	MaxMeta = 256 << 10
	// MaxLanes bounds the compressors that share one stream of batches; each costs the receiver a
	// window of 8 MiB.
	MaxLanes = 4
)

const (
	formatVersion = 1
	hashBytes     = 32
	checkBytes    = 8

	flagCodec  = 0x03
	flagFresh  = 0x04
	flagVerify = 0x08
	flagLane   = 0xf0
	laneShift  = 4

	// maxHeaderBytes is version, flags, seven numbers, check and hash.
	maxHeaderBytes = 2 + 7*binary.MaxVarintLen64 + checkBytes + hashBytes
)

// The operations of a batch's blocks.
const (
	opZero = iota
	opLiteral
	opRaw
	opReference
	opSame
	opDelta
	ops
)

const (
	// opBits is what an operation's code takes in its token, below the count.
	opBits = 4
	// opFresh marks what the receiver makes from content of this same session, which is not verified
	// block by block.
	opFresh = 1 << 3
	opMask  = opFresh - 1
)

// header is a batch's head, see the package comment.
type header struct {
	codec    byte
	fresh    bool
	verify   bool
	lane     int
	seq      uint64
	blocks   int
	raw      int // of blocks
	meta     int
	ops      int
	deltas   int
	literals int // blocks
	check    uint64
	hash     [hashBytes]byte
}

// plainBytes returns the length of the packed section before packing.
func (h *header) plainBytes() int {
	return h.meta + h.ops + h.deltas + h.literals*BlockBytes
}

func (h *header) append(dst []byte) []byte {
	flags := h.codec&flagCodec | byte(h.lane)<<laneShift
	if h.fresh {
		flags |= flagFresh
	}
	if h.verify {
		flags |= flagVerify
	}
	dst = append(dst, formatVersion, flags)
	dst = binary.AppendUvarint(dst, h.seq)
	for _, n := range []int{h.blocks, h.raw, h.meta, h.ops, h.deltas, h.literals} {
		dst = binary.AppendUvarint(dst, uint64(n))
	}
	dst = binary.LittleEndian.AppendUint64(dst, h.check)
	if h.verify {
		dst = append(dst, h.hash[:]...)
	}
	return dst
}

// parseHeader reads a batch's head and returns the rest of the batch.
func parseHeader(p []byte) (h header, rest []byte, err error) {
	const op = "read batch"
	if len(p) < 2 {
		return h, nil, drover.Errorf(drover.Corrupt, op, "%d bytes are no batch", len(p))
	}
	if p[0] != formatVersion {
		return h, nil, drover.Errorf(drover.Invalid, op, "version %d, this end reads %d", p[0], formatVersion)
	}
	flags := p[1]
	h.codec, h.fresh, h.verify = flags&flagCodec, flags&flagFresh != 0, flags&flagVerify != 0
	h.lane = int(flags & flagLane >> laneShift)
	r := reader{p: p[2:]}
	h.seq = r.uvarint()
	h.blocks = r.count(MaxBlocks)
	h.raw = r.count(MaxBlocks)
	h.meta = r.count(MaxMeta)
	h.ops = r.count(MaxPayload)
	h.deltas = r.count(MaxPayload)
	h.literals = r.count(MaxBlocks)
	h.check = binary.LittleEndian.Uint64(r.bytes(checkBytes, zeroNumber[:]))
	if h.verify {
		copy(h.hash[:], r.bytes(hashBytes, nil))
	}
	switch {
	case r.bad:
		return h, nil, drover.Errorf(drover.Corrupt, op, "malformed head")
	case h.lane >= MaxLanes:
		return h, nil, drover.Errorf(drover.Corrupt, op, "lane %d, there are %d at most", h.lane, MaxLanes)
	case h.literals+h.raw > h.blocks:
		return h, nil, drover.Errorf(drover.Corrupt, op, "%d contents for %d blocks", h.literals+h.raw, h.blocks)
	case h.plainBytes()+h.raw*BlockBytes > MaxPayload:
		return h, nil, drover.Errorf(drover.Corrupt, op, "%d bytes, a batch has %d at most",
			h.plainBytes()+h.raw*BlockBytes, MaxPayload)
	case len(r.p) < h.raw*BlockBytes:
		return h, nil, drover.Errorf(drover.Corrupt, op, "cut short")
	}
	return h, r.p, nil
}

var zeroNumber [8]byte

// reader takes numbers and bytes off a slice; after the first failure it gives zeros and
// stays bad.
type reader struct {
	p   []byte
	bad bool
}

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.p)
	if n <= 0 {
		r.bad = true
		r.p = nil
		return 0
	}
	r.p = r.p[n:]
	return v
}

// count reads a number that may be limit at most.
func (r *reader) count(limit int) int {
	v := r.uvarint()
	if v > uint64(limit) {
		r.bad = true
		return 0
	}
	return int(v)
}

func (r *reader) varint() int64 {
	v := r.uvarint()
	return int64(v>>1) ^ -int64(v&1)
}

// bytes takes n bytes, or returns otherwise when there are not so many.
func (r *reader) bytes(n int, otherwise []byte) []byte {
	if len(r.p) < n {
		r.bad = true
		return otherwise
	}
	b := r.p[:n]
	r.p = r.p[n:]
	return b
}

// corrupt makes the error for a batch that is not as the format says.
func corrupt(format string, args ...any) error {
	return drover.E(drover.Corrupt, "read batch", fmt.Errorf(format, args...))
}
