package executor

import (
	"encoding/json"
	"strings"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/saga"
	"github.com/drover-vm/drover/store"
)

// seal puts the state into its record.
func seal(rec *store.Record, s *state, t saga.Table) error {
	project(rec, s, t, time.Time{})
	b, err := json.Marshal(s)
	if err != nil {
		return drover.E(drover.Internal, "journal", err)
	}
	rec.State = b
	return nil
}

// project shows in the move what its journal says. A final state is not shown
// yet: it comes when the move has been measured, and unlocks the VM.
func project(rec *store.Record, s *state, t saga.Table, now time.Time) {
	old := rec.Move.Steps
	steps := make([]drover.StepRecord, len(s.Journal.Steps))
	for i, e := range s.Journal.Steps {
		var was drover.StepRecord
		if i < len(old) {
			was = old[i]
		}
		steps[i] = projectStep(was, e, now)
	}
	rec.Move.Steps = steps
	switch st := s.Journal.State(t); {
	case st == drover.MoveUndone:
		rec.Move.State = drover.MoveUndoing
	case st == drover.MoveDone:
		rec.Move.State = drover.MoveRunning
	case st == drover.MoveStuck:
		// What it was doing when it stuck.
	default:
		rec.Move.State = st
	}
	rec.Move.Fault = fault(s, rec.Move.State)
	rec.Move.Gate = projectGate(s)
	rec.Move.Clone = projectClone(s)
	rec.Move.Renumber = projectRenumber(s)
}

func projectStep(r drover.StepRecord, e saga.Entry, now time.Time) drover.StepRecord {
	ended := e.State == drover.StepDone || e.State == drover.StepFailed || e.State == drover.StepUndone
	switch {
	case r.State == e.State:
	case ended:
		r.Ended = now
	default:
		r.Ended = time.Time{}
	}
	if r.Started.IsZero() && e.State != drover.StepPending {
		r.Started = now
	}
	if e.State == drover.StepDone {
		r.Fault = ""
	}
	r.Name, r.State, r.Attempts = e.Name, e.State, e.Attempts
	return r
}

// fault is the one line that says what went wrong, or hinders.
func fault(s *state, st drover.MoveState) string {
	if st == drover.MoveDone {
		return ""
	}
	parts := make([]string, 0, 3)
	for _, p := range []string{s.Cause, s.Trouble, heldFault(s)} {
		if p != "" {
			parts = append(parts, p)
		}
	}
	return strings.Join(parts, "; ")
}
