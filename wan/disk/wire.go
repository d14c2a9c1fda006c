package disk

import (
	"encoding/binary"
	"fmt"

	"github.com/drover-vm/drover"
)

// Version is the number of the protocol between Source and Target; both ends
// must have the same.
const Version = 1

// The kinds of messages on a disk's channel. Numbers are big-endian.
const (
	// Source to target.

	// kindOpen is the first message: version 1 byte; number of the disk as a
	// source of references 2; limit, the most bytes of batches that are on
	// their way or waiting, 4; the export's name.
	kindOpen uint8 = 1
	// kindBatch is a batch of package reduce whose meta are operations. The
	// first has sequence number 1, each following one more.
	kindBatch uint8 = 2
	// kindFlush: id 8. All batches before it are to be applied and flushed.
	kindFlush uint8 = 3
	// kindRead: id 8; offset 8; length 4, at most readBytes. All batches before
	// it are to be applied first.
	kindRead uint8 = 4
	// kindFill is package reduce's answer to a miss.
	kindFill uint8 = 5

	// Target to source.

	// kindOpened answers kindOpen: size of the export 8; what ranges must be
	// multiples of, a power of two up to 4096, 4.
	kindOpened uint8 = 16
	// kindRefused answers kindOpen: a text.
	kindRefused uint8 = 17
	// kindApplied: sequence number 8. That batch and all before it are in the
	// destination's image as far as reading goes.
	kindApplied uint8 = 18
	// kindFlushed: id 8. That flush and all before it are done.
	kindFlushed uint8 = 19
	// kindData answers kindRead: id 8; errno 4; then the bytes, or a text.
	kindData uint8 = 20
	// kindMiss is package reduce's question for blocks that are not as they
	// were expected. Until it is answered nothing further is applied.
	kindMiss uint8 = 21
	// kindFailed: errno 4; a text. An operation or a flush has failed; nothing
	// further is applied.
	kindFailed uint8 = 22
)

const (
	// readBytes bounds one kindRead, so that its answer fits a message.
	readBytes = 512 << 10
	// maxText bounds the text of an error on the wire.
	maxText = 1024
	// maxName bounds an export's name; NBD's own bound.
	maxName = 4096
)

// opKind is an operation in a batch's meta.
//
// An operation is a byte, its kind in the low 4 bits and flags above, and
// varints: for opBlocks the first block and the count, whose contents are the
// batch's next count blocks; for the others the offset and the length in bytes,
// for opBytes followed by as many bytes.
type opKind byte

const (
	opBlocks opKind = iota
	opBytes
	opZero
	opTrim
	opKinds

	opKindMask opKind = 0x0f
	// opLast ends an operation of the client's: its parts before had none.
	opLast opKind = 0x10
	// opKeepSpace has an opZero keep its space allocated.
	opKeepSpace opKind = 0x20
)

// operation is one parsed.
type operation struct {
	kind     opKind
	last     bool
	keep     bool
	off, len int64
	data     []byte // of opBytes, and of opBlocks once the blocks are there
}

// appendOp appends an operation of the given kind and flags. a and b are block
// and count, or offset and length.
func appendOp(dst []byte, kind opKind, a, b int64) []byte {
	dst = append(dst, byte(kind))
	dst = binary.AppendUvarint(dst, uint64(a))
	return binary.AppendUvarint(dst, uint64(b))
}

// parseOp reads the operation that meta begins with and checks it against the
// export's size.
func parseOp(meta []byte, size int64) (o operation, rest []byte, err error) {
	head := opKind(meta[0])
	o = operation{kind: head & opKindMask, last: head&opLast != 0, keep: head&opKeepSpace != 0}
	rest = meta[1:]
	var v [2]uint64
	for i := range v {
		n := 0
		if v[i], n = binary.Uvarint(rest); n <= 0 {
			return o, nil, corrupt("operation %d is cut short", o.kind)
		}
		rest = rest[n:]
	}
	unit := uint64(1)
	if o.kind == opBlocks {
		unit = blockBytes
	}
	switch {
	case o.kind >= opKinds || head&^(opKindMask|opLast|opKeepSpace) != 0:
		return o, nil, corrupt("operation %#x is unknown", byte(head))
	case v[1] == 0 || v[0] > uint64(size)/unit || v[1] > uint64(size)/unit || (v[0]+v[1])*unit > uint64(size):
		return o, nil, corrupt("operation %d at %d, %d long, is outside of the export of %d bytes", o.kind, v[0], v[1], size)
	}
	o.off, o.len = int64(v[0]*unit), int64(v[1]*unit)
	if o.kind == opBytes {
		if o.len > int64(len(rest)) {
			return o, nil, corrupt("%d bytes are to follow, there are %d", o.len, len(rest))
		}
		o.data, rest = rest[:o.len], rest[o.len:]
	}
	return o, rest, nil
}

func corrupt(format string, args ...any) error {
	return drover.E(drover.Corrupt, "read disk message", fmt.Errorf(format, args...))
}

// numbered begins a message that consists of an id, or begins with one.
func numbered(id uint64) []byte { return binary.BigEndian.AppendUint64(nil, id) }

// parseNumbered splits what numbered made.
func parseNumbered(p []byte) (id uint64, rest []byte, err error) {
	if len(p) < 8 {
		return 0, nil, corrupt("%d bytes where a number of 8 belongs", len(p))
	}
	return binary.BigEndian.Uint64(p), p[8:], nil
}

// failure is an errno and a text as they travel.
func failure(dst []byte, err error) []byte {
	dst = binary.BigEndian.AppendUint32(dst, uint32(errnoOf(err)))
	text := err.Error()
	return append(dst, text[:min(len(text), maxText)]...)
}

// parseFailure makes an error of what failure made.
func parseFailure(p []byte) (error, error) {
	if len(p) < 4 || len(p) > 4+maxText {
		return nil, corrupt("error of %d bytes", len(p))
	}
	return &farError{errno: wireErrno(binary.BigEndian.Uint32(p)), text: string(p[4:])}, nil
}
