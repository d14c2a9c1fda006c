package haproxy

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// Add implements driver.Balancer.
func (b *Balancer) Add(ctx context.Context, owner driver.Owner, backend string, spec driver.ServerSpec) error {
	op := fmt.Sprintf("add server %s to backend %s", spec.Name, backend)
	name := driver.ServerName(owner, spec.Name)
	if err := checkInput(op, owner, backend, name, spec.Validate()); err != nil {
		return err
	}
	v, err := b.begin(ctx)
	if err != nil {
		return err
	}
	defer b.mu.Unlock()
	if v.backend(backend) == nil {
		return missing(backend)
	}
	want := added{
		Owner: owner, Backend: backend, Name: name, Address: spec.Address, Check: spec.Check,
		setting: setting{Weight: spec.Weight, State: driver.ServerMaint},
	}
	if s := v.server(backend, name); s != nil {
		if endpoint(s.Address) != endpoint(spec.Address) {
			return drover.Errorf(drover.Exists, op, "it is there with the address %v", s.Address)
		}
		if b.record.added(backend, name) != nil {
			return nil
		}
		// It is ours by its name, but what was known of it is lost.
		want.setting = setting{s.Weight, s.State}
	} else if err := b.add(ctx, want); err != nil {
		return err
	}
	b.record.forget(backend, name)
	b.record.Added = append(b.record.Added, want)
	return b.finish(ctx)
}

// add creates a server in HAProxy, checked but in maintenance.
func (b *Balancer) add(ctx context.Context, a added) error {
	var args strings.Builder
	if c := a.Check; c != nil {
		args.WriteString(" check")
		if c.Interval > 0 {
			fmt.Fprintf(&args, " inter %dms", max(1, c.Interval.Milliseconds()))
		}
		if c.Rise > 0 {
			fmt.Fprintf(&args, " rise %d", c.Rise)
		}
		if c.Fall > 0 {
			fmt.Fprintf(&args, " fall %d", c.Fall)
		}
	}
	server := a.Backend + "/" + a.Name
	if err := b.socket.do(ctx, "New server registered", "add server %s %s weight %d%s", server, endpoint(a.Address), a.Weight, args.String()); err != nil {
		return err
	}
	if a.Check == nil {
		return nil
	}
	return b.socket.do(ctx, "", "enable health %s", server)
}

// set makes the server's weight and state what they are to be.
func (b *Balancer) set(ctx context.Context, s *driver.Server, want setting) error {
	server := s.Backend + "/" + s.Name
	if s.Weight != want.Weight {
		if err := b.socket.do(ctx, "", "set server %s weight %d", server, want.Weight); err != nil {
			return err
		}
	}
	if s.State == want.State {
		return nil
	}
	return b.socket.do(ctx, "", "set server %s state %s", server, want.State)
}

// SetWeight implements driver.Balancer.
func (b *Balancer) SetWeight(ctx context.Context, owner driver.Owner, backend, server string, weight int) error {
	if err := driver.CheckWeight(weight); err != nil {
		return drover.E(drover.Invalid, "server "+server, err)
	}
	return b.change(ctx, owner, backend, server, func(s *setting) { s.Weight = weight })
}

// Drain implements driver.Balancer.
func (b *Balancer) Drain(ctx context.Context, owner driver.Owner, backend, server string) error {
	return b.change(ctx, owner, backend, server, func(s *setting) { s.State = driver.ServerDrain })
}

// Ready implements driver.Balancer.
func (b *Balancer) Ready(ctx context.Context, owner driver.Owner, backend, server string) error {
	return b.change(ctx, owner, backend, server, func(s *setting) { s.State = driver.ServerReady })
}

// change changes a server's setting in HAProxy and in the record. The record
// of a server of the configuration is written before: it has the original.
func (b *Balancer) change(ctx context.Context, owner driver.Owner, backend, server string, f func(*setting)) error {
	op := fmt.Sprintf("change server %s of backend %s", server, backend)
	if err := checkInput(op, owner, backend, server, nil); err != nil {
		return err
	}
	v, err := b.begin(ctx)
	if err != nil {
		return err
	}
	defer b.mu.Unlock()
	s := v.server(backend, server)
	switch {
	case v.backend(backend) == nil:
		return missing(backend)
	case s == nil:
		return drover.Errorf(drover.NotFound, op, "no such server")
	}
	want, err := b.claim(op, owner, s)
	if err != nil {
		return err
	}
	next := *want
	f(&next)
	if err := b.set(ctx, s, next); err != nil {
		b.release(s)
		return err
	}
	*want = next
	return b.finish(ctx)
}

// claim returns the record's setting of a server for the owner to change, and
// makes one if there is none.
func (b *Balancer) claim(op string, owner driver.Owner, s *driver.Server) (*setting, error) {
	present := setting{s.Weight, s.State}
	if s.Owner != "" && s.Owner != owner {
		return nil, drover.Errorf(drover.Exists, op, "it is %s's", s.Owner)
	}
	if s.Owner != "" {
		a := b.record.added(s.Backend, s.Name)
		if a == nil { // what was known of it is lost; its name says that it is ours
			b.record.Added = append(b.record.Added, added{Owner: owner, Backend: s.Backend, Name: s.Name, Address: s.Address, setting: present})
			if s.Health != driver.HealthNone {
				b.record.Added[len(b.record.Added)-1].Check = &driver.ServerCheck{}
			}
			a = b.record.added(s.Backend, s.Name)
		}
		return &a.setting, nil
	}
	c := b.record.changed(s.Backend, s.Name)
	switch {
	case c == nil:
		b.record.Changed = append(b.record.Changed, changed{Owner: owner, Backend: s.Backend, Name: s.Name, setting: present, Original: present})
		if err := b.save(); err != nil {
			b.record.forget(s.Backend, s.Name)
			return nil, err
		}
		c = b.record.changed(s.Backend, s.Name)
	case c.Owner != owner:
		return nil, drover.Errorf(drover.Exists, op, "%s has changed it before", c.Owner)
	}
	return &c.setting, nil
}

// release forgets a claim whose change was refused before anything was changed.
func (b *Balancer) release(s *driver.Server) {
	c := b.record.changed(s.Backend, s.Name)
	if c == nil || c.setting != c.Original {
		return
	}
	b.record.forget(s.Backend, s.Name)
	if err := b.save(); err != nil {
		b.log.Warn("a server that was not changed is still marked", "backend", s.Backend, "server", s.Name, "err", err)
	}
}

// Restore implements driver.Balancer.
func (b *Balancer) Restore(ctx context.Context, owner driver.Owner, backend, server string) error {
	op := fmt.Sprintf("restore server %s of backend %s", server, backend)
	if err := checkInput(op, owner, backend, server, nil); err != nil {
		return err
	}
	v, err := b.begin(ctx)
	if err != nil {
		return err
	}
	defer b.mu.Unlock()
	c := b.record.changed(backend, server)
	switch {
	case c == nil:
		return nil
	case c.Owner != owner:
		return drover.Errorf(drover.Exists, op, "%s has changed it", c.Owner)
	}
	if s := v.server(backend, server); s != nil {
		if err := b.set(ctx, s, c.Original); err != nil {
			return err
		}
	}
	b.record.forget(backend, server)
	return b.finish(ctx)
}

// Remove implements driver.Balancer.
func (b *Balancer) Remove(ctx context.Context, owner driver.Owner, backend, server string, force bool) (int, error) {
	op := fmt.Sprintf("remove server %s from backend %s", server, backend)
	if err := checkInput(op, owner, backend, server, nil); err != nil {
		return 0, err
	}
	switch of, _, ours := driver.ParseServerName(server); {
	case !ours:
		return 0, drover.E(drover.Refused, op, driver.ErrNotOurs)
	case of != owner:
		return 0, drover.Errorf(drover.Exists, op, "it is %s's", of)
	}
	v, err := b.begin(ctx)
	if err != nil {
		return 0, err
	}
	defer b.mu.Unlock()
	ended := 0
	if s := v.server(backend, server); s != nil {
		if ended, err = b.remove(ctx, op, s, force); err != nil {
			return ended, err
		}
	}
	b.record.forget(backend, server)
	return ended, b.finish(ctx)
}

// remove takes a server out of HAProxy. It gives it back its state when it
// cannot.
func (b *Balancer) remove(ctx context.Context, op string, s *driver.Server, force bool) (ended int, err error) {
	if !force {
		switch {
		case s.Sessions+s.Queued > 0:
			return 0, drover.Errorf(drover.Refused, op, "it has %d sessions and %d wait for it", s.Sessions, s.Queued)
		case s.Unseen:
			return 0, drover.Errorf(drover.Refused, op, "a process of HAProxy that a reload left behind still runs and may have sessions with it")
		}
	}
	server := s.Backend + "/" + s.Name
	if err := b.socket.do(ctx, "", "set server %s state maint", server); err != nil {
		return 0, err
	}
	if force {
		if ended, err = b.end(ctx, s); err != nil {
			return ended, err
		}
	}
	err = b.socket.do(ctx, "Server deleted", "del server %s", server)
	for try := 0; err != nil && drover.KindOf(err) == drover.Refused && try < endTries && force; try++ {
		if err := wait(ctx, endWait); err != nil {
			return ended, drover.E(drover.Canceled, op, err)
		}
		err = b.socket.do(ctx, "Server deleted", "del server %s", server)
	}
	if err != nil && !force && s.State != driver.ServerMaint {
		// A session came between the look and the removal.
		if back := b.socket.do(ctx, "", "set server %s state %s", server, s.State); back != nil {
			b.log.Error("a server that could not be removed stays in maintenance", "server", server, "err", back)
		}
	}
	return ended, err
}

// end ends the sessions of a server and says how many.
func (b *Balancer) end(ctx context.Context, s *driver.Server) (int, error) {
	v, err := b.observe(ctx)
	if err != nil {
		return 0, err
	}
	now := v.server(s.Backend, s.Name)
	if now == nil || now.Sessions == 0 {
		return 0, nil
	}
	return now.Sessions, b.socket.do(ctx, "", "shutdown sessions server %s/%s", s.Backend, s.Name)
}

func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// checkInput is what every change checks before it asks HAProxy.
func checkInput(op string, owner driver.Owner, backend, server string, more error) error {
	if err := owner.Validate(); err != nil {
		return err
	}
	if err := driver.CheckServerNames(backend, server); err != nil {
		return drover.E(drover.Invalid, op, err)
	}
	if server == "" {
		return drover.Errorf(drover.Invalid, op, "no server is named")
	}
	return drover.E(drover.Invalid, op, more)
}
