package memory

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

var _ driver.Balancer = (*Balancer)(nil)

// LoadBalancer is a load balancer in memory: what drivers opened on it see.
// Sessions are made by Session.
type LoadBalancer struct {
	mu       sync.Mutex
	backends []*memBackend
	dead     map[netip.AddrPort]bool
	// Fault, if set, is asked before each of a driver's operations, with the
	// method's name in lower case and the backend; an error that it returns is
	// the operation's. It is set before the first driver is opened.
	Fault func(op, backend string) error
}

type memBackend struct {
	name string
	// fixed backends take no servers and no weights.
	fixed   bool
	servers []*memServer
	// current is the state of the weighted round robin, by server.
	current map[*memServer]int
}

type memServer struct {
	driver.Server
	sessions map[*Session]struct{}
	// who has changed it, and what it was before; for servers of the configuration.
	by             driver.Owner
	originalWeight int
	originalState  driver.ServerState
}

// Session is a session through a LoadBalancer.
type Session struct {
	// Server is who serves it.
	Server netip.AddrPort
	lb     *LoadBalancer
	on     *memServer
}

// NewLoadBalancer returns a balancer without backends.
func NewLoadBalancer() *LoadBalancer { return &LoadBalancer{dead: map[netip.AddrPort]bool{}} }

// Configure adds a backend with servers as its configuration would: by name and
// address, all of one weight. A fixed one takes no servers at run time.
func (l *LoadBalancer) Configure(backend string, fixed bool, weight int, servers map[string]netip.AddrPort) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := &memBackend{name: backend, fixed: fixed, current: map[*memServer]int{}}
	for name, address := range servers {
		b.servers = append(b.servers, &memServer{
			Server: driver.Server{
				Backend: backend, Name: name, Address: address, State: driver.ServerReady,
				Weight: weight, InitialWeight: weight, Health: driver.HealthUp,
			},
			sessions: map[*Session]struct{}{},
		})
	}
	slices.SortFunc(b.servers, func(x, y *memServer) int { return compare(x.Name, y.Name) })
	l.backends = append(l.backends, b)
}

func compare(x, y string) int {
	switch {
	case x < y:
		return -1
	case x > y:
		return 1
	}
	return 0
}

// Kill makes whatever server has the address fail its health check, from now on.
func (l *LoadBalancer) Kill(address netip.AddrPort) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dead[address] = true
	for _, b := range l.backends {
		for _, s := range b.servers {
			if s.Address == address && s.Health != driver.HealthNone {
				s.Health = driver.HealthDown
			}
		}
	}
}

// Session begins a session through the backend, by weight.
func (l *LoadBalancer) Session(backend string) (*Session, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.backend(backend)
	if b == nil {
		return nil, drover.Errorf(drover.NotFound, "session", "no backend %q", backend)
	}
	var best *memServer
	sum := 0
	for _, s := range b.servers {
		if s.State != driver.ServerReady || s.Weight == 0 || s.Health == driver.HealthDown {
			continue
		}
		sum += s.Weight
		b.current[s] += s.Weight
		if best == nil || b.current[s] > b.current[best] {
			best = s
		}
	}
	if best == nil {
		return nil, drover.Errorf(drover.Unavailable, "session", "backend %s has no server for it", backend)
	}
	b.current[best] -= sum
	session := &Session{Server: best.Address, lb: l, on: best}
	best.sessions[session] = struct{}{}
	best.Total++
	return session, nil
}

// Alive reports whether the session has not been ended.
func (s *Session) Alive() bool {
	s.lb.mu.Lock()
	defer s.lb.mu.Unlock()
	_, ok := s.on.sessions[s]
	return ok
}

// End ends the session.
func (s *Session) End() {
	s.lb.mu.Lock()
	defer s.lb.mu.Unlock()
	delete(s.on.sessions, s)
}

func (l *LoadBalancer) backend(name string) *memBackend {
	for _, b := range l.backends {
		if b.name == name {
			return b
		}
	}
	return nil
}

func (b *memBackend) server(name string) *memServer {
	for _, s := range b.servers {
		if s.Name == name {
			return s
		}
	}
	return nil
}

// Balancer is a driver of a LoadBalancer.
type Balancer struct {
	lb     *LoadBalancer
	mu     sync.Mutex
	closed bool
}

// Open returns a driver; a LoadBalancer may have several.
func (l *LoadBalancer) Open() *Balancer { return &Balancer{lb: l} }

// Close implements driver.Balancer.
func (b *Balancer) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	return nil
}

// begin locks the balancer unless the operation cannot begin. On success the
// caller unlocks.
func (b *Balancer) begin(ctx context.Context, op, backend string) error {
	b.mu.Lock()
	closed := b.closed
	b.mu.Unlock()
	switch {
	case closed:
		return drover.Errorf(drover.Canceled, op, "the driver is closed")
	case ctx.Err() != nil:
		return drover.E(drover.Canceled, op, ctx.Err())
	}
	if b.lb.Fault != nil {
		if err := b.lb.Fault(op, backend); err != nil {
			return wrap(op, err)
		}
	}
	b.lb.mu.Lock()
	return nil
}

// Backends implements driver.Balancer.
func (b *Balancer) Backends(ctx context.Context) ([]driver.Backend, error) {
	if err := b.begin(ctx, "backends", ""); err != nil {
		return nil, err
	}
	defer b.lb.mu.Unlock()
	var all []driver.Backend
	for _, one := range b.lb.backends {
		seen := driver.Backend{Name: one.name, Algorithm: "roundrobin"}
		if one.fixed {
			seen.Algorithm = "static-rr"
		}
		for _, s := range one.servers {
			server := s.Server
			server.Sessions = len(s.sessions)
			seen.Servers = append(seen.Servers, server)
		}
		all = append(all, seen)
	}
	return all, nil
}

// Servers implements driver.Balancer.
func (b *Balancer) Servers(ctx context.Context, backend string) ([]driver.Server, error) {
	all, err := b.Backends(ctx)
	if err != nil {
		return nil, err
	}
	for _, one := range all {
		if one.Name == backend {
			return one.Servers, nil
		}
	}
	return nil, noBackend("servers", backend)
}

func noBackend(op, backend string) error {
	return drover.Errorf(drover.NotFound, op, "no backend %q", backend)
}

// List implements driver.Balancer.
func (b *Balancer) List(ctx context.Context) ([]driver.OwnedServer, error) {
	if err := b.begin(ctx, "list", ""); err != nil {
		return nil, err
	}
	defer b.lb.mu.Unlock()
	var all []driver.OwnedServer
	for _, one := range b.lb.backends {
		for _, s := range one.servers {
			switch {
			case s.Owner != "":
				all = append(all, driver.OwnedServer{Owner: s.Owner, Backend: one.name, Name: s.Name, Added: true})
			case s.by != "":
				all = append(all, driver.OwnedServer{Owner: s.by, Backend: one.name, Name: s.Name})
			}
		}
	}
	return all, nil
}

// Check implements driver.Balancer.
func (b *Balancer) Check(ctx context.Context, backend string) ([]drover.Check, error) {
	if err := b.begin(ctx, "check", backend); err != nil {
		return nil, err
	}
	defer b.lb.mu.Unlock()
	one := b.lb.backend(backend)
	there := drover.Check{Name: "backend exists", OK: one != nil, Detail: backend}
	if one == nil {
		there.Fix = "add it to the balancer's configuration"
		return []drover.Check{there}, nil
	}
	takes := drover.Check{Name: "backend takes servers at run time", OK: !one.fixed, Detail: backend}
	if one.fixed {
		takes.Fix = "let it share sessions by weight"
	}
	return []drover.Check{there, takes}, nil
}

// Add implements driver.Balancer.
func (b *Balancer) Add(ctx context.Context, owner driver.Owner, backend string, spec driver.ServerSpec) error {
	name := driver.ServerName(owner, spec.Name)
	if err := errors.Join(owner.Validate(), spec.Validate(), driver.CheckServerNames(backend, name)); err != nil {
		return drover.E(drover.Invalid, "add", err)
	}
	if err := b.begin(ctx, "add", backend); err != nil {
		return err
	}
	defer b.lb.mu.Unlock()
	one := b.lb.backend(backend)
	switch {
	case one == nil:
		return noBackend("add", backend)
	case one.fixed:
		return drover.Errorf(drover.Refused, "add", "backend %s takes no servers", backend)
	}
	if s := one.server(name); s != nil {
		if s.Address != spec.Address {
			return drover.Errorf(drover.Exists, "add", "%s is there with the address %v", name, s.Address)
		}
		return nil
	}
	s := &memServer{
		Server: driver.Server{
			Backend: backend, Name: name, Owner: owner, Address: spec.Address, State: driver.ServerMaint,
			Weight: spec.Weight, InitialWeight: spec.Weight, Health: driver.HealthNone,
		},
		sessions: map[*Session]struct{}{},
	}
	if spec.Check != nil {
		s.Health = driver.HealthUp
		if b.lb.dead[spec.Address] {
			s.Health = driver.HealthDown
		}
	}
	one.servers = append(one.servers, s)
	return nil
}

// SetWeight implements driver.Balancer.
func (b *Balancer) SetWeight(ctx context.Context, owner driver.Owner, backend, server string, weight int) error {
	if err := driver.CheckWeight(weight); err != nil {
		return drover.E(drover.Invalid, "set weight", err)
	}
	return b.change(ctx, "set weight", owner, backend, server, func(one *memBackend, s *memServer) error {
		if one.fixed {
			return drover.Errorf(drover.Refused, "set weight", "backend %s takes no weights", backend)
		}
		s.Weight = weight
		return nil
	})
}

// Drain implements driver.Balancer.
func (b *Balancer) Drain(ctx context.Context, owner driver.Owner, backend, server string) error {
	return b.change(ctx, "drain", owner, backend, server, func(_ *memBackend, s *memServer) error {
		s.State = driver.ServerDrain
		return nil
	})
}

// Ready implements driver.Balancer.
func (b *Balancer) Ready(ctx context.Context, owner driver.Owner, backend, server string) error {
	return b.change(ctx, "ready", owner, backend, server, func(_ *memBackend, s *memServer) error {
		s.State = driver.ServerReady
		return nil
	})
}

// change finds the server, sees that it is the owner's to change, and changes it.
func (b *Balancer) change(ctx context.Context, op string, owner driver.Owner, backend, server string, f func(*memBackend, *memServer) error) error {
	if err := checkServer(op, owner, backend, server); err != nil {
		return err
	}
	if err := b.begin(ctx, op, backend); err != nil {
		return err
	}
	defer b.lb.mu.Unlock()
	one := b.lb.backend(backend)
	if one == nil {
		return noBackend(op, backend)
	}
	s := one.server(server)
	if s == nil {
		return drover.Errorf(drover.NotFound, op, "no server %q", server)
	}
	if holder := s.holder(); holder != "" && holder != owner {
		return drover.Errorf(drover.Exists, op, "%s is %s's", server, holder)
	}
	before := s.Server
	if err := f(one, s); err != nil {
		return err
	}
	if s.holder() == "" {
		s.by, s.originalWeight, s.originalState = owner, before.Weight, before.State
	}
	return nil
}

// holder is who added or changed it.
func (s *memServer) holder() driver.Owner {
	if s.Owner != "" {
		return s.Owner
	}
	return s.by
}

func checkServer(op string, owner driver.Owner, backend, server string) error {
	err := errors.Join(owner.Validate(), driver.CheckServerNames(backend, server))
	if err == nil && server == "" {
		err = errors.New("no server is named")
	}
	return drover.E(drover.Invalid, op, err)
}

// Restore implements driver.Balancer.
func (b *Balancer) Restore(ctx context.Context, owner driver.Owner, backend, server string) error {
	if err := checkServer("restore", owner, backend, server); err != nil {
		return err
	}
	if err := b.begin(ctx, "restore", backend); err != nil {
		return err
	}
	defer b.lb.mu.Unlock()
	one := b.lb.backend(backend)
	if one == nil {
		return nil
	}
	s := one.server(server)
	switch {
	case s == nil || s.by == "":
		return nil
	case s.by != owner:
		return drover.Errorf(drover.Exists, "restore", "%s has changed %s", s.by, server)
	}
	s.Weight, s.State, s.by = s.originalWeight, s.originalState, ""
	return nil
}

// Remove implements driver.Balancer.
func (b *Balancer) Remove(ctx context.Context, owner driver.Owner, backend, server string, force bool) (int, error) {
	if err := checkServer("remove", owner, backend, server); err != nil {
		return 0, err
	}
	switch of, _, ours := driver.ParseServerName(server); {
	case !ours:
		return 0, drover.E(drover.Refused, "remove "+server, driver.ErrNotOurs)
	case of != owner:
		return 0, drover.Errorf(drover.Exists, "remove "+server, "it is %s's", of)
	}
	if err := b.begin(ctx, "remove", backend); err != nil {
		return 0, err
	}
	defer b.lb.mu.Unlock()
	one := b.lb.backend(backend)
	if one == nil {
		return 0, nil
	}
	s := one.server(server)
	if s == nil {
		return 0, nil
	}
	ended := len(s.sessions)
	if ended > 0 && !force {
		return 0, drover.E(drover.Refused, "remove "+server, fmt.Errorf("it has %d sessions", ended))
	}
	clear(s.sessions)
	delete(one.current, s)
	one.servers = slices.DeleteFunc(one.servers, func(x *memServer) bool { return x == s })
	return ended, nil
}
