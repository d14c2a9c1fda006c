package agent

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api/metrics"
)

// meter is the agent's metrics. Its collector reads what is now; nothing is done
// for a metric that nobody reads.
type meter struct {
	a *Agent

	moves *metrics.Moves
	descs meterDescs

	mu sync.Mutex
	// library tells of what is kept of memories and images; nil: nothing is.
	library func() libraryFigures
	// fates are frames by what became of them.
	fates map[string]int64
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
	active, job                                               *prometheus.Desc
	libBytes, libLimit, libSources, libIndex, libLag, libGone *prometheus.Desc
	remainsCount, remainsBytes, remainsLimit                  *prometheus.Desc
	frames                                                    *prometheus.Desc
	surveys, surveysEnded, surveySeconds, contentAsked        *prometheus.Desc
}

// What became of frames that arrived for a guest while it was paused: caught at
// its source, given to it at its destination, or dropped at either for want of
// room or of a guest.
const (
	framesCaught  = "caught"
	framesGiven   = "given"
	framesDropped = "dropped"
)

// frames counts frames.
func (m *meter) frames(fate string, n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fates[fate] += n
}

func newMeter(a *Agent) *meter {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("drover_"+name, help, labels, nil)
	}
	return &meter{
		a: a, fates: map[string]int64{framesCaught: 0, framesGiven: 0, framesDropped: 0}, moves: metrics.NewMoves(func() time.Time { return a.clock() }),
		descs: meterDescs{
			active:       desc("moves_active", "Moves that have a reservation on this host.", "end"),
			job:          desc("jobs_running", "Actions under way on this host."),
			libBytes:     desc("library_bytes", "What is kept of memories, and of catalogues of images and disks."),
			libLimit:     desc("library_limit_bytes", "The most that may be kept."),
			libSources:   desc("library_sources", "Contents that a move may refer to.", "kind"),
			libIndex:     desc("library_indexed_blocks", "Blocks that a move may refer to."),
			libLag:       desc("library_backlog_blocks", "Blocks that have still to be indexed."),
			libGone:      desc("library_evicted_total", "Contents dropped for want of room."),
			remainsCount: desc("remains", "Disks kept of VMs that have left."),
			remainsBytes: desc("remains_bytes", "What they take."),
			remainsLimit: desc("remains_limit_bytes", "The most that they may take."),

			surveys:       desc("signals_surveys_total", "Times that a guest's memory was looked at, or was to be."),
			surveysEnded:  desc("signals_surveys_ended_total", "Of these, those that told nothing: a move was using the guest, or it could not be read."),
			surveySeconds: desc("signals_survey_seconds_total", "How long that kept a processor busy, at most."),
			contentAsked:  desc("signals_content_asked_total", "Questions of other hosts about what there is of a guest's content, answered."),
			frames:        desc("caught_frames_total", "Frames that arrived for guests while they were paused by a move, by what became of them.", "fate"),
		},
	}
}

// report takes over a data path's figures so far.
func (m *meter) report(ref moveRef, f drover.PathFigures, p drover.PathProgress) {
	m.moves.Report(ref.move, ref.vm, f, p)
}

// end takes over the last figures of a data path that has ended.
func (m *meter) end(ref moveRef, f drover.PathFigures) { m.moves.End(ref.move, ref.vm, f) }

// tellLibrary names who tells of the library; it is called for each reading.
func (m *meter) tellLibrary(f func() libraryFigures) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.library = f
}

// Describe implements prometheus.Collector.
func (m *meter) Describe(ch chan<- *prometheus.Desc) {
	m.moves.Describe(ch)
	d := m.descs
	for _, e := range []*prometheus.Desc{
		d.active, d.libBytes, d.libLimit, d.libSources, d.libIndex, d.libLag, d.libGone,
		d.remainsCount, d.remainsBytes, d.remainsLimit, d.job, d.frames,
	} {
		ch <- e
	}
}

// Collect implements prometheus.Collector.
func (m *meter) Collect(ch chan<- prometheus.Metric) {
	m.moves.Collect(ch)
	if m.a.edge() {
		return
	}
	m.collectHost(ch)
	m.collectSignals(ch)
	m.mu.Lock()
	library := m.library
	for fate, n := range m.fates {
		ch <- prometheus.MustNewConstMetric(m.descs.frames, prometheus.CounterValue, float64(n), fate)
	}
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

// collectSignals sends what looking at guests has cost.
func (m *meter) collectSignals(ch chan<- prometheus.Metric) {
	g := m.a.signals
	g.mu.Lock()
	f := g.figures
	g.mu.Unlock()
	count := func(d *prometheus.Desc, v float64) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v)
	}
	count(m.descs.surveys, float64(f.surveys))
	count(m.descs.surveysEnded, float64(f.ended))
	count(m.descs.surveySeconds, f.busy.Seconds())
	count(m.descs.contentAsked, float64(f.asked))
}
