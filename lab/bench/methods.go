package bench

import (
	"context"
	"errors"
	"fmt"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/lab/guest/control"
	"github.com/drover-vm/drover/lab/trial"
)

// outageOverPause is what a client may notice beyond the guest's own pause in
// a live move inside one segment, in milliseconds.
const outageOverPause = 500

// methods moves a guest that dirties 10 MB/s of memory and writes to its disk
// back and forth between two sites, by each method, under a client's probe.
func methods(ctx context.Context, o Options) (rows []Row, summary map[string]any, err error) {
	if o.Runs == 0 {
		o.Runs = 20
	}
	if o.LabFile == "" {
		o.LabFile = "pair"
	}
	if o.Guest == "" {
		o.Guest = "sheep1"
	}
	lab := &trial.Lab{Bin: o.Bin, Name: "bench-methods", Log: o.Log}
	defer func() { err = errors.Join(err, lab.Down(context.WithoutCancel(ctx))) }()
	if err := trial.Up(ctx, lab, o.LabFile); err != nil {
		return nil, nil, err
	}
	for _, m := range []drover.Method{drover.Live, drover.Cold} {
		if !o.wants(Row{"method": string(m)}) {
			continue
		}
		for run := range o.Runs {
			row := oneMove(ctx, lab, o, m)
			row["run"] = run
			o.logf("%s run %d: total %.1f s, pause %.0f ms, outage %.0f ms, lost %v, ok %v %v",
				m, run, row["total_s"], row["pause_ms"], row["outage_ms"], row["sessions_lost"], row["ok"], row["fault"])
			rows = append(rows, row)
			if ctx.Err() != nil {
				return rows, nil, ctx.Err()
			}
		}
	}
	return rows, summariseMethods(rows), nil
}

// Load is what the guest does while it moves.
var (
	movedMemory = control.Memory{WorkingSetBytes: 64 << 20, RateBytesPerS: 10e6, Compressible: 0.5}
	movedDisk   = control.Disk{RateBytesPerS: 200e3}
)

// oneMove moves the guest to the other site under load and judges it.
func oneMove(ctx context.Context, lab *trial.Lab, o Options, method drover.Method) Row {
	row := Row{"method": string(method), "ok": false, "fault": ""}
	fail := func(err error) Row {
		row["fault"] = err.Error()
		return row
	}
	vm, to, err := lab.Opposite(ctx, o.Guest)
	if err != nil {
		return fail(err)
	}
	client, err := lab.Client()
	if err != nil {
		return fail(err)
	}
	guest, err := lab.Guest(client, o.Guest)
	if err != nil {
		return fail(err)
	}
	load, err := trial.StartLoad(ctx, guest, movedMemory, movedDisk)
	if err != nil {
		return fail(err)
	}
	m, err := lab.Move(ctx, o.Guest, to.String(), "--method", string(method))
	row["from"], row["to"] = vm.Host, m.To.Host
	row["total_s"], row["pause_ms"], row["outage_ms"] = orNaN(m.Measured.TotalSeconds), orNaN(m.Measured.PauseMillis), orNaN(m.Measured.OutageMillis)
	row["wire_bytes"], row["guest_bytes"] = orMinus(m.Measured.WireBytes), orMinus(m.Measured.GuestBytes)
	row["sessions_lost"] = orMinus(m.Measured.SessionsLost)
	acks, stopErr := load.Stop(ctx)
	if err := errors.Join(err, stopErr, lab.OnlyAt(ctx, o.Guest, m.To.Host, "running")); err != nil {
		return fail(err)
	}
	row["acked_writes"] = int64(acks.Count())
	return judge(ctx, row, method, load, guest)
}

// judge decides whether the move kept what its method promises.
func judge(ctx context.Context, row Row, method drover.Method, load *trial.Load, guest *control.Client) Row {
	check, err := guest.CheckDisk(ctx)
	switch {
	case err != nil:
		row["fault"] = err.Error()
	case method == drover.Live && !check.Verdict.OK:
		row["fault"] = check.Verdict.Reason
	case method == drover.Live && load.SameBoot(ctx) != nil:
		row["fault"] = "the guest has booted"
	case method == drover.Live && row["sessions_lost"] != int64(0):
		row["fault"] = fmt.Sprintf("%v sessions lost", row["sessions_lost"])
	case method == drover.Live && !(row["outage_ms"].(float64) <= row["pause_ms"].(float64)+outageOverPause):
		row["fault"] = fmt.Sprintf("outage %.0f ms is more than pause %.0f ms + %d ms", row["outage_ms"], row["pause_ms"], outageOverPause)
	default:
		row["ok"] = true
	}
	return row
}

func orNaN(v *float64) float64 {
	if v == nil {
		return -1 // JSON has no NaN; no figure is negative
	}
	return *v
}

func orMinus(v *int64) int64 {
	if v == nil {
		return -1
	}
	return *v
}

// summariseMethods gives quantiles and the share of good runs per method.
func summariseMethods(rows []Row) map[string]any {
	summary := map[string]any{}
	for _, m := range []drover.Method{drover.Live, drover.Cold} {
		var pause, outage, over, total []float64
		good, all := 0, 0
		for _, r := range rows {
			if r["method"] != string(m) {
				continue
			}
			all++
			if r["ok"] == true {
				good++
			}
			p, po := r["pause_ms"].(float64)
			u, uo := r["outage_ms"].(float64)
			t, to := r["total_s"].(float64)
			if po && uo && to {
				pause, outage, over, total = append(pause, p), append(outage, u), append(over, u-p), append(total, t)
			}
		}
		if all == 0 {
			continue
		}
		summary[string(m)+"_runs"], summary[string(m)+"_ok"] = all, good
		if len(pause) == 0 {
			continue
		}
		summary[string(m)+"_total_s_p50"] = quantile(total, 0.5)
		summary[string(m)+"_pause_ms_p50"] = quantile(pause, 0.5)
		summary[string(m)+"_outage_ms_p50"] = quantile(outage, 0.5)
		summary[string(m)+"_outage_ms_p95"] = quantile(outage, 0.95)
		summary[string(m)+"_outage_over_pause_ms_p50"] = quantile(over, 0.5)
		summary[string(m)+"_outage_over_pause_ms_p95"] = quantile(over, 0.95)
	}
	return summary
}
