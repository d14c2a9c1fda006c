package libvirt

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

const (
	// sampleInterval is how often statistics are read during Perform, so that
	// what libvirt forgets at the end (the disks' figures) is still known.
	sampleInterval = 250 * time.Millisecond
	// abortInterval is how often an abort is repeated: libvirt refuses it at
	// moments, and the disks' mirror ends at its own pace.
	abortInterval = 200 * time.Millisecond
)

// outgoing is the source's half: its connection is the one that libvirt ties
// the migration to.
type outgoing struct {
	h     *Hypervisor
	log   *slog.Logger
	c     *conn
	dom   golibvirt.Domain
	spec  driver.MigrationSpec
	terms terms
	offer driver.Offer

	mu     sync.Mutex // guards what follows
	phase  outgoingPhase
	cancel context.CancelFunc // of Perform while it runs
	ended  chan struct{}      // closed when Perform has ended
	stats  driver.MigrationStats
}

type outgoingPhase int

const (
	begun outgoingPhase = iota
	performing
	performed // the guest is paused here and everything is at the destination
	stays     // the guest runs on here
	gone
)

var _ driver.Outgoing = (*outgoing)(nil)

// Begin opens the migration at its source. From here to the end libvirt
// refuses to change the VM.
func (h *Hypervisor) Begin(ctx context.Context, name string, spec driver.MigrationSpec) (driver.Outgoing, error) {
	op := "begin migration of " + name
	if spec.Name == "" {
		spec.Name = name
	}
	if err := checkSpec(spec); err != nil {
		return nil, err
	}
	c, err := h.connect(ctx)
	if err != nil {
		return nil, wrap(op, err)
	}
	o := &outgoing{h: h, log: h.log.With("vm", name), c: c, spec: spec, terms: termsOf(spec)}
	type begin struct {
		dom   golibvirt.Domain
		offer driver.Offer
	}
	b, err := do(ctx, c, callLimit, func(rpc *golibvirt.Libvirt) (begin, error) {
		dom, err := rpc.DomainLookupByName(name)
		if err != nil {
			return begin{}, err
		}
		state, reason, err := rpc.DomainGetState(dom, 0)
		if err != nil {
			return begin{}, err
		}
		if s := stateOf(golibvirt.DomainState(state), reason); s != drover.VMRunning {
			return begin{}, drover.Errorf(drover.Refused, "", "it is %s; only a running vm can be moved live", s)
		}
		cookie, text, err := rpc.DomainMigrateBegin3Params(dom, o.terms.params, uint32(o.terms.flags))
		if err != nil {
			return begin{}, err
		}
		err = setMaxPause(rpc, dom, firstPause(spec))
		return begin{dom, driver.Offer{Definition: driver.Definition(text), Cookie: cookie}}, err
	})
	if err != nil {
		h.release(c) // libvirt forgets the migration with its client
		return nil, wrap(op, err)
	}
	o.dom, o.offer = b.dom, b.offer
	h.register(name, o)
	return o, nil
}

func (o *outgoing) Offer() driver.Offer { return o.offer }

// Perform blocks in libvirt for as long as the transfer takes.
func (o *outgoing) Perform(ctx context.Context, prepared []byte) ([]byte, error) {
	op := "perform migration of " + o.spec.Name
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	o.mu.Lock()
	if o.phase != begun {
		o.mu.Unlock()
		return nil, drover.Errorf(drover.Refused, op, "this migration has been performed or closed already")
	}
	o.phase, o.cancel, o.ended = performing, cancel, make(chan struct{})
	o.mu.Unlock()

	cookie, err := o.transfer(ctx, prepared)
	next := performed
	if err != nil {
		next = stays
		o.h.release(o.c) // libvirt's side of the migration has ended
		kind := kindOf(err)
		if ctx.Err() != nil {
			kind = drover.Canceled
		}
		switch keepErr := o.h.keepRunning(ctx, o.spec.Name); {
		case errors.Is(keepErr, errStopped):
			err = drover.E(kind, op, errors.Join(err, keepErr))
		case keepErr != nil:
			err = drover.E(drover.Unknown, op, errors.Join(err, keepErr))
		default:
			err = drover.E(kind, op, err)
		}
	}
	o.mu.Lock()
	o.phase, o.cancel = next, nil
	close(o.ended)
	o.mu.Unlock()
	return cookie, err
}

// transfer runs libvirt's Perform beside the abort that a canceled ctx asks
// for, and samples its statistics.
func (o *outgoing) transfer(ctx context.Context, prepared []byte) ([]byte, error) {
	lasting := context.WithoutCancel(ctx)
	sampling, stop := context.WithCancel(lasting)
	var cookie []byte
	var err error
	ended := make(chan struct{})
	var helpers sync.WaitGroup
	helpers.Go(func() {
		defer close(ended)
		cookie, err = do(lasting, o.c, 0, func(rpc *golibvirt.Libvirt) ([]byte, error) {
			return rpc.DomainMigratePerform3Params(o.dom, nil, o.terms.params, prepared, o.terms.flags)
		})
	})
	helpers.Go(func() {
		mirrors, rounds := mirrorWatch{}, newRoundWatch(o.spec)
		for pause(sampling, sampleInterval) == nil {
			if s, err := o.sample(sampling); err == nil {
				o.help(sampling, s, &mirrors, rounds)
			}
		}
	})
	select {
	case <-ended:
	case <-ctx.Done():
		o.abort(lasting, ended)
	}
	stop()
	helpers.Wait()
	if err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		// All was across before the abort took effect: the guest is given back.
		return nil, errors.Join(ctx.Err(), o.confirm(lasting, nil, false))
	}
	o.finalStats(lasting)
	return cookie, nil
}

// abort asks libvirt to end the transfer until it has ended. QEMU waits for the
// answers to writes that a disk's mirror has under way, so a relay over a dead
// link has to end its connections too. What has not ended within settleLimit
// loses its connection to libvirt.
func (o *outgoing) abort(ctx context.Context, ended <-chan struct{}) {
	o.log.InfoContext(ctx, "aborting the transfer")
	hung := time.AfterFunc(settleLimit, o.c.drop)
	defer hung.Stop()
	tick := time.NewTicker(abortInterval)
	defer tick.Stop()
	for {
		// Refusals are expected: the migration may just be starting or ending.
		_, err := ask(ctx, o.h, "abort migration of "+o.spec.Name, func(rpc *golibvirt.Libvirt) (bool, error) {
			return abortTransfer(rpc, o.dom)
		})
		if err != nil {
			o.log.DebugContext(ctx, "abort", "err", err)
		}
		select {
		case <-ended:
			return
		case <-tick.C:
		}
	}
}

// Progress returns libvirt's figures while Perform runs, and the last known
// ones otherwise.
func (o *outgoing) Progress(ctx context.Context) (driver.MigrationStats, error) {
	o.mu.Lock()
	phase, stats := o.phase, o.stats
	o.mu.Unlock()
	if phase != performing {
		return stats, nil
	}
	return o.sample(ctx)
}

// sample reads the running job's statistics.
func (o *outgoing) sample(ctx context.Context) (driver.MigrationStats, error) {
	stats, err := ask(ctx, o.h, "read progress of "+o.spec.Name, func(rpc *golibvirt.Libvirt) (driver.MigrationStats, error) {
		_, params, err := rpc.DomainGetJobStats(o.dom, 0)
		if err != nil {
			return driver.MigrationStats{}, err
		}
		stats := statsOf(params)
		stats.Pause = 0 // until the end this is what QEMU expects, not what it measured
		state, _, err := rpc.DomainGetState(o.dom, 0)
		stats.Phase = phaseOf(stats, err == nil && golibvirt.DomainState(state) == golibvirt.DomainPaused)
		return stats, err
	})
	if err != nil {
		return driver.MigrationStats{}, err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.phase == performing {
		o.stats = stats
	}
	return stats, nil
}

// finalStats reads the job's statistics once more after Perform; libvirt
// keeps them, with the disks' and the pause so far, until Confirm. They are
// worth a call, not the migration: a failure leaves the last sample.
func (o *outgoing) finalStats(ctx context.Context) {
	stats, err := do(ctx, o.c, callLimit, func(rpc *golibvirt.Libvirt) (driver.MigrationStats, error) {
		_, params, err := rpc.DomainGetJobStats(o.dom, 0)
		return statsOf(params), err
	})
	if err != nil {
		o.log.WarnContext(ctx, "no final statistics of the migration", "err", err)
		return
	}
	stats.Phase = "done"
	o.mu.Lock()
	defer o.mu.Unlock()
	o.stats = stats
}

// Confirm ends the migration. When libvirt does not manage it, or has
// forgotten the migration, the same end is reached by Settle.
func (o *outgoing) Confirm(ctx context.Context, cookie []byte, moved bool) error {
	op := "confirm migration of " + o.spec.Name
	finish, err := decodeFinishCookie(cookie)
	if err != nil {
		return wrap(op, err)
	}
	o.mu.Lock()
	phase := o.phase
	if phase == performed && finish.PauseMillis > 0 {
		o.stats.Pause = time.Duration(finish.PauseMillis * float64(time.Millisecond))
	}
	o.mu.Unlock()
	switch {
	case phase == performing:
		return drover.Errorf(drover.Refused, op, "the transfer is still running")
	case moved && phase == gone, !moved && phase == stays:
		return nil
	case moved && phase != performed:
		return drover.Errorf(drover.Refused, op, "the guest runs on here: it was not given up")
	case !moved && phase == gone:
		return drover.Errorf(drover.Refused, op, "the guest has been given up and is gone here")
	}
	// The outcome is decided: a caller who gives up now must not leave the
	// guest paused.
	ctx = context.WithoutCancel(ctx)
	if phase == performed {
		err = o.confirm(ctx, finish.Libvirt, moved)
	} else {
		o.h.release(o.c)
	}
	settlement, next := driver.SettleResume, stays
	if moved {
		settlement, next = driver.SettleGone, gone
	}
	if err != nil {
		o.log.WarnContext(ctx, "libvirt did not confirm, settling the vm", "moved", moved, "err", err)
		o.h.release(o.c)
	}
	if err := o.h.settle(ctx, o.spec.Name, settlement); err != nil {
		return wrap(op, err)
	}
	o.mu.Lock()
	o.phase = next
	o.mu.Unlock()
	return nil
}

func (o *outgoing) confirm(ctx context.Context, cookie []byte, moved bool) error {
	canceled := int32(1)
	if moved {
		canceled = 0
	}
	_, err := do(ctx, o.c, callLimit, func(rpc *golibvirt.Libvirt) (struct{}, error) {
		return struct{}{}, rpc.DomainMigrateConfirm3Params(o.dom, o.terms.params, cookie, uint32(o.terms.flags), canceled)
	})
	return err
}

// Close aborts a running Perform and waits for it. After Perform the guest
// stays paused, for whoever knows the destination's word.
func (o *outgoing) Close() error {
	o.mu.Lock()
	cancel, ended := o.cancel, o.ended
	if o.phase == begun {
		o.phase = stays
	}
	o.mu.Unlock()
	if cancel != nil {
		cancel()
		<-ended
	}
	o.h.deregister(o.spec.Name, o)
	o.h.release(o.c)
	return nil
}
