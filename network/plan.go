package network

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/drover-vm/drover"
)

// Edge is the agent of a site's edge.
type Edge struct {
	Site    string `json:"site"`
	Host    string `json:"host"`
	Address string `json:"address"` // "ip:port"
}

// Task is what one edge does, in this order.
type Task struct {
	Edge
	Ops []drover.EdgeOp `json:"ops"`
}

// Plan is what edges do for one move. Tasks of one list are of different edges
// and come in an order that is safe; a list is nil where there is nothing to do.
type Plan struct {
	// Extend and Stations are due before the guest moves; the lists after them
	// take them back.
	Extend     []Task `json:"extend,omitempty"`
	Unextend   []Task `json:"unextend,omitempty"`
	Stations   []Task `json:"stations,omitempty"`
	Unstations []Task `json:"unstations,omitempty"`
	// Source and Target are due when the guest has left, and when it runs: they
	// are staged before, and called out at the sites themselves. Without any
	// operation there is nothing to do at that moment.
	Source Task `json:"source"`
	Target Task `json:"target"`
	// Settle is due after that at other edges, Retract when the VM is known to
	// be at its destination: it ends what is not needed any more.
	Settle  []Task `json:"settle,omitempty"`
	Retract []Task `json:"retract,omitempty"`
}

// Edges are all that the plan has to do with, by site.
func (p Plan) Edges() []Edge {
	by := map[string]Edge{}
	for _, t := range slices.Concat(p.Extend, p.Unextend, p.Stations, p.Unstations, []Task{p.Source, p.Target}, p.Settle, p.Retract) {
		if t.Host != "" {
			by[t.Site] = t.Edge
		}
	}
	return slices.SortedFunc(maps.Values(by), func(a, b Edge) int { return cmp.Compare(a.Site, b.Site) })
}

// Wish is a move as far as it matters here.
type Wish struct {
	// VM, with the addresses of its NICs. Its site is From.
	VM       drover.VM
	From, To string
	// Method is drover.Stretch or drover.Route.
	Method drover.Method
	// LocalEgress, for stretch: what comes from elsewhere to the VM takes no way
	// through the segment's home.
	LocalEgress bool
}

// World is what the plan starts from.
type World struct {
	Segments []drover.Segment
	Edges    []Edge
	// VMs are all that are known, with their sites.
	VMs []drover.VM
	// Extended says which segments are extended at which sites, and for whom.
	Extended []Extent
	// Standing says where something stands for the VM itself.
	Standing []Standing
}

// Extent is a segment that the edge of a site has extended.
type Extent struct {
	Site, Segment string
	Owners        []string
}

// Standing is what an edge has of an owner besides extensions.
type Standing struct {
	Site string
	// Routes are announced there, Addresses delivered, answered for or the like.
	Routes, Addresses bool
}

// Owner is whose everything is that a plan asks for.
func Owner(uuid string) string { return "vm/" + uuid }

// planner is a plan in the making.
type planner struct {
	Wish
	world World
	owner string
	edges map[string]Edge
	// The plan's lists by site.
	extend, unextend, stations, unstations, cut, settle, retract tasks
	// keeps are the sites where something has to stand for the VM afterwards,
	// leaves those where nothing has to that another part does not need.
	keeps, leaves map[string]bool
}

type tasks map[string][]drover.EdgeOp

func (t tasks) add(site string, ops ...drover.EdgeOp) { t[site] = append(t[site], ops...) }

// Make returns the plan. The error's kind is drover.Invalid for a wish that no
// plan can fulfil, with a Problem: an edge that is missing, a segment that is not
// at the destination, addresses that are not known.
func Make(wish Wish, world World) (Plan, error) {
	p := &planner{
		Wish: wish, world: world, owner: Owner(wish.VM.UUID), edges: map[string]Edge{},
		extend: tasks{}, unextend: tasks{}, stations: tasks{}, unstations: tasks{}, cut: tasks{}, settle: tasks{}, retract: tasks{},
		keeps: map[string]bool{}, leaves: map[string]bool{},
	}
	for _, e := range world.Edges {
		p.edges[e.Site] = e
	}
	parts, err := Check(wish, world)
	if err != nil {
		return Plan{}, err
	}
	for _, part := range parts {
		if wish.Method == drover.Stretch {
			p.stretch(part)
		} else {
			p.route(part)
		}
	}
	return p.plan(), nil
}

func (p *planner) plan() Plan {
	for _, site := range slices.Sorted(maps.Keys(p.leaves)) {
		// An owner's addresses are forgotten as one: with several NICs, what one
		// leaves behind at a site where another needs something stays with it.
		if !p.keeps[site] {
			p.retract.add(site, drover.EdgeOp{Do: drover.ForgetAddresses, Owner: p.owner})
		}
	}
	order := func(t tasks) []Task {
		var out []Task
		for _, site := range slices.Sorted(maps.Keys(t)) {
			if len(t[site]) > 0 {
				out = append(out, Task{Edge: p.edges[site], Ops: t[site]})
			}
		}
		return out
	}
	return Plan{
		Extend: order(p.extend), Unextend: order(p.unextend), Stations: order(p.stations), Unstations: order(p.unstations),
		Source: Task{Edge: p.edges[p.From], Ops: p.cut[p.From]}, Target: Task{Edge: p.edges[p.To], Ops: p.cut[p.To]},
		Settle: order(p.settle), Retract: order(p.retract),
	}
}

// Part is one NIC of the VM in a segment that has to be seen to.
type Part struct {
	NIC     drover.NIC
	Segment drover.Segment
	// Addresses are those of the NIC that others reach it by.
	Addresses []netip.Addr
}

// Problem is why there is no plan, and what to do about it.
type Problem struct{ Detail, Fix string }

func (p *Problem) Error() string { return p.Detail + ": " + p.Fix }

func problem(op, fix, format string, args ...any) error {
	return drover.E(drover.Invalid, op, &Problem{fmt.Sprintf(format, args...), fix})
}

// Check returns the NICs that a plan is about: those in segments that are not
// joined. Its errors are those of Make.
func Check(w Wish, world World) ([]Part, error) {
	op := "plan the network of " + w.VM.Name
	if w.Method != drover.Stretch && w.Method != drover.Route {
		return nil, problem(op, "take "+string(drover.Stretch)+" or "+string(drover.Route), "method %s needs none", w.Method)
	}
	if w.From == w.To {
		return nil, problem(op, "take live", "it stays at site %s", w.To)
	}
	var parts []Part
	for _, n := range w.VM.NICs {
		seg, known := SegmentOf(world.Segments, n)
		switch {
		case !known:
			return nil, problem(op, "name it in the file of the edge at "+w.From, "no edge knows the segment of %s (%s)", n.MAC, n.Network)
		case !seg.At(w.To):
			return nil, problem(op, "take renumber, or name the segment in the file of the edge there", "segment %s is not at %s", seg.Name, w.To)
		case seg.Joined:
			continue
		}
		part := Part{NIC: n, Segment: seg, Addresses: routable(seg, n.Addresses)}
		if len(part.Addresses) == 0 {
			return nil, problem(op, "run a guest agent in it, or name them (--address)", "no address of %s (%s) in segment %s is known", n.MAC, n.Network, seg.Name)
		}
		parts = append(parts, part)
	}
	if len(parts) == 0 {
		return nil, problem(op, "take live", "its segments are joined between %s and %s", w.From, w.To)
	}
	return parts, checkEdges(op, w, world, parts)
}

// checkEdges makes sure that all sites concerned have an edge.
func checkEdges(op string, w Wish, world World, parts []Part) error {
	has := map[string]bool{}
	for _, e := range world.Edges {
		has[e.Site] = true
	}
	need := []string{w.From, w.To}
	for _, part := range parts {
		need = append(need, part.Segment.Home)
	}
	for _, site := range need {
		if !has[site] {
			return problem(op, "start a drover agent with an edge there", "site %s has no edge", site)
		}
	}
	return nil
}

// SegmentOf finds the segment that a NIC is in.
func SegmentOf(segments []drover.Segment, n drover.NIC) (drover.Segment, bool) {
	i := slices.IndexFunc(segments, func(s drover.Segment) bool { return s.Bridge == n.Network || s.Name == n.Network })
	if i < 0 {
		return drover.Segment{}, false
	}
	return segments[i], true
}

// routable are the addresses that are the NIC's own in the segment: not those of
// one link only, nor any that is there besides.
func routable(s drover.Segment, addresses []netip.Addr) []netip.Addr {
	var out []netip.Addr
	for _, a := range addresses {
		if a = a.Unmap(); s.Contains(a) && !a.IsLinkLocalUnicast() && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// Keys are what two moves may not change at the same time: the addresses, and
// the segments of which the extension changes. Sorted.
func Keys(parts []Part, method drover.Method, world World, uuid string) []string {
	var keys []string
	for _, part := range parts {
		for _, a := range part.Addresses {
			keys = append(keys, "address/"+a.String())
		}
		if method == drover.Stretch || len(extent(world, part.Segment.Name, Owner(uuid))) > 0 {
			keys = append(keys, "segment/"+part.Segment.Name)
		}
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

// extent returns the sites at which the segment is extended, for the owner or,
// if it is empty, for anybody.
func extent(w World, segment, owner string) []string {
	var sites []string
	for _, e := range w.Extended {
		if e.Segment == segment && len(e.Owners) > 0 && (owner == "" || slices.Contains(e.Owners, owner)) {
			sites = append(sites, e.Site)
		}
	}
	slices.Sort(sites)
	return slices.Compact(sites)
}

// others returns the sites at which the segment is extended for somebody else.
func others(w World, segment, owner string) []string {
	var sites []string
	for _, e := range w.Extended {
		if e.Segment == segment && slices.ContainsFunc(e.Owners, func(o string) bool { return o != owner }) {
			sites = append(sites, e.Site)
		}
	}
	slices.Sort(sites)
	return slices.Compact(sites)
}

func (p *planner) standing(site string) Standing {
	for _, s := range p.world.Standing {
		if s.Site == site {
			return s
		}
	}
	return Standing{}
}
