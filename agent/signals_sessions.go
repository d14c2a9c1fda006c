package agent

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/forecast/sample"
)

// countSubjects looks at the sessions of the VMs that this edge was told of.
func (s *signals) countSubjects(ctx context.Context) {
	s.mu.Lock()
	var all []netip.Addr
	uuids := map[netip.Addr]string{}
	for uuid, w := range s.subjects {
		for _, a := range w.addresses {
			if uuids[a] == "" {
				all = append(all, a)
			}
			uuids[a] = uuid
		}
	}
	s.mu.Unlock()
	if len(all) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, observeLimit)
	defer cancel()
	tracked, tracks := s.trackedSessions(ctx, all)
	servers := s.balancedServers(ctx, uuids)
	now := s.a.clock()
	s.mu.Lock()
	defer s.mu.Unlock()
	by := map[string][]driver.AddressSession{}
	for _, t := range tracked {
		uuid := uuids[t.Address.Addr()]
		by[uuid] = append(by[uuid], t)
	}
	for uuid, w := range s.subjects {
		if server, ok := servers[uuid]; ok {
			w.balanced(server, now)
			continue
		}
		if tracks || len(by[uuid]) > 0 {
			w.tracked(by[uuid], now)
		}
	}
}

// trackedSessions are those that the edge's kernel knows. That there are none says
// something only where it keeps track of some.
func (s *signals) trackedSessions(ctx context.Context, all []netip.Addr) (sessions []driver.AddressSession, tracks bool) {
	d := s.a.siteedge.Addresses
	if d == nil {
		return nil, false
	}
	sessions, err := d.Sessions(ctx, all)
	if err != nil {
		s.a.log.Debug("sessions are not known", "err", err)
		return nil, false
	}
	placed, err := d.List(ctx)
	return sessions, len(sessions) > 0 || err == nil && slices.ContainsFunc(placed, func(p driver.PlacedAddress) bool {
		return p.Role == driver.RoleWatch
	})
}

// balancedServers are the load balancers' servers that are such VMs.
func (s *signals) balancedServers(ctx context.Context, uuids map[netip.Addr]string) map[string]driver.Server {
	found := map[string]driver.Server{}
	asked := map[driver.Balancer]bool{}
	for _, b := range s.a.siteedge.Balancers {
		if asked[b] {
			continue
		}
		asked[b] = true
		backends, err := b.Backends(ctx)
		if err != nil {
			s.a.log.Debug("a load balancer does not answer", "err", err)
			continue
		}
		for _, backend := range backends {
			for _, server := range backend.Servers {
				if uuid := uuids[server.Address.Addr().Unmap()]; uuid != "" {
					sum := found[uuid]
					sum.Sessions, sum.Queued, sum.Total = sum.Sessions+server.Sessions, sum.Queued+server.Queued, sum.Total+server.Total
					found[uuid] = sum
				}
			}
		}
	}
	return found
}

// balanced takes over what a load balancer says: how many there are and, by how
// many come, how long they live on average.
func (w *watchedSubject) balanced(server driver.Server, now time.Time) {
	if w.totals == nil {
		w.totals = &sample.Rate{Span: balancedSpan, Most: rateMost}
	}
	w.totals.Add(now, float64(server.Total))
	w.sessions = drover.Reading{Value: float64(server.Sessions + server.Queued), At: now, Samples: 1}
	rate := w.totals.PerSecond()
	if mean, ok := sample.MeanLife(w.sessions, rate); ok && rate.Samples >= balancedLeast {
		w.lifetimes = sample.Exponential(mean, now, rate.Samples)
	}
}

const (
	// balancedSpan is over how long sessions that come are counted.
	balancedSpan = 10 * time.Minute
	// balancedLeast is how many readings a mean lifetime rests on at least.
	balancedLeast = 8
)

// tracked follows the sessions that the edge's kernel knows.
func (w *watchedSubject) tracked(all []driver.AddressSession, now time.Time) {
	open := map[string]openSession{}
	n := 0
	first := w.open == nil
	for _, t := range all {
		if !t.Live || dying(t) {
			continue
		}
		n++
		key := t.Protocol + " " + t.Address.String() + " " + t.Peer.String()
		o, known := w.open[key]
		if !known {
			if len(open) >= maxLives {
				continue
			}
			// Where the kernel does not say how old it is, it is new, or was there
			// before the first look: then it is left out.
			o = openSession{age: t.Age, at: now}
			if t.Age == 0 && first {
				o.age = unknownAge
			}
		}
		o.last = now
		open[key] = o
	}
	for key, o := range w.open {
		if _, still := open[key]; !still && o.age != unknownAge {
			// It ended between the two looks.
			to := o.age + o.last.Sub(o.at) + max(0, now.Sub(o.last))/2
			w.ended = append(w.ended, sample.Life{From: o.age, To: to, Ended: true})
		}
	}
	w.ended = w.ended[max(0, len(w.ended)-livesKept):]
	w.open = open
	w.sessions = drover.Reading{Value: float64(n), At: now, Samples: 1}
	lives := slices.Clone(w.ended)
	for _, o := range open {
		if o.age != unknownAge {
			lives = append(lives, sample.Life{From: o.age, To: o.age + o.last.Sub(o.at)})
		}
	}
	if l := sample.Lifetimes(lives, now, livesLeast); l.Known() {
		w.lifetimes = l
	}
}

// unknownAge is the age of a session that nobody can tell.
const unknownAge = time.Duration(-1)
