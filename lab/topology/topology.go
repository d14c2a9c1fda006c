// Package topology turns a lab file into networks: which namespaces there are,
// which bridges, cables, tunnels, addresses and routes are in them.
//
//	site north                                    site south
//	 host n1 ── tr0 ──┐                          ┌── tr0 ── host s1
//	                br-net ── edge ══ WAN ══ edge ── br-net
//	 br-blue ── up ── br-blue ── vx-blue ~~~~ vx-blue ── br-blue ── up ── br-blue
//	   │                │ gateway                                          │
//	 guests          clients                                             guests
//
// Each site has an edge with a bridge for the transport network (hosts, server)
// and one for each segment. An edge routes between its networks and, over the
// WAN links, to the other sites': over the link between the two, or else by the
// least delay. A segment at several sites
// is joined by VXLAN between their edges; it is one broadcast domain, whose
// gateway is the edge of its first site. A segment that is not joined has the
// same gateway, address and hardware address, in each of its edges.
//
// Where routing is by BGP each site has a router between edge and WAN: the links
// end there, the edge sends everything to it, and it learns the ways.
//
//	edge ── router ══ WAN ══ router ── edge
//
// New is pure. Build and Connect make the plan real inside namespaces that
// exist; package node makes those, package wanem the WAN links between.
package topology

import (
	"crypto/sha256"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/drover-vm/drover/lab/labfile"
	"github.com/drover-vm/drover/lab/wanem"
)

// Names of bridges and interfaces.
const (
	transportBridge = "br-net"
	accessBridge    = "br-access"
	segmentPrefix   = "br-"
	// transportPort is a host's or the server's interface in the transport network.
	transportPort = "tr0"
	clientPort    = "eth0"
)

// guestMTU is what a segment carries everywhere, in bytes.
const guestMTU = 1500

// vxlanOverhead is what VXLAN over IPv4 adds to a frame's payload: inner
// Ethernet 14, VXLAN 8, UDP 8, IPv4 20 (RFC 7348).
const vxlanOverhead = 50

// firstVNI is the network identifier of the file's first segment.
const firstVNI = 100

// Role is what a node is for.
type Role string

// The roles.
const (
	Host   Role = "host"
	Edge   Role = "edge"
	Client Role = "client"
	Server Role = "server"
	// RouterRole is a site's router; there is none with static routing.
	RouterRole Role = "router"
)

// Plan is a lab's networks, complete: nothing is left to choose.
type Plan struct {
	Nodes  []Node
	Cables []Cable
	Links  []Link
}

// Node is one namespace and what is in it besides cables and WAN links.
type Node struct {
	Name    string
	Role    Role
	Site    string
	Address netip.Addr // where its agent or server listens
	Bridges []Bridge
	VXLANs  []VXLAN
	Routes  []Route
	Forward bool // routes packets between its interfaces
	IPv6    bool // has IPv6, which is off otherwise
	Router  *Router
}

// Bridge is a learning bridge; Address and Address6 are the node's own in it, if
// any.
type Bridge struct {
	Name     string
	MAC      net.HardwareAddr
	Address  netip.Prefix
	Address6 netip.Prefix
	// Elsewhere says that the subnet of the addresses is somewhere else: they are
	// answered for, but packets to others in it are routed.
	Elsewhere bool
	// Services are more addresses of the node, each for itself.
	Services []netip.Addr
}

// VXLAN is a tunnel port of a bridge that floods to all Remotes.
type VXLAN struct {
	Name    string
	Bridge  string
	VNI     int
	Local   netip.Addr
	Remotes []netip.Addr
}

// Route leads to a subnet; Source is the address that the node itself uses.
type Route struct {
	To     netip.Prefix
	Via    netip.Addr
	Source netip.Addr
}

// Cable is a veth pair between two nodes. MTU in bytes is the kernel's default
// when it is 0.
type Cable struct {
	A, B Port
	MTU  int
}

// Port is an interface of a node: in a bridge, or with addresses.
type Port struct {
	Node      string
	Interface string
	Bridge    string
	Address   netip.Prefix
	Address6  netip.Prefix
}

// Link is a WAN link between the edges, or the routers, of two sites, made by
// the emulator.
type Link struct {
	Name  string
	Sites [2]string
	Ends  [2]Port
	MACs  [2]net.HardwareAddr
	MTU   int
	Shape wanem.Shape
}

// defaultRoute is everything.
var (
	defaultRoute  = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	defaultRoute6 = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
)

// New plans the networks of a checked lab file. The error is Problems of the
// file that only the whole picture shows.
func New(f *labfile.File) (*Plan, error) {
	p := &Plan{}
	ways, problems := paths(f)
	if err := problems.OrNil(); err != nil {
		return nil, err
	}
	p.links(f)
	for i := range f.Sites {
		p.site(f, i, ways)
	}
	p.clients(f)
	return p, nil
}

// links places the WAN links and numbers their ends.
func (p *Plan) links(f *labfile.File) {
	for i, l := range f.Links {
		link := Link{Name: l.Name, Sites: [2]string{l.A, l.B}, MTU: l.MTU, Shape: l.Shape()}
		for side, peer := range [2]string{l.B, l.A} {
			end := labfile.EdgeName(link.Sites[side])
			if f.BGP() {
				end = labfile.RouterName(link.Sites[side])
			}
			link.Ends[side] = Port{Node: end, Interface: wanPort(peer)}
			link.Ends[side].Address, link.Ends[side].Address6 = wanAddresses(f, linkNets, i, side)
			link.MACs[side] = mac(f.Name, end, wanPort(peer))
		}
		p.Links = append(p.Links, link)
	}
}

// wanPort is the interface of the link to another site.
func wanPort(site string) string { return "wan-" + site }

// site plans one site's edge, router, hosts and server.
func (p *Plan) site(f *labfile.File, number int, ways ways) {
	s := &f.Sites[number]
	edge := p.edge(f, s)
	if f.BGP() {
		p.behindRouter(f, number, &edge)
	} else {
		edge.Routes = p.wanRoutes(f, s, ways)
	}
	p.Nodes = append(p.Nodes, edge)

	up := []Route{{To: defaultRoute, Via: edge.Address}}
	for _, h := range s.Hosts {
		n := Node{Name: h.Name, Role: Host, Site: s.Name, Address: h.Address.Addr, Routes: up}
		p.transport(edge.Name, h.Name, within(h.Address.Addr, s.Transport.Prefix))
		for i, seg := range f.Segments {
			if !slices.Contains(seg.Sites, s.Name) {
				continue
			}
			n.Bridges = append(n.Bridges, Bridge{Name: SegmentBridge(seg.Name), MAC: mac(f.Name, h.Name, seg.Name)})
			p.Cables = append(p.Cables, Cable{
				A: Port{Node: edge.Name, Interface: fmt.Sprintf("s%d-%s", i, h.Name), Bridge: SegmentBridge(seg.Name)},
				B: Port{Node: h.Name, Interface: "up-" + seg.Name, Bridge: SegmentBridge(seg.Name)},
			})
		}
		p.Nodes = append(p.Nodes, n)
	}
	if f.Server == s.Name {
		p.Nodes = append(p.Nodes, Node{Name: labfile.ServerName, Role: Server, Site: s.Name, Address: f.ServerAddress, Routes: up})
		p.transport(edge.Name, labfile.ServerName, within(f.ServerAddress, s.Transport.Prefix))
	}
}

// edge plans a site's edge, but for its routes.
func (p *Plan) edge(f *labfile.File, s *labfile.Site) Node {
	name, own := labfile.EdgeName(s.Name), s.Transport.First()
	edge := Node{Name: name, Role: Edge, Site: s.Name, Address: own, Forward: true, IPv6: f.IPv6()}
	edge.Bridges = append(edge.Bridges, Bridge{
		Name: transportBridge, MAC: mac(f.Name, name, transportBridge),
		Address: within(own, s.Transport.Prefix), Services: services(f, s, s.Transport.Prefix),
	})
	if s.Access.IsValid() || s.Access6.IsValid() {
		access := Bridge{Name: accessBridge, MAC: mac(f.Name, name, accessBridge)}
		for _, subnet := range []netip.Prefix{s.Access.Prefix, s.Access6.Prefix} {
			access.Services = append(access.Services, services(f, s, subnet)...)
		}
		if s.Access.IsValid() {
			access.Address = within(s.Access.First(), s.Access.Prefix)
		}
		if s.Access6.IsValid() {
			access.Address6 = within(s.Access6.First(), s.Access6.Prefix)
		}
		edge.Bridges = append(edge.Bridges, access)
	}
	for i := range f.Segments {
		seg := &f.Segments[i]
		if slices.Contains(seg.Sites, s.Name) {
			p.segment(f, s, seg, &edge)
		}
	}
	return edge
}

// segment adds to a site's edge its part of a segment.
func (p *Plan) segment(f *labfile.File, s *labfile.Site, seg *labfile.Segment, edge *Node) {
	b := Bridge{Name: SegmentBridge(seg.Name), MAC: mac(f.Name, edge.Name, SegmentBridge(seg.Name))}
	home := seg.Home() == s.Name
	if !seg.IsJoined() {
		b.MAC, b.Elsewhere = mac(f.Name, "gateway", seg.Name), !home
	}
	if home || !seg.IsJoined() {
		b.Address = within(seg.Gateway.Addr, seg.Subnet.Prefix)
		if seg.Subnet6.IsValid() {
			b.Address6 = within(seg.Gateway6.Addr, seg.Subnet6.Prefix)
		}
	}
	edge.Bridges = append(edge.Bridges, b)
	if !seg.IsJoined() || len(seg.Sites) == 1 {
		return
	}
	remotes := []netip.Addr{}
	for _, name := range seg.Sites {
		if name != s.Name {
			remotes = append(remotes, siteOf(f, name).Transport.First())
		}
	}
	edge.VXLANs = append(edge.VXLANs, VXLAN{
		Name: "vx-" + seg.Name, Bridge: b.Name, VNI: VNI(f, seg.Name), Local: edge.Address, Remotes: remotes,
	})
}

// services are the addresses in a subnet of a site that only its load balancers
// have.
func services(f *labfile.File, s *labfile.Site, subnet netip.Prefix) []netip.Addr {
	var list []netip.Addr
	for i := range f.Balancers {
		b := &f.Balancers[i]
		if b.Site != s.Name {
			continue
		}
		for _, l := range b.Listens() {
			if a := l.Addr(); subnet.Contains(a) && a != subnet.Addr().Next() && !slices.Contains(list, a) {
				list = append(list, a)
			}
		}
	}
	return list
}

// wanRoutes are an edge's routes to the subnets of all other sites.
func (p *Plan) wanRoutes(f *labfile.File, s *labfile.Site, ways ways) []Route {
	var list []Route
	for _, other := range f.Sites {
		hop, ok := p.nextHop(ways, s.Name, other.Name)
		if !ok {
			continue
		}
		for _, subnet := range subnets(f, &other) {
			if subnet.Addr().Is4() {
				list = append(list, Route{To: subnet, Via: hop.Address.Addr(), Source: s.Transport.First()})
			} else {
				list = append(list, Route{To: subnet, Via: hop.Address6.Addr(), Source: source6(f, s)})
			}
		}
	}
	return list
}

// source6 is the IPv6 address that a site's edge itself uses beyond the site;
// invalid when the site has no IPv6.
func source6(f *labfile.File, s *labfile.Site) netip.Addr {
	if s.Access6.IsValid() {
		return s.Access6.First()
	}
	for i := range f.Segments {
		if seg := &f.Segments[i]; seg.Home() == s.Name && seg.Subnet6.IsValid() {
			return seg.Gateway6.Addr
		}
	}
	return netip.Addr{}
}

// transport connects a node to its site's transport network.
func (p *Plan) transport(edge, node string, address netip.Prefix) {
	p.Cables = append(p.Cables, Cable{
		A: Port{Node: edge, Interface: "tr-" + node, Bridge: transportBridge},
		B: Port{Node: node, Interface: transportPort, Address: address},
	})
}

func (p *Plan) clients(f *labfile.File) {
	for _, c := range f.Clients {
		site := siteOf(f, c.Site)
		bridge, subnet, subnet6 := accessBridge, site.Access.Prefix, site.Access6.Prefix
		router, router6 := site.Access.First(), site.Access6.First()
		if c.Segment != "" {
			seg := f.Segment(c.Segment)
			bridge, subnet, subnet6 = SegmentBridge(c.Segment), seg.Subnet.Prefix, seg.Subnet6.Prefix
			router, router6 = seg.Gateway.Addr, seg.Gateway6.Addr
		}
		n := Node{
			Name: c.Name, Role: Client, Site: c.Site, Address: c.Address.Addr,
			Routes: []Route{{To: defaultRoute, Via: router}},
		}
		port := Port{Node: c.Name, Interface: clientPort, Address: within(c.Address.Addr, subnet)}
		if c.Address6.IsValid() {
			n.IPv6, port.Address6 = true, within(c.Address6.Addr, subnet6)
			n.Routes = append(n.Routes, Route{To: defaultRoute6, Via: router6})
		}
		p.Nodes = append(p.Nodes, n)
		p.Cables = append(p.Cables, Cable{
			A: Port{Node: labfile.EdgeName(c.Site), Interface: "cl-" + c.Name, Bridge: bridge},
			B: port,
		})
	}
}

// nextHop is the far end of the link by which traffic leaves from one site for
// another; there is none when they are the same.
func (p *Plan) nextHop(w ways, from, to string) (Port, bool) {
	i, ok := w[[2]string{from, to}]
	if !ok {
		return Port{}, false
	}
	l := p.Links[i]
	if l.Sites[1] == from {
		return l.Ends[0], true
	}
	return l.Ends[1], true
}

// subnets are the networks that traffic for a site leads to.
func subnets(f *labfile.File, s *labfile.Site) []netip.Prefix {
	list := []netip.Prefix{s.Transport.Prefix, s.Access.Prefix, s.Access6.Prefix}
	for i := range f.Segments {
		if seg := &f.Segments[i]; seg.Home() == s.Name {
			list = append(list, seg.Subnet.Prefix, seg.Subnet6.Prefix)
		}
	}
	return slices.DeleteFunc(list, func(p netip.Prefix) bool { return !p.IsValid() })
}

// Node is the node of that name, which has to be there.
func (p *Plan) Node(name string) *Node {
	for i := range p.Nodes {
		if p.Nodes[i].Name == name {
			return &p.Nodes[i]
		}
	}
	panic("topology: unknown node " + name) // names come from the same file
}

// SegmentBridge is the bridge of a segment, in every host and edge that has it.
func SegmentBridge(segment string) string { return segmentPrefix + segment }

func siteOf(f *labfile.File, name string) *labfile.Site {
	for i := range f.Sites {
		if f.Sites[i].Name == name {
			return &f.Sites[i]
		}
	}
	panic("topology: unknown site " + name) // the file was checked
}

// VNI is the number of a segment in VXLAN.
func VNI(f *labfile.File, segment string) int {
	return firstVNI + slices.IndexFunc(f.Segments, func(s labfile.Segment) bool { return s.Name == segment })
}

func within(a netip.Addr, p netip.Prefix) netip.Prefix { return netip.PrefixFrom(a, p.Bits()) }

// mac is a locally administered address that stays the same from run to run, so
// that a bridge keeps its address whatever joins it.
func mac(lab, node, iface string) net.HardwareAddr {
	h := sha256.Sum256([]byte(lab + "/" + node + "/" + iface))
	return net.HardwareAddr{0x02, h[0], h[1], h[2], h[3], h[4]}
}
