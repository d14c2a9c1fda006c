package executortest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/executor"
	"github.com/drover-vm/drover/network"
)

var _ executor.Planner = (*World)(nil)

// layout is what a World knows of networks.
type layout struct {
	segments []drover.Segment
	edges    []network.Edge
	vms      []drover.VM
}

// SetNetwork makes hosts of the World the edges of sites, with these segments.
// The VMs are those of which stations are known.
func (w *World) SetNetwork(segments []drover.Segment, edges []network.Edge, vms []drover.VM) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.network = layout{segments, edges, vms}
	for _, e := range edges {
		if h := w.hosts[e.Host]; h.facts == nil {
			h.facts = make(map[string]string)
		}
	}
}

// PlanNetwork implements executor.Planner from what edges have.
func (w *World) PlanNetwork(_ context.Context, r executor.Request) (network.Plan, error) {
	c := Call{Step: "plan-network", Action: executor.Edge{}}
	if err := w.faulty(c); err != nil {
		return network.Plan{}, err
	}
	w.mu.Lock()
	p, err := w.plan(r)
	w.mu.Unlock()
	c.After, c.Err = true, err
	if err := w.faulty(c); err != nil {
		return network.Plan{}, err
	}
	return p, err
}

// plan makes the plan; w.mu is held.
func (w *World) plan(r executor.Request) (network.Plan, error) {
	world := network.World{Segments: w.network.segments, Edges: w.network.edges, VMs: w.network.vms}
	owner := network.Owner(r.VM.UUID)
	for _, e := range w.network.edges {
		s := network.Standing{Site: e.Site}
		for fact, value := range w.hosts[e.Host].facts {
			kind, rest, _ := strings.Cut(fact, " ")
			switch {
			case kind == "extended":
				segment, o, _ := strings.Cut(rest, " ")
				world.Extended = append(world.Extended, network.Extent{Site: e.Site, Segment: segment, Owners: []string{o}})
			case kind == "route":
				s.Routes = s.Routes || value == owner
			case kind == "placed" || kind == "rest":
				s.Addresses = s.Addresses || strings.HasPrefix(rest, owner+" ")
			}
		}
		world.Standing = append(world.Standing, s)
	}
	return network.Make(network.Wish{
		VM: r.VM, From: r.From.Site, To: r.To.Site, Method: r.Method, LocalEgress: r.LocalEgress,
	}, world)
}

// CarryOut makes a move of the network alone, at once, as one that nothing
// befalls would.
func (w *World) CarryOut(r executor.Request) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	p, err := w.plan(r)
	if err != nil {
		return err
	}
	for _, t := range slices.Concat(p.Extend, p.Stations, []network.Task{p.Target, p.Source}, p.Settle, p.Retract) {
		for _, op := range t.Ops {
			if err := w.hosts[t.Host].carryOut(op); err != nil {
				return err
			}
		}
	}
	return nil
}

// EdgeFacts returns what stands at all edges, one line each, sorted.
func (w *World) EdgeFacts() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var facts []string
	for _, e := range w.network.edges {
		for fact, value := range w.hosts[e.Host].facts {
			facts = append(facts, fmt.Sprintf("%s: %s = %s", e.Host, fact, value))
		}
	}
	slices.Sort(facts)
	return facts
}

// carryOut makes the operation's facts; w.mu is held.
func (h *host) carryOut(op drover.EdgeOp) error {
	if err := op.Validate(); err != nil {
		return err
	}
	forget := func(prefix string) {
		maps.DeleteFunc(h.facts, func(f, _ string) bool { return strings.HasPrefix(f, prefix) })
	}
	extended := func() bool {
		for f := range h.facts {
			if strings.HasPrefix(f, "extended "+op.Segment+" ") {
				return true
			}
		}
		return false
	}
	station := fmt.Sprintf("station %s %s", op.Segment, op.MAC)
	switch op.Do {
	case drover.ExtendSegment:
		h.facts[fmt.Sprintf("extended %s %s", op.Segment, op.Owner)] = fmt.Sprint(op.Sites)
	case drover.RetractSegment:
		delete(h.facts, fmt.Sprintf("extended %s %s", op.Segment, op.Owner))
		if !extended() {
			forget("station " + op.Segment + " ")
		}
	case drover.SetStation:
		if !extended() {
			return drover.Errorf(drover.NotFound, "set-station", "%s is not extended at %s", op.Segment, h.name)
		}
		h.facts[station] = strings.TrimSuffix(op.Site+">"+op.Next, ">")
	case drover.DropStation:
		delete(h.facts, station)
	case drover.ProxyRest:
		h.facts[fmt.Sprintf("rest %s %s", op.Owner, op.Segment)] = "answered for"
	case drover.ForgetAddresses:
		forget("rest " + op.Owner + " ")
		forget("placed " + op.Owner + " ")
		forget("metered " + op.Owner + " ")
	case drover.MeterTraffic:
		for _, a := range op.Addresses {
			h.facts[fmt.Sprintf("metered %s %s", op.Owner, a)] = "counted"
		}
	case drover.DeliverHere, drover.Elsewhere, drover.AnnounceRoutes, drover.WithdrawRoutes:
		for _, a := range op.Addresses {
			switch op.Do {
			case drover.AnnounceRoutes:
				h.facts[fmt.Sprintf("route %s", a)] = op.Owner
			case drover.WithdrawRoutes:
				delete(h.facts, fmt.Sprintf("route %s", a))
			default:
				h.facts[fmt.Sprintf("placed %s %s", op.Owner, a)] = string(op.Do)
			}
		}
	default:
		return h.renumberOp(op)
	}
	return nil
}

// edge carries operations out, one part each.
func (j *job) edge(a executor.Edge) error {
	if a.Undo {
		if err := j.endOthers(); err != nil {
			return err
		}
		if err := j.part(func() error { j.j.staged = nil; return nil }); err != nil {
			return err
		}
	}
	rest := j.rest
	if a.Undo {
		rest = j.hold
	}
	for _, op := range a.Ops {
		if err := rest(); err != nil {
			return err
		}
		if err := j.part(func() error { return j.atEdge(op) }); err != nil {
			return err
		}
	}
	return nil
}

func (j *job) atEdge(op drover.EdgeOp) error {
	if j.h.facts == nil {
		return drover.Errorf(drover.Refused, "edge", "%s is no edge", j.h.name)
	}
	if err := op.Validate(); err != nil {
		return err
	}
	if strings.HasPrefix(op.Owner, "move/") {
		return j.h.carryOut(op)
	}
	if ok, err := j.cloneOp(op); ok {
		return err
	}
	return j.h.carryOut(op)
}

func (j *job) stageEdge(a executor.StageEdge) error {
	if err := j.rest(); err != nil {
		return err
	}
	return j.part(func() error {
		if j.h.facts == nil {
			return drover.Errorf(drover.Refused, "stage-edge", "%s is no edge", j.h.name)
		}
		j.j.staged, j.j.stagedFor = a.Ops, a.By
		return nil
	})
}

// callOut is a host's call of the edge beside it. Nobody waits for it: it may be
// lost, or late.
func (j *job) callOut(e executor.EdgeAgent, by string) {
	if e.Host != "" {
		j.w.jobs.Go(func() { j.callsOut(e, by) })
	}
}

func (j *job) callsOut(e executor.EdgeAgent, by string) {
	if err := j.w.faulty(Call{Host: e.Host, Step: "call-out", Action: executor.Edge{}}); err != nil {
		return
	}
	j.w.mu.Lock()
	defer j.w.mu.Unlock()
	h := j.w.hosts[e.Host]
	if h == nil || !h.up || j.w.finished {
		return
	}
	m := h.moves[j.key.move]
	if m == nil || m.staged == nil {
		return
	}
	if m.stagedFor != by {
		j.w.wrongf("%s calls out what %s has staged for %s", by, e.Host, m.stagedFor)
		return
	}
	for _, op := range m.staged {
		if err := h.carryOut(op); err != nil {
			j.w.wrongf("%s cannot do what it has staged: %v", e.Host, err)
		}
	}
	m.staged = nil
}
