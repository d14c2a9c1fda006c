package server

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/executor"
	"github.com/drover-vm/drover/store"
)

// endPatience is how long a call waits for a protection's end: removing a replica
// takes seconds, and who does not want to wait has cut the call.
const endPatience = 2 * time.Minute

var _ protectWorld = (*Server)(nil)

// keepReplicas keeps the replicas that are wanted, once this server leads.
func (s *Server) keepReplicas(ctx context.Context) error {
	select {
	case <-s.leading:
	case <-ctx.Done():
		return nil
	}
	if err := s.protector.run(ctx); err != nil && ctx.Err() == nil {
		return fmt.Errorf("keep replicas: %w", err)
	}
	return nil
}

// protectedVM implements protectWorld.
func (s *Server) protectedVM(ctx context.Context, uuid string) (drover.VM, bool, error) {
	moves, err := s.moving(ctx)
	if err != nil {
		return drover.VM{}, false, err
	}
	all := s.fleet.viewVMs(moves)
	i := slices.IndexFunc(all, func(v drover.VM) bool { return v.UUID == uuid })
	if i < 0 {
		return drover.VM{}, false, nil
	}
	return all[i], true, nil
}

// movingVM implements protectWorld.
func (s *Server) movingVM(ctx context.Context, uuid string) (drover.Move, bool, error) {
	moves, err := s.moving(ctx)
	m, ok := moves[uuid]
	return m, ok, err
}

// retired implements protectWorld.
func (s *Server) retired(ctx context.Context, uuid string) (bool, error) {
	all, err := s.exec.List(ctx, store.Filter{VMUUID: uuid})
	if err != nil || len(all) == 0 {
		return false, err
	}
	last := all[len(all)-1]
	return last.Method == drover.Redirect && last.State == drover.MoveDone && !last.KeepSource, nil
}

// reachable implements protectWorld.
func (s *Server) reachable(host string) string {
	h, known := s.fleet.host(host)
	switch {
	case !known:
		return "it is not in the server's file"
	case !h.Up:
		return orUnknown(h.Fault)
	}
	return ""
}

func orUnknown(s string) string {
	if s == "" {
		return "it is not known why"
	}
	return s
}

// planReplica implements protectWorld. A replica has to be good for a warm move.
func (s *Server) planReplica(ctx context.Context, vm string, to drover.Place) (executor.Request, error) {
	p, err := s.preflight(ctx, vm, to, asked{method: drover.Warm})
	if err != nil {
		return executor.Request{}, err
	}
	if !p.report.OK {
		var why []string
		for _, c := range p.report.Checks {
			if !c.OK && !c.Warning {
				why = append(why, c.Name+": "+c.Detail)
			}
		}
		return executor.Request{}, drover.Errorf(drover.Refused, "replica of vm "+vm, "%s", strings.Join(why, "; "))
	}
	return p.request, nil
}

// linkOf implements protectWorld.
func (s *Server) linkOf(ctx context.Context, from, to string) (rate drover.BitRate, moving bool) {
	for _, l := range s.fleet.viewLinks() {
		if l.Joins(from, to) {
			rate += l.Rate
		}
	}
	moves, err := s.moving(ctx)
	if err != nil {
		return rate, true // not to be in the way of what is not known
	}
	for _, m := range moves {
		if m.From.Site == from && m.To.Site == to || m.From.Site == to && m.To.Site == from {
			moving = true
		}
	}
	return rate, moving
}

// Protect implements DroverService.
func (s service) Protect(ctx context.Context, r *droverv1.ProtectRequest) (*droverv1.ProtectResponse, error) {
	to := api.PlaceFromProto(r.GetTo())
	if to.Host != "" {
		if err := drover.CheckName("to.host", to.Host); err != nil {
			return nil, err
		}
	}
	p := drover.Protection{
		VM: r.GetVm(), To: to, RPOSeconds: (time.Duration(r.GetRpoMillis()) * time.Millisecond).Seconds(), Rate: drover.BitRate(r.GetBandwidthBps()),
	}
	if err := p.Validate(); err != nil {
		return nil, err
	}
	if err := s.mayLead(ctx); err != nil {
		return nil, err
	}
	moves, err := s.moving(ctx)
	if err != nil {
		return nil, err
	}
	vm, err := s.fleet.find(p.VM, moves)
	if err != nil {
		return nil, err
	}
	p.VMUUID, p.From = vm.UUID, drover.Place{Site: vm.Site, Host: vm.Host}
	resp := &droverv1.ProtectResponse{}
	if w := s.protector.of(vm.UUID); w != nil {
		// Only the wishes change; the place, where a host was not named, is known.
		if kept := w.show(); p.To.Host == "" && kept.To.Site == p.To.Site {
			p.To = kept.To
		}
	} else {
		found, err := s.preflight(ctx, p.VM, p.To, asked{method: drover.Warm})
		if err != nil {
			return nil, err
		}
		resp.Preflight = api.PreflightToProto(found.report)
		if !found.report.OK {
			return resp, nil
		}
		p.To = found.request.To
	}
	p, err = s.protector.protect(ctx, p)
	if err != nil {
		return nil, err
	}
	who, _ := api.Caller(ctx)
	s.log.InfoContext(ctx, "protection wanted", "vm", p.VM, "to", p.To, "rpo", p.RPO(), "rate", p.Rate, "by", who)
	resp.Protection = api.ProtectionToProto(p)
	return resp, nil
}

// EndProtection implements DroverService.
func (s service) EndProtection(ctx context.Context, r *droverv1.EndProtectionRequest) (*droverv1.EndProtectionResponse, error) {
	if err := drover.CheckName("vm", r.GetVm()); err != nil {
		return nil, err
	}
	if err := s.mayLead(ctx); err != nil {
		return nil, err
	}
	// By the name that it was protected under: the VM itself may be nowhere.
	all := s.protector.list()
	i := slices.IndexFunc(all, func(p drover.Protection) bool { return p.VM == r.GetVm() })
	if i < 0 {
		return nil, drover.Errorf(drover.NotFound, "end the protection of vm "+r.GetVm(), "it is not protected (see drover protect --list)")
	}
	who, _ := api.Caller(ctx)
	s.log.InfoContext(ctx, "protection is to end", "vm", r.GetVm(), "by", who)
	wait, cancel := context.WithTimeout(ctx, endPatience)
	defer cancel()
	p, gone, err := s.protector.end(wait, all[i].VMUUID, r.GetVm())
	if err != nil || gone {
		return &droverv1.EndProtectionResponse{}, err
	}
	return &droverv1.EndProtectionResponse{Protection: api.ProtectionToProto(p)}, nil
}

// ListProtections implements DroverService.
func (s service) ListProtections(ctx context.Context, _ *droverv1.ListProtectionsRequest) (*droverv1.ListProtectionsResponse, error) {
	if err := s.mayLead(ctx); err != nil {
		return nil, err
	}
	return &droverv1.ListProtectionsResponse{Protections: api.ListToProto(s.protector.list(), api.ProtectionToProto)}, nil
}
