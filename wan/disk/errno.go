package disk

import (
	"errors"
	"syscall"

	"github.com/drover-vm/drover"
)

// farError is a failure at the destination. It unwraps to the errno, which the
// hypervisor is told.
type farError struct {
	errno syscall.Errno
	text  string
}

// Error returns what the destination said.
func (e *farError) Error() string { return "at the destination: " + e.text }

// Unwrap returns the errno.
func (e *farError) Unwrap() error { return e.errno }

// errnoOf is the errno that an error is reported with: its own if it says
// something to the hypervisor, else EIO.
func errnoOf(err error) syscall.Errno {
	var e syscall.Errno
	if errors.As(err, &e) {
		return wireErrno(uint32(e))
	}
	if drover.KindOf(err) == drover.Exhausted {
		return syscall.ENOSPC
	}
	return syscall.EIO
}

// wireErrno keeps the errnos that NBD knows for failed writes.
func wireErrno(v uint32) syscall.Errno {
	switch e := syscall.Errno(v); e {
	case syscall.EPERM, syscall.ENOMEM, syscall.EINVAL, syscall.ENOSPC:
		return e
	case syscall.EDQUOT, syscall.EFBIG:
		return syscall.ENOSPC
	default:
		return syscall.EIO
	}
}
