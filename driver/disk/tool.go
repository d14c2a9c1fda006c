package disk

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/drover-vm/drover"
)

const (
	// maxErrorText bounds what is kept of a child's standard error.
	maxErrorText = 4 << 10
	// maxInfo bounds qemu-img's answer about one image.
	maxInfo = 1 << 20
	// toolGrace is how long a canceled qemu-img may take to go by itself.
	toolGrace = 2 * time.Second
)

// head keeps the first bytes written to it and takes the rest for read.
type head struct {
	mu    sync.Mutex
	b     []byte
	limit int
}

func (h *head) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.b = append(h.b, p[:min(len(p), h.limit-len(h.b))]...)
	return len(p), nil
}

func (h *head) String() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return string(h.b)
}

// child is a process that ends with this one.
type child struct {
	cmd    *exec.Cmd
	stderr *head
	exited chan struct{}
	err    error // of Wait; read after exited
}

// spawn starts a program without a terminal and in plain English. The kernel
// kills it when the thread that started it ends, so that thread is kept until
// the child has ended.
func spawn(program string, out io.Writer, args ...string) (*child, error) {
	c := &child{stderr: &head{limit: maxErrorText}, exited: make(chan struct{})}
	c.cmd = exec.Command(program, args...)
	c.cmd.Env = append(os.Environ(), "LC_ALL=C")
	c.cmd.Stdout, c.cmd.Stderr = out, c.stderr
	c.cmd.WaitDelay = toolGrace
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := c.cmd.Start()
		started <- err
		if err == nil {
			c.err = c.cmd.Wait()
			close(c.exited)
		}
	}()
	if err := <-started; err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return nil, drover.Errorf(drover.Unavailable, "start "+program, "is not installed: %w", err)
		}
		return nil, drover.E(drover.Unavailable, "start "+program, err)
	}
	return c, nil
}

// signal sends sig unless the child has ended.
func (c *child) signal(sig os.Signal) {
	select {
	case <-c.exited:
	default:
		c.cmd.Process.Signal(sig)
	}
}

// end waits for the child to go by itself, then asks, then kills.
func (c *child) end(patience time.Duration) {
	for _, sig := range []os.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		t := time.NewTimer(patience)
		select {
		case <-c.exited:
			t.Stop()
			return
		case <-t.C:
			c.signal(sig)
		}
		patience = toolGrace
	}
	<-c.exited
}

// failure makes an error of what the child said and how it ended.
func (c *child) failure() error {
	text := strings.TrimSpace(c.stderr.String())
	if text == "" {
		return fmt.Errorf("%s: %w", c.cmd.Args[0], c.err)
	}
	kind := drover.Internal
	switch {
	case strings.Contains(text, `Failed to get`) && strings.Contains(text, "lock"):
		return errInUse()
	case strings.Contains(text, "No space left on device"), strings.Contains(text, "Disk quota exceeded"),
		strings.Contains(text, "File too large"):
		kind = drover.Exhausted
	case strings.Contains(text, "No such file or directory"):
		kind = drover.NotFound
	case strings.Contains(text, "Image is not in"), strings.Contains(text, "invalid"), strings.Contains(text, "Invalid"):
		kind = drover.Invalid
	}
	return drover.Errorf(kind, c.cmd.Args[0], "%s", oneLine(text))
}

// oneLine joins the lines of a program's message.
func oneLine(s string) string {
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
}

// tool runs qemu-img to its end.
func (s *Store) tool(ctx context.Context, args ...string) ([]byte, error) {
	select {
	case s.tools <- struct{}{}:
		defer func() { <-s.tools }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	out := &head{limit: maxInfo}
	c, err := spawn(s.cfg.QemuImg, out, args...)
	if err != nil {
		return nil, err
	}
	select {
	case <-c.exited:
	case <-ctx.Done():
		c.signal(syscall.SIGTERM)
		c.end(toolGrace)
		return nil, ctx.Err()
	}
	if c.err != nil {
		return nil, c.failure()
	}
	return []byte(out.String()), nil
}

// vouch has qemu-img open the image and compares what it finds with what the
// headers said. It takes no lock, so a running VM is not disturbed.
func (s *Store) vouch(ctx context.Context, v drover.Volume) error {
	out, err := s.tool(ctx, "info", "--output=json", "-U", "-f", v.Format, v.Path)
	if err != nil {
		return err
	}
	var info struct {
		VirtualSize int64  `json:"virtual-size"`
		Format      string `json:"format"`
	}
	if err := json.Unmarshal(out, &info); err != nil {
		return fmt.Errorf("read qemu-img's answer: %w", err)
	}
	if info.Format != v.Format || info.VirtualSize != int64(v.VirtualBytes) {
		return drover.Errorf(drover.Corrupt, "", "qemu-img sees %s of %d bytes, the header says %s of %d",
			info.Format, info.VirtualSize, v.Format, v.VirtualBytes)
	}
	return nil
}
