package libvirt

import (
	"context"
	"errors"
	"io"
	"net"
	"syscall"

	golibvirt "github.com/digitalocean/go-libvirt"

	"github.com/drover-vm/drover"
)

// unreachableError says that the manager could not be reached or hung.
type unreachableError struct{ err error }

func (e *unreachableError) Error() string { return "libvirtd does not answer: " + e.err.Error() }
func (e *unreachableError) Unwrap() error { return e.err }

// kinds says which kind an error of libvirt's is. Codes that are missing here
// are faults of the host or of QEMU, which no caller can do anything about.
var kinds = map[golibvirt.ErrorNumber]drover.Kind{
	golibvirt.ErrNoDomain:             drover.NotFound,
	golibvirt.ErrNoNetwork:            drover.NotFound,
	golibvirt.ErrDomExist:             drover.Exists,
	golibvirt.ErrXMLError:             drover.Invalid,
	golibvirt.ErrXMLDetail:            drover.Invalid,
	golibvirt.ErrXMLInvalidSchema:     drover.Invalid,
	golibvirt.ErrInvalidArg:           drover.Invalid,
	golibvirt.ErrOperationInvalid:     drover.Refused,
	golibvirt.ErrConfigUnsupported:    drover.Refused,
	golibvirt.ErrArgumentUnsupported:  drover.Refused,
	golibvirt.ErrOperationUnsupported: drover.Refused,
	golibvirt.ErrMigrateUnsafe:        drover.Refused,
	golibvirt.ErrCPUIncompatible:      drover.Refused,
	golibvirt.ErrOperationAborted:     drover.Canceled,
	golibvirt.ErrOperationTimeout:     drover.Unavailable,
	golibvirt.ErrRPC:                  drover.Unavailable,
	golibvirt.ErrNoConnect:            drover.Unavailable,
	golibvirt.ErrNoMemory:             drover.Exhausted,
	golibvirt.ErrOperationDenied:      drover.Denied,
	golibvirt.ErrAccessDenied:         drover.Denied,
	golibvirt.ErrAuthFailed:           drover.Denied,
	golibvirt.ErrAuthCancelled:        drover.Denied,
	golibvirt.ErrAuthUnavailable:      drover.Denied,
}

// wrap puts the border's error shape around err.
func wrap(op string, err error) error {
	if err == nil {
		return nil
	}
	var known *drover.Error
	if errors.As(err, &known) {
		return drover.E(known.Kind, op, err)
	}
	return drover.E(kindOf(err), op, err)
}

func kindOf(err error) drover.Kind {
	var fault golibvirt.Error
	var unreachable *unreachableError
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, errClosed):
		return drover.Canceled
	case errors.As(err, &unreachable), interrupted(err), errors.Is(err, context.DeadlineExceeded):
		return drover.Unavailable
	case errors.As(err, &fault):
		if kind, ok := kinds[golibvirt.ErrorNumber(fault.Code)]; ok {
			return kind
		}
	case errors.Is(err, golibvirt.ErrUnsupported):
		return drover.Refused
	}
	return drover.Internal
}

// interrupted reports whether the connection broke under the call, so that
// its outcome is not known.
func interrupted(err error) bool {
	var network *net.OpError
	return errors.Is(err, golibvirt.ErrInterrupted) || errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.EINVAL) || errors.As(err, &network)
}

// hasCode reports whether err is libvirt's error of that number.
func hasCode(err error, code golibvirt.ErrorNumber) bool {
	var fault golibvirt.Error
	return errors.As(err, &fault) && golibvirt.ErrorNumber(fault.Code) == code
}

// notFound reports whether err says that a VM does not exist.
func notFound(err error) bool {
	return hasCode(err, golibvirt.ErrNoDomain) || drover.KindOf(err) == drover.NotFound
}
