package servertest

import (
	"context"
	"strings"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
)

// CheckEdge tells the backend's servers, and finds nothing amiss but with what is
// among the agent's TargetChecks.
func (s service) CheckEdge(_ context.Context, r *droverv1.CheckEdgeRequest) (*droverv1.CheckEdgeResponse, error) {
	e, err := s.edge()
	if err != nil {
		return nil, err
	}
	resp := &droverv1.CheckEdgeResponse{}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.state.TargetChecks {
		resp.Checks = append(resp.Checks, api.CheckToProto(c))
	}
	if r.GetBackend() != "" {
		resp.Servers = api.ListToProto(e.Backend, api.BackendServerToProto)
	}
	return resp, nil
}

// makes carries out what is asked for a VM that is made here; ok is false for other
// actions.
func (s service) makes(r *droverv1.RunRequest) (result *droverv1.RunResult, ok bool) {
	ref := r.GetRef()
	switch v := r.GetAction().(type) {
	case *droverv1.RunRequest_Edge:
		result := &droverv1.RunResult{}
		s.Set(func(st *State) {
			for _, op := range v.Edge.GetOps() {
				st.Edge.Done = append(st.Edge.Done, strings.TrimSpace(op.GetDo()+" "+op.GetName()))
				if op.GetDo() == string(drover.ReserveLease) {
					result.Addresses = append(result.Addresses, "10.60.0.21/24")
				}
			}
		})
		return result, true
	case *droverv1.RunRequest_DefineClone:
		vm := VM(ref.GetVm())
		vm.UUID, vm.State = ref.GetVmUuid(), drover.VMOff
		for _, n := range v.DefineClone.GetClone().GetNics() {
			vm.NICs[0].MAC, vm.NICs[0].Network = n.GetNewMac(), n.GetNetwork()
		}
		vm.Probe = api.OptionalProbeFromProto(v.DefineClone.GetClone().GetProbe())
		s.Set(func(st *State) { st.VMs[vm.Name] = vm })
		return &droverv1.RunResult{}, true
	case *droverv1.RunRequest_CopyClone:
		s.world.carry(50 << 20)
		return &droverv1.RunResult{DiskBytes: 40 << 20, PathWireBytes: 41 << 20}, true
	case *droverv1.RunRequest_Attend:
		s.mu.Lock()
		defer s.mu.Unlock()
		return &droverv1.RunResult{Healthy: s.state.Sick == "", Detail: s.state.Sick, Sessions: 2}, true
	default:
		return nil, false
	}
}
