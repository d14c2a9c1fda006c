package server

import (
	"math"
	"testing"
	"time"

	"github.com/drover-vm/drover"
)

var learnt = time.Date(2026, 3, 2, 10, 0, 0, 0, time.UTC)

func aReading(v float64, at time.Time, observed bool) drover.Reading {
	return drover.Reading{Value: v, At: at, Samples: 1, Observed: observed}
}

func TestMergeSignals(t *testing.T) {
	later := learnt.Add(time.Minute)
	old := drover.Signals{
		ZeroShare: aReading(0.1, learnt, false), CompressedShare: aReading(0.25, learnt, true), ResentShare: aReading(0.3, learnt, true),
		DiskCompressedShare: aReading(0.2, learnt, true),
		KnownShare:          map[string]drover.Reading{"a": aReading(0.4, learnt, false), "b": aReading(0.5, later, false)},
		Dirty:               drover.DirtyCurve{Points: []drover.DirtyPoint{{WindowSeconds: 1, Bytes: 1}}, At: learnt}, At: learnt,
	}
	v := drover.Signals{
		ZeroShare: aReading(0.6, later, false), CompressedShare: aReading(0.65, later, false), DiskCompressedShare: aReading(0.7, later, false),
		KnownShare: map[string]drover.Reading{"a": aReading(0.8, later, false), "b": aReading(0.9, learnt, false)},
		CPUShare:   aReading(math.NaN(), later, false),
	}
	got := merge(old, v, later)
	for _, c := range []struct {
		what string
		got  drover.Reading
		want float64
	}{
		{"a newer sample", got.ZeroShare, 0.6},
		{"a newer sample of what forecasts correct", got.CompressedShare, 0.65},
		{"what a move has shown", got.DiskCompressedShare, 0.2},
		{"what only a move shows", got.ResentShare, 0.3},
		{"a site's newer share", got.KnownShare["a"], 0.8},
		{"a site's older share", got.KnownShare["b"], 0.5},
		{"what is no number", got.CPUShare, -1},
	} {
		if v := c.got.Or(-1); v != c.want {
			t.Errorf("%s: %v, want %v", c.what, v, c.want)
		}
	}
	if !got.Dirty.Known() || !got.At.Equal(learnt) {
		t.Errorf("%+v", got)
	}
	if got := merge(old, v, learnt.Add(2*learntAge)); got.DiskCompressedShare.Value != 0.7 {
		t.Errorf("what a move has shown long ago still counts: %+v", got.DiskCompressedShare)
	}
	if old.KnownShare["a"].Value != 0.4 {
		t.Error("merging changed what was told before")
	}
}

func TestFree(t *testing.T) {
	r := func(v float64) drover.Reading { return aReading(v, learnt, false) }
	for _, c := range []struct {
		capacity, used drover.Reading
		own, want      float64
	}{
		{r(100e6), r(5e6), 0, 60e6},
		{r(100e6), r(5e6), 30e6, 90e6},
		{r(100e6), r(5e6), 90e6, 100e6}, // counters are older than the moves' figures
		{r(100e6), r(50e6), 0, 0},
		{drover.Reading{}, r(5e6), 0, -1},
		{r(100e6), drover.Reading{}, 0, -1},
	} {
		if got := free(c.capacity, c.used, c.own).Or(-1); got != c.want {
			t.Errorf("of %v, used %v and %v our own: %v is free, want %v", c.capacity.Value, c.used.Value, c.own, got, c.want)
		}
	}
}

func TestLearnVM(t *testing.T) {
	count := func(guest, wire drover.Bytes) drover.PathCount {
		return drover.PathCount{Blocks: int64(guest / 4096), GuestBytes: guest, WireBytes: wire}
	}
	p := drover.PathFigures{
		Disk: drover.PathPhase{Seconds: 10, WireBytes: 100 << 20, Kinds: drover.PathKinds{
			Reference: count(30<<20, 100), Compressed: count(90<<20, 30<<20),
		}},
		Memory: drover.PathPhase{Seconds: 20, GuestBytes: 200 << 20, WireBytes: 50 << 20, CPUSeconds: 2, Kinds: drover.PathKinds{
			Zero: count(100<<20, 10), Compressed: count(60<<20, 15<<20), Raw: count(20<<20, 20<<20), Delta: count(4<<20, 1<<20),
		}},
	}
	var v drover.Signals
	learnVM(&v, p, "south", learnt)
	for _, c := range []struct {
		what string
		got  drover.Reading
		want float64
	}{
		{"compressed", v.CompressedShare, 35.0 / 80},
		{"resent", v.ResentShare, 0.25},
		{"disk compressed", v.DiskCompressedShare, 1.0 / 3},
		{"disk known", v.DiskKnownShare["south"], 0.25},
		{"encoded", encodeRate(p, 2, learnt), 100 << 20},
		{"carried", carriedRate(p, learnt), 8 * 10 << 20},
	} {
		if !c.got.Observed || math.Abs(c.got.Value-c.want) > 1e-6*c.want {
			t.Errorf("%s: %+v, want %v", c.what, c.got, c.want)
		}
	}
	var none drover.Signals
	learnVM(&none, drover.PathFigures{}, "south", learnt)
	if none.CompressedShare.Known() || none.DiskKnownShare != nil || encodeRate(drover.PathFigures{}, 2, learnt).Known() || carriedRate(drover.PathFigures{}, learnt).Known() {
		t.Errorf("an empty move shows %+v", none)
	}
}

// TestUndoneMoveFilledItsLink: what a move sent that was undone is not taken for
// others' use of the link.
func TestUndoneMoveFilledItsLink(t *testing.T) {
	now := learnt
	s := &Server{now: func() time.Time { return now }, fleet: &fleet{}}
	g := newSignals(s)
	links := []drover.Link{{Name: "a-b", A: "a", B: "b", Rate: 80e6}}
	look := func() float64 {
		g.use(links, now)
		g.tookWay(drover.LinkSignals{From: "a", To: "b", RTTMillis: aReading(10, now, false)}, links, nil, now)
		return g.ways[way{"a", "b"}].FreeBPS.Value
	}
	links[0].ABBytes = 1000
	look()
	now = now.Add(20 * time.Second)
	links[0].ABBytes += 1000
	if free := look(); free < 79e6 {
		t.Fatalf("%.0f bit/s are free of an idle link", free)
	}
	links[0].ABBytes += 100e6
	now = now.Add(10 * time.Second)
	g.learn(t.Context(), drover.Move{Name: "m", State: drover.MoveUndone, From: drover.Place{Site: "a"}, To: drover.Place{Site: "b"}})
	now = now.Add(5 * time.Second)
	if free := look(); free < 79e6 {
		t.Errorf("%.0f bit/s are free after a move of our own was undone, want what was free before it", free)
	}
	now = now.Add(useSpan + useLate)
	links[0].ABBytes += 45 * 5e6
	if free := look(); free > 45e6 {
		t.Errorf("%.0f bit/s are free beside others that use half of it", free)
	}
}
