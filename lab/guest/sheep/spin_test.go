package main

import (
	"testing"
	"time"

	"github.com/drover-vm/drover/lab/guest/control"
)

func TestSpin(t *testing.T) {
	s := spin(t.Context(), 20*time.Millisecond)
	var sum int64
	last := 0.0
	for _, g := range s.Gaps {
		if sum += g.Count; g.UpToMS <= last || g.Count == 0 {
			t.Errorf("gaps %+v", s.Gaps)
		}
		last = g.UpToMS
	}
	if s.Steps == 0 || sum != s.Steps || s.DurationMS < 20 || s.LongestMS <= 0 || s.LongestMS > last {
		t.Errorf("%+v: want as many steps as are counted, for 20 ms", s)
	}
	for _, g := range s.Long {
		if g.MS < control.LongMS || g.MS > s.LongestMS || g.AtMS < 0 || g.AtMS > s.DurationMS {
			t.Errorf("long gap %+v of %+v", g, s)
		}
	}
	for _, c := range []struct {
		took time.Duration
		up   float64
	}{{0, 0.1}, {100 * time.Microsecond, 0.1}, {200 * time.Microsecond, 0.2}, {time.Millisecond, 1.1313708498984762}} {
		if got := gapBound(gapBucket(c.took)); got < c.up*0.999 || got > c.up*1.001 {
			t.Errorf("%v is counted up to %v ms, want %v", c.took, got, c.up)
		}
	}
	if i := gapBucket(time.Hour); i != gapBounds {
		t.Errorf("an hour is counted in %d", i)
	}
	sp := &spinner{}
	for _, bad := range []int64{0, -1, control.MaxSpin + 1} {
		if _, err := sp.run(t.Context(), control.Spin{DurationMS: bad}); err == nil {
			t.Errorf("%d ms are accepted", bad)
		}
	}
}
