package dhcp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"

	"github.com/drover-vm/drover"
)

const (
	// networksURI is libvirt's driver of networks alone, which a monolithic
	// libvirtd and a virtnetworkd both have.
	networksURI golibvirt.ConnectURI = "network:///system"
	// libvirtLimit bounds an operation: some ten calls of a few milliseconds,
	// of which one waits while libvirt starts or stops another network.
	libvirtLimit = 60 * time.Second
)

// onceDialer hands an open socket to the library.
type onceDialer struct{ sock net.Conn }

func (d onceDialer) Dial() (net.Conn, error) { return d.sock, nil }

// with runs f on a connection of its own: operations are rare, and the library
// has neither contexts nor timeouts, so that closing the connection is what
// ends f with ctx.
func (n *Networks) with(ctx context.Context, f func(*golibvirt.Libvirt) error) error {
	ctx, cancel := context.WithTimeout(ctx, libvirtLimit)
	defer cancel()
	var dialer net.Dialer
	sock, err := dialer.DialContext(ctx, "unix", n.socket)
	if err != nil {
		return &unreachableError{err: err}
	}
	defer sock.Close()
	stop := context.AfterFunc(ctx, func() { _ = sock.Close() })
	defer stop()
	rpc := golibvirt.NewWithDialer(onceDialer{sock})
	if err := rpc.ConnectToURI(networksURI); err != nil {
		return &unreachableError{err: errors.Join(ctx.Err(), fmt.Errorf("open %s: %w", networksURI, err))}
	}
	err = f(rpc)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return &unreachableError{sent: true, err: errors.Join(ctx.Err(), err)}
	case interrupted(err):
		return &unreachableError{sent: true, err: err}
	}
	return err
}

// interrupted reports whether the connection broke under a call.
func interrupted(err error) bool {
	var network *net.OpError
	return errors.Is(err, golibvirt.ErrInterrupted) || errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.EINVAL) || errors.As(err, &network)
}

// libvirtKinds says which kind an error of libvirt's is; others are faults of
// the host.
var libvirtKinds = map[golibvirt.ErrorNumber]drover.Kind{
	golibvirt.ErrNoNetwork:            drover.NotFound,
	golibvirt.ErrXMLError:             drover.Invalid,
	golibvirt.ErrXMLDetail:            drover.Invalid,
	golibvirt.ErrInvalidArg:           drover.Invalid,
	golibvirt.ErrOperationInvalid:     drover.Refused,
	golibvirt.ErrOperationUnsupported: drover.Refused,
	golibvirt.ErrConfigUnsupported:    drover.Refused,
	golibvirt.ErrNoSupport:            drover.Refused,
	golibvirt.ErrOperationDenied:      drover.Denied,
	golibvirt.ErrAccessDenied:         drover.Denied,
	golibvirt.ErrAuthFailed:           drover.Denied,
	golibvirt.ErrOperationTimeout:     drover.Unavailable,
}

func libvirtKind(err error) drover.Kind {
	var fault golibvirt.Error
	if errors.As(err, &fault) {
		if kind, ok := libvirtKinds[golibvirt.ErrorNumber(fault.Code)]; ok {
			return kind
		}
	}
	return drover.Internal
}

// optional makes a string that libvirt takes as present.
func optional(s string) golibvirt.OptString { return golibvirt.OptString{s} }
