package executor

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/saga"
	"github.com/drover-vm/drover/store"
)

// A move that starts its VM anew (warm, cold) ends in one of two ways. Without a
// gate its start is the point of no return:
//
//	start            destination   PIVOT: settled by undefine
//	verify …
//
// With one, the point of no return is commit, and start can be undone, at the
// price of what was written at the destination meanwhile:
//
//	start            destination   stop-vm
//	gate             any host      ─ (asked: is it well? and: what says the operator?)
//	commit           destination   PIVOT: settled by abort-commit
//	verify …
//
// That a VM never runs twice rests on the order of undoing, as everywhere: the
// source takes its definition back only after the destination has stopped the
// VM, and undefined it. Commit is where the destination's agent writes down
// that its VM counts; from then on it refuses stop-vm and undefine, whoever asks.
//
// Silence undoes nothing here: an agent that does not answer is asked again for as
// long as it takes, since its VM may be well, with users writing to it. Only a
// definite word takes the VM back: of the check, of the operator, or of the
// agent, that the VM could not be started.

// ungated are the last steps of a move without a gate.
func ungated() []step {
	return []step{start(), verify(), releaseSource(), release()}
}

// gated are those of a move with one.
func gated() []step {
	return []step{startGated(), gate(), commit(), verify(), releaseSource(), release()}
}

func coldGatedMethod() method {
	return method{id: "cold-gated/1", steps: append(coldSteps(), gated()...)}
}

func warmGatedMethod() method {
	return method{id: "warm-gated/1", steps: append(warmSteps(), gated()...)}
}

func startGated() step {
	st := start()
	st.Why = "with the source's disks untouched, so that the VM can still go back to them"
	st.Pivot, st.settle, st.patient = false, nil, true
	st.undo = func(s *state) []call {
		return []call{{host: s.Request.To.Host, action: StopVM{}}}
	}
	return st
}

func gate() step {
	return step{
		Step: saga.Step{
			Name: "gate",
			Why:  "the last moment at which the VM can go back: what it writes here is lost then",
		},
		patient: true,
		idle:    true,
		do: func(s *state) []call {
			switch {
			case s.Gate.State == drover.GateWaiting || s.Committed:
				return nil
			case !s.running():
				// Nothing of it could be well, or not.
				return []call{{host: s.Request.To.Host, action: Verify{}}}
			}
			g := s.Request.Gate
			check := drover.HealthCheck{}
			if g.Health != nil {
				check = *g.Health
			}
			host := s.Request.To.Host
			if check.From != "" {
				host = check.From
			}
			if check.Limit == 0 {
				check.Limit = drover.DefaultHealthLimit
			}
			return []call{{host: host, action: CheckHealth{Kind: check.Kind, Target: check.Target, Limit: check.Limit}}}
		},
		note: func(s *state, _ int, r Result) error {
			if !s.running() {
				return nil
			}
			g := *s.Gate
			g.Healthy, g.Detail = new(r.Healthy), r.Detail
			s.Gate = &g
			return nil
		},
		hold: holdGate,
	}
}

// holdGate says what the gate's check leads to: on, back, or that the operator's
// word is awaited.
func holdGate(s *state) (wait bool, err error) {
	g := s.Request.Gate
	healthy := s.Gate.Healthy == nil || *s.Gate.Healthy
	switch {
	case s.Committed:
		return false, nil
	case !healthy && g.OnUnhealthy == drover.UnhealthyCommit:
		return g.Manual, nil
	case !healthy && g.OnUnhealthy != drover.UnhealthyKeep:
		return false, drover.Errorf(drover.Refused, "", "%s is not well at %s: %s; %s", s.Request.VM.Name, s.Request.To, s.Gate.Detail, writesLost)
	default:
		return g.Manual || !healthy, nil
	}
}

const writesLost = "it goes back to its source, and what it wrote since its start at the destination is lost"

func commit() step {
	return step{
		Step: saga.Step{
			Name:  "commit",
			Why:   "from here on the destination's VM is the one that counts, and its source can be released",
			Pivot: true,
		},
		do: func(s *state) []call {
			return []call{{host: s.Request.To.Host, action: Commit{}}}
		},
		settle: func(ctx context.Context, s *state, ask asker) (bool, error) {
			r, err := ask(ctx, call{host: s.Request.To.Host, action: AbortCommit{}})
			return r.Moved, err
		},
	}
}

// newGate is the gate of a move that begins.
func newGate(r Request) *drover.GateRecord {
	if r.Gate == nil {
		return nil
	}
	g := *r.Gate
	if g.OnUnhealthy == "" {
		g.OnUnhealthy = drover.UnhealthyReturn
	}
	if g.Health != nil {
		h := *g.Health
		g.Health = &h
	}
	return &drover.GateRecord{Gate: g, State: drover.GateAhead}
}

// projectGate shows the gate as the journal has it.
func projectGate(s *state) *drover.GateRecord {
	if s.Gate == nil {
		return nil
	}
	g := *s.Gate
	at := slices.IndexFunc(s.Journal.Steps, func(e saga.Entry) bool { return e.Name == "gate" })
	switch {
	case at < 0:
	case s.Journal.Pivot == saga.Passed:
		g.State = drover.GateCommitted
	case s.Journal.Steps[at-1].State == drover.StepUndoing, s.Journal.Steps[at-1].State == drover.StepUndone,
		s.Journal.Steps[at].State == drover.StepFailed, s.Journal.Steps[at].State == drover.StepUndoing, s.Journal.Steps[at].State == drover.StepUndone:
		g.State = drover.GateReturned
	case g.State == drover.GateAhead && s.Journal.Steps[at].State == drover.StepRunning:
		g.State = drover.GateChecking
	}
	return &g
}

// hold waits, where the step has to, for the operator's word.
func (w *worker) hold(ctx context.Context, st step, noted *state) error {
	for {
		w.mu.Lock()
		now, changed := w.state, w.changed
		w.mu.Unlock()
		noted.Committed = now.Committed
		wait, err := st.hold(noted)
		switch {
		case err != nil:
			return errors.Join(err, w.showGate(ctx, noted.Gate))
		case !wait:
			return nil
		case now.Journal.Cancel:
			return drover.Errorf(drover.Canceled, "", "%s", writesLost)
		case now.Gate.State != drover.GateWaiting:
			g := *noted.Gate
			g.State = drover.GateWaiting
			if err := w.showGate(ctx, &g); err != nil {
				return err
			}
			noted.Gate = &g
			w.log.InfoContext(ctx, "move waits at its gate for an operator", "gate", noted.Gate.String())
			continue
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// showGate journals what is known of the gate while its step goes on, or before
// it fails.
func (w *worker) showGate(ctx context.Context, g *drover.GateRecord) error {
	return w.change(ctx, func(s *state, rec *store.Record) error {
		s.Gate, s.Trouble = g, ""
		rec.Move.Gate, rec.Move.Fault = projectGate(s), fault(s, rec.Move.State)
		return nil
	})
}

// Commit opens the gate of a move that is at it, and returns when that is
// journaled: the check's outcome does not matter any more. Repeating it is fine.
// drover.Refused: it has no gate, or is not at it; otherwise the errors of
// Cancel.
func (e *Executor) Commit(ctx context.Context, name string) error {
	op := "commit move " + name
	w := e.worker(name)
	if w == nil {
		return e.notHere(ctx, name, op)
	}
	if s := w.now(); s.Committed && s.Journal.Pivot != saga.Passed {
		return nil
	}
	return w.journaled(ctx, op, func() error {
		err := w.change(e.life, func(s *state, rec *store.Record) error {
			if err := s.atGate(w.table); err != nil {
				return err
			}
			if s.Journal.Cancel {
				return drover.Errorf(drover.Refused, op, "it is being returned already")
			}
			s.Committed = true
			return nil
		})
		if err == nil {
			w.opened()
		}
		return err
	})
}

// Return takes the VM of a move at its gate back to its source, without what it
// wrote at the destination, and returns when that is journaled. Repeating it is
// fine. drover.Refused: it has no gate, or is not at it, or has been committed;
// otherwise the errors of Cancel.
func (e *Executor) Return(ctx context.Context, name string) error {
	op := "return move " + name
	w := e.worker(name)
	if w == nil {
		return e.notHere(ctx, name, op)
	}
	s := w.now()
	if s.Journal.Cancel && s.Journal.Pivot != saga.Passed {
		return nil
	}
	if err := s.atGate(w.table); err != nil {
		return drover.E(drover.KindOf(err), op, err)
	}
	return w.cancel(ctx)
}

// atGate refuses what is only for a move whose VM has been started and not been
// committed.
func (s *state) atGate(t saga.Table) error {
	at := t.Index("gate")
	switch {
	case at < 0:
		return drover.Errorf(drover.Refused, "", "it has no gate: it ends by itself")
	case s.Journal.Pivot == saga.Passed:
		return drover.Errorf(drover.Refused, "", "it has been committed already")
	case s.Journal.Steps[at].State != drover.StepRunning && s.Journal.Steps[at].State != drover.StepDone:
		return drover.Errorf(drover.Refused, "", "it is not at its gate: %s", s.Journal)
	}
	return nil
}

// canceledBecause is the cause of a move that an operator wants undone.
func (s *state) canceledBecause(t saga.Table) string {
	const because = "canceled by an operator"
	if at := t.Index("gate"); at > 0 && s.Journal.Steps[at-1].Begun() {
		return fmt.Sprintf("%s: %s", because, writesLost)
	}
	return because
}
