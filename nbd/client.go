package nbd

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"
)

const (
	// MaxInFlight is how many requests a client has on the wire at once:
	// QEMU's server handles 16 per connection (nbd/server.c, MAX_NBD_REQUESTS)
	// and more would only queue.
	MaxInFlight = 16
	// ChunkBytes is the largest READ and WRITE sent. 1 MiB keeps QEMU's bounce
	// buffers small while the cost per request vanishes.
	ChunkBytes = 1 << 20
	// zeroBytes is the largest WRITE_ZEROES and TRIM, so that a cancel is heard between
	// two of them.
	zeroBytes = 256 << 20
	// statusBytes is the largest BLOCK_STATUS; it fits 32-bit headers and
	// keeps one answer within maxExtents at 64 KiB clusters.
	statusBytes = 1 << 31
	// readBuffer holds reply headers and small chunks; payloads beyond it
	// are read straight into their destination.
	readBuffer = 16 << 10
	// farewell bounds the sending of DISC to a server that does not read.
	farewell = time.Second
)

// Options say what to ask of a server.
type Options struct {
	// Export is the export's name; qemu-nbd's default is the empty one.
	Export string
	// Contexts are the metadata contexts that BlockStatus reports.
	Contexts []string
}

// Client is one connection to one export. All methods may be called
// concurrently. ReadAt and WriteAt split what is large and keep several
// requests in flight.
type Client struct {
	conn     net.Conn
	session  session
	contexts int
	chunk    uint64 // largest READ or WRITE

	sendMu sync.Mutex
	hdr    [32]byte
	vec    [2][]byte
	bufs   net.Buffers

	mu    sync.Mutex // guards active, abandoned and cookie of the requests
	slots [MaxInFlight]request
	free  chan *request

	closeOnce sync.Once
	closed    chan struct{} // closed by Close
	dead      chan struct{} // closed when the reader has ended
	deadErr   error         // why; read after dead
}

// New negotiates over conn and takes it over: it is closed by Close, or here
// on error. Canceling ctx ends the negotiation only.
func New(ctx context.Context, conn net.Conn, o Options) (*Client, error) {
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	r := bufio.NewReaderSize(conn, readBuffer)
	s, err := handshake(r, conn, o.Export, o.Contexts)
	if !stop() {
		err = ctx.Err()
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	c := &Client{
		conn: conn, session: s, contexts: len(o.Contexts),
		chunk:  min(ChunkBytes, uint64(s.maxBlock)),
		free:   make(chan *request, MaxInFlight),
		closed: make(chan struct{}), dead: make(chan struct{}),
	}
	for i := range c.slots {
		c.slots[i].done = make(chan struct{}, 1)
		c.slots[i].cookie = uint64(i)
		c.free <- &c.slots[i]
	}
	go c.receive(r)
	return c, nil
}

// Size is the export's size in bytes.
func (c *Client) Size() int64 { return int64(c.session.size) }

// ReadOnly reports whether the server forbids writing.
func (c *Client) ReadOnly() bool { return c.session.flags&flagReadOnly != 0 }

// BlockBytes is what offsets and lengths must be multiples of.
func (c *Client) BlockBytes() int64 { return int64(c.session.minBlock) }

// HasContext reports whether the server reports the i-th context of Options.
func (c *Client) HasContext(i int) bool {
	for _, have := range c.session.contexts {
		if have == i {
			return true
		}
	}
	return false
}

// Close ends the session without waiting for requests in flight; they return
// ErrClosed. Closing twice is fine.
func (c *Client) Close() error {
	c.closeOnce.Do(func() {
		close(c.closed)
		c.conn.SetWriteDeadline(time.Now().Add(farewell))
		c.sendMu.Lock()
		c.write(cmdDisc, 0, 0, 0, 0, nil) // the server hears of it by EOF as well
		c.sendMu.Unlock()
		c.conn.Close()
	})
	<-c.dead
	return nil
}

// receive reads replies until the connection ends.
func (c *Client) receive(r *bufio.Reader) {
	d := decoder{r: r, extended: c.session.extended, contexts: c.session.contexts, lookup: c.lookup}
	var err error
	for err == nil {
		var q *request
		if q, err = d.next(); q != nil {
			c.complete(q)
		}
	}
	switch {
	case ready(c.closed):
		err = ErrClosed
	case errors.Is(err, io.EOF):
		err = fmt.Errorf("nbd: the server hung up: %w", io.ErrUnexpectedEOF)
	}
	c.conn.Close()
	c.deadErr = err
	close(c.dead)
}

func ready(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

func (c *Client) lookup(cookie uint64) *request {
	q := &c.slots[cookie%MaxInFlight]
	c.mu.Lock()
	defer c.mu.Unlock()
	if !q.active || q.cookie != cookie {
		return nil
	}
	return q
}

func (c *Client) complete(q *request) {
	c.mu.Lock()
	q.active = false
	abandoned := q.abandoned
	c.mu.Unlock()
	if abandoned {
		c.release(q)
		return
	}
	q.done <- struct{}{}
}

func (c *Client) release(q *request) {
	q.buf, q.status = nil, nil
	c.free <- q
}

// acquire takes a free slot. With wait false it returns nil when there is none.
func (c *Client) acquire(ctx context.Context, wait bool) (*request, error) {
	select {
	case q := <-c.free:
		return q, nil
	default:
		if !wait {
			return nil, nil
		}
	}
	select {
	case q := <-c.free:
		return q, nil
	case <-c.dead:
		return nil, c.deadErr
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// start sends a command in slot q, whose buf or status is set already.
func (c *Client) start(q *request, cmd, flags uint16, off, length uint64, payload []byte) {
	c.mu.Lock()
	q.cookie += MaxInFlight // the slot's number stays its remainder
	q.cmd, q.off, q.length = cmd, off, length
	q.got, q.err = 0, nil
	q.active, q.abandoned = true, false
	cookie := q.cookie
	c.mu.Unlock()

	if cmd == cmdWrite && c.session.extended {
		flags |= cmdFlagPayloadLen
	}
	c.sendMu.Lock()
	err := c.write(cmd, flags, cookie, off, length, payload)
	c.sendMu.Unlock()
	if err != nil {
		// A half-sent command cannot be mended; the reader hears of it and
		// every waiter of the reader.
		c.conn.Close()
	}
}

// write sends one command; sendMu is held.
func (c *Client) write(cmd, flags uint16, cookie, off, length uint64, payload []byte) error {
	b := c.hdr[:28]
	if c.session.extended {
		b = c.hdr[:32]
		binary.BigEndian.PutUint32(b[0:], magicExtRequest)
		binary.BigEndian.PutUint64(b[24:], length)
	} else {
		binary.BigEndian.PutUint32(b[0:], magicRequest)
		binary.BigEndian.PutUint32(b[24:], uint32(length))
	}
	binary.BigEndian.PutUint16(b[4:], flags)
	binary.BigEndian.PutUint16(b[6:], cmd)
	binary.BigEndian.PutUint64(b[8:], cookie)
	binary.BigEndian.PutUint64(b[16:], off)
	if len(payload) == 0 {
		_, err := c.conn.Write(b)
		return err
	}
	c.vec = [2][]byte{b, payload}
	c.bufs = c.vec[:]
	_, err := c.bufs.WriteTo(c.conn)
	return err
}

// wait returns when the request has ended. A canceled one is left to the
// reader; only requests without a caller's buffer may be.
func (c *Client) wait(ctx context.Context, q *request) error {
	select {
	case <-q.done:
		err := q.err
		c.release(q)
		return err
	case <-c.dead:
		if ready(q.done) { // it ended before the connection did
			err := q.err
			c.release(q)
			return err
		}
		return c.deadErr
	case <-ctx.Done():
		c.mu.Lock()
		running := q.active
		q.abandoned = true
		c.mu.Unlock()
		if !running {
			// It ended meanwhile; done is on its way or there.
			<-q.done
			c.release(q)
		}
		return ctx.Err()
	}
}

// simple runs one command without payload.
func (c *Client) simple(ctx context.Context, cmd, flags uint16, off, length uint64, st *Status) error {
	q, err := c.acquire(ctx, true)
	if err != nil {
		return err
	}
	q.status = st
	c.start(q, cmd, flags, off, length, nil)
	return c.wait(ctx, q)
}

// check says whether a range lies in the export and on its blocks.
func (c *Client) check(op string, off, length int64) error {
	size, block := c.Size(), c.BlockBytes()
	if off < 0 || length < 0 || off > size || length > size-off {
		return fmt.Errorf("nbd %s: range %d+%d is outside of the export of %d bytes: %w", op, off, length, size, syscall.EINVAL)
	}
	if off%block != 0 || length%block != 0 {
		return fmt.Errorf("nbd %s: range %d+%d is not on blocks of %d bytes: %w", op, off, length, block, syscall.EINVAL)
	}
	return nil
}
