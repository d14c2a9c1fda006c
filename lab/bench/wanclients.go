package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/drover-vm/drover/probe"
)

// clients are the guest's clients: drover's probe in the lab's client node. It
// is a process of its own with a priority above the guests', since what it
// waits for a processor would count as the guest's outage.
type clients struct {
	cmd *exec.Cmd
	out bytes.Buffer

	mu     sync.Mutex
	stderr strings.Builder
	ready  chan struct{} // closed when all sessions are open
}

// clientPriority is the clients' nice(1) value.
const clientPriority = "-15"

// clientsReady bounds the opening of the clients' sessions.
const clientsReady = 30 * time.Second

// Write takes what the probe says on standard error.
func (c *clients) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	was := strings.Contains(c.stderr.String(), "probing")
	c.stderr.Write(p)
	if !was && strings.Contains(c.stderr.String(), "probing") {
		close(c.ready)
	}
	return len(p), nil
}

// startClients opens the sessions and returns when each has been answered.
func (w *wanLab) startClients(ctx context.Context, config probe.Config) (*clients, error) {
	args := []string{"nice", "-n", clientPriority, "drover", "probe", "-o", "json"}
	if config.Target != "" {
		args = append(args, "--tcp", config.Target, "--kind", string(config.Kind))
	}
	if config.URL != "" {
		args = append(args, "--http", config.URL)
	}
	cmd, err := w.Command(context.WithoutCancel(ctx), w.client, args...)
	if err != nil {
		return nil, err
	}
	c := &clients{cmd: cmd, ready: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = &c.out, c
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	limit := time.NewTimer(clientsReady)
	defer limit.Stop()
	select {
	case <-c.ready:
		return c, nil
	case <-limit.C:
		err = errors.New("the guest's clients get no answer")
	case <-ctx.Done():
		err = ctx.Err()
	}
	_, stopErr := c.stop()
	return nil, errors.Join(err, stopErr)
}

// stop ends the sessions and returns what the clients saw.
func (c *clients) stop() (r probe.Result, err error) {
	_ = syscall.Kill(-c.cmd.Process.Pid, syscall.SIGTERM) // it may have ended
	if err := c.cmd.Wait(); err != nil && c.out.Len() == 0 {
		c.mu.Lock()
		defer c.mu.Unlock()
		return r, fmt.Errorf("the guest's clients: %w: %s", err, strings.TrimSpace(c.stderr.String()))
	}
	if err := json.Unmarshal(c.out.Bytes(), &r); err != nil {
		return r, fmt.Errorf("the guest's clients: %w", err)
	}
	return r, nil
}
