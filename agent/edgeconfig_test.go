package agent

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"

	"github.com/drover-vm/drover"
)

const edgeFile = `
name: edge-north
site: north
listen: 10.1.0.1:7443
run: /run/drover
state: /var/lib/drover
tls: {ca: /tls/ca.crt, cert: /tls/e.crt, key: /tls/e.key}
edge:
  mesh: {addresses: [100.125.0.1/16, "fd64:726f:7672::1/64"]}
  segments:
    - name: blue
      bridge: br-blue
      home: north
      sites: [north, south]
      subnets: [10.50.0.0/24, "fd00:50::/64"]
      gateways: [10.50.0.1, "fd00:50::1"]
      gateway_mac: 52:54:00:12:34:56
      vni: 100
    - {name: green, bridge: br-green, home: north, sites: [north], subnets: [10.60.0.0/24]}
  bgp:
    as: 64701
    addresses: [100.127.0.1, "fd00:127::1"]
    neighbors: [{address: 100.127.0.2, as: 64601}]
    hold: 3s
  zones:
    - {name: example.org, primary: 10.1.0.1, servers: ["10.1.0.1:53", 10.2.0.1], key_file: /etc/drover/dns.key}
  dhcp:
    - {kea4: /run/kea/4.sock, kea6: /run/kea/6.sock, segments: [blue]}
    - {libvirt: /run/libvirt/libvirt-sock, networks: {green: greennet}}
  balancers:
    - {socket: /run/haproxy/admin.sock, state_file: /run/haproxy/state, backends: [web]}
`

func edgeConfig(t *testing.T) Config {
	t.Helper()
	var c Config
	if err := yaml.UnmarshalWithOptions([]byte(edgeFile), &c, yaml.Strict()); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestEdgeConfig(t *testing.T) {
	c := edgeConfig(t)
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	raw, err := yaml.Marshal(c)
	must(t, err)
	var again Config
	must(t, yaml.UnmarshalWithOptions(raw, &again, yaml.Strict()))
	equal := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
	if diff := cmp.Diff(c, again, equal, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("written and read again: %s", diff)
	}
}

func TestEdgeConfigFaults(t *testing.T) {
	for want, change := range map[string]func(*Edge){
		`edge.segments[0].name: "b lue" is not a name`:               func(e *Edge) { e.Segments[0].Name = "b lue"; e.DHCP = nil },
		`edge.segments[1].name: "blue" is there twice`:               func(e *Edge) { e.Segments[1].Name = "blue"; e.DHCP = nil },
		`edge.segments[0].sites: ["south"]: want all sites`:          func(e *Edge) { e.Segments[0].Sites = []string{"south"} },
		`edge.segments[0].subnets: 0 subnets: want`:                  func(e *Edge) { e.Segments[0].Subnets, e.Segments[0].Gateways = nil, nil },
		`edge.segments[0].gateways: 10.9.0.1 is in none`:             func(e *Edge) { e.Segments[0].Gateways = addresses("10.9.0.1") },
		`edge.segments[0].gateway_mac: "x": want a station's`:        func(e *Edge) { e.Segments[0].GatewayMAC = "x" },
		`edge.segments[1].vni: 100: want 1 to 16777215, and another`: func(e *Edge) { e.Segments[1].VNI = 100 },
		`edge.mesh.addresses: missing`:                               func(e *Edge) { e.Mesh.Addresses = nil },
		`edge.mesh.addresses: 100.125.0.2/16: want at most one`: func(e *Edge) {
			e.Mesh.Addresses = append(e.Mesh.Addresses, netip.MustParsePrefix("100.125.0.2/16"))
		},
		`edge.bgp.as: 0: want`:                                          func(e *Edge) { e.BGP.AS = 0 },
		`edge.bgp.addresses: [10.0.0.1 10.0.0.2]: want`:                 func(e *Edge) { e.BGP.Addresses = addresses("10.0.0.1", "10.0.0.2") },
		`edge.bgp.neighbors: missing`:                                   func(e *Edge) { e.BGP.Neighbors = nil },
		`edge.bgp.neighbors[0]: address 100.127.0.2, as 0: want both`:   func(e *Edge) { e.BGP.Neighbors[0].AS = 0 },
		`edge.zones[0].name: "-" is no zone's name`:                     func(e *Edge) { e.Zones[0].Name = "-" },
		`edge.zones[0].key_file: "dns.key" is not an absolute path`:     func(e *Edge) { e.Zones[0].KeyFile = "dns.key" },
		`edge.zones[0]: server "ns1": want IP or IP:PORT`:               func(e *Edge) { e.Zones[0].Primary = "ns1" },
		`edge.dhcp[0]: want either kea4 and kea6, or libvirt`:           func(e *Edge) { e.DHCP[0] = EdgeDHCP{} },
		`edge.dhcp[0]: want segments with kea4 and kea6`:                func(e *Edge) { e.DHCP[0].Segments = nil },
		`edge.dhcp[0]: segment "red" is not one of the edge's`:          func(e *Edge) { e.DHCP[0].Segments = []string{"red"} },
		`edge.dhcp[1]: segment "green" has two services`:                func(e *Edge) { e.DHCP[0].Segments = []string{"green"} },
		`edge.balancers[0].socket: "" is not an absolute path`:          func(e *Edge) { e.Balancers[0].Socket = "" },
		`edge.balancers[0].state_file: "state" is not an absolute path`: func(e *Edge) { e.Balancers[0].StateFile = "state" },
		`edge.balancers[0].backends: missing`:                           func(e *Edge) { e.Balancers[0].Backends = nil },
		`edge.balancers[0].backends: "web" is there twice`:              func(e *Edge) { e.Balancers[0].Backends = []string{"web", "web"} },
	} {
		c := edgeConfig(t)
		change(c.Edge)
		err := c.Validate()
		if drover.KindOf(err) != drover.Invalid || err == nil || !strings.HasPrefix(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("want one line %q, got:\n%v", want, err)
		}
	}
	var c Config
	if err := yaml.UnmarshalWithOptions([]byte("edge: {meshes: {}}"), &c, yaml.Strict()); err == nil {
		t.Error("an unknown key was taken")
	}
	// A driver that the file needs and nobody has opened.
	full := edgeConfig(t)
	if err := (EdgeDrivers{}).check(full.Edge); drover.KindOf(err) != drover.Invalid {
		t.Errorf("without drivers: got %v", err)
	}
}
