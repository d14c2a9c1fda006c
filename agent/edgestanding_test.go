package agent

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api/droverv1"
)

// TestGuestIsTold: a guest that comes by a host route is told at the cut-over of the
// neighbours that it may remember, but for those that live here; not again when the
// kernel has lost what stands.
func TestGuestIsTold(t *testing.T) {
	w := newEdgeWorld(t).start().meshed()
	known := addresses("10.50.0.12", "10.50.0.13", "fd00:50::12", "192.0.2.1")
	deliver := drover.EdgeOp{Do: drover.DeliverHere, Segment: "blue", Addresses: vmAddresses, MAC: vmMAC, Neighbors: known}
	_, err := w.do(
		drover.EdgeOp{Do: drover.ProxyRest, Segment: "blue"},
		drover.EdgeOp{Do: drover.DeliverHere, Owner: "vm/0a0a0a0a-0000-4000-8000-00000000000a", Segment: "blue", Addresses: known[1:2]},
	)
	must(t, err)
	_, err = w.run(1, &droverv1.StageEdge{By: "n1", Ops: opsOf(deliver)})
	must(t, err)
	if got := w.kernel.Told(vmMAC); got != nil {
		t.Errorf("it is told of %v before it runs", got)
	}
	_, err = w.cutOver("n1", 1)
	must(t, err)
	if diff := cmp.Diff(addresses("10.50.0.12", "fd00:50::12"), w.kernel.Told(vmMAC), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("it is told (-want +got)\n%s", diff)
	}
	w.kernel.Lose()
	must(t, w.agent.siteedge.mend(t.Context()))
	if got := w.kernel.Told(vmMAC); len(got) != 0 {
		t.Errorf("it is told again of %v", got)
	}
}

// TestKernelLost: what an edge has made is there again after its kernel has lost
// it, while the agent runs and after it was away; what was taken back is not.
func TestKernelLost(t *testing.T) {
	w := newEdgeWorld(t).start().meshed()
	const other, move = "vm/0a0a0a0a-0000-4000-8000-00000000000a", "move/" + moveName
	station := drover.EdgeOp{Do: drover.SetStation, Segment: "blue", MAC: vmMAC, Addresses: vmAddresses, Site: "south"}
	gone := addresses("10.50.0.99")
	_, err := w.do(
		drover.EdgeOp{Do: drover.ExtendSegment, Segment: "blue", Sites: []string{"south"}, LocalEgress: true}, station,
		drover.EdgeOp{Do: drover.MeterTraffic, Addresses: vmAddresses},
		drover.EdgeOp{Do: drover.ExtendSegment, Owner: other, Segment: "blue", Sites: []string{"south"}, LocalEgress: true},
		drover.EdgeOp{Do: drover.RetractSegment, Owner: other, Segment: "blue"},
		drover.EdgeOp{Do: drover.DeliverHere, Owner: other, Segment: "blue", Addresses: gone},
		drover.EdgeOp{Do: drover.ForgetAddresses, Owner: other},
		drover.EdgeOp{Do: drover.ProxyRest, Segment: "blue"},
		drover.EdgeOp{Do: drover.WatchSessions, Owner: move, Addresses: addresses("10.50.0.12")},
		drover.EdgeOp{Do: drover.ForwardOld, Owner: move, Segment: "blue", Addresses: addresses("10.50.0.12"), Site: "south", Limit: time.Hour},
	)
	must(t, err)
	// A part of it comes by a cut-over, a part is removed as a leftover.
	_, err = w.run(1, &droverv1.StageEdge{By: "n1", Ops: opsOf(
		drover.EdgeOp{Do: drover.DeliverHere, Segment: "blue", Addresses: vmAddresses}, drover.EdgeOp{Do: drover.AnnounceRoutes, Addresses: vmAddresses},
		drover.EdgeOp{Do: drover.WatchSessions, Owner: other, Addresses: gone},
	)})
	must(t, err)
	_, err = w.cutOver("n1", 1)
	must(t, err)
	_, err = w.client.RemoveOwned(t.Context(), &droverv1.RemoveOwnedRequest{Owner: other, Kind: "watch"})
	must(t, err)
	before := w.standing()
	lose := func() {
		w.kernel.Lose()
		w.segments.Lose()
		if len(w.standing()) >= len(before) {
			t.Fatal("nothing was lost")
		}
	}
	same := func(what string) {
		t.Helper()
		if diff := cmp.Diff(before, w.standing()); diff != "" {
			t.Errorf("%s (-before +after)\n%s", what, diff)
		}
	}
	lose()
	must(t, w.agent.siteedge.mend(t.Context()))
	same("made again while the agent runs")
	if l := w.kernel.Limit(addresses("10.50.0.12")[0]); l <= 0 || l > time.Hour {
		t.Errorf("old sessions have %v", l)
	}

	// Not while operations are under way.
	lose()
	w.agent.siteedge.standing.work.RLock()
	must(t, w.agent.siteedge.mend(t.Context()))
	w.agent.siteedge.standing.work.RUnlock()
	if len(w.standing()) >= len(before) {
		t.Error("it was made again beside an operation")
	}

	// A reboot: the agent starts with an empty kernel.
	w.stop()
	w.kernel.Lose()
	w.segments.Lose()
	w.start()
	for end := time.Now().Add(10 * time.Second); cmp.Diff(before, w.standing()) != "" && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
	}
	same("made again after a reboot")
}
