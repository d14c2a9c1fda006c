package server

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api/droverv1"
)

const (
	// reconnectFirst and reconnectMost are the first and the longest wait
	// before an agent is called again: one that was restarted is back within
	// the first few, one that is gone is not asked more often than is useful.
	reconnectFirst = 200 * time.Millisecond
	reconnectMost  = 5 * time.Second
)

// watch observes an agent's host until ctx ends.
func (s *Server) watch(ctx context.Context, a *agent) {
	wait := reconnectFirst
	for {
		heard, err := s.watchOnce(ctx, a)
		if ctx.Err() != nil {
			return
		}
		s.fleet.lost(a, err)
		if heard {
			wait = reconnectFirst
		}
		// Jitter keeps a thousand agents from coming back in step.
		select {
		case <-time.After(wait/2 + rand.N(wait/2)):
		case <-ctx.Done():
			return
		}
		wait = min(2*wait, reconnectMost)
	}
}

// watchOnce reads one stream to its end; heard says whether it brought
// anything.
func (s *Server) watchOnce(ctx context.Context, a *agent) (heard bool, err error) {
	stream, err := a.client.Watch(ctx, &droverv1.DescribeRequest{})
	if err != nil {
		return false, err
	}
	defer stream.Close()
	for stream.Receive() {
		s.took(ctx, a, stream.Msg())
		heard = true
	}
	if err := stream.Err(); err != nil {
		return heard, err
	}
	return heard, drover.Errorf(drover.Unavailable, "watch agent "+a.Name, "it ended the stream")
}

// took takes over an observation and keeps it.
func (s *Server) took(ctx context.Context, a *agent, r *droverv1.DescribeResponse) {
	s.fleet.observed(a, r)
	if err := s.fleet.keep(ctx, a, s.isMoving); err != nil && ctx.Err() == nil {
		s.log.WarnContext(ctx, "observation is not kept; a restarted server would not know it", "host", a.Name, "error", err)
	}
}

// isMoving reports whether a VM has an unfinished move. When that cannot be
// found out it has: nothing is forgotten then.
func (s *Server) isMoving(ctx context.Context, uuid string) bool {
	moves, err := s.moving(ctx)
	if err != nil {
		return true
	}
	_, ok := moves[uuid]
	return ok
}
