package memory_test

import (
	"net/netip"
	"testing"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/driver/drivertest"
	"github.com/drover-vm/drover/driver/memory"
)

func newLoadBalancer() *memory.LoadBalancer {
	at := netip.MustParseAddrPort
	lb := memory.NewLoadBalancer()
	servers := map[string]netip.AddrPort{drivertest.BalancerOne: at("192.0.2.1:80"), drivertest.BalancerTwo: at("[2001:db8::2]:80")}
	lb.Configure(drivertest.BalancerBackend, false, drivertest.BalancerWeight, servers)
	lb.Configure(drivertest.BalancerFixed, true, drivertest.BalancerWeight, map[string]netip.AddrPort{drivertest.BalancerOne: at("192.0.2.1:80")})
	return lb
}

func TestBalancer(t *testing.T) {
	drivertest.Balancer(t, func(t *testing.T) drivertest.Balancing {
		lb, dead := newLoadBalancer(), netip.MustParseAddrPort("192.0.2.9:80")
		lb.Kill(dead)
		session := func(t *testing.T) *memory.Session {
			s, err := lb.Session(drivertest.BalancerBackend)
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		return drivertest.Balancing{
			Open:   func(*testing.T) driver.Balancer { return lb.Open() },
			Reload: func(*testing.T) {}, // what is in memory stays
			Visit: func(t *testing.T, n int) map[netip.AddrPort]int {
				counts := map[netip.AddrPort]int{}
				for range n {
					s := session(t)
					counts[s.Server]++
					s.End()
				}
				return counts
			},
			Hold: func(t *testing.T) drivertest.Held {
				s := session(t)
				return drivertest.Held{Server: s.Server, Alive: s.Alive, End: s.End}
			},
			Spare: netip.MustParseAddrPort("192.0.2.3:80"), Dead: dead,
		}
	})
}

// TestBalancerFault: an operation that is told to fail changes nothing.
func TestBalancerFault(t *testing.T) {
	lb := newLoadBalancer()
	fail := true
	lb.Fault = func(op, backend string) error {
		if fail && op == "drain" && backend == drivertest.BalancerBackend {
			return drover.Errorf(drover.Unavailable, "", "as told")
		}
		return nil
	}
	b, owner := lb.Open(), driver.MoveOwner("m1")
	if err := b.Drain(t.Context(), owner, drivertest.BalancerBackend, drivertest.BalancerOne); drover.KindOf(err) != drover.Unavailable {
		t.Errorf("got %v, want the fault", err)
	}
	if all, err := b.List(t.Context()); len(all) != 0 || err != nil {
		t.Errorf("a fault has changed %+v, %v", all, err)
	}
	fail = false
	if err := b.Drain(t.Context(), owner, drivertest.BalancerBackend, drivertest.BalancerOne); err != nil {
		t.Error(err)
	}
}
