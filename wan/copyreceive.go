package wan

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/nbd"
	"github.com/drover-vm/drover/wan/bundle"
	"github.com/drover-vm/drover/wan/disk"
)

// verifyBeat is how often a destination says how far it has read back.
const verifyBeat = 2 * time.Second

// Image is a disk that a copy is written to. It must read as zeros, or as its
// backing, where nothing is sent.
type Image interface {
	driver.ImageWriter
	// Seal is called when the copy is complete, durable and read back, before
	// the source is told so: the caller journals it. Its error fails the copy.
	Seal(CopyReport) error
}

// images are the disks that a session's copies are written to, opened when
// the first of their two channels comes.
type images struct {
	open func(ctx context.Context, target string) (Image, error)

	mu sync.Mutex
	m  map[string]Image
}

func (i *images) get(ctx context.Context, target string) (Image, error) {
	const op = "open disk of a copy"
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.open == nil {
		return nil, drover.Errorf(drover.Refused, op, "this session copies no disks")
	}
	if img := i.m[target]; img != nil {
		return img, nil
	}
	if err := drover.CheckName(op, target); err != nil {
		return nil, err
	}
	img, err := i.open(ctx, target)
	if err != nil {
		return nil, err
	}
	if i.m == nil {
		i.m = make(map[string]Image)
	}
	i.m[target] = img
	return img, nil
}

func (i *images) close() {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, img := range i.m {
		_ = img.Close()
	}
	i.m = nil
}

// volume is an image as a disk's channel sees it. It stays open after the
// channel: what came by it is read back.
type volume struct{ Image }

var _ disk.Volume = volume{}

// ZeroWith makes a run read as zeros; the image decides about the space.
func (v volume) ZeroWith(ctx context.Context, off, length int64, _ nbd.ZeroOptions) error {
	return v.Zero(ctx, off, length)
}

// Trim may leave the run as it is.
func (volume) Trim(context.Context, int64, int64) error { return nil }

// Close leaves the image open: the session closes it.
func (volume) Close() error { return nil }

// image verifies what the disk's other channel brings.
func (r *Receiver) image(c *bundle.Channel) error {
	v := &verifier{ch: c, digest: newDigester()}
	err := func() (err error) {
		if v.img, err = r.images.get(r.ctx, c.Name()); err != nil {
			return err
		}
		return v.run(r.ctx)
	}()
	if err != nil {
		_ = c.Send(r.ctx, copyFailed, appendFailure(nil, err))
	}
	return errors.Join(err, c.CloseSend())
}

// verifier reads back what the source says it has sent.
type verifier struct {
	ch     *bundle.Channel
	img    Image
	digest *digester
	report CopyReport
	end    int64
	told   time.Time
	done   int64
}

func (v *verifier) run(ctx context.Context) error {
	const op = "copy format"
	for {
		m, err := v.ch.Receive(ctx)
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		kind, p := m.Kind, bytes.Clone(m.Payload)
		m.Release()
		switch {
		case kind == copyRuns:
			runs, end, err := parseRuns(p, v.end, v.img.Size())
			if err != nil {
				return err
			}
			v.end = end
			if err := v.read(ctx, runs); err != nil {
				return err
			}
		case kind == copyEnd && len(p) == len(v.report.Digest):
			v.report.Digest = v.digest.sum()
			if !bytes.Equal(v.report.Digest[:], p) {
				return drover.Errorf(drover.Corrupt, "read back", "digest %x, the source sent %x", v.report.Digest[:8], p[:8])
			}
			if err := v.img.Seal(v.report); err != nil {
				return err
			}
			return v.ch.Send(ctx, copyDone, v.report.Digest[:])
		default:
			return drover.Errorf(drover.Invalid, op, "message of kind %d, %d bytes", kind, len(p))
		}
	}
}

// read reads runs back. Zeros are read too: that they were written is what is
// proved.
func (v *verifier) read(ctx context.Context, runs []run) error {
	at := 0
	produce := func(_ context.Context, yield func(run) bool) error {
		for _, r := range runs {
			if !yield(run{off: r.off, length: r.length}) {
				break
			}
		}
		return nil
	}
	err := readAll(ctx, v.img, false, produce, func(p *piece) error {
		for p.off >= runs[at].off+runs[at].length {
			at++
		}
		if runs[at].zero {
			if !bytes.Equal(p.content, allZero[:p.length]) {
				return drover.Errorf(drover.Corrupt, "read back", "not zero between %d and %d", p.off, p.off+p.length)
			}
			v.digest.add(p.off, p.length, nil)
			v.report.ZeroBytes += drover.Bytes(p.length)
		} else {
			v.digest.add(p.off, p.length, p.content)
			v.report.DataBytes += drover.Bytes(p.length)
		}
		return v.tell(ctx, p.length)
	})
	if err != nil {
		return drover.E(drover.KindOf(err), "read back", err)
	}
	return nil
}

func (v *verifier) tell(ctx context.Context, n int64) error {
	v.done += n
	if time.Since(v.told) < verifyBeat {
		return nil
	}
	v.told = time.Now()
	return v.ch.Send(ctx, copyVerified, binary.BigEndian.AppendUint64(nil, uint64(v.done)))
}
