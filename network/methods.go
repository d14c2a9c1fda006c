package network

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/drover-vm/drover"
)

// route plans a part whose addresses follow as host routes.
//
// At the destination everything else of the segment is answered for before the
// guest comes, or its first words to its neighbours would be lost; and it is told that
// the edge has their addresses now, whose MACs it remembers. At the source
// neighbours are told that the edge has the addresses now; were they merely
// forgotten, they would go on sending to the guest's MAC.
func (p *planner) route(part Part) {
	home, seg := part.Segment.Home, part.Segment.Name
	elsewhere := p.op(drover.Elsewhere, part, part.Addresses)
	deliver := p.deliver(part, part.NIC.MAC)
	if p.To != home {
		deliver.Neighbors = p.remembered(part)
	}
	p.cut.add(p.To, deliver)
	if p.To == home {
		p.leaves[p.To] = true
	} else {
		p.keeps[p.To] = true
		p.extend.add(p.To, p.op(drover.ProxyRest, part, nil))
		if !p.standing(p.To).Addresses {
			p.unextend[p.To] = []drover.EdgeOp{{Do: drover.ForgetAddresses, Owner: p.owner}}
		}
		p.cut.add(p.To, p.op(drover.AnnounceRoutes, part, part.Addresses))
	}
	p.cut.add(p.From, elsewhere)
	if p.From == home {
		p.keeps[home] = true
	} else {
		p.leave(part)
	}
	if p.From != home && p.To != home {
		p.keeps[home] = true
		if len(extent(p.world, seg, p.owner)) > 0 {
			p.settle.add(home, drover.EdgeOp{Do: drover.ForgetAddresses, Owner: p.owner})
		}
		p.settle.add(home, elsewhere)
	}
	if p.To != home {
		// Something may still come in there: where routes do not reach, or too late.
		p.meter(part, home)
	}
	// It was away by stretch before.
	for _, site := range extent(p.world, seg, p.owner) {
		p.retract.add(site, p.op(drover.RetractSegment, part, nil))
	}
	rest := others(p.world, seg, p.owner)
	for _, site := range rest {
		if slices.Contains(rest, p.To) {
			p.settle.add(site, p.station(part, site, p.To))
		} else {
			// Nobody reaches it through a tunnel any more.
			p.settle.add(site, p.drop(part))
		}
	}
}

// meter has an edge count what it carries for the part.
func (p *planner) meter(part Part, site string) {
	p.settle.add(site, p.op(drover.MeterTraffic, part, part.Addresses))
}

// leave plans for a source that is not the segment's home.
func (p *planner) leave(part Part) {
	if p.standing(p.From).Routes {
		p.cut.add(p.From, p.op(drover.WithdrawRoutes, part, part.Addresses))
	}
	p.leaves[p.From] = true
}

// stretch plans a part whose segment is extended to where it goes.
func (p *planner) stretch(part Part) {
	home, seg := part.Segment.Home, part.Segment.Name
	own, rest := extent(p.world, seg, p.owner), others(p.world, seg, p.owner)
	during := union([]string{home, p.To}, own, rest)
	if len(during) < 2 {
		// It comes home from where it was by route: nothing is to be extended.
		p.route(part)
		return
	}
	p.extendTo(part, during, own)
	p.place(part, during)
	p.cutStretch(part, during)
	for _, site := range during {
		if site != p.From && site != p.To {
			p.settle.add(site, p.station(part, site, p.To))
		}
	}
	if home != p.From && home != p.To && p.standing(home).Addresses {
		// It was away by route before.
		p.settle.add(home, drover.EdgeOp{Do: drover.ForgetAddresses, Owner: p.owner})
	}
	if p.To != home {
		// What the home's edge carries for it is a detour; where it is, its edge
		// says whether there is a straight way.
		p.meter(part, home)
		p.meter(part, p.To)
	}
	after := union([]string{home, p.To}, rest)
	if p.To == home {
		after = nil
	}
	for _, site := range during {
		switch {
		case !slices.Contains(after, site):
			p.retract.add(site, p.op(drover.RetractSegment, part, nil))
		case len(after) < len(during):
			p.retract.add(site, p.extension(part, site, after))
		}
	}
}

// extendTo plans the extension for the time of the move, and its undoing.
func (p *planner) extendTo(part Part, during, own []string) {
	for _, site := range during {
		p.extend.add(site, p.extension(part, site, during))
		if slices.Contains(own, site) && len(own) > 1 {
			p.unextend.add(site, p.extension(part, site, own))
		} else {
			p.unextend.add(site, p.op(drover.RetractSegment, part, nil))
		}
	}
}

// place plans the stations of all VMs that an extension reaches, so that
// nothing has to be flooded to be found. The source passes what comes for the
// VM on to the destination from its first frame there.
func (p *planner) place(part Part, during []string) {
	before := union(extent(p.world, part.Segment.Name, ""))
	known := p.neighbours(part, during)
	for _, site := range during {
		for _, n := range known[:min(len(known), maxStations/len(during))] {
			op := p.station(n.Part, site, n.at)
			op.Owner = n.owner
			p.stations.add(site, op)
		}
		if !slices.Contains(during, p.From) {
			continue
		}
		op := p.station(part, site, p.From)
		if site == p.From {
			// Where the extension is for this move alone, it may be gone by then.
			if slices.Contains(before, site) {
				p.unstations.add(site, op)
			} else {
				p.unstations.add(site, p.drop(part))
			}
			op.Next = p.To
		}
		p.stations.add(site, op)
	}
}

// maxStations bounds the stations of others in one plan, which is kept with its
// move. Those beyond it are found by asking, as on any network.
const maxStations = 1000

// neighbour is another VM's NIC in a segment.
type neighbour struct {
	Part
	owner, at string
}

// neighbours are the NICs of other VMs in the part's segment at these sites;
// those that are away from home first, to whom no other way leads.
func (p *planner) neighbours(part Part, sites []string) []neighbour {
	var found []neighbour
	for _, v := range p.world.VMs {
		if v.UUID == p.VM.UUID || !slices.Contains(sites, v.Site) {
			continue
		}
		for _, n := range v.NICs {
			if seg, ok := SegmentOf(p.world.Segments, n); ok && seg.Name == part.Segment.Name {
				other := Part{NIC: n, Segment: seg, Addresses: routable(seg, n.Addresses)}
				found = append(found, neighbour{other, Owner(v.UUID), v.Site})
			}
		}
	}
	slices.SortStableFunc(found, func(a, b neighbour) int {
		home := func(n neighbour) int {
			if n.at == part.Segment.Home {
				return 1
			}
			return 0
		}
		return cmp.Or(home(a)-home(b), cmp.Compare(a.NIC.MAC, b.NIC.MAC))
	})
	return found
}

// maxRemembered bounds the neighbours of which a guest is told, a frame or two
// each at the moment when it runs again.
const maxRemembered = 256

// remembered are the addresses of others in the part's segment, not at the
// destination, that the guest may know from where it was.
func (p *planner) remembered(part Part) []netip.Addr {
	var all []netip.Addr
	for _, n := range p.neighbours(part, part.Segment.Sites) {
		if n.at != p.To {
			all = append(all, n.Addresses...)
		}
	}
	slices.SortFunc(all, netip.Addr.Compare)
	all = slices.Compact(all)
	return all[:min(len(all), maxRemembered)]
}

// cutStretch plans the moment itself.
func (p *planner) cutStretch(part Part, during []string) {
	home := part.Segment.Home
	mac := ""
	if p.standing(home).Addresses {
		// Neighbours have been told that the addresses are an edge's.
		mac = part.NIC.MAC
	}
	p.cut.add(p.To, p.station(part, p.To, p.To), p.deliver(part, mac))
	if p.To == home {
		p.leaves[home] = true
	} else {
		p.keeps[p.To] = true
		if p.LocalEgress {
			p.cut.add(p.To, p.op(drover.AnnounceRoutes, part, part.Addresses))
		}
	}
	if slices.Contains(during, p.From) {
		p.cut.add(p.From, p.station(part, p.From, p.To))
	} else {
		p.cut.add(p.From, p.op(drover.Elsewhere, part, part.Addresses))
	}
	if p.From != home {
		p.leave(part)
	}
}

// op returns an operation in the part's segment.
func (p *planner) op(do drover.EdgeVerb, part Part, addresses []netip.Addr) drover.EdgeOp {
	return drover.EdgeOp{Do: do, Owner: p.owner, Segment: part.Segment.Name, Addresses: addresses}
}

func (p *planner) deliver(part Part, mac string) drover.EdgeOp {
	op := p.op(drover.DeliverHere, part, part.Addresses)
	op.MAC = mac
	return op
}

// extension is the segment's at site, to the others of sites. Where the gateway
// is the same at every site it must not be heard of from another.
func (p *planner) extension(part Part, site string, sites []string) drover.EdgeOp {
	op := p.op(drover.ExtendSegment, part, nil)
	op.Sites = slices.DeleteFunc(slices.Clone(sites), func(s string) bool { return s == site })
	op.LocalEgress = part.Segment.GatewayMAC != "" && len(part.Segment.Gateways) > 0
	return op
}

// station says to the edge of site that the NIC is at another, or there.
func (p *planner) station(part Part, site, at string) drover.EdgeOp {
	op := p.op(drover.SetStation, part, part.Addresses)
	op.MAC = part.NIC.MAC
	if at != site {
		op.Site = at
	}
	return op
}

func (p *planner) drop(part Part) drover.EdgeOp {
	op := p.op(drover.DropStation, part, nil)
	op.MAC = part.NIC.MAC
	return op
}

// union returns the names of all lists, sorted, each once.
func union(lists ...[]string) []string {
	all := slices.Concat(lists...)
	slices.Sort(all)
	return slices.Compact(all)
}
