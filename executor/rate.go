package executor

import (
	"context"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/saga"
	"github.com/drover-vm/drover/store"
)

// SetRate changes how much a move may send, zero being unlimited, and returns
// when that is journaled. An agent that sends for the move already is told at
// once, again and again until it has heard. Repeating it is fine.
// drover.Invalid: the rate is negative; drover.Refused: nothing of the move is
// left to be sent; otherwise the errors of Cancel.
func (e *Executor) SetRate(ctx context.Context, name string, rate drover.BitRate) error {
	op := "set the rate of move " + name
	if rate < 0 {
		return drover.Errorf(drover.Invalid, op, "bandwidth_bps %d: want 0 (unlimited) or more", int64(rate))
	}
	if w := e.worker(name); w != nil {
		return w.journaled(ctx, op, func() error {
			return w.change(e.life, func(s *state, rec *store.Record) error {
				if s.Journal.Pivot == saga.Passed || rec.Move.State.Final() {
					return drover.Errorf(drover.Refused, op, "all of it has been sent")
				}
				s.Request.Bandwidth, s.RateSet = rate, true
				rec.Move.Bandwidth = rate
				return nil
			})
		})
	}
	return e.notHere(ctx, name, op)
}

// sends reports whether the action is one whose rate can be changed.
func sends(a Action) bool {
	switch a.(type) {
	case Transfer, Copy, Replicate, CopyClone, BringDisks:
		return true
	default:
		return false
	}
}

// keepRate tells the agent that sends of each change of the rate, until the
// action has ended. The action's own rate is that of when it was asked for, and
// an agent that has found it running goes on with the one before. An agent that
// does not send yet has not heard: it is told again.
func (w *worker) keepRate(ctx context.Context, answered <-chan struct{}, host string, ref Ref) {
	ctx, stop := until(ctx, answered)
	defer stop()
	const none = drover.BitRate(-1)
	told, tries := none, 0
	for ctx.Err() == nil {
		w.mu.Lock()
		rate, set, changed := w.state.Request.Bandwidth, w.state.RateSet, w.changed
		w.mu.Unlock()
		if !set || rate == told {
			select {
			case <-changed:
			case <-ctx.Done():
			}
			continue
		}
		err := w.e.agents.SetRate(ctx, host, ref, rate)
		if err == nil {
			told, tries = rate, 0
			w.log.InfoContext(ctx, "rate changed", "host", host, "rate", rate)
			continue
		}
		tries++
		if ctx.Err() == nil {
			w.log.DebugContext(ctx, "agent has not heard of the rate; trying again", "host", host, "error", err)
		}
		if w.e.clock.Sleep(ctx, w.e.backoff(min(tries, rateTries))) != nil {
			return
		}
	}
}

// rateTries bounds the wait between two attempts at a rate: a move that sends
// more than it may costs others, so it is told again sooner than other calls.
const rateTries = 3
