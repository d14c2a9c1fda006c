package lab

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/drover-vm/drover/lab/labfile"
	"github.com/drover-vm/drover/lab/topology"
)

// ready loads the ready lab of that name.
func ready(t *testing.T, name string) (*labfile.File, *topology.Plan) {
	t.Helper()
	f, err := labfile.Load(name)
	if err != nil {
		t.Fatal(err)
	}
	plan, err := topology.New(f)
	if err != nil {
		t.Fatal(err)
	}
	return f, plan
}

// TestServices describes the edges of the ready lab routed, and of one that has
// nothing.
func TestServices(t *testing.T) {
	f, plan := ready(t, "routed")
	north, south, west := Services(f, plan, "north"), Services(f, plan, "south"), Services(f, plan, "west")
	for _, c := range []struct{ what, got, want string }{
		{"router", fmt.Sprint(*south.Router), "{router 64702 100.127.128.5 fd4c:4142:1:1::1 64602 100.127.128.6 fd4c:4142:1:1::2 [10.50.0.0/24 fd00:50::/64 10.60.0.0/24 fd00:60::/64]}"},
		{"edge", west.Edge + " " + west.Address.String(), "edge-west 10.3.0.1"},
		{"segments", fmt.Sprint(len(north.Segments), len(south.Segments), len(west.Segments)), "1 2 0"},
		{"home", south.Segments[0].Home + " " + south.Segments[1].Home, "north south"},
		{"vnis", fmt.Sprint(south.Segments[0].VNI, south.Segments[1].VNI, north.Segments[0].VNI), "100 101 100"},
		{"gateways", fmt.Sprint(south.Segments[0].HasGateway, south.Segments[0].Gateway, south.Segments[0].Gateway6), "true 10.50.0.1 fd00:50::1"},
		{"zone", fmt.Sprint(west.Zones), "[{routed.example 10.1.0.1:53 [10.1.0.1:53 10.2.0.1:53] bind drover hmac-sha256 /run/drover/conf/dns.key 300}]"},
		{"DHCP", fmt.Sprint(south.DHCP), "[{kea green br-green 10.60.0.0/24 10.60.0.128-10.60.0.143 /run/kea/dhcp4.sock 2 } {kea green br-green fd00:60::/64 fd00:60::8000-fd00:60::800f /run/kea/dhcp6.sock 2 }]"},
		{"balancer", fmt.Sprint(*west.Balancer), "{/run/haproxy/admin.sock /run/haproxy/master.sock /run/haproxy/haproxy.cfg /run/haproxy/state [{web [10.3.9.80:8080 [fd00:39::80]:8080] [{sheep1 10.50.0.11:8080}] 8080 /healthz}]}"},
		{"none elsewhere", fmt.Sprint(north.Balancer == nil, len(west.DHCP)), "true 0"},
	} {
		if c.got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.what, c.got, c.want)
		}
	}
	if a, b := north.Segments[0].MAC, south.Segments[0].MAC; a.String() != b.String() {
		t.Errorf("gateways %s and %s, want one address", a, b)
	}
	plainFile, plainPlan := ready(t, "tiny")
	plain := Services(plainFile, plainPlan, "south")
	if plain.Router != nil || plain.Zones != nil || plain.DHCP != nil || plain.Balancer != nil ||
		len(plain.Segments) != 1 || plain.Segments[0].HasGateway || !plain.Segments[0].Joined {
		t.Errorf("%+v: want a segment without the gateway, and nothing else", plain)
	}
}

func TestZoneFile(t *testing.T) {
	f, plan := ready(t, "routed")
	want := `$ORIGIN routed.example.
$TTL 300
@ SOA ns-north hostmaster 1 30 2 86400 5
@ NS ns-north
@ NS ns-south
ns-north A 10.1.0.1
ns-south A 10.2.0.1
sheep1 A 10.50.0.11
sheep1 AAAA fd00:50::11
sheep2 A 10.50.0.12
sheep2 AAAA fd00:50::12
web A 10.3.9.80
web AAAA fd00:39::80
`
	if diff := cmp.Diff(want, zoneFile(f, plan, &f.DNS[0])); diff != "" {
		t.Error(diff)
	}
	if got, want := resolvConf(f, plan), "search routed.example\nnameserver 10.1.0.1\nnameserver 10.2.0.1\n"; got != want {
		t.Errorf("resolv.conf %q, want %q", got, want)
	}
}

// TestWhoServesDHCP changes which server a segment's guest is to ask: there is
// always one.
func TestWhoServesDHCP(t *testing.T) {
	const text = `
name: who
server: a
sites:
  - {name: a, transport: 10.1.0.0/24, hosts: [{name: a1}]}
  - {name: b, transport: 10.2.0.0/24}
links:
  - {a: a, b: b, rate: 1Gbit, delay: 1ms}
segments:
  - {name: blue, subnet: 10.50.0.0/24, subnet6: "fd00:50::/64", sites: [a, b]}
guests:
  - {name: g1, host: a1, image: sheep, memory: 128MiB, segment: blue, address: 10.50.0.9, address6: "fd00:50::9", mac: "52:54:00:00:00:09", dhcp: true}
`
	for _, c := range []struct{ entry, keaA, masqA, masqB string }{
		{"", "", "dhcp-range=10.50.0.0,static\n…,10.50.0.9,g1\n", ""},
		{"dhcp: [{site: a, segment: blue}]", "10.50.0.9", "", ""},
		{"dhcp: [{site: b, segment: blue}]", "", "", ""},
		{
			"dhcp: [{site: a, segment: blue, software: dnsmasq}]", "",
			"dhcp-range=10.50.0.128,10.50.0.143,3600\ndhcp-range=fd00:50::8000,fd00:50::800f,64,3600\n…,10.50.0.9,[fd00:50::9],g1\n", "",
		},
		{"dhcp: [{site: b, segment: blue, software: dnsmasq}]", "", "", "dhcp-range=10.50.0.128,10.50.0.143,3600\n"},
	} {
		f, err := labfile.Parse("who.yaml", []byte(text+c.entry))
		if err != nil {
			t.Fatal(err)
		}
		plan, err := topology.New(f)
		if err != nil {
			t.Fatal(err)
		}
		for site, want := range map[string]string{"a": c.masqA, "b": c.masqB} {
			got := dnsmasqConf(f, &f.Segments[0], site)
			if (got == "") != (want == "") {
				t.Errorf("%q: dnsmasq at %s: %q, want %q", c.entry, site, got, want)
			}
			for part := range strings.SplitSeq(want, "…") {
				if !strings.Contains(got, part) {
					t.Errorf("%q: dnsmasq at %s lacks %q: %s", c.entry, site, part, got)
				}
			}
		}
		kea := ""
		for _, s := range newKeaConfig(f, plan, "a", false).Subnets4 {
			kea += s.Reservations[0].Address
		}
		if kea != c.keaA {
			t.Errorf("%q: Kea at a holds %q, want %q", c.entry, kea, c.keaA)
		}
	}
	// DHCPv6 knows a client by its DUID.
	f, err := labfile.Parse("who.yaml", []byte(text+"dhcp: [{site: a, segment: blue}]"))
	if err != nil {
		t.Fatal(err)
	}
	want := []keaReservation{{DUID: "00:03:00:01:52:54:00:00:00:09", Addresses: []string{"fd00:50::9"}, Hostname: "g1"}}
	if diff := cmp.Diff(want, keaReservations(f, "blue", true)); diff != "" {
		t.Error(diff)
	}
}
