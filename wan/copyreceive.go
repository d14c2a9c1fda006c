package wan

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/sync/errgroup"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// drainLimit is how long a destination that has failed reads on, so that its
// reason arrives before the connection is reset.
const drainLimit = 5 * time.Second

// ReceiveImage takes what SendImage sends: it writes it to img, flushes, reads
// it back, and answers with the digest of what it read. img must read as zeros
// (or as its backing) where nothing is sent; the caller makes it so, and
// closes it. seal is called before the digest is acknowledged, so that the
// caller can journal it; its error fails the copy. ReceiveImage closes the
// stream. An interrupted copy leaves img with a part of the content.
func ReceiveImage(ctx context.Context, s Stream, img driver.ImageWriter, seal func(CopyReport) error) (CopyReport, error) {
	const op = "receive image"
	defer s.Close()
	unhook := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer unhook()
	in := &receiver{from: bufio.NewReaderSize(s, relayBuffer), img: img}
	err := in.receive(ctx)
	if err == nil {
		err = in.verify(ctx, s)
	}
	if err == nil && seal != nil {
		err = seal(in.report)
	}
	if err == nil {
		if _, err = s.Write(copyFrame{kind: frameDone, digest: in.report.Digest}.head()); err == nil {
			_ = s.CloseWrite()
			return in.report, nil
		}
	}
	refuse(s, err)
	var de *drover.Error
	if errors.As(err, &de) {
		return CopyReport{}, drover.E(de.Kind, op, err)
	}
	return CopyReport{}, drover.E(drover.Unavailable, op, err)
}

// refuse tells the source why, and waits until it has had time to hear it.
func refuse(s Stream, why error) {
	if _, err := s.Write(copyFrame{kind: frameFailed, text: why.Error()}.head()); err != nil {
		return
	}
	_ = s.CloseWrite()
	stop := time.AfterFunc(drainLimit, func() { _ = s.Close() })
	defer stop.Stop()
	_, _ = io.Copy(io.Discard, s)
}

type receiver struct {
	from   *bufio.Reader
	img    driver.ImageWriter
	runs   []run
	end    int64 // where the last frame ended
	report CopyReport
	want   [32]byte
}

// incoming is a frame on its way to the disk.
type incoming struct {
	copyFrame
	content []byte
}

// receive reads from the network and writes to the disk side by side.
func (in *receiver) receive(ctx context.Context) error {
	if err := in.begin(); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	frames := make(chan incoming, readAhead)
	free := make(chan []byte, readAhead+2)
	group.Go(func() error {
		defer close(frames)
		for {
			f, err := in.next(free)
			if err != nil || f.kind == frameEnd {
				return err
			}
			select {
			case frames <- f:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
	})
	group.Go(func() error {
		for f := range frames {
			if err := in.write(ctx, f); err != nil {
				return err
			}
			if f.content != nil {
				select {
				case free <- f.content[:cap(f.content)]:
				default:
				}
			}
		}
		return nil
	})
	return group.Wait()
}

func (in *receiver) begin() error {
	f, err := readFrame(in.from)
	switch {
	case err != nil:
		return err
	case f.kind != frameBegin:
		return drover.Errorf(drover.Invalid, "copy format", "first frame of kind %d, want %d", f.kind, frameBegin)
	case f.length != in.img.Size():
		return drover.Errorf(drover.Invalid, "copy format", "image of %d bytes, the destination's has %d", f.length, in.img.Size())
	}
	return nil
}

// next reads and checks one frame with its content.
func (in *receiver) next(free <-chan []byte) (incoming, error) {
	const op = "copy format"
	f, err := readFrame(in.from)
	if err != nil {
		return incoming{}, unexpected(err)
	}
	switch f.kind {
	case frameEnd:
		in.want = f.digest
		return incoming{copyFrame: f}, nil
	case frameData, frameZero:
	default:
		return incoming{}, drover.Errorf(drover.Invalid, op, "frame of kind %d in the middle", f.kind)
	}
	if f.off < in.end || f.off+f.length > in.img.Size() {
		return incoming{}, drover.Errorf(drover.Invalid, op, "frame at %d of %d bytes, want it from %d to %d",
			f.off, f.length, in.end, in.img.Size())
	}
	in.end = f.off + f.length
	if err := in.remember(run{f.off, f.length, f.kind == frameZero}); err != nil {
		return incoming{}, err
	}
	if f.kind == frameZero {
		in.report.ZeroBytes += drover.Bytes(f.length)
		return incoming{copyFrame: f}, nil
	}
	in.report.DataBytes += drover.Bytes(f.length)
	var buf []byte
	select {
	case buf = <-free:
	default:
		buf = make([]byte, pieceBytes)
	}
	buf = buf[:f.length]
	if _, err := io.ReadFull(in.from, buf); err != nil {
		return incoming{}, unexpected(err)
	}
	if sum := xxhash.Sum64(buf); sum != f.checksum {
		return incoming{}, drover.Errorf(drover.Corrupt, op, "frame at %d: checksum %016x, want %016x", f.off, sum, f.checksum)
	}
	return incoming{f, buf}, nil
}

func (in *receiver) remember(r run) error {
	if n := len(in.runs); n > 0 {
		last := &in.runs[n-1]
		if last.zero == r.zero && last.off+last.length == r.off {
			last.length += r.length
			return nil
		}
		if n >= maxRuns {
			return drover.Errorf(drover.Exhausted, "copy format", "more than %d separate runs", maxRuns)
		}
	}
	in.runs = append(in.runs, r)
	return nil
}

func (in *receiver) write(ctx context.Context, f incoming) error {
	if f.kind == frameZero {
		return in.img.Zero(ctx, f.off, f.length)
	}
	_, err := in.img.WriteAt(f.content, f.off)
	return err
}

// verify flushes, reads everything back and compares, with a sign of life for
// the source every verifyBeat.
func (in *receiver) verify(ctx context.Context, s Stream) error {
	var done atomic.Int64
	stop := make(chan struct{})
	var beats sync.WaitGroup
	beats.Go(func() {
		tick := time.NewTicker(verifyBeat)
		defer tick.Stop()
		for {
			if _, err := s.Write(copyFrame{kind: frameVerified, length: done.Load()}.head()); err != nil {
				return
			}
			select {
			case <-tick.C:
			case <-stop:
				return
			}
		}
	})
	defer beats.Wait()
	defer close(stop)
	if err := in.img.Flush(ctx); err != nil {
		return err
	}
	digest := newDigester()
	runs := func(_ context.Context, yield func(run) bool) error {
		for _, r := range in.runs {
			// Zeros are read too: that they were written is what is proved.
			if !yield(run{off: r.off, length: r.length}) {
				break
			}
		}
		return nil
	}
	at := 0
	err := readAll(ctx, in.img, false, runs, func(p *piece) error {
		for p.off >= in.runs[at].off+in.runs[at].length {
			at++
		}
		if in.runs[at].zero {
			if !bytes.Equal(p.content, allZero[:p.length]) {
				return drover.Errorf(drover.Corrupt, "read back", "not zero between %d and %d", p.off, p.off+p.length)
			}
			digest.add(p.off, p.length, nil)
		} else {
			digest.add(p.off, p.length, p.content)
		}
		done.Add(p.length)
		return nil
	})
	if err != nil {
		return fmt.Errorf("read back: %w", err)
	}
	in.report.Digest = digest.sum()
	if in.report.Digest != in.want {
		return drover.Errorf(drover.Corrupt, "read back", "digest %x, the source sent %x", in.report.Digest[:8], in.want[:8])
	}
	return nil
}
