package agent

import (
	"context"
	"errors"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api/droverv1"
)

// switchOver gives the guest up and hands it to the destination.
func (f *flight) switchOver(ctx context.Context, cookie []byte) error {
	a := f.a
	if ctx.Err() != nil {
		// Canceled at the last moment at which that is still possible.
		return context.Cause(ctx)
	}
	performed := a.clock()
	// The hypervisor was told that its disks' blocks are written when the data
	// path had taken them. Whatever of them has not been applied by now would be
	// missing from the guest's disk.
	drain, end := context.WithTimeout(ctx, finishLimit)
	err := f.session.Drain(drain)
	end()
	if err != nil {
		return err
	}
	drained := a.clock()
	var disks []*droverv1.DiskPosition
	for export, p := range f.session.Positions() {
		disks = append(disks, &droverv1.DiskPosition{Export: export, Operations: p.Operations, Bytes: p.Bytes})
	}
	stopped := a.observer.stopped(f.ref.vm, f.began)
	err = a.journal.update(f.ref.move, "given-up", func(r *record) error {
		if err := r.fence(f.ref); err != nil {
			return err
		}
		r.Out.State, r.Out.Token, r.Out.Cookie = outGivenUp, f.token, cookie
		r.Out.Figures = f.figures()
		r.Out.Figures.Stopped = stopped
		return nil
	})
	if err != nil {
		return err
	}
	// From here on only the destination's word counts: no cancel, and no stop
	// of this agent, changes anything.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), finishLimit)
	defer cancel()
	gaveUp := a.clock()
	resp, err := f.peer.Finish(ctx, &droverv1.FinishRequest{Ref: f.ref.proto(), Token: f.token, Cookie: cookie, Disks: disks})
	if err != nil {
		f.log.Warn("no answer to the switchover; asking again", "err", err)
		return peerError(ctx, err)
	}
	answered := a.clock()
	if resp.GetRunning() {
		f.caught.arrived()
		a.callOut(f.ref, f.msg.GetSourceEdge(), f.caught.oldWay())
	}
	// Where the pause goes, by this host's clock.
	f.log.Info("switchover", "running", resp.GetRunning(), "stopped", stopped, "flush", performed.Sub(stopped),
		"drain", drained.Sub(performed), "journal", gaveUp.Sub(drained), "finish", answered.Sub(gaveUp), "resumed", fromUnixNanos(resp.GetResumedUnixNanos()))
	work, end := context.WithTimeout(context.WithoutCancel(ctx), concludeLimit)
	defer end()
	if !resp.GetRunning() {
		err := a.concludeRefused(work, f.ref.move, f.out, resp.GetFault())
		return errors.Join(drover.Errorf(drover.Unavailable, "switchover", "the destination could not run the guest, which runs on here: %s", resp.GetFault()), err)
	}
	err = a.concludeAccepted(work, f.ref.move, f.out, resp.GetCookie(), fromUnixNanos(resp.GetResumedUnixNanos()))
	if err != nil {
		return err
	}
	return f.final(work)
}

// keepMemory makes the guest's memory known for later moves, beside the end of
// this one.
func (f *flight) keepMemory() {
	a, session := f.a, f.session
	f.session = nil
	a.jobs.group.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), concludeLimit)
		defer cancel()
		_ = sleep(ctx, guestFirst, a.calls.ending)
		if err := session.Keep(ctx); err != nil {
			f.log.Info("the guest's memory is not kept", "err", err)
		}
		_ = session.Close()
	})
}

// final adds the figures that are known only at the end.
func (f *flight) final(ctx context.Context) error {
	if s, err := f.out.Progress(ctx); err == nil {
		f.keep(s)
	}
	figures := f.figures()
	f.a.metrics.end(f.ref, *figures.Path)
	f.keepMemory()
	return f.a.journal.update(f.ref.move, "measured", func(r *record) error {
		figures.Stopped, figures.Resumed = r.Out.Figures.Stopped, r.Out.Figures.Resumed
		if figures.Pause == 0 && !figures.Stopped.IsZero() && figures.Resumed.After(figures.Stopped) {
			// By two hosts' clocks, whose difference preflight bounds.
			figures.Pause = figures.Resumed.Sub(figures.Stopped)
		}
		r.Out.Figures = figures
		return nil
	})
}
