package saga

import "github.com/drover-vm/drover"

// Verb is what has to happen next.
type Verb string

// The verbs.
const (
	// Do begins the step, or begins it again: doing it twice is safe.
	Do Verb = "do"
	// Undo begins the step's undo, or begins it again.
	Undo Verb = "undo"
	// Settle asks for the pivot's outcome, and makes sure that it does not
	// pass any more if it has not.
	Settle Verb = "settle"
	// Wait: an attempt is under way, its outcome has to come first.
	Wait Verb = "wait"
	// FinishedDone, FinishedUndone and Stuck are final.
	FinishedDone   Verb = "done"
	FinishedUndone Verb = "undone"
	Stuck          Verb = "stuck"
)

// Decision is a verb and the step it is about; Step is -1 where there is none.
type Decision struct {
	Verb Verb
	Step int
}

// Final reports whether nothing happens after the decision.
func (d Decision) Final() bool {
	return d.Verb == FinishedDone || d.Verb == FinishedUndone || d.Verb == Stuck
}

// Next says what has to happen next. The journal must fit the table.
func Next(t Table, j Journal) Decision {
	switch {
	case j.Stuck != "":
		return Decision{Stuck, -1}
	case j.Busy != "":
		return Decision{Wait, j.busyStep(t)}
	case j.Pivot == Unknown && (j.Settle || j.Cancel):
		return Decision{Settle, t.Pivot()}
	case j.undoing():
		return nextUndo(t, j)
	}
	for i, e := range j.Steps {
		if e.State != drover.StepDone {
			return Decision{Do, i}
		}
	}
	return Decision{FinishedDone, -1}
}

// undoing reports whether the way is back. It never is once the pivot has
// passed, and not while nobody knows whether it has.
func (j Journal) undoing() bool {
	switch j.Pivot {
	case Passed, Unknown:
		return false
	case NotPassed:
		return true
	}
	if j.Cancel {
		return true
	}
	for _, e := range j.Steps {
		switch e.State {
		case drover.StepFailed, drover.StepUndoing, drover.StepUndone:
			return true
		}
	}
	return false
}

// nextUndo finds the last step whose effect may still be there. Steps after it
// were never begun, or are undone: so a step's undo begins only when the undo
// of every later one has succeeded.
func nextUndo(t Table, j Journal) Decision {
	for i := len(j.Steps) - 1; i >= 0; i-- {
		if j.Steps[i].Begun() {
			return Decision{Undo, i}
		}
	}
	return Decision{FinishedUndone, -1}
}

// busyStep finds the step whose attempt is under way.
func (j Journal) busyStep(t Table) int {
	if j.Busy == Settle {
		return t.Pivot()
	}
	want := map[Verb]drover.StepState{Do: drover.StepRunning, Undo: drover.StepUndoing}[j.Busy]
	for i, e := range j.Steps {
		if e.State == want {
			return i
		}
	}
	return -1
}
