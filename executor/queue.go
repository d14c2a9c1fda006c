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
	waiting  []*ticket
}

// ticket is a place in the queue, and then a slot on a link.
type ticket struct {
	q    *queue
	link link
	// turn is closed when the slot is had.
	turn chan struct{}
	// held and gone belong to the queue's mutex.
	held, gone bool
}

func newQueue(l Limits) *queue {
	return &queue{limits: l, perLink: make(map[link]int)}
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
func (q *queue) enter(l link, as admission) (*ticket, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	t := &ticket{q: q, link: l, turn: make(chan struct{})}
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

// leave gives the place or the slot back. Repeating it is fine.
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

func (q *queue) admit(t *ticket) {
	t.held = true
	q.inFlight++
	q.perLink[t.link]++
	close(t.turn)
}

// advance admits whoever can be: a move whose link is taken does not hold up
// those behind it that use another.
func (q *queue) advance() {
	q.waiting = slices.DeleteFunc(q.waiting, func(t *ticket) bool {
		if q.inFlight >= q.limits.MovesInFlight || q.perLink[t.link] >= q.limits.MovesPerLink {
			return false
		}
		q.admit(t)
		return true
	})
}
