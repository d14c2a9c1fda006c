package wan

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/drover-vm/drover"
	"golang.org/x/sync/semaphore"
)

const (
	// handshakeLimit bounds a handshake: two round trips of the longest WAN,
	// and a lost packet's retries.
	handshakeLimit = 10 * time.Second
	// maxHandshakes bounds those under way at once. Each costs half a
	// millisecond of a core; whoever connects and stays silent holds a place
	// until handshakeLimit, and cannot hold more memory than this many.
	maxHandshakes = 64
	// acceptRetry is the wait after a failed accept, as when the process has
	// no file descriptor left.
	acceptRetry = 50 * time.Millisecond
)

// Mux is an agent's one port. Connections that choose HTTP/2 by ALPN come out
// of Control, those that choose the data path out of Data, those to disks that were
// left behind out of Disks, handshake done and certificate verified.
type Mux struct {
	listener net.Listener
	tls      *tls.Config
	log      *slog.Logger
	control  *branch
	data     *branch
	disks    *branch
}

// NewMux splits the connections of l, which it closes in the end. cfg is the
// process's configuration from pki.Config.
func NewMux(l net.Listener, cfg *tls.Config, log *slog.Logger) *Mux {
	c := cfg.Clone()
	c.NextProtos = []string{Control, Protocol, Disks}
	return &Mux{listener: l, tls: c, log: log, control: newBranch(l.Addr()), data: newBranch(l.Addr()), disks: newBranch(l.Addr())}
}

// Control is the listener for the agents' calls. Its connections are
// *tls.Conn, as net/http wants them for HTTP/2.
func (m *Mux) Control() net.Listener { return m.control }

// Data is the listener for Node.Serve.
func (m *Mux) Data() net.Listener { return m.data }

// Disks is the listener for ServeDisks.
func (m *Mux) Disks() net.Listener { return m.disks }

// Serve accepts until ctx ends or the listener fails, and then closes all
// branches. It returns nil when ctx ended.
func (m *Mux) Serve(ctx context.Context) error {
	var group sync.WaitGroup
	defer group.Wait()
	defer func() { _ = m.control.Close(); _ = m.data.Close(); _ = m.disks.Close() }()
	unhook := context.AfterFunc(ctx, func() { _ = m.listener.Close() })
	defer unhook()
	places := semaphore.NewWeighted(maxHandshakes)
	for {
		if places.Acquire(ctx, 1) != nil {
			return nil
		}
		conn, err := m.listener.Accept()
		if err != nil {
			places.Release(1)
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, net.ErrClosed) {
				return drover.E(drover.Internal, "accept", err)
			}
			m.log.Warn("accept failed", "err", err)
			time.Sleep(acceptRetry)
			continue
		}
		group.Go(func() {
			defer places.Release(1)
			m.admit(ctx, conn)
		})
	}
}

func (m *Mux) admit(ctx context.Context, raw net.Conn) {
	log := m.log.With("remote", raw.RemoteAddr().String())
	if tcp, ok := raw.(*net.TCPConn); ok {
		tune(tcp)
	}
	shake, cancel := context.WithTimeout(ctx, handshakeLimit)
	defer cancel()
	conn := tls.Server(raw, m.tls)
	if err := conn.HandshakeContext(shake); err != nil {
		log.Debug("handshake failed", "err", err)
		_ = raw.Close()
		return
	}
	to := m.control
	switch conn.ConnectionState().NegotiatedProtocol {
	case Control:
	case Protocol:
		to = m.data
	case Disks:
		to = m.disks
	default:
		// Without ALPN nobody knows what the peer speaks.
		log.Debug("handshake without a protocol")
		_ = raw.Close()
		return
	}
	if !to.put(ctx, conn) {
		_ = raw.Close()
	}
}

// branch is a listener that connections are put into.
type branch struct {
	addr  net.Addr
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func newBranch(addr net.Addr) *branch {
	return &branch{addr: addr, conns: make(chan net.Conn), done: make(chan struct{})}
}

func (b *branch) put(ctx context.Context, c net.Conn) bool {
	select {
	case b.conns <- c:
		return true
	case <-b.done:
	case <-ctx.Done():
	}
	return false
}

func (b *branch) Accept() (net.Conn, error) {
	select {
	case c := <-b.conns:
		return c, nil
	case <-b.done:
		return nil, net.ErrClosed
	}
}

func (b *branch) Close() error {
	b.once.Do(func() { close(b.done) })
	return nil
}

func (b *branch) Addr() net.Addr { return b.addr }
