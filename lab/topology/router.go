package topology

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"

	"github.com/drover-vm/drover/lab/labfile"
)

// Private AS numbers (RFC 6996) of the first site's router and edge; the other
// sites' follow.
const (
	firstRouterAS = 64601
	firstEdgeAS   = 64701
)

// Interfaces of the cable between a site's edge and its router.
const (
	RouterPort = "router" // of the edge
	EdgePort   = "edge"   // of the router
)

// The networks of WANRange: one for each link, one for each site's cable between
// edge and router.
const (
	linkNets = iota
	cableNets
)

// Router is what a site's router speaks.
type Router struct {
	AS uint32
	// ID is the router's own address on the cable to the edge, Address6 the same
	// for IPv6; invalid without.
	ID       netip.Addr
	Address6 netip.Addr
	// Edge is the neighbour in the site's edge, which may be absent.
	Edge Peer
	// Peers are the routers at the other ends of the site's links.
	Peers []Peer
	// Behind are the subnets that the edge leads to.
	Behind []netip.Prefix
	// Networks are what is announced: Behind, and the cable to the edge.
	Networks []netip.Prefix
	// Hosts are the subnets within which the edge may announce single addresses.
	Hosts []netip.Prefix
}

// Peer is a BGP neighbour; Address6 is invalid in labs without IPv6.
type Peer struct {
	Name     string
	AS       uint32
	Address  netip.Addr
	Address6 netip.Addr
}

// Addresses are the peer's addresses, IPv4 first.
func (p Peer) Addresses() []netip.Addr {
	list := []netip.Addr{p.Address}
	if p.Address6.IsValid() {
		list = append(list, p.Address6)
	}
	return list
}

// wanAddresses are the addresses at one side of the net of that kind and number.
func wanAddresses(f *labfile.File, kind, number, side int) (v4, v6 netip.Prefix) {
	base, base6 := labfile.WANRange.Addr().As4(), labfile.WANRange6.Addr().As16()
	n := 4*number + 1 + side
	// Each kind has half of the range: far more than a lab has links.
	v4 = netip.PrefixFrom(netip.AddrFrom4([4]byte{base[0], base[1], byte(kind<<7) + byte(n>>8), byte(n)}), 30)
	if f.IPv6() {
		base6[5], base6[6], base6[7], base6[15] = byte(kind), byte(number>>8), byte(number), byte(1+side)
		v6 = netip.PrefixFrom(netip.AddrFrom16(base6), 64)
	}
	return v4, v6
}

// behindRouter gives a site its router and leads the edge's traffic there.
func (p *Plan) behindRouter(f *labfile.File, number int, edge *Node) {
	s := &f.Sites[number]
	mine, mine6 := wanAddresses(f, cableNets, number, 0)
	its, its6 := wanAddresses(f, cableNets, number, 1)
	name := labfile.RouterName(s.Name)
	cable := Cable{
		A: Port{Node: edge.Name, Interface: RouterPort, Address: mine, Address6: mine6},
		B: Port{Node: name, Interface: EdgePort, Address: its, Address6: its6},
	}
	r := &Router{
		AS: firstRouterAS + uint32(number), ID: its.Addr(), Address6: its6.Addr(),
		Edge:   Peer{Name: edge.Name, AS: firstEdgeAS + uint32(number), Address: mine.Addr(), Address6: mine6.Addr()},
		Behind: subnets(f, s),
	}
	r.Networks = append(slices.Clone(r.Behind), its.Masked())
	edge.Routes = []Route{{To: defaultRoute, Via: its.Addr(), Source: edge.Address}}
	if f.IPv6() {
		r.Networks = append(r.Networks, its6.Masked())
		edge.Routes = append(edge.Routes, Route{To: defaultRoute6, Via: its6.Addr(), Source: source6(f, s)})
	}
	for i := range f.Segments {
		if seg := &f.Segments[i]; slices.Contains(seg.Sites, s.Name) {
			r.Hosts = append(r.Hosts, seg.Subnet.Prefix)
			if seg.Subnet6.IsValid() {
				r.Hosts = append(r.Hosts, seg.Subnet6.Prefix)
			}
		}
	}
	for _, l := range p.Links {
		for side, peer := range l.Sites {
			if l.Sites[1-side] != s.Name {
				continue
			}
			far := slices.IndexFunc(f.Sites, func(o labfile.Site) bool { return o.Name == peer })
			r.Peers = append(r.Peers, Peer{
				Name: labfile.RouterName(peer), AS: firstRouterAS + uint32(far),
				Address: l.Ends[side].Address.Addr(), Address6: l.Ends[side].Address6.Addr(),
			})
			// What a link carries whole, the cable to it has to.
			cable.MTU = max(cable.MTU, l.MTU)
		}
	}
	p.Cables = append(p.Cables, cable)
	p.Nodes = append(p.Nodes, Node{
		Name: name, Role: RouterRole, Site: s.Name, Address: its.Addr(), Forward: true, IPv6: f.IPv6(), Router: r,
	})
}

// RouterOf is the router of a site; nil with static routing.
func (p *Plan) RouterOf(site string) *Router {
	for i := range p.Nodes {
		if n := &p.Nodes[i]; n.Role == RouterRole && n.Site == site {
			return n.Router
		}
	}
	return nil
}

// Announced are the subnets that the routers announce to each other.
func (p *Plan) Announced() []netip.Prefix {
	var all []netip.Prefix
	for _, n := range p.Nodes {
		if n.Router != nil {
			all = append(all, n.Router.Networks...)
		}
	}
	slices.SortFunc(all, comparePrefix)
	return slices.Compact(all)
}

func comparePrefix(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// Routed returns nil when the kernels of all routers have a route to every
// subnet that one of them announces, and to those of a site that a link leads to
// by this link: before its session is up, a longer way may be known. The error
// names what is missing.
func (p *Plan) Routed(pids map[string]int) error {
	for _, n := range p.Nodes {
		if n.Router == nil {
			continue
		}
		have, err := routesOf(pids[n.Name])
		if err != nil {
			return fmt.Errorf("node %s: %w", n.Name, err)
		}
		for _, other := range p.Nodes {
			if other.Router == nil {
				continue
			}
			linked := slices.ContainsFunc(n.Router.Peers, func(r Peer) bool { return r.Name == other.Name })
			for _, to := range other.Router.Networks {
				switch by, ok := have[to]; {
				case !ok:
					return fmt.Errorf("%s has no route to %s", n.Name, to)
				case linked && by != wanPort(other.Site):
					return fmt.Errorf("%s sends to %s by %s, want by %s", n.Name, to, by, wanPort(other.Site))
				}
			}
		}
	}
	return nil
}

// routesOf are the routes in a node's main table: destination and interface.
func routesOf(pid int) (map[netip.Prefix]string, error) {
	h, err := open(pid)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	routes, err := h.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, err
	}
	links, err := h.LinkList()
	if err != nil {
		return nil, err
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	have := map[netip.Prefix]string{}
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		if a, ok := netip.AddrFromSlice(r.Dst.IP); ok {
			bits, _ := r.Dst.Mask.Size()
			have[netip.PrefixFrom(a.Unmap(), bits)] = names[r.LinkIndex]
		}
	}
	return have, nil
}
