package reduce

import (
	"context"
	"slices"
	"sync"
)

// keeper holds the retained blocks of the batches that are not yet known to be complete, within
// a limit.
type keeper struct {
	limit int64

	mu      sync.Mutex
	held    int64
	batches []*Retained // ascending by number, but for lanes that overtake
	changed chan struct{}
}

func newKeeper(limit int64) *keeper { return &keeper{limit: limit, changed: make(chan struct{})} }

// try reserves bytes more if they may be held: within the limit, or as the only ones.
func (k *keeper) try(bytes int64) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.reserve(bytes)
}

func (k *keeper) reserve(bytes int64) bool {
	if bytes > 0 && k.held > 0 && k.held+bytes > k.limit {
		return false
	}
	k.held += bytes
	return true
}

// wait reserves bytes more, as soon as they may be held.
func (k *keeper) wait(ctx context.Context, bytes int64) error {
	return k.until(ctx, func() bool { return k.reserve(bytes) })
}

// cancel gives a reservation back.
func (k *keeper) cancel(bytes int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.held -= bytes
	k.wake()
}

// wake tells those that wait. mu is held.
func (k *keeper) wake() {
	close(k.changed)
	k.changed = make(chan struct{})
}

// empty returns when nothing is held.
func (k *keeper) empty(ctx context.Context) error {
	return k.until(ctx, func() bool { return k.held == 0 })
}

func (k *keeper) until(ctx context.Context, ok func() bool) error {
	for {
		k.mu.Lock()
		if ok() {
			k.mu.Unlock()
			return nil
		}
		changed := k.changed
		k.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// add keeps a batch's blocks, for which there is a reservation; nil is nothing.
func (k *keeper) add(r *Retained) {
	if r == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.batches = append(k.batches, r)
}

// find returns what is kept of a batch.
func (k *keeper) find(seq uint64) *Retained {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, r := range k.batches {
		if r.Seq == seq {
			return r
		}
	}
	return nil
}

// applied lets go of all batches up to seq.
func (k *keeper) applied(seq uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.batches = slices.DeleteFunc(k.batches, func(r *Retained) bool {
		if r.Seq > seq {
			return false
		}
		k.held -= r.Bytes()
		r.Release()
		return true
	})
	k.wake()
}
