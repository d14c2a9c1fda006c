package bundle

import (
	"time"

	"github.com/drover-vm/drover"
)

const (
	// A paced bundle may be ahead of its rate by burstTime, at least minBurst:
	// long enough that late timers cost nothing, short against every round trip
	// that is worth pacing.
	burstTime = 15 * time.Millisecond
	minBurst  = 64 << 10

	// What the layers below add: TLS 22 bytes to each record of at most 16 KiB
	// (RFC 8446), Ethernet, IP and TCP 66 to each segment of 1448. Acknowledging
	// segments, which the other end sends, are not this end's.
	recordBytes     = 16 << 10
	recordOverhead  = 22
	segmentBytes    = 1448
	segmentOverhead = 66
)

// onWire estimates what n bytes written at once become on the link.
func onWire(n int) int {
	n += (n + recordBytes - 1) / recordBytes * recordOverhead
	return n + (n+segmentBytes-1)/segmentBytes*segmentOverhead
}

// bucket is a token bucket that may be overdrawn by one write, which the next
// ones wait for.
type bucket struct {
	bytesPerSecond float64 // zero: unlimited
	tokens         float64
	at             time.Time
}

func (k *bucket) set(r drover.BitRate, now time.Time) {
	k.refill(now)
	k.bytesPerSecond = float64(r) / 8
	k.tokens = min(k.tokens, k.burst())
}

func (k *bucket) burst() float64 {
	return max(minBurst, k.bytesPerSecond*burstTime.Seconds())
}

func (k *bucket) refill(now time.Time) {
	if k.bytesPerSecond > 0 {
		k.tokens = min(k.tokens+now.Sub(k.at).Seconds()*k.bytesPerSecond, k.burst())
	} else {
		// A limit that comes later begins with nothing saved.
		k.tokens = 0
	}
	k.at = now
}

// wait returns how long a sender has to wait; zero means now.
func (k *bucket) wait(now time.Time) time.Duration {
	if k.bytesPerSecond == 0 {
		return 0
	}
	k.refill(now)
	if k.tokens >= 0 {
		return 0
	}
	return time.Duration(-k.tokens/k.bytesPerSecond*float64(time.Second)) + time.Microsecond
}

// take pays for n bytes.
func (k *bucket) take(n int) {
	if k.bytesPerSecond > 0 {
		k.tokens -= float64(onWire(n))
	}
}
