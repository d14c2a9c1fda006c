package executor_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/executor"
	"github.com/drover-vm/drover/executor/executortest"
	"github.com/drover-vm/drover/store"
	"github.com/drover-vm/drover/store/memory"
)

// site is a world with an executor over it, for tests that need no deaths.
type site struct {
	*executor.Executor
	world   *executortest.World
	journal *memory.Store
}

// open returns a site whose end is t's.
func open(t *testing.T, c executor.Config, hosts ...string) site {
	t.Helper()
	s := site{world: executortest.NewWorld(hosts...), journal: memory.New()}
	s.world.Pace = 100 * time.Millisecond
	c.Journal, c.Agents, c.Log = s.journal, s.world, testLog()
	s.Executor = executor.New(c)
	t.Cleanup(func() {
		if err := s.Executor.Close(); err != nil {
			t.Error(err)
		}
		s.world.Close()
	})
	return s
}

func (s site) end(t *testing.T, name string) drover.Move {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	seen, err := s.Watch(ctx, name)
	if err != nil {
		t.Fatal(err)
	}
	var m drover.Move
	for m = range seen {
	}
	if ctx.Err() != nil {
		t.Fatalf("move %s has not ended in %v: it is %s (%s)", name, limit, m.State, m.Fault)
	}
	return m
}

func (s site) start(t *testing.T, r executor.Request) drover.Move {
	t.Helper()
	m, err := s.Start(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// nth returns the n-th of many requests, between the hosts of two sites.
func nth(n int, from, to string) executor.Request {
	r := request(scenario{method: drover.Live})
	r.ID = fmt.Sprintf("request-%d", n)
	r.VM.Name, r.VM.UUID = fmt.Sprintf("vm%d", n), fmt.Sprintf("uuid-%d", n)
	r.From, r.To = drover.Place{Site: from, Host: from + "1"}, drover.Place{Site: to, Host: to + "1"}
	r.VM.Host, r.VM.Site = r.From.Host, r.From.Site
	r.VM.Disks = []drover.Disk{{Target: "vda", Path: fmt.Sprintf("/v/%d", n)}}
	r.Disks = []executor.DiskPlan{{Target: "vda", Path: fmt.Sprintf("/v/%d", n), VirtualBytes: 1}}
	return r
}

func TestTablesKeepTheRules(t *testing.T) {
	for m, sc := range moves {
		table, err := executor.Table(request(sc))
		if err != nil {
			t.Fatal(err)
		}
		if err := table.Validate(); err != nil {
			t.Errorf("%s: %v", m, err)
		}
		for _, s := range table {
			if s.Why == "" {
				t.Errorf("%s: step %s does not say why it stands where it stands", m, s.Name)
			}
		}
	}
	for _, sc := range []scenario{{method: drover.Stay}, {method: drover.Live, gate: &drover.Gate{}}} {
		if _, err := executor.Table(request(sc)); drover.KindOf(err) != drover.Invalid {
			t.Errorf("a method without a table: %v, want invalid", err)
		}
	}
}

func TestRequestValidate(t *testing.T) {
	if err := request(scenario{method: drover.Live}).Validate(); err != nil {
		t.Errorf("a good request: %v", err)
	}
	for want, spoil := range map[string]func(*executor.Request){
		"vm.name":                 func(r *executor.Request) { r.VM.Name = "" },
		"vm.uuid":                 func(r *executor.Request) { r.VM.UUID = "" },
		`from "west"`:             func(r *executor.Request) { r.From.Host = "" },
		`to "": want`:             func(r *executor.Request) { r.To = drover.Place{} },
		"same host":               func(r *executor.Request) { r.To.Host = r.From.Host },
		"definition of 262145 by": func(r *executor.Request) { r.Definition = make([]byte, 256<<10+1) },
		"from_address":            func(r *executor.Request) { r.FromAddress = "" },
		"to_address":              func(r *executor.Request) { r.ToAddress = "" },
		"bandwidth_bps -1":        func(r *executor.Request) { r.Bandwidth = -1 },
		"max_pause -1s":           func(r *executor.Request) { r.MaxPause = -time.Second },
		"shutdown_grace -1s":      func(r *executor.Request) { r.ShutdownGrace = -time.Second },
		`"teleport"`:              func(r *executor.Request) { r.Method = "teleport" },
		"only a running VM":       func(r *executor.Request) { r.VM.State = drover.VMOff },
		"want both":               func(r *executor.Request) { r.Disks[0].Path = "" },
		`"vda" stands in it twic`: func(r *executor.Request) { r.Disks[1].Target = "vda" },
		`"vdc" is shared`:         func(r *executor.Request) { r.Disks[1].Target, r.Disks[1].Path = "vdc", "/shared/iso" },
		"virtual_bytes 0":         func(r *executor.Request) { r.Disks[0].VirtualBytes = 0 },
	} {
		r := request(scenario{method: drover.Live})
		spoil(&r)
		err := r.Validate()
		if k := drover.KindOf(err); err == nil || k != drover.Invalid && k != drover.Refused || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", want, err)
		}
	}
}

// Moves of one direction go one after the other, first come first served; the
// other direction and other links do not wait for them.
func TestOneMovePerLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t, executor.Config{}, "west1", "east1", "south1")
		var mu sync.Mutex
		var begun []string
		at := make(map[string]time.Duration)
		began := time.Now()
		s.world.SetFault(func(c executortest.Call) error {
			if c.Step == "transfer" && !c.After {
				mu.Lock()
				defer mu.Unlock()
				begun = append(begun, c.Host)
				at[c.Host] = time.Since(began)
			}
			return nil
		})
		ways := [][2]string{{"west", "east"}, {"west", "east"}, {"west", "east"}, {"east", "west"}, {"south", "east"}}
		var names []string
		for n, way := range ways {
			r := nth(n, way[0], way[1])
			s.world.AddVM(r.VM)
			names = append(names, s.start(t, r).Name)
		}
		synctest.Wait()
		for i, want := range []drover.MoveState{drover.MoveRunning, drover.MovePending, drover.MovePending, drover.MoveRunning, drover.MoveRunning} {
			if m, err := s.Get(t.Context(), names[i]); err != nil || m.State != want {
				t.Errorf("move %d of %v is %s, error %v, want %s", i, ways[i], m.State, err, want)
			}
		}
		var ended []time.Time
		for _, name := range names {
			m := s.end(t, name)
			if m.State != drover.MoveDone {
				t.Errorf("move %s is %s: %s", name, m.State, m.Fault)
			}
			ended = append(ended, m.Ended)
		}
		if !ended[0].Before(ended[1]) || !ended[1].Before(ended[2]) {
			t.Errorf("moves of one link ended at %v: want them in their order", ended[:3])
		}
		if !ended[3].Before(ended[1]) || !ended[4].Before(ended[1]) {
			t.Errorf("moves of other links ended at %v: want them before the second of the first link, %v", ended[3:], ended[1])
		}
	})
}

func TestQueueHasALimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t, executor.Config{Limits: executor.Limits{MovesInFlight: 1, MovesQueued: 2}}, "west1", "east1", "south1")
		var names []string
		for n, way := range [][2]string{{"west", "east"}, {"east", "west"}, {"south", "west"}} {
			r := nth(n, way[0], way[1])
			s.world.AddVM(r.VM)
			names = append(names, s.start(t, r).Name)
		}
		r := nth(3, "west", "south")
		s.world.AddVM(r.VM)
		if _, err := s.Start(t.Context(), r); drover.KindOf(err) != drover.Exhausted {
			t.Errorf("a move too many: %v, want exhausted", err)
		}
		if all, err := s.List(t.Context(), store.Filter{}); err != nil || len(all) != 3 {
			t.Errorf("%d moves are journaled, error %v, want 3", len(all), err)
		}
		// What is cancelled while it waits ends at once and makes room.
		if err := s.Cancel(t.Context(), names[1]); err != nil {
			t.Fatal(err)
		}
		if m := s.end(t, names[1]); m.State != drover.MoveUndone || m.Steps[0].State != drover.StepPending {
			t.Errorf("a waiting move that is canceled: %+v", m)
		}
		s.end(t, s.start(t, r).Name)
	})
}

// A move that is being undone, or has passed its pivot, sends nothing over its
// link any more, and does not hold it.
func TestUndoDoesNotHoldTheLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t, executor.Config{}, "west1", "east1")
		s.world.SetFault(func(c executortest.Call) error {
			if c.Step == "undo-create-volumes" {
				return drover.Errorf(drover.Unavailable, "test", "no answer")
			}
			return nil
		})
		first, second := nth(0, "west", "east"), nth(1, "west", "east")
		s.world.AddVM(first.VM)
		s.world.AddVM(second.VM)
		one, two := s.start(t, first), s.start(t, second)
		time.Sleep(400 * time.Millisecond)
		if err := s.Cancel(t.Context(), one.Name); err != nil {
			t.Fatal(err)
		}
		if m := s.end(t, two.Name); m.State != drover.MoveDone {
			t.Errorf("the second move is %s: %s", m.State, m.Fault)
		}
		m, err := s.Get(t.Context(), one.Name)
		if err != nil || m.State != drover.MoveUndoing || !strings.Contains(m.Fault, "canceled by an operator; undo-create-volumes: ") {
			t.Errorf("the first move is %s (%s), error %v", m.State, m.Fault, err)
		}
		s.world.SetFault(nil)
		if m := s.end(t, one.Name); m.State != drover.MoveUndone {
			t.Errorf("the first move has become %s: %s", m.State, m.Fault)
		}
	})
}

// An executor whose move another has taken up lets it go and changes nothing.
func TestTwoExecutors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t, executor.Config{}, "west1", "east1")
		r := nth(0, "west", "east")
		s.world.AddVM(r.VM)
		name := s.start(t, r).Name
		time.Sleep(700 * time.Millisecond)
		second := executor.New(executor.Config{Journal: s.journal, Agents: s.world, Log: testLog()})
		defer second.Close()
		if err := second.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := second.Resume(t.Context()); err != nil { // nothing is taken up twice
			t.Fatal(err)
		}
		// The first follows the move through the journal once it has let it go.
		m := s.end(t, name)
		for !m.State.Final() {
			m = s.end(t, name)
		}
		if m.State != drover.MoveDone || m.Generation != 2 || len(s.world.Check(m, r.Disks, true)) > 0 {
			t.Errorf("the move is %s (%s), generation %d: %v", m.State, m.Fault, m.Generation, s.world.Check(m, r.Disks, true))
		}
	})
}

// A journal that does not answer holds a move up and does not harm it.
func TestJournalDoesNotAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t, executor.Config{}, "west1", "east1")
		r := nth(0, "west", "east")
		s.world.AddVM(r.VM)
		n := 0
		s.journal.SetFault(func(op memory.Op, _ string, after bool) error {
			if n++; op == memory.OpUpdate && n%5 < 3 {
				return drover.Errorf(drover.Unknown, "test", "no answer, after %v", after)
			}
			return nil
		})
		m := s.end(t, s.start(t, r).Name)
		if m.State != drover.MoveDone || m.Generation != 1 || len(s.world.Check(m, r.Disks, true)) > 0 {
			t.Errorf("the move is %s (%s): %v", m.State, m.Fault, s.world.Check(m, r.Disks, true))
		}
	})
}

// observer notes what it is told, and fails.
type observer struct {
	mu   sync.Mutex
	said []string
}

func (o *observer) MoveStarting(_ context.Context, m drover.Move) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.said = append(o.said, "starting "+string(m.State))
	return errors.New("no probe")
}

func (o *observer) MoveEnded(ctx context.Context, m drover.Move) (drover.Figures, error) {
	<-ctx.Done() // it hangs, for as long as it is let
	o.mu.Lock()
	defer o.mu.Unlock()
	o.said = append(o.said, "ended "+string(m.State))
	return drover.Figures{OutageMillis: new(12.5), SessionsLost: new(int64(0))}, ctx.Err()
}

func TestObserver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := &observer{}
		s := open(t, executor.Config{Observer: o}, "west1", "east1")
		r := nth(0, "west", "east")
		s.world.AddVM(r.VM)
		m := s.end(t, s.start(t, r).Name)
		if m.State != drover.MoveDone {
			t.Errorf("a failing observer has failed the move: %s (%s)", m.State, m.Fault)
		}
		if got := strings.Join(o.said, ", "); got != "starting pending, ended done" {
			t.Errorf("it was told %q", got)
		}
		f := m.Measured
		if f.OutageMillis == nil || *f.OutageMillis != 12.5 || f.SessionsLost == nil || f.PauseMillis == nil || f.GuestBytes == nil {
			t.Errorf("measured %+v: want the observer's figures and the agents'", f)
		}
		if f.WireBytes != nil {
			t.Errorf("nobody has measured wire bytes, but there they are: %d", *f.WireBytes)
		}
	})
}

func TestWatchHasProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t, executor.Config{}, "west1", "east1")
		r := nth(0, "west", "east")
		s.world.AddVM(r.VM)
		name := s.start(t, r).Name
		if _, err := s.Watch(t.Context(), "nobody"); drover.KindOf(err) != drover.NotFound {
			t.Errorf("watching a move that does not exist: %v", err)
		}
		if _, err := s.Get(t.Context(), "nobody"); drover.KindOf(err) != drover.NotFound {
			t.Errorf("getting a move that does not exist: %v", err)
		}
		if err := s.Cancel(t.Context(), "nobody"); drover.KindOf(err) != drover.NotFound {
			t.Errorf("canceling a move that does not exist: %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		idle, err := s.Watch(ctx, name) // which nobody reads
		if err != nil {
			t.Fatal(err)
		}
		seen, err := s.Watch(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		progress := 0
		var last drover.Move
		for last = range seen {
			if p := last.Progress; p != nil {
				progress++
				if p.Step != "transfer" || p.Phase != "memory" || p.TotalBytes != 3 || p.Updated.IsZero() {
					t.Errorf("progress %+v", p)
				}
			}
		}
		if progress < 3 || last.State != drover.MoveDone {
			t.Errorf("%d times progress, and in the end %s", progress, last.State)
		}
		cancel()
		for range idle {
		}
		if m := s.end(t, name); m.State != drover.MoveDone {
			t.Errorf("watching a move that has ended: %s", m.State)
		}
		records, _, err := s.journal.List(t.Context(), store.Filter{})
		if err != nil || len(records) != 1 || strings.Contains(string(records[0].State), "definition of") {
			t.Errorf("the journal keeps the definition of a VM whose move has ended: %s, error %v", records[0].State, err)
		}
	})
}

func TestClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t, executor.Config{}, "west1", "east1")
		r := nth(0, "west", "east")
		s.world.AddVM(r.VM)
		name := s.start(t, r).Name
		seen, err := s.Watch(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(500 * time.Millisecond)
		for range 2 {
			if err := s.Executor.Close(); err != nil {
				t.Fatal(err)
			}
		}
		for range seen {
		}
		for what, err := range map[string]error{
			"start":  func() error { _, err := s.Start(t.Context(), nth(1, "west", "east")); return err }(),
			"resume": s.Resume(t.Context()),
			"cancel": s.Cancel(t.Context(), name),
		} {
			if drover.KindOf(err) != drover.Unavailable {
				t.Errorf("%s of a closed executor: %v, want unavailable", what, err)
			}
		}
		if m, err := s.Get(t.Context(), name); err != nil || m.State != drover.MoveRunning {
			t.Errorf("the move is %s, error %v, want it to be running still", m.State, err)
		}
	})
}

func TestSetRate(t *testing.T) {
	for _, method := range []drover.Method{drover.Live, drover.Cold} {
		synctest.Test(t, func(t *testing.T) {
			s := open(t, executor.Config{}, "west1", "east1")
			r := request(scenario{method: method})
			s.world.AddVM(r.VM)
			s.world.Pace = 5 * time.Second
			m := s.start(t, r)
			// The agent does not hear the first time.
			deaf := 0
			s.world.SetFault(func(c executortest.Call) error {
				if c.Step == "set-rate" && deaf == 0 {
					deaf++
					return drover.Errorf(drover.Unavailable, "agent", "it does not answer")
				}
				return nil
			})
			if err := s.SetRate(t.Context(), m.Name, 7*drover.Mbps); err != nil {
				t.Fatal(err)
			}
			step := map[drover.Method]string{drover.Live: "transfer", drover.Cold: "copy"}[method]
			seen, err := s.Watch(t.Context(), m.Name)
			if err != nil {
				t.Fatal(err)
			}
			for m = range seen {
				if m.Progress != nil && m.Progress.Step == step {
					break
				}
			}
			time.Sleep(time.Second)
			if m.Bandwidth != 7*drover.Mbps {
				t.Errorf("%s: the move's rate is %s", method, m.Bandwidth)
			}
			for _, rate := range []drover.BitRate{3 * drover.Mbps, 0} {
				if err := s.SetRate(t.Context(), m.Name, rate); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
			}
			if got := s.world.Rates("west1", m.Name); !slices.Equal(got, []drover.BitRate{7 * drover.Mbps, 3 * drover.Mbps, 0}) || deaf != 1 {
				t.Errorf("%s: the agent was told %v", method, got)
			}
			go func() {
				for range seen {
				}
			}()
			if m := s.end(t, m.Name); m.State != drover.MoveDone || m.Bandwidth != 0 {
				t.Errorf("%s: %s (%s) at %s", method, m.State, m.Fault, m.Bandwidth)
			}
			for what, err := range map[drover.Kind]error{
				drover.Refused:  s.SetRate(t.Context(), m.Name, 1),
				drover.Invalid:  s.SetRate(t.Context(), m.Name, -1),
				drover.NotFound: s.SetRate(t.Context(), "nobody", 1),
			} {
				if drover.KindOf(err) != what {
					t.Errorf("%s: %v, want %s", method, err, what)
				}
			}
		})
	}
}

// slowObserver is far away, and notes what has been reserved meanwhile.
type slowObserver struct {
	began, returned time.Time
}

func (o *slowObserver) MoveStarting(context.Context, drover.Move) error {
	o.began = time.Now()
	time.Sleep(10 * time.Second)
	o.returned = time.Now()
	return nil
}

func (o *slowObserver) MoveEnded(context.Context, drover.Move) (drover.Figures, error) {
	return drover.Figures{}, nil
}

// What only reserves goes on while the observer is being told; what clients or
// links could notice does not.
func TestObserverIsAwaitedBeforeTheGuestIsTouched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := &slowObserver{}
		s := open(t, executor.Config{Observer: o}, "west1", "east1")
		r := nth(0, "west", "east")
		s.world.AddVM(r.VM)
		m := s.end(t, s.start(t, r).Name)
		if m.State != drover.MoveDone {
			t.Fatalf("the move is %s (%s)", m.State, m.Fault)
		}
		if o.returned.IsZero() {
			t.Fatal("the move was over before the observer was ready")
		}
		for _, step := range m.Steps {
			ahead := slices.Contains([]string{"reserve-target", "reserve-source", "create-volumes"}, step.Name)
			switch {
			case ahead && step.Ended.After(o.began.Add(9*time.Second)):
				t.Errorf("%s ended %v after the observer was told: want it beside", step.Name, step.Ended.Sub(o.began))
			case !ahead && step.Started.Before(o.returned):
				t.Errorf("%s began %v before the observer was ready", step.Name, o.returned.Sub(step.Started))
			}
		}
	})
}
