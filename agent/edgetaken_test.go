package agent

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/driver"
)

// takenBy is another VM, as this edge may have been told of it or not.
const takenBy = "vm/0a0a0a0a-0000-4000-8000-00000000000a"

// checkReserve has the edge make its part of a preflight for a reservation.
func (w *edgeWorld) checkReserve(op drover.EdgeOp) []drover.Check {
	w.t.Helper()
	r, err := w.client.CheckOps(w.t.Context(), &droverv1.CheckOpsRequest{Ops: opsOf(op)})
	must(w.t, err)
	return api.ChecksFromProto(r.GetChecks())
}

// TestReserveTaken: an address that the edge leads somewhere for another VM is not
// given to a VM, in whatever way it is led, though the DHCP service has it free;
// the preflight of a move that would want it says so.
func TestReserveTaken(t *testing.T) {
	last, other := addresses("10.50.0.201", "fd00:50::200"), netip.MustParseAddr("10.50.0.200")
	for name, led := range map[string][]drover.EdgeOp{
		"a host route":       {{Do: drover.Elsewhere, Owner: takenBy, Segment: "blue", Addresses: last}},
		"delivered":          {{Do: drover.DeliverHere, Owner: takenBy, Segment: "blue", Addresses: last}},
		"announced":          {{Do: drover.AnnounceRoutes, Owner: takenBy, Addresses: last}},
		"old sessions":       {{Do: drover.ForwardOld, Owner: "move/another", Segment: "blue", Addresses: last, Site: "south", Limit: time.Hour}},
		"old ones, accepted": {{Do: drover.AcceptOld, Owner: "move/another", Segment: "blue", Addresses: last, Site: "south"}},
		"an extended segment": {
			{Do: drover.ExtendSegment, Owner: takenBy, Segment: "blue", Sites: []string{"south"}, LocalEgress: true},
			{Do: drover.SetStation, Owner: takenBy, Segment: "blue", MAC: "52:54:00:00:00:0a", Addresses: last, Site: "south"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newEdgeWorld(t).start().meshed()
			_, err := w.do(led...)
			must(t, err)
			reserve := drover.EdgeOp{Do: drover.ReserveLease, Segment: "blue", MAC: vmMAC}
			wished := reserve
			wished.Addresses = last[:1]
			_, err = w.do(wished)
			if drover.KindOf(err) != drover.Exists {
				t.Fatalf("a wish: %v", err)
			}
			for _, part := range []string{"10.50.0.201", led[0].Owner, "name another address, or "} {
				if !strings.Contains(err.Error(), part) || strings.Contains(err.Error(), "\n") {
					t.Errorf("a wish: %q: want one line with %q", err, part)
				}
			}
			if c := w.checkReserve(wished)[0]; c.OK || !strings.Contains(c.Detail, led[0].Owner) || c.Fix == "" {
				t.Errorf("preflight of a wish: %+v", c)
			}
			// Its only address of IPv6 is led, too: no other is there to pick.
			_, err = w.do(reserve)
			if drover.KindOf(err) != drover.Exhausted || !strings.Contains(err.Error(), "taken elsewhere") {
				t.Errorf("the last address: %v", err)
			}
			_, err = w.do(drover.EdgeOp{Do: drover.ForgetAddresses, Owner: led[0].Owner}, drover.EdgeOp{Do: drover.ForgetOwner, Owner: led[0].Owner})
			must(t, err)
			led[len(led)-1].Addresses = last[:1]
			_, err = w.do(led...)
			must(t, err)
			r, err := w.do(reserve)
			must(t, err)
			if got := r.GetAddresses(); len(got) != 2 || got[0] != netip.PrefixFrom(other, 24).String() {
				t.Errorf("reserved %v, while 10.50.0.201 is led elsewhere", got)
			}
		})
	}
}

// TestReserveTakenByItself: what stands for the VM itself keeps no address from it.
func TestReserveTakenByItself(t *testing.T) {
	w := newEdgeWorld(t).start().meshed()
	last := addresses("10.50.0.201")
	_, err := w.do(
		drover.EdgeOp{Do: drover.DeliverHere, Segment: "blue", Addresses: last},
		drover.EdgeOp{Do: drover.ForwardOld, Owner: "move/" + moveName, Segment: "blue", Addresses: last, Site: "south", Limit: time.Hour},
		drover.EdgeOp{Do: drover.MeterTraffic, Owner: takenBy, Addresses: last},
	)
	must(t, err)
	for range 2 {
		_, err = w.do(drover.EdgeOp{Do: drover.ReserveLease, Segment: "blue", MAC: vmMAC, Addresses: last})
		must(t, err)
	}
	// To another VM it is one that is led; that VM is named.
	_, err = w.do(drover.EdgeOp{Do: drover.ReserveLease, Owner: takenBy, Segment: "blue", MAC: "52:54:00:00:00:0a", Addresses: last})
	if drover.KindOf(err) != drover.Exists || !strings.Contains(err.Error(), "vm "+vmName) {
		t.Errorf("another VM: %v", err)
	}
}

// TestReserveTakenLost: the edge still knows what its kernel has lost; and a client
// to whom the DHCP service gave the address does not keep it.
func TestReserveTakenLost(t *testing.T) {
	w := newEdgeWorld(t).start().meshed()
	given := w.leases.Ask("blue", vmMAC)
	op := drover.EdgeOp{Do: drover.Elsewhere, Owner: takenBy, Segment: "blue", Addresses: given[:1]}
	_, err := w.do(op)
	must(t, err)
	w.agent.siteedge.standing.work.Lock() // nothing is made again
	w.kernel.Lose()
	taken, err := w.agent.siteedge.takenBut(t.Context(), edgeOwner)
	w.agent.siteedge.standing.work.Unlock()
	must(t, err)
	if taken[given[0]].owner != driver.Owner(takenBy) {
		t.Errorf("of %v is known %v", given, taken)
	}
	_, err = w.do(drover.EdgeOp{Do: drover.ReserveLease, Segment: "blue", MAC: vmMAC})
	if drover.KindOf(err) != drover.Exists || !strings.Contains(err.Error(), "end the lease") {
		t.Errorf("a client's own lease: %v", err)
	}
	free := w.checkPool()
	if !free.OK || !strings.Contains(free.Detail, "1 IPv4 addresses free") {
		t.Errorf("of two addresses one is led elsewhere: %+v", free)
	}
}

func (w *edgeWorld) checkPool() drover.Check {
	w.t.Helper()
	r, err := w.client.CheckEdge(w.t.Context(), &droverv1.CheckEdgeRequest{Segment: "blue"})
	must(w.t, err)
	return api.ChecksFromProto(r.GetChecks())[0]
}

// TestCheckDeliver: the edge where a VM is to come by a host route says beforehand
// what would fail at the moment itself.
func TestCheckDeliver(t *testing.T) {
	cut := []drover.EdgeOp{
		{Do: drover.ProxyRest, Segment: "blue"},
		{Do: drover.DeliverHere, Segment: "blue", Addresses: vmAddresses, MAC: vmMAC},
		{Do: drover.AnnounceRoutes, Addresses: vmAddresses},
	}
	do := func(ops ...drover.EdgeOp) func(*edgeWorld) {
		return func(w *edgeWorld) {
			_, err := w.do(ops...)
			must(w.t, err)
		}
	}
	one := vmAddresses[:1]
	for name, c := range map[string]struct {
		change func(*edgeWorld)
		check  string // empty: nothing is amiss
		says   string
	}{
		"well":        {func(*edgeWorld) {}, "", ""},
		"done before": {do(cut...), "", ""},
		"no session":  {func(w *edgeWorld) { w.router.SetSession(w.routes, false) }, "announce-routes", "no session with any router"},
		"no proxy": {func(w *edgeWorld) {
			w.slow = func(op string) error {
				if op == "check" {
					return drover.Errorf(drover.Refused, "edge has a router", "there is no default IPv4 route")
				}
				return nil
			}
		}, "proxy-rest", "no default IPv4 route"},
		"another VM's here": {do(drover.EdgeOp{Do: drover.DeliverHere, Owner: takenBy, Segment: "blue", Addresses: one}), "deliver-here", "is delivered here for " + takenBy},
		"another VM's elsewhere": {
			do(drover.EdgeOp{Do: drover.Elsewhere, Owner: takenBy, Segment: "blue", Addresses: one}), "deliver-here", "is led to another site for " + takenBy,
		},
		"announced for another VM": {do(drover.EdgeOp{Do: drover.AnnounceRoutes, Owner: takenBy, Addresses: one}), "deliver-here", "is announced here for " + takenBy},
		"a station has it":         {func(w *edgeWorld) { w.kernel.SetStation("br-blue", one[0], "52:54:00:00:00:99") }, "address-unused", "is used by the station 52:54:00:00:00:99"},
		"it answers itself":        {func(w *edgeWorld) { w.kernel.SetStation("br-blue", one[0], vmMAC) }, "", ""},
		"an edge answers for it":   {func(w *edgeWorld) { w.kernel.SetStation("br-blue", one[0], "52:54:00:00:00:fe") }, "", ""},
		"no next hop": {func(w *edgeWorld) {
			w.agent.siteedge.config.BGP.Addresses = addresses("100.127.0.2")
		}, "announce-routes", "no IPv6 address towards its routers"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newEdgeWorld(t).start().meshed()
			c.change(w)
			r, err := w.client.CheckOps(t.Context(), &droverv1.CheckOpsRequest{Ops: opsOf(slices.Clone(cut)...)})
			must(t, err)
			bad := slices.DeleteFunc(api.ChecksFromProto(r.GetChecks()), func(c drover.Check) bool { return c.OK })
			switch {
			case c.check == "" && len(bad) > 0:
				t.Errorf("it finds %+v", bad)
			case c.check != "" && (len(bad) == 0 || bad[0].Name != c.check || bad[0].Fix == "" || !strings.Contains(bad[0].Detail, c.says)):
				t.Errorf("it finds %+v, want %s: %s", bad, c.check, c.says)
			}
		})
	}
}
