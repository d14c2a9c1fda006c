package bundle

import (
	"errors"
	"io"
	"net"
	"sync/atomic"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/wan/frame"
)

// link is one connection of a bundle.
type link struct {
	number uint32
	conn   net.Conn
	wire   WireCounter
	joined time.Duration
	heard  atomic.Int64 // when anything was last read, nanoseconds after began

	// Guarded by Bundle.mu.
	dead     bool
	log      queue[sent] // counted frames on it that the far end has not counted
	acked    uint64      // counted frames that the far end has
	received uint64      // counted frames that came
	told     uint64      // of which the far end was told
	rtt      time.Duration
	pinged   time.Duration
	wantPing bool
	wantPong bool
	pong     uint64
	saysBye  bool
	lowat    int // TCP's limit of unsent bytes; zero is the dialer's

	// The writer's; held is written under Bundle.mu.
	buf  []byte        // small frames put together
	out  [][]byte      // what to write next
	held []*outMessage // whose frames are in out

	scratch []byte // the reader's
}

func newLink(conn net.Conn, number uint32, now time.Duration) *link {
	l := &link{
		number: number, conn: conn, joined: now, wantPing: true,
		buf: make([]byte, 0, recordBytes), scratch: make([]byte, frame.FrameBytes),
	}
	if w, ok := below[WireCounter](conn); ok {
		l.wire = w
	} else {
		counted := Count(conn)
		l.conn, l.wire = counted, counted
	}
	l.heard.Store(int64(now))
	return l
}

// write is the connection's writer.
func (b *Bundle) write(l *link) {
	for {
		if !b.pull(l) {
			return
		}
		var err error
		for _, p := range l.out {
			if _, err = l.conn.Write(p); err != nil {
				break
			}
		}
		b.wrote(l, err == nil)
		if err != nil {
			b.drop(l, err)
			return
		}
	}
}

// wrote lets go of what the writer was busy with.
func (b *Bundle) wrote(l *link, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, m := range l.held {
		l.held[i] = nil
		m.writers--
		b.recycle(m)
	}
	l.held = l.held[:0]
	if l.saysBye {
		l.saysBye = false
		b.byeWritten(ok)
	}
}

// heardReader notes that bytes came.
type heardReader struct {
	b *Bundle
	l *link
}

func (r heardReader) Read(p []byte) (int, error) {
	n, err := r.l.conn.Read(p)
	if n > 0 {
		r.l.heard.Store(int64(r.b.now()))
	}
	return n, err
}

// read is the connection's reader.
func (b *Bundle) read(l *link) {
	var r io.Reader = heardReader{b, l} // converted once, not for each frame
	head := make([]byte, frame.HeaderBytes)
	for {
		if err := b.readFrame(l, r, head); err != nil {
			b.drop(l, err)
			return
		}
	}
}

func (b *Bundle) readFrame(l *link, r io.Reader, head []byte) error {
	if _, err := io.ReadFull(r, head); err != nil {
		return err
	}
	h, err := frame.Parse(head)
	if err != nil {
		return err
	}
	if h.Kind == frame.Data {
		return b.readData(l, r, &h)
	}
	payload := l.scratch[:h.Length]
	if _, err := io.ReadFull(r, payload); err != nil {
		return err
	}
	if err := h.Verify(payload); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil || l.dead {
		return net.ErrClosed
	}
	switch h.Kind {
	case frame.Open, frame.CloseSend, frame.Reset:
		if err := b.takeMark(&h, payload); err != nil {
			return err
		}
		b.count(l, frame.HeaderBytes+len(payload))
	case frame.Ack:
		return b.takeAck(payload)
	case frame.Ping:
		l.wantPong, l.pong = true, h.Sequence
		b.work.Broadcast()
	case frame.Pong:
		return b.takePong(l, h.Sequence)
	case frame.Bye:
		b.takeBye(&h, payload)
	default:
		return drover.E(drover.Internal, "wan frame "+h.Kind.String(), errors.ErrUnsupported)
	}
	return nil
}

func (b *Bundle) takePong(l *link, sequence uint64) error {
	rtt := b.now() - time.Duration(sequence)
	if rtt < 0 || sequence > uint64(b.now()) {
		return drover.Errorf(drover.Invalid, "wan pong", "answers a ping that was not sent")
	}
	l.rtt = rtt
	return nil
}
