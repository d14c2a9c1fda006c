package agent

import (
	"context"
	"errors"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
)

// The cut-over of a VM's network is decided at the site: the host that knows
// first that the guest runs (the destination's), or that it has left for good
// (the source's), tells the edge beside it, which has the operations staged.
//
//	source agent            destination agent        edge of the destination
//	  │── Finish ────────────▶│ guest runs
//	  │                       │── CutOver ─────────────▶│ announce, deliver, …
//	  │◀───────────── running │
//	  │── CutOver(routes only) ─▶ edge of the source: withdraw
//	  │── CutOver ─▶ edge of the source: lead elsewhere, …
//
// The source's host waits between its two calls as long as frames for the guest
// still come to it, which it catches and hands over (catch.go). Where old sessions
// go on through the mesh it calls once, at once.
//
// Neither call holds the guest up, and neither decides anything: the server asks
// both edges for the same operations afterwards, so a call that does not come
// through costs time.

const (
	// callOutLimit bounds telling the edge. Later than that the server has asked
	// for the same, or is about to.
	callOutLimit = 15 * time.Second
	// callOutRetry is the wait between two attempts: the guest's users wait, too.
	callOutRetry = 200 * time.Millisecond
)

// checkEdge refuses an edge that could not be called.
func checkEdge(e *droverv1.EdgeAgent) error {
	if e == nil {
		return nil
	}
	return checkPeer(e.GetAddress(), e.GetHost())
}

// edgePeer is the client of an edge's agent, nil for none.
func (a *Agent) edgePeer(e *droverv1.EdgeAgent) *api.PeerClient {
	if e == nil || checkEdge(e) != nil {
		return nil
	}
	return a.peers.at(e.GetAddress(), e.GetHost())
}

// callOut tells the edge that its time has come, again until it has heard,
// beside everything else. With a wait, which ends by itself, the edge is told at
// once to change what routers know, and the rest after it.
func (a *Agent) callOut(ref moveRef, e *droverv1.EdgeAgent, wait <-chan struct{}) {
	c := a.edgePeer(e)
	if c == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), callOutLimit)
	a.calls.group.Go(func() {
		defer cancel()
		if wait != nil {
			a.callsOut(ctx, c, ref, e, true)
			select {
			case <-wait:
			case <-ctx.Done():
			}
		}
		a.callsOut(ctx, c, ref, e, false)
	})
	a.calls.group.Go(func() {
		// An agent that stops does not stay for it.
		select {
		case <-a.calls.ending:
			cancel()
		case <-ctx.Done():
		}
	})
}

func (a *Agent) callsOut(ctx context.Context, c *api.PeerClient, ref moveRef, e *droverv1.EdgeAgent, routes bool) {
	began := a.clock()
	log := a.log.With("move", ref.move, "vm", ref.vm, "edge", e.GetHost())
	for n := 1; ; n++ {
		resp, err := c.CutOver(ctx, &droverv1.CutOverRequest{Ref: ref.proto(), RoutesOnly: routes})
		if err == nil {
			log.Info("edge has cut over", "took", a.clock().Sub(began).Round(time.Microsecond), "at", fromUnixNanos(resp.GetAtUnixNanos()), "attempts", n, "routes_only", routes)
			return
		}
		if !drover.KindOf(err).Retryable() || sleep(ctx, callOutRetry, nil) != nil {
			// Not staged any more is what the server's own way leaves, too.
			log.Warn("edge was not told of the cut-over; the server will", "err", errors.Join(err, ctx.Err()))
			return
		}
	}
}

// keepEdgeWarm keeps the connection to the edge open until ctx ends, so that the
// cut-over does not wait for a handshake.
func (a *Agent) keepEdgeWarm(ctx context.Context, e *droverv1.EdgeAgent) {
	if c := a.edgePeer(e); c != nil {
		_, _ = ping(ctx, c) // the first call says what is wrong, if it still is
		keepWarm(ctx, c)
	}
}
