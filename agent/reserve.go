package agent

import (
	"context"
	"errors"

	"go.etcd.io/bbolt"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api/droverv1"
)

// reserve admits a move to this host.
func (a *Agent) reserve(ctx context.Context, _ *job, ref moveRef, m *droverv1.Reserve) (*droverv1.RunResult, error) {
	op := "reserve vm " + ref.vm
	if err := a.needHypervisor(); err != nil {
		return nil, err
	}
	s, err := a.journal.stone(ref.move)
	if err != nil {
		return nil, err
	}
	if s != nil {
		return nil, drover.Errorf(drover.Refused, op, "move %s has been released here", ref.move)
	}
	rec := &record{
		Move: ref.move, Generation: ref.generation, VM: ref.vm, VMUUID: ref.uuid,
		Target: m.GetTarget(), MemoryBytes: drover.Bytes(m.GetMemoryBytes()), Keeps: m.GetKeeps(),
	}
	rec.DisksOnly = m.GetDisksOnly()
	switch {
	case m.GetTarget() && m.GetDisksOnly():
		err = a.reserveBring(ctx, op, ref)
	case m.GetTarget():
		err = a.reserveTarget(ctx, op, ref, rec)
	case m.GetDisksOnly():
		rec.Disks, err = a.reserveLent(op, ref)
	default:
		rec.Disks, rec.Tenant, err = a.reserveSource(ctx, op, ref)
	}
	if err != nil {
		return nil, err
	}
	err = a.journal.write("reserve", func(tx *bbolt.Tx) error {
		old, err := readRecord(tx, ref.move)
		if err != nil {
			return err
		}
		if old != nil {
			if old.Target != rec.Target {
				return drover.Errorf(drover.Refused, op, "host %s is the other end of move %s", a.config.Name, ref.move)
			}
			if err := old.fence(ref); err != nil {
				return err
			}
			return writeRecord(tx, old)
		}
		if err := vacant(tx, ref); err != nil {
			return err
		}
		return writeRecord(tx, rec)
	})
	if err != nil || rec.Keeps || rec.Target {
		return resultNow(), err
	}
	// From here on no round of a replica begins.
	if err := a.haltReplicas(ctx, ref); err != nil {
		return nil, err
	}
	return resultNow(), a.takeRecord(ref, m.GetReplica())
}

// vacant refuses a VM that another move has. The keeping of a replica is none.
func vacant(tx *bbolt.Tx, ref moveRef) error {
	return tx.Bucket(movesBucket).ForEach(func(k, _ []byte) error {
		r, err := readRecord(tx, string(k))
		if err == nil && !r.Keeps && r.Move != ref.move && (r.VMUUID == ref.uuid || r.VM == ref.vm) {
			err = drover.Errorf(drover.Refused, "reserve vm "+ref.vm, "move %s has it: let that end or cancel it", r.Move)
		}
		return err
	})
}

func (a *Agent) reserveTarget(ctx context.Context, op string, ref moveRef, rec *record) error {
	old, err := a.journal.move(ref.move)
	if err != nil {
		return err
	}
	if old != nil && (old.In != nil || old.Defined) {
		return nil // repeated after the VM may have come
	}
	all, err := a.hyp.List(ctx)
	if err != nil {
		return err
	}
	for _, vm := range all {
		if vm.Name == ref.vm || vm.UUID == ref.uuid {
			return drover.Errorf(drover.Refused, op, "host %s has a vm %s (%s) already: remove or rename it", a.config.Name, vm.Name, vm.UUID)
		}
	}
	host, err := a.hyp.Host(ctx)
	if err != nil {
		return err
	}
	promised, err := a.promised(ref.move)
	if err != nil {
		return err
	}
	if free := host.MemoryFreeBytes - promised; rec.MemoryBytes > free {
		return drover.Errorf(drover.Exhausted, op, "it needs %s of memory, host %s has %s free (%s of it for other moves)",
			rec.MemoryBytes, a.config.Name, host.MemoryFreeBytes, promised)
	}
	return nil
}

// promised is the memory that other moves will take here.
func (a *Agent) promised(except string) (drover.Bytes, error) {
	all, err := a.journal.moves()
	var sum drover.Bytes
	for _, r := range all {
		if r.Move != except && r.Target && !r.Started && (r.In == nil || r.In.State != inRunning) {
			sum += r.MemoryBytes
		}
	}
	return sum, err
}

// reserveSource returns the VM's disks and tenant.
func (a *Agent) reserveSource(ctx context.Context, op string, ref moveRef) ([]drover.Disk, string, error) {
	old, err := a.journal.move(ref.move)
	if err != nil {
		return nil, "", err
	}
	if old != nil {
		return old.Disks, old.Tenant, nil // the VM may be gone already
	}
	vm, err := a.hyp.VM(ctx, ref.vm)
	if err != nil {
		return nil, "", err
	}
	if vm.UUID != ref.uuid {
		return nil, "", drover.Errorf(drover.Refused, op, "the vm of that name on host %s has UUID %s, not %s", a.config.Name, vm.UUID, ref.uuid)
	}
	return vm.Disks, vm.Labels[a.config.tenantLabel()], nil
}

// release forgets the move; what it would leave behind is removed first.
func (a *Agent) release(ctx context.Context, _ *job, ref moveRef, _ *droverv1.Release) (*droverv1.RunResult, error) {
	unlock, err := a.locks.lock(ctx, ref.move)
	if err != nil {
		return nil, err
	}
	defer unlock()
	r, err := a.journal.move(ref.move)
	if err != nil {
		return nil, err
	}
	s := stone{Generation: ref.generation, VMUUID: ref.uuid, Released: a.clock()}
	if r != nil {
		s.Generation = max(s.Generation, r.Generation)
		if r.Target {
			s.Accepted, err = a.releaseTarget(ctx, r)
		} else {
			s.Moved, err = a.releaseSourceRecord(ctx, r)
		}
		if err != nil {
			return nil, err
		}
		if err := a.sockets.remove(ref.move); err != nil {
			return nil, err
		}
	}
	return resultNow(), a.journal.release(ref.move, s)
}

// releaseTarget ends what an undone move left at its target, and reports
// whether the VM has come.
func (a *Agent) releaseTarget(ctx context.Context, r *record) (arrived bool, err error) {
	if r.In != nil && (r.In.State == inAccepted || r.In.State == inRejected) {
		in, err := a.decide(ctx, r.Move)
		if err != nil {
			return false, err
		}
		r.In = &in
	}
	if r.In != nil && r.In.State == inRunning {
		a.closeArrival(r.Move)
		a.remains.forget(ctx, r.VMUUID)
		return true, a.settleRemote(r.Move, r.VMUUID, true)
	}
	switch {
	case r.Bring.is(bringBrought):
		return true, nil
	case r.Bring.is(bringBegun), r.Bring.is(bringPivoting):
		return false, drover.Errorf(drover.Refused, "release move "+r.Move, "disks of vm %s are being brought: end that first", r.VM)
	}
	if err := a.discard(ctx, r.Move); err != nil {
		return false, err
	}
	if err := a.settleRemote(r.Move, r.VMUUID, false); err != nil {
		return false, err
	}
	if r.Defined {
		a.remains.forget(ctx, r.VMUUID)
		return true, nil
	}
	// Volumes that nothing uses any more: their undoing was skipped.
	return false, a.removeVolumes(ctx, r)
}

// releaseSourceRecord refuses to forget a source whose VM depends on the
// record, and reports whether it has moved.
func (a *Agent) releaseSourceRecord(ctx context.Context, r *record) (moved bool, err error) {
	if r.Out != nil {
		if moved, err = a.resolver.wait(ctx, r.Move, settleWait); err != nil {
			return false, err
		}
	}
	if r.Warm != nil && !r.GivenUp {
		ref := moveRef{move: r.Move, vm: r.VM, uuid: r.VMUUID}
		if err := a.undoWarm(ctx, ref, r); err != nil {
			return false, err
		}
	}
	if r.GivenUp {
		return false, drover.Errorf(drover.Refused, "release move "+r.Move,
			"the definition of vm %s is only in this agent's journal: take it back or release the source first", r.VM)
	}
	if moved {
		return moved, a.keepLent(r.Move, r.VMUUID)
	}
	return moved, a.takeDisksBack(r.Move, r.VMUUID)
}

// sweepJobs drops what is left of jobs whose move is not there: a crash between
// a job's first record and its work, or after Release.
func (a *Agent) sweepJobs() error {
	return a.journal.write("sweep jobs", func(tx *bbolt.Tx) error {
		known := make(map[string]bool)
		err := tx.Bucket(movesBucket).ForEach(func(k, _ []byte) error {
			known[string(k)] = true
			return nil
		})
		if err != nil {
			return err
		}
		stale := make(map[string]bool)
		err = tx.Bucket(jobsBucket).ForEach(func(k, _ []byte) error {
			if move := moveOfJob(k); !known[move] {
				stale[move] = true
			}
			return nil
		})
		for move := range stale {
			err = errors.Join(err, deletePrefix(tx.Bucket(jobsBucket), move+"\x00"))
		}
		return err
	})
}

func moveOfJob(k []byte) string {
	for i, c := range k {
		if c == 0 {
			return string(k[:i])
		}
	}
	return string(k)
}
