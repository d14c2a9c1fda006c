package chunk

import (
	"context"
	"errors"
	"io/fs"

	"github.com/drover-vm/drover"
	"golang.org/x/sys/unix"
)

// diskFault gives an error its kind at the border of the package. One that has
// a kind already, or is a context's, stays as it is.
func diskFault(op string, err error) error {
	var e *drover.Error
	switch {
	case err == nil, errors.As(err, &e), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return drover.E(drover.Exhausted, op, err)
	case errors.Is(err, fs.ErrNotExist):
		return drover.E(drover.NotFound, op, err)
	default:
		return drover.E(drover.Internal, op, err)
	}
}
