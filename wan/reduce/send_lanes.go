package reduce

import (
	"context"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/wan/page"
)

// hand gives the batch to a lane. mu is held.
func (s *memorySender) hand(ctx context.Context) error {
	s.rest()
	began := time.Now()
	defer func() { s.active = time.Now() }()
	if s.kept.covers(s.enc.places) {
		if err := s.kept.empty(ctx); err != nil {
			return err
		}
	}
	if err := s.kept.wait(ctx, s.enc.Retains()); err != nil {
		return err
	}
	retained := time.Now()
	s.o.Stats.RetainNanoseconds.Add(int64(retained.Sub(began)))
	defer func() { s.o.Stats.HandNanoseconds.Add(int64(time.Since(retained))) }()
	b := s.seal()
	for _, lane := range s.lanes {
		select {
		case lane.in <- b:
			return nil
		default:
		}
	}
	select {
	case s.drafts <- b:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// seal ends the batch. mu is held.
func (s *memorySender) seal() sealed {
	b := sealed{s.enc.Seal(), s.turn}
	s.kept.cover(b.d)
	s.turn++
	return b
}

// ended judges the end of QEMU's stream: before the devices' state it is a migration
// that was given up.
func ended(phase page.Phase) error {
	if phase == page.Devices || phase == page.Opaque {
		return nil
	}
	return drover.Errorf(drover.Canceled, "send memory", "QEMU closed its end in phase %v", phase)
}

// compress is a lane's work.
func (s *memorySender) compress(ctx context.Context, n int) error {
	lane := s.lanes[n]
	defer func() {
		if s.working.Add(-1) == 0 {
			s.ahead.end()
		}
	}()
	for {
		var b sealed
		ok := true
		select {
		case b = <-lane.in:
		case b, ok = <-s.drafts:
			if !ok {
				return nil
			}
		case <-s.idle:
			if b = s.take(); b.d == nil {
				continue
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		var buf []byte
		select {
		case buf = <-s.spare:
		default:
		}
		started, raw, stored := time.Now(), b.d.payload()-len(b.d.raws)*BlockBytes, len(b.d.raws)*BlockBytes
		buf, err := lane.c.Append(buf[:0], b.d)
		if err != nil {
			return err
		}
		if s.ctl != nil {
			s.ctl.Compressed(lane.c.used, raw, len(buf)-stored, time.Since(started))
		}
		s.kept.add(b.d.Done())
		if err := s.ahead.put(ctx, b.turn, buf); err != nil {
			return err
		}
	}
}

// take seals the batch that waits for more while QEMU has nothing more to say; its draft is nil if the reader
// goes on, or if something has to be acknowledged first, after which it is tried again. It waits neither for the reader,
// which may be waiting for this lane, nor for acknowledgements, of which the reader's batch may be one.
func (s *memorySender) take() sealed {
	if !s.mu.TryLock() {
		return sealed{}
	}
	defer s.mu.Unlock()
	if s.enc.Empty() || s.kept.covers(s.enc.places) || !s.kept.try(s.enc.Retains()) {
		return sealed{}
	}
	return s.seal()
}

// offer tells a lane that has nothing to do that there may be a batch to take.
func (s *memorySender) offer() {
	select {
	case s.idle <- struct{}{}:
	default:
	}
}

// transmit sends the batches in order.
func (s *memorySender) transmit(ctx context.Context) error {
	for {
		batch, ok, err := s.ahead.take(ctx)
		if err != nil {
			return err
		}
		if !ok {
			close(s.done)
			return nil
		}
		started := time.Now()
		if err := s.ch.Send(ctx, KindBatch, batch); err != nil {
			return err
		}
		took := time.Since(started)
		s.o.Stats.SendNanoseconds.Add(int64(took))
		if rate, stock, measured := s.ahead.took(len(batch), took); measured && s.ctl != nil {
			s.ctl.Link(rate, stock)
		}
		select {
		case s.spare <- batch:
		default:
		}
	}
}
