package nbd

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
)

// Extent is a run that one context's flags hold for.
type Extent struct {
	Length uint64
	Flags  uint64
}

// Status holds the answer to one BlockStatus: for each context asked for at
// Dial, in that order, extents from the request's offset on. It may be reused
// to save allocations.
type Status struct {
	Extents [][]Extent
}

func (s *Status) reset(contexts int) {
	if len(s.Extents) != contexts {
		s.Extents = make([][]Extent, contexts)
	}
	for i := range s.Extents {
		s.Extents[i] = s.Extents[i][:0]
	}
}

// request is one command in flight. Its fields belong to the decoder between
// the sending of the command and done.
type request struct {
	cookie uint64
	cmd    uint16
	off    uint64
	length uint64
	buf    []byte  // a read's destination, length bytes
	status *Status // a block status's destination
	got    uint64  // bytes of buf the server has filled
	err    error   // the server's error
	done   chan struct{}

	// Both are guarded by the client's lock.
	active    bool
	abandoned bool
}

// finish checks that a request that the server calls done is complete.
func (q *request) finish() {
	if q.err == nil && q.cmd == cmdRead && q.got != q.length {
		q.err = violation("read of %d bytes ended after %d", q.length, q.got)
	}
}

// decoder reads replies and stores what they carry into their requests. It
// allocates for extents only, and no more than maxExtents per chunk.
type decoder struct {
	r        *bufio.Reader
	extended bool
	contexts map[uint32]int
	// lookup finds the request in flight that has the cookie, or nil.
	lookup func(cookie uint64) *request
	hdr    [32]byte
}

// chunk is a reply's header.
type chunk struct {
	flags, kind uint16
	cookie      uint64
	offset      uint64 // extended headers only
	length      uint64
}

// next reads one reply chunk. It returns the request when that chunk was its
// last. Any error means that the stream is out of step.
func (d *decoder) next() (*request, error) {
	c, simple, err := d.header()
	if err != nil {
		return nil, err
	}
	q := d.lookup(c.cookie)
	if q == nil {
		return nil, violation("reply with cookie %#x that no request has", c.cookie)
	}
	if simple != nil {
		if q.cmd == cmdRead || q.cmd == cmdBlockStatus {
			return nil, violation("simple reply to %s", commandName(q.cmd))
		}
		if *simple != 0 {
			q.err = &ServerError{Op: commandName(q.cmd), Errno: wireErrno(*simple)}
		}
		return q, nil
	}
	if err := d.body(q, c); err != nil {
		return nil, err
	}
	if c.flags&replyFlagDone == 0 {
		return nil, nil
	}
	q.finish()
	return q, nil
}

// header reads a header of whichever kind was agreed on. simple is the error
// number of a simple reply.
func (d *decoder) header() (c chunk, simple *uint32, err error) {
	if _, err := io.ReadFull(d.r, d.hdr[:4]); err != nil {
		return c, nil, err
	}
	magic := binary.BigEndian.Uint32(d.hdr[:4])
	switch {
	case d.extended && magic == magicExtReply:
		b := d.hdr[4:32]
		if _, err := io.ReadFull(d.r, b); err != nil {
			return c, nil, truncated(err)
		}
		return chunk{
			flags: binary.BigEndian.Uint16(b[0:]), kind: binary.BigEndian.Uint16(b[2:]),
			cookie: binary.BigEndian.Uint64(b[4:]), offset: binary.BigEndian.Uint64(b[12:]),
			length: binary.BigEndian.Uint64(b[20:]),
		}, nil, nil
	case !d.extended && magic == magicStructured:
		b := d.hdr[4:20]
		if _, err := io.ReadFull(d.r, b); err != nil {
			return c, nil, truncated(err)
		}
		return chunk{
			flags: binary.BigEndian.Uint16(b[0:]), kind: binary.BigEndian.Uint16(b[2:]),
			cookie: binary.BigEndian.Uint64(b[4:]), length: uint64(binary.BigEndian.Uint32(b[12:])),
		}, nil, nil
	case !d.extended && magic == magicSimple:
		b := d.hdr[4:16]
		if _, err := io.ReadFull(d.r, b); err != nil {
			return c, nil, truncated(err)
		}
		e := binary.BigEndian.Uint32(b[0:])
		return chunk{cookie: binary.BigEndian.Uint64(b[4:])}, &e, nil
	default:
		return c, nil, violation("reply begins with %#x", magic)
	}
}

func truncated(err error) error {
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("nbd: read reply: %w", err)
}

func (d *decoder) body(q *request, c chunk) error {
	switch {
	case c.kind == replyNone:
		if c.length != 0 || c.flags&replyFlagDone == 0 {
			return violation("empty chunk of %d bytes, flags %#x", c.length, c.flags)
		}
		return nil
	case c.kind == replyOffsetData && q.cmd == cmdRead:
		return d.data(q, c)
	case c.kind == replyOffsetHole && q.cmd == cmdRead:
		return d.hole(q, c)
	case c.kind == replyBlockStatus && q.cmd == cmdBlockStatus && !d.extended:
		return d.blockStatus(q, c, 4, 8)
	case c.kind == replyBlockStatusExt && q.cmd == cmdBlockStatus && d.extended:
		return d.blockStatus(q, c, 8, 16)
	case c.kind&replyErrorBit != 0:
		return d.failure(q, c)
	default:
		return violation("chunk of type %d in reply to %s", c.kind, commandName(q.cmd))
	}
}

// fixed reads the n bytes that a chunk begins with.
func (d *decoder) fixed(c *chunk, n uint64) ([]byte, error) {
	if c.length < n {
		return nil, violation("chunk of type %d has %d bytes", c.kind, c.length)
	}
	b := d.hdr[:n]
	if _, err := io.ReadFull(d.r, b); err != nil {
		return nil, truncated(err)
	}
	c.length -= n
	return b, nil
}

// window is the part of a read's buffer that a chunk may fill.
func (q *request) window(off, n uint64) ([]byte, error) {
	if n == 0 || off < q.off || n > q.length || off-q.off > q.length-n || q.got+n > q.length {
		return nil, violation("data at %d, %d bytes, in reply to a read at %d of %d bytes", off, n, q.off, q.length)
	}
	q.got += n
	return q.buf[off-q.off:][:n], nil
}

func (d *decoder) data(q *request, c chunk) error {
	b, err := d.fixed(&c, 8)
	if err != nil {
		return err
	}
	w, err := q.window(binary.BigEndian.Uint64(b), c.length)
	if err != nil {
		return err
	}
	if _, err := io.ReadFull(d.r, w); err != nil {
		return truncated(err)
	}
	return nil
}

func (d *decoder) hole(q *request, c chunk) error {
	if c.length != 12 {
		return violation("hole chunk of %d bytes", c.length)
	}
	b, err := d.fixed(&c, 12)
	if err != nil {
		return err
	}
	w, err := q.window(binary.BigEndian.Uint64(b), uint64(binary.BigEndian.Uint32(b[8:])))
	if err != nil {
		return err
	}
	clear(w)
	return nil
}

// blockStatus reads a context's extents. head is the size of what precedes
// them (the context's id and, with extended headers, their count), each that
// of one.
func (d *decoder) blockStatus(q *request, c chunk, head, each uint64) error {
	b, err := d.fixed(&c, head)
	if err != nil {
		return err
	}
	index, known := d.contexts[binary.BigEndian.Uint32(b)]
	n := c.length / each
	if !known || n == 0 || c.length%each != 0 || n > maxExtents || head == 8 && uint64(binary.BigEndian.Uint32(b[4:])) != n {
		return violation("block status of %d bytes, context known %t", c.length, known)
	}
	if index >= len(q.status.Extents) || len(q.status.Extents[index]) != 0 {
		return violation("a context's block status came twice")
	}
	list, covered := q.status.Extents[index], uint64(0)
	for range n {
		var e Extent
		if _, err := io.ReadFull(d.r, d.hdr[:each]); err != nil {
			return truncated(err)
		}
		if each == 8 {
			e.Length = uint64(binary.BigEndian.Uint32(d.hdr[0:]))
			e.Flags = uint64(binary.BigEndian.Uint32(d.hdr[4:]))
		} else {
			e.Length = binary.BigEndian.Uint64(d.hdr[0:])
			e.Flags = binary.BigEndian.Uint64(d.hdr[8:])
		}
		if e.Length == 0 || covered >= q.length {
			return violation("extent of %d bytes after %d of %d", e.Length, covered, q.length)
		}
		// The last extent may reach beyond what was asked.
		e.Length = min(e.Length, q.length-covered)
		covered += e.Length
		list = append(list, e)
	}
	q.status.Extents[index] = list
	return nil
}

// failure reads an error chunk, of a known type or not: all begin alike.
func (d *decoder) failure(q *request, c chunk) error {
	b, err := d.fixed(&c, 6)
	if err != nil {
		return err
	}
	code, n := binary.BigEndian.Uint32(b), uint64(binary.BigEndian.Uint16(b[4:]))
	if n > c.length || n > maxErrorText || c.length-n > maxErrorText || code == 0 {
		return violation("error chunk: code %d, text of %d bytes, %d more", code, n, c.length)
	}
	text := make([]byte, n)
	if _, err := io.ReadFull(d.r, text); err != nil {
		return truncated(err)
	}
	if _, err := d.r.Discard(int(c.length - n)); err != nil {
		return truncated(err)
	}
	if q.err == nil {
		q.err = &ServerError{Op: commandName(q.cmd), Errno: wireErrno(code), Text: cleanText(text)}
	}
	return nil
}
