package agent

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// Edge makes the agent its site's edge. Whatever is left out the edge does not
// have: an operation that needs it is refused.
type Edge struct {
	Links []EdgeLink `yaml:"links,omitempty"`
	// Segments are those that exist at this site.
	Segments []EdgeSegment `yaml:"segments,omitempty"`
	Mesh     *EdgeMesh     `yaml:"mesh,omitempty"`
	BGP      *EdgeBGP      `yaml:"bgp,omitempty"`
	// Zones are the DNS zones that it may change.
	Zones     []EdgeZone     `yaml:"zones,omitempty"`
	DHCP      []EdgeDHCP     `yaml:"dhcp,omitempty"`
	Balancers []EdgeBalancer `yaml:"balancers,omitempty"`
}

// EdgeLink is a WAN link that this edge counts.
type EdgeLink struct {
	Name string `yaml:"name"`
	A    string `yaml:"a"`
	B    string `yaml:"b"`
	// Counters say where its bytes are counted: "unix:///PATH" is a WAN
	// emulator's control socket, "interface:NAME" a network interface of this
	// edge, which sends towards B.
	Counters string `yaml:"counters"`
}

// EdgeSegment is a segment that exists at the edge's site. Its name, subnets,
// gateway, MAC, number, home and sites are the same at all of them.
type EdgeSegment struct {
	Name string `yaml:"name"`
	// Bridge is the interface that it is on this edge and on the site's hosts.
	Bridge string `yaml:"bridge"`
	// Home is the site to which the routers send its subnets by default.
	Home     string         `yaml:"home"`
	Sites    []string       `yaml:"sites"`
	Subnets  []netip.Prefix `yaml:"subnets"`
	Gateways []netip.Addr   `yaml:"gateways,omitempty"`
	// GatewayMAC is the gateway's, the same at every site.
	GatewayMAC string `yaml:"gateway_mac,omitempty"`
	// Joined says that it is one layer 2 network at all its sites already.
	Joined bool `yaml:"joined,omitempty"`
	// VNI numbers its extension, 1 to 16777215; it is not extended without one.
	VNI uint32 `yaml:"vni,omitempty"`
	// MTU is the largest packet of a station, in bytes; zero takes 1500.
	MTU int `yaml:"mtu,omitempty"`
}

// domain is the segment as everybody knows it.
func (s EdgeSegment) domain() drover.Segment {
	return drover.Segment{
		Name: s.Name, Home: s.Home, Sites: s.Sites, Subnets: s.Subnets, Gateways: s.Gateways, GatewayMAC: s.GatewayMAC,
		Joined: s.Joined, Bridge: s.Bridge, VNI: s.VNI,
	}
}

// EdgeMesh is the edge's end of the encrypted mesh between the sites.
type EdgeMesh struct {
	// Addresses are the edge's own in the mesh, each with the mesh's length,
	// which no other network has.
	Addresses []netip.Prefix `yaml:"addresses"`
	// Interface and Port of the tunnel; empty and zero take drover0 and 51820.
	Interface string `yaml:"interface,omitempty"`
	Port      uint16 `yaml:"port,omitempty"`
	// WANMTU is what the way to the other edges carries, in bytes; zero takes
	// 1500.
	WANMTU int `yaml:"wan_mtu,omitempty"`
	// UserSpace does without the kernel's WireGuard.
	UserSpace bool `yaml:"user_space,omitempty"`
}

// EdgeBGP is how host routes are announced to the site's routers.
type EdgeBGP struct {
	AS uint32 `yaml:"as"`
	// Addresses are the edge's own towards the routers, the next hops of what
	// it announces: one of each family that it announces.
	Addresses []netip.Addr  `yaml:"addresses"`
	Neighbors []EdgeRouting `yaml:"neighbors"`
	// Hold is after how long without a word a neighbour is given up; zero takes
	// 3s.
	Hold Duration `yaml:"hold,omitempty"`
	// Restart is how long routers keep the routes of an edge whose agent
	// restarts; zero takes 30s.
	Restart Duration `yaml:"restart,omitempty"`
}

// EdgeRouting is a router of the site.
type EdgeRouting struct {
	Address netip.Addr `yaml:"address"`
	AS      uint32     `yaml:"as"`
}

// EdgeZone is a DNS zone.
type EdgeZone struct {
	Name string `yaml:"name"`
	// Primary takes the updates, "ip" or "ip:port"; Servers are all that are
	// authoritative, or none to ask the primary for them.
	Primary string   `yaml:"primary"`
	Servers []string `yaml:"servers,omitempty"`
	// KeyFile holds the key of the updates, as tsig-keygen writes it.
	KeyFile string `yaml:"key_file"`
}

// EdgeDHCP is a DHCP service: Kea by its control sockets, or libvirt's own
// networks.
type EdgeDHCP struct {
	// Kea4 and Kea6 are the control sockets of kea-dhcp4 and kea-dhcp6.
	Kea4 string `yaml:"kea4,omitempty"`
	Kea6 string `yaml:"kea6,omitempty"`
	// Libvirt is libvirtd's socket, Networks its networks' names by segment.
	Libvirt  string            `yaml:"libvirt,omitempty"`
	Networks map[string]string `yaml:"networks,omitempty"`
	// Segments are those that Kea serves, by their subnets.
	Segments []string `yaml:"segments,omitempty"`
}

// serves returns the segments that the service serves.
func (d EdgeDHCP) serves() []string {
	list := slices.Clone(d.Segments)
	for s := range d.Networks {
		list = append(list, s)
	}
	slices.Sort(list)
	return list
}

// EdgeBalancer is a HAProxy.
type EdgeBalancer struct {
	// Socket is its runtime socket of level admin.
	Socket string `yaml:"socket"`
	// StateFile is its server-state-file, where it has one.
	StateFile string   `yaml:"state_file,omitempty"`
	Backends  []string `yaml:"backends"`
}

type faulter func(field, format string, args ...any)

func (c Config) validateEdge(fault faulter) {
	e := c.Edge
	if e == nil {
		return
	}
	e.validateLinks(fault)
	e.validateSegments(c.Site, fault)
	if e.Mesh != nil {
		e.Mesh.validate(fault)
	}
	if e.BGP != nil {
		e.BGP.validate(fault)
	}
	seen := map[string]bool{}
	for i, z := range e.Zones {
		field := fmt.Sprintf("edge.zones[%d]", i)
		if _, err := driver.NameInZone(z.Name, z.Name); err != nil {
			fault(field+".name", "%q is no zone's name", z.Name)
		}
		if seen[z.Name] {
			fault(field+".name", "%q is there twice", z.Name)
		}
		seen[z.Name] = true
		if !filepath.IsAbs(z.KeyFile) {
			fault(field+".key_file", "%q is not an absolute path", z.KeyFile)
		}
		for _, s := range append([]string{z.Primary}, z.Servers...) {
			_, aerr := netip.ParseAddr(s)
			_, perr := netip.ParseAddrPort(s)
			if aerr != nil && perr != nil {
				fault(field, "server %q: want IP or IP:PORT", s)
			}
		}
	}
	e.validateDHCP(fault)
	e.validateBalancers(fault)
}

func (e *Edge) validateLinks(fault faulter) {
	seen := make(map[string]bool)
	for i, l := range e.Links {
		field := fmt.Sprintf("edge.links[%d]", i)
		for _, e := range []struct{ field, value string }{{".name", l.Name}, {".a", l.A}, {".b", l.B}} {
			if err := drover.CheckName(field+e.field, e.value); err != nil {
				fault(field+e.field, "%q is not a name", e.value)
			}
		}
		if seen[l.Name] {
			fault(field+".name", "%q is there twice", l.Name)
		}
		seen[l.Name] = true
		if l.A == l.B {
			fault(field, "a and b are both %q: want two sites", l.A)
		}
		unix, isUnix := strings.CutPrefix(l.Counters, "unix://")
		device, isDevice := strings.CutPrefix(l.Counters, "interface:")
		if !(isUnix && filepath.IsAbs(unix)) && !(isDevice && device != "" && !strings.ContainsAny(device, "/ ")) {
			fault(field+".counters", "%q: want unix:///PATH or interface:NAME", l.Counters)
		}
	}
}

// mostVNI is what VXLAN's 24 bits hold.
const mostVNI = 1<<24 - 1

func (e *Edge) validateSegments(site string, fault faulter) {
	names, vnis := map[string]bool{}, map[uint32]bool{}
	for i, s := range e.Segments {
		field := fmt.Sprintf("edge.segments[%d]", i)
		for _, n := range []struct{ field, value string }{{".name", s.Name}, {".bridge", s.Bridge}, {".home", s.Home}} {
			if err := drover.CheckName(field+n.field, n.value); err != nil {
				fault(field+n.field, "%q is not a name", n.value)
			}
		}
		if names[s.Name] {
			fault(field+".name", "%q is there twice", s.Name)
		}
		names[s.Name] = true
		if !slices.Contains(s.Sites, site) || !slices.Contains(s.Sites, s.Home) {
			fault(field+".sites", "%q: want all sites of the segment, with its home %s and this one, %s", s.Sites, s.Home, site)
		}
		if err := driver.CheckSubnets(s.Subnets); err != nil {
			fault(field+".subnets", "%v", err)
		}
		for _, g := range s.Gateways {
			if !s.domain().Contains(g) {
				fault(field+".gateways", "%v is in none of its subnets", g)
			}
		}
		if s.GatewayMAC != "" {
			if _, err := driver.NormalMAC(s.GatewayMAC); err != nil {
				fault(field+".gateway_mac", "%q: want a station's, such as 52:54:00:12:34:56", s.GatewayMAC)
			}
		}
		if s.VNI > mostVNI || s.VNI != 0 && vnis[s.VNI] {
			fault(field+".vni", "%d: want 1 to %d, and another for each segment", s.VNI, mostVNI)
		}
		vnis[s.VNI] = true
	}
}

func (m *EdgeMesh) validate(fault faulter) {
	if len(m.Addresses) == 0 {
		fault("edge.mesh.addresses", "missing: want this edge's in the mesh, such as 100.125.0.1/16")
	}
	seen := map[bool]bool{}
	for _, a := range m.Addresses {
		if !a.IsValid() || a.Addr().Is4In6() || !a.Addr().IsGlobalUnicast() || a.Bits() == 0 {
			fault("edge.mesh.addresses", "%v: want an address with the mesh's length", a)
		}
		if seen[a.Addr().Is4()] {
			fault("edge.mesh.addresses", "%v: want at most one of each family", a)
		}
		seen[a.Addr().Is4()] = true
	}
}

func (b *EdgeBGP) validate(fault faulter) {
	if b.AS == 0 {
		fault("edge.bgp.as", "0: want the edge's autonomous system")
	}
	if len(b.Addresses) == 0 || len(b.Addresses) > 2 || len(b.Addresses) == 2 && b.Addresses[0].Is4() == b.Addresses[1].Is4() {
		fault("edge.bgp.addresses", "%v: want the edge's own towards its routers, one of each family", b.Addresses)
	}
	if len(b.Neighbors) == 0 {
		fault("edge.bgp.neighbors", "missing: want the site's routers")
	}
	for i, n := range b.Neighbors {
		if !n.Address.IsValid() || n.AS == 0 {
			fault(fmt.Sprintf("edge.bgp.neighbors[%d]", i), "address %v, as %d: want both", n.Address, n.AS)
		}
	}
}

func (e *Edge) validateDHCP(fault faulter) {
	seen := map[string]bool{}
	for i, d := range e.DHCP {
		field := fmt.Sprintf("edge.dhcp[%d]", i)
		kea := d.Kea4 != "" || d.Kea6 != ""
		if kea == (d.Libvirt != "") {
			fault(field, "want either kea4 and kea6, or libvirt")
		}
		if kea != (len(d.Segments) > 0) || (d.Libvirt != "") != (len(d.Networks) > 0) {
			fault(field, "want segments with kea4 and kea6, networks with libvirt")
		}
		for _, path := range []string{d.Kea4, d.Kea6, d.Libvirt} {
			if path != "" && !filepath.IsAbs(path) {
				fault(field, "socket %q is not an absolute path", path)
			}
		}
		for _, s := range d.serves() {
			if !slices.ContainsFunc(e.Segments, func(g EdgeSegment) bool { return g.Name == s }) {
				fault(field, "segment %q is not one of the edge's", s)
			}
			if seen[s] {
				fault(field, "segment %q has two services", s)
			}
			seen[s] = true
		}
	}
}

func (e *Edge) validateBalancers(fault faulter) {
	seen := map[string]bool{}
	for i, b := range e.Balancers {
		field := fmt.Sprintf("edge.balancers[%d]", i)
		for _, p := range []struct{ field, value string }{{".socket", b.Socket}, {".state_file", b.StateFile}} {
			if !filepath.IsAbs(p.value) && (p.value != "" || p.field == ".socket") {
				fault(field+p.field, "%q is not an absolute path", p.value)
			}
		}
		if len(b.Backends) == 0 {
			fault(field+".backends", "missing: want the names of its backends")
		}
		for _, k := range b.Backends {
			if err := driver.CheckServerNames(k, ""); err != nil {
				fault(field+".backends", "%v", err)
			}
			if seen[k] {
				fault(field+".backends", "%q is there twice", k)
			}
			seen[k] = true
		}
	}
}
