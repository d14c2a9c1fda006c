package agent

import (
	"context"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api/droverv1"
)

// stopVM ends the VM's execution at the target, where nobody has committed it:
// what it wrote here is given up, and undefine may follow.
func (a *Agent) stopVM(ctx context.Context, _ *job, ref moveRef, _ *droverv1.StopVM) (*droverv1.RunResult, error) {
	op := "stop vm " + ref.vm
	if err := a.needHypervisor(); err != nil {
		return nil, err
	}
	r, err := a.journal.move(ref.move)
	switch {
	case err != nil || r == nil:
		return resultNow(), err
	case !r.Target:
		return nil, drover.Errorf(drover.Refused, op, "host %s is the move's source", a.config.Name)
	case r.Committed:
		return nil, drover.Errorf(drover.Refused, op, "it has been committed")
	case !r.Defined:
		return resultNow(), nil
	}
	if _, err := a.vmHere(ctx, ref); err != nil {
		if drover.KindOf(err) == drover.NotFound {
			return resultNow(), nil
		}
		return nil, err
	}
	if err := a.hyp.Destroy(ctx, ref.vm); err != nil {
		return nil, err
	}
	return resultNow(), a.journal.update(ref.move, "stopped", func(r *record) error {
		r.Started = false
		return nil
	})
}

// commit makes the VM here the one that counts.
func (a *Agent) commit(_ context.Context, _ *job, ref moveRef, _ *droverv1.Commit) (*droverv1.RunResult, error) {
	op := "commit vm " + ref.vm
	return resultNow(), a.journal.update(ref.move, "committed", func(r *record) error {
		switch {
		case !r.Target || !r.Defined:
			return drover.Errorf(drover.Refused, op, "it is not here")
		case r.Uncommitted:
			return drover.Errorf(drover.Refused, op, "it was given up before")
		}
		r.Committed = true
		return nil
	})
}

// abortCommit makes sure that there is no commit and will be none, or says that
// there has been one.
func (a *Agent) abortCommit(_ context.Context, _ *job, ref moveRef, _ *droverv1.AbortCommit) (*droverv1.RunResult, error) {
	result := new(droverv1.RunResult)
	err := a.journal.update(ref.move, "uncommitted", func(r *record) error {
		if !r.Target {
			return drover.Errorf(drover.Refused, "abort commit of vm "+ref.vm, "host %s is the move's source", a.config.Name)
		}
		r.Uncommitted = !r.Committed
		result.Moved = r.Committed
		return nil
	})
	if err != nil {
		return nil, err
	}
	return result, nil
}
