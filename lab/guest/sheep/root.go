package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// rootWait is how long the root device may take to appear.
	rootWait = 20 * time.Second
	// rcScript is what an image made for the lab brings: called with start
	// after boot, and with stop before power-off.
	rcScript = "/etc/drover/rc"
	// rcStartLimit and rcStopLimit bound the script: an emulated guest on a
	// busy machine takes a tenth of it.
	rcStartLimit = 5 * time.Minute
	rcStopLimit  = time.Minute
)

// system is an installed system that the guest runs beside its own services.
// A nil system is none: all methods do nothing.
type system struct {
	// children is held while a command is started and waited for, so that
	// the reaper does not take its exit status.
	children sync.Mutex
}

// enterRoot mounts the root file system and makes it /. When the image has no
// rcScript, or when the command line names an init, it becomes that init and
// does not return.
func enterRoot(log *slog.Logger, set settings) (*system, error) {
	if err := waitDevice(set.root); err != nil {
		return nil, err
	}
	flags := uintptr(0)
	if set.rootRO {
		flags = unix.MS_RDONLY
	}
	const at = "/root"
	if err := unix.Mount(set.root, at, set.rootType, flags, ""); err != nil {
		return nil, fmt.Errorf("mount %s (%s): %w", set.root, set.rootType, err)
	}
	for _, dir := range []string{"/dev", "/proc", "/sys", "/run"} {
		if err := unix.Mount(dir, at+dir, "", unix.MS_MOVE, ""); err != nil {
			return nil, fmt.Errorf("move %s into %s: %w", dir, set.root, err)
		}
	}
	if err := errors.Join(
		unix.Chdir(at), unix.Mount(".", "/", "", unix.MS_MOVE, ""), unix.Chroot("."), unix.Chdir("/"),
	); err != nil {
		return nil, fmt.Errorf("change root to %s: %w", set.root, err)
	}
	_, err := os.Stat(rcScript)
	if set.init == "" && err == nil {
		return &system{}, mountServiceFS()
	}
	init := set.init
	if init == "" {
		init = "/sbin/init"
	}
	log.Info("handing over", "init", init)
	if err := unix.Exec(init, []string{init}, []string{"HOME=/", "TERM=linux"}); err != nil {
		return nil, fmt.Errorf("run %s: %w", init, err)
	}
	return nil, nil // not reached
}

func waitDevice(path string) error {
	for end := time.Now().Add(rootWait); ; time.Sleep(20 * time.Millisecond) {
		_, err := os.Stat(path)
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("root device %s: not there after %v", path, rootWait)
		}
	}
}

// mountServiceFS mounts what services expect beyond the kernel's own.
func mountServiceFS() error {
	for _, m := range []struct{ fs, at, data string }{
		{"devpts", "/dev/pts", "mode=0620"},
		{"tmpfs", "/dev/shm", "mode=1777"},
		{"tmpfs", "/tmp", "mode=1777"},
	} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.fs, m.at, m.fs, unix.MS_NOSUID, m.data); err != nil {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	return nil
}

// run starts the image's services and reaps orphans until ctx is done.
func (s *system) run(ctx context.Context, log *slog.Logger) error {
	if s == nil {
		return nil
	}
	if err := s.rc(ctx, log, "start", rcStartLimit); err != nil && ctx.Err() == nil {
		return err
	}
	died := make(chan os.Signal, 1)
	signal.Notify(died, unix.SIGCHLD)
	defer signal.Stop(died)
	for {
		s.reap()
		select {
		case <-ctx.Done():
			return nil
		case <-died:
		}
	}
}

func (s *system) reap() {
	s.children.Lock()
	defer s.children.Unlock()
	for {
		pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
		if pid <= 0 && !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// stop stops the services, ends what is left and makes the root file system
// clean.
func (s *system) stop(log *slog.Logger) error {
	if s == nil {
		return nil
	}
	err := s.rc(context.Background(), log, "stop", rcStopLimit)
	const grace = 500 * time.Millisecond // services were stopped by the script
	_ = unix.Kill(-1, unix.SIGTERM)
	time.Sleep(grace)
	_ = unix.Kill(-1, unix.SIGKILL)
	unix.Sync()
	if mountErr := unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); mountErr != nil {
		err = errors.Join(err, fmt.Errorf("make root read-only: %w", mountErr))
	}
	return err
}

// rc calls the image's script.
func (s *system) rc(ctx context.Context, log *slog.Logger, verb string, limit time.Duration) error {
	s.children.Lock()
	defer s.children.Unlock()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, rcScript, verb)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8"}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	// A daemon that keeps the output open must not keep the script waiting.
	cmd.WaitDelay = time.Second
	began := time.Now()
	err := cmd.Run()
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", rcScript, verb, err, bytes.TrimSpace(out.Bytes()))
	}
	log.Info("services", "verb", verb, "took", time.Since(began).Round(time.Millisecond))
	return nil
}
