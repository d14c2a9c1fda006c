package agent

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/wan"
)

// remoteFolder is where the sockets of disks at other hosts are, below the run
// folder. They are there as long as a definition names them.
const remoteFolder = "r"

// attachLimit bounds the look whether a disk's host serves it.
const attachLimit = 30 * time.Second

// remoteDisks are the disks of VMs here that are at other hosts: a unix socket for
// each, at which the hypervisor finds it.
type remoteDisks struct {
	a *Agent

	mu    sync.Mutex
	ctx   context.Context // of all sessions; nil before start and after close
	disks map[string]*servedDisk
	group sync.WaitGroup
}

// servedDisk is one that is served.
type servedDisk struct {
	disk   *wan.RemoteDisk
	socket net.Listener
}

// socketOf is the path of a disk's socket.
func (r *remoteDisks) socketOf(d remoteDisk) string {
	return filepath.Join(r.a.config.Run, remoteFolder, d.VMUUID, d.Target)
}

// start serves what the journal has until ctx ends.
func (r *remoteDisks) start(ctx context.Context) error {
	r.mu.Lock()
	r.ctx, r.disks = ctx, make(map[string]*servedDisk)
	r.mu.Unlock()
	all, err := disksIn[remoteDisk](r.a.journal, remoteBucket, "")
	if err != nil {
		return err
	}
	for _, d := range all {
		if err := r.serve(d); err != nil {
			return err
		}
		arrived := d.Arrived
		if m, err := r.a.journal.move(d.Move); err == nil && m != nil && m.In.owns() {
			arrived = true
		}
		if arrived {
			r.open(d.VMUUID)
		}
	}
	return nil
}

// close ends all sessions; ctx of start must have ended.
func (r *remoteDisks) close() {
	r.mu.Lock()
	all := r.disks
	r.ctx, r.disks = nil, nil
	r.mu.Unlock()
	for _, d := range all {
		d.end()
	}
	r.group.Wait()
}

func (d *servedDisk) end() {
	_ = d.socket.Close()
	d.disk.Close()
}

// serve makes a disk's socket, unless it is there.
func (r *remoteDisks) serve(d remoteDisk) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.ctx == nil:
		return drover.E(drover.Unavailable, "serve disk", errStopping)
	case r.disks[d.key()] != nil:
		return nil
	}
	path := r.socketOf(d)
	if err := r.a.sockets.folderAt(filepath.Dir(path)); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return drover.E(drover.Internal, "serve disk", err)
	}
	l, err := new(net.ListenConfig).Listen(r.ctx, "unix", path)
	if err != nil {
		return drover.E(drover.Internal, "serve disk", err)
	}
	if err := r.a.sockets.give(path); err != nil {
		_ = l.Close()
		return err
	}
	s := &servedDisk{socket: l, disk: r.a.wan.NewRemoteDisk(d.PeerAddress, d.PeerHost, d.key(), int64(d.VirtualBytes))}
	r.disks[d.key()] = s
	ctx := r.ctx
	r.group.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return // it was closed
			}
			r.group.Go(func() {
				if err := s.disk.Serve(ctx, conn); err != nil && ctx.Err() == nil {
					r.a.log.Info("the hypervisor's session with a disk at another host has ended", "disk", d.key(), "err", err)
				}
			})
		}
	})
	return nil
}

// open lets the VM use its disks.
func (r *remoteDisks) open(uuid string) {
	for _, d := range r.of(uuid) {
		d.disk.Open()
	}
}

// of returns what is served for a VM.
func (r *remoteDisks) of(uuid string) map[string]*servedDisk {
	r.mu.Lock()
	defer r.mu.Unlock()
	mine := make(map[string]*servedDisk)
	for key, d := range r.disks {
		if len(key) > len(uuid) && key[:len(uuid)+1] == uuid+"/" {
			mine[key] = d
		}
	}
	return mine
}

// drop ends the sessions of a VM's disks and takes their sockets away.
func (r *remoteDisks) drop(uuid string) error {
	for key, d := range r.of(uuid) {
		r.mu.Lock()
		delete(r.disks, key)
		r.mu.Unlock()
		d.end()
	}
	return drover.E(drover.Internal, "remove sockets of disks", os.RemoveAll(filepath.Join(r.a.config.Run, remoteFolder, uuid)))
}

// fill adds to a VM where its disks are and what it does to them.
func (r *remoteDisks) fill(vm *drover.VM) {
	all, err := disksIn[remoteDisk](r.a.journal, remoteBucket, vm.UUID)
	if err != nil || len(all) == 0 {
		return
	}
	var sum wan.DiskFigures
	for _, d := range r.of(vm.UUID) {
		sum = sum.Plus(d.disk.Figures())
	}
	for i := range vm.Disks {
		d := &vm.Disks[i]
		if d.Path != driver.RemoteDiskPath(d.Target) {
			continue
		}
		for _, left := range all {
			if left.Target == d.Target {
				d.Left = &drover.LeftDisk{Host: left.PeerHost, Path: left.Path, Format: left.Format}
				d.VirtualBytes = left.VirtualBytes
			}
		}
	}
	vm.RemoteIO = &drover.RemoteIO{
		ReadBytes: drover.Bytes(sum.ReadBytes), WrittenBytes: drover.Bytes(sum.WrittenBytes), Operations: sum.Operations,
		LatencyMillis:    float64(sum.Mean) / float64(time.Millisecond),
		LatencyP95Millis: float64(sum.P95) / float64(time.Millisecond),
	}
}

// attachDisks makes disks that stay at the source reachable here.
func (a *Agent) attachDisks(ctx context.Context, _ *job, ref moveRef, m *droverv1.AttachDisks) (*droverv1.RunResult, error) {
	op := "attach disks of vm " + ref.vm
	if err := errors.Join(a.needHypervisor(), checkPeer(m.GetPeerAddress(), m.GetPeerHost())); err != nil {
		return nil, err
	}
	if _, err := a.needGuests(); err != nil {
		return nil, err
	}
	if _, err := a.targetRecord(ref); err != nil {
		return nil, err
	}
	var disks []remoteDisk
	for _, p := range m.GetDisks() {
		if _, err := specOf(p); err != nil {
			return nil, err
		}
		disks = append(disks, remoteDisk{
			Move: ref.move, VM: ref.vm, VMUUID: ref.uuid, Target: p.GetTarget(),
			PeerAddress: m.GetPeerAddress(), PeerHost: m.GetPeerHost(),
			Path: p.GetPath(), Format: p.GetFormat(), VirtualBytes: drover.Bytes(p.GetVirtualBytes()),
		})
	}
	err := putDisks(a.journal, remoteBucket, disks, func(old remoteDisk) error {
		if old.Move != ref.move {
			return drover.Errorf(drover.Exists, op, "move %s has left disk %s at %s: bring that to it first", old.Move, old.Target, old.PeerHost)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	result := resultNow()
	look, cancel := context.WithTimeout(ctx, attachLimit)
	defer cancel()
	for _, d := range disks {
		if err := a.remote.serve(d); err != nil {
			return nil, err
		}
		if err := a.remote.check(look, d); err != nil {
			return nil, drover.E(drover.Unavailable, op, err)
		}
		result.RemoteDisks = append(result.RemoteDisks, &droverv1.RemoteDisk{Target: d.Target, Socket: a.remote.socketOf(d)})
	}
	return result, nil
}

// check sees whether the far end serves a disk.
func (r *remoteDisks) check(ctx context.Context, d remoteDisk) error {
	r.mu.Lock()
	s := r.disks[d.key()]
	r.mu.Unlock()
	if s == nil {
		return errStopping
	}
	return s.disk.Check(ctx)
}

// detachDisks undoes attachDisks: of a VM that has not come, or has its disks here by
// now.
func (a *Agent) detachDisks(ctx context.Context, _ *job, ref moveRef, _ *droverv1.DetachDisks) (*droverv1.RunResult, error) {
	op := "detach disks of vm " + ref.vm
	unlock, err := a.locks.lock(ctx, ref.move)
	if err != nil {
		return nil, err
	}
	defer unlock()
	r, err := a.journal.move(ref.move)
	if err != nil || r == nil {
		return resultNow(), err
	}
	if !r.DisksOnly {
		if r.In != nil && (r.In.State == inAccepted || r.In.State == inRejected) {
			in, err := a.decide(ctx, ref.move)
			if err != nil {
				return nil, err
			}
			r.In = &in
		}
		if r.In.owns() {
			return nil, drover.Errorf(drover.Refused, op, "it has arrived on host %s", a.config.Name)
		}
		if err := a.discard(ctx, ref.move); err != nil {
			return nil, err
		}
	}
	vm, err := a.hyp.VM(ctx, ref.vm)
	switch {
	case err != nil && drover.KindOf(err) == drover.NotFound:
	case err != nil:
		return nil, err
	case vm.UUID == ref.uuid && slices.ContainsFunc(vm.Disks, func(d drover.Disk) bool { return d.Path == driver.RemoteDiskPath(d.Target) }):
		return nil, drover.Errorf(drover.Refused, op, "it uses them")
	}
	return resultNow(), a.forgetRemote(ref.uuid)
}

// forgetRemote ends what a VM's disks at other hosts need here.
func (a *Agent) forgetRemote(uuid string) error {
	all, err := disksIn[remoteDisk](a.journal, remoteBucket, uuid)
	if err != nil {
		return err
	}
	return errors.Join(a.remote.drop(uuid), dropDisks(a.journal, remoteBucket, all))
}

// settleRemote ends a move's part in the disks that it has left behind: the VM is
// here, or they go.
func (a *Agent) settleRemote(move, uuid string, arrived bool) error {
	all, err := disksIn[remoteDisk](a.journal, remoteBucket, uuid)
	if err != nil {
		return err
	}
	all = slices.DeleteFunc(all, func(d remoteDisk) bool { return d.Move != move || d.Arrived })
	switch {
	case len(all) == 0:
		return nil
	case !arrived:
		return a.forgetRemote(uuid)
	}
	for i := range all {
		all[i].Arrived = true
	}
	return putDisks(a.journal, remoteBucket, all, func(remoteDisk) error { return nil })
}

// elsewhere is a definition as it is at the destination: attached to another
// segment, or to disks that stay here.
func (f *flight) elsewhere(def driver.Definition) (driver.Definition, error) {
	def, err := f.a.retargeted(def, f.msg.GetRetarget())
	if err != nil {
		return nil, err
	}
	return f.a.remoteRetarget(def, f.msg.GetRemote())
}

// remoteRetarget has a definition name the sockets at which disks are.
func (a *Agent) remoteRetarget(def driver.Definition, disks []*droverv1.RemoteDisk) (driver.Definition, error) {
	if len(disks) == 0 {
		return def, nil
	}
	g, err := a.needGuests()
	if err != nil {
		return nil, err
	}
	var to driver.Retarget
	for _, d := range disks {
		to.Disks = append(to.Disks, driver.RetargetDisk{Target: d.GetTarget(), Socket: d.GetSocket()})
	}
	return g.Retarget(def, to)
}

// Kinds of what stands on a host for disks that were left behind.
const (
	ownedLent   = "left-disk"   // here, its VM elsewhere
	ownedRemote = "remote-disk" // elsewhere, its VM here
)

// ownedDisks are the two ends that are here.
func (a *Agent) ownedDisks() ([]*droverv1.OwnedThing, error) {
	lent, err := disksIn[lentDisk](a.journal, lentBucket, "")
	var list []*droverv1.OwnedThing
	for _, d := range lent {
		list = append(list, &droverv1.OwnedThing{
			Kind: ownedLent, Owner: string(driver.VMOwner(d.VMUUID)), What: "disk " + d.Target + " of vm " + d.VM + ", lent to " + d.Peer + " (the image stays): " + d.Path,
		})
	}
	remote, rerr := disksIn[remoteDisk](a.journal, remoteBucket, "")
	for _, d := range remote {
		list = append(list, &droverv1.OwnedThing{
			Kind: ownedRemote, Owner: string(driver.VMOwner(d.VMUUID)), What: "way to disk " + d.Target + " of vm " + d.VM + " at " + d.PeerHost, At: a.config.Site,
		})
	}
	return list, errors.Join(err, rerr)
}

// removeDisks ends what is here of a VM's disks that were left behind. Images stay.
func (a *Agent) removeDisks(ctx context.Context, owner driver.Owner, kind string) error {
	uuid, ok := owner.VM()
	if !ok {
		return drover.Errorf(drover.Invalid, "owner", "%q: want vm/UUID for a disk", string(owner))
	}
	if kind == ownedLent {
		return a.endLent(uuid)
	}
	vms, err := a.hyp.List(ctx)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(vms, func(vm drover.VM) bool { return vm.UUID == uuid }) {
		return drover.Errorf(drover.Refused, "remove the way to a disk", "its vm is on host %s", a.config.Name)
	}
	return a.forgetRemote(uuid)
}
