package executor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/saga"
	"github.com/drover-vm/drover/store"
)

// do begins a step, or begins it again.
func (w *worker) do(ctx context.Context, d saga.Decision) error {
	st := w.method.steps[d.Step]
	if err := w.apply(ctx, saga.Event{What: saga.Begin, Step: d.Step}, nil); err != nil {
		return err
	}
	if st.idle {
		w.ticket.leave()
	}
	noted := w.now().clone()
	err := w.local(ctx, st, noted)
	if err == nil {
		err = w.each(ctx, d, st.do(noted), func(n int, r Result) error {
			if st.note == nil {
				return nil
			}
			return st.note(noted, n, r)
		})
	}
	if err == nil && st.work != nil {
		err = st.work(ctx, w, noted, func(ctx context.Context, c call) (Result, error) { return w.ask(ctx, d, c) })
	}
	if st.hold != nil && w.now().Committed {
		err = nil // the operator's word counts, whatever the check says
	}
	if err == nil && st.hold != nil {
		err = w.hold(ctx, st, noted)
	}
	if stop := mustStop(ctx, err); stop != nil {
		return stop
	}
	if err == nil {
		w.succeeded()
		return w.apply(ctx, saga.Event{What: saga.Done, Step: d.Step}, func(s *state, _ *store.Record) {
			s.WasRunning, s.Definition, s.Gate, s.Network = noted.WasRunning, noted.Definition, noted.Gate, noted.Network
			s.Made, s.Remote = noted.Made, noted.Remote
			ended := s.Renumbered.Ended
			s.Renumbered = noted.Renumbered
			s.Renumbered.Ended = ended
			s.Stopped, s.Resumed, s.Sums = noted.Stopped, noted.Resumed, noted.Sums
			s.Trouble = ""
			if st.Pivot {
				s.Cause = "" // a wish to cancel that came too late
			}
		})
	}
	if lost := lost(st, d.Verb, err); lost != "" {
		return w.giveUp(ctx, d, lost, err)
	}
	w.failed(d, err)
	pivot := w.now().Journal.Pivot
	before := pivot == saga.Open
	what := saga.Fail
	if drover.KindOf(err).Retryable() {
		what = saga.Unsure
		// A pivot that its agent says has ended without an outcome is settled
		// in the end. One of which nobody knows is asked for without end: to
		// settle it, the same agent would have to be asked.
		ended := pivot == saga.Unknown && drover.KindOf(err) == drover.Unavailable && !isCut(err)
		if (before && !st.patient || ended) && w.impatient() {
			what = saga.Fail
			err = fmt.Errorf("no answer for %v: %w", w.e.limits.StepPatience, err)
		}
	}
	if err := w.trouble(ctx, d, what, err, before && what == saga.Fail); err != nil {
		return err
	}
	if what == saga.Fail && before {
		return nil // the way back begins at once
	}
	return w.pause(ctx)
}

// local does what a step does without an agent. A wish to cancel ends it.
func (w *worker) local(ctx context.Context, st step, noted *state) error {
	if st.local == nil {
		return nil
	}
	woken, stop := until(ctx, w.wish)
	defer stop()
	err := st.local(woken, w.e, noted)
	if err != nil && woken.Err() != nil && ctx.Err() == nil {
		return drover.E(drover.Canceled, "", err)
	}
	return err
}

// undo begins a step's undo, or begins it again, until it succeeds.
func (w *worker) undo(ctx context.Context, d saga.Decision) error {
	st := w.method.steps[d.Step]
	if err := w.apply(ctx, saga.Event{What: saga.BeginUndo, Step: d.Step}, nil); err != nil {
		return err
	}
	var err error
	if st.undo != nil {
		err = w.each(ctx, d, st.undo(w.now()), func(int, Result) error { return nil })
	}
	if stop := mustStop(ctx, err); stop != nil {
		return stop
	}
	if err == nil {
		w.succeeded()
		return w.apply(ctx, saga.Event{What: saga.Undone, Step: d.Step}, func(s *state, _ *store.Record) { s.Trouble = "" })
	}
	if lost := lost(st, d.Verb, err); lost != "" {
		return w.giveUp(ctx, d, lost, err)
	}
	w.failed(d, err)
	if err := w.trouble(ctx, d, saga.UndoFail, err, false); err != nil {
		return err
	}
	return w.pause(ctx)
}

// settle asks what became of the pivot, until there is a definite answer.
func (w *worker) settle(ctx context.Context, d saga.Decision) error {
	st := w.method.steps[d.Step]
	if err := w.apply(ctx, saga.Event{What: saga.BeginSettle, Step: d.Step}, nil); err != nil {
		return err
	}
	noted := w.now().clone()
	passed, err := st.settle(ctx, noted, func(ctx context.Context, c call) (Result, error) { return w.ask(ctx, d, c) })
	if stop := mustStop(ctx, err); stop != nil {
		return stop
	}
	if err == nil {
		w.succeeded()
		what := saga.SettleNotPassed
		if passed {
			what = saga.SettlePassed
		}
		return w.apply(ctx, saga.Event{What: what, Step: d.Step}, func(s *state, _ *store.Record) {
			s.Stopped, s.Resumed, s.Sums = noted.Stopped, noted.Resumed, noted.Sums
			s.Trouble = ""
			if passed {
				// What led here did not come true after all.
				s.Cause = ""
			}
		})
	}
	if lost := lost(st, d.Verb, err); lost != "" {
		return w.giveUp(ctx, d, lost, err)
	}
	w.failed(d, err)
	if err := w.trouble(ctx, d, saga.SettleUnsure, err, false); err != nil {
		return err
	}
	return w.pause(ctx)
}

// each makes the calls in order and notes their results, up to the first
// error.
func (w *worker) each(ctx context.Context, d saga.Decision, calls []call, note func(int, Result) error) error {
	for i, c := range calls {
		r, err := w.ask(ctx, d, c)
		if err != nil {
			return err
		}
		if err := note(i, r); err != nil {
			return err
		}
	}
	return nil
}

// ask makes one call. While a step up to the pivot is being done, a wish to
// cancel is passed on to its agent; the answer is still awaited, since only the
// agent knows which of the two came first.
func (w *worker) ask(ctx context.Context, d saga.Decision, c call) (Result, error) {
	m := w.move()
	ref := w.now().known(c.host, Ref{Move: m.Name, Generation: m.Generation, VM: m.VM, VMUUID: m.VMUUID})
	if c.action == nil {
		return Result{}, w.e.agents.Cancel(ctx, c.host, ref, c.cancel)
	}
	name := stepName(d.Verb, w.table[d.Step].Name)
	if c.part != "" {
		name += "-" + c.part
	}
	var wg sync.WaitGroup
	answered := make(chan struct{})
	if d.Verb == saga.Do && d.Step <= w.table.Pivot() {
		wg.Go(func() { w.passOn(ctx, w.wish, answered, c.host, ref, name) })
	}
	if _, asks := c.action.(CheckHealth); asks {
		wg.Go(func() { w.passOn(ctx, w.open, answered, c.host, ref, name) })
	}
	if sends(c.action) {
		wg.Go(func() { w.keepRate(ctx, answered, c.host, ref) })
	}
	r, err := w.e.agents.Run(ctx, c.host, ref, name, c.action, w.report(w.table[d.Step].Name))
	close(answered)
	wg.Wait()
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil && drover.KindOf(err) == drover.Internal {
		// A call that took too long says nothing about the action.
		err = drover.E(drover.Unavailable, name, err)
	}
	return r, err
}

// stepName is what agents know an action by, besides its move. An action that
// takes back has a name of its own, or it would be taken for the one it undoes.
func stepName(v saga.Verb, step string) string {
	if v == saga.Do {
		return step
	}
	return string(v) + "-" + step
}

// passOn asks the agent to end the action once an operator wishes so, until
// it has been heard or the action has ended.
func (w *worker) passOn(ctx context.Context, wish, answered <-chan struct{}, host string, ref Ref, step string) {
	select {
	case <-wish:
	case <-answered:
		return
	case <-ctx.Done():
		return
	}
	ctx, stop := until(ctx, answered)
	defer stop()
	for n := 1; ctx.Err() == nil; n++ {
		err := w.e.agents.Cancel(ctx, host, ref, step)
		if err == nil || ctx.Err() != nil {
			return
		}
		w.log.WarnContext(ctx, "agent does not take the request to cancel; trying again", "host", host, "step", step, "error", err)
		if w.e.clock.Sleep(ctx, w.e.backoff(n)) != nil {
			return
		}
	}
}

// until returns a context that also ends when c is closed; stop frees it.
func until(ctx context.Context, c <-chan struct{}) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case <-c:
			cancel()
		case <-ctx.Done():
		}
	})
	return ctx, func() { cancel(); wg.Wait() }
}

// cutTries bounds the wait for an agent that does not answer, for as long as a
// cut of the WAN is expected to last: the action goes on there, and once the WAN
// heals its end should not wait for the server.
const cutTries = 4

// pause waits before the next attempt; a new wish to cancel ends the wait.
func (w *worker) pause(ctx context.Context) error {
	times := w.try.times
	if !w.try.silent.IsZero() && !w.impatient() {
		times = min(times, cutTries)
	}
	wait := w.e.backoff(times)
	select {
	case <-w.wish: // known already, so nothing to be woken by
		return w.e.clock.Sleep(ctx, wait)
	default:
	}
	woken, stop := until(ctx, w.wish)
	defer stop()
	if err := w.e.clock.Sleep(woken, wait); err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	return nil
}

func (w *worker) succeeded() { w.try = try{} }

// failed counts how often the same has failed, and notes since when.
func (w *worker) failed(d saga.Decision, err error) {
	if w.try.what != d || w.try.times == 0 {
		w.try = try{what: d}
	}
	now := w.e.clock.Now()
	if isCut(err) {
		w.mu.Lock()
		heard := w.heard
		w.mu.Unlock()
		if w.try.silent.IsZero() || heard.After(w.try.silent) {
			// It was heard meanwhile: this is another cut.
			w.try.silent, w.try.times = now, 0
		}
		w.try.times++
		return
	}
	w.try.silent = time.Time{}
	if w.try.failing.IsZero() || now.Sub(w.try.last) >= w.e.limits.StepPatience {
		// The action went on for longer than it would be waited for.
		w.try.failing, w.try.times = now, 0
	}
	w.try.last = now
	w.try.times++
}

// impatient reports whether what failed last has been tried for long enough.
func (w *worker) impatient() bool {
	since := w.try.failing
	if !w.try.silent.IsZero() {
		since = w.try.silent
	}
	return w.e.clock.Now().Sub(since) >= w.e.limits.StepPatience
}

// mustStop says whether the worker has to let the move go rather than draw a
// conclusion from err, because its executor is closed. That another executor
// has taken the move up, which may be why an agent refuses this one, needs no
// question: every conclusion is journaled before it is acted upon, and the
// journal refuses an older generation.
func mustStop(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	return nil
}

// lost says what has been lost for good, if err means that.
func lost(st step, v saga.Verb, err error) string {
	if drover.KindOf(err) != drover.NotFound {
		return ""
	}
	return st.lost[v]
}

// giveUp ends the move where only a person can go on.
func (w *worker) giveUp(ctx context.Context, d saga.Decision, why string, err error) error {
	w.log.ErrorContext(ctx, "move is stuck", "step", w.table[d.Step].Name, "why", why, "error", err)
	return w.apply(ctx, saga.Event{What: saga.GiveUp, Reason: why}, func(s *state, rec *store.Record) {
		s.Trouble = ""
		s.Cause = fmt.Sprintf("%s: %s", why, brief(err))
		rec.Move.Steps = withFault(rec.Move.Steps, d.Step, err)
	})
}

// trouble journals an attempt that has not succeeded. cause says that it is why
// the move is undone.
func (w *worker) trouble(ctx context.Context, d saga.Decision, what saga.What, err error, cause bool) error {
	step := w.table[d.Step].Name
	w.log.WarnContext(ctx, "step has not succeeded", "step", step, "verb", d.Verb, "taken as", what, "attempt", w.try.times, "error", err)
	w.mu.Lock()
	w.troubled = w.e.clock.Now()
	w.mu.Unlock()
	return w.apply(ctx, saga.Event{What: what, Step: d.Step}, func(s *state, rec *store.Record) {
		line := fmt.Sprintf("%s: %s", stepName(d.Verb, step), brief(err))
		cause := cause || what == saga.Fail && s.Journal.Pivot == saga.Unknown
		switch {
		case cause && s.Cause == "":
			s.Cause = line
		case !cause:
			s.Trouble = line
		}
		rec.Move.Steps = withFault(rec.Move.Steps, d.Step, err)
	})
}

func withFault(steps []drover.StepRecord, i int, err error) []drover.StepRecord {
	steps = slices.Clone(steps)
	steps[i].Fault = brief(err)
	return steps
}

// maxFaultBytes bounds an error's text in a record: an agent may pass on a
// whole log, and a person reads one line.
const maxFaultBytes = 1024

// brief returns the error's text on one line, cut where it is too long.
func brief(err error) string {
	s := strings.Join(strings.Fields(err.Error()), " ")
	if len(s) > maxFaultBytes {
		s = strings.ToValidUTF8(s[:maxFaultBytes], "") + "…"
	}
	return s
}
