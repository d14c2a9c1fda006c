package chunk

import (
	"context"
	"errors"
	"os"
	"sync"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// readerContent is a Content over an image or a memory file: io.ReaderAt's
// contract makes it concurrent.
type readerContent struct{ r driver.ImageReader }

func (c readerContent) ReadBlocks(block int64, p []byte) error {
	if block < 0 || block > MaxBlocks || len(p)%BlockBytes != 0 {
		return drover.Errorf(drover.Invalid, "read blocks", "%d bytes from block %d", len(p), block)
	}
	return diskFault("read blocks", readPadded(c.r, c.r.Size(), p, block*BlockBytes))
}

func (c readerContent) Close() error { return c.r.Close() }

// fileReader reads a memory file as an image.
type fileReader struct {
	*os.File
	size int64
}

func (f fileReader) Size() int64 { return f.size }

// shared is one opened content with as many users as there are handles on it.
type shared struct {
	mu      sync.Mutex // held while opening, so that the others wait for it
	users   int
	content readerContent
}

// handle is one user's share of a content.
type handle struct {
	library *Library
	entry   *entry
	once    sync.Once
	err     error
}

// acquire opens the content unless it is open.
func (s *shared) acquire(open func() (readerContent, error)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.users == 0 {
		c, err := open()
		if err != nil {
			return err
		}
		s.content = c
	}
	s.users++
	return nil
}

// release closes the content after its last user.
func (s *shared) release() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.users--; s.users > 0 {
		return nil
	}
	c := s.content
	s.content = readerContent{}
	return c.Close()
}

// ReadBlocks implements Content. The shared content stays as it is while this
// handle is open, so it is read without its lock.
func (h *handle) ReadBlocks(block int64, p []byte) error {
	return h.entry.shared.content.ReadBlocks(block, p)
}

// Close gives the share back; closing again does nothing.
func (h *handle) Close() error {
	h.once.Do(func() {
		h.err = h.entry.shared.release()
		h.library.unpin(h.entry)
	})
	return h.err
}

// Open opens a source's content; several users share what is opened once, and
// none of it is evicted meanwhile. Images and disks are opened through the
// function they were registered with. Reads need to be verified: see the
// package comment. Errors: drover.NotFound, and what the opening gives.
func (l *Library) Open(id SourceID) (Content, error) {
	h, err := l.acquire(id)
	if err != nil {
		return nil, err // not a nil *handle in an interface
	}
	return h, nil
}

func (l *Library) acquire(id SourceID) (*handle, error) {
	const op = "open source"
	e, err := l.pin(id)
	if err != nil {
		return nil, err
	}
	err = e.shared.acquire(func() (readerContent, error) { return l.openContent(e) })
	if err != nil {
		l.unpin(e)
		return nil, diskFault(op, err)
	}
	return &handle{library: l, entry: e}, nil
}

func (l *Library) openContent(e *entry) (readerContent, error) {
	// The library's own context: the content is shared, and outlives whoever
	// was the first to want it.
	r, err := l.openReader(l.ctx, e)
	if err != nil {
		return readerContent{}, err
	}
	return readerContent{r}, nil
}

// openReader opens a source for itself, unshared.
func (l *Library) openReader(ctx context.Context, e *entry) (driver.ImageReader, error) {
	if e.open == nil {
		f, err := os.Open(l.memoryPath(e.source.ID))
		if err != nil {
			return nil, err
		}
		return fileReader{f, e.source.Blocks * BlockBytes}, nil
	}
	r, err := e.open(ctx)
	if err != nil {
		return nil, err
	}
	if blocksOf(r.Size()) != e.source.Blocks {
		err := drover.Errorf(drover.Corrupt, "open source", "%v %v has %d bytes, not %d blocks as when it was registered",
			e.source.Kind, e.source.ID, r.Size(), e.source.Blocks)
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// Extents implements driver.ImageReader with the file system's map of data
// and holes.
func (f fileReader) Extents(ctx context.Context, yield func(driver.Extent) bool) error {
	err := eachData(f.File, 0, f.size, func(start, end int64) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if !yield(driver.Extent{Offset: start, Length: end - start}) {
			return errStop
		}
		return nil
	})
	if errors.Is(err, errStop) {
		return nil
	}
	return err
}

// errStop ends an iteration whose consumer has enough.
var errStop = errors.New("stop")
