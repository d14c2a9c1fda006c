package forecast

import (
	"math"
	"testing"
	"time"

	"github.com/drover-vm/drover"
)

// still is a guest that writes little, three quarters of it known, on a link much
// slower than the host.
func still(bytes float64) rounds {
	return rounds{
		first: bytes, before: 40e6, after: 10e6, known: 0.75, front: 150e6,
		dirty: dirty{at: []float64{0}, bytes: []float64{0}, hot: 1e5, period: 1, most: bytes, scale: 1}, limit: 0.25, most: 1,
	}
}

// TestOpeningOrder: what lies in front goes fast and what lies behind slowly, and
// together they take what the mean says.
func TestOpeningOrder(t *testing.T) {
	o := still(100e6).opening()
	if took := o.lasts(100e6); math.Abs(took-2.5) > 1e-6 {
		t.Errorf("the round takes %v s, want 2.5", took)
	}
	if front := o.lasts(100e6) - o.lasts(25e6); math.Abs(front-0.5) > 1e-6 {
		t.Errorf("75 MB in front take %v s, want 0.5", front)
	}
	for _, left := range []float64{100e6, 60e6, 25e6, 3e6} {
		for _, took := range []float64{0.1, 0.4, 1, 9} {
			if rest := o.after(left, took); math.Abs(o.lasts(left)-o.lasts(rest)-min(took, o.lasts(left))) > 1e-6 {
				t.Errorf("of %v MB %v MB are left after %v s", left/1e6, rest/1e6, took)
			}
		}
	}
	mixed := still(100e6)
	mixed.known = 0
	if got := mixed.opening().lasts(40e6); math.Abs(got-1) > 1e-6 {
		t.Errorf("without an order 40 MB take %v s, want 1", got)
	}
}

// TestSmallGuestEndsEarly: a small guest's new pages, behind its known ones, are left
// to the pause because those before them went fast; a big one's are not, since there
// are more of them than the pause would hold at any rate.
func TestSmallGuestEndsEarly(t *testing.T) {
	small, big := still(100e6).run(), still(2000e6).run()
	if small.still < 1.5 || !small.ended {
		t.Errorf("a small guest stands still for %.2f s (%+v), want the two seconds that 25 MB take", small.still, small)
	}
	if big.still > 0.4 || !big.ended {
		t.Errorf("a big guest stands still for %.2f s, more than the pause that was asked for", big.still)
	}
	if all := small.seconds + small.still; math.Abs(all-2.5) > 0.2 {
		t.Errorf("the small guest's rounds and pause are %.2f s, want about the 2.5 that its pages take", all)
	}
}

// TestZerosWait: zeros that have not come yet wait, to a hypervisor, so fewer other
// pages may.
func TestZerosWait(t *testing.T) {
	none, half := still(100e6), still(100e6)
	half.zeros = 0.5
	if a, b := none.opening().fits(0.5), half.opening().fits(0.5); math.Abs(b-a/2) > 1 {
		t.Errorf("%.1f MB fit, and %.1f with as many zeros; want half", a/1e6, b/1e6)
	}
}

// TestOrderWidensThePause: where it is the order of the pages that decides on the pause,
// the pause is less sure, and nothing else is.
func TestOrderWidensThePause(t *testing.T) {
	now := time.Date(2026, 3, 2, 12, 0, 0, 0, time.UTC)
	spreads := func(memory drover.Bytes) map[string]float64 {
		r := func(v float64) drover.Reading { return drover.Reading{Value: v, At: now, Samples: 1 << 20} }
		return New(nil, now).Forecast(Input{
			Now: now, Method: drover.Live, From: drover.Place{Site: "a", Host: "a1"}, To: drover.Place{Site: "b", Host: "b1"},
			VM: drover.VM{Name: "v", MemoryBytes: memory}, Link: drover.LinkSignals{FreeBPS: r(50e6), RTTMillis: r(10)},
			Sender: drover.HostSignals{EncodeBytesPerSecond: r(150e6)},
			Signals: drover.Signals{
				ZeroShare: r(0), KnownShare: map[string]drover.Reading{"b": r(0.8)}, CompressedShare: r(0.5),
				HotBytes: r(1e5), HotSeconds: r(1), ColdBytesPerSecond: r(1e3),
			},
		}).Spreads
	}
	small, big := spreads(128<<20), spreads(8<<30)
	if small["pause_ms"] < 2*big["pause_ms"] {
		t.Errorf("the pause's spread is %.2f for a small guest, %.2f for a big one", small["pause_ms"], big["pause_ms"])
	}
	if small["total_s"] > 1.5*big["total_s"] {
		t.Errorf("the time's spread is %.2f for a small guest, %.2f for a big one", small["total_s"], big["total_s"])
	}
}

// TestSentAgainUnchanged: what was written before it was sent is sent again, but as
// what the destination has.
func TestSentAgainUnchanged(t *testing.T) {
	r := still(400e6)
	r.known, r.before, r.limit = 0, 40e6, 0.06
	r.dirty.at, r.dirty.bytes = []float64{0, 1, 3}, []float64{0, 5e6, 15e6}
	r.dirty.hot, r.dirty.period = 20e6, 2
	o := r.run()
	if o.again+o.last < 18e6 || o.changed > 0.6*(o.again+o.last) {
		t.Errorf("%.1f MB are sent again, %.1f of them changed; want all that was written, mostly unchanged", (o.again+o.last)/1e6, o.changed/1e6)
	}
}

// TestHostSpeedIsLearned: how fast a host is shows in moves that a link holds back
// as well, and whether their pages compress well or not.
func TestHostSpeedIsLearned(t *testing.T) {
	const host, link, rtt = 120e6, 160e6, 0.02
	for _, left := range []float64{0.05, 0.2, 0.45} {
		at := host / (1 + sendCost*left)
		rate := both(carried(link, rtt)/8/left, at)
		const guest = 200e6
		m := told{
			Move: drover.Move{}, points: map[string]float64{pointLink: link, pointRTT: rtt},
			path: drover.PathFigures{Memory: drover.PathPhase{Seconds: guest / rate, GuestBytes: guest, WireBytes: drover.Bytes(guest * left), Kinds: drover.PathKinds{
				Compressed: drover.PathCount{GuestBytes: guest, WireBytes: drover.Bytes(guest * left)},
			}}},
		}
		got, ok := m.encoded()
		if !ok || math.Abs(got-host) > 0.02*host {
			t.Errorf("pages of which %v is left: a host of %.0f MB/s shows %.1f (%v)", left, host/1e6, got/1e6, ok)
		}
	}
}

// TestEndingIsLearned: what comes after the last byte is the newest moves' middle.
func TestEndingIsLearned(t *testing.T) {
	now := time.Date(2026, 3, 2, 12, 0, 0, 0, time.UTC)
	in := Input{
		Now: now, Method: drover.Live, VM: drover.VM{Name: "v", MemoryBytes: drover.GiB}, From: drover.Place{Site: "a", Host: "a1"}, To: drover.Place{Site: "b", Host: "b1"},
		Link: drover.LinkSignals{CapacityBPS: drover.Reading{Value: 1e9, At: now}, RTTMillis: drover.Reading{Value: 10, At: now}},
	}
	before := New(nil, now).Forecast(in)
	pause, total := 1500.0, 30.0
	m := drover.Move{
		Method: drover.Live, State: drover.MoveDone, From: in.From, To: in.To, Ended: now, Forecast: &before,
		Measured: drover.Figures{TotalSeconds: &total, PauseMillis: &pause, Path: &drover.PathFigures{Switchover: drover.PathPhase{Seconds: 1.2}}},
	}
	m.Forecast = &drover.Forecast{Points: map[string]float64{pointLink: 1e9, pointRTT: 0.01}}
	var history []drover.Move
	for range 12 {
		history = append(history, m)
	}
	after := New(history, now).Forecast(in)
	if got := after.Points["pause_ms"] - before.Points["pause_ms"]; math.Abs(got-0.75*(1490-1e3*finish)) > 5 {
		t.Errorf("after moves whose end took 1.49 s besides bytes and round trips the pause is %.0f ms longer", got)
	}
}
