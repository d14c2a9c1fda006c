package sample

import (
	"cmp"
	"math"
	"slices"
	"time"

	"github.com/drover-vm/drover"
)

// Life is one session as it was seen: from which age on, up to which, and whether
// it ended then. One that is still open has not ended.
type Life struct {
	From, To time.Duration
	Ended    bool
}

// Lifetimes are the quantiles of how long sessions live, by the product-limit
// estimator with late entry (Kaplan and Meier, 1958; Tsai, Jewell and Wang, 1987):
// each session counts only for the ages at which it was watched, so that those that
// were old when they were first seen, and those that are still open, bias
// nothing. Sessions that began and ended between two looks are not seen: it is
// the lifetime of those that live longer than that. A quantile that nobody has
// reached is the greatest age that was seen to end, which is too little; a heavy
// tail needs a cap, anyway. Fewer than least ended sessions say nothing.
func Lifetimes(lives []Life, at time.Time, least int) drover.Lifetimes {
	type step struct {
		age   time.Duration
		ended int
	}
	var ends []step
	var entries, exits []time.Duration
	n := 0
	for _, l := range lives {
		if l.To <= l.From {
			continue // seen once: it tells nothing
		}
		entries, exits = append(entries, l.From), append(exits, l.To)
		if l.Ended {
			ends = append(ends, step{l.To, 1})
			n++
		}
	}
	if n < max(1, least) {
		return drover.Lifetimes{}
	}
	slices.SortFunc(ends, func(a, b step) int { return cmp.Compare(a.age, b.age) })
	slices.Sort(entries)
	slices.Sort(exits)
	out := drover.Lifetimes{At: at, Samples: int64(n)}
	quantiles := []struct {
		q  float64
		to *float64
	}{{0.5, &out.P50Seconds}, {0.9, &out.P90Seconds}, {0.99, &out.P99Seconds}}
	alive, next := 1.0, 0
	for i := 0; i < len(ends) && next < len(quantiles); {
		age, d := ends[i].age, 0
		for ; i < len(ends) && ends[i].age == age; i++ {
			d++
		}
		// Watched at this age: entered before it, and not left before it.
		entered, _ := slices.BinarySearch(entries, age)
		left, _ := slices.BinarySearch(exits, age)
		// While a few of the oldest are watched one end would make the curve zero for
		// all that are older; with one watched it says nothing.
		if watched := entered - left; watched > 1 || i == len(ends) {
			alive *= 1 - float64(d)/float64(max(watched, d))
		}
		for next < len(quantiles) && alive <= 1-quantiles[next].q+1e-9 {
			*quantiles[next].to = age.Seconds()
			next++
		}
	}
	last := ends[len(ends)-1].age.Seconds()
	for ; next < len(quantiles); next++ {
		*quantiles[next].to = last
	}
	return out
}

// MeanLife is how long sessions live on average by Little's law: those that are
// open over those that come in a second. Neither may be unknown, and somebody has
// to have come.
func MeanLife(open, perSecond drover.Reading) (time.Duration, bool) {
	if !open.Known() || !perSecond.Known() || perSecond.Value <= 0 {
		return 0, false
	}
	s := open.Value / perSecond.Value
	if s > math.MaxInt64/float64(2*time.Second) {
		return 0, false
	}
	return time.Duration(s * float64(time.Second)), true
}

// Exponential are the quantiles of lifetimes of which only the mean is known.
func Exponential(mean time.Duration, at time.Time, samples int64) drover.Lifetimes {
	q := func(p float64) float64 { return -math.Log(1-p) * mean.Seconds() }
	return drover.Lifetimes{P50Seconds: q(0.5), P90Seconds: q(0.9), P99Seconds: q(0.99), At: at, Samples: samples}
}
