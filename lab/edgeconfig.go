package lab

import (
	"net/netip"
	"slices"

	"github.com/drover-vm/drover/agent"
	"github.com/drover-vm/drover/lab/labfile"
	"github.com/drover-vm/drover/lab/topology"
)

// The mesh's networks in a lab: no lab file's network may be in them, and every
// site has room.
var (
	meshNet4 = netip.MustParsePrefix("100.125.0.0/16")
	meshNet6 = netip.MustParsePrefix("fd64:726f:7672::/64")
)

// newEdgeConfig is the file of a site's edge, as far as it follows from what is
// around the edge.
func newEdgeConfig(f *labfile.File, plan *topology.Plan, site string) *agent.Edge {
	s := Services(f, plan, site)
	e := &agent.Edge{Mesh: &agent.EdgeMesh{Addresses: meshAddresses(f, site)}}
	for _, g := range s.Segments {
		e.Segments = append(e.Segments, newSegmentConfig(g))
	}
	if r := s.Router; r != nil {
		e.BGP = &agent.EdgeBGP{AS: r.AS, Addresses: []netip.Addr{r.Address}, Neighbors: []agent.EdgeRouting{{Address: r.RouterAddress, AS: r.RouterAS}}}
		if r.Address6.IsValid() {
			e.BGP.Addresses = append(e.BGP.Addresses, r.Address6)
		}
	}
	for _, z := range s.Zones {
		zone := agent.EdgeZone{Name: z.Name, Primary: z.Primary.String(), KeyFile: z.KeyFile}
		for _, a := range z.Servers {
			zone.Servers = append(zone.Servers, a.String())
		}
		e.Zones = append(e.Zones, zone)
	}
	e.DHCP = newDHCPConfig(s.DHCP)
	if b := s.Balancer; b != nil {
		lb := agent.EdgeBalancer{Socket: b.AdminSocket, StateFile: b.StateFile}
		for _, k := range b.Services {
			lb.Backends = append(lb.Backends, k.Name)
		}
		e.Balancers = append(e.Balancers, lb)
	}
	return e
}

// meshAddresses are an edge's: the sites count from one in the file's order.
func meshAddresses(f *labfile.File, site string) []netip.Prefix {
	n := 1 + slices.IndexFunc(f.Sites, func(s labfile.Site) bool { return s.Name == site })
	v4, v6 := meshNet4.Addr().As4(), meshNet6.Addr().As16()
	v4[2], v4[3] = byte(n>>8), byte(n)
	v6[14], v6[15] = byte(n>>8), byte(n)
	list := []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4(v4), meshNet4.Bits())}
	if f.IPv6() { // else it is off on edges
		list = append(list, netip.PrefixFrom(netip.AddrFrom16(v6), meshNet6.Bits()))
	}
	return list
}

func newSegmentConfig(g EdgeSegment) agent.EdgeSegment {
	s := agent.EdgeSegment{
		Name: g.Name, Bridge: g.Bridge, Home: g.Home, Sites: g.Sites, Joined: g.Joined, VNI: uint32(g.VNI),
		Subnets: []netip.Prefix{g.Subnet}, GatewayMAC: g.MAC.String(),
	}
	if g.Subnet6.IsValid() {
		s.Subnets = append(s.Subnets, g.Subnet6)
	}
	for _, a := range []netip.Addr{g.Gateway, g.Gateway6} {
		if a.IsValid() {
			s.Gateways = append(s.Gateways, a)
		}
	}
	return s
}

// newDHCPConfig gathers Kea's segments: it is one pair of servers for all of them.
// Those of a plain dnsmasq are left out, since it takes no reservations.
func newDHCPConfig(list []EdgeDHCP) []agent.EdgeDHCP {
	var kea agent.EdgeDHCP
	for _, d := range list {
		if d.Software != labfile.DHCPKea {
			continue
		}
		if d.Subnet.Addr().Is4() {
			kea.Kea4 = d.Socket
		} else {
			kea.Kea6 = d.Socket
		}
		if !slices.Contains(kea.Segments, d.Segment) {
			kea.Segments = append(kea.Segments, d.Segment)
		}
	}
	if len(kea.Segments) == 0 {
		return nil
	}
	return []agent.EdgeDHCP{kea}
}
