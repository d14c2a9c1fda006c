package agent

import (
	"context"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/driver"
)

// inRejected: accepted, but it definitely cannot run here; the guest has to go
// before that is said.
const inRejected = "rejected"

// reject journals that an accepted guest will not run here.
func (a *Agent) reject(move, fault string) error {
	return a.journal.update(move, "rejected", func(r *record) error {
		r.In.State, r.In.Fault = inRejected, fault
		return nil
	})
}

// decide brings an incoming transfer that was accepted or rejected to one of
// its two ends and returns it. The move's lock is held, so no Finish is under
// way. Any error means that it could not yet be decided.
func (a *Agent) decide(ctx context.Context, move string) (inRecord, error) {
	r, err := a.journal.move(move)
	if err != nil {
		return inRecord{}, err
	}
	if r == nil || r.In == nil {
		return inRecord{}, drover.Errorf(drover.Corrupt, "journal", "move %s: its arrival is gone", move)
	}
	switch r.In.State {
	case inAccepted:
		forward, err := a.mayHaveRun(ctx, r)
		if err != nil {
			return inRecord{}, err
		}
		if forward {
			a.remote.open(r.VMUUID)
			if err := a.hyp.Settle(ctx, r.VM, driver.SettleResume); err != nil {
				return inRecord{}, err
			}
			return a.endArrival(move, inRunning, "")
		}
		if err := a.reject(move, "the switchover was interrupted before the guest could run here"); err != nil {
			return inRecord{}, err
		}
		return a.decide(ctx, move)
	case inRejected:
		if err := a.removeRejected(ctx, r); err != nil {
			return inRecord{}, err
		}
		return a.endArrival(move, inRefused, r.In.Fault)
	default:
		return *r.In, nil
	}
}

// removeRejected makes sure that a rejected guest is not here.
func (a *Agent) removeRejected(ctx context.Context, r *record) error {
	vm, err := a.hyp.VM(ctx, r.VM)
	switch {
	case err != nil && drover.KindOf(err) == drover.NotFound:
		return nil
	case err != nil:
		return err
	case vm.UUID != r.VMUUID:
		return nil // another VM, made by hand meanwhile
	}
	return a.hyp.Settle(ctx, r.VM, driver.SettleGone)
}

// mayHaveRun reports whether an accepted guest was made persistent here. The
// hypervisor does that before it lets the guest run, so a guest that is not
// persistent has not run, and one that is may have.
func (a *Agent) mayHaveRun(ctx context.Context, r *record) (bool, error) {
	vm, err := a.hyp.VM(ctx, r.VM)
	switch {
	case err != nil && drover.KindOf(err) == drover.NotFound:
		return false, nil
	case err != nil:
		return false, err
	case vm.UUID != r.VMUUID:
		return false, drover.Errorf(drover.Exists, "move "+r.Move, "the vm called %s here is another one", r.VM)
	}
	return vm.Persistent || vm.State == drover.VMRunning, nil
}

func (a *Agent) endArrival(move, state, fault string) (inRecord, error) {
	var in inRecord
	err := a.journal.update(move, "in-"+state, func(r *record) error {
		r.In.State, r.In.Fault = state, fault
		if state == inRunning && r.In.Resumed.IsZero() {
			r.In.Resumed = a.clock()
		}
		if state == inRefused {
			r.RefusedGeneration = max(r.RefusedGeneration, r.In.Generation)
		}
		in = *r.In
		return nil
	})
	if err == nil {
		_ = a.sockets.remove(move)
	}
	return in, err
}

// Fate answers how a Finish ended, and makes the answer final. It takes any
// generation: what it says of an older one is true of it too.
func (a peerService) Fate(ctx context.Context, req *droverv1.FateRequest) (*droverv1.FateResponse, error) {
	ref, caller, unlock, err := a.peerCall(ctx, req.GetRef())
	if err != nil {
		return nil, err
	}
	defer unlock()
	r, err := a.journal.move(ref.move)
	if err != nil {
		return nil, err
	}
	if r == nil || !r.Target {
		return a.fateUnknown(ctx, ref)
	}
	if err := r.bind(caller); err != nil {
		return nil, err
	}
	if r.In != nil && (r.In.State == inAccepted || r.In.State == inRejected) {
		in, err := a.decide(ctx, ref.move)
		if err != nil {
			return nil, drover.E(drover.Unavailable, "fate of move "+ref.move, err)
		}
		r.In = &in
	}
	if r.In != nil && r.In.State == inRunning {
		return &droverv1.FateResponse{Accepted: true, Cookie: r.In.Cookie, ResumedUnixNanos: unixNanos(r.In.Resumed)}, nil
	}
	newer := r.In != nil && r.In.State == inPrepared && r.In.Generation > ref.generation
	err = a.journal.update(ref.move, "in-refused", func(r *record) error {
		r.RefusedGeneration = max(r.RefusedGeneration, ref.generation)
		if !newer && r.In != nil && r.In.State != inPrepared {
			r.In.State = inRefused
		}
		return r.bind(caller)
	})
	if err == nil && !newer {
		// The refusal holds already; the guest goes before the answer, so that
		// it is not on two hosts even as a corpse.
		err = a.discard(ctx, ref.move)
	}
	return &droverv1.FateResponse{}, err
}

// fateUnknown answers about a move that is not reserved here: released, or
// never heard of.
func (a *Agent) fateUnknown(ctx context.Context, ref moveRef) (*droverv1.FateResponse, error) {
	s, err := a.journal.stone(ref.move)
	if err != nil {
		return nil, err
	}
	if s != nil && s.Accepted {
		return &droverv1.FateResponse{Accepted: true}, nil
	}
	if !a.edge() {
		// The stone may have been dropped; the VM itself is the better witness.
		all, err := a.hyp.List(ctx)
		if err != nil {
			return nil, drover.E(drover.Unavailable, "fate of move "+ref.move, err)
		}
		for _, vm := range all {
			if vm.UUID == ref.uuid {
				return &droverv1.FateResponse{Accepted: true}, nil
			}
		}
	}
	return &droverv1.FateResponse{}, a.journal.release(ref.move, stone{Generation: ref.generation, VMUUID: ref.uuid, Released: a.clock()})
}

// Abandon throws away what was prepared, where no Finish was accepted.
func (a peerService) Abandon(ctx context.Context, req *droverv1.AbandonRequest) (*droverv1.AbandonResponse, error) {
	ref, caller, unlock, err := a.peerCall(ctx, req.GetRef())
	if err != nil {
		return nil, err
	}
	defer unlock()
	r, err := a.journal.move(ref.move)
	if err != nil {
		return nil, err
	}
	if r == nil || !r.Target {
		s, err := a.journal.stone(ref.move)
		return &droverv1.AbandonResponse{Accepted: s != nil && s.Accepted}, err
	}
	if err := r.bind(caller); err != nil {
		return nil, err
	}
	switch {
	case r.In != nil && (r.In.owns() || r.In.State == inRejected):
		in, err := a.decide(ctx, ref.move)
		return &droverv1.AbandonResponse{Accepted: in.State == inRunning}, err
	case r.In != nil && r.In.Generation > ref.generation:
		return nil, tooOld("abandon move "+ref.move, ref.generation, r.In.Generation)
	}
	return &droverv1.AbandonResponse{}, a.discard(ctx, ref.move)
}

// recoverIncoming settles what earlier processes of this agent left at the
// destination, until all is settled or ctx ends.
func (a *Agent) recoverIncoming(ctx context.Context) {
	if a.edge() {
		return
	}
	pause := retryLeast
	for {
		left, err := a.recoverArrivals(ctx)
		if err == nil && left == 0 {
			return
		}
		a.log.Warn("arrivals are not settled yet", "left", left, "err", err)
		if sleep(ctx, pause, nil) != nil {
			return
		}
		pause = min(2*pause, retryMost)
	}
}

// recoverArrivals returns how many could not be settled.
func (a *Agent) recoverArrivals(ctx context.Context) (left int, err error) {
	all, err := a.journal.moves()
	if err != nil {
		return 0, err
	}
	for _, r := range all {
		if r.In == nil || a.incoming.get(r.Move) != nil {
			continue
		}
		switch r.In.State {
		case inPrepared, inAccepted, inRejected:
		default:
			continue
		}
		if serr := a.recoverArrival(ctx, r.Move); serr != nil {
			left, err = left+1, serr
		}
	}
	return left, err
}

func (a *Agent) recoverArrival(ctx context.Context, move string) error {
	ctx, cancel := context.WithTimeout(ctx, concludeLimit)
	defer cancel()
	unlock, err := a.locks.lock(ctx, move)
	if err != nil {
		return err
	}
	defer unlock()
	if a.incoming.get(move) != nil {
		return nil // prepared anew meanwhile, by this process
	}
	r, err := a.journal.move(move)
	if err != nil || r == nil || r.In == nil {
		return err
	}
	if r.In.State == inPrepared {
		return a.discard(ctx, move)
	}
	_, err = a.decide(ctx, move)
	return err
}
