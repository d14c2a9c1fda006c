package chunk

import (
	"bytes"

	"github.com/zeebo/xxh3"
)

// BlockBytes is the size of a block: the page size of x86 guests and the
// smallest unit in which disks are written, so that a page of a guest's cache
// is a block of its disk.
const BlockBytes = 4096

// Fingerprint names the content of a block: the unseeded XXH3-64 of its 4096
// bytes. 0 stands for a block of zeros or one that is absent; content whose
// hash comes out as 0 has 1 instead. Equal fingerprints make equal content
// likely, and whoever wants to can make them without it: every use is verified
// by a strong hash, which then is needed only for what was found. XXH3 is some
// twenty times faster, and most blocks of a disk without an image are not found.
type Fingerprint uint64

// zeroBlock is compared with, never written.
var zeroBlock [BlockBytes]byte

// FingerprintOf returns the fingerprint of a block of BlockBytes. It allocates
// nothing.
func FingerprintOf(block []byte) Fingerprint {
	if IsZero(block) {
		return 0
	}
	fp := Fingerprint(xxh3.Hash(block))
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
