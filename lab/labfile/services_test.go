package labfile_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/lab/labfile"
)

// routed is a lab file with routers, IPv6 and all services; the tests change
// lines of it.
const routed = `name: lab2
server: a
routing: bgp
sites:
  - name: a
    transport: 10.1.0.0/24
    hosts: [{name: a1}]
  - name: b
    transport: 10.2.0.0/24
    access: 10.2.9.0/24
    access6: fd00:9::/64
    hosts: [{name: b1}]
links:
  - {a: a, b: b, rate: 100Mbit, rtt: 50ms}
segments:
  - {name: blue, subnet: 10.50.0.0/24, subnet6: "fd00:50::/64", sites: [a, b], joined: false}
  - {name: green, subnet: 10.60.0.0/24, sites: [b, a]}
clients:
  - {name: c1, site: b, address: 10.2.9.10, address6: "fd00:9::10"}
dns:
  - {zone: lab.example, primary: a, secondaries: [b]}
dhcp:
  - {site: a, segment: blue}
  - {site: b, segment: green, pool: 10.60.0.100-10.60.0.110}
balancers:
  - {name: web, site: b, port: 80, backends: [g1], backend_port: 8080, check_http: /healthz}
guests:
  - {name: g1, host: a1, image: sheep, memory: 256MiB, segment: blue, address: 10.50.0.130, address6: "fd00:50::11"}
`

func TestServiceDefaults(t *testing.T) {
	f, err := labfile.Parse("lab.yaml", []byte(routed))
	if err != nil {
		t.Fatal(err)
	}
	blue, d, b := f.Segments[0], f.DHCP[0], f.Balancers[0]
	for _, c := range []struct{ what, got, want string }{
		{"routing", f.Routing, "bgp"},
		{"IPv6", fmt.Sprint(f.IPv6()), "true"},
		{"gateway6", blue.Gateway6.String(), "fd00:50::1"},
		{"joined", fmt.Sprint(blue.IsJoined(), f.Segments[1].IsJoined()), "false true"},
		{"name server", fmt.Sprint(f.DNS[0]), "{lab.example a [b] bind 300}"},
		{"sites of the zone", fmt.Sprint(f.DNS[0].Sites()), "[a b]"},
		// From the middle, but for the guest at .130.
		{"pool", d.Pool.String(), "10.50.0.131-10.50.0.146"},
		{"pool6", d.Pool6.String(), "fd00:50::8000-fd00:50::800f"},
		{"given pool", f.DHCP[1].Pool.String(), "10.60.0.100-10.60.0.110"},
		{"pool6 without IPv6", fmt.Sprint(f.DHCP[1].Pool6.IsValid()), "false"},
		{"software", d.Software, "kea"},
		{"the service's addresses", fmt.Sprint(b.Listens()), "[10.2.9.1:80 [fd00:9::1]:80]"},
	} {
		if c.got != c.want {
			t.Errorf("%s: %s, want %s", c.what, c.got, c.want)
		}
	}
	plain, err := labfile.Parse("lab.yaml", []byte(good))
	if err != nil || plain.Routing != "static" || plain.IPv6() || plain.BGP() || !plain.Segments[0].IsJoined() {
		t.Errorf("%+v, %v: want static routing, no IPv6 and joined segments by default", plain, err)
	}
}

// TestPools fills subnets until there is no room for a pool.
func TestPools(t *testing.T) {
	for _, c := range []struct{ subnet, want string }{
		{"10.60.0.0/24", "10.60.0.128-10.60.0.143"},
		{"10.60.0.0/26", "10.60.0.32-10.60.0.47"},
		{"10.60.0.0/27", "10.60.0.2-10.60.0.17"}, // not enough from the middle
		{"10.60.0.0/28", ""},
		{"10.0.0.0/8", "overlaps"},
	} {
		text := strings.NewReplacer("subnet: 10.60.0.0/24", "subnet: "+c.subnet, ", pool: 10.60.0.100-10.60.0.110", "").Replace(routed)
		f, err := labfile.Parse("lab.yaml", []byte(text))
		switch {
		case c.want == "overlaps":
			if err == nil || !strings.Contains(err.Error(), "overlaps") {
				t.Errorf("%s: %v", c.subnet, err)
			}
		case c.want == "":
			if err == nil || !strings.Contains(err.Error(), `lab.yaml:24: dhcp[1].pool: "10.60.0.0/28": the subnet has no 16 free addresses in a row`) {
				t.Errorf("%s: %v", c.subnet, err)
			}
		case err != nil:
			t.Errorf("%s: %v", c.subnet, err)
		case f.DHCP[1].Pool.String() != c.want:
			t.Errorf("%s: pool %s, want %s", c.subnet, f.DHCP[1].Pool, c.want)
		}
	}
}

// TestBadServices changes one line of the file and expects one line about it.
func TestBadServices(t *testing.T) {
	for _, c := range []struct{ old, new, want string }{
		{"routing: bgp", "routing: ospf", `lab.yaml:3: routing: "ospf": want one of static, bgp`},
		{"{name: a1}", "{name: a-router}", `lab.yaml:7: sites[0].hosts[0].name: "a-router": the name is taken by sites[0].name`},
		{"access6: fd00:9::/64", "access6: 10.9.0.0/24", `lab.yaml:11: sites[1].access6: "10.9.0.0/24": want an IPv6 subnet`},
		{"access6: fd00:9::/64", "access6: fd00:9::/120", `lab.yaml:11: sites[1].access6: "fd00:9::/120": want an IPv6 subnet`},
		{"access6: fd00:9::/64", "access6: fe80::/64", `lab.yaml:11: sites[1].access6: "fe80::/64": want an IPv6 subnet`},
		{"access6: fd00:9::/64", "access6: fd00:50::/48", `lab.yaml:16: segments[0].subnet6: "fd00:50::/64": overlaps fd00:50::/48 (sites[1].access6)`},
		{"access6: fd00:9::/64", "access6: fd4c:4142:1::/48", `overlaps fd4c:4142::/32 (the addresses of the WAN links)`},
		{`subnet6: "fd00:50::/64"`, `gateway6: "fd00:50::1"`, `lab.yaml:16: segments[0].gateway6: "fd00:50::1": there is no subnet6`},
		{`subnet6: "fd00:50::/64"`, `subnet6: "fd00:50::/64", gateway6: "fd00:51::1"`, `lab.yaml:16: segments[0].gateway6: "fd00:51::1": not in the segment's IPv6 subnet fd00:50::/64`},
		{"joined: false", "joined: maybe", `lab.yaml:16: segments[0].joined: "maybe": want true or false`},
		{"host: a1", "host: b1", `lab.yaml:28: guests[0].segment: "blue": the segment is not joined, and nothing leads to it at site b, want it at site a`},
		{`address: 10.2.9.10, address6: "fd00:9::10"`, `segment: blue, address: 10.50.0.9`, `lab.yaml:19: clients[0].segment: "blue": the segment is not joined`},
		{`"fd00:9::10"`, `"fd00:8::10"`, `lab.yaml:19: clients[0].address6: "fd00:8::10": not in the access IPv6 subnet fd00:9::/64`},
		{`"fd00:9::10"`, `"fd00:9::1"`, `lab.yaml:19: clients[0].address6: "fd00:9::1": the address is taken by the edge of site b`},
		{`"fd00:9::10"`, `10.2.9.11`, `lab.yaml:19: clients[0].address6: "10.2.9.11": want an IPv6 address`},
		{"segment: blue, address: 10.50.0.130", "segment: green, address: 10.60.0.9", `lab.yaml:28: guests[0].address6: "fd00:50::11": there is no IPv6 in the segment's subnet`},
		{"zone: lab.example", "zone: Lab..example", `lab.yaml:21: dns[0].zone: "Lab..example": want a domain name`},
		{"zone: lab.example, ", "", `lab.yaml:21: dns[0].zone: the key is missing, want a domain name`},
		{"primary: a", "primary: x", `lab.yaml:21: dns[0].primary: "x": unknown site, want one of a, b`},
		{"secondaries: [b]", "secondaries: [a]", `lab.yaml:21: dns[0].secondaries[0]: "a": the site is the primary`},
		{"secondaries: [b]", "secondaries: [b], software: unbound", `lab.yaml:21: dns[0].software: "unbound": want one of bind, knot`},
		{"secondaries: [b]", "secondaries: [b], ttl: 0", `lab.yaml:21: dns[0].ttl: "0": want a whole number of seconds from 1 to 86400`},
		{"dhcp:", "  - {zone: lab.example, primary: b}\ndhcp:", `lab.yaml:22: dns[1].zone: "lab.example": the zone is there twice`},
		{"dhcp:", "  - {zone: two.example, primary: b, software: knot}\ndhcp:", `lab.yaml:22: dns[1].software: "knot": site b runs bind already`},
		{"{site: a, segment: blue}", "{site: a, segment: red}", `lab.yaml:23: dhcp[0].segment: "red": unknown segment, want one of blue, green`},
		{"{site: a, segment: blue}", "{site: a, segment: blue, software: isc}", `lab.yaml:23: dhcp[0].software: "isc": want one of kea, dnsmasq`},
		{"{site: a, segment: blue}", "{site: b, segment: blue, software: dnsmasq}", `lab.yaml:24: dhcp[1].software: "kea": site b runs dnsmasq already`},
		{"{site: a, segment: blue}", "{site: b, segment: green}", `lab.yaml:24: dhcp[1].segment: "green": site b has a DHCP server for it already`},
		{"{site: a, segment: blue}", "{site: a, segment: green}", `lab.yaml:24: dhcp[1].segment: "green": the segment is joined with site a, whose DHCP server would answer too`},
		{"10.60.0.100-10.60.0.110", "10.60.0.100", `lab.yaml:24: dhcp[1].pool: "10.60.0.100": want a range`},
		{"10.60.0.100-10.60.0.110", "10.60.0.110-10.60.0.100", `lab.yaml:24: dhcp[1].pool: "10.60.0.110-10.60.0.100": want a range`},
		{"10.60.0.100-10.60.0.110", "10.60.0.100-10.60.0.255", `lab.yaml:24: dhcp[1].pool: "10.60.0.100-10.60.0.255": want addresses within 10.60.0.0/24`},
		{"10.60.0.100-10.60.0.110", "10.60.0.1-10.60.0.9", `lab.yaml:24: dhcp[1].pool: "10.60.0.1-10.60.0.9": 10.60.0.1 in it is taken by segments[1].gateway`},
		{"pool: 10.60.0.100-10.60.0.110", "pool6: fd00:50::1:0-fd00:50::1:9", `lab.yaml:24: dhcp[1].pool6: "fd00:50::1:0-fd00:50::1:9": there is no IPv6 in the segment`},
		{"name: web", "name: g1", `lab.yaml:26: balancers[0].name: "g1": a guest has this name`},
		{"name: web", "name: ns-b", `lab.yaml:26: balancers[0].name: "ns-b": the name is taken by the name server of site b`},
		{"name: web", "name: Web!", `lab.yaml:26: balancers[0].name: "Web!": want a name of up to 32`},
		{"port: 80,", "port: 0,", `lab.yaml:26: balancers[0].port: "0": want a port from 1 to 65535`},
		{"backend_port: 8080", "backend_port: 80800", `lab.yaml:26: balancers[0].backend_port: "80800": want a port`},
		{"backends: [g1]", "backends: [g1, g1]", `lab.yaml:26: balancers[0].backends[1]: "g1": the guest is there twice`},
		{"backends: [g1]", "backends: [g7]", `lab.yaml:26: balancers[0].backends[0]: "g7": unknown guest, want one of g1`},
		{"check_http: /healthz", "check_http: healthz", `lab.yaml:26: balancers[0].check_http: "healthz": want a path such as /healthz`},
		{"port: 80,", "address: 10.9.9.9, port: 80,", `lab.yaml:26: balancers[0].address: "10.9.9.9": not in the site's subnet 10.2.9.0/24`},
		{"port: 80,", "address: 10.2.9.10, port: 80,", `lab.yaml:26: balancers[0].address: "10.2.9.10": the address is taken by clients[0].address`},
		{"site: b, port: 80,", `site: a, address6: "fd00:9::80", port: 80,`, `lab.yaml:26: balancers[0].address6: "fd00:9::80": site a has no access6 subnet`},
		{"guests:", "  - {name: two, site: b, port: 80}\nguests:", `lab.yaml:27: balancers[1].port: "80": 10.2.9.1:80 is taken by load balancer web`},
		{"guests:", "  - {name: two, site: b, port: 81, address: 10.2.9.80}\n  - {name: three, site: b, port: 82, address: 10.2.9.80}\nguests:", ""},
		{"name: g1, host", "name: g1..x, host", `lab.yaml:28: guests[0].name: "g1..x": not a name that a DNS zone can have`},
	} {
		if strings.Count(routed, c.old) < 1 {
			t.Fatalf("the file has no %q", c.old)
		}
		_, err := labfile.Parse("lab.yaml", []byte(strings.Replace(routed, c.old, c.new, 1)))
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v, want no error", c.new, err)
		case c.want == "":
		case err == nil:
			t.Errorf("%q instead of %q: no error, want %s", c.new, c.old, c.want)
		case !strings.Contains(err.Error(), c.want) || drover.KindOf(err) != drover.Invalid:
			t.Errorf("%q instead of %q:\n got %v\nwant %s", c.new, c.old, err, c.want)
		}
	}
}
