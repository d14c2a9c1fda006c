package reduce

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/wan/page"
)

const (
	// DefaultRetainBytes is how much of what the destination takes from its own storage is kept until it
	// says that it had it: 32 MiB are 8192 pages, with 100 ms round trip 330 MB/s of guest memory.
	DefaultRetainBytes = 32 << 20
	// retainMost is the limit for what a mirror keeps, while most of the memory is still to come: of a guest that is
	// known by three quarters it covers what waits ahead of the link. As that, it goes down to
	// DefaultRetainBytes with what is still to come, of which it is at most retainShare.
	retainMost  = 256 << 20
	retainShare = 2
)

// spareBuffers is how many batches' memory is kept for the next ones: of 100 kB each, about what may wait ahead of
// the link.
const spareBuffers = 40

// SendOptions say how a memory stream is sent.
type SendOptions struct {
	MemoryEncoderOptions
	// Fill answers misses and hears what is complete. Return brings QEMU's bytes back; nil when there are none.
	Fill, Return Channel
	// RetainBytes bounds what is kept for misses; 0 is DefaultRetainBytes.
	RetainBytes int64
	// Lanes is how many compressors work at a time, up to MaxLanes; 0 is one. Each has a window of its own.
	Lanes int
	// OnRound, if not nil, is called when a round of copying begins, with its number from 1 on; a round
	// begins where the pages' addresses start over.
	OnRound func(round int)
	// OnLast, if not nil, is called once, when the stream shows that the guest is paused.
	OnLast func()
	// Chooser chooses the level; nil: Level does, and if that is nil, one made here.
	Chooser *Chooser
}

// SendMemory takes the memory stream that QEMU writes to local across ch, until QEMU closes its end after
// the devices' state, and returns when the receiver has given everything to its QEMU. local is closed when it
// returns. Errors: drover.Canceled when QEMU closes its end before the memory is through,
// drover.Unavailable when the destination gives up; those of ctx and of the channels as they are.
func SendMemory(ctx context.Context, local io.ReadWriteCloser, ch Channel, o SendOptions) error {
	s := newMemorySender(local, ch, o)
	group, inner := errgroup.WithContext(ctx)
	// A failure anywhere ends the read from QEMU, which knows no context.
	stop := closeAfter(inner, local)
	aside, cancel := context.WithCancel(inner)
	defer cancel()
	for i := range s.lanes {
		group.Go(func() error { return s.compress(inner, i) })
	}
	group.Go(func() error { s.fetch.run(inner); return nil })
	group.Go(func() error { return s.transmit(inner) })
	group.Go(func() error {
		// When the fills' server ends because all is acknowledged, that is no failure.
		err := s.serve(aside)
		if aside.Err() != nil && inner.Err() == nil {
			return nil
		}
		return err
	})
	if o.Return != nil {
		group.Go(func() error { return s.returns(inner) })
	}
	group.Go(func() error {
		defer cancel()
		return s.read(inner)
	})
	err := group.Wait()
	stop()
	return err
}

// closeAfter closes c when ctx ends or the returned function is called, which waits until it is closed.
func closeAfter(ctx context.Context, c io.Closer) func() {
	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(closed)
		c.Close()
	})
	return func() {
		if stop() {
			c.Close()
			return
		}
		<-closed
	}
}

// memorySender is one run of SendMemory.
//
//	QEMU ─▶ read: parse, encode ─▶ compress (lanes) ─▶ ahead ─▶ transmit ─▶ channel
//
// Each of the three holds one batch at most; what waits ahead of the link is bounded by how much of the
// first round is still to come.
type memorySender struct {
	local io.ReadWriteCloser
	fetch *fetcher
	ch    Channel
	o     SendOptions
	ctl   *Chooser
	kept  *keeper

	lanes []*sendLane
	// Drafts go to the first lane that has nothing to do, or to whichever has first: the fewer lanes are
	// at work, the more each one's window knows.
	drafts chan sealed
	// idle says that the reader is about to wait for QEMU with a batch that has something in it.
	idle    chan struct{}
	ahead   *ahead
	working atomic.Int32 // lanes that may still put batches ahead
	spare   chan []byte
	done    chan struct{} // closed when everything has been given to the channel

	mu   sync.Mutex // of what follows; the reader holds it while it does not wait for QEMU
	enc  *MemoryEncoder
	turn int // batches sealed so far
	// active is since when the reader has been at work.
	active time.Time
}

// sendLane is one compressor.
type sendLane struct {
	c  *Compressor
	in chan sealed
}

// sealed is a batch and its place among all.
type sealed struct {
	d    *Draft
	turn int
}

func newMemorySender(local io.ReadWriteCloser, ch Channel, o SendOptions) *memorySender {
	n := min(max(o.Lanes, 1), MaxLanes)
	if o.RetainBytes <= 0 {
		o.RetainBytes = DefaultRetainBytes
	}
	if o.Stats == nil {
		o.Stats = new(Stats)
	}
	s := &memorySender{
		local: local, fetch: newFetcher(local), ch: ch, o: o, ctl: o.Chooser, kept: newKeeper(o.RetainBytes),
		drafts: make(chan sealed), idle: make(chan struct{}, 1), ahead: newAhead(), spare: make(chan []byte, spareBuffers), done: make(chan struct{}),
	}
	if s.ctl == nil && o.Level == nil {
		s.ctl = NewChooser(LevelS2, LevelBest, n, time.Now)
	}
	level := o.Level
	if s.ctl != nil {
		level = s.ctl.Level
	}
	s.enc = NewMemoryEncoder(o.MemoryEncoderOptions)
	for i := range n {
		s.lanes = append(s.lanes, &sendLane{
			c: NewCompressor(i, level, o.Stats), in: make(chan sealed),
		})
	}
	s.working.Store(int32(n))
	return s
}

// read parses QEMU's stream and hands on batches, to the end that all is known to have arrived.
func (s *memorySender) read(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.active = time.Now()
	failure := s.parse(ctx)
	if failure == nil && !s.enc.Empty() {
		failure = s.hand(ctx)
	}
	close(s.drafts)
	select {
	case <-s.done:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if failure != nil {
		// The far end shall not wait for more.
		if err := s.ch.Send(ctx, KindAbort, []byte(failure.Error())); err != nil {
			return errors.Join(failure, err)
		}
		return failure
	}
	for _, wait := range []func(context.Context) error{s.kept.empty, s.ch.Drain} {
		if err := wait(ctx); err != nil {
			return err
		}
	}
	if err := s.ch.CloseSend(); err != nil {
		return err
	}
	return s.o.Fill.CloseSend()
}

// parse encodes to the stream's end. mu is held.
func (s *memorySender) parse(ctx context.Context) error {
	r := page.NewReader(s.fetch)
	var w phaseWatch
	var first firstRound
	for {
		rec, err := s.next(r)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if errors.Is(err, io.EOF) {
			return ended(r.Phase())
		}
		if err != nil {
			return drover.E(drover.Unavailable, "read memory stream", err)
		}
		round, last := w.see(r.Phase(), rec)
		if round && s.o.OnRound != nil {
			s.o.OnRound(w.round)
		}
		if last {
			s.enc.Urgent()
			if s.o.OnLast != nil {
				s.o.OnLast()
			}
		}
		s.enc.Announce(r.Blocks())
		if left, changed := first.see(rec, w.round, r.Blocks()); changed {
			s.allow(left)
		}
		if err := s.encode(ctx, rec); err != nil {
			return err
		}
	}
}

// allow bounds what is under way by what is still to come of the first round, because what is when the guest is paused
// is added to the pause, and because the hypervisor has to see how fast the path is when it decides on the pause.
func (s *memorySender) allow(left int64) {
	s.ahead.allow(min(aheadBytes, left/aheadShare))
	s.fetch.allow(min(fetchAhead, left/fetchShare))
	if s.o.Mirror != nil {
		s.kept.allow(max(s.o.RetainBytes, min(retainMost, left/retainShare)))
	}
}

// next returns the next record. While it may have to wait for QEMU, a compressor that has
// nothing to do may take the batch as it is.
func (s *memorySender) next(r *page.Reader) (page.Record, error) {
	if r.Buffered() > 0 || s.fetch.ready() {
		return r.Next()
	}
	s.rest()
	offer := !s.enc.Empty()
	s.mu.Unlock()
	waited := time.Now()
	defer func() {
		s.mu.Lock()
		s.active = time.Now()
		s.o.Stats.WaitNanoseconds.Add(int64(s.active.Sub(waited)))
	}()
	if offer {
		s.offer()
	}
	return r.Next()
}

// rest counts the time that the reader was at work.
func (s *memorySender) rest() { s.o.Stats.EncodeNanoseconds.Add(int64(time.Since(s.active))) }

// encode adds a record to the batch, in pieces if it is long.
func (s *memorySender) encode(ctx context.Context, rec page.Record) error {
	for rest := rec.Data; ; rest = rest[MaxOpaque:] {
		if rec.Kind == page.Bytes {
			rec.Data = rest[:min(len(rest), MaxOpaque)]
		}
		if !s.enc.Fits(rec) {
			if err := s.hand(ctx); err != nil {
				return err
			}
		}
		if err := s.enc.Encode(rec); err != nil {
			return err
		}
		if len(rest) <= MaxOpaque {
			return nil
		}
	}
}

// serve answers misses.
func (s *memorySender) serve(ctx context.Context) error {
	for {
		m, err := s.o.Fill.Receive(ctx)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		err = s.answer(ctx, m)
		m.Release()
		if err != nil {
			return err
		}
	}
}

func (s *memorySender) answer(ctx context.Context, m Message) error {
	const op = "send memory"
	seq, n := binary.Uvarint(m.Payload)
	if n <= 0 && m.Kind != KindAbort {
		return drover.Errorf(drover.Corrupt, op, "malformed message of kind %d", m.Kind)
	}
	switch m.Kind {
	case KindAbort:
		return drover.Errorf(drover.Unavailable, op, "the destination gave up: %.200q", m.Payload)
	case KindApplied:
		s.kept.applied(seq)
		s.offer()
		return nil
	case KindMiss:
		r := s.kept.find(seq)
		if r == nil {
			return drover.Errorf(drover.Corrupt, op, "batch %d is not outstanding", seq)
		}
		fills, err := r.Fill(m.Payload)
		if err != nil {
			return err
		}
		for _, f := range fills {
			if err := s.o.Fill.Send(ctx, KindFill, f); err != nil {
				return err
			}
		}
		return nil
	default:
		return drover.Errorf(drover.Corrupt, op, "message of kind %d", m.Kind)
	}
}

// returns gives QEMU what its other end says, and the end of it, from which QEMU learns
// of a destination that failed.
func (s *memorySender) returns(ctx context.Context) error {
	for {
		m, err := s.o.Return.Receive(ctx)
		if errors.Is(err, io.EOF) {
			closeWrite(s.local)
			return nil
		}
		if err != nil {
			return err
		}
		// A QEMU that has closed its end has no use for it; if that was too early, the
		// reader says so.
		_, _ = s.local.Write(m.Payload)
		m.Release()
	}
}

// closeWrite ends what goes to QEMU; it may have closed already.
func closeWrite(c io.Closer) {
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	}
}
