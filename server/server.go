package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1/droverv1connect"
	"github.com/drover-vm/drover/api/metrics"
	"github.com/drover-vm/drover/executor"
	"github.com/drover-vm/drover/pki"
	"github.com/drover-vm/drover/store"
)

const (
	// stopLimit bounds the wait for calls under way when the server ends.
	stopLimit = 5 * time.Second
	// socketMode lets only the socket's owner connect; the certificate
	// decides about the rest.
	socketMode = 0o600
	// cutMargin is how much longer than the agents the server waits, so that
	// they have given a transfer up, and said so, before it does.
	cutMargin = time.Minute
	// observerLimit bounds what the executor waits for measuring, which
	// includes a cold guest's boot.
	observerLimit = recoverLimit + 30*time.Second
)

// Deps are what a server needs from others. Journal, Inventory and TLS must
// be set. The server closes none of them.
type Deps struct {
	Journal   store.Journal
	Inventory store.Inventory
	// TLS is the server's own, from pki.Config.
	TLS *tls.Config
	// Log is nil for none.
	Log *slog.Logger
	// Now is nil for the machine's clock.
	Now func() time.Time
	// Lead is the one place where "may this server lead the moves" is asked.
	// It returns when the server leads, and a context that ends when it does
	// not any more, which ends Run: another server has the moves then. nil: it
	// always leads.
	Lead func(context.Context) (context.Context, error)
	// Limits of the executor; a zero field takes its default.
	Limits executor.Limits
	// Sleep is nil for the machine's clock. It returns early when ctx ends.
	Sleep func(ctx context.Context, d time.Duration)
}

// Server observes hosts, checks and leads moves, and answers operators.
type Server struct {
	cfg   Config
	deps  Deps
	log   *slog.Logger
	now   func() time.Time
	pause func(context.Context, time.Duration)
	fleet *fleet
	exec  *executor.Executor
	truth *truth
	meter *meter
	// settingNeeds is held while requirements of a VM are read, changed and kept.
	settingNeeds sync.Mutex
	// signals are what agents see and moves have shown.
	signals *signals
	// oracle makes forecasts.
	oracle *oracle

	protector *protector

	listeners []net.Listener
	// metrics is nil where the file names no address.
	metrics net.Listener
	// ending is closed when the server stops, so that streams end.
	ending  chan struct{}
	endOnce sync.Once
	// leading is closed once it leads and has taken up what was unfinished.
	leading chan struct{}
}

// New makes a server and opens its listeners; Run serves them, Close frees
// them if Run is never called. The configuration is checked first
// (drover.Invalid); a port that is taken is drover.Unavailable.
func New(d Deps, c Config) (*Server, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	if d.Now == nil {
		d.Now = time.Now
	}
	if d.Sleep == nil {
		d.Sleep = sleep
	}
	if d.Lead == nil {
		d.Lead = func(ctx context.Context) (context.Context, error) { return ctx, nil }
	}
	if d.Limits.ObserverTime == 0 {
		d.Limits.ObserverTime = observerLimit
	}
	if d.Limits.StepPatience == 0 {
		d.Limits.StepPatience = c.cutLimit() + cutMargin
	}
	s := &Server{
		cfg: c, deps: d, log: d.Log, now: d.Now, pause: d.Sleep,
		fleet:  newFleet(c, d, d.TLS),
		ending: make(chan struct{}), leading: make(chan struct{}),
	}
	s.truth = newTruth(s)
	s.meter = newMeter(s)
	s.signals = newSignals(s)
	s.oracle = newOracle(s)
	s.exec = executor.New(executor.Config{
		Journal: d.Journal, Agents: agents{s.fleet}, Planner: planner{s}, Log: d.Log, Observer: s.truth, Limits: d.Limits,
	})
	s.protector = newProtector(d.Inventory.Protections(), agents{s.fleet}, s, d.Log, d.Now)
	if err := s.listen(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// listen opens the TCP port and the unix socket, both with TLS.
func (s *Server) listen() error {
	cfg := api.ServerTLS(s.deps.TLS)
	if s.cfg.Listen != "" {
		l, err := net.Listen("tcp", s.cfg.Listen)
		if err != nil {
			return drover.E(drover.Unavailable, "listen", err)
		}
		s.listeners = append(s.listeners, tls.NewListener(l, cfg))
	}
	if s.cfg.Socket != "" {
		l, err := listenUnix(s.cfg.Socket)
		if err != nil {
			return drover.E(drover.Unavailable, "socket", err)
		}
		s.listeners = append(s.listeners, tls.NewListener(l, cfg))
	}
	if s.cfg.Metrics != "" {
		l, err := metrics.Listen(context.Background(), s.cfg.Metrics)
		if err != nil {
			return err
		}
		s.metrics = l
	}
	return nil
}

// listenUnix takes over a socket that a dead server left, and refuses one
// that a living server has.
func listenUnix(path string) (net.Listener, error) {
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		c.Close()
		return nil, fmt.Errorf("%s: another process listens there", path)
	}
	if st, err := os.Lstat(path); err == nil && st.Mode()&os.ModeSocket != 0 {
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, socketMode); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// MetricsAddr is where metrics are read, nil when they are not.
func (s *Server) MetricsAddr() net.Addr {
	if s.metrics == nil {
		return nil
	}
	return s.metrics.Addr()
}

// Addr is where the API listens on TCP, nil when it does not.
func (s *Server) Addr() net.Addr {
	if s.cfg.Listen == "" || len(s.listeners) == 0 {
		return nil
	}
	return s.listeners[0].Addr()
}

// Close lets the moves go as they are and frees what New has opened. Run does
// it at its end.
func (s *Server) Close() error {
	s.endOnce.Do(func() { close(s.ending) })
	err := s.exec.Close()
	for _, l := range append(s.listeners[:len(s.listeners):len(s.listeners)], s.metrics) {
		if l == nil {
			continue
		}
		if cerr := l.Close(); cerr != nil && !errors.Is(cerr, net.ErrClosed) {
			err = errors.Join(err, cerr)
		}
	}
	s.fleet.close()
	return err
}

// Run serves until ctx ends. Moves under way stay in the journal, and actions
// that agents have begun run on; the next server takes them up.
func (s *Server) Run(ctx context.Context) error {
	defer s.Close()
	if err := s.fleet.load(ctx); err != nil {
		if ctx.Err() != nil {
			return nil // ended before it was up
		}
		return err
	}
	if err := s.signals.load(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	path, handler := droverv1connect.NewDroverServiceHandler(service{s}, api.HandlerOptions()...)
	mux := http.NewServeMux()
	mux.Handle(path, api.RequireRole(handler, pki.Operator))
	web := api.NewHTTPServer(mux)
	web.ErrorLog = slog.NewLogLogger(s.log.Handler(), slog.LevelDebug)

	var wg sync.WaitGroup
	failed := make(chan error, len(s.listeners)+3)
	if s.metrics != nil {
		wg.Go(func() {
			if err := metrics.Serve(ctx, s.metrics, metrics.NewRegistry(s.meter), s.log); err != nil {
				failed <- err
			}
		})
	}
	for _, l := range s.listeners {
		wg.Go(func() {
			if err := web.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				failed <- drover.E(drover.Unavailable, "serve "+l.Addr().String(), err)
			}
		})
	}
	for _, a := range s.fleet.sorted() {
		wg.Go(func() { s.watch(ctx, a) })
		wg.Go(func() { s.signals.collect(ctx, a) })
	}
	wg.Go(func() { s.keepMesh(ctx) })
	wg.Go(func() {
		if err := s.keepReplicas(ctx); err != nil {
			failed <- err
		}
	})
	wg.Go(func() {
		if err := s.lead(ctx); err != nil && ctx.Err() == nil {
			failed <- err
		}
	})
	s.log.InfoContext(ctx, "server is up", "name", s.cfg.Name, "listen", s.cfg.Listen, "socket", s.cfg.Socket, "agents", len(s.cfg.Agents))

	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	s.stop(web)
	cancel()
	wg.Wait()
	s.log.Info("server has ended")
	return err
}

// stop ends streams, waits for calls, and lets the moves go.
func (s *Server) stop(web *http.Server) {
	s.endOnce.Do(func() { close(s.ending) })
	ctx, cancel := context.WithTimeout(context.Background(), stopLimit)
	defer cancel()
	if err := web.Shutdown(ctx); err != nil {
		s.log.Warn("calls under way are cut", "error", err)
		web.Close()
	}
	if err := s.exec.Close(); err != nil {
		s.log.Warn("executor", "error", err)
	}
}

// lead waits until this server may lead, and then takes up the moves that an
// earlier one left.
func (s *Server) lead(parent context.Context) error {
	ctx, err := s.deps.Lead(parent)
	if err != nil {
		return fmt.Errorf("lead: %w", err)
	}
	wait := reconnectFirst
	for {
		err := s.exec.Resume(ctx)
		if err == nil {
			break
		}
		// What could be taken up is; the rest may be by the next try.
		s.log.ErrorContext(ctx, "not every unfinished move could be taken up", "error", err)
		if !drover.KindOf(err).Retryable() {
			break
		}
		s.pause(ctx, wait)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		wait = min(2*wait, reconnectMost)
	}
	close(s.leading)
	<-ctx.Done()
	if parent.Err() == nil {
		return drover.Errorf(drover.Unavailable, "lead moves", "another server leads")
	}
	return nil
}

// mayLead reports whether this server leads; only then it starts or cancels
// moves.
func (s *Server) mayLead(ctx context.Context) error {
	select {
	case <-s.leading:
		return nil
	case <-time.After(leadPatience):
	case <-ctx.Done():
	}
	return drover.Errorf(drover.Unavailable, "lead moves", "this server is not leading yet")
}

// leadPatience is how long a call waits for a server that has just started.
const leadPatience = 2 * time.Second

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// moving returns the unfinished moves.
func (s *Server) moving(ctx context.Context) (movesByVM, error) {
	moves, err := s.exec.List(ctx, store.Filter{Unfinished: true})
	if err != nil {
		return nil, err
	}
	by := make(movesByVM, len(moves))
	for _, m := range moves {
		by[m.VMUUID] = m
		if m.Clone != nil {
			by[m.Clone.UUID] = m
		}
	}
	return by, nil
}
