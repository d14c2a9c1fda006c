package forecast

import (
	"math"

	"github.com/drover-vm/drover"
)

// most bounds every figure, so that sums and products of any of them stay
// finite. It is an exabyte, or thirty thousand million years.
const most = 1e18

// sane is v as a figure: what is no number counts as zero.
func sane(v float64) float64 {
	if math.IsNaN(v) || v < 0 {
		return 0
	}
	return min(v, most)
}

// share is v between 0 and 1.
func share(v float64) float64 { return min(sane(v), 1) }

// over divides; by nothing the result is as large as a figure can be.
func over(a, b float64) float64 {
	a, b = sane(a), sane(b)
	switch {
	case a == 0:
		return 0
	case b == 0:
		return most
	}
	return min(a/b, most)
}

// guess is a value and how far it may be off: spread is the standard deviation of
// its logarithm, so 0.1 is about a tenth.
type guess struct {
	value, spread float64
}

// with is the spread together with another, independent one.
func with(spreads ...float64) float64 {
	sum := 0.0
	for _, s := range spreads {
		sum += s * s
	}
	return math.Sqrt(min(sum, mostSpread*mostSpread))
}

// mostSpread is a factor of a thousand, either way, at P10 and P90: more says
// nothing any more.
const mostSpread = 5.4

// z10 is the normal distribution's 90 % quantile.
const z10 = 1.2815515655446004

// exact is the range of what is sure.
func exact(v float64) *drover.Range {
	v = sane(v)
	return &drover.Range{P10: v, P50: v, P90: v}
}

// ordered makes a range of three figures, whatever they are.
func ordered(p10, p50, p90 float64) drover.Range {
	r := drover.Range{P10: sane(p10), P50: sane(p50), P90: sane(p90)}
	r.P10, r.P90 = min(r.P10, r.P50), max(r.P90, r.P50)
	return r
}
