package metrics

import (
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/drover-vm/drover"
)

const (
	// keepEnded is how long an ended move is shown by itself, so that Prometheus
	// has read its last figures: at the usual minute between two looks, five of
	// them.
	keepEnded = 5 * time.Minute
	// maxShown bounds the moves shown by themselves: each is a hundred series.
	maxShown = 64
)

// Moves are the data paths of moves: each by itself while it runs and for a while
// after, and the sum over all since the process started. Its methods may be
// called concurrently.
type Moves struct {
	now func() time.Time

	mu    sync.Mutex
	moves map[string]*shown
	// past is the sum over the moves that are not shown any more.
	past drover.PathFigures

	path, sum                  *Path
	rate, limit, cut, throttle *prometheus.Desc
}

// shown is one move's data path.
type shown struct {
	vm       string
	figures  drover.PathFigures
	progress drover.PathProgress
	ended    time.Time // zero while it sends
}

// NewMoves returns metrics of moves of which there are none yet.
func NewMoves(now func() time.Time) *Moves {
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("drover_move_"+name, help, []string{"move", "vm"}, nil)
	}
	return &Moves{
		now: now, moves: make(map[string]*shown),
		path: NewPath("drover_move_path", "move", "vm"), sum: NewPath("drover_path"),
		rate:     desc("wire_bits_per_second", "What the wire carries for the move now."),
		limit:    desc("limit_bits_per_second", "The most that the wire may carry for the move; 0 is unlimited."),
		cut:      desc("cut_seconds", "How long the move has had no connection; 0 while it has one."),
		throttle: desc("throttle_percent", "By how much the guest's processors are held back."),
	}
}

// Report takes over a data path's figures so far.
func (m *Moves) Report(move, vm string, f drover.PathFigures, p drover.PathProgress) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.moves[move] = &shown{vm: vm, figures: f, progress: p}
	m.forget()
}

// End takes over the last figures of a data path that has ended.
func (m *Moves) End(move, vm string, f drover.PathFigures) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.moves[move] = &shown{vm: vm, figures: f, ended: m.now()}
	m.forget()
}

// forget adds to the past what has been shown for long enough; m.mu is held.
func (m *Moves) forget() {
	now := m.now()
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
func (m *Moves) Describe(ch chan<- *prometheus.Desc) {
	m.path.Describe(ch)
	m.sum.Describe(ch)
	for _, d := range []*prometheus.Desc{m.rate, m.limit, m.cut, m.throttle} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m *Moves) Collect(ch chan<- prometheus.Metric) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.forget()
	sum := m.past
	for move, e := range m.moves {
		sum = sum.Plus(e.figures)
		m.path.Collect(ch, e.figures, move, e.vm)
		if e.ended.IsZero() {
			m.Progress(ch, move, e.vm, e.progress)
		}
	}
	m.sum.Collect(ch, sum)
}

// Progress sends what a move's data path is doing, for users that know that
// alone of a move that runs.
func (m *Moves) Progress(ch chan<- prometheus.Metric, move, vm string, p drover.PathProgress) {
	Gauge(ch, m.rate, float64(p.WireRate), move, vm)
	Gauge(ch, m.limit, float64(p.Limit), move, vm)
	Gauge(ch, m.cut, p.CutSeconds, move, vm)
	Gauge(ch, m.throttle, float64(p.ThrottlePercent), move, vm)
}
