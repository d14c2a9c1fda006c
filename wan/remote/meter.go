package remote

import (
	"slices"
	"sync"
	"time"
)

const (
	// recent is how long an operation counts for the latency that is shown.
	recent = 10 * time.Second
	// maxRecent bounds the operations that are remembered for it: more a second
	// than a WAN lets a guest wait for.
	maxRecent = 4096
)

// Figures are what a guest has read from and written to a disk, and how long it
// waited for it.
type Figures struct {
	ReadBytes, WrittenBytes int64
	// Operations are all, those without bytes (flush, trim) included.
	Operations int64
	// Mean and P95 are over the operations of the last seconds; zero when there
	// were none. Latencies are those of them, for figures over several disks.
	Mean, P95 time.Duration
	Latencies []time.Duration
}

// Plus adds another disk's figures.
func (f Figures) Plus(g Figures) Figures {
	f.ReadBytes += g.ReadBytes
	f.WrittenBytes += g.WrittenBytes
	f.Operations += g.Operations
	f.Latencies = slices.Concat(f.Latencies, g.Latencies)
	f.Mean, f.P95 = summary(f.Latencies)
	return f
}

// summary returns the mean and the 95th percentile (nearest rank).
func summary(all []time.Duration) (mean, p95 time.Duration) {
	if len(all) == 0 {
		return 0, 0
	}
	sorted := slices.Sorted(slices.Values(all))
	var sum time.Duration
	for _, d := range sorted {
		sum += d
	}
	return sum / time.Duration(len(sorted)), sorted[(len(sorted)*95+99)/100-1]
}

type operation int

const (
	opRead operation = iota
	opWrite
	opOther
)

// meter counts a disk's operations.
type meter struct {
	clock func() time.Time

	mu    sync.Mutex
	total Figures
	ring  []sample
	next  int
}

type sample struct {
	at   time.Time
	took time.Duration
}

func (m *meter) count(kind operation, n int, took time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.total.Operations++
	switch kind {
	case opRead:
		m.total.ReadBytes += int64(n)
	case opWrite:
		m.total.WrittenBytes += int64(n)
	}
	s := sample{m.clock(), took}
	if len(m.ring) < maxRecent {
		m.ring = append(m.ring, s)
		return
	}
	m.ring[m.next] = s
	m.next = (m.next + 1) % maxRecent
}

func (m *meter) figures() Figures {
	m.mu.Lock()
	defer m.mu.Unlock()
	f := m.total
	since := m.clock().Add(-recent)
	for _, s := range m.ring {
		if s.at.After(since) {
			f.Latencies = append(f.Latencies, s.took)
		}
	}
	f.Mean, f.P95 = summary(f.Latencies)
	return f
}
