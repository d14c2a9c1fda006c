package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/lab"
	"github.com/drover-vm/drover/lab/guest/control"
	"github.com/drover-vm/drover/lab/trial"
	"github.com/drover-vm/drover/lab/wanem"
)

const (
	cutsLabName = "cuts"
	cutsVM      = "sheep1"
)

// cutsLab is one link and one guest. The guest's client is at north, so that its
// sessions cross the link that is cut while the guest is at south.
const cutsLab = `
name: cuts
server: north
sites:
  - name: north
    transport: 10.1.0.0/24
    access: 10.1.9.0/24
    hosts: [{name: n1}]
  - name: south
    transport: 10.2.0.0/24
    hosts: [{name: s1}]
links:
  - {a: north, b: south, rate: 40Mbit, rtt: 20ms}
segments:
  - {name: blue, subnet: 10.50.0.0/24, sites: [north, south]}
clients:
  - {name: c1, site: north, address: 10.1.9.10}
guests:
  - name: sheep1
    host: n1
    image: sheep
    memory: 128MiB
    segment: blue
    address: 10.50.0.11
    disk: {size: 64MiB}
`

// What the guest does. Before each move it makes all of its working set and a
// good part of its disk anew, of random content, so that nothing of it is at
// the destination and every phase lasts for seconds. During the move it goes on
// slowly.
var (
	cutsChurnMemory = control.Memory{WorkingSetBytes: 40 << 20, RateBytesPerS: 40e6}
	cutsChurnDisk   = control.Disk{RateBytesPerS: 8e6, BlockBytes: 64 << 10}
	cutsMemory      = control.Memory{WorkingSetBytes: 40 << 20, RateBytesPerS: 500e3}
	cutsDisk        = control.Disk{RateBytesPerS: 200e3, BlockBytes: 64 << 10}
)

const (
	// cutsChurn is how long it makes itself anew.
	cutsChurn = 3 * time.Second
	// cutsPerTwoMoves are the cuts over a pair of moves: 50 over 20.
	cutsPerTwoMoves = 5
	leastCut        = 100 * time.Millisecond
	mostCut         = 20 * time.Second
	longCut         = 30 * time.Second
	// cutsMoveLimit bounds one move with its cuts; one that takes longer hangs.
	cutsMoveLimit = 6 * time.Minute
)

// The phases that a cut can be meant for.
const (
	phaseDisk       = "disk"
	phaseMemory     = "memory"
	phaseSwitchover = "switchover"
)

// cutPhases are in the order in which a move has them. mostDelay is how long
// after a phase began a cut may come: about as long as the phase lasts on this
// link, so that every moment of it is hit.
var cutPhases = []struct {
	name      string
	weight    int
	mostDelay time.Duration
}{
	{phaseDisk, 35, 4 * time.Second},
	{phaseMemory, 40, 9 * time.Second},
	{phaseSwitchover, 25, 400 * time.Millisecond},
}

// plannedCut is when a cut comes and how long it lasts.
type plannedCut struct {
	phase         int // in cutPhases
	after, length time.Duration
}

// planCuts draws the cuts of a number of moves. The same seed gives the same.
func planCuts(seed int64, moves int) [][]plannedCut {
	random := rand.New(rand.NewPCG(uint64(seed), 1))
	span := func(least, most time.Duration) time.Duration {
		return (least + time.Duration(random.Int64N(int64(most-least)+1))).Round(time.Millisecond)
	}
	plan := make([][]plannedCut, moves)
	// Each move has its share, what does not divide goes to random ones.
	turn := random.Perm(moves)
	for i := range (moves*cutsPerTwoMoves + 1) / 2 {
		draw, phase := random.IntN(100), 0
		for draw >= cutPhases[phase].weight {
			draw -= cutPhases[phase].weight
			phase++
		}
		m := turn[i%moves]
		plan[m] = append(plan[m], plannedCut{phase, span(0, cutPhases[phase].mostDelay), span(leastCut, mostCut)})
	}
	for m := range plan {
		slices.SortStableFunc(plan[m], func(a, b plannedCut) int { return a.phase - b.phase })
	}
	return plan
}

// The cases of the benchmark.
const (
	caseRandom = "random" // the drawn cuts
	caseLong   = "long"   // half a minute in the middle of each phase
	caseFlip   = "flip"   // flipped bits instead of cuts
)

// flipEvery are the segments with payload to one flipped bit: two, seven and
// thirty in the time that the link takes for the working set.
var flipEvery = []int{15000, 4000, 1000}

// cuts moves a working guest back and forth while its link is cut at random
// moments, for half a minute at the worst ones, and while bits are flipped on it.
func cuts(ctx context.Context, o Options) (rows []Row, summary map[string]any, err error) {
	if o.Runs == 0 {
		o.Runs = 20
	}
	if o.LabFile != "" || o.Guest != "" {
		return nil, nil, drover.Errorf(drover.Invalid, "bench cuts", "--lab and --guest: it has a lab of its own")
	}
	b := &cutsBench{Options: o, trial: &trial.Lab{Bin: o.Bin, Name: cutsLabName, Log: o.Log}}
	defer func() { err = errors.Join(err, b.trial.Down(context.WithoutCancel(ctx))) }()
	if err := b.up(ctx); err != nil {
		return nil, nil, err
	}
	run := func(row Row, plan []plannedCut, flip int) ([]plannedCut, error) {
		if !o.wants(row) {
			return nil, nil
		}
		left := b.move(ctx, row, plan, flip)
		o.logf("%s move %v: %v at %v after %.0f s, phases %v, cut %.1f s, lost writes %v, sessions %v, again %v of %v bytes, ok %v %v",
			row["case"], row["move"], row["state"], row["running_on"], row["total_s"], row["phases"], row["cut_s"],
			row["lost_writes"], row["sessions_lost"], row["retransmitted_bytes"], row["sent_bytes"], row["ok"], row["fault"])
		rows = append(rows, row)
		return left, ctx.Err()
	}
	n := 0
	next := func(kind string) Row { n++; return Row{"case": kind, "move": n} }
	// The first from north, where the sessions do not cross the link: a client
	// that is cut off itself for half a minute proves nothing.
	if _, err := run(next(caseLong), []plannedCut{
		{0, 2 * time.Second, longCut}, {1, 4 * time.Second, longCut},
	}, 0); err != nil {
		return rows, nil, err
	}
	var left []plannedCut
	for _, plan := range planCuts(o.Seed, o.Runs) {
		if left, err = run(next(caseRandom), append(left, plan...), 0); err != nil {
			return rows, nil, err
		}
	}
	for _, every := range flipEvery {
		if _, err := run(next(caseFlip), nil, every); err != nil {
			return rows, nil, err
		}
	}
	return rows, summariseCuts(o, rows, len(left)), nil
}

// cutsBench is a run of the benchmark.
type cutsBench struct {
	Options
	trial *trial.Lab
	lab   *lab.Lab
	link  string
	guest *control.Client
}

// up starts the lab and waits for the guest.
func (b *cutsBench) up(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "drover-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, cutsLabName+".yaml")
	if err := os.WriteFile(file, []byte(cutsLab), 0o600); err != nil {
		return err
	}
	if err := trial.Up(ctx, b.trial, file); err != nil {
		return err
	}
	if b.lab, err = lab.Open(lab.Options{Exe: b.Bin}, cutsLabName); err != nil {
		return err
	}
	b.link = b.lab.Links[0].Name
	if b.guest, err = b.trial.Guest("c1", cutsVM); err != nil {
		return err
	}
	return trial.WaitHealthy(ctx, b.guest)
}

// shape changes the link.
func (b *cutsBench) shape(ctx context.Context, change wanem.ShapeChange) error {
	_, err := b.lab.SetLink(ctx, b.link, change)
	return err
}

// summariseCuts counts.
func summariseCuts(o Options, rows []Row, notMade int) map[string]any {
	summary := map[string]any{"seed": o.Seed, "cuts_not_made": notMade}
	for _, kind := range []string{caseRandom, caseLong, caseFlip} {
		c := map[string]any{}
		var moves, good, made int
		var lost, sessions, again, sent, corrupt int64
		var seconds float64
		states, phases := map[string]int{}, map[string]int{}
		for _, r := range rows {
			if r["case"] != kind {
				continue
			}
			moves++
			if r["ok"] == true {
				good++
			}
			made += r["cuts"].(int)
			seconds += r["cut_s"].(float64)
			states[fmt.Sprint(r["state"])]++
			for _, p := range r["phases"].([]string) {
				phases[p]++
			}
			lost += max(0, r["lost_writes"].(int64))
			sessions += max(0, r["sessions_lost"].(int64))
			again += max(0, r["retransmitted_bytes"].(int64))
			sent += max(0, r["sent_bytes"].(int64))
			corrupt += max(0, r["corrupt_found"].(int64))
		}
		if moves == 0 {
			continue
		}
		c["moves"], c["ok"], c["cuts"], c["cut_s"], c["states"], c["phases"] = moves, good, made, seconds, states, phases
		c["lost_writes"], c["sessions_lost"], c["retransmitted_bytes"], c["sent_bytes"] = lost, sessions, again, sent
		if kind == caseFlip {
			c["corrupt_found"] = corrupt
		}
		summary[kind] = c
	}
	return summary
}
