package forecast_test

import (
	"math"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/forecast"
)

// plain is a VM all of whose memory crosses as it is, over a link of a rate.
func plain(memory drover.Bytes, bps float64, dirty ...drover.DirtyPoint) forecast.Input {
	at := func(v float64) drover.Reading { return drover.Reading{Value: v, At: now, Samples: 1 << 20} }
	return forecast.Input{
		Now: now, Method: drover.Live, From: drover.Place{Site: "a", Host: "a1"}, To: drover.Place{Site: "b", Host: "b1"},
		VM: drover.VM{Name: "v", MemoryBytes: memory, Accelerator: "kvm"}, Source: drover.Host{CPUs: 4},
		Signals: drover.Signals{
			ZeroShare: at(0), KnownShare: map[string]drover.Reading{"b": at(0)}, CompressedShare: at(1), ResentShare: at(1),
			Dirty: drover.DirtyCurve{At: now, Points: dirty}, NetworkRxBPS: at(3e6), NetworkTxBPS: at(11e6),
		},
		Sender: drover.HostSignals{EncodeBytesPerSecond: at(1e10)},
		Link:   drover.LinkSignals{CapacityBPS: at(bps), RTTMillis: at(10)},
	}
}

// TestHotAndCold: an in-memory store of 2 GiB whose hot 10 MB are written over and
// over. The plain geometric model takes that for a rate and sees no end; the curve
// does.
func TestHotAndCold(t *testing.T) {
	in := plain(2*drover.GiB, 500e6,
		drover.DirtyPoint{WindowSeconds: 0.1, Bytes: 10e6}, drover.DirtyPoint{WindowSeconds: 1, Bytes: 10e6}, drover.DirtyPoint{WindowSeconds: 10, Bytes: 11e6})
	f := forecast.New(nil, now).Forecast(in)
	sent := float64(2*drover.GiB) * 8 / 500e6
	if got := f.Points["total_s"]; got < sent || got > 1.35*sent+5 {
		t.Errorf("total %v s, the first round alone is %.0f s", got, sent)
	}
	if !f.Convergence.Will {
		t.Errorf("convergence: %+v", *f.Convergence)
	}
}

// TestDoesNotConverge: the guest writes more than the link carries. Each remedy
// with a figure does help.
func TestDoesNotConverge(t *testing.T) {
	in := plain(4*drover.GiB, 100e6,
		drover.DirtyPoint{WindowSeconds: 0.1, Bytes: 4e6}, drover.DirtyPoint{WindowSeconds: 1, Bytes: 38e6}, drover.DirtyPoint{WindowSeconds: 10, Bytes: 370e6})
	in.Link.Week = []drover.LinkHour{{Hour: (drover.HourOfWeek(now) + 16) % drover.HoursOfWeek, FreeBPS: 5e9, Samples: 4}}
	f := forecast.New(nil, now).Forecast(in)
	c := f.Convergence
	if c.Will || c.Probability > 0.1 {
		t.Fatalf("convergence: %+v", *c)
	}
	seen := map[drover.RemedyKind]bool{}
	for _, r := range c.Remedies {
		seen[r.Kind] = true
		if r.Detail == "" {
			t.Errorf("%s says nothing", r.Kind)
		}
		better := in
		switch r.Kind {
		case drover.RemedyBandwidth:
			better.Link.CapacityBPS.Value += float64(r.Rate)
			less := in
			less.Link.CapacityBPS.Value += float64(r.Rate) / 2
			if forecast.New(nil, now).Forecast(less).Convergence.Will {
				t.Errorf("half of %v more would do too", r.Rate)
			}
		case drover.RemedyPause:
			better.Terms.MaxPause = time.Duration(r.PauseMillis * 1e6)
		default:
			continue
		}
		if g := forecast.New(nil, now).Forecast(better).Convergence; !g.Will {
			t.Errorf("%s (%s) does not help: %+v", r.Kind, r.Detail, *g)
		}
	}
	for _, k := range []drover.RemedyKind{drover.RemedyQuietHour, drover.RemedyBandwidth, drover.RemedyThrottle, drover.RemedyPostCopy} {
		if !seen[k] {
			t.Errorf("%s is not among the remedies: %+v", k, c.Remedies)
		}
	}
}

// TestDrain: the residual lives of sessions that are open now, against what is
// known of their distributions.
func TestDrain(t *testing.T) {
	at := drover.Reading{Value: 200, At: now}
	lost := func(p50, p90, p99 float64, cap time.Duration) float64 {
		in := plain(drover.GiB, 1e9)
		in.Method, in.Signals.Sessions, in.Terms.DrainCap = drover.Redirect, at, cap
		in.Signals.Lifetimes = drover.Lifetimes{P50Seconds: p50, P90Seconds: p90, P99Seconds: p99, At: now, Samples: 1000}
		return forecast.New(nil, now).Forecast(in).Points["sessions_lost"]
	}
	// Exponential lives of 10 s on average have no memory: after t the share of
	// e^(-t/10) is left.
	q := func(p float64) float64 { return -10 * math.Log(1-p) }
	for _, s := range []float64{5, 20, 40} {
		got, want := lost(q(.5), q(.9), q(.99), time.Duration(s*float64(time.Second))), 200*math.Exp(-s/10)
		if got < 0.9*want-1 || got > 1.35*want+2 { // the assumed tail is heavier
			t.Errorf("after %v s %.1f of 200 are left, want about %.1f", s, got, want)
		}
	}
	// A heavy tail (Pareto with exponent 1.2) hardly ends.
	h := func(p float64) float64 { return math.Pow(1-p, -1/1.2) }
	if got := lost(h(.5), h(.9), h(.99), 10*time.Minute); got < 30 {
		t.Errorf("of a heavy tail %.1f of 200 are left after ten minutes", got)
	}
}

// TestNotice: what lasts after a move.
func TestNotice(t *testing.T) {
	m := forecast.New(nil, now)
	in := plain(drover.GiB, 1e9)
	in.VM.Disks = []drover.Disk{{Target: "vda", Shared: true}}
	in.Signals.DiskReadBytesPerSecond = drover.Reading{Value: 1e6, At: now}
	in.Signals.DiskWriteBytesPerSecond = drover.Reading{Value: 0.5e6, At: now}
	in.Method = drover.Stretch
	f := m.Forecast(in)
	if f.Points["hairpin_bps"] != 14e6 || f.Points["extra_rtt_ms"] != 10 || f.Points["remote_io_bps"] != 12e6 {
		t.Errorf("stretch: %v", f.Points)
	}
	in.To.Site = "a"
	if f = m.Forecast(in); f.Points["hairpin_bps"] != 0 || f.Points["remote_io_bps"] != 0 {
		t.Errorf("inside a site: %v", f.Points)
	}
	in.Method = drover.Stay
	for _, v := range m.Forecast(in).Each() {
		if v.Value == nil || v.Value.P90 != 0 {
			t.Errorf("to stay costs %s %+v", v.Name, v.Value)
		}
	}
}

// TestRemaining: with half of it done at the rate it has, about half is left, and
// a move that is late is not foretold to end in the past.
func TestRemaining(t *testing.T) {
	m := drover.Move{
		State: drover.MoveRunning, Steps: []drover.StepRecord{{Started: now.Add(-10 * time.Second)}},
		Forecast: &drover.Forecast{TotalSeconds: &drover.Range{P10: 16, P50: 20, P90: 26}},
	}
	blind := forecast.Remaining(m, now)
	if blind == nil || blind.P50 < 8 || blind.P50 > 12 {
		t.Fatalf("after 10 of about 20 s: %+v", blind)
	}
	if late := forecast.Remaining(m, now.Add(40*time.Second)); late.P50 <= 0 || late.P10 < 0 {
		t.Errorf("when it is late: %+v", *late)
	}
	m.Progress = &drover.Progress{DoneBytes: 90e6, TotalBytes: 100e6, Rate: 80e6, Updated: now}
	near := forecast.Remaining(m, now)
	if near.P50 > 5 || near.P90-near.P10 >= blind.P90-blind.P10 {
		t.Errorf("with 1 s of bytes left: %+v, without progress %+v", *near, *blind)
	}
	m.State = drover.MoveDone
	if forecast.Remaining(m, now) != nil {
		t.Error("something remains of a move that has ended")
	}
}

// TestGeometric: the textbook's sum.
func TestGeometric(t *testing.T) {
	in := plain(drover.GiB, 800e6, drover.DirtyPoint{WindowSeconds: 1, Bytes: 50e6})
	got := *forecast.Geometric(in).TotalSeconds
	want := float64(drover.GiB) / (100e6 - 50e6)
	if math.Abs(got-want)/want > 0.05 {
		t.Errorf("%.2f s, want about V/(B-D) = %.2f s", got, want)
	}
	simple := *forecast.MemoryOverBandwidth(in).TotalSeconds
	if want := float64(drover.GiB) / 100e6; math.Abs(simple-want) > 0.01 {
		t.Errorf("%.2f s, want V/B = %.2f s", simple, want)
	}
}
