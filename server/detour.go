package server

import (
	"context"
	"math"
	"slices"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/network"
)

// detoured completes VMs by what they pay for where they are.
func (f *fleet) detoured(vms []drover.VM, moves movesByVM) []drover.VM {
	segments := f.viewSegments()
	f.mu.Lock()
	defer f.mu.Unlock()
	sights := make([]sight, 0, len(f.agents))
	for _, a := range f.sorted() {
		sights = append(sights, sight{a, &a.gauges})
	}
	now := f.now()
	passings, trip := passings(sights, now), trip(sights, now)
	for i, v := range vms {
		of := passings[network.Owner(v.UUID)]
		if m, moving := moves[v.UUID]; moving {
			of = slices.Concat(of, passings[string(driver.MoveOwner(m.Name))])
		}
		vms[i].Detour = network.Detour(v, segments, of, trip)
		if a := f.agents[v.Host]; a != nil && a.host.Up {
			vms[i].RemoteIOBPS = a.gauges.remote(v, now)
		}
	}
	return vms
}

// remote is what a VM on this host reads and writes of disks left behind, nil
// where that is not known (yet).
func (g *gauges) remote(v drover.VM, now time.Time) *int64 {
	if v.RemoteIO == nil {
		return new(int64)
	}
	r := g.remoteIO[v.UUID]
	if r == nil {
		return nil
	}
	bps, ok := r.rates(now)
	if !ok {
		return nil
	}
	sum := int64(math.Round(bps[0] + bps[1]))
	return &sum
}

// detour begins to measure what a move's VM pays at its new place, and returns
// what ends that and writes the figures. It has them from the same counters as
// detoured, read at the two moments.
func (t *truth) detour(ctx context.Context, m drover.Move, b *before) func(*drover.Figures) {
	if m.State != drover.MoveDone || !keepsRunning(m.Method) || m.From.Site == m.To.Site || b == nil || b.vm == nil {
		return func(*drover.Figures) {}
	}
	look := t.looker(m, *b.vm)
	began := t.s.now()
	look.again(ctx)
	return func(f *drover.Figures) {
		if left := rateLeast + rateLeast/10 - t.s.now().Sub(began); look.counts() && left > 0 {
			t.s.pause(ctx, left)
		}
		look.again(ctx)
		if d, ok := look.judge(); ok {
			f.HairpinBPS, f.RemoteIOBPS = d.HairpinBPS, d.RemoteIOBPS
			if f.ExtraRTT == nil {
				f.ExtraRTT = d.ExtraRTT // no client has measured it
			}
		}
		if old, ok := t.s.fleet.past(string(driver.MoveOwner(m.Name))); ok {
			// What came by the old addresses, all the time that they stood.
			f.HairpinBPS = &old
		}
	}
}

// past is the mean of what has passed all edges for an owner, from the first to
// the last that they have said of it.
func (f *fleet) past(owner string) (sum int64, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, a := range f.agents {
		if g := a.gauges.passages[owner]; g != nil {
			if bps, known := g.mean(); known {
				sum, ok = sum+int64(math.Round(bps[0]+bps[1])), true
			}
		}
	}
	return sum, ok
}

// looker reads the counters that concern one move's VM.
type looker struct {
	t      *truth
	m      drover.Move
	sights []sight
	vm     *drover.VM // as it was seen at its new host last
}

func (t *truth) looker(m drover.Move, was drover.VM) *looker {
	sites := []string{m.From.Site, m.To.Site}
	segments := t.s.fleet.viewSegments()
	for _, n := range was.NICs {
		if seg, known := network.SegmentOf(segments, n); known {
			sites = append(sites, seg.Home)
		}
	}
	l := &looker{t: t, m: m}
	for _, a := range t.s.fleet.siteEdges() {
		if slices.Contains(sites, a.Site) && a.Name != m.To.Host {
			l.sights = append(l.sights, sight{a, &gauges{}})
		}
	}
	if a := t.s.fleet.agents[m.To.Host]; a != nil {
		l.sights = append(l.sights, sight{a, &gauges{}})
	}
	return l
}

// again reads all counters once more.
func (l *looker) again(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, countersLimit)
	defer cancel()
	agents := make([]*agent, len(l.sights))
	for i, s := range l.sights {
		agents[i] = s.agent
	}
	said := askAll(agents, func(a *agent) *droverv1.DescribeResponse {
		r, err := a.client.Describe(ctx, &droverv1.DescribeRequest{})
		if err != nil {
			l.t.s.log.WarnContext(ctx, "agent does not tell its counters", "host", a.Name, "move", l.m.Name, "error", err)
			return nil
		}
		return r
	})
	for i, r := range said {
		if r == nil {
			continue
		}
		l.sights[i].take(r, l.t.s.now())
		for _, v := range r.GetVms() {
			if v.GetUuid() == l.m.VMUUID && agents[i].Name == l.m.To.Host {
				vm := api.VMFromProto(v)
				vm.Site, vm.Host = l.m.To.Site, l.m.To.Host
				l.vm = &vm
			}
		}
	}
}

// counts reports whether there is something that has to be read twice.
func (l *looker) counts() bool {
	return slices.ContainsFunc(l.sights, func(s sight) bool {
		return s.passages[network.Owner(l.m.VMUUID)] != nil || s.remoteIO[l.m.VMUUID] != nil
	})
}

// judge is what the VM pays between the two readings; false where it was not seen.
func (l *looker) judge() (d drover.Detour, ok bool) {
	if l.vm == nil {
		return d, false
	}
	now := l.t.s.now()
	d = network.Detour(*l.vm, l.t.s.fleet.viewSegments(), passings(l.sights, now)[network.Owner(l.m.VMUUID)], trip(l.sights, now))
	d.RemoteIOBPS = l.sights[len(l.sights)-1].remote(*l.vm, now)
	return d, true
}
