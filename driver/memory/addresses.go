package memory

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

var _ driver.Addresses = (*Addresses)(nil)

// EdgeConfig describes an edge in memory.
type EdgeConfig struct {
	Bridges []string
	// Mesh is the mesh's interface, Remotes the edges that it leads to.
	Mesh    string
	Remotes []netip.Addr
	// Foreign are addresses with a route that is not Drover's.
	Foreign []netip.Addr
	// Fault, if set, is asked before each operation, with the method's name in
	// lower case; an error that it returns is the operation's.
	Fault func(op string) error
}

// Edge is an edge's network stack in memory: what drivers opened on it see.
// Sessions and traffic are what a test puts there.
type Edge struct {
	cfg EdgeConfig

	mu       sync.Mutex
	placed   []driver.PlacedAddress
	limits   map[netip.Addr]time.Duration
	sessions []driver.AddressSession
	stations map[string][]driver.AddressStation // by bridge
	traffic  map[netip.Addr]driver.AddressTraffic
	told     map[string][]netip.Addr // by MAC
}

// NewEdge returns an edge on which nothing stands.
func NewEdge(cfg EdgeConfig) *Edge {
	return &Edge{cfg: cfg, limits: map[netip.Addr]time.Duration{}, traffic: map[netip.Addr]driver.AddressTraffic{}, told: map[string][]netip.Addr{}}
}

// AddSession puts a session there.
func (e *Edge) AddSession(s driver.AddressSession) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.sessions = append(e.sessions, s)
}

// SetStation has a station on a bridge answer for an address; without a MAC
// nobody does.
func (e *Edge) SetStation(bridge string, address netip.Addr, mac string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	list := slices.DeleteFunc(slices.Clone(e.stations[bridge]), func(s driver.AddressStation) bool { return s.Address == address })
	if mac != "" {
		list = append(list, driver.AddressStation{Address: address, MAC: mac})
	}
	if e.stations == nil {
		e.stations = map[string][]driver.AddressStation{}
	}
	e.stations[bridge] = list
}

// EndSessions ends the sessions of an address by themselves.
func (e *Edge) EndSessions(address netip.Addr) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.forget(address)
}

func (e *Edge) forget(addresses ...netip.Addr) int {
	before := len(e.sessions)
	e.sessions = slices.DeleteFunc(e.sessions, func(s driver.AddressSession) bool { return slices.Contains(addresses, s.Address.Addr()) })
	return before - len(e.sessions)
}

// AddTraffic adds bytes to the meters of an address that is metered.
func (e *Edge) AddTraffic(t driver.AddressTraffic) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.metered(t.Address) {
		return
	}
	sum := e.traffic[t.Address]
	sum.Address = t.Address
	addPaths(&sum.To, t.To)
	addPaths(&sum.From, t.From)
	e.traffic[t.Address] = sum
}

func addPaths(sum *driver.AddressPaths, p driver.AddressPaths) {
	sum.RouterBridge += p.RouterBridge
	sum.BridgeRouter += p.BridgeRouter
	sum.RouterTunnel += p.RouterTunnel
	sum.TunnelRouter += p.TunnelRouter
	sum.BridgeTunnel += p.BridgeTunnel
	sum.TunnelBridge += p.TunnelBridge
	sum.RouterRouter += p.RouterRouter
	sum.Inside += p.Inside
}

func (e *Edge) metered(addr netip.Addr) bool {
	return slices.ContainsFunc(e.placed, func(p driver.PlacedAddress) bool {
		return p.Role == driver.RoleMeter && p.Prefix.Addr() == addr
	})
}

// Lose takes away all that stands, as a reboot does.
func (e *Edge) Lose() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.placed, e.sessions = nil, nil
	clear(e.limits)
	clear(e.traffic)
}

// Told is what a guest was told last: addresses that are this edge's.
func (e *Edge) Told(mac string) []netip.Addr {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.told[mac]
}

// tell tells a guest of those neighbours that are led away from its bridge.
func (e *Edge) tell(d driver.Delivery) {
	led := slices.DeleteFunc(slices.Clone(d.Neighbors), func(n netip.Addr) bool {
		rest := slices.ContainsFunc(e.placed, func(p driver.PlacedAddress) bool {
			return p.Role == driver.RoleRest && p.Bridge == d.Bridge && p.Prefix.Contains(n)
		})
		return !rest || slices.ContainsFunc(e.placed, func(p driver.PlacedAddress) bool {
			return p.Role == driver.RoleDeliver && p.Bridge == d.Bridge && p.Prefix.Addr() == n
		})
	})
	if d.MAC != "" {
		e.told[d.MAC] = led
	}
}

// Limit is how long an old address that is forwarded was given; zero if it is not.
func (e *Edge) Limit(addr netip.Addr) time.Duration {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.limits[addr]
}

// State is all that stands, in words.
func (e *Edge) State() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	var b strings.Builder
	for _, p := range e.placed {
		fmt.Fprintln(&b, p, e.limits[p.Prefix.Addr()])
	}
	return b.String()
}

// Addresses is a driver of an Edge.
type Addresses struct {
	edge   *Edge
	mu     sync.Mutex
	closed bool
}

// Open returns a driver; an Edge may have several.
func (e *Edge) Open() *Addresses { return &Addresses{edge: e} }

// Close implements driver.Addresses.
func (a *Addresses) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closed = true
	return nil
}

// run runs f with the edge locked, unless the operation cannot begin.
func (a *Addresses) run(ctx context.Context, op string, invalid error, f func() error) error {
	a.mu.Lock()
	closed := a.closed
	a.mu.Unlock()
	switch {
	case invalid != nil:
		return drover.E(drover.Invalid, op, invalid)
	case closed:
		return drover.Errorf(drover.Canceled, op, "the driver is closed")
	case ctx.Err() != nil:
		return drover.E(drover.Canceled, op, ctx.Err())
	}
	if a.edge.cfg.Fault != nil {
		if err := a.edge.cfg.Fault(op); err != nil {
			return wrap(op, err)
		}
	}
	a.edge.mu.Lock()
	defer a.edge.mu.Unlock()
	return f()
}

// place replaces the owner's entries of these roles for the same addresses by
// the given ones.
func (a *Addresses) place(op string, replaced []driver.AddressRole, more ...driver.PlacedAddress) error {
	e := a.edge
	next := slices.DeleteFunc(slices.Clone(e.placed), func(p driver.PlacedAddress) bool {
		return slices.Contains(replaced, p.Role) && slices.ContainsFunc(more, func(m driver.PlacedAddress) bool {
			return m.Owner == p.Owner && m.Prefix == p.Prefix
		})
	})
	for _, m := range more {
		if m.Bridge != "" && !slices.Contains(e.cfg.Bridges, m.Bridge) {
			return drover.Errorf(drover.NotFound, op, "no bridge %s", m.Bridge)
		}
		if routed(m) && slices.Contains(e.cfg.Foreign, m.Prefix.Addr()) {
			return drover.Errorf(drover.Exists, op, "there is a route to %v that is not Drover's", m.Prefix)
		}
		for _, p := range next {
			if p.Prefix == m.Prefix && clash(p, m) {
				return drover.Errorf(drover.Exists, op, "%s has placed %v differently", p.Owner, m.Prefix)
			}
		}
		if !slices.Contains(next, m) {
			next = append(next, m)
		}
	}
	e.placed = next
	slices.SortFunc(e.placed, func(x, y driver.PlacedAddress) int {
		return cmp.Or(cmp.Compare(x.Owner, y.Owner), cmp.Compare(x.Role, y.Role), x.Prefix.Compare(y.Prefix), cmp.Compare(x.Bridge, y.Bridge))
	})
	return nil
}

// routed reports whether an entry decides where a host is found.
func routed(p driver.PlacedAddress) bool {
	return p.Prefix.IsSingleIP() && (p.Role == driver.RoleDeliver || p.Role == driver.RoleElsewhere || p.Role == driver.RoleAcceptOld)
}

// clash reports whether two entries for one prefix cannot stand together.
func clash(x, y driver.PlacedAddress) bool {
	if x.Remote.IsValid() && y.Remote.IsValid() && x.Prefix.IsSingleIP() && (x.Owner != y.Owner || x.Role != y.Role || x.Remote != y.Remote || x.Bridge != y.Bridge) {
		return true
	}
	return routed(x) && routed(y) && ((x.Role == driver.RoleElsewhere) != (y.Role == driver.RoleElsewhere) || x.Role != driver.RoleElsewhere && x.Bridge != y.Bridge)
}

func entries(owner driver.Owner, role driver.AddressRole, addresses []netip.Addr, bridge string, remote netip.Addr) (all []driver.PlacedAddress) {
	for _, addr := range addresses {
		all = append(all, driver.PlacedAddress{Owner: owner, Role: role, Prefix: netip.PrefixFrom(addr, addr.BitLen()), Bridge: bridge, Remote: remote})
	}
	return all
}

// DeliverHere implements driver.Addresses.
func (a *Addresses) DeliverHere(ctx context.Context, owner driver.Owner, d driver.Delivery) error {
	const op = "deliver here"
	return a.run(ctx, op, errors.Join(owner.Validate(), d.Validate()), func() error {
		err := a.place(op, []driver.AddressRole{driver.RoleDeliver, driver.RoleElsewhere}, entries(owner, driver.RoleDeliver, d.Addresses, d.Bridge, netip.Addr{})...)
		if err == nil {
			a.edge.tell(d)
		}
		return err
	})
}

// Elsewhere implements driver.Addresses.
func (a *Addresses) Elsewhere(ctx context.Context, owner driver.Owner, addresses []netip.Addr, bridge string) error {
	const op = "elsewhere"
	return a.run(ctx, op, errors.Join(owner.Validate(), driver.CheckPlaced(addresses, bridge)), func() error {
		return a.place(op, []driver.AddressRole{driver.RoleDeliver, driver.RoleElsewhere}, entries(owner, driver.RoleElsewhere, addresses, bridge, netip.Addr{})...)
	})
}

// ProxyRest implements driver.Addresses.
func (a *Addresses) ProxyRest(ctx context.Context, owner driver.Owner, subnets []netip.Prefix, bridge string) error {
	const op = "proxy rest"
	invalid := errors.Join(owner.Validate(), driver.CheckSubnets(subnets))
	if invalid == nil {
		invalid = driver.CheckPlaced([]netip.Addr{subnets[0].Addr()}, bridge)
	}
	return a.run(ctx, op, invalid, func() error {
		var more []driver.PlacedAddress
		for _, p := range subnets {
			more = append(more, driver.PlacedAddress{Owner: owner, Role: driver.RoleRest, Prefix: p, Bridge: bridge})
		}
		return a.place(op, nil, more...)
	})
}

func (a *Addresses) checkPath(op string, p driver.MeshPath) error {
	switch {
	case p.Interface != a.edge.cfg.Mesh:
		return drover.Errorf(drover.NotFound, op, "no interface %s", p.Interface)
	case !slices.Contains(a.edge.cfg.Remotes, p.Remote):
		return drover.Errorf(drover.Unavailable, op, "%v is not in the mesh", p.Remote)
	}
	return nil
}

// ForwardOld implements driver.Addresses.
func (a *Addresses) ForwardOld(ctx context.Context, owner driver.Owner, f driver.OldForward) error {
	const op = "forward old"
	return a.run(ctx, op, errors.Join(owner.Validate(), f.Validate()), func() error {
		if err := a.checkPath(op, f.To); err != nil {
			return err
		}
		more := entries(owner, driver.RoleForwardOld, f.Addresses, f.Bridge, f.To.Remote)
		for i := range more {
			more[i].All = f.All
		}
		err := a.place(op, []driver.AddressRole{driver.RoleForwardOld}, more...)
		if err != nil {
			return err
		}
		for _, addr := range f.Addresses {
			a.edge.limits[addr] = f.Limit
		}
		return nil
	})
}

// AcceptOld implements driver.Addresses.
func (a *Addresses) AcceptOld(ctx context.Context, owner driver.Owner, o driver.OldAccept) error {
	const op = "accept old"
	return a.run(ctx, op, errors.Join(owner.Validate(), o.Validate()), func() error {
		if err := a.checkPath(op, o.From); err != nil {
			return err
		}
		more := entries(owner, driver.RoleAcceptOld, o.Addresses, o.Bridge, o.From.Remote)
		for _, p := range o.Subnets {
			more = append(more, driver.PlacedAddress{Owner: owner, Role: driver.RoleAcceptOld, Prefix: p, Bridge: o.Bridge, Remote: o.From.Remote})
		}
		for i := range more {
			more[i].All = o.All
		}
		return a.place(op, []driver.AddressRole{driver.RoleAcceptOld}, more...)
	})
}

// Watch implements driver.Addresses.
func (a *Addresses) Watch(ctx context.Context, owner driver.Owner, addresses []netip.Addr) error {
	const op = "watch"
	return a.run(ctx, op, errors.Join(owner.Validate(), driver.CheckHostAddresses(addresses)), func() error {
		return a.place(op, nil, entries(owner, driver.RoleWatch, addresses, "", netip.Addr{})...)
	})
}

// Stations implements driver.Addresses.
func (a *Addresses) Stations(ctx context.Context, bridge string, addresses []netip.Addr) (found []driver.AddressStation, err error) {
	const op = "stations"
	err = a.run(ctx, op, driver.CheckPlaced(addresses, bridge), func() error {
		if !slices.Contains(a.edge.cfg.Bridges, bridge) {
			return drover.Errorf(drover.NotFound, op, "no bridge %s", bridge)
		}
		for _, addr := range addresses {
			for _, s := range a.edge.stations[bridge] {
				if s.Address == addr {
					found = append(found, s)
				}
			}
		}
		return nil
	})
	return found, err
}

// Meter implements driver.Addresses.
func (a *Addresses) Meter(ctx context.Context, owner driver.Owner, addresses []netip.Addr) error {
	const op = "meter"
	return a.run(ctx, op, errors.Join(owner.Validate(), driver.CheckHostAddresses(addresses)), func() error {
		return a.place(op, nil, entries(owner, driver.RoleMeter, addresses, "", netip.Addr{})...)
	})
}

// Sessions implements driver.Addresses.
func (a *Addresses) Sessions(ctx context.Context, addresses []netip.Addr) (all []driver.AddressSession, err error) {
	err = a.run(ctx, "sessions", driver.CheckHostAddresses(addresses), func() error {
		for _, s := range a.edge.sessions {
			if slices.Contains(addresses, s.Address.Addr()) {
				all = append(all, s)
			}
		}
		return nil
	})
	return all, err
}

// Forget implements driver.Addresses.
func (a *Addresses) Forget(ctx context.Context, addresses []netip.Addr) (n int, err error) {
	err = a.run(ctx, "forget", driver.CheckHostAddresses(addresses), func() error {
		n = a.edge.forget(addresses...)
		return nil
	})
	return n, err
}

// Metered implements driver.Addresses.
func (a *Addresses) Metered(ctx context.Context, addresses []netip.Addr) (all []driver.AddressTraffic, err error) {
	var invalid error
	if len(addresses) > 0 {
		invalid = driver.CheckHostAddresses(addresses)
	}
	err = a.run(ctx, "metered", invalid, func() error {
		placed := map[netip.Addr][]driver.PlacedAddress{}
		for _, p := range a.edge.placed {
			if p.Prefix.IsSingleIP() {
				placed[p.Prefix.Addr()] = append(placed[p.Prefix.Addr()], p)
			}
		}
		for addr, of := range placed {
			t := a.edge.traffic[addr]
			t.Address, t.For = addr, driver.MeterRoles(of)
			if len(t.For) > 0 && (len(addresses) == 0 || slices.Contains(addresses, addr)) {
				all = append(all, t)
			}
		}
		slices.SortFunc(all, func(x, y driver.AddressTraffic) int { return x.Address.Compare(y.Address) })
		return nil
	})
	return all, err
}

// Remove implements driver.Addresses.
func (a *Addresses) Remove(ctx context.Context, owner driver.Owner, roles ...driver.AddressRole) error {
	const op = "remove"
	invalid := owner.Validate()
	for _, r := range roles {
		if !slices.Contains(driver.AddressRoles, r) {
			invalid = fmt.Errorf("role %q: want one of %v", r, driver.AddressRoles)
		}
	}
	return a.run(ctx, op, invalid, func() error {
		e := a.edge
		e.placed = slices.DeleteFunc(e.placed, func(p driver.PlacedAddress) bool {
			gone := p.Owner == owner && (len(roles) == 0 || slices.Contains(roles, p.Role))
			if gone && p.Role == driver.RoleForwardOld {
				delete(e.limits, p.Prefix.Addr())
			}
			return gone
		})
		for addr := range e.traffic {
			if !e.metered(addr) {
				delete(e.traffic, addr)
			}
		}
		return nil
	})
}

// List implements driver.Addresses.
func (a *Addresses) List(ctx context.Context) (all []driver.PlacedAddress, err error) {
	err = a.run(ctx, "list", nil, func() error {
		all = slices.Clone(a.edge.placed)
		return nil
	})
	return all, err
}

// Check implements driver.Addresses.
func (a *Addresses) Check(ctx context.Context, bridge string) (all []drover.Check, err error) {
	err = a.run(ctx, "check", nil, func() error {
		c := drover.Check{Name: "edge has the bridge", OK: slices.Contains(a.edge.cfg.Bridges, bridge), Detail: bridge}
		if !c.OK {
			c.Fix = "create the segment's bridge " + bridge + " at this edge"
		}
		all = []drover.Check{c}
		return nil
	})
	return all, err
}
