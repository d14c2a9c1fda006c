package forecast

import "math"

// What QEMU and this program's own watch do in a live move (QEMU 10,
// migration/ram.c and migration.c; driver/libvirt/converge.go). The simulation
// below follows them round by round, which is what a formula cannot: the guest
// is held back and the pause grows while the rounds go on.
const (
	// A round ends the rounds when what is dirty fits the pause. Its length is at
	// least what a look at the bitmap takes.
	leastRound = 0.010
	// throttlePeriod is the least time between two looks at whether rounds help,
	// throttleShare of what a period carried may be dirty after it, twice.
	throttlePeriod, throttleShare       = 1.0, 0.5
	throttleFirst, throttleMore         = 10, 10
	throttleMost                        = 99
	stuckRounds                         = 8
	stuckSeconds                        = 2.0
	pauseGrowth                         = 1.5
	usualPause, usualMost               = 0.300, 1.000
	leastMemoryPause, roundTripsOfPause = 0.060, 4
	// mostRounds bounds the simulation: what has not ended by then does not.
	mostRounds = 100_000
)

// rounds are a live move's memory.
type rounds struct {
	first float64 // bytes of the first round, without zeros
	lead  float64 // seconds of it that the zeros take
	// before and after are the bytes per second that are carried of the first
	// round and of those after it.
	before, after float64
	dirty         dirty
	limit, most   float64 // seconds that the last round may take
	throttle      bool
}

// outcome is how the rounds end.
type outcome struct {
	seconds float64 // all rounds but the last
	again   float64 // bytes that are sent again in them
	last    float64 // bytes of the last, in which the guest stands still
	count   int
	held    int     // percent by which the guest is held back at the end
	limit   float64 // seconds that the last round may take in the end
	ended   bool
}

// alone reports whether the rounds have ended without the guest's being held back.
func (o outcome) alone() bool { return o.ended && o.held == 0 }

// stepped is a simulation under way.
type stepped struct {
	rounds
	outcome
	left, carry              float64
	period, carried, dirtied float64
	high                     int
	stuckAt                  float64
	stuckCount               int
	natural                  float64
}

// run follows the rounds to their end, or to where they go on for good. What is
// sent until somebody gives up is counted then.
func (r rounds) run() outcome { return r.until(false) }

// alone reports whether the rounds end without the guest's being held back.
func (r rounds) alone() bool {
	r.throttle = true // what would be held back does not end by itself
	return r.until(true).alone()
}

func (r rounds) until(heldBack bool) outcome {
	s := &stepped{rounds: r, outcome: outcome{limit: r.limit}, left: r.first, carry: max(r.before, 1), stuckAt: -1, natural: r.dirty.scale}
	for s.count < mostRounds && s.seconds < forever && !(heldBack && s.held > 0) {
		took := max(s.left/s.carry, leastRound)
		if s.count == 0 {
			took += s.lead
		}
		next := s.dirty.unique(took)
		again := 1
		if s.count > 1 && math.Abs(next-s.left) <= 1e-3*s.left {
			// In step: nothing changes until somebody does something.
			if again = s.quiet(took); again == 0 {
				break
			}
		}
		s.round(took, next, again)
		if s.left <= s.carry*s.outcome.limit {
			s.last, s.ended = s.left, true
			return s.outcome
		}
		s.act()
	}
	s.last = s.left
	if !s.ended && s.seconds < forever {
		s.again += s.carry * (forever - s.seconds)
	}
	return s.outcome
}

// round takes rounds of one length over.
func (s *stepped) round(took, next float64, times int) {
	n := float64(times)
	if s.count > 0 {
		s.again += s.left * n
	}
	s.count += times
	s.seconds += took * n
	s.period, s.carried, s.dirtied = s.period+took*n, s.carried+s.left*n, s.dirtied+next*n
	s.left, s.carry = next, max(s.after, 1)
}

// act is what QEMU and the watch do after a round.
func (s *stepped) act() {
	if s.throttle && s.period >= throttlePeriod {
		if s.dirtied > throttleShare*s.carried {
			s.high++
		}
		if s.high >= 2 {
			s.high = 0
			s.held = min(throttleMost, max(throttleFirst, s.held+throttleMore))
			s.dirty.scale = s.natural * (1 - float64(s.held)/100)
		}
		s.period, s.carried, s.dirtied = 0, 0, 0
	}
	switch {
	case s.stuckAt < 0:
		s.stuckAt, s.stuckCount = s.seconds, s.count
	case s.outcome.limit < s.most && s.count-s.stuckCount >= stuckRounds && s.seconds-s.stuckAt >= stuckSeconds:
		s.outcome.limit = min(s.most, s.outcome.limit*pauseGrowth)
		s.stuckAt, s.stuckCount = s.seconds, s.count
	}
}

// quiet is how many rounds of that length pass before something is done; zero:
// nothing ever is.
func (s *stepped) quiet(took float64) int {
	n := math.Inf(1)
	if s.throttle && s.held < throttleMost && (s.left == 0 || s.dirty.unique(took) > throttleShare*s.left) {
		n = math.Ceil((throttlePeriod - s.period) / took)
	}
	if s.outcome.limit < s.most {
		n = min(n, max(float64(stuckRounds-s.count+s.stuckCount), math.Ceil((stuckSeconds-s.seconds+s.stuckAt)/took)))
	}
	if math.IsInf(n, 1) {
		return 0
	}
	return int(min(max(n, 1), 1e6))
}
