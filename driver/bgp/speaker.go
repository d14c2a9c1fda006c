package bgp

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

const (
	// maxRoutes bounds the record, which is written as a whole: two addresses
	// for each of 8,000 VMs of a site.
	maxRoutes = 16384
	// sendLimit is how long a call waits for established neighbours to be told.
	// It takes a millisecond, and after a restart the deferralS that GoBGP waits.
	sendLimit = 3 * time.Second
)

// Speaker is an edge's speaker of BGP and the record of what it announces.
type Speaker struct {
	cfg    Config
	log    *slog.Logger
	record *record
	end    context.CancelFunc
	ended  sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	routes  map[netip.Prefix]driver.Owner
	version uint64 // of routes
	// dirty are the prefixes that the child has to be told about.
	dirty map[netip.Prefix]struct{}
	peers []*peer
	// changed is closed, and replaced, whenever peers have changed.
	changed chan struct{}
	// wake has an element when dirty has.
	wake chan struct{}
}

var _ driver.Routes = (*Speaker)(nil)

// peer is what is known of a neighbour.
type peer struct {
	Neighbor
	state  driver.SessionState
	since  time.Time
	fault  string
	v4, v6 bool
	sent   map[netip.Prefix]struct{}
	// behind are the routes that it lacks, or has too many, with the number of
	// checks in a row that found it so.
	behind map[netip.Prefix]int
}

func (p *peer) established() bool { return p.state == driver.SessionEstablished }

// takes reports whether the session carries the prefix's family.
func (p *peer) takes(prefix netip.Prefix) bool {
	if prefix.Addr().Is4() {
		return p.v4
	}
	return p.v6
}

// Open reads the record of the folder and starts the child, which announces
// what is on record. It does not wait for the neighbours.
func Open(log *slog.Logger, cfg Config) (*Speaker, error) {
	const op = "open the BGP speaker"
	cfg = cfg.withDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	record, routes, err := openRecord(cfg.Dir)
	if err != nil {
		return nil, drover.E(drover.KindOf(err), op, err)
	}
	s := &Speaker{
		cfg: cfg, log: log, record: record, routes: routes,
		dirty: map[netip.Prefix]struct{}{}, changed: make(chan struct{}), wake: make(chan struct{}, 1),
	}
	for _, n := range cfg.Neighbors {
		s.peers = append(s.peers, &peer{Neighbor: n, state: driver.SessionIdle, since: time.Now(), sent: map[netip.Prefix]struct{}{}})
	}
	ctx, end := context.WithCancel(context.Background())
	s.end = end
	s.ended.Go(func() { s.supervise(ctx) })
	return s, nil
}

// Announce implements driver.Routes.
func (s *Speaker) Announce(ctx context.Context, owner driver.Owner, prefixes ...netip.Prefix) error {
	const op = "announce"
	if err := s.check(ctx, op, owner, prefixes); err != nil {
		return err
	}
	for _, p := range prefixes {
		if !s.cfg.nextHop(p).IsValid() {
			return drover.Errorf(drover.Invalid, op, "%v: the edge has no next hop of its family", p)
		}
	}
	added, version, err := s.add(owner, prefixes)
	if err != nil {
		return drover.E(drover.KindOf(err), op, err)
	}
	if err := s.record.save(version, s.snapshot); err != nil {
		s.remove(owner, added)
		s.tell(added) // a child that began meanwhile has heard of them
		return drover.E(drover.Internal, op, err)
	}
	s.tell(prefixes)
	return s.await(ctx, op, prefixes, true)
}

// Withdraw implements driver.Routes.
func (s *Speaker) Withdraw(ctx context.Context, owner driver.Owner, prefixes ...netip.Prefix) error {
	const op = "withdraw"
	if err := s.check(ctx, op, owner, prefixes); err != nil {
		return err
	}
	removed, free, version := s.remove(owner, prefixes)
	if err := s.record.save(version, s.snapshot); err != nil {
		// On record they still are, so they stay announced.
		if _, _, err := s.add(owner, removed); err != nil {
			s.log.Error("withdrawn only until the next start", "owner", owner, "prefixes", removed, "err", err)
		}
		s.tell(removed)
		return drover.E(drover.Internal, op, err)
	}
	s.tell(removed)
	err := s.await(ctx, op, free, false)
	if drover.KindOf(err) == drover.Unavailable && len(removed) == 0 && !s.isClosed() {
		return nil // nothing was there, and nobody is there to have heard of it
	}
	return err
}

// check reports what is wrong with a call before it changes anything.
func (s *Speaker) check(ctx context.Context, op string, owner driver.Owner, prefixes []netip.Prefix) error {
	if err := owner.Validate(); err != nil {
		return err
	}
	if err := driver.CheckHostRoutes(prefixes...); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return drover.E(drover.Canceled, op, err)
	}
	if s.isClosed() {
		return drover.E(drover.Unavailable, op, errClosed)
	}
	return nil
}

var errClosed = fmt.Errorf("the speaker is closed")

func (s *Speaker) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// add puts routes on record in memory, all or none, and returns which are new.
func (s *Speaker) add(owner driver.Owner, prefixes []netip.Prefix) (added []netip.Prefix, version uint64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range prefixes {
		if has, ok := s.routes[p]; ok && has != owner {
			return nil, 0, drover.Errorf(drover.Exists, "", "%v is announced for %s", p, has)
		}
	}
	for _, p := range prefixes {
		if _, ok := s.routes[p]; !ok {
			s.routes[p] = owner
			added = append(added, p)
		}
	}
	if len(s.routes) > maxRoutes {
		for _, p := range added {
			delete(s.routes, p)
		}
		return nil, 0, drover.Errorf(drover.Exhausted, "", "an edge announces at most %d routes", maxRoutes)
	}
	if len(added) > 0 {
		s.version++
	}
	return added, s.version, nil
}

// remove takes the owner's routes off the record in memory. It returns which
// there were, and which of the prefixes nobody has now.
func (s *Speaker) remove(owner driver.Owner, prefixes []netip.Prefix) (removed, free []netip.Prefix, version uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range prefixes {
		has, ok := s.routes[p]
		if ok && has == owner {
			delete(s.routes, p)
			removed = append(removed, p)
		}
		if !ok || has == owner {
			free = append(free, p)
		}
	}
	if len(removed) > 0 {
		s.version++
	}
	return removed, free, s.version
}

func (s *Speaker) snapshot() (map[netip.Prefix]driver.Owner, uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.routes), s.version
}

// tell has the child learn what there is now to the prefixes.
func (s *Speaker) tell(prefixes []netip.Prefix) {
	s.mu.Lock()
	for _, p := range prefixes {
		s.dirty[p] = struct{}{}
	}
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// await returns when every established neighbour that takes their family has
// been sent the prefixes, or their withdrawal.
func (s *Speaker) await(ctx context.Context, op string, prefixes []netip.Prefix, announced bool) error {
	limit := time.NewTimer(sendLimit)
	defer limit.Stop()
	for {
		s.mu.Lock()
		done, err := s.told(prefixes, announced)
		if s.closed {
			done, err = false, errClosed
		}
		changed := s.changed
		s.mu.Unlock()
		if done {
			return nil
		}
		if err != nil {
			return drover.E(drover.Unavailable, op, err)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return drover.Errorf(drover.Canceled, op, "on record, but not known to be sent: %w", ctx.Err())
		case <-limit.C:
			return drover.Errorf(drover.Unavailable, op, "on record, but not sent to every neighbour after %v", sendLimit)
		}
	}
}

// told reports whether all who can be were told, or why none can be.
func (s *Speaker) told(prefixes []netip.Prefix, announced bool) (bool, error) {
	all, up := true, 0
	for _, p := range s.peers {
		if p.established() {
			up++
		}
	}
	for _, prefix := range prefixes {
		takers := 0
		for _, p := range s.peers {
			if !p.established() || !p.takes(prefix) {
				continue
			}
			takers++
			if _, sent := p.sent[prefix]; sent != announced {
				all = false
			}
		}
		switch {
		case up == 0:
			return false, fmt.Errorf("on record, but no neighbour has an established session: %s", s.faults())
		case takers == 0 && announced:
			return false, fmt.Errorf("%v: on record, but no neighbour takes its family", prefix)
		}
	}
	return all, nil
}

// faults says why there is no session.
func (s *Speaker) faults() string {
	var all []string
	for _, p := range s.peers {
		text := p.fault
		if text == "" {
			text = "no answer yet"
		}
		all = append(all, fmt.Sprintf("%v %s, %s", p.Address, p.state, text))
	}
	return strings.Join(all, "; ")
}

// List implements driver.Routes.
func (s *Speaker) List(ctx context.Context) ([]driver.Route, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(ctx); err != nil {
		return nil, drover.E(drover.KindOf(err), "list routes", err)
	}
	list := make([]driver.Route, 0, len(s.routes))
	for p, owner := range s.routes {
		r := driver.Route{Owner: owner, Prefix: p, NextHop: s.cfg.nextHop(p)}
		for _, peer := range s.peers {
			if _, ok := peer.sent[p]; ok && peer.established() {
				r.Sent++
			}
		}
		list = append(list, r)
	}
	slices.SortFunc(list, func(a, b driver.Route) int { return a.Prefix.Compare(b.Prefix) })
	return list, nil
}

// Neighbors implements driver.Routes.
func (s *Speaker) Neighbors(ctx context.Context) ([]driver.RouteNeighbor, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(ctx); err != nil {
		return nil, drover.E(drover.KindOf(err), "list neighbours", err)
	}
	list := make([]driver.RouteNeighbor, 0, len(s.peers))
	for _, p := range s.peers {
		list = append(list, driver.RouteNeighbor{
			Address: p.Address, AS: p.AS, State: p.state, Since: p.since, Advertised: len(p.sent), Fault: p.fault,
		})
	}
	return list, nil
}

func (s *Speaker) usable(ctx context.Context) error {
	if s.closed {
		return drover.E(drover.Unavailable, "", errClosed)
	}
	return drover.E(drover.Canceled, "", ctx.Err())
}

// Close implements driver.Routes.
func (s *Speaker) Close() error {
	s.mu.Lock()
	first := !s.closed
	s.closed = true
	s.notify()
	s.mu.Unlock()
	s.end()
	s.ended.Wait()
	if !first {
		return nil
	}
	return drover.E(drover.Internal, "close the BGP speaker", s.record.close())
}

// notify wakes who waits for a change of peers; mu is held.
func (s *Speaker) notify() {
	close(s.changed)
	s.changed = make(chan struct{})
}
