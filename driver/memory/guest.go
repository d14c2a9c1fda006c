package memory

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// Guests is driver.Guests of one host of a fleet.
type Guests struct {
	world  *GuestWorld
	h      *Hypervisor
	closed atomic.Bool
}

var _ driver.Guests = (*Guests)(nil)

// Close ends the driver.
func (g *Guests) Close() error {
	g.closed.Store(true)
	return nil
}

// call frames a call on a VM that is known here.
func (g *Guests) call(ctx context.Context, op, vm string, f func(*guest, *guestInside) error) error {
	if g.closed.Load() {
		return drover.Errorf(drover.Canceled, op+" "+vm, "the driver is closed")
	}
	return g.h.call(ctx, op, vm, func() error {
		known, err := g.h.find(op+" "+vm, vm)
		if err != nil {
			return err
		}
		return f(known, g.world.of(known.vm.UUID))
	})
}

// ask is call for what needs the agent.
func (g *Guests) ask(ctx context.Context, op, vm string, f func(*guest, *guestInside) error) error {
	return g.call(ctx, op, vm, func(known *guest, in *guestInside) error {
		if err := agentFault(op+" "+vm, known, in); err != nil {
			return err
		}
		if in.frozen && op != "freeze" && op != "thaw" && op != "agent" {
			return drover.Errorf(drover.Refused, op+" "+vm, "the guest is frozen")
		}
		return f(known, in)
	})
}

func agentFault(op string, known *guest, in *guestInside) error {
	switch {
	case known.state != drover.VMRunning:
		return drover.Errorf(drover.Refused, op, "the vm is %s", known.state)
	case in.agent == AgentMissing:
		return drover.Errorf(drover.Refused, op, "the guest has no agent")
	case in.agent == AgentHangs:
		return drover.Errorf(drover.Unavailable, op, "the agent does not answer")
	}
	return nil
}

// Agent says what SetAgent said.
func (g *Guests) Agent(ctx context.Context, vm string) (driver.GuestAgent, error) {
	var agent driver.GuestAgent
	err := g.call(ctx, "agent", vm, func(known *guest, in *guestInside) error {
		if fault := agentFault("agent", known, in); fault != nil {
			agent = driver.GuestAgent{Fault: fault.Error()}
			return nil
		}
		can := !in.frozen
		agent = driver.GuestAgent{Answers: true, Version: "memory", Interfaces: can, Addresses: can, Hostname: can, Freeze: true}
		return nil
	})
	if err != nil {
		return driver.GuestAgent{}, err
	}
	return agent, nil
}

// Interfaces returns the VM's network cards as interfaces eth0, eth1, ….
func (g *Guests) Interfaces(ctx context.Context, vm string) ([]driver.GuestInterface, error) {
	var list []driver.GuestInterface
	err := g.ask(ctx, "interfaces", vm, func(known *guest, in *guestInside) error {
		list = make([]driver.GuestInterface, 0, len(known.vm.NICs))
		for i, n := range known.vm.NICs {
			list = append(list, driver.GuestInterface{
				Name: "eth" + string(rune('0'+i%10)), MAC: n.MAC, Addresses: slices.Clone(in.nic(n.MAC).addresses),
			})
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return list, nil
}

// AddAddress changes the addresses as Linux would.
func (g *Guests) AddAddress(ctx context.Context, vm, mac string, change driver.GuestAddresses) error {
	if err := change.Validate(); err != nil {
		return err
	}
	return g.onNIC(ctx, "add address", vm, mac, func(nic *guestNIC) error {
		nic.add(change)
		return nil
	})
}

func (n *guestNIC) add(change driver.GuestAddresses) {
	if !change.Primary {
		for _, p := range change.Prefixes {
			if !n.has(p.Addr()) {
				n.addresses = append(n.addresses, standby(p))
			}
		}
		return
	}
	changed := map[int]bool{}
	for _, p := range change.Prefixes {
		changed[family(p.Addr())] = true
		n.drop(p.Addr())
	}
	for i, p := range n.addresses {
		if changed[family(p.Addr())] {
			n.addresses[i] = standby(p)
		}
	}
	n.addresses = append(slices.Clone(change.Prefixes), n.addresses...)
	for _, gw := range change.Gateways {
		for _, p := range slices.Backward(change.Prefixes) {
			if p.Addr().Is4() == gw.Is4() {
				n.sources[family(gw)] = p.Addr()
			}
		}
	}
}

// standby is an address that is only answered: in IPv4 it has no subnet.
func standby(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4() {
		return netip.PrefixFrom(p.Addr(), 32)
	}
	return p
}

func (n *guestNIC) has(a netip.Addr) bool {
	return slices.ContainsFunc(n.addresses, func(p netip.Prefix) bool { return p.Addr() == a })
}

func (n *guestNIC) drop(a netip.Addr) {
	n.addresses = slices.DeleteFunc(n.addresses, func(p netip.Prefix) bool { return p.Addr() == a })
}

// DropAddress takes an address away.
func (g *Guests) DropAddress(ctx context.Context, vm, mac string, address netip.Addr) error {
	if err := driver.CheckGuestAddress(address); err != nil {
		return err
	}
	return g.onNIC(ctx, "drop address", vm, mac, func(nic *guestNIC) error {
		if !nic.has(address) {
			return nil
		}
		if !slices.ContainsFunc(nic.addresses, func(p netip.Prefix) bool { return p.Addr() != address && p.Addr().Is4() == address.Is4() }) {
			return drover.Errorf(drover.Refused, "drop address of "+vm, "%s is the last one of its family", address)
		}
		nic.drop(address)
		if nic.sources[family(address)] == address {
			nic.sources[family(address)] = netip.Addr{}
		}
		return nil
	})
}

// onNIC is ask for one of the VM's network cards.
func (g *Guests) onNIC(ctx context.Context, op, vm, mac string, f func(*guestNIC) error) error {
	mac, err := driver.GuestMAC(mac)
	if err != nil {
		return err
	}
	return g.ask(ctx, op, vm, func(known *guest, in *guestInside) error {
		if _, err := nicOf(op+" "+vm, known, mac); err != nil {
			return err
		}
		return f(in.nic(mac))
	})
}

func nicOf(op string, known *guest, mac string) (drover.NIC, error) {
	for _, n := range known.vm.NICs {
		if n.MAC == mac {
			return n, nil
		}
	}
	return drover.NIC{}, drover.Errorf(drover.NotFound, op, "there is no network card with MAC %s", mac)
}

// SetLink takes the cable out or puts it in, upon which the guest asks DHCP and
// makes what it is given its primary addresses.
func (g *Guests) SetLink(ctx context.Context, vm, mac string, up bool) error {
	mac, err := driver.GuestMAC(mac)
	if err != nil {
		return err
	}
	var asked drover.NIC
	var lease Lease
	var uuid string
	err = g.call(ctx, "set link", vm, func(known *guest, in *guestInside) error {
		nic, err := nicOf("set link of "+vm, known, mac)
		if err != nil {
			return err
		}
		if !active(known.state) {
			return drover.Errorf(drover.Refused, "set link of "+vm, "the vm is %s", known.state)
		}
		n := in.nic(mac)
		if n.down && up && !in.ignores {
			asked, lease, uuid = nic, g.world.lease, known.vm.UUID
		}
		n.down = !up
		return nil
	})
	if err != nil || lease == nil {
		return err
	}
	given := driver.GuestAddresses{Prefixes: lease(uuid, asked), Primary: true}
	if given.Validate() != nil {
		return nil // nothing, or nonsense: the guest keeps what it has
	}
	g.world.with(uuid, func(in *guestInside) {
		n := in.nic(mac)
		n.add(given)
		for _, p := range slices.Backward(given.Prefixes) {
			n.sources[family(p.Addr())] = p.Addr()
		}
	})
	return nil
}

// SetHostname names the guest.
func (g *Guests) SetHostname(ctx context.Context, vm, hostname string) error {
	if err := driver.CheckGuestHostname(hostname); err != nil {
		return err
	}
	return g.ask(ctx, "set hostname", vm, func(_ *guest, in *guestInside) error {
		in.hostname = hostname
		return nil
	})
}

// Freeze freezes the guest.
func (g *Guests) Freeze(ctx context.Context, vm string) error {
	return g.ask(ctx, "freeze", vm, func(_ *guest, in *guestInside) error {
		in.frozen = true
		return nil
	})
}

// Thaw thaws it.
func (g *Guests) Thaw(ctx context.Context, vm string) error {
	err := g.call(ctx, "thaw", vm, func(known *guest, in *guestInside) error {
		if known.state != drover.VMRunning {
			return nil
		}
		if err := agentFault("thaw "+vm, known, in); err != nil {
			return err
		}
		in.frozen = false
		return nil
	})
	if drover.KindOf(err) == drover.NotFound {
		return nil
	}
	return err
}

// Retarget rewrites a VM that NewDefinition wrote.
func (g *Guests) Retarget(def driver.Definition, to driver.Retarget) (driver.Definition, error) {
	const op = "retarget definition"
	if err := to.Validate(); err != nil {
		return nil, err
	}
	vm, err := parseDefinition(def)
	if err != nil {
		return nil, drover.E(drover.Invalid, op, err)
	}
	fresh, err := retargetNICs(&vm, to.NICs)
	if err != nil {
		return nil, drover.E(drover.Invalid, op, err)
	}
	used := map[string]bool{}
	for i := range vm.Disks {
		d := &vm.Disks[i]
		path, ok := to.Paths[d.Path]
		switch {
		case ok:
			used[d.Path] = true
			d.Path, d.Backing = path, nil
		case to.Clone != nil && !d.ReadOnly && !d.Shared:
			return nil, drover.Errorf(drover.Invalid, op, "a clone's disk %s needs another path than %s", d.Target, d.Path)
		}
	}
	for _, path := range slices.Sorted(maps.Keys(to.Paths)) {
		if !used[path] {
			return nil, drover.Errorf(drover.Invalid, op, "no disk is at %s", path)
		}
	}
	for _, n := range to.Disks {
		i := slices.IndexFunc(vm.Disks, func(d drover.Disk) bool { return d.Target == n.Target })
		if i < 0 {
			return nil, drover.Errorf(drover.Invalid, op, "there is no disk %s", n.Target)
		}
		d := &vm.Disks[i]
		switch {
		case n.Socket != "":
			d.Path, d.Format, d.Shared, d.Backing = driver.RemoteDiskPath(n.Target), "raw", true, nil
		case d.Path != n.Path:
			d.Path, d.Format, d.Shared, d.Backing = n.Path, n.Format, false, nil
		}
	}
	if to.Clone != nil {
		if fresh != len(vm.NICs) {
			return nil, drover.Errorf(drover.Invalid, op, "each of a clone's network cards needs a MAC of its own")
		}
		vm.Name, vm.UUID, vm.Probe = to.Clone.Name, to.Clone.UUID, nil
	}
	if to.Probe != nil {
		probe := *to.Probe
		vm.Probe = &probe
	}
	return NewDefinition(vm), nil
}

// retargetNICs returns how many got a new MAC.
func retargetNICs(vm *drover.VM, nics []driver.RetargetNIC) (fresh int, err error) {
	at := map[string]int{}
	for i, n := range vm.NICs {
		at[n.MAC] = i
	}
	for _, n := range nics {
		mac, err := driver.GuestMAC(n.MAC)
		if err != nil {
			return 0, err
		}
		i, ok := at[mac]
		if !ok {
			return 0, drover.Errorf(drover.Invalid, "", "there is no network card with MAC %s", mac)
		}
		if n.Network != "" {
			vm.NICs[i].Network = n.Network
		}
		if n.NewMAC != "" {
			vm.NICs[i].MAC = n.NewMAC
			fresh++
		}
	}
	return fresh, nil
}
