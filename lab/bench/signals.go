package bench

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/drover-vm/drover/agent"
	"github.com/drover-vm/drover/lab"
	"github.com/drover-vm/drover/lab/guest/control"
	"github.com/drover-vm/drover/lab/labfile"
	"github.com/drover-vm/drover/lab/node"
	"github.com/drover-vm/drover/lab/trial"
)

const (
	signalsLabName = "benchsig"
	signalsHost    = "a1"
	signalsGuest   = "sheep"
	// signalsPairs of windows, one with and one without, are measured when nobody
	// says.
	signalsPairs = 6
	// signalsWindow is a little more than a survey takes, so that each window with
	// surveys has all of one.
	signalsWindow = 12 * time.Second
	// signalsSettle is left out after each switch.
	signalsSettle = time.Second
	// signalsMemory of the guest are its own pages, and not zeros, so that there is
	// something to be read.
	signalsMemory = 64 << 20
)

// What looking at a guest promises: the part of a processor that it and the guest
// lose, and how much longer the guest stands still.
const (
	signalsMostShare = 0.01
	signalsMostPause = 5.0 // milliseconds
)

// signalsDense has the agent look at the guest again as soon as it has: a window
// then has as many surveys as ten times as long has of the usual pace.
const signalsDense = "signals:\n  survey: 1s\n  share: 1\n"

// signalsLab is one host with one guest; a move needs more, a look does not.
const signalsLab = `
name: ` + signalsLabName + `
server: a
sites:
  - {name: a, transport: 10.1.0.0/24, access: 10.1.9.0/24, hosts: [{name: ` + signalsHost + `}]}
segments:
  - {name: blue, subnet: 10.50.0.0/24, sites: [a]}
clients:
  - {name: c1, site: a, address: 10.1.9.10}
guests:
  - {name: ` + signalsGuest + `, host: ` + signalsHost + `, image: sheep, memory: 160MiB, segment: blue, address: 10.50.0.11, disk: {size: 32MiB}}
`

// signals measures from inside a guest what it costs it to be looked at: windows in
// which the host's agent looks all the time take turns with windows in which the
// agent stands still, and the guest works as fast as it can in all of them.
func signals(ctx context.Context, o Options) (rows []Row, summary map[string]any, err error) {
	if o.Runs == 0 {
		o.Runs = signalsPairs
	}
	f, err := labfile.Parse("signals.yaml", []byte(signalsLab))
	if err != nil {
		return nil, nil, err
	}
	l, err := lab.Up(ctx, lab.Options{Exe: o.Bin, WaitGuests: true}, f)
	if err != nil {
		return nil, nil, err
	}
	w := &wanLab{Lab: l, exe: o.Bin, trial: &trial.Lab{Bin: o.Bin, Name: signalsLabName}, file: f, client: "c1"}
	defer func() { err = errors.Join(err, w.down(ctx)) }()
	b := &signalsBench{Options: o, lab: w}
	if err := b.prepare(ctx); err != nil {
		return nil, nil, err
	}
	order := rand.New(rand.NewPCG(uint64(o.Seed), 7))
	for pair := range o.Runs {
		// Whatever drifts has no side: which comes first is drawn.
		first := order.IntN(2) == 0
		for _, sampling := range []bool{first, !first} {
			row, err := b.window(ctx, sampling)
			if err != nil {
				return rows, nil, err
			}
			row["pair"] = pair
			rows = append(rows, row)
			o.logf("pair %d, looked at %v: %.0f steps/s, longest %.1f ms, %v surveys", pair, sampling, row["steps_per_s"], row["longest_ms"], row["surveys"])
		}
	}
	return rows, b.summarise(rows), nil
}

// signalsBench is a run of the benchmark.
type signalsBench struct {
	Options
	lab   *wanLab
	guest *control.Client
	// agent is the process of the host's agent.
	agent int
	// gaps of all windows, with the agent and without.
	gaps map[bool][]control.Gaps
	// looks are the windows with the agent, alone the long gaps of those without.
	looks []looked
	alone [][]control.Gap
}

// looked is a window: when the agent looked at the guest, and the guest's long gaps.
type looked struct {
	spans []span
	gaps  []control.Gap
}

// prepare gives the guest something to be looked at, and the agent its pace.
func (b *signalsBench) prepare(ctx context.Context) error {
	var err error
	if b.guest, err = b.lab.trial.Guest(b.lab.client, signalsGuest); err != nil {
		return err
	}
	if err := b.guest.StartMemory(ctx, control.Memory{WorkingSetBytes: signalsMemory, Compressible: 0.5}); err != nil {
		return err
	}
	n, err := b.lab.Node(signalsHost)
	if err != nil {
		return err
	}
	file := filepath.Join(n.Dir, "run", "drover", "conf", "agent.yaml")
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if err := os.WriteFile(file, append(text, signalsDense...), 0o600); err != nil {
		return err
	}
	if _, err := b.lab.Service(ctx, signalsHost, node.Restart, "agent"); err != nil {
		return err
	}
	if b.agent, err = b.agentProcess(); err != nil {
		return err
	}
	b.gaps = map[bool][]control.Gaps{}
	// The first survey, and all that an agent does when it starts.
	return sleep(ctx, signalsWindow)
}

// agentProcess finds the host's agent among the machine's processes.
func (b *signalsBench) agentProcess() (int, error) {
	holder, err := b.lab.Holder(signalsHost)
	if err != nil {
		return 0, err
	}
	space, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", holder))
	if err != nil {
		return 0, err
	}
	dirs, _ := filepath.Glob("/proc/[0-9]*") // the pattern is right
	for _, dir := range dirs {
		its, err := os.Readlink(dir + "/ns/pid")
		line, err2 := os.ReadFile(dir + "/cmdline")
		if err == nil && err2 == nil && its == space && strings.Contains(string(line), "\x00agent\x00--config\x00") {
			return strconv.Atoi(filepath.Base(dir))
		}
	}
	return 0, errors.New("host " + signalsHost + " has no agent")
}

// window has the guest work for a while, with the agent or without.
func (b *signalsBench) window(ctx context.Context, sampling bool) (Row, error) {
	signal := syscall.SIGSTOP
	if sampling {
		signal = syscall.SIGCONT
	}
	if err := syscall.Kill(b.agent, signal); err != nil {
		return nil, fmt.Errorf("stop or continue the agent: %w", err)
	}
	if err := sleep(ctx, signalsSettle); err != nil {
		return nil, err
	}
	before, err := b.spent(ctx, sampling)
	if err != nil {
		return nil, err
	}
	watch, err := watchSurveys(b.agent)
	if err != nil {
		return nil, err
	}
	stats, err := b.guest.Spin(ctx, control.Spin{DurationMS: signalsWindow.Milliseconds()})
	spans := watch.end()
	if err != nil {
		return nil, err
	}
	after, err := b.spent(ctx, sampling)
	if err != nil {
		return nil, err
	}
	b.gaps[sampling] = addGaps(b.gaps[sampling], stats.Gaps)
	if sampling {
		b.looks = append(b.looks, looked{spans, stats.Long})
	} else {
		b.alone = append(b.alone, stats.Long)
	}
	longest, over := within(stats.Long, spans, 0, signalsWindow)
	seconds := stats.DurationMS / 1e3
	return Row{
		"looks_s": total(spans).Seconds(), "looks_longest_ms": longest, "looks_over_5ms": int64(over),
		"sampling": sampling, "seconds": seconds, "steps_per_s": float64(stats.Steps) / seconds, "longest_ms": stats.LongestMS,
		"step_p50_ms": gapQuantile(stats.Gaps, 0.5), "step_p999_ms": gapQuantile(stats.Gaps, 0.999),
		"over_1ms_per_s": gapsOver(stats.Gaps, 1) / seconds, "over_5ms_per_s": gapsOver(stats.Gaps, signalsMostPause) / seconds,
		"surveys": int64(after.surveys - before.surveys), "survey_cpu_s": after.survey - before.survey, "agent_cpu_s": after.cpu - before.cpu,
	}, nil
}

// agentSpent is what an agent has used so far, in seconds of a processor: its thread
// that looks at guests, and all of it.
type agentSpent struct{ surveys, survey, cpu float64 }

// spent reads an agent's figures; one that stands still uses nothing.
func (b *signalsBench) spent(ctx context.Context, sampling bool) (s agentSpent, err error) {
	if !sampling {
		return s, nil
	}
	used, _, err := processTime("/proc/" + strconv.Itoa(b.agent))
	if err != nil {
		return s, err
	}
	s.cpu = used.Seconds()
	threads, err := surveyThreads(b.agent)
	if err != nil {
		return s, err
	}
	for _, file := range threads {
		d, err := threadTime(file)
		if err != nil {
			return s, err
		}
		s.survey += d.Seconds()
	}
	s.surveys, err = b.metric(ctx, "drover_signals_surveys_total")
	return s, err
}

// metric asks the agent for one of its metrics.
func (b *signalsBench) metric(ctx context.Context, name string) (float64, error) {
	n, err := b.lab.Node(signalsHost)
	if err != nil {
		return 0, err
	}
	conn, err := b.lab.Dial(ctx, signalsHost, "tcp", net.JoinHostPort(n.Address, lab.MetricsPort))
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(signalsWindow)); err != nil {
		return 0, err
	}
	if _, err := io.WriteString(conn, "GET /metrics HTTP/1.0\r\n\r\n"); err != nil {
		return 0, err
	}
	lines := bufio.NewScanner(conn)
	for lines.Scan() {
		if value, ok := strings.CutPrefix(lines.Text(), name+" "); ok {
			return strconv.ParseFloat(value, 64)
		}
	}
	return 0, errors.Join(fmt.Errorf("the agent has no metric %s", name), lines.Err())
}

// summarise compares the windows pair by pair. What is lost to surveys one after
// another is scaled to the usual pace.
func (b *signalsBench) summarise(rows []Row) map[string]any {
	var share, longer, longestOn, longestOff []float64
	var surveys, survey, cpu, seconds float64
	for i := 0; i+1 < len(rows); i += 2 {
		on, off := rows[i], rows[i+1]
		if on["sampling"] != true {
			on, off = off, on
		}
		number := func(r Row, key string) float64 { v, _ := r[key].(float64); return v }
		share = append(share, 1-number(on, "steps_per_s")/number(off, "steps_per_s"))
		longestOn, longestOff = append(longestOn, number(on, "longest_ms")), append(longestOff, number(off, "longest_ms"))
		longer = append(longer, number(on, "longest_ms")-number(off, "longest_ms"))
		n, _ := on["surveys"].(int64)
		surveys, survey = surveys+float64(n), survey+number(on, "survey_cpu_s")
		cpu, seconds = cpu+number(on, "agent_cpu_s"), seconds+number(on, "seconds")
	}
	if len(share) == 0 || surveys == 0 || len(b.alone) == 0 {
		return map[string]any{"pairs": len(share), "ok": false}
	}
	usual := agent.UsualSurvey.Seconds()
	// How much oftener than usual the guest was looked at.
	density := surveys / seconds * usual
	lost, own := quantile(share, 0.5)/density, survey/surveys/usual
	summary := map[string]any{
		"pairs": len(share), "surveys": int64(surveys), "density": density,
		"share_lost_dense_p10": quantile(share, 0.1), "share_lost_dense_p50": quantile(share, 0.5), "share_lost_dense_p90": quantile(share, 0.9),
		"share_lost_dense_error": standardError(share), "share_lost": lost,
		"survey_cpu_s": survey / surveys, "survey_cpu_share": own, "agent_cpu_share_dense": cpu / seconds,
		"longest_on_ms_p50": quantile(longestOn, 0.5), "longest_off_ms_p50": quantile(longestOff, 0.5),
		"longest_on_ms_max": slices.Max(longestOn), "longest_off_ms_max": slices.Max(longestOff),
		"longer_ms_p50": quantile(longer, 0.5), "longer_ms_p90": quantile(longer, 0.9),
	}
	for _, q := range []float64{0.5, 0.99, 0.999, 0.9999} {
		key := strings.ReplaceAll(strconv.FormatFloat(100*q, 'f', -1, 64), ".", "_")
		summary["step_on_ms_p"+key], summary["step_off_ms_p"+key] = gapQuantile(b.gaps[true], q), gapQuantile(b.gaps[false], q)
	}
	for _, over := range []float64{1, 2, 5, 10} {
		key := fmt.Sprintf("_over_%gms_per_s", over)
		summary["on"+key], summary["off"+key] = gapsOver(b.gaps[true], over)/seconds, gapsOver(b.gaps[false], over)/seconds
	}
	b.pauses(summary)
	// The guest's loss and the host's own work, both of one processor.
	summary["share_ok"] = max(0, lost)+own <= signalsMostShare
	summary["pause_ok"] = summary["pause_ms"].(float64) <= signalsMostPause
	summary["ok"] = summary["share_ok"] == true && summary["pause_ok"] == true
	return summary
}

// shifts is how many times the looks are laid over the windows without any.
const shifts = 200

// pauses compares how long the guest stood still while it was looked at with how
// long it would have anyway: the very same times, moved on by chance, in windows in
// which nobody looked.
func (b *signalsBench) pauses(summary map[string]any) {
	var with, without []float64
	seconds, over, chance := 0.0, 0, 0.0
	random := rand.New(rand.NewPCG(uint64(b.Seed), 8))
	for _, w := range b.looks {
		longest, n := within(w.gaps, w.spans, 0, signalsWindow)
		with, over, seconds = append(with, longest), over+n, seconds+total(w.spans).Seconds()
		for range shifts {
			alone := b.alone[random.IntN(len(b.alone))]
			longest, n := within(alone, w.spans, time.Duration(random.Int64N(int64(signalsWindow))), signalsWindow)
			without, chance = append(without, longest), chance+float64(n)/shifts
		}
	}
	summary["looks_s"] = seconds
	summary["looks_over_5ms_per_s"], summary["chance_over_5ms_per_s"] = float64(over)/seconds, chance/seconds
	for _, q := range []float64{0.5, 0.9} {
		key := fmt.Sprintf("_longest_ms_p%g", 100*q)
		summary["looks"+key], summary["chance"+key] = quantile(with, q), quantile(without, q)
	}
	summary["looks_longest_ms_max"], summary["chance_longest_ms_max"] = slices.Max(with), slices.Max(without)
	summary["pause_ms"] = max(0, quantile(with, 0.5)-quantile(without, 0.5))
}

// standardError is that of the values' mean.
func standardError(values []float64) float64 {
	mean, sum := 0.0, 0.0
	for _, v := range values {
		mean += v / float64(len(values))
	}
	for _, v := range values {
		sum += (v - mean) * (v - mean)
	}
	if len(values) < 2 {
		return -1 // JSON has no NaN
	}
	return math.Sqrt(sum / float64(len(values)-1) / float64(len(values)))
}

// addGaps adds up two histograms.
func addGaps(a, b []control.Gaps) []control.Gaps {
	sum := slices.Clone(a)
	for _, g := range b {
		i, found := slices.BinarySearchFunc(sum, g.UpToMS, func(h control.Gaps, up float64) int {
			switch {
			case h.UpToMS < up:
				return -1
			case h.UpToMS > up:
				return 1
			}
			return 0
		})
		if found {
			sum[i].Count += g.Count
		} else {
			sum = slices.Insert(sum, i, g)
		}
	}
	return sum
}

// gapQuantile is the bound below which that part of the steps was; -1 of none.
func gapQuantile(gaps []control.Gaps, q float64) float64 {
	all := int64(0)
	for _, g := range gaps {
		all += g.Count
	}
	seen := int64(0)
	for _, g := range gaps {
		if seen += g.Count; float64(seen) >= q*float64(all) && all > 0 {
			return g.UpToMS
		}
	}
	return -1
}

// gapsOver counts the steps that took longer, as far as the buckets tell.
func gapsOver(gaps []control.Gaps, ms float64) float64 {
	n := int64(0)
	for _, g := range gaps {
		if g.UpToMS > ms {
			n += g.Count
		}
	}
	return float64(n)
}
