package server

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/advisor"
	"github.com/drover-vm/drover/forecast"
	"github.com/drover-vm/drover/network"
)

// overview is what is known at one moment of all that an advice depends on: taken
// once, it serves for any number of VMs.
type overview struct {
	now      time.Time
	moves    movesByVM
	vms      []drover.VM
	at       map[string]string // VM's name to its site
	sites    map[string]drover.Site
	order    []string // of sites, by name
	hosts    map[string]drover.Host
	roomiest map[string]drover.Host // by site: the host with the most memory free
	links    []drover.Link
	segments []drover.Segment
	meshed   map[string]bool // sites whose edge has a part in the mesh
	edged    map[string]bool // sites that have an edge
	needs    map[string]drover.KeptRequirements
	policy   advisor.Policy
	model    *forecast.Model
	seen     *signals // nil: nothing has been observed
}

// look takes an overview.
func (s *Server) look(ctx context.Context) (*overview, error) {
	moves, err := s.moving(ctx)
	if err != nil {
		return nil, err
	}
	kept, _, err := s.deps.Inventory.Requirements().List(ctx)
	if err != nil {
		return nil, err
	}
	o := &overview{
		now: s.now(), moves: moves, vms: s.fleet.viewVMs(moves), at: map[string]string{}, sites: map[string]drover.Site{},
		hosts: map[string]drover.Host{}, roomiest: map[string]drover.Host{}, links: s.fleet.viewLinks(), segments: s.fleet.viewSegments(),
		needs: map[string]drover.KeptRequirements{}, policy: s.cfg.Advice.policy(),
		model: s.oracle.learned(ctx), seen: s.signals,
	}
	for _, v := range o.vms {
		o.at[v.Name] = v.Site
	}
	for _, x := range s.fleet.viewSites() {
		o.sites[x.Name], o.order = x, append(o.order, x.Name)
	}
	for _, h := range s.fleet.viewHosts(moves) {
		o.hosts[h.Name] = h
		best, has := o.roomiest[h.Site]
		if h.Up && runsVMs(h) && (!has || h.MemoryFreeBytes > best.MemoryFreeBytes) {
			o.roomiest[h.Site] = h
		}
	}
	for _, k := range kept {
		o.needs[k.UUID] = k
	}
	o.edged, o.meshed = s.fleet.edgeParts()
	return o, nil
}

// edgeParts are the sites that have an edge, and those whose edge has a part in
// the mesh.
func (f *fleet) edgeParts() (edged, meshed map[string]bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	edged, meshed = map[string]bool{}, map[string]bool{}
	for _, a := range f.agents {
		if a.host.Edge && len(a.segments) > 0 {
			edged[a.Site] = true
			meshed[a.Site] = meshed[a.Site] || a.mesh != nil
		}
	}
	return edged, meshed
}

// question asks for a VM and a place, with what the overview alone can tell of
// each method.
func (s *Server) question(o *overview, vm drover.VM, to drover.Place) advisor.Question {
	q := advisor.Question{
		Now: o.now, VM: vm, From: o.sites[vm.Site], To: o.sites[to.Site], Host: to.Host,
		Needs: s.settle(vm, o.needs[vm.UUID]), Sites: o.at,
	}
	if m, busy := o.moves[vm.UUID]; busy {
		q.Move = &m
	}
	if i := slices.IndexFunc(o.links, func(l drover.Link) bool { return l.Joins(vm.Site, to.Site) }); i >= 0 {
		q.Link = &o.links[i]
	}
	target := o.target(vm, to)
	q.Joined = o.joined(vm, target, to.Site)
	q.Checks = o.quickChecks(vm, target, to)
	if o.seen != nil {
		q.Way = o.seen.way(vm.Site, to.Site)
	}
	q.Forecasts = o.foretell(vm, target, to, q.Link)
	return q
}

// target is the host where the VM would be; nameless where there is none.
func (o *overview) target(vm drover.VM, to drover.Place) drover.Host {
	if to.Host != "" {
		return o.hosts[to.Host]
	}
	if h := o.roomiest[to.Site]; h.Name != vm.Host {
		return h
	}
	var best drover.Host
	for _, h := range o.hosts {
		if h.Site == to.Site && h.Name != vm.Host && h.Up && runsVMs(h) && (best.Name == "" || h.MemoryFreeBytes > best.MemoryFreeBytes) {
			best = h
		}
	}
	return best
}

// joined reports whether all segments of the VM are one layer 2 network at its
// host and at the target.
func (o *overview) joined(vm drover.VM, target drover.Host, site string) bool {
	for _, n := range vm.NICs {
		if !slices.Contains(target.Networks, n.Network) {
			return false
		}
		if seg, known := network.SegmentOf(o.segments, n); known && !seg.Joined && vm.Site != site {
			return false
		}
	}
	return true
}

// quickChecks are what would make a preflight fail, as far as the inventory can
// tell; agents are not asked.
func (o *overview) quickChecks(vm drover.VM, target drover.Host, to drover.Place) map[drover.Method][]drover.Check {
	checks := map[drover.Method][]drover.Check{}
	add := func(methods []drover.Method, name, fix, format string, args ...any) {
		for _, m := range methods {
			checks[m] = append(checks[m], drover.Check{Name: name, Detail: fmt.Sprintf(format, args...), Fix: fix})
		}
	}
	all := drover.Methods()
	if h, known := o.hosts[vm.Host]; known && !h.Up {
		add(all, "vm", "start drover agent on "+vm.Host, "its host %s does not answer", vm.Host)
	}
	switch {
	case target.Name == "":
		add(all, "target", "start drover agent on a host there, or take another site", "no host at %s could take it", to)
		return checks
	case !target.Up:
		add(all, "target", "start drover agent on "+target.Name, "%s does not answer", target.Name)
		return checks
	case target.MemoryFreeBytes > 0 && target.MemoryFreeBytes < vm.MemoryBytes:
		add(all, "memory", "make room at "+to.Site, "%s has %s of memory free, it needs %s", target.Name, target.MemoryFreeBytes, vm.MemoryBytes)
	}
	o.quickSegments(vm, target, to, add)
	return checks
}

// quickSegments checks what methods between sites need of segments and edges.
func (o *overview) quickSegments(vm drover.VM, target drover.Host, to drover.Place, add func([]drover.Method, string, string, string, ...any)) {
	ways := []drover.Method{drover.Route, drover.Stretch}
	for _, n := range vm.NICs {
		seg, known := network.SegmentOf(o.segments, n)
		switch {
		case !known:
			add(append(ways, drover.Renumber), "segments", "name it in the files of the edges", "no edge knows segment %s", n.Network)
			continue
		case !slices.Contains(target.Networks, n.Network):
			add(ways, "segments", "give it a bridge there", "segment %s is not on %s", n.Network, target.Name)
		}
		if seg.VNI == 0 && !seg.Joined {
			add([]drover.Method{drover.Stretch}, "segments", "give it a vni in the files of its edges", "segment %s has no number by which it could be extended", seg.Name)
		}
	}
	for _, site := range []string{vm.Site, to.Site} {
		switch {
		case !o.edged[site]:
			add(append(ways, drover.Renumber), "edge", "give the site an edge", "%s has no edge that could change its networks", site)
		case !o.meshed[site]:
			add([]drover.Method{drover.Stretch, drover.Renumber}, "mesh", "give it a part in the mesh (edge.mesh in its file)", "the edge of %s is in no mesh", site)
		}
	}
	if !slices.ContainsFunc(o.segments, func(g drover.Segment) bool { return g.Home == to.Site }) {
		add([]drover.Method{drover.Renumber}, "segments", "make a segment at home there", "no segment is at home at %s", to.Site)
	}
}
