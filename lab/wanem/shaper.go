package wanem

import (
	"math/bits"
	"math/rand/v2"
	"time"
)

// burstTime is the longest that one delivered packet may take to serialise:
// an offload packet that takes longer arrives in pieces, as it would from a
// wire. It is about what the kernel's own pacing puts into one packet.
const burstTime = int64(time.Millisecond)

// shaper is one direction of a link without its devices: it decides what
// becomes of each frame and when. Time is an argument, in nanoseconds of a
// clock that never goes back. It is not safe for concurrent use.
type shaper struct {
	*ring
	shape     Shape
	random    *rand.Rand
	jitter    jitter
	queueTime int64 // how long a full queue takes to send
	burst     int   // bytes charged to one delivered packet at most
	busy      int64 // when the last admitted bit is sent
	rest      uint64
	corrupter corrupter
	count     Counters
}

func newShaper(shape Shape, seed uint64) *shaper {
	s := &shaper{ring: newRing(), random: rand.New(rand.NewPCG(seed, 0))}
	s.set(0, shape)
	return s
}

// set changes the shape at time now. Frames that wait are sent at the new
// rate; frames in flight keep their time, unless the new delay is shorter than
// what they have left; a cut loses both. A smaller queue drops nothing that
// was admitted.
func (s *shaper) set(now int64, shape Shape) {
	old := s.shape.RateBps
	s.shape = shape
	s.jitter.set(int64(shape.Jitter))
	s.corrupter.every = shape.CorruptEvery
	s.burst, s.queueTime = ringMax, 0
	if shape.RateBps > 0 {
		s.burst = max(1, int(shape.RateBps/8*burstTime/int64(time.Second)))
		s.queueTime, _ = airtime(shape.queueLimit(), shape.RateBps, 0)
	}
	if shape.Cut {
		for ; s.n > 0; s.pop() {
			s.drop(s.record(0))
		}
		s.busy, s.rest = now, 0
		return
	}
	s.retime(now, old)
}

// retime gives the records held their times under a new shape.
func (s *shaper) retime(now, oldRate int64) {
	busy := now
	s.rest = 0
	for i := range s.n {
		rec := s.record(i)
		if rec.sent > now {
			left := int(rec.charged)
			if i == 0 || s.record(i-1).sent <= now { // partly sent already
				hi, lo := bits.Mul64(uint64(rec.sent-now), uint64(oldRate))
				sent, _ := bits.Div64(hi, lo, 8*uint64(time.Second))
				left = min(left, int(sent))
			}
			rec.sent = s.send(busy, left)
			rec.due = rec.sent + s.delay(rec.sent)
		} else {
			rec.due = min(rec.due, now+s.delay(now))
		}
		busy = max(busy, rec.sent)
	}
	s.busy = busy
}

// send returns when n bytes that begin at from have been sent. What a
// nanosecond cannot hold is carried to the next call, so that the rate is
// exact in the long run.
func (s *shaper) send(from int64, n int) int64 {
	if s.shape.RateBps == 0 {
		return from
	}
	t, rest := airtime(n, s.shape.RateBps, s.rest)
	s.rest = rest
	return from + t
}

// airtime returns the nanoseconds that n bytes take at a rate, and the
// remainder in units of 1/rate ns, rest being that of the bytes before.
func airtime(n int, rate int64, rest uint64) (int64, uint64) {
	scaled := uint64(n)*8*uint64(time.Second) + rest
	return int64(scaled / uint64(rate)), scaled % uint64(rate)
}

// delay returns the delay of a bit sent at time t.
func (s *shaper) delay(t int64) int64 {
	return max(0, int64(s.shape.Delay)+s.jitter.at(t, s.random))
}

// offer admits the frame of n bytes that was read into slot's buffer b at
// position at; kept is slot's third result.
func (s *shaper) offer(now int64, n int, at uint64, b []byte, kept bool) {
	lay := parse(b[:n])
	whole := record{at: at, length: int32(n), packets: int32(lay.segments), wire: int32(lay.wire(0, lay.segments))}
	if s.shape.Cut || !kept {
		s.drop(&whole)
		return
	}
	if s.busy < now {
		s.busy, s.rest = now, 0
	}
	// Each segment is refused by the queue, lost on its way, or joins the run
	// of its predecessors until that makes a packet.
	first, charged := 0, 0
	flush := func(end int) {
		if end > first {
			s.hold(whole, &lay, first, end-first, charged)
		}
		first, charged = end, 0
	}
	for i := range lay.segments {
		size := lay.charge(i, 1)
		if charged+size > s.burst {
			flush(i)
		}
		begin := s.busy
		end := begin
		if s.shape.RateBps > 0 {
			t, rest := airtime(size, s.shape.RateBps, s.rest)
			if end += t; begin > now && end-now > s.queueTime {
				flush(i)
				s.dropSegment(&lay, i)
				first = i + 1
				continue
			}
			s.rest = rest
		}
		if s.shape.Loss > 0 && s.random.Float64() < s.shape.Loss {
			flush(i)
			s.dropSegment(&lay, i)
			s.busy, first = end, i+1
			continue
		}
		s.busy = end
		charged += size
		s.corrupt(b[:n], &lay, i)
	}
	flush(lay.segments)
}

// hold keeps a run whose last bit is sent at s.busy until it is due.
func (s *shaper) hold(rec record, lay *layout, first, count, charged int) {
	rec.charged = int32(charged)
	if count < lay.segments {
		rec.first, rec.count, rec.packets = int32(first), int32(count), int32(count)
		rec.wire = int32(lay.wire(first, count))
	}
	rec.sent = s.busy
	rec.due = s.busy + s.delay(s.busy)
	s.push(rec)
}

func (s *shaper) dropSegment(lay *layout, i int) {
	s.count.DroppedPackets++
	s.count.DroppedBytes += uint64(lay.wire(i, 1))
}

func (s *shaper) drop(rec *record) {
	s.count.DroppedPackets += uint64(rec.packets)
	s.count.DroppedBytes += uint64(rec.wire)
}

func (s *shaper) deliver(rec *record) {
	s.count.Packets += uint64(rec.packets)
	s.count.Bytes += uint64(rec.wire)
}

// jitter is an offset that moves in straight lines between random points. They
// are four amplitudes apart and at most two amplitudes different, so that the
// delay never falls faster than half of what time passes: order holds, and a
// stream is squeezed or stretched by half at most.
type jitter struct {
	amplitude  int64
	start      int64 // of the line, clock ns
	from, to   int64
	configured bool
}

// jitterSpan is the length of a line in amplitudes.
const jitterSpan = 4

func (j *jitter) set(amplitude int64) { *j = jitter{amplitude: amplitude} }

func (j *jitter) at(t int64, random *rand.Rand) int64 {
	if j.amplitude == 0 {
		return 0
	}
	draw := func() int64 { return random.Int64N(2*j.amplitude+1) - j.amplitude }
	span := jitterSpan * j.amplitude
	switch {
	case !j.configured || t >= j.start+2*span: // a pause: nothing to connect to
		*j = jitter{amplitude: j.amplitude, start: t, from: draw(), to: draw(), configured: true}
	case t >= j.start+span:
		j.start, j.from, j.to = j.start+span, j.to, draw()
	}
	return j.from + int64(float64(j.to-j.from)*float64(t-j.start)/float64(span))
}
