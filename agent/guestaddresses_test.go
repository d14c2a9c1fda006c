package agent

import (
	"context"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// talking is guests of which each says what it was told to.
type talking struct {
	driver.Guests
	asked int
	says  []driver.GuestInterface
	err   error
}

func (g *talking) Interfaces(context.Context, string) ([]driver.GuestInterface, error) {
	g.asked++
	return g.says, g.err
}

func TestGuestAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &talking{err: drover.Errorf(drover.Unavailable, "agent", "it boots")}
		k := newGuestAddresses(g, time.Now)
		vm := drover.VM{Name: "web1", UUID: "u", State: drover.VMRunning, NICs: []drover.NIC{{MAC: "52:54:00:00:00:0B"}}}
		look := func() []netip.Addr {
			vms := []drover.VM{vm}
			vms[0].NICs = slices.Clone(vm.NICs)
			k.fill(t.Context(), vms)
			synctest.Wait()
			return vms[0].NICs[0].Addresses
		}
		if look(); g.asked != 1 {
			t.Errorf("asked %d times, want once", g.asked)
		}
		if look(); g.asked != 1 {
			t.Errorf("asked again at once")
		}
		g.says = []driver.GuestInterface{{MAC: "52:54:00:00:00:0b", Addresses: []netip.Prefix{netip.MustParsePrefix("10.50.0.11/24")}}}
		g.err = nil
		time.Sleep(askGuestFirst)
		look()
		if got := look(); g.asked != 2 || !slices.Equal(got, addresses("10.50.0.11")) {
			t.Errorf("asked %d times, has %v", g.asked, got)
		}
		g.err = drover.Errorf(drover.Unavailable, "agent", "it hangs")
		time.Sleep(askGuestEvery)
		look()
		if got := look(); g.asked != 3 || !slices.Equal(got, addresses("10.50.0.11")) {
			t.Errorf("one that does not answer any more: asked %d times, has %v", g.asked, got)
		}
		vm.State = drover.VMOff
		if got := look(); len(got) != 0 {
			t.Errorf("off: %v", got)
		}
		vm.State = drover.VMRunning
		if got := look(); len(got) != 0 {
			t.Errorf("started again: %v", got)
		}
		k.close()
	})
}

func TestLabelledAddresses(t *testing.T) {
	vms := []drover.VM{{
		Name: "a", State: drover.VMRunning, NICs: []drover.NIC{{MAC: "52:54:00:00:00:01"}, {MAC: "52:54:00:00:00:02"}},
		Labels: map[string]string{addressesLabel: "10.50.0.11, fd00:50::11,nonsense,::1"},
	}}
	newGuestAddresses(nil, time.Now).fill(t.Context(), vms)
	if got := vms[0].NICs[0].Addresses; !slices.Equal(got, vmAddresses) || vms[0].NICs[1].Addresses != nil {
		t.Errorf("got %v, %v", got, vms[0].NICs[1].Addresses)
	}
}
