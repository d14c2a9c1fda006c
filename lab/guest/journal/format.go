// Package journal is the guest's disk journal: a ring of checksummed records
// on a raw disk, written one at a time, each acknowledged only after the
// write returned, and a checker that proves from the disk and the
// acknowledgements alone that no acknowledged write is lost.
//
// The writer runs inside the guest on the raw virtio disk. The checker runs
// in the guest or outside on an image of that disk. Opening devices, pacing
// and carrying acknowledgements to a recorder are left to the callers.
//
// # Layout
//
// Integers are little-endian, checksums are CRC-32C (Castagnoli).
//
//	0       … 1 MiB   not touched: room for a boot sector or partition table
//	1 MiB   … + 4 KiB superblock
//	2 MiB   … end     ring of slots, BlockBytes each; what is left over at
//	                  the end of the disk is not touched
//
// Superblock, 64 bytes used, the rest zero:
//
//	0  magic "DROVERS1"       8
//	8  journal id            16   random, new with every format
//	24 version                4   1
//	28 block bytes            4
//	32 slots                  8
//	40 ring offset            8   2 MiB
//	48 reserved              12   zero
//	60 checksum               4   of bytes 0–59
//
// Record, one per slot, sequence numbers from 1, record s in slot s mod slots:
//
//	0  magic "DROVERJ1"       8
//	8  journal id            16
//	24 boot id               16   of the guest that wrote it
//	40 sequence               8
//	48 time                   8   nanoseconds since 1970, the guest's clock
//	56 payload bytes          4   block bytes − 64
//	60 checksum               4   of bytes 0–59 and the payload
//	64 payload                    pseudo-random, from journal id and sequence
//
// The writer has one write in flight. A crash can therefore tear one slot
// only: the one that follows the newest whole record. The checker accepts a
// torn slot there and nowhere else, and only when nobody was told that the
// record in it was written.
package journal

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"time"
)

// Layout constants, in bytes.
const (
	// SuperblockOffset leaves the first MiB of the disk alone, as partition
	// tools do.
	SuperblockOffset = 1 << 20
	// RingOffset is where slot 0 begins.
	RingOffset = 2 << 20

	superblockBytes = 4096
	headerBytes     = 64
	version         = 1

	// MinBlockBytes is a disk sector: the smallest direct write.
	MinBlockBytes = 512
	// MaxBlockBytes bounds a record: the guest holds two in memory.
	MaxBlockBytes = 1 << 20
	// MaxRingBytes bounds the ring so that a check reads at most this much,
	// a few seconds in an emulated guest.
	MaxRingBytes = 1 << 30
)

var (
	superMagic  = [8]byte{'D', 'R', 'O', 'V', 'E', 'R', 'S', '1'}
	recordMagic = [8]byte{'D', 'R', 'O', 'V', 'E', 'R', 'J', '1'}
	castagnoli  = crc32.MakeTable(crc32.Castagnoli)
)

// Errors that callers tell apart.
var (
	// ErrNoJournal says that the disk holds no journal.
	ErrNoJournal = errors.New("disk holds no journal")
	// ErrForeign says that the disk holds other data where the journal
	// would be written.
	ErrForeign = errors.New("disk holds other data; ask for format to overwrite it")
	// ErrGeometry says that the journal on the disk has another block or
	// ring size than asked for.
	ErrGeometry = errors.New("disk holds a journal of another geometry; ask for format to start over")
	// ErrTooSmall says that the disk has no room for two slots.
	ErrTooSmall = errors.New("disk too small for a journal")
)

// ID names a journal or a boot.
type ID [16]byte

// String returns the ID in 32 hexadecimal digits.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// MarshalText implements encoding.TextMarshaler.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (id *ID) UnmarshalText(b []byte) error {
	if len(b) != 2*len(id) {
		return fmt.Errorf("id %q: want %d hexadecimal digits", b, 2*len(id))
	}
	_, err := hex.Decode(id[:], b)
	if err != nil {
		return fmt.Errorf("id %q: %w", b, err)
	}
	return nil
}

// Geometry is the shape of a journal's ring.
type Geometry struct {
	Journal    ID     `json:"journal"`
	BlockBytes int    `json:"block_bytes"`
	Slots      uint64 `json:"slots"`
}

func (g Geometry) offset(slot uint64) int64 {
	return RingOffset + int64(slot)*int64(g.BlockBytes)
}

func (g Geometry) marshal() []byte {
	b := alignedBuffer(superblockBytes)
	copy(b[0:], superMagic[:])
	copy(b[8:], g.Journal[:])
	binary.LittleEndian.PutUint32(b[24:], version)
	binary.LittleEndian.PutUint32(b[28:], uint32(g.BlockBytes))
	binary.LittleEndian.PutUint64(b[32:], g.Slots)
	binary.LittleEndian.PutUint64(b[40:], RingOffset)
	binary.LittleEndian.PutUint32(b[60:], crc32.Checksum(b[:60], castagnoli))
	return b
}

func parseGeometry(b []byte, diskBytes int64) (Geometry, error) {
	var g Geometry
	if [8]byte(b[:8]) != superMagic {
		return g, ErrNoJournal
	}
	if got, want := crc32.Checksum(b[:60], castagnoli), binary.LittleEndian.Uint32(b[60:]); got != want {
		return g, fmt.Errorf("superblock: checksum %08x, stored %08x", got, want)
	}
	if v := binary.LittleEndian.Uint32(b[24:]); v != version {
		return g, fmt.Errorf("superblock: version %d, want %d", v, version)
	}
	copy(g.Journal[:], b[8:])
	g.BlockBytes = int(binary.LittleEndian.Uint32(b[28:]))
	g.Slots = binary.LittleEndian.Uint64(b[32:])
	if err := checkBlockBytes(g.BlockBytes); err != nil {
		return g, fmt.Errorf("superblock: %w", err)
	}
	if g.Slots < 2 || g.Slots > MaxRingBytes/uint64(g.BlockBytes) || g.offset(g.Slots) > diskBytes {
		return g, fmt.Errorf("superblock: %d slots of %d bytes do not fit a disk of %d bytes", g.Slots, g.BlockBytes, diskBytes)
	}
	return g, nil
}

func checkBlockBytes(n int) error {
	if n < MinBlockBytes || n > MaxBlockBytes || n%MinBlockBytes != 0 {
		return fmt.Errorf("block_bytes %d: want a multiple of %d from %d to %d", n, MinBlockBytes, MinBlockBytes, MaxBlockBytes)
	}
	return nil
}

// putRecord fills b, one block long, with record seq.
func putRecord(b []byte, journal, boot ID, seq uint64, now time.Time) {
	copy(b[0:], recordMagic[:])
	copy(b[8:], journal[:])
	copy(b[24:], boot[:])
	binary.LittleEndian.PutUint64(b[40:], seq)
	binary.LittleEndian.PutUint64(b[48:], uint64(now.UnixNano()))
	binary.LittleEndian.PutUint32(b[56:], uint32(len(b)-headerBytes))
	fill(b[headerBytes:], binary.LittleEndian.Uint64(journal[:])^seq)
	binary.LittleEndian.PutUint32(b[60:], recordSum(b))
}

func recordSum(b []byte) uint32 {
	return crc32.Update(crc32.Checksum(b[:60], castagnoli), castagnoli, b[headerBytes:])
}

// slotState is what a slot holds: a sequence number, or one of these.
const (
	slotBlank   uint64 = 0          // never written by this journal
	slotCorrupt uint64 = ^uint64(0) // neither blank nor a whole record of this journal
)

// readSlot judges one slot's content.
func (g Geometry) readSlot(slot uint64, b []byte) (state uint64, boot ID) {
	if isZero(b) {
		return slotBlank, boot
	}
	if [8]byte(b[:8]) != recordMagic ||
		binary.LittleEndian.Uint32(b[56:]) != uint32(len(b)-headerBytes) ||
		binary.LittleEndian.Uint32(b[60:]) != recordSum(b) {
		return slotCorrupt, boot
	}
	if ID(b[8:24]) != g.Journal {
		return slotBlank, boot // whole, but left over from before a format
	}
	seq := binary.LittleEndian.Uint64(b[40:])
	if seq == 0 || seq == slotCorrupt || seq%g.Slots != slot {
		return slotCorrupt, boot // whole, but not where it belongs
	}
	return seq, ID(b[24:40])
}

// fill writes splitmix64 output over b: cheap, and incompressible, so that
// no layer below can shorten or merge records.
func fill(b []byte, seed uint64) {
	for len(b) > 0 {
		seed += 0x9e3779b97f4a7c15
		z := seed
		z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9
		z = (z ^ (z >> 27)) * 0x94d049bb133111eb
		z ^= z >> 31
		if len(b) < 8 {
			var tail [8]byte
			binary.LittleEndian.PutUint64(tail[:], z)
			copy(b, tail[:])
			return
		}
		binary.LittleEndian.PutUint64(b, z)
		b = b[8:]
	}
}

func isZero(b []byte) bool {
	for len(b) >= 8 {
		if binary.LittleEndian.Uint64(b) != 0 {
			return false
		}
		b = b[8:]
	}
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
