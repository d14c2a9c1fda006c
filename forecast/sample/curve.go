package sample

import (
	"math"
	"slices"
	"time"

	"github.com/drover-vm/drover"
)

// MeanCurve is the mean of curves over the same windows, none of which may be
// older than most; the others are left out. Those that rest on more windows
// weigh more.
func MeanCurve(curves []drover.DirtyCurve, now time.Time, most time.Duration) drover.DirtyCurve {
	var sum drover.DirtyCurve
	var weight float64
	for _, c := range curves {
		if !c.Known() || now.Sub(c.At) > most || len(sum.Points) > 0 && len(c.Points) != len(sum.Points) {
			continue
		}
		w := float64(max(1, c.Samples))
		if sum.Points == nil {
			sum.Points = make([]drover.DirtyPoint, len(c.Points))
		}
		for i, p := range c.Points {
			sum.Points[i].WindowSeconds = p.WindowSeconds
			sum.Points[i].Bytes += w * p.Bytes
		}
		if c.At.After(sum.At) {
			sum.At = c.At
		}
		sum.Samples += max(1, c.Samples)
		weight += w
	}
	for i := range sum.Points {
		sum.Points[i].Bytes /= weight
	}
	return sum
}

// Concave is the least concave curve through the origin that is nowhere below c: the
// distinct memory written in a time cannot grow faster later than it did before,
// so where it seems to, the shorter window has seen too few pages.
func Concave(c drover.DirtyCurve) drover.DirtyCurve {
	points := slices.Clone(c.Points)
	from := drover.DirtyPoint{}
	for i := 0; i < len(points); {
		// The steepest way on from here ends at the hull's next corner.
		slope := func(j int) float64 {
			return (points[j].Bytes - from.Bytes) / (points[j].WindowSeconds - from.WindowSeconds)
		}
		corner := i
		for j := i + 1; j < len(points); j++ {
			if slope(j) >= slope(corner) {
				corner = j
			}
		}
		s := slope(corner)
		for ; i < corner; i++ {
			points[i].Bytes = from.Bytes + s*(points[i].WindowSeconds-from.WindowSeconds)
		}
		from, i = points[corner], corner+1
	}
	c.Points = points
	return c
}

// HotCold is a curve in three figures: U(t) = hot·(1 − e^(−t/seconds)) + cold·t.
type HotCold struct {
	HotBytes, HotSeconds, ColdBytesPerSecond float64
}

// Times of the hot set that are tried, and how finely.
const (
	hotShortest = 0.01 // seconds; below that it is hot in every window
	hotLongest  = 10.0
	hotSteps    = 60
)

// Split fits them, both at least zero, to a curve by least squares of relative
// errors, over a grid of times of the hot set. A curve of fewer than two points has no
// split, and one of zeros is all zero.
func Split(c drover.DirtyCurve) (HotCold, bool) {
	if !c.Known() || len(c.Points) < 2 {
		return HotCold{}, false
	}
	best, missed := HotCold{}, math.Inf(1)
	for i := range hotSteps + 1 {
		tau := hotShortest * math.Pow(hotLongest/hotShortest, float64(i)/hotSteps)
		hot, cold, e := fit(c.Points, tau)
		if e < missed {
			best, missed = HotCold{HotBytes: hot, HotSeconds: tau, ColdBytesPerSecond: cold}, e
		}
	}
	if best.HotBytes == 0 {
		best.HotSeconds = 0
	}
	return best, true
}

// fit is the least-squares fit for one τ, and what it misses.
func fit(points []drover.DirtyPoint, tau float64) (hot, cold, missed float64) {
	// Weighted normal equations of two unknowns.
	var aa, ab, bb, ay, by float64
	weigh := func(p drover.DirtyPoint) (a, b, y float64) {
		// A point of few bytes counts as much as one of many, down to a page.
		w := 1 / math.Max(p.Bytes, PageBytes)
		return w * (1 - math.Exp(-p.WindowSeconds/tau)), w * p.WindowSeconds, w * p.Bytes
	}
	for _, p := range points {
		a, b, y := weigh(p)
		aa, ab, bb, ay, by = aa+a*a, ab+a*b, bb+b*b, ay+a*y, by+b*y
	}
	if det := aa*bb - ab*ab; det > 1e-12*aa*bb {
		hot, cold = (ay*bb-by*ab)/det, (by*aa-ay*ab)/det
	}
	if hot < 0 || cold < 0 || hot == 0 && cold == 0 {
		// At an edge of what is allowed, one of them is zero.
		onlyHot, onlyCold := math.Max(0, ay/aa), math.Max(0, by/bb)
		if miss(points, weigh, onlyHot, 0) < miss(points, weigh, 0, onlyCold) {
			hot, cold = onlyHot, 0
		} else {
			hot, cold = 0, onlyCold
		}
	}
	return hot, cold, miss(points, weigh, hot, cold)
}

func miss(points []drover.DirtyPoint, weigh func(drover.DirtyPoint) (a, b, y float64), hot, cold float64) (sum float64) {
	for _, p := range points {
		a, b, y := weigh(p)
		e := a*hot + b*cold - y
		sum += e * e
	}
	return sum
}
