package agent

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/driver"
)

// Disks that a VM has left behind come while it runs: the hypervisor copies each into
// a volume here, until both are the same and stay so, and then has the guest go on
// with the volumes (driver.DiskCopier). From the first of them that it goes on with
// there is only forward: the two hosts have a part of its disks each.
//
//	begun ─▶ (all copies ready) ─▶ pivoting ─▶ brought
//	  └─▶ ended

// The states of a bring.
const (
	bringBegun    = "begun"
	bringEnded    = "ended"    // and nothing has changed
	bringPivoting = "pivoting" // the guest may go on with some of them
	bringBrought  = "brought"  // it does with all, after its next start too
)

// bringRecord is what the journal keeps of it.
type bringRecord struct {
	State string       `json:"state"`
	Bytes drover.Bytes `json:"bytes,omitempty"`
}

func (b *bringRecord) is(state string) bool { return b != nil && b.State == state }

func (b *bringRecord) result() *droverv1.RunResult {
	return &droverv1.RunResult{Moved: true, DiskBytes: int64(b.Bytes)}
}

const (
	// bringEvery is how often the copies are looked at.
	bringEvery = 500 * time.Millisecond
	// bringEndLimit bounds the end of copies that are not wanted any more.
	bringEndLimit = time.Minute
)

// reserveBring admits a move of disks to the VM that is here.
func (a *Agent) reserveBring(ctx context.Context, op string, ref moveRef) error {
	vm, err := a.vmHere(ctx, ref)
	if err != nil {
		return err
	}
	old, err := a.journal.move(ref.move)
	if err != nil || old != nil {
		return err // repeated after the disks may have come
	}
	if vm.State != drover.VMRunning {
		return drover.Errorf(drover.Refused, op, "it is %s: its disks come while it runs, start it", vm.State)
	}
	return nil
}

// bringDisks copies disks here and has the guest go on with the copies.
func (a *Agent) bringDisks(ctx context.Context, j *job, ref moveRef, m *droverv1.BringDisks) (*droverv1.RunResult, error) {
	op := "bring disks of vm " + ref.vm
	if _, err := a.needGuests(); err != nil {
		return nil, err
	}
	r, err := a.targetRecord(ref)
	switch {
	case err != nil:
		return nil, err
	case !r.DisksOnly:
		return nil, drover.Errorf(drover.Refused, op, "move %s is not one of disks", ref.move)
	case r.Bring.is(bringBrought):
		return r.Bring.result(), nil
	case r.Bring.is(bringPivoting):
		return a.finishBring(ctx, ref)
	case ref.generation <= r.RefusedGeneration:
		return nil, drover.Errorf(drover.Refused, op, "generation %d was given up", ref.generation)
	}
	b := &bringing{a: a, j: j, ref: ref, disks: m.GetDisks(), rate: drover.BitRate(m.GetBandwidthBps())}
	if err := b.setState(bringBegun); err != nil {
		return nil, err
	}
	if err := b.copy(ctx); err != nil {
		return nil, err
	}
	// From here on a wish to end comes too late.
	if err := b.setState(bringPivoting); err != nil {
		return nil, err
	}
	return a.finishBring(context.WithoutCancel(ctx), ref)
}

// bringing is one run of bringDisks up to the pivot.
type bringing struct {
	a     *Agent
	j     *job
	ref   moveRef
	disks []*droverv1.DiskPlan
	bytes drover.Bytes

	mu      sync.Mutex
	rate    drover.BitRate
	changed bool // and the hypervisor has not been told
}

func (b *bringing) setState(state string) error {
	return b.a.journal.update(b.ref.move, "bring "+state, func(r *record) error {
		if err := r.fence(b.ref); err != nil {
			return err
		}
		if b.ref.generation <= r.RefusedGeneration {
			return drover.Errorf(drover.Refused, "bring disks", "it was given up meanwhile")
		}
		r.Bring = &bringRecord{State: state, Bytes: b.bytes}
		return nil
	})
}

// share is each disk's part of the rate.
func (b *bringing) share(rate drover.BitRate) drover.BitRate {
	if rate <= 0 || len(b.disks) == 0 {
		return 0
	}
	return max(1, rate/drover.BitRate(len(b.disks)))
}

// setRate is taken up by the next look.
func (b *bringing) setRate(rate drover.BitRate) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rate, b.changed = rate, true
}

// pace tells the hypervisor of a rate that was changed.
func (b *bringing) pace(ctx context.Context) {
	b.mu.Lock()
	rate, changed := b.rate, b.changed
	b.changed = false
	b.mu.Unlock()
	if !changed {
		return
	}
	for _, d := range b.disks {
		if err := b.a.hyp.SetDiskCopyRate(ctx, b.ref.vm, d.GetTarget(), b.share(rate)); err != nil {
			b.j.log.Warn("the rate of a disk's copy is not changed", "disk", d.GetTarget(), "err", err)
		}
	}
}

// copy begins the copies, or finds them, and returns when all are ready.
func (b *bringing) copy(ctx context.Context) error {
	for _, d := range b.disks {
		c := driver.DiskCopy{Target: d.GetTarget(), Path: d.GetPath(), Format: d.GetFormat(), Rate: b.share(b.rate)}
		if err := b.a.hyp.CopyDisk(ctx, b.ref.vm, c); err != nil {
			return err
		}
	}
	defer b.a.flights.set(b.ref.move, b.setRate)()
	last, lastAt := drover.Bytes(0), b.a.clock()
	for {
		b.pace(ctx)
		ready, p, err := b.look(ctx)
		if err != nil {
			return err
		}
		now := b.a.clock()
		if took := now.Sub(lastAt).Seconds(); took > 0 && last > 0 {
			p.Rate = drover.BitRate(float64(p.DoneBytes-last) * 8 / took)
			if p.Rate > 0 {
				p.ETASeconds = float64(p.TotalBytes-p.DoneBytes) * 8 / float64(p.Rate)
			}
		}
		last, lastAt = p.DoneBytes, now
		b.j.report(now, p)
		if ready {
			b.bytes = p.TotalBytes
			return nil
		}
		if err := sleep(ctx, bringEvery, nil); err != nil {
			return drover.E(drover.Canceled, "bring disks of vm "+b.ref.vm, context.Cause(ctx))
		}
	}
}

// look reads how far all copies are.
func (b *bringing) look(ctx context.Context) (ready bool, p drover.Progress, err error) {
	ready, p = true, drover.Progress{Phase: "disk", ETASeconds: -1}
	for _, d := range b.disks {
		s, err := b.a.hyp.DiskCopyState(ctx, b.ref.vm, d.GetTarget())
		if err != nil {
			if drover.KindOf(err) == drover.NotFound {
				// It has no retry: the volume may be full, or the VM off.
				err = drover.Errorf(drover.Refused, "", "the copy of disk %s has ended before it was ready: see the VM's log on host %s", d.GetTarget(), b.a.config.Name)
			}
			return false, p, err
		}
		p.DoneBytes += s.DoneBytes
		p.TotalBytes += s.TotalBytes
		ready = ready && s.Ready
	}
	return ready, p, nil
}

// finishBring has the guest go on with the volumes, each, and its definition too.
func (a *Agent) finishBring(ctx context.Context, ref moveRef) (*droverv1.RunResult, error) {
	op := "bring disks of vm " + ref.vm
	r, err := a.targetRecord(ref)
	if err != nil {
		return nil, err
	}
	any := false
	for _, v := range r.Volumes {
		here, err := a.pivotDisk(ctx, ref, v, any)
		if err != nil {
			if !any && !here && drover.KindOf(err) == drover.NotFound {
				// The copies went with the VM's execution, and none was gone on with.
				return nil, errors.Join(drover.Errorf(drover.Refused, op, "the copy of disk %s was lost: %w", v.Target, err), a.endBring(ctx, ref))
			}
			return nil, drover.E(drover.Unavailable, op, err)
		}
		any = true
	}
	if err := a.defineBrought(ctx, ref, r.Volumes); err != nil {
		return nil, drover.E(drover.Unavailable, op, err)
	}
	var done *bringRecord
	err = a.journal.update(ref.move, "brought", func(r *record) error {
		r.Bring.State = bringBrought
		r.Volumes = nil // the VM's from here on
		done = r.Bring
		return nil
	})
	if err != nil {
		return nil, drover.E(drover.Unavailable, op, err)
	}
	return done.result(), nil
}

// pivotDisk has the guest go on with one volume; here says that it does. Where
// others were gone on with already (forward) a copy that was lost is made again.
func (a *Agent) pivotDisk(ctx context.Context, ref moveRef, v volumeRecord, forward bool) (here bool, err error) {
	vm, err := a.vmHere(ctx, ref)
	if err != nil {
		return true, err // nothing can be said, so nothing is given up
	}
	is := func(vm drover.VM) bool {
		return slices.ContainsFunc(vm.Disks, func(d drover.Disk) bool { return d.Target == v.Target && d.Path == v.Spec.Path })
	}
	if is(vm) {
		return true, nil
	}
	if forward {
		c := driver.DiskCopy{Target: v.Target, Path: v.Spec.Path, Format: v.Spec.Format}
		if err := a.hyp.CopyDisk(ctx, ref.vm, c); err != nil {
			return false, err
		}
		for {
			s, err := a.hyp.DiskCopyState(ctx, ref.vm, v.Target)
			if err != nil {
				return false, err
			}
			if s.Ready {
				break
			}
			if err := sleep(ctx, bringEvery, nil); err != nil {
				return false, err
			}
		}
	}
	if err := a.hyp.EndDiskCopy(ctx, ref.vm, v.Target, true); err != nil {
		return false, err
	}
	if vm, err = a.vmHere(ctx, ref); err != nil {
		return true, err
	}
	if !is(vm) {
		return true, drover.Errorf(drover.Unavailable, "", "disk %s is not at %s", v.Target, v.Spec.Path)
	}
	return true, nil
}

// defineBrought sees to it that the VM's next start is with the volumes, too.
func (a *Agent) defineBrought(ctx context.Context, ref moveRef, volumes []volumeRecord) error {
	g, err := a.needGuests()
	if err != nil {
		return err
	}
	def, err := a.hyp.Definition(ctx, ref.vm)
	if err != nil {
		return err
	}
	var to driver.Retarget
	for _, v := range volumes {
		to.Disks = append(to.Disks, driver.RetargetDisk{Target: v.Target, Path: v.Spec.Path, Format: v.Spec.Format})
	}
	changed, err := g.Retarget(def, to)
	if err != nil || bytes.Equal(changed, def) {
		return err
	}
	_, err = a.hyp.Define(ctx, changed)
	return err
}

// endBring drops the copies: the guest goes on with the disks where they are.
func (a *Agent) endBring(ctx context.Context, ref moveRef) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), bringEndLimit)
	defer cancel()
	r, err := a.journal.move(ref.move)
	if err != nil || r == nil {
		return err
	}
	for _, v := range r.Volumes {
		s, err := a.hyp.DiskCopyState(ctx, ref.vm, v.Target)
		if err == nil && s.Path == v.Spec.Path {
			err = a.hyp.EndDiskCopy(ctx, ref.vm, v.Target, false)
		}
		if err != nil && drover.KindOf(err) != drover.NotFound {
			return err
		}
	}
	return a.journal.update(ref.move, "bring ended", func(r *record) error {
		r.Bring = &bringRecord{State: bringEnded}
		return nil
	})
}

// abortBring makes sure that no disk is being brought, or brings them to the end.
func (a *Agent) abortBring(ctx context.Context, _ *job, ref moveRef, _ *droverv1.AbortBring) (*droverv1.RunResult, error) {
	r, err := a.journal.move(ref.move)
	if err != nil {
		return nil, err
	}
	if r == nil {
		s, err := a.journal.stone(ref.move)
		return &droverv1.RunResult{Moved: s != nil && s.Accepted}, err
	}
	if r.Bring.is(bringPivoting) {
		res, err := a.finishBring(ctx, ref)
		if drover.KindOf(err) != drover.Refused || err == nil {
			return res, err
		}
	}
	if r.Bring.is(bringBrought) {
		return r.Bring.result(), nil
	}
	err = a.journal.update(ref.move, "bring refused", func(r *record) error {
		r.RefusedGeneration = max(r.RefusedGeneration, ref.generation)
		return r.fence(ref)
	})
	if err != nil {
		return nil, err
	}
	return resultNow(), a.endBring(ctx, ref)
}
