package wan

import (
	"net"
	"sync"
	"testing"
)

// cable is the WAN between two agents: a TCP proxy that can be cut and that
// can change what passes.
type cable struct {
	address string
	target  string
	group   sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]bool // both sides of all connections
	isCut bool
	// passed counts bytes by direction: to the destination, and back.
	passed [2]int64
	// tamper, if not nil, is given what passes, and how much did before in that
	// direction. It returns what is passed on in its place, and whether the
	// connection ends after it. It runs under the lock and may call cutNow.
	tamper func(direction int, before int64, p []byte) (out []byte, end bool)
	// head is where a TLS record begins in what tamper is given; negative: none does.
	head int
}

// records follows the TLS records of one direction of a connection.
type records struct {
	head []byte // of the record that has begun, up to its length
	left int    // bytes of its content that are still to come
}

// next takes what passes, and returns where the first record in it begins, if one does.
func (r *records) next(p []byte) int {
	first := -1
	for at := 0; at < len(p); {
		if r.left > 0 {
			n := min(r.left, len(p)-at)
			r.left, at = r.left-n, at+n
			continue
		}
		if len(r.head) == 0 && first < 0 {
			first = at
		}
		r.head = append(r.head, p[at])
		at++
		if len(r.head) == 5 {
			r.left, r.head = int(r.head[3])<<8|int(r.head[4]), r.head[:0]
		}
	}
	return first
}

const (
	forth = 0
	back  = 1
)

func newCable(t testing.TB, target string) *cable {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	c := &cable{address: l.Addr().String(), target: target, conns: map[net.Conn]bool{}}
	c.group.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			c.group.Go(func() { c.carry(near) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		c.cut()
		ends(t, "the cable's end", c.group.Wait)
	})
	return c
}

func (c *cable) carry(near net.Conn) {
	defer near.Close()
	far, err := net.Dial("tcp", c.target)
	if err != nil {
		return
	}
	defer far.Close()
	if !c.register(near, far) {
		return
	}
	defer c.forget(near, far)
	var both sync.WaitGroup
	both.Go(func() { c.pump(far, near, forth) })
	both.Go(func() { c.pump(near, far, back) })
	both.Wait()
}

func (c *cable) register(conns ...net.Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range conns {
		if c.isCut {
			abortConn(conn)
			continue
		}
		c.conns[conn] = true
	}
	return !c.isCut
}

func (c *cable) forget(conns ...net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range conns {
		delete(c.conns, conn)
	}
}

// abortConn closes with a reset: what is under way is lost, as in a cut.
func abortConn(c net.Conn) {
	_ = c.(*net.TCPConn).SetLinger(0)
	_ = c.Close()
}

func (c *cable) pump(to, from net.Conn, direction int) {
	buf := make([]byte, 32<<10)
	var rec records
	for {
		n, err := from.Read(buf)
		p, end := buf[:n], false
		head := rec.next(p)
		c.mu.Lock()
		c.head = head
		before := c.passed[direction]
		c.passed[direction] += int64(n)
		if c.tamper != nil && n > 0 {
			p, end = c.tamper(direction, before, p)
		}
		c.mu.Unlock()
		if len(p) > 0 {
			if _, werr := to.Write(p); werr != nil {
				end = true
			}
		}
		if end {
			_ = to.Close()
			_ = from.Close()
			return
		}
		if err != nil {
			_ = to.(*net.TCPConn).CloseWrite()
			return
		}
	}
}

// cut ends all connections and refuses new ones.
func (c *cable) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cutNow()
}

func (c *cable) cutNow() {
	c.isCut = true
	for conn := range c.conns {
		abortConn(conn)
	}
}

func (c *cable) heal() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.isCut = false
}

// onPassing sets tamper so that f is called once, under the lock, when so many
// more bytes have passed in a direction, with the bytes among which the last of
// them is and its place.
func (c *cable) onPassing(direction int, bytes int64, f func(p []byte, at int) (out []byte, end bool)) <-chan struct{} {
	done := make(chan struct{})
	c.mu.Lock()
	defer c.mu.Unlock()
	at := c.passed[direction] + bytes
	c.tamper = func(d int, before int64, p []byte) ([]byte, bool) {
		if d != direction || before+int64(len(p)) <= at || f == nil {
			return p, false
		}
		g := f
		f = nil
		close(done)
		return g(p, int(max(0, at-before)))
	}
	return done
}
