package server_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/server/servertest"
)

// withEdges makes ne and se sites' edges, with a segment that is at home at
// north.
func (in *installation) withEdges() {
	for i, e := range []struct{ name, site string }{{"ne", "north"}, {"se", "south"}} {
		in.Agents[e.name].Set(func(s *servertest.State) {
			s.Edge = &servertest.EdgeState{
				Mesh: &drover.MeshState{
					Interface: "drover0", Port: 51820, Key: "key-" + e.site,
					Addresses: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 125, 0, byte(i + 1)}), 16)},
				},
				Segments: []drover.Segment{{
					Name: "blue", Home: "north", Sites: []string{"north", "south"}, Bridge: "br-blue", VNI: uint32(i + 1),
					Subnets: []netip.Prefix{netip.MustParsePrefix("10.50.0.0/24")},
				}},
			}
		})
	}
}

// peersOf waits until an edge was told of peers that are as wanted.
func (in *installation) peersOf(name string, want func([]drover.MeshPeer) bool) []drover.MeshPeer {
	in.t.Helper()
	var peers []drover.MeshPeer
	in.until("edge "+name+" to be told of the mesh", func() bool {
		in.Agents[name].Get(func(s *servertest.State) { peers = s.Edge.Peers })
		return want(peers)
	})
	return peers
}

func TestMesh(t *testing.T) {
	in := newInstallation(t)
	in.withEdges()
	one := func(p []drover.MeshPeer) bool { return len(p) == 1 }
	in.peersOf("ne", one)
	got := in.peersOf("se", one)
	host, _, _ := strings.Cut(in.Agents["ne"].Addr, ":")
	want := drover.MeshPeer{
		Site: "north", Key: "key-north", Endpoint: netip.MustParseAddrPort(host + ":51820"),
		Addresses: []netip.Prefix{netip.MustParsePrefix("100.125.0.1/16")},
	}
	same := cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })
	if diff := cmp.Diff([]drover.MeshPeer{want}, got, same, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
		t.Error(diff)
	}

	// An edge that was away is told again, and stays known while it is away.
	var before int
	in.Agents["se"].Get(func(s *servertest.State) { before = s.Edge.PeersSet })
	in.Agents["se"].Stop()
	in.Agents["se"].Set(func(s *servertest.State) { s.Edge.Peers = nil })
	in.Agents["se"].Start()
	in.peersOf("se", one)
	in.peersOf("ne", one)
	in.Agents["se"].Get(func(s *servertest.State) {
		if s.Edge.PeersSet == before {
			t.Error("it was not told again")
		}
	})
}

func TestMeshRotation(t *testing.T) {
	in := newInstallation(t)
	in.withEdges()
	in.peersOf("se", func(p []drover.MeshPeer) bool { return len(p) == 1 && p[0].Key == "key-north" })
	r, err := in.client.RotateEdge(in.t.Context(), &droverv1.RotateEdgeRequest{Site: "north"})
	if err != nil {
		t.Fatal(err)
	}
	if r.GetMesh().GetNextKey() != "key-north+" {
		t.Errorf("the next key is %q", r.GetMesh().GetNextKey())
	}
	in.peersOf("se", func(p []drover.MeshPeer) bool {
		return len(p) == 1 && p[0].Key == "key-north+" && p[0].NextKey == ""
	})
	if _, err := in.client.RotateEdge(in.t.Context(), &droverv1.RotateEdgeRequest{Site: "moon"}); drover.KindOf(err) != drover.NotFound {
		t.Errorf("got %v, want not found", err)
	}
}

// TestMeshOfAnUnheardEdge: a server that has just started does not take an
// edge out of the mesh because it has not heard of it yet.
func TestMeshOfAnUnheardEdge(t *testing.T) {
	in := newInstallation(t)
	in.withEdges()
	in.peersOf("ne", func(p []drover.MeshPeer) bool { return len(p) == 1 })
	if err := in.stop(); err != nil {
		t.Fatal(err)
	}
	in.Agents["se"].Stop()
	in.Agents["s1"].Stop()
	var before int
	in.Agents["ne"].Get(func(s *servertest.State) { before = s.Edge.PeersSet })
	in.start()
	in.until("north's edge to be told again", func() bool {
		var set int
		in.Agents["ne"].Get(func(s *servertest.State) { set = s.Edge.PeersSet })
		return set > before
	})
	got := in.peersOf("ne", func([]drover.MeshPeer) bool { return true })
	if len(got) != 1 || got[0].Site != "south" {
		t.Errorf("it knows %+v: want south kept", got)
	}
}

func TestSegmentsAndEdges(t *testing.T) {
	in := newInstallation(t)
	in.withEdges()
	in.peersOf("se", func(p []drover.MeshPeer) bool { return len(p) == 1 })
	segments, err := in.client.ListSegments(in.t.Context(), &droverv1.ListSegmentsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if s := segments.GetSegments(); len(s) != 1 || s[0].GetName() != "blue" || s[0].GetVni() != 1 {
		t.Errorf("segments %v: want blue as its home says", s)
	}
	in.Agents["se"].Stop()
	edges, err := in.client.ListEdges(in.t.Context(), &droverv1.ListEdgesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var up, down []string
	for _, e := range api.ListFromProto(edges.GetEdges(), api.EdgeStateFromProto) {
		if e.Up {
			up = append(up, e.Name)
		} else if len(e.Faults) == 1 {
			down = append(down, e.Name)
		}
	}
	if !slices.Equal(up, []string{"ne"}) || !slices.Equal(down, []string{"se"}) {
		t.Errorf("up %v, down %v", up, down)
	}
}

func (in *installation) diagnose(remove bool) drover.Diagnosis {
	in.t.Helper()
	r, err := in.client.Diagnose(in.t.Context(), &droverv1.DiagnoseRequest{Remove: remove})
	if err != nil {
		in.t.Fatal(err)
	}
	return drover.Diagnosis{OK: r.GetOk(), Findings: api.ListFromProto(r.GetFindings(), api.FindingFromProto)}
}

func TestDiagnose(t *testing.T) {
	in := newInstallation(t)
	in.allUp()
	in.withEdges()
	in.peersOf("se", func(p []drover.MeshPeer) bool { return len(p) == 1 })
	if d := in.diagnose(false); !d.OK || len(d.Findings) != 0 {
		t.Fatalf("nothing stands, and found %+v", d)
	}
	vm := "vm/uuid-web1" // at north
	needed := []*droverv1.OwnedThing{
		{Kind: "elsewhere", Owner: vm, What: "a", Off: "south"},
		{Kind: "meter", Owner: vm, What: "b"},
		{Kind: "deliver", Owner: vm, What: "c", At: "north"},
	}
	leftovers := []*droverv1.OwnedThing{
		{Kind: "lease", Owner: "vm/uuid-gone", What: "d"},
		{Kind: "staged", Owner: "move/web1-9", What: "e"},
		{Kind: "route", Owner: vm, What: "f", At: "south"},
		{Kind: "extension", Owner: vm, What: "g", Off: "north"},
	}
	in.Agents["se"].Set(func(s *servertest.State) { s.Edge.Owned = slices.Concat(needed, leftovers) })
	d := in.diagnose(false)
	var kinds []string
	for _, f := range d.Findings {
		kinds = append(kinds, f.Kind)
		if f.Where != "se" || f.Fix != "drover doctor --remove" || f.Removed {
			t.Errorf("finding %+v", f)
		}
	}
	if want := []string{"extension", "lease", "route", "staged"}; d.OK || !slices.Equal(kinds, want) {
		t.Errorf("ok %v, found %v: want %v", d.OK, kinds, want)
	}

	// While a host is away nothing is removed: what it has is not known.
	in.Agents["s1"].Stop()
	for _, f := range in.diagnose(true).Findings {
		if f.Removed {
			t.Errorf("removed without host s1: %+v", f)
		}
	}
	in.Agents["s1"].Start()
	in.allUp()
	d = in.diagnose(true)
	if !d.OK || len(d.Findings) != len(leftovers) {
		t.Errorf("after the removal: %+v", d)
	}
	if d = in.diagnose(false); !d.OK || len(d.Findings) != 0 {
		t.Errorf("still there: %+v", d)
	}
	in.Agents["se"].Get(func(s *servertest.State) {
		if len(s.Edge.Owned) != len(needed) {
			t.Errorf("what is needed was removed: %v", s.Edge.Owned)
		}
	})
}

// TestDiagnoseRequirements: those of a VM that is nowhere are told, and removed when
// every host answers; those of others stay.
func TestDiagnoseRequirements(t *testing.T) {
	in := newInstallation(t)
	in.allUp()
	all := in.store.Requirements()
	for _, k := range []drover.KeptRequirements{
		{UUID: "uuid-web1", VM: "web1", Values: map[string]string{"max-pause": "1s"}},
		{UUID: "uuid-gone", VM: "gone", Values: map[string]string{"max-pause": "1s"}},
	} {
		if err := all.Put(t.Context(), k); err != nil {
			t.Fatal(err)
		}
	}
	in.Agents["s2"].Stop()
	in.until("s2 to be missed", func() bool { return !in.hosts()["s2"].Up })
	for _, f := range in.diagnose(true).Findings {
		if f.Removed || f.Kind == "requirements" && f.Fix == "drover doctor --remove" {
			t.Errorf("without host s2: %+v", f)
		}
	}
	in.Agents["s2"].Start()
	in.allUp()
	d := in.diagnose(false)
	if len(d.Findings) != 1 || d.OK || d.Findings[0].Owner != "vm/uuid-gone" || d.Findings[0].Fix != "drover doctor --remove" || !strings.Contains(d.Findings[0].What, "gone") {
		t.Fatalf("found %+v", d)
	}
	if d = in.diagnose(true); !d.OK || len(d.Findings) != 1 || !d.Findings[0].Removed {
		t.Errorf("removed %+v", d)
	}
	if d = in.diagnose(false); !d.OK || len(d.Findings) != 0 {
		t.Errorf("left %+v", d)
	}
	if _, err := all.Get(t.Context(), "uuid-web1"); err != nil {
		t.Errorf("those of a vm that is there: %v", err)
	}
}

// TestDiagnoseAfterAMove: a name that a move which is done has changed stays as
// it is.
func TestDiagnoseAfterAMove(t *testing.T) {
	in := newInstallation(t)
	in.withEdges()
	in.allUp()
	m := in.startMove(&droverv1.StartMoveRequest{Vm: "web1", To: &droverv1.Place{Site: "south"}, RequestId: "r"})
	in.follow(m.Name, func(m drover.Move) bool { return m.State == drover.MoveDone })
	owned := []*droverv1.OwnedThing{{Kind: "name", Owner: "move/" + m.Name, What: "a"}, {Kind: "name", Owner: "move/unknown", What: "b"}}
	in.Agents["se"].Set(func(s *servertest.State) { s.Edge.Owned = owned })
	in.diagnose(true)
	in.Agents["se"].Get(func(s *servertest.State) {
		want := []string{"kept-name move/" + m.Name, "name move/unknown"}
		if slices.Sort(s.Edge.Removed); !slices.Equal(s.Edge.Removed, want) {
			t.Errorf("removed %q, want %q", s.Edge.Removed, want)
		}
	})
}

// TestDiagnoseDuringAMove: what belongs to a move under way, or to its VM, is
// needed wherever it is.
func TestDiagnoseDuringAMove(t *testing.T) {
	in := newInstallation(t)
	in.withEdges()
	held := make(chan struct{})
	in.Agents["n1"].Set(func(s *servertest.State) { s.Hold["transfer"] = held })
	in.allUp()
	m := in.startMove(&droverv1.StartMoveRequest{Vm: "web1", To: &droverv1.Place{Site: "south"}, RequestId: "r"})
	in.Agents["se"].Set(func(s *servertest.State) {
		s.Edge.Owned = []*droverv1.OwnedThing{
			{Kind: "staged", Owner: "move/" + m.Name, What: "a"},
			{Kind: "deliver", Owner: "vm/uuid-web1", What: "b", At: "south"},
		}
	})
	if d := in.diagnose(true); !d.OK || len(d.Findings) != 0 {
		t.Errorf("found %+v", d)
	}
	close(held)
}
