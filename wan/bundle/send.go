package bundle

import (
	"cmp"
	"time"

	"github.com/drover-vm/drover/wan/frame"
)

const (
	// What a channel may hold that no writer has taken yet: queueTime at the
	// rate that the path delivers. It is there for the time that a sender needs
	// to be scheduled; more would only make what is decided late come late.
	queueTime  = 20 * time.Millisecond
	minQueue   = 128 << 10
	startQueue = 256 << 10
	maxQueue   = 512 << 10
	// Frames up to smallFrame are put together in one write of up to a TLS
	// record; copying longer ones costs more than it saves.
	smallFrame = recordBytes / 2
	// A writer takes large frames worth batchTime at the rate that the path
	// delivers, at most maxBatch: the fewer wake-ups, the less they cost, and
	// what is urgent waits for no longer than that.
	batchTime = time.Millisecond
	maxBatch  = 4
)

// outMessage is a message on its way: its frames, headers and all, one after
// the other.
type outMessage struct {
	channel   *Channel
	class     Class
	kind      frame.Kind
	buf       *buffer
	bytes     []byte
	fragments int
	next      int    // first fragment that no writer has taken
	acked     uint64 // a bit for each fragment
	where     [frame.MaxFragments]uint32
	order     uint64
	writers   int  // busy with a frame of it
	retired   bool // received or given up; not in use once writers is 0
	// generation tells uses of the struct apart: what refers to an older one is
	// out of date.
	generation uint64
}

// sent refers to one frame.
type sent struct {
	m          *outMessage
	generation uint64
	fragment   int
}

// stale reports whether the frame is received or given up.
func (s sent) stale() bool {
	return s.m.generation != s.generation || s.m.acked&(1<<s.fragment) != 0
}

func (m *outMessage) frame(i int) []byte {
	return m.bytes[i*frame.FrameBytes : min((i+1)*frame.FrameBytes, len(m.bytes))]
}

// encode makes a message. It needs no lock.
func (b *Bundle) encode(c *Channel, kind frame.Kind, code uint8, sequence uint64, payload []byte) *outMessage {
	m, ok := b.pool.out.Get().(*outMessage)
	if !ok {
		m = &outMessage{}
	}
	m.channel, m.class, m.kind = c, c.class, kind
	m.next, m.acked, m.retired = 0, 0, false
	m.fragments = frame.Fragments(len(payload))
	clear(m.where[:m.fragments])
	m.buf = b.pool.get(len(payload))
	m.bytes = m.buf.b[:len(payload)+m.fragments*frame.HeaderBytes]
	for i := range m.fragments {
		from, to := frame.Fragment(len(payload), i)
		f := m.frame(i)
		copy(f[frame.HeaderBytes:], payload[from:to])
		h := frame.Header{Kind: kind, Class: uint8(c.class), Code: code, Fragment: uint8(i), Channel: c.id, Sequence: sequence}
		if kind == frame.Data {
			h.Message = uint32(len(payload))
		}
		h.Encode(f, f[frame.HeaderBytes:])
	}
	return m
}

// recycle returns a retired message to the pool once nobody reads it.
func (b *Bundle) recycle(m *outMessage) {
	if m.retired && m.writers == 0 {
		b.pool.put(m.buf)
		m.buf, m.bytes, m.channel = nil, nil, nil
		b.pool.out.Put(m)
	}
}

// retire is called once for each message: it was received, or it is given up.
func (b *Bundle) retire(m *outMessage) {
	m.generation++
	m.retired = true
	b.unacked--
	if b.unacked == 0 {
		wake(b.progress)
		b.maybeEnd()
	}
	b.recycle(m)
}

// enqueue makes a message wait for a writer.
func (b *Bundle) enqueue(m *outMessage) {
	c := m.channel
	m.order = b.order
	b.order++
	b.touch()
	b.unacked++
	if m.kind == frame.Open || m.kind == frame.Reset {
		// A few bytes, and the far end's users wait for them, whatever flows in
		// the classes between.
		b.resend[Control].push(sent{m, m.generation, 0})
		b.work.Signal()
		return
	}
	c.out.push(m)
	c.unsent += len(m.bytes)
	if !c.inTurn {
		c.inTurn = true
		b.turns[c.class].push(c)
	}
	b.work.Signal()
}

// touch notes activity.
func (b *Bundle) touch() {
	now := b.now()
	if b.idle(now) {
		// The silence that counts begins now, and so do frequent pings.
		b.active = now
		for _, l := range b.links {
			l.wantPing = true
		}
		b.work.Broadcast()
	}
	b.activity = now
}

// pull puts into the link what its writer shall write next, and waits for it.
// It returns false when there will be nothing more.
func (b *Bundle) pull(l *link) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for {
		if l.dead || b.err != nil || b.bye.parting {
			return false
		}
		l.buf, l.out = l.buf[:0], l.out[:0]
		b.pullState(l)
		b.pullFrames(l)
		if len(l.buf) > 0 {
			l.out = append(l.out, l.buf)
		}
		if len(l.out) > 0 {
			if class, _ := b.peek(); class >= 0 {
				// One wake-up may stand for many frames.
				b.work.Signal()
			}
			return true
		}
		b.work.Wait()
	}
}

// pullState appends what is not paced to the writer's buffer: pings, acks, the
// last word. All of it is small and kept by the sender until it is told again.
func (b *Bundle) pullState(l *link) {
	if l.wantPong {
		l.wantPong = false
		h := frame.Header{Kind: frame.Pong, Sequence: l.pong}
		l.buf = h.Append(l.buf, nil)
	}
	if l.wantPing {
		l.wantPing, l.pinged = false, b.now()
		h := frame.Header{Kind: frame.Ping, Sequence: uint64(l.pinged)}
		l.buf = h.Append(l.buf, nil)
	}
	if b.ackDue {
		b.appendAck(l)
	}
	if b.bye.wanted {
		b.appendBye(l)
	}
	b.bucket.take(len(l.buf))
}

// pullFrames appends small frames to the writer's buffer, or gives it some
// large ones as they are.
func (b *Bundle) pullFrames(l *link) {
	for {
		class, resent := b.peek()
		if class < 0 {
			return
		}
		if wait := b.bucket.wait(time.Now()); wait > 0 {
			if !b.paceArmed {
				b.paceArmed = true
				b.paceTimer.Reset(wait)
			}
			return
		}
		s := b.front(class, resent)
		f := s.m.frame(s.fragment)
		if len(f) > smallFrame {
			if len(l.buf) > 0 || len(l.out) >= b.batch {
				return
			}
			l.out = append(l.out, f)
			l.held = append(l.held, s.m)
			s.m.writers++
		} else {
			if len(l.out) > 0 || len(l.buf)+len(f) > recordBytes {
				return
			}
			l.buf = append(l.buf, f...)
		}
		b.take(l, class, resent, s, len(f))
	}
}

func (b *Bundle) paceNow() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.paceArmed = false
	b.work.Signal()
}

// peek returns the class of the next frame, and whether it is one to be sent
// again; a class of -1 means that there is nothing that may be sent.
func (b *Bundle) peek() (class int, resent bool) {
	last := classes
	if b.held.Load() {
		last = int(Control) + 1
	}
	for class := range last {
		for q := &b.resend[class]; q.len() > 0; q.pop() {
			s := *q.at(0)
			if s.stale() {
				continue
			}
			if s.m.channel.broken(s.m) {
				b.retire(s.m)
				continue
			}
			return class, true
		}
		if b.turns[class].len() > 0 {
			return class, false
		}
	}
	return -1, false
}

// front returns the frame that peek found.
func (b *Bundle) front(class int, resent bool) sent {
	if resent {
		return *b.resend[class].at(0)
	}
	c := *b.turns[class].at(0)
	m := *c.out.at(0)
	return sent{m, m.generation, m.next}
}

// take gives the frame that front returned to a connection.
func (b *Bundle) take(l *link, class int, resent bool, s sent, n int) {
	m := s.m
	if resent {
		b.resend[class].pop()
		if m.where[s.fragment] != 0 {
			b.stats.resent += int64(n)
		}
	} else {
		q := &b.turns[class]
		c := q.pop()
		c.unsent -= n
		b.stats.sent[class] += int64(n - frame.HeaderBytes)
		if m.next++; m.next == m.fragments {
			c.out.pop()
		}
		if c.out.len() > 0 {
			q.push(c)
		} else {
			c.inTurn = false
		}
		if c.unsent < b.queueLimit/2 {
			wake(c.canSend)
		}
	}
	m.where[s.fragment] = l.number
	l.log.push(s)
	b.bucket.take(n)
}

// lose puts what a dead connection may not have delivered back in front.
func (b *Bundle) lose(l *link) {
	var again [classes]bool
	for i := range l.log.len() {
		s := *l.log.at(i)
		switch {
		case s.stale() || s.m.where[s.fragment] != l.number:
		case s.m.channel.broken(s.m):
			// Half sent ones have been given up with the channel.
			b.retire(s.m)
		default:
			b.resend[s.m.class].push(s)
			again[s.m.class] = true
		}
	}
	for class := range again {
		if again[class] {
			b.resend[class].sort(func(a, b sent) int {
				return cmp.Or(cmp.Compare(a.m.order, b.m.order), cmp.Compare(a.fragment, b.fragment))
			})
		}
	}
}
