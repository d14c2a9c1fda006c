package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/forecast"
	"github.com/drover-vm/drover/lab/guest/control"
)

const (
	forecastLabName = "benchfc"
	// forecastRuns is how many moves there are when nobody says: of those that do
	// not converge there is no duration, and a hundred with one are wanted.
	forecastRuns = 120
	// forecastSettle is how long a guest has been at work before it is looked at.
	forecastSettle = time.Second
	// forecastMove bounds a move; one that takes longer has not converged.
	forecastMove = 45 * time.Second
	// forecastPoll is how often a move is asked how far it is.
	forecastPoll = 500 * time.Millisecond
	// forecastFaults is how many moves may fail one after another before the
	// rest is given up.
	forecastFaults = 4
)

// forecastLink is a link that moves are made over. The two halves have none in
// common, so what is held out is held out as a whole.
type forecastLink struct {
	a, b    string // sites
	mbit    int
	rtt     time.Duration
	heldOut bool
}

func (l forecastLink) String() string { return fmt.Sprintf("%dM%v", l.mbit, l.rtt) }

func (l forecastLink) joins(site string) bool { return l.a == site || l.b == site }

// forecastLinks join each of four sites with each other; those of each half lead
// from every site to every other, so guests need never be brought back.
var forecastLinks = []forecastLink{
	{"a", "b", 50, 10 * time.Millisecond, false},
	{"b", "c", 200, 20 * time.Millisecond, false},
	{"c", "d", 100, 60 * time.Millisecond, false},
	{"c", "a", 80, 40 * time.Millisecond, true},
	{"a", "d", 120, 80 * time.Millisecond, true},
	{"d", "b", 400, 5 * time.Millisecond, true},
}

// forecastGuest is one that moves. Its size and its content are its own; what it
// does is drawn for each move.
type forecastGuest struct {
	name         string
	memory, disk int64
	compressible float64
}

var forecastGuests = []forecastGuest{
	{"g1", 112 << 20, 16 << 20, 0.7},
	{"g2", 128 << 20, 32 << 20, 0.35},
	{"g3", 160 << 20, 24 << 20, 0.85},
	{"g4", 208 << 20, 32 << 20, 0.5},
}

// forecastGuestOwn is what such a guest needs itself, forecastRoom the part of the
// rest that a working set takes at most.
const (
	forecastGuestOwn = 80 << 20
	forecastRoom     = 0.7
)

// forecastSetting is one move, drawn by the seed. The link is one of its half's
// where the guest then is.
type forecastSetting struct {
	Guest string         `json:"guest"`
	Load  control.Memory `json:"load"`
	// Way picks one of the links, by a number below one.
	Way     float64 `json:"way"`
	HeldOut bool    `json:"held_out"`
}

// forecastSettings draws n moves: those that tune come first, the others are
// foretold with what they teach.
func forecastSettings(seed int64, n int) []forecastSetting {
	random := rand.New(rand.NewPCG(uint64(seed), 5))
	between := func(low, high float64) float64 { return math.Exp(math.Log(low) + random.Float64()*math.Log(high/low)) }
	all := make([]forecastSetting, n)
	for i := range all {
		g := forecastGuests[random.IntN(len(forecastGuests))]
		all[i] = forecastSetting{
			Guest: g.name, Way: random.Float64(), HeldOut: i >= (n+1)/2,
			Load: control.Memory{
				WorkingSetBytes: int64(between(10e6, min(60e6, forecastRoom*float64(g.memory-forecastGuestOwn)))), RateBytesPerS: int64(between(0.3e6, 30e6)),
				Compressible: g.compressible,
			},
		}
	}
	return all
}

// forecastRecord is one move with all that it was foretold from, so that other
// models can be tried on it.
type forecastRecord struct {
	Run     int             `json:"run"`
	Setting forecastSetting `json:"setting"`
	// Bought is the link as the inventory has it, Input what the server knew when
	// it made the forecast.
	Bought drover.Link    `json:"bought"`
	Input  forecast.Input `json:"input"`
	// Move is as the server has it in the end, with its forecast.
	Move drover.Move `json:"move"`
	// Throttle is how far the guest was held back; a move that was cancelled for
	// that has no figures.
	Throttle int `json:"throttle"`
	// Seconds is what the measurement itself took, all in all.
	Seconds float64 `json:"seconds"`
}

// done reports whether the move came to its end, converged whether it did so
// by itself.
func (r forecastRecord) done() bool      { return r.Move.State == drover.MoveDone }
func (r forecastRecord) converged() bool { return r.done() && r.Throttle == 0 }

func (r forecastRecord) split() string {
	if r.Setting.HeldOut {
		return "held_out"
	}
	return "tuning"
}

// forecasts moves guests that write their memory at drawn rates over several links
// and compares what was expected, by this program and by two simpler models, with
// what was measured.
func forecasts(ctx context.Context, o Options) (rows []Row, summary map[string]any, err error) {
	if o.Replay != "" {
		records, err := readForecasts(o.Replay)
		if err != nil {
			return nil, nil, err
		}
		rows, summary := replayForecasts(records)
		return rows, summary, nil
	}
	if o.Runs == 0 {
		o.Runs = forecastRuns
	}
	b := &forecastBench{Options: o}
	if o.Record != "" {
		f, err := os.Create(o.Record)
		if err != nil {
			return nil, nil, err
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		b.out = json.NewEncoder(f)
	}
	defer func() { err = errors.Join(err, b.down(ctx)) }()
	if err := b.up(ctx); err != nil {
		return nil, nil, err
	}
	err = b.all(ctx)
	var faults []Row
	for _, f := range b.faults {
		faults = append(faults, Row{"figure": "", "fault": f})
	}
	rows, summary = judgeForecasts(b.records)
	return append(rows, faults...), summary, err
}

// all makes the moves.
func (b *forecastBench) all(ctx context.Context) error {
	failed := 0
	for i, s := range forecastSettings(b.Seed, b.Runs) {
		if !b.wants(Row{"vm": s.Guest, "split": (forecastRecord{Setting: s}).split()}) {
			continue
		}
		began := time.Now()
		r, err := b.one(ctx, s)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			err = fmt.Errorf("move %d, of %s: %w", i, s.Guest, err)
			b.logf("%v", err)
			b.faults = append(b.faults, err.Error())
			if failed++; failed >= forecastFaults {
				return err
			}
			continue
		}
		failed = 0
		r.Run, r.Seconds = i, time.Since(began).Seconds()
		b.records = append(b.records, r)
		b.tell(r)
		if b.out != nil {
			if err := b.out.Encode(r); err != nil {
				return err
			}
		}
	}
	return nil
}

// tell says in a line how a move went.
func (b *forecastBench) tell(r forecastRecord) {
	what := "does not converge"
	if f, m := r.Move.Forecast, r.Move.Measured; r.done() && f.TotalSeconds != nil && m.TotalSeconds != nil {
		what = fmt.Sprintf("%.1f s (%.1f, %.1f to %.1f)", *m.TotalSeconds, f.TotalSeconds.P50, f.TotalSeconds.P10, f.TotalSeconds.P90)
	}
	b.logf("%3d %s %s %s to %s: %s; converges %v (%.2f), all in %.1f s", r.Run, r.split(), r.Setting.Guest, r.Input.From, r.Input.To, what,
		r.converged(), r.Move.Forecast.Convergence.Probability, r.Seconds)
}
