package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/drover-vm/drover/nbd"
)

// reopenEvery is the wait between two attempts to open an image, or to open it
// again: at the switchover another QEMU may be about to let go of it.
const reopenEvery = 200 * time.Millisecond

// Image is an open image; driver.ImageWriter is one.
type Image interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Size() int64
	Zero(ctx context.Context, off, length int64) error
	Flush(ctx context.Context) error
}

// ShareOptions are what a Share works with.
type ShareOptions struct {
	// Size of the image in bytes.
	Size int64
	// Open opens the image. It is called for the first request, and again when
	// the image has failed; a failure is tried again as long as the client waits.
	Open func(ctx context.Context) (Image, error)
	Log  *slog.Logger
}

// Share serves an image to a VM at another site. It has one session at a time: a
// new one ends the old one, requests included.
type Share struct {
	o    ShareOptions
	turn turn

	opening chan struct{} // held while image is opened or closed
	imageMu sync.Mutex
	image   Image // nil: to be opened

	flushMu  sync.Mutex
	flush    *flush // the next one, which has not begun
	flushing chan struct{}
}

// flush is one that several writes wait for.
type flush struct {
	done chan struct{}
	err  error
}

// NewShare returns a share whose image is not open yet.
func NewShare(o ShareOptions) *Share {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Share{o: o, opening: make(chan struct{}, 1), flushing: make(chan struct{}, 1)}
}

// Serve speaks with one client until it goes or ctx ends, and closes conn. A
// session that is under way is ended first, its requests carried out.
func (s *Share) Serve(ctx context.Context, conn net.Conn) error {
	ctx, done, ok := s.turn.take(ctx)
	if !ok {
		return conn.Close()
	}
	defer done()
	return nbd.Serve(ctx, conn, nbd.ServerOptions{
		Open: func(context.Context, string) (nbd.Backend, error) { return shared{s}, nil },
	})
}

// Close ends the session and closes the image. It takes no other.
func (s *Share) Close() error {
	s.turn.close()
	s.opening <- struct{}{}
	defer func() { <-s.opening }()
	s.imageMu.Lock()
	image := s.image
	s.image = nil
	s.imageMu.Unlock()
	if image == nil {
		return nil
	}
	return image.Close()
}

// shared is a Share as a client's backend.
type shared struct{ *Share }

var (
	_ nbd.Parallel = shared{}
	_ nbd.Mapper   = shared{}
)

// Parallel implements nbd.Parallel.
func (s shared) Parallel() {}

// Size is the image's.
func (s shared) Size() int64 { return s.o.Size }

// ReadAt implements nbd.Backend.
func (s shared) ReadAt(ctx context.Context, p []byte, off int64) error {
	return s.with(ctx, func(_ context.Context, im Image) error {
		_, err := im.ReadAt(p, off)
		if errors.Is(err, io.EOF) { // with all of it
			err = nil
		}
		return err
	})
}

// Write implements nbd.Backend.
func (s shared) Write(ctx context.Context, p []byte, off int64) error {
	return s.with(ctx, func(ctx context.Context, im Image) error {
		if _, err := im.WriteAt(p, off); err != nil {
			return err
		}
		return s.durable(ctx, im)
	})
}

// Zero implements nbd.Backend. Over a WAN it is fast, whatever the image does.
func (s shared) Zero(ctx context.Context, off, length int64, _ nbd.ZeroOptions) error {
	return s.with(ctx, func(ctx context.Context, im Image) error {
		if err := im.Zero(ctx, off, length); err != nil {
			return err
		}
		return s.durable(ctx, im)
	})
}

// Trim implements nbd.Backend: zeros are as good as anything.
func (s shared) Trim(ctx context.Context, off, length int64) error {
	return s.Zero(ctx, off, length, nbd.ZeroOptions{})
}

// mapped is an Image that knows what of it reads as zeros; driver.ImageMap is one.
type mapped interface {
	Allocation(ctx context.Context, off, length int64, yield func(length int64, zero bool)) error
}

// Extents implements nbd.Mapper. Of an image that does not know, all is data.
func (s shared) Extents(ctx context.Context, off, length int64) ([]nbd.Extent, error) {
	var list []nbd.Extent
	err := s.with(ctx, func(ctx context.Context, im Image) error {
		list = nil
		m, ok := im.(mapped)
		if !ok {
			list = []nbd.Extent{{Length: uint64(length)}}
			return nil
		}
		return m.Allocation(ctx, off, length, func(n int64, zero bool) {
			e := nbd.Extent{Length: uint64(n)}
			if zero {
				e.Flags = nbd.FlagHole | nbd.FlagZero
			}
			list = append(list, e)
		})
	})
	return list, err
}

// Flush implements nbd.Backend.
func (s shared) Flush(ctx context.Context) error { return s.with(ctx, s.durable) }

// with carries a request out on the image. Once it has begun it is ended, whatever
// becomes of the client: when the session has ended, so has every request. An image
// whose server has gone is opened again; nothing that was acknowledged was only in
// its memory.
func (s *Share) with(ctx context.Context, do func(context.Context, Image) error) error {
	for {
		im, err := s.get(ctx)
		if err != nil {
			return err
		}
		err = do(context.WithoutCancel(ctx), im)
		var told *nbd.ServerError
		var errno syscall.Errno
		switch {
		case err == nil:
			return nil
		case errors.As(err, &told), errors.As(err, &errno) && errno != syscall.EPIPE && errno != syscall.ECONNRESET:
			s.o.Log.Error("a disk that was left here fails", "err", err)
			return err
		}
		s.o.Log.Warn("the image of a disk that was left here is opened again", "err", err)
		s.discard(im)
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// get returns the open image, and opens it as often as it takes.
func (s *Share) get(ctx context.Context) (Image, error) {
	s.imageMu.Lock()
	im := s.image
	s.imageMu.Unlock()
	if im != nil {
		return im, nil
	}
	select {
	case s.opening <- struct{}{}:
		defer func() { <-s.opening }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	for said := false; ; {
		s.imageMu.Lock()
		im := s.image
		s.imageMu.Unlock()
		if im != nil {
			return im, nil
		}
		im, err := s.open(ctx)
		if err == nil {
			s.imageMu.Lock()
			s.image = im
			s.imageMu.Unlock()
			return im, nil
		}
		if !said {
			s.o.Log.Warn("a disk that was left here cannot be opened (yet)", "err", err)
			said = true
		}
		select {
		case <-time.After(reopenEvery):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (s *Share) open(ctx context.Context) (Image, error) {
	im, err := s.o.Open(ctx)
	if err != nil {
		return nil, err
	}
	if im.Size() != s.o.Size {
		_ = im.Close()
		return nil, fmt.Errorf("the image has %d bytes, want %d", im.Size(), s.o.Size)
	}
	return im, nil
}

// discard closes an image that has failed.
func (s *Share) discard(im Image) {
	s.imageMu.Lock()
	mine := s.image == im
	if mine {
		s.image = nil
	}
	s.imageMu.Unlock()
	if mine {
		_ = im.Close()
	}
}

// durable returns when all that was written before it was called is on the disk.
// Callers at the same time share a flush.
func (s *Share) durable(ctx context.Context, im Image) error {
	s.flushMu.Lock()
	f := s.flush
	if f != nil {
		s.flushMu.Unlock()
		<-f.done
		return f.err
	}
	f = &flush{done: make(chan struct{})}
	s.flush = f
	s.flushMu.Unlock()
	s.flushing <- struct{}{} // the one before
	s.flushMu.Lock()
	s.flush = nil // who comes from here on needs another
	s.flushMu.Unlock()
	f.err = im.Flush(ctx)
	<-s.flushing
	close(f.done)
	return f.err
}
