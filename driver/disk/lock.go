package disk

import (
	"os"

	"github.com/drover-vm/drover"
	"golang.org/x/sys/unix"
)

// QEMU's image locks are shared locks on single bytes of the file, owned by
// the open file. A process locks byte lockPerm+n while it does what n stands
// for, and lockShared+n while it does not stand others doing so; it then looks
// for anybody's lock of the opposite kind (block/file-posix.c,
// RAW_LOCK_PERM_BASE and RAW_LOCK_SHARED_BASE).
const (
	lockPerm   = 100
	lockShared = 200
	lockEnd    = 300

	lockRead   = 0
	lockWrite  = 1
	lockResize = 3
)

// locked reports whether a process has the image open in QEMU's way. Where
// the file system has no such locks it reports false.
func locked(path string) bool {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	return lockedBytes(f, lockPerm, lockEnd-lockPerm)
}

func lockedBytes(f *os.File, start, length int64) bool {
	l := unix.Flock_t{Type: unix.F_WRLCK, Start: start, Len: length}
	err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &l)
	return err == nil && l.Type != unix.F_UNLCK
}

// lockForReading keeps writers, VMs above all, away from an image until the
// file is closed. QEMU's own reader does so for qcow2 only: a raw image it
// reads along while another process writes.
func lockForReading(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	for _, at := range []int64{lockPerm + lockRead, lockShared + lockWrite, lockShared + lockResize} {
		l := unix.Flock_t{Type: unix.F_RDLCK, Start: at, Len: 1}
		if unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &l) != nil {
			// Either the file system has no locks, as for QEMU itself, or
			// somebody holds one alone, which the look below finds.
			break
		}
	}
	if lockedBytes(f, lockPerm+lockWrite, 1) || lockedBytes(f, lockPerm+lockResize, 1) || lockedBytes(f, lockShared+lockRead, 1) {
		f.Close()
		return nil, errInUse()
	}
	return f, nil
}

// errInUse is what a locked image is refused with.
func errInUse() error {
	return drover.Errorf(drover.Refused, "", "the image is in use: a VM runs on it, or another process has it open")
}
