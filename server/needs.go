package server

import (
	"cmp"
	"context"
	"maps"
	"slices"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
)

// maxNeeds bounds what may be set for one VM: there are fewer requirements.
const maxNeeds = 64

// GetRequirements implements DroverService.
func (s service) GetRequirements(ctx context.Context, r *droverv1.GetRequirementsRequest) (*droverv1.GetRequirementsResponse, error) {
	vm, err := s.named(ctx, r.GetVm())
	if err != nil {
		return nil, err
	}
	needs, err := s.needsOf(ctx, vm)
	if err != nil {
		return nil, err
	}
	return &droverv1.GetRequirementsResponse{Requirements: api.RequirementsToProto(needs)}, nil
}

// SetRequirements implements DroverService. All of a call's values are taken, or
// none.
func (s service) SetRequirements(ctx context.Context, r *droverv1.SetRequirementsRequest) (*droverv1.SetRequirementsResponse, error) {
	if len(r.GetValues()) > maxNeeds {
		return nil, drover.Errorf(drover.Invalid, "values", "%d: want at most %d", len(r.GetValues()), maxNeeds)
	}
	for name, value := range r.GetValues() {
		if value == "" {
			value = "any" // of the name alone
		}
		if err := drover.CheckRequirement(name, value); err != nil {
			return nil, err
		}
	}
	vm, err := s.named(ctx, r.GetVm())
	if err != nil {
		return nil, err
	}
	s.settingNeeds.Lock()
	defer s.settingNeeds.Unlock()
	kept, err := s.keptNeeds(ctx, vm.UUID)
	if err != nil {
		return nil, err
	}
	next := drover.KeptRequirements{UUID: vm.UUID, VM: vm.Name, Values: map[string]string{}}
	if !r.GetClear() {
		maps.Copy(next.Values, kept.Values)
	}
	for name, value := range r.GetValues() {
		next.Values[name] = value
		if value == "" {
			delete(next.Values, name)
		}
	}
	all := s.deps.Inventory.Requirements()
	if len(next.Values) == 0 {
		err = all.Delete(ctx, vm.UUID)
	} else {
		err = all.Put(ctx, next)
	}
	if err != nil {
		return nil, err
	}
	who, _ := api.Caller(ctx)
	s.log.InfoContext(ctx, "requirements of a vm changed", "vm", vm.Name, "requirements", next.Values, "by", who)
	return &droverv1.SetRequirementsResponse{Requirements: api.RequirementsToProto(s.settle(vm, next))}, nil
}

// named finds a VM by its name.
func (s *Server) named(ctx context.Context, name string) (drover.VM, error) {
	if err := drover.CheckName("vm", name); err != nil {
		return drover.VM{}, err
	}
	moves, err := s.moving(ctx)
	if err != nil {
		return drover.VM{}, err
	}
	return s.fleet.find(name, moves)
}

// keptNeeds are the requirements that were set through Drover; those of a VM
// without any are empty.
func (s *Server) keptNeeds(ctx context.Context, uuid string) (drover.KeptRequirements, error) {
	kept, err := s.deps.Inventory.Requirements().Get(ctx, uuid)
	if drover.KindOf(err) == drover.NotFound {
		return drover.KeptRequirements{UUID: uuid}, nil
	}
	return kept, err
}

// forgetNeeds drops what was set for a VM that is no more.
func (s *Server) forgetNeeds(ctx context.Context, uuid string) error {
	s.settingNeeds.Lock()
	defer s.settingNeeds.Unlock()
	return s.deps.Inventory.Requirements().Delete(ctx, uuid)
}

// inheritNeeds gives a VM that a move has made what was set for the one that it is
// like, unless something was set for it already; one that is no more loses it.
func (s *Server) inheritNeeds(ctx context.Context, m drover.Move) error {
	if m.State != drover.MoveDone || !m.Method.Makes() || m.Clone == nil {
		return nil
	}
	s.settingNeeds.Lock()
	defer s.settingNeeds.Unlock()
	old, err := s.keptNeeds(ctx, m.VMUUID)
	if err != nil || len(old.Values) == 0 {
		return err
	}
	own, err := s.keptNeeds(ctx, m.Clone.UUID)
	if err != nil {
		return err
	}
	all := s.deps.Inventory.Requirements()
	if len(own.Values) == 0 {
		if err := all.Put(ctx, drover.KeptRequirements{UUID: m.Clone.UUID, VM: m.Clone.Name, Values: old.Values}); err != nil {
			return err
		}
	}
	if m.Method == drover.Spawn || m.KeepSource {
		return nil // the old one is there still
	}
	return all.Delete(ctx, m.VMUUID)
}

// orphanedNeeds finds the requirements of VMs that are nowhere. They are not dropped
// by themselves, however long a VM is gone: one that comes back, from a backup or
// with a host that was away, needs what it needed.
func (s *Server) orphanedNeeds(ctx context.Context, before, after needs, complete, remove bool) ([]drover.Finding, error) {
	s.settingNeeds.Lock()
	defer s.settingNeeds.Unlock()
	all := s.deps.Inventory.Requirements()
	kept, _, err := all.List(ctx)
	if err != nil {
		return nil, err
	}
	var found []drover.Finding
	for _, k := range kept {
		why := leftover(&droverv1.OwnedThing{Owner: "vm/" + k.UUID}, before, after)
		if why == "" {
			continue
		}
		f := drover.Finding{
			Where: s.cfg.Name, Kind: findNeeds, Owner: "vm/" + k.UUID, What: "requirements of vm " + k.VM + ": " + why, Fix: fixLater,
		}
		if complete {
			f.Fix = fixByDoctor
		}
		if complete && remove {
			if err := all.Delete(ctx, k.UUID); err != nil {
				f.Fix = "it could not be removed: " + err.Error()
			} else {
				f.Removed, f.Fix = true, ""
			}
		}
		found = append(found, f)
	}
	slices.SortFunc(found, func(a, b drover.Finding) int { return cmp.Compare(a.What, b.What) })
	return found, nil
}

func (s *Server) needsOf(ctx context.Context, vm drover.VM) (drover.VMRequirements, error) {
	kept, err := s.keptNeeds(ctx, vm.UUID)
	if err != nil {
		return drover.VMRequirements{}, err
	}
	return s.settle(vm, kept), nil
}

// settle brings together what the server's file, the VM's metadata and operators
// say; operators have the last word.
func (s *Server) settle(vm drover.VM, kept drover.KeptRequirements) drover.VMRequirements {
	var layers []drover.RequirementLayer
	for _, d := range s.cfg.Advice.Defaults {
		if !d.matches(vm) {
			continue
		}
		source := "default"
		if d.Label != "" {
			source = "label " + d.Label
		}
		layers = append(layers, drover.RequirementLayer{Source: source, Values: d.Requirements})
	}
	layers = append(layers,
		drover.RequirementLayer{Source: "metadata", Values: vm.Requirements},
		drover.RequirementLayer{Source: "drover", Values: kept.Values})
	return drover.SettleRequirements(vm.Name, layers...)
}
