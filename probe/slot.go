package probe

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"time"
)

// maxReplyLine bounds a reply: a server that sends no line end must not fill
// the memory.
const maxReplyLine = 4096

// slot is one TCP client: one session at a time, opened again when lost.
type slot struct {
	cfg    Config
	client int
	opened chan error // the first reply, or why there is none

	mu        sync.Mutex
	open      bool      // the first reply was seen: from there on it counts
	finished  bool      // nothing counts any more
	lastReply time.Time // or the first beat, while there was no reply
	gaps      gaps
	maxGap    time.Duration
	gapEnd    time.Time // of the longest gap
	before    histogram // replies before the longest gap
	after     histogram // and to beats sent after it
	lost      int
	losses    []Loss
	boots     []string
	sent      int64
	answered  int64
	skipped   int64
	stall     time.Duration
}

func newSlot(cfg Config, client int) *slot {
	return &slot{cfg: cfg, client: client, opened: make(chan error, 1), gaps: gaps{client: client}}
}

// run keeps a session until ctx is done. When the first one cannot be opened
// it says so and ends.
func (s *slot) run(ctx context.Context) {
	for first := true; ctx.Err() == nil; first = false {
		timeout := reconnectTimeout
		if first {
			timeout = s.cfg.OpenTimeout
		}
		dialCtx, cancel := context.WithTimeout(ctx, timeout)
		conn, err := s.cfg.Dial(dialCtx, "tcp", s.cfg.Target)
		cancel()
		if err == nil {
			err = s.session(ctx, conn)
		} else if !first {
			pause(ctx, reconnectPause)
			continue
		}
		if ctx.Err() != nil {
			return
		}
		if !s.lose(err) {
			s.opened <- fmt.Errorf("session to %s: %w", s.cfg.Target, err)
			return
		}
		pause(ctx, reconnectPause)
	}
}

// lose counts a lost session. It reports false when no session was ever open.
func (s *slot) lose(err error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.open {
		return false
	}
	if s.finished {
		return true
	}
	if errors.Is(err, os.ErrDeadlineExceeded) { // the reader's
		err = fmt.Errorf("silent for %v", s.cfg.LostAfter)
	}
	s.lost++
	if len(s.losses) < maxLosses {
		s.losses = append(s.losses, Loss{Client: s.client, At: time.Now(), Reason: describe(err)})
	}
	s.cfg.Log.Warn("session lost", "client", s.client, "target", s.cfg.Target, "reason", describe(err))
	return true
}

// beat is a request that waits for its reply.
type beat struct {
	n    uint64
	sent time.Time
}

// session beats on conn until it is lost, which it returns an error for, or
// until ctx is done. It closes conn.
func (s *slot) session(ctx context.Context, conn net.Conn) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	defer func() { _ = conn.Close() }()

	proto := newProtocol(s.cfg)
	// As many as can be sent before the session counts as lost, and a few.
	waiting := make(chan beat, min(maxInFlight, int(s.cfg.LostAfter/s.cfg.Beat)+16))
	sendErr := make(chan error, 1)
	wg.Go(func() {
		if err := s.send(ctx, conn, proto, waiting); err != nil {
			sendErr <- err
			_ = conn.Close()
		}
	})
	err := s.receive(conn, proto, waiting)
	select {
	case e := <-sendErr: // the cause, of which the reader saw only the closing
		if errors.Is(err, net.ErrClosed) {
			err = e
		}
	default:
	}
	return err
}

func (s *slot) send(ctx context.Context, conn net.Conn, proto protocol, waiting chan<- beat) error {
	tick := time.NewTicker(s.cfg.Beat)
	defer tick.Stop()
	var n uint64
	now, due := time.Now(), time.Now()
	for {
		ok := false
		select {
		case waiting <- beat{n: n + 1, sent: now}: // before the reply can come
			ok = true
			n++
		default:
		}
		s.countSent(ok, now, now.Sub(due))
		if ok {
			if _, err := conn.Write(proto.request(n)); err != nil {
				return err
			}
		}
		// A write that the path blocks is not the prober's own delay.
		if due = now.Add(s.cfg.Beat); time.Now().After(due) {
			due = time.Now()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			now = time.Now()
		}
	}
}

func (s *slot) countSent(sent bool, now time.Time, late time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.finished {
		return
	}
	if s.lastReply.IsZero() {
		s.lastReply = now
	}
	s.stall = max(s.stall, late)
	if sent {
		s.sent++
	} else {
		s.skipped++
	}
}

func (s *slot) receive(conn net.Conn, proto protocol, waiting <-chan beat) error {
	in := bufio.NewReaderSize(conn, maxReplyLine)
	for {
		if err := conn.SetReadDeadline(time.Now().Add(s.cfg.LostAfter)); err != nil {
			return err
		}
		line, err := in.ReadSlice('\n')
		if err != nil {
			return err
		}
		now := time.Now()
		select {
		case b := <-waiting:
			if err := proto.check(b.n, line); err != nil {
				return err
			}
			s.countReply(b.sent, now, proto.boot())
		default:
			return fmt.Errorf("unasked reply %q", line)
		}
	}
}

func (s *slot) countReply(sent, now time.Time, boot string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.finished {
		return
	}
	s.answered++
	if !s.open {
		s.open = true
		s.opened <- nil
	} else {
		s.gaps.add(s.lastReply, now)
		if gap := now.Sub(s.lastReply); gap > s.maxGap {
			s.maxGap, s.gapEnd = gap, now
			s.before.merge(&s.after)
			s.after = histogram{}
		}
	}
	s.lastReply = now
	if !sent.Before(s.gapEnd) {
		s.after.add(now.Sub(sent))
	}
	if boot != "" && len(s.boots) < maxBoots && !slices.Contains(s.boots, boot) {
		s.boots = append(s.boots, boot)
	}
}

// finish closes the books at now.
func (s *slot) finish(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.finished {
		return
	}
	s.finished = true
	if s.open {
		s.gaps.add(s.lastReply, now)
	}
}

// addTo adds what this client saw up to now.
func (s *slot) addTo(r *Result, now time.Time, before, after *histogram) {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := s.gaps.list
	if s.open && !s.finished {
		list = s.gaps.with(s.lastReply, now)
	}
	r.Gaps = longest(append(r.Gaps, list...))
	if len(list) > 0 {
		r.OutageMS = max(r.OutageMS, list[0].MS)
	}
	before.merge(&s.before)
	after.merge(&s.after)
	r.ProberStallMS = max(r.ProberStallMS, ms(s.stall))
	r.SessionsLost += s.lost
	r.Lost = append(r.Lost, s.losses...)
	r.Lost = r.Lost[:min(len(r.Lost), maxLosses)]
	for _, b := range s.boots {
		if len(r.Boots) < maxBoots && !slices.Contains(r.Boots, b) {
			r.Boots = append(r.Boots, b)
		}
	}
	r.BeatsSent += s.sent
	r.BeatsAnswered += s.answered
	r.BeatsSkipped += s.skipped
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
