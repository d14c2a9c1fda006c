package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/driver"
)

// Kinds of what stands on a host besides reservations. All of it carries its
// owner in its name.
const (
	ownedReplica    = "replica"       // kept here, or kept of a VM that is here
	ownedImage      = "replica-image" // an image that no replica's journal knows
	ownedCheckpoint = "checkpoint"    // what a VM's hypervisor records
	ownedBitmap     = "bitmap"        // what an image at rest has recorded
	ownedScratch    = "scratch"       // what a backup has set aside
	ownedSockets    = "sockets"       // a folder of sockets without its move
)

// hostKinds are those that ownedHere tells of.
var hostKinds = []string{ownedImage, ownedCheckpoint, ownedBitmap, ownedScratch, ownedSockets}

// ownedMoves tells of the journal's moves and replicas.
func ownedMoves(moves []*record) []*droverv1.OwnedThing {
	var list []*droverv1.OwnedThing
	for _, m := range moves {
		t := &droverv1.OwnedThing{Kind: ownedReservation, Owner: string(driver.MoveOwner(m.Move)), What: "reservation for vm " + m.VM}
		switch {
		case m.Keeps && m.Target:
			t.Kind, t.What = ownedReplica, "replica of vm "+m.VM
		case m.Keeps:
			t.Kind, t.What = ownedReplica, fmt.Sprintf("vm %s's end of its replica", m.VM)
		}
		list = append(list, t)
	}
	return list
}

// ownedHere is what stands on the host itself.
func (a *Agent) ownedHere(ctx context.Context, moves []*record) ([]*droverv1.OwnedThing, error) {
	if a.edge() {
		return nil, nil
	}
	known := make(map[string]bool)
	for _, m := range moves {
		known[m.Move] = true
	}
	var list []*droverv1.OwnedThing
	add := func(kind string, o driver.Owner, format string, args ...any) {
		list = append(list, &droverv1.OwnedThing{Kind: kind, Owner: string(o), What: fmt.Sprintf(format, args...)})
	}
	faults := a.eachRecord(ctx, func(vm string, path string, c driver.Checkpoint) error {
		if path != "" {
			add(ownedBitmap, c.Owner, "record of changes %s in %s", c, path)
		} else {
			add(ownedCheckpoint, c.Owner, "checkpoint %s of vm %s", c, vm)
		}
		return nil
	})
	files, err := a.strayFiles()
	faults = errors.Join(faults, err)
	for _, f := range files {
		if f.kind == ownedImage {
			if name, _ := f.owner.Move(); known[name] {
				continue // the journal tells of it
			}
		}
		add(f.kind, f.owner, "%s", f.path)
	}
	folders, err := os.ReadDir(filepath.Join(a.sockets.dir, socketFolder))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		faults = errors.Join(faults, fmt.Errorf("sockets: %w", err))
	}
	for _, f := range folders {
		if o := driver.MoveOwner(f.Name()); !known[f.Name()] && o.Validate() == nil {
			add(ownedSockets, o, "folder of sockets %s", filepath.Join(a.sockets.dir, socketFolder, f.Name()))
		}
	}
	return list, faults
}

// eachRecord calls found for each checkpoint of a VM here (path empty), and for
// each that an image at rest has stored (vm empty).
func (a *Agent) eachRecord(ctx context.Context, found func(vm, path string, c driver.Checkpoint) error) error {
	vms, err := a.hyp.List(ctx)
	if err != nil {
		return fmt.Errorf("checkpoints: %w", err)
	}
	var faults error
	running := make(map[string]bool)
	for _, vm := range vms {
		all, err := a.hyp.Checkpoints(ctx, vm.Name)
		faults = errors.Join(faults, err)
		for _, c := range all {
			faults = errors.Join(faults, found(vm.Name, "", c))
		}
		for _, d := range vm.Disks {
			running[d.Path] = running[d.Path] || vm.State == drover.VMRunning || vm.State == drover.VMPaused
		}
	}
	images, err := a.volumes.List(ctx)
	faults = errors.Join(faults, err)
	aside, err := a.remains.list("")
	faults = errors.Join(faults, err)
	for _, r := range aside {
		images = append(images, drover.Volume{Path: r.Path, Format: r.Format})
	}
	for _, v := range images {
		if running[v.Path] || v.Format != "qcow2" {
			continue // the hypervisor holds them, or there are none
		}
		stored, err := a.volumes.Bitmaps(ctx, v.Path)
		if kind := drover.KindOf(err); err != nil && kind != drover.NotFound && kind != drover.Refused {
			faults = errors.Join(faults, err)
		}
		for _, c := range stored {
			faults = errors.Join(faults, found("", v.Path, c))
		}
	}
	return faults
}

// strayFile is a file that carries its owner in its name.
type strayFile struct {
	kind  string
	owner driver.Owner
	path  string
}

// strayFiles are the scratch files and the replicas' images in the folders of
// volumes, needed or not.
func (a *Agent) strayFiles() ([]strayFile, error) {
	var list []strayFile
	var faults error
	for _, dir := range a.config.Volumes {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			faults = errors.Join(faults, err)
		}
		for _, e := range entries {
			path := filepath.Join(dir, e.Name())
			if o, ok := driver.OwnerOfScratch(path); ok {
				list = append(list, strayFile{ownedScratch, o, path})
			}
			if rest, ok := strings.CutPrefix(e.Name(), driver.ReplicaPrefix); ok {
				if at := strings.LastIndexByte(rest, '-'); at > 0 {
					list = append(list, strayFile{ownedImage, driver.MoveOwner(rest[:at]), path})
				}
			}
		}
	}
	return list, faults
}

// removeHere removes what the owner has of one of hostKinds.
func (a *Agent) removeHere(ctx context.Context, owner driver.Owner, kind string) error {
	name, ok := owner.Move()
	if !ok {
		return drover.Errorf(drover.Invalid, "owner", "%q: want move/NAME for a %s", string(owner), kind)
	}
	if r, err := a.journal.move(name); err != nil || r != nil {
		if err == nil {
			err = drover.Errorf(drover.Refused, "remove "+kind, "%s is in this agent's journal: release that", owner)
		}
		return err
	}
	switch kind {
	case ownedSockets:
		return a.sockets.remove(name)
	case ownedCheckpoint, ownedBitmap:
		return a.removeRecords(ctx, owner)
	}
	files, err := a.strayFiles()
	for _, f := range files {
		if f.kind == kind && f.owner == owner {
			err = errors.Join(err, a.volumes.Delete(ctx, f.path))
		}
	}
	return err
}

// removeRecords removes all that is recorded for an owner, of VMs and in images.
func (a *Agent) removeRecords(ctx context.Context, owner driver.Owner) error {
	vms, err := a.hyp.List(ctx)
	if err != nil {
		return err
	}
	targets := make(map[string][]string)
	for _, vm := range vms {
		for _, d := range vm.Disks {
			if !d.Shared && !d.ReadOnly {
				targets[vm.Name] = append(targets[vm.Name], d.Target)
			}
		}
	}
	var ended []string
	remove := func(vm, path string, c driver.Checkpoint) error {
		switch {
		case c.Owner != owner:
			return nil
		case path != "":
			return a.volumes.RemoveBitmap(ctx, path, c)
		case !slices.Contains(ended, vm):
			ended = append(ended, vm)
			if err := a.hyp.EndBackup(ctx, vm, owner); err != nil {
				return err
			}
		}
		return a.hyp.RemoveCheckpoint(ctx, vm, c, targets[vm])
	}
	return a.eachRecord(ctx, remove)
}
