package disk

import (
	"bytes"
	"context"
	"math/rand/v2"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/drover-vm/drover/wan/bundle"
	"github.com/drover-vm/drover/wan/frame"
)

// wires are a bundle's connections, which can be cut.
type wires struct {
	mu    sync.Mutex
	conns []net.Conn
}

func (w *wires) add(c net.Conn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.conns = append(w.conns, c)
}

// cut breaks every connection that there is.
func (w *wires) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.conns {
		_ = c.Close()
	}
	w.conns = nil
}

// newBundle returns the two ends of a bundle over unix sockets.
func newBundle(t *testing.T, w *wires) (near, far *bundle.Bundle) {
	t.Helper()
	token := []byte("0123456789abcdef")
	var err error
	if far, err = bundle.Accept(bundle.Config{Token: token}); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "w"))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				if hello, err := frame.ReadHello(c); err != nil || far.Attach(c, hello) != nil {
					_ = c.Close()
				}
			})
		}
	})
	near, err = bundle.Initiate(t.Context(), bundle.Config{Token: token, Conns: 2, Dial: func(ctx context.Context) (net.Conn, error) {
		c, err := (&net.Dialer{}).DialContext(ctx, "unix", l.Addr().String())
		if err == nil {
			w.add(c)
		}
		return c, err
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		near.Close(errClosed)
		far.Close(errClosed)
		_ = l.Close()
		wg.Wait()
	})
	return near, far
}

// TestCuts: a real bundle whose connections break again and again. Every
// acknowledged write is there, once and in order.
func TestCuts(t *testing.T) {
	const size = 12 << 20
	m := &image{disk: make([]byte, size)}
	w := new(wires)
	near, far := newBundle(t, w)
	target := NewTarget(TargetOptions{Dial: dialImages(t, map[string]*image{"d": m})})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := far.Accept(ctx)
			if err != nil {
				return
			}
			wg.Go(func() {
				if err := target.Apply(ctx, Over(c)); err != nil {
					t.Errorf("the target ended with %v", err)
				}
			})
		}
	})
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket})
	if err != nil {
		t.Fatal(err)
	}
	source, err := Serve(ctx, l, func(ctx context.Context, name string) (Channel, error) {
		c, err := near.Open(ctx, bundle.Disk, name)
		if err != nil {
			return nil, err
		}
		return Over(c), nil
	}, SourceOptions{Limit: minLimit})
	if err != nil {
		t.Fatal(err)
	}
	p := &path{t: t, socket: socket}
	c := p.client("d")
	stop := make(chan struct{})
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
				w.cut()
			}
		}
	})
	want := make([]byte, size)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 200 {
		off := r.IntN(size-300<<10) &^ 511
		b := randomBytes(uint64(i), 1+r.IntN(300<<10))
		copy(want[off:], b)
		if _, err := c.WriteAt(b, int64(off)); err != nil {
			t.Fatal(err)
		}
		if i%50 == 49 {
			if err := c.Flush(t.Context()); err != nil || !bytes.Equal(m.flushed, want) {
				t.Fatalf("after flush %d: %v, equal %t", i, err, bytes.Equal(m.flushed, want))
			}
		}
	}
	close(stop)
	if err := source.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := Missing(source.Positions(), target.Positions()); err != nil || !bytes.Equal(m.disk, want) {
		t.Errorf("after Drain: %v, equal %t", err, bytes.Equal(m.disk, want))
	}
	c.Close()
	if err := source.Close(); err != nil {
		t.Error(err)
	}
	// The target hears of the end over the bundle and ends by itself.
	for len(targetDisks(target)) > 0 {
		time.Sleep(time.Millisecond)
	}
	cancel()
	wg.Wait()
}

func targetDisks(t *Target) map[uint16]*disk {
	t.mu.RLock()
	defer t.mu.RUnlock()
	m := map[uint16]*disk{}
	for n, d := range t.disks {
		m[n] = d
	}
	return m
}
