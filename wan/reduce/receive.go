package reduce

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/drover-vm/drover"
)

const (
	// returnBytes is the most that is read of QEMU's return path at once; its messages have a few bytes.
	returnBytes = 16 << 10
	// returnLinger bounds how long the destination's QEMU may take to close its end after the stream's
	// last byte: it loads the devices' state in milliseconds, and closes at once.
	returnLinger = 10 * time.Second
	// abortWait bounds how long a receiver that has failed tries to say so.
	abortWait = time.Second
	// outputQueue is how many pieces of the decoded stream may wait for QEMU.
	outputQueue = 4
	// maxFills bounds the fills of one batch: all of its blocks, twice.
	maxFills = 2 * MaxBlocks / fillBlocks
)

// ReceiveOptions say how a memory stream is received.
type ReceiveOptions struct {
	MemoryDecoderOptions
	// Fill asks for what is missed and says what is complete. Return takes QEMU's bytes back; nil: they are read and dropped.
	Fill, Return Channel
}

// ReceiveMemory gives QEMU, at local, the memory stream that comes by ch, until the sender has sent all of it. local is closed
// when it returns. Errors: drover.Canceled when the sender gave up, drover.Unavailable
// when QEMU closes its end early, drover.Corrupt when what comes makes no stream; those of the channels as
// they are.
func ReceiveMemory(ctx context.Context, local io.ReadWriteCloser, ch Channel, o ReceiveOptions) error {
	r := &memoryReceiver{local: local, ch: ch, o: o, dec: NewMemoryDecoder(o.MemoryDecoderOptions)}
	defer r.dec.Close()
	group, inner := errgroup.WithContext(ctx)
	stop := closeAfter(inner, local)
	gone := make(chan struct{})
	group.Go(func() error {
		defer close(gone)
		return r.returns(inner)
	})
	group.Go(func() error {
		if err := r.run(inner); err != nil {
			return err
		}
		return r.finish(inner, gone)
	})
	err := group.Wait()
	stop()
	if err != nil && drover.KindOf(err) != drover.Canceled {
		r.abort(ctx, err)
	}
	return err
}

// abort tells the sender why it need not send more, if it still listens.
func (r *memoryReceiver) abort(ctx context.Context, why error) {
	ctx, cancel := context.WithTimeout(ctx, abortWait)
	defer cancel()
	// The channel may be what failed.
	_ = r.o.Fill.Send(ctx, KindAbort, []byte(why.Error()))
}

// memoryReceiver is one run of ReceiveMemory.
type memoryReceiver struct {
	local io.ReadWriteCloser
	ch    Channel
	o     ReceiveOptions
	dec   *MemoryDecoder
	// out is decoded and not yet written, spare are buffers that were.
	out, spare chan []byte
}

// run decodes all batches, while those before are written to QEMU, which takes about as long.
func (r *memoryReceiver) run(ctx context.Context) error {
	group, inner := errgroup.WithContext(ctx)
	r.out, r.spare = make(chan []byte, outputQueue), make(chan []byte, outputQueue+2)
	group.Go(func() error { return r.write(inner) })
	group.Go(func() error {
		defer close(r.out)
		return r.decode(inner)
	})
	return group.Wait()
}

// write gives QEMU what was decoded.
func (r *memoryReceiver) write(ctx context.Context) error {
	for p := range r.out {
		if _, err := r.local.Write(p); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return drover.E(drover.Unavailable, "write memory stream to QEMU", err)
		}
		r.spare <- p
	}
	return nil
}

// pass hands a piece of the stream to write.
func (r *memoryReceiver) pass(ctx context.Context, p []byte) error {
	var buf []byte
	select {
	case buf = <-r.spare:
	default:
	}
	select {
	case r.out <- append(buf[:0], p...):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// decode decodes all batches.
func (r *memoryReceiver) decode(ctx context.Context) error {
	for {
		m, err := r.ch.Receive(ctx)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		err = r.message(ctx, m)
		m.Release()
		if err != nil {
			return err
		}
	}
}

func (r *memoryReceiver) message(ctx context.Context, m Message) error {
	const op = "receive memory"
	switch m.Kind {
	case KindAbort:
		return drover.Errorf(drover.Canceled, op, "the source gave up: %.200q", m.Payload)
	case KindBatch:
	default:
		return drover.Errorf(drover.Corrupt, op, "message of kind %d", m.Kind)
	}
	miss, err := r.dec.Open(m.Payload)
	if err == nil && miss != nil {
		err = r.fill(ctx, miss)
	}
	if err != nil {
		return err
	}
	if r.dec.Depends() {
		if err := r.o.Fill.Send(ctx, KindApplied, binary.AppendUvarint(nil, r.dec.Seq())); err != nil {
			return err
		}
	}
	return r.dec.Emit(func(p []byte) error { return r.pass(ctx, p) })
}

// fill asks for what is missing until the batch is complete.
func (r *memoryReceiver) fill(ctx context.Context, miss []byte) error {
	if err := r.o.Fill.Send(ctx, KindMiss, miss); err != nil {
		return err
	}
	for range maxFills {
		m, err := r.o.Fill.Receive(ctx)
		if errors.Is(err, io.EOF) {
			return drover.Errorf(drover.Corrupt, "fill batch", "the source closed with a miss unanswered")
		}
		if err != nil {
			return err
		}
		if m.Kind != KindFill {
			m.Release()
			return drover.Errorf(drover.Corrupt, "fill batch", "message of kind %d", m.Kind)
		}
		done, again, err := r.dec.Fill(m.Payload)
		m.Release()
		if err != nil || done {
			return err
		}
		if again != nil {
			if err := r.o.Fill.Send(ctx, KindMiss, again); err != nil {
				return err
			}
		}
	}
	return drover.Errorf(drover.Corrupt, "fill batch", "%d fills and still not complete", maxFills)
}

// finish lets QEMU read the rest and say its last words.
func (r *memoryReceiver) finish(ctx context.Context, gone <-chan struct{}) error {
	closeWrite(r.local)
	timer := time.NewTimer(returnLinger)
	defer timer.Stop()
	select {
	case <-gone:
	case <-timer.C:
		r.local.Close()
		<-gone
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return r.o.Fill.CloseSend()
}

// returns takes QEMU's return path back to the source, until QEMU closes its end.
func (r *memoryReceiver) returns(ctx context.Context) error {
	buf := make([]byte, returnBytes)
	for {
		n, err := r.local.Read(buf)
		if n > 0 && r.o.Return != nil {
			if err := r.o.Return.Send(ctx, KindReturn, buf[:n]); err != nil {
				return err
			}
		}
		if err == nil {
			continue
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		// Whether QEMU closed too early shows when it is written to.
		if r.o.Return != nil {
			return r.o.Return.CloseSend()
		}
		return nil
	}
}
