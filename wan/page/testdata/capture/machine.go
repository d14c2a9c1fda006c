package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os/exec"
	"time"
)

// machine is a QEMU and its monitor (QMP).
type machine struct {
	cmd  *exec.Cmd
	conn net.Conn
	in   *json.Decoder
}

// connect waits for the monitor.
func (m *machine) connect(ctx context.Context, path string) error {
	for {
		conn, err := net.Dial("unix", path)
		if err == nil {
			m.conn, m.in = conn, json.NewDecoder(conn)
			break
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(50 * time.Millisecond):
		}
	}
	if deadline, ok := ctx.Deadline(); ok {
		if err := m.conn.SetDeadline(deadline); err != nil {
			return err
		}
	}
	var greeting any
	if err := m.in.Decode(&greeting); err != nil {
		return err
	}
	return m.do("qmp_capabilities", nil)
}

func (m *machine) do(command string, args map[string]any) error {
	return m.ask(command, args, nil)
}

// ask runs a command and decodes its answer; events in between are skipped.
func (m *machine) ask(command string, args map[string]any, answer any) error {
	q := map[string]any{"execute": command}
	if args != nil {
		q["arguments"] = args
	}
	if err := json.NewEncoder(m.conn).Encode(q); err != nil {
		return err
	}
	for {
		var r struct {
			Return json.RawMessage `json:"return"`
			Error  *struct {
				Desc string `json:"desc"`
			} `json:"error"`
		}
		if err := m.in.Decode(&r); err != nil {
			return fmt.Errorf("%s: %w", command, err)
		}
		switch {
		case r.Error != nil:
			return fmt.Errorf("%s: %s", command, r.Error.Desc)
		case r.Return != nil && answer != nil:
			return json.Unmarshal(r.Return, answer)
		case r.Return != nil:
			return nil
		}
	}
}

func (m *machine) capabilities(names []string) error {
	var caps []map[string]any
	for _, n := range names {
		caps = append(caps, map[string]any{"capability": n, "state": true})
	}
	if len(caps) == 0 {
		return nil
	}
	return m.do("migrate-set-capabilities", map[string]any{"capabilities": caps})
}

// stop ends QEMU: nothing of it is wanted any more.
func (m *machine) stop() {
	if m.conn != nil {
		_ = m.conn.Close()
	}
	_ = m.cmd.Process.Kill()
	_ = m.cmd.Wait()
}
