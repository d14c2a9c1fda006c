package wan

import (
	"crypto/tls"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Stream is one connection of a session. Read and Write may be used
// concurrently with each other. CloseWrite ends this side's direction: the
// other side reads io.EOF, and may go on writing. Close ends both.
type Stream interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// stream counts and paces a TLS connection.
type stream struct {
	conn    *tls.Conn
	session *Session
	channel Channel

	closing   sync.Once
	closed    chan struct{}
	closeFail error
}

func newStream(conn *tls.Conn, s *Session, c Channel) *stream {
	s.counters[c].streams.Add(1)
	return &stream{conn: conn, session: s, channel: c, closed: make(chan struct{})}
}

func (s *stream) Read(p []byte) (int, error) {
	n, err := s.conn.Read(p)
	s.session.counters[s.channel].received.Add(int64(n))
	return n, err
}

func (s *stream) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		part := p[done:min(done+burstBytes, len(p))]
		if wait := s.session.reserve(len(part)); wait > 0 {
			if err := s.sleep(wait); err != nil {
				return done, err
			}
		}
		n, err := s.conn.Write(part)
		s.session.counters[s.channel].sent.Add(int64(n))
		done += n
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

func (s *stream) sleep(d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-s.closed:
		return net.ErrClosed
	}
}

func (s *stream) CloseWrite() error { return s.conn.CloseWrite() }

func (s *stream) Close() error {
	s.closing.Do(func() {
		close(s.closed)
		// tls.Conn.Close waits up to 5 s for room to send its alert: a writer
		// that the peer does not read from must not delay the end.
		_ = s.conn.SetWriteDeadline(time.Now().Add(closeLimit))
		s.closeFail = s.conn.Close()
	})
	return s.closeFail
}

// closeLimit is what a dying stream may take to say that it dies.
const closeLimit = 100 * time.Millisecond

// wireCounter counts what passes below TLS.
type wireCounter struct{ sent, received atomic.Int64 }

// wireConn is a TCP connection that counts.
type wireConn struct {
	*net.TCPConn
	count *wireCounter
}

func (c wireConn) Read(p []byte) (int, error) {
	n, err := c.TCPConn.Read(p)
	c.count.received.Add(int64(n))
	return n, err
}

func (c wireConn) Write(p []byte) (int, error) {
	n, err := c.TCPConn.Write(p)
	c.count.sent.Add(int64(n))
	return n, err
}
