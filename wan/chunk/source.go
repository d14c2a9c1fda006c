package chunk

import (
	"encoding/hex"
	"fmt"
	"io"

	"github.com/zeebo/blake3"
)

// SourceID names a source's content, alike at every agent that has it.
type SourceID [32]byte

// String returns the id in hexadecimal, as it is used in file names.
func (id SourceID) String() string { return hex.EncodeToString(id[:]) }

// IsZero reports whether id is the id of nothing.
func (id SourceID) IsZero() bool { return id == SourceID{} }

// MemoryID returns the id of a VM's memory as it was at the switchover of a
// move: BLAKE3-256 over "drover memory", the move's name and the VM's UUID,
// each ended by a zero byte.
func MemoryID(move, vm string) SourceID { return idOf("drover memory", move, vm) }

// DiskID returns the id of what remains of a VM's disk at its departure:
// BLAKE3-256 over "drover disk", the move's name, the VM's UUID and the disk's
// target, each ended by a zero byte.
func DiskID(move, vm, target string) SourceID { return idOf("drover disk", move, vm, target) }

func idOf(parts ...string) SourceID {
	var b []byte
	for _, p := range parts {
		b = append(append(b, p...), 0)
	}
	return blake3.Sum256(b)
}

// SourceKind says what a source is.
type SourceKind uint8

// The kinds of sources. The values are part of the catalogue's format.
const (
	// KindImage is a golden image or a backing file: immutable, its id is its
	// driver.ContentID.
	KindImage SourceKind = iota + 1
	// KindMemory is a VM's memory at the switchover of a move.
	KindMemory
	// KindDisk is what remains of a VM's disk after it left.
	KindDisk
)

// String returns the kind's name.
func (k SourceKind) String() string {
	switch k {
	case KindImage:
		return "image"
	case KindMemory:
		return "memory"
	case KindDisk:
		return "disk"
	default:
		return fmt.Sprintf("kind %d", uint8(k))
	}
}

// MaxBlocks bounds a source, since a Ref counts blocks in 32 bits: 16 TiB.
const MaxBlocks = 1 << 32

// Source describes a fixed sequence of blocks.
type Source struct {
	ID     SourceID
	Kind   SourceKind
	Blocks int64 // its length, the last one padded with zeros
	// Scope is the tenant label of the VM it came from; VMs without a label
	// share the scope "".
	Scope string
	// VM is the UUID of the VM whose memory or disk it was; "" for an image.
	VM string
}

// Content reads a source's blocks. Concurrent use is allowed.
type Content interface {
	// ReadBlocks fills p, whose length is a multiple of BlockBytes, from the
	// block with the given number on. Blocks past the end read as zeros.
	ReadBlocks(block int64, p []byte) error
	io.Closer
}
