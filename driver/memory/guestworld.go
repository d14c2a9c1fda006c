package memory

import (
	"net/netip"
	"slices"

	"github.com/drover-vm/drover"
)

// AgentMode is how a guest's agent behaves.
type AgentMode int

// The modes: one that does everything, none at all, one that never answers.
const (
	AgentAnswers AgentMode = iota
	AgentMissing
	AgentHangs
)

// GuestWorld is the inside of a fleet's VMs. It goes with the VM wherever that
// moves, as a guest's memory does.
type GuestWorld struct {
	fleet *Fleet
	// What follows is guarded by the fleet's lock.
	inside map[string]*guestInside // by UUID
	lease  Lease
}

// Lease stands for the DHCP of a network: what a guest that asks there is given.
// It runs without any lock held.
type Lease func(uuid string, nic drover.NIC) []netip.Prefix

type guestInside struct {
	agent    AgentMode
	frozen   bool
	hostname string
	ignores  bool // DHCP
	nics     map[string]*guestNIC
}

// guestNIC is an interface; index 0 of the arrays is IPv4, 1 is IPv6.
type guestNIC struct {
	addresses []netip.Prefix
	sources   [2]netip.Addr
	down      bool
}

// NewGuestWorld returns the inside of the fleet's VMs, each with an agent that
// answers and without addresses.
func NewGuestWorld(fleet *Fleet) *GuestWorld {
	return &GuestWorld{fleet: fleet, inside: map[string]*guestInside{}}
}

// Guests returns the driver of a host, nil if there is no such host. Faults come
// from the fleet's, before and after "agent", "interfaces", "add address", "drop
// address", "set link", "set hostname", "freeze" and "thaw".
func (w *GuestWorld) Guests(host string) *Guests {
	h := w.fleet.Hypervisor(host)
	if h == nil {
		return nil
	}
	return &Guests{world: w, h: h}
}

// SetAgent says how the agent of the VM with that UUID behaves.
func (w *GuestWorld) SetAgent(uuid string, mode AgentMode) {
	w.with(uuid, func(in *guestInside) { in.agent = mode })
}

// IgnoreDHCP makes the guest keep its addresses when its cable is put back in.
func (w *GuestWorld) IgnoreDHCP(uuid string) {
	w.with(uuid, func(in *guestInside) { in.ignores = true })
}

// SetLease installs what DHCP gives out; nil means nothing.
func (w *GuestWorld) SetLease(lease Lease) {
	w.fleet.mu.Lock()
	defer w.fleet.mu.Unlock()
	w.lease = lease
}

// SetAddresses gives a guest's interface its addresses, the first of each family
// being what new connections have.
func (w *GuestWorld) SetAddresses(uuid, mac string, addresses ...netip.Prefix) {
	w.with(uuid, func(in *guestInside) {
		nic := in.nic(mac)
		nic.addresses, nic.sources = slices.Clone(addresses), [2]netip.Addr{}
		for _, p := range slices.Backward(addresses) {
			nic.sources[family(p.Addr())] = p.Addr()
		}
	})
}

// Sources returns what new connections of a guest's interface come from, IPv4
// first; an address that is not valid means none.
func (w *GuestWorld) Sources(uuid, mac string) (sources [2]netip.Addr) {
	w.with(uuid, func(in *guestInside) { sources = in.nic(mac).sources })
	return sources
}

// Link reports whether the cable is in, Frozen whether the guest's file systems
// are, Hostname what it was named.
func (w *GuestWorld) Link(uuid, mac string) (up bool) {
	w.with(uuid, func(in *guestInside) { up = !in.nic(mac).down })
	return up
}

// Frozen reports whether the guest's file systems are frozen.
func (w *GuestWorld) Frozen(uuid string) (frozen bool) {
	w.with(uuid, func(in *guestInside) { frozen = in.frozen })
	return frozen
}

// Hostname returns what SetHostname named the guest, "" for nothing.
func (w *GuestWorld) Hostname(uuid string) (name string) {
	w.with(uuid, func(in *guestInside) { name = in.hostname })
	return name
}

func (w *GuestWorld) with(uuid string, f func(*guestInside)) {
	w.fleet.mu.Lock()
	defer w.fleet.mu.Unlock()
	f(w.of(uuid))
}

// of returns the inside of a VM. The fleet's lock is held.
func (w *GuestWorld) of(uuid string) *guestInside {
	in := w.inside[uuid]
	if in == nil {
		in = &guestInside{nics: map[string]*guestNIC{}}
		w.inside[uuid] = in
	}
	return in
}

func (in *guestInside) nic(mac string) *guestNIC {
	n := in.nics[mac]
	if n == nil {
		n = &guestNIC{}
		in.nics[mac] = n
	}
	return n
}

func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}
