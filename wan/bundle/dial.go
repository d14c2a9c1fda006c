package bundle

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/wan/frame"
)

const (
	// dialEvery is how often a missing connection is tried. While nothing is
	// connected a new attempt does not wait for the one before: its first packet
	// is what finds the path healed.
	dialEvery = time.Second
	// dialLimit bounds an attempt, at least dialTrips of the last round trip:
	// TCP, TLS and the hello take three, a lost packet another.
	dialLimit = 3 * time.Second
	dialTrips = 10
	// dialTries is how many attempts are under way for each missing connection.
	dialTries = 3
	// While others run, a connection that cannot be had is tried less and less
	// often, down to once in dialSlowest.
	dialSlowest = 15 * time.Second
	// answerLimit bounds the acceptor's writing of its answer.
	answerLimit = 3 * time.Second
)

// dial keeps the initiator's connections up until ctx ends.
func (b *Bundle) dial(ctx context.Context) {
	done := make(chan bool)
	pending, failures := 0, 0
	var slow time.Time
	ticker := time.NewTicker(dialEvery)
	defer ticker.Stop()
	defer func() {
		for ; pending > 0; pending-- {
			<-done
		}
	}()
	for {
		missing, cut, saidBye := b.missing()
		start := missing - pending
		switch {
		case saidBye:
			start = 0
		case cut:
			start = min(missing, dialTries*b.cfg.Conns-pending)
		case time.Now().Before(slow):
			start = 0
		}
		for range start {
			pending++
			go func() {
				err := b.dialOne(ctx)
				done <- err == nil
			}()
		}
		for waiting := true; waiting; {
			select {
			case ok := <-done:
				pending--
				if ok {
					failures, slow = 0, time.Time{}
				} else {
					failures = min(failures+1, 8)
					slow = time.Now().Add(min(dialEvery<<(failures/b.cfg.Conns), dialSlowest))
				}
			case <-ticker.C:
				waiting = false
			case <-b.redial:
				slow = time.Time{}
				waiting = false
			case <-ctx.Done():
				return
			}
		}
	}
}

// missing returns how many connections are to be made, whether there is none,
// and whether the bundle needs no more.
func (b *Bundle) missing() (n int, cut, saidBye bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.cfg.Conns - len(b.links), len(b.links) == 0, b.bye.parting || b.bye.written && b.bye.came || b.err != nil
}

// dialOne makes one connection.
func (b *Bundle) dialOne(ctx context.Context) error {
	b.mu.Lock()
	limit := max(dialLimit, dialTrips*b.stats.rtt)
	b.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	conn, err := b.cfg.Dial(ctx)
	if err == nil {
		if err = b.introduce(ctx, conn); err != nil {
			abort(conn)
		}
	}
	if err == nil || errors.Is(err, errSpare) {
		return nil
	}
	b.dialFailed(err)
	return err
}

// errSpare says that a connection came that is not needed any more.
var errSpare = errors.New("enough connections")

// introduce says hello and joins.
func (b *Bundle) introduce(ctx context.Context, conn net.Conn) error {
	b.mu.Lock()
	if len(b.links) >= b.cfg.Conns {
		b.mu.Unlock()
		return errSpare
	}
	b.nextNumber++
	hello := frame.Hello{
		Lowest: frame.Oldest, Highest: frame.Newest, Features: frame.Features,
		Number: b.nextNumber, Bundle: b.id, Windows: b.cfg.windows(), Token: b.cfg.Token,
	}
	b.mu.Unlock()
	unhook := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer unhook()
	if _, err := conn.Write(hello.Append(nil)); err != nil {
		return drover.E(drover.Unavailable, "wan hello", err)
	}
	answer, err := frame.ReadAnswer(conn)
	if err == nil {
		err = answer.Err(&hello)
	}
	if err != nil {
		if answer.Status == frame.Refused || answer.Status == frame.WrongVersion {
			return &final{err}
		}
		return err
	}
	if !unhook() {
		return drover.E(drover.Unavailable, "wan hello", context.Cause(ctx))
	}
	return b.join(conn, hello.Number, answer.Windows)
}

// final is an answer that will not change.
type final struct{ error }

func (f *final) Unwrap() error { return f.error }

// dialFailed notes why an attempt failed, and gives up when no other can do
// better: the acceptor says so, or the very first attempt shows that the
// configuration is wrong.
func (b *Bundle) dialFailed(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.cut.lastFailure = err
	b.cfg.Log.Debug("wan connection not made", "err", err)
	kind := drover.KindOf(err)
	var f *final
	switch {
	case errors.As(err, &f):
		b.end(drover.E(kind, "wan bundle", f.error))
	case !b.joined && (kind == drover.Denied || kind == drover.Invalid):
		b.end(drover.E(kind, "wan bundle", err))
	}
}

// Attach makes a connection part of the acceptor's bundle. Its hello was read
// by the caller, who found the bundle by its token. Attach answers, in any
// case, and closes a connection that it refuses: drover.Denied when token,
// bundle or number are not right, Invalid when no version is shared.
func (b *Bundle) Attach(conn net.Conn, hello frame.Hello) error {
	answer, err := b.judge(&hello)
	_ = conn.SetWriteDeadline(time.Now().Add(answerLimit))
	if _, werr := conn.Write(answer.Append(nil)); err == nil && werr != nil {
		err = drover.E(drover.Unavailable, "wan answer", werr)
	}
	if err == nil {
		_ = conn.SetDeadline(time.Time{})
		err = b.join(conn, hello.Number, hello.Windows)
	}
	if err != nil {
		closeBelow(conn)
	}
	return err
}

// judge decides on a hello.
func (b *Bundle) judge(h *frame.Hello) (frame.Answer, error) {
	a := frame.Answer{Status: frame.Refused, Lowest: frame.Oldest, Highest: frame.Newest, Text: "no such session"}
	refuse := func(format string, args ...any) (frame.Answer, error) {
		return a, drover.Errorf(drover.Denied, "wan hello", format, args...)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	version, ok := frame.Choose(frame.Oldest, frame.Newest, h)
	switch {
	case b.initiator:
		return refuse("to a bundle that is not an acceptor's")
	case !bytes.Equal(h.Token, b.cfg.Token):
		return refuse("another session's token")
	case b.err != nil:
		return refuse("to a bundle that has ended")
	case b.id != frame.BundleID{} && b.id != h.Bundle:
		return refuse("bundle %x, want %x", h.Bundle, b.id)
	case !ok:
		a.Status, a.Text = frame.WrongVersion, fmt.Sprintf("versions %d to %d are spoken here", frame.Oldest, frame.Newest)
		return a, drover.Errorf(drover.Invalid, "wan hello", "versions %d to %d, want %d to %d", h.Lowest, h.Highest, frame.Oldest, frame.Newest)
	case len(b.links) >= maxAttached:
		return refuse("%d connections", len(b.links))
	case !b.numbers.use(h.Number):
		return refuse("connection %d came before", h.Number)
	}
	b.id = h.Bundle
	return frame.Answer{
		Status: frame.Accepted, Version: version, Lowest: frame.Oldest, Highest: frame.Newest,
		Features: frame.Features & h.Features, Windows: b.cfg.windows(),
	}, nil
}
