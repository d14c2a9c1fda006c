package agent

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// passages returns what of VMs that are away passes this edge, one for each owner
// that has addresses metered here and is away by what stands for it.
func (e *edge) passages(ctx context.Context) ([]drover.EdgePassage, error) {
	if e.Addresses == nil {
		return nil, nil
	}
	traffic, err := e.Addresses.Metered(ctx, nil)
	if err != nil || len(traffic) == 0 {
		return nil, err
	}
	var extended []driver.ExtendedSegment
	if e.Segments != nil {
		if extended, err = e.Segments.List(ctx); err != nil {
			return nil, err
		}
	}
	by := map[driver.Owner]*passage{}
	for _, t := range traffic {
		for _, m := range t.For {
			if by[m.Owner] == nil {
				by[m.Owner] = &passage{EdgePassage: drover.EdgePassage{Owner: string(m.Owner)}, macs: map[string]string{}}
			}
			by[m.Owner].add(t, m, extended)
		}
	}
	var all []drover.EdgePassage
	counted := map[string]driver.SegmentCounters{}
	for _, p := range by {
		if p.Method == "" {
			continue // metered for another reason
		}
		if err := e.completePassage(ctx, p, counted); err != nil {
			return nil, err
		}
		all = append(all, p.EdgePassage)
	}
	slices.SortFunc(all, func(a, b drover.EdgePassage) int { return strings.Compare(a.Owner, b.Owner) })
	return all, nil
}

// passage is one in the making. macs are its stations' MACs, with the segments
// that they are in.
type passage struct {
	drover.EdgePassage
	macs map[string]string
}

// add adds one address.
func (p *passage) add(t driver.AddressTraffic, m driver.MeteredFor, extended []driver.ExtendedSegment) {
	seg, mac, station := stationOf(extended, m.Owner, t.Address)
	switch {
	case m.Role == driver.RoleForwardOld:
		p.Method = drover.Renumber
	case m.Role == driver.RoleElsewhere:
		p.Method = drover.Route
	case station:
		p.Method, p.Here, p.LocalEgress = drover.Stretch, m.Role == driver.RoleDeliver, seg.LocalEgress
		p.macs[mac] = seg.Segment
	default:
		return
	}
	to, from := t.Hairpin(p.Method == drover.Stretch)
	p.In, p.Out = p.In+to, p.Out+from
	if p.Method != drover.Stretch {
		p.Crossed += to + from + t.Neighbors()
	}
}

// stationOf finds the station with the address in a segment that is extended for
// the owner.
func stationOf(extended []driver.ExtendedSegment, owner driver.Owner, a netip.Addr) (x driver.ExtendedSegment, mac string, ok bool) {
	for _, x := range extended {
		if !slices.Contains(x.Owners, owner) {
			continue
		}
		for _, s := range x.Stations {
			if slices.Contains(s.Addresses, a) {
				return x, s.MAC, true
			}
		}
	}
	return x, "", false
}

// completePassage adds what the tunnels have carried for the stations of a
// stretched VM, and whether its addresses are announced from here. counted are
// the segments' counters that were read already.
func (e *edge) completePassage(ctx context.Context, p *passage, counted map[string]driver.SegmentCounters) error {
	for mac, segment := range p.macs {
		if _, ok := counted[segment]; !ok {
			count, err := e.Segments.Counters(ctx, segment)
			if err != nil {
				return err
			}
			counted[segment] = count
		}
		st := counted[segment].Stations[mac]
		p.Crossed += st.Received.Bytes + st.Sent.Bytes
	}
	if !p.Here || e.Routes == nil {
		return nil
	}
	routes, err := e.Routes.List(ctx)
	p.Announced = slices.ContainsFunc(routes, func(r driver.Route) bool { return string(r.Owner) == p.Owner })
	return err
}

const (
	// tripEvery is how often the mesh's round trips are measured: a packet for
	// each peer, which keepalives are not much less than.
	tripEvery = 5 * time.Second
	// tripLimit bounds the wait for an answer: no way on earth takes longer.
	tripLimit = time.Second
	// tripsKept are the measurements of which the quickest counts: one alone may
	// have waited behind something else. Those of a way that changed are gone soon.
	tripsKept = 3
	// tripsAtOnce bounds the packets under way: hundreds at once would wait for
	// each other.
	tripsAtOnce = 16
)

// trips are the round trips to the other edges, by site, the last ones first.
// An edge that did not answer has none.
type trips struct {
	mu sync.Mutex
	by map[string][]time.Duration
}

// measureTrips measures until ctx ends.
func (e *edge) measureTrips(ctx context.Context) {
	if e.Tunnels == nil {
		return
	}
	for {
		e.mesh.Lock()
		var sites []string
		for site := range e.peers {
			sites = append(sites, site)
		}
		e.mesh.Unlock()
		e.trips.keep(sites)
		var group errgroup.Group
		group.SetLimit(tripsAtOnce)
		for _, site := range sites {
			group.Go(func() error {
				e.measureTrip(ctx, site)
				return nil
			})
		}
		_ = group.Wait() // no trip gives an error
		if sleep(ctx, tripEvery, nil) != nil {
			return
		}
	}
}

func (e *edge) measureTrip(ctx context.Context, site string) {
	ctx, cancel := context.WithTimeout(ctx, tripLimit)
	defer cancel()
	took, err := e.Tunnels.RoundTrip(ctx, site)
	e.trips.note(site, took, err)
}

// note keeps a measurement; an edge that does not answer has none any more.
func (t *trips) note(site string, took time.Duration, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err != nil {
		delete(t.by, site)
		return
	}
	last := append([]time.Duration{took}, t.by[site]...)
	t.by[site] = last[:min(len(last), tripsKept)]
}

// keep forgets sites that are none of these.
func (t *trips) keep(sites []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.by == nil {
		t.by = map[string][]time.Duration{}
	}
	for site := range t.by {
		if !slices.Contains(sites, site) {
			delete(t.by, site)
		}
	}
}

// millis are those that are known.
func (t *trips) millis() map[string]float64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := make(map[string]float64, len(t.by))
	for site, last := range t.by {
		all[site] = float64(slices.Min(last)) / float64(time.Millisecond)
	}
	return all
}
