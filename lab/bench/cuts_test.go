package bench

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPlanCuts(t *testing.T) {
	plan := planCuts(1, 20)
	if again := planCuts(1, 20); !slices.EqualFunc(plan, again, slices.Equal[[]plannedCut]) {
		t.Error("the same seed gives other cuts")
	}
	if other := planCuts(2, 20); slices.EqualFunc(plan, other, slices.Equal[[]plannedCut]) {
		t.Error("another seed gives the same cuts")
	}
	total, phases := 0, make([]int, len(cutPhases))
	for m, cuts := range plan {
		if n := len(cuts); n != 2 && n != 3 {
			t.Errorf("move %d has %d cuts, want 2 or 3", m, n)
		}
		total += len(cuts)
		last := 0
		for _, c := range cuts {
			phases[c.phase]++
			if c.phase < last {
				t.Errorf("move %d: a cut in phase %d comes after one in %d", m, c.phase, last)
			}
			last = c.phase
			if c.length < leastCut || c.length > mostCut || c.after < 0 || c.after > cutPhases[c.phase].mostDelay {
				t.Errorf("move %d: %+v is out of bounds", m, c)
			}
		}
	}
	if total != 50 {
		t.Errorf("%d cuts over 20 moves, want 50", total)
	}
	for i, n := range phases {
		if n == 0 {
			t.Errorf("no cut in phase %s", cutPhases[i].name)
		}
	}
}

func TestUnacknowledged(t *testing.T) {
	const list = `0      0           10.1.0.2:7443      10.2.0.2:40212
0      103524      10.1.0.2:53412     10.2.0.2:7443
12     80205       10.1.0.2:53414     10.2.0.2:7443
0      77          10.1.0.2:22        10.2.0.2:17443
`
	if got, want := unacknowledged(list), int64(103524+80205); got != want {
		t.Errorf("%d bytes, want %d", got, want)
	}
}

func TestSummariseCuts(t *testing.T) {
	row := func(ok bool, state string, again int64, phases ...string) Row {
		return Row{
			"case": caseRandom, "ok": ok, "state": state, "cuts": len(phases), "cut_s": 2.5 * float64(len(phases)), "phases": phases,
			"lost_writes": int64(0), "sessions_lost": int64(-1), "retransmitted_bytes": again, "sent_bytes": int64(1000), "corrupt_found": int64(0),
		}
	}
	got := summariseCuts(Options{Seed: 7}, []Row{row(true, "done", 5, phaseDisk, phaseMemory), row(false, "undone", -1, phaseMemory)}, 3)
	want := map[string]any{
		"seed": int64(7), "cuts_not_made": 3,
		caseRandom: map[string]any{
			"moves": 2, "ok": 1, "cuts": 3, "cut_s": 7.5, "states": map[string]int{"done": 1, "undone": 1},
			"phases": map[string]int{phaseDisk: 1, phaseMemory: 2}, "lost_writes": int64(0), "sessions_lost": int64(0),
			"retransmitted_bytes": int64(5), "sent_bytes": int64(2000),
		},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}
