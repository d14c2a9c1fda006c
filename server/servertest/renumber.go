package servertest

import (
	"context"

	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
)

func (s service) CheckOps(_ context.Context, r *droverv1.CheckOpsRequest) (*droverv1.CheckOpsResponse, error) {
	e, err := s.edge()
	if err != nil {
		return nil, err
	}
	resp := &droverv1.CheckOpsResponse{Checks: api.ChecksToProto(e.OpChecks)}
	if r.GetMac() != "" {
		resp.Leases = e.Leases
	}
	return resp, nil
}
