// Package delta encodes a block as its difference from an older version of
// it: the XOR of the two as alternating runs of unchanged and changed 8-byte
// words. It is made for memory pages that a guest has written to since they
// were last sent, where a few words of 512 differ; when more than about a third of
// a block has changed the encoder gives up, because a general compressor then does
// better on the new content alone.
//
// The form is
//
//	uvarint  words that are unchanged
//	uvarint  words that are changed, at least 1      } not present once the
//	8 × that the new words XOR the old, little-endian } words so far make up the block
//
// repeated until the words add up to the block. It carries no length of its own
// and ends by itself, so deltas may stand behind one another.
//
// What old version both sides hold, and how deltas travel, is the caller's business.
package delta

import (
	"bytes"
	"encoding/binary"
	"errors"
)

const (
	wordBytes = 8

	// giveUpNumerator and giveUpDenominator bound a delta at a third of its block:
	// beyond it zstd on the new content is as small, and needs no old version.
	giveUpNumerator   = 1
	giveUpDenominator = 3
)

// ErrMalformed says that bytes are not a delta of a block of the given size.
var ErrMalformed = errors.New("malformed delta")

// MaxBytes returns the longest delta that Append makes for a block of
// blockBytes bytes.
func MaxBytes(blockBytes int) int { return blockBytes * giveUpNumerator / giveUpDenominator }

// Append appends the delta that turns before into after to dst. Both have the same
// length, a multiple of 8. It returns false and dst as it was when the delta
// would be longer than MaxBytes. It allocates only to grow dst.
func Append(dst, before, after []byte) ([]byte, bool) {
	if len(before) != len(after) || len(after)%wordBytes != 0 {
		panic("delta: blocks of different or uneven length")
	}
	start, limit := len(dst), len(dst)+MaxBytes(len(after))
	for at := 0; at < len(after); {
		from := at
		at = nextChange(before, after, at)
		dst = binary.AppendUvarint(dst, uint64((at-from)/wordBytes))
		if at == len(after) {
			break
		}
		from = at
		at = nextEqual(before, after, at)
		if len(dst)+at-from > limit {
			return dst[:start], false
		}
		dst = binary.AppendUvarint(dst, uint64((at-from)/wordBytes))
		for ; from < at; from += wordBytes {
			dst = binary.LittleEndian.AppendUint64(dst,
				binary.LittleEndian.Uint64(before[from:])^binary.LittleEndian.Uint64(after[from:]))
		}
	}
	if len(dst) > limit {
		return dst[:start], false
	}
	return dst, true
}

// strideBytes is how much nextChange compares at once where nothing has
// changed.
const strideBytes = 256

// nextChange returns the place of the first word at or after at that differs,
// or the block's length.
func nextChange(before, after []byte, at int) int {
	for at+strideBytes <= len(after) && bytes.Equal(before[at:at+strideBytes], after[at:at+strideBytes]) {
		at += strideBytes
	}
	before = before[:len(after)]
	for ; at+wordBytes <= len(after); at += wordBytes {
		if binary.LittleEndian.Uint64(before[at:]) != binary.LittleEndian.Uint64(after[at:]) {
			return at
		}
	}
	return at
}

// nextEqual returns the place of the first word after at that is the same in
// both, or the block's length.
func nextEqual(before, after []byte, at int) int {
	before = before[:len(after)]
	for ; at+wordBytes <= len(after); at += wordBytes {
		if binary.LittleEndian.Uint64(before[at:]) == binary.LittleEndian.Uint64(after[at:]) {
			return at
		}
	}
	return at
}

// Apply turns block, which holds the version before, into the version after, with the
// delta that src begins with, and returns how many bytes of src the delta has. It
// never writes outside block, whatever src holds. On ErrMalformed the block's
// content is undefined.
func Apply(block, src []byte) (int, error) {
	if len(block)%wordBytes != 0 {
		panic("delta: block of uneven length")
	}
	used, left := 0, uint64(len(block)/wordBytes)
	for left > 0 {
		same, n := binary.Uvarint(src[used:])
		if n <= 0 || same > left {
			return 0, ErrMalformed
		}
		used += n
		left -= same
		if left == 0 {
			break
		}
		changed, n := binary.Uvarint(src[used:])
		if n <= 0 || changed == 0 || changed > left {
			return 0, ErrMalformed
		}
		used += n
		bytesChanged := int(changed) * wordBytes
		if len(src)-used < bytesChanged {
			return 0, ErrMalformed
		}
		at := len(block) - int(left)*wordBytes
		xor(block[at:at+bytesChanged], src[used:used+bytesChanged])
		used += bytesChanged
		left -= changed
	}
	return used, nil
}

// xor changes dst by src, which has the same length, a multiple of 8.
func xor(dst, src []byte) {
	for len(dst) >= wordBytes && len(src) >= wordBytes {
		binary.LittleEndian.PutUint64(dst, binary.LittleEndian.Uint64(dst)^binary.LittleEndian.Uint64(src))
		dst, src = dst[wordBytes:], src[wordBytes:]
	}
}
