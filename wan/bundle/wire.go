package bundle

import (
	"net"
	"sync/atomic"
)

// WireCounter is a connection that knows what passed below TLS. A bundle looks
// for it in a connection, and in what its NetConn returns.
type WireCounter interface {
	WireSent() int64
	WireReceived() int64
}

// Counted counts what passes through a connection; a Dial puts it between TCP
// and TLS.
type Counted struct {
	net.Conn
	sent, received atomic.Int64
}

var _ WireCounter = (*Counted)(nil)

// Count makes a connection count.
func Count(c net.Conn) *Counted { return &Counted{Conn: c} }

// Read counts what it reads.
func (c *Counted) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.received.Add(int64(n))
	return n, err
}

// Write counts what it writes.
func (c *Counted) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.sent.Add(int64(n))
	return n, err
}

// WireSent returns the bytes written so far.
func (c *Counted) WireSent() int64 { return c.sent.Load() }

// WireReceived returns the bytes read so far.
func (c *Counted) WireReceived() int64 { return c.received.Load() }

// NetConn returns the connection below.
func (c *Counted) NetConn() net.Conn { return c.Conn }

// below goes down a stack of connections to the first that is a T.
func below[T any](c net.Conn) (T, bool) {
	for {
		if t, ok := c.(T); ok {
			return t, true
		}
		next, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			var none T
			return none, false
		}
		c = next.NetConn()
	}
}

// abort closes a connection that is dead: nothing waits for its peer, and the
// kernel forgets what it could not send, so that it does not come between the
// new connections' bytes when the path heals.
func abort(c net.Conn) {
	if l, ok := below[interface{ SetLinger(sec int) error }](c); ok {
		_ = l.SetLinger(0)
	}
	closeBelow(c)
}

// closeBelow closes a connection below TLS, whose own Close may wait for a peer
// that does not read. What was written still goes out.
func closeBelow(c net.Conn) {
	for {
		next, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			_ = c.Close()
			return
		}
		c = next.NetConn()
	}
}
