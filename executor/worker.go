package executor

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/saga"
	"github.com/drover-vm/drover/store"
)

// worker carries one move out.
type worker struct {
	e      *Executor
	log    *slog.Logger
	method method
	table  saga.Table
	ticket *ticket

	// writing serialises changes of the record: one at a time is made, and
	// kept, before the next.
	writing chan struct{}
	// wish is closed when a request to cancel has been journaled.
	wish     chan struct{}
	wishOnce sync.Once
	// over is closed when the worker has let the move go.
	over chan struct{}

	mu       sync.Mutex
	rec      store.Record
	state    *state
	progress *drover.Progress
	// heard is when an agent last told of an action under way, and troubled when
	// one last did not succeed.
	heard, troubled time.Time
	// changed is closed, and replaced, at each change of the five above.
	changed chan struct{}

	// open is closed when an operator has opened the gate.
	open     chan struct{}
	openOnce sync.Once

	// try belongs to the goroutine of run.
	try try
}

// try is how often the same thing has been tried without success. Two things are
// waited for, each with the step's whole patience: an agent that does not
// answer, and an action that fails although its agent does.
type try struct {
	what  saga.Decision
	times int
	// silent is since when no call gets through: the first one that was cut
	// after the agent was last heard. Zero while calls do.
	silent time.Time
	// failing is when the action first failed in a row; last when it did last.
	failing, last time.Time
}

// errLetGo ends a worker whose move another executor has taken up, or whose
// executor is closed.
var errLetGo = errors.New("the move is another executor's")

func newWorker(e *Executor, rec store.Record, s *state, m method, t *ticket) *worker {
	w := &worker{
		e: e, method: m, table: m.table(), ticket: t,
		log:     e.log.With("move", rec.Move.Name, "vm", rec.Move.VM, "generation", rec.Move.Generation),
		writing: make(chan struct{}, 1), wish: make(chan struct{}), over: make(chan struct{}), open: make(chan struct{}),
		rec: rec, state: s, changed: make(chan struct{}),
	}
	if s.Journal.Cancel {
		w.wished()
	}
	if s.Committed {
		w.opened()
	}
	return w
}

// run carries the move on until it is final, another has it, or ctx ends.
func (w *worker) run(ctx context.Context) {
	defer close(w.over)
	defer w.ticket.end()
	if !w.await(ctx) {
		return
	}
	started := w.starting(ctx)
	defer func() { <-started }()
	for {
		d := saga.Next(w.table, w.now().Journal)
		if d.Verb != saga.Do || !w.method.steps[d.Step].ahead {
			<-started
		}
		var err error
		switch {
		case d.Final():
			err = w.finish(ctx, d)
		case d.Verb == saga.Do:
			err = w.do(ctx, d)
		case d.Verb == saga.Undo:
			err = w.undo(ctx, d)
		case d.Verb == saga.Settle:
			err = w.settle(ctx, d)
		default:
			err = drover.Errorf(drover.Internal, "move", "nobody attends to what its journal says is under way: %s", w.now().Journal)
		}
		switch {
		case errors.Is(err, errLetGo):
			w.log.WarnContext(ctx, "move let go", "why", err)
			return
		case ctx.Err() != nil:
			w.log.InfoContext(ctx, "move left for the next executor")
			return
		case err != nil:
			w.log.ErrorContext(ctx, "move cannot be carried on by this executor", "error", err)
			return
		case d.Final():
			return
		}
		if j := w.now().Journal; j.Pivot == saga.Passed || saga.Next(w.table, j).Verb == saga.Undo {
			// No guest bytes cross any more: the link is free for the next.
			w.ticket.leave()
		}
	}
}

// await waits for the move's turn, or for the wish to cancel it.
func (w *worker) await(ctx context.Context) bool {
	select {
	case <-w.ticket.turn:
		return true
	case <-w.wish:
		return true
	case <-ctx.Done():
		return false
	}
}

// starting tells the observer, beside the steps that are ahead of the guest: it
// asks others, and they are far. The channel is closed when it has returned.
func (w *worker) starting(ctx context.Context) <-chan struct{} {
	returned := make(chan struct{})
	if d := saga.Next(w.table, w.now().Journal); d.Verb != saga.Do {
		close(returned)
		return returned // on its way back, or at its end: nothing to measure begins
	}
	m := w.move()
	go func() {
		defer close(returned)
		octx, cancel := context.WithTimeout(ctx, w.e.limits.ObserverTime)
		defer cancel()
		if err := w.e.watcher.MoveStarting(octx, m); err != nil {
			w.log.WarnContext(ctx, "observer failed as the move was starting", "error", err)
		}
	}()
	return returned
}

// finish measures the move and journals its final state.
func (w *worker) finish(ctx context.Context, d saga.Decision) error {
	w.ticket.end()
	ended := w.e.clock.Now().UTC()
	m, s := w.move(), w.now()
	m.State = map[saga.Verb]drover.MoveState{
		saga.FinishedDone: drover.MoveDone, saga.FinishedUndone: drover.MoveUndone, saga.Stuck: drover.MoveStuck,
	}[d.Verb]
	m.Ended, m.Progress = ended, nil
	var err error
	if m.Measured, err = w.measure(ctx, m, s, ended); err != nil {
		return err
	}
	err = w.change(ctx, func(s *state, rec *store.Record) error {
		s.ended()
		s.Trouble = ""
		rec.Move.State, rec.Move.Ended, rec.Move.Measured = m.State, m.Ended, m.Measured
		rec.Move.Fault = fault(s, m.State)
		return nil
	})
	if err == nil {
		w.log.InfoContext(ctx, "move ended", "state", m.State, "fault", w.move().Fault, "seconds", ended.Sub(m.Created).Seconds())
	}
	return err
}

// measure returns the figures of a move that has ended then, with what the
// observer saw.
func (w *worker) measure(ctx context.Context, m drover.Move, s *state, ended time.Time) (drover.Figures, error) {
	if known := s.Renumbered.Measured; known != nil {
		return withLost(*known, s.Renumbered.Lost), nil
	}
	begun := firstStart(m.Steps)
	m.Measured, m.Ended = s.figures(begun, ended), ended
	if begun.IsZero() {
		return m.Measured, nil
	}
	octx, cancel := context.WithTimeout(ctx, w.e.limits.ObserverTime)
	more, err := w.e.watcher.MoveEnded(octx, m)
	cancel()
	if ctx.Err() != nil {
		return drover.Figures{}, ctx.Err()
	}
	if err != nil {
		w.log.WarnContext(ctx, "observer failed as the move ended", "error", err)
	}
	merge(&m.Measured, more)
	return m.Measured, nil
}

func firstStart(steps []drover.StepRecord) time.Time {
	var first time.Time
	for _, s := range steps {
		if !s.Started.IsZero() && (first.IsZero() || s.Started.Before(first)) {
			first = s.Started
		}
	}
	return first
}

// now returns the state as it is kept; it is not to be changed.
func (w *worker) now() *state {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.state
}

// move returns the move as it is, with its progress.
func (w *worker) move() drover.Move {
	m, _ := w.watch()
	return m
}

// watch returns the move and a channel that is closed when it has changed.
func (w *worker) watch() (drover.Move, <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	m := w.rec.Move
	m.Progress = w.progress
	if w.heard.After(w.troubled) && w.state.Trouble != "" {
		// What hindered is over, as far as can be seen.
		s := w.state.clone()
		s.Trouble = ""
		m.Fault = fault(s, m.State)
	}
	return m, w.changed
}

// report takes over the progress of the step that runs.
func (w *worker) report(step string) func(drover.Progress) {
	return func(p drover.Progress) {
		p.Step = step
		if p.Updated.IsZero() {
			p.Updated = w.e.clock.Now().UTC()
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.progress, w.heard = &p, w.e.clock.Now()
		w.touch()
	}
}

// touch wakes those who watch; w.mu is held.
func (w *worker) touch() {
	close(w.changed)
	w.changed = make(chan struct{})
}

// apply journals an event, with what edit makes of the state.
func (w *worker) apply(ctx context.Context, ev saga.Event, edit func(*state, *store.Record)) error {
	return w.change(ctx, func(s *state, rec *store.Record) error {
		j, err := saga.Apply(w.table, s.Journal, ev)
		if err != nil {
			return err
		}
		s.Journal = j
		if edit != nil {
			edit(s, rec)
		}
		project(rec, s, w.table, w.e.clock.Now().UTC())
		return nil
	})
}

// change makes a change of the record and keeps it, one at a time.
func (w *worker) change(ctx context.Context, edit func(*state, *store.Record) error) error {
	select {
	case w.writing <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-w.writing }()

	w.mu.Lock()
	s, rec := w.state.clone(), w.rec
	w.mu.Unlock()
	if err := edit(s, &rec); err != nil {
		return err
	}
	b, err := json.Marshal(s)
	if err != nil {
		return drover.E(drover.Internal, "journal", err)
	}
	rec.State = b
	kept, err := w.keep(ctx, rec)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if s.Journal.Busy != "" || rec.Move.State.Final() {
		w.progress = nil // that of an attempt before
	}
	w.rec, w.state = kept, s
	w.touch()
	return nil
}

// keep writes the record, again and again while the journal does not answer:
// neither a step nor its outcome may go without.
func (w *worker) keep(ctx context.Context, rec store.Record) (store.Record, error) {
	for n := 1; ; n++ {
		kept, err := w.e.journal.Update(ctx, rec)
		if err == nil {
			return kept, nil
		}
		if ctx.Err() != nil {
			return store.Record{}, ctx.Err()
		}
		switch drover.KindOf(err) {
		case drover.Refused, drover.NotFound:
			return store.Record{}, errors.Join(errLetGo, err)
		case drover.Invalid:
			return store.Record{}, err // a bug: no retry will help
		}
		w.log.WarnContext(ctx, "journal does not take the move's record; trying again", "error", err, "attempt", n)
		if err := w.e.clock.Sleep(ctx, w.e.backoff(n)); err != nil {
			return store.Record{}, err
		}
	}
}

// backoff returns how long to wait after the n-th failure.
func (e *Executor) backoff(n int) time.Duration {
	d := e.limits.RetryFirst
	for ; n > 1 && d < e.limits.RetryMost; n-- {
		d *= 2
	}
	d = min(d, e.limits.RetryMost)
	return d - time.Duration(e.random()*float64(d)/2)
}

func (w *worker) opened() { w.openOnce.Do(func() { close(w.open) }) }

func (w *worker) wished() { w.wishOnce.Do(func() { close(w.wish) }) }

// cancel journals the wish and tells the goroutine that carries the move out.
func (w *worker) cancel(ctx context.Context) error {
	return w.journaled(ctx, "cancel move "+w.move().Name, func() error {
		err := w.apply(w.e.life, saga.Event{What: saga.Cancel}, func(s *state, _ *store.Record) {
			if s.Cause == "" {
				s.Cause = s.canceledBecause(w.table)
			}
		})
		if err == nil {
			w.wished()
		}
		return err
	})
}

// journaled makes a change for a caller. The writing itself is not cut when ctx
// ends, or nobody would know whether it was made.
func (w *worker) journaled(ctx context.Context, op string, change func() error) error {
	answer := make(chan error, 1)
	if !w.e.goOn(func() { answer <- change() }) {
		return errClosed(op)
	}
	select {
	case err := <-answer:
		switch {
		case err == nil:
			return nil
		case errors.Is(err, errLetGo):
			return drover.E(drover.Unavailable, op, err)
		case w.e.life.Err() != nil:
			return errClosed(op)
		}
		return drover.E(drover.KindOf(err), op, err)
	case <-ctx.Done():
		return drover.E(drover.Unknown, op, ctx.Err())
	}
}
