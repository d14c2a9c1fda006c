package forecast

import (
	"math"
)

// Baseline is what a simpler model says, for comparison. A figure that it does not
// know is nil.
type Baseline struct {
	TotalSeconds, WireBytes, PauseMillis *float64
	// Converges is whether its rounds come to an end.
	Converges bool
}

// MemoryOverBandwidth is what operators reckon in their heads: memory and disks,
// divided by the link.
func MemoryOverBandwidth(in Input) Baseline {
	f := newFacts(in, taught{})
	bytes := f.memory.value + f.disk.value
	total := over(8*bytes, bandwidth(in, f))
	return Baseline{TotalSeconds: &total, WireBytes: &bytes}
}

// Geometric is the plain model of pre-copy (Clark et al., NSDI'05, and the many
// that follow it): every round sends what a constant dirty rate has written during
// the one before, so n rounds send V·(1-λ^(n+1))/(1-λ) with λ = D/B, until what is
// left fits the pause. It knows nothing of zeros, reduction, or hot pages.
func Geometric(in Input) Baseline {
	f := newFacts(in, taught{})
	b := bandwidth(in, f) / 8
	d := f.dirty.rate(1)
	limit, _ := pauses(f)
	left, bytes, ends := f.memory.value, 0.0, false
	for range 30 { // Xen's own limit of rounds
		bytes += left
		left = min(d*over(left, b), f.memory.value)
		if ends = left <= b*limit; ends {
			break
		}
	}
	bytes += left + f.disk.value
	total, pause := over(bytes, b), 1e3*over(left, b)
	return Baseline{TotalSeconds: &total, WireBytes: &bytes, PauseMillis: &pause, Converges: ends}
}

// bandwidth is the link's rate as bought or measured, in bits per second.
func bandwidth(in Input, f *facts) float64 {
	b := in.Link.CapacityBPS.Or(f.link.value)
	if limit := float64(in.Terms.Bandwidth); limit > 0 {
		b = math.Min(b, limit)
	}
	return max(sane(b), 8)
}

// Figures are those of the baseline that it knows, by name.
func (b Baseline) Figures() map[string]float64 {
	m := map[string]float64{}
	for name, v := range map[string]*float64{"total_s": b.TotalSeconds, "wire_bytes": b.WireBytes, "pause_ms": b.PauseMillis} {
		if v != nil {
			m[name] = sane(*v)
		}
	}
	return m
}
