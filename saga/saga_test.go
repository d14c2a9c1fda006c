package saga_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/saga"
)

// table is a small move: two steps that can be undone, one that needs no undo,
// the pivot, and two after it.
func table() saga.Table {
	return saga.Table{
		{Name: "a", HasUndo: true},
		{Name: "b", HasUndo: true},
		{Name: "c"},
		{Name: "pivot", Pivot: true},
		{Name: "d"},
		{Name: "e"},
	}
}

func TestTableValidate(t *testing.T) {
	if err := table().Validate(); err != nil {
		t.Errorf("a table that keeps the rules: %v", err)
	}
	for want, spoil := range map[string]func(saga.Table) saga.Table{
		"0 steps":           func(saga.Table) saga.Table { return nil },
		"65 steps":          func(saga.Table) saga.Table { return make(saga.Table, saga.MaxSteps+1) },
		"is not a name":     func(t saga.Table) saga.Table { t[0].Name = "a b"; return t },
		"twice":             func(t saga.Table) saga.Table { t[1].Name = "a"; return t },
		"both the pivot":    func(t saga.Table) saga.Table { t[1].Pivot = true; t[1].HasUndo = false; return t },
		"no step is the pi": func(t saga.Table) saga.Table { t[3].Pivot = false; return t },
		`"d" has an undo`:   func(t saga.Table) saga.Table { t[4].HasUndo = true; return t },
		`"pivot" has an un`: func(t saga.Table) saga.Table { t[3].HasUndo = true; return t },
	} {
		err := spoil(table()).Validate()
		if drover.KindOf(err) != drover.Invalid || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", want, err)
		}
	}
}

func TestFits(t *testing.T) {
	if err := saga.New(table()).Fits(table()); err != nil {
		t.Errorf("a new journal: %v", err)
	}
	for want, spoil := range map[string]func(*saga.Journal){
		"5 steps":             func(j *saga.Journal) { j.Steps = j.Steps[:5] },
		`step 1 is "x"`:       func(j *saga.Journal) { j.Steps[1].Name = "x" },
		`unknown state "?"`:   func(j *saga.Journal) { j.Steps[1].State = "?" },
		`unknown outcome "?"`: func(j *saga.Journal) { j.Pivot = "?" },
		`unknown "?"`:         func(j *saga.Journal) { j.Busy = "?" },
	} {
		j := saga.New(table())
		spoil(&j)
		if err := j.Fits(table()); drover.KindOf(err) != drover.Corrupt || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", want, err)
		}
	}
}

// journal reads "done done running" as the states of the first steps.
func journal(states string, edit func(*saga.Journal)) saga.Journal {
	j := saga.New(table())
	for i, s := range strings.Fields(states) {
		j.Steps[i].State = drover.StepState(s)
	}
	if edit != nil {
		edit(&j)
	}
	return j
}

func TestNext(t *testing.T) {
	unknown := func(j *saga.Journal) { j.Pivot = saga.Unknown }
	for _, test := range []struct {
		name    string
		journal saga.Journal
		want    saga.Decision
		state   drover.MoveState
	}{
		{"new", journal("", nil), saga.Decision{saga.Do, 0}, drover.MovePending},
		{"one done", journal("done", nil), saga.Decision{saga.Do, 1}, drover.MoveRunning},
		{"one begun by another", journal("done running", nil), saga.Decision{saga.Do, 1}, drover.MoveRunning},
		{"busy", journal("done running", func(j *saga.Journal) { j.Busy = saga.Do }), saga.Decision{saga.Wait, 1}, drover.MoveRunning},
		{"failed", journal("done failed", nil), saga.Decision{saga.Undo, 1}, drover.MoveUndoing},
		{"undo goes backwards", journal("done undone", nil), saga.Decision{saga.Undo, 0}, drover.MoveUndoing},
		{"undone", journal("undone undone", nil), saga.Decision{saga.FinishedUndone, -1}, drover.MoveUndone},
		{"canceled before anything", journal("", func(j *saga.Journal) { j.Cancel = true }), saga.Decision{saga.FinishedUndone, -1}, drover.MoveUndone},
		{"canceled while one was begun", journal("done running", func(j *saga.Journal) { j.Cancel = true }), saga.Decision{saga.Undo, 1}, drover.MoveUndoing},
		{"pivot begun", journal("done done done running", unknown), saga.Decision{saga.Do, 3}, drover.MoveRunning},
		{"pivot failed", journal("done done done running", func(j *saga.Journal) { unknown(j); j.Settle = true }), saga.Decision{saga.Settle, 3}, drover.MoveRunning},
		{"pivot begun and canceled", journal("done done done running", func(j *saga.Journal) { unknown(j); j.Cancel = true }), saga.Decision{saga.Settle, 3}, drover.MoveRunning},
		{"not passed", journal("done done done failed", func(j *saga.Journal) { j.Pivot = saga.NotPassed }), saga.Decision{saga.Undo, 3}, drover.MoveUndoing},
		{"passed", journal("done done done done", func(j *saga.Journal) { j.Pivot = saga.Passed }), saga.Decision{saga.Do, 4}, drover.MoveRunning},
		{"failed after the pivot", journal("done done done done failed", func(j *saga.Journal) { j.Pivot = saga.Passed }), saga.Decision{saga.Do, 4}, drover.MoveRunning},
		{"done", journal("done done done done done done", func(j *saga.Journal) { j.Pivot = saga.Passed }), saga.Decision{saga.FinishedDone, -1}, drover.MoveDone},
		{"stuck", journal("done failed", func(j *saga.Journal) { j.Stuck = "why" }), saga.Decision{saga.Stuck, -1}, drover.MoveStuck},
	} {
		if got := saga.Next(table(), test.journal); got != test.want {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
		if got := test.journal.State(table()); got != test.state {
			t.Errorf("%s: state %s, want %s", test.name, got, test.state)
		}
	}
}

func TestApplyRefuses(t *testing.T) {
	busy := journal("running", func(j *saga.Journal) { j.Busy = saga.Do })
	passed := journal("done done done done", func(j *saga.Journal) { j.Pivot = saga.Passed })
	done := journal("done done done done done done", func(j *saga.Journal) { j.Pivot = saga.Passed })
	for _, test := range []struct {
		name    string
		journal saga.Journal
		event   saga.Event
		kind    drover.Kind
	}{
		{"beginning another than the next", journal("", nil), saga.Event{What: saga.Begin, Step: 1}, drover.Refused},
		{"beginning while busy", busy, saga.Event{What: saga.Begin, Step: 0}, drover.Refused},
		{"undoing what goes forward", journal("done", nil), saga.Event{What: saga.BeginUndo, Step: 0}, drover.Refused},
		{"undoing after the pivot", passed, saga.Event{What: saga.BeginUndo, Step: 3}, drover.Refused},
		{"settling what is not begun", journal("done done done", nil), saga.Event{What: saga.BeginSettle, Step: 3}, drover.Refused},
		{"an end without a beginning", journal("running", nil), saga.Event{What: saga.Done, Step: 0}, drover.Refused},
		{"the end of another step", busy, saga.Event{What: saga.Done, Step: 1}, drover.Refused},
		{"the end of another attempt", busy, saga.Event{What: saga.Undone, Step: 0}, drover.Refused},
		{"settled while doing", busy, saga.Event{What: saga.SettlePassed, Step: 0}, drover.Refused},
		{"canceling after the pivot", passed, saga.Event{What: saga.Cancel}, drover.Refused},
		{"canceling what is done", done, saga.Event{What: saga.Cancel}, drover.Refused},
		{"giving up what is done", done, saga.Event{What: saga.GiveUp, Reason: "x"}, drover.Refused},
		{"giving up without a reason", passed, saga.Event{What: saga.GiveUp}, drover.Invalid},
		{"an unknown event", passed, saga.Event{What: "?"}, drover.Invalid},
	} {
		before := test.journal
		before.Steps = slices.Clone(before.Steps)
		got, err := saga.Apply(table(), test.journal, test.event)
		if drover.KindOf(err) != test.kind || err == nil {
			t.Errorf("%s: %v, want %v", test.name, err, test.kind)
		}
		if got.String() != before.String() {
			t.Errorf("%s: the journal has changed from %s to %s", test.name, before, got)
		}
	}
}

func TestApplyLeavesItsArgumentAlone(t *testing.T) {
	j := saga.New(table())
	n, err := saga.Apply(table(), j, saga.Event{What: saga.Begin, Step: 0})
	if err != nil {
		t.Fatal(err)
	}
	if j.Steps[0].State != drover.StepPending || n.Steps[0].State != drover.StepRunning {
		t.Errorf("before %s, after %s", j, n)
	}
}
