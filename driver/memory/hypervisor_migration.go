package memory

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// outgoing is the source's half. Its fields are guarded by the fleet's lock.
type outgoing struct {
	h      *Hypervisor
	g      *guest
	spec   driver.MigrationSpec
	offer  driver.Offer
	stored drover.VM // for the destination's next start
	phase  outgoingPhase
	dead   bool // its client has crashed: nothing it does counts any more
	broken bool // the transfer broke
	cancel context.CancelFunc
	ended  chan struct{}
	began  time.Time
	stats  driver.MigrationStats
}

type outgoingPhase int

const (
	begun outgoingPhase = iota
	performing
	performed
	stays
	gone
)

// incoming is the destination's half.
type incoming struct {
	h        *Hypervisor
	g        *guest
	spec     driver.MigrationSpec
	cookie   string
	from     *outgoing
	known    bool // defined here before, as
	before   drover.VM
	complete bool // everything has arrived
	dead     bool // what was received is destroyed
	arrived  bool
	unsure   bool // a Finish failed with drover.Unknown
}

var (
	_ driver.Outgoing = (*outgoing)(nil)
	_ driver.Incoming = (*incoming)(nil)
)

// Begin opens the migration at its source.
func (h *Hypervisor) Begin(ctx context.Context, name string, spec driver.MigrationSpec) (driver.Outgoing, error) {
	var o *outgoing
	op := "begin migration of " + name
	var stored drover.VM
	if len(spec.Persistent) > 0 {
		var err error
		if stored, err = parseDefinition(spec.Persistent); err != nil {
			return nil, drover.E(drover.Invalid, op, err)
		}
	}
	err := h.call(ctx, "begin", name, func() error {
		g, err := h.find(op, name)
		switch {
		case err != nil:
			return err
		case g.state != drover.VMRunning:
			return drover.Errorf(drover.Refused, op, "it is %s; only a running vm can be moved live", g.state)
		case g.sending != nil:
			return drover.Errorf(drover.Refused, op, "it is being migrated already")
		}
		switch {
		case len(spec.Persistent) == 0:
			stored = clone(g.stored())
		case stored.Name != name || stored.UUID != g.vm.UUID:
			return drover.Errorf(drover.Invalid, op, "the definition to be stored is of vm %s (%s)", stored.Name, stored.UUID)
		}
		h.fleet.serial++
		cookie := fmt.Sprintf("out-%d", h.fleet.serial)
		spec.Name = name
		o = &outgoing{
			h: h, g: g, spec: spec, stored: stored, ended: make(chan struct{}), began: h.fleet.clock(),
			offer: driver.Offer{Definition: NewDefinition(g.vm), Cookie: []byte(cookie)},
		}
		g.sending = o
		h.fleet.sending[cookie] = o
		return nil
	})
	if err != nil {
		if o != nil {
			_ = o.Close()
		}
		return nil, err
	}
	return o, nil
}

func (o *outgoing) Offer() driver.Offer { return o.offer }

// Perform calls the fleet's Transfer and then pauses the guest.
func (o *outgoing) Perform(ctx context.Context, prepared []byte) ([]byte, error) {
	f, op := o.h.fleet, "perform migration of "+o.spec.Name
	if err := ctx.Err(); err != nil {
		return nil, o.stay(drover.E(drover.Canceled, op, err))
	}
	if err := f.strike(o.h.host.Name, "perform", o.spec.Name, Before); err != nil {
		return nil, o.stay(err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f.mu.Lock()
	to := f.receiving[string(prepared)]
	switch {
	case o.dead || o.h.down:
		f.mu.Unlock()
		return nil, drover.Errorf(drover.Unavailable, op, "the manager of %s does not answer", o.h.host.Name)
	case o.phase != begun:
		f.mu.Unlock()
		return nil, drover.Errorf(drover.Refused, op, "this migration has been performed or closed already")
	case to == nil || to.dead || to.from != o:
		f.mu.Unlock()
		return nil, o.stay(drover.Errorf(drover.Internal, op, "the destination does not listen"))
	}
	o.phase, o.cancel = performing, cancel
	transfer := f.transfer
	f.mu.Unlock()
	defer close(o.ended)

	var err error
	if transfer != nil {
		err = transfer(ctx, o.spec.Name, o.h.host.Name, to.h.host.Name)
	}
	f.mu.Lock()
	cookie, err := o.arrive(ctx, to, err)
	f.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if err := f.strike(o.h.host.Name, "perform", o.spec.Name, After); err != nil {
		if drover.KindOf(err) == drover.Unknown {
			return nil, err
		}
		return nil, o.stay(err)
	}
	return cookie, nil
}

// arrive ends the transfer: the guest is paused, or runs on. The lock is held.
func (o *outgoing) arrive(ctx context.Context, to *incoming, err error) ([]byte, error) {
	f, op := o.h.fleet, "perform migration of "+o.spec.Name
	o.cancel = nil
	switch {
	case o.dead || o.broken:
		err = drover.Errorf(drover.Unavailable, op, "the transfer broke")
	case ctx.Err() != nil:
		err = drover.E(drover.Canceled, op, ctx.Err())
	case err == nil && to.dead:
		err = drover.Errorf(drover.Internal, op, "the destination went away")
	case err == nil && o.g.state != drover.VMRunning:
		err = drover.Errorf(drover.Internal, op, "the guest has stopped meanwhile")
	}
	if err != nil {
		o.phase = stays
		o.forget()
		var known *drover.Error
		if errors.As(err, &known) {
			return nil, err
		}
		return nil, drover.E(drover.Internal, op, err)
	}
	f.set(o.h, o.g, drover.VMPaused, "suspended")
	for _, disk := range o.g.vm.Disks {
		if slices.Contains(o.spec.CopyDisks, disk.Target) {
			f.disks[imageOf(to.h.host.Name, o.g.vm, disk)] = f.disks[imageOf(o.h.host.Name, o.g.vm, disk)]
			o.stats.DiskTotalBytes += disk.VirtualBytes
		}
		if there := remoteImage(to.g.vm, disk.Target); o.spec.DisksStay && there != nil {
			f.disks[*there] = f.disks[imageOf(o.h.host.Name, o.g.vm, disk)]
		}
	}
	to.complete = true
	o.phase = performed
	o.stats.Phase = "done"
	o.stats.DiskDoneBytes = o.stats.DiskTotalBytes
	o.stats.MemoryTotalBytes, o.stats.MemoryDoneBytes = o.g.vm.MemoryBytes, o.g.vm.MemoryBytes
	o.stats.Rounds, o.stats.PageBytes = 1, 4*drover.KiB
	o.stats.Elapsed = f.clock().Sub(o.began)
	o.stats.ThrottlePercent = o.throttle()
	return []byte("done " + to.cookie), nil
}

// remoteImage is the image of a VM's disk that is at a socket; nil where it is not.
func remoteImage(vm drover.VM, target string) *image {
	for _, d := range vm.Disks {
		if d.Target == target && d.Path == driver.RemoteDiskPath(target) {
			return new(imageOf("", vm, d))
		}
	}
	return nil
}

// stay gives the migration up with the guest running here, and returns err.
func (o *outgoing) stay(err error) error {
	f := o.h.fleet
	f.mu.Lock()
	defer f.mu.Unlock()
	if o.dead {
		return err
	}
	if o.phase == begun || o.phase == performed {
		o.phase = stays
		o.forget()
		if o.g.state == drover.VMPaused {
			f.set(o.h, o.g, drover.VMRunning, "resumed")
		}
	}
	return err
}

// forget ends the migration's hold on the guest. The lock is held.
func (o *outgoing) forget() {
	if o.g.sending == o {
		o.g.sending = nil
	}
	delete(o.h.fleet.sending, string(o.offer.Cookie))
}

// abort cancels a running transfer. The lock is held.
func (o *outgoing) abort() {
	if o.cancel != nil {
		o.cancel()
	}
}

// Progress returns the figures of an ended Perform; while it runs it only
// knows what is to be moved.
func (o *outgoing) Progress(ctx context.Context) (driver.MigrationStats, error) {
	var stats driver.MigrationStats
	err := o.h.call(ctx, "progress", o.spec.Name, func() error {
		stats = o.stats
		if o.phase == performing {
			stats.Phase = "memory"
			stats.MemoryTotalBytes, stats.MemoryRemainingBytes = o.g.vm.MemoryBytes, o.g.vm.MemoryBytes
			stats.PageBytes = 4 * drover.KiB
			stats.Elapsed = o.h.fleet.clock().Sub(o.began)
			stats.ThrottlePercent = o.throttle()
		}
		return nil
	})
	return stats, err
}

// throttle is by how much the guest is held back. The lock is held.
func (o *outgoing) throttle() int {
	if !o.spec.AutoConverge {
		return 0
	}
	return o.h.fleet.throttle
}

// Confirm ends the migration at the source. As in the real driver the outcome
// is decided: ctx is not heeded.
func (o *outgoing) Confirm(ctx context.Context, _ []byte, moved bool) error {
	op := "confirm migration of " + o.spec.Name
	return o.h.call(context.WithoutCancel(ctx), "confirm", o.spec.Name, func() error {
		f := o.h.fleet
		switch {
		case o.dead:
			return drover.Errorf(drover.Unavailable, op, "its client has crashed")
		case o.phase == performing:
			return drover.Errorf(drover.Refused, op, "the transfer is still running")
		case moved && o.phase == gone, !moved && o.phase == stays:
			return nil
		case moved && o.phase != performed:
			return drover.Errorf(drover.Refused, op, "the guest runs on here: it was not given up")
		case !moved && o.phase == gone:
			return drover.Errorf(drover.Refused, op, "the guest has been given up and is gone here")
		}
		o.forget()
		if !moved {
			o.phase = stays
			f.set(o.h, o.g, drover.VMRunning, "resumed")
			return nil
		}
		o.phase = gone
		f.set(o.h, o.g, drover.VMOff, "migrated")
		if o.h.guests[o.spec.Name] == o.g {
			delete(o.h.guests, o.spec.Name)
		}
		return nil
	})
}

// Close aborts a running Perform; after it the guest stays paused.
func (o *outgoing) Close() error {
	f := o.h.fleet
	f.mu.Lock()
	running := o.phase == performing
	o.abort()
	if o.phase == begun {
		o.phase = stays
	}
	if !running {
		o.forget()
	}
	f.mu.Unlock()
	if running {
		<-o.ended
	}
	return nil
}
