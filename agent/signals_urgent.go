package agent

import (
	"context"
	"errors"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api/droverv1"
)

// urgentLimit bounds a look that somebody waits for: the windows of one, and as much
// again for another that is being made.
const urgentLimit = 15 * time.Second

// Survey looks at a VM now. One at a time is looked at so on a host, and as
// little of it as in any survey, so that who asks often harms nobody.
func (a agentService) Survey(ctx context.Context, req *droverv1.SurveyRequest) (*droverv1.SurveyResponse, error) {
	if err := drover.CheckName("vm_uuid", req.GetVmUuid()); err != nil {
		return nil, err
	}
	if err := a.needHypervisor(); err != nil {
		return nil, err
	}
	if a.signals.d == nil {
		return nil, drover.Errorf(drover.Refused, "look at a vm", "this agent does not watch any")
	}
	ctx, cancel := context.WithTimeout(ctx, urgentLimit)
	defer cancel()
	select {
	case a.signals.urgent <- struct{}{}:
		defer func() { <-a.signals.urgent }()
	case <-ctx.Done():
		return nil, drover.Errorf(drover.Unavailable, "look at a vm", "others are being looked at")
	}
	if err := a.signals.surveyNow(ctx, req.GetVmUuid()); err != nil {
		return nil, err
	}
	return &droverv1.SurveyResponse{}, nil
}

// surveyNow looks at one guest: its counters before and after, so that there are
// rates, its memory, and what other hosts have of that. What it found of how the
// guest writes replaces the surveys of before: who asks wants to know what it
// does now.
func (s *signals) surveyNow(ctx context.Context, uuid string) error {
	s.count(ctx)
	s.mu.Lock()
	w := s.vms[uuid]
	if w == nil {
		s.mu.Unlock()
		return drover.Errorf(drover.NotFound, "vm "+uuid, "it is not on this host")
	}
	vm := w.vm
	s.mu.Unlock()
	f, err := s.look(ctx, vm, s.pace.Asked)
	s.mu.Lock()
	s.figures.surveys++
	s.figures.busy += f.Busy
	w = s.vms[uuid]
	if err == nil && w == nil {
		err = drover.Errorf(drover.NotFound, "vm "+uuid, "it has left this host")
	}
	if err != nil {
		s.figures.ended++
		s.mu.Unlock()
		if errors.Is(err, errInUse) {
			return drover.Errorf(drover.Refused, "look at vm "+vm.Name, "a move is using it")
		}
		return drover.E(drover.KindOf(err), "look at vm "+vm.Name, err)
	}
	now := s.a.clock()
	w.urgent, w.surveyed = now, now
	w.curves = nil
	w.take(f, now)
	clear(w.asked)
	w.s.KnownShare = nil // it was of other pages
	s.mu.Unlock()
	s.count(ctx)
	s.askContent(ctx)
	return nil
}
