package server

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strings"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/executor"
	"github.com/drover-vm/drover/network"
)

// makes is what a caller wants of a VM that spawn or redirect makes.
type makes struct {
	drover.CloneWish
	health *drover.HealthCheck
}

// newMakes reads it; nil for methods that make none.
func newMakes(method drover.Method, r interface{ GetClone() *droverv1.CloneWish }) (*makes, error) {
	w := &makes{CloneWish: api.CloneWishFromProto(r.GetClone())}
	if !method.Makes() {
		if !w.IsZero() {
			return nil, drover.Errorf(drover.Invalid, "clone", "only %s and %s make another VM", drover.Spawn, drover.Redirect)
		}
		return nil, nil
	}
	if err := w.Validate(method); err != nil {
		return nil, err
	}
	gated, ok := r.(interface{ GetGate() *droverv1.Gate })
	if !ok || gated.GetGate() == nil {
		return w, nil
	}
	g := api.GateFromProto(gated.GetGate())
	if g.Manual || g.OnUnhealthy != "" {
		return nil, drover.Errorf(drover.Invalid, "gate", "method %s has none: a new VM that is not well is taken back, and the other goes on", method)
	}
	w.health = g.Health
	return w, nil
}

// cloneCheck is a preflight of a VM that is to be made.
type cloneCheck struct {
	*findings
	s     *Server
	wish  *makes
	r     *executor.Request
	clone *executor.Clone
	// target is the host, edges what the sites' edges say of themselves, segments
	// all that are known, own the VM's addresses.
	target   drover.Host
	edges    []drover.EdgeState
	segments []drover.Segment
	own      []netip.Addr
}

// preflightClone checks a move that makes another VM, and decides all of it.
func (s *Server) preflightClone(ctx context.Context, vm drover.VM, moves movesByVM, to drover.Place, ask asked) (plan, error) {
	method, wish, reasons := ask.method, ask.makes, ask.why
	if reasons == nil {
		reasons = []string{fmt.Sprintf("method %s was asked for", method)}
	}
	var checks findings
	source := s.checkVM(&checks, vm, moves)
	if method == drover.Redirect {
		to, _ = s.nearReplica(vm, to)
	}
	target, chosen := s.checkTarget(&checks, vm, to)
	if method == drover.Redirect && vm.State != drover.VMRunning {
		checks.bad("method", "take spawn", "%s is %s: there are no sessions to redirect", vm.Name, vm.State)
	} else {
		checks.ok("method", "%s", strings.Join(reasons, "; "))
	}
	p := plan{request: executor.Request{
		VM: vm, From: drover.Place{Site: vm.Site, Host: vm.Host}, To: drover.Place{Site: to.Site, Host: to.Host},
		Method: method, Reasons: append(reasons, chosen...),
	}}
	if checks.holds() {
		p.request.To = drover.Place{Site: target.Site, Host: target.Name}
		p.request.FromAddress, p.request.ToAddress = source.Address, target.Address
		k := &cloneCheck{
			findings: &checks, s: s, wish: wish, r: &p.request, target: target, segments: s.fleet.viewSegments(),
			clone: &executor.Clone{UUID: newUUID(), Fresh: wish.Fresh || method == drover.Spawn, ServiceProbe: wish.Probe},
		}
		if err := k.all(ctx, moves); err != nil {
			return plan{}, err
		}
	}
	p.report = drover.Preflight{VM: vm.Name, To: p.request.To, Method: method, OK: checks.holds(), Checks: checks}
	if p.report.OK {
		if err := p.request.Validate(); err != nil {
			checks.bad("request", "", "%s", err)
			p.report.OK, p.report.Checks = false, checks
		}
	}
	return p, nil
}

// all makes the checks in an order in which each can rely on those before.
func (k *cloneCheck) all(ctx context.Context, moves movesByVM) error {
	k.edges = k.s.edgeStates(ctx)
	k.name(moves)
	k.cards(moves)
	if !k.holds() {
		return nil
	}
	k.r.Clone = k.clone
	if err := k.ends(ctx); err != nil || !k.holds() {
		return err
	}
	k.own = addressesOf(k.r.VM)
	k.pools(ctx)
	k.dns(ctx)
	k.service(ctx)
	if !k.holds() {
		return nil
	}
	k.health()
	if k.r.Method == drover.Redirect {
		k.retire(ctx)
	}
	k.r.Locks = k.locks()
	return nil
}

// name settles the new VM's name.
func (k *cloneCheck) name(moves movesByVM) {
	taken := map[string]string{}
	for _, v := range k.s.fleet.viewVMs(moves) {
		taken[v.Name] = v.Site + "/" + v.Host
	}
	for _, m := range moves {
		if m.Clone != nil {
			taken[m.Clone.Name] = "move " + m.Name
		}
	}
	if name := k.wish.Name; name != "" {
		if at, is := taken[name]; is {
			k.bad("name", "choose another name", "%s has a vm %s already", at, name)
			return
		}
		k.clone.Name = name
	} else {
		const most = 63 // of a name, with what makes it unique
		base := k.r.VM.Name + "-" + k.r.To.Site
		base = base[:min(len(base), most-3)]
		k.clone.Name = base
		for n := 2; taken[k.clone.Name] != "" && n < 100; n++ {
			k.clone.Name = fmt.Sprintf("%s-%d", base, n)
		}
		if at := taken[k.clone.Name]; at != "" {
			k.bad("name", "name the new VM", "%s has a vm %s already, and so for every other name tried", at, k.clone.Name)
			return
		}
	}
	k.ok("name", "the new vm is %s", k.clone.Name)
}

// cards gives each network card a MAC, and a segment that it gets addresses in.
func (k *cloneCheck) cards(moves movesByVM) {
	taken := map[string]bool{}
	for _, v := range k.s.fleet.viewVMs(moves) {
		for _, n := range v.NICs {
			taken[strings.ToLower(n.MAC)] = true
		}
	}
	var said []string
	for _, n := range k.r.VM.NICs {
		seg, edge, why, fix := k.segment(n)
		if why != "" {
			k.bad("segments", fix, "%s", why)
			return
		}
		mac := newMAC(taken)
		k.clone.NICs = append(k.clone.NICs, executor.CloneNIC{MAC: n.MAC, NewMAC: mac, Network: seg.Bridge, Segment: seg.Name, Edge: edge})
		said = append(said, fmt.Sprintf("%s in segment %s, by the DHCP service of edge %s", mac, seg.Name, edge))
	}
	if len(said) == 0 {
		said = append(said, "it has no network card")
	}
	k.ok("segments", "%s", strings.Join(said, "; "))
}

// segment is where a card of the new VM is, and the edge that gives it addresses;
// or why there is none.
func (k *cloneCheck) segment(n drover.NIC) (seg drover.Segment, edge, why, fix string) {
	var able []drover.Segment
	was, known := network.SegmentOf(k.segments, n)
	for _, c := range k.segments {
		same := known && c.Name == was.Name && (c.Joined || k.r.VM.Site == k.r.To.Site)
		switch {
		case !c.At(k.r.To.Site):
		case k.wish.Segment != "" && c.Name == k.wish.Segment, k.wish.Segment == "" && same:
			able = []drover.Segment{c}
		case k.wish.Segment == "" && c.Home == k.r.To.Site && k.dhcp(c.Name) != "" && !slices.ContainsFunc(able, func(s drover.Segment) bool { return s.Name == was.Name && was.Joined }):
			able = append(able, c)
		}
	}
	switch {
	case len(able) > 1:
		return seg, "", fmt.Sprintf("%s has %s of its own: which one the new VM shall be in is not said", k.r.To.Site, segmentNames(able)), "name one with --segment"
	case len(able) == 0 && k.wish.Segment != "":
		return seg, "", fmt.Sprintf("segment %s is not at %s", k.wish.Segment, k.r.To.Site), "take another, see drover segments"
	case len(able) == 0:
		return seg, "", fmt.Sprintf("%s has no segment of its own with a DHCP service that its edge can use, so the new VM would have no address", k.r.To.Site),
			"name segment and DHCP service in the file of the edge there, or another segment with --segment"
	}
	seg = able[0]
	if edge = k.dhcp(seg.Name); edge == "" {
		return seg, "", fmt.Sprintf("no edge has a DHCP service for segment %s that works, so the new VM would have no address", seg.Name),
			"name one in the file of an edge, or look at drover edges"
	}
	return seg, edge, "", ""
}

// dhcp is the edge that serves a segment, at the destination if there is one.
func (k *cloneCheck) dhcp(segment string) string {
	return k.edge(drover.EdgeDHCP, func(s drover.EdgeServer) bool { return s.Name == segment && s.Fault == "" })
}

// edge finds an edge with a server of a kind, those of the destination first.
func (k *cloneCheck) edge(kind string, fits func(drover.EdgeServer) bool) string {
	found := ""
	for _, e := range k.edges {
		if !slices.ContainsFunc(e.Servers, func(s drover.EdgeServer) bool { return s.Kind == kind && fits(s) }) {
			continue
		}
		if e.Site == k.r.To.Site {
			return e.Name
		}
		if found == "" {
			found = e.Name
		}
	}
	return found
}

// ends asks the two hosts.
func (k *cloneCheck) ends(ctx context.Context) error {
	r := k.r
	from, err := k.s.fleet.agent(r.From.Host)
	if err != nil {
		return err
	}
	to, err := k.s.fleet.agent(r.To.Host)
	if err != nil {
		return err
	}
	method := string(r.Method)
	if k.clone.Fresh {
		method = string(drover.Spawn) // nothing is read of its disks
	}
	src, err := from.client.CheckSource(ctx, &droverv1.CheckSourceRequest{
		Vm: r.VM.Name, Method: method, TargetAddress: to.Address, TargetHost: to.Name,
	})
	if err != nil {
		return unanswered(ctx, k.findings, "source agent", r.From.Host, err)
	}
	*k.findings = append(*k.findings, api.ChecksFromProto(src.GetChecks())...)
	if src.GetVm() == nil {
		return nil
	}
	vm := api.VMFromProto(src.GetVm())
	vm.Host, vm.Site = r.From.Host, r.From.Site
	if vm.UUID != r.VM.UUID || len(vm.NICs) != len(k.clone.NICs) {
		k.bad("vm", "look at drover vms again", "%s is another VM than a moment ago", vm.Name)
		return nil
	}
	seen := r.VM
	vm, _ = withAddresses(vm, seen, nil, k.segments)
	r.VM, r.Definition = vm, src.GetDefinition()
	made, def := k.made()
	dst, err := to.client.CheckTarget(ctx, &droverv1.CheckTargetRequest{
		Vm: api.VMToProto(made), Method: method, Definition: r.Definition, Source: src.GetHost(),
		BackingIds: src.GetBackingIds(), SourceAddress: from.Address, Clone: def,
	})
	if err != nil {
		return unanswered(ctx, k.findings, "target agent", r.To.Host, err)
	}
	*k.findings = append(*k.findings, api.ChecksFromProto(dst.GetChecks())...)
	r.Disks = diskPlans(vm, dst.GetSameBacking())
	k.clone.Disks = diskPlans(made, dst.GetSameBacking())
	for i := range k.clone.Disks {
		d := &k.clone.Disks[i]
		below := slices.ContainsFunc(vm.Disks, func(v drover.Disk) bool { return v.Target == d.Target && len(v.Backing) > 0 })
		if d.Fresh = k.clone.Fresh; d.Fresh && below && d.BackingPath == "" {
			k.bad("base-image", "take redirect without fresh disks", "disk %s has no golden image at %s to begin above", d.Target, r.To.Host)
		}
	}
	return nil
}

// made is the new VM as its host will see it, and how its definition is made.
func (k *cloneCheck) made() (drover.VM, *droverv1.CloneDefinition) {
	vm := k.r.VM
	vm.Name, vm.UUID, vm.Host, vm.Site, vm.Probe = k.clone.Name, k.clone.UUID, k.r.To.Host, k.r.To.Site, nil
	vm.NICs, vm.Disks = slices.Clone(vm.NICs), slices.Clone(vm.Disks)
	def := &droverv1.CloneDefinition{Definition: k.r.Definition, Paths: map[string]string{}}
	for i, n := range k.clone.NICs {
		vm.NICs[i].MAC, vm.NICs[i].Network, vm.NICs[i].Addresses = n.NewMAC, n.Network, nil
		def.Nics = append(def.Nics, &droverv1.CloneNIC{Mac: n.MAC, NewMac: n.NewMAC, Network: n.Network})
	}
	writable := 0
	for i := range vm.Disks {
		d := &vm.Disks[i]
		if d.Shared || d.ReadOnly {
			continue
		}
		ext := filepath.Ext(d.Path)
		path := filepath.Join(filepath.Dir(d.Path), k.clone.Name+ext)
		if writable++; writable > 1 {
			path = filepath.Join(filepath.Dir(d.Path), k.clone.Name+"-"+d.Target+ext)
		}
		def.Paths[d.Path], d.Path = path, path
		if k.clone.Fresh {
			d.AllocatedBytes = 0
		}
	}
	return vm, def
}

// pools looks whether there are addresses left.
func (k *cloneCheck) pools(ctx context.Context) {
	seen := map[string]bool{}
	for _, n := range k.clone.NICs {
		if !seen[n.Segment] {
			seen[n.Segment] = true
			k.ask(ctx, n.Edge, &droverv1.CheckEdgeRequest{Segment: n.Segment})
		}
	}
}

// dns looks whether the name can be set.
func (k *cloneCheck) dns(ctx context.Context) {
	name := k.wish.DNSName
	if name == "" {
		return
	}
	zone := ""
	k.edge(drover.EdgeDNS, func(s drover.EdgeServer) bool {
		if z := strings.TrimSuffix(s.Name, "."); (name == z || strings.HasSuffix(strings.TrimSuffix(name, "."), "."+z)) && len(z) > len(zone) {
			zone = s.Name
		}
		return false
	})
	edge := k.edge(drover.EdgeDNS, func(s drover.EdgeServer) bool { return zone != "" && s.Name == zone })
	if edge == "" {
		k.bad("dns-name", "name the zone in the file of an edge", "name %s is in none of the zones that edges may change", name)
		return
	}
	k.clone.DNS = &executor.CloneDNS{Name: name, Edge: edge}
	var own []netip.Addr
	if k.r.Method == drover.Redirect {
		own = k.own // it may have been the old VM's
	}
	k.ask(ctx, edge, &droverv1.CheckEdgeRequest{Name: name, Addresses: api.AddressesToProto(own)})
}

// ask has an edge make its part of the checks.
func (k *cloneCheck) ask(ctx context.Context, edge string, req *droverv1.CheckEdgeRequest) []drover.BackendServer {
	a, err := k.s.fleet.agent(edge)
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, edgeLimit)
		defer cancel()
		var r *droverv1.CheckEdgeResponse
		if r, err = a.client.CheckEdge(ctx, req); err == nil {
			*k.findings = append(*k.findings, k.s.fleet.checks(r.GetChecks())...)
			return api.ListFromProto(r.GetServers(), api.BackendServerFromProto)
		}
	}
	k.bad("edge", "look at the log of drover agent on "+edge, "%s", err)
	return nil
}

// locks are what no two moves may change at the same time.
func (k *cloneCheck) locks() []string {
	locks := []string{"vm-name/" + k.clone.Name}
	if v := k.clone.Service; v != nil {
		locks = append(locks, "backend/"+v.Edge+"/"+v.Backend)
	}
	if d := k.clone.DNS; d != nil {
		locks = append(locks, "name/"+d.Name)
	}
	return locks
}

// retire finds the edges where something stands for the VM that is to go.
func (k *cloneCheck) retire(ctx context.Context) {
	owner := network.Owner(k.r.VM.UUID)
	for _, o := range askAll(k.s.fleet.edges(), func(a *agent) owned { return a.owned(ctx) }) {
		switch {
		case o.err != nil:
			k.bad("retire", "bring its agent up", "edge %s does not say what stands there for %s: %s", o.agent.Name, k.r.VM.Name, o.err)
		case slices.ContainsFunc(o.things, func(t *droverv1.OwnedThing) bool { return t.GetOwner() == owner }):
			k.clone.Forget = append(k.clone.Forget, o.agent.Name)
		}
	}
	slices.Sort(k.clone.Forget)
}

// addressesOf are all that a VM is known to have.
func addressesOf(vm drover.VM) []netip.Addr {
	var all []netip.Addr
	for _, n := range vm.NICs {
		all = append(all, n.Addresses...)
	}
	if vm.Probe != nil {
		if at, err := netip.ParseAddrPort(vm.Probe.TCP); err == nil {
			all = append(all, at.Addr())
		}
		if u, err := url.Parse(vm.Probe.HTTP); err == nil {
			if a, err := netip.ParseAddr(u.Hostname()); err == nil {
				all = append(all, a)
			}
		}
	}
	return all
}

// newUUID returns a random one (RFC 9562, 5.4).
func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // does not fail
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// newMAC returns one of QEMU's that no VM is known to have, and takes it.
func newMAC(taken map[string]bool) string {
	for {
		b := net.HardwareAddr{0x52, 0x54, 0x00, 0, 0, 0}
		_, _ = rand.Read(b[3:])
		if mac := b.String(); !taken[mac] {
			taken[mac] = true
			return mac
		}
	}
}
