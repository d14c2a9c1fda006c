package forecast

import (
	"math"
	"time"

	"github.com/drover-vm/drover"
)

const (
	// staleProgress is how old a report of progress may be to be believed: a cut
	// link reports nothing.
	staleProgress = 30 * time.Second
	// tailShare of the forecast is what comes after the last byte: switchover,
	// verification, release.
	tailShare, leastTail2 = 0.08, 0.3
	// progressSpread is how far the rate of now is off as the rate until the end,
	// when nothing has crossed yet, and when all has.
	progressSpread, progressLeast = 0.7, 0.08
)

// Remaining is how many seconds a move has still to go: what was forecast, given
// that it has not ended yet, and what its progress says, which counts the more the
// further it has come. It is nil for a move that has ended or has not begun, or
// that has neither a forecast nor progress.
func Remaining(m drover.Move, now time.Time) *drover.Range {
	if m.State != drover.MoveRunning {
		return nil
	}
	begun := firstStart(m)
	if begun.IsZero() {
		return nil
	}
	elapsed := max(0, now.Sub(begun).Seconds())
	before, foretold := conditional(m.Forecast, elapsed)
	seen, share, measured := observed(m, now)
	switch {
	case !foretold && !measured:
		return nil
	case !measured:
		return &before
	}
	tail := leastTail2
	if foretold {
		tail = max(tail, tailShare*m.Forecast.TotalSeconds.P50)
	}
	middle := seen + tail
	spread := progressSpread*(1-share) + progressLeast
	r := ordered(middle*math.Exp(-z10*spread), middle, middle*math.Exp(z10*spread))
	if !foretold {
		return &r
	}
	// The forecast's own range narrows as the share grows.
	w := min(1, max(0.15, share))
	r = ordered(mix(before.P10, r.P10, w), mix(before.P50, r.P50, w), mix(before.P90, r.P90, w))
	return &r
}

func mix(a, b, w float64) float64 { return (1-w)*a + w*b }

func firstStart(m drover.Move) time.Time {
	var first time.Time
	for _, s := range m.Steps {
		if !s.Started.IsZero() && (first.IsZero() || s.Started.Before(first)) {
			first = s.Started
		}
	}
	return first
}

// conditional is what is left of a forecast total that is longer than elapsed: the
// total's logarithm is taken to be normal, by its quantiles.
func conditional(f *drover.Forecast, elapsed float64) (drover.Range, bool) {
	if f == nil || f.TotalSeconds == nil {
		return drover.Range{}, false
	}
	t := ordered(f.TotalSeconds.P10, f.TotalSeconds.P50, f.TotalSeconds.P90)
	middle := math.Log(max(t.P50, 1e-3))
	up := max(math.Log(max(t.P90, 1e-3))-middle, 0.02) / z10
	past := 0.5 * math.Erfc(-(math.Log(max(elapsed, 1e-6))-middle)/up/math.Sqrt2)
	past = min(past, 1-1e-6)
	at := func(q float64) float64 {
		p := past + (1-past)*q
		z := math.Sqrt2 * math.Erfinv(2*min(p, 1-1e-9)-1)
		return max(0, math.Exp(middle+up*z)-elapsed)
	}
	return ordered(at(0.1), at(0.5), at(0.9)), true
}

// observed is what progress says is left, and the share that is done.
func observed(m drover.Move, now time.Time) (left, share float64, ok bool) {
	p := m.Progress
	if p == nil || p.TotalBytes <= 0 || p.Rate <= 0 || now.Sub(p.Updated) > staleProgress {
		return 0, 0, false
	}
	total, done := float64(p.TotalBytes), min(max(float64(p.DoneBytes), 0), float64(p.TotalBytes))
	left = sane((total - done) * 8 / float64(p.Rate))
	if f := m.Forecast; f != nil && f.GuestBytes != nil && p.Phase == "disk" {
		// The memory is still to come: the hypervisor does not count it yet.
		more := max(0, f.GuestBytes.P50-total)
		left += sane(more * 8 / float64(p.Rate))
		return left, done / max(total+more, 1), true
	}
	return left, done / total, true
}
