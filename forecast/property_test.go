package forecast_test

import (
	"encoding/json"
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/forecast"
)

var (
	now     = time.Date(2026, 3, 4, 10, 30, 0, 0, time.UTC)
	methods = []drover.Method{
		drover.Live, drover.Stretch, drover.Route, drover.Renumber, drover.Redirect, drover.Warm, drover.Cold, drover.Spawn, drover.Stay, "nonsense",
	}
)

// anything is any number, likely ones and impossible ones.
func anything() *rapid.Generator[float64] {
	return rapid.OneOf(
		rapid.Float64Range(0, 1), rapid.Float64Range(0, 1e12), rapid.Float64(),
		rapid.SampledFrom([]float64{math.NaN(), math.Inf(1), math.Inf(-1), 0, -1, math.MaxFloat64, 5e-324}),
	)
}

func reading() *rapid.Generator[drover.Reading] {
	return rapid.Custom(func(t *rapid.T) drover.Reading {
		r := drover.Reading{Value: anything().Draw(t, "value"), Samples: rapid.Int64().Draw(t, "samples"), Observed: rapid.Bool().Draw(t, "observed")}
		switch rapid.IntRange(0, 3).Draw(t, "age") {
		case 0: // not known
		case 1:
			r.At = now
		case 2:
			r.At = now.Add(time.Duration(rapid.Int64().Draw(t, "off")))
		case 3:
			r.At = time.Unix(rapid.Int64().Draw(t, "unix"), 0)
		}
		return r
	})
}

func signals() *rapid.Generator[drover.Signals] {
	return rapid.Custom(func(t *rapid.T) drover.Signals {
		r := func(name string) drover.Reading { return reading().Draw(t, name) }
		s := drover.Signals{
			MemoryBytes: r("memory"), MemoryUsedBytes: r("used"), ZeroShare: r("zero"), CompressedShare: r("compressed"), ResentShare: r("resent"),
			KnownShare: map[string]drover.Reading{"b": r("known")}, DiskKnownShare: map[string]drover.Reading{"b": r("disk known")},
			HotBytes: r("hot"), HotSeconds: r("period"), ColdBytesPerSecond: r("cold"),
			DiskAllocatedBytes: r("disk"), DiskCompressedShare: r("disk compressed"), DiskReadBytesPerSecond: r("disk read"),
			DiskWriteBytesPerSecond: r("disk write"), DiskDistinctBytesPerSecond: r("disk distinct"),
			NetworkRxBPS: r("rx"), NetworkTxBPS: r("tx"), CPUShare: r("cpu"), Sessions: r("sessions"),
			Lifetimes: drover.Lifetimes{P50Seconds: anything().Draw(t, "p50"), P90Seconds: anything().Draw(t, "p90"), P99Seconds: anything().Draw(t, "p99"), At: now, Samples: rapid.Int64Range(0, 9).Draw(t, "ended")},
		}
		points := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) drover.DirtyPoint {
			return drover.DirtyPoint{WindowSeconds: anything().Draw(t, "window"), Bytes: anything().Draw(t, "bytes")}
		}), 0, 5).Draw(t, "curve")
		s.Dirty = drover.DirtyCurve{Points: points, At: r("curve").At}
		return s
	})
}

func input() *rapid.Generator[forecast.Input] {
	return rapid.Custom(func(t *rapid.T) forecast.Input {
		duration := func(name string) time.Duration { return time.Duration(rapid.Int64().Draw(t, name)) }
		in := forecast.Input{
			Now: now, Method: rapid.SampledFrom(methods).Draw(t, "method"), Signals: signals().Draw(t, "signals"),
			From: drover.Place{Site: "a", Host: "a1"}, To: drover.Place{Site: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "to"), Host: "b1"},
			Source: drover.Host{CPUs: rapid.Int().Draw(t, "cpus")},
			Link: drover.LinkSignals{
				RTTMillis: reading().Draw(t, "rtt"), LossShare: reading().Draw(t, "loss"),
				CapacityBPS: reading().Draw(t, "capacity"), FreeBPS: reading().Draw(t, "free"),
				Week: []drover.LinkHour{{Hour: rapid.Int().Draw(t, "hour"), FreeBPS: anything().Draw(t, "hour free"), Samples: rapid.Int64().Draw(t, "hour samples")}},
			},
			Sender: drover.HostSignals{EncodeBytesPerSecond: reading().Draw(t, "encode"), CPUFreeShare: reading().Draw(t, "cpu free")},
			Terms: forecast.Terms{
				Bandwidth: drover.BitRate(rapid.Int64().Draw(t, "bandwidth")), MaxPause: duration("pause"), MaxDowntime: duration("downtime"),
				NoThrottle: rapid.Bool().Draw(t, "no throttle"), DrainCap: duration("cap"), Boot: duration("boot"), Shutdown: duration("shutdown"),
			},
		}
		in.VM = drover.VM{
			Name: "v", MemoryBytes: drover.Bytes(rapid.Int64().Draw(t, "vm memory")), Accelerator: rapid.SampledFrom([]string{"", "kvm", "tcg"}).Draw(t, "accelerator"),
			Disks: []drover.Disk{{AllocatedBytes: drover.Bytes(rapid.Int64().Draw(t, "allocated")), Shared: rapid.Bool().Draw(t, "shared")}},
		}
		if rapid.Bool().Draw(t, "priced") {
			in.Terms.PricePerGiB = new(anything().Draw(t, "price"))
		}
		return in
	})
}

// history is moves with any forecasts and any truths.
func history() *rapid.Generator[[]drover.Move] {
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) drover.Move {
		m := drover.Move{Method: rapid.SampledFrom(methods).Draw(t, "method"), State: drover.MoveDone, Ended: now.Add(time.Duration(rapid.Int64().Draw(t, "ended")))}
		m.Forecast = &drover.Forecast{
			Points: map[string]float64{"total_s": anything().Draw(t, "point"), "wire_bytes": anything().Draw(t, "bytes"), "link_bps": anything().Draw(t, "link")},
			Spreads: map[string]float64{
				"total_s": anything().Draw(t, "spread"),
			},
			TotalSeconds: &drover.Range{P10: anything().Draw(t, "p10"), P50: anything().Draw(t, "p50"), P90: anything().Draw(t, "p90")},
		}
		m.Measured = drover.Figures{TotalSeconds: new(anything().Draw(t, "truth")), WireBytes: new(rapid.Int64().Draw(t, "wire"))}
		m.Measured.Path = &drover.PathFigures{Memory: drover.PathPhase{Seconds: anything().Draw(t, "seconds"), GuestBytes: drover.Bytes(rapid.Int64().Draw(t, "guest"))}}
		return m
	}), 0, 20)
}

func checkRange(t *rapid.T, name string, r *drover.Range) {
	if r == nil {
		return
	}
	for _, v := range []float64{r.P10, r.P50, r.P90} {
		if math.IsNaN(v) || math.IsInf(v, 0) || v < 0 {
			t.Fatalf("%s is %+v", name, *r)
		}
	}
	if r.P10 > r.P50 || r.P50 > r.P90 {
		t.Fatalf("%s is not in order: %+v", name, *r)
	}
}

func check(t *rapid.T, f drover.Forecast) {
	for _, v := range f.Each() {
		checkRange(t, v.Name, v.Value)
	}
	if c := f.Convergence; c != nil && !(c.Probability >= 0 && c.Probability <= 1) {
		t.Fatalf("convergence: %+v", *c)
	}
	if _, err := json.Marshal(f); err != nil { // also finds what is no number
		t.Fatal(err)
	}
}

// anyForecast: whatever is known, and whatever has been, a forecast is in order.
func anyForecast(t *rapid.T) {
	moves := history().Draw(t, "history")
	m := forecast.New(moves, now)
	f := m.Forecast(input().Draw(t, "input"))
	check(t, f)
	check(t, forecast.New(nil, now).Recalibrate(f, drover.Place{Site: "a"}, drover.Place{Site: "b"}))
	if len(moves) > 0 {
		check(t, m.Recalibrate(*moves[0].Forecast, moves[0].From, moves[0].To))
	}
	for _, a := range forecast.Accuracy(moves, 24*time.Hour) {
		for _, v := range []float64{a.Bias, a.MedianError, a.P90Error, a.Coverage} {
			if math.IsNaN(v) || math.IsInf(v, 0) {
				t.Fatalf("accuracy: %+v", a)
			}
		}
	}
	run := drover.Move{
		State: drover.MoveRunning, Forecast: &f,
		Steps:    []drover.StepRecord{{Started: now.Add(time.Duration(rapid.Int64().Draw(t, "began")))}},
		Progress: &drover.Progress{DoneBytes: drover.Bytes(rapid.Int64().Draw(t, "done")), TotalBytes: drover.Bytes(rapid.Int64().Draw(t, "total")), Rate: drover.BitRate(rapid.Int64().Draw(t, "rate")), Updated: now},
	}
	checkRange(t, "remaining", forecast.Remaining(run, now))
	if len(moves) > 0 {
		run.Forecast = moves[0].Forecast
		checkRange(t, "remaining", forecast.Remaining(run, now))
	}
	for _, b := range []forecast.Baseline{forecast.Geometric(input().Draw(t, "input")), forecast.MemoryOverBandwidth(input().Draw(t, "input"))} {
		for name, v := range b.Figures() {
			checkRange(t, name, &drover.Range{P10: v, P50: v, P90: v})
		}
	}
}

func TestAnyForecast(t *testing.T) { rapid.Check(t, anyForecast) }

func FuzzAnyForecast(f *testing.F) { f.Fuzz(rapid.MakeFuzz(anyForecast)) }

// usual is a VM of which everything is known.
func usual(t *rapid.T) forecast.Input {
	at := func(v float64) drover.Reading { return drover.Reading{Value: v, At: now, Samples: 1000} }
	rate := rapid.Float64Range(1e4, 2e8).Draw(t, "dirty rate")
	set := rapid.Float64Range(1e6, 1e9).Draw(t, "working set")
	return forecast.Input{
		Now: now, Method: rapid.SampledFrom([]drover.Method{drover.Live, drover.Stretch, drover.Route, drover.Renumber, drover.Warm, drover.Cold, drover.Redirect}).Draw(t, "method"),
		From: drover.Place{Site: "a", Host: "a1"}, To: drover.Place{Site: "b", Host: "b1"},
		VM:     drover.VM{Name: "v", MemoryBytes: 2 * drover.GiB, Accelerator: "kvm", Disks: []drover.Disk{{AllocatedBytes: drover.Bytes(rapid.Int64Range(0, 1<<32).Draw(t, "disk"))}}},
		Source: drover.Host{CPUs: 4},
		Signals: drover.Signals{
			ZeroShare: at(rapid.Float64Range(0, 0.9).Draw(t, "zero")), KnownShare: map[string]drover.Reading{"b": at(0.2)}, CompressedShare: at(0.4),
			Dirty: drover.DirtyCurve{At: now, Points: []drover.DirtyPoint{
				{WindowSeconds: 0.1, Bytes: min(set, rate/10)}, {WindowSeconds: 1, Bytes: min(set, rate)}, {WindowSeconds: 10, Bytes: min(set, 10*rate)},
			}},
			DiskDistinctBytesPerSecond: at(1e5), Sessions: at(10),
		},
		Link: drover.LinkSignals{CapacityBPS: at(rapid.Float64Range(1e6, 1e10).Draw(t, "link")), RTTMillis: at(rapid.Float64Range(0.1, 150).Draw(t, "rtt"))},
	}
}

// TestMoreBandwidth: a faster link makes no move slower.
func TestMoreBandwidth(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := usual(t)
		m := forecast.New(nil, now)
		before := m.Forecast(in)
		in.Link.CapacityBPS.Value *= rapid.Float64Range(1, 10).Draw(t, "faster")
		after := m.Forecast(in)
		if b, a := before.Points["total_s"], after.Points["total_s"]; a > b*slack {
			t.Fatalf("from %v s to %v s", b, a)
		}
	})
}

// slack is for what the rounds do in steps: one more of them, with the guest
// held back a step less, can end a little earlier.
const slack = 1.10

// TestMoreToSend: more to send is never fewer bytes, nor less time.
func TestMoreToSend(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := usual(t)
		m := forecast.New(nil, now)
		before := m.Forecast(in)
		more := rapid.Float64Range(1, 8).Draw(t, "more")
		if rapid.Bool().Draw(t, "memory") {
			in.VM.MemoryBytes = drover.Bytes(float64(in.VM.MemoryBytes) * more)
		} else {
			in.VM.Disks[0].AllocatedBytes = drover.Bytes(float64(in.VM.Disks[0].AllocatedBytes) * more)
		}
		after := m.Forecast(in)
		for _, figure := range []string{"total_s", "wire_bytes", "guest_bytes"} {
			if b, a := before.Points[figure], after.Points[figure]; a*slack < b {
				t.Fatalf("%s: from %v to %v", figure, b, a)
			}
		}
	})
}

// TestMoreDirty: a guest that writes faster does not send fewer bytes, as long as
// it is not held back.
func TestMoreDirty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := usual(t)
		in.Method, in.Terms.NoThrottle, in.Terms.MaxPause = drover.Live, true, 300*time.Millisecond
		m := forecast.New(nil, now)
		before := m.Forecast(in)
		more := rapid.Float64Range(1, 8).Draw(t, "more")
		for i := range in.Signals.Dirty.Points {
			in.Signals.Dirty.Points[i].Bytes *= more
		}
		after := m.Forecast(in)
		for _, figure := range []string{"total_s", "wire_bytes"} {
			if b, a := before.Points[figure], after.Points[figure]; a*slack < b {
				t.Fatalf("%s: from %v to %v", figure, b, a)
			}
		}
		if after.Convergence.Probability > before.Convergence.Probability+0.01 {
			t.Fatalf("it converges with %v after %v", after.Convergence.Probability, before.Convergence.Probability)
		}
	})
}

// TestLessKnown: a signal that is taken away never makes the range of what
// depends on it narrower, in proportion.
func TestLessKnown(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := usual(t)
		in.Link.CapacityBPS.Value = 100e6
		m := forecast.New(nil, now)
		before := m.Forecast(in)
		figure := 0 // the total
		switch rapid.IntRange(0, 2).Draw(t, "what") {
		case 0:
			in.Link = drover.LinkSignals{}
		case 1:
			in.Link.CapacityBPS = drover.Reading{}
		case 2:
			in.Signals = drover.Signals{}
			figure = 3 // what crosses
		}
		after := m.Forecast(in)
		if len(after.Unknown) <= len(before.Unknown) {
			t.Fatalf("unknown: %q, before %q", after.Unknown, before.Unknown)
		}
		b, a := before.Each()[figure], after.Each()[figure]
		if in.VM.Disks[0].AllocatedBytes > 1<<28 && width(a.Value) < 0.9*width(b.Value) {
			t.Fatalf("%s: %+v after %+v", b.Name, *a.Value, *b.Value)
		}
	})
}

func width(r *drover.Range) float64 { return (r.P90 + 1) / (r.P10 + 1) }

func BenchmarkForecast(b *testing.B) {
	at := func(v float64) drover.Reading { return drover.Reading{Value: v, At: now, Samples: 1000} }
	for _, c := range []struct {
		name string
		rate float64
	}{{"converges", 2e6}, {"does not", 80e6}} {
		in := forecast.Input{
			Now: now, Method: drover.Live, From: drover.Place{Site: "a"}, To: drover.Place{Site: "b"},
			VM: drover.VM{Name: "v", MemoryBytes: 8 * drover.GiB},
			Signals: drover.Signals{ZeroShare: at(0.3), Dirty: drover.DirtyCurve{At: now, Points: []drover.DirtyPoint{
				{WindowSeconds: 0.1, Bytes: c.rate / 10}, {WindowSeconds: 1, Bytes: c.rate}, {WindowSeconds: 10, Bytes: 8 * c.rate},
			}}},
			Link: drover.LinkSignals{CapacityBPS: at(200e6), RTTMillis: at(50)},
		}
		b.Run(c.name, func(b *testing.B) {
			m := forecast.New(nil, now)
			for b.Loop() {
				m.Forecast(in)
			}
		})
	}
}
