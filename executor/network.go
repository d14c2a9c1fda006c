package executor

import (
	"context"
	"slices"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/network"
	"github.com/drover-vm/drover/saga"
)

// The steps of methods that keep a VM's addresses where its segments are not
// one at both sites (stretch, route). What edges do is a network.Plan, which is
// made by a step of its own and journaled with it: what edges have may change
// between a move's acceptance and its turn, but not after it, since the move
// holds the keys (Request.Locks) from then on.
//
// Everything that takes time, or may be refused, is done or tried before the
// transfer. The cut-over itself is decided at the sites: it is staged at both
// edges, and the hosts call it out, each at its own site, the destination's as
// soon as the guest runs. The step cut-over does the same again from here, so
// that a call that was lost costs time but not the VM's reachability.

// Planner makes the plan of a move's network, as edges are now. Errors that are
// not retryable undo the move.
type Planner interface {
	PlanNetwork(ctx context.Context, r Request) (network.Plan, error)
}

func planNetwork() step {
	return step{
		Step: saga.Step{
			Name: "plan-network",
			Why:  "with the keys held, so that what it is based on stays true; nothing at an edge has changed yet",
		},
		local: func(ctx context.Context, e *Executor, s *state) error {
			if e.planner == nil {
				return drover.Errorf(drover.Refused, "plan-network", "nobody here knows the sites' edges")
			}
			p, err := e.planner.PlanNetwork(ctx, s.Request)
			if err != nil {
				return err
			}
			s.Network = &p
			return nil
		},
		do: func(*state) []call { return nil },
		// Edges have no reservation with which they would forget the move.
		undo: func(s *state) []call { return s.releaseEdges() },
	}
}

// extend is the first change at edges, by whatever name a method has for it.
func extend(name, why string) step {
	return step{
		Step: saga.Step{Name: name, Why: why},
		do:   func(s *state) []call { return edgeCalls(s.network().Extend, false) },
		undo: func(s *state) []call { return edgeCalls(s.network().Unextend, true) },
	}
}

func setStations() step {
	return step{
		Step: saga.Step{
			Name: "set-stations",
			Why:  "once the tunnels are there; the guest's first frame at the destination then finds its way, and turns that of others",
		},
		do:   func(s *state) []call { return edgeCalls(s.network().Stations, false) },
		undo: func(s *state) []call { return edgeCalls(s.network().Unstations, true) },
	}
}

func stageCutOver() step {
	return step{
		Step: saga.Step{
			Name: "stage-cut-over",
			Why:  "last before the transfer: edges say now whether they could, and need nobody when the guest runs",
		},
		do: func(s *state) []call {
			var calls []call
			for _, t := range s.cutOver() {
				by := s.Request.From.Host
				if t.Site == s.Request.To.Site {
					by = s.Request.To.Host
				}
				calls = append(calls, call{host: t.Host, action: StageEdge{Ops: t.Ops, By: by}})
			}
			return calls
		},
		undo: func(s *state) []call {
			var calls []call
			for _, t := range s.cutOver() {
				calls = append(calls, call{host: t.Host, action: StageEdge{}})
			}
			return calls
		},
	}
}

func cutOver() step {
	return step{
		Step: saga.Step{
			Name: "cut-over",
			Why:  "at once after the transfer: done already where the sites' own call came through",
		},
		// A site's call that is still under way must find nothing staged, or it
		// would do again what later steps have undone.
		do: func(s *state) []call {
			calls := edgeCalls(s.cutOver(), false)
			for _, t := range s.cutOver() {
				calls = append(calls, call{host: t.Host, action: StageEdge{}, part: "unstage"})
			}
			return calls
		},
	}
}

func settleEdges() step {
	return step{
		Step: saga.Step{
			Name: "settle",
			Why:  "edges of other sites lead to where the VM was until they are told; those of its own came first",
		},
		do: func(s *state) []call { return edgeCalls(s.network().Settle, false) },
	}
}

func retract(why string) step {
	return step{
		Step: saga.Step{Name: "retract", Why: why},
		do:   func(s *state) []call { return edgeCalls(s.network().Retract, false) },
	}
}

// releaseAll is release, for edges as well.
func releaseAll() step {
	st := release()
	hosts := st.do
	st.do = func(s *state) []call { return append(hosts(s), s.releaseEdges()...) }
	return st
}

// edgeCalls has each edge carry out its operations.
func edgeCalls(tasks []network.Task, undo bool) []call {
	var calls []call
	for _, t := range tasks {
		if len(t.Ops) > 0 {
			calls = append(calls, call{host: t.Host, action: Edge{Ops: t.Ops, Undo: undo}})
		}
	}
	return calls
}

// network is the move's plan; an empty one before it is made.
func (s *state) network() network.Plan {
	if s.Network == nil {
		return network.Plan{}
	}
	return *s.Network
}

// cutOver is what the edges of the two sites do at the cut-over, the
// destination's first: what it does makes the VM reachable.
func (s *state) cutOver() []network.Task {
	p := s.network()
	return slices.DeleteFunc([]network.Task{p.Target, p.Source}, func(t network.Task) bool { return len(t.Ops) == 0 })
}

// releaseEdges has the edges forget the move.
func (s *state) releaseEdges() []call {
	var calls []call
	for _, e := range s.network().Edges() {
		calls = append(calls, call{host: e.Host, action: Release{}})
	}
	return calls
}

// told is an edge as the host of its site is to call it; none where it has
// nothing to do.
func told(t network.Task) EdgeAgent {
	if len(t.Ops) == 0 {
		return EdgeAgent{}
	}
	return EdgeAgent{Host: t.Host, Address: t.Address}
}
