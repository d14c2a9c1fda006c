package wan

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// CopyProgress is told how far a copy is: phase "copy" counts the image's
// bytes sent, phase "verify" those that the destination has read back.
type CopyProgress func(phase string, done, total drover.Bytes)

// SendImage sends an image's extents over a stream of channel Copy and returns
// when the destination has them durably, has read them back and has found the
// same digest. It closes the stream. Repeating it on a new stream sends all
// again. A digest that differs gives drover.Corrupt, a destination that cannot
// write what its own error says, a stream that breaks drover.Unavailable.
func SendImage(ctx context.Context, s Stream, img driver.ImageReader, progress CopyProgress) (CopyReport, error) {
	const op = "send image"
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	unhook := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer unhook()
	defer s.Close()
	total, err := extentBytes(ctx, img)
	if err != nil {
		return CopyReport{}, drover.E(drover.KindOf(err), op, err)
	}
	out := &sender{to: bufio.NewWriterSize(s, relayBuffer), digest: newDigester(), total: total, progress: progress}
	answers := make(chan error, 1)
	go func() {
		err := out.listen(s)
		if err != nil {
			// Sending on is of no use; its own error would only say "closed".
			cancel(err)
		}
		answers <- err
	}()
	err = out.send(ctx, img)
	if err == nil {
		err = out.await(ctx, s, answers)
	} else {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		_ = s.Close()
		if answer := <-answers; remoteFault(answer) {
			err = answer
		}
	}
	switch {
	case err == nil:
		return out.report, nil
	case errors.Is(err, context.Canceled):
		return CopyReport{}, drover.E(drover.Canceled, op, err)
	}
	var de *drover.Error
	if errors.As(err, &de) {
		return CopyReport{}, err
	}
	return CopyReport{}, drover.E(drover.Unavailable, op, err)
}

func extentBytes(ctx context.Context, img driver.ImageReader) (drover.Bytes, error) {
	var total int64
	err := img.Extents(ctx, func(e driver.Extent) bool {
		total += e.Length
		return true
	})
	return drover.Bytes(total), err
}

type sender struct {
	to       *bufio.Writer
	digest   *digester
	report   CopyReport
	total    drover.Bytes
	progress CopyProgress
	waiting  flag
}

func (o *sender) tell(phase string, done drover.Bytes) {
	if o.progress != nil {
		o.progress(phase, done, o.total)
	}
}

func (o *sender) send(ctx context.Context, img driver.ImageReader) error {
	if _, err := o.to.Write(copyFrame{kind: frameBegin, length: img.Size()}.head()); err != nil {
		return err
	}
	extents := func(ctx context.Context, yield func(run) bool) error {
		return img.Extents(ctx, func(e driver.Extent) bool {
			return yield(run{e.Offset, e.Length, e.Zero})
		})
	}
	if err := readAll(ctx, img, true, extents, o.piece); err != nil {
		return err
	}
	o.report.Digest = o.digest.sum()
	// Before the last frame is out: its answer may come at once.
	o.waiting.Store(true)
	if _, err := o.to.Write(copyFrame{kind: frameEnd, digest: o.report.Digest}.head()); err != nil {
		return err
	}
	return o.to.Flush()
}

func (o *sender) piece(p *piece) error {
	o.digest.add(p.off, p.length, p.content)
	f := copyFrame{kind: frameZero, off: p.off, length: p.length}
	if p.content != nil {
		f.kind, f.checksum = frameData, xxhash.Sum64(p.content)
		o.report.DataBytes += drover.Bytes(p.length)
	} else {
		o.report.ZeroBytes += drover.Bytes(p.length)
	}
	if _, err := o.to.Write(f.head()); err != nil {
		return err
	}
	if _, err := o.to.Write(p.content); err != nil {
		return err
	}
	o.tell("copy", o.report.DataBytes+o.report.ZeroBytes)
	return nil
}

// await waits for the destination's last word, as long as it shows life.
func (o *sender) await(ctx context.Context, s Stream, answers <-chan error) error {
	tick := time.NewTicker(beatLimit)
	defer tick.Stop()
	for {
		select {
		case err := <-answers:
			return err
		case <-tick.C:
			if o.waiting.takeBeat() {
				continue
			}
			_ = s.Close()
			<-answers
			return drover.Errorf(drover.Unavailable, "await verification", "no sign of life for %s", beatLimit)
		case <-ctx.Done():
			_ = s.Close()
			if err := <-answers; remoteFault(err) {
				return err
			}
			return context.Cause(ctx)
		}
	}
}

// listen reads the destination's frames until its last word.
func (o *sender) listen(s Stream) error {
	in := bufio.NewReader(s)
	for {
		f, err := readFrame(in)
		if err != nil {
			return fmt.Errorf("the destination's answer: %w", unexpected(err))
		}
		switch f.kind {
		case frameVerified:
			o.waiting.beat()
			if o.waiting.Load() {
				o.tell("verify", min(drover.Bytes(f.length), o.total))
			}
		case frameFailed:
			return drover.E(drover.Unavailable, "the destination", errors.New(f.text))
		case frameDone:
			if !o.waiting.Load() || f.digest != o.report.Digest {
				return drover.Errorf(drover.Corrupt, "compare digests",
					"the destination read back %x, the source sent %x", f.digest[:8], o.report.Digest[:8])
			}
			return nil
		default:
			return drover.Errorf(drover.Invalid, "the destination's answer", "frame of kind %d", f.kind)
		}
	}
}

// remoteFault reports whether the destination said itself what is wrong.
func remoteFault(err error) bool {
	var de *drover.Error
	return errors.As(err, &de)
}
