package forecast

import (
	"math"
	"slices"

	"github.com/drover-vm/drover"
)

// What a live move takes besides its bytes. They are where the models begin: the
// calibration finds this installation's own.
const (
	// liveFixed is reservation, volumes, the receiving hypervisor's start, the
	// verification and the release; liveTrips the round trips in them.
	liveFixed, liveFixedEmulated = 0.5, 0.6
	liveTrips                    = 3
	// diskFixed is what the mirror takes besides its bytes, diskTrips the round trips
	// until it is in step.
	diskFixed, diskTrips = 0.10, 5.0
	// Finish starts the guest at the destination; the device state is small
	// without passed-through devices.
	finish, finishEmulated = 0.080, 0.200
	// finishTrips are the round trips in it: the agents' words cross once there and
	// once back, and half of that is waited for anyway.
	finishTrips = 1
	// zeroRate is how many bytes of zeros a hypervisor finds in a second.
	zeroRate = 2e9
	// framing is what frames, acknowledgements, TLS, TCP and IP add.
	framing = 1.07
	// fallShare is by which part of itself a transfer over a link with a round trip
	// of a second would be slower: congestion control's share of long links.
	fallShare = 3.5
	// sendCost is what a byte that a compressor leaves costs a host, to pack, encrypt and
	// send, beside what a byte costs it to read and to look up: well compressible pages
	// go faster than others also where no link holds them back.
	sendCost = 4.0
	// control is what the two ends and the probes say in a second, in bytes.
	control = 6e3
	// pageName is what is left of a page that the destination has.
	pageName = 0.005
	// modelSpread is what the live model is off by when all that it is told holds.
	modelSpread = 0.10
)

// point is the models' own answer for one figure.
type point struct {
	guess
	known bool
}

// live is a live move before it is a forecast.
type live struct {
	f      *facts
	rounds rounds
	// diskSeconds and diskBytes are the disks' share.
	diskSeconds, diskBytes, diskWire float64
	// first and again are wire bytes per guest byte in the first round and after.
	first, again float64
	fixed        float64
	// base is the seconds of the pause besides the last round, ending those of the
	// transfer.
	base, ending float64
}

// newLive is the model with all that is known, and with factors on what the link
// and the host carry and on how fast the guest writes.
func newLive(f *facts, carry, dirtier float64) *live {
	l := &live{f: f}
	rest := (1 - f.known.value) * f.small.value
	l.first = min(1.02, f.known.value*pageName+rest+pageName)
	l.again = min(1.02, f.resent.value+pageName)
	wire := carried(f.link.value, f.rtt.value) / 8 * carry // bytes/s of what is sent
	encode := f.encode.value * carry
	content := f.memory.value * (1 - f.zero.value)
	r := rounds{
		first: content, lead: f.memory.value * f.zero.value / zeroRate, zeros: f.zero.value,
		before: both(wire/l.first, encode/(1+sendCost*l.first)), after: both(wire/l.again, encode/(1+sendCost*l.again)),
		known: f.known.value, front: both(wire/pageName, encode/(1+sendCost*pageName)),
		dirty: f.dirty, throttle: !f.in.Terms.NoThrottle, least: leastRound + f.rtt.value,
	}
	r.dirty.scale *= dirtier
	r.limit, r.most = pauses(f)
	l.rounds = r
	diskRho := f.diskLeft.value
	diskRate := min(wire/max(diskRho, pageName), encode)
	// What the guest writes while its disks are copied crosses too; the copy is
	// made to end when it would not (its writes wait then).
	writes := min(f.diskUnique.value, 0.9*diskRate)
	if f.disk.value == 0 {
		writes = 0
	}
	l.diskSeconds = over(f.disk.value, diskRate-writes)
	if f.disk.value > 0 {
		l.diskSeconds += diskFixed + diskTrips*f.rtt.value
	}
	l.diskBytes = f.disk.value + writes*l.diskSeconds
	l.diskWire = l.diskBytes * diskRho
	l.fixed = liveFixed
	l.base = finish
	if f.emulate {
		l.fixed, l.base = liveFixedEmulated, finishEmulated
	}
	l.fixed = f.taught.fixed(f.in.From.Site, f.in.To.Site, l.fixed)
	l.fixed += liveTrips * f.rtt.value
	l.ending = drawn(slices.Clone(f.taught.ending), l.base, priorMoves) + finishTrips*f.rtt.value
	l.base = drawn(slices.Clone(f.taught.pausing), l.base, priorMoves) + finishTrips*f.rtt.value
	return l
}

// carried is what transfers get of a link's rate, by its round trip in seconds.
func carried(link, rtt float64) float64 { return link / (1 + fallShare*sane(rtt)) }

// both is the rate of what two things hold back, each with its own: neither waits
// for the other all the time, nor never.
func both(a, b float64) float64 {
	a, b = max(a, 1e-3), max(b, 1e-3)
	low, high := min(a, b), max(a, b)
	return low / math.Cbrt(1+math.Pow(low/high, 3))
}

// orderSpread is how far a pause is off between one after pages that are parted by kind
// and one after pages that are not, as a part of the difference.
const orderSpread = 0.5

// pauses is how long the last round may take at first and in the end, in seconds.
func pauses(f *facts) (limit, most float64) {
	aim := f.in.Terms.MaxPause.Seconds()
	most = aim
	if aim <= 0 {
		aim, most = usualPause, usualMost
	}
	limit = max(leastMemoryPause, leastMemoryTrips*f.rtt.value, aim-roundTripsOfPause*f.rtt.value)
	return limit, max(limit, most)
}

// result is what the model says.
type result struct {
	outcome
	total, pause, wire, guest float64
}

func (l *live) run() result {
	o := l.rounds.run()
	r := result{outcome: o}
	r.pause = l.base + o.still
	r.total = l.fixed + l.diskSeconds + o.seconds + o.still + l.ending
	if !o.ended {
		r.total = max(r.total, forever)
	}
	r.guest = l.rounds.first + o.again + o.last + l.diskBytes
	r.wire = framing*(l.rounds.first*l.first+o.changed*l.again+(o.again+o.last-o.changed)*pageName+l.diskWire) + control*min(r.total, forever)
	return r
}

// forever is what stands for the time of a move that does not end: whoever waits
// has given it up.
const forever = 24 * 3600.0

// The points at which the model is asked: as it is, and with what carries and what
// writes off by what nine cases of ten stay within. Three points of a normal
// distribution with weights that keep its variance.
var scenarios = [3]struct{ z, weight float64 }{{-z10, 0.304}, {0, 0.392}, {z10, 0.304}}

// foretold is a live move with all its uncertainty.
type foretold struct {
	middle                    result
	total, pause, wire, guest guess
	convergence               drover.Convergence
}

func foretell(f *facts) foretold {
	middle := *newLive(f, 1, 1)
	out := foretold{middle: middle.run()}
	carry := carrySpread(f)
	var total, pause, wire, guest spreadOf
	probability := 0.0
	for _, c := range scenarios {
		for _, d := range scenarios {
			l := &middle
			if c.z != 0 || d.z != 0 {
				l = newLive(f, math.Exp(c.z*carry), math.Exp(d.z*f.dirtySpread))
			}
			w := c.weight * d.weight
			r := l.run()
			alone := r.alone()
			if !l.rounds.throttle {
				alone = l.rounds.alone()
			}
			if alone {
				probability += w
			}
			total.add(w, r.total)
			pause.add(w, r.pause)
			wire.add(w, r.wire)
			guest.add(w, r.guest)
		}
	}
	bytes := with(f.memory.spread, nonzeroSpread(f))
	disk := over(middle.diskBytes, out.middle.guest) * f.disk.spread
	out.total = guess{out.middle.total, with(modelSpread, total.sd(), 0.7*bytes, 0.7*disk)}
	// Whether what goes fast and what does not are parted shows in the pause alone.
	mixed := middle
	mixed.rounds.known = 0
	order := orderSpread * math.Abs(math.Log(max(out.middle.pause, 1e-3)/max(mixed.run().pause, 1e-3)))
	out.pause = guess{out.middle.pause, with(modelSpread, pause.sd(), order, f.rtt.spread*over(finishTrips*f.rtt.value, out.middle.pause))}
	out.wire = guess{out.middle.wire, with(modelSpread, wire.sd(), bytes, f.small.spread, knownSpread(f), disk)}
	out.guest = guess{out.middle.guest, with(0.03, guest.sd(), bytes, disk)}
	out.convergence = drover.Convergence{
		Will: probability >= 0.5, Probability: min(1, sane(probability)),
		DirtyBytesPerSecond: sane(f.dirty.rate(max(1, out.middle.seconds/max(1, float64(out.middle.count))))),
		CarryBytesPerSecond: sane(middle.rounds.after),
	}
	return out
}

// carrySpread is that of what is carried: of what bounds it.
func carrySpread(f *facts) float64 {
	l := newLive(f, 1, 1)
	if l.rounds.before >= f.encode.value {
		return f.encode.spread
	}
	return min(with(f.link.spread, 0.7*f.small.spread, 0.7*knownSpread(f)), mostSpread/z10)
}

// nonzeroSpread is what the share of zeros adds: when it is high, a small error of
// it is a large one of the rest.
func nonzeroSpread(f *facts) float64 {
	return min(2, f.zero.spread*over(f.zero.value, 1-f.zero.value))
}

func knownSpread(f *facts) float64 {
	return min(2, f.known.spread*over(f.known.value, 1-f.known.value))
}

// spreadOf is the standard deviation of a logarithm, of values with weights.
type spreadOf struct{ w, sum, squares float64 }

func (s *spreadOf) add(w, v float64) {
	x := math.Log(max(v, 1e-9))
	s.w, s.sum, s.squares = s.w+w, s.sum+w*x, s.squares+w*x*x
}

func (s *spreadOf) sd() float64 {
	if s.w <= 0 {
		return 0
	}
	mean := s.sum / s.w
	return math.Sqrt(max(0, s.squares/s.w-mean*mean))
}
