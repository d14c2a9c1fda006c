package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/wan"
)

// lent are the disks here that VMs at other hosts work on.
//
//	lend-disks ─▶ lent: connections are taken, requests wait
//	              the VM is given up here: requests are carried out
//	release    ─▶ kept, until a move of the disks brings them to the VM
//
// An image is opened for the first request, when nobody here has it any more. QEMU's
// lock on it stands behind this agent's word: two writers cannot have it open.
type lent struct {
	a *Agent

	mu     sync.Mutex
	shares map[string]*wan.SharedDisk // by key
}

// serve has a connection of another agent to a disk.
func (l *lent) serve(ctx context.Context, peer, name string, conn net.Conn) {
	share, err := l.share(peer, name)
	if err == nil {
		err = share.Serve(ctx, conn)
	} else {
		_ = conn.Close()
	}
	if err != nil && ctx.Err() == nil {
		l.a.log.Info("session with a disk that was left here has ended", "disk", name, "peer", peer, "err", err)
	}
}

// share finds what serves a disk to that agent.
func (l *lent) share(peer, name string) (*wan.SharedDisk, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	all, err := disksIn[lentDisk](l.a.journal, lentBucket, "")
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(all, func(d lentDisk) bool { return d.key() == name })
	if i < 0 || all[i].Peer != peer {
		return nil, drover.Errorf(drover.Refused, "disk "+name, "it is not lent to %s", peer)
	}
	d := all[i]
	if s := l.shares[name]; s != nil {
		return s, nil
	}
	if l.shares == nil {
		l.shares = make(map[string]*wan.SharedDisk)
	}
	s := l.a.wan.NewSharedDisk(int64(d.VirtualBytes), func(ctx context.Context) (driver.ImageWriter, error) {
		if err := l.a.mayLend(d); err != nil {
			return nil, err
		}
		return l.a.volumes.OpenWrite(ctx, d.Path)
	})
	l.shares[name] = s
	return s, nil
}

// mayLend says whether the VM has been given up here. From then on only the host
// that accepts it asks for anything.
func (a *Agent) mayLend(d lentDisk) error {
	all, err := disksIn[lentDisk](a.journal, lentBucket, d.VMUUID)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(all, func(x lentDisk) bool { return x.key() == d.key() && x.Move == d.Move })
	if i < 0 {
		return drover.Errorf(drover.Refused, "", "it is not lent any more")
	}
	if all[i].Kept {
		return nil
	}
	r, err := a.journal.move(d.Move)
	if err != nil {
		return err
	}
	if r != nil && r.Out != nil && slices.Contains([]string{outGivenUp, outAccepted, outMoved}, r.Out.State) {
		return nil
	}
	return drover.Errorf(drover.Refused, "", "vm %s has not left yet", d.VM)
}

// stop ends the sessions of a VM's disks and closes the images.
func (l *lent) stop(uuid string) error {
	l.mu.Lock()
	var mine []*wan.SharedDisk
	for key, s := range l.shares {
		if uuid == "" || key[:min(len(key), len(uuid)+1)] == uuid+"/" {
			mine = append(mine, s)
			delete(l.shares, key)
		}
	}
	l.mu.Unlock()
	var err error
	for _, s := range mine {
		err = errors.Join(err, s.Close())
	}
	return err
}

// lendDisks lets the move's destination work on disks here.
func (a *Agent) lendDisks(ctx context.Context, _ *job, ref moveRef, m *droverv1.LendDisks) (*droverv1.RunResult, error) {
	op := "lend disks of vm " + ref.vm
	if err := errors.Join(a.needHypervisor(), drover.CheckName("peer_host", m.GetPeerHost())); err != nil {
		return nil, err
	}
	r, err := a.sourceRecord(ref)
	if err != nil {
		return nil, err
	}
	var disks []lentDisk
	for _, p := range m.GetDisks() {
		i := slices.IndexFunc(r.Disks, func(d drover.Disk) bool { return d.Target == p.GetTarget() })
		if i < 0 || r.Disks[i].Shared || r.Disks[i].ReadOnly {
			return nil, drover.Errorf(drover.Invalid, op, "disk %q: want one of the vm's own, to which it writes", p.GetTarget())
		}
		v, err := a.volumes.Volume(ctx, r.Disks[i].Path)
		if err != nil {
			return nil, err
		}
		disks = append(disks, lentDisk{
			Move: ref.move, VM: ref.vm, VMUUID: ref.uuid, Target: p.GetTarget(), Peer: m.GetPeerHost(),
			Path: r.Disks[i].Path, Format: v.Format, VirtualBytes: v.VirtualBytes,
		})
	}
	return resultNow(), putDisks(a.journal, lentBucket, disks, func(old lentDisk) error {
		if old.Move != ref.move {
			return drover.Errorf(drover.Exists, op, "disk %s is lent to %s by move %s already", old.Target, old.Peer, old.Move)
		}
		return nil
	})
}

// reclaimDisks undoes lendDisks, where the VM has not left.
func (a *Agent) reclaimDisks(_ context.Context, _ *job, ref moveRef, _ *droverv1.ReclaimDisks) (*droverv1.RunResult, error) {
	r, err := a.journal.move(ref.move)
	if err != nil {
		return nil, err
	}
	if r != nil && r.Out != nil && r.Out.State != outEnded {
		return nil, drover.Errorf(drover.Refused, "reclaim disks of vm "+ref.vm, "its transfer is %q: the guest may be at %s", r.Out.State, r.Peer)
	}
	return resultNow(), a.takeDisksBack(ref.move, ref.uuid)
}

// takeDisksBack forgets what a move has lent.
func (a *Agent) takeDisksBack(move, uuid string) error {
	all, err := disksIn[lentDisk](a.journal, lentBucket, uuid)
	if err != nil {
		return err
	}
	all = slices.DeleteFunc(all, func(d lentDisk) bool { return d.Move != move || d.Kept })
	if len(all) == 0 {
		return nil
	}
	return errors.Join(dropDisks(a.journal, lentBucket, all), a.lent.stop(uuid))
}

// keepLent makes what a move has lent outlive it: its VM is gone from here.
func (a *Agent) keepLent(move, uuid string) error {
	all, err := disksIn[lentDisk](a.journal, lentBucket, uuid)
	if err != nil {
		return err
	}
	all = slices.DeleteFunc(all, func(d lentDisk) bool { return d.Move != move || d.Kept })
	if len(all) == 0 {
		return nil
	}
	for i := range all {
		all[i].Kept = true
	}
	return putDisks(a.journal, lentBucket, all, func(lentDisk) error { return nil })
}

// reserveLent admits a move of disks that a VM has left here, and returns them.
func (a *Agent) reserveLent(op string, ref moveRef) ([]drover.Disk, error) {
	old, err := a.journal.move(ref.move)
	if err != nil {
		return nil, err
	}
	if old != nil {
		return old.Disks, nil // they may be gone already
	}
	all, err := disksIn[lentDisk](a.journal, lentBucket, ref.uuid)
	if err != nil {
		return nil, err
	}
	var disks []drover.Disk
	for _, d := range all {
		if !d.Kept {
			return nil, drover.Errorf(drover.Refused, op, "move %s has not left disk %s for good", d.Move, d.Target)
		}
		disks = append(disks, drover.Disk{Target: d.Target, Path: d.Path, Format: d.Format, VirtualBytes: d.VirtualBytes})
	}
	if len(disks) == 0 {
		return nil, drover.Errorf(drover.NotFound, op, "host %s has no disk of it", a.config.Name)
	}
	return disks, nil
}

// endLent ends the lending of a VM's disks, which has other ones now.
func (a *Agent) endLent(uuid string) error {
	if err := a.lent.stop(uuid); err != nil {
		return fmt.Errorf("close the images that were lent: %w", err)
	}
	all, err := disksIn[lentDisk](a.journal, lentBucket, uuid)
	if err != nil {
		return err
	}
	return dropDisks(a.journal, lentBucket, all)
}
