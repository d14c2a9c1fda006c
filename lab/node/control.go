package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"time"
)

// Action is what can be asked of a holder about a service.
type Action string

// The actions.
const (
	Start   Action = "start"
	Stop    Action = "stop"
	Restart Action = "restart"
	// Kill ends the service's process with SIGKILL; the holder starts it again
	// after its delay, as after any other death.
	Kill Action = "kill"
	// List names the services and their states.
	List Action = "list"
)

// controlTimeout bounds one exchange on the control socket: a stop takes at
// most stopGrace and the kill after it.
const controlTimeout = stopGrace + 5*time.Second

type request struct {
	Action  Action `json:"action"`
	Service string `json:"service,omitempty"`
}

type response struct {
	Error    string   `json:"error,omitempty"`
	Services []Status `json:"services,omitempty"`
}

// serve answers the control socket until ctx ends: one JSON request and one
// JSON response per connection.
func serve(ctx context.Context, log *slog.Logger, l *net.UnixListener, s *supervisor) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	unhook := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer unhook()
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("control socket: %w", err)
		}
		wg.Go(func() {
			defer conn.Close()
			if err := answer(ctx, conn, s); err != nil {
				log.Warn("control request failed", "err", err)
			}
		})
	}
}

func answer(ctx context.Context, conn net.Conn, s *supervisor) error {
	ctx, cancel := context.WithTimeout(ctx, controlTimeout)
	defer cancel()
	if err := conn.SetDeadline(time.Now().Add(controlTimeout)); err != nil {
		return err
	}
	var req request
	if err := json.NewDecoder(conn).Decode(&req); err != nil {
		return err
	}
	resp := response{}
	if err := act(ctx, req, s); err != nil {
		resp.Error = err.Error()
	}
	resp.Services = s.list()
	return json.NewEncoder(conn).Encode(resp)
}

func act(ctx context.Context, req request, s *supervisor) error {
	switch req.Action {
	case List:
		return nil
	case Start:
		return s.start(req.Service)
	case Stop:
		return s.stop(ctx, req.Service)
	case Restart:
		if err := s.stop(ctx, req.Service); err != nil {
			return err
		}
		return s.start(req.Service)
	case Kill:
		return s.signal(req.Service, syscall.SIGKILL)
	default:
		return fmt.Errorf("unknown action %q", req.Action)
	}
}

// Ask sends one action to the holder of the node whose folder is dir and
// returns the states of its services after it. service is ignored by List.
func Ask(ctx context.Context, dir string, action Action, service string) ([]Status, error) {
	ctx, cancel := context.WithTimeout(ctx, controlTimeout)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", ControlSocket(dir))
	if err != nil {
		return nil, fmt.Errorf("holder does not answer: %w", err)
	}
	defer conn.Close()
	unhook := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer unhook()
	if err := json.NewEncoder(conn).Encode(request{Action: action, Service: service}); err != nil {
		return nil, err
	}
	var resp response
	if err := json.NewDecoder(conn).Decode(&resp); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, fmt.Errorf("holder does not answer: %w", err)
	}
	if resp.Error != "" {
		return resp.Services, errors.New(resp.Error)
	}
	return resp.Services, nil
}
