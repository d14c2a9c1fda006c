package nbd

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// session is what a handshake agreed on.
type session struct {
	size     uint64
	flags    uint16
	extended bool
	minBlock uint32
	maxBlock uint32
	// contexts maps an id of the server to its place in the names asked for.
	contexts map[uint32]int
}

// handshaker speaks the option phase.
type handshaker struct {
	r *bufio.Reader
	w io.Writer
}

// handshake negotiates up to the transmission phase. Names of contexts that
// the server does not know are left out of the session.
func handshake(r *bufio.Reader, w io.Writer, export string, contexts []string) (session, error) {
	h := handshaker{r: r, w: w}
	s := session{minBlock: 1, maxBlock: defaultMaxBlock, contexts: map[uint32]int{}}
	if err := h.greet(); err != nil {
		return s, err
	}
	var err error
	if s.extended, err = h.simpleOption(optExtendedHeaders, "extended headers"); err != nil {
		return s, err
	}
	if !s.extended {
		ok, err := h.simpleOption(optStructuredReply, "structured replies")
		if err != nil {
			return s, err
		}
		if !ok {
			return s, errors.New("nbd: the server has no structured replies")
		}
	}
	if len(contexts) > 0 {
		if err := h.setContexts(&s, export, contexts); err != nil {
			return s, err
		}
	}
	return s, h.enter(&s, export)
}

func (h *handshaker) greet() error {
	var b [18]byte
	if _, err := io.ReadFull(h.r, b[:]); err != nil {
		return fmt.Errorf("nbd: read greeting: %w", err)
	}
	if binary.BigEndian.Uint64(b[0:]) != magicServer || binary.BigEndian.Uint64(b[8:]) != magicOption {
		return violation("greeting %x is not that of a newstyle server", b[:16])
	}
	flags := binary.BigEndian.Uint16(b[16:])
	if flags&flagFixedNewstyle == 0 {
		return violation("the server is not of the fixed newstyle")
	}
	var out [4]byte
	binary.BigEndian.PutUint32(out[:], uint32(flags&(flagFixedNewstyle|flagNoZeroes)))
	if _, err := h.w.Write(out[:]); err != nil {
		return fmt.Errorf("nbd: send flags: %w", err)
	}
	return nil
}

func (h *handshaker) send(option uint32, data []byte) error {
	b := make([]byte, 16, 16+len(data))
	binary.BigEndian.PutUint64(b[0:], magicOption)
	binary.BigEndian.PutUint32(b[8:], option)
	binary.BigEndian.PutUint32(b[12:], uint32(len(data)))
	if _, err := h.w.Write(append(b, data...)); err != nil {
		return fmt.Errorf("nbd: send option %d: %w", option, err)
	}
	return nil
}

// reply reads one reply to option.
func (h *handshaker) reply(option uint32) (kind uint32, data []byte, err error) {
	var b [20]byte
	if _, err := io.ReadFull(h.r, b[:]); err != nil {
		return 0, nil, fmt.Errorf("nbd: read reply to option %d: %w", option, err)
	}
	if m := binary.BigEndian.Uint64(b[0:]); m != magicOptReply {
		return 0, nil, violation("option reply begins with %#x", m)
	}
	if o := binary.BigEndian.Uint32(b[8:]); o != option {
		return 0, nil, violation("reply to option %d while %d was asked", o, option)
	}
	n := binary.BigEndian.Uint32(b[16:])
	if n > maxOptionReply {
		return 0, nil, violation("option reply of %d bytes, limit is %d", n, maxOptionReply)
	}
	data = make([]byte, n)
	if _, err := io.ReadFull(h.r, data); err != nil {
		return 0, nil, fmt.Errorf("nbd: read reply to option %d: %w", option, err)
	}
	return binary.BigEndian.Uint32(b[12:]), data, nil
}

// replies calls each for every reply to option up to its ACK. An error reply
// ends it with refused set.
func (h *handshaker) replies(option uint32, each func(kind uint32, data []byte) error) (refused *optionError, err error) {
	for range maxOptionReplies {
		kind, data, err := h.reply(option)
		switch {
		case err != nil:
			return nil, err
		case kind == repAck:
			return nil, nil
		case kind&repErrBit != 0:
			return &optionError{code: kind, text: cleanText(data)}, nil
		}
		if err := each(kind, data); err != nil {
			return nil, err
		}
	}
	return nil, violation("more than %d replies to option %d", maxOptionReplies, option)
}

type optionError struct {
	code uint32
	text string
}

func (e *optionError) as(op string) error {
	text := e.text
	switch {
	case e.code == repErrUnknown:
		text = strings.TrimSpace("no such export " + text)
	case text == "":
		text = fmt.Sprintf("refused with error %d", e.code&^repErrBit)
	}
	return &ServerError{Op: op, Text: text}
}

// simpleOption asks for an option without data; false means the server does
// not have it.
func (h *handshaker) simpleOption(option uint32, name string) (bool, error) {
	if err := h.send(option, nil); err != nil {
		return false, err
	}
	refused, err := h.replies(option, func(kind uint32, _ []byte) error {
		return violation("reply %d to option %s", kind, name)
	})
	return refused == nil && err == nil, err
}

// exportData is what options about an export begin with.
func exportData(export string) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(export)))
	return append(b, export...)
}

func (h *handshaker) setContexts(s *session, export string, names []string) error {
	data := binary.BigEndian.AppendUint32(exportData(export), uint32(len(names)))
	for _, n := range names {
		data = binary.BigEndian.AppendUint32(data, uint32(len(n)))
		data = append(data, n...)
	}
	if err := h.send(optSetMetaContext, data); err != nil {
		return err
	}
	refused, err := h.replies(optSetMetaContext, func(kind uint32, data []byte) error {
		if kind != repMetaContext || len(data) < 4 {
			return violation("reply %d of %d bytes to set meta context", kind, len(data))
		}
		id := binary.BigEndian.Uint32(data)
		if _, twice := s.contexts[id]; twice {
			return violation("context id %d given twice", id)
		}
		for i, n := range names {
			if n == string(data[4:]) {
				s.contexts[id] = i
				return nil
			}
		}
		return violation("context %q was not asked for", data[4:])
	})
	if err != nil {
		return err
	}
	if refused != nil && refused.code != repErrUnsup && refused.code != repErrPolicy {
		return refused.as("set meta context")
	}
	return nil
}

// enter asks for the export and ends the option phase.
func (h *handshaker) enter(s *session, export string) error {
	data := binary.BigEndian.AppendUint16(exportData(export), 1)
	data = binary.BigEndian.AppendUint16(data, infoBlockSize)
	if err := h.send(optGo, data); err != nil {
		return err
	}
	seen := false
	refused, err := h.replies(optGo, func(kind uint32, data []byte) error {
		if kind != repInfo || len(data) < 2 {
			return violation("reply %d of %d bytes to go", kind, len(data))
		}
		switch info := binary.BigEndian.Uint16(data); info {
		case infoExport:
			if len(data) != 12 {
				return violation("export information of %d bytes", len(data))
			}
			s.size = binary.BigEndian.Uint64(data[2:])
			s.flags = binary.BigEndian.Uint16(data[10:])
			seen = true
		case infoBlockSize:
			return s.setBlockSizes(data[2:])
		}
		return nil // other information may be ignored
	})
	switch {
	case err != nil:
		return err
	case refused != nil:
		return refused.as("go")
	case !seen:
		return violation("no export information before the end of the handshake")
	case s.size > maxExportSize:
		return violation("export of %d bytes", s.size)
	case s.flags&flagHasFlags == 0:
		return violation("transmission flags %#x lack HAS_FLAGS", s.flags)
	case s.size%uint64(s.minBlock) != 0:
		return violation("export of %d bytes is no multiple of its block of %d", s.size, s.minBlock)
	}
	return nil
}

func (s *session) setBlockSizes(data []byte) error {
	if len(data) != 12 {
		return violation("block size information of %d bytes", len(data))
	}
	min, max := binary.BigEndian.Uint32(data[0:]), binary.BigEndian.Uint32(data[8:])
	// The bounds are the protocol's: a power of two up to 64 KiB.
	if min == 0 || min&(min-1) != 0 || min > 64<<10 || max < min || max%min != 0 && max != 1<<32-1 {
		return violation("block sizes %d to %d", min, max)
	}
	s.minBlock, s.maxBlock = min, max-max%min
	return nil
}

// cleanText makes a server's message fit for a log line.
func cleanText(b []byte) string {
	if len(b) > maxErrorText {
		b = b[:maxErrorText]
	}
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(string(b), "?")))
}
