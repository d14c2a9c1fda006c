package servertest

import (
	"context"

	"google.golang.org/protobuf/proto"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api/droverv1"
)

// Observe answers with what the agent was given to see.
func (s service) Observe(_ context.Context, r *droverv1.ObserveRequest) (*droverv1.ObserveResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state.Asked = r
	if s.state.Seen == nil {
		return &droverv1.ObserveResponse{}, nil
	}
	return proto.CloneOf(s.state.Seen), nil
}

// Survey counts how often the agent was asked to look at a VM now; one that it was
// not given to see is not there.
func (s service) Survey(_ context.Context, r *droverv1.SurveyRequest) (*droverv1.SurveyResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, v := range s.state.Seen.GetVms() {
		if v.GetUuid() == r.GetVmUuid() {
			s.state.Surveys++
			return &droverv1.SurveyResponse{}, nil
		}
	}
	return nil, drover.Errorf(drover.NotFound, "vm "+r.GetVmUuid(), "it is not on this host")
}
