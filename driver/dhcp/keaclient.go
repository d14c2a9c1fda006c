package dhcp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/drover-vm/drover"
)

const (
	// keaLimit bounds one command. Kea answers in milliseconds; it carries out
	// one command at a time, between packets.
	keaLimit = 10 * time.Second
	// maxKeaAnswer bounds an answer: a page of leases or a configuration with
	// ten thousands of reservations.
	maxKeaAnswer = 64 << 20
	// pageLeases is how many leases are asked for at a time, so that Kea goes
	// on serving clients in between.
	pageLeases = 1000
)

// Kea's results of commands.
const (
	keaSuccess     = 0
	keaUnsupported = 2
	keaEmpty       = 3
)

// keaError is a command that Kea has refused.
type keaError struct {
	command string
	result  int
	text    string
}

func (e *keaError) Error() string { return fmt.Sprintf("%s: %s", e.command, e.text) }

// unreachableError says that a service did not answer; sent says that it may
// have got the command.
type unreachableError struct {
	sent bool
	err  error
}

func (e *unreachableError) Error() string {
	return "the DHCP service does not answer: " + e.err.Error()
}
func (e *unreachableError) Unwrap() error { return e.err }

// command sends one command to a control socket and reads its answer's
// arguments into result, if that is not nil. An empty result is not an error:
// found is false then.
func command(ctx context.Context, socket, name string, arguments, result any) (found bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, keaLimit)
	defer cancel()
	fail := func(sent bool, err error) error {
		if ctx.Err() != nil {
			err = errors.Join(ctx.Err(), err)
		}
		return &unreachableError{sent, err}
	}
	request, err := json.Marshal(struct {
		Command   string `json:"command"`
		Arguments any    `json:"arguments,omitempty"`
	}{name, arguments})
	if err != nil {
		return false, err
	}
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", socket)
	if err != nil {
		return false, fail(false, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	if _, err := conn.Write(request); err != nil {
		return false, fail(true, err)
	}
	raw, err := io.ReadAll(io.LimitReader(conn, maxKeaAnswer))
	if err != nil {
		return false, fail(true, err)
	}
	var answer struct {
		Result    *int            `json:"result"`
		Text      string          `json:"text"`
		Arguments json.RawMessage `json:"arguments"`
	}
	if err := json.Unmarshal(raw, &answer); err != nil || answer.Result == nil {
		return false, fail(true, fmt.Errorf("its answer to %s is not one: %w", name, errors.Join(err, io.ErrUnexpectedEOF)))
	}
	switch *answer.Result {
	case keaSuccess:
	case keaEmpty:
		return false, nil
	default:
		return false, &keaError{name, *answer.Result, answer.Text}
	}
	if result != nil {
		if err := json.Unmarshal(answer.Arguments, result); err != nil {
			return false, fmt.Errorf("answer to %s: %w", name, err)
		}
	}
	return true, nil
}

// wrap puts the border's error shape around err.
func wrap(op string, err error) error {
	if err == nil {
		return nil
	}
	var known *drover.Error
	var kea *keaError
	var unreachable *unreachableError
	switch {
	case errors.As(err, &known):
		return drover.E(known.Kind, op, err)
	case errors.As(err, &kea) && kea.result == keaUnsupported:
		return drover.E(drover.Refused, op+" (Kea needs its hook library libdhcp_lease_cmds.so)", err)
	case errors.As(err, &kea):
		return drover.E(drover.Refused, op, err)
	case errors.Is(err, context.Canceled):
		return drover.E(drover.Canceled, op, err)
	case errors.As(err, &unreachable) && unreachable.sent:
		return drover.E(drover.Unknown, op, err)
	case errors.As(err, &unreachable), errors.Is(err, context.DeadlineExceeded):
		return drover.E(drover.Unavailable, op, err)
	}
	return drover.E(libvirtKind(err), op, err)
}
