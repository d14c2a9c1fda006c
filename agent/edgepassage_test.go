package agent

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/driver"
)

// described is what the edge tells servers all the time.
func (w *edgeWorld) described() *droverv1.DescribeResponse {
	w.t.Helper()
	r, err := w.client.Describe(w.t.Context(), &droverv1.DescribeRequest{})
	must(w.t, err)
	if r.GetHost().GetFault() != "" || r.GetPassagesUnixNanos() == 0 {
		w.t.Errorf("%s, read at %d", r.GetHost().GetFault(), r.GetPassagesUnixNanos())
	}
	return r
}

// passing wants one passage, or none for one without an owner.
func (w *edgeWorld) passing(what string, want drover.EdgePassage) {
	w.t.Helper()
	all := api.ListFromProto(w.described().GetPassages(), api.EdgePassageFromProto)
	wanted := []drover.EdgePassage{want}
	if want.Owner == "" {
		wanted = []drover.EdgePassage{}
	}
	if diff := cmp.Diff(wanted, all); diff != "" {
		w.t.Errorf("%s: (-want +got)\n%s", what, diff)
	}
}

// TestPassages: an edge tells what of VMs that are away passes it, by how they
// went.
func TestPassages(t *testing.T) {
	w := newEdgeWorld(t).start().meshed()
	must := func(ops ...drover.EdgeOp) {
		t.Helper()
		if _, err := w.do(ops...); err != nil {
			t.Fatal(err)
		}
	}
	count := func() {
		for i, a := range vmAddresses {
			n := drover.Bytes(i + 1)
			w.kernel.AddTraffic(driver.AddressTraffic{
				Address: a,
				To:      driver.AddressPaths{RouterBridge: 1000 * n, RouterTunnel: 100 * n, RouterRouter: 10 * n, BridgeRouter: n},
				From:    driver.AddressPaths{BridgeRouter: 2000 * n, TunnelRouter: 200 * n, RouterRouter: 20 * n, RouterBridge: 2 * n},
			})
		}
	}
	w.passing("nothing", drover.EdgePassage{})
	meter := drover.EdgeOp{Do: drover.MeterTraffic, Addresses: vmAddresses}
	must(meter)
	w.passing("metered, and at home", drover.EdgePassage{})

	// Stretched away: the bridge is the way into the tunnel.
	must(
		drover.EdgeOp{Do: drover.ExtendSegment, Segment: "blue", Sites: []string{"south"}, LocalEgress: true},
		drover.EdgeOp{Do: drover.SetStation, Segment: "blue", MAC: vmMAC, Addresses: vmAddresses, Site: "south"},
	)
	count()
	w.segments.Count(100, vmMAC, driver.TrafficCount{Bytes: 50_000}, driver.TrafficCount{Bytes: 7})
	stretched := drover.EdgePassage{Owner: edgeOwner, Method: drover.Stretch, LocalEgress: true, In: 3 * 1110, Out: 3 * 2220, Crossed: 50_007}
	w.passing("stretched", stretched)
	// Seen from where it went.
	must(
		drover.EdgeOp{Do: drover.SetStation, Segment: "blue", MAC: vmMAC, Addresses: vmAddresses},
		drover.EdgeOp{Do: drover.DeliverHere, Segment: "blue", Addresses: vmAddresses},
		drover.EdgeOp{Do: drover.AnnounceRoutes, Addresses: vmAddresses},
	)
	here := stretched
	here.Here, here.Announced = true, true
	w.passing("stretched to here", here)
	must(drover.EdgeOp{Do: drover.WithdrawRoutes, Addresses: vmAddresses}, drover.EdgeOp{Do: drover.RetractSegment, Segment: "blue"},
		drover.EdgeOp{Do: drover.ForgetAddresses})
	w.passing("at home again", drover.EdgePassage{})

	must(meter, drover.EdgeOp{Do: drover.Elsewhere, Segment: "blue", Addresses: vmAddresses})
	count()
	w.passing("routed away", drover.EdgePassage{Owner: edgeOwner, Method: drover.Route, In: 3 * 110, Out: 3 * 220, Crossed: 3 * 333})
	must(drover.EdgeOp{Do: drover.ForgetAddresses})

	const move = "move/" + moveName
	must(drover.EdgeOp{Do: drover.MeterTraffic, Owner: move, Addresses: vmAddresses},
		drover.EdgeOp{Do: drover.ForwardOld, Owner: move, Segment: "blue", Addresses: vmAddresses, Site: "south", Limit: time.Hour})
	count()
	w.passing("renumbered", drover.EdgePassage{Owner: move, Method: drover.Renumber, In: 3 * 110, Out: 3 * 220, Crossed: 3 * 333})
}

// TestTrips: of the last round trips to an edge the quickest counts; one that does
// not answer has none.
func TestTrips(t *testing.T) {
	var tr trips
	tr.keep([]string{"south", "moon"})
	for _, ms := range []time.Duration{60, 50, 70, 80} {
		tr.note("south", ms*time.Millisecond, nil)
		tr.note("moon", ms*time.Millisecond, nil)
	}
	if diff := cmp.Diff(map[string]float64{"south": 50, "moon": 50}, tr.millis()); diff != "" {
		t.Error(diff)
	}
	tr.note("south", 90*time.Millisecond, nil)
	tr.note("moon", 0, drover.Errorf(drover.Unavailable, "round trip", "no answer"))
	if diff := cmp.Diff(map[string]float64{"south": 70}, tr.millis()); diff != "" {
		t.Error(diff)
	}
	tr.keep(nil)
	if len(tr.millis()) != 0 {
		t.Error("a site that is none any more has a round trip")
	}
}
