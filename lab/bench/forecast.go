package bench

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/forecast"
	"github.com/drover-vm/drover/lab"
	"github.com/drover-vm/drover/lab/guest/control"
	"github.com/drover-vm/drover/lab/labfile"
	"github.com/drover-vm/drover/lab/trial"
)

const (
	forecastLabName = "benchfc"
	// forecastRuns is how many moves there are when nobody says.
	forecastRuns = 108
	// forecastMemory leaves the guest room for the largest working set.
	forecastMemory = 160 << 20
	forecastDisk   = 32 << 20
	// forecastSettle is how long a guest has been at work before it is forecast:
	// the longest window of a dirty curve fits in it.
	forecastSettle = 12 * time.Second
	// forecastWatch is how long Drover's own look at it is waited for.
	forecastWatch = 30 * time.Second
	// forecastMove bounds a move; one that takes longer has not converged.
	forecastMove = 3 * time.Minute
)

// forecastLink is a link that moves are made over. The two halves have none in
// common, so what is held out is held out as a whole.
type forecastLink struct {
	mbit    int
	rtt     time.Duration
	heldOut bool
}

func (l forecastLink) String() string { return fmt.Sprintf("%dM%v", l.mbit, l.rtt) }

var forecastLinks = []forecastLink{
	{50, 10 * time.Millisecond, false},
	{80, 40 * time.Millisecond, true},
	{200, 20 * time.Millisecond, false},
	{120, 80 * time.Millisecond, true},
	{100, 60 * time.Millisecond, false},
	{400, 5 * time.Millisecond, true},
}

// forecastSetting is one move, drawn by the seed.
type forecastSetting struct {
	link forecastLink
	load control.Memory
}

// forecastSettings draws n moves, as many per link.
func forecastSettings(seed int64, n int) []forecastSetting {
	random := rand.New(rand.NewPCG(uint64(seed), 5))
	between := func(low, high float64) float64 { return math.Exp(math.Log(low) + random.Float64()*math.Log(high/low)) }
	all := make([]forecastSetting, n)
	for i := range all {
		all[i] = forecastSetting{
			link: forecastLinks[i*len(forecastLinks)/n],
			load: control.Memory{
				WorkingSetBytes: int64(between(4e6, 60e6)), RateBytesPerS: int64(between(0.3e6, 30e6)),
				Compressible: 0.1 + 0.8*random.Float64(),
			},
		}
	}
	return all
}

// forecasts moves guests that write their memory at drawn rates over several links
// and compares what was expected, by this program and by two simpler models, with
// what was measured.
func forecasts(ctx context.Context, o Options) (rows []Row, summary map[string]any, err error) {
	if o.Runs == 0 {
		o.Runs = forecastRuns
	}
	b := &forecastBench{Options: o}
	defer func() { err = errors.Join(err, b.down(ctx)) }()
	// Those that tune come first: the others are foretold with what they teach.
	for _, heldOut := range []bool{false, true} {
		for i, s := range forecastSettings(o.Seed, o.Runs) {
			if s.link.heldOut != heldOut || !o.wants(Row{"link": s.link.String(), "split": split(heldOut)}) {
				continue
			}
			more, err := b.one(ctx, s)
			if ctx.Err() != nil {
				return rows, summariseForecast(rows), ctx.Err()
			}
			if err != nil {
				o.logf("%v, move %d: %v", s.link, i, err)
				more = []Row{{"vm": b.guest, "link": s.link.String(), "split": split(heldOut), "figure": "", "fault": err.Error()}}
			}
			for _, r := range more {
				r["run"] = i
			}
			rows = append(rows, more...)
		}
	}
	return rows, summariseForecast(rows), nil
}

func split(heldOut bool) string {
	if heldOut {
		return "held_out"
	}
	return "tuning"
}

// forecastBench is a run of the benchmark.
type forecastBench struct {
	Options
	lab     *wanLab
	link    forecastLink
	guest   string
	history []drover.Move // of the half that tunes
}

func (b *forecastBench) down(ctx context.Context) error {
	if b.lab == nil {
		return nil
	}
	w := b.lab
	b.lab = nil
	return w.down(ctx)
}

// up has a lab with the link.
func (b *forecastBench) up(ctx context.Context, link forecastLink) error {
	if b.lab != nil && b.link == link {
		return nil
	}
	if err := b.down(ctx); err != nil {
		return err
	}
	f, err := labfile.Parse("forecast.yaml", fmt.Appendf(nil, `
name: %s
server: a
sites:
  - {name: a, transport: 10.1.0.0/24, access: 10.1.9.0/24, hosts: [{name: a1}]}
  - {name: b, transport: 10.2.0.0/24, hosts: [{name: b1}]}
links:
  - {a: a, b: b, rate: %dMbit, rtt: %v}
segments:
  - {name: blue, subnet: 10.50.0.0/24, sites: [a, b]}
clients:
  - {name: c1, site: a, address: 10.1.9.10}
guests:
  - {name: sheep, host: a1, image: sheep, memory: %d, segment: blue, address: 10.50.0.11, disk: {size: %d}}
`, forecastLabName, link.mbit, link.rtt, forecastMemory, forecastDisk))
	if err != nil {
		return err
	}
	l, err := lab.Up(ctx, lab.Options{Exe: b.Bin, WaitGuests: true}, f)
	if err != nil {
		return err
	}
	b.lab = &wanLab{Lab: l, exe: b.Bin, trial: &trial.Lab{Bin: b.Bin, Name: forecastLabName}, file: f, client: "c1"}
	b.link, b.guest = link, "sheep"
	return nil
}

// one makes a move and returns its rows, one for each figure.
func (b *forecastBench) one(ctx context.Context, s forecastSetting) ([]Row, error) {
	if err := b.up(ctx, s.link); err != nil {
		return nil, err
	}
	guest, err := b.lab.trial.Guest(b.lab.client, b.guest)
	if err != nil {
		return nil, err
	}
	load, err := trial.StartLoad(ctx, guest, s.load, control.Disk{RateBytesPerS: 50e3})
	if err != nil {
		return nil, err
	}
	defer func() { _, _ = load.Stop(context.WithoutCancel(ctx)) }()
	if err := sleep(ctx, forecastSettle); err != nil {
		return nil, err
	}
	in, seen, err := b.input(ctx, s)
	if err != nil {
		return nil, err
	}
	limited, cancel := context.WithTimeout(ctx, forecastMove)
	m, err := b.lab.trial.Move(limited, b.guest, in.To.String(), "--method", string(drover.Live))
	cancel()
	if err != nil {
		return nil, err
	}
	if m.Forecast == nil {
		return nil, fmt.Errorf("move %s: it has no forecast", m.Name)
	}
	// The points are the server's, made before the move; it knows this lab alone.
	expected := forecast.New(b.history, in.Now).Recalibrate(*m.Forecast)
	m.Forecast = &expected
	if !s.link.heldOut {
		b.history = append(b.history, m)
	}
	return b.rows(s, seen, in, m), nil
}

// input is what the simpler models are told: memory, disks and link by the
// inventory, and how fast the guest writes, as it was set. The row says whether
// Drover, which is told nothing, has watched the guest since.
func (b *forecastBench) input(ctx context.Context, s forecastSetting) (forecast.Input, string, error) {
	vm, to, err := b.lab.trial.Opposite(ctx, b.guest)
	if err != nil {
		return forecast.Input{}, "", err
	}
	var links []drover.Link
	var hosts []drover.Host
	if err := errors.Join(b.lab.trial.Drover(ctx, &links, "links"), b.lab.trial.Drover(ctx, &hosts, "hosts")); err != nil {
		return forecast.Input{}, "", err
	}
	now := time.Now()
	in := forecast.Input{
		Now: now, Method: drover.Live, VM: vm, From: drover.Place{Site: vm.Site, Host: vm.Host}, To: to,
	}
	for _, h := range hosts {
		if h.Name == vm.Host {
			in.Source = h
		}
	}
	for _, l := range links {
		if l.Joins(vm.Site, to.Site) {
			in.Link = forecast.MeasuredLink(l, vm.Site, to.Site, now)
		}
	}
	seen := "none"
	var signals drover.Signals
	for until := now.Add(forecastWatch); ; {
		if err := b.lab.trial.Drover(ctx, &signals, "signals", b.guest); err != nil {
			return in, "", err
		}
		if signals.Dirty.At.After(now.Add(-forecastSettle)) {
			seen = "watched"
			break
		}
		if time.Now().After(until) {
			break
		}
		if err := sleep(ctx, 2*time.Second); err != nil {
			return in, "", err
		}
	}
	in.Signals.Dirty = setCurve(s.load, now)
	return in, seen, nil
}

// setCurve is how the guest was told to write: its pages one after another.
func setCurve(l control.Memory, now time.Time) drover.DirtyCurve {
	c := drover.DirtyCurve{At: now, Samples: 1}
	for _, w := range []float64{0.1, 1, 10} {
		c.Points = append(c.Points, drover.DirtyPoint{
			WindowSeconds: w, Bytes: min(float64(l.WorkingSetBytes), w*float64(l.RateBytesPerS)) + guestOwn,
		})
	}
	return c
}

// guestOwn is what the guest's kernel and programs write over and over besides.
const guestOwn = 300e3

// rows are a move's, for the figures that a row is asked for.
func (b *forecastBench) rows(s forecastSetting, seen string, in forecast.Input, m drover.Move) []Row {
	simple, geometric := forecast.MemoryOverBandwidth(in).Figures(), forecast.Geometric(in).Figures()
	throttled := m.Measured.Path != nil && m.Measured.Path.ThrottlePercent > 0
	var rows []Row
	expected := m.Forecast.Each()
	for i, truth := range m.Measured.Each() {
		r := expected[i].Value
		if r == nil || truth.Value == nil {
			continue
		}
		row := Row{
			"vm": b.guest, "link": s.link.String(), "method": string(m.Method), "split": split(s.link.heldOut), "fault": "",
			"figure": truth.Name, "p10": r.P10, "p50": r.P50, "p90": r.P90, "truth": *truth.Value,
			"error": forecast.Error(truth.Name, r.P50, *truth.Value), "point": m.Forecast.Points[truth.Name],
			"inside":    r.Contains(*truth.Value),
			"converged": m.State == drover.MoveDone && !throttled, "will_converge": m.Forecast.Convergence.Will,
			"convergence": m.Forecast.Convergence.Probability, "signals": seen,
			"set_bytes": s.load.WorkingSetBytes, "dirty_bytes_per_s": s.load.RateBytesPerS, "compressible": s.load.Compressible,
		}
		for name, figures := range map[string]map[string]float64{"baseline_memory_over_bandwidth": simple, "baseline_geometric": geometric} {
			row[name] = -1.0
			if v, known := figures[truth.Name]; known {
				row[name] = forecast.Error(truth.Name, v, *truth.Value)
			}
		}
		if p := m.Measured.Path; p != nil {
			row["path_disk_s"], row["path_memory_s"], row["path_switch_s"] = p.Disk.Seconds, p.Memory.Seconds, p.Switchover.Seconds
			row["path_memory_bytes"], row["path_memory_wire"] = int64(p.Memory.GuestBytes), int64(p.Memory.WireBytes)
			row["path_zero_bytes"], row["path_cpu_s"] = int64(p.Memory.Kinds.Zero.GuestBytes), p.Memory.CPUSeconds
			row["throttle"] = p.ThrottlePercent
		}
		rows = append(rows, row)
	}
	if len(rows) > 0 {
		b.logf("%v %s: total %.1f s (%.1f, %.1f to %.1f)", s.link, split(s.link.heldOut), rows[0]["truth"], rows[0]["p50"], rows[0]["p10"], rows[0]["p90"])
	}
	return rows
}
