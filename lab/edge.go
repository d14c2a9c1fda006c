package lab

import (
	"net"
	"net/netip"
	"slices"

	"github.com/drover-vm/drover/lab/labfile"
	"github.com/drover-vm/drover/lab/topology"
)

// EdgeServices is all that the agent of a site's edge has to know of the networks
// and servers around it. Paths are as the edge's processes see them.
type EdgeServices struct {
	Site string
	Edge string // the node
	// Address is the edge's own in the transport network, where tunnels end.
	Address netip.Addr
	// Router is nil with static routing.
	Router   *EdgeRouter
	Segments []EdgeSegment
	// Zones are all of the lab's: whoever has the key may update them.
	Zones []EdgeZone
	// DHCP are the servers of this edge, one entry for each segment and family.
	DHCP []EdgeDHCP
	// Balancer is nil where no load balancer runs.
	Balancer *EdgeBalancer
}

// EdgeRouter is the site's router and the cable to it.
type EdgeRouter struct {
	// Interface of the edge that leads to the router.
	Interface string
	// AS, Address and Address6 are the edge's own: where its speaker calls from,
	// and the next hop of what it announces.
	AS       uint32
	Address  netip.Addr
	Address6 netip.Addr
	// RouterAS, RouterAddress and RouterAddress6 are the neighbour's. It waits to
	// be called, at both addresses; the session over IPv4 carries both families.
	RouterAS       uint32
	RouterAddress  netip.Addr
	RouterAddress6 netip.Addr
	// Hosts are the subnets within which the router accepts single addresses.
	Hosts []netip.Prefix
}

// EdgeSegment is a segment that exists at the site.
type EdgeSegment struct {
	Name   string
	Bridge string
	VNI    int
	Subnet netip.Prefix
	// Gateway is the edge's own address in it if HasGateway, with MAC.
	Gateway    netip.Addr
	Subnet6    netip.Prefix // invalid without IPv6, as is Gateway6
	Gateway6   netip.Addr
	HasGateway bool
	MAC        net.HardwareAddr // the bridge's
	// Home is the site to which the routers send its subnets.
	Home   string
	Sites  []string
	Joined bool
}

// EdgeZone is a DNS zone and its servers.
type EdgeZone struct {
	Name string
	// Primary takes updates signed with the key; Servers are all, the primary first.
	Primary netip.AddrPort
	Servers []netip.AddrPort
	// Software is labfile.DNSBind or DNSKnot.
	Software string
	// KeyFile holds the key in BIND's format.
	KeyName      string
	KeyAlgorithm string
	KeyFile      string
	// TTL of the records in seconds.
	TTL int
}

// EdgeDHCP is a DHCP server's part for one segment and family.
type EdgeDHCP struct {
	// Software is labfile.DHCPKea or DHCPDnsmasq.
	Software  string
	Segment   string
	Interface string
	Subnet    netip.Prefix // tells the family
	Pool      labfile.Range
	// Socket takes Kea's commands, SubnetID is Kea's number of the subnet; dnsmasq
	// has neither, but the file LeaseFile.
	Socket    string
	SubnetID  int
	LeaseFile string
}

// EdgeBalancer is the HAProxy of the edge.
type EdgeBalancer struct {
	// AdminSocket is the runtime API at level admin, MasterSocket the master's,
	// which takes "reload".
	AdminSocket  string
	MasterSocket string
	Config       string
	// StateFile is read at start and reload; whoever reloads writes what the admin
	// socket says to "show servers state" there before.
	StateFile string
	Services  []BalancedService
}

// BalancedService is a service of a load balancer; its frontend and its backend
// have its name.
type BalancedService struct {
	Name    string
	Listens []netip.AddrPort
	Servers []BalancedServer
	// Port at which backends serve; CheckHTTP as in labfile.Balancer.
	Port      int
	CheckHTTP string
}

// BalancedServer is a backend that the configuration has.
type BalancedServer struct {
	Name    string
	Address netip.AddrPort
}

// Services describes what is around a site's edge. plan is f's.
func Services(f *labfile.File, plan *topology.Plan, site string) EdgeServices {
	edge := plan.Node(labfile.EdgeName(site))
	e := EdgeServices{Site: site, Edge: edge.Name, Address: edge.Address}
	if r := plan.RouterOf(site); r != nil {
		e.Router = &EdgeRouter{
			Interface: topology.RouterPort, AS: r.Edge.AS, Address: r.Edge.Address, Address6: r.Edge.Address6,
			RouterAS: r.AS, RouterAddress: r.ID, RouterAddress6: r.Address6, Hosts: r.Hosts,
		}
	}
	for i := range f.Segments {
		if slices.Contains(f.Segments[i].Sites, site) {
			e.Segments = append(e.Segments, newEdgeSegment(f, &f.Segments[i], edge))
		}
	}
	for i := range f.DNS {
		e.Zones = append(e.Zones, newEdgeZone(plan, &f.DNS[i]))
	}
	for i := range f.DHCP {
		if f.DHCP[i].Site == site {
			e.DHCP = append(e.DHCP, newEdgeDHCP(f, &f.DHCP[i])...)
		}
	}
	for i := range f.Balancers {
		if b := &f.Balancers[i]; b.Site == site {
			if e.Balancer == nil {
				e.Balancer = &EdgeBalancer{
					AdminSocket: haproxyAdmin, MasterSocket: haproxyMaster, Config: haproxyConf, StateFile: haproxyState,
				}
			}
			e.Balancer.Services = append(e.Balancer.Services, newBalancedService(f, b))
		}
	}
	return e
}

func newEdgeSegment(f *labfile.File, s *labfile.Segment, edge *topology.Node) EdgeSegment {
	e := EdgeSegment{
		Name: s.Name, Bridge: topology.SegmentBridge(s.Name), VNI: topology.VNI(f, s.Name),
		Subnet: s.Subnet.Prefix, Gateway: s.Gateway.Addr, Subnet6: s.Subnet6.Prefix, Gateway6: s.Gateway6.Addr,
		Home: s.Home(), Sites: slices.Clone(s.Sites), Joined: s.IsJoined(),
	}
	for _, b := range edge.Bridges {
		if b.Name == e.Bridge {
			e.MAC, e.HasGateway = b.MAC, b.Address.IsValid()
		}
	}
	return e
}

func newEdgeZone(plan *topology.Plan, d *labfile.DNS) EdgeZone {
	z := EdgeZone{
		Name: d.Zone, Software: d.Software, TTL: d.TTL,
		KeyName: dnsKeyName, KeyAlgorithm: dnsKeyAlgorithm, KeyFile: dnsKeyFile,
	}
	for _, s := range d.Sites() {
		z.Servers = append(z.Servers, netip.AddrPortFrom(plan.Node(labfile.EdgeName(s)).Address, dnsPort))
	}
	z.Primary = z.Servers[0]
	return z
}

// newEdgeDHCP describes a segment's servers: one for each family.
func newEdgeDHCP(f *labfile.File, d *labfile.DHCP) []EdgeDHCP {
	i := slices.IndexFunc(f.Segments, func(s labfile.Segment) bool { return s.Name == d.Segment })
	s := &f.Segments[i]
	one := func(subnet netip.Prefix, pool labfile.Range, socket string) EdgeDHCP {
		e := EdgeDHCP{
			Software: d.Software, Segment: s.Name, Interface: topology.SegmentBridge(s.Name),
			Subnet: subnet, Pool: pool,
		}
		if d.Software == labfile.DHCPKea {
			e.Socket, e.SubnetID = socket, i+1 // Kea's numbers begin with 1
		} else {
			e.LeaseFile = dnsmasqLeases(s.Name)
		}
		return e
	}
	list := []EdgeDHCP{one(s.Subnet.Prefix, d.Pool, keaSocket4)}
	if s.Subnet6.IsValid() {
		list = append(list, one(s.Subnet6.Prefix, d.Pool6, keaSocket6))
	}
	return list
}

func newBalancedService(f *labfile.File, b *labfile.Balancer) BalancedService {
	s := BalancedService{Name: b.Name, Listens: b.Listens(), Port: b.BackendPort, CheckHTTP: b.CheckHTTP}
	for _, name := range b.Backends {
		i := slices.IndexFunc(f.Guests, func(g labfile.Guest) bool { return g.Name == name })
		s.Servers = append(s.Servers, BalancedServer{Name: name, Address: netip.AddrPortFrom(f.Guests[i].Address.Addr, uint16(b.BackendPort))})
	}
	return s
}
