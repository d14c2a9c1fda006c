package wanem

import (
	"fmt"
	"math"
	"time"

	"github.com/drover-vm/drover"
)

// Limits of a Shape.
const (
	// MinRateBps is the lowest rate other than 0 (unlimited), in bits per
	// second: below it a single full-size packet takes over 12 s.
	MinRateBps = 1_000
	// MaxRateBps is the highest rate, in bits per second. It is far beyond what
	// user space carries and keeps the clock's arithmetic inside 64 bits.
	MaxRateBps = 1_000_000_000_000
	// MaxDelay bounds delay and jitter: 16 times the way to a geostationary
	// satellite and back; what is longer is a mistyped unit.
	MaxDelay = 10 * time.Second
	// MaxQueueBytes bounds the queue, which lives in this process's memory.
	MaxQueueBytes = 64 << 20

	// minQueueBytes and minQueueTime are the least that a queue holds by
	// default: the burst of two senders' offload-sized packets, and what a
	// router with small buffers holds.
	minQueueBytes = 128 << 10
	minQueueTime  = 10 * time.Millisecond
)

// Shape is how a link treats packets. It holds for each direction on its own.
// The zero Shape is a plain cable.
type Shape struct {
	// RateBps is the rate in bits per second of IP packets, 0 for unlimited.
	RateBps int64 `json:"rate_bps"`
	// Delay is the one-way delay, from the last bit sent to its arrival.
	Delay time.Duration `json:"delay_ns"`
	// Jitter is how far the delay moves to either side of Delay; below a delay
	// of zero it is cut off. It does not reorder.
	Jitter time.Duration `json:"jitter_ns"`
	// Loss is the probability, 0 to 1, that a segment is lost on its way.
	Loss float64 `json:"loss"`
	// QueueBytes bounds what waits for the link, in bytes of IP packets. 0
	// means one round trip at the set rate (rate × 2 × delay), at least 10 ms
	// and 128 KiB and at most MaxQueueBytes. A link without a rate has no queue.
	QueueBytes int `json:"queue_bytes"`
	// CorruptEvery flips one random bit in the TCP payload of every so many
	// segments that have one, unseen by TCP's checksum; 0 is none.
	CorruptEvery int `json:"corrupt_every,omitempty"`
	// Cut drops everything both ways, packets in flight included.
	Cut bool `json:"cut"`
}

// Validate returns an error of kind drover.Invalid that names the first
// setting out of range, its value, and what would be right.
func (s Shape) Validate() error {
	bad := func(format string, args ...any) error {
		return drover.Errorf(drover.Invalid, "", format, args...)
	}
	switch {
	case s.RateBps < 0:
		return bad("rate %d bit/s: want 0 (unlimited) or a positive rate", s.RateBps)
	case s.RateBps > 0 && s.RateBps < MinRateBps, s.RateBps > MaxRateBps:
		return bad("rate %s: want 0 (unlimited) or %s to %s",
			FormatRate(s.RateBps), FormatRate(MinRateBps), FormatRate(MaxRateBps))
	case s.Delay < 0 || s.Delay > MaxDelay:
		return bad("delay %s: want 0s to %s, one way", s.Delay, MaxDelay)
	case s.Jitter < 0 || s.Jitter > MaxDelay:
		return bad("jitter %s: want 0s to %s", s.Jitter, MaxDelay)
	case math.IsNaN(s.Loss) || s.Loss < 0 || s.Loss > 1:
		return bad("loss %v: want a probability from 0 to 1", s.Loss)
	case s.QueueBytes < 0 || s.QueueBytes > MaxQueueBytes:
		return bad("queue %d bytes: want 0 (one round trip) to %d", s.QueueBytes, MaxQueueBytes)
	case s.CorruptEvery < 0:
		return bad("corrupt %d: want 0 (nothing) or every how many packets with data", s.CorruptEvery)
	}
	return nil
}

// queueLimit returns the queue's bound in bytes, the default resolved.
func (s Shape) queueLimit() int {
	if s.QueueBytes > 0 {
		return s.QueueBytes
	}
	bdp := float64(s.RateBps) / 8 * max(2*s.Delay, minQueueTime).Seconds()
	return int(min(max(bdp, minQueueBytes), MaxQueueBytes))
}

// String returns the shape in one line, for logs.
func (s Shape) String() string {
	t := fmt.Sprintf("%s, %s ±%s, loss %v, queue %d B", FormatRate(s.RateBps), s.Delay, s.Jitter, s.Loss, s.queueLimit())
	if s.CorruptEvery > 0 {
		t += fmt.Sprintf(", a bit flipped in every %d. packet", s.CorruptEvery)
	}
	if s.Cut {
		t += ", cut"
	}
	return t
}

// ShapeChange names the settings to change; a nil field stays as it is.
type ShapeChange struct {
	RateBps    *int64         `json:"rate_bps,omitempty"`
	Delay      *time.Duration `json:"delay_ns,omitempty"`
	Jitter     *time.Duration `json:"jitter_ns,omitempty"`
	Loss       *float64       `json:"loss,omitempty"`
	QueueBytes *int           `json:"queue_bytes,omitempty"`
	Cut        *bool          `json:"cut,omitempty"`

	CorruptEvery *int `json:"corrupt_every,omitempty"`
}

// Apply returns s with the named settings replaced.
func (c ShapeChange) Apply(s Shape) Shape {
	set(&s.RateBps, c.RateBps)
	set(&s.Delay, c.Delay)
	set(&s.Jitter, c.Jitter)
	set(&s.Loss, c.Loss)
	set(&s.QueueBytes, c.QueueBytes)
	set(&s.Cut, c.Cut)
	set(&s.CorruptEvery, c.CorruptEvery)
	return s
}

func set[T any](dst, src *T) {
	if src != nil {
		*dst = *src
	}
}

// Counters count one direction. Delivered plus dropped is what was offered,
// less what is still in flight. Offload-sized packets count as the segments a
// wire would carry, each with its own Ethernet, IP and TCP header.
type Counters struct {
	// Bytes and Packets were delivered at the far end.
	Bytes   uint64 `json:"bytes"`
	Packets uint64 `json:"packets"`
	// DroppedBytes and DroppedPackets were refused by the full queue, lost on
	// the way, or caught by a cut.
	DroppedBytes   uint64 `json:"dropped_bytes"`
	DroppedPackets uint64 `json:"dropped_packets"`
	// CorruptedPackets had a bit flipped. They count as carried, too.
	CorruptedPackets uint64 `json:"corrupted_packets"`
}

// Status is a link as it is now. Forward is from Ends[0] to Ends[1].
type Status struct {
	Name    string    `json:"name"`
	Ends    [2]string `json:"ends"`
	Shape   Shape     `json:"shape"`
	Forward Counters  `json:"forward"`
	Reverse Counters  `json:"reverse"`
}
