package bundle

import (
	"io"
	"net"
	"slices"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/wan/frame"
)

// Message is one that came. Payload is valid until Release.
type Message struct {
	Kind    uint8
	Payload []byte

	in         *inMessage
	generation uint64
}

// Release says that the message has been dealt with: its memory is used again,
// and the far end may send more. It must be called once; calling it again does
// nothing.
func (m *Message) Release() {
	in := m.in
	if in == nil {
		return
	}
	m.in, m.Payload = nil, nil
	b := in.b
	b.mu.Lock()
	defer b.mu.Unlock()
	if in.generation == m.generation {
		b.release(in)
	}
}

// inMessage is a message that comes.
type inMessage struct {
	b         *Bundle
	channel   *Channel
	kind      frame.Kind
	code      uint8
	buf       *buffer
	payload   []byte
	cost      int64
	fragments int
	have      uint64 // a bit for each fragment that is here and right
	claimed   uint64 // that a connection's reader is busy with
	spares    []spare
	// generation tells uses of the struct apart.
	generation uint64
}

// spare is a fragment that came whole while another connection's reader was
// still busy with it, and may never end.
type spare struct {
	fragment int
	data     []byte
}

func (in *inMessage) complete() bool { return in.have == 1<<in.fragments-1 }

// newIn makes a message of n bytes.
func (b *Bundle) newIn(c *Channel, kind frame.Kind, code uint8, n int) *inMessage {
	in, ok := b.pool.in.Get().(*inMessage)
	if !ok {
		in = &inMessage{b: b}
	}
	in.channel, in.kind, in.code, in.have, in.claimed = c, kind, code, 0, 0
	in.fragments, in.cost = frame.Fragments(n), 0
	if kind == frame.Data {
		in.buf = b.pool.get(n)
		in.payload = in.buf.b[:n]
		in.cost = int64(n + frame.MessageOverhead)
	}
	return in
}

// discard lets go of a message. A buffer that a reader is busy with is left to
// the garbage collector.
func (b *Bundle) discard(in *inMessage) {
	in.generation++
	if in.claimed == 0 {
		b.pool.put(in.buf)
	}
	in.buf, in.payload, in.channel = nil, nil, nil
	in.spares = in.spares[:0]
	b.pool.in.Put(in)
}

// release accounts for a message that has been dealt with.
func (b *Bundle) release(in *inMessage) {
	c, cost := in.channel, in.cost
	b.discard(in)
	if c.err != nil {
		return
	}
	c.buffered -= cost
	c.consumed += cost
	if !c.class.exempt() {
		b.buffered -= cost
	}
	b.tell(c)
	b.ackSoon(int(cost))
	b.forget(c)
}

// claim is where a reader puts a fragment. Without a message it is a place to
// throw it away; with own false it is a copy of one that another reader is
// busy with.
type claim struct {
	in         *inMessage
	generation uint64
	own        bool
	place      []byte
}

func (b *Bundle) readData(l *link, r io.Reader, h *frame.Header) error {
	k, err := b.claim(l, h)
	if err != nil {
		return err
	}
	if _, err = io.ReadFull(r, k.place); err == nil {
		err = h.Verify(k.place)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if in := k.in; in != nil && in.generation == k.generation {
		b.settle(k, h, err == nil)
	}
	switch {
	case err != nil:
		return err
	case b.err != nil || l.dead:
		// A fragment that came over a connection just given up is kept all the
		// same, but the peer is not told on whose account.
		return net.ErrClosed
	}
	b.count(l, frame.HeaderBytes+len(k.place))
	return nil
}

// claim finds the place for a fragment.
func (b *Bundle) claim(l *link, h *frame.Header) (claim, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil || l.dead {
		return claim{}, net.ErrClosed
	}
	none := claim{place: l.scratch[:h.Length]}
	c, err := b.lookup(h)
	if c == nil || err != nil {
		return none, err
	}
	in := c.partial[h.Sequence]
	switch {
	case h.Sequence < c.next:
		return none, nil
	case c.hasLast && h.Sequence >= c.last:
		return none, drover.Errorf(drover.Invalid, "wan data", "message %d of channel %d, which ended before %d", h.Sequence, h.Channel, c.last)
	case in == nil:
		if in, err = b.admit(c, h); err != nil {
			return none, err
		}
	case in.kind != frame.Data || len(in.payload) != int(h.Message) || in.code != h.Code:
		return none, drover.Errorf(drover.Invalid, "wan data", "message %d of channel %d has two shapes", h.Sequence, h.Channel)
	}
	bit := uint64(1) << h.Fragment
	switch {
	case in.have&bit != 0:
		return none, nil
	case in.claimed&bit != 0:
		return claim{in: in, generation: in.generation, place: none.place}, nil
	}
	in.claimed |= bit
	from, to := frame.Fragment(len(in.payload), int(h.Fragment))
	return claim{in: in, generation: in.generation, own: true, place: in.payload[from:to]}, nil
}

// admit makes room for a new message, if the far end kept to the windows.
func (b *Bundle) admit(c *Channel, h *frame.Header) (*inMessage, error) {
	cost := int64(h.Message) + frame.MessageOverhead
	own := b.cfg.windows()
	if c.buffered > 0 && c.buffered+cost > int64(own.Channel) {
		return nil, drover.Errorf(drover.Invalid, "wan data", "channel %d holds %d bytes of a window of %d, and %d more came",
			c.id, c.buffered, own.Channel, cost)
	}
	if !c.class.exempt() {
		if b.buffered+cost > int64(own.Bundle) {
			return nil, drover.Errorf(drover.Invalid, "wan data", "the bundle holds %d bytes of a window of %d, and %d more came",
				b.buffered, own.Bundle, cost)
		}
		b.buffered += cost
	}
	c.buffered += cost
	in := b.newIn(c, frame.Data, h.Code, int(h.Message))
	c.partial[h.Sequence] = in
	return in, nil
}

// settle notes how reading a fragment ended.
func (b *Bundle) settle(k claim, h *frame.Header, ok bool) {
	in, bit, i := k.in, uint64(1)<<h.Fragment, int(h.Fragment)
	if !k.own {
		switch {
		case !ok || in.have&bit != 0:
			return
		case in.claimed&bit != 0:
			in.spares = append(in.spares, spare{i, slices.Clone(k.place)})
			return
		}
		from, to := frame.Fragment(len(in.payload), i)
		copy(in.payload[from:to], k.place)
	} else {
		in.claimed &^= bit
		if !ok {
			at := slices.IndexFunc(in.spares, func(s spare) bool { return s.fragment == i })
			if at < 0 {
				return
			}
			from, to := frame.Fragment(len(in.payload), i)
			copy(in.payload[from:to], in.spares[at].data)
		}
	}
	in.have |= bit
	b.stats.received[in.channel.class] += int64(len(k.place))
	if in.complete() {
		b.deliver(in.channel)
	}
}

// deliver passes on what is complete and in order.
func (b *Bundle) deliver(c *Channel) {
	for {
		in := c.partial[c.next]
		if in == nil || !in.complete() {
			return
		}
		delete(c.partial, c.next)
		c.next++
		switch in.kind {
		case frame.Open:
			b.arrived.push(c)
			wake(b.accepting)
			b.discard(in)
		case frame.CloseSend:
			c.ended = true
			wake(c.ready)
			b.discard(in)
			b.forget(c)
		default:
			if c.discard {
				b.release(in)
				continue
			}
			c.received.push(in)
			wake(c.ready)
		}
	}
}

// lookup finds a frame's channel, or makes it when the frame has overtaken its
// open. It returns nil when the channel has ended.
func (b *Bundle) lookup(h *frame.Header) (*Channel, error) {
	c := b.channels[h.Channel]
	switch {
	case c != nil && uint8(c.class) != h.Class:
		return nil, drover.Errorf(drover.Invalid, "wan "+h.Kind.String(), "channel %d of class %d was of class %s", h.Channel, h.Class, c.class)
	case c != nil:
		return c, nil
	case h.Channel%2 == b.nextID%2:
		if h.Channel >= b.nextID {
			return nil, drover.Errorf(drover.Invalid, "wan "+h.Kind.String(), "channel %d, which was not opened here", h.Channel)
		}
		return nil, nil
	case b.closed.has(h.Channel):
		return nil, nil
	case len(b.channels) >= 2*maxChannels || h.Channel-b.closed.next > 4*maxChannels:
		return nil, drover.Errorf(drover.Invalid, "wan "+h.Kind.String(), "channel %d beside %d others", h.Channel, len(b.channels))
	}
	return b.newChannel(h.Channel, Class(h.Class), false), nil
}

// takeMark takes an open, close-send or reset.
func (b *Bundle) takeMark(h *frame.Header, payload []byte) error {
	c, err := b.lookup(h)
	if c == nil || err != nil {
		return err
	}
	bad := func(what string) error {
		return drover.Errorf(drover.Invalid, "wan "+h.Kind.String(), "channel %d: %s", h.Channel, what)
	}
	switch h.Kind {
	case frame.Reset:
		b.breakChannel(c, drover.Errorf(drover.Canceled, "wan channel "+c.name, "closed by the far end: %s", frame.Printable(payload)))
		return nil
	case frame.Open:
		if c.opener {
			return bad("opened by both ends")
		}
	case frame.CloseSend:
		if c.hasLast && c.last != h.Sequence || h.Sequence < c.next && !c.ended {
			return bad("ends twice")
		}
		for sequence := range c.partial {
			if sequence > h.Sequence {
				return bad("ends before messages that came")
			}
		}
		c.last, c.hasLast = h.Sequence, true
	}
	if h.Sequence < c.next || c.partial[h.Sequence] != nil {
		return nil // a copy
	}
	if h.Kind == frame.Open {
		c.name = string(payload)
	}
	in := b.newIn(c, h.Kind, 0, 0)
	in.have = 1
	c.partial[h.Sequence] = in
	b.deliver(c)
	return nil
}
