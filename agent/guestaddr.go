package agent

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/driver"
)

// A VM that is moved into another segment gets other addresses, which are changed
// in its guest: by the guest's agent, or by the guest's own DHCP client, which
// asks when its cable is plugged in.
//
// The host does that by itself as soon as the guest runs, since from then on its
// users wait; the server asks for the same afterwards, and learns what came of
// it. A guest that does not do as it is told is no error: the host can do
// nothing about it.

const (
	// guestLimit bounds what a host does in a guest by itself.
	guestLimit = 30 * time.Second
	// guestRetry is the wait after an agent that did not answer, of which there
	// are guestTries: one that has just been moved has its port opened anew.
	guestRetry = 300 * time.Millisecond
	guestTries = 5
)

// guestChange is a change of addresses in a guest.
type guestChange struct {
	mac      string
	add      []netip.Prefix
	gateways []netip.Addr
	primary  bool
	drop     []netip.Addr
	ask      bool
}

// readGuestChange checks a change; nil is none.
func readGuestChange(p *droverv1.GuestChange) (*guestChange, error) {
	if p == nil {
		return nil, nil
	}
	c := &guestChange{primary: p.GetPrimary(), ask: p.GetAsk()}
	var errs [4]error
	c.mac, errs[0] = driver.GuestMAC(p.GetMac())
	c.add, errs[1] = api.ParsePrefixes("guest.add", p.GetAdd())
	c.gateways, errs[2] = api.ParseAddresses("guest.gateways", p.GetGateways())
	c.drop, errs[3] = api.ParseAddresses("guest.drop", p.GetDrop())
	if err := errors.Join(errs[:]...); err != nil {
		return nil, drover.E(drover.Invalid, "guest", err)
	}
	if len(c.add) > 0 {
		if err := c.addresses().Validate(); err != nil {
			return nil, err
		}
	}
	for _, a := range c.drop {
		if err := driver.CheckGuestAddress(a); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func (c *guestChange) addresses() driver.GuestAddresses {
	return driver.GuestAddresses{Prefixes: c.add, Gateways: c.gateways, Primary: c.primary}
}

// inside is the driver of this host's guests.
func (a *Agent) inside() (driver.Guests, error) {
	if err := a.needHypervisor(); err != nil {
		return nil, err
	}
	if a.guests.guests == nil {
		return nil, drover.Errorf(drover.Refused, "host "+a.config.Name, "it does not reach into its guests")
	}
	return a.guests.guests, nil
}

// changeGuest carries out a ChangeGuest action.
func (a *Agent) changeGuest(ctx context.Context, _ *job, ref moveRef, m *droverv1.ChangeGuest) (*droverv1.RunResult, error) {
	op := "change guest of vm " + ref.vm
	g, err := a.inside()
	if err != nil {
		return nil, err
	}
	c, err := readGuestChange(m.GetChange())
	switch {
	case err != nil:
		return nil, err
	case c == nil:
		return nil, drover.Errorf(drover.Invalid, op, "change is missing")
	}
	vm, err := a.hyp.VM(ctx, ref.vm)
	gone := err != nil && drover.KindOf(err) == drover.NotFound || err == nil && (vm.State != drover.VMRunning || vm.UUID != ref.uuid)
	switch {
	case gone && m.GetUndo():
		return &droverv1.RunResult{Healthy: true, Detail: "it does not run here"}, nil
	case err != nil:
		return nil, err
	case gone:
		return nil, drover.Errorf(drover.Refused, op, "it does not run here: it is %s, UUID %s", vm.State, vm.UUID)
	}
	detail, err := a.applyGuest(ctx, g, ref, c)
	if err != nil {
		return nil, err
	}
	return &droverv1.RunResult{Healthy: detail == "", Detail: detail}, nil
}

// applyGuest makes a change, and says in detail why the guest would not; an
// error is one of this host. One change of a VM is made at a time.
func (a *Agent) applyGuest(ctx context.Context, g driver.Guests, ref moveRef, c *guestChange) (detail string, err error) {
	unlock, err := a.locks.lock(ctx, "guest of "+ref.uuid)
	if err != nil {
		return "", err
	}
	defer unlock()
	if c.ask {
		if err := a.replug(ctx, g, ref, c.mac); err != nil {
			return "", err
		}
	}
	if len(c.add) > 0 {
		if err := a.tryGuest(ctx, func() error { return g.AddAddress(ctx, ref.vm, c.mac, c.addresses()) }); err != nil {
			return guestWord(ctx, err)
		}
	}
	for _, addr := range c.drop {
		if err := a.tryGuest(ctx, func() error { return g.DropAddress(ctx, ref.vm, c.mac, addr) }); err != nil {
			return guestWord(ctx, err)
		}
	}
	return "", nil
}

// tryGuest does something in a guest, again where its agent did not answer.
func (a *Agent) tryGuest(ctx context.Context, f func() error) error {
	for n := 1; ; n++ {
		err := f()
		if err == nil || n == guestTries || drover.KindOf(err) != drover.Unavailable {
			return err
		}
		if sleep(ctx, guestRetry, nil) != nil {
			return err
		}
	}
}

// guestWord is what is said of a guest that would not; the end of ctx is no word
// of the guest's.
func guestWord(ctx context.Context, err error) (string, error) {
	if ctx.Err() != nil {
		return "", drover.E(drover.Unavailable, "change guest", errors.Join(ctx.Err(), err))
	}
	return err.Error(), nil
}

// replug takes the cable out for so long that the guest notices, and puts it
// back whatever happens: the journal says that it is out.
func (a *Agent) replug(ctx context.Context, g driver.Guests, ref moveRef, mac string) error {
	note := func(mac string) error {
		return a.journal.update(ref.move, "cable", func(r *record) error { r.Unplugged = mac; return nil })
	}
	if err := note(mac); err != nil {
		return err
	}
	lasting := context.WithoutCancel(ctx)
	err := g.SetLink(ctx, ref.vm, mac, false)
	if err == nil {
		_ = sleep(lasting, driver.LinkDownTime, nil)
	}
	return errors.Join(err, a.plug(lasting, g, ref.vm, mac), note(""))
}

// plug puts a cable back. A VM that is gone, or off, has it with its next start.
func (a *Agent) plug(ctx context.Context, g driver.Guests, vm, mac string) error {
	ctx, cancel := context.WithTimeout(ctx, guestLimit)
	defer cancel()
	for {
		err := g.SetLink(ctx, vm, mac, true)
		kind := drover.KindOf(err)
		switch {
		case err == nil, kind == drover.NotFound:
			return nil
		case kind == drover.Refused:
			if v, verr := a.hyp.VM(ctx, vm); verr == nil && v.State != drover.VMRunning {
				return nil
			}
		}
		if sleep(ctx, guestRetry, nil) != nil {
			return drover.E(drover.Unavailable, "put the cable of "+vm+" back", err)
		}
	}
}

// plugLeft puts the cables back that an earlier process of this agent had taken
// out.
func (a *Agent) plugLeft(ctx context.Context) {
	g, err := a.inside()
	if err != nil {
		return
	}
	all, err := a.journal.moves()
	if err != nil {
		a.log.Error("cannot look for cables that were taken out", "err", err)
		return
	}
	for _, r := range all {
		if r.Unplugged == "" {
			continue
		}
		err := a.plug(ctx, g, r.VM, r.Unplugged)
		if err == nil {
			err = a.journal.update(r.Move, "cable", func(r *record) error { r.Unplugged = ""; return nil })
		}
		if err != nil && ctx.Err() == nil {
			a.log.Error("a network card is left without its cable", "vm", r.VM, "mac", r.Unplugged, "err", err)
		}
	}
}

// changeArrived does in a guest that has just begun to run here what its source
// asked for. Nobody waits for it.
func (a *Agent) changeArrived(ref moveRef, c *guestChange) {
	if c == nil {
		return
	}
	g, err := a.inside()
	began := a.clock()
	log := a.log.With("move", ref.move, "vm", ref.vm)
	detail := ""
	if err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), guestLimit)
		defer cancel()
		detail, err = a.applyGuest(ctx, g, ref, c)
	}
	switch took := a.clock().Sub(began).Round(time.Millisecond); {
	case err != nil:
		log.Warn("the guest's addresses could not be changed; the server will ask for it", "err", err)
	case detail != "":
		log.Warn("the guest does not take its new addresses", "why", detail, "took", took)
	default:
		log.Info("the guest's addresses are changed", "asked_dhcp", c.ask, "took", took)
	}
}

// retargeted are the definitions of a VM that gets into another segment: the one
// by which it runs on there, and the one for its next start.
func (a *Agent) retargeted(def driver.Definition, to *droverv1.Retarget) (driver.Definition, error) {
	if to == nil {
		return def, nil
	}
	g, err := a.inside()
	if err != nil {
		return nil, err
	}
	change := driver.Retarget{NICs: []driver.RetargetNIC{{MAC: to.GetMac(), Network: to.GetNetwork()}}}
	if p := to.GetProbe(); p != nil {
		probe := api.ProbeTargetFromProto(p)
		change.Probe = &probe
	}
	return g.Retarget(def, change)
}

// guestCheck says whether the VM's guest has an agent that can change its
// addresses; if not, what is wrong.
func (a *Agent) guestCheck(ctx context.Context, vm drover.VM) (ok bool, fault string) {
	g, err := a.inside()
	if err != nil {
		return false, err.Error()
	}
	if vm.State != drover.VMRunning {
		return false, "it is " + string(vm.State)
	}
	agent, err := g.Agent(ctx, vm.Name)
	switch {
	case err != nil:
		return false, err.Error()
	case !agent.Answers:
		return false, agent.Fault
	case !agent.Addresses:
		return false, "its agent may not run ip(8), or the guest has none that takes a batch"
	}
	return true, ""
}
