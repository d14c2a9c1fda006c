package memory

import (
	"context"
	"fmt"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// Prepare starts receiving.
func (h *Hypervisor) Prepare(ctx context.Context, spec driver.MigrationSpec, offer driver.Offer) (driver.Incoming, error) {
	var in *incoming
	op := "prepare migration of " + spec.Name
	vm, err := parseDefinition(offer.Definition)
	if err != nil {
		return nil, err
	}
	err = h.call(ctx, "prepare", spec.Name, func() error {
		if err := h.taken(op, vm); err != nil {
			return err
		}
		from := h.fleet.sending[string(offer.Cookie)]
		switch {
		case from == nil || from.dead:
			return drover.Errorf(drover.Internal, op, "the source has closed the migration")
		case from.h == h:
			return drover.Errorf(drover.Internal, op, "source and destination are the same host")
		}
		var before drover.VM
		g := h.guests[spec.Name]
		known := g != nil
		if known && active(g.state) {
			return drover.Errorf(drover.Refused, op, "it is active here already")
		}
		if !known {
			g = &guest{state: drover.VMOff}
			h.guests[spec.Name] = g
		} else {
			before = clone(g.vm)
		}
		g.vm = clone(vm)
		h.fleet.serial++
		in = &incoming{h: h, g: g, spec: spec, from: from, known: known, before: before, cookie: fmt.Sprintf("in-%d", h.fleet.serial)}
		g.receiving = in
		h.fleet.receiving[in.cookie] = in
		h.fleet.set(h, g, drover.VMPaused, "started")
		return nil
	})
	if err != nil {
		if in != nil {
			_ = in.Close()
		}
		return nil, err
	}
	return in, nil
}

func (in *incoming) Prepared() []byte { return []byte(in.cookie) }

// Finish lets the guest run here.
func (in *incoming) Finish(ctx context.Context, cookie []byte) ([]byte, error) {
	f, op := in.h.fleet, "finish migration of "+in.spec.Name
	if err := ctx.Err(); err != nil {
		return nil, drover.E(drover.Canceled, op, err)
	}
	if err := f.strike(in.h.host.Name, "finish", in.spec.Name, Before); err != nil {
		f.mu.Lock()
		defer f.mu.Unlock()
		if drover.KindOf(err) == drover.Unknown {
			in.unsure = true
		} else {
			in.discard()
		}
		return nil, err
	}
	err := func() error {
		f.mu.Lock()
		defer f.mu.Unlock()
		switch {
		case in.arrived:
			return nil
		case in.unsure:
			return drover.Errorf(drover.Unknown, op, "an earlier finish did not end")
		case in.dead:
			return drover.Errorf(drover.Refused, op, "what was received has been destroyed")
		case in.h.down:
			in.discard()
			return drover.Errorf(drover.Unavailable, op, "the manager of %s does not answer", in.h.host.Name)
		case !in.complete || string(cookie) != "done "+in.cookie:
			in.discard()
			return drover.Errorf(drover.Internal, op, "the guest has not arrived")
		}
		in.arrived = true
		in.g.receiving, in.g.persistent, in.g.next = nil, true, &in.from.stored
		delete(f.receiving, in.cookie)
		f.set(in.h, in.g, drover.VMRunning, "resumed")
		return nil
	}()
	if err != nil {
		return nil, err
	}
	if err := f.strike(in.h.host.Name, "finish", in.spec.Name, After); err != nil {
		return nil, drover.E(drover.Unknown, op, err)
	}
	return []byte("finished " + in.cookie), nil
}

// discard destroys what was received. The lock is held.
func (in *incoming) discard() {
	if in.dead || in.arrived {
		return
	}
	in.dead = true
	delete(in.h.fleet.receiving, in.cookie)
	if in.g.receiving != in {
		return
	}
	in.g.receiving = nil
	in.h.fleet.set(in.h, in.g, drover.VMOff, "stopped")
	if in.known {
		in.g.vm = in.before
	} else {
		delete(in.h.guests, in.spec.Name)
	}
}

// Abandon destroys what was received. Ctx is not heeded.
func (in *incoming) Abandon(ctx context.Context) error {
	op := "abandon migration of " + in.spec.Name
	return in.h.call(context.WithoutCancel(ctx), "abandon", in.spec.Name, func() error {
		switch {
		case in.arrived:
			return drover.Errorf(drover.Refused, op, "the guest has arrived and runs here")
		case in.unsure:
			return drover.Errorf(drover.Unknown, op, "the guest may run here; read its state and settle it")
		}
		in.discard()
		return nil
	})
}

// Close without Finish destroys what was received.
func (in *incoming) Close() error {
	in.h.fleet.mu.Lock()
	defer in.h.fleet.mu.Unlock()
	if !in.unsure {
		in.discard()
	}
	return nil
}

// dropClients leaves the host's open migrations as a dying client does. The
// lock is held.
func (h *Hypervisor) dropClients() {
	for _, g := range h.guests {
		if o := g.sending; o != nil {
			o.dead, o.broken = true, true
			o.abort()
			if o.phase != performing {
				o.forget()
			}
		}
		if in := g.receiving; in != nil {
			in.unsure = false
			in.discard()
		}
	}
}

// Settle brings the VM into the state given.
func (h *Hypervisor) Settle(ctx context.Context, name string, to driver.Settlement) error {
	h.fleet.mu.Lock()
	var half interface{ Close() error }
	var ended chan struct{}
	if g := h.guests[name]; g != nil && !h.down {
		switch {
		case g.sending != nil:
			half = g.sending
			if g.sending.phase == performing {
				ended = g.sending.ended
			}
		case g.receiving != nil:
			half = g.receiving
		}
	}
	h.fleet.mu.Unlock()
	if half != nil {
		_ = half.Close()
	}
	if ended != nil {
		<-ended
	}
	return h.call(ctx, "settle", name, func() error {
		g := h.guests[name]
		if to == driver.SettleGone {
			if g == nil {
				return nil
			}
			h.stop(g)
			if h.guests[name] == g {
				delete(h.guests, name)
				h.notify(name, "undefined")
			}
			return nil
		}
		switch {
		case g == nil:
			return drover.Errorf(drover.NotFound, "resume "+name, "there is no vm %s on %s", name, h.host.Name)
		case g.receiving != nil:
			return drover.Errorf(drover.NotFound, "resume "+name, "it never arrived here")
		}
		h.fleet.set(h, g, drover.VMRunning, "resumed")
		return nil
	})
}
