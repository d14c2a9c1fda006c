package agent

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/driver"
)

const (
	// fateLimit bounds one question to the destination, which may first have
	// to end a Finish that is under way.
	fateLimit = 20 * time.Second
	// Between questions: quick at first, since a guest is paused, and never
	// rarer than retryMost, since it is still paused.
	retryLeast = 100 * time.Millisecond
	retryMost  = 5 * time.Second
	// abandonLimit bounds telling the destination to throw away what it has
	// prepared. If it cannot be told, it does so when it is released.
	abandonLimit = 10 * time.Second
	// concludeLimit bounds what is left to do once it is known whose the guest
	// is: the hypervisor destroys or resumes one VM.
	concludeLimit = 2 * time.Minute
)

// resolver settles outgoing transfers that no flight looks after: what a crash
// or an unanswered switchover left. One goroutine per move, without any limit in
// time for those that have been given up: the guest is paused as long as it is
// not known whose it is.
type resolver struct {
	a *Agent

	mu      sync.Mutex
	ctx     context.Context
	running map[string]*resolution
	group   sync.WaitGroup
}

type resolution struct {
	done  chan struct{}
	moved bool
	err   error
}

func newResolver(a *Agent) *resolver {
	return &resolver{a: a, running: make(map[string]*resolution)}
}

func (s *resolver) start(ctx context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ctx = ctx
}

// begin starts to settle a move's transfer, or finds that it is being settled.
func (s *resolver) begin(move string) *resolution {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.running[move]; r != nil {
		return r
	}
	r := &resolution{done: make(chan struct{})}
	if s.ctx == nil || s.ctx.Err() != nil {
		r.err = drover.E(drover.Unavailable, "settle move "+move, errStopping)
		close(r.done)
		return r
	}
	s.running[move] = r
	ctx := s.ctx
	s.group.Go(func() {
		r.moved, r.err = s.a.settle(ctx, move)
		s.mu.Lock()
		delete(s.running, move)
		s.mu.Unlock()
		close(r.done)
	})
	return r
}

// wait settles a move's transfer and says whether the VM has moved. When the
// limit or ctx ends first the outcome is drover.Unknown, and settling goes on.
func (s *resolver) wait(ctx context.Context, move string, limit time.Duration) (bool, error) {
	r := s.begin(move)
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-r.done:
		if r.err != nil {
			return false, drover.E(drover.Unknown, "settle move "+move, r.err)
		}
		return r.moved, nil
	case <-timer.C:
	case <-ctx.Done():
	}
	return false, drover.Errorf(drover.Unknown, "settle move "+move,
		"the destination has not yet said whether it has the guest, or the hypervisor does not answer; asking goes on")
}

// settled waits for all; the context of start must have ended.
func (s *resolver) settled() { s.group.Wait() }

// settle brings a transfer to its end, whatever state the journal has it in.
func (a *Agent) settle(ctx context.Context, move string) (moved bool, err error) {
	pause := retryLeast
	for {
		moved, done, err := a.settleStep(ctx, move)
		if done {
			return moved, err
		}
		if err != nil {
			a.log.Warn("transfer is not settled yet", "move", move, "err", err)
			if serr := sleep(ctx, pause, nil); serr != nil {
				return false, errors.Join(errStopping, err)
			}
			pause = min(2*pause, retryMost)
		}
	}
}

// settleStep takes one step; done says that there is no other.
func (a *Agent) settleStep(ctx context.Context, move string) (moved, done bool, err error) {
	r, err := a.journal.move(move)
	if err != nil {
		return false, ctx.Err() != nil, err
	}
	if r == nil || r.Out == nil || r.Out.State == outEnded {
		return false, true, nil
	}
	ctx, cancel := context.WithTimeout(ctx, concludeLimit)
	defer cancel()
	switch r.Out.State {
	case outMoved:
		return true, true, nil
	case outBegun:
		return false, false, a.giveBack(ctx, r)
	case outAccepted:
		return false, false, a.concludeAccepted(ctx, move, nil, r.Out.Cookie, r.Out.Figures.Resumed)
	case outGivenUp:
		return false, false, a.askFate(ctx, r)
	default:
		return false, true, drover.Errorf(drover.Corrupt, "journal", "move %s: transfer is %q", move, r.Out.State)
	}
}

// askFate asks the destination how Finish ended, and does what follows.
func (a *Agent) askFate(ctx context.Context, r *record) error {
	ref := moveRef{r.Move, r.Out.Generation, r.VM, r.VMUUID}
	ask, cancel := context.WithTimeout(ctx, fateLimit)
	defer cancel()
	resp, err := a.peers.at(r.Out.PeerAddress, r.Out.PeerHost).Fate(ask, &droverv1.FateRequest{Ref: ref.proto()})
	if err != nil {
		return err
	}
	if resp.GetAccepted() {
		return a.concludeAccepted(ctx, r.Move, nil, resp.GetCookie(), fromUnixNanos(resp.GetResumedUnixNanos()))
	}
	return a.concludeRefused(ctx, r.Move, nil, "the destination never accepted the guest")
}

// concludeAccepted ends the guest here, which runs at the destination. out may
// be nil.
func (a *Agent) concludeAccepted(ctx context.Context, move string, out driver.Outgoing, cookie []byte, resumed time.Time) error {
	var vm string
	err := a.journal.update(move, "out-accepted", func(r *record) error {
		vm = r.VM
		r.Out.State, r.Out.Cookie, r.Out.Figures.Resumed = outAccepted, cookie, resumed
		return nil
	})
	if err != nil {
		return err
	}
	confirmed := false
	if out != nil {
		err := out.Confirm(ctx, cookie, true)
		if confirmed = err == nil; !confirmed {
			a.log.Warn("confirming the move failed; removing the guest", "move", move, "err", err)
			_ = out.Close()
		}
	}
	if !confirmed {
		if err := a.hyp.Settle(ctx, vm, driver.SettleGone); err != nil {
			return err
		}
	}
	return a.journal.update(move, "moved", func(r *record) error {
		r.Out.State = outMoved
		return nil
	})
}

// concludeRefused lets the guest run on here: the destination never will. out
// may be nil.
func (a *Agent) concludeRefused(ctx context.Context, move string, out driver.Outgoing, fault string) error {
	r, err := a.journal.move(move)
	if err != nil {
		return err
	}
	// Nobody asks for its disks any more, and it needs them.
	if err := a.lent.stop(r.VMUUID); err != nil {
		return err
	}
	resumed := false
	if out != nil {
		err := out.Confirm(ctx, nil, false)
		if resumed = err == nil; !resumed {
			a.log.Warn("giving the guest back failed; resuming it", "move", move, "err", err)
			_ = out.Close()
		}
	}
	if !resumed {
		if err := a.hyp.Settle(ctx, r.VM, driver.SettleResume); err != nil && drover.KindOf(err) != drover.NotFound {
			return err
		}
	}
	return a.journal.update(move, "refused", func(r *record) error {
		r.Out.State, r.Out.Fault = outEnded, fault
		r.RefusedGeneration = max(r.RefusedGeneration, r.Out.Generation)
		return nil
	})
}

// giveBack ends a transfer that was never given up: the guest is this host's
// without asking anyone, since no Finish was ever sent.
func (a *Agent) giveBack(ctx context.Context, r *record) error {
	vm, err := a.hyp.VM(ctx, r.VM)
	switch {
	case drover.KindOf(err) == drover.NotFound && err != nil:
		// It has ended by itself, and was not persistent.
	case err != nil:
		return err
	case vm.State == drover.VMRunning || vm.State == drover.VMPaused:
		if err := a.hyp.Settle(ctx, r.VM, driver.SettleResume); err != nil && drover.KindOf(err) != drover.NotFound {
			return err
		}
	}
	// A VM that is off has powered off by itself: no migration leaves it so.
	a.abandonPeer(ctx, r)
	return a.journal.update(r.Move, "ended", func(r *record) error {
		r.Out.State = outEnded
		return nil
	})
}

// abandonPeer tells the destination to throw away what it has prepared. A
// destination that cannot be told does so by itself, at the latest when the
// server undoes the move there.
func (a *Agent) abandonPeer(ctx context.Context, r *record) {
	if r.Out.PeerAddress == "" {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, abandonLimit)
	defer cancel()
	ref := moveRef{r.Move, r.Out.Generation, r.VM, r.VMUUID}
	_, err := a.peers.at(r.Out.PeerAddress, r.Out.PeerHost).Abandon(ctx, &droverv1.AbandonRequest{Ref: ref.proto()})
	if err != nil {
		a.log.Warn("the destination could not be told to throw away what it has prepared", "move", r.Move, "err", err)
	}
}

// abortTransfer makes sure that no transfer is under way or will be.
func (a *Agent) abortTransfer(ctx context.Context, _ *job, ref moveRef, _ *droverv1.AbortTransfer) (*droverv1.RunResult, error) {
	op := "abort transfer of vm " + ref.vm
	if err := a.needHypervisor(); err != nil {
		return nil, err
	}
	r, err := a.journal.move(ref.move)
	if err != nil {
		return nil, err
	}
	if r != nil && r.Target {
		return nil, drover.Errorf(drover.Refused, op, "host %s is the move's target", a.config.Name)
	}
	if r != nil {
		err := a.journal.update(ref.move, "closed", func(r *record) error {
			r.RefusedGeneration = max(r.RefusedGeneration, ref.generation)
			return r.fence(ref)
		})
		if err != nil {
			return nil, err
		}
		moved, err := a.resolver.wait(ctx, ref.move, settleWait)
		if err != nil || moved {
			return a.outcome(ref.move, err)
		}
	}
	if r == nil {
		s, err := a.journal.stone(ref.move)
		if err != nil {
			return nil, err
		}
		if s != nil && s.Moved {
			return &droverv1.RunResult{Moved: true}, nil
		}
	}
	vm, err := a.hyp.VM(ctx, ref.vm)
	switch {
	case err != nil:
		return nil, drover.E(drover.KindOf(err), op, err)
	case vm.UUID != ref.uuid:
		return nil, drover.Errorf(drover.NotFound, op, "the vm of that name here is another (%s)", vm.UUID)
	case vm.State == drover.VMPaused && r != nil && r.Out != nil:
		if err := a.hyp.Settle(ctx, ref.vm, driver.SettleResume); err != nil {
			return nil, err
		}
	}
	return resultNow(), nil
}

// recoverOutgoing begins to settle what earlier processes of this agent left
// at the source. It does not wait.
func (a *Agent) recoverOutgoing() error {
	all, err := a.journal.moves()
	if err != nil {
		return err
	}
	for _, r := range all {
		if r.Out == nil {
			continue
		}
		switch r.Out.State {
		case outBegun, outGivenUp, outAccepted:
			a.log.Info("settling an interrupted transfer", "move", r.Move, "vm", r.VM, "state", r.Out.State)
			a.resolver.begin(r.Move)
		}
	}
	return nil
}
