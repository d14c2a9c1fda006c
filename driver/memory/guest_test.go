package memory_test

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/driver/drivertest"
	"github.com/drover-vm/drover/driver/memory"
)

// guestFleet has VMs with one network card each on host a: "full" with an agent,
// "mute" without, "off" that does not run.
func guestFleet(t *testing.T) (*memory.GuestWorld, map[string]drover.VM, [2]*memory.Hypervisor) {
	fleet, hosts := newFleet()
	world := memory.NewGuestWorld(fleet)
	vms := map[string]drover.VM{}
	for i, name := range []string{"full", "mute", "off"} {
		vm := testVM()
		vm.Name, vm.Disks = name, nil
		vm.UUID = "d5000000-0000-4000-8000-00000000000" + string(rune('1'+i))
		vm.NICs = []drover.NIC{{MAC: "52:54:00:d5:00:0" + string(rune('1'+i)), Network: "br0", Model: "virtio"}}
		_, err := hosts[0].Define(t.Context(), memory.NewDefinition(vm))
		must(t, err)
		if name != "off" {
			must(t, hosts[0].Start(t.Context(), name))
		}
		vms[name] = vm
	}
	world.SetAgent(vms["mute"].UUID, memory.AgentMissing)
	return world, vms, hosts
}

var (
	oldAddresses = []netip.Prefix{netip.MustParsePrefix("192.0.2.10/24"), netip.MustParsePrefix("2001:db8:2::10/64")}
	newAddresses = []netip.Prefix{netip.MustParsePrefix("198.51.100.20/24"), netip.MustParsePrefix("2001:db8:51::20/64")}
)

func TestGuestsConformance(t *testing.T) {
	world, vms, hosts := guestFleet(t)
	at := func(name string) drivertest.GuestVM {
		return drivertest.GuestVM{Name: name, MAC: vms[name].NICs[0].MAC}
	}
	world.SetAddresses(vms["full"].UUID, at("full").MAC, oldAddresses...)
	drivertest.Guests(t, drivertest.GuestsSetup{
		New:       func(*testing.T) driver.Guests { return world.Guests("a") },
		WithAgent: at("full"), WithoutAgent: at("mute"), Off: at("off"),
		Had:      oldAddresses,
		Gateways: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8:2::1")},
		Sources: func(_ *testing.T, vm drivertest.GuestVM) []netip.Addr {
			s := world.Sources(vms[vm.Name].UUID, vm.MAC)
			return s[:]
		},
		Link:       func(_ *testing.T, vm drivertest.GuestVM) bool { return world.Link(vms[vm.Name].UUID, vm.MAC) },
		Hostname:   func(_ *testing.T, vm drivertest.GuestVM) string { return hostnameOr(world, vms[vm.Name].UUID) },
		Hypervisor: hosts[0], Networks: [2]string{"br0", "br1"},
		VM:         drover.VM{VCPUs: 1, MemoryBytes: 64 * drover.MiB, Machine: "pc-q35-10.0", Accelerator: "tcg"},
		Define:     func(_ *testing.T, vm drover.VM) driver.Definition { return memory.NewDefinition(vm) },
		DiskFolder: "/images",
	})
}

// hostnameOr is the guest's name, which it has from somewhere before anybody
// names it.
func hostnameOr(world *memory.GuestWorld, uuid string) string {
	if name := world.Hostname(uuid); name != "" {
		return name
	}
	return "full"
}

// TestGuestsLeases: a cable that is put back in makes the guest ask, one that
// ignores DHCP keeps what it has.
func TestGuestsLeases(t *testing.T) {
	world, vms, _ := guestFleet(t)
	g := world.Guests("a")
	vm := vms["mute"]
	mac := vm.NICs[0].MAC
	world.SetAddresses(vm.UUID, mac, oldAddresses...)
	world.SetLease(func(uuid string, nic drover.NIC) []netip.Prefix {
		if uuid == vm.UUID && nic.Network == "br0" {
			return newAddresses
		}
		return nil
	})
	world.SetAgent(vm.UUID, memory.AgentAnswers) // only to look
	bounce := func() []netip.Prefix {
		must(t, g.SetLink(t.Context(), vm.Name, mac, false))
		must(t, g.SetLink(t.Context(), vm.Name, mac, true))
		list, err := g.Interfaces(t.Context(), vm.Name)
		must(t, err)
		return list[0].Addresses
	}
	world.IgnoreDHCP(vm.UUID)
	if got := bounce(); !slices.Equal(got, oldAddresses) {
		t.Errorf("a guest that ignores DHCP has %v", got)
	}
	full := vms["full"]
	world.SetAddresses(full.UUID, full.NICs[0].MAC, oldAddresses...)
	vm, mac = full, full.NICs[0].MAC
	want := append(slices.Clone(newAddresses), netip.MustParsePrefix("192.0.2.10/32"), oldAddresses[1])
	if got := bounce(); !slices.Equal(got, want) {
		t.Errorf("after the cable was out the guest has %v, want %v", got, want)
	}
	if got := world.Sources(vm.UUID, mac); got != [2]netip.Addr{newAddresses[0].Addr(), newAddresses[1].Addr()} {
		t.Errorf("new connections come from %v", got)
	}
}

// TestGuestsHang: an agent that never answers is no error of Agent's, and
// Unavailable for the rest.
func TestGuestsHang(t *testing.T) {
	world, vms, _ := guestFleet(t)
	g := world.Guests("a")
	world.SetAgent(vms["full"].UUID, memory.AgentHangs)
	a, err := g.Agent(t.Context(), "full")
	if err != nil || a.Answers || a.Fault == "" {
		t.Errorf("agent: %+v, %v", a, err)
	}
	if err := g.Freeze(t.Context(), "full"); drover.KindOf(err) != drover.Unavailable {
		t.Errorf("freeze: %v", err)
	}
}
