package server

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/executor"
	"github.com/drover-vm/drover/network"
)

const (
	// meshFresh is the age up to which a handshake between two edges says that
	// they reach each other: with keepalives there is one every two minutes.
	meshFresh = 3 * time.Minute
	// wholeFrame is what the mesh has to carry in one piece so that a guest with
	// the usual 1,500 bytes notices nothing: the frame, and VXLAN over IPv6.
	wholeFrame = 1500 + 14 + 8 + 8 + 40
)

// checkNetwork looks whether what edges would have to do can be done, and
// completes the request with the addresses and the locks.
func (s *Server) checkNetwork(ctx context.Context, c *findings, r *executor.Request, ask asked) error {
	seen, _ := s.fleet.find(r.VM.Name, nil)
	segments := s.fleet.viewSegments()
	var lost []netip.Addr
	if r.VM, lost = withAddresses(r.VM, seen, ask.addresses, segments); len(lost) > 0 {
		c.bad("addresses", "name addresses of its segments", "%s: in none of the segments of %s", listed(lost), r.VM.Name)
	}
	apart := s.apart(r.VM, r.To.Site)
	if r.Method != drover.Stretch && r.Method != drover.Route {
		return s.checkUnplanned(ctx, c, r, apart)
	}
	world, views, err := s.networkWorld(ctx, r.VM, r.To.Site)
	if err != nil {
		return err
	}
	parts, err := network.Check(wishOf(*r), world)
	if err != nil {
		p := &network.Problem{Detail: err.Error()}
		_ = errors.As(err, &p)
		c.bad("segments", p.Fix, "%s", p.Detail)
		return nil
	}
	k := &networkCheck{findings: c, s: s, r: r, world: world, parts: parts, views: map[string]edgeView{}}
	for _, v := range views {
		k.views[v.agent.Site] = v
	}
	k.edges()
	if c.holds() {
		k.segments()
		k.addresses()
		k.routers()
		k.mesh()
	}
	r.Locks = network.Keys(parts, r.Method, world, r.VM.UUID)
	if c.holds() {
		p, err := network.Make(wishOf(*r), world)
		if err != nil {
			c.bad("network", "", "%s", err)
			return nil
		}
		return k.ops(ctx, p)
	}
	return nil
}

// checkUnplanned is for methods that leave edges alone: they must not be needed.
func (s *Server) checkUnplanned(ctx context.Context, c *findings, r *executor.Request, apart []drover.Segment) error {
	if len(apart) == 0 {
		return nil
	}
	where := fmt.Sprintf("%s is not joined between %s and %s", segmentNames(apart), r.From.Site, r.To.Site)
	if keepsRunning(r.Method) {
		c.bad("segments", "take route or stretch", "%s: its sessions would not be kept", where)
		return nil
	}
	_, views, err := s.networkWorld(ctx, r.VM, r.To.Site)
	if err != nil {
		return err
	}
	owner := network.Owner(r.VM.UUID)
	for _, v := range views {
		extended := slices.ContainsFunc(v.state.Extended, func(x drover.ExtendedSegment) bool { return slices.Contains(x.Owners, owner) })
		if v.standing.Routes || v.standing.Addresses || extended {
			c.bad("segments", "bring it home by route or stretch first", "its addresses are led to %s by the edge at %s, which %s would not change", r.From.Site, v.agent.Site, r.Method)
			return nil
		}
	}
	*c = append(*c, drover.Check{
		Name: "segments", Warning: true, Detail: where + ": it is not reached there by the addresses that it has now",
		Fix: "take route or stretch to keep them",
	})
	return nil
}

// networkCheck is a preflight of edges.
type networkCheck struct {
	*findings
	s     *Server
	r     *executor.Request
	world network.World
	parts []network.Part
	views map[string]edgeView
}

// concerned are the sites whose edges have something to do.
func (k *networkCheck) concerned() []string {
	sites := []string{k.r.From.Site, k.r.To.Site}
	for _, p := range k.parts {
		sites = append(sites, p.Segment.Home)
		for _, x := range k.world.Extended {
			if x.Segment == p.Segment.Name {
				sites = append(sites, x.Site)
			}
		}
	}
	slices.Sort(sites)
	return slices.Compact(sites)
}

// edges must all answer: what one of them has extended is part of the plan.
func (k *networkCheck) edges() {
	for site, v := range k.views {
		if v.err != nil {
			k.bad("edge", fmt.Sprintf("start drover agent on %s, or mend the network to %s", v.agent.Name, v.agent.Address),
				"the edge of %s, %s, does not answer: %s", site, v.agent.Name, v.err)
		}
	}
	if !k.holds() {
		return
	}
	k.ok("edge", "the edges of %v answer", k.concerned())
}

// segments must be described alike at all their edges, or what fits one would
// be wrong at another.
func (k *networkCheck) segments() {
	for _, p := range k.parts {
		for _, site := range k.concerned() {
			list := k.views[site].state.Segments
			i := slices.IndexFunc(list, func(s drover.Segment) bool { return s.Name == p.Segment.Name })
			if i < 0 {
				if site == p.Segment.Home || site == k.r.To.Site {
					k.bad("segments", "name it in the file of "+k.views[site].agent.Name, "the edge of %s does not have segment %s", site, p.Segment.Name)
				}
				continue
			}
			if what := differs(list[i], p.Segment); what != "" {
				k.bad("segments", fmt.Sprintf("make the files of %s and of the edge at %s say the same", k.views[site].agent.Name, p.Segment.Home),
					"segment %s has another %s at %s than at its home", p.Segment.Name, what, site)
			}
		}
		if k.r.Method == drover.Stretch && p.Segment.VNI == 0 {
			k.bad("segments", "give it a vni in the files of its edges", "segment %s has no number by which it could be extended", p.Segment.Name)
		}
	}
	if k.holds() {
		k.ok("segments", "%s: at home at %s, and at %s", k.r.VM.NICs[0].Network, k.parts[0].Segment.Home, k.r.To.Site)
	}
}

// differs names what two descriptions of a segment do not have in common.
func differs(a, b drover.Segment) string {
	switch {
	case a.Home != b.Home:
		return "home"
	case a.Joined != b.Joined:
		return "word on whether it is joined"
	case a.Bridge != b.Bridge:
		return "bridge"
	case a.VNI != b.VNI:
		return "number (VNI)"
	case !slices.Equal(a.Subnets, b.Subnets):
		return "list of subnets"
	case !slices.Equal(a.Gateways, b.Gateways) || a.GatewayMAC != b.GatewayMAC:
		return "gateway"
	}
	return ""
}

// addresses must be the VM's alone.
func (k *networkCheck) addresses() {
	for _, p := range k.parts {
		for _, a := range p.Addresses {
			if slices.Contains(p.Segment.Gateways, a) {
				k.bad("addresses", "give the VM another", "%s is the gateway of segment %s", a, p.Segment.Name)
			}
			for _, v := range k.world.VMs {
				for _, n := range v.NICs {
					if seg, ok := network.SegmentOf(k.world.Segments, n); ok && seg.Name == p.Segment.Name && v.UUID != k.r.VM.UUID && slices.Contains(n.Addresses, a) {
						k.bad("addresses", "give one of them another", "%s is also the address of %s at %s", a, v.Name, v.Site)
					}
				}
			}
		}
		if k.holds() {
			k.ok("addresses", "%s has %s in segment %s", k.r.VM.Name, listed(p.Addresses), p.Segment.Name)
		}
	}
}

// routers must be told where something is announced, and there must be one where
// neighbours are answered for.
func (k *networkCheck) routers() {
	for _, p := range k.parts {
		announces := k.r.To.Site != p.Segment.Home && (k.r.Method == drover.Route || k.r.LocalEgress)
		for _, site := range k.concerned() {
			v := k.views[site]
			if !(announces && site == k.r.To.Site) && !v.standing.Routes {
				continue
			}
			if len(v.state.Neighbors) == 0 {
				k.bad("bgp", "name its router in its file (edge.bgp), or take stretch", "the edge of %s, %s, knows no router to announce to", site, v.agent.Name)
				continue
			}
			i := slices.IndexFunc(v.state.Neighbors, func(n drover.EdgeNeighbor) bool { return n.State == "established" })
			if i < 0 {
				n := v.state.Neighbors[0]
				k.bad("bgp", fmt.Sprintf("mend the BGP session between %s and %s (AS %d)", v.agent.Name, n.Address, n.AS), "it is %s: %s", n.State, n.Fault)
				continue
			}
			n := v.state.Neighbors[i]
			k.ok("bgp", "the edge of %s has a session with %s (AS %d)", site, n.Address, n.AS)
		}
	}
}

// mesh must be up between all edges that a stretched segment will join.
func (k *networkCheck) mesh() {
	if k.r.Method != drover.Stretch {
		return
	}
	sites := k.concerned()
	smallest := 0
	for _, site := range sites {
		v := k.views[site]
		if v.state.Mesh == nil {
			k.bad("mesh", "give it a part in the mesh (edge.mesh in its file)", "the edge of %s, %s, is in no mesh", site, v.agent.Name)
			continue
		}
		if smallest == 0 || v.state.Mesh.MTU < smallest {
			smallest = v.state.Mesh.MTU
		}
		for _, other := range sites {
			if other <= site {
				continue
			}
			i := slices.IndexFunc(v.state.Peers, func(p drover.MeshPeer) bool { return p.Site == other })
			if i < 0 || v.state.Peers[i].Handshake.IsZero() || time.Since(v.state.Peers[i].Handshake) > meshFresh {
				k.bad("mesh", fmt.Sprintf("let UDP through between the edges of %s and %s", site, other), "the edges of %s and %s do not reach each other", site, other)
			}
		}
	}
	if !k.holds() {
		return
	}
	k.ok("mesh", "the edges of %v reach each other", sites)
	if smallest < wholeFrame {
		*k.findings = append(*k.findings, drover.Check{
			Name: "mtu", Warning: true,
			Detail: fmt.Sprintf("the mesh carries %d bytes in one piece: frames of the segment cross in two", smallest),
			Fix:    fmt.Sprintf("give the mesh an MTU of %d or more, where the WAN allows it", wholeFrame),
		})
	} else {
		k.ok("mtu", "the mesh carries %d bytes in one piece, enough for a guest's %d", smallest, 1500)
	}
}

// ops asks the edges of both ends whether they could do their parts of the moment
// itself: what fails then has the move undone. Of what they could, one line is said.
func (k *networkCheck) ops(ctx context.Context, p network.Plan) error {
	type answer struct {
		r   *droverv1.CheckOpsResponse
		err error
	}
	var ask []*agent
	var asked [][]drover.EdgeOp
	for _, t := range []network.Task{p.Source, p.Target} {
		if len(t.Ops) == 0 {
			continue
		}
		a, err := k.s.fleet.agent(t.Host)
		if err != nil {
			return err
		}
		ask, asked = append(ask, a), append(asked, slices.Concat(opsOf(p.Extend, t.Edge), t.Ops))
	}
	answers := askAll(ask, func(a *agent) answer {
		ctx, cancel := context.WithTimeout(ctx, edgeLimit)
		defer cancel()
		r, err := a.client.CheckOps(ctx, &droverv1.CheckOpsRequest{Ops: api.ListToProto(asked[slices.Index(ask, a)], api.EdgeOpToProto)})
		return answer{r, err}
	})
	for i, at := range answers {
		if at.err != nil {
			if err := unanswered(ctx, k.findings, "edge", ask[i].Name, at.err); err != nil {
				return err
			}
			continue
		}
		bad := slices.DeleteFunc(k.s.fleet.checks(at.r.GetChecks()), func(c drover.Check) bool { return c.OK })
		*k.findings = append(*k.findings, bad...)
		if len(bad) == 0 {
			k.ok("cut-over", "the edge of %s can do its %d operations", ask[i].Site, len(asked[i]))
		}
	}
	return nil
}
