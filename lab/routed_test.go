package lab_test

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"

	"github.com/drover-vm/drover/lab"
	"github.com/drover-vm/drover/lab/labfile"
	"github.com/drover-vm/drover/lab/node"
	"github.com/drover-vm/drover/lab/topology"
	"github.com/drover-vm/drover/namespace"
)

// TestRouted starts the ready lab routed without its guests and looks at its
// routers and servers with their own tools.
func TestRouted(t *testing.T) {
	o := options(t)
	f, err := labfile.Load("routed")
	if err != nil {
		t.Fatal(err)
	}
	plan, err := topology.New(f)
	if err != nil {
		t.Fatal(err)
	}
	for i := range f.Guests {
		off := false
		f.Guests[i].Autostart = &off
	}
	l := up(t, o, f)
	services := func(site string) lab.EdgeServices { return lab.Services(f, plan, site) }

	t.Run("routes", func(t *testing.T) { testRoutes(t, l) })
	t.Run("host routes", func(t *testing.T) { testHostRoutes(t, l, services("south")) })
	t.Run("gateway", func(t *testing.T) { testGateway(t, l, services("north"), services("south")) })
	t.Run("dns", func(t *testing.T) { testDNS(t, l, services("west").Zones[0]) })
	t.Run("dhcp", func(t *testing.T) { testKea(t, l, services("north"), services("south")) })
	t.Run("balancer", func(t *testing.T) { testBalancer(t, l, services("west").Balancer) })
	t.Run("service", func(t *testing.T) { testRouterDies(t, l) })
}

// testRouterDies kills a bgpd: its routes go, and come back with it.
func testRouterDies(t *testing.T, l *lab.Lab) {
	route := func() string {
		return must(t, l, "west-router", "vtysh -c 'show ip route 10.50.0.0/24'")
	}
	if out := route(); !strings.Contains(out, "100.127.0.6, via wan-north") {
		t.Errorf("west leads to blue by %s", out)
	}
	if _, err := l.Service(t.Context(), "north-router", node.Stop, "bgpd"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the route is gone", func() error {
		if out := route(); strings.Contains(out, "via wan") {
			return errors.New(out)
		}
		return nil
	})
	if _, err := l.Service(t.Context(), "north-router", node.Start, "bgpd"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the route is there again", func() error {
		if out := route(); !strings.Contains(out, "100.127.0.6, via wan-north") {
			return errors.New(out)
		}
		return nil
	})
}

// testRoutes expects that each router has the subnets of all sites, by BGP where
// they are elsewhere, and that packets take them in both families.
func testRoutes(t *testing.T, l *lab.Lab) {
	subnets := map[string][]string{
		"north": {"10.1.0.0/24", "10.50.0.0/24", "fd00:50::/64"},
		"south": {"10.2.0.0/24", "10.60.0.0/24", "fd00:60::/64"},
		"west":  {"10.3.0.0/24", "10.3.9.0/24", "fd00:39::/64"},
	}
	for router := range subnets {
		table := must(t, l, router+"-router", "vtysh -c 'show ip route' -c 'show ipv6 route'")
		for site, list := range subnets {
			mark := "B>*"
			if site == router {
				mark = "S>*"
			}
			for _, p := range list {
				if !strings.Contains(table, mark+" "+p) {
					t.Errorf("the router of %s has no route %s %s:\n%s", router, mark, p, table)
				}
			}
		}
	}
	must(t, l, "c1", "ping -c 1 -W 5 10.50.0.1 && ping -c 1 -W 5 fd00:50::1")
	must(t, l, "c1", "ping -c 1 -W 5 10.60.0.1 && ping -c 1 -W 5 fd00:60::1")
	must(t, l, "server", "ping -c 1 -W 5 10.2.0.2") // a host at another site
	if ms := rtt(t, l, "s1", "10.1.0.2"); ms < 50 || ms > 60 {
		t.Errorf("round trip %.1f ms between the data centers, want 50", ms)
	}
}

// testHostRoutes lets a bgpd of the test's own be the speaker in south's edge, and
// expects that single addresses within segments get around, and nothing else.
func testHostRoutes(t *testing.T, l *lab.Lab, e lab.EdgeServices) {
	r := e.Router
	conf := fmt.Sprintf(`router bgp %d
 bgp router-id %s
 no bgp ebgp-requires-policy
 no bgp network import-check
 no bgp default ipv4-unicast
 timers bgp 1 3
 neighbor %s remote-as %d
 neighbor %[3]s timers connect 1
 address-family ipv4 unicast
  neighbor %[3]s activate
  network 10.50.0.200/32
  network 10.50.0.0/25
  network 10.99.0.1/32
  network 0.0.0.0/0
 address-family ipv6 unicast
  neighbor %[3]s activate
  network fd00:50::200/128
  network fd00:50:0:0:1::/80
  network fd00:99::1/128
`, r.AS, r.Address, r.RouterAddress, r.RouterAS)
	must(t, l, e.Edge, fmt.Sprintf("mkdir -p /run/frr; chown frr /run/frr; cat >/tmp/bgpd.conf <<'END'\n%sEND\nchown frr /tmp/bgpd.conf", conf))
	must(t, l, e.Edge, "/usr/lib/frr/bgpd -d -Z -p 0 -P 0 -f /tmp/bgpd.conf -i /run/frr/bgpd.pid >/tmp/bgpd.log 2>&1")
	eventually(t, "the host routes reach the other sites", func() error {
		table := must(t, l, "west-router", "vtysh -c 'show ip route' -c 'show ipv6 route'")
		for _, want := range []string{"B>* 10.50.0.200/32 [20/0] via 100.127.0.10,", "B>* fd00:50::200/128 [20/0]"} {
			if !strings.Contains(table, want) {
				return fmt.Errorf("no %s in %s", want, table)
			}
		}
		// At first west may have heard of it from north alone.
		if via := must(t, l, "west-router", "ip -6 route get fd00:50::200"); !strings.Contains(via, "dev wan-south") {
			return errors.New(via)
		}
		return nil
	})
	// What else was announced came in the same updates.
	for _, router := range []string{"south-router", "north-router", "west-router"} {
		table := must(t, l, router, "vtysh -c 'show ip bgp' -c 'show bgp ipv6 unicast'")
		for _, bad := range []string{"10.50.0.0/25", "10.99.0.1", "0.0.0.0/0 ", "fd00:50:0:0:1::", "fd00:50::1:0:0:0/80", "fd00:99::1"} {
			if strings.Contains(table, bad) {
				t.Errorf("%s took %s from the edge:\n%s", router, bad, table)
			}
		}
	}
	must(t, l, e.Edge, "kill $(cat /run/frr/bgpd.pid)")
	eventually(t, "the host routes go with their speaker", func() error {
		if out := must(t, l, "west-router", "ip route show 10.50.0.200; ip -6 route show fd00:50::200"); out != "" {
			return errors.New(out)
		}
		return nil
	})
}

// testGateway expects the same gateway, also in the eyes of a neighbour, at both
// sites of a segment that is not joined.
func testGateway(t *testing.T, l *lab.Lab, north, south lab.EdgeServices) {
	seg := south.Segments[0]
	if n := north.Segments[0]; n.MAC.String() != seg.MAC.String() || n.Gateway != seg.Gateway || !seg.HasGateway || seg.Home != "north" {
		t.Fatalf("%+v and %+v: want the same gateway", n, seg)
	}
	for host, last := range map[string]string{"n1": "201", "s1": "202"} {
		// No ping would come back to a stranger at south, but its question does.
		must(t, l, host, "ip addr add 10.50.0."+last+"/24 dev br-blue")
		_, _ = sh(t, l, host, "ping -c 1 -W 1 10.50.0.1")
		if out := must(t, l, host, "ip neigh show 10.50.0.1 dev br-blue"); !strings.Contains(out, seg.MAC.String()) {
			t.Errorf("%s sees the gateway at %q, want at %s", host, out, seg.MAC)
		}
		must(t, l, host, "ip addr del 10.50.0."+last+"/24 dev br-blue")
	}
	// South's edge has the gateway's address, but the way to the others is north's.
	if out := must(t, l, "edge-south", "ip route get 10.50.0.11"); !strings.Contains(out, "via 100.127.128.6 dev router") {
		t.Errorf("south's edge looks for a guest at home by %s", out)
	}
	if out := must(t, l, "edge-south", "ip -6 route get fd00:50::11"); !strings.Contains(out, "dev router") {
		t.Errorf("south's edge looks for a guest at home by %s", out)
	}
	if out := must(t, l, "n1", "cat /proc/sys/net/ipv6/conf/all/disable_ipv6"); out != "1" {
		t.Errorf("n1 has IPv6, which it does not use")
	}
}

// testDNS asks both servers and changes a record with the key.
func testDNS(t *testing.T, l *lab.Lab, z lab.EdgeZone) {
	if len(z.Servers) != 2 || z.Primary != z.Servers[0] {
		t.Fatalf("%+v: want two servers", z)
	}
	for _, s := range z.Servers {
		for q, want := range map[string]string{"sheep1 A": "10.50.0.11", "sheep1 AAAA": "fd00:50::11", "web A": "10.3.9.80", "web AAAA": "fd00:39::80"} {
			name, kind, _ := strings.Cut(q, " ")
			if got := must(t, l, "c1", fmt.Sprintf("dig +short @%s %s.%s %s", s.Addr(), name, z.Name, kind)); got != want {
				t.Errorf("%s at %s: %q, want %s", q, s, got, want)
			}
		}
	}
	if out := must(t, l, "c1", "getent hosts sheep2"); !strings.Contains(out, "fd00:50::12") {
		t.Errorf("a client finds sheep2 at %q", out)
	}
	update := fmt.Sprintf("printf 'server %s\\nupdate delete sheep1.%s A\\nupdate add sheep1.%[2]s 5 A 10.60.0.11\\nsend\\n' | nsupdate", z.Primary.Addr(), z.Name)
	if out, err := sh(t, l, "edge-south", update); err == nil || !strings.Contains(out, "REFUSED") {
		t.Errorf("an update without a key: %v, %s", err, out)
	}
	must(t, l, "edge-south", update+" -k "+z.KeyFile)
	for _, s := range z.Servers {
		eventually(t, "the update reaches "+s.String(), func() error {
			if got := must(t, l, "c1", fmt.Sprintf("dig +short @%s sheep1.%s A", s.Addr(), z.Name)); got != "10.60.0.11" {
				return errors.New(got)
			}
			return nil
		})
	}
}

// testKea asks the DHCP servers by their sockets, makes a lease there, and lets
// a client get another.
func testKea(t *testing.T, l *lab.Lab, north, south lab.EdgeServices) {
	for _, e := range []lab.EdgeServices{north, south} {
		if len(e.DHCP) != 2 {
			t.Fatalf("%+v: want a server for each family", e.DHCP)
		}
		for _, d := range e.DHCP {
			family := map[bool]string{true: "4", false: "6"}[d.Subnet.Addr().Is4()]
			ask := func(command, args string) string {
				return must(t, l, e.Edge, fmt.Sprintf(`echo '{"command": "lease%s-%s"%s}' | socat -t 5 - UNIX-CONNECT:%s`, family, command, args, d.Socket))
			}
			if out := ask("get-all", ""); !strings.Contains(out, "0 IPv"+family+" lease(s) found") {
				t.Errorf("%s: %s", e.Edge, out)
			}
			free := d.Pool.From.Prev()
			who := `"hw-address": "52:54:00:00:00:01"`
			if family == "6" {
				who = `"duid": "00:03:00:01:52:54:00:00:00:01", "iaid": 1`
			}
			ask("add", fmt.Sprintf(`, "arguments": {"subnet-id": %d, "ip-address": "%s", %s}`, d.SubnetID, free, who))
			if out := ask("get", fmt.Sprintf(`, "arguments": {"ip-address": "%s"}`, free)); !strings.Contains(out, `"result": 0`) {
				t.Errorf("%s: the lease of %s: %s", e.Edge, free, out)
			}
			if out := must(t, l, e.Edge, "ss -Hlnu"); family == "6" && !strings.Contains(out, "[ff02::1:2]%"+d.Interface+":547") {
				t.Errorf("%s: nobody hears DHCPv6: %s", e.Edge, out)
			}
		}
	}
	pool := north.DHCP[0].Pool
	if a := lease(t, l, "n1", "br-blue"); !pool.Contains(a) {
		t.Errorf("a stranger got %s, want one of %s", a, pool)
	}
}

// lease gets an address by DHCP as a stranger on an interface of a node would.
func lease(t *testing.T, l *lab.Lab, name, iface string) netip.Addr {
	t.Helper()
	pid, err := l.Holder(name)
	if err != nil {
		t.Fatal(err)
	}
	var client *nclient4.Client
	inside(t, pid, func() error {
		// The timeout is for one try of three.
		client, err = nclient4.New(iface, nclient4.WithTimeout(10*time.Second))
		return err
	})
	defer client.Close()
	got, err := client.Request(t.Context())
	if err != nil {
		t.Fatalf("DHCP on %s of %s: %v", iface, name, err)
	}
	a, ok := netip.AddrFromSlice(got.ACK.YourIPAddr.To4())
	if !ok {
		t.Fatalf("DHCP on %s of %s: %s", iface, name, got.ACK.Summary())
	}
	if r := got.ACK.Router(); len(r) != 1 || r[0].String() != "10.50.0.1" {
		t.Errorf("DHCP on %s of %s: routers %v, want the gateway", iface, name, r)
	}
	return a
}

// inside runs f in the network of process pid.
func inside(t *testing.T, pid int, f func() error) {
	t.Helper()
	if err := namespace.InProcess(pid, f); err != nil {
		t.Fatal(err)
	}
}

// testBalancer asks HAProxy by its runtime socket, and adds a server there.
func testBalancer(t *testing.T, l *lab.Lab, b *lab.EdgeBalancer) {
	ask := func(command string) string {
		return must(t, l, "edge-west", fmt.Sprintf("echo '%s' | socat -t 5 - UNIX-CONNECT:%s", command, b.AdminSocket))
	}
	if out := ask("show stat"); !strings.Contains(out, "web,FRONTEND,") || !strings.Contains(out, "web,sheep1,") {
		t.Errorf("%s", out)
	}
	if out := ask("add server web/drover-two 10.60.0.12:8080 check"); !strings.Contains(out, "New server registered") {
		t.Errorf("%s", out)
	}
	// No guest runs: a connection is taken, and given up.
	for _, a := range b.Services[0].Listens {
		must(t, l, "c1", fmt.Sprintf("timeout 5 bash -c 'exec 3<>/dev/tcp/%s/%d'", a.Addr(), a.Port()))
	}
	ask("disable server web/sheep1")
	must(t, l, "edge-west", fmt.Sprintf("echo 'show servers state' | socat -t 5 - UNIX-CONNECT:%s > %s", b.AdminSocket, b.StateFile))
	if out := must(t, l, "edge-west", fmt.Sprintf("echo reload | socat -t 10 - UNIX-CONNECT:%s", b.MasterSocket)); !strings.Contains(out, "Success=1") && out != "" {
		t.Errorf("reload: %s", out)
	}
	eventually(t, "the server's state survives a reload", func() error {
		out := ask("show stat")
		for line := range strings.Lines(out) {
			if strings.HasPrefix(line, "web,sheep1,") && strings.Contains(line, ",MAINT,") {
				return nil
			}
		}
		return errors.New(out)
	})
}

// TestKnotAndDnsmasq starts a lab with the other software and without routers:
// two zones, of which each site leads one and follows the other.
func TestKnotAndDnsmasq(t *testing.T) {
	f := load(t, `
name: other
server: a
sites:
  - {name: a, transport: 10.1.0.0/24, hosts: [{name: a1}]}
  - {name: b, transport: 10.2.0.0/24, access: 10.2.9.0/24, access6: "fd00:29::/64"}
links:
  - {a: a, b: b, rate: 1Gbit, delay: 2ms}
segments:
  - {name: blue, subnet: 10.50.0.0/24, subnet6: "fd00:50::/64", sites: [a]}
clients:
  - {name: ca, site: a, segment: blue, address: 10.50.0.9, address6: "fd00:50::9"}
  - {name: cb, site: b, address: 10.2.9.10, address6: "fd00:29::10"}
dns:
  - {zone: one.example, primary: a, secondaries: [b], software: knot}
  - {zone: two.example, primary: b, secondaries: [a], software: knot}
dhcp:
  - {site: a, segment: blue, software: dnsmasq}
`)
	plan, err := topology.New(f)
	if err != nil {
		t.Fatal(err)
	}
	l := up(t, options(t), f)
	must(t, l, "cb", "ping -c 1 -W 5 10.50.0.9 && ping -c 1 -W 5 fd00:50::9")
	e := lab.Services(f, plan, "a")
	for _, z := range e.Zones {
		must(t, l, e.Edge, fmt.Sprintf("printf 'server %s\\nzone %s\\nupdate add new.%[2]s 5 AAAA fd00:50::77\\nsend\\n' | nsupdate -k %s", z.Primary.Addr(), z.Name, z.KeyFile))
		for _, s := range z.Servers {
			eventually(t, "the update of "+z.Name+" reaches "+s.String(), func() error {
				if got := must(t, l, "cb", fmt.Sprintf("dig +short @%s new.%s AAAA", s.Addr(), z.Name)); got != "fd00:50::77" {
					return errors.New(got)
				}
				return nil
			})
		}
	}
	d := e.DHCP[0]
	a := lease(t, l, "a1", "br-blue")
	if !d.Pool.Contains(a) {
		t.Errorf("a stranger got %s, want one of %s", a, d.Pool)
	}
	if out := must(t, l, e.Edge, "cat "+d.LeaseFile); !strings.Contains(out, a.String()) {
		t.Errorf("the lease file has %q, want %s", out, a)
	}
}
