package server

import (
	"context"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api/metrics"
)

// gatherLimit bounds reading the journal for one answer.
const gatherLimit = 5 * time.Second

// meter is the server's metrics: the moves under way as the executor shows them,
// those that have ended since the server started, and the hosts.
type meter struct {
	s     *Server
	moves *metrics.Moves

	mu    sync.Mutex
	ended map[endKey]float64

	active, endedTotal, done, total, rate, hosts *prometheus.Desc
}

// endKey is how moves ended.
type endKey struct {
	method drover.Method
	state  drover.MoveState
}

func newMeter(s *Server) *meter {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("drover_"+name, help, labels, nil)
	}
	return &meter{
		s: s, moves: metrics.NewMoves(s.now), ended: make(map[endKey]float64),
		active:     desc("moves_active", "Moves that have not ended.", "state"),
		endedTotal: desc("moves_ended_total", "Moves that have ended since the server started.", "method", "state"),
		done:       desc("move_done_bytes", "Guest bytes that the move's step has carried.", "move", "vm"),
		total:      desc("move_size_bytes", "Guest bytes that the move's step has to carry, as far as is known.", "move", "vm"),
		rate:       desc("move_guest_bits_per_second", "What the hypervisor measures that it is carried at.", "move", "vm"),
		hosts:      desc("hosts", "Hosts whose agents are in the server's file.", "up"),
	}
}

// end counts a move that has ended.
func (m *meter) end(v drover.Move) {
	m.mu.Lock()
	m.ended[endKey{v.Method, v.State}]++
	m.mu.Unlock()
	if v.Measured.Path != nil {
		m.moves.End(v.Name, v.VM, *v.Measured.Path)
	}
}

// Describe implements prometheus.Collector.
func (m *meter) Describe(ch chan<- *prometheus.Desc) {
	m.moves.Describe(ch)
	for _, d := range []*prometheus.Desc{m.active, m.endedTotal, m.done, m.total, m.rate, m.hosts} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m *meter) Collect(ch chan<- prometheus.Metric) {
	m.moves.Collect(ch)
	m.mu.Lock()
	for k, n := range m.ended {
		ch <- prometheus.MustNewConstMetric(m.endedTotal, prometheus.CounterValue, n, string(k.method), string(k.state))
	}
	m.mu.Unlock()
	up := map[bool]int{true: 0, false: 0}
	for _, h := range m.s.fleet.viewHosts(nil) {
		up[h.Up]++
	}
	for is, n := range up {
		metrics.Gauge(ch, m.hosts, float64(n), strconv.FormatBool(is))
	}
	ctx, cancel := context.WithTimeout(context.Background(), gatherLimit)
	defer cancel()
	moving, err := m.s.moving(ctx)
	if err != nil {
		// What is not known is left out; the journal's trouble is logged elsewhere.
		return
	}
	states := map[drover.MoveState]int{drover.MovePending: 0, drover.MoveRunning: 0, drover.MoveUndoing: 0}
	for _, v := range moving {
		states[v.State]++
		p := v.Progress
		if p == nil {
			continue
		}
		metrics.Gauge(ch, m.done, float64(p.DoneBytes), v.Name, v.VM)
		metrics.Gauge(ch, m.total, float64(p.TotalBytes), v.Name, v.VM)
		metrics.Gauge(ch, m.rate, float64(p.Rate), v.Name, v.VM)
		if p.Path != nil {
			m.moves.Progress(ch, v.Name, v.VM, *p.Path)
		}
	}
	for state, n := range states {
		metrics.Gauge(ch, m.active, float64(n), string(state))
	}
}
