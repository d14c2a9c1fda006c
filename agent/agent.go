package agent

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/api/droverv1/droverv1connect"
	"github.com/drover-vm/drover/api/metrics"
	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/pki"
	"github.com/drover-vm/drover/wan"
)

// LinkCounters reads what has crossed a WAN link.
type LinkCounters interface {
	// Counters returns bytes and packets since counting began, from A to B and
	// from B to A.
	Counters(ctx context.Context, link EdgeLink) (LinkCount, error)
}

// LinkCount is one reading of a link.
type LinkCount struct {
	ABBytes, BABytes, ABPackets, BAPackets uint64
}

// Prober watches a VM as a client does.
type Prober interface {
	// Start begins to probe and returns what stops it. The probe outlives ctx.
	Start(ctx context.Context, target drover.ProbeTarget) (Probe, error)
}

// Probe is a probe that runs.
type Probe interface {
	// Stop ends it and returns what it saw.
	Stop() ProbeResult
}

// ProbeResult is what a client saw.
type ProbeResult struct {
	Outage, OutageHTTP       time.Duration
	Sessions, SessionsLost   int64
	BeatsSent, BeatsAnswered int64
	RTTMedian                time.Duration
	HTTPOK, HTTPFailed       int64
	// Fault says why the figures mean little, if they do.
	Fault string
}

// Deps are what an agent works with. The caller closes the drivers.
type Deps struct {
	// Hypervisor and Volumes are nil on an edge without VMs.
	Hypervisor driver.Hypervisor
	Volumes    driver.Volumes
	// Links is needed where the file names links, Prober where it sets probe.
	Links  LinkCounters
	Prober Prober
	// Edge is for a site's edge: what its file names.
	Edge EdgeDrivers
	// Guests is the inside of the host's VMs; nil: their addresses are not
	// observed there.
	Guests driver.Guests
	// Catcher is the ports of the host's VMs; nil: what arrives for a VM during
	// its pause is lost.
	Catcher driver.Catcher
	// Signals is what can be seen of the host's VMs from outside; nil: nothing is
	// looked at. Pings measures the ways to other hosts; nil: by the agents' own
	// calls.
	Signals driver.Signals
	Pings   driver.Pings
	// TLS is the process's configuration, from pki.Config.
	TLS *tls.Config
	Log *slog.Logger
	// Clock is the time; nil is time.Now.
	Clock func() time.Time
	// SocketUID and SocketGID own the folders in which the hypervisor makes
	// sockets. Zero is root.
	SocketUID, SocketGID int
}

// Agent is a host's or an edge's daemon. To servers it shows AgentService, to
// other agents PeerService.
type Agent struct {
	config   Config
	hyp      driver.Hypervisor
	volumes  driver.Volumes
	links    LinkCounters
	tls      *tls.Config
	log      *slog.Logger
	clock    func() time.Time
	sockets  sockets
	journal  *journal
	jobs     *jobs
	peers    *peers
	wan      *wan.Node
	observer *observer
	probes   *probes
	locks    locks
	calls    calls
	incoming incomings
	flights  flights
	remains  *remains
	replicas replicaContent
	metrics  *meter
	resolver *resolver
	// siteedge is nil where the agent is no site's edge.
	siteedge *edge
	guests   *guestAddresses
	// lent and remote are the two ends of disks that were left behind.
	lent   *lent
	remote *remoteDisks
	// catcher may be nil.
	catcher driver.Catcher
	signals *signals
}

var (
	_ droverv1connect.AgentServiceHandler = agentService{}
	_ droverv1connect.PeerServiceHandler  = peerService{}
)

// New checks the configuration and opens the journal in the state folder.
// Close (or Run's end) closes it.
func New(d Deps, c Config) (*Agent, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	switch {
	case (d.Hypervisor == nil) != (d.Volumes == nil):
		return nil, drover.Errorf(drover.Invalid, "agent", "a hypervisor and its volumes come together")
	case c.Edge != nil && len(c.Edge.Links) > 0 && d.Links == nil:
		return nil, drover.Errorf(drover.Invalid, "agent", "links without counters")
	case c.Probe && d.Prober == nil:
		return nil, drover.Errorf(drover.Invalid, "agent", "probe without a prober")
	case d.TLS == nil || d.Log == nil:
		return nil, drover.Errorf(drover.Invalid, "agent", "TLS configuration or log is missing")
	}
	if err := named(c, d.TLS); err != nil {
		return nil, err
	}
	clock := d.Clock
	if clock == nil {
		clock = time.Now
	}
	j, err := openJournal(c.State)
	if err != nil {
		return nil, err
	}
	log := d.Log.With("host", c.Name)
	node, err := wan.NewNode(c.wan(d, log))
	if err != nil {
		return nil, errors.Join(err, j.close())
	}
	a := &Agent{
		config: c, hyp: d.Hypervisor, volumes: d.Volumes, links: d.Links, tls: d.TLS, log: log, clock: clock,
		sockets: sockets{dir: c.Run, uid: d.SocketUID, gid: d.SocketGID},
		journal: j,
		jobs:    newJobs(j, log, clock),
		peers:   newPeers(d.TLS),
		wan:     node,
	}
	a.calls.ending = make(chan struct{})
	a.observer = newObserver(a)
	a.probes = newProbes(d.Prober, c.Probe, clock)
	a.resolver = newResolver(a)
	a.remains = &remains{a: a}
	a.metrics = newMeter(a)
	a.metrics.tellLibrary(a.library)
	a.guests = newGuestAddresses(d.Guests, clock)
	a.lent, a.remote = &lent{a: a}, &remoteDisks{a: a}
	a.catcher = d.Catcher
	if a.siteedge, err = newEdge(a, d.Edge); err != nil {
		return nil, errors.Join(err, node.Close(), j.close())
	}
	a.signals = newSignals(a, d.Signals, d.Pings)
	return a, nil
}

// named refuses a certificate that is another's: servers and other agents would
// refuse it too, one call at a time and less clearly.
func named(c Config, cfg *tls.Config) error {
	if len(cfg.Certificates) == 0 {
		return drover.Errorf(drover.Invalid, "tls.cert", "missing")
	}
	id, err := pki.Peer(&tls.ConnectionState{PeerCertificates: []*x509.Certificate{cfg.Certificates[0].Leaf}})
	if err != nil {
		return err
	}
	if want := (pki.Identity{Role: pki.Agent, Name: c.Name}); id != want {
		return drover.Errorf(drover.Invalid, "tls.cert", "%s is the certificate of %s: want one of %s", c.TLS.Cert, id, want)
	}
	return nil
}

// Serve listens and works until ctx ends, which is no error, or until
// something fails that it cannot work without. A transfer that is under way
// when ctx ends is aborted, unless the guest has been given up; then the next
// start settles it. Serve closes the journal; an Agent serves once.
func (a *Agent) Serve(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, a.wan.Close(), a.journal.close()) }()
	if err := a.sockets.sweep(); err != nil {
		return err
	}
	if err := a.sweepJobs(); err != nil {
		return err
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", a.config.Listen)
	if err != nil {
		return drover.E(drover.Unavailable, "listen", err)
	}
	return a.serve(ctx, listener)
}

func (a *Agent) serve(ctx context.Context, listener net.Listener) error {
	group, ctx := errgroup.WithContext(ctx)
	if a.config.Metrics != "" {
		l, err := metrics.Listen(ctx, a.config.Metrics)
		if err != nil {
			_ = listener.Close()
			return err
		}
		group.Go(func() error { return metrics.Serve(ctx, l, metrics.NewRegistry(a.metrics), a.log) })
	}
	mux := wan.NewMux(listener, a.tls, a.log)
	server := api.NewHTTPServer(a.handler())
	server.ErrorLog = slog.NewLogLogger(a.log.Handler(), slog.LevelDebug)
	server.BaseContext = func(net.Listener) context.Context { return ctx }
	group.Go(func() error { return mux.Serve(ctx) })
	group.Go(func() error { return a.wan.Serve(ctx, mux.Data()) })
	group.Go(func() error { return wan.ServeDisks(ctx, mux.Disks(), a.log, a.lent.serve) })
	group.Go(func() error { return a.wan.Run(ctx) })
	group.Go(func() error { a.knowImages(ctx); return nil })
	group.Go(func() error {
		err := server.Serve(mux.Control())
		if errors.Is(err, http.ErrServerClosed) || ctx.Err() != nil {
			return nil
		}
		return drover.E(drover.Internal, "serve", err)
	})
	group.Go(func() error { return a.observer.run(ctx) })
	group.Go(func() error { a.remains.run(ctx); return nil })
	// Guests wait for their disks at other hosts, and nothing of these depends on
	// what is settled below.
	if err := a.remote.start(ctx); err != nil {
		return err
	}
	group.Go(func() error { a.signals.run(ctx); return nil })
	// What an earlier process left is settled beside serving: the other end
	// must be able to ask in the meantime. Jobs come after, so that none finds
	// a transfer of an earlier process and takes it for its own.
	a.resolver.start(ctx)
	if err := a.recoverOutgoing(); err != nil {
		return err
	}
	group.Go(func() error { a.recoverIncoming(ctx); return nil })
	if err := a.knowRemains(); err != nil {
		return err
	}
	if a.siteedge != nil {
		if err := a.siteedge.openMesh(ctx); err != nil {
			// The mesh comes with the server's next word; the rest works without.
			a.log.Error("cannot take up the mesh", "err", err)
		}
	}
	if a.siteedge != nil {
		group.Go(func() error { a.siteedge.measureTrips(ctx); return nil })
		group.Go(func() error { a.siteedge.keepStanding(ctx); return nil })
	}
	group.Go(func() error { a.thawLeft(ctx); return nil })
	group.Go(func() error { a.plugLeft(ctx); return nil })
	a.jobs.start(ctx)
	a.log.Info("agent serves", "site", a.config.Site, "address", listener.Addr().String())
	<-ctx.Done()
	// Jobs end first: their last words to the peer need its answers, not ours.
	a.jobs.wait()
	a.resolver.settled()
	// A Finish that is under way comes to its end, whoever stops.
	a.calls.stop()
	_ = server.Close()
	err := group.Wait()
	a.closeIncoming()
	a.remote.close()
	err = errors.Join(err, a.lent.stop(""))
	a.probes.close()
	a.peers.close()
	a.guests.close()
	return err
}

// handler serves both services, each to its role only.
func (a *Agent) handler() http.Handler {
	mux := http.NewServeMux()
	path, h := droverv1connect.NewAgentServiceHandler(agentService{a}, api.HandlerOptions()...)
	mux.Handle(path, api.RequireRole(h, pki.Server))
	path, h = droverv1connect.NewPeerServiceHandler(peerService{a}, api.HandlerOptions()...)
	mux.Handle(path, api.RequireRole(h, pki.Agent))
	return mux
}

// locks are one lock per move: what a peer asks and what a server asks of the
// receiving side must not interleave.
type locks struct {
	mu   sync.Mutex
	held map[string]chan struct{}
}

// lock waits for the move's lock; ctx bounds the wait.
func (l *locks) lock(ctx context.Context, move string) (unlock func(), err error) {
	for {
		l.mu.Lock()
		if l.held == nil {
			l.held = make(map[string]chan struct{})
		}
		busy := l.held[move]
		if busy == nil {
			free := make(chan struct{})
			l.held[move] = free
			l.mu.Unlock()
			return func() {
				l.mu.Lock()
				delete(l.held, move)
				l.mu.Unlock()
				close(free)
			}, nil
		}
		l.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, drover.E(drover.Unavailable, "move "+move, fmt.Errorf("another call is at work on it: %w", ctx.Err()))
		}
	}
}

// calls counts the peers' calls that must not be cut off in the middle.
type calls struct {
	mu       sync.Mutex
	stopping bool
	group    sync.WaitGroup
	// ending is closed when no more are admitted.
	ending chan struct{}
}

// enter admits a call, unless the agent is stopping.
func (c *calls) enter() (leave func(), err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopping {
		return nil, drover.E(drover.Unavailable, "", errStopping)
	}
	c.group.Add(1)
	return c.group.Done, nil
}

// stop admits no more and waits for those that are in.
func (c *calls) stop() {
	c.mu.Lock()
	if !c.stopping {
		close(c.ending)
	}
	c.stopping = true
	c.mu.Unlock()
	c.group.Wait()
}

// randomBytes fills b; crypto/rand does not fail.
func randomBytes(b []byte) { _, _ = rand.Read(b) }

// agentService and peerService are the agent's two faces.
type agentService struct{ *Agent }

type peerService struct{ *Agent }

// edge reports whether the agent has no hypervisor: a site's edge, or a place
// to probe from.
func (a *Agent) edge() bool { return a.hyp == nil }

// needHypervisor refuses what an edge cannot do.
func (a *Agent) needHypervisor() error {
	if a.edge() {
		return drover.Errorf(drover.Refused, "host "+a.config.Name, "it runs no VMs")
	}
	return nil
}

// resultNow is the result of actions that have nothing to say.
func resultNow() *droverv1.RunResult { return new(droverv1.RunResult) }
