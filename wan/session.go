package wan

import (
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/drover-vm/drover"
)

// burstBytes is how much a limited session may send at once. A quarter of a
// megabyte is 10 ms at 200 Mbit/s: short against every round trip that is worth
// limiting, and four buffers long, so that the limiter costs nothing.
const burstBytes = 256 << 10

// Session is what one move sends between two agents: a rate that all its
// streams share, and what has been counted. Both ends have one of their own.
type Session struct {
	limiter  *rate.Limiter
	counters [channels]struct{ sent, received, streams atomic.Int64 }
	wire     wireCounter
}

// NewSession makes a session that sends at most r over all of its streams;
// zero is unlimited.
func NewSession(r drover.BitRate) *Session {
	s := &Session{limiter: rate.NewLimiter(rate.Inf, burstBytes)}
	s.SetRate(r)
	return s
}

// SetRate changes the limit while streams run; zero is unlimited.
func (s *Session) SetRate(r drover.BitRate) {
	if r <= 0 {
		s.limiter.SetLimit(rate.Inf)
		return
	}
	s.limiter.SetLimit(rate.Limit(float64(r) / 8))
}

// reserve returns how long a sender has to wait before it sends n bytes.
func (s *Session) reserve(n int) time.Duration {
	if s.limiter.Limit() == rate.Inf {
		return 0
	}
	return s.limiter.ReserveN(time.Now(), min(n, burstBytes)).Delay()
}

// Stats are a session's bytes as this end saw them.
type Stats struct {
	Memory, Disk, Copy ChannelStats
	// Sent and received below TLS: the payload, TLS's own, and handshakes, but
	// not TCP and IP. Counted where the session dials, zero where it listens.
	WireSentBytes, WireReceivedBytes int64
}

// ChannelStats are one channel's payload bytes and the streams it had.
type ChannelStats struct {
	SentBytes, ReceivedBytes, Streams int64
}

// Stats may be called at any time.
func (s *Session) Stats() Stats {
	of := func(c Channel) ChannelStats {
		n := &s.counters[c]
		return ChannelStats{n.sent.Load(), n.received.Load(), n.streams.Load()}
	}
	return Stats{of(Memory), of(Disk), of(Copy), s.wire.sent.Load(), s.wire.received.Load()}
}
