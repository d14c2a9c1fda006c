package executortest

import (
	"context"
	"fmt"
	"slices"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/executor"
)

// Call is one call of an agent, as a Fault sees it.
type Call struct {
	Host       string
	Step       string
	Generation int64
	// Action is nil for a Cancel.
	Action executor.Action
	// After is false before the agent hears of it, and true when it has
	// answered with Err.
	After bool
	Err   error
}

// Fault decides about one call: an error returned before keeps it from the
// agent, one returned after replaces the answer. It may call the World's
// methods, and may be called concurrently.
type Fault func(Call) error

var _ executor.Agents = (*World)(nil)

// SetFault makes calls fail as f says; nil ends it.
func (w *World) SetFault(f Fault) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fault = f
}

func (w *World) faulty(c Call) error {
	w.mu.Lock()
	f := w.fault
	w.mu.Unlock()
	if f == nil {
		return nil
	}
	return f(c)
}

// SetCut cuts a host's agent off from servers, or heals that. What it does goes
// on, and other agents reach it still.
func (w *World) SetCut(hostName string, cut bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if h := w.hosts[hostName]; cut {
		close(h.cut)
	} else {
		h.cut = make(chan struct{})
	}
}

func errCut(hostName string) error {
	return executor.CallCut(drover.Errorf(drover.Unavailable, "agent", "the call of %s was cut", hostName))
}

type jobKey struct{ move, step string }

// job is an action under way.
type job struct {
	w      *World
	h      *host
	j      *journal
	key    jobKey
	action executor.Action
	// ctx ends when it is to end: asked says whether somebody wished so, or the
	// agent has crashed.
	ctx   context.Context
	stop  context.CancelFunc
	asked bool
	dead  bool

	progress func(drover.Progress)
	told     *drover.Progress // last
	done     chan struct{}
	result   executor.Result
	err      error
}

func (h *host) killJobs() {
	for k, j := range h.jobs {
		j.dead = true
		j.stop()
		delete(h.jobs, k)
	}
}

// Run implements executor.Agents.
func (w *World) Run(ctx context.Context, hostName string, ref executor.Ref, step string, action executor.Action, progress func(drover.Progress)) (executor.Result, error) {
	c := Call{Host: hostName, Step: step, Generation: ref.Generation, Action: action}
	if err := w.faulty(c); err != nil {
		return executor.Result{}, err
	}
	r, err := w.attend(ctx, hostName, ref, step, action, progress)
	c.After, c.Err = true, err
	if err := w.faulty(c); err != nil {
		return executor.Result{}, err
	}
	return r, err
}

// attend finds or starts the action, and waits for its end.
func (w *World) attend(ctx context.Context, hostName string, ref executor.Ref, step string, action executor.Action, progress func(drover.Progress)) (executor.Result, error) {
	w.mu.Lock()
	h, j, err := w.admit(hostName, ref)
	if err != nil {
		w.mu.Unlock()
		return executor.Result{}, err
	}
	cut := h.cut
	if known := fmt.Sprintf("%T", action); j.actions[step] == "" {
		j.actions[step] = known
	} else if j.actions[step] != known {
		w.wrongf("%s is asked for a %s by the name %s, which is a %s", hostName, known, step, j.actions[step])
	}
	if r, ok := j.results[step]; ok {
		w.mu.Unlock()
		return r, nil
	}
	if err := j.allows(action); err != nil {
		w.mu.Unlock()
		return executor.Result{}, err
	}
	key := jobKey{ref.Move, step}
	run, found := h.jobs[key]
	if !found {
		run = &job{w: w, h: h, j: j, key: key, action: action, done: make(chan struct{})}
		run.ctx, run.stop = context.WithCancel(context.Background())
		h.jobs[key] = run
		w.jobs.Go(run.run)
	}
	run.progress = progress
	if run.told != nil {
		progress(*run.told) // who finds an action hears of it at once
	}
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		run.progress = nil
		w.mu.Unlock()
	}()
	select {
	case <-run.done:
		return run.result, run.err
	case <-cut:
		return executor.Result{}, errCut(hostName)
	case <-ctx.Done():
		return executor.Result{}, drover.E(drover.Unavailable, step, ctx.Err())
	}
}

// admit finds the move in the agent's journal and fences older generations.
// w.mu is held.
func (w *World) admit(hostName string, ref executor.Ref) (*host, *journal, error) {
	h := w.hosts[hostName]
	if h == nil || !h.up || w.finished {
		return nil, nil, executor.CallCut(drover.Errorf(drover.Unavailable, "agent", "%s does not answer", hostName))
	}
	select {
	case <-h.cut:
		return nil, nil, errCut(hostName)
	default:
	}
	j := h.moves[ref.Move]
	if j == nil {
		j = &journal{vm: ref.VM, uuid: ref.VMUUID, results: make(map[string]executor.Result), actions: make(map[string]string)}
		h.moves[ref.Move] = j
		j.released = true // until it is reserved; a mere question leaves nothing
	}
	if ref.Generation < j.generation {
		return nil, nil, drover.Errorf(drover.Refused, "agent", "generation %d is over, %d has the move", ref.Generation, j.generation)
	}
	j.generation = ref.Generation
	return h, j, nil
}

// allows refuses what must not come late.
func (j *journal) allows(a executor.Action) error {
	switch a.(type) {
	case executor.Release, executor.CheckHealth, executor.Edge, executor.StageEdge, executor.CountSessions, executor.FindStation, executor.Attend:
		return nil
	case executor.Reserve:
		if j.released && len(j.results) > 0 {
			return drover.Errorf(drover.Refused, "agent", "the move has been released")
		}
		return nil
	}
	if !j.reserved {
		return drover.Errorf(drover.Refused, "agent", "the move has no reservation here")
	}
	return nil
}

// Cancel implements executor.Agents.
func (w *World) Cancel(ctx context.Context, hostName string, ref executor.Ref, step string) error {
	c := Call{Host: hostName, Step: step, Generation: ref.Generation}
	if err := w.faulty(c); err != nil {
		return err
	}
	w.mu.Lock()
	h, _, err := w.admit(hostName, ref)
	if err == nil {
		if run := h.jobs[jobKey{ref.Move, step}]; run != nil {
			run.asked = true
			run.stop()
		}
	}
	w.mu.Unlock()
	c.After, c.Err = true, err
	if err := w.faulty(c); err != nil {
		return err
	}
	return err
}

// SetRate implements executor.Agents.
func (w *World) SetRate(_ context.Context, hostName string, ref executor.Ref, rate drover.BitRate) error {
	c := Call{Host: hostName, Step: "set-rate", Generation: ref.Generation}
	if err := w.faulty(c); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	h, j, err := w.admit(hostName, ref)
	if err != nil {
		return err
	}
	for k, run := range h.jobs {
		switch run.action.(type) {
		case executor.Transfer, executor.Copy, executor.Replicate, executor.CopyClone:
			if k.move == ref.Move {
				j.rates = append(j.rates, rate)
				return nil
			}
		}
	}
	return drover.Errorf(drover.NotFound, "agent", "%s sends nothing for move %s", hostName, ref.Move)
}

// Rates returns the rates that a host's agent was told while it sent for the
// move, in order.
func (w *World) Rates(hostName, move string) []drover.BitRate {
	w.mu.Lock()
	defer w.mu.Unlock()
	if j := w.hosts[hostName].moves[move]; j != nil {
		return slices.Clone(j.rates)
	}
	return nil
}

// run carries the action out.
func (j *job) run() {
	defer j.stop()
	j.result, j.err = j.act()
	j.w.mu.Lock()
	if !j.dead {
		delete(j.h.jobs, j.key)
		if j.err == nil && !fresh(j.action) {
			j.j.results[j.key.step] = j.result
		}
	} else if j.err == nil {
		// What it did is done, but nobody wrote down that it was.
		j.result, j.err = executor.Result{}, errCrashed(j.h)
	}
	j.w.mu.Unlock()
	close(j.done)
}

// fresh actions are carried out anew each time that they are asked for.
func fresh(a executor.Action) bool {
	switch a := a.(type) {
	case executor.CountSessions, executor.FindStation:
		return true
	case executor.ChangeGuest:
		return a.Primary || a.Ask
	default:
		return false
	}
}

func errCrashed(h *host) error {
	return executor.CallCut(drover.Errorf(drover.Unavailable, "agent", "%s has crashed", h.name))
}

// part does one part of the action, at once and whole, unless the agent has
// crashed.
func (j *job) part(f func() error) error {
	j.w.mu.Lock()
	defer j.w.mu.Unlock()
	if j.dead || !j.h.up {
		return errCrashed(j.h)
	}
	return f()
}

// rest passes the time of one part, unless the action has to end.
func (j *job) rest() error {
	if err := j.sleep(); err != nil {
		return err
	}
	return j.part(func() error {
		if j.asked {
			return drover.Errorf(drover.Canceled, j.key.step, "it was canceled")
		}
		return nil
	})
}

// hold passes the time of one part that cannot be canceled.
func (j *job) hold() error {
	if j.w.Pace > 0 {
		// A crash is noticed at the next part.
		<-timer(j.w.Pace)
	}
	return j.part(func() error { return nil })
}

// endOthers ends every other action of the move on this host.
func (j *job) endOthers() error {
	var others []*job
	err := j.part(func() error {
		for k, o := range j.h.jobs {
			if k.move == j.key.move && o != j {
				o.asked = true
				o.stop()
				others = append(others, o)
			}
		}
		return nil
	})
	for _, o := range others {
		<-o.done
	}
	return err
}

func (j *job) tell(phase string, done, total int) {
	j.w.mu.Lock()
	j.told = &drover.Progress{Phase: phase, DoneBytes: drover.Bytes(done), TotalBytes: drover.Bytes(total), ETASeconds: -1}
	if j.progress != nil {
		// Under the lock, so that it is not called when Run has returned.
		j.progress(*j.told)
	}
	j.w.mu.Unlock()
}

// peer finds the move at the other agent. w.mu is held.
func (j *job) peer(name string) (*host, *journal, error) {
	h := j.w.hosts[name]
	if h == nil || !h.up {
		return nil, nil, drover.Errorf(drover.Unavailable, "peer", "%s does not answer", name)
	}
	m := h.moves[j.key.move]
	if m == nil || !m.reserved {
		return nil, nil, drover.E(drover.Refused, "peer", fmt.Errorf("%s has no reservation of the move", name))
	}
	return h, m, nil
}
