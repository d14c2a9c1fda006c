package page

import "io"

const (
	// bufferBytes is what a Reader keeps: some 250 pages, so that few system
	// calls are made and moving the rest of a record costs nothing much.
	bufferBytes = 1 << 20
	// leastRead is the room that a read finds in the buffer at least: what
	// a unix socket holds is taken in one go.
	leastRead = 256 << 10
	// emptyReads is how many reads without a byte and without an error a Reader
	// takes before it gives up with io.ErrNoProgress, as package bufio does.
	emptyReads = 100
)

// Reader takes a migration stream apart. It is not for concurrent use.
type Reader struct {
	src io.Reader
	err error // what the last read ended with; sticky
	// buf[start:pos] is understood and not returned yet, buf[pos:end] is
	// still to be parsed.
	buf             []byte
	start, pos, end int

	// peeked is the record that Buffered found ahead of Next's asking.
	peeked      Record
	peekedPhase Phase
	hasPeeked   bool

	phase  Phase // of the record returned last
	parser parser
}

// NewReader returns a Reader of the stream that r delivers.
func NewReader(r io.Reader) *Reader {
	return &Reader{src: r, buf: make([]byte, bufferBytes), parser: newParser()}
}

// Next returns the next record. It returns all that was read before it reads
// again, so nothing that the source waits for an answer to is held back,
// except the beginning of a page or a header whose rest has not come. Pages
// are never split; bytes may be, anywhere. At the end of the stream, whether or
// not that is where a migration ends, Next returns io.EOF; an error of the
// stream's reader is returned as it is, after everything that was read before it.
func (r *Reader) Next() (Record, error) {
	if r.hasPeeked {
		r.hasPeeked = false
		r.phase = r.peekedPhase
		return r.peeked, nil
	}
	for {
		if rec, phase, ok := r.advance(); ok {
			r.phase = phase
			return rec, nil
		}
		if r.err != nil {
			return Record{}, r.err
		}
		r.fill()
	}
}

// Buffered returns how many bytes, at least, can be had from Next without
// reading from the stream: 0 says that the next call of Next reads, and may have to
// wait for it, or has nothing more to return. Records returned before stay valid.
func (r *Reader) Buffered() int {
	if !r.hasPeeked {
		rec, phase, ok := r.advance()
		if !ok {
			return 0
		}
		r.peeked, r.peekedPhase, r.hasPeeked = rec, phase, true
	}
	return max(len(r.peeked.Data), 1)
}

// Phase returns the phase of the record returned last.
func (r *Reader) Phase() Phase { return r.phase }

// Blocks returns the RAM blocks that the stream has announced so far. The list only
// grows: a place in it keeps its meaning. The caller must not change it.
func (r *Reader) Blocks() []Block { return r.parser.blocks }

// advance returns the next record that the buffer holds, if there is one, and the
// phase it belongs to. Bytes of two phases are two records.
func (r *Reader) advance() (rec Record, phase Phase, ok bool) {
	for {
		phase = r.parser.phase
		n, res := r.parser.step(r.buf[r.pos:r.end], &rec)
		switch {
		case res == more:
			if r.err != nil {
				r.pos = r.end // the stream was cut off inside of an element
			}
			if r.start == r.pos {
				return Record{}, phase, false
			}
			return r.take(), phase, true
		case res == found && r.start == r.pos:
			r.pos += n
			r.start = r.pos
			return rec, phase, true
		case res == found:
			// What comes before the page goes first; the page is found again.
			return r.take(), phase, true
		case r.parser.phase != phase && r.start < r.pos:
			rec = r.take()
			r.pos += n
			return rec, phase, true
		default:
			r.pos += n
		}
	}
}

// take returns as Bytes what is understood.
func (r *Reader) take() Record {
	data := r.buf[r.start:r.pos:r.pos]
	r.start = r.pos
	return Record{Data: data}
}

// fill reads once. Everything understood has been returned by then, so only
// the beginning of an element is moved to the front of the buffer.
func (r *Reader) fill() {
	if r.start == r.end || len(r.buf)-r.end < leastRead {
		r.end = copy(r.buf, r.buf[r.start:r.end])
		r.start, r.pos = 0, 0
	}
	for range emptyReads {
		n, err := r.src.Read(r.buf[r.end:])
		r.end += n
		r.err = err
		if n > 0 || err != nil {
			return
		}
	}
	r.err = io.ErrNoProgress
}
