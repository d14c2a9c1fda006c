package wanem

import (
	"bytes"
	"encoding/binary"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// arrival is a delivered frame or run.
type arrival struct {
	at      int64
	packets int
	wire    int
	headers []byte // without payload; nil for a whole frame
	data    []byte
}

// bench drives a shaper under a clock of its own.
type bench struct {
	*shaper
	now int64
	got []arrival
}

func newBench(s Shape) *bench { return &bench{shaper: newShaper(s, 1)} }

// until moves the clock to t and takes what arrives on the way.
func (b *bench) until(t int64) {
	for b.n > 0 && b.record(0).due <= t {
		rec := *b.record(0)
		frame := b.bytes(&rec)
		a := arrival{at: rec.due, packets: int(rec.packets), wire: int(rec.wire), data: bytes.Clone(frame)}
		if rec.count > 0 {
			lay := parse(frame)
			var head [vnetLen + maxHeader]byte
			headers, payload := lay.run(&head, frame, int(rec.first), int(rec.count))
			a.headers, a.data = bytes.Clone(headers), bytes.Clone(payload)
		}
		b.got = append(b.got, a)
		b.deliver(&rec)
		b.pop()
	}
	b.now = t
}

func (b *bench) send(frame []byte) {
	at, slot, kept := b.slot()
	b.offer(b.now, copy(slot, frame), at, slot, kept)
}

// plain is a frame without offload of n bytes on the wire, numbered.
func plain(n, number int) []byte {
	b := make([]byte, vnetLen+n)
	b[vnetLen+12], b[vnetLen+13] = 0x08, 0x00
	binary.BigEndian.PutUint32(b[vnetLen+14:], uint32(number))
	return b
}

const (
	ms  = int64(time.Millisecond)
	sec = int64(time.Second)
)

func TestRateIsExact(t *testing.T) {
	for _, rate := range []int64{MinRateBps * 100, 10e6, 100e6, 622_080_000, 1e9, 25e9} {
		for _, size := range []int{60, 577, 1514} {
			b := newBench(Shape{RateBps: rate, QueueBytes: MaxQueueBytes})
			const frames = 2000
			for i := range frames {
				b.send(plain(size, i))
			}
			b.until(math.MaxInt64)
			want := float64(frames*(size-etherLen)) * 8e9 / float64(rate)
			if got := float64(b.got[frames-1].at); math.Abs(got-want) > 1 {
				t.Errorf("%s, %d bytes: last frame at %.0f ns, want %.0f", FormatRate(rate), size, got, want)
			}
		}
	}
}

func TestOffloadPacketArrivesAsFromAWire(t *testing.T) {
	f := offloadCases["ipv4"]
	b := newBench(Shape{RateBps: 10e6})
	b.send(f.bytes())
	b.until(math.MaxInt64)
	lay := parse(f.bytes())
	charged := lay.charge(0, lay.segments)
	end := int64(charged) * 8 * sec / 10e6
	if got := b.got[len(b.got)-1].at; got != end {
		t.Errorf("last segment at %d ns, want %d", got, end)
	}
	// One full segment takes 1.2 ms at this rate, so each comes alone.
	if len(b.got) != lay.segments {
		t.Errorf("%d deliveries for %d segments", len(b.got), lay.segments)
	}
	fast := newBench(Shape{RateBps: 1e9})
	fast.send(f.bytes())
	fast.until(math.MaxInt64)
	if len(fast.got) != 1 || fast.got[0].headers != nil {
		t.Errorf("%d deliveries at 1 Gbit/s, want the packet as it was", len(fast.got))
	}
}

// traffic draws frames and the pauses between them.
func traffic(t *rapid.T, b *bench, each func(i int)) {
	n := rapid.IntRange(1, 60).Draw(t, "frames")
	for i := range n {
		b.until(b.now + rapid.Int64Range(0, 3*ms).Draw(t, "pause"))
		if rapid.Bool().Draw(t, "offload") {
			f := offloadCases["ipv4"]
			f.payload = f.payload[:rapid.IntRange(1, 60000).Draw(t, "payload")]
			f.seq = uint32(i)
			b.send(f.bytes())
		} else {
			b.send(plain(rapid.IntRange(60, 1514).Draw(t, "size"), i))
		}
		each(i)
	}
}

func drawShape(t *rapid.T) Shape {
	s := Shape{
		RateBps:    rapid.SampledFrom([]int64{0, 1e6, 10e6, 200e6, 1e9, 10e9}).Draw(t, "rate"),
		Delay:      time.Duration(rapid.Int64Range(0, 50*ms).Draw(t, "delay")),
		Jitter:     time.Duration(rapid.Int64Range(0, 20*ms).Draw(t, "jitter")),
		Loss:       rapid.SampledFrom([]float64{0, 0, 0.01, 0.5, 1}).Draw(t, "loss"),
		QueueBytes: rapid.SampledFrom([]int{0, 1, 3000, 100_000}).Draw(t, "queue"),
		Cut:        rapid.SampledFrom([]bool{false, false, false, true}).Draw(t, "cut"),
	}
	if err := s.Validate(); err != nil {
		t.Fatal(err)
	}
	return s
}

// Whatever the shapes and the traffic: arrivals are in order, never in the
// past, and every byte offered is delivered, dropped, or still held.
func TestOrderAndCount(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := newBench(drawShape(t))
		var offered Counters
		traffic(t, b, func(i int) {
			if rapid.IntRange(0, 9).Draw(t, "change") == 0 {
				b.set(b.now, drawShape(t))
			}
			for k := range b.n {
				if due := b.record(k).due; due < b.now {
					t.Fatalf("frame due at %d is held at %d", due, b.now)
				}
			}
		})
		b.until(math.MaxInt64)
		for i := 1; i < len(b.got); i++ {
			if b.got[i].at < b.got[i-1].at {
				t.Fatalf("arrival %d at %d after one at %d", i, b.got[i].at, b.got[i-1].at)
			}
		}
		for _, a := range b.got {
			offered.Packets += uint64(a.packets)
			offered.Bytes += uint64(a.wire)
		}
		got := Counters{Packets: b.count.Packets, Bytes: b.count.Bytes}
		if diff := cmp.Diff(offered, got); diff != "" {
			t.Fatalf("counted what did not arrive:\n%s", diff)
		}
	})
}

// Delivered and dropped make up what was offered, segment by segment.
func TestNothingIsCountedTwice(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := newBench(drawShape(t))
		var packets, wire uint64
		for i := range rapid.IntRange(1, 40).Draw(t, "frames") {
			f := offloadCases["ipv6"]
			f.payload = f.payload[:rapid.IntRange(1, 60000).Draw(t, "payload")]
			frame := f.bytes()
			lay := parse(frame)
			packets += uint64(lay.segments)
			wire += uint64(lay.wire(0, lay.segments))
			b.send(frame)
			b.until(b.now + rapid.Int64Range(0, 5*ms).Draw(t, "pause"))
			if i == 20 {
				b.set(b.now, drawShape(t))
			}
		}
		b.until(math.MaxInt64)
		if got := b.count.Packets + b.count.DroppedPackets; got != packets {
			t.Fatalf("%d segments counted of %d", got, packets)
		}
		if got := b.count.Bytes + b.count.DroppedBytes; got != wire {
			t.Fatalf("%d bytes counted of %d", got, wire)
		}
	})
}

// The queue holds its bound and no more, dropping segments and not packets.
func TestQueueBound(t *testing.T) {
	const limit = 30_000
	b := newBench(Shape{RateBps: 8e6, QueueBytes: limit}) // 1 byte per µs
	f := offloadCases["ipv4"]
	lay := parse(f.bytes())
	b.send(f.bytes())
	if kept := lay.charge(0, 1) * (lay.segments - int(b.count.DroppedPackets)); kept > limit || kept < limit-1500 {
		t.Errorf("%d bytes of one packet kept in a queue of %d", kept, limit)
	}
	dropped := b.count.DroppedPackets
	b.send(f.bytes())
	if got := b.count.DroppedPackets - dropped; got < uint64(lay.segments)-1 {
		t.Errorf("full queue dropped %d segments of %d", got, lay.segments)
	}
	// After 15 ms there is room for ten segments again, and no more.
	b.until(15 * ms)
	dropped = b.count.DroppedPackets
	b.send(f.bytes())
	if got := lay.segments - int(b.count.DroppedPackets-dropped); got != 10 {
		t.Errorf("queue half empty took %d segments, want 10", got)
	}
	b.until(math.MaxInt64)
	for _, a := range b.got {
		if a.at > int64(15*ms)+limit*1000 {
			t.Errorf("arrival at %d ns: more was queued than %d bytes", a.at, limit)
		}
	}
}

func TestIdleLinkTakesAFrameLargerThanItsQueue(t *testing.T) {
	b := newBench(Shape{RateBps: 1e6, QueueBytes: 1})
	b.send(plain(1514, 0))
	b.send(plain(1514, 1))
	if b.count.DroppedPackets != 1 || b.n != 1 {
		t.Errorf("%d dropped, %d held, want 1 and 1", b.count.DroppedPackets, b.n)
	}
}

func TestLossIsPerSegmentAndSeeded(t *testing.T) {
	run := func(seed uint64) ([]int32, Counters) {
		s := newShaper(Shape{Loss: 0.05}, seed)
		var lost []int32
		for range 500 {
			at, b, kept := s.slot()
			s.offer(0, copy(b, offloadCases["ipv4"].bytes()), at, b, kept)
			for ; s.n > 0; s.pop() {
				lost = append(lost, s.record(0).first, s.record(0).count)
				s.deliver(s.record(0))
			}
		}
		return lost, s.count
	}
	first, count := run(1)
	again, _ := run(1)
	other, _ := run(2)
	if !slices.Equal(first, again) {
		t.Error("the same seed lost other segments")
	}
	if slices.Equal(first, other) {
		t.Error("another seed lost the same segments")
	}
	n := float64(count.Packets + count.DroppedPackets)
	sigma := math.Sqrt(n * 0.05 * 0.95)
	if d := float64(count.DroppedPackets) - 0.05*n; math.Abs(d) > 5*sigma {
		t.Errorf("%d of %.0f segments lost at 5 %%", count.DroppedPackets, n)
	}
}

// What is lost on the way has been sent before.
func TestLostSegmentsUseTheLink(t *testing.T) {
	b := newBench(Shape{RateBps: 1e6, Loss: 1})
	for i := range 10 {
		b.send(plain(1264, i)) // 10 ms each
	}
	b.set(0, Shape{RateBps: 1e6})
	b.send(plain(1264, 10))
	b.until(math.MaxInt64)
	if len(b.got) != 1 || b.got[0].at != 10*ms {
		t.Errorf("arrivals after a change that freed the link: %d, want one at 10 ms", len(b.got))
	}
	half := newBench(Shape{RateBps: 1e6, Loss: 0.5, QueueBytes: MaxQueueBytes})
	const frames = 1000
	for i := range frames {
		half.send(plain(1264, i))
	}
	half.until(math.MaxInt64)
	last := half.got[len(half.got)-1]
	number := int64(binary.BigEndian.Uint32(last.data[vnetLen+14:]))
	if last.at != (number+1)*10*ms {
		t.Errorf("frame %d arrives at %d ns, want %d", number, last.at, (number+1)*10*ms)
	}
}

// What loss and a full queue leave of a packet is exactly the rest of it.
func TestSurvivorsKeepTheirBytes(t *testing.T) {
	f := offloadCases["ipv4"]
	b := newBench(Shape{RateBps: 50e6, Loss: 0.2, QueueBytes: 40_000})
	b.send(f.bytes())
	b.until(math.MaxInt64)
	seen := map[uint32]bool{}
	for _, a := range b.got {
		tcp := a.headers[vnetLen+int(binary.LittleEndian.Uint16(a.headers[vnetCsumStart:])):]
		from := binary.BigEndian.Uint32(tcp[4:]) - f.seq
		if !bytes.Equal(a.data, f.payload[from:int(from)+len(a.data)]) {
			t.Errorf("bytes at %d differ", from)
		}
		if seen[from] {
			t.Errorf("bytes at %d arrived twice", from)
		}
		seen[from] = true
	}
	if b.count.DroppedPackets == 0 || b.count.Packets == 0 {
		t.Errorf("%+v: want some lost, some delivered", b.count)
	}
}

func TestDelayAndJitter(t *testing.T) {
	const delay, amplitude = 20 * ms, 5 * ms
	b := newBench(Shape{Delay: time.Duration(delay), Jitter: time.Duration(amplitude)})
	var sent []int64
	for i := range 20_000 {
		b.until(b.now + 100_000)
		sent = append(sent, b.now)
		b.send(plain(100, i))
	}
	b.until(math.MaxInt64)
	var sum float64
	lowest, highest := int64(math.MaxInt64), int64(0)
	for i, a := range b.got {
		d := a.at - sent[i]
		sum += float64(d)
		lowest, highest = min(lowest, d), max(highest, d)
	}
	if lowest < delay-amplitude || highest > delay+amplitude {
		t.Errorf("delays from %d to %d ns", lowest, highest)
	}
	if highest-lowest < amplitude {
		t.Errorf("delays from %d to %d ns: hardly any jitter", lowest, highest)
	}
	// 2 s are 100 lines: the mean's deviation is about 0.06 amplitudes.
	if mean := sum / float64(len(b.got)); math.Abs(mean-float64(delay)) > float64(amplitude)/3 {
		t.Errorf("mean delay %.0f ns, want about %d", mean, delay)
	}
}

func TestChangeWhileFramesAreHeld(t *testing.T) {
	slow := Shape{RateBps: 1_000_000, Delay: time.Second, QueueBytes: 1 << 20}
	start := func() *bench {
		b := newBench(slow)
		for i := range 100 {
			b.send(plain(1264, i)) // 10 ms each
		}
		b.until(500 * ms) // 50 in flight, 50 wait
		return b
	}
	change := func(f func(*Shape)) *bench {
		b := start()
		s := slow
		f(&s)
		b.set(b.now, s)
		b.until(math.MaxInt64)
		return b
	}
	last := func(b *bench) int64 { return b.got[len(b.got)-1].at }

	if b := change(func(s *Shape) { s.RateBps *= 10 }); last(b) != 500*ms+50*ms+sec {
		t.Errorf("ten times the rate: last arrival at %d ns", last(b))
	} else if b.got[49].at != 500*ms+sec {
		t.Errorf("ten times the rate: a frame in flight arrives at %d ns", b.got[49].at)
	}
	if b := change(func(s *Shape) { s.RateBps = 0 }); last(b) != 500*ms+sec {
		t.Errorf("unlimited: last arrival at %d ns", last(b))
	}
	if b := change(func(s *Shape) { s.Delay = 0 }); b.got[0].at != 500*ms || last(b) != sec {
		t.Errorf("no delay: arrivals from %d to %d ns", b.got[0].at, last(b))
	}
	if b := change(func(s *Shape) { s.Delay *= 2 }); b.got[0].at != 1010*ms || last(b) != 3*sec {
		t.Errorf("twice the delay: arrivals from %d to %d ns", b.got[0].at, last(b))
	}
	if b := change(func(s *Shape) { s.Cut = true }); len(b.got) != 0 || b.count.DroppedPackets != 100 {
		t.Errorf("cut: %d arrived, %d dropped", len(b.got), b.count.DroppedPackets)
	}
	// A frame that is half sent has only its other half to go.
	b := start()
	b.until(505 * ms)
	faster := slow
	faster.RateBps *= 10
	b.set(b.now, faster)
	b.until(math.MaxInt64)
	if want := 505*ms + ms/2 + 49*ms + sec; last(b) != want {
		t.Errorf("a change within a frame: last arrival at %d ns, want %d", last(b), want)
	}
	b = start()
	b.set(b.now, Shape{Cut: true})
	b.send(plain(100, 0))
	b.set(b.now, Shape{})
	b.send(plain(100, 1))
	b.until(math.MaxInt64)
	if len(b.got) != 1 || b.got[0].at != 500*ms {
		t.Errorf("healed: %d arrived", len(b.got))
	}
}

// The ring grows and wraps without mixing up frames, whole or divided.
func TestRingKeepsFrames(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := newRing()
		var want [][]byte
		steps := rapid.IntRange(50, 600).Draw(t, "steps")
		for i := range steps {
			if len(want) > 0 && rapid.IntRange(0, 2).Draw(t, "pop") == 0 {
				if got := r.bytes(r.record(0)); !bytes.Equal(got, want[0]) {
					t.Fatalf("step %d: frame differs", i)
				}
				want = want[1:]
				r.pop()
				continue
			}
			at, b, ok := r.slot()
			if !ok {
				t.Fatal("no room")
			}
			frame := bytes.Repeat([]byte{byte(i), byte(i >> 8)}, rapid.IntRange(1, maxFrame/2).Draw(t, "size"))
			copy(b, frame)
			for range rapid.IntRange(1, 3).Draw(t, "runs") {
				r.push(record{at: at, length: int32(len(frame))})
				want = append(want, frame)
			}
		}
		for _, w := range want {
			if !bytes.Equal(r.bytes(r.record(0)), w) {
				t.Fatal("frame differs")
			}
			r.pop()
		}
	})
}

// A direction that holds its most drops what comes, and counts it.
func TestRingBound(t *testing.T) {
	b := newBench(Shape{Delay: MaxDelay})
	frame := plain(65_000, 0)
	sent := 0
	for ; b.count.DroppedPackets == 0; sent++ {
		if sent*len(frame) > 2*ringMax {
			t.Fatal("the ring has no bound")
		}
		b.send(frame)
	}
	if held := (sent - 1) * len(frame); held < ringMax*9/10 {
		t.Errorf("%d bytes held of %d", held, ringMax)
	}
	b.until(math.MaxInt64)
	if len(b.got) != sent-1 {
		t.Errorf("%d arrived of %d", len(b.got), sent-1)
	}
}

// The data path must not allocate once its buffers have grown.
func TestNoAllocationPerFrame(t *testing.T) {
	s := newShaper(Shape{RateBps: 100e6, Delay: time.Millisecond, Jitter: time.Millisecond, Loss: 0.01}, 1)
	frame := offloadCases["ipv4"].bytes()
	var head [vnetLen + maxHeader]byte
	now := int64(0)
	step := func() {
		at, b, kept := s.slot()
		s.offer(now, copy(b, frame), at, b, kept)
		now += 5 * ms
		for ; s.n > 0 && s.record(0).due <= now; s.pop() {
			if rec := s.record(0); rec.count > 0 {
				f := s.bytes(rec)
				lay := parse(f)
				lay.run(&head, f, int(rec.first), int(rec.count))
			}
		}
	}
	if n := testing.AllocsPerRun(1000, step); n != 0 {
		t.Errorf("%v allocations per frame", n)
	}
}
