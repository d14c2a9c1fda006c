package frame

import (
	"encoding/binary"
	"fmt"
	"io"
	"unicode/utf8"

	"github.com/zeebo/xxh3"

	"github.com/drover-vm/drover"
)

const (
	// Oldest and Newest are the versions that this package speaks.
	Oldest uint8 = 1
	Newest uint8 = 1
	// Features are the feature bits that this package has: none yet.
	Features uint32 = 0
	// MinToken and MaxToken bound a session's token in bytes. 128 random bits
	// cannot be guessed.
	MinToken = 16
	MaxToken = 32

	helloBytes  = 40
	answerBytes = 24
	sumBytes    = 8
)

var magic = [4]byte{'D', 'R', 'W', 'N'}

// BundleID is one incarnation of a bundle: random, chosen by the initiator.
type BundleID [16]byte

// Windows are what one end is ready to hold of what it receives, in bytes.
type Windows struct {
	Channel, Bundle uint32
}

// Hello opens a connection.
type Hello struct {
	Lowest, Highest uint8
	Features        uint32
	// Number is the connection's in its bundle, from 1, never used twice.
	Number  uint32
	Bundle  BundleID
	Windows Windows
	// Token names the session, MinToken to MaxToken random bytes.
	Token []byte
	// Extension is for later versions; this one sends none.
	Extension []byte
}

// Append appends the encoded hello to b.
func (h *Hello) Append(b []byte) []byte {
	start := len(b)
	b = append(b, magic[:]...)
	b = append(b, h.Lowest, h.Highest, byte(len(h.Token)), byte(len(h.Extension)))
	b = binary.BigEndian.AppendUint32(b, h.Features)
	b = binary.BigEndian.AppendUint32(b, h.Number)
	b = append(b, h.Bundle[:]...)
	b = appendWindows(b, h.Windows)
	b = append(b, h.Token...)
	b = append(b, h.Extension...)
	return binary.BigEndian.AppendUint64(b, xxh3.Hash(b[start:]))
}

// ReadHello reads exactly one hello and nothing beyond it. A hello that breaks
// the format gives drover.Invalid, one with a wrong checksum drover.Corrupt,
// a connection that ends drover.Unavailable. It does not judge versions:
// Choose does.
func ReadHello(r io.Reader) (Hello, error) {
	const op = "wan hello"
	b := make([]byte, helloBytes, helloBytes+MaxToken+255+sumBytes)
	if _, err := io.ReadFull(r, b); err != nil {
		return Hello{}, drover.E(drover.Unavailable, op, err)
	}
	h := Hello{
		Lowest: b[4], Highest: b[5], Features: binary.BigEndian.Uint32(b[8:]), Number: binary.BigEndian.Uint32(b[12:]),
		Bundle: BundleID(b[16:32]), Windows: parseWindows(b[32:]),
	}
	token, ext := int(b[6]), int(b[7])
	switch {
	case [4]byte(b[:4]) != magic:
		return Hello{}, drover.Errorf(drover.Invalid, op, "begins with %q, want %q", b[:4], magic)
	case token < MinToken || token > MaxToken:
		return Hello{}, drover.Errorf(drover.Invalid, op, "token of %d bytes, want %d to %d", token, MinToken, MaxToken)
	case h.Lowest == 0 || h.Lowest > h.Highest:
		return Hello{}, drover.Errorf(drover.Invalid, op, "versions %d to %d", h.Lowest, h.Highest)
	}
	b, err := readRest(r, b, token+ext)
	if err != nil {
		return Hello{}, drover.E(drover.KindOf(err), op, err)
	}
	switch {
	case h.Number == 0:
		return Hello{}, drover.Errorf(drover.Invalid, op, "connection 0, want 1 or more")
	case h.Bundle == BundleID{}:
		return Hello{}, drover.Errorf(drover.Invalid, op, "bundle id of zeros")
	}
	h.Token = b[helloBytes : helloBytes+token : helloBytes+token]
	h.Extension = b[helloBytes+token : helloBytes+token+ext]
	return h, nil
}

// readRest reads n more bytes and the checksum after b, and checks it.
func readRest(r io.Reader, b []byte, n int) ([]byte, error) {
	fixed := len(b)
	b = append(b, make([]byte, n+sumBytes)...)
	if _, err := io.ReadFull(r, b[fixed:]); err != nil {
		return nil, drover.E(drover.Unavailable, "read", err)
	}
	if binary.BigEndian.Uint64(b[fixed+n:]) != xxh3.Hash(b[:fixed+n]) {
		return nil, drover.E(drover.Corrupt, "check", ErrCorrupt)
	}
	return b, nil
}

func appendWindows(b []byte, w Windows) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(b, w.Channel), w.Bundle)
}

func parseWindows(b []byte) Windows {
	return Windows{binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:])}
}

// Choose returns the highest version that a range and the hello's share.
func Choose(lowest, highest uint8, h *Hello) (version uint8, ok bool) {
	v := min(highest, h.Highest)
	return v, v >= lowest && v >= h.Lowest
}

// Status is an acceptor's answer.
type Status uint8

// The answers.
const (
	Accepted     Status = 0
	Refused      Status = 1
	Unreachable  Status = 2
	WrongVersion Status = 3
)

// Answer is what the acceptor says to a hello.
type Answer struct {
	Status Status
	// Version is the one chosen, zero unless accepted.
	Version         uint8
	Lowest, Highest uint8
	Features        uint32
	Windows         Windows
	// Text says why, for people; at most MaxText bytes of it are sent.
	Text      string
	Extension []byte
}

// Append appends the encoded answer to b.
func (a *Answer) Append(b []byte) []byte {
	text := Text(a.Text)
	start := len(b)
	b = append(b, magic[:]...)
	b = append(b, byte(a.Status), a.Version, a.Lowest, a.Highest)
	b = binary.BigEndian.AppendUint32(b, a.Features)
	b = appendWindows(b, a.Windows)
	b = append(b, byte(len(text)), byte(len(a.Extension)), 0, 0)
	b = append(b, text...)
	b = append(b, a.Extension...)
	return binary.BigEndian.AppendUint64(b, xxh3.Hash(b[start:]))
}

// ReadAnswer reads exactly one answer; its errors are like ReadHello's. An
// answer that is not Accepted is no error here: see Err.
func ReadAnswer(r io.Reader) (Answer, error) {
	const op = "wan answer"
	b := make([]byte, answerBytes, answerBytes+2*255+sumBytes)
	if _, err := io.ReadFull(r, b); err != nil {
		return Answer{}, drover.E(drover.Unavailable, op, err)
	}
	a := Answer{
		Status: Status(b[4]), Version: b[5], Lowest: b[6], Highest: b[7],
		Features: binary.BigEndian.Uint32(b[8:]), Windows: parseWindows(b[12:]),
	}
	text, ext := int(b[20]), int(b[21])
	switch {
	case [4]byte(b[:4]) != magic:
		return Answer{}, drover.Errorf(drover.Invalid, op, "begins with %q, want %q", b[:4], magic)
	case a.Status > WrongVersion:
		return Answer{}, drover.Errorf(drover.Invalid, op, "status %d, want 0 to %d", a.Status, WrongVersion)
	case b[22] != 0 || b[23] != 0:
		return Answer{}, drover.Errorf(drover.Invalid, op, "reserved bytes %x, want zeros", b[22:24])
	}
	b, err := readRest(r, b, text+ext)
	if err != nil {
		return Answer{}, drover.E(drover.KindOf(err), op, err)
	}
	a.Text = Printable(b[answerBytes : answerBytes+text])
	a.Extension = b[answerBytes+text : answerBytes+text+ext]
	return a, nil
}

// Err returns nil for an answer that accepts with a version and features that
// the hello offered; drover.Denied, drover.Unavailable or drover.Invalid else.
func (a *Answer) Err(h *Hello) error {
	const op = "open wan connection"
	switch {
	case a.Status == Refused:
		return drover.Errorf(drover.Denied, op, "the destination refused: %s", a.Text)
	case a.Status == Unreachable:
		return drover.Errorf(drover.Unavailable, op, "the destination cannot pass it on: %s", a.Text)
	case a.Status == WrongVersion:
		return drover.Errorf(drover.Invalid, op, "the destination speaks versions %d to %d, this end %d to %d",
			a.Lowest, a.Highest, h.Lowest, h.Highest)
	case a.Version < h.Lowest || a.Version > h.Highest:
		return drover.Errorf(drover.Invalid, op, "the destination chose version %d of %d to %d", a.Version, h.Lowest, h.Highest)
	case a.Features&^h.Features != 0:
		return drover.Errorf(drover.Invalid, op, "the destination chose features %#x of %#x", a.Features, h.Features)
	}
	return nil
}

// Text cuts s to MaxText bytes, at a character.
func Text(s string) string {
	for len(s) > MaxText {
		_, n := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-n]
	}
	return s
}

// Printable keeps a peer's text from writing control characters to a log.
func Printable(text []byte) string {
	q := fmt.Sprintf("%q", text)
	return q[1 : len(q)-1]
}
