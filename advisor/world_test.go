package advisor_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/advisor"
	"github.com/drover-vm/drover/forecast"
	"github.com/drover-vm/drover/lab/files"
	"github.com/drover-vm/drover/lab/labfile"
)

// idle are the signals of a small guest that does next to nothing, as they were
// seen in the lab: under 1 MB/s rewritten, of 96 MiB two thirds zeros.
func idle(name string, at time.Time) drover.Signals {
	seen := func(v float64) drover.Reading { return drover.Reading{Value: v, At: at, Samples: 256} }
	return drover.Signals{
		VM: name, At: at, MemoryBytes: seen(96 << 20), ZeroShare: seen(0.66), CompressedShare: seen(0.35),
		Dirty:              drover.DirtyCurve{At: at, Samples: 8, Points: []drover.DirtyPoint{{WindowSeconds: 0.1, Bytes: 60e3}, {WindowSeconds: 1, Bytes: 200e3}, {WindowSeconds: 10, Bytes: 700e3}}},
		DiskAllocatedBytes: seen(4 << 20), DiskDistinctBytesPerSecond: seen(10e3), Sessions: seen(4),
		Lifetimes: drover.Lifetimes{P50Seconds: 1, P90Seconds: 3, P99Seconds: 8, At: at, Samples: 200},
	}
}

// The ready world lab says of each guest what is right for it.
func TestWorldLab(t *testing.T) {
	raw, ok := files.Ready("world")
	if !ok {
		t.Fatal("there is no ready lab world")
	}
	lab, err := labfile.Parse("world.yaml", raw)
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(lab)
	model := forecast.New(nil, now)
	judged, methods := 0, map[string]bool{}
	for i := range lab.Guests {
		g := &lab.Guests[i]
		if g.Advice == nil {
			continue
		}
		judged, methods[g.Advice.Method] = judged+1, true
		t.Run(g.Name, func(t *testing.T) {
			a := advisor.Advise(w.question(g, model), policy())
			if string(a.Method) != g.Advice.Method {
				t.Errorf("advised %s, the file says %s because %s:\n%s", a.Method, g.Advice.Method, g.Advice.Because, strings.Join(a.Reasons, "\n"))
			}
			wellFormed(t, a)
		})
	}
	if judged < 12 || len(methods) != 9 {
		t.Errorf("%d guests with an advice, %d methods among them: want at least 12, and all nine", judged, len(methods))
	}
}

// world is a lab file as the adviser sees it.
type world struct {
	lab   *labfile.File
	sites map[string]drover.Site
	at    map[string]string // guest to its site
}

func newWorld(lab *labfile.File) world {
	w := world{lab: lab, sites: map[string]drover.Site{}, at: map[string]string{}}
	hosts := map[string]string{}
	for _, s := range lab.Sites {
		w.sites[s.Name] = drover.Site{Name: s.Name, Country: s.Country, Latitude: s.Location.Lat, Longitude: s.Location.Lon}
		for _, h := range s.Hosts {
			hosts[h.Name] = s.Name
		}
	}
	for _, g := range lab.Guests {
		w.at[g.Name] = hosts[g.Host]
	}
	return w
}

func (w world) question(g *labfile.Guest, model *forecast.Model) advisor.Question {
	vm := drover.VM{
		Name: g.Name, UUID: g.Name, Host: g.Host, Site: w.at[g.Name], State: drover.VMRunning, VCPUs: 1, MemoryBytes: drover.Bytes(g.Memory),
		Disks: []drover.Disk{{Target: "vda", VirtualBytes: drover.Bytes(g.Disk.Size), AllocatedBytes: 4 * drover.MiB}},
	}
	if !g.Starts() {
		vm.State = drover.VMOff
	}
	q := advisor.Question{
		Now: now, VM: vm, From: w.sites[vm.Site], To: w.sites[g.Advice.To], Sites: w.at, Forecasts: map[drover.Method]drover.Forecast{},
		Needs:  drover.SettleRequirements(g.Name, drover.RequirementLayer{Source: "metadata", Values: g.Requirements}),
		Joined: w.lab.Segment(g.Segment).IsJoined() && slices.Contains(w.lab.Segment(g.Segment).Sites, g.Advice.To),
	}
	for i := range w.lab.Links {
		l := &w.lab.Links[i]
		link := drover.Link{Name: l.Name, A: l.A, B: l.B, Rate: drover.BitRate(l.Rate), RTTMillis: 2 * float64(l.OneWay()) / float64(time.Millisecond)}
		if link.Joins(vm.Site, q.To.Name) {
			q.Link, q.Way = &link, forecast.MeasuredLink(link, vm.Site, q.To.Name, now)
		}
	}
	for _, m := range drover.Methods() {
		q.Forecasts[m] = model.Forecast(forecast.Input{
			Now: now, Method: m, VM: vm, Signals: idle(g.Name, now), From: drover.Place{Site: vm.Site, Host: vm.Host},
			To: drover.Place{Site: q.To.Name, Host: "h"}, Link: q.Way,
		})
	}
	return q
}
