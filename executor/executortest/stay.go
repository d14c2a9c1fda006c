package executortest

import (
	"slices"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/executor"
)

// Disks that are at another host than their VM: what is lent here, by the VM's UUID,
// and the ways to what is elsewhere, each with the move that made it.

// AddRemoteVM puts a VM on its host whose disks are at another, as a move that left
// them there has made it.
func (w *World) AddRemoteVM(v drover.VM, disksAt string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	at, h := w.hosts[disksAt], w.hosts[v.Host]
	n := &vm{name: v.Name, uuid: v.UUID, state: drover.VMOff, disksAt: disksAt}
	for _, d := range v.Disks {
		if !d.Shared {
			n.paths = append(n.paths, d.Path)
			at.volumes[d.Path] = &volume{}
		}
	}
	h.vms[n.name] = n
	at.lent[v.UUID], h.ways[v.UUID] = "earlier", "earlier"
	w.run(h, n)
}

// volumesOf is the host that has a VM's volumes; w.mu is held.
func (w *World) volumesOf(h *host, v *vm) *host {
	if v.disksAt != "" {
		return w.hosts[v.disksAt]
	}
	return h
}

func (j *job) lend(a executor.LendDisks) error {
	if err := j.rest(); err != nil {
		return err
	}
	return j.part(func() error {
		if by := j.h.lent[j.j.uuid]; by != "" && by != j.key.move {
			return drover.Errorf(drover.Exists, "lend-disks", "move %s has", by)
		}
		j.h.lent[j.j.uuid] = j.key.move
		return nil
	})
}

func (j *job) reclaim() error {
	if err := j.endOthers(); err != nil {
		return err
	}
	if err := j.hold(); err != nil {
		return err
	}
	return j.part(func() error {
		if j.j.given || j.j.moved {
			j.w.wrongf("%s is asked to reclaim the disks of %s, which has them at its destination", j.h.name, j.j.vm)
			return drover.Errorf(drover.Refused, "reclaim-disks", "the VM has moved")
		}
		j.takeBackLent()
		return nil
	})
}

// takeBackLent forgets what this move has lent; w.mu is held.
func (j *job) takeBackLent() {
	if j.h.lent[j.j.uuid] == j.key.move {
		delete(j.h.lent, j.j.uuid)
	}
}

func (j *job) attachDisks(a executor.AttachDisks) (executor.Result, error) {
	if err := j.rest(); err != nil {
		return executor.Result{}, err
	}
	var r executor.Result
	return r, j.part(func() error {
		peer, _, err := j.peer(a.PeerHost)
		if err != nil {
			return err
		}
		if peer.lent[j.j.uuid] != j.key.move {
			return drover.Errorf(drover.Refused, "attach-disks", "%s does not lend them", a.PeerHost)
		}
		j.h.ways[j.j.uuid] = j.key.move
		for _, d := range a.Disks {
			r.RemoteDisks = append(r.RemoteDisks, executor.RemoteDisk{Target: d.Target, Socket: "/run/" + d.Target})
		}
		return nil
	})
}

func (j *job) detach() error {
	if err := j.endOthers(); err != nil {
		return err
	}
	if err := j.hold(); err != nil {
		return err
	}
	return j.part(func() error {
		if v := j.h.vms[j.j.vm]; v != nil && v.disksAt != "" {
			j.w.wrongf("%s is asked to detach the disks that %s uses", j.h.name, v.name)
			return drover.Errorf(drover.Refused, "detach-disks", "it uses them")
		}
		delete(j.h.ways, j.j.uuid)
		return nil
	})
}

// receiveRemote is finish for a VM whose disks stay; w.mu is held.
func (j *job) receiveRemote(peer *host, v *vm) {
	if j.h.lent[v.uuid] != j.key.move || peer.ways[v.uuid] != j.key.move {
		j.w.wrongf("%s is to run on %s without a way to its disks at %s", v.name, peer.name, j.h.name)
	}
	v.disksAt = j.h.name
	if old := j.h.vms[v.name]; old != nil {
		v.paths = slices.Clone(old.paths)
	}
}

// bring copies disks in rounds and has the guest go on with them.
func (j *job) bring(a executor.BringDisks) (executor.Result, error) {
	forward := false
	err := j.part(func() error {
		forward = j.j.pivoting
		if j.j.aborted && !forward {
			return drover.Errorf(drover.Canceled, "bring-disks", "it was given up")
		}
		return nil
	})
	if err != nil {
		return executor.Result{}, err
	}
	for round := 0; round < rounds && !forward; round++ {
		j.tell("disk", round, rounds)
		if err := j.rest(); err != nil {
			return executor.Result{}, err
		}
		err := j.part(func() error {
			v, err := j.vm()
			if err != nil {
				return err
			}
			j.w.guestWrites(j.h, v)
			return nil
		})
		if err != nil {
			return executor.Result{}, err
		}
	}
	err = j.part(func() error {
		j.j.pivoting = true
		return nil
	})
	if err != nil {
		return executor.Result{}, err
	}
	return j.pivotDisks(len(a.Disks))
}

func (j *job) pivotDisks(n int) (executor.Result, error) {
	if err := j.hold(); err != nil {
		return executor.Result{}, err
	}
	r := executor.Result{Moved: true, DiskBytes: drover.Bytes(n), Resumed: time.Time{}}
	return r, j.part(func() error {
		v, err := j.vm()
		if err != nil || v.disksAt == "" {
			return err
		}
		for _, p := range j.j.created {
			vol := j.h.volumes[p]
			if vol == nil {
				return drover.Errorf(drover.Internal, "bring-disks", "%s is missing", p)
			}
			vol.write, vol.torn = j.w.written[v.uuid], false
		}
		v.disksAt, v.paths, j.j.created = "", j.j.created, nil
		j.w.guestWrites(j.h, v)
		return nil
	})
}

func (j *job) abortBring() (executor.Result, error) {
	if err := j.endOthers(); err != nil {
		return executor.Result{}, err
	}
	forward := false
	err := j.part(func() error {
		j.j.aborted = true
		forward = j.j.pivoting
		return nil
	})
	if err != nil || !forward {
		return executor.Result{}, err
	}
	return j.pivotDisks(0)
}

// forgetLent is what release-source does with disks that were lent; w.mu is held.
func (j *job) forgetLent() {
	for _, h := range j.w.hosts {
		for _, v := range h.vms {
			if v.uuid == j.j.uuid && v.disksAt == j.h.name {
				j.w.wrongf("%s is asked to delete the disks that %s uses on %s", j.h.name, v.name, h.name)
			}
		}
	}
	delete(j.h.lent, j.j.uuid)
}
