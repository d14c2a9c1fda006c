package metrics_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api/metrics"
)

// gather returns the metrics by name.
func gather(t *testing.T, c prometheus.Collector) map[string][]*dto.Metric {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(c)
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string][]*dto.Metric)
	for _, f := range families {
		all[f.GetName()] = f.GetMetric()
	}
	return all
}

// sum adds up the counters of a name.
func sum(ms []*dto.Metric) float64 {
	v := 0.0
	for _, m := range ms {
		v += m.GetCounter().GetValue()
	}
	return v
}

// TestMoves: moves that have ended are shown for a while, the oldest of many not
// so long; the sum keeps all of them, and never falls.
func TestMoves(t *testing.T) {
	now := time.Unix(1e9, 0)
	m := metrics.NewMoves(func() time.Time { return now })
	f := drover.PathFigures{Memory: drover.PathPhase{WireBytes: 1000}}
	check := func(what string, moves int, wire float64) {
		t.Helper()
		all := gather(t, m)
		if n := len(all["drover_move_path_cuts_total"]); n != 3*moves {
			t.Errorf("%s: %d series, want those of three phases of %d moves", what, n, moves)
		}
		if got := sum(all["drover_path_wire_bytes_total"]); got != wire {
			t.Errorf("%s: the sum is %v, want %v", what, got, wire)
		}
	}
	check("none", 0, 0)
	m.Report("a", "vm", f, drover.PathProgress{WireRate: 5})
	if all := gather(t, m); len(all["drover_move_wire_bits_per_second"]) != 1 || all["drover_move_wire_bits_per_second"][0].GetGauge().GetValue() != 5 {
		t.Errorf("rate: %v", all["drover_move_wire_bits_per_second"])
	}
	now = now.Add(time.Hour)
	check("while it runs, however long", 1, 1000)
	f.Memory.WireBytes = 2000
	m.End("a", "vm", f)
	check("ended", 1, 2000)
	if all := gather(t, m); len(all["drover_move_wire_bits_per_second"]) != 0 {
		t.Errorf("rate of a move that has ended: %v", all["drover_move_wire_bits_per_second"])
	}
	now = now.Add(time.Hour)
	check("later", 0, 2000)
	for i := range 100 {
		m.End(fmt.Sprintf("b%d", i), "vm", f)
	}
	check("of many", 64, 101*2000)
}
