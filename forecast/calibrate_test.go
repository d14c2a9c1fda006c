package forecast_test

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/forecast"
)

// drawn is a move of some size.
func drawn(random *rand.Rand, at time.Time) forecast.Input {
	r := func(v float64) drover.Reading { return drover.Reading{Value: v, At: at, Samples: 1000} }
	return forecast.Input{
		Now: at, Method: drover.Live, From: drover.Place{Site: "a", Host: "a1"}, To: drover.Place{Site: "b", Host: "b1"},
		VM: drover.VM{Name: "v", MemoryBytes: drover.Bytes(256<<20 + random.Int64N(4<<30))},
		Signals: drover.Signals{
			ZeroShare: r(0.3), KnownShare: map[string]drover.Reading{"b": r(0.1)}, CompressedShare: r(0.5), ResentShare: r(0.4),
			Dirty: drover.DirtyCurve{At: at, Points: []drover.DirtyPoint{{WindowSeconds: 1, Bytes: 1e6}, {WindowSeconds: 10, Bytes: 5e6}}},
		},
		Link: drover.LinkSignals{CapacityBPS: r(50e6 + 400e6*random.Float64()), RTTMillis: r(20)},
	}
}

// TestCoverage lets an installation move that is slower than the models believe by
// a fixed time and a factor, with noise that they know nothing of: after some moves
// the ranges have to hold what they promise, and the middle to be right.
func TestCoverage(t *testing.T) {
	for _, c := range []struct {
		name                  string
		offset, factor, noise float64
		jump                  bool
	}{
		{"as the models say, noisy", 0, 1, 0.25, false},
		{"slower, fixed costs", 8, 1.6, 0.10, false},
		{"much faster", 0, 0.5, 0.05, false},
		{"the clock jumps back", 3, 1.2, 0.15, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			random := rand.New(rand.NewPCG(7, 7))
			at := now
			var history []drover.Move
			inside, n := 0, 0
			var errs []float64
			for i := range 240 {
				at = at.Add(time.Hour)
				if c.jump && i == 120 {
					at = at.Add(-3 * 365 * 24 * time.Hour)
				}
				in := drawn(random, at)
				f := forecast.New(history, at).Forecast(in)
				truth := (c.offset + c.factor*f.Points["total_s"]) * math.Exp(c.noise*random.NormFloat64())
				if i >= 40 {
					n++
					if f.TotalSeconds.Contains(truth) {
						inside++
					}
					errs = append(errs, math.Abs(f.TotalSeconds.P50-truth)/truth)
				}
				history = append(history, drover.Move{Method: drover.Live, State: drover.MoveDone, Ended: at, Forecast: &f, Measured: drover.Figures{TotalSeconds: &truth}})
			}
			if share := float64(inside) / float64(n); share < 0.73 || share > 0.91 {
				t.Errorf("%d of %d truths are between P10 and P90", inside, n)
			}
			sum := 0.0
			for _, e := range errs {
				sum += e
			}
			if mean := sum / float64(len(errs)); mean > c.noise+0.05 {
				t.Errorf("the middle is off by %.3f on average, the noise is %.2f", mean, c.noise)
			}
			for _, a := range forecast.Accuracy(history[40:], 0) {
				if a.Figure == "total_s" && (a.Moves != 200 || math.Abs(a.Coverage-float64(inside)/float64(n)) > 1e-9) {
					t.Errorf("accuracy: %+v, counted %d of %d inside", a, inside, n)
				}
			}
		})
	}
}

// TestNoHistory: without a history the ranges are wide, with one they narrow.
func TestNoHistory(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	in := drawn(random, now)
	blank := forecast.New(nil, now).Forecast(in)
	if w := width(blank.TotalSeconds); w < 1.3 {
		t.Errorf("without a history total_s is %+v", *blank.TotalSeconds)
	}
	in.Signals, in.Link = drover.Signals{}, drover.LinkSignals{}
	ignorant := forecast.New(nil, now).Forecast(in)
	if width(ignorant.TotalSeconds) < 3 || len(ignorant.Unknown) < 4 {
		t.Errorf("knowing nothing total_s is %+v, unknown %q", *ignorant.TotalSeconds, ignorant.Unknown)
	}
	var history []drover.Move
	for range 60 {
		f := forecast.New(history, now).Forecast(drawn(random, now))
		truth := f.Points["total_s"]
		history = append(history, drover.Move{Method: drover.Live, State: drover.MoveDone, Ended: now, Forecast: &f, Measured: drover.Figures{TotalSeconds: &truth}})
	}
	known := forecast.New(history, now).Forecast(drawn(random, now))
	if width(known.TotalSeconds) > 1.2 || known.Calibrated != 60 {
		t.Errorf("after 60 moves that came true total_s is %+v, calibrated on %d", *known.TotalSeconds, known.Calibrated)
	}
}
