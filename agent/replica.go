package agent

import (
	"context"
	"path/filepath"
	"time"

	"go.etcd.io/bbolt"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/driver"
)

// A replica is kept by the rounds of a warm move that goes no further: reserved
// at both ends under a name of its own, which keeps no move away. Its images at
// the destination have hidden names, under which no VM can run on them.
//
//	server                    source agent                  destination agent
//	  │ ── Reserve(keeps) ────────▶ │ ◀── Reserve(keeps), CreateVolumes ──▶ │
//	  │ ── Replicate(once) ───────▶ │ ══ one round, as in warm.go ═════════▶│
//	  │ …                           │                                       │
//
// A move of the VM to there takes both halves over, each in one write of the
// journal: at the source, with Reserve, the record of changes; at the
// destination, with CreateVolumes, the images, which get the names that the VM
// knows. Undoing the move gives them back. So a round is the replica's or the
// move's, never both's, and what is left to be sent is what was written since
// the last one.

// replicaPath is where a replica's image lies: beside the place that the disk
// would have, where it can be given that name at once.
func replicaPath(replica, target, path string) string {
	ext := filepath.Ext(path)
	if len(ext) > 16 { // part of a long name, not an ending
		ext = ""
	}
	return filepath.Join(filepath.Dir(path), driver.ReplicaPrefix+replica+"-"+target+ext)
}

// once takes one round of a replica.
func (w *replication) once(ctx context.Context) (*droverv1.RunResult, error) {
	if err := w.a.yields(w.ref); err != nil {
		return nil, err
	}
	off, err := w.isOff(ctx)
	switch {
	case err != nil && drover.KindOf(err) == drover.NotFound:
		return nil, drover.Errorf(drover.Refused, "", "it is not on host %s", w.a.config.Name)
	case err != nil:
		return nil, err
	case off:
		return nil, drover.Errorf(drover.Refused, "", "it is off: there is nothing to follow")
	}
	if err := w.tidy(ctx, w.done); err != nil {
		return nil, err
	}
	r, err := w.a.sourceRecord(w.ref)
	if err != nil {
		return nil, err
	}
	before := r.Warm.Figures
	if err := w.send(ctx, w.done); err != nil {
		return nil, err
	}
	if err := w.tidy(ctx, w.done); err != nil {
		return nil, err
	}
	if r, err = w.a.sourceRecord(w.ref); err != nil {
		return nil, err
	}
	after := r.Warm.Figures
	result := &droverv1.RunResult{
		DiskBytes: after.DiskBytes - before.DiskBytes, PathWireBytes: after.PathBytes - before.PathBytes, PointUnixNanos: unixNanos(r.Warm.Point),
	}
	w.j.log.Info("round of a replica done", "round", w.done, "data", drover.Bytes(result.DiskBytes).String(), "wire", drover.Bytes(result.PathWireBytes).String())
	return result, nil
}

// yields refuses a replica's round while a move has its VM.
func (a *Agent) yields(ref moveRef) error {
	return journalError(a.journal.db.View(func(tx *bbolt.Tx) error { return vacant(tx, ref) }))
}

// haltReplicas ends the rounds of the VM's replicas that are under way here. The
// move's reservation is in the journal, so that no other begins.
func (a *Agent) haltReplicas(ctx context.Context, ref moveRef) error {
	all, err := a.journal.moves()
	if err != nil {
		return err
	}
	for _, r := range all {
		if !r.Keeps || r.Target || r.VMUUID != ref.uuid {
			continue
		}
		if err := a.jobs.halt(ctx, r.Move); err != nil {
			return err
		}
	}
	return nil
}

// takeRecord makes a replica's record of changes the move's, where there is one
// that can be built on.
func (a *Agent) takeRecord(ref moveRef, replica string) error {
	if replica == "" {
		return nil
	}
	return a.journal.write("replica-taken", func(tx *bbolt.Tx) error {
		r, err := readRecord(tx, ref.move)
		if err != nil || r == nil || r.Warm != nil {
			return err
		}
		p, err := readRecord(tx, replica)
		if err != nil || p == nil || !p.Keeps || p.Target || p.VMUUID != ref.uuid || p.Warm == nil || p.Warm.Done == 0 {
			return err
		}
		r.Warm, p.Warm = p.Warm, nil
		r.Warm.Owner, r.Warm.Figures = replica, transferFigure{}
		if err := writeRecord(tx, p); err != nil {
			return err
		}
		return writeRecord(tx, r)
	})
}

// giveRecord gives a record of changes back to the replica that it was taken
// from. given is false when there is no such replica any more.
func (a *Agent) giveRecord(move string) (given bool, err error) {
	err = a.journal.write("replica-given", func(tx *bbolt.Tx) error {
		given = false
		r, err := readRecord(tx, move)
		if err != nil || r == nil || r.Warm == nil || r.Warm.Owner == "" {
			return err
		}
		p, err := readRecord(tx, r.Warm.Owner)
		if err != nil || p == nil || !p.Keeps || p.Warm != nil {
			return err
		}
		given = true
		p.Warm, r.Warm = r.Warm, nil
		p.Warm.Owner = ""
		if err := writeRecord(tx, p); err != nil {
			return err
		}
		return writeRecord(tx, r)
	})
	return given, err
}

// dropReplicas ends the recording for replicas of the VM, which is about to leave
// by a way that does not take it along: what was recorded here would be of no use
// there, and must not be left in its images.
func (a *Agent) dropReplicas(ctx context.Context, ref moveRef) error {
	all, err := a.journal.moves()
	if err != nil {
		return err
	}
	for _, r := range all {
		if !r.Keeps || r.Target || r.VMUUID != ref.uuid || r.Warm == nil {
			continue
		}
		if err := a.endWarm(ctx, moveRef{r.Move, r.Generation, r.VM, r.VMUUID}, r); err != nil {
			return err
		}
	}
	return nil
}

// takeImage makes a replica's image the one of a move's volume. taken is false
// when there is none that the move could use; then the move makes its own.
func (a *Agent) takeImage(ctx context.Context, ref moveRef, replica string, d *droverv1.DiskPlan, spec driver.VolumeSpec) (taken bool, err error) {
	if replica == "" || d.GetFresh() {
		return false, nil
	}
	unlock, err := a.locks.lock(ctx, replica)
	if err != nil {
		return false, err
	}
	defer unlock()
	// What a round that has broken off still holds open.
	if err := a.discard(ctx, replica); err != nil {
		return false, err
	}
	a.forgetReplica(replica)
	var v volumeRecord
	err = a.journal.write("image-taken", func(tx *bbolt.Tx) error {
		taken = false
		r, err := readRecord(tx, ref.move)
		if err != nil || r == nil {
			return err
		}
		if old := r.volume(d.GetTarget()); old != nil {
			// It was taken before, or is the move's own.
			taken, v = old.Replica == replica, *old
			return nil
		}
		p, err := readRecord(tx, replica)
		if err != nil || p == nil || !p.Keeps || !p.Target || p.VMUUID != ref.uuid {
			return err
		}
		kept := p.volume(d.GetTarget())
		if kept == nil || !kept.Made || kept.Round == 0 {
			return nil
		}
		want := spec
		want.Path = kept.Spec.Path
		if kept.Spec != want {
			return nil // of another size, or above another image
		}
		taken = true
		v = volumeRecord{Target: kept.Target, Spec: spec, Dirty: true, Round: kept.Round, Replica: replica, ReplicaPath: kept.Spec.Path}
		r.Volumes = append(r.Volumes, v)
		p.dropVolume(kept.Target)
		if err := writeRecord(tx, p); err != nil {
			return err
		}
		return writeRecord(tx, r)
	})
	if err != nil || !taken || v.Made {
		return taken, err
	}
	if err := a.renameOnce(ctx, v.ReplicaPath, spec.Path); err != nil {
		return false, err
	}
	a.log.Info("the move begins with a replica's image", "move", ref.move, "replica", replica, "disk", v.Target, "round", v.Round)
	return true, a.journal.update(ref.move, "volume-made", func(r *record) error {
		if v := r.volume(d.GetTarget()); v != nil {
			v.Made = true
		}
		return nil
	})
}

// renameOnce renames an image, unless an earlier attempt has.
func (a *Agent) renameOnce(ctx context.Context, from, to string) error {
	_, err := a.volumes.Volume(ctx, from)
	if err != nil && drover.KindOf(err) == drover.NotFound {
		if _, err := a.volumes.Volume(ctx, to); err == nil {
			return nil
		}
	}
	return a.volumes.Rename(ctx, from, to)
}

// giveImages gives images back to the replica that they were taken from. Those
// on which a guest may have run stay the move's.
func (a *Agent) giveImages(ctx context.Context, r *record) error {
	for _, v := range r.Volumes {
		if v.Replica == "" {
			continue
		}
		p, err := a.journal.move(v.Replica)
		if err != nil {
			return err
		}
		if p == nil || !p.Keeps || !p.Target {
			continue // nobody is there to have it
		}
		if err := a.renameOnce(ctx, v.Spec.Path, v.ReplicaPath); err != nil {
			if drover.KindOf(err) == drover.NotFound {
				continue
			}
			return err
		}
		err = a.journal.write("image-given", func(tx *bbolt.Tx) error {
			r, err := readRecord(tx, r.Move)
			if err != nil || r == nil {
				return err
			}
			p, err := readRecord(tx, v.Replica)
			if err != nil || p == nil {
				return err
			}
			r.dropVolume(v.Target)
			if p.volume(v.Target) == nil {
				back := volumeRecord{Target: v.Target, Spec: v.Spec, Made: true, Dirty: true, Round: v.Round}
				back.Spec.Path = v.ReplicaPath
				p.Volumes = append(p.Volumes, back)
			}
			if err := writeRecord(tx, p); err != nil {
				return err
			}
			return writeRecord(tx, r)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// keepsReplica reads the disks of a replica's volumes with the paths that they
// have while they are one.
func keepsReplica(replica string, plans []*droverv1.DiskPlan) []*droverv1.DiskPlan {
	out := make([]*droverv1.DiskPlan, len(plans))
	for i, d := range plans {
		out[i] = &droverv1.DiskPlan{
			Target: d.GetTarget(), Path: replicaPath(replica, d.GetTarget(), d.GetPath()), Format: d.GetFormat(), VirtualBytes: d.GetVirtualBytes(),
			BackingPath: d.GetBackingPath(), BackingFormat: d.GetBackingFormat(), TopOnly: d.GetTopOnly(), AllocatedBytes: d.GetAllocatedBytes(),
		}
	}
	return out
}

// replicaIndexLimit bounds the wait for what a replica holds to be known: less
// than the source waits for its answer. What is not known then crosses.
const replicaIndexLimit = 30 * time.Second

// knowReplicas makes what replicas of the VM hold known to the data path, for a
// move or another replica that cannot begin with their images.
func (a *Agent) knowReplicas(ctx context.Context, ref moveRef, uuid, tenant string) {
	all, err := a.journal.moves()
	if err != nil {
		a.log.Warn("replicas are of no use to the data path", "err", err)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, replicaIndexLimit)
	defer cancel()
	for _, r := range all {
		if !r.Keeps || !r.Target || r.VMUUID != uuid || r.Move == ref.move {
			continue
		}
		for _, v := range r.Volumes {
			if !v.Made || v.Round == 0 {
				continue
			}
			if err := a.replicas.know(ctx, a, r, v, tenant); err != nil {
				a.log.Warn("a replica is of no use to the data path", "replica", r.Move, "disk", v.Target, "err", err)
			}
		}
	}
}

// RemoveVM ends a VM that Drover made, and deletes what it has here.
func (a agentService) RemoveVM(ctx context.Context, req *droverv1.RemoveVMRequest) (*droverv1.RemoveVMResponse, error) {
	op := "remove vm " + req.GetVm()
	if err := a.needHypervisor(); err != nil {
		return nil, err
	}
	if err := drover.CheckName("vm", req.GetVm()); err != nil {
		return nil, err
	}
	if req.GetVmUuid() == "" {
		return nil, drover.Errorf(drover.Invalid, op, "vm_uuid: missing, want the VM's UUID")
	}
	who, _ := api.Caller(ctx)
	vm, err := a.hyp.VM(ctx, req.GetVm())
	switch {
	case err != nil && drover.KindOf(err) == drover.NotFound:
		return &droverv1.RemoveVMResponse{}, nil
	case err != nil:
		return nil, err
	case vm.UUID != req.GetVmUuid():
		return nil, drover.Errorf(drover.Refused, op, "the vm of that name on host %s has UUID %s, not %s", a.config.Name, vm.UUID, req.GetVmUuid())
	}
	ref := moveRef{vm: vm.Name, uuid: vm.UUID}
	if err := a.yields(ref); err != nil {
		return nil, err
	}
	if err := a.dropReplicas(ctx, ref); err != nil {
		return nil, err
	}
	if vm.State != drover.VMOff && vm.State != drover.VMCrashed {
		if err := a.hyp.Destroy(ctx, vm.Name); err != nil {
			return nil, err
		}
	}
	a.log.Info("a vm that was made here is removed", "vm", vm.Name, "uuid", vm.UUID, "by", who)
	if err := a.hyp.Undefine(ctx, vm.Name); err != nil {
		return nil, err
	}
	users, err := a.usersOf(ctx)
	if err != nil {
		return nil, err
	}
	for _, d := range vm.Disks {
		if d.Shared || d.ReadOnly || users[d.Path] != "" {
			continue
		}
		if err := a.volumes.Delete(ctx, d.Path); err != nil {
			return nil, err
		}
	}
	return &droverv1.RemoveVMResponse{}, nil
}
