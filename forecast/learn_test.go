package forecast

import (
	"math"
	"testing"
	"time"

	"github.com/drover-vm/drover"
)

// TestOneSlowMoveIsNoSites: a move that took half a minute longer than all others says
// nothing of its sites.
func TestOneSlowMoveIsNoSites(t *testing.T) {
	r := rests{}
	for i := range 12 {
		pair := [][2]string{{"a", "b"}, {"b", "c"}, {"c", "a"}}[i%3]
		r.all = append(r.all, rest{pair[0], pair[1], 1 + 0.02*float64(i%5)})
	}
	r.all[4].seconds = 30
	r.learn()
	for _, to := range []string{"a", "b", "c"} {
		if got := r.base(allMoves) + r.site["a"] + r.site[to]; math.Abs(got-1.04) > 0.15 {
			t.Errorf("a move from a to %s is expected to take %.2f s besides its bytes", to, got)
		}
	}
}

// TestCorrectionsBeyondChance: a few scattered errors shift no middle, many alike do.
func TestCorrectionsBeyondChance(t *testing.T) {
	lessonOf := func(offs ...float64) *lesson {
		l := &lesson{slope: 1}
		for _, off := range offs {
			l.past = append(l.past, residual{off: off, weight: 1, method: drover.Live, way: way{"a", "b"}, size: 1})
		}
		return l
	}
	if _, middle, _ := lessonOf(-1.5, -0.2, 0.6, 1.9).quantiles(drover.Live, way{"a", "b"}, 1); middle != 0 {
		t.Errorf("four scattered errors shift the middle by %v", middle)
	}
	alike := make([]float64, 30)
	for i := range alike {
		alike[i] = 1 + 0.01*float64(i)
	}
	if _, middle, _ := lessonOf(alike...).quantiles(drover.Live, way{"a", "b"}, 1); middle < 0.8 {
		t.Errorf("thirty errors alike shift the middle by %v", middle)
	}
}

// TestNewWaysAreWider: what moves over other ways have shown counts less.
func TestNewWaysAreWider(t *testing.T) {
	l := &lesson{slope: 1}
	for i := range 10 {
		l.past = append(l.past, residual{off: 0.02 * float64(i-5), weight: 1, method: drover.Live, way: way{"a", "b"}, size: 1})
	}
	low, _, high := l.quantiles(drover.Live, way{"a", "b"}, 1)
	lowest, _, highest := l.quantiles(drover.Live, way{"c", "d"}, 1)
	if lowest >= low || highest <= high {
		t.Errorf("from %v to %v over a way that moves took, %v to %v over another", low, high, lowest, highest)
	}
}

// TestSamplesMoveWhatMovesShowed: pages of another kind than in earlier moves are
// foretold between what these showed and what samples say.
func TestSamplesMoveWhatMovesShowed(t *testing.T) {
	now := time.Date(2026, 3, 2, 12, 0, 0, 0, time.UTC)
	left := func(sampled float64) float64 {
		tt := taught{packed: map[string][]packing{"u": {{0.6, 0.6}, {0.6, 0.6}, {0.6, 0.6}, {0.6, 0.6}}}, packedAll: 1}
		in := Input{Now: now, VM: drover.VM{Name: "v", UUID: "u", MemoryBytes: drover.GiB}}
		in.Signals.CompressedShare = drover.Reading{Value: sampled, At: now, Samples: 4000}
		return newFacts(in, tt).small.value
	}
	same, less := left(0.6), left(0.3)
	drawn := math.Exp((4*math.Log(0.6) + 2*math.Log(0.3)) / 6) // samples as a prior alone
	if math.Abs(same-0.6) > 1e-6 || less >= 0.97*drawn || less <= 0.3 {
		t.Errorf("%.3f and %.3f are left where moves showed 0.6 and samples say 0.6 and 0.3", same, less)
	}
}

// TestDisksByWhereTheyWere: disks that go back to where they were last, that go to
// where they were before that, and that go to where they never were differ in what of
// them crosses; of each, moves tell apart, by what was to be copied.
func TestDisksByWhereTheyWere(t *testing.T) {
	var history []drover.Move
	move := func(from, to string, crossed float64) {
		history = append(history, drover.Move{
			VMUUID: "u", Method: drover.Live, State: drover.MoveDone, From: drover.Place{Site: from}, To: drover.Place{Site: to},
			Forecast: &drover.Forecast{Points: map[string]float64{pointDisk: 10e6}},
			// A third more than was to be copied was written meanwhile, and is no part of it.
			Measured: drover.Figures{Path: &drover.PathFigures{Disk: drover.PathPhase{GuestBytes: 13e6, WireBytes: drover.Bytes(crossed)}}},
		})
	}
	for range 6 {
		move("a", "b", 9e6) // never there, the first time; then long ago
		move("b", "a", 1e6) // there just now
		move("a", "c", 9e6)
		move("c", "a", 1e6)
	}
	history[4].Measured.Path.Disk.WireBytes = 5e6
	for _, m := range history[5:] {
		if m.From.Site == "a" {
			m.Measured.Path.Disk.WireBytes = 5e6
		}
	}
	got := teach(history)
	for _, c := range []struct {
		to   string
		want float64
	}{{"c", 0.1}, {"b", 0.5}, {"d", 0.9}} {
		if told := *got.ofDisks("u", c.to); len(told) == 0 || math.Abs(median(append([]float64(nil), told...))-c.want) > 1e-6 {
			t.Errorf("of disks to %s moves show %v, want %v", c.to, told, c.want)
		}
	}
}
