package memory

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// Router is a router that several edges announce to. Of two next hops for the
// same prefix it uses the one it heard of first, as BGP's routers do when
// nothing else tells them apart. Its time does not run: what an edge has
// announced stays until it is withdrawn, or until its session comes up again
// without it.
type Router struct {
	address netip.Addr
	as      uint32

	mu    sync.Mutex
	paths map[netip.Prefix][]path
	down  map[*RouteRecord]time.Time
}

type path struct {
	edge *RouteRecord
	hop  netip.Addr
}

// NewRouter makes one that accepts every session.
func NewRouter(address netip.Addr, as uint32) *Router {
	return &Router{address: address, as: as, paths: map[netip.Prefix][]path{}, down: map[*RouteRecord]time.Time{}}
}

// Table returns the routes that the router uses.
func (r *Router) Table() map[netip.Prefix]netip.Addr {
	r.mu.Lock()
	defer r.mu.Unlock()
	table := map[netip.Prefix]netip.Addr{}
	for p, paths := range r.paths {
		table[p] = paths[0].hop
	}
	return table
}

// SetSession takes the session with an edge down, or lets it come up, upon
// which the edge tells its routes anew.
func (r *Router) SetSession(edge *RouteRecord, up bool) {
	edge.mu.Lock()
	defer edge.mu.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	if !up {
		r.down[edge] = time.Now()
		return
	}
	delete(r.down, edge)
	r.sync(edge)
}

// sync makes the router's paths of an edge those on its record, when a session
// comes up; both are locked.
func (r *Router) sync(edge *RouteRecord) {
	if _, down := r.down[edge]; down || edge.open == nil {
		return
	}
	for p := range r.paths {
		if _, ok := edge.routes[p]; !ok {
			r.forget(edge, p)
		}
	}
	for p := range edge.routes {
		r.learn(edge, p, edge.open.hop(p))
	}
}

func (r *Router) learn(edge *RouteRecord, p netip.Prefix, hop netip.Addr) {
	for i, known := range r.paths[p] {
		if known.edge == edge {
			r.paths[p][i].hop = hop
			return
		}
	}
	r.paths[p] = append(r.paths[p], path{edge, hop})
}

func (r *Router) forget(edge *RouteRecord, p netip.Prefix) {
	left := slices.DeleteFunc(r.paths[p], func(known path) bool { return known.edge == edge })
	if len(left) == 0 {
		delete(r.paths, p)
		return
	}
	r.paths[p] = left
}

// RouteRecord is what an edge keeps on disk; it outlives its Routes.
type RouteRecord struct {
	mu     sync.Mutex
	routes map[netip.Prefix]driver.Owner
	open   *Routes
}

// RoutesConfig is an edge.
type RoutesConfig struct {
	// Record is what is on record; nil is a new one. Only one Routes at a time
	// has it.
	Record             *RouteRecord
	Routers            []*Router
	NextHop4, NextHop6 netip.Addr
	// Fault, if set, is asked before each operation ("announce", "withdraw",
	// "list", "neighbors"); its error is returned and nothing is done.
	Fault func(op string) error
}

// Routes is the in-memory twin of driver.Routes.
type Routes struct {
	cfg    RoutesConfig
	record *RouteRecord
	since  time.Time
}

var _ driver.Routes = (*Routes)(nil)

// NewRoutes opens the routes of an edge and announces what is on record.
func NewRoutes(cfg RoutesConfig) *Routes {
	if cfg.Record == nil {
		cfg.Record = &RouteRecord{}
	}
	e := &Routes{cfg: cfg, record: cfg.Record, since: time.Now()}
	e.record.mu.Lock()
	defer e.record.mu.Unlock()
	if e.record.routes == nil {
		e.record.routes = map[netip.Prefix]driver.Owner{}
	}
	e.record.open = e
	for _, r := range cfg.Routers {
		r.mu.Lock()
		r.sync(e.record)
		r.mu.Unlock()
	}
	return e
}

// Record is what the edge has on record, for SetSession and the next NewRoutes.
func (e *Routes) Record() *RouteRecord { return e.record }

func (e *Routes) hop(p netip.Prefix) netip.Addr {
	if p.Addr().Is4() {
		return e.cfg.NextHop4
	}
	return e.cfg.NextHop6
}

// begin locks the record for an operation, or says why there is none.
func (e *Routes) begin(ctx context.Context, op string) error {
	if e.cfg.Fault != nil {
		if err := e.cfg.Fault(op); err != nil {
			return drover.E(drover.KindOf(err), op, err)
		}
	}
	if err := ctx.Err(); err != nil {
		return drover.E(drover.Canceled, op, err)
	}
	e.record.mu.Lock()
	if e.record.open != e {
		e.record.mu.Unlock()
		return drover.Errorf(drover.Unavailable, op, "closed")
	}
	return nil
}

func checkRoutes(owner driver.Owner, prefixes []netip.Prefix) error {
	if err := owner.Validate(); err != nil {
		return err
	}
	return driver.CheckHostRoutes(prefixes...)
}

// tell calls f for every router with a session and returns how many there are.
func (e *Routes) tell(f func(*Router)) (up int) {
	for _, r := range e.cfg.Routers {
		r.mu.Lock()
		if _, down := r.down[e.record]; !down {
			up++
			f(r)
		}
		r.mu.Unlock()
	}
	return up
}

// Announce implements driver.Routes.
func (e *Routes) Announce(ctx context.Context, owner driver.Owner, prefixes ...netip.Prefix) error {
	const op = "announce"
	if err := checkRoutes(owner, prefixes); err != nil {
		return err
	}
	if err := e.begin(ctx, op); err != nil {
		return err
	}
	defer e.record.mu.Unlock()
	for _, p := range prefixes {
		if !e.hop(p).IsValid() {
			return drover.Errorf(drover.Invalid, op, "%v: the edge has no next hop of its family", p)
		}
		if has, ok := e.record.routes[p]; ok && has != owner {
			return drover.Errorf(drover.Exists, op, "%v is announced for %s", p, has)
		}
	}
	for _, p := range prefixes {
		e.record.routes[p] = owner
	}
	up := e.tell(func(r *Router) {
		for _, p := range prefixes {
			r.learn(e.record, p, e.hop(p))
		}
	})
	if up == 0 {
		return drover.Errorf(drover.Unavailable, op, "on record, but no neighbour has an established session")
	}
	return nil
}

// Withdraw implements driver.Routes.
func (e *Routes) Withdraw(ctx context.Context, owner driver.Owner, prefixes ...netip.Prefix) error {
	const op = "withdraw"
	if err := checkRoutes(owner, prefixes); err != nil {
		return err
	}
	if err := e.begin(ctx, op); err != nil {
		return err
	}
	defer e.record.mu.Unlock()
	var removed []netip.Prefix
	for _, p := range prefixes {
		if e.record.routes[p] == owner {
			delete(e.record.routes, p)
			removed = append(removed, p)
		}
	}
	up := e.tell(func(r *Router) {
		for _, p := range removed {
			r.forget(e.record, p)
		}
	})
	if up == 0 && len(removed) > 0 {
		return drover.Errorf(drover.Unavailable, op, "off the record, but no neighbour has an established session")
	}
	return nil
}

// List implements driver.Routes.
func (e *Routes) List(ctx context.Context) ([]driver.Route, error) {
	if err := e.begin(ctx, "list"); err != nil {
		return nil, err
	}
	defer e.record.mu.Unlock()
	up := e.tell(func(*Router) {})
	var list []driver.Route
	for _, p := range slices.SortedFunc(maps.Keys(e.record.routes), netip.Prefix.Compare) {
		list = append(list, driver.Route{Owner: e.record.routes[p], Prefix: p, NextHop: e.hop(p), Sent: up})
	}
	return list, nil
}

// Neighbors implements driver.Routes.
func (e *Routes) Neighbors(ctx context.Context) ([]driver.RouteNeighbor, error) {
	if err := e.begin(ctx, "neighbors"); err != nil {
		return nil, err
	}
	defer e.record.mu.Unlock()
	var list []driver.RouteNeighbor
	for _, r := range e.cfg.Routers {
		r.mu.Lock()
		n := driver.RouteNeighbor{Address: r.address, AS: r.as, State: driver.SessionEstablished, Since: e.since, Advertised: len(e.record.routes)}
		if since, down := r.down[e.record]; down {
			n.State, n.Since, n.Advertised, n.Fault = driver.SessionActive, since, 0, "the router is down"
		}
		r.mu.Unlock()
		list = append(list, n)
	}
	return list, nil
}

// Close implements driver.Routes.
func (e *Routes) Close() error {
	e.record.mu.Lock()
	defer e.record.mu.Unlock()
	if e.record.open == e {
		e.record.open = nil
	}
	return nil
}
