package chunk

import (
	"bytes"
	"encoding/binary"

	"github.com/zeebo/blake3"
)

// BlockBytes is the size of a block: the page size of x86 guests and the
// smallest unit in which disks are written, so that a page of a guest's cache
// is a block of its disk.
const BlockBytes = 4096

// Fingerprint names the content of a block: the first 8 bytes, read as a
// little-endian number, of the BLAKE3-256 of its 4096 bytes. 0 stands for a
// block of zeros or one that is absent; content whose hash would come out as 0
// has 1 instead. Equal fingerprints make equal content likely, not certain.
type Fingerprint uint64

// zeroBlock is compared with, never written.
var zeroBlock [BlockBytes]byte

// FingerprintOf returns the fingerprint of a block of BlockBytes. It allocates
// nothing.
func FingerprintOf(block []byte) Fingerprint {
	if IsZero(block) {
		return 0
	}
	sum := blake3.Sum256(block)
	return FingerprintOfSum(sum[:])
}

// FingerprintOfSum returns the fingerprint of a block that is not zero from
// its BLAKE3-256, for callers that need both and hash once.
func FingerprintOfSum(sum []byte) Fingerprint {
	fp := Fingerprint(binary.LittleEndian.Uint64(sum))
	if fp == 0 {
		return 1
	}
	return fp
}

// IsZero reports whether p, of at most BlockBytes, holds only zeros.
func IsZero(p []byte) bool {
	// bytes.Equal compares 32 bytes or more an instruction and stops at the
	// first that differ.
	return bytes.Equal(p, zeroBlock[:len(p)])
}
