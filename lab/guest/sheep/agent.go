package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The guest's own agent: as much of QEMU's guest agent as Drover uses, at the
// same port and in the same words (QEMU, qga/qapi-schema.json), so that whoever
// talks to a real one can talk to this. The host sends one JSON object per line;
// a byte of 0xff, which no JSON has, ends whatever was cut off before it.
const (
	agentPort = "org.qemu.guest_agent.0"
	// agentVersion is the version of the protocol's home whose words these are.
	agentVersion = "8.0.0"
	// portWait is how long the port may take to appear after the modules were
	// loaded; a machine without it has no agent.
	portWait = 20 * time.Second
	// portPoll is the pause while nobody is at the host's end of the port, when
	// reading returns at once.
	portPoll = 100 * time.Millisecond
	// maxRequest bounds one request.
	maxRequest = 256 << 10
	// agentSentinel separates what is new from what was cut off.
	agentSentinel = 0xff
)

// How an agent can be bad.
const (
	agentOff  = "off"
	agentHang = "hang"
)

// agent answers the host.
type agent struct {
	log   *slog.Logger
	disk  *diskWriter
	execs execTable
	// frozen says that the disk writer is held.
	frozen bool
	// hangs makes it read requests and answer none.
	hangs bool
}

// run serves the port until ctx is done. A guest without one has no agent, which
// is no error.
func (a *agent) run(ctx context.Context) error {
	defer a.thaw()
	path, err := findPort(ctx)
	if err != nil || path == "" {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("open agent port: %w", err)
	}
	defer context.AfterFunc(ctx, func() { _ = f.Close() })()
	a.log.Info("agent answers", "port", path)
	err = a.serve(ctx, f)
	if ctx.Err() != nil {
		return nil
	}
	return errors.Join(err, f.Close())
}

// findPort returns the port's device, "" when the machine has none.
func findPort(ctx context.Context) (string, error) {
	for end := time.Now().Add(portWait); time.Now().Before(end) && ctx.Err() == nil; sleep(ctx, portPoll) {
		names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		if err != nil {
			return "", err
		}
		for _, name := range names {
			b, err := os.ReadFile(name)
			if err == nil && strings.TrimSpace(string(b)) == agentPort {
				return filepath.Join("/dev", filepath.Base(filepath.Dir(name))), nil
			}
		}
	}
	return "", nil
}

// serve answers requests until the port breaks or ctx is done.
func (a *agent) serve(ctx context.Context, port io.ReadWriter) error {
	r := bufio.NewReaderSize(port, 4096)
	var line []byte
	for ctx.Err() == nil {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		if i := bytes.LastIndexByte(line, agentSentinel); i >= 0 {
			line = line[i+1:]
		}
		switch {
		case errors.Is(err, io.EOF): // nobody is there at the host
			sleep(ctx, portPoll)
			continue
		case errors.Is(err, bufio.ErrBufferFull) && len(line) <= maxRequest:
			continue
		case errors.Is(err, bufio.ErrBufferFull):
			return fmt.Errorf("agent request of more than %d bytes", maxRequest)
		case err != nil:
			return fmt.Errorf("agent port: %w", err)
		}
		if request := bytes.TrimSpace(line); len(request) > 0 && !a.hangs {
			if _, err := port.Write(a.answer(request)); err != nil {
				return fmt.Errorf("agent port: %w", err)
			}
		}
		line = line[:0]
	}
	return nil
}

// agentError is a refusal in the protocol's words.
type agentError struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

func (e *agentError) Error() string { return e.Desc }

func agentErrorf(format string, args ...any) error {
	return &agentError{Class: "GenericError", Desc: fmt.Sprintf(format, args...)}
}

// answer carries out one request and returns the line to send back.
func (a *agent) answer(request []byte) []byte {
	var req struct {
		Execute   string          `json:"execute"`
		Arguments json.RawMessage `json:"arguments"`
	}
	var result any
	err := json.Unmarshal(request, &req)
	if err != nil {
		err = agentErrorf("JSON parse error: %v", err)
	} else {
		result, err = a.execute(req.Execute, req.Arguments)
	}
	reply := map[string]any{"return": result}
	if err != nil {
		refusal := &agentError{}
		if !errors.As(err, &refusal) {
			refusal = &agentError{Class: "GenericError", Desc: err.Error()}
		}
		reply = map[string]any{"error": refusal}
	}
	b, err := json.Marshal(reply)
	if err != nil {
		b = []byte(`{"error":{"class":"GenericError","desc":"the answer cannot be written"}}`)
	}
	if req.Execute == "guest-sync-delimited" {
		b = append([]byte{agentSentinel}, b...)
	}
	return append(b, '\n')
}

// none is the protocol's empty answer.
type none struct{}

// whileFrozen are the commands that a frozen guest carries out.
var whileFrozen = map[string]bool{
	"guest-sync": true, "guest-sync-delimited": true, "guest-ping": true, "guest-info": true,
	"guest-fsfreeze-status": true, "guest-fsfreeze-thaw": true,
}

// commands are all that the agent knows.
func (a *agent) commands() map[string]func(json.RawMessage) (any, error) {
	return map[string]func(json.RawMessage) (any, error){
		"guest-sync":                   syncID,
		"guest-sync-delimited":         syncID,
		"guest-ping":                   func(json.RawMessage) (any, error) { return none{}, nil },
		"guest-info":                   func(json.RawMessage) (any, error) { return a.info(), nil },
		"guest-get-host-name":          hostName,
		"guest-network-get-interfaces": func(json.RawMessage) (any, error) { return guestInterfaces() },
		"guest-exec":                   a.execs.start,
		"guest-exec-status":            a.execs.status,
		"guest-fsfreeze-status":        func(json.RawMessage) (any, error) { return a.freezeStatus(), nil },
		"guest-fsfreeze-freeze":        func(json.RawMessage) (any, error) { return a.freeze(), nil },
		"guest-fsfreeze-thaw":          func(json.RawMessage) (any, error) { return a.thaw(), nil },
	}
}

func (a *agent) execute(name string, args json.RawMessage) (any, error) {
	f, ok := a.commands()[name]
	switch {
	case !ok:
		return nil, &agentError{Class: "CommandNotFound", Desc: "The command " + name + " has not been found"}
	case a.frozen && !whileFrozen[name]:
		return nil, &agentError{Class: "CommandNotFound", Desc: "Command " + name + " has been disabled: the agent is in frozen state"}
	}
	return f(args)
}

func (a *agent) info() any {
	type command struct {
		Name    string `json:"name"`
		Enabled bool   `json:"enabled"`
		Success bool   `json:"success-response"`
	}
	var list []command
	for name := range a.commands() {
		list = append(list, command{name, !a.frozen || whileFrozen[name], true})
	}
	return map[string]any{"version": agentVersion, "supported_commands": list}
}

func syncID(args json.RawMessage) (any, error) {
	var req struct {
		ID *int64 `json:"id"`
	}
	if err := json.Unmarshal(args, &req); err != nil || req.ID == nil {
		return nil, agentErrorf("Parameter 'id' is missing")
	}
	return *req.ID, nil
}

func hostName(json.RawMessage) (any, error) {
	name, err := os.Hostname()
	return map[string]string{"host-name": name}, err
}

// freeze holds the disk writer between two records: the small guest's stand-in
// for a file system, of which it has none.
func (a *agent) freeze() int {
	if !a.frozen {
		a.disk.io.Lock()
		a.frozen = true
		return 1
	}
	return 0
}

func (a *agent) thaw() int {
	if a.frozen {
		a.disk.io.Unlock()
		a.frozen = false
		return 1
	}
	return 0
}

func (a *agent) freezeStatus() string {
	if a.frozen {
		return "frozen"
	}
	return "thawed"
}
