package libvirt

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"

	"github.com/drover-vm/drover"
)

const (
	// dialLimit bounds connecting and opening qemu:///system. libvirtd answers
	// in milliseconds once it listens; a socket that accepts and stays silent
	// is a hung daemon.
	dialLimit = 10 * time.Second
	// callLimit is the watchdog of an ordinary call. libvirt itself gives up
	// waiting for a VM's lock after 30 s and says so in words, so this has to
	// be longer; starting QEMU on a loaded host stays well below it.
	callLimit = 90 * time.Second
	// dropLimit bounds waiting for calls to return after their connection was
	// closed. They return at once; the limit is for a bug in the library.
	dropLimit = 5 * time.Second
	// maxCalls is how many calls libvirtd runs for one client at a time
	// (max_client_requests). More would wait there, with their watchdogs
	// running and keepalives unanswered; so they wait here.
	maxCalls = 5
)

// conn is one connection to the manager. go-libvirt has neither contexts nor
// timeouts, so every call runs in a goroutine of its own under a watchdog
// that closes the socket, which ends all calls on it.
type conn struct {
	rpc   *golibvirt.Libvirt
	sock  *watchedSocket
	calls sync.WaitGroup
	slots chan struct{} // holds a token for each call that is running
}

// watchedSocket closes gone when reading fails, that is when either side has
// closed the connection. (The library's own Disconnected channel is not safe
// to read while it connects.)
type watchedSocket struct {
	net.Conn
	once sync.Once
	gone chan struct{}
}

func (s *watchedSocket) Read(p []byte) (int, error) {
	n, err := s.Conn.Read(p)
	if err != nil {
		s.once.Do(func() { close(s.gone) })
	}
	return n, err
}

// onceDialer hands an open socket to the library.
type onceDialer struct{ sock net.Conn }

func (d onceDialer) Dial() (net.Conn, error) { return d.sock, nil }

// dial opens a connection to the manager's socket.
func dial(ctx context.Context, path string) (*conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialLimit)
	defer cancel()
	var dialer net.Dialer
	raw, err := dialer.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, &unreachableError{err}
	}
	c := &conn{sock: &watchedSocket{Conn: raw, gone: make(chan struct{})}, slots: make(chan struct{}, maxCalls)}
	c.rpc = golibvirt.NewWithDialer(onceDialer{c.sock})
	_, err = do(ctx, c, dialLimit, func(rpc *golibvirt.Libvirt) (struct{}, error) {
		return struct{}{}, rpc.ConnectToURI(golibvirt.QEMUSystem)
	})
	if err != nil {
		c.drop()
		c.wait()
		return nil, &unreachableError{fmt.Errorf("open qemu:///system: %w", err)}
	}
	return c, nil
}

// alive reports whether nobody has closed the connection yet.
func (c *conn) alive() bool {
	select {
	case <-c.sock.gone:
		return false
	default:
		return true
	}
}

// drop closes the socket: every call on it ends, and libvirt does what it does
// when a client dies.
func (c *conn) drop() { _ = c.sock.Close() }

// wait returns when no call is running on a dropped connection any more.
func (c *conn) wait() {
	done := make(chan struct{})
	go func() { c.calls.Wait(); close(done) }()
	timer := time.NewTimer(dropLimit)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	}
}

// do runs one call. When ctx ends first, do returns at once and the call goes
// on in the background until it ends or the watchdog drops the connection
// after limit (zero: no watchdog). The result travels by value, so that such
// a late end touches nothing of the caller's.
func do[T any](ctx context.Context, c *conn, limit time.Duration, call func(*golibvirt.Libvirt) (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	if err := ctx.Err(); err != nil {
		return result{}.value, err
	}
	select {
	case c.slots <- struct{}{}:
	case <-ctx.Done():
		return result{}.value, ctx.Err()
	}
	done := make(chan result, 1)
	c.calls.Go(func() {
		defer func() { <-c.slots }()
		hung := make(chan struct{})
		if limit > 0 {
			watchdog := time.AfterFunc(limit, func() { close(hung); c.drop() })
			defer watchdog.Stop()
		}
		value, err := call(c.rpc)
		select {
		case <-hung:
			err = &unreachableError{fmt.Errorf("no answer within %s", limit)}
		default:
		}
		done <- result{value, err}
	})
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		return result{}.value, ctx.Err()
	}
}

// errClosed says that the driver was closed by its owner.
var errClosed = errors.New("driver is closed")

// connect opens a connection that Close will drop.
func (h *Hypervisor) connect(ctx context.Context) (*conn, error) {
	c, err := dial(ctx, h.socket)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		c.drop()
		return nil, errClosed
	}
	h.conns[c] = struct{}{}
	return c, nil
}

// forget drops a connection got from connect.
func (h *Hypervisor) forget(c *conn) {
	c.drop()
	h.mu.Lock()
	delete(h.conns, c)
	h.mu.Unlock()
}

// release is forget, and waits for the connection's calls.
func (h *Hypervisor) release(c *conn) {
	h.forget(c)
	c.wait()
}

// connection returns the shared connection, a new one if the manager has gone
// away since.
func (h *Hypervisor) connection(ctx context.Context) (*conn, error) {
	select {
	case h.dialing <- struct{}{}:
		defer func() { <-h.dialing }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	h.mu.Lock()
	c, closed := h.shared, h.closed
	h.mu.Unlock()
	if closed {
		return nil, errClosed
	}
	if c != nil {
		if c.alive() {
			return c, nil
		}
		h.log.InfoContext(ctx, "libvirt connection is gone, connecting again", "socket", h.socket)
		h.release(c)
	}
	c, err := h.connect(ctx)
	h.mu.Lock()
	h.shared = c
	h.mu.Unlock()
	return c, err
}

// ask runs one call on the shared connection and returns its error in the
// driver's terms.
func ask[T any](ctx context.Context, h *Hypervisor, op string, f func(*golibvirt.Libvirt) (T, error)) (T, error) {
	c, err := h.connection(ctx)
	if err != nil {
		var none T
		return none, wrap(op, err)
	}
	value, err := do(ctx, c, callLimit, f)
	return value, wrap(op, err)
}

// askDomain is ask with the domain of that name looked up first.
func askDomain[T any](ctx context.Context, h *Hypervisor, op, name string, f func(*golibvirt.Libvirt, golibvirt.Domain) (T, error)) (T, error) {
	if err := drover.CheckName("vm", name); err != nil {
		var none T
		return none, err
	}
	return ask(ctx, h, op+" "+name, func(rpc *golibvirt.Libvirt) (T, error) {
		dom, err := rpc.DomainLookupByName(name)
		if err != nil {
			var none T
			return none, err
		}
		return f(rpc, dom)
	})
}

// onDomain is askDomain for calls without a result.
func (h *Hypervisor) onDomain(ctx context.Context, op, name string, f func(*golibvirt.Libvirt, golibvirt.Domain) error) error {
	_, err := askDomain(ctx, h, op, name, func(rpc *golibvirt.Libvirt, dom golibvirt.Domain) (struct{}, error) {
		return struct{}{}, f(rpc, dom)
	})
	return err
}
