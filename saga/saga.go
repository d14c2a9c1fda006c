// Package saga is a move seen as a table of steps and a journal of what
// became of each: from the two it says what has to happen next. It is pure: no
// clock, no randomness, no I/O; the same table and journal always give the
// same decision.
//
// # The rules
//
//   - Every step is journaled before it is begun and after it has ended, so a
//     journal read back after a crash says of each step whether it may have
//     had an effect.
//   - Exactly one step is the pivot. Until it has passed, everything can be
//     undone, in reverse order; after it the way is forward only.
//   - The pivot's outcome is open, unknown, passed or not passed. An unknown
//     outcome is never undone and never taken as passed: it is settled, which
//     means that it is asked until there is a definite answer.
//   - An undo runs for every step that was begun (running, failed or done),
//     not only for those that are done: a step that failed, or whose reply was
//     lost, may have had half its effect.
//   - A request to cancel leads to undoing before the pivot has passed and is
//     refused after it.
//
// Retries, delays, limits and what a step really does are left to package
// executor; storing the journal to package store.
package saga

import (
	"fmt"
	"strings"

	"github.com/drover-vm/drover"
)

// Step is one line of a move's table.
type Step struct {
	// Name identifies the step in its table, in journals and towards agents.
	Name string
	// Why says why the step stands where it stands. It is for people, and is
	// shown with the table.
	Why string
	// Pivot marks the step with which the move passes the point of no return.
	Pivot bool
	// HasUndo says that undoing the step takes an action. A step without is
	// undone by noting that it is. The pivot has none: settling it leaves
	// nothing behind when it has not passed.
	HasUndo bool
}

// Table is the steps of a method, in order.
type Table []Step

// MaxSteps bounds a table. The longest method has a dozen steps; a journal
// with more than this has not been written by Drover.
const MaxSteps = 64

// Validate reports whether t keeps the rules: 1 to MaxSteps steps with unique
// names, exactly one of them the pivot, which has no undo, and no undo after
// it. The error's kind is drover.Invalid.
func (t Table) Validate() error {
	const op = "step table"
	if len(t) == 0 || len(t) > MaxSteps {
		return drover.Errorf(drover.Invalid, op, "%d steps: want 1 to %d", len(t), MaxSteps)
	}
	seen := make(map[string]bool, len(t))
	pivot := -1
	for i, s := range t {
		if err := drover.CheckName("step", s.Name); err != nil {
			return drover.E(drover.Invalid, op, err)
		}
		if seen[s.Name] {
			return drover.Errorf(drover.Invalid, op, "step %q stands in it twice", s.Name)
		}
		seen[s.Name] = true
		if s.Pivot && pivot >= 0 {
			return drover.Errorf(drover.Invalid, op, "steps %q and %q are both the pivot: want one", t[pivot].Name, s.Name)
		}
		if s.Pivot {
			pivot = i
		}
		if s.HasUndo && pivot >= 0 {
			return drover.Errorf(drover.Invalid, op, "step %q has an undo, but from the pivot on the way is forward only", s.Name)
		}
	}
	if pivot < 0 {
		return drover.Errorf(drover.Invalid, op, "no step is the pivot: want one")
	}
	return nil
}

// Pivot returns the index of the pivot, or -1 in a table that has none.
func (t Table) Pivot() int {
	for i, s := range t {
		if s.Pivot {
			return i
		}
	}
	return -1
}

// Index returns the index of the step with that name, or -1.
func (t Table) Index(name string) int {
	for i, s := range t {
		if s.Name == name {
			return i
		}
	}
	return -1
}

// Outcome is what is known of the pivot.
type Outcome string

// The pivot's outcomes.
const (
	// Open: the pivot has not been begun.
	Open Outcome = "open"
	// Unknown: it has been begun and may or may not have passed.
	Unknown Outcome = "unknown"
	// Passed and NotPassed are definite and never change again.
	Passed    Outcome = "passed"
	NotPassed Outcome = "not passed"
)

// Entry is what the journal says of one step.
type Entry struct {
	Name  string           `json:"name"`
	State drover.StepState `json:"state"`
	// Attempts counts how often the step was begun; Undos how often its undo.
	Attempts int `json:"attempts,omitempty"`
	Undos    int `json:"undos,omitempty"`
}

// Begun reports whether the step may have had an effect that is not undone.
func (e Entry) Begun() bool {
	return e.State != drover.StepPending && e.State != drover.StepUndone
}

// Journal is what became of each step of one move. It is a value: Apply
// returns a new one and leaves its argument alone.
type Journal struct {
	Steps []Entry `json:"steps"`
	Pivot Outcome `json:"pivot"`
	// Settle says that the pivot's outcome has to be asked for, because
	// beginning it again would not be right: it failed, or was canceled.
	Settle bool `json:"settle,omitempty"`
	// Cancel says that an operator wants the move undone.
	Cancel bool `json:"cancel,omitempty"`
	// Busy is Do, Undo or Settle while an attempt at that is under way, or
	// empty. The attempt's outcome, or a Recover, comes next.
	Busy Verb `json:"busy,omitempty"`
	// Stuck says why nothing more can be done without a person; empty when it
	// can.
	Stuck string `json:"stuck,omitempty"`
}

// New returns the journal of a move whose first step is not yet begun.
func New(t Table) Journal {
	j := Journal{Steps: make([]Entry, len(t)), Pivot: Open}
	for i, s := range t {
		j.Steps[i] = Entry{Name: s.Name, State: drover.StepPending}
	}
	return j
}

// Fits reports whether j is a journal of t: the same steps in the same order.
// The error's kind is drover.Corrupt.
func (j Journal) Fits(t Table) error {
	const op = "journal"
	if len(j.Steps) != len(t) {
		return drover.Errorf(drover.Corrupt, op, "%d steps where the table has %d", len(j.Steps), len(t))
	}
	for i, e := range j.Steps {
		if e.Name != t[i].Name {
			return drover.Errorf(drover.Corrupt, op, "step %d is %q where the table has %q", i, e.Name, t[i].Name)
		}
		switch e.State {
		case drover.StepPending, drover.StepRunning, drover.StepDone,
			drover.StepFailed, drover.StepUndoing, drover.StepUndone:
		default:
			return drover.Errorf(drover.Corrupt, op, "step %q has the unknown state %q", e.Name, e.State)
		}
	}
	switch j.Busy {
	case "", Do, Undo, Settle:
	default:
		return drover.Errorf(drover.Corrupt, op, "it is busy with the unknown %q", j.Busy)
	}
	switch j.Pivot {
	case Open, Unknown, Passed, NotPassed:
		return nil
	default:
		return drover.Errorf(drover.Corrupt, op, "the pivot has the unknown outcome %q", j.Pivot)
	}
}

// State returns the state of the move that the journal amounts to.
func (j Journal) State(t Table) drover.MoveState {
	switch d := Next(t, j); {
	case d.Verb == Stuck:
		return drover.MoveStuck
	case d.Verb == FinishedDone:
		return drover.MoveDone
	case d.Verb == FinishedUndone:
		return drover.MoveUndone
	case j.undoing():
		return drover.MoveUndoing
	}
	for _, e := range j.Steps {
		if e.State != drover.StepPending {
			return drover.MoveRunning
		}
	}
	return drover.MovePending
}

// String returns the journal on one line, for scripts and failures:
// "a=done b=running pivot=unknown settle busy:settle".
func (j Journal) String() string {
	s := ""
	for _, e := range j.Steps {
		s += fmt.Sprintf("%s=%s ", e.Name, e.State)
	}
	s += fmt.Sprintf("pivot=%s", strings.ReplaceAll(string(j.Pivot), " ", "-"))
	for _, f := range []struct {
		on   bool
		name string
	}{{j.Settle, "settle"}, {j.Cancel, "cancel"}, {j.Busy != "", "busy:" + string(j.Busy)}, {j.Stuck != "", "stuck"}} {
		if f.on {
			s += " " + f.name
		}
	}
	return s
}
