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
	hairpin, neighbors, extra, remote            *prometheus.Desc

	replicaAge, replicaRPO, replicaOK, replicaRounds, replicaBytes, replicaWire *prometheus.Desc
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
		active:        desc("moves_active", "Moves that have not ended.", "state"),
		endedTotal:    desc("moves_ended_total", "Moves that have ended since the server started.", "method", "state"),
		done:          desc("move_done_bytes", "Guest bytes that the move's step has carried.", "move", "vm"),
		total:         desc("move_size_bytes", "Guest bytes that the move's step has to carry, as far as is known.", "move", "vm"),
		rate:          desc("move_guest_bits_per_second", "What the hypervisor measures that it is carried at.", "move", "vm"),
		hairpin:       desc("vm_hairpin_bits_per_second", "What of a VM that is away from home takes the way through a site where it is not.", "vm", "uuid"),
		neighbors:     desc("vm_neighbors_bits_per_second", "What goes between a VM that is away from home and its neighbours there.", "vm", "uuid"),
		extra:         desc("vm_extra_round_trip_seconds", "What that adds to a round trip.", "vm", "uuid"),
		remote:        desc("vm_remote_io_bits_per_second", "What a VM reads from and writes to disks left behind.", "vm", "uuid"),
		replicaAge:    desc("replica_age_seconds", "How old what the VM's replica is of is; absent while it has no content.", "vm", "to"),
		replicaRPO:    desc("replica_rpo_seconds", "How old it may be.", "vm", "to"),
		replicaOK:     desc("replica_rpo_ok", "1 while it is no older than it may be, else 0.", "vm", "to", "state"),
		replicaRounds: desc("replica_rounds", "Rounds that were completed.", "vm", "to"),
		replicaBytes:  desc("replica_round_bytes", "The disks' bytes that the last round has sent.", "vm", "to"),
		replicaWire:   desc("replica_round_wire_bytes", "What they took on the link.", "vm", "to"),
		hosts:         desc("hosts", "Hosts whose agents are in the server's file.", "up"),
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
	for _, d := range []*prometheus.Desc{m.active, m.endedTotal, m.done, m.total, m.rate, m.hosts, m.hairpin, m.neighbors, m.extra, m.remote, m.replicaAge, m.replicaRPO, m.replicaOK, m.replicaRounds, m.replicaBytes, m.replicaWire} {
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
	m.collectReplicas(ch)
	ctx, cancel := context.WithTimeout(context.Background(), gatherLimit)
	defer cancel()
	moving, err := m.s.moving(ctx)
	if err != nil {
		// What is not known is left out; the journal's trouble is logged elsewhere.
		return
	}
	m.collectVMs(ch, moving)
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

// collectVMs sends what VMs pay that are away from home, or from their disks: of
// a whole fleet those are few. What is not known is left out.
func (m *meter) collectVMs(ch chan<- prometheus.Metric, moving movesByVM) {
	seen := map[string]bool{}
	for _, v := range m.s.fleet.detoured(m.s.fleet.viewVMs(moving), moving) {
		if len(v.Ways) == 0 && v.RemoteIO == nil || seen[v.UUID] {
			continue
		}
		seen[v.UUID] = true // two hosts may have it
		for d, bps := range map[*prometheus.Desc]*int64{m.hairpin: v.HairpinBPS, m.neighbors: v.NeighborsBPS, m.remote: v.RemoteIOBPS} {
			if bps != nil {
				metrics.Gauge(ch, d, float64(*bps), v.Name, v.UUID)
			}
		}
		if v.ExtraRTT != nil {
			metrics.Gauge(ch, m.extra, *v.ExtraRTT/1000, v.Name, v.UUID)
		}
	}
}

// collectReplicas shows the protections, where this server leads.
func (m *meter) collectReplicas(ch chan<- prometheus.Metric) {
	for _, p := range m.s.protector.list() {
		to := p.To.String()
		if p.AgeSeconds != nil {
			metrics.Gauge(ch, m.replicaAge, *p.AgeSeconds, p.VM, to)
		}
		ok := 0.0
		if p.RPOOK {
			ok = 1
		}
		metrics.Gauge(ch, m.replicaRPO, p.RPOSeconds, p.VM, to)
		metrics.Gauge(ch, m.replicaOK, ok, p.VM, to, string(p.State))
		metrics.Gauge(ch, m.replicaRounds, float64(p.Rounds), p.VM, to)
		metrics.Gauge(ch, m.replicaBytes, float64(p.RoundBytes), p.VM, to)
		metrics.Gauge(ch, m.replicaWire, float64(p.RoundWireBytes), p.VM, to)
	}
}
