package frame

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/zeebo/xxh3"

	"github.com/drover-vm/drover"
)

const (
	// HeaderBytes is the length of a frame's header.
	HeaderBytes = 40
	// FrameBytes is the length of a full frame. Two TLS records of 16 KiB: long
	// enough to cost little, short enough that an urgent frame need not wait.
	FrameBytes = 32 << 10
	// FragmentBytes is what a full frame carries of a message.
	FragmentBytes = FrameBytes - HeaderBytes
	// MaxMessage is the longest message in bytes.
	MaxMessage = 1 << 20
	// MaxFragments is how many frames the longest message takes.
	MaxFragments = (MaxMessage + FragmentBytes - 1) / FragmentBytes
	// MessageOverhead is what a message counts in a window beyond its length: it
	// bounds what a flood of tiny messages costs the receiver.
	MessageOverhead = 256
	// MaxText bounds names and reasons, in bytes.
	MaxText = 255
	// Classes is the number of classes.
	Classes = 6
)

// Kind is what a frame is for.
type Kind uint8

// The kinds.
const (
	Open      Kind = 1
	Data      Kind = 2
	CloseSend Kind = 3
	Reset     Kind = 4
	Ack       Kind = 5
	Ping      Kind = 6
	Pong      Kind = 7
	Bye       Kind = 8
)

var kindNames = [...]string{"", "open", "data", "close-send", "reset", "ack", "ping", "pong", "bye"}

// String returns the kind's name.
func (k Kind) String() string {
	if int(k) >= len(kindNames) || k == 0 {
		return fmt.Sprintf("kind %d", uint8(k))
	}
	return kindNames[k]
}

// Counted reports whether frames of the kind are counted by connection and
// sent again when theirs dies.
func (k Kind) Counted() bool { return k >= Open && k <= Reset }

// Codes of Bye.
const (
	Clean uint8 = 0
	Abort uint8 = 1
)

// ErrCorrupt is in the chain of every error that says that bytes are not what
// was sent. Other errors mean that the peer breaks the protocol.
var ErrCorrupt = errors.New("checksum does not match")

// Header is a frame without its payload.
type Header struct {
	Kind     Kind
	Class    uint8
	Code     uint8
	Fragment uint8
	Channel  uint32
	Sequence uint64
	// Message is the length of the message that a data frame is a part of.
	Message uint32
	// Length is the payload's.
	Length uint32
	// Sum is the payload's checksum; Encode computes it, Parse reads it.
	Sum uint64
}

// Fragments returns how many frames a message of n bytes takes.
func Fragments(n int) int { return max(1, (n+FragmentBytes-1)/FragmentBytes) }

// Fragment returns where fragment i of a message of n bytes lies in it.
func Fragment(n, i int) (from, to int) {
	return min(i*FragmentBytes, n), min((i+1)*FragmentBytes, n)
}

// Encode writes the header of a frame with this payload to b, which has at
// least HeaderBytes. It sets Length and Sum. It does not check the fields:
// they are the caller's own.
func (h *Header) Encode(b, payload []byte) {
	h.Length, h.Sum = uint32(len(payload)), xxh3.Hash(payload)
	b[0], b[1], b[2], b[3] = byte(h.Kind), h.Class, h.Code, h.Fragment
	binary.BigEndian.PutUint32(b[4:], h.Channel)
	binary.BigEndian.PutUint64(b[8:], h.Sequence)
	binary.BigEndian.PutUint32(b[16:], h.Message)
	binary.BigEndian.PutUint32(b[20:], h.Length)
	binary.BigEndian.PutUint64(b[24:], h.Sum)
	binary.BigEndian.PutUint64(b[32:], xxh3.Hash(b[:32]))
}

// Append appends a whole frame to b.
func (h *Header) Append(b, payload []byte) []byte {
	var head [HeaderBytes]byte
	h.Encode(head[:], payload)
	return append(append(b, head[:]...), payload...)
}

// Parse reads a header from b, which has at least HeaderBytes, and checks every
// field. An error has ErrCorrupt in its chain (drover.Corrupt), or it is
// drover.Invalid and names the field.
func Parse(b []byte) (Header, error) {
	if binary.BigEndian.Uint64(b[32:]) != xxh3.Hash(b[:32]) {
		return Header{}, drover.E(drover.Corrupt, "wan frame's header", ErrCorrupt)
	}
	h := Header{
		Kind: Kind(b[0]), Class: b[1], Code: b[2], Fragment: b[3],
		Channel:  binary.BigEndian.Uint32(b[4:]),
		Sequence: binary.BigEndian.Uint64(b[8:]),
		Message:  binary.BigEndian.Uint32(b[16:]),
		Length:   binary.BigEndian.Uint32(b[20:]),
		Sum:      binary.BigEndian.Uint64(b[24:]),
	}
	return h, h.check()
}

// Verify checks the payload of a parsed header.
func (h *Header) Verify(payload []byte) error {
	if xxh3.Hash(payload) != h.Sum {
		return drover.E(drover.Corrupt, "wan frame's payload", ErrCorrupt)
	}
	return nil
}

// shape says what a kind's header may hold.
type shape struct {
	channel, code, sequence bool
	maxLength               uint32
}

var shapes = [...]shape{
	Open:      {channel: true, maxLength: MaxText},
	Data:      {channel: true, code: true, sequence: true, maxLength: FragmentBytes},
	CloseSend: {channel: true, sequence: true},
	Reset:     {channel: true, maxLength: MaxText},
	Ack:       {maxLength: maxAckBytes},
	Ping:      {sequence: true},
	Pong:      {sequence: true},
	Bye:       {code: true, maxLength: MaxText},
}

func (h *Header) check() error {
	bad := func(format string, args ...any) error {
		return drover.Errorf(drover.Invalid, "wan frame", format, args...)
	}
	if h.Kind == 0 || int(h.Kind) >= len(shapes) {
		return bad("kind %d, want 1 to %d", uint8(h.Kind), len(shapes)-1)
	}
	s := shapes[h.Kind]
	switch {
	case h.Class >= Classes:
		return bad("%s: class %d, want 0 to %d", h.Kind, h.Class, Classes-1)
	case s.channel != (h.Channel != 0), !s.channel && h.Class != 0:
		return bad("%s: channel %d of class %d", h.Kind, h.Channel, h.Class)
	case !s.code && h.Code != 0, h.Kind == Bye && h.Code > Abort:
		return bad("%s: code %d", h.Kind, h.Code)
	case !s.sequence && h.Sequence != 0, s.sequence && s.channel && h.Sequence == 0:
		return bad("%s: sequence %d", h.Kind, h.Sequence)
	case h.Length > s.maxLength:
		return bad("%s: length %d, want at most %d", h.Kind, h.Length, s.maxLength)
	case h.Kind != Data && (h.Fragment != 0 || h.Message != 0):
		return bad("%s: fragment %d of %d bytes, want none", h.Kind, h.Fragment, h.Message)
	case h.Kind != Data:
		return nil
	case h.Message > MaxMessage:
		return bad("data: message of %d bytes, want at most %d", h.Message, MaxMessage)
	case int(h.Fragment) >= Fragments(int(h.Message)):
		return bad("data: fragment %d of a message of %d bytes", h.Fragment, h.Message)
	}
	if from, to := Fragment(int(h.Message), int(h.Fragment)); int(h.Length) != to-from {
		return bad("data: fragment %d of a message of %d bytes has %d, want %d", h.Fragment, h.Message, h.Length, to-from)
	}
	return nil
}
