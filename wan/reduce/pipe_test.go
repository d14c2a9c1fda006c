package reduce_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/drover-vm/drover/wan/reduce"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errCut = errors.New("channel cut")

// half is one direction of a channel in memory with a window of messages.
type half struct {
	mu       sync.Mutex
	queue    []reduce.Message
	open     int // sent and not released
	closed   bool
	cutAfter int // messages until errCut; 0: never
	bytes    int
	changed  chan struct{}
}

func newHalf() *half { return &half{changed: make(chan struct{})} }

const windowMessages = 4

// wait runs f with the lock until it says that it is done.
func (h *half) wait(ctx context.Context, f func() bool) error {
	for {
		h.mu.Lock()
		done := f()
		changed := h.changed
		if done {
			close(h.changed)
			h.changed = make(chan struct{})
		}
		h.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (h *half) send(ctx context.Context, kind uint8, payload []byte) (err error) {
	werr := h.wait(ctx, func() bool {
		if h.closed {
			err = errors.New("send after close")
			return true
		}
		if h.open >= windowMessages {
			return false
		}
		if h.cutAfter > 0 {
			if h.cutAfter--; h.cutAfter == 0 {
				h.cutAfter, err = 1, errCut
				return true
			}
		}
		if len(payload) > 1<<20 {
			err = errors.New("payload too long")
			return true
		}
		var once sync.Once
		h.open++
		h.bytes += len(payload)
		p := bytes.Clone(payload)
		h.queue = append(h.queue, reduce.Message{Kind: kind, Payload: p, Release: func() {
			once.Do(func() {
				for i := range p {
					p[i] = 0xdb // whoever looks at it now is wrong
				}
				_ = h.wait(context.Background(), func() bool { h.open--; return true })
			})
		}})
		return true
	})
	return errors.Join(err, werr)
}

func (h *half) receive(ctx context.Context) (m reduce.Message, err error) {
	werr := h.wait(ctx, func() bool {
		switch {
		case len(h.queue) > 0:
			m, h.queue = h.queue[0], h.queue[1:]
			return true
		case h.closed:
			err = io.EOF
			return true
		}
		return false
	})
	if werr != nil {
		err = werr
	}
	return m, err
}

// end is one end of a channel in memory.
type end struct{ out, in *half }

func newPair() (a, b *end) {
	x, y := newHalf(), newHalf()
	return &end{out: x, in: y}, &end{out: y, in: x}
}

func (e *end) Send(ctx context.Context, kind uint8, p []byte) error { return e.out.send(ctx, kind, p) }
func (e *end) Receive(ctx context.Context) (reduce.Message, error)  { return e.in.receive(ctx) }
func (e *end) Drain(ctx context.Context) error {
	return e.out.wait(ctx, func() bool { return e.out.open == 0 })
}

func (e *end) CloseSend() error {
	return e.out.wait(context.Background(), func() bool { e.out.closed = true; return true })
}
