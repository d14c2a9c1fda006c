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
	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/executor"
	"github.com/drover-vm/drover/network"
)

// guestWord is what the source's host says of a VM's guest.
type guestWord struct {
	// agent can change its addresses; fault is why not.
	agent bool
	fault string
}

// placeRenumber decides in which segment the VM gets, as far as the hosts have to
// know it; its addresses may not be known yet.
func (s *Server) placeRenumber(c *findings, r *executor.Request, ask asked) {
	w := network.World{Segments: s.fleet.viewSegments()}
	part, to, err := network.RenumberInto(renumberWish(r, ask), w)
	if err != nil {
		c.problem(err)
		return
	}
	r.Renumber = &network.Renumber{MAC: part.NIC.MAC, From: part.Segment, To: to}
}

func renumberWish(r *executor.Request, ask asked) network.RenumberWish {
	return network.RenumberWish{RenumberWish: ask.renumber, VM: r.VM, From: r.From.Site, To: r.To.Site}
}

// problem takes over why there is no plan.
func (f *findings) problem(err error) {
	p := &network.Problem{Detail: err.Error()}
	_ = errors.As(err, &p)
	f.bad("segments", p.Fix, "%s", p.Detail)
}

// planRenumber decides all that edges do for the VM, and completes the request
// with it; what cannot be decided is a finding.
func (s *Server) planRenumber(ctx context.Context, c *findings, r *executor.Request, ask asked) ([]edgeView, error) {
	seen, _ := s.fleet.find(r.VM.Name, nil)
	var lost []netip.Addr
	if r.VM, lost = withAddresses(r.VM, seen, ask.addresses, s.fleet.viewSegments()); len(lost) > 0 {
		c.bad("addresses", "name addresses of its segments", "%s: in none of the segments of %s", listed(lost), r.VM.Name)
		return nil, nil
	}
	world, views, err := s.networkWorld(ctx, r.VM, r.To.Site)
	if err != nil {
		return nil, err
	}
	rn, err := network.MakeRenumber(renumberWish(r, ask), world)
	if err != nil {
		c.problem(err)
		return nil, nil
	}
	r.Renumber, r.Locks = &rn, rn.Keys()
	return views, nil
}

// retargetOf is how the VM is attached at its destination; nil: as it is.
func retargetOf(r *executor.Request) *droverv1.Retarget {
	if r.Renumber == nil {
		return nil
	}
	return &droverv1.Retarget{Mac: r.Renumber.MAC, Network: r.Renumber.To.Bridge}
}

// checkRenumber looks whether the edges and the guest can do their parts, and
// completes the request with how the guest does.
func (s *Server) checkRenumber(ctx context.Context, c *findings, r *executor.Request, ask asked, guest guestWord) error {
	views, err := s.planRenumber(ctx, c, r, ask)
	if err != nil || !c.holds() {
		return err
	}
	k := &renumberCheck{findings: c, s: s, rn: r.Renumber, views: map[string]edgeView{}}
	for _, v := range views {
		k.views[v.agent.Site] = v
	}
	k.edges()
	if !c.holds() {
		return nil
	}
	c.ok("segments", "from %s at %s into %s at %s", k.rn.From.Name, r.From.Site, k.rn.To.Name, r.To.Site)
	k.mesh()
	leases, err := k.ops(ctx)
	if err != nil || !c.holds() {
		return err
	}
	k.guest(guest, leases)
	return nil
}

// renumberCheck is a preflight of what edges and a guest do for a move by renumber.
type renumberCheck struct {
	*findings
	s     *Server
	rn    *network.Renumber
	views map[string]edgeView
}

func (k *renumberCheck) edges() {
	for _, e := range []network.Edge{k.rn.Source, k.rn.Target} {
		if v := k.views[e.Site]; v.err != nil {
			k.bad("edge", fmt.Sprintf("start drover agent on %s, or mend the network to %s", e.Host, e.Address),
				"the edge of %s, %s, does not answer: %s", e.Site, e.Host, v.err)
		}
	}
	if k.holds() {
		k.ok("edge", "the edges of %s and %s answer", k.rn.Source.Site, k.rn.Target.Site)
	}
}

// mesh must join the two edges: the old sessions go through it.
func (k *renumberCheck) mesh() {
	for _, pair := range [][2]network.Edge{{k.rn.Source, k.rn.Target}, {k.rn.Target, k.rn.Source}} {
		v := k.views[pair[0].Site]
		i := slices.IndexFunc(v.state.Peers, func(p drover.MeshPeer) bool { return p.Site == pair[1].Site })
		switch {
		case v.state.Mesh == nil:
			k.bad("mesh", "give it a part in the mesh (edge.mesh in its file)", "the edge of %s, %s, is in no mesh", pair[0].Site, pair[0].Host)
		case i < 0 || v.state.Peers[i].Handshake.IsZero() || time.Since(v.state.Peers[i].Handshake) > meshFresh:
			k.bad("mesh", fmt.Sprintf("let UDP through between the edges of %s and %s", pair[0].Site, pair[1].Site),
				"the edge of %s does not reach that of %s", pair[0].Site, pair[1].Site)
		}
	}
	if k.holds() {
		k.ok("mesh", "the edges of %s and %s reach each other", k.rn.Source.Site, k.rn.Target.Site)
	}
}

// ops asks both edges for what they are to do, and returns the VM's leases at
// its source.
func (k *renumberCheck) ops(ctx context.Context) ([]*droverv1.HeldLease, error) {
	owner := string(driver.VMOwner(k.rn.VM))
	// What matters of the new addresses is known only when they are reserved.
	plan := k.rn.Plan(owner, nil)
	source := slices.Concat(opsOf(plan.Extend, k.rn.Source), plan.Source.Ops)
	target := slices.Concat(k.rn.Reserve().Ops, plan.Target.Ops[:1])
	from, err := k.ask(ctx, k.rn.Source, &droverv1.CheckOpsRequest{Ops: api.ListToProto(source, api.EdgeOpToProto), Mac: k.rn.MAC})
	if err != nil {
		return nil, err
	}
	if _, err := k.ask(ctx, k.rn.Target, &droverv1.CheckOpsRequest{Ops: api.ListToProto(target, api.EdgeOpToProto)}); err != nil {
		return nil, err
	}
	return from.GetLeases(), k.names(ctx)
}

func opsOf(tasks []network.Task, e network.Edge) []drover.EdgeOp {
	var ops []drover.EdgeOp
	for _, t := range tasks {
		if t.Edge == e {
			ops = append(ops, t.Ops...)
		}
	}
	return ops
}

// ask asks an edge about operations; what it says is among the findings.
func (k *renumberCheck) ask(ctx context.Context, e network.Edge, req *droverv1.CheckOpsRequest) (*droverv1.CheckOpsResponse, error) {
	a, err := k.s.fleet.agent(e.Host)
	if err != nil {
		return nil, err
	}
	asking, cancel := context.WithTimeout(ctx, edgeLimit)
	defer cancel()
	r, err := a.client.CheckOps(asking, req)
	if err != nil {
		return nil, unanswered(ctx, k.findings, "edge", e.Host, err)
	}
	*k.findings = append(*k.findings, k.s.fleet.checks(r.GetChecks())...)
	return r, nil
}

// names asks whether the destination's pools have addresses, and whether the name
// may be changed from there.
func (k *renumberCheck) names(ctx context.Context) error {
	a, err := k.s.fleet.agent(k.rn.Target.Host)
	if err != nil {
		return err
	}
	asking, cancel := context.WithTimeout(ctx, edgeLimit)
	defer cancel()
	r, err := a.client.CheckEdge(asking, &droverv1.CheckEdgeRequest{
		Name: k.rn.Name, Addresses: api.AddressesToProto(k.rn.Old), Segment: k.rn.To.Name,
	})
	if err != nil {
		return unanswered(ctx, k.findings, "edge", k.rn.Target.Host, err)
	}
	*k.findings = append(*k.findings, k.s.fleet.checks(r.GetChecks())...)
	if k.rn.Name == "" {
		*k.findings = append(*k.findings, drover.Check{
			Name: "dns-name", Warning: true, Detail: "no name follows the VM: whoever begins a session has to know its new address",
			Fix: "name the one by which it is known (--name)",
		})
	}
	return nil
}

// guest must be one whose addresses can be changed: by its agent, or by the DHCP
// client that gave it those that it has.
func (k *renumberCheck) guest(word guestWord, leases []*droverv1.HeldLease) {
	var held []netip.Addr
	for _, l := range leases {
		if l.GetSegment() != k.rn.From.Name {
			continue
		}
		k.rn.OldLease = l.GetOwner() == string(driver.VMOwner(k.rn.VM))
		k.rn.DUID, k.rn.IAID = l.GetDuid(), l.GetIaid()
		list, err := api.ParseAddresses("lease", l.GetAddresses())
		if err == nil {
			held = append(held, list...)
		}
	}
	if k.rn.Agent = word.agent; word.agent {
		k.ok("guest", "its agent changes its addresses")
		return
	}
	for _, a := range k.rn.Old {
		if !slices.Contains(held, a) {
			k.bad("guest", "run a guest agent in it that may run ip(8), or have it get its addresses by DHCP",
				"nobody could change its addresses: it has no agent that would (%s), and %s is not from the DHCP service of segment %s", word.fault, a, k.rn.From.Name)
			return
		}
	}
	k.ok("guest", "it has no agent that would change its addresses (%s), but has them by DHCP: it is made to ask again by taking its cable out for %v", word.fault, driver.LinkDownTime)
}
