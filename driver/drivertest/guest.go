package drivertest

import (
	"context"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// GuestVM is a VM of a suite's setup and its one network card.
type GuestVM struct{ Name, MAC string }

// GuestsSetup is what the conformance suite of driver.Guests needs to know of an
// implementation.
type GuestsSetup struct {
	// New returns a driver for the host as another process would.
	New func(t *testing.T) driver.Guests
	// WithAgent runs with an agent that can do everything, and has the addresses
	// in Had. WithoutAgent runs without one, Off does not run.
	WithAgent, WithoutAgent, Off GuestVM
	// Had are one IPv4 address with a subnet and one IPv6 address, in this
	// order; Gateways are theirs.
	Had      []netip.Prefix
	Gateways []netip.Addr
	// Sources are the addresses that the guest's new connections to elsewhere
	// have at present, in the order of Had.
	Sources func(t *testing.T, vm GuestVM) []netip.Addr
	// Link reports whether the VM's cable is in, Hostname what the guest calls
	// itself.
	Link     func(t *testing.T, vm GuestVM) bool
	Hostname func(t *testing.T, vm GuestVM) string

	// Hypervisor is the same host's, to look at definitions with; Networks are
	// two that its VMs can be attached to.
	Hypervisor driver.Hypervisor
	Networks   [2]string
	// VM is a small VM in the implementation's terms, without name, UUID, disks
	// and network cards; Define makes its definition.
	VM         drover.VM
	Define     func(t *testing.T, vm drover.VM) driver.Definition
	DiskFolder string
}

// What the suite gives to the guest.
var (
	otherAddresses = []netip.Prefix{netip.MustParsePrefix("198.51.100.20/24"), netip.MustParsePrefix("2001:db8:51::20/64")}
	otherGateways  = []netip.Addr{netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("2001:db8:51::1")}
)

// absent is no VM's and no network card's.
const (
	absentVM  = "absent"
	absentMAC = "52:54:00:ff:ff:fe"
)

// Guests runs the conformance suite of driver.Guests.
func Guests(t *testing.T, setup GuestsSetup) {
	open := setup.New
	setup.New = func(t *testing.T) driver.Guests { return patientGuests{open(t), setup.WithAgent.Name} }
	for _, c := range []struct {
		name string
		run  func(*testing.T, *guestsFixture)
	}{
		{"Agent", guestsAgent},
		{"Interfaces", guestsInterfaces},
		{"Standby", guestsStandby},
		{"Primary", guestsPrimary},
		{"SameSubnet", guestsSameSubnet},
		{"OneFamily", guestsOneFamily},
		{"Drop", guestsDrop},
		{"BadInput", guestsBadInput},
		{"Link", guestsLink},
		{"Hostname", guestsHostname},
		{"Freeze", guestsFreeze},
		{"Canceled", guestsCanceled},
		{"Retarget", guestsRetarget},
		{"RetargetClone", guestsRetargetClone},
		{"RetargetRefused", guestsRetargetRefused},
		{"Close", guestsClose},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := &guestsFixture{GuestsSetup: setup, g: setup.New(t)}
			t.Cleanup(func() { succeed(t, f.g.Close()) })
			c.run(t, f)
		})
	}
}

type guestsFixture struct {
	GuestsSetup
	g driver.Guests
}

// addresses returns those of a guest's network card.
func (f *guestsFixture) addresses(t *testing.T) []netip.Prefix {
	t.Helper()
	list, err := f.g.Interfaces(t.Context(), f.WithAgent.Name)
	succeed(t, err)
	for _, i := range list {
		if i.MAC == f.WithAgent.MAC {
			return i.Addresses
		}
	}
	t.Fatalf("no interface has MAC %s: %+v", f.WithAgent.MAC, list)
	return nil
}

// has fails unless the guest has exactly these addresses, in any order.
func (f *guestsFixture) has(t *testing.T, want ...netip.Prefix) {
	t.Helper()
	less := func(a, b netip.Prefix) bool { return a.String() < b.String() }
	if d := cmp.Diff(want, f.addresses(t), cmpopts.EquateComparable(netip.Prefix{}), cmpopts.SortSlices(less)); d != "" {
		t.Fatalf("addresses (-want +got):\n%s", d)
	}
}

// comesFrom fails unless the guest's new connections have these addresses.
func (f *guestsFixture) comesFrom(t *testing.T, want ...netip.Prefix) {
	t.Helper()
	got := f.Sources(t, f.WithAgent)
	for i, p := range want {
		if i >= len(got) || got[i] != p.Addr() {
			t.Fatalf("new connections come from %v, want %v", got, want)
		}
	}
}

// home brings the guest's addresses back to what they were.
func (f *guestsFixture) home(t *testing.T) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	vm := f.WithAgent
	succeed(t, f.g.AddAddress(ctx, vm.Name, vm.MAC, driver.GuestAddresses{Prefixes: f.Had, Gateways: f.Gateways, Primary: true}))
	for _, p := range f.addresses(t) {
		if !slices.Contains(f.Had, p) {
			succeed(t, f.g.DropAddress(ctx, vm.Name, vm.MAC, p.Addr()))
		}
	}
	f.has(t, f.Had...)
	f.comesFrom(t, f.Had...)
}

func (f *guestsFixture) add(t *testing.T, c driver.GuestAddresses) {
	t.Helper()
	succeed(t, f.g.AddAddress(t.Context(), f.WithAgent.Name, f.WithAgent.MAC, c))
}

// alone is an address without its subnet.
func alone(p netip.Prefix) netip.Prefix { return netip.PrefixFrom(p.Addr(), p.Addr().BitLen()) }

// wantKind fails unless err is a drover.Error of one of the kinds.
func wantKind(t *testing.T, what string, err error, want ...drover.Kind) {
	t.Helper()
	if err == nil || !slices.Contains(want, drover.KindOf(err)) {
		t.Errorf("%s: got error %v of kind %v, want kind %v", what, err, drover.KindOf(err), want)
	}
}

func guestsAgent(t *testing.T, f *guestsFixture) {
	a, err := f.g.Agent(t.Context(), f.WithAgent.Name)
	succeed(t, err)
	if !a.Answers || !a.Interfaces || !a.Addresses || !a.Hostname || !a.Freeze || a.Fault != "" || a.Version == "" {
		t.Errorf("agent that can do everything: %+v", a)
	}
	for _, vm := range []GuestVM{f.WithoutAgent, f.Off} {
		a, err := f.g.Agent(t.Context(), vm.Name)
		succeed(t, err)
		if a.Answers || a.Interfaces || a.Addresses || a.Hostname || a.Freeze || a.Fault == "" {
			t.Errorf("agent of %s: %+v, want one that does not answer, and why", vm.Name, a)
		}
	}
	_, err = f.g.Agent(t.Context(), absentVM)
	wantKind(t, "agent of a missing vm", err, drover.NotFound)
}

func guestsInterfaces(t *testing.T, f *guestsFixture) {
	f.has(t, f.Had...)
	_, err := f.g.Interfaces(t.Context(), f.WithoutAgent.Name)
	wantKind(t, "without agent", err, drover.Unavailable, drover.Refused)
	_, err = f.g.Interfaces(t.Context(), f.Off.Name)
	wantKind(t, "off", err, drover.Refused)
	_, err = f.g.Interfaces(t.Context(), absentVM)
	wantKind(t, "missing", err, drover.NotFound)
}

// guestsStandby: addresses that are only answered change nothing else, and may
// become primary.
func guestsStandby(t *testing.T, f *guestsFixture) {
	defer f.home(t)
	standby := driver.GuestAddresses{Prefixes: otherAddresses}
	for range 2 {
		f.add(t, standby)
		f.has(t, f.Had[0], f.Had[1], alone(otherAddresses[0]), otherAddresses[1])
		f.comesFrom(t, f.Had...)
	}
	f.add(t, driver.GuestAddresses{Prefixes: otherAddresses, Gateways: otherGateways, Primary: true})
	f.has(t, alone(f.Had[0]), f.Had[1], otherAddresses[0], otherAddresses[1])
	f.comesFrom(t, otherAddresses...)
	// What is primary stays it.
	f.add(t, standby)
	f.has(t, alone(f.Had[0]), f.Had[1], otherAddresses[0], otherAddresses[1])
	f.comesFrom(t, otherAddresses...)
}

func guestsPrimary(t *testing.T, f *guestsFixture) {
	defer f.home(t)
	for range 2 {
		f.add(t, driver.GuestAddresses{Prefixes: otherAddresses, Gateways: otherGateways, Primary: true})
		f.has(t, alone(f.Had[0]), f.Had[1], otherAddresses[0], otherAddresses[1])
		f.comesFrom(t, otherAddresses...)
	}
	// Another driver finds what this one did, and undoes it.
	f.g = f.New(t)
	t.Cleanup(func() { succeed(t, f.g.Close()) })
	for range 2 {
		f.add(t, driver.GuestAddresses{Prefixes: f.Had, Gateways: f.Gateways, Primary: true})
		f.has(t, f.Had[0], f.Had[1], alone(otherAddresses[0]), otherAddresses[1])
		f.comesFrom(t, f.Had...)
	}
}

// guestsSameSubnet: a new address beside the old one, as of a clone.
func guestsSameSubnet(t *testing.T, f *guestsFixture) {
	defer f.home(t)
	var beside []netip.Prefix
	for _, p := range f.Had {
		b := p.Addr().AsSlice()
		b[len(b)-1] ^= 0x40
		a, _ := netip.AddrFromSlice(b)
		beside = append(beside, netip.PrefixFrom(a, p.Bits()))
	}
	for range 2 {
		f.add(t, driver.GuestAddresses{Prefixes: beside, Gateways: f.Gateways, Primary: true})
		f.has(t, alone(f.Had[0]), f.Had[1], beside[0], beside[1])
		f.comesFrom(t, beside...)
	}
}

// guestsOneFamily: the other family is left alone.
func guestsOneFamily(t *testing.T, f *guestsFixture) {
	defer f.home(t)
	f.add(t, driver.GuestAddresses{Prefixes: otherAddresses[:1], Gateways: otherGateways[:1], Primary: true})
	f.has(t, alone(f.Had[0]), f.Had[1], otherAddresses[0])
	f.comesFrom(t, otherAddresses[0], f.Had[1])
	f.add(t, driver.GuestAddresses{Prefixes: otherAddresses[1:], Gateways: otherGateways[1:], Primary: true})
	f.has(t, alone(f.Had[0]), f.Had[1], otherAddresses[0], otherAddresses[1])
	f.comesFrom(t, otherAddresses...)
}

func guestsDrop(t *testing.T, f *guestsFixture) {
	defer f.home(t)
	ctx, vm := t.Context(), f.WithAgent
	succeed(t, f.g.DropAddress(ctx, vm.Name, vm.MAC, otherAddresses[0].Addr()))
	for _, p := range f.Had {
		wantKind(t, "drop the last address", f.g.DropAddress(ctx, vm.Name, vm.MAC, p.Addr()), drover.Refused)
	}
	f.has(t, f.Had...)
	f.add(t, driver.GuestAddresses{Prefixes: otherAddresses, Gateways: otherGateways, Primary: true})
	for range 2 {
		for _, p := range f.Had {
			succeed(t, f.g.DropAddress(ctx, vm.Name, vm.MAC, p.Addr()))
		}
		f.has(t, otherAddresses...)
		f.comesFrom(t, otherAddresses...)
	}
	wantKind(t, "without agent", f.g.DropAddress(ctx, f.WithoutAgent.Name, f.WithoutAgent.MAC, f.Had[0].Addr()), drover.Unavailable, drover.Refused)
	wantKind(t, "missing vm", f.g.DropAddress(ctx, absentVM, vm.MAC, f.Had[0].Addr()), drover.NotFound)
}

func guestsBadInput(t *testing.T, f *guestsFixture) {
	ctx, vm := t.Context(), f.WithAgent
	p := netip.MustParsePrefix
	a := netip.MustParseAddr
	for what, c := range map[string]driver.GuestAddresses{
		"nothing":              {},
		"no prefix":            {Prefixes: []netip.Prefix{{}}},
		"multicast":            {Prefixes: []netip.Prefix{p("224.0.0.1/24")}},
		"link-local":           {Prefixes: []netip.Prefix{p("fe80::1/64")}},
		"loopback":             {Prefixes: []netip.Prefix{p("127.0.0.1/8")}},
		"twice":                {Prefixes: []netip.Prefix{p("198.51.100.1/24"), p("198.51.100.1/32")}},
		"gateway, not primary": {Prefixes: otherAddresses, Gateways: otherGateways},
		"gateway is itself":    {Prefixes: otherAddresses, Gateways: []netip.Addr{otherAddresses[0].Addr()}, Primary: true},
		"two gateways":         {Prefixes: otherAddresses, Gateways: []netip.Addr{a("198.51.100.1"), a("198.51.100.2")}, Primary: true},
		"gateway alone":        {Prefixes: otherAddresses[:1], Gateways: otherGateways, Primary: true},
	} {
		wantKind(t, what, f.g.AddAddress(ctx, vm.Name, vm.MAC, c), drover.Invalid)
	}
	good := driver.GuestAddresses{Prefixes: otherAddresses}
	for _, mac := range []string{"", "52:54:00", "x", "01:00:5e:00:00:01", "02:00:5e:10:00:00:00:01"} {
		wantKind(t, "MAC "+mac, f.g.AddAddress(ctx, vm.Name, mac, good), drover.Invalid)
		wantKind(t, "MAC "+mac, f.g.DropAddress(ctx, vm.Name, mac, otherAddresses[0].Addr()), drover.Invalid)
		wantKind(t, "MAC "+mac, f.g.SetLink(ctx, vm.Name, mac, true), drover.Invalid)
	}
	for _, name := range []string{"", "a b", "-a", "a..b", "über", "a\nb"} {
		wantKind(t, "hostname "+name, f.g.SetHostname(ctx, vm.Name, name), drover.Invalid)
	}
	wantKind(t, "drop nothing", f.g.DropAddress(ctx, vm.Name, vm.MAC, netip.Addr{}), drover.Invalid)
	wantKind(t, "absent MAC", f.g.AddAddress(ctx, vm.Name, absentMAC, good), drover.NotFound)
	wantKind(t, "missing vm", f.g.AddAddress(ctx, absentVM, vm.MAC, good), drover.NotFound)
	wantKind(t, "off", f.g.AddAddress(ctx, f.Off.Name, f.Off.MAC, good), drover.Refused)
	wantKind(t, "without agent", f.g.AddAddress(ctx, f.WithoutAgent.Name, f.WithoutAgent.MAC, good), drover.Unavailable, drover.Refused)
	f.has(t, f.Had...)
}

func guestsLink(t *testing.T, f *guestsFixture) {
	ctx := t.Context()
	for _, vm := range []GuestVM{f.WithoutAgent, f.WithAgent} {
		succeed(t, f.g.SetLink(ctx, vm.Name, vm.MAC, true))
		for _, up := range []bool{false, true} {
			for range 2 {
				succeed(t, f.g.SetLink(ctx, vm.Name, vm.MAC, up))
				if f.Link(t, vm) != up {
					t.Errorf("%s: the link is up: %v, want %v", vm.Name, !up, up)
				}
			}
		}
	}
	wantKind(t, "absent MAC", f.g.SetLink(ctx, f.WithAgent.Name, absentMAC, false), drover.NotFound)
	wantKind(t, "missing vm", f.g.SetLink(ctx, absentVM, f.WithAgent.MAC, false), drover.NotFound)
	wantKind(t, "off", f.g.SetLink(ctx, f.Off.Name, f.Off.MAC, false), drover.Refused)
}

func guestsHostname(t *testing.T, f *guestsFixture) {
	was := f.Hostname(t, f.WithAgent)
	for _, name := range []string{"web2.lab.example", was} {
		for range 2 {
			succeed(t, f.g.SetHostname(t.Context(), f.WithAgent.Name, name))
		}
		if got := f.Hostname(t, f.WithAgent); got != name {
			t.Errorf("the guest calls itself %q, want %q", got, name)
		}
	}
	wantKind(t, "missing vm", f.g.SetHostname(t.Context(), absentVM, "a"), drover.NotFound)
}

func guestsFreeze(t *testing.T, f *guestsFixture) {
	ctx, vm := t.Context(), f.WithAgent
	defer func() { succeed(t, f.g.Thaw(context.WithoutCancel(ctx), vm.Name)) }()
	for range 2 {
		succeed(t, f.g.Freeze(ctx, vm.Name))
	}
	wantKind(t, "change addresses while frozen", f.g.AddAddress(ctx, vm.Name, vm.MAC, driver.GuestAddresses{Prefixes: otherAddresses}), drover.Refused)
	other := f.New(t)
	defer func() { succeed(t, other.Close()) }()
	for range 2 {
		succeed(t, other.Thaw(ctx, vm.Name))
	}
	f.has(t, f.Had...)
	succeed(t, f.g.Thaw(ctx, absentVM))
	succeed(t, f.g.Thaw(ctx, f.Off.Name))
	wantKind(t, "missing vm", f.g.Freeze(ctx, absentVM), drover.NotFound)
	wantKind(t, "off", f.g.Freeze(ctx, f.Off.Name), drover.Refused)
	wantKind(t, "without agent", f.g.Freeze(ctx, f.WithoutAgent.Name), drover.Unavailable, drover.Refused)
}

func guestsCanceled(t *testing.T, f *guestsFixture) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := f.g.Agent(ctx, f.WithAgent.Name)
	wantKind(t, "agent", err, drover.Canceled)
	wantKind(t, "add address", f.g.AddAddress(ctx, f.WithAgent.Name, f.WithAgent.MAC, driver.GuestAddresses{Prefixes: otherAddresses}), drover.Canceled)
	wantKind(t, "set link", f.g.SetLink(ctx, f.WithAgent.Name, f.WithAgent.MAC, false), drover.Canceled)
	f.has(t, f.Had...)
}

func guestsClose(t *testing.T, f *guestsFixture) {
	g := f.New(t)
	succeed(t, g.Close())
	succeed(t, g.Close())
	if _, err := g.Interfaces(t.Context(), f.WithAgent.Name); err == nil {
		t.Error("a closed driver works")
	}
	f.has(t, f.Had...)
}
