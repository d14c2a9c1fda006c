package memory

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

var _ driver.Catcher = (*Ports)(nil)

// Ports are the ports of one host's stations: the twin of driver.Catcher.
type Ports struct {
	mu      sync.Mutex
	plugged map[string]bool
	given   map[string][]driver.Frame
	catches map[*portCatch]bool
	changed chan struct{} // closed when a port is given something
}

// NewPorts returns a host without stations.
func NewPorts() *Ports {
	return &Ports{plugged: map[string]bool{}, given: map[string][]driver.Frame{}, catches: map[*portCatch]bool{}, changed: make(chan struct{})}
}

// Plug gives a station its port, Unplug takes it away.
func (p *Ports) Plug(mac string) { p.plug(mac, true) }

// Unplug takes a station's port away.
func (p *Ports) Unplug(mac string) { p.plug(mac, false) }

func (p *Ports) plug(mac string, in bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.plugged[mac] = in
}

// Send has a frame come to the host from the network. A station that is plugged in
// is given it.
func (p *Ports) Send(frame []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := driver.Frame{Data: slices.Clone(frame), At: time.Now()}
	for mac, in := range p.plugged {
		if m, err := driver.StationMAC(mac); in && err == nil && len(frame) >= 12 && slices.Equal(frame[:6], m) {
			p.give(mac, f)
		}
	}
	for c := range p.catches {
		c.hear(f, p.plugged[c.station.MAC])
	}
}

// Given returns what the station's port was given so far, and a channel that is
// closed with the next.
func (p *Ports) Given(mac string) ([]driver.Frame, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.given[mac]), p.changed
}

// Listening is how many catches are not closed.
func (p *Ports) Listening() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.catches)
}

// give is called with mu held.
func (p *Ports) give(mac string, f driver.Frame) {
	p.given[mac] = append(p.given[mac], f)
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *Ports) has(mac string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.plugged[mac]
}

// Catch implements driver.Catcher.
func (p *Ports) Catch(_ context.Context, s driver.CaughtStation) (driver.Catch, error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	if !p.has(s.MAC) {
		return nil, drover.Errorf(drover.NotFound, "catch", "no station %s is here", s.MAC)
	}
	c := &portCatch{ports: p, station: s, queue: driver.NewCatchQueue()}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.catches[c] = true
	return c, nil
}

// Port implements driver.Catcher.
func (p *Ports) Port(_ context.Context, mac string) (driver.Port, error) {
	if _, err := driver.StationMAC(mac); err != nil {
		return nil, err
	}
	if !p.has(mac) {
		return nil, drover.Errorf(drover.NotFound, "port", "no station %s is here", mac)
	}
	return &memoryPort{p, mac}, nil
}

type memoryPort struct {
	ports *Ports
	mac   string
}

// Give implements driver.Port.
func (m *memoryPort) Give(f driver.Frame) error {
	if err := f.Validate(); err != nil {
		return err
	}
	m.ports.mu.Lock()
	defer m.ports.mu.Unlock()
	if !m.ports.plugged[m.mac] {
		return drover.Errorf(drover.NotFound, "hand over a frame", "station %s has gone", m.mac)
	}
	m.ports.give(m.mac, f)
	return nil
}

// Close implements driver.Port.
func (m *memoryPort) Close() error { return nil }

// portCatch is the frames of one station.
type portCatch struct {
	ports   *Ports
	station driver.CaughtStation
	queue   *driver.CatchQueue
	begun   bool // ports.mu is held
}

// hear is called with ports.mu held.
func (c *portCatch) hear(f driver.Frame, plugged bool) {
	m, err := driver.StationMAC(c.station.MAC)
	if err != nil || f.Validate() != nil || slices.Equal(f.Data[6:12], m) {
		return
	}
	if !slices.Equal(f.Data[:6], m) && (f.Data[0]&1 == 0 || !driver.Asks(f.Data, c.station.Addresses)) {
		return
	}
	if plugged || c.begun {
		c.queue.Put(f)
	}
}

// Start implements driver.Catch.
func (c *portCatch) Start(since time.Time) error {
	c.ports.mu.Lock()
	defer c.ports.mu.Unlock()
	c.begun = true
	c.queue.Start(since)
	return nil
}

// Next implements driver.Catch.
func (c *portCatch) Next(ctx context.Context) ([]driver.Frame, error) { return c.queue.Next(ctx) }

// Dropped implements driver.Catch.
func (c *portCatch) Dropped() int64 { return c.queue.Dropped() }

// Close implements driver.Catch.
func (c *portCatch) Close() error {
	c.ports.mu.Lock()
	defer c.ports.mu.Unlock()
	delete(c.ports.catches, c)
	c.queue.Close()
	return nil
}
