package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/driver"
)

// EdgeDrivers are what a site's edge works with. One that is nil, or missing
// from its map, the edge does not have. The caller closes them.
type EdgeDrivers struct {
	Tunnels   driver.Tunnels
	Segments  driver.Segments
	Routes    driver.Routes
	Addresses driver.Addresses
	// Names are by zone, Leases by segment, Balancers by backend; one driver
	// may stand for several.
	Names     map[string]driver.Names
	Leases    map[string]driver.Leases
	Balancers map[string]driver.Balancer
}

// check refuses a file that names what there is no driver for.
func (d EdgeDrivers) check(c *Edge) error {
	missing := func(what string) error { return drover.Errorf(drover.Invalid, "agent", "%s without a driver", what) }
	switch {
	case c.Mesh != nil && d.Tunnels == nil:
		return missing("edge.mesh")
	case c.BGP != nil && d.Routes == nil:
		return missing("edge.bgp")
	case len(c.Segments) > 0 && (d.Addresses == nil || d.Segments == nil):
		return missing("edge.segments")
	}
	for _, z := range c.Zones {
		if d.Names[z.Name] == nil {
			return missing("zone " + z.Name)
		}
	}
	for _, s := range c.DHCP {
		for _, name := range s.serves() {
			if d.Leases[name] == nil {
				return missing("DHCP of segment " + name)
			}
		}
	}
	for _, b := range c.Balancers {
		for _, k := range b.Backends {
			if d.Balancers[k] == nil {
				return missing("backend " + k)
			}
		}
	}
	return nil
}

// edge is what makes an agent its site's edge.
type edge struct {
	EdgeDrivers
	a      *Agent
	config *Edge

	// stations is held while a segment's list of stations is read and written.
	stations sync.Mutex
	// mesh guards peers, the other edges by site.
	mesh  sync.Mutex
	peers map[string]driver.Peer
	trips trips

	standing standing
}

func newEdge(a *Agent, d EdgeDrivers) (*edge, error) {
	if a.config.Edge == nil {
		return nil, nil
	}
	if err := d.check(a.config.Edge); err != nil {
		return nil, err
	}
	e := &edge{EdgeDrivers: d, a: a, config: a.config.Edge, peers: map[string]driver.Peer{}}
	return e, e.openStanding()
}

// siteEdge refuses what only a site's edge can do.
func (a *Agent) siteEdge() (*edge, error) {
	if a.siteedge == nil {
		return nil, drover.Errorf(drover.Refused, "host "+a.config.Name, "it is no site's edge: its file has no edge")
	}
	return a.siteedge, nil
}

// lacks is why an operation cannot be carried out here.
func (e *edge) lacks(format string, args ...any) error {
	return drover.Errorf(drover.Refused, "edge "+e.a.config.Name, format, args...)
}

func (e *edge) segment(name string) (EdgeSegment, error) {
	i := slices.IndexFunc(e.config.Segments, func(s EdgeSegment) bool { return s.Name == name })
	if i < 0 {
		return EdgeSegment{}, drover.Errorf(drover.NotFound, "segment "+name, "it does not exist at site %s: edge %s has no segment of that name in its file", e.a.config.Site, e.a.config.Name)
	}
	return e.config.Segments[i], nil
}

func (e *edge) addresses() (driver.Addresses, error) {
	if e.Addresses == nil {
		return nil, e.lacks("it routes for no segment: edge.segments is missing from its file")
	}
	return e.Addresses, nil
}

func (e *edge) extender() (driver.Segments, error) {
	if e.Segments == nil {
		return nil, e.lacks("it extends no segment: edge.segments is missing from its file")
	}
	return e.Segments, nil
}

func (e *edge) router() (driver.Routes, error) {
	if e.Routes == nil {
		return nil, e.lacks("it announces no routes: edge.bgp is missing from its file")
	}
	return e.Routes, nil
}

// zone finds the names' zone: the longest that the name is in.
func (e *edge) zone(name string) (driver.Names, error) {
	var zone string
	for z := range e.Names {
		if _, err := driver.NameInZone(name, z); err == nil && len(z) > len(zone) {
			zone = z
		}
	}
	if zone == "" {
		return nil, e.lacks("name %q is in none of the zones that it may change", name)
	}
	return e.Names[zone], nil
}

func (e *edge) leases(segment string) (driver.Leases, error) {
	if l := e.Leases[segment]; l != nil {
		return l, nil
	}
	return nil, e.lacks("it has no DHCP service for segment %q", segment)
}

func (e *edge) balancer(backend string) (driver.Balancer, error) {
	if b := e.Balancers[backend]; b != nil {
		return b, nil
	}
	return nil, drover.Errorf(drover.NotFound, "backend "+backend, "edge %s has no load balancer with it in its file", e.a.config.Name)
}

// edgeOps reads operations; the first that is wrong is told by its place.
func edgeOps(in []*droverv1.EdgeOp) ([]drover.EdgeOp, error) {
	if len(in) > maxEdgeOps {
		return nil, drover.Errorf(drover.Invalid, "ops", "%d operations: want at most %d", len(in), maxEdgeOps)
	}
	ops := make([]drover.EdgeOp, 0, len(in))
	for i, p := range in {
		op, err := api.EdgeOpFromProto(p)
		if err == nil {
			err = driver.Owner(op.Owner).Validate()
		}
		if err != nil {
			return nil, drover.E(drover.Invalid, fmt.Sprintf("ops[%d]", i), err)
		}
		ops = append(ops, op)
	}
	return ops, nil
}

// maxEdgeOps bounds the operations of one request: a VM has a few NICs,
// addresses, names and backends, with a few operations each.
const maxEdgeOps = 1024

// runEdge carries out an Edge action.
func (a *Agent) runEdge(ctx context.Context, j *job, ref moveRef, m *droverv1.Edge) (*droverv1.RunResult, error) {
	e, err := a.siteEdge()
	if err != nil {
		return nil, err
	}
	ops, err := edgeOps(m.GetOps())
	if err != nil {
		return nil, err
	}
	unlock, err := a.locks.lock(ctx, ref.move)
	if err != nil {
		return nil, err
	}
	defer unlock()
	// What was staged is not to come any more once the move is being undone.
	if err := a.journal.fenceEdge(ref, a.clock(), func(r *edgeRecord) {
		if m.GetUndo() {
			r.unstage()
		}
	}); err != nil {
		return nil, err
	}
	e.standing.work.RLock()
	defer e.standing.work.RUnlock()
	out := new(edgeOutcome)
	for i, op := range ops {
		p := drover.Progress{Phase: string(op.Do), ETASeconds: -1}
		j.report(a.clock(), p)
		if err := e.carryOut(ctx, op, out, true); err != nil {
			return nil, errors.Join(opError(i, op, err), e.stood(ops[:i]...))
		}
	}
	return out.proto(), e.stood(ops...)
}

// opError says which operation failed; the kind stays.
func opError(i int, op drover.EdgeOp, err error) error {
	return drover.E(drover.KindOf(err), fmt.Sprintf("ops[%d] %s", i, op.Do), err)
}

// edgeOutcome is what operations have to say.
type edgeOutcome struct {
	mu        sync.Mutex
	addresses []netip.Prefix
	gateways  []netip.Addr
	sessions  int
	details   []string
}

func (o *edgeOutcome) proto() *droverv1.RunResult {
	return &droverv1.RunResult{
		Addresses: api.PrefixesToProto(o.addresses), Gateways: api.AddressesToProto(o.gateways), Sessions: int64(o.sessions),
		Detail: strings.Join(o.details, "; "),
	}
}

func (o *edgeOutcome) add(f func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	f()
}

// countSessions carries out a CountSessions action.
func (a *Agent) countSessions(ctx context.Context, _ *job, _ moveRef, m *droverv1.CountSessions) (*droverv1.RunResult, error) {
	e, err := a.siteEdge()
	if err != nil {
		return nil, err
	}
	if m.GetBackend() != "" {
		return e.countServer(ctx, m.GetBackend(), m.GetServer())
	}
	list, err := api.ParseAddresses("addresses", m.GetAddresses())
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, drover.Errorf(drover.Invalid, "addresses", "missing: want addresses, or a backend and a server")
	}
	d, err := e.addresses()
	if err != nil {
		return nil, err
	}
	sessions, err := d.Sessions(ctx, list)
	if err != nil {
		return nil, err
	}
	r := resultNow()
	for _, s := range sessions {
		if s.Live && !dying(s) {
			r.Sessions++
		}
	}
	return r, nil
}

// dyingAfter is how long a session of which one end has closed may be silent and
// still count: what the other end has to say comes without such pauses, and its
// tracker would keep it for minutes.
const dyingAfter = 30 * time.Second

func dying(s driver.AddressSession) bool {
	return slices.Contains([]string{"fin-wait", "close-wait", "syn-recv"}, s.State) && s.Idle > dyingAfter
}

func (e *edge) countServer(ctx context.Context, backend, server string) (*droverv1.RunResult, error) {
	b, err := e.balancer(backend)
	if err != nil {
		return nil, err
	}
	list, err := b.Servers(ctx, backend)
	if err != nil {
		return nil, err
	}
	for _, s := range list {
		if s.Name != server {
			continue
		}
		r := resultNow()
		r.Sessions = int64(s.Sessions + s.Queued)
		if s.Unseen {
			r.Detail = "a process that a reload left behind may hold more"
		}
		return r, nil
	}
	return nil, drover.Errorf(drover.NotFound, "server "+server, "backend %s does not have it", backend)
}

// errorLines are the lines of joined errors.
func errorLines(err error) []string {
	var joined interface{ Unwrap() []error }
	if errors.As(err, &joined) {
		var lines []string
		for _, one := range joined.Unwrap() {
			lines = append(lines, errorLines(one)...)
		}
		return lines
	}
	if err == nil {
		return nil
	}
	return []string{err.Error()}
}
