package server

import (
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/advisor"
	"github.com/drover-vm/drover/forecast"
)

// manyVMs is an overview of n VMs at the first of four sites.
func manyVMs(n int) (*Server, *overview) {
	s := &Server{}
	now := time.Date(2026, 3, 2, 12, 0, 0, 0, time.UTC)
	o := &overview{
		now: now, moves: movesByVM{}, at: map[string]string{}, sites: map[string]drover.Site{}, hosts: map[string]drover.Host{},
		roomiest: map[string]drover.Host{}, needs: map[string]drover.KeptRequirements{}, meshed: map[string]bool{}, edged: map[string]bool{},
		policy: AdviceConfig{}.policy(), model: forecast.New(nil, now),
	}
	for i := range 4 {
		site := fmt.Sprintf("site%d", i)
		h := drover.Host{Name: "host-" + site, Site: site, Up: true, HypervisorVersion: "10.0.2", MemoryFreeBytes: 64 * drover.GiB, Networks: []string{"br-blue"}}
		o.sites[site], o.hosts[h.Name], o.roomiest[site] = drover.Site{Name: site, Latitude: float64(10 * i), Longitude: 5}, h, h
		o.order, o.meshed[site], o.edged[site] = append(o.order, site), true, true
		if i > 0 {
			o.links = append(o.links, drover.Link{Name: "l" + site, A: "site0", B: site, Rate: 622 * drover.Mbps, RTTMillis: 66})
		}
	}
	o.segments = []drover.Segment{{Name: "blue", Bridge: "br-blue", Home: "site0", Sites: o.order, VNI: 5000}}
	for i := range n {
		v := drover.VM{
			Name: fmt.Sprintf("vm%d", i), UUID: fmt.Sprintf("uuid%d", i), Site: "site0", Host: "host-site0", State: drover.VMRunning,
			MemoryBytes: 2 * drover.GiB, Disks: []drover.Disk{{Target: "vda", VirtualBytes: 20 * drover.GiB, AllocatedBytes: 3 * drover.GiB}},
			NICs: []drover.NIC{{Network: "br-blue"}}, Requirements: map[string]string{"keep-sessions": "yes", "max-pause": "5s"},
		}
		o.vms, o.at[v.Name] = append(o.vms, v), v.Site
	}
	return s, o
}

// observed has every VM, host and way of an overview observed, and forecasts learned
// from two hundred moves.
func observed(s *Server, o *overview) {
	g := newSignals(s)
	r := func(v float64) drover.Reading { return drover.Reading{Value: v, At: o.now, Samples: 8192} }
	for i, v := range o.vms {
		dirty := drover.DirtyCurve{At: o.now, Samples: 6}
		for _, w := range []float64{0.1, 1, 10} {
			dirty.Points = append(dirty.Points, drover.DirtyPoint{WindowSeconds: w, Bytes: (1 - math.Exp(-w)) * float64(1+i%50) * 2e6})
		}
		g.vms[v.UUID] = drover.Signals{
			VM: v.Name, UUID: v.UUID, Host: v.Host, At: o.now, MemoryBytes: r(float64(v.MemoryBytes)), ZeroShare: r(0.3),
			KnownShare: map[string]drover.Reading{"site1": r(0.2)}, CompressedShare: r(0.4), ResentShare: r(0.5), Dirty: dirty,
			HotBytes: r(float64(1+i%50) * 1e6), HotSeconds: r(1), ColdBytesPerSecond: r(1e5), DiskAllocatedBytes: r(3e9),
			DiskWriteBytesPerSecond: r(1e6), DiskDistinctBytesPerSecond: r(4e5), NetworkRxBPS: r(2e6), NetworkTxBPS: r(8e6), CPUShare: r(0.4), Sessions: r(40),
			Lifetimes: drover.Lifetimes{P50Seconds: 3, P90Seconds: 60, P99Seconds: 1800, At: o.now, Samples: 500},
		}
	}
	for name := range o.hosts {
		g.hosts[name] = drover.HostSignals{Host: name, At: o.now, CPUFreeShare: r(0.6), EncodeBytesPerSecond: r(3e8)}
	}
	for _, l := range o.links {
		way := way{l.A, l.B}
		seen := drover.LinkSignals{Link: l.Name, From: l.A, To: l.B, At: o.now, RTTMillis: r(66), LossShare: r(0.0001), CapacityBPS: r(622e6), FreeBPS: r(400e6)}
		for h := range 168 {
			seen.Week = append(seen.Week, drover.LinkHour{Hour: h, Samples: 50, RTTMillis: 66, FreeBPS: 3e8 + 1e6*float64(h)})
		}
		g.ways[way] = seen
	}
	o.seen = g
	o.model = forecast.New(nil, o.now)
	var history []drover.Move
	for i := range 200 {
		m := drover.Move{Method: drover.Methods()[i%8], State: drover.MoveDone, From: drover.Place{Site: "site0", Host: "host-site0"}, Ended: o.now.Add(-time.Duration(i) * time.Hour)}
		in := forecast.Input{Now: o.now, Method: m.Method, VM: o.vms[i%len(o.vms)], From: m.From, To: drover.Place{Site: "site1"}}
		f := o.model.Forecast(in)
		m.Forecast = &f
		m.Measured = drover.Figures{TotalSeconds: new(1.2 * f.Points["total_s"]), WireBytes: new(int64(f.Points["wire_bytes"])), PauseMillis: new(300.0)}
		history = append(history, m)
	}
	o.model = forecast.New(history, o.now)
}

// BenchmarkAdviseVM is one VM, eight methods and three sites, with the forecasts,
// all of it observed.
func BenchmarkAdviseVM(b *testing.B) {
	s, o := manyVMs(1)
	observed(s, o)
	for b.Loop() {
		for _, site := range o.order[1:] {
			advisor.Advise(s.question(o, o.vms[0], drover.Place{Site: site}), o.policy)
		}
	}
}

// BenchmarkAdviseFleet is ten thousand VMs and one site, with the forecasts.
func BenchmarkAdviseFleet(b *testing.B) {
	s, o := manyVMs(10_000)
	observed(s, o)
	for b.Loop() {
		for _, v := range o.vms {
			short(advisor.Advise(s.question(o, v, drover.Place{Site: "site1"}), o.policy))
		}
	}
}

// What an inventory can tell decides what is feasible.
func TestQuickChecks(t *testing.T) {
	s, o := manyVMs(1)
	to := drover.Place{Site: "site1"}
	advise := func() drover.Advice { return advisor.Advise(s.question(o, o.vms[0], to), o.policy) }
	if a := advise(); a.Method != drover.Route {
		t.Errorf("advised %s between segments: %q", a.Method, a.Reasons)
	}
	o.segments[0].Joined = true
	if a := advise(); a.Method != drover.Live {
		t.Errorf("advised %s inside one segment: %q", a.Method, a.Reasons)
	}
	o.segments[0].Joined = false
	o.edged["site1"] = false
	if a := advise(); a.Method != drover.Stay || a.Of(drover.Route).Feasible || a.Of(drover.Stretch).Feasible {
		t.Errorf("advised %s without an edge", a.Method)
	}
	h := o.roomiest["site1"]
	h.MemoryFreeBytes = drover.GiB
	o.roomiest["site1"] = h
	if a := advise(); a.Of(drover.Cold).Feasible {
		t.Error("cold is feasible without memory")
	}
}

func TestNeedsByLabel(t *testing.T) {
	s, o := manyVMs(1)
	s.cfg.Advice.Defaults = []NeedsConfig{
		{Requirements: map[string]string{"keep-sessions": "yes", "max-pause": "1s"}},
		{Label: "tier=batch", Requirements: map[string]string{"keep-sessions": "no"}},
		{Label: "tier=db", Requirements: map[string]string{"max-pause": "100ms"}},
	}
	vm := o.vms[0]
	vm.Labels, vm.Requirements = map[string]string{"tier": "batch"}, nil
	v := s.settle(vm, drover.KeptRequirements{Values: map[string]string{"max-pause": "2s"}})
	want := []drover.StatedRequirement{
		{Name: "keep-sessions", Value: "no", Source: "label tier=batch"}, {Name: "max-pause", Value: "2s", Source: "drover"},
	}
	if len(v.Stated) != 2 || v.Stated[0] != want[0] || v.Stated[1] != want[1] {
		t.Errorf("%+v, want %+v", v.Stated, want)
	}
}
