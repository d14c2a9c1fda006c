package saga

import (
	"slices"

	"github.com/drover-vm/drover"
)

// What says what happened.
type What string

// The events. Step names are those of the table.
const (
	// Begin: the step's doing is about to begin.
	Begin What = "begin"
	// Done: the step was done; of the pivot: it has passed.
	Done What = "done"
	// Fail: the step has definitely failed and is not under way any more,
	// though it may have had half its effect. Before the pivot the move is
	// undone; of the pivot itself it only means that its outcome has to be
	// settled; after it the step is begun again.
	Fail What = "fail"
	// Unsure: nobody answered, or the answer is that nobody knows. The step is
	// begun again.
	Unsure What = "unsure"
	// BeginUndo, Undone and UndoFail are the same for a step's undo. A failed
	// undo is begun again.
	BeginUndo What = "begin undo"
	Undone    What = "undone"
	UndoFail  What = "undo fail"
	// BeginSettle: the pivot's outcome is about to be asked for.
	BeginSettle What = "begin settle"
	// SettlePassed, SettleNotPassed and SettleUnsure are the answers; after the
	// last it is asked again.
	SettlePassed    What = "settle passed"
	SettleNotPassed What = "settle not passed"
	SettleUnsure    What = "settle unsure"
	// Recover: whoever attended to the attempt under way is gone. It may have
	// had its effect.
	Recover What = "recover"
	// Cancel: an operator wants the move undone.
	Cancel What = "cancel"
	// GiveUp: nothing more can be done without a person; Event.Reason says why.
	GiveUp What = "give up"
)

// Event is something that happened to a move.
type Event struct {
	What What
	// Step is the index of the step it is about; unused for Recover, Cancel
	// and GiveUp.
	Step int
	// Reason is for GiveUp.
	Reason string
}

// Apply returns the journal after the event. An event that the rules do not
// allow here gives drover.Refused, and the journal unchanged.
func Apply(t Table, j Journal, e Event) (Journal, error) {
	n := j
	n.Steps = slices.Clone(j.Steps)
	var err error
	switch e.What {
	case Begin, BeginUndo, BeginSettle:
		err = n.begin(t, e)
	case Done, Fail, Unsure, Undone, UndoFail, SettlePassed, SettleNotPassed, SettleUnsure:
		err = n.end(t, e)
	case Recover:
		n.Busy = ""
	case Cancel:
		err = n.cancel(t)
	case GiveUp:
		err = n.giveUp(t, e.Reason)
	default:
		err = drover.Errorf(drover.Invalid, "journal", "unknown event %q", e.What)
	}
	if err != nil {
		return j, err
	}
	return n, nil
}

// begin allows exactly what Next has decided.
func (j *Journal) begin(t Table, e Event) error {
	want := map[What]Verb{Begin: Do, BeginUndo: Undo, BeginSettle: Settle}[e.What]
	if d := Next(t, *j); d.Verb != want || d.Step != e.Step {
		return drover.Errorf(drover.Refused, "journal", "%s of step %d, where the next is %s of step %d", e.What, e.Step, d.Verb, d.Step)
	}
	s := &j.Steps[e.Step]
	j.Busy = want
	switch e.What {
	case Begin:
		s.State = drover.StepRunning
		s.Attempts++
		if t[e.Step].Pivot {
			// From here on, until there is a definite answer, it may have passed.
			j.Pivot = Unknown
		}
	case BeginUndo:
		s.State = drover.StepUndoing
		s.Undos++
	}
	return nil
}

// attempt says which attempt an outcome belongs to.
var attempt = map[What]Verb{
	Done: Do, Fail: Do, Unsure: Do,
	Undone: Undo, UndoFail: Undo,
	SettlePassed: Settle, SettleNotPassed: Settle, SettleUnsure: Settle,
}

// end allows the outcomes of the attempt under way.
func (j *Journal) end(t Table, e Event) error {
	if d := Next(t, *j); d.Verb != Wait || d.Step != e.Step || j.Busy != attempt[e.What] {
		return drover.Errorf(drover.Refused, "journal", "%s of step %d, where the next is %s of step %d", e.What, e.Step, d.Verb, d.Step)
	}
	s := &j.Steps[e.Step]
	switch j.Busy {
	case Do:
		j.ended(s, t[e.Step].Pivot, e.What)
	case Undo:
		if e.What == Undone {
			s.State = drover.StepUndone
		}
	case Settle:
		j.settled(s, e.What)
	}
	j.Busy = ""
	return nil
}

// ended notes the outcome of doing a step.
func (j *Journal) ended(s *Entry, pivot bool, what What) {
	switch {
	case what == Done:
		s.State = drover.StepDone
		if pivot {
			j.Pivot, j.Settle, j.Cancel = Passed, false, false
		}
	case what == Fail && pivot:
		// Not failed yet: only the settling can say so.
		j.Settle = true
	case what == Fail:
		s.State = drover.StepFailed
	}
}

// settled notes the answer to a settling.
func (j *Journal) settled(s *Entry, what What) {
	switch what {
	case SettlePassed:
		s.State = drover.StepDone
		j.Pivot, j.Settle, j.Cancel = Passed, false, false
	case SettleNotPassed:
		s.State = drover.StepFailed
		j.Pivot, j.Settle = NotPassed, false
	case SettleUnsure:
		// Having asked may have ended what was under way: doing it again
		// would not be right any more.
		j.Settle = true
	}
}

// cancel accepts an operator's wish as long as it can be granted. While the
// pivot's outcome is unknown it is accepted, and the outcome decides: when the
// pivot turns out to have passed, the wish is dropped and the way is forward.
func (j *Journal) cancel(t Table) error {
	if d := Next(t, *j); d.Final() {
		return drover.Errorf(drover.Refused, "cancel", "the move has ended already: %s", d.Verb)
	}
	if j.Pivot == Passed {
		return drover.Errorf(drover.Refused, "cancel", "step %q has passed the point of no return: the VM is at its destination", t[t.Pivot()].Name)
	}
	j.Cancel = true
	return nil
}

// giveUp ends the move where only a person can go on.
func (j *Journal) giveUp(t Table, reason string) error {
	if reason == "" {
		return drover.Errorf(drover.Invalid, "journal", "giving up needs a reason")
	}
	if d := Next(t, *j); d.Final() {
		return drover.Errorf(drover.Refused, "journal", "the move has ended already: %s", d.Verb)
	}
	j.Stuck, j.Busy = reason, ""
	return nil
}
