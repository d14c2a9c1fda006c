package server

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/executor"
)

// round takes one, and says how it went.
func (w *protecting) round(ctx context.Context, r replica) error {
	w.mu.Lock()
	w.shown.Sending = true
	w.mu.Unlock()
	defer func() {
		w.ended = w.k.now()
		w.mu.Lock()
		w.shown.Sending, w.shown.Progress, w.shown.Allotted = false, nil, 0
		w.mu.Unlock()
	}()
	rate := w.allot(ctx, r)
	over, cancel := context.WithCancel(ctx)
	var pace sync.WaitGroup
	pace.Go(func() { w.pace(over, r, rate) })
	// The step is named by what it adds, so that whoever asks again finds it.
	res, err := w.ask(ctx, r, r.From.Host, fmt.Sprintf("round-%d", r.Rounds+1), executor.Replicate{
		PeerAddress: r.ToAddress, PeerHost: r.To.Host, Disks: r.Disks, Bandwidth: rate, Once: true,
	})
	cancel()
	pace.Wait()
	switch kind := drover.KindOf(err); {
	case err == nil:
	case kind == drover.NotFound:
		return w.lost(ctx, err)
	default:
		return err
	}
	return w.change(ctx, func(p *drover.Protection, st *protectState) error {
		c := *st.Current
		c.Rounds++
		st.Current = &c
		p.Rounds++
		p.Point, p.RoundBytes, p.RoundWireBytes = res.Point, res.DiskBytes, res.PathWireBytes
		p.RoundSeconds = max(0, w.k.now().Sub(res.Point).Seconds())
		p.State, p.Why = drover.ProtectionOK, ""
		if now := p.At(w.k.now()); !now.RPOOK {
			p.State, p.Why = drover.ProtectionLate, keepsUp(*p)
		}
		return nil
	})
}

// allot is what the round may send now.
func (w *protecting) allot(ctx context.Context, r replica) drover.BitRate {
	link, moving := w.k.world.linkOf(ctx, r.From.Site, r.To.Site)
	n := w.k.rounds(r.From.Site, r.To.Site)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.shown.Allotted = allotment(link, n, moving, w.shown.Rate)
	return w.shown.Allotted
}

// pace tells the agent that sends of each change of the rate, until ctx ends.
func (w *protecting) pace(ctx context.Context, r replica, told drover.BitRate) {
	t := time.NewTicker(protectPace)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		rate := w.allot(ctx, r)
		if rate == told {
			continue
		}
		w.mu.Lock()
		ref := executor.Ref{Move: r.Name, Generation: w.state.Generation, VM: w.shown.VM, VMUUID: w.shown.VMUUID}
		w.mu.Unlock()
		// An agent that does not send yet, or not any more, is told again next time.
		if err := w.k.agents.SetRate(ctx, r.From.Host, ref, rate); err != nil {
			w.log.DebugContext(ctx, "agent has not heard of the rate of a round", "error", err)
			continue
		}
		told = rate
	}
}
