package forecast

import "math"

// What QEMU and this program's own watch do in a live move (QEMU 10,
// migration/ram.c and migration.c; driver/libvirt/converge.go). The simulation
// below follows them round by round, which is what a formula cannot: the guest
// is held back and the pause grows while the rounds go on.
const (
	// The rounds end when what is left fits the pause, by the rate of the last tenth
	// of a second: that is how often QEMU measures it, so no look at what is dirty
	// comes sooner after another. By that rate, whatever it is that is left: pages
	// that are sent again may take longer than those of the first round, and the
	// pause with them.
	leastRound = 0.100
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
	leastMemoryTrips                    = 2
	// mostRounds bounds the simulation: what has not ended by then does not.
	mostRounds = 100_000
)

// rounds are a live move's memory.
type rounds struct {
	first float64 // bytes of the first round, without zeros
	lead  float64 // seconds of it that the zeros take
	zeros float64 // share of the guest's pages that they are
	// before and after are the bytes per second that are carried of the first
	// round and of those after it.
	before, after float64
	// known is the share of the first round whose content the destination has, and
	// front the bytes per second of that alone.
	known, front float64
	dirty        dirty
	limit, most  float64 // seconds that the last round may take
	throttle     bool
	least        float64 // seconds that a round takes at least
}

// outcome is how the rounds end.
type outcome struct {
	seconds float64 // all rounds but the last
	again   float64 // bytes that are sent again in them
	changed float64 // what has changed of these and of the last, in bytes
	last    float64 // bytes that are sent again in the last, in which the guest stands still
	still   float64 // seconds that the last takes
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
	open                     opening
	fresh, left              float64 // bytes of the first round, and of later ones, that wait
	anew                     float64 // of left what has changed since it was sent
	ends                     float64 // with so much left the hypervisor ends the rounds, by what it saw go
	opened                   float64 // seconds of the first round
	period, carried, dirtied float64
	high                     int
	stuckAt                  float64
	stuckCount               int
	natural                  float64
}

// run follows the rounds to their end, or to where they go on for good. What is
// sent until somebody gives up is counted then.
func (r rounds) run() outcome { return r.follow(false) }

// alone reports whether the rounds end without the guest's being held back.
func (r rounds) alone() bool {
	r.throttle = true // what would be held back does not end by itself
	return r.follow(true).alone()
}

func (r rounds) follow(heldBack bool) outcome {
	r.before, r.after, r.least = max(r.before, 1), max(r.after, 1), max(r.least, leastRound)
	s := &stepped{rounds: r, outcome: outcome{limit: r.limit}, open: r.opening(), fresh: r.first, stuckAt: -1, natural: r.dirty.scale}
	for s.count < mostRounds && s.seconds < forever && !(heldBack && s.held > 0) {
		// It sees that it can end within half of its measurements.
		took := max(s.until(s.fits())+leastRound/2, s.rounds.least)
		was := s.left
		sent, next := s.send(took)
		again := 1
		if s.count > 1 && s.fresh == 0 && math.Abs(s.left-was) <= 1e-3*was {
			// In step: nothing changes until somebody does something.
			if again = s.quiet(took, sent, next); again == 0 {
				break
			}
		}
		s.round(took, sent, next, again)
		if s.fresh+s.left <= s.ends {
			s.last, s.still, s.ended = s.left, s.waits(), true
			s.changed += s.anew
			return s.outcome
		}
		s.act()
	}
	s.last, s.still = s.left, s.waits()
	s.changed += s.anew
	if s.seconds < forever {
		s.again += s.after * (forever - s.seconds)
		s.changed += s.after * (forever - s.seconds)
	}
	// Where nobody gives up before, somebody does then; only a first round that takes
	// longer is longer.
	if late := s.seconds - max(forever, s.opened); late > 0 {
		s.seconds -= late
		s.again = max(0, s.again-late*s.after)
		s.changed = min(s.changed, s.again+s.last)
	}
	return s.outcome
}

// waits is how long what waits takes to be sent.
func (s *stepped) waits() float64 { return s.open.lasts(s.fresh) + s.left/s.carry() }

// fits is how much may wait for the rounds to end, when what waits is sent at the
// rate of now.
func (s *stepped) fits() float64 {
	if s.fresh > s.left {
		return s.open.fits(s.outcome.limit)
	}
	return s.carry() * s.outcome.limit
}

// carry is the rate of what is sent again: what has changed, and what has not.
func (s *stepped) carry() float64 {
	part := share(over(s.anew, s.left))
	if s.left <= 0 {
		part = 1
	}
	return 1 / (part/s.after + (1-part)/max(s.front, s.after))
}

// until is how long it takes until no more than so much waits.
func (s *stepped) until(waits float64) float64 {
	sent := s.fresh + s.left - waits
	if sent <= s.fresh {
		return s.open.lasts(s.fresh) - s.open.lasts(s.fresh-max(sent, 0))
	}
	return s.open.lasts(s.fresh) + (sent-s.fresh)/s.carry()
}

// send sends for a time, and has the guest write meanwhile.
func (s *stepped) send(took float64) (sent, next float64) {
	s.ends = s.fits()
	rest := s.open.after(s.fresh, took)
	if s.fresh > s.left && rest <= 0 {
		s.ends = s.open.behind() * s.outcome.limit
	}
	fresh := s.fresh - rest
	left := min(s.left, max(0, took-s.open.lasts(s.fresh))*s.carry())
	s.fresh = rest
	changed := s.anew * over(left, s.left)
	s.left, s.anew = s.left-left, s.anew-changed
	if s.count > 0 {
		s.again, s.changed = s.again+left, s.changed+changed
	}
	if s.count == 0 {
		took += s.lead
	}
	next = s.dirty.unique(took)
	part := 1.0
	if s.count == 0 {
		// What the guest writes lies behind and is sent last. A page that was written before
		// that is sent again all the same, but as what it was when it was sent.
		part = over(s.dirty.mean(s.open.lasts(min(next, s.first))), next)
	}
	// What waits already is none the worse for being written: of all that was ever
	// written that is left, of the first round fresh.
	if all := s.dirty.unique(s.seconds + took); all > s.left {
		next *= 1 - s.left/all
	} else {
		next = 0
	}
	if s.first > 0 {
		next *= 1 - s.fresh/s.first
	}
	next = min(next, max(0, s.dirty.most-s.left))
	s.left, s.anew = s.left+next, s.anew+next*part
	return fresh + left, next
}

// round takes rounds of one length over.
func (s *stepped) round(took, sent, next float64, times int) {
	n := float64(times)
	if s.count == 0 {
		took += s.lead
		s.opened = took
	}
	s.again, s.changed = s.again+sent*(n-1), s.changed+sent*share(over(s.anew, s.left))*(n-1)
	s.count += times
	s.seconds += took * n
	s.period, s.carried, s.dirtied = s.period+took*n, s.carried+sent*n, s.dirtied+next*n
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
func (s *stepped) quiet(took, sent, next float64) int {
	n := math.Inf(1)
	if s.throttle && s.held < throttleMost && next > throttleShare*sent {
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
