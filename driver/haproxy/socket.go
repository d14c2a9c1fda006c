package haproxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/drover-vm/drover"
)

const (
	// commandTimeout bounds one command: HAProxy answers within milliseconds,
	// even with thousands of servers.
	commandTimeout = 5 * time.Second
	// maxAnswer bounds an answer: 20,000 servers' statistics are about 10 MiB.
	maxAnswer = 32 << 20
)

// socket is HAProxy's runtime socket: one command per connection.
type socket struct{ path string }

// run sends a command and returns the answer without surrounding blanks.
func (s socket) run(ctx context.Context, format string, args ...any) (string, error) {
	command := fmt.Sprintf(format, args...)
	if strings.ContainsAny(command, "\n;\\") {
		return "", drover.Errorf(drover.Invalid, "haproxy", "%q is no single command", command)
	}
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	answer, err := s.exchange(ctx, command)
	if err != nil {
		kind := drover.Unavailable
		if errors.Is(ctx.Err(), context.Canceled) {
			kind = drover.Canceled
		}
		return "", drover.E(kind, "haproxy: "+command, err)
	}
	return strings.TrimSpace(answer), nil
}

func (s socket) exchange(ctx context.Context, command string) (string, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", s.path)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := io.WriteString(conn, command+"\n"); err != nil {
		return "", err
	}
	b, err := io.ReadAll(io.LimitReader(conn, maxAnswer+1))
	switch {
	case err != nil:
		return "", err
	case len(b) > maxAnswer:
		return "", fmt.Errorf("the answer is longer than %d bytes", maxAnswer)
	}
	return string(b), nil
}

// do sends a command that answers nothing, or one of the given words, when it
// has done what it should.
func (s socket) do(ctx context.Context, good, format string, args ...any) error {
	answer, err := s.run(ctx, format, args...)
	if err != nil || answer == "" || good != "" && strings.HasPrefix(answer, good) {
		return err
	}
	return refusal(fmt.Sprintf(format, args...), answer)
}

// refusals are what HAProxy's answers to a command mean.
var refusals = []struct {
	text string
	kind drover.Kind
}{
	{"No such", drover.NotFound},
	{"Can't find", drover.NotFound},
	{"Already exists", drover.Exists},
	{"Permission denied", drover.Denied},
	{"Backend must use", drover.Refused},
	{"static LB algorithm", drover.Refused},
	{"still has connections", drover.Refused},
	{"Only servers", drover.Refused},
	{"not within", drover.Invalid},
	{"weight", drover.Invalid},
}

func refusal(command, answer string) error {
	line, _, _ := strings.Cut(answer, "\n")
	kind := drover.Internal
	for _, r := range refusals {
		if strings.Contains(answer, r.text) {
			kind = r.kind
			break
		}
	}
	return drover.Errorf(kind, "haproxy: "+command, "HAProxy says: %s", line)
}
