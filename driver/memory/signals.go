package memory

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// Signals are the signals of one host of a Fleet. What they say of a VM is what
// was set; whether it runs is the hypervisor's to say.
type Signals struct {
	h *Hypervisor

	mu       sync.Mutex
	counters map[string]driver.VMCounters
	memories map[string]*Pages
	idle     time.Duration
	all      time.Duration
	// tick is added to every running VM's CPU time, and to the host's, at each
	// reading.
	tick time.Duration
}

var _ driver.Signals = (*Signals)(nil)

// NewSignals returns the signals of a host. Each reading finds time passed by
// tick.
func NewSignals(h *Hypervisor, tick time.Duration) *Signals {
	return &Signals{h: h, counters: map[string]driver.VMCounters{}, memories: map[string]*Pages{}, tick: tick}
}

// SetCounters sets what Counters says of a VM; name, UUID and, where zero, time,
// processors and memory are filled in from the VM's definition.
func (s *Signals) SetCounters(name string, c driver.VMCounters) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counters[name] = c
}

// SetMemory gives a VM a memory that can be looked at.
func (s *Signals) SetMemory(name string, p *Pages) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.memories[name] = p
}

// Counters implements driver.Signals.
func (s *Signals) Counters(ctx context.Context) ([]driver.VMCounters, error) {
	if err := ctx.Err(); err != nil {
		return nil, drover.E(drover.Canceled, "read counters", err)
	}
	vms, err := s.h.List(ctx)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []driver.VMCounters
	for _, vm := range vms {
		if !active(vm.State) {
			continue
		}
		c := s.counters[vm.Name]
		c.CPUTime += s.tick
		s.counters[vm.Name] = c
		c.Name, c.UUID = vm.Name, vm.UUID
		if c.At.IsZero() {
			c.At = s.h.fleet.clock()
		}
		if c.VCPUs == 0 {
			c.VCPUs = vm.VCPUs
		}
		if c.MemoryBytes == 0 {
			c.MemoryBytes = vm.MemoryBytes
		}
		if c.ResidentBytes == 0 {
			c.ResidentBytes = vm.MemoryBytes
		}
		all = append(all, c)
	}
	return all, nil
}

// Processors implements driver.Signals: half of the time they are idle.
func (s *Signals) Processors(context.Context) (idle, all time.Duration, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.idle, s.all = s.idle+s.tick, s.all+2*s.tick
	return s.idle, s.all, nil
}

// Memory implements driver.Signals.
func (s *Signals) Memory(ctx context.Context, name string) (driver.GuestMemory, error) {
	op := "open memory of " + name
	if err := drover.CheckName("vm", name); err != nil {
		return nil, err
	}
	vm, err := s.h.VM(ctx, name)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.memories[name]
	switch {
	case !active(vm.State):
		return nil, drover.Errorf(drover.Refused, op, "it does not run")
	case p == nil:
		return nil, drover.Errorf(drover.Refused, op, "it has none that can be looked at")
	}
	return &pagesView{s: s, name: name, p: p}, nil
}

// Close implements driver.Signals.
func (s *Signals) Close() error { return nil }

// Pages is a guest's memory that may be written to while it is looked at. Pages
// that were never written are absent.
type Pages struct {
	mu    sync.Mutex
	n     int64
	data  map[int64][]byte
	away  map[int64]bool
	reads int64
	// OnRead is called before each page that is read, with no lock held; nil is
	// not.
	OnRead func(page int64)
}

// NewPages returns a memory of n pages, all absent.
func NewPages(n int64) *Pages {
	return &Pages{n: n, data: map[int64][]byte{}, away: map[int64]bool{}}
}

// Write gives a page a content of driver.PageBytes.
func (p *Pages) Write(page int64, content []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.data[page] = slices.Clone(content)
	delete(p.away, page)
}

// PutAway makes the host put a page elsewhere.
func (p *Pages) PutAway(page int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.away[page] = true
}

// Reads is how many pages were read.
func (p *Pages) Reads() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.reads
}

// Present returns the pages that have a content, in order.
func (p *Pages) Present() []int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Sorted(maps.Keys(p.data))
}

// pagesView is one look at a guest's memory.
type pagesView struct {
	s    *Signals
	name string
	p    *Pages
}

func (v *pagesView) Pages() int64 { return v.p.n }

// check refuses pages that are not there, and a VM that has ended.
func (v *pagesView) check(page int64) error {
	if page < 0 || page >= v.p.n {
		return drover.Errorf(drover.Invalid, "read memory of "+v.name, "page %d: it has %d", page, v.p.n)
	}
	vm, err := v.s.h.VM(context.Background(), v.name)
	if err == nil && active(vm.State) {
		return nil
	}
	return drover.Errorf(drover.NotFound, "read memory of "+v.name, "it has ended")
}

func (v *pagesView) State(page int64) (driver.PageState, error) {
	if err := v.check(page); err != nil {
		return driver.PageAbsent, err
	}
	v.p.mu.Lock()
	defer v.p.mu.Unlock()
	switch {
	case v.p.away[page]:
		return driver.PageAway, nil
	case v.p.data[page] != nil:
		return driver.PagePresent, nil
	}
	return driver.PageAbsent, nil
}

func (v *pagesView) Read(page int64, p []byte) error {
	if err := v.check(page); err != nil {
		return err
	}
	if len(p) != driver.PageBytes {
		return drover.Errorf(drover.Invalid, "read memory of "+v.name, "%d bytes: want a page of %d", len(p), driver.PageBytes)
	}
	if f := v.p.OnRead; f != nil {
		f(page)
	}
	v.p.mu.Lock()
	defer v.p.mu.Unlock()
	v.p.reads++
	content := v.p.data[page]
	if content == nil {
		// To read it has made it, which is what nobody should do.
		content = make([]byte, driver.PageBytes)
		v.p.data[page] = content
	}
	copy(p, content)
	return nil
}

func (v *pagesView) Close() error { return nil }
