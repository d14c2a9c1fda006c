package reduce

import (
	"context"
	"slices"
	"sync"
)

// keeper holds the retained blocks of the batches that are not yet known to be complete, within
// a limit of guest memory. Those that a mirror has are not to be overwritten there as long.
type keeper struct {
	mu      sync.Mutex
	limit   int64
	covered map[int64]int // places in the mirror: by how many batches
	held    int64
	batches []*Retained // ascending by number, but for lanes that overtake
	changed chan struct{}
}

func newKeeper(limit int64) *keeper {
	return &keeper{limit: limit, covered: map[int64]int{}, changed: make(chan struct{})}
}

// allow changes the limit.
func (k *keeper) allow(bytes int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.limit = bytes
	k.wake()
}

// cover notes that a batch's blocks are retained in the mirror.
func (k *keeper) cover(d *Draft) {
	if d.mirror == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for i := range d.deps {
		k.covered[d.deps[i].place]++
	}
}

// covers reports whether one of the places is retained in the mirror.
func (k *keeper) covers(places []placed) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.covered) == 0 {
		return false
	}
	for i := range places {
		if _, ok := k.covered[places[i].place]; ok && places[i].at != unchanged {
			return true
		}
	}
	return false
}

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
		if r.mirror != nil {
			for i := range r.deps {
				place := r.deps[i].place
				if k.covered[place]--; k.covered[place] == 0 {
					delete(k.covered, place)
				}
			}
		}
		r.Release()
		return true
	})
	k.wake()
}
