package executor_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/executor"
	"github.com/drover-vm/drover/executor/executortest"
	"github.com/drover-vm/drover/network"
	"github.com/drover-vm/drover/store"
	"github.com/drover-vm/drover/store/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A scenario is one move in one world, and what befalls it.
type scenario struct {
	method drover.Method
	// off: the VM is off before; keep: its disks are kept at the source.
	off, keep bool
	// gate is what the VM has to pass; sick is why it is not well then; word is
	// what the operator says at a gate that waits: "commit" or "return".
	gate *drover.Gate
	sick string
	word string
	// fault befalls agents' calls.
	fault func(*executortest.World, executortest.Call) error
	// killAt is the number of the point at which the executor dies; zero: it
	// does not. Points are before and after every call of journal and agents.
	killAt int
	// cancelAt is the number of the point at which an operator cancels.
	cancelAt int
	limits   executor.Limits
	// back: a VM that is away from its segment's home, by that method, goes
	// home.
	back drover.Method
	// quiet is a step that asks nobody, and so cannot fail.
	quiet string
	// dhcp: the guest has no agent, and asks DHCP when its cable is plugged in.
	dhcp bool
	// stay: the VM's disks stay at the source.
	stay bool
	// sessions are those of the server that is redirected.
	sessions int
}

// story is what came of it.
type story struct {
	move   drover.Move
	wrong  []string
	points int
	// trace has every point, for failures.
	trace []string
}

// limit bounds a scenario in the bubble's time: whatever happens, a move is over
// long before.
const limit = 12 * time.Hour

func request(sc scenario) executor.Request {
	disk := drover.Disk{Target: "vda", Path: "/v/web1.qcow2", Format: "qcow2", VirtualBytes: drover.GiB}
	second := drover.Disk{Target: "vdb", Path: "/v/web1-data.raw", Format: "raw", VirtualBytes: drover.GiB}
	r := executor.Request{
		ID: "request-1",
		VM: drover.VM{
			Name: "web1", UUID: "11111111-2222", Host: "west1", Site: "west", State: drover.VMRunning, MemoryBytes: drover.GiB,
			Disks: []drover.Disk{disk, second, {Target: "vdc", Path: "/shared/iso", Shared: true}},
		},
		From: drover.Place{Site: "west", Host: "west1"}, To: drover.Place{Site: "east", Host: "east1"},
		FromAddress: "10.0.0.1:7000", ToAddress: "10.0.0.2:7000",
		Method: sc.method, KeepSource: sc.keep, Gate: sc.gate,
		Definition: []byte("definition of web1"),
		Disks: []executor.DiskPlan{
			{Target: "vda", Path: disk.Path, Format: "qcow2", VirtualBytes: drover.GiB},
			{Target: "vdb", Path: second.Path, Format: "raw", VirtualBytes: drover.GiB},
		},
	}
	switch {
	case sc.stay:
		r.Left, r.Disks = r.Disks, nil
	case sc.method == drover.Disks:
		r.VM.Host, r.VM.Site = r.To.Host, r.To.Site
	}
	withNetwork(sc, &r)
	withRenumber(sc, &r)
	withClone(sc, &r)
	if sc.off {
		r.VM.State = drover.VMOff
	}
	return r
}

// play runs the scenario to the end of its move, with as many executors as it
// takes. It must run in a bubble.
func play(sc scenario) *story {
	st := &story{}
	w := executortest.NewWorld("west1", "east1", "west-edge", "east-edge")
	w.Pace = 100 * time.Millisecond
	req := request(sc)
	if sc.method == drover.Disks {
		w.AddRemoteVM(req.VM, req.From.Host)
	} else {
		w.AddVM(req.VM)
	}
	w.SetSick(req.VM.Name, sc.sick)
	st.wrong = setNetwork(w, sc, req)
	setRenumber(w, sc, req)
	setClone(w, sc, req)
	before := w.EdgeFacts()
	if sc.fault != nil {
		w.SetFault(func(c executortest.Call) error { return sc.fault(w, c) })
	}
	journal := memory.New()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	var points counter
	for lives := 1; ; lives++ {
		l := newLife(sc, &points, journal, w)
		m, ended, err := l.live(ctx, req)
		if ended {
			st.move = m
			break
		}
		if err != nil && ctx.Err() != nil {
			st.wrong = append(st.wrong, fmt.Sprintf("the move has not ended in %v: %v; it is %s: %s; %s", limit, err, m.State, m.Fault, steps(m)))
			break
		}
		if lives > 10 {
			st.wrong = append(st.wrong, fmt.Sprintf("ten executors in a row have died: %v", err))
			break
		}
	}
	if len(st.wrong) == 0 && sc.method.Makes() {
		st.wrong = append(checkClone(w, sc, req, st.move), checkMove(st.move)...)
	} else if len(st.wrong) == 0 {
		st.wrong = append(w.Check(st.move, slices.Concat(req.Disks, req.Left), !sc.off), checkMove(st.move)...)
		st.wrong = append(st.wrong, checkNetwork(w, sc, req, st.move, before)...)
		st.wrong = append(st.wrong, checkRenumber(w, sc, req, st.move)...)
	}
	all, _, err := journal.List(context.Background(), store.Filter{})
	if err != nil || len(all) != 1 {
		st.wrong = append(st.wrong, fmt.Sprintf("one request made %d moves, error %v", len(all), err))
	}
	w.Close()
	st.points, st.trace = points.read()
	return st
}

func steps(m drover.Move) string {
	var s []string
	for _, r := range m.Steps {
		s = append(s, fmt.Sprintf("%s=%s", r.Name, r.State))
	}
	return strings.Join(s, " ")
}

// checkMove returns what is wrong with a final move as it is shown.
func checkMove(m drover.Move) (wrong []string) {
	for _, s := range m.Steps {
		switch {
		case m.State == drover.MoveDone && s.State != drover.StepDone,
			m.State == drover.MoveUndone && s.State != drover.StepUndone && s.State != drover.StepPending:
			wrong = append(wrong, fmt.Sprintf("the move is %s with step %s %s", m.State, s.Name, s.State))
		}
	}
	if m.State == drover.MoveDone && m.Fault != "" {
		wrong = append(wrong, "a move that is done shows the fault "+m.Fault)
	}
	if m.State == drover.MoveUndone && m.Fault == "" {
		wrong = append(wrong, "a move that is undone shows no fault")
	}
	if m.Ended.IsZero() || m.Progress != nil {
		wrong = append(wrong, fmt.Sprintf("a final move has ended %v with progress %v", m.Ended, m.Progress))
	}
	return wrong
}

// counter numbers the points of a scenario.
type counter struct {
	mu    sync.Mutex
	n     int
	trace []string
}

func (c *counter) next(what string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
	c.trace = append(c.trace, fmt.Sprintf("%d %s", c.n, what))
	return c.n
}

func (c *counter) read() (int, []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n, c.trace
}

// life is one executor from its start to its death. It stands between it and
// journal and agents: what is dead reaches neither.
type life struct {
	sc      scenario
	points  *counter
	journal store.Journal
	agents  executor.Agents
	exec    *executor.Executor
	cancel  chan struct{}

	once sync.Once
	dead chan struct{}
}

var errDead = drover.Errorf(drover.Unavailable, "test", "the executor is dead")

func newLife(sc scenario, points *counter, j store.Journal, a executor.Agents) *life {
	l := &life{sc: sc, points: points, journal: j, agents: a, dead: make(chan struct{}), cancel: make(chan struct{}, 1)}
	l.exec = executor.New(executor.Config{Journal: mortalJournal{l, j}, Agents: mortalAgents{l}, Planner: mortalPlanner{l}, Log: testLog(), Limits: sc.limits})
	return l
}

// testLog shows what executors say when DROVER_TEST_LOG is set.
func testLog() *slog.Logger {
	if os.Getenv("DROVER_TEST_LOG") == "" {
		return nil
	}
	return slog.New(slog.NewTextHandler(os.Stderr, nil))
}

// point is passed before and after each call; an error says that the life has
// ended.
func (l *life) point(what string) error {
	select {
	case <-l.dead:
		return errDead
	default:
	}
	switch l.points.next(what) {
	case l.sc.killAt:
		l.once.Do(func() { close(l.dead) })
		return errDead
	case l.sc.cancelAt:
		l.cancel <- struct{}{}
		synctest.Wait() // so that the wish comes exactly here
	}
	return nil
}

// live resumes what is there, makes the request, and waits for the end of the
// move or of the life.
func (l *life) live(ctx context.Context, r executor.Request) (m drover.Move, ended bool, err error) {
	defer l.exec.Close()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		select {
		case <-l.dead:
			stop()
		case <-ctx.Done():
		}
	})
	defer stop()
	if err := l.exec.Resume(ctx); err != nil {
		return m, false, err
	}
	// Whoever asked has had no answer, or repeats itself.
	for {
		m, err = l.exec.Start(ctx, r)
		if err == nil {
			break
		}
		if ctx.Err() != nil || !drover.KindOf(err).Retryable() {
			return m, false, err
		}
		time.Sleep(time.Second)
	}
	name := m.Name
	wg.Go(func() {
		select {
		case <-l.cancel:
			_ = l.exec.Cancel(ctx, name) // refused when it comes too late
		case <-ctx.Done():
		}
	})
	seen, err := l.exec.Watch(ctx, m.Name)
	if err != nil {
		return m, false, err
	}
	said := false
	for m = range seen {
		if m.State.Final() {
			return m, true, nil
		}
		if m.Gate != nil && m.Gate.State == drover.GateWaiting && !said {
			said = true
			wg.Go(func() { l.say(ctx, name) })
		}
	}
	return m, false, fmt.Errorf("the watch has ended: %w", context.Cause(ctx))
}

// say is the operator's word at the gate, said until it is heard.
func (l *life) say(ctx context.Context, name string) {
	for ctx.Err() == nil {
		var err error
		switch l.sc.word {
		case "commit":
			err = l.exec.Commit(ctx, name)
		case "return":
			err = l.exec.Return(ctx, name)
		}
		if err == nil || !drover.KindOf(err).Retryable() {
			return
		}
		time.Sleep(time.Second)
	}
}

type mortalJournal struct {
	l *life
	store.Journal
}

func (j mortalJournal) Create(ctx context.Context, r store.Record) (store.Record, bool, error) {
	if err := j.l.point("journal create"); err != nil {
		return store.Record{}, false, err
	}
	kept, created, err := j.Journal.Create(ctx, r)
	if err := j.l.point("journal created"); err != nil {
		return store.Record{}, false, err
	}
	return kept, created, err
}

func (j mortalJournal) Update(ctx context.Context, r store.Record) (store.Record, error) {
	what := fmt.Sprintf("generation %d, %s: %s", r.Move.Generation, r.Move.State, steps(r.Move))
	if err := j.l.point("journal update " + what); err != nil {
		return store.Record{}, err
	}
	kept, err := j.Journal.Update(ctx, r)
	if err := j.l.point("journal updated"); err != nil {
		return store.Record{}, err
	}
	return kept, err
}

type mortalPlanner struct{ l *life }

func (p mortalPlanner) PlanNetwork(ctx context.Context, r executor.Request) (network.Plan, error) {
	if err := p.l.point("plan the network"); err != nil {
		return network.Plan{}, err
	}
	plan, err := p.l.agents.(executor.Planner).PlanNetwork(ctx, r)
	if err := p.l.point("the network is planned"); err != nil {
		return network.Plan{}, err
	}
	return plan, err
}

type mortalAgents struct{ l *life }

func (a mortalAgents) Run(ctx context.Context, host string, ref executor.Ref, step string, action executor.Action, progress func(drover.Progress)) (executor.Result, error) {
	if err := a.l.point(fmt.Sprintf("ask %s for %s (%T)", host, step, action)); err != nil {
		return executor.Result{}, err
	}
	r, err := a.l.agents.Run(ctx, host, ref, step, action, progress)
	if err := a.l.point(fmt.Sprintf("%s has answered to %s: %v", host, step, err)); err != nil {
		return executor.Result{}, err
	}
	return r, err
}

func (a mortalAgents) Cancel(ctx context.Context, host string, ref executor.Ref, step string) error {
	if err := a.l.point(fmt.Sprintf("ask %s to cancel %s", host, step)); err != nil {
		return err
	}
	err := a.l.agents.Cancel(ctx, host, ref, step)
	if err := a.l.point(fmt.Sprintf("%s has canceled %s: %v", host, step, err)); err != nil {
		return err
	}
	return err
}

func (a mortalAgents) SetRate(ctx context.Context, host string, ref executor.Ref, rate drover.BitRate) error {
	if err := a.l.point(fmt.Sprintf("ask %s for a rate of %s", host, rate)); err != nil {
		return err
	}
	return a.l.agents.SetRate(ctx, host, ref, rate)
}

// silent runs f in a bubble of its own.
func silent(t *testing.T, f func()) {
	t.Helper()
	synctest.Test(t, func(*testing.T) { f() })
}

// bubble plays the scenario in a bubble of its own and fails t with whatever is
// wrong. It returns the story for further questions.
func bubble(t *testing.T, name string, sc scenario) *story {
	t.Helper()
	var st *story
	synctest.Test(t, func(*testing.T) { st = play(sc) })
	if len(st.wrong) > 0 {
		tail := st.trace[max(0, len(st.trace)-60):]
		t.Errorf("%s:\n  %s\nlast points:\n  %s", name, strings.Join(st.wrong, "\n  "), strings.Join(tail, "\n  "))
	}
	return st
}
