package bundle

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/drover-vm/drover/wan/frame"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// network is a WAN in memory: connections with a delay, a rate and a bounded
// queue, which can be cut, killed and disturbed. In a synctest bubble its time
// is virtual.
type network struct {
	delay time.Duration
	rate  float64 // bytes per second of each direction, all connections together; zero is unlimited
	queue int     // bytes that a connection holds in each direction

	mu     sync.Mutex
	cond   *sync.Cond
	isCut  bool
	free   [2]time.Time // when each direction's line is free
	pairs  []*pair
	dialed int
	accept func(net.Conn)
	group  sync.WaitGroup
	// disturb may change a write, or end the connection by returning fewer
	// bytes than it was given.
	disturb func(side int, b []byte) []byte
}

func newNetwork(delay time.Duration) *network {
	n := &network{delay: delay, queue: 256 << 10}
	n.cond = sync.NewCond(&n.mu)
	return n
}

type chunk struct {
	at time.Time
	b  []byte
}

// pair is one connection; side 0 is the dialer's.
type pair struct {
	n      *network
	broken error
	gone   [2]bool     // the side has closed
	lines  [2]struct { // from each side
		chunks []chunk
		queued int
		ended  bool
	}
}

type simConn struct {
	p    *pair
	side int

	closed        bool
	readBy, write time.Time
}

func (n *network) dial(ctx context.Context) (net.Conn, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.dialed++
	unhook := context.AfterFunc(ctx, func() { n.mu.Lock(); defer n.mu.Unlock(); n.cond.Broadcast() })
	defer unhook()
	for n.isCut && ctx.Err() == nil {
		n.cond.Wait()
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	p := &pair{n: n}
	n.pairs = append(n.pairs, p)
	far := &simConn{p: p, side: 1}
	n.group.Go(func() { n.accept(far) })
	return &simConn{p: p, side: 0}, nil
}

func (n *network) set(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f()
	n.cond.Broadcast()
}

func (n *network) cut()  { n.set(func() { n.isCut = true }) }
func (n *network) heal() { n.set(func() { n.isCut = false }) }

var errReset = &net.OpError{Op: "read", Net: "sim", Err: errors.New("connection reset")}

// kill breaks the i-th youngest connection.
func (n *network) kill(i int) {
	n.set(func() {
		if i < len(n.pairs) {
			n.pairs[len(n.pairs)-1-i].broken = errReset
		}
	})
}

// until wakes the waiters at a time.
func (n *network) until(t time.Time) func() bool {
	if t.IsZero() {
		return func() bool { return true }
	}
	return time.AfterFunc(time.Until(t), func() { n.set(func() {}) }).Stop
}

func (c *simConn) Read(b []byte) (int, error) {
	n := c.p.n
	n.mu.Lock()
	defer n.mu.Unlock()
	for {
		line := &c.p.lines[1-c.side]
		wait := c.readBy
		switch {
		case c.closed:
			return 0, net.ErrClosed
		case c.p.broken != nil:
			return 0, c.p.broken
		case !c.readBy.IsZero() && !time.Now().Before(c.readBy):
			return 0, os.ErrDeadlineExceeded
		case n.isCut:
		case len(line.chunks) > 0:
			first := &line.chunks[0]
			if !time.Now().Before(first.at) {
				k := copy(b, first.b)
				if first.b = first.b[k:]; len(first.b) == 0 {
					line.chunks = line.chunks[1:]
				}
				line.queued -= k
				n.cond.Broadcast()
				return k, nil
			}
			if wait.IsZero() || first.at.Before(wait) {
				wait = first.at
			}
		case line.ended:
			return 0, io.EOF
		}
		stop := n.until(wait)
		n.cond.Wait()
		stop()
	}
}

func (c *simConn) Write(b []byte) (int, error) {
	n := c.p.n
	n.mu.Lock()
	defer n.mu.Unlock()
	line := &c.p.lines[c.side]
	for {
		switch {
		case c.closed || line.ended:
			return 0, net.ErrClosed
		case c.p.broken != nil:
			return 0, c.p.broken
		case c.p.gone[1-c.side]:
			return 0, errReset
		case !c.write.IsZero() && !time.Now().Before(c.write):
			return 0, os.ErrDeadlineExceeded
		}
		if line.queued < n.queue {
			break
		}
		stop := n.until(c.write)
		n.cond.Wait()
		stop()
	}
	sent := append([]byte(nil), b...)
	if n.disturb != nil {
		sent = n.disturb(c.side, sent)
	}
	now := time.Now()
	if n.rate > 0 {
		if n.free[c.side].Before(now) {
			n.free[c.side] = now
		}
		n.free[c.side] = n.free[c.side].Add(time.Duration(float64(len(sent)) / n.rate * float64(time.Second)))
		now = n.free[c.side]
	}
	line.chunks = append(line.chunks, chunk{now.Add(n.delay), sent})
	line.queued += len(sent)
	if len(sent) < len(b) {
		line.ended = true
	}
	n.cond.Broadcast()
	return len(b), nil
}

func (c *simConn) CloseWrite() error {
	c.p.n.set(func() { c.p.lines[c.side].ended = true })
	return nil
}

func (c *simConn) Close() error {
	c.p.n.set(func() { c.closed, c.p.gone[c.side] = true, true; c.p.lines[c.side].ended = true })
	return nil
}

func (c *simConn) SetDeadline(t time.Time) error {
	c.p.n.set(func() { c.readBy, c.write = t, t })
	return nil
}

func (c *simConn) SetReadDeadline(t time.Time) error {
	c.p.n.set(func() { c.readBy = t })
	return nil
}

func (c *simConn) SetWriteDeadline(t time.Time) error {
	c.p.n.set(func() { c.write = t })
	return nil
}

func (c *simConn) LocalAddr() net.Addr  { return &net.UnixAddr{Name: "sim", Net: "unix"} }
func (c *simConn) RemoteAddr() net.Addr { return c.LocalAddr() }

var testToken = []byte("a token of 24 bytes long")

// bundles makes both ends over a network. The caller closes them with end.
type ends struct {
	t    testing.TB
	n    *network
	near *Bundle
	far  *Bundle
}

func connect(t testing.TB, n *network, near, far Config) *ends {
	t.Helper()
	near.Token, far.Token = testToken, testToken
	near.Dial = n.dial
	e := &ends{t: t, n: n}
	var err error
	if e.far, err = Accept(far); err != nil {
		t.Fatal(err)
	}
	n.accept = func(c net.Conn) {
		hello, err := frame.ReadHello(c)
		if err != nil {
			_ = c.Close()
			return
		}
		_ = e.far.Attach(c, hello)
	}
	if e.near, err = Initiate(t.Context(), near); err != nil {
		t.Fatal(err)
	}
	return e
}

// end closes both ends cleanly, and the network.
func (e *ends) end() {
	var group sync.WaitGroup
	group.Go(func() { e.near.Close(nil) })
	group.Go(func() { e.far.Close(nil) })
	group.Wait()
	e.n.heal()
	e.n.group.Wait()
}

// channel opens one at the near end and accepts it at the far end.
func (e *ends) channel(class Class, name string) (near, far *Channel) {
	e.t.Helper()
	near, err := e.near.Open(e.t.Context(), class, name)
	if err != nil {
		e.t.Fatal(err)
	}
	far, err = e.far.Accept(e.t.Context())
	if err != nil {
		e.t.Fatal(err)
	}
	if far.Name() != name || far.Class() != class {
		e.t.Fatalf("accepted %q of class %s, want %q of %s", far.Name(), far.Class(), name, class)
	}
	return near, far
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
