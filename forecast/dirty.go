package forecast

import (
	"math"
	"slices"
	"time"

	"github.com/drover-vm/drover"
)

// dirty is how much distinct memory the guest writes in a time: a concave curve,
// through what was measured, and beyond that a hot set that is written over and
// over and a cold rest (the model of BtrPlace and of Nathan et al., SoCC'15:
// U(t) = H(1-e^(-t/h)) + c·t). One rate times a duration, which older models
// take, counts what is written twice twice.
type dirty struct {
	at, bytes []float64 // measured, ascending; both begin with 0
	hot       float64   // H, bytes
	period    float64   // h, seconds
	cold      float64   // c, bytes/s
	most      float64   // the guest's memory
	scale     float64   // what-if: of the measured rates
}

// What is assumed of a guest that nobody has watched: a fiftieth of its memory is
// hot, and a little is cold.
const (
	usualHotShare    = 1.0 / 50
	usualPeriod      = 10.0
	usualCold        = 500e3
	usualDirtySpread = 1.2
	// curveSpread is what a curve that was measured before the move is off by
	// during it: guests change their minds.
	curveSpread = 0.15
)

// newDirty fits the curve. The second result is the spread of its rates.
func newDirty(s drover.Signals, memory float64, now time.Time) (dirty, float64) {
	d := dirty{at: []float64{0}, bytes: []float64{0}, most: max(memory, 1), scale: 1}
	spread := curveSpread
	if s.Dirty.Known() {
		d.measured(s.Dirty.Points)
		if age := (drover.Reading{At: s.Dirty.At}).Age(now); age > freshFor {
			spread = with(spread, 2*ageDoubt*math.Log10(float64(age)/float64(freshFor)))
		}
	}
	switch {
	case s.HotBytes.Known() && s.ColdBytesPerSecond.Known():
		d.hot, d.cold = sane(s.HotBytes.Value), sane(s.ColdBytesPerSecond.Value)
		d.period = s.HotSeconds.Or(usualPeriod)
	case len(d.at) > 1:
		d.fit()
	default:
		d.hot, d.cold, d.period = usualHotShare*memory, usualCold, usualPeriod
		spread = usualDirtySpread
	}
	d.hot = min(d.hot, d.most)
	if !(d.period > 1e-3) { // also what is no number
		d.period = 1e-3
	}
	return d, spread
}

// measured takes the points over that can be: ascending in both, concave.
func (d *dirty) measured(points []drover.DirtyPoint) {
	ps := slices.Clone(points)
	slices.SortFunc(ps, func(a, b drover.DirtyPoint) int {
		switch {
		case a.WindowSeconds < b.WindowSeconds:
			return -1
		case a.WindowSeconds > b.WindowSeconds:
			return 1
		}
		return 0
	})
	for _, p := range ps {
		t, b := sane(p.WindowSeconds), min(sane(p.Bytes), d.most)
		i := len(d.at) - 1
		if t <= d.at[i] || t > 3600 {
			continue
		}
		b = max(b, d.bytes[i])
		if i > 0 { // never faster than before: noise would be convex
			slope := (d.bytes[i] - d.bytes[i-1]) / (d.at[i] - d.at[i-1])
			b = min(b, d.bytes[i]+slope*(t-d.at[i]))
		}
		d.at, d.bytes = append(d.at, t), append(d.bytes, b)
	}
}

// fit chooses hot set, period and cold rate so that the curve comes closest to the
// points, by a search over periods: for each the other two are linear.
func (d *dirty) fit() {
	best := math.Inf(1)
	last := d.at[len(d.at)-1]
	for h := 0.02; h <= 8*last; h *= 1.3 {
		hot, cold := d.linear(h)
		sum := 0.0
		for i := 1; i < len(d.at); i++ {
			e := hot*(1-math.Exp(-d.at[i]/h)) + cold*d.at[i] - d.bytes[i]
			w := 1 / max(d.bytes[i], float64(drover.MiB)/4)
			sum += e * e * w * w
		}
		if sum < best {
			best, d.hot, d.cold, d.period = sum, hot, cold, h
		}
	}
}

// linear is the best hot set and cold rate for a period, by weighted least
// squares, neither below zero.
func (d *dirty) linear(h float64) (hot, cold float64) {
	var aa, ab, bb, ay, by float64
	for i := 1; i < len(d.at); i++ {
		w := 1 / max(d.bytes[i], float64(drover.MiB)/4)
		a, b, y := w*(1-math.Exp(-d.at[i]/h)), w*d.at[i], w*d.bytes[i]
		aa, ab, bb, ay, by = aa+a*a, ab+a*b, bb+b*b, ay+a*y, by+b*y
	}
	det := aa*bb - ab*ab
	if det > 1e-12*aa*bb {
		hot, cold = (ay*bb-by*ab)/det, (by*aa-ay*ab)/det
	}
	switch {
	case det <= 1e-12*aa*bb || hot < 0:
		return 0, sane(by / max(bb, 1e-300))
	case cold < 0:
		return sane(ay / max(aa, 1e-300)), 0
	}
	return sane(hot), sane(cold)
}

// unique is how many bytes are written at least once in t seconds.
func (d dirty) unique(t float64) float64 {
	if !(t > 0) {
		return 0
	}
	t *= d.scale
	n := len(d.at) - 1
	if n > 0 && t <= d.at[n] {
		i, _ := slices.BinarySearch(d.at, t)
		i = max(i, 1)
		part := (t - d.at[i-1]) / (d.at[i] - d.at[i-1])
		return d.bytes[i-1] + part*(d.bytes[i]-d.bytes[i-1])
	}
	u := d.curve(t)
	if n > 0 {
		// Beyond what was measured the fit says what comes on top.
		u = d.bytes[n] + max(0, u-d.curve(d.at[n]))
	}
	return min(sane(u), d.most)
}

// meanSteps is into how many parts a time is cut for a mean.
const meanSteps = 8

// mean is how many bytes are written at least once between a moment of t seconds, any
// of them alike, and their end.
func (d dirty) mean(t float64) float64 {
	sum := 0.0
	for i := range meanSteps {
		sum += d.unique(t * (float64(i) + 0.5) / meanSteps)
	}
	return sum / meanSteps
}

func (d dirty) curve(t float64) float64 { return d.hot*(1-math.Exp(-t/d.period)) + d.cold*t }

// rate is the distinct bytes per second over a time.
func (d dirty) rate(t float64) float64 {
	if !(t > 0) {
		return 0
	}
	return d.unique(t) / t
}
