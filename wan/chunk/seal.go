package chunk

import (
	"context"
	"errors"
	"io"
	"os"

	"github.com/drover-vm/drover"
	"golang.org/x/sys/unix"
)

// copyPiece bounds one copy from the base, so that a canceled Seal ends soon.
const copyPiece = 8 << 20

// Seal makes the memory a source that replaces the VM's older memories: blocks
// that were not written are copied from the base, or are zero. It takes as
// long as copying what was inherited; the VM needs nothing of it. After an
// error, ctx's included, the memory is as it was: seal it again or discard it.
//
// Only the manifest is forced to the disk. What a power failure takes from the
// content makes references to it miss, which costs a re-request at their use;
// forcing gigabytes would stall the disk under running guests, at every move,
// for a loss that is rare and harmless. Errors: drover.Exhausted when the disk
// is full.
func (m *Memory) Seal(ctx context.Context) error {
	const op = "seal memory"
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.check(op, 0, 0); err != nil {
		return err
	}
	if err := m.flush(); err != nil {
		return m.fail(op, err)
	}
	err := m.clearZeros(ctx)
	if err == nil {
		err = m.inherit(ctx)
	}
	if err == nil {
		err = m.library.adopt(m)
	}
	if err != nil {
		return diskFault(op, err)
	}
	return m.end()
}

// Discard gives the memory up and removes its file. After Seal, or again, it
// does nothing.
func (m *Memory) Discard() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.file == nil {
		return nil
	}
	err := m.library.forget(m)
	return diskFault("discard memory", errors.Join(err, m.end()))
}

// end lets go of what the memory holds. mu is held.
func (m *Memory) end() error {
	err := m.file.Close()
	if m.base != nil {
		err = errors.Join(err, m.base.Close())
	}
	m.file, m.base, m.run, m.fresh, m.zero, m.stored = nil, nil, nil, nil, nil, nil
	return err
}

// runs calls f for the maximal runs of blocks below n for which pick is true.
func runs(n int64, pick func(word int64) uint64, f func(first, count int64) error) error {
	first := int64(-1)
	for i := int64(0); i < n; i++ {
		w := pick(i / 64)
		if i%64 == 0 && (w == 0 && first < 0 || w == ^uint64(0) && first >= 0) {
			i += 63 // nothing changes in this word
			continue
		}
		if in := w&(1<<(i%64)) != 0; in && first < 0 {
			first = i
		} else if !in && first >= 0 {
			if err := f(first, i-first); err != nil {
				return err
			}
			first = -1
		}
	}
	if first >= 0 {
		return f(first, n-first)
	}
	return nil
}

// clearZeros makes the file zero where blocks are.
func (m *Memory) clearZeros(ctx context.Context) error {
	return runs(m.source.Blocks, func(w int64) uint64 { return m.zero[w] & m.stored[w] }, func(first, n int64) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		err := unix.Fallocate(int(m.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, first*BlockBytes, n*BlockBytes)
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
			for i := first; i < first+n; i++ {
				if _, err := m.file.WriteAt(zeroBlock[:], i*BlockBytes); err != nil {
					return err
				}
			}
			return nil
		}
		return err
	})
}

// inherit copies from the base what was not written.
func (m *Memory) inherit(ctx context.Context) error {
	if m.base == nil {
		return nil
	}
	from, ok := m.base.entry.shared.content.r.(fileReader)
	if !ok {
		return drover.Errorf(drover.Internal, "inherit memory", "the base is no file")
	}
	return runs(m.inBase, func(w int64) uint64 { return ^m.fresh[w] }, func(first, n int64) error {
		return copyRange(ctx, m.file, from.File, first*BlockBytes, n*BlockBytes)
	})
}

// copyRange copies the parts of from that hold data to the same place in to,
// where there are holes.
func copyRange(ctx context.Context, to, from *os.File, off, n int64) error {
	return eachData(from, off, off+n, func(start, end int64) error {
		for start < end {
			if err := ctx.Err(); err != nil {
				return err
			}
			done, err := copyOnce(to, from, start, min(end-start, copyPiece))
			if err != nil {
				return err
			}
			if done == 0 {
				return nil // the base ends here
			}
			start += done
		}
		return nil
	})
}

// copyOnce copies in the kernel, which shares the blocks where the file system
// can; otherwise by reading and writing.
func copyOnce(to, from *os.File, off, n int64) (int64, error) {
	in, out := off, off
	done, err := unix.CopyFileRange(int(from.Fd()), &in, int(to.Fd()), &out, int(n), 0)
	switch {
	case err == nil:
		return int64(done), nil
	case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
		return copyOnce(to, from, off, n)
	case !errors.Is(err, unix.EXDEV) && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EINVAL):
		return 0, err
	}
	return io.Copy(io.NewOffsetWriter(to, off), io.NewSectionReader(from, off, n))
}

// eachData calls f for the runs of a file between off and end that are no
// holes; where the file system cannot tell, that is all of it.
func eachData(file *os.File, off, end int64, f func(start, end int64) error) error {
	fd := int(file.Fd())
	for off < end {
		start, err := unix.Seek(fd, off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // a hole up to the end
		}
		stop := end
		if err == nil {
			if start >= end {
				return nil
			}
			if stop, err = unix.Seek(fd, start, unix.SEEK_HOLE); err == nil {
				stop = min(stop, end)
			}
		}
		switch {
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
			start, stop = off, end
		case err != nil:
			return err
		}
		if err := f(start, stop); err != nil {
			return err
		}
		off = stop
	}
	return nil
}
