package wan

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/drover-vm/drover"
)

// Protocol is the ALPN name of the data path, Control that of the agents'
// calls (HTTP/2).
const (
	Protocol = "drover-wan/1"
	Control  = "h2"
)

const (
	version    = 1
	headerSize = 12
	// MinToken and MaxToken bound a session's token in bytes. 128 random bits
	// cannot be guessed.
	MinToken = 16
	MaxToken = 32
	// maxName is the longest name that drover.CheckName accepts.
	maxName = 63
	// maxAnswerText bounds what a peer may make this side log.
	maxAnswerText = 255
)

var magic = [4]byte{'D', 'R', 'W', 'N'}

// Channel is what a stream carries.
type Channel uint8

// The channels.
const (
	Memory Channel = 1
	Disk   Channel = 2
	Copy   Channel = 3

	channels = 4 // one more than the highest
)

// String returns the channel's name.
func (c Channel) String() string {
	switch c {
	case Memory:
		return "memory"
	case Disk:
		return "disk"
	case Copy:
		return "copy"
	default:
		return fmt.Sprintf("channel %d", uint8(c))
	}
}

// Header opens a stream.
type Header struct {
	// Token names the session, MinToken to MaxToken random bytes.
	Token   []byte
	Channel Channel
	// Name is the disk's target for Copy, else empty.
	Name string
}

// Validate names the field that is wrong.
func (h Header) Validate() error {
	const op = "wan header"
	if n := len(h.Token); n < MinToken || n > MaxToken {
		return drover.Errorf(drover.Invalid, op, "token of %d bytes, want %d to %d", n, MinToken, MaxToken)
	}
	switch h.Channel {
	case Memory, Disk:
		if h.Name != "" {
			return drover.Errorf(drover.Invalid, op, "name %q on channel %s, want none", h.Name, h.Channel)
		}
	case Copy:
		if err := drover.CheckName("wan header: name", h.Name); err != nil {
			return err
		}
	default:
		return drover.Errorf(drover.Invalid, op, "channel %d, want 1 to %d", uint8(h.Channel), channels-1)
	}
	return nil
}

// append encodes a valid header.
func (h Header) append(b []byte) []byte {
	b = append(b, magic[:]...)
	b = append(b, version, byte(h.Channel), byte(len(h.Token)), byte(len(h.Name)))
	b = binary.BigEndian.AppendUint32(b, 0)
	b = append(b, h.Token...)
	return append(b, h.Name...)
}

// readHeader reads exactly one header; it never reads beyond it.
func readHeader(r io.Reader) (Header, error) {
	const op = "wan header"
	var fixed [headerSize]byte
	if _, err := io.ReadFull(r, fixed[:]); err != nil {
		return Header{}, drover.E(drover.Invalid, op, err)
	}
	if [4]byte(fixed[:4]) != magic {
		return Header{}, drover.Errorf(drover.Invalid, op, "begins with %q, want %q", fixed[:4], magic)
	}
	if fixed[4] != version {
		return Header{}, drover.Errorf(drover.Invalid, op, "version %d, want %d", fixed[4], version)
	}
	tokenLen, nameLen := int(fixed[6]), int(fixed[7])
	if tokenLen < MinToken || tokenLen > MaxToken || nameLen > maxName {
		return Header{}, drover.Errorf(drover.Invalid, op, "token of %d and name of %d bytes, want %d to %d and at most %d",
			tokenLen, nameLen, MinToken, MaxToken, maxName)
	}
	if binary.BigEndian.Uint32(fixed[8:]) != 0 {
		return Header{}, drover.Errorf(drover.Invalid, op, "reserved bytes %x, want zeros", fixed[8:])
	}
	rest := make([]byte, tokenLen+nameLen)
	if _, err := io.ReadFull(r, rest); err != nil {
		return Header{}, drover.E(drover.Invalid, op, err)
	}
	h := Header{Token: rest[:tokenLen:tokenLen], Channel: Channel(fixed[5]), Name: string(rest[tokenLen:])}
	return h, h.Validate()
}

// status is an Endpoint's answer to a header.
type status uint8

const (
	accepted    status = 0
	refused     status = 1
	unreachable status = 2
)

func writeAnswer(w io.Writer, s status, text string) error {
	if len(text) > maxAnswerText {
		text = text[:maxAnswerText]
	}
	_, err := w.Write(append([]byte{byte(s), byte(len(text))}, text...))
	return err
}

// readAnswer returns nil when the stream was accepted.
func readAnswer(r io.Reader) error {
	const op = "open wan stream"
	var fixed [2]byte
	if _, err := io.ReadFull(r, fixed[:]); err != nil {
		return drover.E(drover.Unavailable, op, err)
	}
	text := make([]byte, fixed[1])
	if _, err := io.ReadFull(r, text); err != nil {
		return drover.E(drover.Unavailable, op, err)
	}
	switch status(fixed[0]) {
	case accepted:
		return nil
	case refused:
		return drover.E(drover.Denied, op, errors.New("the destination refused: "+printable(text)))
	case unreachable:
		return drover.E(drover.Unavailable, op, errors.New("the destination cannot pass it on: "+printable(text)))
	default:
		return drover.Errorf(drover.Invalid, op, "answer %d, want 0 to 2", fixed[0])
	}
}

// printable keeps a peer's text from writing control characters to a log.
func printable(text []byte) string {
	q := fmt.Sprintf("%q", text)
	return q[1 : len(q)-1]
}
