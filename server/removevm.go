package server

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/executor"
	"github.com/drover-vm/drover/store"
)

// RemoveVM implements DroverService. Sessions first, then what leads to the VM,
// then the VM: each part can be repeated, so that a call that was cut is made
// again, and whatever is left when it is not is found by Diagnose.
func (s service) RemoveVM(ctx context.Context, r *droverv1.RemoveMadeVMRequest) (*droverv1.RemoveMadeVMResponse, error) {
	op := "remove vm " + r.GetVm()
	if err := drover.CheckName("vm", r.GetVm()); err != nil {
		return nil, err
	}
	if err := s.mayLead(ctx); err != nil {
		return nil, err
	}
	moves, err := s.moving(ctx)
	if err != nil {
		return nil, err
	}
	vm, err := s.fleet.find(r.GetVm(), moves)
	if err != nil {
		return nil, err
	}
	if err := s.mayRemove(ctx, op, vm, moves); err != nil {
		return nil, err
	}
	host, err := s.fleet.agent(vm.Host)
	if err != nil {
		return nil, err
	}
	if err := s.drainMade(ctx, op, vm, r.GetForce()); err != nil {
		return nil, err
	}
	resp := &droverv1.RemoveMadeVMResponse{Vm: api.VMToProto(vm)}
	if resp.Removed, err = s.forgetMade(ctx, op, vm); err != nil {
		return nil, err
	}
	limited, cancel := context.WithTimeout(ctx, edgeLimit)
	defer cancel()
	if _, err := host.client.RemoveVM(limited, &droverv1.RemoveVMRequest{Vm: vm.Name, VmUuid: vm.UUID}); err != nil {
		return nil, err
	}
	if err := s.forgetNeeds(ctx, vm.UUID); err != nil {
		s.log.WarnContext(ctx, "requirements of a vm that was removed are left; doctor removes them", "vm", vm.Name, "error", err)
	}
	resp.Removed = append(resp.Removed, fmt.Sprintf("vm %s at %s/%s", vm.Name, vm.Site, vm.Host))
	for _, d := range vm.Disks {
		if !d.Shared && !d.ReadOnly {
			resp.Removed = append(resp.Removed, "disk "+d.Path)
		}
	}
	who, _ := api.Caller(ctx)
	s.log.InfoContext(ctx, "a vm that was made is removed", "vm", vm.Name, "uuid", vm.UUID, "at", vm.Host, "by", who)
	return resp, nil
}

// mayRemove refuses what Drover did not make, and what something is going on with.
func (s *Server) mayRemove(ctx context.Context, op string, vm drover.VM, moves movesByVM) error {
	if m, busy := moves[vm.UUID]; busy {
		return drover.Errorf(drover.Refused, op, "move %s has it: wait for its end, or cancel it", m.Name)
	}
	if s.protector.of(vm.UUID) != nil {
		return drover.Errorf(drover.Refused, op, "it is protected: end that first (drover protect %s --stop)", vm.Name)
	}
	for _, d := range vm.Disks {
		if d.Left != nil {
			return drover.Errorf(drover.Refused, op, "disk %s of it was left behind at %s: bring it to the VM first (drover move %s --disks-only)", d.Target, d.Left.Host, vm.Name)
		}
	}
	all, err := s.exec.List(ctx, store.Filter{})
	if err != nil {
		return err
	}
	made := slices.ContainsFunc(all, func(m drover.Move) bool {
		return m.Clone != nil && m.Clone.UUID == vm.UUID && m.State == drover.MoveDone
	})
	if !made {
		return drover.Errorf(drover.Refused, op, "it was not made by drover spawn or by a move: only those are removed")
	}
	return nil
}

// madeServer is a load balancer's server that was added for a VM.
type madeServer struct {
	edge          *agent
	backend, name string
	sessions      int
}

// serversOf are those of a VM, at all edges.
func (s *Server) serversOf(ctx context.Context, vm drover.VM) ([]madeServer, error) {
	var list []madeServer
	for _, e := range s.edgeStates(ctx) {
		a, err := s.fleet.agent(e.Name)
		if err != nil {
			return nil, err
		}
		if !e.Up {
			return nil, drover.Errorf(drover.Unavailable, "ask edge "+e.Name, "it does not answer: %s", strings.Join(e.Faults, "; "))
		}
		for _, b := range e.Servers {
			if b.Kind != drover.EdgeBalancer {
				continue
			}
			r, err := a.client.CheckEdge(ctx, &droverv1.CheckEdgeRequest{Backend: b.Name})
			if err != nil {
				return nil, err
			}
			for _, v := range api.ListFromProto(r.GetServers(), api.BackendServerFromProto) {
				if v.Owner == "vm/"+vm.UUID {
					list = append(list, madeServer{a, b.Name, v.Name, v.Sessions})
				}
			}
		}
	}
	return list, nil
}

// drainMade keeps new sessions from the VM, and refuses while it has any, unless
// they are to be ended.
func (s *Server) drainMade(ctx context.Context, op string, vm drover.VM, force bool) error {
	servers, err := s.serversOf(ctx, vm)
	if err != nil || force || len(servers) == 0 {
		return err
	}
	ref := executor.Ref{Move: "remove-" + strings.ToLower(rand.Text()[:8]), Generation: 1, VM: vm.Name, VMUUID: vm.UUID}
	for _, v := range servers {
		drain := drover.EdgeOp{Do: drover.DrainServer, Owner: "vm/" + vm.UUID, Backend: v.backend, Name: v.name}
		if _, err := (agents{s.fleet}).Run(ctx, v.edge.Name, ref, "drain", executor.Edge{Ops: []drover.EdgeOp{drain}}, nil); err != nil {
			return err
		}
	}
	if servers, err = s.serversOf(ctx, vm); err != nil {
		return err
	}
	for _, v := range servers {
		if v.sessions > 0 {
			return drover.Errorf(drover.Refused, op, "backend %s has %d sessions with it; it gets no new ones: ask again when they have ended, or end them with --force", v.backend, v.sessions)
		}
	}
	return nil
}

// forgetMade removes what stands at the agents for the VM, and says what it was.
func (s *Server) forgetMade(ctx context.Context, op string, vm drover.VM) ([]string, error) {
	owner := "vm/" + vm.UUID
	var removed []string
	for _, o := range askAll(s.fleet.sorted(), func(a *agent) owned { return a.owned(ctx) }) {
		if o.err != nil {
			if h, _ := s.fleet.host(o.agent.Name); h.Edge || h.Name == vm.Host {
				return removed, drover.Errorf(drover.Unavailable, op, "%s does not tell what it has: %w", o.agent.Name, o.err)
			}
			continue
		}
		seen := map[string]bool{}
		for _, t := range o.things {
			if t.GetOwner() != owner {
				continue
			}
			removed = append(removed, fmt.Sprintf("%s at %s", t.GetWhat(), o.agent.Name))
			if seen[t.GetKind()] {
				continue
			}
			seen[t.GetKind()] = true
			limited, cancel := context.WithTimeout(ctx, edgeLimit)
			_, err := o.agent.client.RemoveOwned(limited, &droverv1.RemoveOwnedRequest{Owner: owner, Kind: t.GetKind()})
			cancel()
			if err != nil {
				return removed, drover.E(drover.KindOf(err), op, fmt.Errorf("%s at %s: %w", t.GetWhat(), o.agent.Name, err))
			}
		}
	}
	slices.SortFunc(removed, func(a, b string) int { return cmp.Compare(a, b) })
	return removed, nil
}
