package memory

import (
	"context"
	"slices"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// backup is a VM's backup under way. Like libvirt's, it belongs to the VM and
// outlives whoever began it.
type backup struct {
	hyp    *Hypervisor
	name   string
	spec   driver.BackupSpec
	frozen map[string]driver.ImageReader
}

// AttachVolumes says in which store the host's disks lie. Without, its VMs
// cannot be backed up.
func (f *Fleet) AttachVolumes(host string, v *Volumes) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hosts[host].volumes = v
}

// WriteDisk is Write, with the bytes that the guest writes.
func (f *Fleet) WriteDisk(host, name, target string, off int64, p []byte) error {
	if err := f.Write(host, name); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	h := f.hosts[host]
	for _, d := range h.guests[name].vm.Disks {
		if d.Target == target {
			return h.volumes.guestWrite(d.Path, off, p)
		}
	}
	return drover.Errorf(drover.NotFound, "write", "%s has no disk %s", name, target)
}

// Kill ends a guest as the death of its hypervisor's process does: what it
// recorded of its changes is lost.
func (f *Fleet) Kill(host, name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	h := f.hosts[host]
	if g := h.guests[name]; g != nil {
		h.stop(g)
		h.spoil(g)
	}
}

// spoil is what a guest's sudden end leaves of its records; the fleet's lock is
// held.
func (h *Hypervisor) spoil(g *guest) {
	for _, d := range g.vm.Disks {
		if h.volumes != nil {
			h.volumes.damage(d.Path)
		}
	}
}

// occupy tells the volumes whether the guest runs; the fleet's lock is held.
func (h *Hypervisor) occupy(g *guest) {
	if h.volumes == nil {
		return
	}
	for _, d := range g.vm.Disks {
		h.volumes.setGuest(d.Path, active(g.state))
	}
}

// CheckBackup finds a backup under way.
func (h *Hypervisor) CheckBackup(ctx context.Context, name string) ([]drover.Check, error) {
	var checks []drover.Check
	err := h.call(ctx, "check backup", name, func() error {
		g, err := h.find("check backup of "+name, name)
		if err != nil {
			return err
		}
		if g.backup != nil {
			checks = append(checks, drover.Check{Name: "backup-job", Detail: "a backup is under way", Fix: "wait until it has ended"})
		}
		check := drover.Check{Name: "dirty-bitmaps", OK: h.volumes != nil, Detail: "changes can be recorded"}
		if !check.OK {
			check.Detail, check.Fix = "changes cannot be recorded", "move it cold"
		}
		checks = append(checks, check)
		return nil
	})
	return checks, err
}

// BeginBackup freezes the disks.
func (h *Hypervisor) BeginBackup(ctx context.Context, name string, spec driver.BackupSpec) (driver.Backup, error) {
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	op := "begin backup of " + name
	var b *backup
	err := h.call(ctx, "begin backup", name, func() error {
		g, err := h.find(op, name)
		switch {
		case err != nil:
			return err
		case !active(g.state):
			return drover.Errorf(drover.Refused, op, "it is off")
		case h.volumes == nil:
			return drover.Errorf(drover.Refused, op, "changes cannot be recorded")
		case g.backup != nil || g.sending != nil:
			return drover.Errorf(drover.Unavailable, op, "another job is under way")
		case slices.Contains(g.checkpoints, spec.Checkpoint):
			return drover.Errorf(drover.Exists, op, "it has a checkpoint %s", spec.Checkpoint)
		case spec.Since != (driver.Checkpoint{}) && !slices.Contains(g.checkpoints, spec.Since):
			return drover.Errorf(drover.NotFound, op, "it has no checkpoint %s", spec.Since)
		}
		b = &backup{hyp: h, name: name, spec: spec, frozen: map[string]driver.ImageReader{}}
		if err := h.freeze(op, g, b); err != nil {
			return err
		}
		g.backup = b
		g.checkpoints = append(g.checkpoints, spec.Checkpoint)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return b, nil
}

// freeze takes the disks as they are and begins to record; the fleet's lock is
// held.
func (h *Hypervisor) freeze(op string, g *guest, b *backup) error {
	paths := make(map[string]string)
	for _, d := range g.vm.Disks {
		paths[d.Target] = d.Path
	}
	v := h.volumes
	for _, d := range b.spec.Disks {
		path, ok := paths[d.Target]
		if !ok {
			return drover.Errorf(drover.Invalid, op, "it has no disk %s", d.Target)
		}
		since := b.spec.Since
		if err := v.mayFreeze(path, since); err != nil {
			return wrap(op, err)
		}
		im, err := v.freeze(path, since)
		if err != nil {
			return wrap(op, err)
		}
		b.frozen[d.Target] = im
	}
	for _, d := range b.spec.Disks {
		v.AddBitmap(paths[d.Target], b.spec.Checkpoint)
	}
	return nil
}

// mayFreeze says whether an image can be recorded, and has what is to be begun
// from.
func (v *Volumes) mayFreeze(path string, since driver.Checkpoint) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	f, err := v.tracked(path)
	if err == nil && since != (driver.Checkpoint{}) && (f.bitmaps[since] == nil || f.bitmaps[since].damaged) {
		err = drover.Errorf(drover.NotFound, "", "%s has no bitmap %s of any use", path, since)
	}
	return err
}

// Open returns a frozen disk.
func (b *backup) Open(ctx context.Context, target string) (driver.ImageReader, error) {
	var im driver.ImageReader
	err := b.hyp.call(ctx, "open backup", b.name, func() error {
		g := b.hyp.guests[b.name]
		if g == nil || g.backup != b || b.frozen[target] == nil {
			return drover.Errorf(drover.Unavailable, "open backup of "+b.name, "nobody serves %s", target)
		}
		im = b.frozen[target]
		return nil
	})
	return im, err
}

// End ends the backup.
func (b *backup) End(ctx context.Context) error {
	return b.hyp.EndBackup(ctx, b.name, b.spec.Checkpoint.Owner)
}

// EndBackup ends the owner's backup.
func (h *Hypervisor) EndBackup(ctx context.Context, name string, owner driver.Owner) error {
	if err := owner.Validate(); err != nil {
		return err
	}
	return h.call(ctx, "end backup", name, func() error {
		if g := h.guests[name]; g != nil && g.backup != nil && g.backup.spec.Checkpoint.Owner == owner {
			g.backup = nil
		}
		return nil
	})
}

// Checkpoints lists what is known of.
func (h *Hypervisor) Checkpoints(ctx context.Context, name string) ([]driver.Checkpoint, error) {
	var list []driver.Checkpoint
	err := h.call(ctx, "checkpoints", name, func() error {
		g, err := h.find("list checkpoints of "+name, name)
		if err == nil {
			list = slices.SortedFunc(slices.Values(g.checkpoints), byNumber)
		}
		return err
	})
	return list, err
}

// ChangedBytes counts changed clusters.
func (h *Hypervisor) ChangedBytes(ctx context.Context, name string, since driver.Checkpoint) (drover.Bytes, error) {
	op := "size changes of " + name
	if err := since.Validate(); err != nil {
		return 0, err
	}
	var sum drover.Bytes
	err := h.call(ctx, "changed bytes", name, func() error {
		g, err := h.find(op, name)
		switch {
		case err != nil:
			return err
		case !slices.Contains(g.checkpoints, since):
			return drover.Errorf(drover.NotFound, op, "it has no checkpoint %s", since)
		case !active(g.state):
			return drover.Errorf(drover.Refused, op, "it is off")
		}
		h.volumes.mu.Lock()
		defer h.volumes.mu.Unlock()
		for _, d := range g.vm.Disks {
			if f := h.volumes.files[d.Path]; f != nil && f.bitmaps[since] != nil {
				if f.bitmaps[since].damaged {
					return drover.Errorf(drover.NotFound, op, "the record of %s is damaged", d.Path)
				}
				sum += drover.Bytes(len(f.bitmaps[since].changed)) * clusterBytes
			}
		}
		return nil
	})
	return sum, err
}

// RemoveCheckpoint forgets one.
func (h *Hypervisor) RemoveCheckpoint(ctx context.Context, name string, c driver.Checkpoint, targets []string) error {
	if err := c.Validate(); err != nil {
		return err
	}
	return h.call(ctx, "remove checkpoint", name, func() error {
		g, err := h.find("remove checkpoint of "+name, name)
		if err != nil {
			return err
		}
		g.checkpoints = slices.DeleteFunc(g.checkpoints, func(k driver.Checkpoint) bool { return k == c })
		if !active(g.state) || h.volumes == nil {
			return nil
		}
		h.volumes.mu.Lock()
		defer h.volumes.mu.Unlock()
		for _, d := range g.vm.Disks {
			if f := h.volumes.files[d.Path]; f != nil && slices.Contains(targets, d.Target) {
				delete(f.bitmaps, c)
			}
		}
		return nil
	})
}
