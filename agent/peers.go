package agent

import (
	"context"
	"crypto/tls"
	"net"
	"sync"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
)

// maxPeers bounds the kept connections to other agents; beyond it idle ones
// are dropped. An installation with more hosts moves between few at a time.
const maxPeers = 256

// peers are the clients of other agents, kept so that a connection is open and
// warm when the switchover needs it.
type peers struct {
	tls *tls.Config

	mu      sync.Mutex
	clients map[peerKey]*api.PeerClient
	trips   map[peerKey]trip
}

// trip is a round trip as it was measured last.
type trip struct {
	rtt time.Duration
	at  time.Time
}

// tripHolds is how long a measured round trip is good enough to set a move's pause by.
const tripHolds = 2 * time.Minute

type peerKey struct{ address, host string }

func newPeers(cfg *tls.Config) *peers {
	return &peers{tls: cfg, clients: make(map[peerKey]*api.PeerClient), trips: make(map[peerKey]trip)}
}

// config is what other agents are called with.
func (p *peers) config() *tls.Config {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.tls
}

// at returns the client of the agent called host at address.
func (p *peers) at(address, host string) *api.PeerClient {
	p.mu.Lock()
	defer p.mu.Unlock()
	key := peerKey{address, host}
	if c := p.clients[key]; c != nil {
		return c
	}
	if len(p.clients) >= maxPeers {
		for k, c := range p.clients {
			c.Close()
			delete(p.clients, k)
		}
		clear(p.trips)
	}
	c := api.NewPeerClient(address, p.tls, host)
	p.clients[key] = c
	return c
}

// reached notes a round trip.
func (p *peers) reached(address, host string, rtt time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if key := (peerKey{address, host}); p.clients[key] != nil {
		p.trips[key] = trip{rtt, time.Now()}
	}
}

// roundTrip returns what was noted, if it still holds.
func (p *peers) roundTrip(address, host string) (time.Duration, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	t, ok := p.trips[peerKey{address, host}]
	return t.rtt, ok && time.Since(t.at) < tripHolds
}

func (p *peers) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.clients {
		c.Close()
	}
}

// peerError is an error of a call to a peer. A connection that broke may come
// out of the transport as canceled; unless it was the caller who canceled, the
// peer went away.
func peerError(ctx context.Context, err error) error {
	if err != nil && ctx.Err() == nil && drover.KindOf(err) == drover.Canceled {
		return drover.E(drover.Unavailable, "", err)
	}
	return err
}

func checkPeer(address, host string) error {
	if _, _, err := net.SplitHostPort(address); err != nil {
		return drover.Errorf(drover.Invalid, "peer_address", "%q: want IP:PORT of the agent at the other end", address)
	}
	return drover.CheckName("peer_host", host)
}

const (
	// warmEvery is how often an idle control connection is used during a
	// transfer: often enough that no middlebox forgets it and that TCP does
	// not fall back to its initial window before the switchover.
	warmEvery = 2 * time.Second
	// pingLimit bounds one ping.
	pingLimit = 5 * time.Second
)

// keepWarm pings until ctx ends.
func keepWarm(ctx context.Context, c *api.PeerClient) {
	for sleep(ctx, warmEvery, nil) == nil {
		// A failure is not this function's to report: the next call will.
		_, _ = ping(ctx, c)
	}
}

func ping(ctx context.Context, c *api.PeerClient) (*droverv1.PingResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, pingLimit)
	defer cancel()
	return c.Ping(ctx, &droverv1.PingRequest{})
}
