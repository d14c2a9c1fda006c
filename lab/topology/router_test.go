package topology_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/drover-vm/drover/lab/labfile"
	"github.com/drover-vm/drover/lab/topology"
)

// ready plans the ready lab of that name.
func ready(t *testing.T, name string) *topology.Plan {
	t.Helper()
	f, err := labfile.Load(name)
	if err != nil {
		t.Fatal(err)
	}
	p, err := topology.New(f)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestRouted(t *testing.T) {
	p := ready(t, "routed")
	north, south, west := node(t, p, "edge-north"), node(t, p, "edge-south"), node(t, p, "edge-west")
	r := p.RouterOf("south")
	if r == nil {
		t.Fatal("south has no router")
	}
	for _, c := range []struct{ what, got, want string }{
		{"way of north", fmt.Sprint(north.Routes), "[{0.0.0.0/0 100.127.128.2 10.1.0.1} {::/0 fd4c:4142:1::2 fd00:50::1}]"},
		// South's own IPv6 is that of the segment at home there.
		{"way of south", fmt.Sprint(south.Routes), "[{0.0.0.0/0 100.127.128.6 10.2.0.1} {::/0 fd4c:4142:1:1::2 fd00:60::1}]"},
		{"way of west", fmt.Sprint(west.Routes), "[{0.0.0.0/0 100.127.128.10 10.3.0.1} {::/0 fd4c:4142:1:2::2 fd00:39::1}]"},
		{"south's router", fmt.Sprint(r.AS, r.ID, r.Edge), "64602 100.127.128.6 {edge-south 64702 100.127.128.5 fd4c:4142:1:1::1}"},
		{"its peers", fmt.Sprint(r.Peers), "[{north-router 64601 100.127.0.1 fd4c:4142::1} {west-router 64603 100.127.0.9 fd4c:4142:0:2::1}]"},
		// Blue is at home at north.
		{"behind it", fmt.Sprint(r.Behind), "[10.2.0.0/24 10.60.0.0/24 fd00:60::/64]"},
		{"announced by it", fmt.Sprint(r.Networks), "[10.2.0.0/24 10.60.0.0/24 fd00:60::/64 100.127.128.4/30 fd4c:4142:1:1::/64]"},
		{"hosts announced to it", fmt.Sprint(r.Hosts), "[10.50.0.0/24 fd00:50::/64 10.60.0.0/24 fd00:60::/64]"},
		{"hosts announced at west", fmt.Sprint(p.RouterOf("west").Hosts), "[]"},
		{"tunnels", fmt.Sprint(len(north.VXLANs) + len(south.VXLANs)), "0"},
		{"client", fmt.Sprint(node(t, p, "c1").Routes), "[{0.0.0.0/0 10.3.9.1 invalid IP} {::/0 fd00:39::1 invalid IP}]"},
		{"host without IPv6", fmt.Sprint(node(t, p, "n1").IPv6, node(t, p, "c1").IPv6, north.IPv6), "false true true"},
	} {
		if c.got != c.want {
			t.Errorf("%s: %s, want %s", c.what, c.got, c.want)
		}
	}
	here, there := bridge(t, north, "br-blue"), bridge(t, south, "br-blue")
	if here.MAC.String() != there.MAC.String() || here.Address != there.Address || here.Address6 != there.Address6 ||
		here.Address.String() != "10.50.0.1/24" || here.Address6.String() != "fd00:50::1/64" {
		t.Errorf("gateways %+v and %+v: want the same", here, there)
	}
	if here.Elsewhere || !there.Elsewhere {
		t.Errorf("gateways %+v and %+v: want the subnet at north", here, there)
	}
	if b := bridge(t, west, "br-access"); fmt.Sprint(b.Services) != "[10.3.9.80 fd00:39::80]" {
		t.Errorf("service addresses %v", b.Services)
	}
	for _, l := range p.Links {
		for side, end := range l.Ends {
			if end.Node != labfile.RouterName(l.Sites[side]) || !end.Address6.IsValid() {
				t.Errorf("link %s ends at %+v, want a router with IPv6", l.Name, end)
			}
		}
	}
	i := slices.IndexFunc(p.Cables, func(c topology.Cable) bool { return c.A.Node == "edge-west" && c.B.Node == "west-router" })
	if i < 0 || p.Cables[i].MTU != 1600 {
		t.Errorf("cables %+v: want one from west's edge to its router, as wide as the links", p.Cables)
	}
}

func bridge(t *testing.T, n topology.Node, name string) topology.Bridge {
	t.Helper()
	i := slices.IndexFunc(n.Bridges, func(b topology.Bridge) bool { return b.Name == name })
	if i < 0 {
		t.Fatalf("%s has no %s", n.Name, name)
	}
	return n.Bridges[i]
}

// TestAddressesDiffer expects every address of the links and cables, in a lab
// with as many sites and links as there may be, once.
func TestAddressesDiffer(t *testing.T) {
	const sites = 32
	var s, l strings.Builder
	for i := range sites {
		fmt.Fprintf(&s, "  - {name: s%d, transport: 10.%d.0.0/24, access6: \"fd00:%d::/64\"}\n", i, i, i)
		for j := range i {
			fmt.Fprintf(&l, "  - {a: s%d, b: s%d, rate: 1Gbit, delay: 1ms}\n", i, j)
		}
	}
	p := plan(t, "name: big\nserver: s0\nrouting: bgp\nsites:\n"+s.String()+"links:\n"+l.String())
	seen, nets := map[netip.Addr]bool{}, map[netip.Prefix]int{}
	check := func(ports ...topology.Port) {
		for _, port := range ports {
			for _, a := range []netip.Prefix{port.Address, port.Address6} {
				if !labfile.WANRange.Contains(a.Addr()) && !labfile.WANRange6.Contains(a.Addr()) || seen[a.Addr()] {
					t.Fatalf("%s of %s: not in the range, or there twice", a, port.Node)
				}
				seen[a.Addr()] = true
				nets[a.Masked()]++
			}
		}
	}
	for _, k := range p.Links {
		check(k.Ends[0], k.Ends[1])
	}
	for _, c := range p.Cables {
		if c.A.Interface == "router" {
			check(c.A, c.B)
		}
	}
	if want := 2 * (len(p.Links) + sites); len(nets) != want {
		t.Errorf("%d nets, want %d", len(nets), want)
	}
	for n, ends := range nets {
		if ends != 2 {
			t.Errorf("%s has %d ends", n, ends)
		}
	}
}

// TestStaticIPv6 expects routes of both families without routers, too.
func TestStaticIPv6(t *testing.T) {
	p := plan(t, strings.NewReplacer("access: 10.2.9.0/24", `access: 10.2.9.0/24, access6: "fd00:9::/64"`,
		"subnet: 10.51.0.0/24", `subnet: 10.51.0.0/24, subnet6: "fd00:51::/64"`).Replace(three))
	a := node(t, p, "edge-a")
	for _, to := range []string{"fd00:9::10", "fd00:51::10"} {
		if got := via(a, netip.MustParseAddr(to)); got.String() != "fd4c:4142::2" {
			t.Errorf("from a to %s: %s, want over the link to b", to, got)
		}
	}
	if p.RouterOf("a") != nil || len(p.Announced()) != 0 {
		t.Error("there are routers")
	}
}

// TestJoinedBehindRouters expects that every link has room for a joined segment:
// which of them BGP takes is not for the plan to say.
func TestJoinedBehindRouters(t *testing.T) {
	text := strings.Replace(strings.Replace(three, "server: b", "server: b\nrouting: bgp", 1), "b: d, rate: 1Gbit", "b: d, mtu: 1400, rate: 1Gbit", 1)
	f, err := labfile.Parse("lab.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	_, err = topology.New(f)
	var ps labfile.Problems
	if !errors.As(err, &ps) || len(ps) != 1 || ps[0].Field != "links[3].mtu" {
		t.Errorf("%v: want one problem with the last link's mtu", err)
	}
	apart := strings.Replace(text, "sites: [b, a]}", "sites: [b, a], joined: false}", 1)
	apart = strings.Replace(apart, "  - {name: c2, site: a, segment: blue, address: 10.50.0.9}\n", "", 1)
	plan(t, apart)
}
