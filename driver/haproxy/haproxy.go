package haproxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

var _ driver.Balancer = (*Balancer)(nil)

const (
	// watchEvery is how soon a reload is noticed: within it, added servers are
	// missing at worst, and their VMs' sessions go to others.
	watchEvery = time.Second
	// dumpEvery is how old HAProxy's server-state-file may become when only
	// others change states.
	dumpEvery = 10 * time.Second
	// endTries and endWait bound how long a forced Remove waits for the sessions
	// that it has ended: HAProxy takes a few milliseconds to unwind them.
	endTries = 40
	endWait  = 50 * time.Millisecond
)

// Config describes a HAProxy.
type Config struct {
	// Socket is the path of its runtime socket, of level admin.
	Socket string
	// StateDir is a folder of the driver's own, kept over restarts.
	StateDir string
	// ServerStateFile is the file that HAProxy reads its servers' states from at
	// a start, "server-state-file" in its configuration; empty when it has none.
	ServerStateFile string
	Log             *slog.Logger
}

// Validate reports what is wrong with a configuration.
func (c Config) Validate() error {
	switch {
	case !filepath.IsAbs(c.Socket):
		return fmt.Errorf("socket %q: want an absolute path", c.Socket)
	case !filepath.IsAbs(c.StateDir):
		return fmt.Errorf("state folder %q: want an absolute path", c.StateDir)
	case c.ServerStateFile != "" && !filepath.IsAbs(c.ServerStateFile):
		return fmt.Errorf("server-state-file %q: want an absolute path", c.ServerStateFile)
	}
	return nil
}

// Balancer is one HAProxy.
type Balancer struct {
	cfg    Config
	log    *slog.Logger
	socket socket
	cancel context.CancelFunc
	done   sync.WaitGroup

	mu     sync.Mutex // one change at a time; held over the socket's commands
	closed bool
	record record
	dumped time.Time
}

// New returns a driver for the HAProxy. HAProxy need not run yet. The caller
// closes it.
func New(cfg Config) (*Balancer, error) {
	if err := cfg.Validate(); err != nil {
		return nil, drover.E(drover.Invalid, "haproxy", err)
	}
	if err := os.MkdirAll(cfg.StateDir, 0o700); err != nil {
		return nil, drover.E(drover.Internal, "haproxy: state folder", err)
	}
	r, err := readRecord(cfg.StateDir)
	if err != nil {
		return nil, drover.E(drover.Corrupt, "haproxy: read what was added and changed", err)
	}
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancel(context.Background())
	b := &Balancer{cfg: cfg, log: log, socket: socket{cfg.Socket}, cancel: cancel, record: r}
	b.done.Go(func() { b.watch(ctx) })
	return b, nil
}

// Close ends the watch for reloads.
func (b *Balancer) Close() error {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.cancel()
	b.done.Wait()
	return nil
}

// watch notices reloads, and keeps the server-state-file fresh.
func (b *Balancer) watch(ctx context.Context) {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	quiet := false // an outage is logged once
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		_, err := b.begin(ctx)
		if err == nil {
			if time.Since(b.dumped) >= dumpEvery {
				err = b.dump(ctx)
			}
			b.mu.Unlock()
		}
		if err != nil && !quiet && ctx.Err() == nil {
			b.log.Warn("the load balancer cannot be looked after", "socket", b.cfg.Socket, "err", err)
		}
		quiet = err != nil
	}
}

// begin locks, and brings a new process of HAProxy up to date first. On success
// the caller unlocks.
func (b *Balancer) begin(ctx context.Context) (*view, error) {
	b.mu.Lock()
	v, err := b.current(ctx)
	if err != nil {
		b.mu.Unlock()
		return nil, err
	}
	return v, nil
}

func (b *Balancer) current(ctx context.Context) (*view, error) {
	if b.closed {
		return nil, drover.Errorf(drover.Canceled, "haproxy", "the driver is closed")
	}
	p, err := b.process(ctx)
	if err != nil {
		return nil, err
	}
	v, err := b.observe(ctx)
	if err != nil {
		return nil, err
	}
	if p.pid == b.record.Pid && p.started == b.record.Started {
		return v, nil
	}
	if err := b.catchUp(ctx, v); err != nil {
		return nil, err
	}
	if b.record.Pid != 0 {
		b.log.Info("the load balancer was started anew: its servers are as they were", "pid", p.pid, "added", len(b.record.Added), "changed", len(b.record.Changed))
	}
	boot, err := bootID()
	if err != nil {
		return nil, drover.E(drover.Internal, "haproxy", err)
	}
	b.record.replace(p, boot)
	if err := b.save(); err != nil {
		return nil, err
	}
	return b.observe(ctx)
}

// save writes the record.
func (b *Balancer) save() error {
	return drover.E(drover.Internal, "haproxy: keep what was added and changed", b.record.write(b.cfg.StateDir))
}

// dump writes HAProxy's own server-state-file.
func (b *Balancer) dump(ctx context.Context) error {
	b.dumped = time.Now()
	if b.cfg.ServerStateFile == "" {
		return nil
	}
	text, err := b.socket.run(ctx, "show servers state")
	if err != nil {
		return err
	}
	// HAProxy's own user reads it at the next start.
	return drover.E(drover.Internal, "haproxy: write its server-state-file", replaceFile(b.cfg.ServerStateFile, []byte(text+"\n"), 0o644))
}

// finish is what every change ends with. A state file that cannot be written
// does not undo the change: the record brings the next process up to date too.
func (b *Balancer) finish(ctx context.Context) error {
	if err := b.save(); err != nil {
		return err
	}
	if err := b.dump(ctx); err != nil {
		b.log.Warn("the load balancer's server-state-file is old", "file", b.cfg.ServerStateFile, "err", err)
	}
	return nil
}

// catchUp makes a new process what the record says. What HAProxy refuses for
// good, because its configuration has changed, is logged and left: List shows it.
func (b *Balancer) catchUp(ctx context.Context, v *view) error {
	var errs []error
	for _, a := range b.record.Added {
		errs = append(errs, b.tolerate(b.putBack(ctx, v, a), a.Backend, a.Name))
	}
	for _, c := range b.record.Changed {
		s := v.server(c.Backend, c.Name)
		if s == nil {
			errs = append(errs, b.tolerate(drover.Errorf(drover.NotFound, "haproxy", "no such server"), c.Backend, c.Name))
			continue
		}
		errs = append(errs, b.tolerate(b.set(ctx, s, c.setting), c.Backend, c.Name))
	}
	return errors.Join(errs...)
}

func (b *Balancer) tolerate(err error, backend, server string) error {
	switch drover.KindOf(err) {
	case drover.Unavailable, drover.Canceled:
		return err
	}
	if err != nil {
		b.log.Error("a server of the load balancer could not be brought back", "backend", backend, "server", server, "err", err)
	}
	return nil
}

func (b *Balancer) putBack(ctx context.Context, v *view, a added) error {
	if v.server(a.Backend, a.Name) == nil {
		if err := b.add(ctx, a); err != nil {
			return err
		}
	}
	s := driver.Server{Backend: a.Backend, Name: a.Name, Weight: -1, State: driver.ServerMaint}
	return b.set(ctx, &s, a.setting)
}

// formerRuns reports whether a process that a reload left behind still runs.
func (b *Balancer) formerRuns() bool {
	b.record.Former = slices.DeleteFunc(b.record.Former, func(pid int) bool { return !isHAProxy(pid) })
	return len(b.record.Former) > 0
}

// Backends implements driver.Balancer.
func (b *Balancer) Backends(ctx context.Context) ([]driver.Backend, error) {
	v, err := b.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer b.mu.Unlock()
	return v.backends, nil
}

// Servers implements driver.Balancer.
func (b *Balancer) Servers(ctx context.Context, backend string) ([]driver.Server, error) {
	all, err := b.Backends(ctx)
	if err != nil {
		return nil, err
	}
	for _, one := range all {
		if one.Name == backend {
			return one.Servers, nil
		}
	}
	return nil, missing(backend)
}

func missing(backend string) error {
	return drover.Errorf(drover.NotFound, "haproxy", "no backend %q", backend)
}

// List implements driver.Balancer.
func (b *Balancer) List(ctx context.Context) ([]driver.OwnedServer, error) {
	v, err := b.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer b.mu.Unlock()
	var all []driver.OwnedServer
	for _, backend := range v.backends {
		for _, s := range backend.Servers {
			if s.Owner != "" {
				all = append(all, driver.OwnedServer{Owner: s.Owner, Backend: s.Backend, Name: s.Name, Added: true})
			}
		}
	}
	for _, a := range b.record.Added {
		if v.server(a.Backend, a.Name) == nil {
			all = append(all, driver.OwnedServer{Owner: a.Owner, Backend: a.Backend, Name: a.Name, Added: true, Missing: true})
		}
	}
	for _, c := range b.record.Changed {
		all = append(all, driver.OwnedServer{Owner: c.Owner, Backend: c.Backend, Name: c.Name, Missing: v.server(c.Backend, c.Name) == nil})
	}
	return all, nil
}
