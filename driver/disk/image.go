package disk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/nbd"
)

const (
	// startLimit is how long qemu-nbd may take to listen: it is up in some
	// 20 ms, but a busy host may not run it for a while.
	startLimit = 30 * time.Second
	// stopLimit is how long it may take to write what it has cached and go
	// after its last client has.
	stopLimit = 30 * time.Second
)

// socketPrefix begins the names of the folders for sockets; the number of the
// process that made one comes next.
const socketPrefix = "drover-nbd-"

// image is an open image: a qemu-nbd process and the connection to it.
type image struct {
	store    *Store
	path     string
	topOnly  bool   // Extents leaves out what is below the top image
	bitmap   string // Extents are what it marks; empty: none
	writable bool
	locks    []*os.File
	server   *child
	client   *nbd.Client

	closeOnce sync.Once
	closeErr  error
}

var (
	_ driver.ImageReader = (*image)(nil)
	_ driver.ImageWriter = (*image)(nil)
	_ driver.ImageMap    = (*image)(nil)
)

// The contexts that readers ask for, by their place in nbd.Options.
const (
	contextAllocation = iota
	contextDepth
	contextBitmap = contextDepth
)

// OpenRead opens an image for reading. A raw image is read as the file it is,
// any other through qemu-nbd.
func (s *Store) OpenRead(ctx context.Context, path string, topOnly bool) (driver.ImageReader, error) {
	op := "open volume " + path + " for reading"
	if err := s.admit(op, path); err != nil {
		return nil, err
	}
	chain, err := s.chain(path)
	if err != nil {
		return nil, fault(op, err)
	}
	var r driver.ImageReader
	if isRaw(chain) {
		r, err = s.openRaw(ctx, op, chain[0])
	} else {
		r, err = s.open(ctx, op, &image{store: s, path: path, topOnly: topOnly}, chain)
	}
	if err != nil {
		return nil, err // and not a typed nil
	}
	return r, nil
}

// OpenWrite opens an image for writing.
func (s *Store) OpenWrite(ctx context.Context, path string) (driver.ImageWriter, error) {
	op := "open volume " + path + " for writing"
	if err := s.admit(op, path); err != nil {
		return nil, err
	}
	chain, err := s.chain(path)
	if err != nil {
		return nil, fault(op, err)
	}
	im, err := s.open(ctx, op, &image{store: s, path: path, writable: true}, chain)
	if err != nil {
		return nil, err
	}
	return im, nil
}

// open opens an image through qemu-nbd.
func (s *Store) open(ctx context.Context, op string, im *image, chain []header) (*image, error) {
	// With nothing below, "what the top image holds" is simply the content.
	im.topOnly = im.topOnly && len(chain) > 1
	if err := s.reserve(op); err != nil {
		return nil, err
	}
	if err := im.start(ctx, chain); err != nil {
		im.unlock()
		s.forget(im)
		return nil, fault(op, err)
	}
	if err := s.keep(op, im); err != nil {
		return nil, err
	}
	return im, nil
}

// keep notes an open image for Close. If that has come meanwhile, it closes
// the image, since nobody else will.
func (s *Store) keep(op string, im io.Closer) error {
	s.mu.Lock()
	closed := s.closed
	s.opened[im] = struct{}{}
	s.mu.Unlock()
	if !closed {
		return nil
	}
	im.Close()
	return drover.Errorf(drover.Canceled, op, "the store is closed")
}

func (s *Store) reserve(op string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.count == maxOpen {
		return drover.Errorf(drover.Exhausted, op, "%d images are open already", maxOpen)
	}
	s.count++
	return nil
}

func (s *Store) forget(im io.Closer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.opened, im)
	s.count--
}

// start runs qemu-nbd and connects to it. The socket's folder goes as soon as
// the connection stands; the server goes with the connection.
func (im *image) start(ctx context.Context, chain []header) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := im.lock(chain); err != nil {
		return err
	}
	// A folder for sockets may be emptied by whoever owns the one above it.
	if im.store.cfg.RunDir != "" {
		if err := os.MkdirAll(im.store.cfg.RunDir, 0o700); err != nil {
			return fmt.Errorf("make folder for sockets: %w", err)
		}
	}
	dir, err := os.MkdirTemp(im.store.cfg.RunDir, fmt.Sprintf("%s%d-", socketPrefix, os.Getpid()))
	if err != nil {
		return fmt.Errorf("make folder for the socket: %w", err)
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "s")
	args := []string{
		"--socket=" + socket, "--format=" + chain[0].format, "--shared=1",
		"--cache=writeback", "--discard=unmap", "--detect-zeroes=off",
	}
	contexts := []string{"base:allocation"}
	if im.topOnly {
		args = append(args, "--allocation-depth")
		contexts = append(contexts, "qemu:allocation-depth")
	}
	if im.bitmap != "" {
		args = append(args, "--bitmap="+im.bitmap)
		contexts = append(contexts, "qemu:dirty-bitmap:"+im.bitmap)
	}
	if !im.writable {
		args = append(args, "--read-only")
	}
	im.server, err = spawn(im.store.cfg.QemuNBD, io.Discard, append(args, im.path)...)
	if err != nil {
		return err
	}
	if err := im.connect(ctx, socket, contexts); err != nil {
		im.server.signal(os.Kill)
		<-im.server.exited
		return err
	}
	if im.client.Size() != chain[0].size {
		im.shut()
		return drover.Errorf(drover.Corrupt, "", "qemu-nbd serves %d bytes, the header says %d", im.client.Size(), chain[0].size)
	}
	return nil
}

func (im *image) connect(ctx context.Context, socket string, contexts []string) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	conn, err := im.dial(ctx, socket)
	if err != nil {
		return err
	}
	im.client, err = nbd.New(ctx, conn, nbd.Options{Contexts: contexts})
	if err != nil {
		// It listens before it opens the image; if that failed it is on its
		// way out and knows better.
		select {
		case <-im.server.exited:
			return im.server.failure()
		case <-ctx.Done():
		case <-time.After(toolGrace):
		}
		return fmt.Errorf("talk to qemu-nbd: %w", err)
	}
	for i, name := range contexts {
		if !im.client.HasContext(i) {
			im.client.Close()
			return drover.Errorf(drover.Unavailable, "talk to qemu-nbd", "it does not report %s", name)
		}
	}
	return nil
}

// dial connects as soon as the server listens, unless it ends first.
func (im *image) dial(ctx context.Context, socket string) (net.Conn, error) {
	for pause := time.Millisecond; ; pause = min(2*pause, 20*time.Millisecond) {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
		if err == nil {
			return conn, nil
		}
		select {
		case <-im.server.exited:
			return nil, im.server.failure()
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return nil, drover.Errorf(drover.Unavailable, "", "qemu-nbd does not listen: %w", err)
			}
			return nil, ctx.Err()
		case <-time.After(pause):
		}
	}
}

// Size is the image's virtual size in bytes.
func (im *image) Size() int64 { return im.client.Size() }

// ReadAt reads guest-visible bytes.
func (im *image) ReadAt(p []byte, off int64) (int, error) {
	n, err := im.client.ReadAt(p, off)
	if err == nil || err == io.EOF {
		return n, err
	}
	return n, im.fault("read", err)
}

// WriteAt writes guest-visible bytes.
func (im *image) WriteAt(p []byte, off int64) (int, error) {
	n, err := im.client.WriteAt(p, off)
	return n, im.fault("write", err)
}

// Zero makes a run read as zeros and gives its space back where it can.
func (im *image) Zero(ctx context.Context, off, length int64) error {
	return im.fault("zero", im.client.Zero(ctx, off, length))
}

// Flush makes what was written durable.
func (im *image) Flush(ctx context.Context) error {
	return im.fault("flush", im.client.Flush(ctx))
}

// Close ends the server, which writes what it has cached and releases the
// image. Closing twice is fine.
func (im *image) Close() error {
	im.closeOnce.Do(func() {
		im.closeErr = im.fault("close", im.shut())
		im.store.forget(im)
	})
	return im.closeErr
}

func (im *image) shut() error {
	im.client.Close()
	im.server.end(stopLimit)
	im.unlock()
	if im.server.err != nil && im.writable {
		return im.server.failure()
	}
	return nil
}

// lock keeps writers away from every image that is only read.
func (im *image) lock(chain []header) error {
	if im.writable {
		chain = chain[1:]
	}
	for _, h := range chain {
		f, err := lockForReading(h.path)
		if err != nil {
			return fmt.Errorf("lock %s: %w", h.path, err)
		}
		im.locks = append(im.locks, f)
	}
	return nil
}

func (im *image) unlock() {
	for _, f := range im.locks {
		f.Close()
	}
}

func (im *image) fault(what string, err error) error {
	return fault(what+" volume "+im.path, err)
}

// isHangup reports whether the server went away.
func isHangup(err error) bool {
	return errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed)
}
