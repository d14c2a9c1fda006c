package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/lab/guest/control"
	"github.com/drover-vm/drover/lab/trial"
)

// travel is a method as it is measured, and what is promised of it.
type travel struct {
	method drover.Method
	// vm moves by it, in the ready lab; as is what spawn and redirect make of it.
	vm, as string
	// over are the most that outage over pause may be at the median and at the
	// 95th percentile, in milliseconds; nil: nothing is promised.
	over *[2]float64
}

// warmOver is what a warm move may take beyond the guest's own shutdown and boot,
// in milliseconds; newSessionWithin, renumber: until the first new session.
const (
	warmOver         = 2000
	newSessionWithin = 1000
)

// travels are all methods, each at home where it begins and where it ends.
func travels() []travel {
	return []travel{
		{drover.Live, "live1", "", &[2]float64{50, 200}},
		{drover.Stretch, "away1", "", &[2]float64{50, 200}},
		{drover.Route, "away1", "", &[2]float64{100, 300}},
		{drover.Renumber, "away1", "", &[2]float64{150, 400}},
		{drover.Redirect, "web1", "next1", nil},
		{drover.Warm, "live1", "", nil},
		{drover.Cold, "live1", "", nil},
		{drover.Spawn, "web1", "more1", nil},
	}
}

// What a guest does while it moves: an idle one would be no test, and one that
// writes much measures the link.
var (
	movedMemory = control.Memory{WorkingSetBytes: 16 << 20, RateBytesPerS: 2e6, Compressible: 0.5}
	movedDisk   = control.Disk{RateBytesPerS: 200e3}
)

// methodRuns is one benchmark under way.
type methodRuns struct {
	Options
	scene *trial.Scene
	rng   *rand.Rand
	// restart is how long the guest of warm and cold moves is away by its own
	// shutdown and boot, in milliseconds.
	restart float64
	// floor is how much longer than its pause a client misses the guest of live,
	// stretch, route and renumber when it is restored where it is, in milliseconds.
	floor float64
	// vm is the guest that moves now: redirect makes another.
	vm string
}

// methods moves guests back and forth between two sites, by each method, under a
// client's eyes.
func methods(ctx context.Context, o Options) (rows []Row, summary map[string]any, err error) {
	if o.Runs == 0 {
		o.Runs = 20
	}
	file, own := o.LabFile, o.LabFile == ""
	if own {
		file = "methods"
	}
	// Before a lab is started for nothing.
	all := travels()
	wanted := slices.DeleteFunc(slices.Clone(all), func(t travel) bool { return !o.wants(Row{"method": string(t.method)}) })
	if len(wanted) == 0 {
		names := make([]string, len(all))
		for i, t := range all {
			names[i] = string(t.method)
		}
		return nil, nil, drover.Errorf(drover.Invalid, "--only", "method=%s: want one of %s", strings.Join(o.Only["method"], ","), strings.Join(names, ", "))
	}
	lab := &trial.Lab{Bin: o.Bin, Name: "bench-methods", Log: o.Log}
	defer func() { err = errors.Join(err, lab.Down(context.WithoutCancel(ctx))) }()
	if err := trial.Up(ctx, lab, file); err != nil {
		return nil, nil, err
	}
	b := &methodRuns{Options: o, rng: rand.New(rand.NewPCG(uint64(o.Seed), 0))}
	if b.scene, err = trial.OpenScene(lab, file, ""); err != nil {
		return nil, nil, err
	}
	for _, t := range wanted {
		if o.Guest != "" {
			t.vm = o.Guest
		}
		more, err := b.runs(ctx, t)
		if rows = append(rows, more...); err != nil {
			return rows, nil, err
		}
	}
	return rows, summariseMethods(rows), nil
}

// runs measures one method, and has its guest at home afterwards.
func (b *methodRuns) runs(ctx context.Context, t travel) (rows []Row, err error) {
	b.vm = t.vm
	home, err := b.scene.VM(ctx, t.vm)
	if err != nil {
		return nil, err
	}
	switch {
	case trial.Resumed(t.method):
		if b.floor, err = b.median(func() (float64, error) {
			return b.scene.Reload(ctx, home.Name, home.Host, movedMemory, movedDisk)
		}); err != nil {
			return nil, err
		}
		b.logf("%s: saved and restored where it is, a client misses it for %.0f ms more than it stood still", t.vm, b.floor)
	case !t.method.Makes():
		if b.restart, err = b.median(func() (float64, error) { return b.scene.Restart(ctx, home.Name, home.Host) }); err != nil {
			return nil, err
		}
		b.logf("%s: shut down and booted where it is, a client misses it for %.0f ms", t.vm, b.restart)
	}
	for run := range b.Runs {
		row := b.one(ctx, t, run)
		b.logf("%s run %d: total %.1f s, pause %.0f ms, outage %.0f ms, lost %v, ok %v %v",
			t.method, run, row["total_s"], row["pause_ms"], row["outage_ms"], row["sessions_lost"], row["ok"], row["fault"])
		if rows = append(rows, row); ctx.Err() != nil {
			return rows, ctx.Err()
		}
	}
	return rows, b.goHome(ctx, t, home)
}

// goHome brings the guest to where the next method expects it.
func (b *methodRuns) goHome(ctx context.Context, t travel, home drover.VM) error {
	if t.method == drover.Spawn {
		return nil
	}
	v, err := b.scene.VM(ctx, b.vm)
	if err != nil || v.Site == home.Site {
		return err
	}
	_, err = b.scene.Go(ctx, trial.Journey{VM: b.vm, Method: t.method, To: home.Site, As: t.vm, Flags: travelFlags(t.method)})
	return err
}

// travelFlags are what a method is asked for with. Users of a service are few
// here, and shall not be waited for longer than it takes to see them.
func travelFlags(m drover.Method) []string {
	switch m {
	case drover.Redirect:
		return []string{"--weight-steps", "50,100", "--step-time", "1s", "--drain-cap", "1m"}
	case drover.Renumber:
		return []string{"--old-limit", "2m"}
	}
	return nil
}

// one makes one journey to the site where the guest is not.
func (b *methodRuns) one(ctx context.Context, t travel, run int) Row {
	row := Row{"method": string(t.method), "run": run, "ok": false, "fault": ""}
	_, to, err := b.scene.Opposite(ctx, b.vm)
	if err != nil {
		row["fault"] = err.Error()
		return row
	}
	j := trial.Journey{
		VM: b.vm, Method: t.method, To: to.Site, Memory: movedMemory, Disk: movedDisk, Flags: travelFlags(t.method),
		// Not in step with anybody's timers.
		Settle: time.Second + time.Duration(b.rng.Int64N(int64(time.Second))),
	}
	if j.As = t.as; b.vm == t.as {
		j.As = t.vm
	}
	seen, err := b.scene.Go(ctx, j)
	b.figures(row, seen)
	m := seen.Move
	switch {
	case m.State != drover.MoveDone:
	case t.method == drover.Redirect:
		b.vm = j.As
	case t.method == drover.Spawn:
		err = errors.Join(err, b.scene.Dismiss(ctx, j.As, m.To.Host))
	case err != nil:
	case seen.NewSession != nil && *seen.NewSession > newSessionWithin*time.Millisecond:
		err = fmt.Errorf("the first new session came %d ms after the resume", seen.NewSession.Milliseconds())
	}
	if row["ok"] = err == nil; err != nil {
		row["fault"] = err.Error()
	}
	return row
}

// figures takes over what was measured.
func (b *methodRuns) figures(row Row, seen trial.Seen) {
	m, f := seen.Move, seen.Move.Measured
	row["from"], row["to"], row["total_s"] = m.From.Host, m.To.Host, orNaN(f.TotalSeconds)
	row["pause_ms"], row["outage_ms"] = orNaN(f.PauseMillis), orNaN(f.OutageMillis)
	row["wire_bytes"], row["guest_bytes"] = orMinus(f.WireBytes), orMinus(f.GuestBytes)
	row["sessions_lost"], row["acked_writes"] = orMinus(f.SessionsLost), int64(seen.Acked)
	if f.PauseMillis != nil && f.OutageMillis != nil {
		row["over_pause_ms"] = *f.OutageMillis - *f.PauseMillis
		if trial.Resumed(m.Method) {
			row["floor_ms"] = b.floor
			row["over_floor_ms"] = *f.OutageMillis - *f.PauseMillis - b.floor
		}
	}
	if w := seen.Witness; w != nil && w.BeatsSent > 0 {
		// What a client saw that belongs to no agent: the same, but for its own timers.
		row["witness_outage_ms"] = w.OutageMS
	}
	if m.Method == drover.Warm || m.Method == drover.Cold {
		row["restart_ms"] = b.restart
		row["over_restart_ms"] = orNaN(f.OutageMillis) - b.restart
	}
	if seen.NewSession != nil {
		row["new_session_ms"] = float64(seen.NewSession.Milliseconds())
	}
	if v := seen.Visits; v != nil {
		n := 0
		for _, k := range v.By {
			n += k
		}
		row["requests"], row["requests_failed"] = int64(n), int64(len(v.Failed))
		row["service_silence_ms"] = float64(v.Silence) / float64(time.Millisecond)
	}
	if m.Method == drover.Redirect {
		row["kept_session_answers"] = int64(seen.Kept)
	}
}

// referenceTries is how often a guest is restarted, or restored, to know how long
// that takes without a move.
const referenceTries = 3

// median is that of some tries of a measurement.
func (b *methodRuns) median(measure func() (float64, error)) (float64, error) {
	var all []float64
	for range referenceTries {
		ms, err := measure()
		if err != nil {
			return 0, err
		}
		all = append(all, ms)
	}
	return quantile(all, 0.5), nil
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

// summariseMethods gives, per method, quantiles, the sessions lost, and whether
// all that is promised has held.
func summariseMethods(rows []Row) map[string]any {
	summary := map[string]any{}
	for _, t := range travels() {
		mine := slices.DeleteFunc(slices.Clone(rows), func(r Row) bool { return r["method"] != string(t.method) })
		if len(mine) == 0 {
			continue
		}
		name := string(t.method) + "_"
		good, lost := 0, int64(0)
		for _, r := range mine {
			if r["ok"] == true {
				good++
			}
			if n, counted := r["sessions_lost"].(int64); counted {
				lost += max(0, n)
			}
		}
		summary[name+"runs"], summary[name+"runs_ok"], summary[name+"sessions_lost"] = len(mine), good, lost
		quantiles(summary, name, mine, "total_s", "pause_ms", "outage_ms", "over_pause_ms", "over_floor_ms", "over_restart_ms", "new_session_ms", "service_silence_ms")
		summary[name+"ok"] = good == len(mine) && t.keeps(summary, name)
	}
	return summary
}

// quantiles adds the median and the 95th percentile of each figure that was
// measured in all rows.
func quantiles(summary map[string]any, name string, rows []Row, figures ...string) {
	for _, figure := range figures {
		var values []float64
		for _, r := range rows {
			if v, ok := r[figure].(float64); ok && (v >= 0 || strings.HasPrefix(figure, "over_")) && r["outage_ms"] != float64(-1) {
				values = append(values, v)
			}
		}
		if len(values) == len(rows) {
			summary[name+figure+"_p50"], summary[name+figure+"_p95"] = quantile(values, 0.5), quantile(values, 0.95)
		}
	}
}

// keeps says whether the figures are within what is promised of the method.
func (t travel) keeps(summary map[string]any, name string) bool {
	within := func(figure string, most float64) bool {
		v, ok := summary[name+figure].(float64)
		return ok && v <= most
	}
	switch {
	case t.over != nil:
		return within("over_pause_ms_p50", t.over[0]) && within("over_pause_ms_p95", t.over[1])
	case t.method == drover.Warm:
		return within("over_restart_ms_p95", warmOver)
	}
	return true
}
