package remote

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/drover-vm/drover/nbd"
)

const (
	// Between two attempts to reach the far end: quick at first, since a guest
	// waits, and never rarer than redialMost, since it still does.
	redialLeast = 100 * time.Millisecond
	redialMost  = 2 * time.Second
	// sessionLimit bounds one attempt to open a session: connecting, TLS and NBD
	// take seven round trips, and the far end may have requests of the old
	// session to end.
	sessionLimit = 30 * time.Second
)

// Options are what a Disk works with.
type Options struct {
	// Size of the disk in bytes; a far end with another one is not used.
	Size int64
	// Export is the disk's name at the far end.
	Export string
	// Dial connects to the far end.
	Dial func(ctx context.Context) (net.Conn, error)
	// Clock is the time; nil is time.Now.
	Clock func() time.Time
	Log   *slog.Logger
}

// Disk is a disk at another site, as the VM's host sees it. It serves one client
// at a time, which is QEMU: a new one ends the old one's session.
type Disk struct {
	o     Options
	open  atomic.Bool
	meter meter
	turn  turn
}

// New returns a disk that is not open yet.
func New(o Options) *Disk {
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Disk{o: o, meter: meter{clock: o.Clock}}
}

// Open lets requests through. Before it they fail with EIO, flushes excepted,
// which have nothing to do: a QEMU that receives a guest may look at its disks
// while the guest still runs elsewhere.
func (d *Disk) Open() { d.open.Store(true) }

// Figures are what has been read and written so far.
func (d *Disk) Figures() Figures { return d.meter.figures() }

// Check opens a session and ends it: nil says that the far end has the disk.
func (d *Disk) Check(ctx context.Context) error {
	c, err := d.connect(ctx)
	if err != nil {
		return err
	}
	return c.Close()
}

// connect opens a session at the far end.
func (d *Disk) connect(ctx context.Context) (*nbd.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, sessionLimit)
	defer cancel()
	conn, err := d.o.Dial(ctx)
	if err != nil {
		return nil, err
	}
	c, err := nbd.New(ctx, conn, nbd.Options{Export: d.o.Export, Contexts: []string{nbd.Allocation}})
	if err != nil {
		return nil, err
	}
	if c.Size() != d.o.Size {
		_ = c.Close()
		return nil, fmt.Errorf("the far end has a disk of %d bytes, want %d", c.Size(), d.o.Size)
	}
	return c, nil
}

// Serve speaks with one client until it goes or ctx ends, and closes conn. A
// session that is under way is ended first.
func (d *Disk) Serve(ctx context.Context, conn net.Conn) error {
	ctx, done, ok := d.turn.take(ctx)
	if !ok {
		return conn.Close()
	}
	defer done()
	s := &session{d: d, slot: make(chan struct{}, 1)}
	// What is outstanding at the far end is nobody's any more: the far end ends
	// it before it takes another session.
	defer s.close()
	return nbd.Serve(ctx, conn, nbd.ServerOptions{
		Open: func(context.Context, string) (nbd.Backend, error) { return s, nil },
	})
}

// Close ends the session and takes no other.
func (d *Disk) Close() { d.turn.close() }

// session is a client's session, and the sessions at the far end that serve it, one
// after the other. It is the client's backend.
type session struct {
	d    *Disk
	slot chan struct{} // held while client is opened

	mu     sync.Mutex
	client *nbd.Client // nil: to be opened
	over   bool
}

var (
	_ nbd.Parallel = (*session)(nil)
	_ nbd.Mapper   = (*session)(nil)
)

// Parallel implements nbd.Parallel: each operation takes a round trip.
func (s *session) Parallel() {}

// Size is the disk's.
func (s *session) Size() int64 { return s.d.o.Size }

// ReadAt implements nbd.Backend.
func (s *session) ReadAt(ctx context.Context, p []byte, off int64) error {
	return s.do(ctx, opRead, len(p), func(_ context.Context, c *nbd.Client) error {
		_, err := c.ReadAt(p, off)
		return err
	})
}

// Write implements nbd.Backend.
func (s *session) Write(ctx context.Context, p []byte, off int64) error {
	return s.do(ctx, opWrite, len(p), func(_ context.Context, c *nbd.Client) error {
		_, err := c.WriteAt(p, off)
		return err
	})
}

// Zero implements nbd.Backend.
func (s *session) Zero(ctx context.Context, off, length int64, o nbd.ZeroOptions) error {
	return s.do(ctx, opOther, 0, func(ctx context.Context, c *nbd.Client) error {
		return c.ZeroWith(ctx, off, length, o)
	})
}

// Trim implements nbd.Backend.
func (s *session) Trim(ctx context.Context, off, length int64) error {
	return s.do(ctx, opOther, 0, func(ctx context.Context, c *nbd.Client) error { return c.Trim(ctx, off, length) })
}

// Extents implements nbd.Mapper. Of a disk that is not open, and of a far end that
// does not tell, all is data.
func (s *session) Extents(ctx context.Context, off, length int64) ([]nbd.Extent, error) {
	all := []nbd.Extent{{Length: uint64(length)}}
	if !s.d.open.Load() {
		return all, nil
	}
	list := all
	err := s.do(ctx, opOther, 0, func(ctx context.Context, c *nbd.Client) error {
		if !c.HasContext(0) {
			list = all
			return nil
		}
		var st nbd.Status
		err := c.BlockStatus(ctx, off, length, &st)
		if err == nil {
			list = st.Extents[0]
		}
		return err
	})
	return list, err
}

// Flush implements nbd.Backend.
func (s *session) Flush(ctx context.Context) error {
	if !s.d.open.Load() {
		return nil
	}
	return s.do(ctx, opOther, 0, func(ctx context.Context, c *nbd.Client) error { return c.Flush(ctx) })
}

// do carries a request out, over as many sessions at the far end as it takes. An
// error is the far end's own word, or says that the client has gone.
func (s *session) do(ctx context.Context, kind operation, n int, ask func(context.Context, *nbd.Client) error) error {
	if !s.d.open.Load() {
		return fmt.Errorf("the disk is not this host's yet: %w", syscall.EIO)
	}
	began := s.d.o.Clock()
	for {
		c, err := s.get(ctx)
		if err != nil {
			return err
		}
		// Reads and writes have no context of their own.
		stop := context.AfterFunc(ctx, func() { s.drop(c) })
		err = ask(ctx, c)
		stop()
		var told *nbd.ServerError
		switch {
		case err == nil:
			s.d.meter.count(kind, n, s.d.o.Clock().Sub(began))
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.As(err, &told) && told.Errno != syscall.ESHUTDOWN:
			s.d.o.Log.Error("the far end refuses a request of the guest", "export", s.d.o.Export, "err", err)
			return err
		}
		s.drop(c)
	}
}

// get returns the session at the far end, and opens one where there is none, as
// often as it takes.
func (s *session) get(ctx context.Context) (*nbd.Client, error) {
	select {
	case s.slot <- struct{}{}:
		defer func() { <-s.slot }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	said := false
	for wait := redialLeast; ; wait = min(2*wait, redialMost) {
		s.mu.Lock()
		c, over := s.client, s.over
		s.mu.Unlock()
		switch {
		case over:
			return nil, net.ErrClosed
		case c != nil:
			return c, nil
		}
		c, err := s.d.connect(ctx)
		if err == nil {
			s.mu.Lock()
			s.client, over = c, s.over
			s.mu.Unlock()
			if over {
				_ = c.Close()
				return nil, net.ErrClosed
			}
			if said {
				s.d.o.Log.Info("a disk that was left behind is reached again", "export", s.d.o.Export)
			}
			return c, nil
		}
		if ctx.Err() == nil && !said {
			s.d.o.Log.Warn("a disk that was left behind is not reached; the guest waits", "export", s.d.o.Export, "err", err)
			said = true
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// drop ends a session at the far end that is of no more use.
func (s *session) drop(c *nbd.Client) {
	s.mu.Lock()
	if s.client == c {
		s.client = nil
	}
	s.mu.Unlock()
	_ = c.Close()
}

func (s *session) close() {
	s.mu.Lock()
	c := s.client
	s.client, s.over = nil, true
	s.mu.Unlock()
	if c != nil {
		_ = c.Close()
	}
}
