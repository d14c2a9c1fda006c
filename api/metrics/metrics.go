// Package metrics is how agents and servers show themselves to Prometheus: a
// registry with the process's own metrics, a plain HTTP listener for it, and the
// data path's figures in Prometheus's terms.
//
// What else there is to show, and what it means, is its user's. Nothing is
// registered globally.
package metrics

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/drover-vm/drover"
)

const (
	// headerLimit and scrapeLimit bound a request's head and its answer:
	// Prometheus asks every few seconds and waits ten.
	headerLimit = 5 * time.Second
	scrapeLimit = 10 * time.Second
	// maxScrapes bounds the answers in the making: each gathers everything.
	maxScrapes = 4
)

// NewRegistry returns a registry with the process's and the Go runtime's metrics
// and those of the collectors given, which must not clash.
func NewRegistry(cs ...prometheus.Collector) *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), collectors.NewGoCollector())
	r.MustRegister(cs...)
	return r
}

// Listen opens the listener of a Serve. drover.Unavailable: the address is taken,
// or not this machine's.
func Listen(ctx context.Context, addr string) (net.Listener, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	return l, drover.E(drover.Unavailable, "metrics", err)
}

// Serve answers GET /metrics on l until ctx ends, which is no error, and closes
// l. It speaks plain HTTP: whoever reaches the address reads the metrics.
func Serve(ctx context.Context, l net.Listener, g prometheus.Gatherer, log *slog.Logger) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(g, promhttp.HandlerOpts{
		ErrorLog: logger{log}, ErrorHandling: promhttp.ContinueOnError,
		MaxRequestsInFlight: maxScrapes, Timeout: scrapeLimit,
	}))
	s := &http.Server{
		Handler: mux, ReadHeaderTimeout: headerLimit, ReadTimeout: scrapeLimit, WriteTimeout: 2 * scrapeLimit,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	err := s.Serve(l)
	if errors.Is(err, http.ErrServerClosed) || ctx.Err() != nil {
		return nil
	}
	return drover.E(drover.Internal, "serve metrics", err)
}

// logger writes what promhttp finds wrong.
type logger struct{ log *slog.Logger }

func (l logger) Println(v ...any) { l.log.Warn("metrics", "err", v) }

// Path turns the data path's figures into metrics, by phase and kind.
type Path struct {
	guest, wire, blocks                         *prometheus.Desc // by kind
	total, resent, cuts, cut, missed, cpu, took *prometheus.Desc
}

// NewPath returns metrics whose names begin with prefix and which have the labels
// given before their own.
func NewPath(prefix string, labels ...string) *Path {
	desc := func(name, help string, more ...string) *prometheus.Desc {
		all := append(append(append([]string(nil), labels...), "phase"), more...)
		return prometheus.NewDesc(prefix+"_"+name, help, all, nil)
	}
	return &Path{
		guest:  desc("guest_bytes_total", "Guest bytes carried, by the way in which their blocks crossed.", "kind"),
		wire:   desc("batch_bytes_total", "Bytes that the blocks took in batches, before framing and encryption.", "kind"),
		blocks: desc("blocks_total", "Blocks of 4 KiB carried.", "kind"),
		total:  desc("wire_bytes_total", "Bytes on the wire in both directions, without TCP's and IP's headers."),
		resent: desc("retransmitted_bytes_total", "Bytes that the data path sent again."),
		cuts:   desc("cuts_total", "Times at which no connection was left."),
		cut:    desc("cut_seconds_total", "Seconds during which no connection was there."),
		missed: desc("missed_references_total", "Blocks that the destination turned out not to have."),
		cpu:    desc("cpu_seconds_total", "Seconds that the source's end computed."),
		took:   desc("seconds_total", "Seconds that the phase took."),
	}
}

// Describe sends what Collect may.
func (p *Path) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{p.guest, p.wire, p.blocks, p.total, p.resent, p.cuts, p.cut, p.missed, p.cpu, p.took} {
		ch <- d
	}
}

// Collect sends the figures with values for the labels.
func (p *Path) Collect(ch chan<- prometheus.Metric, f drover.PathFigures, labels ...string) {
	for _, e := range []struct {
		name  string
		phase drover.PathPhase
	}{{"disk", f.Disk}, {"memory", f.Memory}, {"switchover", f.Switchover}} {
		with := append(append([]string(nil), labels...), e.name)
		send := func(d *prometheus.Desc, v float64, more ...string) {
			ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, append(with[:len(with):len(with)], more...)...)
		}
		q := e.phase
		send(p.total, float64(q.WireBytes))
		send(p.resent, float64(q.RetransmittedBytes))
		send(p.cuts, float64(q.Cuts))
		send(p.cut, q.CutSeconds)
		send(p.missed, float64(q.MissedReferences))
		send(p.cpu, q.CPUSeconds)
		send(p.took, q.Seconds)
		for _, k := range q.Kinds.Each() {
			send(p.guest, float64(k.GuestBytes), k.Name)
			send(p.wire, float64(k.WireBytes), k.Name)
			send(p.blocks, float64(k.Blocks), k.Name)
		}
	}
}

// Gauge sends a value that may rise and fall.
func Gauge(ch chan<- prometheus.Metric, d *prometheus.Desc, v float64, labels ...string) {
	ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
}
