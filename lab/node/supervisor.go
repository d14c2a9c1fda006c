package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// restartDelay is the pause before a service that died is started again: long
// enough that one which dies at once does not eat a core, short enough that a
// test of a killed daemon does not wait.
const restartDelay = time.Second

// stopGrace is how long a service may take to end after SIGTERM before it is
// killed; libvirtd and etcd end within two seconds.
const stopGrace = 10 * time.Second

// State of a service.
type State string

// The states of a service.
const (
	Stopped State = "stopped"
	Running State = "running"
	// Waiting means that the service died and starts again after a delay.
	Waiting State = "waiting"
)

// Status is what the holder knows of one service.
type Status struct {
	Name  string `json:"name"`
	State State  `json:"state"`
	// PID is the process inside the node, 0 unless running.
	PID int `json:"pid,omitempty"`
	// Starts counts how often the service was started.
	Starts int `json:"starts"`
	// LastExit says how the service ended last, "" when it never did.
	LastExit string `json:"last_exit,omitempty"`
}

// supervisor starts, restarts and stops the services of a node and reaps every
// process that ends in it.
type supervisor struct {
	log  *slog.Logger
	logs *os.Root

	mu       sync.Mutex
	services map[string]*service
	order    []string
	byPID    map[int]*service
}

type service struct {
	Service
	status Status
	// wanted says whether the service should be running.
	wanted bool
	// ended is closed when the running process has ended; nil when none runs.
	ended chan struct{}
	timer *time.Timer
}

func newSupervisor(log *slog.Logger, list []Service, logs *os.Root) *supervisor {
	s := &supervisor{log: log, logs: logs, services: map[string]*service{}, byPID: map[int]*service{}}
	for _, v := range list {
		s.services[v.Name] = &service{Service: v, status: Status{Name: v.Name, State: Stopped}}
		s.order = append(s.order, v.Name)
	}
	return s
}

// reap waits for every child of process 1, the adopted ones too, until ctx ends.
// It is the only caller of wait, so that no exit status is lost to another.
func (s *supervisor) reap(ctx context.Context) {
	died := make(chan os.Signal, 1)
	signal.Notify(died, syscall.SIGCHLD)
	defer signal.Stop(died)
	for {
		for s.reapOne() {
		}
		select {
		case <-died:
		case <-ctx.Done():
			s.forgetTimers()
			return
		}
	}
}

// reapOne collects one ended child and reports whether there was one. The lock
// is held so that a child cannot be collected before start has noted its id.
func (s *supervisor) reapOne() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	var ws syscall.WaitStatus
	pid, err := syscall.Wait4(-1, &ws, syscall.WNOHANG, nil)
	if err != nil || pid <= 0 {
		return errors.Is(err, syscall.EINTR)
	}
	if v := s.byPID[pid]; v != nil {
		delete(s.byPID, pid)
		s.gone(v, ws)
	}
	return true
}

// gone notes that v's process has ended and plans its restart. s.mu is held.
func (s *supervisor) gone(v *service, ws syscall.WaitStatus) {
	v.status.PID = 0
	v.status.LastExit = exitText(ws)
	close(v.ended)
	v.ended = nil
	if !v.wanted {
		v.status.State = Stopped
		s.log.Info("service stopped", "service", v.Name, "exit", v.status.LastExit)
		return
	}
	s.log.Warn("service died, will start again", "service", v.Name, "exit", v.status.LastExit, "delay", restartDelay)
	s.startLater(v)
}

func (s *supervisor) startLater(v *service) {
	v.status.State = Waiting
	v.timer = time.AfterFunc(restartDelay, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if !v.wanted || v.status.State != Waiting {
			return
		}
		if err := s.spawn(v); err != nil {
			s.log.Error("cannot start service", "service", v.Name, "err", err)
			s.startLater(v)
		}
	})
}

func (s *supervisor) forgetTimers() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, v := range s.services {
		v.wanted = false
		if v.timer != nil {
			v.timer.Stop()
		}
	}
}

// spawn starts v's process. s.mu is held.
func (s *supervisor) spawn(v *service) error {
	out, err := s.logs.OpenFile(v.Name+".log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer out.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	path, err := programPath(v.Args[0])
	if err != nil {
		return err
	}
	pid, err := syscall.ForkExec(path, v.Args, &syscall.ProcAttr{
		Dir:   "/",
		Env:   append(os.Environ(), v.Env...),
		Files: []uintptr{null.Fd(), out.Fd(), out.Fd()},
		// A session of its own: a signal to the holder's group is not meant for it.
		Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return fmt.Errorf("start %s: %w", path, err)
	}
	v.status.State, v.status.PID = Running, pid
	v.status.Starts++
	v.ended = make(chan struct{})
	s.byPID[pid] = v
	s.log.Info("service started", "service", v.Name, "pid", pid)
	return nil
}

// programPath finds a service's program. The holder's own binary is run from
// its place inside the node, so that an upgrade of the file on the machine does
// not mix two versions in one lab.
func programPath(name string) (string, error) {
	if name != filepath.Base(Binary) {
		return exec.LookPath(name)
	}
	return Binary, nil
}

func (s *supervisor) find(name string) (*service, error) {
	v := s.services[name]
	if v == nil {
		return nil, fmt.Errorf("no service %q here, there are %v", name, s.order)
	}
	return v, nil
}

// start makes the service run; one that already runs is left alone.
func (s *supervisor) start(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, err := s.find(name)
	if err != nil {
		return err
	}
	v.wanted = true
	if v.status.State == Running {
		return nil
	}
	if err := s.spawn(v); err != nil {
		v.wanted = false
		v.status.State = Stopped
		return err
	}
	return nil
}

// stop ends the service and waits until its process is gone. Its children live
// on, as QEMU processes do when libvirtd ends.
func (s *supervisor) stop(ctx context.Context, name string) error {
	s.mu.Lock()
	v, err := s.find(name)
	if err != nil {
		s.mu.Unlock()
		return err
	}
	v.wanted = false
	if v.status.State != Running {
		v.status.State = Stopped
		s.mu.Unlock()
		return nil
	}
	pid, ended := v.status.PID, v.ended
	_ = syscall.Kill(pid, syscall.SIGTERM) // it may have ended already
	s.mu.Unlock()

	grace := time.NewTimer(stopGrace)
	defer grace.Stop()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-grace.C:
	}
	s.log.Warn("service ignores SIGTERM, killing it", "service", name)
	if err := s.signal(name, syscall.SIGKILL); err != nil {
		return err
	}
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// signal sends sig to the service's process, if one runs.
func (s *supervisor) signal(name string, sig syscall.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, err := s.find(name)
	if err != nil {
		return err
	}
	if v.status.State != Running {
		return fmt.Errorf("service %s is not running", name)
	}
	return syscall.Kill(v.status.PID, sig)
}

func (s *supervisor) list() []Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]Status, 0, len(s.order))
	for _, name := range s.order {
		all = append(all, s.services[name].status)
	}
	return all
}

func exitText(ws syscall.WaitStatus) string {
	if ws.Signaled() {
		return "signal " + ws.Signal().String()
	}
	return fmt.Sprintf("status %d", ws.ExitStatus())
}
