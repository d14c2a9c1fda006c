package agent

import (
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api/metrics"
)

const (
	// keepEnded is how long an ended move is shown by itself, so that Prometheus
	// has read its last figures: at the usual minute between two looks, five of
	// them.
	keepEnded = 5 * time.Minute
	// maxShown bounds the moves shown by themselves: each is a hundred series.
	maxShown = 64
)

// meter is the agent's metrics. Its collector reads what is now; nothing is done
// for a metric that nobody reads.
type meter struct {
	a *Agent

	mu    sync.Mutex
	moves map[string]*metered
	// past is the sum over the moves that are not shown any more.
	past drover.PathFigures
	// library tells of what is kept of memories and images; nil: nothing is.
	library func() libraryFigures

	path, sum *metrics.Path
	descs     meterDescs
}

// metered is one move's data path.
type metered struct {
	vm       string
	figures  drover.PathFigures
	progress drover.PathProgress
	ended    time.Time // zero while it sends
}

// libraryFigures are what the library of known content holds.
type libraryFigures struct {
	Bytes, LimitBytes drover.Bytes
	// Sources by kind: image, memory, disk.
	Sources map[string]int
	// IndexedBlocks can be referred to, BacklogBlocks are still to be indexed.
	IndexedBlocks, BacklogBlocks int64
	// Evicted sources since the agent started.
	Evicted int64
}

type meterDescs struct {
	active, job, rate, limit, cut, throttle                   *prometheus.Desc
	libBytes, libLimit, libSources, libIndex, libLag, libGone *prometheus.Desc
	remainsCount, remainsBytes, remainsLimit                  *prometheus.Desc
}

func newMeter(a *Agent) *meter {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("drover_"+name, help, labels, nil)
	}
	return &meter{
		a: a, moves: make(map[string]*metered),
		path: metrics.NewPath("drover_move_path", "move", "vm"),
		sum:  metrics.NewPath("drover_path"),
		descs: meterDescs{
			active:       desc("moves_active", "Moves that have a reservation on this host.", "end"),
			job:          desc("jobs_running", "Actions under way on this host."),
			rate:         desc("move_wire_bits_per_second", "What the wire carries for the move now.", "move", "vm"),
			limit:        desc("move_limit_bits_per_second", "The most that the wire may carry for the move; 0 is unlimited.", "move", "vm"),
			cut:          desc("move_cut_seconds", "How long the move has had no connection; 0 while it has one.", "move", "vm"),
			throttle:     desc("move_throttle_percent", "By how much the guest's processors are held back.", "move", "vm"),
			libBytes:     desc("library_bytes", "What is kept of memories, and of catalogues of images and disks."),
			libLimit:     desc("library_limit_bytes", "The most that may be kept."),
			libSources:   desc("library_sources", "Contents that a move may refer to.", "kind"),
			libIndex:     desc("library_indexed_blocks", "Blocks that a move may refer to."),
			libLag:       desc("library_backlog_blocks", "Blocks that have still to be indexed."),
			libGone:      desc("library_evicted_total", "Contents dropped for want of room."),
			remainsCount: desc("remains", "Disks kept of VMs that have left."),
			remainsBytes: desc("remains_bytes", "What they take."),
			remainsLimit: desc("remains_limit_bytes", "The most that they may take."),
		},
	}
}

// report takes over a data path's figures so far.
func (m *meter) report(ref moveRef, f drover.PathFigures, p drover.PathProgress) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.moves[ref.move] = &metered{vm: ref.vm, figures: f, progress: p}
	m.forget()
}

// end takes over the last figures of a data path that has ended.
func (m *meter) end(ref moveRef, f drover.PathFigures) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.moves[ref.move] = &metered{vm: ref.vm, figures: f, ended: m.a.clock()}
	m.forget()
}

// tellLibrary names who tells of the library; it is called for each reading.
func (m *meter) tellLibrary(f func() libraryFigures) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.library = f
}

// forget adds to the past what has been shown for long enough; m.mu is held.
func (m *meter) forget() {
	now := m.a.clock()
	var ended []string
	for name, e := range m.moves {
		if !e.ended.IsZero() {
			ended = append(ended, name)
		}
	}
	slices.SortFunc(ended, func(x, y string) int { return m.moves[x].ended.Compare(m.moves[y].ended) })
	for _, name := range ended {
		if e := m.moves[name]; now.Sub(e.ended) >= keepEnded || len(m.moves) > maxShown {
			m.past = m.past.Plus(e.figures)
			delete(m.moves, name)
		}
	}
}

// Describe implements prometheus.Collector.
func (m *meter) Describe(ch chan<- *prometheus.Desc) {
	m.path.Describe(ch)
	m.sum.Describe(ch)
	d := m.descs
	for _, e := range []*prometheus.Desc{
		d.active, d.rate, d.limit, d.cut, d.throttle, d.libBytes, d.libLimit, d.libSources, d.libIndex, d.libLag, d.libGone,
		d.remainsCount, d.remainsBytes, d.remainsLimit, d.job,
	} {
		ch <- e
	}
}

// Collect implements prometheus.Collector.
func (m *meter) Collect(ch chan<- prometheus.Metric) {
	m.collectPaths(ch)
	if m.a.edge() {
		return
	}
	m.collectHost(ch)
	m.mu.Lock()
	library := m.library
	m.mu.Unlock()
	if library == nil {
		return
	}
	l, d := library(), m.descs
	metrics.Gauge(ch, d.libBytes, float64(l.Bytes))
	metrics.Gauge(ch, d.libLimit, float64(l.LimitBytes))
	metrics.Gauge(ch, d.libIndex, float64(l.IndexedBlocks))
	metrics.Gauge(ch, d.libLag, float64(l.BacklogBlocks))
	ch <- prometheus.MustNewConstMetric(d.libGone, prometheus.CounterValue, float64(l.Evicted))
	for kind, n := range l.Sources {
		metrics.Gauge(ch, d.libSources, float64(n), kind)
	}
}

// collectPaths sends each move's data path, and the sum over all since the start.
func (m *meter) collectPaths(ch chan<- prometheus.Metric) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.forget()
	sum, d := m.past, m.descs
	for move, e := range m.moves {
		sum = sum.Plus(e.figures)
		m.path.Collect(ch, e.figures, move, e.vm)
		if e.ended.IsZero() {
			metrics.Gauge(ch, d.rate, float64(e.progress.WireRate), move, e.vm)
			metrics.Gauge(ch, d.limit, float64(e.progress.Limit), move, e.vm)
			metrics.Gauge(ch, d.cut, e.progress.CutSeconds, move, e.vm)
			metrics.Gauge(ch, d.throttle, float64(e.progress.ThrottlePercent), move, e.vm)
		}
	}
	m.sum.Collect(ch, sum)
}

// collectHost sends what the journal and the volumes' folders say.
func (m *meter) collectHost(ch chan<- prometheus.Metric) {
	d := m.descs
	if all, err := m.a.journal.moves(); err == nil {
		ends := map[string]float64{"source": 0, "target": 0}
		for _, r := range all {
			if r.Target {
				ends["target"]++
			} else {
				ends["source"]++
			}
		}
		for end, n := range ends {
			metrics.Gauge(ch, d.active, n, end)
		}
	}
	metrics.Gauge(ch, d.job, float64(m.a.jobs.count()))
	if all, err := m.a.remains.list(""); err == nil {
		var sum drover.Bytes
		for _, r := range all {
			sum += r.AllocatedBytes
		}
		metrics.Gauge(ch, d.remainsCount, float64(len(all)))
		metrics.Gauge(ch, d.remainsBytes, float64(sum))
		metrics.Gauge(ch, d.remainsLimit, float64(m.a.config.Remains.limit()))
	}
}
