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

// cleanGrace bounds the cleaning up that a failed Prepare or Finish waits for:
// longer than libvirt needs to end a receiving QEMU, or to be told to; no longer
// than a paused guest should wait to be given back.
const cleanGrace = 2 * settleGrace

// incoming is the destination's half. Libvirt destroys the receiving QEMU when
// its connection closes before Finish.
type incoming struct {
	h        *Hypervisor
	log      *slog.Logger
	c        *conn
	spec     driver.MigrationSpec
	terms    terms
	vm       drover.VM // as offered
	prepared []byte
	// known says that the VM was defined here before, so that the definition
	// outlives an abandoned migration.
	known bool

	mu     sync.Mutex // held for the length of Finish, Abandon and Close
	phase  incomingPhase
	cookie []byte // of a Finish that is done
}

type incomingPhase int

const (
	receiving incomingPhase = iota
	arrived                 // the guest runs here
	abandoned
	unsure // it may run here
)

var _ driver.Incoming = (*incoming)(nil)

// Prepare starts the receiving QEMU. Whatever fails, nothing of it stays.
func (h *Hypervisor) Prepare(ctx context.Context, spec driver.MigrationSpec, offer driver.Offer) (driver.Incoming, error) {
	op := "prepare migration of " + spec.Name
	if err := checkSpec(spec); err != nil {
		return nil, err
	}
	def, err := parseDomain(string(offer.Definition))
	if err != nil {
		return nil, drover.E(drover.Invalid, op, err)
	}
	c, err := h.connect(ctx)
	if err != nil {
		return nil, wrap(op, err)
	}
	in := &incoming{h: h, log: h.log.With("vm", spec.Name), c: c, spec: spec, terms: termsOf(spec), vm: vmOf(def)}
	in.known, err = do(ctx, c, callLimit, func(rpc *golibvirt.Libvirt) (bool, error) {
		if err := taken(rpc, def); err != nil {
			return false, err
		}
		dom, err := rpc.DomainLookupByName(spec.Name)
		if hasCode(err, golibvirt.ErrNoDomain) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		active, err := rpc.DomainIsActive(dom)
		if err == nil && active != 0 {
			err = drover.Errorf(drover.Refused, "", "it is active here already")
		}
		return true, err
	})
	if err != nil {
		h.release(c)
		return nil, wrap(op, err)
	}
	in.prepared, err = do(ctx, c, callLimit, func(rpc *golibvirt.Libvirt) ([]byte, error) {
		params := in.terms.with(stringParam(golibvirt.MigrateParamDestXML, string(offer.Definition)))
		cookie, _, err := rpc.DomainMigratePrepare3Params(params, offer.Cookie, uint32(in.terms.flags))
		return cookie, err
	})
	if err != nil {
		err = wrap(op, err)
		h.release(c)
		brief, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanGrace)
		defer cancel()
		return nil, errors.Join(err, in.clean(brief))
	}
	h.register(spec.Name, in)
	return in, nil
}

func (in *incoming) Prepared() []byte { return in.prepared }

// Finish has two parts: libvirt's Finish makes the guest complete, persistent
// and independent of this connection, still paused; only then is it resumed.
// So a connection that breaks in the first part means that the guest has not
// run here, and one that breaks in the second is retried until the guest is
// seen running. The caller's ctx is heeded before the first part only.
func (in *incoming) Finish(ctx context.Context, cookie []byte) ([]byte, error) {
	op := "finish migration of " + in.spec.Name
	in.mu.Lock()
	defer in.mu.Unlock()
	switch in.phase {
	case arrived:
		return in.cookie, nil
	case abandoned:
		return nil, drover.Errorf(drover.Refused, op, "what was received has been destroyed")
	case unsure:
		return nil, drover.Errorf(drover.Unknown, op, "an earlier finish did not end")
	}
	if err := ctx.Err(); err != nil {
		return nil, wrap(op, err)
	}
	ctx = context.WithoutCancel(ctx)
	type result struct {
		cookie []byte
		stats  driver.MigrationStats
	}
	r, err := do(ctx, in.c, callLimit, func(rpc *golibvirt.Libvirt) (result, error) {
		params := in.terms.with(stringParam(golibvirt.MigrateParamDestName, in.spec.Name))
		dom, cookie, err := rpc.DomainMigrateFinish3Params(params, cookie, uint32(in.terms.flags), 0)
		if err != nil {
			return result{}, err
		}
		_, job, err := rpc.DomainGetJobStats(dom, golibvirt.DomainJobStatsCompleted)
		if err != nil {
			job = nil // figures are not worth a failure
		}
		return result{cookie, statsOf(job)}, nil
	})
	if err != nil {
		// The guest has not run and nobody will resume it, so the source may
		// go on: it must not wait for a manager here that is away. What cannot
		// be cleaned in time is for Close.
		brief, cancel := context.WithTimeout(ctx, cleanGrace)
		defer cancel()
		return nil, errors.Join(wrap(op, err), in.discard(brief))
	}
	began := time.Now()
	if err := in.resume(ctx); err != nil {
		if drover.KindOf(err) == drover.Unknown {
			in.phase = unsure
			return nil, err
		}
		return nil, errors.Join(wrap(op, err), in.discard(ctx))
	}
	in.phase = arrived
	in.end()
	done := finishCookie{Libvirt: r.cookie}
	// Libvirt computes the pause from both hosts' clocks; when they disagree so
	// much that it is negative, the source's own figure has to do.
	if r.stats.Pause > 0 {
		done.PauseMillis = float64(r.stats.Pause+time.Since(began)) / float64(time.Millisecond)
	}
	in.cookie, err = done.encode()
	return in.cookie, wrap(op, err)
}

// resume lets the complete guest run. Its error is drover.Unknown unless it
// is certain that the guest does not run.
func (in *incoming) resume(ctx context.Context) error {
	op := "resume " + in.spec.Name
	ctx, cancel := context.WithTimeout(ctx, settleLimit)
	defer cancel()
	var last error
	for {
		running, err := askDomain(ctx, in.h, "resume", in.spec.Name, func(rpc *golibvirt.Libvirt, dom golibvirt.Domain) (bool, error) {
			resumeErr := rpc.DomainResume(dom)
			state, reason, err := rpc.DomainGetState(dom, 0)
			if err != nil {
				return false, errors.Join(err, resumeErr)
			}
			switch stateOf(golibvirt.DomainState(state), reason) {
			case drover.VMRunning:
				return true, nil
			case drover.VMPaused:
				return false, resumeErr
			}
			return false, drover.Errorf(drover.NotFound, "", "the guest stopped when it was resumed")
		})
		switch {
		case running:
			return nil
		case notFound(err):
			return err
		case err != nil && !drover.KindOf(err).Retryable():
			return err
		}
		last = err
		if waitErr := pause(ctx, pollInterval); waitErr != nil {
			return drover.E(drover.Unknown, op, errors.Join(waitErr, last))
		}
	}
}

// Abandon destroys what was received and waits until it is gone.
func (in *incoming) Abandon(ctx context.Context) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	op := "abandon migration of " + in.spec.Name
	switch in.phase {
	case arrived:
		return drover.Errorf(drover.Refused, op, "the guest has arrived and runs here")
	case unsure:
		return drover.Errorf(drover.Unknown, op, "the guest may run here; read its state and settle it")
	}
	return in.discard(context.WithoutCancel(ctx))
}

// discard ends a migration that did not become a running guest: politely, then
// by closing the connection, then by hand.
func (in *incoming) discard(ctx context.Context) error {
	if in.phase == abandoned {
		return nil
	}
	if in.c.alive() {
		_, err := do(ctx, in.c, callLimit, func(rpc *golibvirt.Libvirt) (struct{}, error) {
			params := in.terms.with(stringParam(golibvirt.MigrateParamDestName, in.spec.Name))
			_, _, err := rpc.DomainMigrateFinish3Params(params, nil, uint32(in.terms.flags), 1)
			return struct{}{}, err
		})
		in.log.DebugContext(ctx, "abandoned incoming migration", "answer", err)
	}
	in.end()
	if err := in.clean(ctx); err != nil {
		return err
	}
	in.phase = abandoned
	return nil
}

// end frees the connection and the sockets.
func (in *incoming) end() {
	in.h.deregister(in.spec.Name, in)
	in.h.release(in.c)
	removeSockets(in.spec)
}

// clean waits until libvirt has ended the receiving QEMU, helps when it does
// not, and takes away a definition that came with the migration. A guest that
// runs is nobody's leftover and is not touched.
func (in *incoming) clean(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, settleLimit)
	defer cancel()
	began := time.Now()
	for {
		done, err := askDomain(ctx, in.h, "clean up", in.spec.Name, func(rpc *golibvirt.Libvirt, dom golibvirt.Domain) (bool, error) {
			state, reason, err := rpc.DomainGetState(dom, 0)
			if err != nil {
				return false, err
			}
			switch stateOf(golibvirt.DomainState(state), reason) {
			case drover.VMRunning:
				return true, nil
			case drover.VMPaused:
				receiving, err := isIncoming(rpc, dom)
				if err != nil || receiving && time.Since(began) < settleGrace {
					return false, err
				}
				return false, destroy(rpc, dom)
			}
			if in.known {
				return true, nil
			}
			return true, undefine(rpc, dom)
		})
		switch {
		case done && err == nil, notFound(err):
			return nil
		case err != nil && !drover.KindOf(err).Retryable():
			return err
		}
		if waitErr := pause(ctx, pollInterval); waitErr != nil {
			return errors.Join(waitErr, err)
		}
	}
}

// Close without Finish is Abandon.
func (in *incoming) Close() error {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.phase == arrived || in.phase == unsure {
		in.end()
		return nil
	}
	return in.discard(context.Background())
}
