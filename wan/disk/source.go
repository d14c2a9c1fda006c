package disk

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/nbd"
	"github.com/drover-vm/drover/wan/chunk"
	"github.com/drover-vm/drover/wan/reduce"
)

const (
	// DefaultLimit is what a disk may have taken from the hypervisor without
	// its having arrived: enough to fill 1 Gbit/s at a round trip of 100 ms.
	DefaultLimit = 16 << 20
	// minLimit is what one write of the NBD server's largest piece needs, with
	// room for another to be packed meanwhile.
	minLimit = 4 << 20
	// maxLimit bounds what a target lets a source ask of it.
	maxLimit = 256 << 20
	// DefaultWrittenLimit bounds what a Written may take: 32 GiB of blocks.
	DefaultWrittenLimit = 64 << 20
	// MaxDisks bounds the exports of one Source, and so the numbers of
	// references that it uses.
	MaxDisks = 64
	// maxConns bounds the hypervisor's connections: QEMU has up to two a disk.
	maxConns = 4 * MaxDisks
	// openLimit bounds the opening of an export at the destination. QEMU's
	// main loop stands still while it connects, and its guest soon after.
	openLimit = 10 * time.Second
	// acceptRetry is the wait after a failed accept, as when the process has
	// no file descriptor left.
	acceptRetry = 50 * time.Millisecond
)

// SourceOptions say how a Source works.
type SourceOptions struct {
	// Known is what the destination has; nil: nothing. The blocks that have
	// arrived are added to its Index.
	Known *reduce.Known
	// FirstNumber is the number of the first disk as a source of references;
	// the following disks have the following numbers, MaxDisks in all. The
	// numbers below are those of the sources that the destination advertised.
	FirstNumber uint16
	// Level and Stats are package reduce's.
	Level func() reduce.Level
	Stats *reduce.Stats
	// Limit bounds the bytes that a disk may have taken without their having
	// arrived; 0 is DefaultLimit.
	Limit int64
	// WrittenLimit bounds the memory of each disk's Written; 0 is
	// DefaultWrittenLimit.
	WrittenLimit int64
	// Log may be nil.
	Log *slog.Logger
}

// Source is the end at the agent that the VM leaves: the NBD server that the
// mirrors of the VM's disks write to.
type Source struct {
	o        SourceOptions
	open     func(ctx context.Context, export string) (Channel, error)
	listener *net.UnixListener
	ctx      context.Context // until Close
	cancel   context.CancelCauseFunc
	group    sync.WaitGroup
	conns    chan struct{}
	pool     buffers

	mu      sync.Mutex
	exports map[string]*opening
	numbers int
	err     error
}

// opening is an export that is open or being opened.
type opening struct {
	done chan struct{} // closed when it has been decided
	*export
	err error
}

// Serve takes the hypervisor's connections from l until ctx ends or the Source
// is closed. open gives the channel to the destination's Target for an export,
// once for each. Without a listener, Disk is the only way to the disks.
func Serve(ctx context.Context, l *net.UnixListener, open func(ctx context.Context, export string) (Channel, error), o SourceOptions) (*Source, error) {
	const op = "serve disks"
	switch {
	case o.Limit == 0:
		o.Limit = DefaultLimit
	case o.Limit < minLimit || o.Limit > maxLimit:
		return nil, drover.Errorf(drover.Invalid, op, "limit of %d bytes, want %d to %d", o.Limit, minLimit, maxLimit)
	}
	if int(o.FirstNumber)+MaxDisks > int(reduce.OwnMemory) {
		return nil, drover.Errorf(drover.Invalid, op, "first number %d leaves no room for %d disks", o.FirstNumber, MaxDisks)
	}
	if o.WrittenLimit == 0 {
		o.WrittenLimit = DefaultWrittenLimit
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	s := &Source{
		o: o, open: open, listener: l, cancel: cancel,
		conns: make(chan struct{}, maxConns), exports: map[string]*opening{},
	}
	s.ctx = ctx
	if l != nil {
		s.group.Go(func() { s.accept(ctx) })
	}
	return s, nil
}

// Disk opens an export as the hypervisor does, for a caller that has the disk's
// content itself: an image at rest. It stays open until Close.
func (s *Source) Disk(ctx context.Context, name string) (nbd.Backend, error) {
	type result struct {
		e   *export
		err error
	}
	done := make(chan result, 1)
	// Opening goes on when the caller does not wait; it is bounded.
	s.group.Go(func() {
		e, err := s.export(s.ctx, name)
		done <- result{e, err}
	})
	select {
	case r := <-done:
		if r.err != nil {
			return nil, r.err
		}
		return r.e, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// errClosed is what ends everything that a closed Source is doing.
var errClosed = drover.Errorf(drover.Canceled, "serve disks", "the source is closed")

// Close ends the hypervisor's connections, then the channels, and waits until
// nothing is running any more. What has not arrived is lost: after a Drain that
// is nothing. Closing twice is fine.
func (s *Source) Close() error {
	s.cancel(errClosed)
	s.group.Wait()
	return nil
}

// Err returns the first failure of a disk or a connection: when the hypervisor
// reports that a mirror failed, this says why.
func (s *Source) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

func (s *Source) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = err
	}
}

func (s *Source) accept(ctx context.Context) {
	unhook := context.AfterFunc(ctx, func() { _ = s.listener.Close() })
	defer unhook()
	for {
		conn, err := s.listener.AcceptUnix()
		switch {
		case ctx.Err() != nil || errors.Is(err, net.ErrClosed):
			if conn != nil {
				_ = conn.Close()
			}
			return
		case err != nil:
			time.Sleep(acceptRetry)
			continue
		}
		select {
		case s.conns <- struct{}{}:
		default:
			_ = conn.Close()
			continue
		}
		s.group.Go(func() {
			defer func() { <-s.conns }()
			err := nbd.Serve(ctx, conn, nbd.ServerOptions{Open: func(_ context.Context, name string) (nbd.Backend, error) {
				// The export outlives the connection: Drain and references
				// need it.
				e, err := s.export(ctx, name)
				if err != nil {
					return nil, err
				}
				return e, nil
			}})
			if err != nil && ctx.Err() == nil {
				s.o.Log.Warn("the hypervisor's disk connection failed", "err", err)
			}
		})
	}
}

// export returns an export, opening it at the destination the first time.
func (s *Source) export(ctx context.Context, name string) (*export, error) {
	s.mu.Lock()
	o := s.exports[name]
	if o == nil {
		if s.numbers == MaxDisks {
			s.mu.Unlock()
			return nil, drover.Errorf(drover.Exhausted, "open disk "+name, "%d disks were opened already", MaxDisks)
		}
		o = &opening{done: make(chan struct{})}
		s.exports[name] = o
		number := s.o.FirstNumber + uint16(s.numbers)
		s.numbers++
		s.group.Go(func() { s.run(ctx, o, name, number) })
	}
	s.mu.Unlock()
	select {
	case <-o.done:
		return o.export, o.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// run opens an export and carries it to its end.
func (s *Source) run(ctx context.Context, o *opening, name string, number uint16) {
	op := "open disk " + name
	err := func() error {
		if name == "" || len(name) > maxName {
			return drover.Errorf(drover.Invalid, op, "a name of %d bytes, want 1 to %d", len(name), maxName)
		}
		octx, cancel := context.WithTimeoutCause(ctx, openLimit,
			drover.Errorf(drover.Unavailable, op, "the destination did not answer within %v", openLimit))
		defer cancel()
		ch, err := s.open(octx, name)
		if err != nil {
			return err
		}
		if o.export, err = newExport(octx, s, ch, name, number); err != nil {
			ch.Close()
			if octx.Err() != nil {
				err = context.Cause(octx)
			}
		}
		return err
	}()
	if err != nil {
		o.err = drover.E(drover.KindOf(err), op, err)
		s.mu.Lock()
		delete(s.exports, name) // it may be tried again, under a new number
		s.mu.Unlock()
		s.fail(o.err)
		close(o.done)
		return
	}
	close(o.done)
	if err := o.carry(ctx); err != nil && ctx.Err() == nil {
		s.o.Log.Warn("disk failed", "export", name, "err", err)
		s.fail(fmt.Errorf("disk %s: %w", name, err))
	}
}

// list returns the exports that are open.
func (s *Source) list() map[string]*export {
	s.mu.Lock()
	defer s.mu.Unlock()
	open := map[string]*export{}
	for name, o := range s.exports {
		select {
		case <-o.done:
			open[name] = o.export
		default:
		}
	}
	return open
}

// Drain waits until everything that the hypervisor has been told is written
// has been applied at the destination. It returns the error of a disk that has
// failed: then it never will be.
func (s *Source) Drain(ctx context.Context) error {
	for name, e := range s.list() {
		if err := e.drain(ctx); err != nil {
			return drover.E(drover.KindOf(err), "drain disk "+name, err)
		}
	}
	return nil
}

// Positions returns how far each export is: what the hypervisor has been told
// is written. The switchover is allowed when the Target's Positions are the
// same.
func (s *Source) Positions() map[string]Position {
	m := map[string]Position{}
	for name, e := range s.list() {
		m[name] = e.position()
	}
	return m
}

// Applied returns how far each export is as far as this end has heard: what has
// been applied.
func (s *Source) Applied() map[string]Position {
	m := map[string]Position{}
	for name, e := range s.list() {
		m[name] = e.appliedPosition()
	}
	return m
}

// Written returns what was written to an export, or nil for one that is not
// open. It stays valid after Close.
func (s *Source) Written(export string) *Written {
	if e := s.list()[export]; e != nil {
		return e.written
	}
	return nil
}

// Numbers returns the numbers of the open exports as sources of references.
func (s *Source) Numbers() map[string]uint16 {
	m := map[string]uint16{}
	for name, e := range s.list() {
		m[name] = e.number
	}
	return m
}

// index is where arrived blocks are noted; nil: nowhere.
func (s *Source) index() *chunk.Index {
	if s.o.Known == nil {
		return nil
	}
	return s.o.Known.Index
}
