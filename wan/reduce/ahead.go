package reduce

import (
	"context"
	"sync"
	"time"
)

const (
	// aheadBytes is how much encoded memory may wait for the link while most of the guest's memory is still
	// to come: in it are content, which the link takes slowly, and references, which cost it nothing, in the order
	// of the guest's pages, and without a store between them the link would stand still while references are
	// found and the hypervisor while content is sent.
	aheadBytes = 16 << 20
	// aheadTime is how long the link may take for what waits: a third of the time that a small guest takes.
	aheadTime = 1500 * time.Millisecond
	// aheadShare is what part of the memory that is still to come in the first round may wait. As the
	// round comes to its end so does the store, because what waits when the guest is paused is added to the
	// pause, and because the hypervisor has to see how fast the link is when it decides on the pause.
	aheadShare = 16
	// aheadStart is what may wait before it is known what the link takes.
	aheadStart = 2 << 20
	// rateTime is over how long the link's rate is measured.
	rateTime = 200 * time.Millisecond
)

// ahead holds encoded batches, of several lanes, between compressors and link: in the order of their turns,
// and within a limit in bytes. One batch is always let in.
type ahead struct {
	mu      sync.Mutex
	allowed int64 // by what is still to come
	linked  int64 // by what the link takes
	held    int64
	turn    int // of the next batch to take
	batches map[int][]byte
	ended   bool
	changed chan struct{}
	// What the link takes: bytes in the time that something waited.
	sent  int64
	spent time.Duration
}

func newAhead() *ahead {
	return &ahead{batches: map[int][]byte{}, changed: make(chan struct{}), linked: aheadStart}
}

// allow changes how much may wait.
func (a *ahead) allow(bytes int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.allowed = bytes
	a.wake()
}

// limit is how much may wait. mu is held.
func (a *ahead) limit() int64 { return min(a.allowed, a.linked) }

// took notes that the link took a batch, and how long that was. Now and then it says how many bytes a second the
// link takes, and how full the store is, from 0 to 1.
func (a *ahead) took(bytes int, d time.Duration) (rate, stock float64, measured bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sent, a.spent = a.sent+int64(bytes), a.spent+d
	if a.spent < rateTime {
		return 0, 0, false
	}
	rate = float64(a.sent) / a.spent.Seconds()
	a.linked = int64(rate * aheadTime.Seconds())
	a.sent, a.spent = 0, 0
	return rate, min(1, float64(a.held)/float64(max(1, a.limit()))), true
}

// wake tells those that wait. mu is held.
func (a *ahead) wake() {
	close(a.changed)
	a.changed = make(chan struct{})
}

// put adds the batch of a turn when there is room. The batch whose turn it is never waits for those that wait
// for it.
func (a *ahead) put(ctx context.Context, turn int, batch []byte) error {
	for {
		a.mu.Lock()
		if _, first := a.batches[a.turn]; a.held == 0 || a.held+int64(len(batch)) <= a.limit() || turn == a.turn && !first {
			a.batches[turn] = batch
			a.held += int64(len(batch))
			a.wake()
			a.mu.Unlock()
			return nil
		}
		changed := a.changed
		a.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// take returns the next batch in order, and false when there are no more.
func (a *ahead) take(ctx context.Context) ([]byte, bool, error) {
	for {
		a.mu.Lock()
		if batch, ok := a.batches[a.turn]; ok {
			delete(a.batches, a.turn)
			a.held -= int64(len(batch))
			a.turn++
			a.wake()
			a.mu.Unlock()
			return batch, true, nil
		}
		ended, changed := a.ended && len(a.batches) == 0, a.changed
		a.mu.Unlock()
		if ended {
			return nil, false, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, false, context.Cause(ctx)
		}
	}
}

// end says that no lane puts any more.
func (a *ahead) end() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ended = true
	a.wake()
}
