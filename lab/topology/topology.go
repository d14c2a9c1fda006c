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
// gateway is the edge of its first site.
//
// New is pure. Build and Connect make the plan real inside namespaces that
// exist; package node makes those, package wanem the WAN links between.
package topology

import (
	"crypto/sha256"
	"fmt"
	"net"
	"net/netip"

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
}

// Bridge is a learning bridge; Address is the node's own in it, if any.
type Bridge struct {
	Name    string
	MAC     net.HardwareAddr
	Address netip.Prefix
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

// Cable is a veth pair between two nodes.
type Cable struct{ A, B Port }

// Port is an interface of a node: in a bridge, or with an address.
type Port struct {
	Node      string
	Interface string
	Bridge    string
	Address   netip.Prefix
}

// Link is a WAN link between two edges, made by the emulator.
type Link struct {
	Name  string
	Sites [2]string
	Ends  [2]Port
	MACs  [2]net.HardwareAddr
	MTU   int
	Shape wanem.Shape
}

// defaultRoute is everything.
var defaultRoute = netip.PrefixFrom(netip.IPv4Unspecified(), 0)

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
		p.site(f, &f.Sites[i], ways)
	}
	p.clients(f)
	return p, nil
}

// links places the WAN links and numbers their ends.
func (p *Plan) links(f *labfile.File) {
	base := labfile.WANRange.Addr().As4()
	for i, l := range f.Links {
		link := Link{Name: l.Name, Sites: [2]string{l.A, l.B}, MTU: l.MTU, Shape: l.Shape()}
		for side, peer := range [2]string{l.B, l.A} {
			n := 4*i + 1 + side
			addr := netip.AddrFrom4([4]byte{base[0], base[1], base[2] + byte(n>>8), base[3] + byte(n)})
			edge := labfile.EdgeName(link.Sites[side])
			link.Ends[side] = Port{Node: edge, Interface: "wan-" + peer, Address: netip.PrefixFrom(addr, 30)}
			link.MACs[side] = mac(f.Name, edge, "wan-"+peer)
		}
		p.Links = append(p.Links, link)
	}
}

// site plans one site's edge, hosts and server.
func (p *Plan) site(f *labfile.File, s *labfile.Site, ways ways) {
	edgeName := labfile.EdgeName(s.Name)
	router := s.Transport.First()
	edge := Node{Name: edgeName, Role: Edge, Site: s.Name, Address: router, Forward: true}
	bridge := func(name string, address netip.Prefix) {
		edge.Bridges = append(edge.Bridges, Bridge{Name: name, MAC: mac(f.Name, edgeName, name), Address: address})
	}
	bridge(transportBridge, within(router, s.Transport))
	if s.Access.IsValid() {
		bridge(accessBridge, within(s.Access.First(), s.Access))
	}
	var segments []string
	var numbers []int
	for i, seg := range f.Segments {
		remotes, here := []netip.Addr{}, false
		for _, name := range seg.Sites {
			if name == s.Name {
				here = true
			} else {
				remotes = append(remotes, siteOf(f, name).Transport.First())
			}
		}
		if !here {
			continue
		}
		segments, numbers = append(segments, seg.Name), append(numbers, i)
		var own netip.Prefix
		if seg.Sites[0] == s.Name {
			own = within(seg.Gateway.Addr, seg.Subnet)
		}
		bridge(SegmentBridge(seg.Name), own)
		if len(remotes) > 0 {
			edge.VXLANs = append(edge.VXLANs, VXLAN{
				Name: "vx-" + seg.Name, Bridge: SegmentBridge(seg.Name),
				VNI: firstVNI + i, Local: router, Remotes: remotes,
			})
		}
	}
	for _, other := range f.Sites {
		if via := p.nextHop(ways, s.Name, other.Name); via.IsValid() {
			for _, subnet := range subnets(f, &other) {
				edge.Routes = append(edge.Routes, Route{To: subnet, Via: via, Source: router})
			}
		}
	}
	p.Nodes = append(p.Nodes, edge)

	up := []Route{{To: defaultRoute, Via: router}}
	for _, h := range s.Hosts {
		n := Node{Name: h.Name, Role: Host, Site: s.Name, Address: h.Address.Addr, Routes: up}
		p.transport(edgeName, h.Name, within(h.Address.Addr, s.Transport))
		for i, seg := range segments {
			n.Bridges = append(n.Bridges, Bridge{Name: SegmentBridge(seg), MAC: mac(f.Name, h.Name, seg)})
			p.Cables = append(p.Cables, Cable{
				A: Port{Node: edgeName, Interface: fmt.Sprintf("s%d-%s", numbers[i], h.Name), Bridge: SegmentBridge(seg)},
				B: Port{Node: h.Name, Interface: "up-" + seg, Bridge: SegmentBridge(seg)},
			})
		}
		p.Nodes = append(p.Nodes, n)
	}
	if f.Server == s.Name {
		p.Nodes = append(p.Nodes, Node{Name: labfile.ServerName, Role: Server, Site: s.Name, Address: f.ServerAddress, Routes: up})
		p.transport(edgeName, labfile.ServerName, within(f.ServerAddress, s.Transport))
	}
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
		bridge, subnet, router := accessBridge, siteOf(f, c.Site).Access, siteOf(f, c.Site).Access.First()
		if c.Segment != "" {
			seg := f.Segment(c.Segment)
			bridge, subnet, router = SegmentBridge(c.Segment), seg.Subnet, seg.Gateway.Addr
		}
		p.Nodes = append(p.Nodes, Node{
			Name: c.Name, Role: Client, Site: c.Site, Address: c.Address.Addr,
			Routes: []Route{{To: defaultRoute, Via: router}},
		})
		p.Cables = append(p.Cables, Cable{
			A: Port{Node: labfile.EdgeName(c.Site), Interface: "cl-" + c.Name, Bridge: bridge},
			B: Port{Node: c.Name, Interface: clientPort, Address: within(c.Address.Addr, subnet)},
		})
	}
}

// nextHop is the far end of the link by which traffic leaves from one site for
// another; invalid when they are the same.
func (p *Plan) nextHop(w ways, from, to string) netip.Addr {
	i, ok := w[[2]string{from, to}]
	if !ok {
		return netip.Addr{}
	}
	l := p.Links[i]
	far := 1
	if l.Sites[1] == from {
		far = 0
	}
	return l.Ends[far].Address.Addr()
}

// subnets are the networks that a site's edge is the router of.
func subnets(f *labfile.File, s *labfile.Site) []netip.Prefix {
	list := []netip.Prefix{s.Transport.Prefix}
	if s.Access.IsValid() {
		list = append(list, s.Access.Prefix)
	}
	for _, seg := range f.Segments {
		if seg.Sites[0] == s.Name {
			list = append(list, seg.Subnet.Prefix)
		}
	}
	return list
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

func within(a netip.Addr, p labfile.Prefix) netip.Prefix { return netip.PrefixFrom(a, p.Bits()) }

// mac is a locally administered address that stays the same from run to run, so
// that a bridge keeps its address whatever joins it.
func mac(lab, node, iface string) net.HardwareAddr {
	h := sha256.Sum256([]byte(lab + "/" + node + "/" + iface))
	return net.HardwareAddr{0x02, h[0], h[1], h[2], h[3], h[4]}
}
