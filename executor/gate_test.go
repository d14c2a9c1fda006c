package executor_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/executor"
	"github.com/drover-vm/drover/executor/executortest"
	"github.com/drover-vm/drover/store/memory"
)

// What the check saw, what was to follow, whether the gate waits anyhow and what
// the operator says: all of it, with the end that each must have.
func TestGate(t *testing.T) {
	for _, method := range []drover.Method{drover.Cold, drover.Warm} {
		for _, sick := range []string{"", "nobody answers at 192.0.2.7:80"} {
			for _, after := range []drover.Unhealthy{"", drover.UnhealthyReturn, drover.UnhealthyKeep, drover.UnhealthyCommit} {
				for _, manual := range []bool{false, true} {
					for _, word := range []string{"commit", "return"} {
						returns := sick != "" && (after == "" || after == drover.UnhealthyReturn)
						waits := !returns && (manual || sick != "" && after == drover.UnhealthyKeep)
						end := drover.MoveDone
						if returns || waits && word == "return" {
							end = drover.MoveUndone
						}
						name := fmt.Sprintf("%s, sick %q, on unhealthy %q, manual %v, the operator says %s", method, sick, after, manual, word)
						sc := scenario{method: method, sick: sick, word: word, gate: &drover.Gate{Health: httpCheck, Manual: manual, OnUnhealthy: after}}
						st := bubble(t, name, sc)
						want(t, name, st, end)
						wantGate(t, name, st.move, sick, end)
					}
				}
			}
		}
	}
}

func wantGate(t *testing.T, name string, m drover.Move, sick string, end drover.MoveState) {
	t.Helper()
	g := m.Gate
	if g == nil || g.Healthy == nil || *g.Healthy != (sick == "") || g.Detail != sick {
		t.Fatalf("%s: its gate is %+v", name, g)
	}
	if state := map[drover.MoveState]drover.GateState{drover.MoveDone: drover.GateCommitted, drover.MoveUndone: drover.GateReturned}[end]; g.State != state {
		t.Errorf("%s: its gate is %s, want %s", name, g.State, state)
	}
	// Nobody may find out by chance that writes are gone.
	if lost := strings.Contains(m.Fault, "is lost"); lost != (end == drover.MoveUndone) {
		t.Errorf("%s: its fault is %q", name, m.Fault)
	}
}

// An operator's word outranks a check that is under way, and comes too early
// before there is anything to commit.
func TestGateWords(t *testing.T) {
	for _, word := range []string{"commit", "return"} {
		silent(t, func() {
			w := executortest.NewWorld("west1", "east1")
			w.Pace = time.Minute
			req := request(scenario{method: drover.Warm, gate: &drover.Gate{Health: httpCheck}})
			w.AddVM(req.VM)
			defer w.Close()
			e := executor.New(executor.Config{Journal: memory.New(), Agents: w, Log: testLog()})
			defer e.Close()
			say := map[string]func(context.Context, string) error{"commit": e.Commit, "return": e.Return}[word]
			m, err := e.Start(context.Background(), req)
			if err != nil {
				t.Fatal(err)
			}
			if err := say(context.Background(), m.Name); drover.KindOf(err) != drover.Refused {
				t.Errorf("%s before the VM has been started: %v, want refused", word, err)
			}
			seen, err := e.Watch(context.Background(), m.Name)
			if err != nil {
				t.Fatal(err)
			}
			said := false
			for m = range seen {
				if !said && m.Gate.State == drover.GateChecking {
					said = true
					for range 2 {
						if err := say(context.Background(), m.Name); err != nil {
							t.Errorf("%s while it is checked: %v", word, err)
						}
					}
				}
			}
			end := map[string]drover.MoveState{"commit": drover.MoveDone, "return": drover.MoveUndone}[word]
			if !said || m.State != end || m.Gate.Healthy != nil {
				t.Errorf("%s while it is checked (%v): the move is %s (%s), its gate %+v", word, said, m.State, m.Fault, m.Gate)
			}
			if err := say(context.Background(), m.Name); drover.KindOf(err) != drover.Refused {
				t.Errorf("%s of a move that has ended: %v, want refused", word, err)
			}
			for _, wrong := range w.Check(m, req.Disks, true) {
				t.Errorf("%s: %s", word, wrong)
			}
		})
	}
}

// A destination that nobody reaches once its VM has been started keeps it: for
// hours, and whatever was to follow a failing check.
func TestGateSilence(t *testing.T) {
	for _, step := range []string{"start", "gate", "commit"} {
		down := once(1, at(step, true), func(w *executortest.World, c executortest.Call) error {
			w.SetUp("east1", false)
			time.AfterFunc(3*time.Hour, func() { w.SetUp("east1", true) })
			return drover.Errorf(drover.Unavailable, "test", "lost")
		})
		sc := scenario{method: drover.Warm, gate: &drover.Gate{Health: httpCheck}, fault: down}
		st := bubble(t, step, sc)
		want(t, step, st, drover.MoveDone)
	}
}

// A gate that waits does not keep other moves from the link.
func TestGateFreesLink(t *testing.T) {
	silent(t, func() {
		w := executortest.NewWorld("west1", "east1")
		w.Pace = time.Second
		defer w.Close()
		e := executor.New(executor.Config{Journal: memory.New(), Agents: w, Log: testLog()})
		defer e.Close()
		waits := request(scenario{method: drover.Cold, gate: &drover.Gate{Manual: true}})
		w.AddVM(waits.VM)
		first, err := e.Start(context.Background(), waits)
		if err != nil {
			t.Fatal(err)
		}
		second := nth(2, "west", "east")
		w.AddVM(second.VM)
		m, err := e.Start(context.Background(), second)
		if err != nil {
			t.Fatal(err)
		}
		seen, err := e.Watch(context.Background(), m.Name)
		if err != nil {
			t.Fatal(err)
		}
		for m = range seen {
		}
		if m.State != drover.MoveDone {
			t.Errorf("the second move is %s: %s", m.State, m.Fault)
		}
		if first, err = e.Get(context.Background(), first.Name); err != nil || first.Gate.State != drover.GateWaiting {
			t.Errorf("the first one's gate is %+v, %v", first.Gate, err)
		}
	})
}
