package bundle

import (
	"context"
	"io"
	"unicode/utf8"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/wan/frame"
)

// Channel carries messages both ways, each once and in order. Its methods may
// be called concurrently; concurrent Sends are in no particular order.
type Channel struct {
	b      *Bundle
	id     uint32
	class  Class
	name   string
	opener bool // this end opened it

	sending  chan struct{} // held by the Send under way
	canSend  chan struct{} // something has changed for it
	ready    chan struct{} // something has changed for Receive
	drained  chan struct{} // something has changed for Drain
	sequence uint64        // of the next message; whoever holds sending

	// Guarded by Bundle.mu.
	err         error // the channel was reset, by either end
	out         queue[*outMessage]
	unsent      int // bytes in out
	inTurn      bool
	starved     bool
	promised    int64 // what all messages sent count in the window
	farConsumed int64 // of which the far end has released
	endSent     bool  // CloseSend was called
	endTold     bool  // and the far end has it

	next      uint64 // sequence of the next message to deliver
	partial   map[uint64]*inMessage
	received  queue[*inMessage]
	buffered  int64 // what is here, not released
	consumed  int64 // what was released
	last      uint64
	hasLast   bool // the far end's CloseSend has come, with sequence last
	ended     bool // and everything before it
	discard   bool // Close was called: nobody receives any more
	dirty     bool // consumed is to be told
	forgotten bool
}

func (b *Bundle) newChannel(id uint32, class Class, opener bool) *Channel {
	c := &Channel{
		b: b, id: id, class: class, opener: opener,
		sending: make(chan struct{}, 1), canSend: make(chan struct{}, 1),
		ready: make(chan struct{}, 1), drained: make(chan struct{}, 1),
		partial: make(map[uint64]*inMessage), sequence: 1,
	}
	if opener {
		c.next = 1
	}
	b.channels[id] = c
	return c
}

// Open opens a channel; the far end's Accept returns it. The name is up to
// frame.MaxText bytes of UTF-8. It does not wait for the far end. Too many open
// channels give drover.Exhausted.
func (b *Bundle) Open(ctx context.Context, class Class, name string) (*Channel, error) {
	const op = "open wan channel"
	switch {
	case class >= classes:
		return nil, drover.Errorf(drover.Invalid, op, "class %d, want 0 to %d", uint8(class), classes-1)
	case len(name) > frame.MaxText || !utf8.ValidString(name):
		return nil, drover.Errorf(drover.Invalid, op, "name %q, want UTF-8 of at most %d bytes", name, frame.MaxText)
	case ctx.Err() != nil:
		return nil, drover.E(drover.Canceled, op, context.Cause(ctx))
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.usable(); err != nil {
		return nil, err
	}
	if len(b.channels) >= maxChannels {
		return nil, drover.Errorf(drover.Exhausted, op, "%d are open", len(b.channels))
	}
	c := b.newChannel(b.nextID, class, true)
	c.name = name
	b.nextID += 2
	b.enqueue(b.encode(c, frame.Open, 0, 0, []byte(name)))
	return c, nil
}

// usable returns why nothing new can begin.
func (b *Bundle) usable() error {
	if b.err != nil {
		return b.err
	}
	if b.closing {
		return drover.E(drover.Canceled, "wan bundle", ErrClosed)
	}
	return nil
}

// Accept waits for a channel that the far end opens.
func (b *Bundle) Accept(ctx context.Context) (*Channel, error) {
	for {
		b.mu.Lock()
		if b.arrived.len() > 0 {
			c := b.arrived.pop()
			if b.arrived.len() > 0 {
				wake(b.accepting)
			}
			b.mu.Unlock()
			return c, nil
		}
		err := b.err
		b.mu.Unlock()
		if err != nil {
			wake(b.accepting)
			return nil, err
		}
		select {
		case <-b.accepting:
		case <-ctx.Done():
			return nil, drover.E(drover.Canceled, "accept wan channel", context.Cause(ctx))
		}
	}
}

// Class returns the channel's class.
func (c *Channel) Class() Class { return c.class }

// Name returns the name that it was opened with.
func (c *Channel) Name() string { return c.name }

// Send sends one message of at most frame.MaxMessage bytes, which it copies.
// It waits while the far end's window is full or the path does not take what
// is waiting; when ctx ends first, nothing was sent. After it has returned nil
// the message arrives once, in order, unless channel or bundle break.
func (c *Channel) Send(ctx context.Context, kind uint8, payload []byte) error {
	const op = "send wan message"
	if len(payload) > frame.MaxMessage {
		return drover.Errorf(drover.Invalid, op, "%d bytes, want at most %d", len(payload), frame.MaxMessage)
	}
	select {
	case c.sending <- struct{}{}:
	case <-ctx.Done():
		return drover.E(drover.Canceled, op, context.Cause(ctx))
	}
	defer func() { <-c.sending }()
	if err := c.reserve(ctx, int64(len(payload)+frame.MessageOverhead)); err != nil {
		return err
	}
	m := c.b.encode(c, frame.Data, kind, c.sequence, payload)
	b := c.b
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := c.sendable(); err != nil {
		return err
	}
	c.sequence++
	b.enqueue(m)
	return nil
}

// reserve waits for room in the windows and takes it.
func (c *Channel) reserve(ctx context.Context, cost int64) error {
	b := c.b
	for {
		b.mu.Lock()
		err := c.sendable()
		room := err == nil && c.room(cost)
		if room {
			c.promised += cost
			if !c.class.exempt() {
				b.outstanding += cost
			}
		}
		b.mu.Unlock()
		switch {
		case err != nil:
			wake(c.canSend)
			return err
		case room:
			return nil
		}
		select {
		case <-c.canSend:
		case <-ctx.Done():
			return drover.E(drover.Canceled, "send wan message", context.Cause(ctx))
		}
	}
}

func (c *Channel) sendable() error {
	switch {
	case c.err != nil:
		return c.err
	case c.endSent:
		return drover.Errorf(drover.Invalid, "send wan message", "after the channel's end")
	}
	return c.b.usable()
}

func (c *Channel) room(cost int64) bool {
	b := c.b
	if !b.joined || c.unsent >= b.queueLimit {
		return false
	}
	if under := c.promised - c.farConsumed; under > 0 && under+cost > int64(b.windows.Channel) {
		return false
	}
	if !c.class.exempt() && b.outstanding+cost > c.class.share(int64(b.windows.Bundle)) {
		c.starved = true
		return false
	}
	return true
}

// CloseSend ends this direction: the far end receives io.EOF after all that was
// sent. It waits for a Send under way. Calling it again does nothing.
func (c *Channel) CloseSend() error {
	c.sending <- struct{}{}
	defer func() { <-c.sending }()
	b := c.b
	b.mu.Lock()
	defer b.mu.Unlock()
	if c.endSent {
		return nil
	}
	if err := c.sendable(); err != nil {
		return err
	}
	c.endSent = true
	b.enqueue(b.encode(c, frame.CloseSend, 0, c.sequence, nil))
	return nil
}

// Drain waits until the far end has released everything that was sent so far.
func (c *Channel) Drain(ctx context.Context) error {
	b := c.b
	b.mu.Lock()
	goal := c.promised
	b.mu.Unlock()
	for {
		b.mu.Lock()
		done, err := c.farConsumed >= goal, c.err
		if err == nil {
			err = b.err
		}
		b.mu.Unlock()
		if done || err != nil {
			wake(c.drained)
			if done {
				return nil
			}
			return err
		}
		select {
		case <-c.drained:
			// Another one's goal may be reached.
			defer wake(c.drained)
		case <-ctx.Done():
			return drover.E(drover.Canceled, "drain wan channel", context.Cause(ctx))
		}
	}
}

// Receive waits for the next message, whose Release must be called. After the
// far end's CloseSend and everything before it, it returns io.EOF.
func (c *Channel) Receive(ctx context.Context) (Message, error) {
	b := c.b
	for {
		b.mu.Lock()
		if c.received.len() > 0 {
			in := c.received.pop()
			if c.received.len() > 0 {
				wake(c.ready)
			}
			b.mu.Unlock()
			return Message{Kind: in.code, Payload: in.payload, in: in, generation: in.generation}, nil
		}
		err := c.err
		switch {
		case err != nil:
		case c.ended:
			err = io.EOF
		default:
			err = b.err
		}
		b.mu.Unlock()
		if err != nil {
			wake(c.ready)
			return Message{}, err
		}
		select {
		case <-c.ready:
		case <-ctx.Done():
			return Message{}, drover.E(drover.Canceled, "receive wan message", context.Cause(ctx))
		}
	}
}

// Close gives the channel up at this end. After CloseSend what was sent still
// arrives, and what comes is discarded; without it, the far end's Send and
// Receive fail with drover.Canceled.
func (c *Channel) Close() {
	b := c.b
	b.mu.Lock()
	defer b.mu.Unlock()
	if c.err != nil || c.forgotten || b.err != nil {
		return
	}
	if c.endSent {
		c.discard = true
		for c.received.len() > 0 {
			in := c.received.pop()
			b.release(in)
		}
		return
	}
	b.breakChannel(c, drover.Errorf(drover.Canceled, "wan channel "+c.name, "closed"))
	b.enqueue(b.encode(c, frame.Reset, 0, 0, []byte("closed")))
}

// breakChannel gives up all that the channel has.
func (b *Bundle) breakChannel(c *Channel, err error) {
	c.err = err
	if !c.class.exempt() {
		b.outstanding -= c.promised - c.farConsumed
		b.buffered -= c.buffered
		b.wakeStarved()
	}
	c.buffered = 0
	for c.out.len() > 0 {
		b.retire(c.out.pop())
	}
	c.unsent = 0
	if c.inTurn {
		q := &b.turns[c.class]
		for range q.len() {
			if other := q.pop(); other != c {
				q.push(other)
			}
		}
		c.inTurn = false
	}
	for _, in := range c.partial {
		b.discard(in)
	}
	clear(c.partial)
	for c.received.len() > 0 {
		b.discard(c.received.pop())
	}
	b.remove(c)
	c.wakeUsers()
}

// broken reports whether a message of the channel is not wanted any more.
func (c *Channel) broken(m *outMessage) bool {
	return c != nil && c.err != nil && m.kind != frame.Reset
}

func (c *Channel) wakeUsers() {
	wake(c.canSend)
	wake(c.ready)
	wake(c.drained)
}

// forget removes a channel that has ended both ways.
func (b *Bundle) forget(c *Channel) {
	if c.err == nil && !c.forgotten && c.endTold && c.farConsumed == c.promised && c.ended && c.buffered == 0 {
		b.remove(c)
	}
}

// finalsLimit bounds the ended channels whose last count is told again when a
// connection dies: those of the last moments.
const finalsLimit = 128

func (b *Bundle) remove(c *Channel) {
	c.forgotten = true
	delete(b.channels, c.id)
	if !c.opener {
		b.closed.add(c.id)
	}
	if c.err == nil && c.consumed > 0 {
		if len(b.finals) == finalsLimit {
			b.finals = append(b.finals[:0], b.finals[1:]...)
		}
		b.finals = append(b.finals, frame.Count{ID: c.id, Value: uint64(c.consumed)})
	}
}
