package agent

import (
	"context"
	"time"

	"connectrpc.com/connect"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
)

// kind is what the jobs of one kind of action have in common.
type kind struct {
	// undo actions end every other job of their move first.
	undo bool
	// fresh actions only read: no result is kept, and they run beside others.
	fresh bool
	// free actions need no reservation.
	free bool
	// forgets are the kinds whose kept results no longer hold once this one
	// begins.
	forgets []string
}

var kinds = map[string]kind{
	"reserve":        {free: true},
	"release":        {undo: true, free: true},
	"create-volumes": {forgets: []string{"delete-volumes"}},
	"delete-volumes": {undo: true, free: true, forgets: []string{"create-volumes", "copy"}},
	"transfer":       {forgets: []string{"abort-transfer"}},
	"abort-transfer": {undo: true, free: true, forgets: []string{"transfer"}},
	"shutdown":       {forgets: []string{"take-back"}},
	"give-up":        {forgets: []string{"take-back"}},
	"take-back":      {undo: true, free: true, forgets: []string{"give-up", "shutdown", "copy"}},
	"copy":           {},
	"define":         {forgets: []string{"undefine"}},
	"undefine":       {undo: true, free: true, forgets: []string{"define", "define-clone", "start"}},
	"start":          {forgets: []string{"undefine"}},
	"verify":         {fresh: true, free: true},
	"release-source": {},

	// A replica's rounds are steps of their own: the last one's result is kept.
	"replicate":        {forgets: []string{"stop-replication", "replicate"}},
	"stop-replication": {undo: true, free: true, forgets: []string{"replicate", "copy-clone"}},
	"stop-vm":          {undo: true, free: true, forgets: []string{"start"}},
	"check-health":     {free: true},
	"commit":           {},
	"abort-commit":     {undo: true, free: true},

	"edge":           {free: true},
	"undo-edge":      {undo: true, free: true},
	"stage-edge":     {free: true},
	"count-sessions": {fresh: true, free: true},

	"change-guest":      {forgets: []string{"undo-change-guest"}},
	"make-primary":      {fresh: true},
	"undo-change-guest": {undo: true, free: true, forgets: []string{"change-guest"}},
	"find-station":      {fresh: true, free: true},

	"define-clone": {forgets: []string{"undefine"}},
	"copy-clone":   {forgets: []string{"stop-replication"}},
	"attend":       {free: true},

	"lend-disks":    {forgets: []string{"reclaim-disks"}},
	"reclaim-disks": {undo: true, free: true, forgets: []string{"lend-disks"}},
	"attach-disks":  {forgets: []string{"detach-disks"}},
	"detach-disks":  {undo: true, free: true, forgets: []string{"attach-disks"}},
	"bring-disks":   {forgets: []string{"abort-bring"}},
	"abort-bring":   {undo: true, free: true, forgets: []string{"bring-disks"}},
}

const (
	// progressEvery bounds how often progress is sent; a terminal shows no more.
	progressEvery = 250 * time.Millisecond
	// aliveEvery is how often progress is sent although nothing changed.
	aliveEvery = 2 * time.Second
)

// Run starts or finds an action and stays with it to its end.
func (a agentService) Run(ctx context.Context, req *droverv1.RunRequest, out *connect.ServerStream[droverv1.RunResponse]) error {
	ref, err := checkRef(req.GetRef())
	if err != nil {
		return err
	}
	if err := drover.CheckName("step", req.GetStep()); err != nil {
		return err
	}
	name, do, err := a.actionOf(ref, req)
	if err != nil {
		return err
	}
	k := kinds[name]
	if err := a.admit(ref, k.free); err != nil {
		return err
	}
	j, err := a.jobs.find(jobKey{ref.move, req.GetStep(), name}, ref.generation, k, do)
	if err != nil {
		return err
	}
	return a.follow(ctx, j, out)
}

// follow sends a job's progress and result.
func (a *Agent) follow(ctx context.Context, j *job, out *connect.ServerStream[droverv1.RunResponse]) error {
	alive := time.NewTicker(aliveEvery)
	defer alive.Stop()
	for {
		p, changed := j.watch()
		select {
		case <-j.done:
			if j.err != nil {
				return j.err
			}
			return out.Send(&droverv1.RunResponse{Result: j.result})
		default:
		}
		if p.Step == "" {
			p = drover.Progress{Step: j.key.step, ETASeconds: -1, Updated: a.clock()}
		}
		if err := out.Send(&droverv1.RunResponse{Progress: api.ProgressToProto(p)}); err != nil {
			return err
		}
		if err := sleep(ctx, progressEvery, j.done); err != nil {
			return leftOff(j, err)
		}
		select {
		case <-changed:
		case <-alive.C:
		case <-j.done:
		case <-ctx.Done():
			return leftOff(j, ctx.Err())
		}
	}
}

// leftOff is why a job is not followed to its end: its caller has gone, or this
// agent stops. Either says nothing about the job.
func leftOff(j *job, err error) error {
	return drover.E(drover.Unavailable, "follow "+j.key.String(), err)
}

// sleep waits for d, or less when early is closed.
func sleep(ctx context.Context, d time.Duration, early <-chan struct{}) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-early:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// actionOf returns the kind's name and what to do.
func (a *Agent) actionOf(ref moveRef, req *droverv1.RunRequest) (string, action, error) {
	bind := func(name string, f func(context.Context, *job, moveRef) (*droverv1.RunResult, error)) (string, action, error) {
		return name, func(ctx context.Context, j *job) (*droverv1.RunResult, error) { return f(ctx, j, ref) }, nil
	}
	switch act := req.GetAction().(type) {
	case *droverv1.RunRequest_Reserve:
		return bind("reserve", with(a.reserve, act.Reserve))
	case *droverv1.RunRequest_Release:
		return bind("release", with(a.release, act.Release))
	case *droverv1.RunRequest_CreateVolumes:
		return bind("create-volumes", with(a.createVolumes, act.CreateVolumes))
	case *droverv1.RunRequest_DeleteVolumes:
		return bind("delete-volumes", with(a.deleteVolumes, act.DeleteVolumes))
	case *droverv1.RunRequest_Transfer:
		return bind("transfer", with(a.transfer, act.Transfer))
	case *droverv1.RunRequest_AbortTransfer:
		return bind("abort-transfer", with(a.abortTransfer, act.AbortTransfer))
	case *droverv1.RunRequest_Shutdown:
		return bind("shutdown", with(a.shutdown, act.Shutdown))
	case *droverv1.RunRequest_GiveUp:
		return bind("give-up", with(a.giveUp, act.GiveUp))
	case *droverv1.RunRequest_TakeBack:
		return bind("take-back", with(a.takeBack, act.TakeBack))
	case *droverv1.RunRequest_Copy:
		return bind("copy", with(a.copyDisks, act.Copy))
	case *droverv1.RunRequest_Define:
		return bind("define", with(a.define, act.Define))
	case *droverv1.RunRequest_Undefine:
		return bind("undefine", with(a.undefine, act.Undefine))
	case *droverv1.RunRequest_Start:
		return bind("start", with(a.startVM, act.Start))
	case *droverv1.RunRequest_Verify:
		return bind("verify", with(a.verify, act.Verify))
	case *droverv1.RunRequest_ReleaseSource:
		return bind("release-source", with(a.releaseSource, act.ReleaseSource))
	case *droverv1.RunRequest_Replicate:
		return bind("replicate", with(a.replicate, act.Replicate))
	case *droverv1.RunRequest_StopReplication:
		return bind("stop-replication", with(a.stopReplication, act.StopReplication))
	case *droverv1.RunRequest_StopVm:
		return bind("stop-vm", with(a.stopVM, act.StopVm))
	case *droverv1.RunRequest_CheckHealth:
		return bind("check-health", with(a.checkHealth, act.CheckHealth))
	case *droverv1.RunRequest_Commit:
		return bind("commit", with(a.commit, act.Commit))
	case *droverv1.RunRequest_AbortCommit:
		return bind("abort-commit", with(a.abortCommit, act.AbortCommit))
	case *droverv1.RunRequest_Edge:
		if act.Edge.GetUndo() {
			return bind("undo-edge", with(a.runEdge, act.Edge))
		}
		return bind("edge", with(a.runEdge, act.Edge))
	case *droverv1.RunRequest_StageEdge:
		return bind("stage-edge", with(a.stageEdge, act.StageEdge))
	case *droverv1.RunRequest_DefineClone:
		return bind("define-clone", with(a.defineClone, act.DefineClone))
	case *droverv1.RunRequest_CopyClone:
		return bind("copy-clone", with(a.copyClone, act.CopyClone))
	case *droverv1.RunRequest_Attend:
		return bind("attend", with(a.attend, act.Attend))
	case *droverv1.RunRequest_ChangeGuest:
		c := act.ChangeGuest
		switch {
		case c.GetUndo():
			return bind("undo-change-guest", with(a.changeGuest, c))
		case c.GetChange().GetPrimary() || c.GetChange().GetAsk():
			return bind("make-primary", with(a.changeGuest, c))
		default:
			return bind("change-guest", with(a.changeGuest, c))
		}
	case *droverv1.RunRequest_FindStation:
		return bind("find-station", with(a.findStation, act.FindStation))
	case *droverv1.RunRequest_LendDisks:
		return bind("lend-disks", with(a.lendDisks, act.LendDisks))
	case *droverv1.RunRequest_ReclaimDisks:
		return bind("reclaim-disks", with(a.reclaimDisks, act.ReclaimDisks))
	case *droverv1.RunRequest_AttachDisks:
		return bind("attach-disks", with(a.attachDisks, act.AttachDisks))
	case *droverv1.RunRequest_DetachDisks:
		return bind("detach-disks", with(a.detachDisks, act.DetachDisks))
	case *droverv1.RunRequest_BringDisks:
		return bind("bring-disks", with(a.bringDisks, act.BringDisks))
	case *droverv1.RunRequest_AbortBring:
		return bind("abort-bring", with(a.abortBring, act.AbortBring))
	case *droverv1.RunRequest_CountSessions:
		return bind("count-sessions", with(a.countSessions, act.CountSessions))
	default:
		return "", nil, drover.Errorf(drover.Invalid, "run", "action: missing or unknown to this agent")
	}
}

// with binds an action's own message.
func with[T any](f func(context.Context, *job, moveRef, T) (*droverv1.RunResult, error), msg T) func(context.Context, *job, moveRef) (*droverv1.RunResult, error) {
	return func(ctx context.Context, j *job, ref moveRef) (*droverv1.RunResult, error) {
		return f(ctx, j, ref, msg)
	}
}

// Cancel asks the jobs of a step to end.
func (a agentService) Cancel(_ context.Context, req *droverv1.CancelRequest) (*droverv1.CancelResponse, error) {
	ref, err := checkRef(req.GetRef())
	if err != nil {
		return nil, err
	}
	if err := a.admit(ref, true); err != nil {
		return nil, err
	}
	a.jobs.stop(ref.move, req.GetStep())
	return &droverv1.CancelResponse{}, nil
}

// moveRef is a checked MoveRef.
type moveRef struct {
	move       string
	generation int64
	vm, uuid   string
}

func (r moveRef) proto() *droverv1.MoveRef {
	return &droverv1.MoveRef{Move: r.move, Generation: r.generation, Vm: r.vm, VmUuid: r.uuid}
}

func checkRef(p *droverv1.MoveRef) (moveRef, error) {
	for _, e := range []struct{ field, value string }{{"ref.move", p.GetMove()}, {"ref.vm", p.GetVm()}} {
		if err := drover.CheckName(e.field, e.value); err != nil {
			return moveRef{}, err
		}
	}
	if p.GetVmUuid() == "" {
		return moveRef{}, drover.Errorf(drover.Invalid, "ref.vm_uuid", "missing: want the VM's UUID")
	}
	if p.GetGeneration() < 1 {
		return moveRef{}, drover.Errorf(drover.Invalid, "ref.generation", "%d: want 1 or more", p.GetGeneration())
	}
	return moveRef{p.GetMove(), p.GetGeneration(), p.GetVm(), p.GetVmUuid()}, nil
}

// admit refuses an older generation and, unless free, a move that is not
// reserved here. A newer generation is journaled before anything is done.
func (a *Agent) admit(ref moveRef, free bool) error {
	op := "move " + ref.move
	r, err := a.journal.move(ref.move)
	if err != nil {
		return err
	}
	if r == nil {
		s, err := a.journal.stone(ref.move)
		switch {
		case err != nil:
			return err
		case s != nil && ref.generation < s.Generation:
			return tooOld(op, ref.generation, s.Generation)
		case !free:
			return drover.Errorf(drover.Refused, op, "it is not reserved on host %s", a.config.Name)
		}
		return nil
	}
	if err := r.fence(ref); err != nil {
		return err
	}
	if r.Generation == ref.generation {
		return nil
	}
	return a.journal.update(ref.move, "generation", func(r *record) error { return r.fence(ref) })
}

// fence checks a call against the record and takes over a newer generation.
func (r *record) fence(ref moveRef) error {
	op := "move " + ref.move
	switch {
	case ref.generation < r.Generation:
		return tooOld(op, ref.generation, r.Generation)
	case r.VM != ref.vm || r.VMUUID != ref.uuid:
		return drover.Errorf(drover.Refused, op, "it is the move of vm %s (%s), not of %s (%s)", r.VM, r.VMUUID, ref.vm, ref.uuid)
	}
	r.Generation = ref.generation
	return nil
}

func tooOld(op string, got, seen int64) error {
	return drover.Errorf(drover.Refused, op, "generation %d is over: %d has been seen", got, seen)
}
