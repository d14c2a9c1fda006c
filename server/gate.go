package server

import (
	"context"
	"net/netip"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
)

// gateOf reads a request's gate: a port alone is one of the VM's, whose address
// is that at which clients probe it, and whoever checks must be known.
func (s service) gateOf(p *droverv1.Gate, vm drover.VM) (*drover.Gate, error) {
	g := api.GateFromProto(p)
	if g == nil || g.Health == nil {
		return g, validGate(g)
	}
	var address netip.Addr
	if vm.Probe != nil {
		if at, err := netip.ParseAddrPort(vm.Probe.TCP); err == nil {
			address = at.Addr()
		}
	}
	h, err := g.Health.Complete(address)
	if err != nil {
		return nil, err
	}
	g.Health = &h
	if err := validGate(g); err != nil {
		return nil, err
	}
	if h.From != "" {
		if _, known := s.fleet.host(h.From); !known {
			return nil, drover.Errorf(drover.Invalid, "health from", "%q: there is no such agent (see drover hosts)", h.From)
		}
	}
	return g, nil
}

func validGate(g *drover.Gate) error {
	if g == nil {
		return nil
	}
	return g.Validate()
}

// CommitMove implements DroverService.
func (s service) CommitMove(ctx context.Context, r *droverv1.CommitMoveRequest) (*droverv1.CommitMoveResponse, error) {
	m, err := s.word(ctx, r.GetName(), "committed", s.exec.Commit)
	return &droverv1.CommitMoveResponse{Move: m}, err
}

// ReturnMove implements DroverService.
func (s service) ReturnMove(ctx context.Context, r *droverv1.ReturnMoveRequest) (*droverv1.ReturnMoveResponse, error) {
	m, err := s.word(ctx, r.GetName(), "returned", s.exec.Return)
	return &droverv1.ReturnMoveResponse{Move: m}, err
}

// word takes an operator's word at a gate.
func (s service) word(ctx context.Context, name, what string, say func(context.Context, string) error) (*droverv1.Move, error) {
	if err := drover.CheckName("move", name); err != nil {
		return nil, err
	}
	if err := s.mayLead(ctx); err != nil {
		return nil, err
	}
	if err := say(ctx, name); err != nil {
		return nil, err
	}
	m, err := s.move(ctx, name)
	if err != nil {
		return nil, err
	}
	who, _ := api.Caller(ctx)
	s.log.InfoContext(ctx, "move "+what, "move", name, "by", who)
	return api.MoveToProto(m), nil
}
