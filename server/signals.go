package server

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/forecast/sample"
	"github.com/drover-vm/drover/store"
)

const (
	// observeEvery is how often an agent is asked what it has seen: as often as it
	// reads its counters.
	observeEvery = 15 * time.Second
	// observeFirst is the first wait, which doubles: after a start the agents hear
	// soon what they are to watch, when the others have answered.
	observeFirst = time.Second
	// observeAnswer bounds one answer. Agents wait for nothing to give it.
	observeAnswer = 10 * time.Second
	// contentHosts is how many hosts of each other site an agent asks what they have:
	// those with the most free memory, where moves go.
	contentHosts = 4
	// signalsEvery is how often a VM's or a host's signals are kept, waysEvery a
	// way's, which with its week is some 15 KiB. After a restart they are observed
	// again within minutes; what takes weeks to learn is kept often enough.
	signalsEvery = 5 * time.Minute
	waysEvery    = 10 * time.Minute
	// weekEvery is how often a measurement counts for the hour of the week.
	weekEvery = time.Minute
	// learntAge is how long what a real move has shown counts more than samples: a
	// month, after which the guest may do something else.
	learntAge = 30 * 24 * time.Hour
	// signalsAge is how long the signals of a VM are kept that no host has any more.
	signalsAge = time.Hour
	// useSpan is over how long a link's use is a mean, useMost how far apart readings
	// of its counters may be.
	useSpan = 30 * time.Second
	useMost = 2 * time.Minute
	// useLate is how late a reading may be after the time that it is of.
	useLate = 15 * time.Second
)

// signals are what agents see of VMs, hosts and the ways between sites, and what
// moves have shown.
type signals struct {
	s *Server

	mu    sync.Mutex
	vms   map[string]drover.Signals     // by UUID
	hosts map[string]drover.HostSignals // by name
	ways  map[way]drover.LinkSignals
	weeks map[way]time.Time // when a measurement counted last
	ours  map[way]time.Time // when a move of ours was under way last
	uses  map[string]*linkUse
	kept  map[string]time.Time // by key in the store
}

// way is from one site to another.
type way struct{ from, to string }

// linkUse is how much of a link is in use, by its edges' counters.
type linkUse struct{ ab, ba sample.Rate }

func newSignals(s *Server) *signals {
	return &signals{
		s: s, vms: map[string]drover.Signals{}, hosts: map[string]drover.HostSignals{}, ways: map[way]drover.LinkSignals{},
		weeks: map[way]time.Time{}, ours: map[way]time.Time{}, uses: map[string]*linkUse{}, kept: map[string]time.Time{},
	}
}

// load takes over what an earlier server knew.
func (g *signals) load(ctx context.Context) error {
	inv := g.s.deps.Inventory
	vms, _, err := inv.Signals().List(ctx)
	if err != nil {
		return fmt.Errorf("load signals: %w", err)
	}
	hosts, _, err := inv.HostSignals().List(ctx)
	if err != nil {
		return fmt.Errorf("load signals of hosts: %w", err)
	}
	ways, _, err := inv.LinkSignals().List(ctx)
	if err != nil {
		return fmt.Errorf("load signals of links: %w", err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, v := range vms {
		g.vms[v.UUID] = v
	}
	for _, h := range hosts {
		g.hosts[h.Host] = h
	}
	for _, l := range ways {
		g.ways[way{l.From, l.To}] = l
	}
	return nil
}

// collect asks an agent until ctx ends.
func (g *signals) collect(ctx context.Context, a *agent) {
	for wait := observeFirst; ; wait = min(2*wait, observeEvery) {
		if err := g.collectOnce(ctx, a); err != nil && ctx.Err() == nil {
			g.s.log.DebugContext(ctx, "agent tells nothing of what it sees", "host", a.Name, "error", err)
		}
		select {
		case <-time.After(wait/2 + rand.N(wait)):
		case <-ctx.Done():
			return
		}
	}
}

func (g *signals) collectOnce(ctx context.Context, a *agent) error {
	answer, cancel := context.WithTimeout(ctx, observeAnswer)
	defer cancel()
	moves, err := g.s.moving(answer)
	if err != nil {
		return err
	}
	r, err := a.client.Observe(answer, g.request(a, moves))
	if err != nil {
		return err
	}
	g.took(a, r, moves)
	return g.keep(ctx, a)
}

// request says what an agent is to watch.
func (g *signals) request(a *agent, moves movesByVM) *droverv1.ObserveRequest {
	f := g.s.fleet
	f.mu.Lock()
	measures := f.measurer(a.Site) == a
	req := &droverv1.ObserveRequest{}
	for site, at := range f.others(a.Site) {
		for i, b := range at {
			p := &droverv1.ObservedPeer{Site: site, Host: b.Name, Address: b.Address}
			p.Content = !a.host.Edge && i < contentHosts
			p.Way = measures && b == f.measurer(site)
			if p.Content || p.Way {
				req.Peers = append(req.Peers, p)
			}
		}
	}
	edge := a.mesh != nil || len(a.segments) > 0 || a.host.Edge
	f.mu.Unlock()
	slices.SortFunc(req.Peers, func(x, y *droverv1.ObservedPeer) int { return cmp.Compare(x.GetHost(), y.GetHost()) })
	if !edge {
		return req
	}
	for _, v := range f.viewVMs(moves) {
		if v.Site != a.Site || v.State != drover.VMRunning {
			continue
		}
		p := &droverv1.ObservedSubject{Uuid: v.UUID}
		for _, n := range v.NICs {
			p.Addresses = append(p.Addresses, api.AddressesToProto(n.Addresses)...)
		}
		if len(p.Addresses) > 0 {
			req.Subjects = append(req.Subjects, p)
		}
	}
	return req
}

// others are the hosts that answer, of the other sites, by site, those with the most
// free memory first. f.mu is held.
func (f *fleet) others(site string) map[string][]*agent {
	by := map[string][]*agent{}
	for _, b := range f.sorted() {
		if b.Site != site && b.host.Up && !b.host.Edge {
			by[b.Site] = append(by[b.Site], b)
		}
	}
	for other, at := range by {
		slices.SortStableFunc(at, func(x, y *agent) int { return cmp.Compare(y.host.MemoryFreeBytes, x.host.MemoryFreeBytes) })
		if m := f.measurer(other); !slices.Contains(at[:min(len(at), contentHosts)], m) && m != nil {
			by[other] = append(at, m)
		}
	}
	return by
}

// measurer is the host of a site that measures the ways from it, and that ways to
// it are measured to. f.mu is held.
func (f *fleet) measurer(site string) *agent {
	for _, b := range f.sorted() {
		if b.Site == site && b.host.Up && !b.host.Edge {
			return b
		}
	}
	return nil
}

// took takes over what an agent has seen.
func (g *signals) took(a *agent, r *droverv1.ObserveResponse, moves movesByVM) {
	now := g.s.now().UTC()
	links := g.s.fleet.viewLinks()
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, p := range r.GetVms() {
		v := api.SignalsFromProto(p)
		if v.UUID == "" {
			continue
		}
		v.Host = a.Name
		if old, known := g.vms[v.UUID]; known {
			if old.Host != a.Name && v.Skipped != "" {
				continue // the other end of a move has it, too
			}
			v = merge(old, v, now)
		}
		delete(v.KnownShare, a.Site)
		g.vms[v.UUID] = v
	}
	for _, p := range r.GetSessions() {
		if v, known := g.vms[p.GetUuid()]; known {
			if s := api.ReadingFromProto(p.GetSessions()); s.Known() {
				v.Sessions = s
			}
			if l := api.LifetimesFromProto(p.GetLifetimes()); l.Known() {
				v.Lifetimes = l
			}
			g.vms[v.UUID] = v
		}
	}
	if h := api.HostSignalsFromProto(r.GetHost()); !a.host.Edge && h.At.After(g.hosts[a.Name].At) {
		h.Host, h.EncodeBytesPerSecond = a.Name, g.hosts[a.Name].EncodeBytesPerSecond
		g.hosts[a.Name] = h
	}
	g.use(links, now)
	for _, p := range r.GetWays() {
		l := api.LinkSignalsFromProto(p)
		l.From = a.Site
		if g.s.fleet.hasSite(l.To) && l.RTTMillis.Known() {
			g.tookWay(l, links, moves, now)
		}
	}
}

func (f *fleet) hasSite(name string) bool {
	return slices.ContainsFunc(f.sites, func(s SiteConfig) bool { return s.Name == name })
}

// use reads the links' counters. mu is held.
func (g *signals) use(links []drover.Link, now time.Time) {
	for _, l := range links {
		u := g.uses[l.Name]
		if u == nil {
			u = &linkUse{ab: sample.Rate{Span: useSpan, Most: useMost}, ba: sample.Rate{Span: useSpan, Most: useMost}}
			g.uses[l.Name] = u
		}
		if l.ABBytes+l.BABytes > 0 {
			u.ab.Add(now, float64(l.ABBytes))
			u.ba.Add(now, float64(l.BABytes))
		}
	}
}

// tookWay takes over a measured way. mu is held.
func (g *signals) tookWay(l drover.LinkSignals, links []drover.Link, moves movesByVM, now time.Time) {
	k := way{l.From, l.To}
	old := g.ways[k]
	l.Week, l.CapacityBPS = old.Week, old.CapacityBPS
	if !old.CapacityBPS.Observed || old.CapacityBPS.Age(now) > learntAge {
		l.CapacityBPS = drover.Reading{}
	}
	joining := slices.DeleteFunc(slices.Clone(links), func(j drover.Link) bool { return !j.Joins(l.From, l.To) })
	if len(joining) == 1 {
		j := joining[0]
		l.Link = j.Name
		if j.Rate > 0 && l.CapacityBPS.Or(0) < float64(j.Rate) {
			l.CapacityBPS = drover.Reading{Value: float64(j.Rate), At: now, Samples: 1}
		}
		u := g.uses[j.Name]
		used := u.ab.PerSecond()
		if j.A != l.From {
			used = u.ba.PerSecond()
		}
		own := ownRate(moves, l.From, l.To)
		if own > 0 {
			g.ours[k] = now
		}
		if last, known := g.ours[k]; own == 0 && known && now.Sub(last) < useSpan+useLate && !now.Before(last) {
			l.FreeBPS = old.FreeBPS // the mean is of a time with a move of our own
		} else {
			l.FreeBPS = free(l.CapacityBPS, used, own)
		}
	}
	if last := g.weeks[k]; now.Sub(last) >= weekEvery || now.Before(last) {
		g.weeks[k] = now
		l.Week = sample.Hours(slices.Clone(l.Week), now, l.RTTMillis.Value, l.LossShare, l.FreeBPS)
	}
	g.ways[k] = l
}

// free is what others leave of a link: what crosses it, less what Drover's own
// moves send.
func free(capacity, usedBytes drover.Reading, own float64) drover.Reading {
	if !capacity.Known() || !usedBytes.Known() {
		return drover.Reading{}
	}
	others := max(0, usedBytes.Value*8-own)
	return drover.Reading{Value: min(capacity.Value, max(0, capacity.Value-others)), At: usedBytes.At, Samples: usedBytes.Samples}
}

// ownRate is what moves send from one site to another now, in bits per second.
func ownRate(moves movesByVM, from, to string) float64 {
	sum, seen := 0.0, map[string]bool{}
	for _, m := range moves {
		if m.From.Site == from && m.To.Site == to && m.Progress != nil && m.Progress.Path != nil && !seen[m.Name] {
			seen[m.Name] = true
			sum += float64(m.Progress.Path.WireRate)
		}
	}
	return sum
}

// keep stores what changes slowly enough to be worth it, and forgets VMs that are
// gone.
func (g *signals) keep(ctx context.Context, a *agent) error {
	ctx, cancel := context.WithTimeout(ctx, storeLimit)
	defer cancel()
	now := g.s.now()
	g.mu.Lock()
	var vms []drover.Signals
	for _, v := range g.vms {
		if v.Host == a.Name && g.due("vm/"+v.UUID, signalsEvery, now) {
			vms = append(vms, v)
		}
	}
	var ways []drover.LinkSignals
	for k, l := range g.ways {
		if k.from == a.Site && g.due("way/"+store.LinkSignalsKey(l), waysEvery, now) {
			ways = append(ways, l)
		}
	}
	h := g.hosts[a.Name]
	keepHost := h.Host != "" && g.due("host/"+a.Name, signalsEvery, now)
	g.mu.Unlock()
	inv := g.s.deps.Inventory
	for _, v := range vms {
		if err := inv.Signals().Put(ctx, v); err != nil {
			return err
		}
	}
	for _, l := range ways {
		if err := inv.LinkSignals().Put(ctx, l); err != nil {
			return err
		}
	}
	if keepHost {
		if err := inv.HostSignals().Put(ctx, h); err != nil {
			return err
		}
	}
	return g.forget(ctx, now)
}

// due reports whether something is to be kept now. mu is held.
func (g *signals) due(key string, every time.Duration, now time.Time) bool {
	if last, ok := g.kept[key]; ok && now.Sub(last) < every && !now.Before(last) {
		return false
	}
	g.kept[key] = now
	return true
}

// forget drops the signals of VMs that no host has any more and no move carries.
func (g *signals) forget(ctx context.Context, now time.Time) error {
	moves, err := g.s.moving(ctx)
	if err != nil {
		return err
	}
	here := map[string]bool{}
	for _, v := range g.s.fleet.viewVMs(moves) {
		here[v.UUID] = true
	}
	g.mu.Lock()
	var gone []string
	for uuid, v := range g.vms {
		if !here[uuid] && now.Sub(v.At) > signalsAge {
			gone = append(gone, uuid)
			delete(g.vms, uuid)
			delete(g.kept, "vm/"+uuid)
		}
	}
	g.mu.Unlock()
	for _, uuid := range gone {
		if err := g.s.deps.Inventory.Signals().Delete(ctx, uuid); err != nil {
			return err
		}
	}
	return nil
}

// vm is what is known of a VM; where nobody has looked at it nothing is, and
// Skipped says so.
func (g *signals) vm(v drover.VM) drover.Signals {
	g.mu.Lock()
	defer g.mu.Unlock()
	s, known := g.vms[v.UUID]
	if !known {
		s.Skipped = "nobody has looked at it yet"
	}
	s.VM, s.UUID, s.Host = v.Name, v.UUID, v.Host
	s.KnownShare, s.DiskKnownShare = maps.Clone(s.KnownShare), maps.Clone(s.DiskKnownShare)
	return s
}

// host is what is known of a host; the zero value where nothing is.
func (g *signals) host(name string) drover.HostSignals {
	g.mu.Lock()
	defer g.mu.Unlock()
	h := g.hosts[name]
	h.Host = name
	return h
}

// way is what is known of the way from one site to another; nothing but the names
// where nobody has measured it.
func (g *signals) way(from, to string) drover.LinkSignals {
	g.mu.Lock()
	defer g.mu.Unlock()
	l := g.ways[way{from, to}]
	l.From, l.To = from, to
	l.Week = slices.Clone(l.Week)
	return l
}

// GetSignals implements DroverService.
func (s service) GetSignals(ctx context.Context, r *droverv1.GetSignalsRequest) (*droverv1.GetSignalsResponse, error) {
	if err := drover.CheckName("vm", r.GetVm()); err != nil {
		return nil, err
	}
	moves, err := s.moving(ctx)
	if err != nil {
		return nil, err
	}
	v, err := s.fleet.find(r.GetVm(), moves)
	if err != nil {
		return nil, err
	}
	if r.GetFresh() {
		if err := s.signals.refresh(ctx, v, moves); err != nil {
			return nil, err
		}
	}
	sig := s.signals.vm(v)
	if m, ok := moves[v.UUID]; ok {
		sig.Skipped = "move " + m.Name + " is using it"
	}
	return &droverv1.GetSignalsResponse{Signals: api.SignalsToProto(sig), Host: api.HostSignalsToProto(s.signals.host(v.Host))}, nil
}

// ListLinkSignals implements DroverService: of every way between two sites, in
// order, also those that nobody has measured, where a link is asked for.
func (s service) ListLinkSignals(_ context.Context, r *droverv1.ListLinkSignalsRequest) (*droverv1.ListLinkSignalsResponse, error) {
	resp := &droverv1.ListLinkSignalsResponse{}
	add := func(from, to string) {
		resp.Signals = append(resp.Signals, api.LinkSignalsToProto(s.signals.way(from, to)))
	}
	if name := r.GetLink(); name != "" {
		for _, l := range s.fleet.viewLinks() {
			if l.Name == name {
				add(l.A, l.B)
				add(l.B, l.A)
				return resp, nil
			}
		}
		return nil, drover.Errorf(drover.NotFound, "link "+name, "there is none of that name (see drover links)")
	}
	s.signals.mu.Lock()
	keys := slices.Collect(maps.Keys(s.signals.ways))
	s.signals.mu.Unlock()
	slices.SortFunc(keys, func(a, b way) int { return cmp.Or(cmp.Compare(a.from, b.from), cmp.Compare(a.to, b.to)) })
	for _, k := range keys {
		add(k.from, k.to)
	}
	return resp, nil
}
