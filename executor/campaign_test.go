package executor_test

import (
	"flag"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/executor"
	"github.com/drover-vm/drover/executor/executortest"
)

// moves are the methods and the ways in which a VM can be before.
var moves = map[string]scenario{
	"live":          {method: drover.Live},
	"live kept":     {method: drover.Live, keep: true},
	"cold":          {method: drover.Cold},
	"cold off":      {method: drover.Cold, off: true},
	"cold off kept": {method: drover.Cold, off: true, keep: true},

	"cold gated":      {method: drover.Cold, gate: &drover.Gate{Health: httpCheck}},
	"cold gated off":  {method: drover.Cold, gate: &drover.Gate{Manual: true}, word: "commit", off: true},
	"warm":            {method: drover.Warm},
	"warm gated":      {method: drover.Warm, gate: &drover.Gate{}},
	"warm gated kept": {method: drover.Warm, gate: &drover.Gate{Manual: true}, word: "commit", keep: true},

	"stretch":      {method: drover.Stretch},
	"stretch home": {method: drover.Stretch, back: drover.Stretch},
	"route":        {method: drover.Route},
	"route home":   {method: drover.Route, back: drover.Route, quiet: "prepare-edge"},

	"renumber":      {method: drover.Renumber},
	"renumber dhcp": {method: drover.Renumber, dhcp: true, quiet: "add-address"},

	"stretch stay": {method: drover.Stretch, stay: true},
	"disks":        {method: drover.Disks},

	"spawn":          {method: drover.Spawn},
	"redirect":       {method: drover.Redirect},
	"redirect added": {method: drover.Redirect, back: drover.Redirect},
}

var httpCheck = &drover.HealthCheck{Kind: drover.HealthHTTP, Target: "http://192.0.2.7/"}

// full tries everything everywhere: minutes on two cores.
var full = flag.Bool("full", false, "leave nothing out of the campaigns")

// kinds are all kinds of failure.
var kinds = []drover.Kind{
	drover.Internal, drover.Invalid, drover.NotFound, drover.Exists, drover.Refused, drover.Unavailable,
	drover.Canceled, drover.Denied, drover.Exhausted, drover.Corrupt, drover.Unknown,
}

// once makes the fault befall only the first n calls that match.
func once(n int, match func(executortest.Call) bool, f func(*executortest.World, executortest.Call) error) func(*executortest.World, executortest.Call) error {
	var mu sync.Mutex
	return func(w *executortest.World, c executortest.Call) error {
		mu.Lock()
		hit := n > 0 && match(c)
		if hit {
			n--
		}
		mu.Unlock()
		if !hit {
			return nil
		}
		return f(w, c)
	}
}

func fail(k drover.Kind) func(*executortest.World, executortest.Call) error {
	return func(*executortest.World, executortest.Call) error {
		return drover.Errorf(k, "test", "made to fail with %v", k)
	}
}

// at matches calls for that step; after, when they have been answered.
func at(step string, after bool) func(executortest.Call) bool {
	return func(c executortest.Call) bool { return c.Step == step && c.After == after }
}

func stepsOf(t *testing.T, sc scenario) []string {
	t.Helper()
	table, err := executor.Table(request(sc))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range table {
		names = append(names, s.Name)
	}
	return names
}

// failings are the steps whose failure a scenario is tried with, beside none:
// all of the live and the cold move; of the others only those that they do not
// share with these, and of the variants only the pivot, about which they differ.
func failings(t *testing.T, sc scenario) []string {
	steps := stepsOf(t, sc)
	table, _ := executor.Table(request(sc))
	switch {
	case sc.stay:
		steps = []string{"attach-disks", "transfer"}
	case sc.off || sc.keep || sc.dhcp:
		steps = steps[table.Pivot() : table.Pivot()+1]
	case sc.gate != nil && sc.method == drover.Cold:
		steps = []string{"start", "gate", "commit"}
	case sc.gate != nil:
		steps = []string{"commit"}
	case sc.method == drover.Warm:
		steps = []string{"replicate", "copy-changes"}
	case sc.method == drover.Renumber:
		steps = []string{"reserve-lease", "add-address", "transfer"}
	case sc.method == drover.Spawn:
		steps = []string{"commit"}
	case sc.back == drover.Redirect:
		steps = nil
	case sc.method == drover.Redirect:
		steps = []string{"shift"}
	}
	return append(slices.Clone(steps), "")
}

// stride is how far apart the points are at which something befalls a scenario. They share no factor with the calls of a
// step, so that all moments of steps are met, and with -full it is each one.
func (sc scenario) stride() int {
	switch {
	case *full:
		return 1
	case sc.plain():
		return 5
	default:
		return 23
	}
}

// plain reports whether a scenario is the live or the cold move itself, of whose steps the others are mostly made.
func (sc scenario) plain() bool {
	return (sc.method == drover.Live || sc.method == drover.Cold) && !sc.off && !sc.keep && sc.gate == nil
}

// first is the first point of a scenario: not the same for all.
func (sc scenario) first(name string) int {
	h := fnv.New32a()
	_, _ = h.Write([]byte(name))
	return 1 + int(h.Sum32())%sc.stride()
}

// kinds are those that the i-th step of a scenario fails with: all of them, or some that are others for the next
// step.
func (sc scenario) kinds(i int) []drover.Kind {
	if *full || sc.plain() {
		return kinds
	}
	var some []drover.Kind
	for n := range 3 {
		some = append(some, kinds[(i+4*n)%len(kinds)])
	}
	return some
}

func want(t *testing.T, name string, st *story, state drover.MoveState) {
	t.Helper()
	if st.move.State != state {
		t.Errorf("%s: the move is %s (%s), want %s", name, st.move.State, st.move.Fault, state)
	}
}

func TestNothingBefalls(t *testing.T) {
	for name, sc := range moves {
		st := bubble(t, name, sc)
		want(t, name, st, drover.MoveDone)
		m := st.move
		if m.Generation != 1 || m.Measured.TotalSeconds == nil || *m.Measured.TotalSeconds <= 0 {
			t.Errorf("%s: generation %d, measured %+v", name, m.Generation, m.Measured)
		}
		if !sc.off && !sc.method.Makes() && sc.method != drover.Disks && (m.Measured.PauseMillis == nil || *m.Measured.PauseMillis <= 0) {
			t.Errorf("%s: its guest paused, but no pause was measured", name)
		}
		for _, s := range m.Steps {
			if s.Attempts != 1 || s.Started.IsZero() || s.Ended.Before(s.Started) {
				t.Errorf("%s: step %+v", name, s)
			}
		}
	}
}

// Every step fails once: before the agent hears of it (nothing was done), and
// after (all was done). Before the pivot the move is undone, or goes on where
// nobody knows; from the pivot on it is done in the end.
func TestEveryStepFailsOnce(t *testing.T) {
	for name, sc := range moves {
		table, err := executor.Table(request(sc))
		if err != nil {
			t.Fatal(err)
		}
		for i, step := range table {
			if sc.quietAt(step.Name) {
				continue
			}
			for _, kind := range sc.kinds(i) {
				for _, after := range []bool{false, true} {
					name := fmt.Sprintf("%s: %s fails once with %v, after %v", name, step.Name, kind, after)
					sc := sc
					sc.fault = once(1, at(step.Name, after), fail(kind))
					if step.Name == "verify" && kind == drover.NotFound {
						wantStuck(t, name, sc, "destination does not have the VM")
						continue
					}
					st := bubble(t, name, sc)
					switch pivot := table.Pivot(); {
					case kind.Retryable(), i > pivot:
						want(t, name, st, drover.MoveDone)
					case i < pivot, !after, sc.off && sc.gate == nil:
						// A VM that stays off has not passed until that is known.
						want(t, name, st, drover.MoveUndone)
					default: // the pivot has passed, though its answer says otherwise
						want(t, name, st, drover.MoveDone)
					}
				}
			}
		}
	}
}

// wantStuck plays a scenario that needs a person; the fault must say why.
func wantStuck(t *testing.T, name string, sc scenario, why string) {
	t.Helper()
	var st *story
	silent(t, func() { st = play(sc) })
	if st.move.State != drover.MoveStuck || !strings.Contains(st.move.Fault, why) {
		t.Errorf("%s: the move is %s (%s), want stuck because %q", name, st.move.State, st.move.Fault, why)
	}
}

// Every step fails, and then the undo of each step begun fails twice, before or
// after it has done its work.
func TestEveryUndoFailsTwice(t *testing.T) {
	for name, sc := range moves {
		steps := stepsOf(t, sc)
		table, _ := executor.Table(request(sc))
		for _, step := range steps[:table.Pivot()+1] {
			if sc.quietAt(step) {
				continue
			}
			for _, kind := range []drover.Kind{drover.Internal, drover.Unavailable, drover.Unknown, drover.Refused} {
				for _, after := range []bool{false, true} {
					name := fmt.Sprintf("%s: %s fails, undos fail twice with %v, after %v", name, step, kind, after)
					sc := sc
					forward := once(1, at(step, false), fail(drover.Internal))
					tries := make(map[string]int)
					var mu sync.Mutex
					sc.fault = func(w *executortest.World, c executortest.Call) error {
						if err := forward(w, c); err != nil {
							return err
						}
						back := strings.HasPrefix(c.Step, "undo-") || strings.HasPrefix(c.Step, "settle-") || c.Action == nil
						if !back || c.After != after {
							return nil
						}
						mu.Lock()
						defer mu.Unlock()
						if tries[c.Step]++; tries[c.Step] > 2 {
							return nil
						}
						return drover.Errorf(kind, "test", "%s fails", c.Step)
					}
					want(t, name, bubble(t, name, sc), drover.MoveUndone)
				}
			}
		}
	}
}

// The pivot passes, but its answer says that it failed, and nobody answers the
// first questions about it: it is neither undone nor gone on from until somebody
// does.
func TestPivotPassesUnheard(t *testing.T) {
	for name, sc := range moves {
		if sc.off && sc.gate == nil {
			continue // nothing happens in its pivot that could go unheard
		}
		table, _ := executor.Table(request(sc))
		pivot := table[table.Pivot()].Name
		for _, kind := range kinds {
			for _, after := range []bool{false, true} {
				name := fmt.Sprintf("%s: %s fails though it passed, settling fails with %v, after %v", name, pivot, kind, after)
				sc := sc
				pivotFails := once(1, at(pivot, true), fail(drover.Internal))
				settleFails := once(2, at("settle-"+pivot, after), fail(kind))
				sc.fault = func(w *executortest.World, c executortest.Call) error {
					if err := pivotFails(w, c); err != nil {
						return err
					}
					return settleFails(w, c)
				}
				if pivot == "transfer" && kind == drover.NotFound {
					wantStuck(t, name, sc, "neither side has the VM")
					continue
				}
				want(t, name, bubble(t, name, sc), drover.MoveDone)
			}
		}
	}
}

// Every call is made twice, as a retry after a lost answer would: doing and
// undoing are repeatable.
func TestEveryAnswerLostOnce(t *testing.T) {
	for name, sc := range moves {
		for _, failing := range append(stepsOf(t, sc), "") {
			name := fmt.Sprintf("%s: every answer is lost once, %q fails", name, failing)
			sc := sc
			var mu sync.Mutex
			lost := make(map[string]bool)
			forward := once(1, at(failing, false), fail(drover.Exhausted))
			sc.fault = func(w *executortest.World, c executortest.Call) error {
				if err := forward(w, c); err != nil {
					return err
				}
				mu.Lock()
				defer mu.Unlock()
				key := fmt.Sprint(c.Host, c.Step, c.Action == nil)
				if !c.After || lost[key] {
					return nil
				}
				lost[key] = true
				return drover.Errorf(drover.Unavailable, "test", "the answer is lost")
			}
			bubble(t, name, sc)
		}
	}
}

// The executor dies at every point there is: before and after each call of
// journal and agents, in moves that go well and in moves of which each step
// fails. Another takes the move up.
func TestExecutorDiesAnywhere(t *testing.T) {
	for name, sc := range moves {
		for _, failing := range failings(t, sc) {
			make := func() scenario {
				sc := sc
				sc.fault = once(1, at(failing, false), fail(drover.Internal))
				return sc
			}
			whole := bubble(t, name, make())
			for k := sc.first(name + failing); k <= whole.points; k += sc.stride() {
				sc := make()
				sc.killAt = k
				name := fmt.Sprintf("%s: %q fails, the executor dies at point %d (%s)", name, failing, k, whole.trace[k-1])
				// A failure that nobody has journaled is a failure no more.
				if st := bubble(t, name, sc); st.move.State != drover.MoveDone {
					want(t, name, st, whole.move.State)
				}
				if t.Failed() {
					return
				}
			}
		}
	}
}

// An agent dies before, while and after it carries out each step and each undo.
func TestAgentDiesAnywhere(t *testing.T) {
	for name, sc := range moves {
		for _, failing := range failings(t, sc) {
			delays := []time.Duration{0}
			if failing == "" { // then also in the middle of what it does
				delays = []time.Duration{0, 50 * time.Millisecond, 150 * time.Millisecond, 350 * time.Millisecond, 450 * time.Millisecond}
			}
			for _, host := range hostsOf(sc) {
				for _, delay := range delays {
					for hit, more := sc.first(fmt.Sprint(name, failing, host, delay)), true; more; hit += sc.stride() {
						sc := sc
						more = false
						sc.fault = dies(host, failing, hit, delay, &more)
						name := fmt.Sprintf("%s: %q fails, the agent of %s dies %v after call %d", name, failing, host, delay, hit)
						if bubble(t, name, sc); t.Failed() {
							return
						}
					}
				}
			}
		}
	}
}

// dies makes a step fail once, and the host's agent die a while after the n-th
// call of any agent. happened says whether there was one.
func dies(host, failing string, nth int, delay time.Duration, happened *bool) func(*executortest.World, executortest.Call) error {
	forward := once(1, at(failing, false), fail(drover.Internal))
	var mu sync.Mutex
	n := 0
	return func(w *executortest.World, c executortest.Call) error {
		err := forward(w, c)
		mu.Lock()
		defer mu.Unlock()
		n++
		switch {
		case n != nth:
			return err
		case delay > 0:
			time.AfterFunc(delay, func() { w.Crash(host) })
		default:
			w.Crash(host)
		}
		*happened = true
		if c.After && delay == 0 {
			return drover.Errorf(drover.Unavailable, "test", "%s has died", host)
		}
		return err
	}
}

// An operator cancels at every point: the move is undone, or done when it was
// too late, and a cancel does not change what is left behind.
func TestCanceledAnywhere(t *testing.T) {
	for name, sc := range moves {
		whole := bubble(t, name, sc)
		undone := 0
		for k := 1; k <= whole.points; k += sc.stride() {
			sc := sc
			sc.cancelAt = k
			st := bubble(t, fmt.Sprintf("%s: canceled at point %d (%s)", name, k, whole.trace[k-1]), sc)
			if st.move.State == drover.MoveUndone {
				undone++
				if !strings.Contains(st.move.Fault, "cancel") {
					t.Errorf("%s: canceled at point %d, its fault is %q", name, k, st.move.Fault)
				}
			}
			if t.Failed() {
				return
			}
		}
		if undone == 0 || undone == whole.points {
			t.Errorf("%s: %d of %d cancels led to undoing: want some, and not all", name, undone, whole.points)
		}
	}
}
