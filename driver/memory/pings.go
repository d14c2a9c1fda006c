package memory

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// Pings is a network in memory in which each address has a round trip.
type Pings struct {
	mu    sync.Mutex
	trips map[netip.Addr]time.Duration
	lost  map[netip.Addr]int
	asked int
}

var _ driver.Pings = (*Pings)(nil)

// NewPings returns a network in which nobody answers.
func NewPings() *Pings {
	return &Pings{trips: map[netip.Addr]time.Duration{}, lost: map[netip.Addr]int{}}
}

// Set gives an address a round trip and says how many packets of each asking are
// lost.
func (p *Pings) Set(to netip.Addr, trip time.Duration, lost int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.trips[to], p.lost[to] = trip, lost
}

// Asked is how many packets were sent.
func (p *Pings) Asked() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asked
}

// Ping implements driver.Pings without waiting.
func (p *Pings) Ping(ctx context.Context, to netip.Addr, count int, _, _ time.Duration) (driver.PingResult, error) {
	op := "ping " + to.String()
	if err := ctx.Err(); err != nil {
		return driver.PingResult{}, drover.E(drover.Canceled, op, err)
	}
	if err := driver.CheckPing(to, count); err != nil {
		return driver.PingResult{}, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked += count
	trip, ok := p.trips[to]
	received := max(0, count-p.lost[to])
	if !ok || received == 0 {
		return driver.PingResult{}, drover.Errorf(drover.Unavailable, op, "no answer to %d packets", count)
	}
	return driver.PingResult{Sent: count, Received: received, Trips: slices.Repeat([]time.Duration{trip}, received)}, nil
}

// Close implements driver.Pings.
func (p *Pings) Close() error { return nil }
