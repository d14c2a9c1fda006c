// Package trial drives a lab as an operator would, through the drover
// command alone, and asks the machines themselves what became of it: which
// libvirtd runs the VM, what files lie where, what the guest's disk holds. The
// demo, the end-to-end tests and the move benchmarks are made of it.
//
// What it leaves to others: making a lab (package lab) and judging speed
// (package bench).
package trial

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/drover-vm/drover"
)

// Lab is a running lab, reached through a drover binary.
type Lab struct {
	// Bin is the drover binary, Name the lab's name.
	Bin  string
	Name string
	// Log gets what the commands print on standard error; nil discards it.
	Log io.Writer
	// Env is added to the commands' environment.
	Env []string
	// taken says that a lab of this name was there already, somebody else's.
	taken bool
}

// ExitError is a command that ended with a status other than 0.
type ExitError struct {
	Args   []string
	Status int
	// Stderr is the end of what it said.
	Stderr string
}

// Error returns the command, its status and its last words.
func (e *ExitError) Error() string {
	return fmt.Sprintf("drover %s: exit status %d: %s", strings.Join(e.Args, " "), e.Status, e.Stderr)
}

// Up starts the lab of file under the given name and waits for its guests.
func Up(ctx context.Context, l *Lab, file string) error {
	_, err := l.run(ctx, "lab", "up", file, "--name", l.Name, "--wait-guests", "-o", "json")
	var exit *ExitError
	l.taken = errors.As(err, &exit) && strings.Contains(exit.Stderr, "of this name is up")
	return err
}

// Down takes the lab down; one that is not there is fine, and one that was there before Up is left alone.
func (l *Lab) Down(ctx context.Context) error {
	if l.taken {
		return nil
	}
	_, err := l.run(ctx, "lab", "down", l.Name)
	return err
}

// Drover runs a command against the lab's server and decodes its JSON into
// out, where out is not nil. An exit status other than 0 gives *ExitError, and
// whatever JSON there was is decoded all the same.
func (l *Lab) Drover(ctx context.Context, out any, args ...string) error {
	raw, err := l.run(ctx, append(slices.Clone(args), "--lab", l.Name, "-o", "json")...)
	if out != nil && len(bytes.TrimSpace(raw)) > 0 {
		if jerr := json.Unmarshal(raw, out); jerr != nil && err == nil {
			return fmt.Errorf("drover %s: %w in %q", strings.Join(args, " "), jerr, raw)
		}
	}
	return err
}

// Exec runs a command inside a node and returns its standard output.
func (l *Lab) Exec(ctx context.Context, node string, args ...string) ([]byte, error) {
	return l.run(ctx, append([]string{"lab", "exec", "--lab", l.Name, node, "--"}, args...)...)
}

func (l *Lab) run(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, l.Bin, args...)
	cmd.Env = append(os.Environ(), l.Env...)
	// A killed drover may leave a child of lab exec holding the pipes.
	cmd.WaitDelay = 5 * time.Second
	var stdout bytes.Buffer
	tail := &tailWriter{limit: 4 << 10}
	cmd.Stdout, cmd.Stderr = &stdout, tail
	if l.Log != nil {
		cmd.Stderr = io.MultiWriter(tail, l.Log)
	}
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = &ExitError{Args: args, Status: exit.ExitCode(), Stderr: strings.TrimSpace(string(tail.buf))}
	}
	return stdout.Bytes(), err
}

// tailWriter keeps the last bytes written to it.
type tailWriter struct {
	limit int
	buf   []byte
}

func (w *tailWriter) Write(p []byte) (int, error) {
	w.buf = append(w.buf, p...)
	if over := len(w.buf) - w.limit; over > 0 {
		w.buf = append(w.buf[:0], w.buf[over:]...)
	}
	return len(p), nil
}

// Move moves a VM and waits for the end. A move that ended otherwise than done
// is returned together with the *ExitError.
func (l *Lab) Move(ctx context.Context, vm, to string, flags ...string) (drover.Move, error) {
	var m drover.Move
	err := l.Drover(ctx, &m, append([]string{"move", vm, "--to", to}, flags...)...)
	return m, err
}

// Hosts returns the names of the lab's hypervisor hosts.
func (l *Lab) Hosts(ctx context.Context) ([]drover.Host, error) {
	var all, hosts []drover.Host
	if err := l.Drover(ctx, &all, "hosts"); err != nil {
		return nil, err
	}
	for _, h := range all {
		if !h.Edge && h.UUID != "" {
			hosts = append(hosts, h)
		}
	}
	if len(hosts) == 0 {
		return nil, fmt.Errorf("the lab %s shows no hypervisor host", l.Name)
	}
	return hosts, nil
}

// Where asks every host's libvirtd for the VM and returns its state there, as
// virsh words it, for those that know it.
func (l *Lab) Where(ctx context.Context, vm string) (map[string]string, error) {
	hosts, err := l.Hosts(ctx)
	if err != nil {
		return nil, err
	}
	where := make(map[string]string)
	for _, h := range hosts {
		out, err := l.Exec(ctx, h.Name, "virsh", "list", "--all", "--name")
		if err != nil {
			return nil, err
		}
		for _, name := range strings.Fields(string(out)) {
			if name != vm {
				continue
			}
			state, err := l.Exec(ctx, h.Name, "virsh", "domstate", vm)
			if err != nil {
				return nil, err
			}
			where[h.Name] = strings.TrimSpace(string(state))
		}
	}
	return where, nil
}

// OnlyAt reports an error unless the VM is in the given state at host, is
// unknown to every other libvirtd, and has left neither volume nor socket
// nor process on any other host.
func (l *Lab) OnlyAt(ctx context.Context, vm, host, state string) error {
	where, err := l.Where(ctx, vm)
	if err != nil {
		return err
	}
	var faults []error
	if where[host] != state {
		faults = append(faults, fmt.Errorf("%s is %q at %s, want %q", vm, where[host], host, state))
	}
	hosts, err := l.Hosts(ctx)
	if err != nil {
		return err
	}
	for _, h := range hosts {
		if h.Name != host {
			if s, known := where[h.Name]; known {
				faults = append(faults, fmt.Errorf("%s is known at %s too, %q", vm, h.Name, s))
			}
			// Golden images are folders below; a VM's volumes carry its name.
			left, err := l.Exec(ctx, h.Name, "sh", "-c", "ls /var/lib/libvirt/images | grep -F -- \"$1\" || true", "sh", vm)
			if err != nil {
				return err
			}
			if s := strings.Join(strings.Fields(string(left)), " "); s != "" {
				faults = append(faults, fmt.Errorf("%s has left %s at %s", vm, s, h.Name))
			}
			left, err = l.Exec(ctx, h.Name, "sh", "-c", `pgrep -af "[q]emu-system.*guest=$1," || true`, "sh", vm)
			if err != nil {
				return err
			}
			if s := strings.TrimSpace(string(left)); s != "" {
				faults = append(faults, fmt.Errorf("a process of %s is left at %s: %.80s", vm, h.Name, s))
			}
		}
		left, err := l.Exec(ctx, h.Name, "sh", "-c", "find /run/drover -mindepth 2 -type s 2>/dev/null || true")
		if err != nil {
			return err
		}
		if s := strings.Join(strings.Fields(string(left)), " "); s != "" {
			faults = append(faults, fmt.Errorf("sockets of a move are left at %s: %s", h.Name, s))
		}
	}
	return errors.Join(faults...)
}

// Settled waits until the move is final and returns it.
func (l *Lab) Settled(ctx context.Context, move string) (drover.Move, error) {
	// A server that is being restarted does not answer for some seconds.
	const pollInterval = 500 * time.Millisecond
	for {
		var m drover.Move
		err := l.Drover(ctx, &m, "moves", "get", move)
		if err == nil && m.State.Final() {
			return m, nil
		}
		select {
		case <-ctx.Done():
			return m, fmt.Errorf("move %s is %q (%s) after all the time there was: %w", move, m.State, m.Fault, errors.Join(err, ctx.Err()))
		case <-time.After(pollInterval):
		}
	}
}
