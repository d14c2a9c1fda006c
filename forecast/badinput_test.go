package forecast_test

import (
	"math"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/forecast"
)

// TestBadInput: what a broken clock, a silent agent or a VM that is off makes of
// the input still gives figures that are numbers, in order, and wider than those of
// an input that holds.
func TestBadInput(t *testing.T) {
	good := plain(2*drover.GiB, 200e6, drover.DirtyPoint{WindowSeconds: 0.1, Bytes: 1e5}, drover.DirtyPoint{WindowSeconds: 1, Bytes: 1e6}, drover.DirtyPoint{WindowSeconds: 10, Bytes: 5e6})
	nan, inf := math.NaN(), math.Inf(1)
	for name, c := range map[string]struct {
		change func(*forecast.Input)
		// wider: the range of the total is wider than that of the good input.
		wider bool
	}{
		"nothing at all":      {func(in *forecast.Input) { *in = forecast.Input{Method: drover.Live} }, true},
		"no clock":            {func(in *forecast.Input) { in.Now = time.Time{} }, false},
		"clock a year back":   {func(in *forecast.Input) { in.Now = in.Now.AddDate(-1, 0, 0) }, false},
		"clock a year ahead":  {func(in *forecast.Input) { in.Now = in.Now.AddDate(1, 0, 0) }, true},
		"link never measured": {func(in *forecast.Input) { in.Link = drover.LinkSignals{} }, true},
		"guest never seen":    {func(in *forecast.Input) { in.Signals = drover.Signals{} }, true},
		"VM is off": {func(in *forecast.Input) {
			in.VM.State, in.Signals = drover.VMOff, drover.Signals{Skipped: "it is off"}
		}, true},
		"no numbers": {func(in *forecast.Input) {
			in.Signals.ZeroShare.Value, in.Signals.CompressedShare.Value = nan, inf
			in.Link.RTTMillis.Value, in.Link.CapacityBPS.Value = nan, nan
			in.Signals.Dirty.Points = []drover.DirtyPoint{{WindowSeconds: nan, Bytes: inf}, {WindowSeconds: -1, Bytes: nan}}
		}, true},
		"less than none": {func(in *forecast.Input) {
			in.Signals.ZeroShare.Value, in.Signals.CompressedShare.Value, in.Link.RTTMillis.Value = -3, -1, -5
			in.VM.MemoryBytes = -1
		}, false},
		"a link of nothing": {func(in *forecast.Input) { in.Link.CapacityBPS.Value = 0 }, false},
	} {
		t.Run(name, func(t *testing.T) {
			in := good
			c.change(&in)
			history := []drover.Move{{
				Method: drover.Live, State: drover.MoveDone, Ended: now.AddDate(50, 0, 0), VMUUID: in.VM.UUID,
				Forecast: &drover.Forecast{Points: map[string]float64{"total_s": nan, "rtt_s": inf, "packed_share": nan, "link_bps": -1}},
				Measured: drover.Figures{TotalSeconds: &nan, PauseMillis: &inf, Path: &drover.PathFigures{
					Memory: drover.PathPhase{Seconds: nan, GuestBytes: 1 << 30}, Disk: drover.PathPhase{GuestBytes: 1 << 30, WireBytes: -1},
				}},
			}}
			f := forecast.New(history, in.Now).Forecast(in)
			for _, v := range f.Each() {
				if r := v.Value; r != nil && !(r.P10 >= 0 && r.P10 <= r.P50 && r.P50 <= r.P90 && r.P90 <= 1e18) {
					t.Errorf("%s: %+v", v.Name, *r)
				}
			}
			for k, v := range f.Points {
				if math.IsNaN(v) || math.IsInf(v, 0) {
					t.Errorf("point %s: %v", k, v)
				}
			}
			if p := f.Convergence.Probability; !(p >= 0 && p <= 1) {
				t.Errorf("it converges with %v", p)
			}
			before := forecast.New(history, good.Now).Forecast(good)
			if c.wider && width(f.TotalSeconds) <= width(before.TotalSeconds) {
				t.Errorf("the total is %+v, no wider than %+v of an input that holds", *f.TotalSeconds, *before.TotalSeconds)
			}
			if c.wider && name != "clock a year ahead" && len(f.Unknown) == 0 {
				t.Error("nothing is said to be unknown")
			}
		})
	}
}
