package sample

import (
	"time"

	"github.com/drover-vm/drover"
)

// Rate makes a rate out of readings of a running total.
type Rate struct {
	// Span is over how long it is a mean, Most how far apart two readings may be.
	Span, Most time.Duration

	readings []reading
}

type reading struct {
	at    time.Time
	total float64
}

// Add takes a reading. A total that is smaller than before began anew, and a clock
// that stood or jumped tells nothing: in both cases the rate is unknown until
// there are two readings again. It reports whether the reading follows on the one
// before.
func (r *Rate) Add(at time.Time, total float64) bool {
	if n := len(r.readings); n > 0 {
		last := r.readings[n-1]
		if d := at.Sub(last.at); d <= 0 || d > r.Most || total < last.total {
			r.readings = append(r.readings[:0], reading{at, total})
			return false
		}
	}
	r.readings = append(r.readings, reading{at, total})
	for len(r.readings) > 2 && at.Sub(r.readings[1].at) >= r.Span {
		r.readings = r.readings[1:]
	}
	return len(r.readings) > 1
}

// PerSecond is the mean over the span.
func (r *Rate) PerSecond() drover.Reading {
	n := len(r.readings)
	if n < 2 {
		return drover.Reading{}
	}
	first, last := r.readings[0], r.readings[n-1]
	return drover.Reading{
		Value: (last.total - first.total) / last.at.Sub(first.at).Seconds(), At: last.at, Samples: int64(n),
	}
}

// Times is a reading times a factor.
func Times(r drover.Reading, by float64) drover.Reading {
	r.Value *= by
	return r
}
