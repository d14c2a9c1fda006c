package network

import (
	"cmp"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/drover-vm/drover"
)

// Renumber is a move into another segment, as it has been decided: nothing is
// left to choose but the addresses that the destination's DHCP service gives.
//
//	            before                     at the resume             when the old sessions are over
//	source      sessions are watched       those go on, by the mesh  nothing stands
//	target      addresses are reserved,    old ones are accepted,    the reservation, the name
//	            the name's TTL is lowered  the name has new ones
//
// What ends with the move has the move as its owner; the reservation has the VM.
type Renumber struct {
	// MAC is the network card's; From is the segment that it leaves, To the one
	// that it gets into.
	MAC  string         `json:"mac"`
	From drover.Segment `json:"from"`
	To   drover.Segment `json:"to"`
	// Old are its addresses in From.
	Old []netip.Addr `json:"old"`
	// Wished are addresses in To that it is to have; where a family has none,
	// the DHCP service chooses.
	Wished []netip.Addr `json:"wished,omitempty"`
	// Hostname is told to the DHCP service. DUID and IAID are by what DHCPv6
	// knows the guest; empty where nobody has said.
	Hostname string `json:"hostname,omitempty"`
	DUID     []byte `json:"duid,omitempty"`
	IAID     uint32 `json:"iaid,omitempty"`
	// Name is the DNS name that follows; empty: none does.
	Name string `json:"name,omitempty"`
	// Limit is how long old sessions may go on.
	Limit time.Duration `json:"limit_ns"`
	// Agent says that the guest's agent changes the addresses; otherwise the
	// guest has to ask DHCP when its cable is plugged in.
	Agent bool `json:"agent"`
	// Source and Target are the two sites' edges.
	Source Edge `json:"source"`
	Target Edge `json:"target"`
	// OldLease says that the source's DHCP service holds the old addresses for
	// the VM, by Drover's doing.
	OldLease bool `json:"old_lease,omitempty"`
	// VM owns what stays.
	VM string `json:"vm"`
}

// lowTTL is a name's TTL around the move: what resolvers honour, and short
// enough that a wrong answer is soon forgotten.
const lowTTL = 5 * time.Second

// RenumberWish is a move by renumber as far as it matters here.
type RenumberWish struct {
	drover.RenumberWish
	VM       drover.VM
	From, To string
}

// MakeRenumber decides what can be without asking anybody. The error's kind is
// drover.Invalid for a wish that cannot be fulfilled, with what would be needed.
func MakeRenumber(w RenumberWish, world World) (Renumber, error) {
	op := "plan the network of " + w.VM.Name
	if err := w.Validate(); err != nil {
		return Renumber{}, err
	}
	if w.From == w.To {
		return Renumber{}, problem(op, "take live", "it stays at site %s", w.To)
	}
	part, to, err := RenumberInto(w, world)
	if err != nil {
		return Renumber{}, err
	}
	if len(part.Addresses) == 0 {
		return Renumber{}, problem(op, "run a guest agent in it, or name them (--address)", "no address of %s (%s) in segment %s is known", part.NIC.MAC, part.NIC.Network, part.Segment.Name)
	}
	if err := checkWished(op, w, to); err != nil {
		return Renumber{}, err
	}
	if len(to.Gateways) == 0 {
		return Renumber{}, problem(op, "name it in the file of the edge at "+w.To, "segment %s has no gateway", to.Name)
	}
	owner := Owner(w.VM.UUID)
	for _, e := range world.Extended {
		if slices.Contains(e.Owners, owner) {
			return Renumber{}, problem(op, "move it home first", "it is away from home by stretch (segment %s at %s)", e.Segment, e.Site)
		}
	}
	for _, s := range world.Standing {
		if s.Routes || s.Addresses {
			return Renumber{}, problem(op, "move it home first", "it is away from home by route (something stands for it at %s)", s.Site)
		}
	}
	r := Renumber{
		MAC: part.NIC.MAC, From: part.Segment, To: to, Old: part.Addresses, Wished: w.Addresses, Hostname: w.VM.Name,
		Name: strings.ToLower(strings.TrimSuffix(w.DNSName, ".")), Limit: cmp.Or(w.OldLimit, drover.DefaultOldLimit), VM: w.VM.UUID,
	}
	for _, e := range world.Edges {
		switch e.Site {
		case w.From:
			r.Source = e
		case w.To:
			r.Target = e
		}
	}
	for i, e := range []Edge{r.Source, r.Target} {
		if e.Host == "" {
			return Renumber{}, problem(op, "start a drover agent with an edge there", "site %s has no edge", []string{w.From, w.To}[i])
		}
	}
	return r, nil
}

// RenumberInto is the part of MakeRenumber that needs no addresses: which of the
// VM's network cards gets into which segment.
func RenumberInto(w RenumberWish, world World) (Part, drover.Segment, error) {
	op := "plan the network of " + w.VM.Name
	part, err := renumbered(op, w, world)
	if err != nil {
		return Part{}, drover.Segment{}, err
	}
	to, err := newSegment(op, w, world, part.Segment)
	return part, to, err
}

// renumbered finds the network card that cannot stay in its segment.
func renumbered(op string, w RenumberWish, world World) (Part, error) {
	var parts []Part
	for _, n := range w.VM.NICs {
		seg, known := SegmentOf(world.Segments, n)
		if !known {
			return Part{}, problem(op, "name it in the file of the edge at "+w.From, "no edge knows the segment of %s (%s)", n.MAC, n.Network)
		}
		if seg.Joined && seg.At(w.To) {
			continue // the same network is there
		}
		parts = append(parts, Part{NIC: n, Segment: seg, Addresses: routable(seg, n.Addresses)})
	}
	switch {
	case len(parts) == 0:
		return Part{}, problem(op, "take live", "its segments are joined between %s and %s", w.From, w.To)
	case len(parts) > 1:
		return Part{}, problem(op, "take route or stretch", "%d of its network cards would get new addresses, and renumber is for one", len(parts))
	}
	return parts[0], nil
}

// newSegment finds the segment that the network card gets into.
func newSegment(op string, w RenumberWish, world World, from drover.Segment) (drover.Segment, error) {
	var there []string
	var found []drover.Segment
	for _, s := range world.Segments {
		if !s.At(w.To) || s.Name == from.Name {
			continue
		}
		there = append(there, s.Name)
		if s.Name == w.Segment || w.Segment == "" && s.Home == w.To {
			found = append(found, s)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case w.Segment == from.Name:
		return drover.Segment{}, problem(op, "take route or stretch", "segment %s is the one that it is in", w.Segment)
	case w.Segment != "":
		return drover.Segment{}, problem(op, "name one of "+list(there), "segment %s is not at %s", w.Segment, w.To)
	default:
		return drover.Segment{}, problem(op, "name one of "+list(there), "it is not said in which segment at %s it is to be", w.To)
	}
}

func list(names []string) string {
	if len(names) == 0 {
		return "(there is none)"
	}
	return strings.Join(names, ", ")
}

func checkWished(op string, w RenumberWish, to drover.Segment) error {
	for _, a := range w.Addresses {
		if !to.Contains(a) || slices.Contains(to.Gateways, a) {
			return problem(op, "name another", "new address %v is not one of segment %s (%v), or its gateway's", a, to.Name, to.Subnets)
		}
	}
	return nil
}

// Keys are what two moves may not change at the same time.
func (r Renumber) Keys() []string {
	keys := []string{"lease/" + r.To.Name + "/" + r.MAC}
	for _, a := range slices.Concat(r.Old, r.Wished) {
		keys = append(keys, "address/"+a.String())
	}
	if r.Name != "" {
		keys = append(keys, "name/"+r.Name)
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

// Reserve has the target's edge reserve the new addresses, Release takes that
// back.
func (r Renumber) Reserve() Task {
	return Task{Edge: r.Target, Ops: []drover.EdgeOp{{
		Do: drover.ReserveLease, Owner: Owner(r.VM), Segment: r.To.Name, MAC: r.MAC, Addresses: r.Wished, Name: r.Hostname,
		DUID: r.DUID, IAID: r.IAID,
	}}}
}

// Release takes back what Reserve did.
func (r Renumber) Release() Task { return Task{Edge: r.Target, Ops: r.release(r.To.Name)} }

func (r Renumber) release(segment string) []drover.EdgeOp {
	return []drover.EdgeOp{{Do: drover.ReleaseLease, Owner: Owner(r.VM), Segment: segment, MAC: r.MAC}}
}

// CheckNew makes sure that what was reserved is of use: for each family of the
// old addresses a new one, in the segment, with a gateway.
func (r Renumber) CheckNew(addresses []netip.Prefix) error {
	for _, v4 := range []bool{true, false} {
		family := func(a netip.Addr) bool { return a.Is4() == v4 }
		if !slices.ContainsFunc(r.Old, family) {
			continue
		}
		name := "IPv6"
		if v4 {
			name = "IPv4"
		}
		switch {
		case !slices.ContainsFunc(addresses, func(p netip.Prefix) bool { return family(p.Addr()) && r.To.Contains(p.Addr()) }):
			return drover.Errorf(drover.Refused, "new addresses", "the DHCP service of segment %s at %s gave %v: want an %s address there, as it has one now", r.To.Name, r.Target.Site, addresses, name)
		case !slices.ContainsFunc(r.To.Gateways, family):
			return drover.Errorf(drover.Refused, "new addresses", "segment %s has no %s gateway at %s", r.To.Name, name, r.Target.Site)
		}
	}
	return nil
}

// Gateways are those of the families of the new addresses.
func (r Renumber) Gateways(addresses []netip.Prefix) []netip.Addr {
	var out []netip.Addr
	for _, g := range r.To.Gateways {
		same := func(a netip.Addr) bool { return a.Is4() == g.Is4() }
		if slices.ContainsFunc(addresses, func(p netip.Prefix) bool { return same(p.Addr()) }) && !slices.ContainsFunc(out, same) {
			out = append(out, g)
		}
	}
	return out
}

// Plan is what the edges do once the new addresses are known. Owner is the
// move: "move/NAME".
func (r Renumber) Plan(owner string, addresses []netip.Prefix) Plan {
	source := func(ops ...drover.EdgeOp) Task { return Task{Edge: r.Source, Ops: ops} }
	target := func(ops ...drover.EdgeOp) Task { return Task{Edge: r.Target, Ops: ops} }
	name := func(do drover.EdgeVerb) []drover.EdgeOp {
		if r.Name == "" {
			return nil
		}
		op := drover.EdgeOp{Do: do, Owner: owner, Name: r.Name}
		switch do {
		case drover.SetName:
			op.Addresses, op.Limit = hosts(addresses), lowTTL
		case drover.LowerName:
			op.Limit = lowTTL
		}
		return []drover.EdgeOp{op}
	}
	forget := drover.EdgeOp{Do: drover.ForgetAddresses, Owner: owner}
	last := []drover.EdgeOp{forget}
	if r.OldLease {
		last = append(last, r.release(r.From.Name)...)
	}
	watch := drover.EdgeOp{Do: drover.WatchSessions, Owner: owner, Addresses: r.Old}
	meter := drover.EdgeOp{Do: drover.MeterTraffic, Owner: owner, Addresses: r.Old}
	p := Plan{
		Extend:   some(source(watch, meter), target(name(drover.LowerName)...)),
		Unextend: some(source(forget), target(name(drover.RestoreName)...)),
		Source:   source(r.forward(owner, false)),
		// The old addresses first: their sessions are what waits.
		Target:  target(append([]drover.EdgeOp{r.accept(owner, false)}, name(drover.SetName)...)...),
		Retract: some(source(last...), target(append([]drover.EdgeOp{forget}, name(drover.SettleName)...)...)),
	}
	return p
}

// some leaves out tasks without operations.
func some(tasks ...Task) []Task {
	return slices.DeleteFunc(tasks, func(t Task) bool { return len(t.Ops) == 0 })
}

// Open is for a guest that does not take its new addresses: all sessions of the
// old ones go through the mesh, new ones as well, and the name leads to them
// again. Narrow ends that.
func (r Renumber) Open(owner string) []Task {
	tasks := []Task{{Edge: r.Target, Ops: []drover.EdgeOp{r.accept(owner, true)}}, {Edge: r.Source, Ops: []drover.EdgeOp{r.forward(owner, true)}}}
	if r.Name != "" {
		tasks[0].Ops = append(tasks[0].Ops, drover.EdgeOp{Do: drover.SetName, Owner: owner, Name: r.Name, Addresses: r.Old, Limit: lowTTL})
	}
	return tasks
}

// Narrow makes the cut-over's operations hold again.
func (r Renumber) Narrow(owner string, addresses []netip.Prefix) []Task {
	p := r.Plan(owner, addresses)
	return []Task{p.Target, p.Source}
}

// forwardGrace is how much longer than the limit the edge forwards old sessions
// when nobody tells it to end: the server counts at the limit what it then cuts, and
// what the edge had cut before would not be among that.
const forwardGrace = time.Minute

func (r Renumber) forward(owner string, all bool) drover.EdgeOp {
	return drover.EdgeOp{
		Do: drover.ForwardOld, Owner: owner, Segment: r.From.Name, Addresses: r.Old, Site: r.Target.Site, Limit: min(r.Limit+forwardGrace, drover.MaxOldLimit), Force: all,
	}
}

func (r Renumber) accept(owner string, all bool) drover.EdgeOp {
	return drover.EdgeOp{
		Do: drover.AcceptOld, Owner: owner, Segment: r.To.Name, Addresses: r.Old, Site: r.Source.Site, Subnets: r.From.Subnets,
		Gateways: slices.Concat(r.From.Gateways, r.To.Gateways), Force: all,
	}
}

func hosts(prefixes []netip.Prefix) []netip.Addr {
	out := make([]netip.Addr, len(prefixes))
	for i, p := range prefixes {
		out[i] = p.Addr()
	}
	return out
}

// Probe is where clients reach the VM at its new addresses; nil where they did
// not reach it by one of the old ones.
func (r Renumber) Probe(was *drover.ProbeTarget, addresses []netip.Prefix) *drover.ProbeTarget {
	if was == nil {
		return nil
	}
	now := *was
	if host, port, err := net.SplitHostPort(was.TCP); err == nil {
		if a, ok := r.successor(host, addresses); ok {
			now.TCP = net.JoinHostPort(a.String(), port)
		}
	}
	if u, err := url.Parse(was.HTTP); err == nil {
		if a, ok := r.successor(u.Hostname(), addresses); ok {
			u.Host = strings.TrimSuffix(net.JoinHostPort(a.String(), u.Port()), ":")
			now.HTTP = u.String()
		}
	}
	if now == *was {
		return nil
	}
	return &now
}

// successor is the new address of an old one's family.
func (r Renumber) successor(host string, addresses []netip.Prefix) (netip.Addr, bool) {
	old, err := netip.ParseAddr(host)
	if err != nil || !slices.Contains(r.Old, old) {
		return netip.Addr{}, false
	}
	i := slices.IndexFunc(addresses, func(p netip.Prefix) bool { return p.Addr().Is4() == old.Is4() })
	if i < 0 {
		return netip.Addr{}, false
	}
	return addresses[i].Addr(), true
}
