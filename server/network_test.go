package server_test

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/server/servertest"
)

// withNetwork gives north and south an edge each, between which web1's segment
// is not joined.
func (in *installation) withNetwork() {
	for i, e := range []struct{ name, site, other string }{{"ne", "north", "south"}, {"se", "south", "north"}} {
		in.Agents[e.name].Set(func(s *servertest.State) {
			s.Edge = &servertest.EdgeState{
				Mesh: &drover.MeshState{
					Key: "key-" + e.site, MTU: 1600, Port: 51820,
					Addresses: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 125, 0, byte(i + 1)}), 16)},
				},
				Segments: []drover.Segment{{
					Name: "blue", Home: "north", Sites: []string{"north", "south"}, Bridge: "lan", VNI: 7,
					Subnets: []netip.Prefix{netip.MustParsePrefix("10.50.0.0/24")}, Gateways: []netip.Addr{netip.MustParseAddr("10.50.0.1")},
				}},
				Neighbors: []drover.EdgeNeighbor{{Address: netip.MustParseAddr("192.0.2.1"), AS: 64601, State: "established"}},
			}
		})
	}
	in.Agents["n1"].Set(func(s *servertest.State) {
		v := s.VMs["web1"]
		v.NICs = slices.Clone(v.NICs)
		v.NICs[0].Addresses = []netip.Addr{netip.MustParseAddr("10.50.0.11")}
		s.VMs["web1"] = v
	})
	// The server tells the edges of each other; the handshakes are theirs.
	for name, other := range map[string]string{"ne": "south", "se": "north"} {
		in.peersOf(name, func(p []drover.MeshPeer) bool { return len(p) == 1 && p[0].Site == other })
		in.handshake(name, time.Now())
	}
	in.until("the segment to be known", func() bool {
		r, err := in.client.ListSegments(in.t.Context(), &droverv1.ListSegmentsRequest{})
		return err == nil && len(r.GetSegments()) == 1 && len(in.vms()[0].NICs[0].Addresses) == 1
	})
}

func (in *installation) handshake(edge string, at time.Time) {
	in.Agents[edge].Set(func(s *servertest.State) {
		s.Edge.Peers = slices.Clone(s.Edge.Peers)
		for i := range s.Edge.Peers {
			s.Edge.Peers[i].Handshake = at
		}
	})
}

// Every fault of what edges have to do is found before anything begins, with
// what to do about it.
func TestPreflightOfNetworks(t *testing.T) {
	edge := func(name string, f func(*servertest.EdgeState)) func(*installation) {
		return func(in *installation) { in.Agents[name].Set(func(s *servertest.State) { f(s.Edge) }) }
	}
	web1 := func(f func(*drover.VM)) func(*installation) {
		return func(in *installation) {
			in.Agents["n1"].Set(func(s *servertest.State) {
				v := s.VMs["web1"]
				v.NICs = slices.Clone(v.NICs)
				f(&v)
				s.VMs["web1"] = v
			})
			in.until("that to be seen", func() bool { return len(in.vms()[0].NICs[0].Addresses) == 0 })
		}
	}
	unknown := web1(func(v *drover.VM) { v.NICs[0].Addresses = nil })
	blue := func(f func(*drover.Segment)) func(*installation) {
		return edge("se", func(e *servertest.EdgeState) { e.Segments = slices.Clone(e.Segments); f(&e.Segments[0]) })
	}
	for _, tt := range []struct {
		name      string
		change    func(*installation)
		method    string
		addresses []string
		want      drover.Method
		bad       string
	}{
		{"the default", nil, "", nil, drover.Route, ""},
		{"stretch", nil, "stretch", nil, drover.Stretch, ""},
		{"live", nil, "live", nil, drover.Live, "segments"},
		{"cold is warned of only", nil, "cold", nil, drover.Cold, ""},
		{"no router", edge("se", func(e *servertest.EdgeState) { e.Neighbors = nil }), "route", nil, drover.Route, "bgp"},
		{"no session", edge("se", func(e *servertest.EdgeState) { e.Neighbors[0].State = "active" }), "route", nil, drover.Route, "bgp"},
		{"no session, by stretch", edge("se", func(e *servertest.EdgeState) { e.Neighbors[0].State = "active" }), "stretch", nil, drover.Stretch, ""},
		{"no handshake", func(in *installation) { in.handshake("ne", time.Time{}) }, "stretch", nil, drover.Stretch, "mesh"},
		{"an old handshake", func(in *installation) { in.handshake("ne", time.Now().Add(-time.Hour)) }, "stretch", nil, drover.Stretch, "mesh"},
		{"no handshake, by route", func(in *installation) { in.handshake("ne", time.Time{}) }, "route", nil, drover.Route, ""},
		{"another gateway", blue(func(s *drover.Segment) { s.Gateways = []netip.Addr{netip.MustParseAddr("10.50.0.2")} }), "route", nil, drover.Route, "segments"},
		{"another number", blue(func(s *drover.Segment) { s.VNI = 8 }), "stretch", nil, drover.Stretch, "segments"},
		{"the destination's edge finds fault", edge("se", func(e *servertest.EdgeState) {
			e.OpChecks = []drover.Check{{Name: "deliver-here", Detail: "10.50.0.11 is led to another site for vm/other", Fix: "take another"}}
		}), "route", nil, drover.Route, "deliver-here"},
		{"the source's edge finds fault", edge("ne", func(e *servertest.EdgeState) {
			e.OpChecks = []drover.Check{{Name: "elsewhere", Detail: "there is no default IPv4 route", Fix: "add one"}}
		}), "route", nil, drover.Route, "elsewhere"},
		{"the edge is down", func(in *installation) { in.Agents["se"].Stop() }, "route", nil, drover.Route, "edge"},
		{"addresses unknown", unknown, "route", nil, drover.Route, "segments"},
		{"addresses given", unknown, "route", []string{"10.50.0.11"}, drover.Route, ""},
		{"addresses of elsewhere", nil, "route", []string{"192.0.2.7"}, drover.Route, "addresses"},
		{"the gateway's address", nil, "route", []string{"10.50.0.1"}, drover.Route, "addresses"},
		{"away by route, home by cold", edge("se", func(e *servertest.EdgeState) {
			e.Owned = []*droverv1.OwnedThing{{Kind: "route", Owner: "vm/uuid-web1"}}
		}), "cold", nil, drover.Cold, "segments"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in := newInstallation(t)
			in.allUp()
			in.withNetwork()
			if tt.change != nil {
				tt.change(in)
			}
			r, err := in.client.Preflight(t.Context(), &droverv1.PreflightRequest{
				Vm: "web1", To: &droverv1.Place{Site: "south"}, Method: tt.method, Addresses: tt.addresses,
			})
			if err != nil {
				t.Fatal(err)
			}
			p := api.PreflightFromProto(r.GetPreflight())
			i := slices.IndexFunc(p.Checks, func(c drover.Check) bool { return !c.OK && !c.Warning })
			switch {
			case p.Method != tt.want || p.OK != (tt.bad == ""):
				t.Errorf("method %s, OK %v: %+v", p.Method, p.OK, p.Checks)
			case tt.bad != "" && (p.Checks[i].Name != tt.bad || p.Checks[i].Fix == "" || p.Checks[i].Detail == ""):
				t.Errorf("%+v, want a finding %s with a fix", p.Checks[i], tt.bad)
			}
		})
	}
}

// A move by route asks the two edges, and hosts are told whom to call.
func TestMoveByRoute(t *testing.T) {
	in := newInstallation(t)
	in.allUp()
	in.withNetwork()
	in.Agents["c1"].Set(func(s *servertest.State) {
		s.Probe = &droverv1.ProbeResult{OutageMs: 118, Sessions: 4, BeatsSent: 1000, BeatsAnswered: 1000, RttP50Ms: 30}
	})
	m := in.startMove(&droverv1.StartMoveRequest{Vm: "web1", To: &droverv1.Place{Site: "south", Host: "s1"}})
	m = in.follow(m.Name, func(m drover.Move) bool { return m.State.Final() })
	if m.State != drover.MoveDone || m.Method != drover.Route {
		t.Fatalf("%s by %s: %s", m.State, m.Method, m.Fault)
	}
	if x := m.Measured.ExtraRTT; x == nil || *x != 0 {
		t.Errorf("the round trip was the same before and after, its figure is %v", x)
	}
	for name, want := range map[string][]string{
		"ne": {"stage-cut-over", "cut-over", "cut-over-unstage", "settle", "release"},
		"se": {"prepare-edge", "stage-cut-over", "cut-over", "cut-over-unstage", "release"},
	} {
		if got := in.Agents[name].Ran(); !slices.Equal(got, want) {
			t.Errorf("edge %s was asked for %v, want %v", name, got, want)
		}
	}
}
