package libvirt_test

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// TestMigrateToOtherBridge moves a running guest between hosts that have no
// bridge in common: the definition that Prepare is given names the
// destination's, and so does the one that is stored there for the next start.
// The guest's agent answers there.
func TestMigrateToOtherBridge(t *testing.T) {
	cache := t.TempDir()
	a := newGuestHost(t, "guesta", "d2000000-0000-4000-8000-00000000000d", cache, "br-there")
	b := newGuestHost(t, "guestb", "d2000000-0000-4000-8000-00000000000e", cache, "br-here")
	const name, mac, socket = "moves", "52:54:00:d7:00:01", "/run/memory.sock"
	relay(t, a, b, socket)
	source, target := a.open(t), b.open(t)
	defer source.Close()
	defer target.Close()
	a.boot(t, source, a.guestXML(name, "d7000000-0000-4000-8000-000000000001", mac, "br-there", "drover.ip=192.0.2.10/24 drover.gw=192.0.2.1", true))
	before := a.control(t, "br-there", mac)
	until(t, "the guest answers", func() error { return before.Health(t.Context()) })
	boot, err := before.Stats(t.Context())
	if err != nil {
		t.Fatal(err)
	}

	g := b.guests(t)
	defer g.Close()
	to := driver.Retarget{
		NICs:  []driver.RetargetNIC{{MAC: mac, Network: "br-here"}},
		Probe: &drover.ProbeTarget{TCP: "198.51.100.20:7000"},
	}
	spec := driver.MigrationSpec{Name: name, MemorySocket: socket}
	stored, err := source.Definition(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	if spec.Persistent, err = g.Retarget(stored, to); err != nil {
		t.Fatal(err)
	}
	out, err := source.Begin(t.Context(), name, spec)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if _, err := target.Prepare(t.Context(), spec, out.Offer()); err == nil {
		t.Fatal("the destination takes a guest on a bridge that it does not have")
	}
	offer := out.Offer()
	if offer.Definition, err = g.Retarget(offer.Definition, to); err != nil {
		t.Fatal(err)
	}
	in, err := target.Prepare(t.Context(), spec, offer)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	cookie, err := out.Perform(t.Context(), in.Prepared())
	if err != nil {
		t.Fatal(err)
	}
	heard := b.listen(t, "br-here")
	if cookie, err = in.Finish(t.Context(), cookie); err != nil {
		t.Fatal(err)
	}
	if err := out.Confirm(t.Context(), cookie, true); err != nil {
		t.Fatal(err)
	}

	heard(t, "gratuitous ARP of the guest that resumed", func(f []byte) bool {
		return len(f) >= 42 && f[12] == 0x08 && f[13] == 0x06 && slices.Equal(f[28:32], []byte{192, 0, 2, 10}) && slices.Equal(f[38:42], f[28:32])
	})

	after := b.control(t, "br-here", mac)
	until(t, "the guest answers at its new place", func() error { return after.Health(t.Context()) })
	if now, err := after.Stats(t.Context()); err != nil || now.BootID != boot.BootID {
		t.Errorf("boot %v, was %v, %v", now.BootID, boot.BootID, err)
	}
	until(t, "the agent answers at its new place", func() error {
		agent, err := g.Agent(t.Context(), name)
		if err == nil && !agent.Answers {
			err = errors.New(agent.Fault)
		}
		return err
	})
	if err := g.AddAddress(t.Context(), name, mac, driver.GuestAddresses{
		Prefixes: []netip.Prefix{netip.MustParsePrefix("198.51.100.20/24")}, Gateways: addrs("198.51.100.1"), Primary: true,
	}); err != nil {
		t.Error(err)
	}
	vm, err := target.VM(t.Context(), name)
	if err != nil || len(vm.NICs) != 1 || vm.NICs[0].Network != "br-here" || vm.Probe == nil || vm.Probe.TCP != "198.51.100.20:7000" {
		t.Errorf("at its new place: %+v, %v", vm, err)
	}
	def, err := target.Definition(t.Context(), name)
	if err != nil || strings.Contains(string(def), "br-there") || !strings.Contains(string(def), "br-here") {
		t.Errorf("definition for the next start: %v\n%s", err, def)
	}
}
