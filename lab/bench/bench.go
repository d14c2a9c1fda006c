// Package bench is the benchmarks behind `drover bench`. Each runs on real
// labs, compares within one run, and reports flat rows and a summary; absolute
// times depend on the machine, so judgements are made on ratios and on
// differences to what was set.
//
// What it leaves to others: labs (package lab), driving them (package trial).
package bench

import (
	"context"
	"fmt"
	"io"
	"math"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/drover-vm/drover"
)

// Row is one measurement, flat: name → string, number or bool.
type Row map[string]any

// Report is what a benchmark prints.
type Report struct {
	Bench   string `json:"bench"`
	Commit  string `json:"commit"`
	Machine string `json:"machine"`
	Seed    int64  `json:"seed"`
	// Incomplete says why a run has ended early; what it had measured is there.
	Incomplete string         `json:"incomplete,omitempty"`
	Rows       []Row          `json:"rows"`
	Summary    map[string]any `json:"summary"`
}

// Options are what every benchmark understands.
type Options struct {
	// Bin is the drover binary that is measured.
	Bin string
	// Commit is the version that is measured.
	Commit string
	Seed   int64
	// Runs is how often each row is measured; 0 takes the benchmark's own.
	Runs int
	// Only picks rows: every named key must have one of the values.
	Only map[string][]string
	// ReturnAfter is how long a guest is away before it returns, in the
	// benchmarks that send it back.
	ReturnAfter time.Duration
	// LabFile and Guest replace the lab and the guest that are measured.
	LabFile, Guest string
	// Record is a file for all that was seen, Replay one of an earlier run that is
	// judged anew without a lab; forecast alone has them.
	Record, Replay string
	// Log gets progress.
	Log io.Writer
}

// wants reports whether a row with these keys is picked.
func (o Options) wants(row Row) bool {
	for key, values := range o.Only {
		if v, ok := row[key]; ok && !slices.Contains(values, fmt.Sprint(v)) {
			return false
		}
	}
	return true
}

func (o Options) logf(format string, args ...any) {
	if o.Log != nil {
		fmt.Fprintf(o.Log, format+"\n", args...)
	}
}

// Bench is one benchmark.
type Bench struct {
	Name string
	// Doc is one line.
	Doc string
	run func(ctx context.Context, o Options) ([]Row, map[string]any, error)
}

// All returns every benchmark, by name.
func All() []Bench {
	return []Bench{
		{"cold", "a disk at rest to the other site: rsync, qemu-img with zstd, casync, and Drover", cold},
		{"cuts", "moves under cuts of the link and flipped bits: what is lost, and what is sent again", cuts},
		{"forecast", "what live moves were expected to cost, and what they did: errors, coverage, against two simpler models", forecasts},
		{"link", "how much of a link the data path fills, against iperf3", linkFill},
		{"methods", "each method moves a working guest back and forth: pause, outage, sessions", methods},
		{"signals", "what it costs a guest to be looked at, from inside: processor lost, longest pause", signals},
		{"wan", "moves between sites, side by side: QEMU's own ways and Drover", wan},
		{"wanem", "the WAN emulator against what was set: rate, round trip, processor time", emulator},
	}
}

// Run runs the named benchmark. One that ends early returns what it had measured
// until then, if anything, and the error.
func Run(ctx context.Context, name string, o Options) (*Report, error) {
	all := All()
	i := slices.IndexFunc(all, func(b Bench) bool { return b.Name == name })
	if i < 0 {
		var names []string
		for _, b := range all {
			names = append(names, b.Name)
		}
		return nil, drover.Errorf(drover.Invalid, "bench", "%q: want one of %s", name, strings.Join(names, ", "))
	}
	if (o.Record != "" || o.Replay != "") && name != "forecast" {
		return nil, drover.Errorf(drover.Invalid, "bench", "--record and --replay are for forecast, not for %s", name)
	}
	rows, summary, err := all[i].run(ctx, o)
	if err != nil {
		err = fmt.Errorf("bench %s: %w", name, err)
		if len(rows) == 0 {
			return nil, err
		}
	}
	r := &Report{
		Bench: name, Commit: o.Commit, Machine: machine(context.WithoutCancel(ctx)), Seed: o.Seed, Rows: rows, Summary: summary,
	}
	if err != nil {
		r.Incomplete = err.Error()
	}
	return r, err
}

// machine says on what was measured: processors, kernel, QEMU.
func machine(ctx context.Context) string {
	first := func(name string, args ...string) string {
		out, err := exec.CommandContext(ctx, name, args...).Output()
		if err != nil {
			return name + " unknown"
		}
		line, _, _ := strings.Cut(string(out), "\n")
		return line
	}
	return fmt.Sprintf("%d CPUs, Linux %s, %s", runtime.NumCPU(), first("uname", "-r"), first("qemu-system-x86_64", "--version"))
}

// quantile returns the q-quantile of values by the nearest-rank method, NaN of
// none.
func quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	s := slices.Sorted(slices.Values(values))
	return s[min(len(s)-1, max(0, int(math.Ceil(q*float64(len(s))))-1))]
}
