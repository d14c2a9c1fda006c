package bench

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// pauseWatch listens to both libvirtds for when a guest stops at one host and
// goes on at the other. It measures the pause of every way alike; QEMU's own
// figure ends at the source, and post-copy has none.
type pauseWatch struct {
	vm   string
	cmds []*exec.Cmd
	wg   sync.WaitGroup

	mu                 sync.Mutex
	suspended, resumed time.Time
}

// watchPause starts to listen.
func (w *wanLab) watchPause(ctx context.Context, vm, from, to string) (*pauseWatch, error) {
	p := &pauseWatch{vm: vm}
	for i, host := range []string{from, to} {
		cmd := exec.CommandContext(ctx, "stdbuf", "-oL", "virsh", "-q", "-c", w.uri(host),
			"event", "--event", "lifecycle", "--loop", "--timestamp")
		// virsh takes SIGINT for the end of its loop.
		cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) }
		cmd.WaitDelay = childGrace
		out, err := cmd.StdoutPipe()
		if err = errors.Join(err, startIf(err, cmd)); err != nil {
			p.stop()
			return nil, fmt.Errorf("virsh event: %w", err)
		}
		p.cmds = append(p.cmds, cmd)
		p.wg.Go(func() {
			p.read(out, i == 0)
			_ = cmd.Wait() // it was told to end
		})
	}
	return p, nil
}

func startIf(err error, cmd *exec.Cmd) error {
	if err != nil {
		return nil
	}
	return cmd.Start()
}

// read takes the source's last suspension, and the destination's first
// resumption.
func (p *pauseWatch) read(out io.Reader, source bool) {
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		at, vm, what, ok := parseEvent(lines.Text())
		if !ok || vm != p.vm {
			continue
		}
		p.mu.Lock()
		switch {
		case source && strings.HasPrefix(what, "Suspended"):
			p.suspended = at
		case !source && strings.HasPrefix(what, "Resumed") && p.resumed.IsZero():
			p.resumed = at
		}
		p.mu.Unlock()
	}
}

// parseEvent reads a line like
//
//	2026-01-02 03:04:05.678+0000: event 'lifecycle' for domain 'web1': Suspended Migrated
func parseEvent(line string) (at time.Time, vm, what string, ok bool) {
	stamp, rest, found := strings.Cut(line, ": event 'lifecycle' for domain ")
	if !found {
		return at, "", "", false
	}
	vm, what, found = strings.Cut(rest, "': ")
	at, err := time.Parse("2006-01-02 15:04:05.000-0700", stamp)
	return at, strings.TrimPrefix(vm, "'"), what, found && err == nil
}

// stop ends the listening and returns the pause in milliseconds, negative when
// the guest was not seen to stop and go on.
func (p *pauseWatch) stop() float64 {
	for _, cmd := range p.cmds {
		_ = cmd.Process.Signal(syscall.SIGINT) // it may have ended
	}
	p.wg.Wait()
	if p.suspended.IsZero() || p.resumed.Before(p.suspended) {
		return -1
	}
	return float64(p.resumed.Sub(p.suspended)) / float64(time.Millisecond)
}
