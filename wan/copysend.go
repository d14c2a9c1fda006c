package wan

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"

	"golang.org/x/sync/errgroup"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/nbd"
	"github.com/drover-vm/drover/wan/bundle"
)

// CopyProgress is told how far a copy is: phase "copy" counts the image's
// bytes sent, phase "verify" those that the destination has read back. It is
// not called concurrently.
type CopyProgress func(phase string, done, total drover.Bytes)

// SendImage sends an image's extents and returns when the destination has them
// durably, has read them back and has found the same digest. Repeating it sends
// all again, as far as the destination does not have it. A digest that differs
// gives drover.Corrupt, a destination that has no room drover.Exhausted, one
// that cannot write for other reasons, and a session that breaks,
// drover.Unavailable.
func (s *Sender) SendImage(ctx context.Context, target string, img driver.ImageReader, progress CopyProgress) (CopyReport, error) {
	op := "send disk " + target
	total, err := extentBytes(ctx, img)
	if err != nil {
		return CopyReport{}, drover.E(drover.KindOf(err), op, err)
	}
	src, err := s.serveDisks(nil)
	if err != nil {
		return CopyReport{}, err
	}
	d, err := src.Disk(ctx, target)
	if err != nil {
		err = s.lost(err)
		return CopyReport{}, drover.E(drover.KindOf(err), op, err)
	}
	if d.Size() != img.Size() {
		return CopyReport{}, drover.Errorf(drover.Invalid, op, "it has %d bytes, the destination's %d", img.Size(), d.Size())
	}
	c, err := s.bundle.Open(ctx, bundle.Copy, target)
	if err != nil {
		return CopyReport{}, err
	}
	defer c.Close()
	o := &imageSender{disk: d, ch: c, digest: newDigester(), total: total, progress: progress}
	if err := o.run(ctx, img); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
			return CopyReport{}, drover.E(drover.Canceled, op, err)
		}
		err = s.lost(err)
		var de *drover.Error
		if errors.As(err, &de) {
			return CopyReport{}, drover.E(de.Kind, op, err)
		}
		if errors.Is(err, syscall.ENOSPC) {
			return CopyReport{}, drover.E(drover.Exhausted, op, err)
		}
		return CopyReport{}, drover.E(drover.Unavailable, op, err)
	}
	return o.report, nil
}

func extentBytes(ctx context.Context, img driver.ImageReader) (drover.Bytes, error) {
	var total int64
	err := img.Extents(ctx, func(e driver.Extent) bool {
		total += e.Length
		return true
	})
	return drover.Bytes(total), err
}

// imageSender sends one image.
type imageSender struct {
	disk     nbd.Backend
	ch       *bundle.Channel
	digest   *digester
	report   CopyReport
	total    drover.Bytes
	telling  sync.Mutex // both directions have something to tell
	progress CopyProgress

	runs    []byte // of the window so far
	window  int64  // its bytes of data
	end     int64  // of the last run
	flushes chan window
}

// window is a part of the image that is to be made durable and then read back.
type window struct {
	runs []byte
	last bool
}

func (o *imageSender) tell(phase string, done drover.Bytes) {
	o.telling.Lock()
	defer o.telling.Unlock()
	if o.progress != nil {
		o.progress(phase, done, o.total)
	}
}

// run sends the content over the disk's channel and, beside it, window for
// window what was sent and is durable over the copy's.
func (o *imageSender) run(ctx context.Context, img driver.ImageReader) error {
	o.flushes = make(chan window, maxWindows)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		defer close(o.flushes)
		return o.send(ctx, img)
	})
	group.Go(func() error {
		for w := range o.flushes {
			if err := o.disk.Flush(ctx); err != nil {
				return err
			}
			if err := o.ch.Send(ctx, copyRuns, w.runs); err != nil {
				return err
			}
			if w.last {
				if err := o.ch.Send(ctx, copyEnd, o.report.Digest[:]); err != nil {
					return err
				}
				return o.ch.CloseSend()
			}
		}
		return ctx.Err()
	})
	group.Go(func() error { return o.listen(ctx) })
	return group.Wait()
}

func (o *imageSender) send(ctx context.Context, img driver.ImageReader) error {
	extents := func(ctx context.Context, yield func(run) bool) error {
		return img.Extents(ctx, func(e driver.Extent) bool {
			return yield(run{e.Offset, e.Length, e.Zero})
		})
	}
	err := readAll(ctx, img, true, extents, func(p *piece) error { return o.piece(ctx, p) })
	if err != nil {
		return err
	}
	o.report.Digest = o.digest.sum()
	return o.flush(ctx, true)
}

// piece sends a part of the image. Long runs of zeros within data cross as such.
func (o *imageSender) piece(ctx context.Context, p *piece) error {
	for off := int64(0); off < p.length; {
		n, zero := p.length-off, true
		if p.content != nil {
			n, zero = sameKind(p.content[off:])
		}
		var err error
		if zero {
			err = o.disk.Zero(ctx, p.off+off, n, nbd.ZeroOptions{})
			o.report.ZeroBytes += drover.Bytes(n)
			o.digest.add(p.off+off, n, nil)
		} else {
			content := p.content[off : off+n]
			err = o.disk.Write(ctx, content, p.off+off)
			o.report.DataBytes += drover.Bytes(n)
			o.window += n
			o.digest.add(p.off+off, n, content)
		}
		if err != nil {
			return err
		}
		o.note(run{p.off + off, n, zero})
		off += n
	}
	o.tell("copy", o.report.DataBytes+o.report.ZeroBytes)
	if o.window >= windowBytes || len(o.runs) >= maxRunBytes {
		return o.flush(ctx, false)
	}
	return nil
}

// sameKind returns how far p begins with zeros, or with anything else, in steps
// of foldBytes.
func sameKind(p []byte) (n int64, zero bool) {
	step := func(at int) (int, bool) {
		part := p[at:min(len(p), at+foldBytes)]
		return len(part), string(part) == string(allZero[:len(part)])
	}
	first, zero := step(0)
	at := first
	for at < len(p) {
		k, z := step(at)
		if z != zero {
			break
		}
		at += k
	}
	return int64(at), zero
}

// note adds a run to the window's list.
func (o *imageSender) note(r run) {
	o.runs = binary.AppendUvarint(o.runs, uint64(r.off-o.end))
	kind := uint64(0)
	if r.zero {
		kind = 1
	}
	o.runs = binary.AppendUvarint(o.runs, uint64(r.length)<<1|kind)
	o.end = r.off + r.length
}

// flush ends the window.
func (o *imageSender) flush(ctx context.Context, last bool) error {
	w := window{o.runs, last}
	o.runs, o.window = nil, 0
	select {
	case o.flushes <- w:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// listen reads the destination's messages until its last word.
func (o *imageSender) listen(ctx context.Context) error {
	for {
		m, err := o.ch.Receive(ctx)
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return fmt.Errorf("the destination's answer: %w", err)
		}
		kind, p := m.Kind, append([]byte(nil), m.Payload...)
		m.Release()
		switch {
		case kind == copyVerified && len(p) == 8:
			o.tell("verify", min(drover.Bytes(binary.BigEndian.Uint64(p)), o.total))
		case kind == copyFailed:
			return parseFailure(p)
		case kind == copyDone && len(p) == len(o.report.Digest):
			if [32]byte(p) != o.report.Digest {
				return drover.Errorf(drover.Corrupt, "compare digests",
					"the destination read back %x, the source sent %x", p[:8], o.report.Digest[:8])
			}
			return nil
		default:
			return drover.Errorf(drover.Invalid, "the destination's answer", "message of kind %d, %d bytes", kind, len(p))
		}
	}
}
