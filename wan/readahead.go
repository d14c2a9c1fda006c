package wan

import (
	"bytes"
	"context"
	"fmt"
	"io"

	"golang.org/x/sync/errgroup"
)

// piece is a part of an image on its way from the disk.
type piece struct {
	off, length int64
	// content is nil for zeros.
	content []byte
	ready   chan struct{}
}

// readAll reads the runs that produce yields, several reads at a time, and
// gives their pieces to take in order. A piece's content is only valid until
// take returns. Data that turns out to be all zeros is given as zeros when
// fold is set.
func readAll(ctx context.Context, from io.ReaderAt, fold bool,
	produce func(ctx context.Context, yield func(run) bool) error, take func(*piece) error,
) error {
	group, ctx := errgroup.WithContext(ctx)
	order := make(chan *piece, readAhead)
	work := make(chan *piece)
	buffers := make(chan []byte, readAhead+readers)
	put := func(to chan<- *piece, p *piece) bool {
		select {
		case to <- p:
			return true
		case <-ctx.Done():
			return false
		}
	}
	group.Go(func() error {
		defer close(order)
		defer close(work)
		return produce(ctx, func(r run) bool {
			for r.length > 0 {
				n := r.length
				if !r.zero {
					n = min(n, pieceBytes-r.off%pieceBytes)
				}
				p := &piece{off: r.off, length: n, ready: make(chan struct{})}
				r.off, r.length = r.off+n, r.length-n
				if r.zero {
					close(p.ready)
				}
				if !put(order, p) || !r.zero && !put(work, p) {
					return false
				}
			}
			return ctx.Err() == nil
		})
	})
	for range readers {
		group.Go(func() error {
			for p := range work {
				if err := p.read(from, fold, buffers); err != nil {
					return err
				}
			}
			return nil
		})
	}
	group.Go(func() error {
		for p := range order {
			select {
			case <-p.ready:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			if err := take(p); err != nil {
				return err
			}
			if p.content != nil {
				select {
				case buffers <- p.content[:cap(p.content)]:
				default:
				}
			}
		}
		return ctx.Err()
	})
	return group.Wait()
}

// allZero is what a piece of zeros looks like.
var allZero [pieceBytes]byte

func (p *piece) read(from io.ReaderAt, fold bool, buffers <-chan []byte) error {
	var buf []byte
	select {
	case buf = <-buffers:
	default:
		buf = make([]byte, pieceBytes)
	}
	buf = buf[:p.length]
	// A ReaderAt may return io.EOF with the image's last bytes.
	if n, err := from.ReadAt(buf, p.off); int64(n) < p.length {
		return fmt.Errorf("read %d bytes at %d: %w", p.length, p.off, unexpected(err))
	}
	if !fold || !bytes.Equal(buf, allZero[:len(buf)]) {
		p.content = buf
	}
	close(p.ready)
	return nil
}

// unexpected is io.ErrUnexpectedEOF for an end inside of something.
func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
