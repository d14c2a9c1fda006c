package executor

import (
	"slices"
	"sync"

	"github.com/drover-vm/drover"
)

// link is one direction between two sites, or within one.
type link struct{ from, to string }

func linkOf(r Request) link { return link{r.From.Site, r.To.Site} }

// queue admits moves, first come first served per link.
type queue struct {
	limits Limits

	mu       sync.Mutex
	inFlight int
	perLink  map[link]int
	// locked counts the moves that hold a lock: one, unless a record was made by
	// hand.
	locked  map[string]int
	waiting []*ticket
}

// ticket is a place in the queue, and then a slot on a link.
type ticket struct {
	q    *queue
	link link
	// locks are held from the turn to end, of which no other in flight has one.
	locks []string
	// turn is closed when the slot is had.
	turn chan struct{}
	// held, gone and locking belong to the queue's mutex.
	held, gone, locking bool
}

func newQueue(l Limits) *queue {
	return &queue{limits: l, perLink: make(map[link]int), locked: make(map[string]int)}
}

// admission is how a move comes to the queue.
type admission int

const (
	// asNew: it may be turned away.
	asNew admission = iota
	// asAccepted: it was accepted before, and is not turned away any more.
	asAccepted
	// asBegun: it goes in at once, over the limits; leaving it half done would
	// hold more up than it costs.
	asBegun
)

// enter takes a place at the end. A new move finding the queue full gets
// drover.Exhausted.
func (q *queue) enter(l link, locks []string, as admission) (*ticket, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	t := &ticket{q: q, link: l, locks: locks, turn: make(chan struct{})}
	if as == asBegun {
		q.admit(t)
		return t, nil
	}
	if as == asNew && len(q.waiting) >= q.limits.MovesQueued {
		return nil, drover.Errorf(drover.Exhausted, "queue", "%d moves are waiting already, which is the limit", len(q.waiting))
	}
	q.waiting = append(q.waiting, t)
	q.advance()
	return t, nil
}

// leave gives the place or the slot back, but not the locks. Repeating it is fine.
func (t *ticket) leave() {
	q := t.q
	q.mu.Lock()
	defer q.mu.Unlock()
	if t.gone {
		return
	}
	t.gone = true
	if t.held {
		q.inFlight--
		if q.perLink[t.link]--; q.perLink[t.link] == 0 {
			delete(q.perLink, t.link)
		}
	}
	q.waiting = slices.DeleteFunc(q.waiting, func(w *ticket) bool { return w == t })
	q.advance()
}

// end gives everything back. Repeating it is fine.
func (t *ticket) end() {
	t.leave()
	q := t.q
	q.mu.Lock()
	defer q.mu.Unlock()
	if !t.locking {
		return
	}
	t.locking = false
	for _, k := range t.locks {
		if q.locked[k]--; q.locked[k] == 0 {
			delete(q.locked, k)
		}
	}
	q.advance()
}

func (q *queue) admit(t *ticket) {
	t.held, t.locking = true, true
	for _, k := range t.locks {
		q.locked[k]++
	}
	q.inFlight++
	q.perLink[t.link]++
	close(t.turn)
}

// advance admits whoever can be: a move whose link is taken does not hold up
// those behind it that use another, unless they want a lock that it waits for, too.
func (q *queue) advance() {
	wanted := make(map[string]bool)
	q.waiting = slices.DeleteFunc(q.waiting, func(t *ticket) bool {
		taken := slices.ContainsFunc(t.locks, func(k string) bool { return wanted[k] || q.locked[k] > 0 })
		if taken || q.inFlight >= q.limits.MovesInFlight || q.perLink[t.link] >= q.limits.MovesPerLink {
			for _, k := range t.locks {
				wanted[k] = true
			}
			return false
		}
		q.admit(t)
		return true
	})
}
