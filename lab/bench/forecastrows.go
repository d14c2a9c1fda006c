package bench

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/forecast"
)

// maxRecord bounds a line of recorded moves: a move with its steps is some 20 KB.
const maxRecord = 1 << 20

// readForecasts reads what an earlier run has recorded.
func readForecasts(path string) ([]forecastRecord, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var all []forecastRecord
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, maxRecord)
	for lines.Scan() {
		var r forecastRecord
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			return nil, drover.Errorf(drover.Invalid, "--replay", "%s: record %d: %v: want what --record has written", path, len(all)+1, err)
		}
		if r.Move.Forecast == nil || r.Move.Forecast.Convergence == nil {
			return nil, drover.Errorf(drover.Invalid, "--replay", "%s: record %d has no forecast", path, len(all)+1)
		}
		all = append(all, r)
	}
	return all, lines.Err()
}

// replayForecasts makes the forecasts of recorded moves anew, each with what the
// moves before it have taught, and judges them.
func replayForecasts(records []forecastRecord) ([]Row, map[string]any) {
	var history []drover.Move
	for i, r := range records {
		f := forecast.New(history, r.Input.Now).Forecast(r.Input)
		records[i].Move.Forecast = &f
		history = append(history, records[i].Move)
	}
	return judgeForecasts(records)
}

// judgeForecasts compares the forecasts that moves were made with with their
// truths; beside that, of what is held out, those of a model that has learned from
// what tunes alone.
func judgeForecasts(records []forecastRecord) (rows []Row, summary map[string]any) {
	var tuning []drover.Move
	for _, r := range records {
		if !r.Setting.HeldOut {
			tuning = append(tuning, r.Move)
		}
		rows = append(rows, r.rows(*r.Move.Forecast, r.split())...)
	}
	var frozen []Row
	for _, r := range records {
		if r.Setting.HeldOut {
			f := forecast.New(tuning, r.Input.Now).Forecast(r.Input)
			frozen = append(frozen, r.rows(f, "held_out_tuned_once")...)
		}
	}
	summary = summariseForecast(rows, "tuning", "held_out")
	for k, v := range summariseForecast(frozen, "held_out_tuned_once") {
		summary[k] = v
	}
	return rows, summary
}

// rows are a move's: one for each figure, and one for whether it converges.
func (r forecastRecord) rows(f drover.Forecast, split string) []Row {
	base := r.simple()
	simple, geometric := forecast.MemoryOverBandwidth(base).Figures(), forecast.Geometric(base)
	common := func() Row {
		return Row{
			"run": r.Run, "vm": r.Setting.Guest, "link": r.Bought.Name, "from": r.Input.From.Site, "method": string(r.Move.Method), "split": split, "fault": "",
			"converged": r.converged(), "will_converge": f.Convergence.Will, "convergence": f.Convergence.Probability, "throttle": r.Throttle,
			"link_bps": int64(r.Bought.Rate), "rtt_ms": r.Bought.RTTMillis, "memory_bytes": int64(r.Input.VM.MemoryBytes),
			"set_bytes": r.Setting.Load.WorkingSetBytes, "dirty_bytes_per_s": r.Setting.Load.RateBytesPerS, "compressible": r.Setting.Load.Compressible,
			"took_s": r.Seconds,
		}
	}
	row := common()
	row["figure"], row["p50"], row["truth"] = "converges", f.Convergence.Probability, 0.0
	if r.converged() {
		row["truth"] = 1.0
	}
	row["right"], row["baseline_geometric_right"] = f.Convergence.Will == r.converged(), geometric.Converges == r.converged()
	rows := []Row{row}
	if !r.done() {
		return rows
	}
	expected := f.Each()
	for i, truth := range r.Move.Measured.Each() {
		v := expected[i].Value
		if v == nil || truth.Value == nil {
			continue
		}
		row := common()
		row["figure"], row["p10"], row["p50"], row["p90"], row["truth"] = truth.Name, v.P10, v.P50, v.P90, *truth.Value
		row["error"], row["point"], row["inside"] = forecast.Error(truth.Name, v.P50, *truth.Value), f.Points[truth.Name], v.Contains(*truth.Value)
		for name, figures := range map[string]map[string]float64{"baseline_memory_over_bandwidth": simple, "baseline_geometric": geometric.Figures()} {
			row[name] = -1.0
			if v, known := figures[truth.Name]; known {
				row[name] = forecast.Error(truth.Name, v, *truth.Value)
			}
		}
		rows = append(rows, row)
	}
	return rows
}

// simple is what the simpler models are told: memory, disks and link by the
// inventory, and how fast the guest writes, as it was set.
func (r forecastRecord) simple() forecast.Input {
	in := r.Input
	in.Signals = drover.Signals{VM: in.VM.Name, UUID: in.VM.UUID, Dirty: r.Setting.curve(in.Now)}
	in.Link = forecast.MeasuredLink(r.Bought, in.From.Site, in.To.Site, in.Now)
	return in
}

// curve is how the guest was told to write: its pages one after another.
func (s forecastSetting) curve(now time.Time) drover.DirtyCurve {
	c := drover.DirtyCurve{At: now, Samples: 1}
	for _, w := range []float64{0.1, 1, 10} {
		c.Points = append(c.Points, drover.DirtyPoint{
			WindowSeconds: w, Bytes: min(float64(s.Load.WorkingSetBytes), w*float64(s.Load.RateBytesPerS)) + guestOwn,
		})
	}
	return c
}

// guestOwn is what the guest's kernel and programs write over and over besides.
const guestOwn = 300e3

// summaryName is a figure of one half.
func summaryName(half, figure string) string { return fmt.Sprintf("%s_%s", half, figure) }
