package bundle

import (
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/wan/frame"
)

const (
	// closeLimit bounds a clean end: what is under way arrives, with a loss or
	// two, and both ends have said that they have all.
	closeLimit = 10 * time.Second
	// abortLimit bounds saying why the bundle is given up.
	abortLimit = 250 * time.Millisecond
	// partLimit bounds the wait for the far end's closing its connections too.
	partLimit = time.Second
)

// bye is the last word.
type bye struct {
	wanted  bool // to be written
	written bool
	came    bool // the far end has said it, cleanly
	parting bool // both have: nothing is written any more
	code    uint8
	text    string
}

// Close ends the bundle and waits for its goroutines. With nil it first waits
// until all that was sent has been received at the far end, whose users can
// still take it, for at most closeLimit. With an error it ends at once, and the
// far end is told why. Closing again only waits.
func (b *Bundle) Close(err error) {
	b.mu.Lock()
	first := !b.closing && b.err == nil
	b.closing = true
	for _, c := range b.channels {
		wake(c.canSend)
	}
	b.mu.Unlock()
	if first {
		if err == nil {
			err = b.finish()
		} else {
			b.say(frame.Abort, err.Error())
			b.await(abortLimit, func() bool { return b.bye.written })
			b.part(abortLimit)
			err = drover.E(drover.Canceled, "wan bundle given up", err)
		}
		b.abandon(err)
	}
	b.group.Wait()
}

// finish waits for both ends to have everything.
func (b *Bundle) finish() error {
	closed := drover.E(drover.Canceled, "wan bundle", ErrClosed)
	limit := time.Now().Add(closeLimit)
	if !b.await(time.Until(limit), func() bool { return b.unacked == 0 }) {
		b.say(frame.Abort, "not all could be delivered")
		b.await(abortLimit, func() bool { return b.bye.written })
		b.part(abortLimit)
		return drover.Errorf(drover.Unavailable, "close wan bundle", "not all was delivered within %s", closeLimit)
	}
	b.say(frame.Clean, "")
	b.await(time.Until(limit), func() bool { return b.bye.written && b.bye.came })
	b.part(partLimit)
	return closed
}

// part closes the connections so that the last word is not lost: TCP forgets
// what it was told to send when a connection is closed with something unread.
// So each end ends its direction, and waits for the other's end.
func (b *Bundle) part(limit time.Duration) {
	b.mu.Lock()
	b.bye.parting = true
	b.work.Broadcast()
	links := append([]*link(nil), b.links...)
	b.mu.Unlock()
	for _, l := range links {
		half, ok := below[interface{ CloseWrite() error }](l.conn)
		if !ok || half.CloseWrite() != nil {
			b.drop(l, ErrClosed)
		}
	}
	b.await(limit, func() bool { return len(b.links) == 0 })
}

// await waits until ready, which is asked under the lock, or the bundle's end.
func (b *Bundle) await(limit time.Duration, ready func() bool) bool {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for {
		b.mu.Lock()
		is := ready()
		b.mu.Unlock()
		if is {
			return true
		}
		select {
		case <-b.progress:
		case <-b.done:
			return false
		case <-timer.C:
			return false
		}
	}
}

func (b *Bundle) say(code uint8, text string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.bye.wanted || b.bye.written {
		return
	}
	b.bye.wanted, b.bye.code, b.bye.text = true, code, text
	b.work.Broadcast()
}

func (b *Bundle) appendBye(l *link) {
	b.bye.wanted, l.saysBye = false, true
	h := frame.Header{Kind: frame.Bye, Code: b.bye.code}
	l.buf = h.Append(l.buf, []byte(frame.Text(b.bye.text)))
}

// byeWritten is told what became of the last word.
func (b *Bundle) byeWritten(ok bool) {
	if !ok {
		b.bye.wanted = true
		return
	}
	b.bye.written = true
	wake(b.progress)
	b.maybeEnd()
}

// takeBye hears the far end's last word.
func (b *Bundle) takeBye(h *frame.Header, payload []byte) {
	if h.Code == frame.Abort {
		b.end(drover.Errorf(drover.Canceled, "wan bundle", "the far end gave up: %s", frame.Printable(payload)))
		return
	}
	b.bye.came = true
	wake(b.progress)
	for _, c := range b.channels {
		wake(c.canSend)
	}
	b.maybeEnd()
}

// maybeEnd ends a bundle that the far end closes, as soon as it has all.
func (b *Bundle) maybeEnd() {
	if !b.bye.came || b.closing {
		return
	}
	switch {
	case b.bye.written:
		b.closing = true
		b.group.Go(func() {
			b.part(partLimit)
			b.abandon(drover.E(drover.Canceled, "wan bundle closed by the far end", ErrClosed))
		})
	case b.unacked == 0 && !b.bye.wanted:
		b.bye.wanted, b.bye.code = true, frame.Clean
		b.work.Broadcast()
	}
}
