package memory_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/driver/drivertest"
	"github.com/drover-vm/drover/driver/memory"
)

func newEdge() *memory.Edge {
	return memory.NewEdge(memory.EdgeConfig{
		Bridges: []string{drivertest.AddressesBridge, drivertest.AddressesOther}, Mesh: drivertest.AddressesMesh,
		Remotes: []netip.Addr{drivertest.AddressesRemote, drivertest.AddressesRemote2},
		Foreign: []netip.Addr{drivertest.AddressesForeign},
	})
}

func TestAddresses(t *testing.T) {
	drivertest.Addresses(t, func(*testing.T) drivertest.Edge {
		edge := newEdge()
		return drivertest.Edge{
			Open:  func(*testing.T) driver.Addresses { return edge.Open() },
			State: func(*testing.T) string { return edge.State() },
			Converse: func(*testing.T) {
				guest := netip.MustParseAddrPort("10.1.0.5:7")
				edge.AddSession(driver.AddressSession{
					Address: guest, Peer: netip.MustParseAddrPort("198.51.100.2:40000"), Protocol: "tcp", State: "established", Live: true, Received: 100, Sent: 100,
				})
				edge.AddTraffic(driver.AddressTraffic{Address: guest.Addr(), To: driver.AddressPaths{RouterBridge: 100}, From: driver.AddressPaths{BridgeRouter: 100}})
			},
		}
	})
}

// TestAddressesLimit: the limit of an old address is what was asked for last.
func TestAddressesLimit(t *testing.T) {
	edge, addr, owner := newEdge(), netip.MustParseAddr("10.1.0.5"), driver.VMOwner("a")
	d := edge.Open()
	for _, limit := range []time.Duration{time.Hour, time.Minute} {
		err := d.ForwardOld(t.Context(), owner, driver.OldForward{
			Addresses: []netip.Addr{addr}, Bridge: drivertest.AddressesBridge, Limit: limit,
			To: driver.MeshPath{Interface: drivertest.AddressesMesh, Remote: drivertest.AddressesRemote},
		})
		if err != nil || edge.Limit(addr) != limit {
			t.Errorf("limit %v, want %v: %v", edge.Limit(addr), limit, err)
		}
	}
	if err := d.Remove(t.Context(), owner); err != nil || edge.Limit(addr) != 0 {
		t.Errorf("after Remove: %v, %v", edge.Limit(addr), err)
	}
}

// TestAddressesFault: an operation that is told to fail changes nothing.
func TestAddressesFault(t *testing.T) {
	edge := memory.NewEdge(memory.EdgeConfig{Bridges: []string{"br-web"}, Fault: func(op string) error {
		if op == "elsewhere" {
			return drover.Errorf(drover.Unavailable, "", "as told")
		}
		return nil
	}})
	d := edge.Open()
	if err := d.Elsewhere(t.Context(), driver.VMOwner("a"), []netip.Addr{netip.MustParseAddr("10.1.0.5")}, "br-web"); drover.KindOf(err) != drover.Unavailable {
		t.Errorf("got %v, want the fault", err)
	}
	if all, err := d.List(t.Context()); len(all) != 0 || err != nil {
		t.Errorf("List: %+v, %v", all, err)
	}
}
