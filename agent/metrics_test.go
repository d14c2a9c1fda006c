package agent

import (
	"bytes"
	"context"
	"io"
	"math"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/api/metrics"
)

// scraped are the metrics of one answer.
type scraped map[string]*dto.MetricFamily

// scrape reads the agent's metrics as Prometheus does.
func (h *host) scrape() scraped {
	t := h.w.t
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	a := h.current().agent
	go func() { ended <- metrics.Serve(ctx, l, metrics.NewRegistry(a.metrics), h.w.log) }()
	defer func() {
		cancel()
		must(t, <-ended)
	}()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + l.Addr().String() + "/metrics")
	must(t, err)
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	must(t, err)
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s", resp.Status, raw)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(raw))
	must(t, err)
	return families
}

// value is that of the metric with the labels, "name=value" each; NaN where
// there is none.
func (s scraped) value(name string, labels ...string) float64 {
	f := s[name]
	if f == nil {
		return math.NaN()
	}
	for _, m := range f.GetMetric() {
		has := make(map[string]bool)
		for _, l := range m.GetLabel() {
			has[l.GetName()+"="+l.GetValue()] = true
		}
		all := len(has) == len(labels)
		for _, l := range labels {
			all = all && has[l]
		}
		if all {
			return m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return math.NaN()
}

func TestMetrics(t *testing.T) {
	w := newWorld(t)
	w.addVM()
	h := w.hosts["north1"]
	a := h.current().agent
	ref := moveRef{moveName, 1, vmName, vmUUID}
	f := drover.PathFigures{
		Disk: drover.PathPhase{WireBytes: 5},
		Memory: drover.PathPhase{
			Seconds: 2, GuestBytes: 4096 * 3, WireBytes: 1000, RetransmittedBytes: 10, Cuts: 1, CutSeconds: 2.5, MissedReferences: 4, CPUSeconds: 0.5,
			Kinds: drover.PathKinds{
				Reference:  drover.PathCount{Blocks: 2, GuestBytes: 8192, WireBytes: 4},
				Compressed: drover.PathCount{Blocks: 1, GuestBytes: 4096, WireBytes: 900},
			},
		},
	}
	a.metrics.tellLibrary(func() libraryFigures {
		return libraryFigures{Bytes: 100, LimitBytes: 1000, Sources: map[string]int{"image": 2, "memory": 1}, IndexedBlocks: 50, BacklogBlocks: 7, Evicted: 3}
	})
	h.keep("move-0", "other", "/images/old.raw", 2)
	w.ask("north1", "reserve-source", 1, &droverv1.Reserve{})
	a.metrics.report(ref, drover.PathFigures{}, drover.PathProgress{})
	a.metrics.report(ref, f, drover.PathProgress{WireRate: drover.Mbps, Limit: 2 * drover.Mbps, CutSeconds: 1.5, ThrottlePercent: 30})
	check := func(what string, s scraped, want map[string]float64) {
		t.Helper()
		for series, v := range want {
			parts := strings.Fields(series)
			if got := s.value(parts[0], parts[1:]...); got != v && !(math.IsNaN(got) && math.IsNaN(v)) {
				t.Errorf("%s: %s is %v, want %v", what, series, got, v)
			}
		}
	}
	const labels = " move=" + moveName + " vm=" + vmName
	sums := map[string]float64{
		"drover_path_guest_bytes_total phase=memory kind=reference":  8192,
		"drover_path_batch_bytes_total phase=memory kind=compressed": 900,
		"drover_path_blocks_total phase=memory kind=zero":            0,
		"drover_path_wire_bytes_total phase=memory":                  1000,
		"drover_path_wire_bytes_total phase=disk":                    5,
		"drover_path_wire_bytes_total phase=switchover":              0,
		"drover_path_retransmitted_bytes_total phase=memory":         10,
		"drover_path_cuts_total phase=memory":                        1,
		"drover_path_cut_seconds_total phase=memory":                 2.5,
		"drover_path_missed_references_total phase=memory":           4,
		"drover_path_cpu_seconds_total phase=memory":                 0.5,
		"drover_path_seconds_total phase=memory":                     2,
	}
	s := h.scrape()
	check("while it sends", s, sums)
	check("while it sends", s, map[string]float64{
		"drover_move_path_guest_bytes_total phase=memory kind=reference" + labels: 8192,
		"drover_move_path_wire_bytes_total phase=memory" + labels:                 1000,
		"drover_move_wire_bits_per_second" + labels:                               1e6,
		"drover_move_limit_bits_per_second" + labels:                              2e6,
		"drover_move_cut_seconds" + labels:                                        1.5,
		"drover_move_throttle_percent" + labels:                                   30,
		"drover_moves_active end=source":                                          1,
		"drover_moves_active end=target":                                          0,
		"drover_jobs_running":                                                     0,
		"drover_library_bytes":                                                    100,
		"drover_library_limit_bytes":                                              1000,
		"drover_library_sources kind=image":                                       2,
		"drover_library_indexed_blocks":                                           50,
		"drover_library_backlog_blocks":                                           7,
		"drover_library_evicted_total":                                            3,
		"drover_remains":                                                          1,
		"drover_remains_bytes":                                                    2 * 64 << 10,
		"drover_remains_limit_bytes":                                              float64(DefaultRemainsLimit),
	})
	for _, name := range []string{"process_cpu_seconds_total", "process_resident_memory_bytes", "go_goroutines"} {
		if s[name] == nil {
			t.Errorf("no %s", name)
		}
	}
	a.metrics.end(ref, f)
	s = h.scrape()
	check("when it has ended", s, sums)
	check("when it has ended", s, map[string]float64{
		"drover_move_path_wire_bytes_total phase=memory" + labels: 1000, "drover_move_wire_bits_per_second" + labels: math.NaN(),
	})
}

// TestMetricsListener: an agent whose file names an address answers there, and
// one whose address is taken does not start.
func TestMetricsListener(t *testing.T) {
	w := newWorld(t)
	h := w.hosts["north1"]
	h.stop()
	h.metrics = freeAddress(t)
	h.start()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	var resp *http.Response
	var err error
	for range 500 {
		if resp, err = client.Get("http://" + h.metrics + "/metrics"); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	must(t, err)
	raw, err := io.ReadAll(resp.Body)
	must(t, err)
	must(t, resp.Body.Close())
	if resp.StatusCode != http.StatusOK || !bytes.Contains(raw, []byte("\ndrover_moves_active{end=\"source\"} 0\n")) {
		t.Errorf("%s: %.300s", resp.Status, raw)
	}
	for path, want := range map[string]int{"/": http.StatusNotFound, "/metrics/x": http.StatusNotFound} {
		resp, err := client.Get("http://" + h.metrics + path)
		must(t, err)
		must(t, resp.Body.Close())
		if resp.StatusCode != want {
			t.Errorf("%s: %s", path, resp.Status)
		}
	}
	// The same address once more is refused.
	l, err := metrics.Listen(t.Context(), h.metrics)
	if drover.KindOf(err) != drover.Unavailable {
		t.Errorf("listen: %v, %v", l, err)
	}
}
