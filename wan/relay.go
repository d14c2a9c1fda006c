package wan

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/drover-vm/drover"
)

const (
	// relayBuffer is what one direction of one connection holds: four TLS
	// records. What is in flight delays the switchover (16 MB at 465 Mbit/s is
	// 275 ms of pause), and larger buffers were not faster.
	relayBuffer = 64 << 10
	// relayConns bounds a relay's connections: QEMU opens one for memory and
	// two for each disk.
	relayConns = 128
	// maxUnixPath is what sockaddr_un holds, with its terminating zero.
	maxUnixPath = 108
)

// Relay listens on a unix socket and carries each connection over a stream of
// its own.
type Relay struct {
	listener *net.UnixListener
	open     func(context.Context) (Stream, error)
	cancel   context.CancelFunc
	group    sync.WaitGroup
	active   atomic.Int64

	mu  sync.Mutex
	err error
}

// NewRelay listens at path, which it makes and in the end removes; open makes
// the stream of each connection. A path that is too long gives drover.Invalid.
func NewRelay(path string, open func(context.Context) (Stream, error)) (*Relay, error) {
	const op = "listen for the hypervisor"
	if len(path) >= maxUnixPath {
		return nil, drover.Errorf(drover.Invalid, op, "%s: %d bytes, a unix socket's path may have %d", path, len(path), maxUnixPath-1)
	}
	// A socket of that name is an earlier process's: this path is ours.
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, drover.E(drover.Internal, op, err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, drover.E(drover.Internal, op, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &Relay{listener: l, open: open, cancel: cancel}
	r.group.Go(func() { r.accept(ctx) })
	return r, nil
}

// Err returns the first failure of a connection: when the hypervisor reports
// that its socket was closed, this says why. It is nil after Close if nothing
// failed before.
func (r *Relay) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// Close ends the listening and every connection, waits for them, and removes
// the socket.
func (r *Relay) Close() error {
	r.cancel()
	err := r.listener.Close()
	r.group.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (r *Relay) accept(ctx context.Context) {
	for {
		conn, err := r.listener.AcceptUnix()
		switch {
		case ctx.Err() != nil || errors.Is(err, net.ErrClosed):
			if conn != nil {
				_ = conn.Close()
			}
			return
		case err != nil:
			time.Sleep(acceptRetry)
			continue
		case r.active.Load() >= relayConns:
			_ = conn.Close()
			continue
		}
		r.active.Add(1)
		r.group.Go(func() {
			defer r.active.Add(-1)
			if err := r.carry(ctx, conn); err != nil && ctx.Err() == nil {
				r.mu.Lock()
				if r.err == nil {
					r.err = err
				}
				r.mu.Unlock()
			}
		})
	}
}

func (r *Relay) carry(ctx context.Context, local *net.UnixConn) error {
	remote, err := r.open(ctx)
	if err != nil {
		_ = local.Close()
		return err
	}
	return join(ctx, local, remote)
}

// join carries bytes both ways between a hypervisor's socket and a stream
// until both directions have ended, or one has failed, or ctx ends; then it
// closes both. A direction that ends is ended on the other side too.
func join(ctx context.Context, local *net.UnixConn, remote Stream) error {
	group, ctx := errgroup.WithContext(ctx)
	unhook := context.AfterFunc(ctx, func() { _ = local.Close(); _ = remote.Close() })
	defer func() {
		unhook()
		_ = local.Close()
		_ = remote.Close()
	}()
	group.Go(func() error { return oneWay(remote, local) })
	group.Go(func() error { return oneWay(local, remote) })
	return group.Wait()
}

type halfCloser interface {
	io.Writer
	CloseWrite() error
}

func oneWay(to halfCloser, from io.Reader) error {
	// Wrapped, so that io.CopyBuffer uses the buffer and not a larger one of
	// its own or the kernel's.
	_, err := io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, make([]byte, relayBuffer))
	if err != nil {
		return err
	}
	// The other side may have gone already; then there is nobody to tell.
	_ = to.CloseWrite()
	return nil
}
