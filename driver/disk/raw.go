package disk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
	"golang.org/x/sys/unix"
)

// rawFile is a raw image open for reading. Its bytes are the file's, so no
// process of QEMU's has to stand between; the locks are the same.
type rawFile struct {
	store *Store
	path  string
	size  int64
	file  *os.File // holds the locks too

	closeOnce sync.Once
	closeErr  error
}

var _ driver.ImageReader = (*rawFile)(nil)

// isRaw says whether an image's guest-visible bytes are simply a file's.
func isRaw(chain []header) bool { return len(chain) == 1 && chain[0].format == formatRaw }

// openRaw opens a raw image that stands for itself.
func (s *Store) openRaw(ctx context.Context, op string, h header) (*rawFile, error) {
	if err := ctx.Err(); err != nil {
		return nil, fault(op, err)
	}
	if err := s.reserve(op); err != nil {
		return nil, err
	}
	r := &rawFile{store: s, path: h.path, size: h.size}
	f, err := lockForReading(h.path)
	if err == nil {
		err = r.vouch(f, h)
	}
	if err != nil {
		s.forget(r)
		return nil, fault(op, err)
	}
	if err := s.keep(op, r); err != nil {
		return nil, err
	}
	return r, nil
}

// vouch takes over the file if it is the one whose header was read.
func (r *rawFile) vouch(f *os.File, h header) error {
	fi, err := f.Stat()
	if err == nil {
		st, ok := fi.Sys().(*syscall.Stat_t)
		if !fi.Mode().IsRegular() || fi.Size() != h.size || ok && st.Ino != h.inode {
			err = errChanged()
		}
	}
	if err != nil {
		f.Close()
		return err
	}
	r.file = f
	return nil
}

// Size is the image's size in bytes.
func (r *rawFile) Size() int64 { return r.size }

// ReadAt reads bytes of the file.
func (r *rawFile) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, r.fault("read", fmt.Errorf("offset %d: %w", off, syscall.EINVAL))
	}
	var end error
	if off > r.size || int64(len(p)) > r.size-off {
		if off >= r.size {
			return 0, io.EOF
		}
		p, end = p[:r.size-off], io.EOF
	}
	n, err := r.file.ReadAt(p, off)
	switch {
	case n == len(p):
		return n, end
	case err == io.EOF:
		err = drover.Errorf(drover.Corrupt, "", "the file ends at %d, it had %d bytes when it was opened", off+int64(n), r.size)
	}
	return n, r.fault("read", err)
}

// Extents calls yield for each run that the file system holds. Where it cannot
// tell, everything is one.
func (r *rawFile) Extents(ctx context.Context, yield func(driver.Extent) bool) error {
	for off := int64(0); off < r.size; {
		if err := ctx.Err(); err != nil {
			return r.fault("extents of", err)
		}
		from, err := r.seek(off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // a hole up to the end
		}
		to := r.size
		switch {
		case errors.Is(err, unix.EINVAL):
			from = off // no such question here
		case err == nil:
			to, err = r.seek(from, unix.SEEK_HOLE)
		}
		if err != nil && !errors.Is(err, unix.EINVAL) {
			return r.fault("extents of", err)
		}
		if to = min(to, r.size); from < to && !yield(driver.Extent{Offset: from, Length: to - from}) {
			return nil
		}
		off = max(to, from)
	}
	return nil
}

// seek asks for the next data or hole. The file's position is used by nobody.
func (r *rawFile) seek(off int64, whence int) (int64, error) {
	raw, err := r.file.SyscallConn()
	if err != nil {
		return 0, err
	}
	at := int64(0)
	if cerr := raw.Control(func(fd uintptr) { at, err = unix.Seek(int(fd), off, whence) }); cerr != nil {
		return 0, cerr
	}
	return at, err
}

// Close releases the image. Closing twice is fine.
func (r *rawFile) Close() error {
	r.closeOnce.Do(func() {
		r.closeErr = r.fault("close", r.file.Close())
		r.store.forget(r)
	})
	return r.closeErr
}

func (r *rawFile) fault(what string, err error) error {
	return fault(what+" volume "+r.path, err)
}
