package page

import (
	"encoding/binary"
	"fmt"
)

// PageBytes is the size of a target page: what a Page record holds.
const PageBytes = 4096

// Kind says what a Record is.
type Kind uint8

// The kinds of records.
const (
	// Bytes is anything that is not a page: to be passed on as it is.
	Bytes Kind = iota
	// Zero is a page filled with one byte, Fill. It is 0 in all streams that
	// QEMU writes.
	Zero
	// Page is a page with its content.
	Page
)

// String returns the kind in lower case.
func (k Kind) String() string {
	switch k {
	case Bytes:
		return "bytes"
	case Zero:
		return "zero"
	case Page:
		return "page"
	default:
		return fmt.Sprintf("kind %d", uint8(k))
	}
}

// Record is one element of the stream. The bytes that it stands for are what
// AppendHeader appends for it and then Data.
type Record struct {
	Kind Kind
	// Block is the page's RAM block, as its place in Reader.Blocks.
	Block int
	// Addr is the page's place in its block in bytes, a multiple of PageBytes.
	// The whole page lies inside the block.
	Addr uint64
	// Continue says that the page's header names no block because the record
	// before it was of the same one.
	Continue bool
	// Fill is what a Zero record's page consists of.
	Fill byte
	// Data is a Page's content, PageBytes long, or the bytes themselves of a
	// Bytes record, at least one; nil for Zero. It is part of the Reader's
	// buffer and valid until the next call of Reader.Next.
	Data []byte
}

// Block is a piece of guest memory, as the stream announces it.
type Block struct {
	// Name is unique within the stream ("pc.ram").
	Name string
	// Bytes is its size.
	Bytes uint64
}

// Phase is how far a migration is, as far as its stream shows.
type Phase uint8

// The phases, in their usual order.
const (
	// Setup is everything before the first round of copying.
	Setup Phase = iota
	// Rounds is the copying of memory while the guest runs.
	Rounds
	// Last is the last round: the guest is paused.
	Last
	// Devices is what follows the memory: the state of the devices. The guest
	// is paused. It lasts to the end of the stream.
	Devices
	// Opaque is what is not understood. All of it comes as Bytes. The stream
	// may leave it again, for any other phase, where the memory's next section is
	// recognised.
	Opaque
)

// String returns the phase in lower case.
func (p Phase) String() string {
	switch p {
	case Setup:
		return "setup"
	case Rounds:
		return "rounds"
	case Last:
		return "last"
	case Devices:
		return "devices"
	case Opaque:
		return "opaque"
	default:
		return fmt.Sprintf("phase %d", uint8(p))
	}
}

// Flags of a record's header, QEMU's RAM_SAVE_FLAG_*.
const (
	flagZero         = 0x002
	flagMemSize      = 0x004
	flagPage         = 0x008
	flagEOS          = 0x010
	flagContinue     = 0x020
	flagXBZRLE       = 0x040
	flagHook         = 0x080
	flagCompress     = 0x100
	flagMultifdFlush = 0x200

	flagMask = PageBytes - 1
)

// AppendHeader appends the bytes of rec that come before its Data: for a Page its
// header, for a Zero all of it, for Bytes none. blocks is the list in which
// rec.Block is a place; it is not looked at when rec.Continue is set.
func AppendHeader(dst []byte, rec Record, blocks []Block) []byte {
	var head uint64
	switch rec.Kind {
	case Zero:
		head = rec.Addr | flagZero
	case Page:
		head = rec.Addr | flagPage
	default:
		return dst
	}
	if rec.Continue {
		dst = binary.BigEndian.AppendUint64(dst, head|flagContinue)
	} else {
		name := blocks[rec.Block].Name
		dst = binary.BigEndian.AppendUint64(dst, head)
		dst = append(dst, byte(len(name)))
		dst = append(dst, name...)
	}
	if rec.Kind == Zero {
		dst = append(dst, rec.Fill)
	}
	return dst
}
