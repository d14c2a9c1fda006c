package server

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/executor"
	"github.com/drover-vm/drover/store"
)

const (
	// protectLook is how often a protected VM is looked at between rounds: it may
	// have begun to move, or its host to answer again.
	protectLook = 2 * time.Second
	// protectRetry and protectRetryMost bound the wait after something has failed.
	protectRetry     = 2 * time.Second
	protectRetryMost = time.Minute
	// protectPace is how often the rate of a round under way is looked at.
	protectPace = time.Second
	// protectSave bounds keeping one protection.
	protectSave = 5 * time.Second
	// maxOldReplicas bounds those that wait to be removed: with more, no other is
	// begun, since each takes the space of the VM's disks.
	maxOldReplicas = 2
)

// protecting is one protection at work: one goroutine does all of it.
type protecting struct {
	k    *protector
	log  *slog.Logger
	wake chan struct{}
	// gone is closed when nothing is left.
	gone chan struct{}

	// Of the goroutine. ready says that the agents were asked for the current
	// replica's reservation since the start, or since something failed.
	ready  bool
	failed int
	ended  time.Time // the last round

	mu    sync.Mutex
	shown drover.Protection
	state protectState
}

// show is what operators see.
func (w *protecting) show() drover.Protection {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.shown.At(w.k.now())
}

// nudge has it looked at now.
func (w *protecting) nudge() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// change changes and keeps it.
func (w *protecting) change(ctx context.Context, f func(*drover.Protection, *protectState) error) error {
	w.mu.Lock()
	shown, state := w.shown, w.state
	err := f(&shown, &state)
	if err == nil {
		w.shown, w.state = shown, state
	}
	w.mu.Unlock()
	if err != nil {
		return err
	}
	return w.save(ctx)
}

// save keeps it as it is now.
func (w *protecting) save(ctx context.Context) error {
	w.mu.Lock()
	doc, err := json.Marshal(w.state)
	kept := store.Protection{Protection: w.shown, State: doc}
	w.mu.Unlock()
	if err != nil {
		return drover.E(drover.Internal, "keep protection", err)
	}
	kept.Protection.Progress, kept.Protection.AgeSeconds, kept.Protection.Allotted, kept.Protection.Sending = nil, nil, 0, false
	ctx, cancel := context.WithTimeout(ctx, protectSave)
	defer cancel()
	return w.k.store.Put(ctx, kept)
}

// tell sets what is shown of its state.
func (w *protecting) tell(s drover.ProtectionState, why string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.shown.State != s || w.shown.Why != why {
		w.log.Info("protection", "state", s, "why", why)
	}
	w.shown.State, w.shown.Why = s, why
}

// conclude begins its end.
func (w *protecting) conclude(ctx context.Context, why string) error {
	return w.change(ctx, func(p *drover.Protection, _ *protectState) error {
		p.State, p.Why = drover.ProtectionEnding, why
		return nil
	})
}

// run works until nothing is left, or ctx ends.
func (w *protecting) run(ctx context.Context) {
	for ctx.Err() == nil {
		wait, err := w.step(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			w.ready = false
			w.failed++
			wait = min(protectRetry<<min(w.failed-1, 8), protectRetryMost)
			w.fault(err)
		case wait < 0:
			close(w.gone)
			return
		default:
			w.failed = 0
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-w.wake:
		case <-ctx.Done():
		}
		t.Stop()
	}
}

// fault shows what went wrong.
func (w *protecting) fault(err error) {
	w.log.Warn("protection does not get on", "error", err)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.shown.Why = err.Error()
	if w.shown.State != drover.ProtectionEnding {
		w.shown.State = drover.ProtectionPaused
	}
}

// step does what is to be done now and says how long to wait then; below zero:
// nothing is left.
func (w *protecting) step(ctx context.Context) (time.Duration, error) {
	w.mu.Lock()
	p := w.shown
	w.mu.Unlock()
	m, moving, err := w.k.world.movingVM(ctx, p.VMUUID)
	if err != nil {
		return 0, err
	}
	if moving {
		// What a move has taken over, it gives back, or ends.
		w.ready = false
		why := fmt.Sprintf("move %s to %s has the VM", m.Name, m.To)
		if p.State == drover.ProtectionEnding {
			w.tell(p.State, why)
		} else {
			w.tell(drover.ProtectionPaused, why)
		}
		return protectLook, nil
	}
	if p.State == drover.ProtectionEnding {
		return w.end(ctx)
	}
	vm, there, err := w.k.world.protectedVM(ctx, p.VMUUID)
	if err != nil {
		return 0, err
	}
	if why, err := w.over(ctx, p, vm, there); err != nil || why != "" {
		if err == nil {
			err = w.conclude(ctx, why)
		}
		return 0, err
	}
	if why := w.hindered(p, vm, there); why != "" {
		w.ready = false
		w.tell(drover.ProtectionPaused, why)
		return protectLook, nil
	}
	return w.keep(ctx, vm)
}

// over says why there is nothing to protect any more; empty when there is.
func (w *protecting) over(ctx context.Context, p drover.Protection, vm drover.VM, there bool) (string, error) {
	if !there {
		retired, err := w.k.world.retired(ctx, p.VMUUID)
		if retired {
			return "another VM has taken its place", err
		}
		return "", err
	}
	at := drover.Place{Site: vm.Site, Host: vm.Host}
	if vm.Host == p.To.Host || vm.Site == p.To.Site && p.From.Site != p.To.Site {
		return fmt.Sprintf("the VM is at %s now", at), nil
	}
	return "", nil
}

// hindered says why no round can be taken now; empty when one can.
func (w *protecting) hindered(p drover.Protection, vm drover.VM, there bool) string {
	if !there {
		return "no host has the VM"
	}
	for _, host := range []string{vm.Host, p.To.Host} {
		if why := w.k.world.reachable(host); why != "" {
			return fmt.Sprintf("host %s does not answer: %s", host, why)
		}
	}
	if vm.State != drover.VMRunning && vm.State != drover.VMPaused {
		return fmt.Sprintf("the VM is %s; what it wrote since the last round crosses with a move, or when it runs again", vm.State)
	}
	return ""
}

// keep sees to it that there is a replica, and that it is young enough.
func (w *protecting) keep(ctx context.Context, vm drover.VM) (time.Duration, error) {
	w.mu.Lock()
	current, old := w.state.Current, len(w.state.Old)
	w.mu.Unlock()
	if current == nil || current.Lost || current.From.Host != vm.Host {
		if old >= maxOldReplicas {
			return 0, w.clear(ctx)
		}
		return 0, w.begin(ctx, vm)
	}
	if !w.ready {
		if err := w.reserve(ctx, *current); err != nil {
			return 0, err
		}
		w.ready = true
	}
	if current.Rounds > 0 && old > 0 {
		if err := w.clear(ctx); err != nil {
			w.log.Warn("an earlier replica cannot be removed yet", "error", err)
		}
	}
	w.mu.Lock()
	p := w.shown
	w.mu.Unlock()
	if current.Rounds > 0 {
		w.judge(p)
		if wait := nextRound(p, w.ended).Sub(w.k.now()); wait > 0 {
			return min(wait, protectLook), nil
		}
	} else if p.Point.IsZero() {
		w.tell(drover.ProtectionStarting, "")
	}
	return 0, w.round(ctx, *current)
}

// judge says how it is doing between rounds.
func (w *protecting) judge(p drover.Protection) {
	if now := p.At(w.k.now()); now.RPOOK {
		w.tell(drover.ProtectionOK, "")
		return
	}
	why := keepsUp(p)
	if why == "" {
		why = "no round was complete in time"
	}
	w.tell(drover.ProtectionLate, why)
}

// begin plans another replica. The one before stays until that is complete.
func (w *protecting) begin(ctx context.Context, vm drover.VM) error {
	w.mu.Lock()
	to := w.shown.To
	w.mu.Unlock()
	r, err := w.k.world.planReplica(ctx, vm.Name, to)
	if err != nil {
		return err
	}
	w.ready = false
	return w.change(ctx, func(p *drover.Protection, st *protectState) error {
		if st.Current != nil {
			st.Old = append(slices.Clone(st.Old), *st.Current)
			p.Resyncs++
		}
		st.Current = &replica{
			Name: fmt.Sprintf("%s-%d", st.Name, st.Next), From: r.From, To: r.To,
			FromAddress: r.FromAddress, ToAddress: r.ToAddress, Disks: r.Disks,
		}
		st.Next++
		p.VM, p.From, p.To = r.VM.Name, r.From, r.To
		return nil
	})
}

// reserve has both agents know the replica, and its volumes made.
func (w *protecting) reserve(ctx context.Context, r replica) error {
	if _, err := w.ask(ctx, r, r.From.Host, "reserve-source", executor.Reserve{Keeps: true}); err != nil {
		return err
	}
	if _, err := w.ask(ctx, r, r.To.Host, "reserve-target", executor.Reserve{Target: true, Keeps: true}); err != nil {
		return err
	}
	if r.Made {
		return nil
	}
	if _, err := w.ask(ctx, r, r.To.Host, "create-volumes", executor.CreateVolumes{Disks: r.Disks}); err != nil {
		if drover.KindOf(err) == drover.Exists {
			return w.lost(ctx, err)
		}
		return err
	}
	return w.change(ctx, func(_ *drover.Protection, st *protectState) error {
		r.Made = true
		st.Current = &r
		return nil
	})
}

// lost gives the current replica up, for another.
func (w *protecting) lost(ctx context.Context, cause error) error {
	w.log.Warn("all is compared once more: the replica cannot be built on", "error", cause)
	return w.change(ctx, func(_ *drover.Protection, st *protectState) error {
		c := *st.Current
		c.Lost = true
		st.Current = &c
		return nil
	})
}

// ask runs an action of a replica.
func (w *protecting) ask(ctx context.Context, r replica, host, step string, action executor.Action) (executor.Result, error) {
	w.mu.Lock()
	ref := executor.Ref{Move: r.Name, Generation: w.state.Generation, VM: w.shown.VM, VMUUID: w.shown.VMUUID}
	w.mu.Unlock()
	res, err := w.k.agents.Run(ctx, host, ref, step, action, func(p drover.Progress) {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.shown.Sending {
			w.shown.Progress = &p
		}
	})
	if err != nil {
		return res, fmt.Errorf("%s on %s: %w", step, host, err)
	}
	return res, nil
}

// end removes all of it.
func (w *protecting) end(ctx context.Context) (time.Duration, error) {
	err := w.change(ctx, func(_ *drover.Protection, st *protectState) error {
		if st.Current != nil {
			st.Old, st.Current = append(slices.Clone(st.Old), *st.Current), nil
		}
		return nil
	})
	if err == nil {
		err = w.clear(ctx)
	}
	if err != nil {
		return 0, err
	}
	w.mu.Lock()
	key := w.shown.VMUUID
	w.mu.Unlock()
	if err := w.k.store.Delete(ctx, key); err != nil {
		return 0, err
	}
	w.log.InfoContext(ctx, "protection has ended, nothing of it is left")
	return -1, nil
}

// clear removes the replicas that are not needed any more.
func (w *protecting) clear(ctx context.Context) error {
	w.mu.Lock()
	old := slices.Clone(w.state.Old)
	w.mu.Unlock()
	for _, r := range old {
		for _, s := range []struct {
			host, step string
			action     executor.Action
		}{
			{r.From.Host, "stop-replication", executor.StopReplication{}},
			{r.From.Host, "release-source", executor.Release{}},
			{r.To.Host, "delete-volumes", executor.DeleteVolumes{}},
			{r.To.Host, "release-target", executor.Release{Target: true}},
		} {
			if _, err := w.ask(ctx, r, s.host, s.step, s.action); err != nil {
				return err
			}
		}
		err := w.change(ctx, func(_ *drover.Protection, st *protectState) error {
			st.Old = slices.DeleteFunc(slices.Clone(st.Old), func(o replica) bool { return o.Name == r.Name })
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}
