package bundle

import (
	"sync"
	"time"
)

// gateLimit is how long one bundle's urgency may hold the others back. A
// switchover takes a few hundred milliseconds of sending; one that is not done
// after this has other problems, and the others' guests should not pay for
// them.
const gateLimit = 5 * time.Second

// Gate lets urgent bundles of a process go before all others: while any is
// urgent, the others send control frames only. The zero value is not usable.
type Gate struct {
	mu      sync.Mutex
	urgent  map[*Bundle]*time.Timer
	bundles map[*Bundle]struct{}
}

// NewGate makes a gate.
func NewGate() *Gate {
	return &Gate{urgent: make(map[*Bundle]*time.Timer), bundles: make(map[*Bundle]struct{})}
}

func (g *Gate) join(b *Bundle) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.bundles[b] = struct{}{}
	b.held.Store(len(g.urgent) > 0)
}

func (g *Gate) leave(b *Bundle) {
	g.set(b, false)
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.bundles, b)
}

// set begins or ends a bundle's urgency. The bundles' writers are woken without
// their locks, so that no order of locks is needed.
func (g *Gate) set(b *Bundle, urgent bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	timer, is := g.urgent[b]
	switch {
	case urgent == is:
		return
	case urgent:
		g.urgent[b] = time.AfterFunc(gateLimit, func() { g.set(b, false) })
	default:
		timer.Stop()
		delete(g.urgent, b)
	}
	for other := range g.bundles {
		_, first := g.urgent[other]
		other.held.Store(len(g.urgent) > 0 && !first)
		other.wakeAll()
	}
}
