package agent

import (
	"context"
	"errors"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api/droverv1"
)

const (
	// graceUsual is what a guest gets to power off when nobody says.
	graceUsual = 60 * time.Second
	// askAgain is how often the guest is asked again: a guest that is still
	// booting does not listen yet.
	askAgain = 10 * time.Second
	// powerPoll is how often its state is read while waiting: what passes before
	// it is noticed that the guest is off adds to the time that it is down.
	powerPoll = 100 * time.Millisecond
	// lateOffLimit is how long one that was asked, and is to run on, is waited for
	// to power off all the same; no longer than it was given before.
	lateOffLimit = time.Minute
)

// shutdown powers the guest off.
func (a *Agent) shutdown(ctx context.Context, j *job, ref moveRef, m *droverv1.Shutdown) (*droverv1.RunResult, error) {
	if err := a.needHypervisor(); err != nil {
		return nil, err
	}
	r, err := a.sourceRecord(ref)
	if err != nil {
		return nil, err
	}
	vm, err := a.vmHere(ctx, ref)
	if err != nil {
		return nil, err
	}
	if !vm.Persistent {
		return nil, drover.Errorf(drover.Refused, "shut down vm "+ref.vm, "it is transient and would be lost: make it persistent first")
	}
	grace := time.Duration(m.GetGraceMillis()) * time.Millisecond
	if grace <= 0 {
		grace = graceUsual
	}
	running := vm.State == drover.VMRunning || vm.State == drover.VMPaused
	// Before it is asked: whoever takes it back must know that it was.
	err = a.journal.update(ref.move, "was-running", func(rec *record) error {
		if rec.WasRunning == nil {
			rec.WasRunning = &running
		}
		if running {
			rec.Asked = grace
		}
		r.WasRunning = rec.WasRunning
		return nil
	})
	if err != nil {
		return nil, err
	}
	result := &droverv1.RunResult{WasRunning: *r.WasRunning}
	if !running {
		return result, nil
	}
	off, err := a.powerOff(ctx, j, ref.vm, grace)
	if err != nil {
		return nil, err
	}
	if !off {
		if !m.GetForce() {
			return nil, drover.Errorf(drover.Refused, "shut down vm "+ref.vm,
				"the guest has not powered off within %s: give it longer, shut it down from inside, or force it; if it answers no more, its console tells where it hangs", grace)
		}
		if err := a.hyp.Destroy(ctx, ref.vm); err != nil {
			return nil, err
		}
	}
	result.StoppedUnixNanos = a.clock().UnixNano()
	return result, nil
}

// powerOff asks the guest until it is off or grace is over.
func (a *Agent) powerOff(ctx context.Context, j *job, vm string, grace time.Duration) (bool, error) {
	// The contract's clock may be a test's; waiting is by the machine's.
	over := time.Now().Add(grace)
	var next time.Time
	for {
		now := time.Now()
		if !now.Before(next) {
			if err := a.hyp.Shutdown(ctx, vm); err != nil {
				return false, err
			}
			next = now.Add(askAgain)
		}
		v, err := a.hyp.VM(ctx, vm)
		if err != nil {
			return false, err
		}
		if v.State == drover.VMOff || v.State == drover.VMCrashed {
			return true, nil
		}
		if now.After(over) {
			return false, nil
		}
		j.report(a.clock(), drover.Progress{Phase: "shutdown", ETASeconds: over.Sub(now).Seconds()})
		if err := sleep(ctx, powerPoll, nil); err != nil {
			return false, drover.E(drover.Canceled, "shut down vm "+vm, err)
		}
	}
}

// vmHere returns the move's VM, which must be on this host.
func (a *Agent) vmHere(ctx context.Context, ref moveRef) (drover.VM, error) {
	vm, err := a.hyp.VM(ctx, ref.vm)
	if err == nil && vm.UUID != ref.uuid {
		err = drover.Errorf(drover.NotFound, "vm "+ref.vm, "the vm of that name on host %s is another (%s)", a.config.Name, vm.UUID)
	}
	return vm, err
}

// giveUp takes the definition away, after the journal has it.
func (a *Agent) giveUp(ctx context.Context, _ *job, ref moveRef, _ *droverv1.GiveUp) (*droverv1.RunResult, error) {
	op := "give up vm " + ref.vm
	if err := a.needHypervisor(); err != nil {
		return nil, err
	}
	r, err := a.sourceRecord(ref)
	if err != nil {
		return nil, err
	}
	if !r.GivenUp {
		vm, err := a.vmHere(ctx, ref)
		if err != nil {
			return nil, err
		}
		if vm.State != drover.VMOff && vm.State != drover.VMCrashed {
			return nil, drover.Errorf(drover.Refused, op, "it is %s: shut it down first", vm.State)
		}
		def, err := a.hyp.Definition(ctx, ref.vm)
		if err != nil {
			return nil, err
		}
		err = a.journal.update(ref.move, "gave-up", func(r *record) error {
			r.Definition, r.GivenUp = def, true
			return nil
		})
		if err != nil {
			return nil, err
		}
		r.Definition = def
	}
	// Refused when somebody has started it meanwhile.
	if err := a.hyp.Undefine(ctx, ref.vm); err != nil {
		return nil, err
	}
	return &droverv1.RunResult{Definition: r.Definition, WasRunning: r.WasRunning != nil && *r.WasRunning}, nil
}

// takeBack undoes giveUp, and starts the VM where it ran before.
func (a *Agent) takeBack(ctx context.Context, j *job, ref moveRef, m *droverv1.TakeBack) (*droverv1.RunResult, error) {
	if err := a.needHypervisor(); err != nil {
		return nil, err
	}
	r, err := a.journal.move(ref.move)
	if err != nil {
		return nil, err
	}
	start := m.GetStart()
	if r != nil {
		if r.Target {
			return nil, drover.Errorf(drover.Refused, "take back vm "+ref.vm, "host %s is the move's target", a.config.Name)
		}
		start = start || r.WasRunning != nil && *r.WasRunning
		if r.GivenUp {
			if r.Warm != nil {
				// The manager has forgotten what it recorded, and nothing may
				// load the records any more.
				if err := a.dropBitmaps(ctx, r); err != nil {
					return nil, err
				}
			}
			if _, err := a.hyp.Define(ctx, r.Definition); err != nil {
				return nil, err
			}
			err := a.journal.update(ref.move, "took-back", func(r *record) error {
				r.GivenUp, r.Definition = false, nil
				if r.Warm != nil && r.Warm.Owner != "" {
					r.Warm.Done = 0 // the record is gone
				}
				return nil
			})
			if err != nil {
				return nil, err
			}
		}
	}
	if _, err := a.vmHere(ctx, ref); err != nil {
		return nil, err
	}
	if !start {
		return resultNow(), nil
	}
	if r == nil || r.Asked == 0 {
		return resultNow(), a.hyp.Start(ctx, ref.vm)
	}
	if err := a.awaitLate(ctx, j, ref.vm, min(r.Asked, lateOffLimit)); err != nil {
		return nil, err
	}
	if err := a.hyp.Start(ctx, ref.vm); err != nil {
		return nil, err
	}
	return resultNow(), a.journal.update(ref.move, "runs-on", func(r *record) error {
		r.Asked = 0
		return nil
	})
}

// awaitLate waits until a guest that was asked to power off, and runs, is off, so
// that it can be started again: what it was asked cannot be taken back, and nobody
// would look for it after the move. One that is still running after the limit does
// not heed what it is asked, or hangs.
func (a *Agent) awaitLate(ctx context.Context, j *job, vm string, limit time.Duration) error {
	for over := time.Now().Add(limit); ; {
		v, err := a.hyp.VM(ctx, vm)
		if err != nil {
			return err
		}
		if v.State == drover.VMOff || v.State == drover.VMCrashed {
			return nil
		}
		left := time.Until(over)
		if left <= 0 {
			j.log.Warn("the guest was asked to power off and runs on", "vm", vm)
			return nil
		}
		j.report(a.clock(), drover.Progress{Phase: "power-off", ETASeconds: left.Seconds()})
		if err := sleep(ctx, min(left, powerPoll), nil); err != nil {
			return drover.E(drover.Canceled, "take back vm "+vm, err)
		}
	}
}

// define makes the definition known at the target.
func (a *Agent) define(ctx context.Context, _ *job, ref moveRef, m *droverv1.Define) (*droverv1.RunResult, error) {
	op := "define vm " + ref.vm
	if err := a.needHypervisor(); err != nil {
		return nil, err
	}
	if len(m.GetDefinition()) == 0 {
		return nil, drover.Errorf(drover.Invalid, op, "definition: missing")
	}
	r, err := a.targetRecord(ref)
	if err != nil {
		return nil, err
	}
	for _, v := range r.Volumes {
		// What was to be copied must have been: a VM that boots from an empty
		// disk may well format it.
		if _, copied := r.Copied[v.Target]; !copied && !v.Fresh {
			return nil, drover.Errorf(drover.Refused, op, "disk %s has not been copied", v.Target)
		}
	}
	err = a.journal.update(ref.move, "defined", func(r *record) error {
		r.Defined = true
		return nil
	})
	if err != nil {
		return nil, err
	}
	name, err := a.hyp.Define(ctx, m.GetDefinition())
	if err != nil {
		return nil, err
	}
	if name != ref.vm {
		return nil, drover.Errorf(drover.Invalid, op, "the definition is that of vm %s", name)
	}
	return resultNow(), nil
}

// undefine undoes define, where the VM has not run since.
func (a *Agent) undefine(ctx context.Context, _ *job, ref moveRef, _ *droverv1.Undefine) (*droverv1.RunResult, error) {
	op := "undefine vm " + ref.vm
	if err := a.needHypervisor(); err != nil {
		return nil, err
	}
	r, err := a.journal.move(ref.move)
	if err != nil {
		return nil, err
	}
	vm, err := a.vmHere(ctx, ref)
	switch {
	case err != nil && drover.KindOf(err) != drover.NotFound:
		return nil, err
	case err == nil && (vm.State == drover.VMRunning || vm.State == drover.VMPaused):
		// Whatever the journal says, or has lost: the caller must not start it
		// elsewhere.
		return nil, drover.Errorf(drover.Refused, op, "it is %s here", vm.State)
	case r != nil && r.Committed:
		return nil, drover.Errorf(drover.Refused, op, "it has been committed")
	case r == nil || !r.Target || !r.Defined:
		return resultNow(), nil
	case err == nil && r.Started:
		// Starting it was interrupted, or it has powered off since: its disks
		// here may hold writes that the source's do not. Forward is the way.
		if err := a.hyp.Start(ctx, ref.vm); err != nil {
			return nil, err
		}
		return nil, drover.Errorf(drover.Refused, op, "it has been started here")
	case err == nil:
		if err := a.hyp.Undefine(ctx, ref.vm); err != nil {
			return nil, err
		}
	}
	return resultNow(), a.journal.update(ref.move, "undefined", func(r *record) error {
		r.Defined, r.Started = false, false
		return nil
	})
}

// startVM boots the VM at the target.
func (a *Agent) startVM(ctx context.Context, _ *job, ref moveRef, m *droverv1.StartVM) (*droverv1.RunResult, error) {
	if err := errors.Join(a.needHypervisor(), checkEdge(m.GetTargetEdge())); err != nil {
		return nil, err
	}
	r, err := a.targetRecord(ref)
	if err != nil {
		return nil, err
	}
	if !r.Defined {
		return nil, drover.Errorf(drover.Refused, "start vm "+ref.vm, "move %s has not defined it here", ref.move)
	}
	if _, err := a.vmHere(ctx, ref); err != nil {
		return nil, err
	}
	err = a.journal.update(ref.move, "started", func(r *record) error {
		r.Started = true
		for i := range r.Volumes {
			// What it writes is of no replica.
			r.Volumes[i].Replica, r.Volumes[i].ReplicaPath = "", ""
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if err := a.hyp.Start(ctx, ref.vm); err != nil {
		return nil, a.notStarted(ctx, ref, err)
	}
	a.callOut(ref, m.GetTargetEdge(), nil)
	return &droverv1.RunResult{ResumedUnixNanos: a.clock().UnixNano()}, nil
}

// notStarted takes the mark back where the VM is seen to be off and the
// hypervisor has said that it did not start.
func (a *Agent) notStarted(ctx context.Context, ref moveRef, cause error) error {
	if drover.KindOf(cause).Retryable() || ctx.Err() != nil {
		return cause
	}
	vm, err := a.vmHere(ctx, ref)
	if err != nil || vm.State != drover.VMOff {
		return cause
	}
	err = a.journal.update(ref.move, "not-started", func(r *record) error {
		r.Started = false
		return nil
	})
	if err != nil {
		return drover.E(drover.Unknown, "start vm "+ref.vm, err)
	}
	return cause
}

// verify reads the VM's real state.
func (a *Agent) verify(ctx context.Context, _ *job, ref moveRef, m *droverv1.Verify) (*droverv1.RunResult, error) {
	if err := a.needHypervisor(); err != nil {
		return nil, err
	}
	vm, err := a.vmHere(ctx, ref)
	if err != nil {
		return nil, err
	}
	if running := vm.State == drover.VMRunning; running != m.GetRunning() {
		want := "off"
		if m.GetRunning() {
			want = "running"
		}
		// It may be on its way there: a paused guest is resumed by whoever
		// settles its transfer.
		return nil, drover.Errorf(drover.Unavailable, "verify vm "+ref.vm, "it is %s on host %s, want it %s", vm.State, a.config.Name, want)
	}
	return resultNow(), nil
}
