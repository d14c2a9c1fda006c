package bundle

import (
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/wan/frame"
)

const (
	// An ack waits for others for ackDelay, short against every WAN's round
	// trip, or until ackEvery bytes have come.
	ackDelay = time.Millisecond
	ackEvery = 256 << 10
)

// count notes a counted frame of n bytes that came.
func (b *Bundle) count(l *link, n int) {
	l.received++
	b.touch()
	b.ackSoon(n)
}

// ackSoon makes an ack due soon, or now when n more bytes are enough.
func (b *Bundle) ackSoon(n int) {
	if b.ackDue {
		return
	}
	b.ackBytes += n
	switch {
	case b.ackBytes >= ackEvery:
		b.ackDue = true
		b.work.Signal()
	case !b.ackArmed:
		b.ackArmed = true
		b.ackTimer.Reset(ackDelay)
	}
}

func (b *Bundle) ackNow() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ackArmed = false
	if b.ackBytes > 0 {
		b.ackDue = true
		b.work.Signal()
	}
}

// repeat makes everything be told again that may have been lost.
func (b *Bundle) repeat() {
	for _, l := range b.links {
		l.told = 0
	}
	for _, l := range b.ghosts {
		l.told = 0
	}
	for _, c := range b.channels {
		b.tell(c)
	}
	b.repeatAll = true
	b.ackDue = true
}

// tell puts a channel on the next ack.
func (b *Bundle) tell(c *Channel) {
	if !c.dirty {
		c.dirty = true
		b.dirty = append(b.dirty, c)
	}
}

// appendAck appends an ack to the writer's buffer. What does not fit stays due.
func (b *Bundle) appendAck(l *link) {
	var conns [frame.MaxAckConns]frame.Count
	var channels [frame.MaxAckChannels]frame.Count
	n, m, more := 0, 0, false
	for _, list := range [2][]*link{b.links, b.ghosts} {
		for _, other := range list {
			switch {
			case other.told == other.received:
			case n == len(conns):
				more = true
			default:
				conns[n] = frame.Count{ID: other.number, Value: other.received}
				other.told = other.received
				n++
			}
		}
	}
	rest := b.dirty[:0]
	for _, c := range b.dirty {
		if m == len(channels) {
			rest = append(rest, c)
			continue
		}
		c.dirty = false
		if c.consumed > 0 {
			channels[m] = frame.Count{ID: c.id, Value: uint64(c.consumed)}
			m++
		}
	}
	clear(b.dirty[len(rest):])
	b.dirty = rest
	if b.repeatAll && m+len(b.finals) <= len(channels) {
		m += copy(channels[m:], b.finals)
		b.repeatAll = false
	}
	b.ackDue = more || len(b.dirty) > 0 || b.repeatAll
	b.ackBytes = 0
	if n+m == 0 {
		return
	}
	start := len(l.buf)
	var head [frame.HeaderBytes]byte
	l.buf = frame.AppendAck(append(l.buf, head[:]...), conns[:n], channels[:m])
	h := frame.Header{Kind: frame.Ack}
	h.Encode(l.buf[start:], l.buf[start+frame.HeaderBytes:])
}

// takeAck is told what the far end has.
func (b *Bundle) takeAck(payload []byte) error {
	return frame.ParseAck(payload, b.takeCount, b.takeConsumed)
}

func (b *Bundle) takeCount(c frame.Count) error {
	for _, list := range [2][]*link{b.links, b.ghosts} {
		for _, l := range list {
			if l.number != c.ID {
				continue
			}
			if c.Value > l.acked+uint64(l.log.len()) {
				return drover.Errorf(drover.Invalid, "wan ack", "%d frames of connection %d, which has carried %d",
					c.Value, c.ID, l.acked+uint64(l.log.len()))
			}
			for l.acked < c.Value {
				l.acked++
				b.delivered(l.log.pop())
			}
			return nil
		}
	}
	// One that is forgotten: all it carried was sent again.
	return nil
}

// delivered notes that the far end has a frame.
func (b *Bundle) delivered(s sent) {
	b.touch()
	if s.stale() {
		return
	}
	m := s.m
	m.acked |= 1 << s.fragment
	b.stats.acked += int64(len(m.frame(s.fragment)))
	if m.acked != 1<<m.fragments-1 {
		return
	}
	c := m.channel
	if m.kind == frame.CloseSend {
		c.endTold = true
	}
	b.retire(m)
	b.forget(c)
}

func (b *Bundle) takeConsumed(n frame.Count) error {
	c := b.channels[n.ID]
	if c == nil || c.err != nil {
		return nil
	}
	consumed := int64(n.Value)
	if consumed < 0 || consumed > c.promised {
		return drover.Errorf(drover.Invalid, "wan ack", "%d bytes consumed of channel %d, which was sent %d", n.Value, n.ID, c.promised)
	}
	freed := consumed - c.farConsumed
	if freed <= 0 {
		return nil // told twice, or overtaken
	}
	c.farConsumed = consumed
	wake(c.canSend)
	wake(c.drained)
	if !c.class.exempt() {
		b.outstanding -= freed
		b.wakeStarved()
	}
	b.forget(c)
	return nil
}

// wakeStarved wakes senders that wait for the bundle's window.
func (b *Bundle) wakeStarved() {
	for _, c := range b.channels {
		if c.starved {
			c.starved = false
			wake(c.canSend)
		}
	}
}
