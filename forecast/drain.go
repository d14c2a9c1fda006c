package forecast

import (
	"math"

	"github.com/drover-vm/drover"
)

// lives are how long sessions live: a survival curve through the quantiles that
// are known, exponential between them, and with a power law as its tail, which
// real sessions have. Whoever looks at a server at some moment sees long sessions
// more often than they are opened: what is left of those that are open has the
// equilibrium distribution, S_e(t) = ∫_t^∞ S(u) du / ∫_0^∞ S(u) du (renewal theory;
// Cox 1962), and with a heavy tail that hardly ends. So a drain has a cap.
type lives struct {
	at, survive []float64 // survive[i] of all sessions live longer than at[i]
	tail        float64   // exponent beyond the last
	end         float64   // no session is believed to live longer
}

const (
	// Usual quantiles of sessions of which nobody has seen one end: seconds to
	// minutes, as of web services with kept connections.
	usualP50, usualP90, usualP99 = 5.0, 60.0, 600.0
	// leastTail keeps the mean finite, endTail is by how much longer than the 99 %
	// quantile the longest session is believed to be.
	leastTail, endTail = 1.05, 1e4
	leastLife          = 1e-3
)

func newLives(l drover.Lifetimes) lives {
	p := [3]float64{usualP50, usualP90, usualP99}
	if l.Known() {
		p = [3]float64{sane(l.P50Seconds), sane(l.P90Seconds), sane(l.P99Seconds)}
	}
	v := lives{at: []float64{0}, survive: []float64{1}}
	last := 0.0
	for i, s := range [3]float64{0.5, 0.1, 0.01} {
		// Each is a bit longer than the one before, so that no slope is infinite.
		last = min(max(p[i], last*1.01, leastLife*float64(i+1)), 1e9)
		v.at, v.survive = append(v.at, last), append(v.survive, s)
	}
	v.tail = max(leastTail, math.Ln10/math.Log(max(v.at[3]/v.at[2], 1.01)))
	v.tail = min(v.tail, 50)
	v.end = v.at[3] * endTail
	return v
}

// beyond is the integral of the survival curve from t on.
func (v lives) beyond(t float64) float64 {
	t = sane(t)
	sum := 0.0
	for i := 1; i < len(v.at); i++ {
		a, b := max(t, v.at[i-1]), v.at[i]
		if a >= b {
			continue
		}
		rate := math.Log(v.survive[i-1]/v.survive[i]) / (v.at[i] - v.at[i-1])
		sa := v.survive[i-1] * math.Exp(-rate*(a-v.at[i-1]))
		sum += (sa - v.survive[i]) / rate
	}
	x, s := v.at[len(v.at)-1], v.survive[len(v.survive)-1]
	if a := max(t, x); a < v.end {
		k := v.tail - 1
		sum += s * x / k * (math.Pow(a/x, -k) - math.Pow(v.end/x, -k))
	}
	return max(sum, 0)
}

// left is the share of the sessions open now that are still open after t seconds.
func (v lives) left(t float64) float64 { return share(over(v.beyond(t), v.beyond(0))) }

// drained is when fewer than one half of n sessions are expected to be left, in
// seconds, or the cap.
func (v lives) drained(n, cap float64) float64 {
	if n <= 0.5 {
		return 0
	}
	if n*v.left(cap) >= 0.5 {
		return cap
	}
	low, high := 0.0, cap
	for range 40 {
		mid := (low + high) / 2
		if n*v.left(mid) < 0.5 {
			high = mid
		} else {
			low = mid
		}
	}
	return high
}

// drain is a server's end behind a load balancer.
type drain struct {
	seconds, lost guess
}

func newDrain(f *facts) drain {
	v := newLives(f.in.Signals.Lifetimes)
	spread := 0.25
	if !f.in.Signals.Lifetimes.Known() {
		f.missOnce("how long the VM's sessions live")
		spread = 1.0
	}
	cap := f.in.Terms.DrainCap.Seconds()
	if cap <= 0 {
		cap = drover.DefaultDrainCap.Seconds()
	}
	n := f.opened.value
	d := drain{seconds: guess{v.drained(n, cap), with(spread, 0.3*f.opened.spread)}}
	d.lost = guess{n * v.left(cap), with(f.opened.spread, spread)}
	return d
}
