package agent

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/driver"
)

const (
	// attendEvery is how often a VM is looked at that takes over sessions.
	attendEvery = 500 * time.Millisecond
	// attendFall is how many looks in a row must fail: one may be a packet lost.
	// attendTry bounds one look, so that a VM that is gone is given up after three
	// of them, well before clients lose their patience.
	attendFall = 3
	attendTry  = 5 * time.Second
	// attendLimit bounds what may be asked for.
	attendLimit = drover.MaxCloneTime
)

// attend watches a VM that the load balancer sends sessions to, and a server that
// drains.
func (a *Agent) attend(ctx context.Context, j *job, ref moveRef, m *droverv1.Attend) (*droverv1.RunResult, error) {
	op := "attend vm " + ref.vm
	check := drover.HealthCheck{Kind: drover.HealthKind(m.GetKind()), Target: m.GetTarget()}
	if check.Kind != "" {
		if err := check.Validate(); err != nil {
			return nil, err
		}
	}
	span := time.Duration(m.GetForMillis()) * time.Millisecond
	if span < 0 || span > attendLimit {
		return nil, drover.Errorf(drover.Invalid, op, "for %v: want up to %v", span, attendLimit)
	}
	e, err := a.siteEdge()
	if err != nil {
		return nil, err
	}
	b, err := e.balancer(m.GetBackend())
	if err != nil {
		return nil, err
	}
	w := attending{a: a, j: j, ref: ref, check: check, balancer: b, backend: m.GetBackend(), server: m.GetServer(), over: time.Now().Add(span)}
	for {
		done, err := w.look(ctx)
		if done || err != nil {
			return w.result, err
		}
		if err := sleep(ctx, attendEvery, nil); err != nil {
			return nil, drover.E(drover.Canceled, op, err)
		}
	}
}

// attending is one run of attend.
type attending struct {
	a               *Agent
	j               *job
	ref             moveRef
	check           drover.HealthCheck
	balancer        driver.Balancer
	backend, server string
	over            time.Time

	failed, deaf int // looks in a row
	result       *droverv1.RunResult
}

// look looks once; done says that the result is there.
func (w *attending) look(ctx context.Context) (done bool, err error) {
	w.result = &droverv1.RunResult{Healthy: true}
	left := time.Until(w.over)
	if w.check.Kind != "" {
		detail, err := w.a.try(ctx, w.ref, w.check, time.Now().Add(attendTry))
		switch {
		case ctx.Err() != nil:
			return false, drover.E(drover.Canceled, "attend vm "+w.ref.vm, ctx.Err())
		case drover.KindOf(err) == drover.Invalid && err != nil:
			return false, err
		case err != nil:
			w.failed++
		default:
			w.failed, w.result.Detail = 0, detail
		}
		if w.failed >= attendFall {
			w.result.Healthy, w.result.Detail = false, fmt.Sprintf("%d times in a row: %v", w.failed, err)
			return true, nil
		}
	}
	drained := false
	p := drover.Progress{Phase: "watch", ETASeconds: left.Seconds()}
	if w.server != "" {
		s, err := w.serverNow(ctx)
		if w.deaf++; err != nil {
			// A load balancer that is being reloaded is back at once.
			if w.deaf >= attendFall || drover.KindOf(err) != drover.Unavailable {
				return false, err
			}
			return false, nil
		}
		w.deaf, w.result.Sessions, drained = 0, int64(s.Sessions+s.Queued), s.Drained()
		p.Phase = fmt.Sprintf("drain %d sessions", w.result.Sessions)
	}
	w.j.report(w.a.clock(), p)
	// While something is amiss, nothing is done: it is looked again.
	return (drained || left <= 0) && w.failed == 0, nil
}

func (w *attending) serverNow(ctx context.Context) (driver.Server, error) {
	all, err := w.balancer.Servers(ctx, w.backend)
	if err != nil {
		return driver.Server{}, err
	}
	for _, s := range all {
		if s.Name == w.server {
			return s, nil
		}
	}
	return driver.Server{}, drover.Errorf(drover.NotFound, "server "+w.server, "backend %s does not have it any more", w.backend)
}

// CheckEdge is an edge's part of a preflight.
func (a agentService) CheckEdge(ctx context.Context, req *droverv1.CheckEdgeRequest) (*droverv1.CheckEdgeResponse, error) {
	e, err := a.siteEdge()
	if err != nil {
		return nil, err
	}
	resp := &droverv1.CheckEdgeResponse{}
	var checks []drover.Check
	if req.GetBackend() != "" {
		more, servers, err := e.checkBackend(ctx, req.GetBackend())
		if err != nil {
			return nil, err
		}
		checks, resp.Servers = append(checks, more...), api.ListToProto(servers, api.BackendServerToProto)
	}
	if req.GetName() != "" {
		checks = append(checks, e.checkName(ctx, req.GetName(), req.GetAddresses()))
	}
	if req.GetSegment() != "" {
		checks = append(checks, e.checkPool(ctx, req.GetSegment()))
	}
	resp.Checks = api.ChecksToProto(checks)
	return resp, nil
}

// checkBackend looks at a load balancer's backend and returns its servers.
func (e *edge) checkBackend(ctx context.Context, backend string) ([]drover.Check, []drover.BackendServer, error) {
	b, err := e.balancer(backend)
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	reached := drover.Check{Name: "balancer", OK: true}
	all, err := b.Servers(ctx, backend)
	var owned []driver.OwnedServer
	if err == nil {
		owned, err = b.List(ctx)
	}
	if err != nil {
		reached.OK, reached.Detail = false, fmt.Sprintf("backend %s: %v", backend, err)
		reached.Fix = fmt.Sprintf("see to the load balancer of edge %s", e.a.config.Name)
		return []drover.Check{reached}, nil, nil
	}
	servers := make([]drover.BackendServer, 0, len(all))
	for _, s := range all {
		out := drover.BackendServer{
			Name: s.Name, Owner: string(s.Owner), Address: s.Address, State: string(s.State), Weight: s.Weight, Sessions: s.Sessions,
		}
		for _, o := range owned {
			if o.Backend == backend && o.Name == s.Name && !o.Added {
				out.ChangedBy = string(o.Owner)
			}
		}
		servers = append(servers, out)
	}
	reached.Detail = fmt.Sprintf("backend %s has %d servers", backend, len(servers))
	checks, err := b.Check(ctx, backend)
	if err != nil {
		return []drover.Check{{Name: "balancer", Detail: err.Error(), Fix: reached.Fix}}, servers, nil
	}
	return append([]drover.Check{reached}, checks...), servers, nil
}

// checkName says whether a name may be given to a VM: it is nobody's, or its
// addresses are those.
func (e *edge) checkName(ctx context.Context, name string, addresses []string) drover.Check {
	ctx, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	c := drover.Check{Name: "dns-name", Fix: "choose another name"}
	bad := func(format string, args ...any) drover.Check {
		c.Detail = fmt.Sprintf("name %s: ", name) + fmt.Sprintf(format, args...)
		return c
	}
	zone, err := e.zone(name)
	if err != nil {
		return bad("%v", err)
	}
	if err := zone.Check(ctx, name); err != nil {
		c.Fix = fmt.Sprintf("see to the name server of edge %s and its key", e.a.config.Name)
		return bad("%v", err)
	}
	if mark, err := zone.Owned(ctx, name); err == nil {
		return bad("it is being changed for %s", mark.Owner)
	} else if drover.KindOf(err) != drover.NotFound {
		return bad("%v", err)
	}
	answers, err := zone.Answers(ctx, name)
	if err != nil {
		return bad("%v", err)
	}
	for _, answer := range answers {
		for _, at := range answer.Records.Addresses {
			if !slices.Contains(addresses, at.String()) {
				return bad("it answers %s already", at)
			}
		}
	}
	return drover.Check{Name: c.Name, OK: true, Detail: "name " + name + " can be set"}
}

// checkPool says whether there is an address left in a segment.
func (e *edge) checkPool(ctx context.Context, segment string) drover.Check {
	ctx, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	c := drover.Check{Name: "addresses", Fix: fmt.Sprintf("see to the DHCP service of edge %s", e.a.config.Name)}
	d, err := e.leases(segment)
	if err != nil {
		c.Detail = err.Error()
		return c
	}
	taken, err := e.takenBut(ctx, "")
	var free driver.FreeAddresses
	if err == nil {
		free, err = d.Free(ctx, segment, slices.Collect(maps.Keys(taken))...)
	}
	switch {
	case err != nil:
		c.Detail = fmt.Sprintf("segment %s: %v", segment, err)
	case free.V4 == 0 && free.V6 == 0:
		c.Detail, c.Fix = fmt.Sprintf("no address of segment %s is free", segment), "make the segment's pool larger"
		if in := taken.of(e, segment); in > 0 {
			c.Detail += fmt.Sprintf(", %d are led to VMs that have taken them elsewhere", in)
		}
	default:
		return drover.Check{Name: c.Name, OK: true, Detail: fmt.Sprintf("segment %s has %d IPv4 addresses free", segment, free.V4)}
	}
	return c
}

// forget undoes all that stands here for an owner who is no more. Names go back to
// what they were before: nobody is at their addresses any more.
func (e *edge) forget(ctx context.Context, owner driver.Owner) error {
	for _, zone := range e.Names {
		all, err := zone.List(ctx)
		if err != nil {
			return err
		}
		for _, n := range all {
			if n.Owner != owner {
				continue
			}
			if err := zone.Restore(ctx, owner, n.Name); err != nil {
				return err
			}
		}
	}
	if e.Routes != nil {
		if err := e.removeRoutes(ctx, owner); err != nil {
			return err
		}
	}
	if e.Addresses != nil {
		if err := e.Addresses.Remove(ctx, owner); err != nil {
			return err
		}
	}
	if e.Segments != nil {
		if err := e.removeExtensions(ctx, owner); err != nil {
			return err
		}
	}
	if err := e.removeServers(ctx, owner); err != nil {
		return err
	}
	return e.removeLeases(ctx, owner)
}
