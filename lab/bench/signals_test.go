package bench

import (
	"testing"
	"time"

	"github.com/drover-vm/drover/lab/guest/control"
)

func TestGapHistograms(t *testing.T) {
	a := []control.Gaps{{UpToMS: 0.1, Count: 90}, {UpToMS: 6, Count: 1}}
	sum := addGaps(a, []control.Gaps{{UpToMS: 0.1, Count: 8}, {UpToMS: 2, Count: 1}})
	if len(sum) != 3 || sum[0].Count != 98 || sum[1].UpToMS != 2 || a[0].Count != 90 {
		t.Fatalf("sum %+v of %+v", sum, a)
	}
	for q, want := range map[float64]float64{0.5: 0.1, 0.98: 0.1, 0.985: 2, 1: 6} {
		if got := gapQuantile(sum, q); got != want {
			t.Errorf("quantile %v is %v, want %v", q, got, want)
		}
	}
	if gapsOver(sum, 1) != 2 || gapsOver(sum, 5) != 1 || gapsOver(sum, 6) != 0 || gapQuantile(nil, 0.5) != -1 {
		t.Errorf("over 1, 5, 6: %v, %v, %v", gapsOver(sum, 1), gapsOver(sum, 5), gapsOver(sum, 6))
	}
}

// A gap counts where it overlaps a time, and times that are moved on come in again
// at the window's beginning.
func TestWithin(t *testing.T) {
	const window = 10 * time.Second
	gaps := []control.Gap{{AtMS: 100, MS: 3}, {AtMS: 4999, MS: 7}, {AtMS: 9000, MS: 20}}
	at := func(from, to time.Duration) []span { return []span{{from * time.Millisecond, to * time.Millisecond}} }
	for _, c := range []struct {
		spans   []span
		shift   time.Duration
		longest float64
		over    int
	}{
		{at(0, 100), 0, 0, 0},
		{at(102, 110), 0, 3, 0},
		{at(5000, 5001), 0, 7, 1},
		{at(0, 10_000), 0, 20, 2},
		{at(9100, 9200), 0, 0, 0},
		{at(9100, 9200), time.Second, 3, 0},
		{append(at(0, 1), at(8900, 9100)...), 0, 20, 1},
		{nil, 0, 0, 0},
	} {
		if longest, over := within(gaps, c.spans, c.shift, window); longest != c.longest || over != c.over {
			t.Errorf("%v, moved by %v: %v and %d, want %v and %d", c.spans, c.shift, longest, over, c.longest, c.over)
		}
	}
	w := &surveyWatch{}
	for _, s := range []span{{0, 10}, {8, 20}, {30, 40}} {
		w.add(s)
	}
	if len(w.spans) != 2 || total(w.spans) != 30 {
		t.Errorf("spans %v", w.spans)
	}
}
