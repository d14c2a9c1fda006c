package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/drover-vm/drover/lab"
	"github.com/drover-vm/drover/lab/trial"
)

// emulatorLab is two sites without hosts: their edges speak to each other over
// one link.
const emulatorLab = `name: bench-wanem
server: a
sites:
  - {name: a, transport: 10.1.0.0/24}
  - {name: b, transport: 10.2.0.0/24}
links:
  - {a: a, b: b, rate: unlimited, delay: 0s, mtu: 1500}
`

// What the emulator promises.
const (
	rateWithin    = 0.05 // of the rate set
	rttWithin     = 1.0  // milliseconds of the round trip set
	leastUnshaped = 1e9  // bit/s on at most one core
)

// pings per measurement, and seconds of TCP after two of start.
const (
	pings      = 50
	tcpSeconds = 5
)

// emulator measures the lab's WAN against what was set, from edge to edge.
func emulator(ctx context.Context, o Options) (rows []Row, summary map[string]any, err error) {
	if o.Runs == 0 {
		o.Runs = 1
	}
	dir, err := os.MkdirTemp("", "drover-bench-")
	if err != nil {
		return nil, nil, err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "wanem.yaml")
	if err := os.WriteFile(file, []byte(emulatorLab), 0o600); err != nil {
		return nil, nil, err
	}
	t := &trial.Lab{Bin: o.Bin, Name: "bench-wanem", Log: o.Log}
	defer func() { err = errors.Join(err, t.Down(context.WithoutCancel(ctx))) }()
	if err := trial.Up(ctx, t, file); err != nil {
		return nil, nil, err
	}
	e, err := newEmulatorRun(ctx, t)
	if err != nil {
		return nil, nil, err
	}
	defer e.stop()
	for run := range o.Runs {
		for _, set := range []struct {
			rate  int64
			delay time.Duration
		}{
			{0, 0},
			{10e6, 25 * time.Millisecond},
			{100e6, 25 * time.Millisecond},
			{200e6, 25 * time.Millisecond},
			{622e6, 5 * time.Millisecond},
			{1e9, 50 * time.Millisecond},
		} {
			row := Row{"set_bps": set.rate, "set_rtt_ms": 2 * float64(set.delay) / float64(time.Millisecond), "run": run}
			if !o.wants(row) {
				continue
			}
			if err := e.measure(ctx, row, set.rate, set.delay); err != nil {
				return rows, nil, err
			}
			o.logf("%v", row)
			rows = append(rows, row)
		}
	}
	good := 0
	for _, r := range rows {
		if r["ok"] == true {
			good++
		}
	}
	return rows, map[string]any{"rows": len(rows), "ok": good}, nil
}

// emulatorRun is the lab with an iperf3 server at the far edge.
type emulatorRun struct {
	trial     *trial.Lab
	lab       *lab.Lab
	near      string
	far       string
	farAddr   string
	stopIperf context.CancelFunc
	done      chan error
}

func newEmulatorRun(ctx context.Context, t *trial.Lab) (*emulatorRun, error) {
	l, err := lab.Open(lab.Options{Exe: t.Bin}, t.Name)
	if err != nil {
		return nil, err
	}
	e := &emulatorRun{trial: t, lab: l, done: make(chan error, 1)}
	for _, n := range l.Nodes {
		switch {
		case n.Role == "edge" && n.Site == "a":
			e.near = n.Name
		case n.Role == "edge" && n.Site == "b":
			e.far, e.farAddr = n.Name, n.Address
		}
	}
	if e.near == "" || e.far == "" {
		return nil, errors.New("the lab has not two edges")
	}
	sctx, cancel := context.WithCancel(ctx)
	e.stopIperf = cancel
	cmd, err := l.Command(sctx, e.far, "iperf3", "--server", "--bind", e.farAddr)
	if err != nil {
		cancel()
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		cancel()
		return nil, err
	}
	go func() { e.done <- cmd.Wait() }()
	return e, nil
}

func (e *emulatorRun) stop() {
	e.stopIperf()
	<-e.done
}

// measure fills row with what a link with these settings really does.
func (e *emulatorRun) measure(ctx context.Context, row Row, rate int64, delay time.Duration) error {
	spec := "unlimited"
	if rate > 0 {
		spec = strconv.FormatInt(rate, 10)
	}
	if err := e.trial.Drover(ctx, nil, "lab", "link", "a", "b", "--rate", spec, "--delay", delay.String()); err != nil {
		return err
	}
	out, err := e.trial.Exec(ctx, e.near, "ping", "-n", "-q", "-i", "0.02", "-c", strconv.Itoa(pings), e.farAddr)
	if err != nil {
		return err
	}
	rtt, err := averageRTT(string(out))
	if err != nil {
		return err
	}
	before, start := e.cpu(), time.Now()
	out, err = e.trial.Exec(ctx, e.near, "iperf3", "--client", e.farAddr, "--json", "--omit", "2", "--time", strconv.Itoa(tcpSeconds))
	if err != nil {
		return err
	}
	cores := (e.cpu() - before).Seconds() / time.Since(start).Seconds()
	var result struct {
		End struct {
			Received struct {
				Rate float64 `json:"bits_per_second"`
			} `json:"sum_received"`
			Sent struct {
				Retransmits int64 `json:"retransmits"`
			} `json:"sum_sent"`
		} `json:"end"`
	}
	if err := json.Unmarshal(out, &result); err != nil {
		return fmt.Errorf("iperf3: %w", err)
	}
	got := result.End.Received.Rate
	row["tcp_bps"], row["rtt_ms"], row["cores"], row["retransmits"] = got, rtt, cores, result.End.Sent.Retransmits
	row["rtt_ok"] = abs(rtt-row["set_rtt_ms"].(float64)) <= rttWithin
	if rate == 0 {
		row["rate_ok"] = got >= leastUnshaped*max(1, cores)
	} else {
		// TCP's payload is 1448 of 1514 bytes on the wire.
		onWire := got * 1514 / 1448
		row["of_set"] = onWire / float64(rate)
		row["rate_ok"] = abs(onWire/float64(rate)-1) <= rateWithin
	}
	row["ok"] = row["rate_ok"] == true && row["rtt_ok"] == true
	return nil
}

// cpu is the processor time that the emulator has used so far.
func (e *emulatorRun) cpu() time.Duration {
	pid, err := e.lab.EmulatorPID()
	if err != nil {
		return 0
	}
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// After the command's closing bracket, utime and stime are fields 12 and
	// 13, in ticks of a hundredth of a second (proc(5)).
	_, rest, _ := strings.Cut(string(raw), ") ")
	f := strings.Fields(rest)
	if len(f) < 13 {
		return 0
	}
	u, _ := strconv.ParseInt(f[11], 10, 64)
	s, _ := strconv.ParseInt(f[12], 10, 64)
	return time.Duration(u+s) * 10 * time.Millisecond
}

// averageRTT reads ping's average round trip in milliseconds.
func averageRTT(out string) (float64, error) {
	_, stats, found := strings.Cut(out, "mdev = ")
	parts := strings.Split(stats, "/")
	if !found || len(parts) < 4 {
		return 0, fmt.Errorf("ping: no statistics in %q", out)
	}
	return strconv.ParseFloat(parts[1], 64)
}

func abs(v float64) float64 { return max(v, -v) }
