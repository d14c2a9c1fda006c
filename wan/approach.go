package wan

import (
	"context"
	"net"
	"sync"
	"time"
)

// approachHolds is how long a connection that has not said hello is good for: less than helloLimit, after which
// the far end closes it.
const approachHolds = helloLimit * 8 / 10

// Approach is connections to another agent that are made while the destination of a session is still being
// prepared: TCP's and TLS's round trips cost the move no time then.
type Approach struct {
	address, peer string
	cancel        context.CancelFunc
	group         sync.WaitGroup
	made          chan approached

	mu   sync.Mutex
	left int // of made, not taken
}

// approached is one connection, or none.
type approached struct {
	conn net.Conn
	at   time.Time
}

// Approach begins to connect to the agent called peer at address ("ip:port"). Failures do not show: the session dials
// anew, and says why it cannot. Close it in any case.
func (n *Node) Approach(address, peer string) *Approach {
	ctx, cancel := context.WithCancel(context.Background())
	a := &Approach{address: address, peer: peer, cancel: cancel, made: make(chan approached, n.config.Connections), left: n.config.Connections}
	for range n.config.Connections {
		a.group.Go(func() {
			conn, err := dial(ctx, n.config.TLS, address, peer)
			if err != nil {
				conn = nil
			}
			a.made <- approached{conn, time.Now()}
		})
	}
	return a
}

// take returns a connection that was made, nil when there is none (any more).
func (a *Approach) take(ctx context.Context) net.Conn {
	for {
		a.mu.Lock()
		more := a.left > 0
		if more {
			a.left--
		}
		a.mu.Unlock()
		if !more {
			return nil
		}
		select {
		case m := <-a.made:
			switch {
			case m.conn == nil:
			case time.Since(m.at) > approachHolds:
				_ = m.conn.Close()
			default:
				return m.conn
			}
		case <-ctx.Done():
			a.mu.Lock()
			a.left++
			a.mu.Unlock()
			return nil
		}
	}
}

// Close ends what was not taken, and waits. nil is fine.
func (a *Approach) Close() {
	if a == nil {
		return
	}
	a.cancel()
	a.group.Wait()
	a.mu.Lock()
	left := a.left
	a.left = 0
	a.mu.Unlock()
	for range left {
		if m := <-a.made; m.conn != nil {
			_ = m.conn.Close()
		}
	}
}
