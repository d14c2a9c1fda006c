package remote

import (
	"context"
	"sync"
)

// turn lets one session run at a time: a new one ends the one before it. The zero
// value is ready.
type turn struct {
	mu     sync.Mutex
	closed bool
	cancel context.CancelFunc // of the session; nil for none
	ended  chan struct{}      // closed when it has ended
}

// take ends the session that is under way, waits for it, and begins another, whose
// context it returns; done is to be called when that has ended. It is false once
// the turn is closed.
func (t *turn) take(ctx context.Context) (session context.Context, done func(), ok bool) {
	session, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	for {
		t.mu.Lock()
		if t.closed {
			t.mu.Unlock()
			cancel()
			return nil, nil, false
		}
		before := t.ended
		if before == nil {
			break
		}
		t.cancel()
		t.mu.Unlock()
		<-before
	}
	t.cancel, t.ended = cancel, ended
	t.mu.Unlock()
	return session, func() {
		t.mu.Lock()
		t.cancel, t.ended = nil, nil
		t.mu.Unlock()
		cancel()
		close(ended)
	}, true
}

// close ends the session, waits for it, and lets no other begin. Repeatable.
func (t *turn) close() {
	t.mu.Lock()
	t.closed = true
	ended := t.ended
	if t.cancel != nil {
		t.cancel()
	}
	t.mu.Unlock()
	if ended != nil {
		<-ended
	}
}
