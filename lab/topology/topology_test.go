package topology_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/drover-vm/drover/lab/labfile"
	"github.com/drover-vm/drover/lab/topology"
)

func plan(t *testing.T, text string) *topology.Plan {
	t.Helper()
	f, err := labfile.Parse("lab.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	p, err := topology.New(f)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func node(t *testing.T, p *topology.Plan, name string) topology.Node {
	t.Helper()
	i := slices.IndexFunc(p.Nodes, func(n topology.Node) bool { return n.Name == name })
	if i < 0 {
		t.Fatalf("no node %s", name)
	}
	return p.Nodes[i]
}

// via is where a node sends what is for an address: the most specific route wins.
func via(n topology.Node, to netip.Addr) netip.Addr {
	var best topology.Route
	for _, r := range n.Routes {
		if r.To.Contains(to) && (!best.To.IsValid() || r.To.Bits() > best.To.Bits()) {
			best = r
		}
	}
	return best.Via
}

const three = `
name: three
server: b
sites:
  - {name: a, transport: 10.1.0.0/24, hosts: [{name: a1}]}
  - {name: b, transport: 10.2.0.0/24, access: 10.2.9.0/24, hosts: [{name: b1}, {name: b2}]}
  - {name: c, transport: 10.3.0.0/24}
  - {name: d, transport: 10.4.0.0/24}
links:
  - {a: a, b: b, rate: 1Gbit, delay: 50ms}
  - {a: a, b: c, rate: 1Gbit, delay: 5ms}
  - {a: c, b: b, rate: 1Gbit, delay: 5ms}
  - {a: b, b: d, rate: 1Gbit, delay: 1ms}
segments:
  - {name: blue, subnet: 10.50.0.0/24, sites: [b, a]}
  - {name: red, subnet: 10.51.0.0/24, sites: [b]}
clients:
  - {name: c1, site: b, address: 10.2.9.10}
  - {name: c2, site: a, segment: blue, address: 10.50.0.9}
`

func TestPlan(t *testing.T) {
	p := plan(t, three)
	a, b := node(t, p, "edge-a"), node(t, p, "edge-b")
	for _, c := range []struct {
		what      string
		got, want any
	}{
		// The link between two sites carries their traffic, though by c it is shorter.
		{"from a to b", via(a, netip.MustParseAddr("10.2.0.9")), netip.MustParseAddr("100.127.0.2")},
		// Without a link, the way of least delay: by c, not over the long link.
		{"from a to d", via(a, netip.MustParseAddr("10.4.0.9")), netip.MustParseAddr("100.127.0.6")},
		{"from a to the segment's gateway", via(a, netip.MustParseAddr("10.50.0.1")), netip.MustParseAddr("100.127.0.2")},
		{"from a1", via(node(t, p, "a1"), netip.MustParseAddr("10.2.0.9")), netip.MustParseAddr("10.1.0.1")},
		{"from c2", via(node(t, p, "c2"), netip.MustParseAddr("10.2.0.9")), netip.MustParseAddr("10.50.0.1")},
		{"tunnel of a", fmt.Sprint(a.VXLANs), "[{vx-blue br-blue 100 10.1.0.1 [10.2.0.1]}]"},
		{"tunnel of b", fmt.Sprint(b.VXLANs), "[{vx-blue br-blue 100 10.2.0.1 [10.1.0.1]}]"},
		{"tunnels of c", len(node(t, p, "edge-c").VXLANs), 0},
		{"segments of b1", len(node(t, p, "b1").Bridges), 2},
		{"segments of a1", len(node(t, p, "a1").Bridges), 1},
		{"server", node(t, p, "server").Address, netip.MustParseAddr("10.2.0.4")},
		{"forwards", fmt.Sprint(a.Forward, node(t, p, "a1").Forward), "true false"},
	} {
		if c.got != c.want {
			t.Errorf("%s: %v, want %v", c.what, c.got, c.want)
		}
	}
	// Only the first site's edge is in the segment with an address.
	for _, n := range p.Nodes {
		for _, br := range n.Bridges {
			if br.Name == "br-blue" && br.Address.IsValid() != (n.Name == "edge-b") {
				t.Errorf("%s has %s in the segment", n.Name, br.Address)
			}
		}
	}
}

func TestSegmentNeedsRoom(t *testing.T) {
	text := strings.Replace(three, "{a: a, b: b, rate: 1Gbit, delay: 50ms}", "{a: a, b: b, rate: 1Gbit, delay: 50ms, mtu: 1500}", 1)
	f, err := labfile.Parse("lab.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	_, err = topology.New(f)
	var ps labfile.Problems
	if !errors.As(err, &ps) || len(ps) != 1 || ps[0].Line != 10 || ps[0].Field != "links[0].mtu" {
		t.Errorf("%v: want one problem with the first link's mtu", err)
	}
	// A link that no segment crosses may be small.
	small := strings.Replace(three, "b: d, rate: 1Gbit", "b: d, mtu: 1280, rate: 1Gbit", 1)
	plan(t, small)
}

// TestProperties draws labs of up to eight sites and expects, for each: interface
// names that Linux takes and that differ within a node, cables that end at nodes
// and bridges that exist, and a way without loops from each site to each other.
func TestProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f, err := labfile.Parse("lab.yaml", []byte(draw(t)))
		if err != nil {
			t.Fatal(err)
		}
		p, err := topology.New(f)
		if err != nil {
			t.Fatal(err)
		}
		nodes, owner := map[string]topology.Node{}, map[netip.Addr]string{}
		taken := map[string]bool{}
		name := func(node, iface string) {
			if len(iface) > 15 || taken[node+"/"+iface] {
				t.Fatalf("interface %s of %s: too long, or there twice", iface, node)
			}
			taken[node+"/"+iface] = true
		}
		for _, n := range p.Nodes {
			nodes[n.Name] = n
			for _, b := range n.Bridges {
				name(n.Name, b.Name)
			}
			for _, v := range n.VXLANs {
				name(n.Name, v.Name)
			}
		}
		ports := []topology.Port{}
		for _, c := range p.Cables {
			ports = append(ports, c.A, c.B)
		}
		for _, l := range p.Links {
			ports = append(ports, l.Ends[0], l.Ends[1])
			owner[l.Ends[0].Address.Addr()], owner[l.Ends[1].Address.Addr()] = l.Ends[0].Node, l.Ends[1].Node
		}
		for _, port := range ports {
			n, ok := nodes[port.Node]
			if !ok {
				t.Fatalf("a cable ends at %q", port.Node)
			}
			name(port.Node, port.Interface)
			has := slices.ContainsFunc(n.Bridges, func(b topology.Bridge) bool { return b.Name == port.Bridge })
			if port.Bridge != "" && !has {
				t.Fatalf("%s of %s is in %s, which is not there", port.Interface, port.Node, port.Bridge)
			}
		}
		for _, from := range f.Sites {
			for _, to := range f.Sites {
				at := labfile.EdgeName(from.Name)
				for hops := 0; at != labfile.EdgeName(to.Name); hops++ {
					next := owner[via(nodes[at], to.Transport.First())]
					if next == "" || hops > len(f.Sites) {
						t.Fatalf("no way, or a loop, from %s to %s at %s", from.Name, to.Name, at)
					}
					at = next
				}
			}
		}
	})
}

// draw writes a lab file: a tree of links, and some more.
func draw(t *rapid.T) string {
	sites := rapid.IntRange(1, 8).Draw(t, "sites")
	var s, l strings.Builder
	for i := range sites {
		fmt.Fprintf(&s, "  - name: site%d\n    transport: 10.%d.0.0/24\n    hosts: [{name: longhost-%d%d}, {name: h%d}]\n", i, i+1, i, i, i)
	}
	joined := map[[2]int]bool{}
	join := func(a, b int) {
		k := [2]int{min(a, b), max(a, b)}
		if a == b || joined[k] {
			return
		}
		joined[k] = true
		fmt.Fprintf(&l, "  - {a: site%d, b: site%d, rate: 1Gbit, delay: %dms}\n", a, b, rapid.IntRange(0, 100).Draw(t, "delay"))
	}
	for i := 1; i < sites; i++ {
		join(rapid.IntRange(0, i-1).Draw(t, "up"), i)
	}
	for range rapid.IntRange(0, 6).Draw(t, "more") {
		join(rapid.IntRange(0, sites-1).Draw(t, "a"), rapid.IntRange(0, sites-1).Draw(t, "b"))
	}
	links := ""
	if l.Len() > 0 {
		links = "links:\n" + l.String()
	}
	return "name: drawn\nserver: site0\nsites:\n" + s.String() + links +
		"segments:\n  - {name: elevenchars, subnet: 10.50.0.0/24, sites: [site0" + map[bool]string{true: ", site1"}[sites > 1] + "]}\n"
}
