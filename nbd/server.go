package nbd

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

const (
	// MaxRequestBytes is the largest READ or WRITE that a server takes: what
	// QEMU sends at most (include/block/nbd.h, NBD_MAX_BUFFER_SIZE).
	MaxRequestBytes = 32 << 20
	// pieceBytes is the largest piece of a WRITE handed to a Backend and of a
	// READ asked of it, so that a request's size does not decide about memory.
	pieceBytes = 1 << 20
	// maxOutstanding bounds the requests that wait for a Backend; a client
	// with more waits until one is answered. QEMU sends up to 16.
	maxOutstanding = 32
	// handshakeLimit is how long a client may stay silent between options.
	handshakeLimit = 30 * time.Second
	// hangupInterval is how often the connection is looked at for the
	// client's end while its requests are not read.
	hangupInterval = time.Second
)

// ZeroOptions are the flags of a WRITE_ZEROES.
type ZeroOptions struct {
	// KeepSpace asks that the run stay allocated (NO_HOLE).
	KeepSpace bool
	// Fast asks to fail with ENOTSUP if it is no faster than writing zeros.
	Fast bool
}

// Backend is what a server's export is made of. Ranges lie within the export
// and are not empty. An error that is or wraps one of the protocol's errnos
// is answered with it, any other with EIO.
//
// Write, Zero and Trim are called by one goroutine per connection, in the
// order of the client's requests; while one has not returned, no further
// request of the connection is read. They return when the backend has taken the
// operation, which is then acknowledged. Whether it has reached a disk is
// Flush's matter, and a later failure is reported by a later call. ReadAt and
// Flush are called concurrently with everything and may take their time.
type Backend interface {
	// Size is the export's size in bytes; it does not change.
	Size() int64
	// ReadAt fills p with what every operation that has returned before left
	// there.
	ReadAt(ctx context.Context, p []byte, off int64) error
	// Write takes p, which is at most 1 MiB and not the backend's after it.
	Write(ctx context.Context, p []byte, off int64) error
	// Zero makes a run read as zeros.
	Zero(ctx context.Context, off, length int64, o ZeroOptions) error
	// Trim says that a run's content does not matter any more.
	Trim(ctx context.Context, off, length int64) error
	// Flush returns when every operation that had returned before is durable,
	// those of other connections included.
	Flush(ctx context.Context) error
}

// Blocked is what a Backend also implements whose ranges must be multiples of
// something: a power of two up to 64 KiB. Clients are told and others refused.
type Blocked interface {
	BlockBytes() int64
}

// Parallel is what a Backend also implements whose operations take long and may
// overtake each other: Write, Zero and Trim are then called beside further
// requests, up to maxOutstanding at once, and what they have returned for is
// acknowledged. A client that cares for the order of two waits for the first.
// WRITEs of more than 1 MiB are taken one piece after the other all the same.
type Parallel interface {
	Backend
	// Parallel does nothing: it says so.
	Parallel()
}

// ServerOptions say what a server offers.
type ServerOptions struct {
	// Open finds an export by its name. It is called when the client asks
	// about the export and when it enters it; an error's text is sent to the
	// client. Whoever gives a backend closes it.
	Open func(ctx context.Context, export string) (Backend, error)
	// List names the exports; nil refuses to.
	List func(ctx context.Context) []string
}

// Serve speaks with one client until it goes, ctx ends or the protocol is
// broken, and closes conn. It returns nil when the client said goodbye or
// hung up between two requests. When it returns, no call into a backend is
// running.
func Serve(ctx context.Context, conn net.Conn, o ServerOptions) error {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	s := &server{
		conn: conn, r: bufio.NewReaderSize(conn, readBuffer), o: o, cancel: cancel,
		slots: make(chan struct{}, maxOutstanding), whole: make(chan struct{}, 1),
	}
	err := s.run(ctx)
	// What is still running for a client that is gone serves nobody.
	cancel(errHungUp)
	stop()
	conn.Close()
	s.wg.Wait()
	switch cause := context.Cause(ctx); {
	case err == nil, errors.Is(cause, errHungUp) && errors.Is(err, net.ErrClosed):
		return nil
	case !errors.Is(cause, errHungUp):
		return cause
	}
	return err
}

// errHungUp is the cause of the context's end when the client went first.
var errHungUp = errors.New("nbd: the client hung up")

// server is one connection's server side.
type server struct {
	conn       net.Conn
	r          *bufio.Reader
	o          ServerOptions
	structured bool
	backend    Backend
	block      uint64 // what ranges are multiples of
	parallel   bool   // the backend is a Parallel
	mapped     bool   // the client may ask what of mappedName is data
	mappedName string
	cancel     context.CancelCauseFunc

	slots chan struct{} // one place per request that waits for the backend
	whole chan struct{} // one place for a large READ that is answered in one
	wg    sync.WaitGroup

	sendMu sync.Mutex
	vec    [2][]byte
	bufs   net.Buffers

	piece []byte // a WRITE's payload on its way
}

func (s *server) run(ctx context.Context) error {
	entered, err := s.negotiate(ctx)
	if err != nil || !entered {
		return err
	}
	_, s.parallel = s.backend.(Parallel)
	s.wg.Go(func() { s.watch(ctx) })
	for {
		q, err := readRequest(s.r)
		switch {
		case err == io.EOF:
			return nil // a client may go without a word
		case err != nil:
			return err
		}
		if q.cmd == cmdDisc {
			// The protocol has the server answer what is outstanding first.
			s.settle(ctx)
			return nil
		}
		if err := s.serve(ctx, q); err != nil {
			return err
		}
	}
}

// settle waits for the outstanding requests.
func (s *server) settle(ctx context.Context) {
	for range maxOutstanding {
		select {
		case s.slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
	}
}

// watch ends the connection's context when the client has hung up, which the
// reader does not hear of while the backend lets it wait.
func (s *server) watch(ctx context.Context) {
	tick := time.NewTicker(hangupInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if hungUp(s.conn) {
				s.cancel(errHungUp)
				return
			}
		}
	}
}
