package server

import (
	"fmt"
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

// BenchmarkAdviseVM is one VM, eight methods and three sites, with the forecasts.
func BenchmarkAdviseVM(b *testing.B) {
	s, o := manyVMs(1)
	for b.Loop() {
		for _, site := range o.order[1:] {
			advisor.Advise(s.question(o, o.vms[0], drover.Place{Site: site}), o.policy)
		}
	}
}

// BenchmarkAdviseFleet is ten thousand VMs and one site, with the forecasts.
func BenchmarkAdviseFleet(b *testing.B) {
	s, o := manyVMs(10_000)
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
