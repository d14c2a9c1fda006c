package disk

import (
	"context"
	"io"
	"net"
	"path/filepath"
	"sync"
	"testing"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/nbd"
	"github.com/drover-vm/drover/wan/chunk"
	"github.com/drover-vm/drover/wan/reduce"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pipe is one direction of a channel in memory.
type pipe struct {
	messages chan message
	closed   sync.Once
}

type message struct {
	kind    uint8
	payload []byte
}

// end is one end of a channel in memory with a window of a few messages.
type end struct {
	in, out *pipe
	gone    chan struct{} // closed with either end
	once    *sync.Once
	// tamper, if set, may change what is sent; false drops it.
	tamper func(kind uint8, payload []byte) bool
	// gate, if set, holds what is sent until it is closed.
	gate chan struct{}
}

// pair returns the two ends of a channel.
func pair() (source, target *end) {
	a, b := &pipe{messages: make(chan message, 8)}, &pipe{messages: make(chan message, 8)}
	gone, once := make(chan struct{}), new(sync.Once)
	return &end{in: b, out: a, gone: gone, once: once}, &end{in: a, out: b, gone: gone, once: once}
}

func (e *end) Send(ctx context.Context, kind uint8, payload []byte) error {
	if len(payload) > 1<<20 {
		panic("a message of more than 1 MiB")
	}
	payload = append([]byte{}, payload...)
	if e.gate != nil {
		select {
		case <-e.gate:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if e.tamper != nil && !e.tamper(kind, payload) {
		return nil
	}
	select {
	case <-e.gone:
		return drover.Errorf(drover.Unavailable, "send", "the channel is closed")
	case e.out.messages <- message{kind, payload}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (e *end) Receive(ctx context.Context) (uint8, []byte, func(), error) {
	var m message
	var ok bool
	select {
	case m, ok = <-e.in.messages:
	default:
		select {
		case m, ok = <-e.in.messages:
		case <-e.gone:
			select { // what was sent before still arrives
			case m, ok = <-e.in.messages:
			default:
				return 0, nil, nil, drover.Errorf(drover.Unavailable, "receive", "the channel is closed")
			}
		case <-ctx.Done():
			return 0, nil, nil, ctx.Err()
		}
	}
	if !ok {
		return 0, nil, nil, io.EOF
	}
	return m.kind, m.payload, func() { clear(m.payload) }, nil
}

func (e *end) CloseSend() error {
	e.out.closed.Do(func() { close(e.out.messages) })
	return nil
}

func (e *end) Close() { e.once.Do(func() { close(e.gone) }) }

// image is the destination's disk: an NBD server's backend in memory.
type image struct {
	mu      sync.Mutex
	disk    []byte
	flushed []byte        // the content at the last flush
	fail    error         // of writes
	hold    chan struct{} // if set, writes wait for it to be closed
	trims   int
}

func (m *image) Size() int64 { return int64(len(m.disk)) }

func (m *image) ReadAt(_ context.Context, p []byte, off int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	copy(p, m.disk[off:])
	return nil
}

func (m *image) Write(ctx context.Context, p []byte, off int64) error {
	if m.hold != nil {
		select {
		case <-m.hold:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail == nil {
		copy(m.disk[off:], p)
	}
	return m.fail
}

func (m *image) Zero(_ context.Context, off, n int64, _ nbd.ZeroOptions) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail == nil {
		clear(m.disk[off:][:n])
	}
	return m.fail
}

func (m *image) Trim(ctx context.Context, off, n int64) error {
	m.mu.Lock()
	m.trims++
	m.mu.Unlock()
	return m.Zero(ctx, off, n, nbd.ZeroOptions{})
}

func (m *image) Flush(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.flushed = append(m.flushed[:0], m.disk...)
	return m.fail
}

// path is a source and a target with a channel in memory per disk.
type path struct {
	t       testing.TB
	socket  string
	source  *Source
	target  *Target
	known   *reduce.Known
	results chan error // of Apply
	cancel  context.CancelFunc
	mu      sync.Mutex
	ends    map[string]*end // source's
}

// pathOptions are what tests vary.
type pathOptions struct {
	dial     func(ctx context.Context, export string) (net.Conn, error)
	resolver reduce.Resolver
	shape    func(source, target *end)
	limit    int64
}

// dialImages serves images of that name in memory.
func dialImages(t testing.TB, images map[string]*image) func(context.Context, string) (net.Conn, error) {
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	socket := filepath.Join(t.TempDir(), "d")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				nbd.Serve(ctx, conn, nbd.ServerOptions{Open: func(_ context.Context, name string) (nbd.Backend, error) {
					if m := images[name]; m != nil {
						return m, nil
					}
					return nil, drover.Errorf(drover.NotFound, "open", "no such export as %s", name)
				}})
			})
		}
	})
	return func(ctx context.Context, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}
}

func newPath(t testing.TB, o pathOptions) *path {
	t.Helper()
	p := &path{
		t: t, socket: filepath.Join(t.TempDir(), "s"), results: make(chan error, MaxDisks), ends: map[string]*end{},
		known: &reduce.Known{Index: chunk.NewIndex(1 << 20)},
	}
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel = cancel
	p.target = NewTarget(TargetOptions{Dial: o.dial, Resolver: o.resolver})
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: p.socket})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	p.source, err = Serve(ctx, l, func(_ context.Context, name string) (Channel, error) {
		a, b := pair()
		if o.shape != nil {
			o.shape(a, b)
		}
		p.mu.Lock()
		p.ends[name] = a
		p.mu.Unlock()
		wg.Go(func() { p.results <- p.target.Apply(ctx, b) })
		return a, nil
	}, SourceOptions{Known: p.known, FirstNumber: 10, Limit: o.limit})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.source.Close()
		wg.Wait()
		cancel()
	})
	return p
}

// client connects as the hypervisor does.
func (p *path) client(export string) *nbd.Client {
	p.t.Helper()
	conn, err := net.Dial("unix", p.socket)
	if err != nil {
		p.t.Fatal(err)
	}
	c, err := nbd.New(p.t.Context(), conn, nbd.Options{Export: export})
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { c.Close() })
	return c
}
