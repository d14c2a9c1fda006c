package servertest

import (
	"context"

	"google.golang.org/protobuf/proto"

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
