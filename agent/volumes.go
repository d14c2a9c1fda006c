package agent

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/driver"
)

// createVolumes makes the empty images that disks are carried into.
func (a *Agent) createVolumes(ctx context.Context, _ *job, ref moveRef, m *droverv1.CreateVolumes) (*droverv1.RunResult, error) {
	if err := a.needHypervisor(); err != nil {
		return nil, err
	}
	r, err := a.targetRecord(ref)
	if err != nil {
		return nil, err
	}
	if r.In.owns() || r.Defined {
		return nil, drover.Errorf(drover.Refused, "create volumes", "vm %s has arrived already", ref.vm)
	}
	if r.Keeps {
		m = &droverv1.CreateVolumes{Disks: keepsReplica(ref.move, m.GetDisks())}
	}
	if err := a.makeRoom(ctx, ref, m.GetDisks()); err != nil {
		return nil, err
	}
	for _, d := range m.GetDisks() {
		if err := a.createVolume(ctx, ref, d, m.GetReplica()); err != nil {
			return nil, err
		}
	}
	return resultNow(), nil
}

// makeRoom drops what is kept of other VMs' disks where the new ones need the
// space.
func (a *Agent) makeRoom(ctx context.Context, ref moveRef, plans []*droverv1.DiskPlan) error {
	need := make(map[string]drover.Bytes) // by folder
	for _, d := range plans {
		need[filepath.Dir(d.GetPath())] += drover.Bytes(d.GetAllocatedBytes())
	}
	for dir, n := range need {
		if err := a.remains.room(ctx, filepath.Join(dir, "any"), n+leastFree, ref.uuid); err != nil {
			return err
		}
	}
	return nil
}

// targetRecord returns the record of a move whose target this host is.
func (a *Agent) targetRecord(ref moveRef) (*record, error) {
	r, err := a.journal.move(ref.move)
	if err != nil {
		return nil, err
	}
	if r == nil || !r.Target {
		return nil, drover.Errorf(drover.Refused, "move "+ref.move, "host %s has not reserved vm %s as its target", a.config.Name, ref.vm)
	}
	return r, nil
}

func specOf(d *droverv1.DiskPlan) (driver.VolumeSpec, error) {
	if err := drover.CheckName("disk target", d.GetTarget()); err != nil {
		return driver.VolumeSpec{}, err
	}
	if d.GetVirtualBytes() <= 0 {
		return driver.VolumeSpec{}, drover.Errorf(drover.Invalid, "disk "+d.GetTarget(), "virtual size of %d bytes", d.GetVirtualBytes())
	}
	if strings.HasPrefix(filepath.Base(d.GetPath()), driver.AsidePrefix) || driver.Hidden(d.GetBackingPath()) {
		return driver.VolumeSpec{}, drover.Errorf(drover.Invalid, "disk "+d.GetTarget(), "%s, on %q: names beginning with %s and %s are those of images that no vm runs on",
			d.GetPath(), d.GetBackingPath(), driver.AsidePrefix, driver.ReplicaPrefix)
	}
	s := driver.VolumeSpec{Path: d.GetPath(), Format: d.GetFormat(), VirtualBytes: drover.Bytes(d.GetVirtualBytes())}
	if d.GetBackingPath() != "" {
		s.Backing = drover.Backing{Path: d.GetBackingPath(), Format: d.GetBackingFormat()}
	}
	return s, nil
}

// createVolume makes one. The journal has it before the disk does, so that
// whatever lies at the path afterwards is known to be this move's.
func (a *Agent) createVolume(ctx context.Context, ref moveRef, d *droverv1.DiskPlan, replica string) error {
	spec, err := specOf(d)
	if err != nil {
		return err
	}
	if taken, err := a.takeImage(ctx, ref, replica, d, spec); err != nil || taken {
		return err
	}
	r, err := a.targetRecord(ref)
	if err != nil {
		return err
	}
	if !r.Keeps && driver.Hidden(spec.Path) {
		return drover.Errorf(drover.Invalid, "disk "+d.GetTarget(), "%s: names beginning with %s are those of replicas", spec.Path, driver.ReplicaPrefix)
	}
	old := r.volume(d.GetTarget())
	switch {
	case old != nil && old.Spec != spec:
		return drover.Errorf(drover.Refused, "create volume", "disk %s: move %s has made %s for it, not %s", d.GetTarget(), ref.move, old.Spec.Path, spec.Path)
	case old != nil && old.Made:
		v, err := a.volumes.Volume(ctx, spec.Path)
		if err == nil && v.VirtualBytes == spec.VirtualBytes {
			return nil
		}
	case old == nil:
		// Asked before it is journaled: what is there now is not ours.
		_, err := a.volumes.Volume(ctx, spec.Path)
		if err == nil {
			return drover.Errorf(drover.Exists, "create volume", "%s is there already: move or remove it", spec.Path)
		}
		if drover.KindOf(err) != drover.NotFound {
			return err // also a file that is no image
		}
	}
	err = a.journal.update(ref.move, "volume", func(r *record) error {
		if v := r.volume(d.GetTarget()); v != nil {
			v.Made, v.Round = false, 0
		} else {
			r.Volumes = append(r.Volumes, volumeRecord{Target: d.GetTarget(), Spec: spec, Fresh: d.GetFresh()})
		}
		return nil
	})
	if err != nil {
		return err
	}
	if old != nil {
		if err := a.volumes.Delete(ctx, spec.Path); err != nil {
			return err
		}
	}
	if err := a.volumes.Create(ctx, spec); err != nil {
		// No file is left, or what is there is not ours.
		return errors.Join(err, a.forgetVolume(ref.move, d.GetTarget()))
	}
	return a.journal.update(ref.move, "volume-made", func(r *record) error {
		if v := r.volume(d.GetTarget()); v != nil {
			v.Made, v.Dirty, v.Round = true, false, 0
		}
		return nil
	})
}

func (a *Agent) forgetVolume(move, target string) error {
	return a.journal.update(move, "volume-forgotten", func(r *record) error {
		r.Volumes = slices.DeleteFunc(r.Volumes, func(v volumeRecord) bool { return v.Target == target })
		return nil
	})
}

// deleteVolumes deletes what createVolumes of this move has made.
func (a *Agent) deleteVolumes(ctx context.Context, _ *job, ref moveRef, _ *droverv1.DeleteVolumes) (*droverv1.RunResult, error) {
	op := "delete volumes"
	unlock, err := a.locks.lock(ctx, ref.move)
	if err != nil {
		return nil, err
	}
	defer unlock()
	r, err := a.journal.move(ref.move)
	if err != nil || r == nil {
		return resultNow(), err
	}
	if !r.Target {
		return nil, drover.Errorf(drover.Refused, op, "host %s is the source of move %s", a.config.Name, ref.move)
	}
	if r.In != nil && (r.In.State == inAccepted || r.In.State == inRejected) {
		in, err := a.decide(ctx, ref.move)
		if err != nil {
			return nil, err
		}
		r.In = &in
	}
	if r.In.owns() || r.Defined {
		return nil, drover.Errorf(drover.Refused, op, "vm %s has arrived on host %s", ref.vm, a.config.Name)
	}
	if r.Bring.is(bringBegun) || r.Bring.is(bringPivoting) || r.Bring.is(bringBrought) {
		return nil, drover.Errorf(drover.Refused, op, "disks of vm %s are brought into them", ref.vm)
	}
	// From here on nothing may be received into them.
	err = a.journal.update(ref.move, "in-closed", func(r *record) error {
		r.RefusedGeneration = max(r.RefusedGeneration, ref.generation)
		return r.fence(ref)
	})
	if err != nil {
		return nil, err
	}
	if err := a.discard(ctx, ref.move); err != nil {
		return nil, err
	}
	return resultNow(), a.removeVolumes(ctx, r)
}

// removeVolumes deletes the volumes in the record.
func (a *Agent) removeVolumes(ctx context.Context, r *record) error {
	if len(r.Volumes) == 0 {
		return nil
	}
	if err := a.giveImages(ctx, r); err != nil {
		return err
	}
	r, err := a.journal.move(r.Move)
	if err != nil || r == nil {
		return err
	}
	if r.Keeps {
		a.forgetReplica(r.Move)
	}
	users, err := a.usersOf(ctx)
	if err != nil {
		return err
	}
	for _, v := range r.Volumes {
		if who := users[v.Spec.Path]; who != "" {
			return drover.Errorf(drover.Refused, "delete volume", "%s is used by %s", v.Spec.Path, who)
		}
		if err := a.volumes.Delete(ctx, v.Spec.Path); err != nil {
			return err
		}
	}
	return a.journal.update(r.Move, "volumes-deleted", func(r *record) error {
		r.Volumes, r.Copied = nil, nil
		return nil
	})
}

// usersOf says who on this host needs which image, as a disk or as a backing
// file.
func (a *Agent) usersOf(ctx context.Context) (map[string]string, error) {
	users := make(map[string]string)
	vms, err := a.hyp.List(ctx)
	if err != nil {
		return nil, err
	}
	for _, vm := range vms {
		for _, d := range vm.Disks {
			users[d.Path] = "vm " + vm.Name
			for _, b := range d.Backing {
				users[b.Path] = "vm " + vm.Name
			}
		}
	}
	images, err := a.volumes.List(ctx)
	if err != nil {
		return nil, err
	}
	for _, image := range images {
		for _, b := range image.Backing {
			users[b.Path] = "image " + image.Path
		}
	}
	// Those of replicas have hidden names.
	moves, err := a.journal.moves()
	for _, r := range moves {
		for _, v := range r.Volumes {
			if r.Keeps && v.Spec.Backing.Path != "" {
				users[v.Spec.Backing.Path] = "replica " + r.Move
			}
		}
	}
	return users, err
}

// releaseSource removes what the VM left at its source.
func (a *Agent) releaseSource(ctx context.Context, _ *job, ref moveRef, m *droverv1.ReleaseSource) (*droverv1.RunResult, error) {
	op := "release the source of vm " + ref.vm
	if err := a.needHypervisor(); err != nil {
		return nil, err
	}
	r, err := a.sourceRecord(ref)
	if err != nil {
		return nil, err
	}
	if r.Out != nil && r.Out.State != outMoved {
		return nil, drover.Errorf(drover.Refused, op, "its transfer is %q, not %q: the guest may be here", r.Out.State, outMoved)
	}
	if r.DisksOnly {
		if err := a.endLent(ref.uuid); err != nil {
			return nil, err
		}
	}
	vm, err := a.hyp.VM(ctx, ref.vm)
	switch {
	case err == nil && vm.UUID == ref.uuid && vm.State != drover.VMOff && vm.State != drover.VMCrashed:
		return nil, drover.Errorf(drover.Refused, op, "it is %s here", vm.State)
	case err == nil && vm.UUID == ref.uuid:
		if r.Out == nil && !r.GivenUp {
			return nil, drover.Errorf(drover.Refused, op, "it is defined here and was never given up")
		}
		if err := a.hyp.Undefine(ctx, ref.vm); err != nil {
			return nil, err
		}
	case err != nil && drover.KindOf(err) != drover.NotFound:
		return nil, err
	}
	// Whether its images are kept or go: nothing of the move stays in them, nor of
	// a replica.
	if r.Warm != nil {
		if err := a.endWarm(ctx, ref, r); err != nil {
			return nil, err
		}
	}
	if err := a.dropReplicas(ctx, ref); err != nil {
		return nil, err
	}
	if !m.GetKeepVolumes() {
		if err := a.clearSourceDisks(ctx, op, r, m.GetDisks()); err != nil {
			return nil, err
		}
	}
	return resultNow(), a.journal.update(ref.move, "source-released", func(r *record) error {
		r.GivenUp, r.Definition = false, nil
		return nil
	})
}

// clearSourceDisks keeps aside, or deletes, those disks of the VM that were
// carried away and that nobody else needs. What was not among the VM's disks when the move began
// is not touched, whoever asks.
func (a *Agent) clearSourceDisks(ctx context.Context, op string, r *record, plans []*droverv1.DiskPlan) error {
	users, err := a.usersOf(ctx)
	if err != nil {
		return err
	}
	for _, p := range plans {
		i := slices.IndexFunc(r.Disks, func(d drover.Disk) bool { return d.Target == p.GetTarget() })
		if i < 0 {
			return drover.Errorf(drover.Refused, op, "disk %s was not the vm's when the move began", p.GetTarget())
		}
		d := r.Disks[i]
		if d.ReadOnly || d.Shared {
			continue
		}
		if who := users[d.Path]; who != "" {
			a.log.Warn("a moved vm's image stays: it is needed", "move", r.Move, "path", d.Path, "by", who)
			continue
		}
		kept, err := a.remains.keep(ctx, r, d)
		if err != nil {
			return err
		}
		if kept {
			continue
		}
		if err := a.volumes.Delete(ctx, d.Path); err != nil {
			return err
		}
	}
	return nil
}
