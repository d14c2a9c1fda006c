package server

import (
	"context"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
)

// EndOldSessions implements DroverService.
func (s service) EndOldSessions(ctx context.Context, r *droverv1.EndOldSessionsRequest) (*droverv1.EndOldSessionsResponse, error) {
	if err := drover.CheckName("move", r.GetName()); err != nil {
		return nil, err
	}
	if err := s.mayLead(ctx); err != nil {
		return nil, err
	}
	if err := s.exec.EndOld(ctx, r.GetName()); err != nil {
		return nil, err
	}
	m, err := s.move(ctx, r.GetName())
	if err != nil {
		return nil, err
	}
	who, _ := api.Caller(ctx)
	s.log.InfoContext(ctx, "old sessions of a move are ended", "move", m.Name, "by", who)
	return &droverv1.EndOldSessionsResponse{Move: api.MoveToProto(m)}, nil
}
