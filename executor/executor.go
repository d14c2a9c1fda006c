package executor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/saga"
	"github.com/drover-vm/drover/store"
)

// Executor carries moves out. Its methods may be called concurrently.
type Executor struct {
	journal store.Journal
	agents  Agents
	planner Planner
	clock   Clock
	log     *slog.Logger
	watcher Observer
	limits  Limits
	random  func() float64
	queue   *queue

	// life is the context of the moves, which outlive the calls that start
	// them; end ends it.
	life context.Context
	end  context.CancelFunc
	wg   sync.WaitGroup

	// taking serialises what may give a move a worker (Start, Resume), so that
	// no move gets two.
	taking chan struct{}

	mu      sync.Mutex
	closed  bool
	workers map[string]*worker
}

// New returns an executor that has taken nothing up yet; see Resume. Close
// ends it.
func New(c Config) *Executor {
	e := &Executor{
		journal: c.Journal, agents: c.Agents, planner: c.Planner, clock: c.Clock, log: c.Log,
		watcher: c.Observer, limits: c.Limits.withDefaults(), random: c.Random,
		taking: make(chan struct{}, 1), workers: make(map[string]*worker),
	}
	if e.clock == nil {
		e.clock = realClock{}
	}
	if e.log == nil {
		e.log = slog.New(slog.DiscardHandler)
	}
	if e.watcher == nil {
		e.watcher = noObserver{}
	}
	if e.random == nil {
		e.random = rand.Float64
	}
	e.queue = newQueue(e.limits)
	e.life, e.end = context.WithCancel(context.Background())
	return e
}

// Close lets all moves go as they are and waits for what runs here. Actions
// that agents have begun run on; the moves stay resumable. Repeating it is
// fine.
func (e *Executor) Close() error {
	e.mu.Lock()
	e.closed = true
	e.mu.Unlock()
	e.end()
	e.wg.Wait()
	return nil
}

// Start journals the move and begins it as soon as its link has room. The
// context bounds only the acceptance.
//
// A request whose ID is known returns its move as it is. Errors: those of
// Request.Validate; drover.Refused when the VM has another unfinished move;
// drover.Exhausted when too many are waiting; drover.Unavailable when the
// executor is closed; and those of the journal.
func (e *Executor) Start(ctx context.Context, r Request) (drover.Move, error) {
	if err := r.Validate(); err != nil {
		return drover.Move{}, err
	}
	m, err := methodOf(r)
	if err != nil {
		return drover.Move{}, err
	}
	op := "start move of " + r.VM.Name
	unlock, err := e.lockTaking(ctx, op)
	if err != nil {
		return drover.Move{}, err
	}
	defer unlock()

	// The place in the queue comes first: a move that is journaled has one.
	t, err := e.queue.enter(linkOf(r), r.Locks, asNew)
	if err != nil {
		return drover.Move{}, drover.E(drover.KindOf(err), op, err)
	}
	kept, created, err := e.create(ctx, r, m)
	if err != nil {
		t.end()
		return drover.Move{}, err
	}
	if !created {
		t.end()
		return e.known(ctx, kept)
	}
	s, _, err := openState(kept)
	if err != nil {
		t.end()
		return drover.Move{}, err
	}
	return e.launch(kept, s, m, t)
}

// create journals a new move under a name that is free.
func (e *Executor) create(ctx context.Context, r Request, m method) (store.Record, bool, error) {
	const tries = 3 // names are random; two clashes in a row are no coincidence
	s := &state{Version: stateVersion, Table: m.id, Request: r, Journal: saga.New(m.table()), Gate: newGate(r)}
	for try := 1; ; try++ {
		rec := store.Record{RequestID: r.ID, Move: drover.Move{
			Name: e.newName(), VM: r.VM.Name, VMUUID: r.VM.UUID,
			From: r.From, To: r.To, Method: r.Method, Reason: r.Reasons,
			KeepSource: r.KeepSource, Bandwidth: r.Bandwidth, Generation: 1, Created: e.clock.Now().UTC(), Forecast: r.Forecast,
		}}
		if err := seal(&rec, s, m.table()); err != nil {
			return store.Record{}, false, err
		}
		kept, created, err := e.journal.Create(ctx, rec)
		if drover.KindOf(err) == drover.Exists && try < tries {
			continue
		}
		return kept, created, err
	}
}

// known answers a request that was made before. When that call ended between
// journal and worker, its move has nobody to carry it out: it is taken up.
func (e *Executor) known(ctx context.Context, kept store.Record) (drover.Move, error) {
	if w := e.worker(kept.Move.Name); w != nil {
		return w.move(), nil
	}
	if kept.Move.State.Final() {
		return kept.Move, nil
	}
	return e.takeUp(ctx, kept)
}

// Resume takes up every unfinished move under a higher generation. It is
// called once at start, and may be repeated: moves that are carried out here
// already are left alone. Moves that cannot be taken up are named in the
// error, and do not keep others from it.
func (e *Executor) Resume(ctx context.Context) error {
	unlock, err := e.lockTaking(ctx, "resume moves")
	if err != nil {
		return err
	}
	defer unlock()
	records, _, err := e.journal.List(ctx, store.Filter{Unfinished: true})
	if err != nil {
		return fmt.Errorf("resume moves: %w", err)
	}
	// Those that were under way first: they have the locks for which others wait.
	slices.SortStableFunc(records, func(a, b store.Record) int {
		return cmp.Compare(pending(a.Move.State), pending(b.Move.State))
	})
	var failed []error
	for _, rec := range records {
		if e.worker(rec.Move.Name) != nil {
			continue
		}
		if _, err := e.takeUp(ctx, rec); err != nil {
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}

// pending is 1 for a move of which nothing has begun.
func pending(s drover.MoveState) int {
	if s == drover.MovePending {
		return 1
	}
	return 0
}

// takeUp gives an unfinished move a new generation and a worker.
func (e *Executor) takeUp(ctx context.Context, rec store.Record) (drover.Move, error) {
	s, m, err := openState(rec)
	if err != nil {
		return drover.Move{}, err
	}
	if s.Journal, err = saga.Apply(m.table(), s.Journal, saga.Event{What: saga.Recover}); err != nil {
		return drover.Move{}, err
	}
	rec.Move.Generation++
	if err := seal(&rec, s, m.table()); err != nil {
		return drover.Move{}, err
	}
	kept, err := e.journal.Update(ctx, rec)
	if err != nil {
		return drover.Move{}, fmt.Errorf("take up move %s: %w", rec.Move.Name, err)
	}
	as := asAccepted
	if s.Journal.State(m.table()) != drover.MovePending {
		as = asBegun
	}
	t, err := e.queue.enter(linkOf(s.Request), s.Request.Locks, as)
	if err != nil {
		return drover.Move{}, drover.E(drover.KindOf(err), "take up move "+rec.Move.Name, err)
	}
	return e.launch(kept, s, m, t)
}

// launch starts the worker of a move that this executor has in its journal.
func (e *Executor) launch(rec store.Record, s *state, m method, t *ticket) (drover.Move, error) {
	w := newWorker(e, rec, s, m, t)
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		t.end()
		return drover.Move{}, errClosed("move " + rec.Move.Name)
	}
	e.workers[rec.Move.Name] = w
	e.wg.Go(func() {
		w.run(e.life)
		e.mu.Lock()
		delete(e.workers, rec.Move.Name)
		e.mu.Unlock()
	})
	return rec.Move, nil
}

// Cancel asks for the move to be undone, and returns when that is journaled.
// Repeating it is fine. drover.Refused: it has passed the point of no return,
// or has ended; drover.Unavailable: it is not carried out here (yet);
// drover.NotFound: there is none of that name.
func (e *Executor) Cancel(ctx context.Context, name string) error {
	if w := e.worker(name); w != nil {
		return w.cancel(ctx)
	}
	return e.notHere(ctx, name, "cancel move "+name)
}

// notHere is why nothing can be asked of a move that has no worker.
func (e *Executor) notHere(ctx context.Context, name, op string) error {
	rec, err := e.journal.Get(ctx, name)
	switch {
	case err != nil:
		return err
	case rec.Move.State.Final():
		return drover.Errorf(drover.Refused, op, "it has ended already: %s", rec.Move.State)
	default:
		return drover.Errorf(drover.Unavailable, op, "it has not been taken up here")
	}
}

// Get returns a move, with its progress when it is carried out here.
// drover.NotFound when there is none of that name.
func (e *Executor) Get(ctx context.Context, name string) (drover.Move, error) {
	if w := e.worker(name); w != nil {
		return w.move(), nil
	}
	rec, err := e.journal.Get(ctx, name)
	return rec.Move, err
}

// List returns the moves that the filter lets through, oldest first, with
// progress where they are carried out here.
func (e *Executor) List(ctx context.Context, f store.Filter) ([]drover.Move, error) {
	records, _, err := e.journal.List(ctx, f)
	if err != nil {
		return nil, err
	}
	moves := make([]drover.Move, len(records))
	for i, rec := range records {
		moves[i] = rec.Move
		if w := e.worker(rec.Move.Name); w != nil {
			moves[i] = w.move()
		}
	}
	return moves, nil
}

func (e *Executor) worker(name string) *worker {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.workers[name]
}

// goOn runs f in a goroutine that Close waits for, unless the executor is
// closed.
func (e *Executor) goOn(f func()) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return false
	}
	e.wg.Go(f)
	return true
}

func (e *Executor) lockTaking(ctx context.Context, op string) (unlock func(), err error) {
	select {
	case e.taking <- struct{}{}:
	case <-ctx.Done():
		return nil, drover.E(drover.Canceled, op, ctx.Err())
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		<-e.taking
		return nil, errClosed(op)
	}
	return func() { <-e.taking }, nil
}

func errClosed(op string) error {
	return drover.Errorf(drover.Unavailable, op, "the executor is closed; the next one resumes what is unfinished")
}

// newName returns a name that sorts by time: "m", ten characters of the
// milliseconds since 1970, five of chance, in base 32 without lookalikes.
func (e *Executor) newName() string {
	const digits = "0123456789abcdefghjkmnpqrstvwxyz"
	name := make([]byte, 16)
	name[0] = 'm'
	for i, v := 10, e.clock.Now().UnixMilli(); i >= 1; i, v = i-1, v>>5 {
		name[i] = digits[v&31]
	}
	for i := 11; i < len(name); i++ {
		name[i] = digits[int(e.random()*32)&31]
	}
	return string(name)
}
