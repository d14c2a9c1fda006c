package libvirt

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"
	"libvirt.org/go/libvirtxml"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// A backup is libvirt's pull mode: QEMU serves the disks over NBD, and keeps what
// the guest overwrites meanwhile in scratch files (virDomainBackupBegin). Libvirt
// makes the scratch files and removes them when the backup's job ends, which is
// also when its domain stops. The job belongs to the VM, not to the client that
// began it: it outlives both the client and the manager.
//
// Checkpoints are persistent bitmaps of their own name in the qcow2 images. All
// of them record all the time, so any of them can be begun from, and removing one
// leaves the others right. QEMU writes them to the images when it ends; when it
// is killed they are marked as in use there, and of no use any more.

const (
	// endPoll and endLimit bound the wait for a backup's job to end after it was
	// told to: QEMU has nothing left to do then.
	endPoll  = 10 * time.Millisecond
	endLimit = 30 * time.Second
	// exportBitmap is the name under which the changes are exported.
	exportBitmap = "changes"
)

var _ driver.Backuper = (*Hypervisor)(nil)

// CheckBackup asks libvirt whether it can back up a VM of this kind, and who else
// is at it.
func (h *Hypervisor) CheckBackup(ctx context.Context, name string) ([]drover.Check, error) {
	return askDomain(ctx, h, "check backup of", name, func(rpc *golibvirt.Libvirt, dom golibvirt.Domain) ([]drover.Check, error) {
		supported, err := backupSupported(rpc, dom)
		if err != nil {
			return nil, err
		}
		others, err := otherBackups(rpc, dom)
		if err != nil {
			return nil, err
		}
		return append(others, supported), nil
	})
}

func backupSupported(rpc *golibvirt.Libvirt, dom golibvirt.Domain) (drover.Check, error) {
	const name = "dirty-bitmaps"
	text, err := rpc.DomainGetXMLDesc(dom, golibvirt.DomainXMLInactive)
	if err != nil {
		return drover.Check{}, err
	}
	def, err := parseDomain(text)
	if err != nil {
		return drover.Check{}, err
	}
	var emulator, arch, machine string
	if def.Devices != nil {
		emulator = def.Devices.Emulator
	}
	if def.OS != nil && def.OS.Type != nil {
		arch, machine = def.OS.Type.Arch, def.OS.Type.Machine
	}
	text, err = rpc.ConnectGetDomainCapabilities(optional(emulator), optional(arch), optional(machine), optional(def.Type), 0)
	if err != nil {
		return drover.Check{}, err
	}
	caps := new(libvirtxml.DomainCaps)
	if err := caps.Unmarshal(text); err != nil {
		return drover.Check{}, fmt.Errorf("domain capabilities: %w", err)
	}
	if caps.Features == nil || caps.Features.Backup == nil || caps.Features.Backup.Supported != "yes" {
		return failed(name, "install libvirt 7.2 and QEMU 6.0 or newer, or move it cold",
			"this host's libvirt and QEMU cannot record what a VM changes on its disks"), nil
	}
	return passed(name, "libvirt and QEMU can record what the VM changes on its disks"), nil
}

// otherBackups looks for those of other programs.
func otherBackups(rpc *golibvirt.Libvirt, dom golibvirt.Domain) ([]drover.Check, error) {
	var checks []drover.Check
	job, err := currentBackup(rpc, dom)
	if err != nil {
		return nil, err
	}
	if job != nil {
		checks = append(checks, failed("backup-job", "wait until it has ended (virsh domjobinfo), or end it (virsh domjobabort)",
			"a backup of the VM is under way, and it can have one at a time"))
	}
	known, err := checkpointNames(rpc, dom)
	if err != nil {
		return nil, err
	}
	foreign := slices.DeleteFunc(known, func(name string) bool {
		_, ours := driver.ParseCheckpoint(name)
		return ours
	})
	if len(foreign) > 0 {
		checks = append(checks, warned("checkpoints", "let the program that made them take a full backup after the move",
			"%d checkpoints of another program (%s) are not carried along", len(foreign), foreign[0]))
	}
	return checks, nil
}

// BeginBackup begins a backup in pull mode with a checkpoint.
func (h *Hypervisor) BeginBackup(ctx context.Context, name string, spec driver.BackupSpec) (driver.Backup, error) {
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	backup, checkpoint, err := backupXML(spec)
	if err != nil {
		return nil, drover.E(drover.Internal, "begin backup of "+name, err)
	}
	err = h.onDomain(ctx, "begin backup of", name, func(rpc *golibvirt.Libvirt, dom golibvirt.Domain) error {
		switch _, err := rpc.DomainCheckpointLookupByName(dom, spec.Checkpoint.String(), 0); {
		case err == nil:
			return drover.Errorf(drover.Exists, "", "it has a checkpoint %s already", spec.Checkpoint)
		case !hasCode(err, golibvirt.ErrNoDomainCheckpoint):
			return err
		}
		err := rpc.DomainBackupBegin(dom, backup, optional(checkpoint), 0)
		if hasCode(err, golibvirt.ErrNoDomainCheckpoint) || hasCode(err, golibvirt.ErrCheckpointInconsistent) {
			return drover.E(drover.NotFound, "changes since "+spec.Since.String(), err)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return &backupJob{h: h, name: name, spec: spec}, nil
}

// backupXML writes the two documents that begin a backup.
func backupXML(spec driver.BackupSpec) (backup, checkpoint string, err error) {
	disks := new(libvirtxml.DomainBackupPullDisks)
	marks := new(libvirtxml.DomainCheckpointDisks)
	b := libvirtxml.DomainBackup{Pull: &libvirtxml.DomainBackupPull{
		Server: &libvirtxml.DomainBackupPullServer{UNIX: &libvirtxml.DomainBackupPullServerUNIX{Socket: spec.Socket}},
		Disks:  disks,
	}}
	since := spec.Since != driver.Checkpoint{}
	if since {
		b.Incremental = spec.Since.String()
	}
	for _, d := range spec.Disks {
		disk := libvirtxml.DomainBackupPullDisk{
			Name: d.Target, Backup: "yes", ExportName: d.Target,
			Scratch: &libvirtxml.DomainDiskSource{File: &libvirtxml.DomainDiskSourceFile{File: d.Scratch}},
		}
		if since {
			disk.ExportBitmap = exportBitmap
		}
		disks.Disks = append(disks.Disks, disk)
		marks.Disks = append(marks.Disks, libvirtxml.DomainCheckpointDisk{Name: d.Target, Checkpoint: "bitmap"})
	}
	if backup, err = b.Marshal(); err != nil {
		return "", "", err
	}
	c := libvirtxml.DomainCheckpoint{Name: spec.Checkpoint.String(), Disks: marks}
	checkpoint, err = c.Marshal()
	return backup, checkpoint, err
}

// EndBackup ends the owner's.
func (h *Hypervisor) EndBackup(ctx context.Context, name string, owner driver.Owner) error {
	if err := owner.Validate(); err != nil {
		return err
	}
	for over := time.Now().Add(endLimit); ; {
		ended, err := h.abortBackup(ctx, name, owner)
		if notFound(err) {
			return nil
		}
		if err != nil || ended {
			return err
		}
		if time.Now().After(over) {
			return drover.Errorf(drover.Unavailable, "end backup of "+name, "it has not ended within %s", endLimit)
		}
		select {
		case <-time.After(endPoll):
		case <-ctx.Done():
			return drover.E(drover.Canceled, "end backup of "+name, ctx.Err())
		}
	}
}

// abortBackup asks the owner's backup to end, and reports whether there is none
// (any more).
func (h *Hypervisor) abortBackup(ctx context.Context, name string, owner driver.Owner) (bool, error) {
	return askDomain(ctx, h, "end backup of", name, func(rpc *golibvirt.Libvirt, dom golibvirt.Domain) (bool, error) {
		job, err := currentBackup(rpc, dom)
		if err != nil || job == nil || !owns(owner, job) {
			return err == nil, err
		}
		err = rpc.DomainAbortJob(dom)
		if hasCode(err, golibvirt.ErrOperationInvalid) {
			err = nil // it has just ended, or is about to
		}
		return false, err
	})
}

// owns reports whether a backup's scratch files are the owner's.
func owns(owner driver.Owner, job *libvirtxml.DomainBackup) bool {
	if job.Pull == nil || job.Pull.Disks == nil {
		return false
	}
	return slices.ContainsFunc(job.Pull.Disks.Disks, func(d libvirtxml.DomainBackupPullDisk) bool {
		return driver.ScratchOf(owner, pathOf(d.Scratch))
	})
}

// currentBackup returns the VM's backup, nil if there is none.
func currentBackup(rpc *golibvirt.Libvirt, dom golibvirt.Domain) (*libvirtxml.DomainBackup, error) {
	text, err := rpc.DomainBackupGetXMLDesc(dom, 0)
	if hasCode(err, golibvirt.ErrNoDomainBackup) || hasCode(err, golibvirt.ErrOperationInvalid) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	job := new(libvirtxml.DomainBackup)
	if err := job.Unmarshal(text); err != nil {
		return nil, fmt.Errorf("backup XML: %w", err)
	}
	return job, nil
}

// Checkpoints lists those with an owner.
func (h *Hypervisor) Checkpoints(ctx context.Context, name string) ([]driver.Checkpoint, error) {
	return askDomain(ctx, h, "list checkpoints of", name, func(rpc *golibvirt.Libvirt, dom golibvirt.Domain) ([]driver.Checkpoint, error) {
		names, err := checkpointNames(rpc, dom)
		if err != nil {
			return nil, err
		}
		var list []driver.Checkpoint
		for _, n := range names {
			if c, ours := driver.ParseCheckpoint(n); ours {
				list = append(list, c)
			}
		}
		slices.SortFunc(list, func(a, b driver.Checkpoint) int {
			if a.Owner != b.Owner {
				return strings.Compare(string(a.Owner), string(b.Owner))
			}
			return int(a.Number - b.Number)
		})
		return list, nil
	})
}

func checkpointNames(rpc *golibvirt.Libvirt, dom golibvirt.Domain) ([]string, error) {
	known, _, err := rpc.DomainListAllCheckpoints(dom, 1, 0)
	if err != nil {
		return nil, err
	}
	names := make([]string, len(known))
	for i, c := range known {
		names[i] = c.Name
	}
	return names, nil
}

// ChangedBytes asks QEMU for the sizes of the bitmaps.
func (h *Hypervisor) ChangedBytes(ctx context.Context, name string, since driver.Checkpoint) (drover.Bytes, error) {
	if err := since.Validate(); err != nil {
		return 0, err
	}
	return askDomain(ctx, h, "size changes of", name, func(rpc *golibvirt.Libvirt, dom golibvirt.Domain) (drover.Bytes, error) {
		c, err := rpc.DomainCheckpointLookupByName(dom, since.String(), 0)
		if err != nil {
			return 0, missing(err, since)
		}
		text, err := rpc.DomainCheckpointGetXMLDesc(c, uint32(golibvirt.DomainCheckpointXMLNoDomain|golibvirt.DomainCheckpointXMLSize))
		if err != nil {
			return 0, missing(err, since)
		}
		def := new(libvirtxml.DomainCheckpoint)
		if err := def.Unmarshal(text); err != nil {
			return 0, fmt.Errorf("checkpoint XML: %w", err)
		}
		var sum drover.Bytes
		if def.Disks != nil {
			for _, d := range def.Disks.Disks {
				sum += drover.Bytes(d.Size)
			}
		}
		return sum, nil
	})
}

// missing gives the errors of a checkpoint that is not there, or of no use, their
// kind.
func missing(err error, c driver.Checkpoint) error {
	if hasCode(err, golibvirt.ErrNoDomainCheckpoint) || hasCode(err, golibvirt.ErrCheckpointInconsistent) {
		return drover.E(drover.NotFound, c.String(), err)
	}
	return err
}

// RemoveCheckpoint removes libvirt's checkpoint and QEMU's bitmaps.
func (h *Hypervisor) RemoveCheckpoint(ctx context.Context, name string, c driver.Checkpoint, targets []string) error {
	if err := c.Validate(); err != nil {
		return err
	}
	return h.onDomain(ctx, "remove checkpoint of", name, func(rpc *golibvirt.Libvirt, dom golibvirt.Domain) error {
		active, err := rpc.DomainIsActive(dom)
		if err != nil {
			return err
		}
		known, err := rpc.DomainCheckpointLookupByName(dom, c.String(), 0)
		switch {
		case err == nil && active == 0:
			return rpc.DomainCheckpointDelete(known, golibvirt.DomainCheckpointDeleteMetadataOnly)
		case err == nil:
			if err := rpc.DomainCheckpointDelete(known, 0); err == nil {
				return nil
			}
			// A bitmap is not where libvirt expects it. What there is of them is
			// removed one by one, as when libvirt knew none.
			if err := rpc.DomainCheckpointDelete(known, golibvirt.DomainCheckpointDeleteMetadataOnly); err != nil {
				return err
			}
		case !hasCode(err, golibvirt.ErrNoDomainCheckpoint):
			return err
		}
		if active == 0 {
			return nil
		}
		return removeBitmaps(rpc, dom, c, targets)
	})
}

// removeBitmaps removes from the running VM's disks the bitmaps of a checkpoint
// that libvirt does not know, as after the VM was defined anew: it is told of it,
// disk by disk, and forgets it together with the bitmap.
func removeBitmaps(rpc *golibvirt.Libvirt, dom golibvirt.Domain, c driver.Checkpoint, targets []string) error {
	var failed []error
	for _, target := range targets {
		def := libvirtxml.DomainCheckpoint{
			Name: c.String(), CreationTime: "1",
			Disks: &libvirtxml.DomainCheckpointDisks{Disks: []libvirtxml.DomainCheckpointDisk{{Name: target, Checkpoint: "bitmap", Bitmap: c.String()}}},
		}
		text, err := def.Marshal()
		if err != nil {
			return err
		}
		told, err := rpc.DomainCheckpointCreateXML(dom, text, uint32(golibvirt.DomainCheckpointCreateRedefine))
		if err != nil {
			if interrupted(err) {
				return err
			}
			failed = append(failed, err)
			continue
		}
		if err := rpc.DomainCheckpointDelete(told, 0); err == nil {
			continue
		} else if interrupted(err) {
			return err
		}
		// There is no such bitmap.
		failed = append(failed, rpc.DomainCheckpointDelete(told, golibvirt.DomainCheckpointDeleteMetadataOnly))
	}
	return errors.Join(failed...)
}
