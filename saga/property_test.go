package saga_test

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/saga"
)

// anyTable draws a table that keeps the rules.
func anyTable(t *rapid.T) saga.Table {
	before, after := rapid.IntRange(0, 5).Draw(t, "before"), rapid.IntRange(0, 4).Draw(t, "after")
	var table saga.Table
	for i := range before {
		table = append(table, saga.Step{Name: fmt.Sprintf("b%d", i), HasUndo: rapid.Bool().Draw(t, "undo")})
	}
	table = append(table, saga.Step{Name: "pivot", Pivot: true})
	for i := range after {
		table = append(table, saga.Step{Name: fmt.Sprintf("a%d", i)})
	}
	if err := table.Validate(); err != nil {
		t.Fatal(err)
	}
	return table
}

// world is what really happens to a move, as against what its journal says.
type world struct {
	// effect: the step may have an effect; undone: its undo has succeeded after.
	effect, undone []bool
	// passed: the pivot has, whatever anybody knows.
	passed bool
}

// Whatever sequence of failures, unknown outcomes, crashes and cancels befalls
// a move, the rules of the package comment hold at every moment.
func TestRulesHold(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		table := anyTable(t)
		j := saga.New(table)
		w := world{effect: make([]bool, len(table)), undone: make([]bool, len(table))}
		const events = 200
		for range events {
			d := saga.Next(table, j)
			if d.Final() {
				break
			}
			if rapid.IntRange(0, 19).Draw(t, "cancel?") == 0 {
				j = cancel(t, table, j)
				continue
			}
			if d.Verb == saga.Wait {
				t.Fatalf("waiting, where nothing was begun: %s", j)
			}
			j = attempt(t, table, j, d, &w)
			check(t, table, j, &w)
		}
		finish(t, table, j, &w)
	})
}

func cancel(t *rapid.T, table saga.Table, j saga.Journal) saga.Journal {
	n, err := saga.Apply(table, j, saga.Event{What: saga.Cancel})
	if (err != nil) != (j.Pivot == saga.Passed) {
		t.Fatalf("cancel: %v, at %s", err, j)
	}
	return n
}

// attempt begins what was decided, lets the world have its way, and tells the
// journal, or crashes instead.
func attempt(t *rapid.T, table saga.Table, j saga.Journal, d saga.Decision, w *world) saga.Journal {
	apply := func(what saga.What) {
		n, err := saga.Apply(table, j, saga.Event{What: what, Step: d.Step})
		if err != nil {
			t.Fatalf("%s of %s: %v, at %s", what, table[d.Step].Name, err, j)
		}
		j = n
	}
	outcome := rapid.SampledFrom([]string{"good", "good", "good", "bad", "unsure", "crash before", "crash after"}).Draw(t, "outcome")
	works := outcome == "good" || outcome == "crash after" || outcome != "crash before" && rapid.Bool().Draw(t, "works")
	switch d.Verb {
	case saga.Do:
		apply(saga.Begin)
		doing(t, table, d.Step, outcome, works, w)
	case saga.Undo:
		apply(saga.BeginUndo)
		if w.passed {
			t.Fatalf("%s is undone, and the pivot has passed: %s", table[d.Step].Name, j)
		}
		for i := d.Step + 1; i < len(table); i++ {
			if w.effect[i] && !w.undone[i] {
				t.Fatalf("%s is undone before %s: %s", table[d.Step].Name, table[i].Name, j)
			}
		}
		if works {
			w.undone[d.Step] = true
		}
	case saga.Settle:
		apply(saga.BeginSettle)
	}
	switch outcome {
	case "crash before", "crash after":
		apply(saga.Recover)
	case "good":
		apply(map[saga.Verb]saga.What{saga.Do: saga.Done, saga.Undo: saga.Undone, saga.Settle: settled(w)}[d.Verb])
	case "bad":
		apply(map[saga.Verb]saga.What{saga.Do: saga.Fail, saga.Undo: saga.UndoFail, saga.Settle: saga.SettleUnsure}[d.Verb])
	case "unsure":
		apply(map[saga.Verb]saga.What{saga.Do: saga.Unsure, saga.Undo: saga.UndoFail, saga.Settle: saga.SettleUnsure}[d.Verb])
	}
	return j
}

func doing(t *rapid.T, table saga.Table, step int, outcome string, works bool, w *world) {
	for i := range step {
		if !w.effect[i] || w.undone[i] {
			t.Fatalf("%s is begun, and %s is not done", table[step].Name, table[i].Name)
		}
	}
	if w.undone[step] {
		t.Fatalf("%s is begun again after it was undone", table[step].Name)
	}
	if outcome != "crash before" {
		w.effect[step] = true // even a failure may have had half its effect
	}
	if table[step].Pivot && works {
		w.passed = true
	}
}

func settled(w *world) saga.What {
	if w.passed {
		return saga.SettlePassed
	}
	return saga.SettleNotPassed
}

// check compares the journal with the world after every event.
func check(t *rapid.T, table saga.Table, j saga.Journal, w *world) {
	if err := j.Fits(table); err != nil {
		t.Fatal(err)
	}
	switch {
	case j.Pivot == saga.Passed && !w.passed:
		t.Fatalf("the pivot is taken as passed, and has not: %s", j)
	case j.Pivot == saga.NotPassed && w.passed:
		t.Fatalf("the pivot is taken as not passed, and has: %s", j)
	}
	for i, e := range j.Steps {
		if w.effect[i] && !w.undone[i] && (e.State == drover.StepPending || e.State == drover.StepUndone) {
			t.Fatalf("%s has had an effect, and is %s: %s", e.Name, e.State, j)
		}
	}
	if d := saga.Next(table, j); d.Verb == saga.Undo && w.passed {
		t.Fatalf("undoing after the pivot has passed: %s", j)
	} else if d.Verb == saga.Do && d.Step > table.Pivot() && !w.passed {
		t.Fatalf("going on before the pivot has passed: %s", j)
	}
}

// finish lets all go well from here, which must end the move.
func finish(t *rapid.T, table saga.Table, j saga.Journal, w *world) {
	good := map[saga.Verb][2]saga.What{saga.Do: {saga.Begin, saga.Done}, saga.Undo: {saga.BeginUndo, saga.Undone}, saga.Settle: {saga.BeginSettle, ""}}
	for range 2*len(table) + 2 {
		d := saga.Next(table, j)
		if d.Final() {
			break
		}
		pair := good[d.Verb]
		if d.Verb == saga.Settle {
			pair[1] = settled(w)
		}
		for _, what := range pair {
			var err error
			if j, err = saga.Apply(table, j, saga.Event{What: what, Step: d.Step}); err != nil {
				t.Fatalf("%s: %v, at %s", what, err, j)
			}
		}
		switch {
		case d.Verb == saga.Do:
			w.effect[d.Step], w.passed = true, w.passed || table[d.Step].Pivot
		case d.Verb == saga.Undo:
			w.undone[d.Step] = true
		}
	}
	switch d := saga.Next(table, j); d.Verb {
	case saga.FinishedDone:
		if !w.passed {
			t.Fatalf("done, and the pivot has not passed: %s", j)
		}
	case saga.FinishedUndone:
		for i := range table {
			if w.passed || w.effect[i] && !w.undone[i] {
				t.Fatalf("undone, and something is left of %s (pivot passed: %v): %s", table[i].Name, w.passed, j)
			}
		}
	default:
		t.Fatalf("when all goes well, a move must end; it is at %s", j)
	}
}
