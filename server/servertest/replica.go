package servertest

import (
	"context"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api/droverv1"
)

// keeps carries out what is asked for a replica; ok is false for other actions.
func (s service) keeps(r *droverv1.RunRequest) (result *droverv1.RunResult, ok bool) {
	name := r.GetRef().GetMove()
	switch v := r.GetAction().(type) {
	case *droverv1.RunRequest_Reserve:
		if !v.Reserve.GetKeeps() {
			return nil, false
		}
		s.Set(func(st *State) {
			if st.Replicas == nil {
				st.Replicas = map[string]bool{}
			}
			st.Replicas[name] = true
		})
		return &droverv1.RunResult{}, true
	case *droverv1.RunRequest_Release:
		s.Set(func(st *State) { delete(st.Replicas, name) })
		return &droverv1.RunResult{}, true
	case *droverv1.RunRequest_Replicate:
		if !v.Replicate.GetOnce() {
			return nil, false
		}
		return &droverv1.RunResult{DiskBytes: 3 << 20, PathWireBytes: 1 << 20, PointUnixNanos: time.Now().UnixNano()}, true
	default:
		return nil, false
	}
}

// RemoveVM forgets a VM.
func (s service) RemoveVM(_ context.Context, r *droverv1.RemoveVMRequest) (*droverv1.RemoveVMResponse, error) {
	s.mu.Lock()
	vm, here := s.state.VMs[r.GetVm()]
	s.mu.Unlock()
	if here && vm.UUID != r.GetVmUuid() {
		return nil, drover.Errorf(drover.Refused, "remove vm", "another UUID")
	}
	s.Set(func(st *State) { delete(st.VMs, r.GetVm()) })
	return &droverv1.RemoveVMResponse{}, nil
}
