package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api/droverv1"
)

// maxJobs bounds the jobs that run at once: hosts are the source or the target
// of a handful of moves, each with one job at a time.
const maxJobs = 64

// action is what a job does. Its ctx ends when the job is canceled or the
// agent stops.
type action func(ctx context.Context, j *job) (*droverv1.RunResult, error)

// job is an action that runs or has run in this process.
type job struct {
	key    jobKey
	log    *slog.Logger
	cancel context.CancelCauseFunc
	done   chan struct{}
	// Set before done is closed.
	result *droverv1.RunResult
	err    error

	mu       sync.Mutex
	progress drover.Progress
	changed  chan struct{} // closed at the next change
}

// report sets the progress; Step and Updated are filled in.
func (j *job) report(now time.Time, p drover.Progress) {
	p.Step, p.Updated = j.key.step, now
	j.mu.Lock()
	defer j.mu.Unlock()
	j.progress = p
	close(j.changed)
	j.changed = make(chan struct{})
}

// watch returns the progress and what is closed when there is another.
func (j *job) watch() (drover.Progress, <-chan struct{}) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.progress, j.changed
}

var (
	errCanceled = errors.New("canceled on request")
	errStopping = errors.New("the agent is stopping")
	errUndone   = errors.New("it is being undone")
)

// jobs are the agent's jobs.
type jobs struct {
	journal *journal
	log     *slog.Logger
	clock   func() time.Time

	mu      sync.Mutex
	ctx     context.Context // of all jobs; nil until started
	running map[jobKey]*job
	group   sync.WaitGroup
}

func newJobs(j *journal, log *slog.Logger, clock func() time.Time) *jobs {
	return &jobs{journal: j, log: log, clock: clock, running: make(map[jobKey]*job)}
}

// start allows jobs until ctx ends.
func (js *jobs) start(ctx context.Context) {
	js.mu.Lock()
	defer js.mu.Unlock()
	js.ctx = ctx
}

// wait returns when no job is left; ctx of start must have ended.
func (js *jobs) wait() { js.group.Wait() }

// count returns how many jobs run.
func (js *jobs) count() int {
	js.mu.Lock()
	defer js.mu.Unlock()
	return len(js.running)
}

// find returns the job that is running, or whose kept result answers, or
// starts one.
func (js *jobs) find(key jobKey, generation int64, k kind, do action) (*job, error) {
	js.mu.Lock()
	defer js.mu.Unlock()
	if js.ctx == nil || js.ctx.Err() != nil {
		return nil, drover.E(drover.Unavailable, "run "+key.String(), errStopping)
	}
	if j := js.running[key]; j != nil {
		return j, nil
	}
	old, err := js.journal.job(key)
	if err != nil {
		return nil, err
	}
	if old != nil && old.State == jobDone && !k.fresh {
		result := new(droverv1.RunResult)
		if err := proto.Unmarshal(old.Result, result); err != nil {
			return nil, drover.E(drover.Corrupt, "journal", err)
		}
		j := &job{key: key, done: make(chan struct{}), result: result, changed: make(chan struct{})}
		close(j.done)
		return j, nil
	}
	if len(js.running) >= maxJobs {
		return nil, drover.Errorf(drover.Exhausted, "run "+key.String(), "%d jobs are running on this host, the limit is %d", len(js.running), maxJobs)
	}
	if !k.undo && !k.fresh {
		if other := js.other(key); other != nil {
			return nil, drover.Errorf(drover.Unavailable, "run "+key.String(), "%s is still running", other.key)
		}
	}
	// Before it begins: an action that a crash interrupts must be known.
	began := js.clock()
	if !k.fresh {
		rec := jobRecord{State: jobRunning, Generation: generation, Began: began}
		if err := js.journal.putJob(key, rec, k.forgets...); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithCancelCause(js.ctx)
	j := &job{
		key: key, cancel: cancel, done: make(chan struct{}), changed: make(chan struct{}),
		log: js.log.With("move", key.move, "step", key.step, "action", key.kind),
	}
	js.running[key] = j
	js.group.Go(func() { js.carryOut(ctx, j, generation, began, k, do) })
	return j, nil
}

// other returns another job of the same move; js.mu is held.
func (js *jobs) other(key jobKey) *job {
	for k, j := range js.running {
		if k.move == key.move && k != key && !kinds[k.kind].fresh {
			return j
		}
	}
	return nil
}

func (js *jobs) carryOut(ctx context.Context, j *job, generation int64, began time.Time, k kind, do action) {
	defer j.cancel(nil)
	j.log.Info("action begins", "generation", generation)
	var err error
	if k.undo {
		err = js.endOthers(ctx, j)
	}
	if err == nil {
		j.result, err = js.safely(ctx, j, do)
	}
	if err != nil && context.Cause(ctx) != nil {
		err = endedBy(context.Cause(ctx), err)
	}
	rec := jobRecord{State: jobDone, Generation: generation, Began: began, Ended: js.clock()}
	if err != nil {
		rec.State, rec.Fault = jobFailed, err.Error()
		j.log.Warn("action failed", "err", err, "kind", drover.KindOf(err).String())
	} else {
		j.log.Info("action done")
		if j.result == nil {
			j.result = new(droverv1.RunResult)
		}
		rec.Result, err = proto.Marshal(j.result)
	}
	if !k.fresh {
		if jerr := js.journal.putJob(j.key, rec); jerr != nil && err == nil {
			err = jerr
		}
	}
	j.err = err
	js.mu.Lock()
	delete(js.running, j.key)
	js.mu.Unlock()
	close(j.done)
}

// safely turns a panic into an error: one action's bug must not end the host's
// other moves.
func (js *jobs) safely(ctx context.Context, j *job, do action) (r *droverv1.RunResult, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = drover.Errorf(drover.Internal, j.key.String(), "panic: %v", p)
			j.log.Error("action panicked", "panic", p)
		}
	}()
	return do(ctx, j)
}

// endedBy gives an error the kind of what ended its job. An outcome that is
// not known stays so.
func endedBy(cause, err error) error {
	if drover.KindOf(err) == drover.Unknown {
		return err
	}
	if errors.Is(cause, errCanceled) || errors.Is(cause, errUndone) {
		return drover.E(drover.Canceled, "", fmt.Errorf("%w: %w", cause, err))
	}
	return drover.E(drover.Unavailable, "", fmt.Errorf("%w: %w", errStopping, err))
}

// endOthers cancels the move's other jobs and waits for them.
func (js *jobs) endOthers(ctx context.Context, me *job) error {
	for {
		js.mu.Lock()
		other := js.other(me.key)
		js.mu.Unlock()
		if other == nil {
			return nil
		}
		other.cancel(errUndone)
		select {
		case <-other.done:
		case <-ctx.Done():
			return drover.Errorf(drover.Unavailable, me.key.String(), "%s has not ended", other.key)
		}
	}
}

// halt ends the jobs of a move and waits for them.
func (js *jobs) halt(ctx context.Context, move string) error {
	for {
		js.mu.Lock()
		other := js.other(jobKey{move: move})
		js.mu.Unlock()
		if other == nil {
			return nil
		}
		other.cancel(errUndone)
		select {
		case <-other.done:
		case <-ctx.Done():
			return drover.Errorf(drover.Unavailable, "halt "+move, "%s has not ended", other.key)
		}
	}
}

// stop cancels the jobs of a step.
func (js *jobs) stop(move, step string) {
	js.mu.Lock()
	defer js.mu.Unlock()
	for k, j := range js.running {
		if k.move == move && k.step == step {
			j.cancel(errCanceled)
		}
	}
}
