package executor_test

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/executor"
	"github.com/drover-vm/drover/executor/executortest"
)

// Before the pivot, an agent that does not answer is waited for only so long.
func TestPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t, executor.Config{}, "west1", "east1")
		r := nth(0, "west", "east")
		s.world.AddVM(r.VM)
		s.world.SetFault(func(c executortest.Call) error {
			if c.Step == "create-volumes" {
				return drover.Errorf(drover.Unavailable, "test", "no answer")
			}
			return nil
		})
		began := time.Now()
		m := s.end(t, s.start(t, r).Name)
		took := time.Since(began)
		if m.State != drover.MoveUndone || !strings.Contains(m.Fault, "no answer for 5m0s") {
			t.Errorf("the move is %s: %s", m.State, m.Fault)
		}
		if least, most := executor.DefaultStepPatience, executor.DefaultStepPatience+executor.DefaultRetryMost+time.Minute; took < least || took > most {
			t.Errorf("it took %v, want %v to %v", took, least, most)
		}
		if a := m.Steps[2].Attempts; a < 10 || a > 40 {
			t.Errorf("%d attempts in five minutes: want them to become rarer", a)
		}
	})
}

// cutStory begins a move whose step takes a quarter of an hour and more, and
// cuts the source's agent off from the executor in the midst of it for the times
// given; in between it is heard.
func cutStory(t *testing.T, method drover.Method, cuts ...time.Duration) (site, executor.Request, string) {
	t.Helper()
	s := open(t, executor.Config{}, "west1", "east1")
	s.world.Pace = 8 * time.Minute
	r := nth(0, "west", "east")
	r.Method, r.Definition = method, []byte("definition of vm0")
	s.world.AddVM(r.VM)
	name := s.start(t, r).Name
	sending(t, s, name)
	for _, d := range cuts {
		s.world.SetCut("west1", true)
		time.Sleep(d)
		s.world.SetCut("west1", false)
		time.Sleep(30 * time.Second)
	}
	return s, r, name
}

// sending waits until the step that carries the VM has told of its progress.
func sending(t *testing.T, s site, name string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	seen, err := s.Watch(ctx, name)
	if err != nil {
		t.Fatal(err)
	}
	for m := range seen {
		if p := m.Progress; p != nil && (p.Step == "transfer" || p.Step == "copy") {
			cancel()
		}
	}
}

// Cuts of the WAN that are each shorter than the patience do not add up: the
// action goes on at the agents, and is found again. A live move's transfer is
// found again after a cut of any length.
func TestCutsDoNotAddUp(t *testing.T) {
	for method, cuts := range map[drover.Method][]time.Duration{
		drover.Cold: {4 * time.Minute, 4 * time.Minute, 4 * time.Minute},
		drover.Live: {4 * time.Minute, time.Hour},
	} {
		synctest.Test(t, func(t *testing.T) {
			s, r, name := cutStory(t, method, cuts...)
			m := s.end(t, name)
			if m.State != drover.MoveDone || m.Generation != 1 || len(s.world.Check(m, r.Disks, true)) > 0 {
				t.Errorf("%s: the move is %s (%s): %v", method, m.State, m.Fault, s.world.Check(m, r.Disks, true))
			}
		})
	}
}

// The end of the action is known soon after the WAN has healed.
func TestCutIsNoticedToHeal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t, executor.Config{}, "west1", "east1")
		r := nth(0, "west", "east")
		s.world.AddVM(r.VM)
		name := s.start(t, r).Name
		sending(t, s, name)
		s.world.SetCut("west1", true)
		time.Sleep(4 * time.Minute)
		s.world.SetCut("west1", false)
		healed := time.Now()
		if m := s.end(t, name); m.State != drover.MoveDone || time.Since(healed) > 10*time.Second {
			t.Errorf("the move is %s (%s) %v after the WAN has healed", m.State, m.Fault, time.Since(healed))
		}
	})
}

// A cut that lasts is given up before the point of no return, and what was begun
// is undone once the agent is there again.
func TestCutForTooLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, r, name := cutStory(t, drover.Cold, 7*time.Minute)
		m := s.end(t, name)
		if m.State != drover.MoveUndone || !strings.Contains(m.Fault, "no answer for 5m0s") || len(s.world.Check(m, r.Disks, true)) > 0 {
			t.Errorf("the move is %s (%s): %v", m.State, m.Fault, s.world.Check(m, r.Disks, true))
		}
	})
}

// A transfer that fails again and again, because the other site is away, is not
// tried for longer because its agent is heard each time.
func TestFailingIsNotSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t, executor.Config{}, "west1", "east1")
		r := nth(0, "west", "east")
		s.world.AddVM(r.VM)
		began := time.Now()
		name := s.start(t, r).Name
		sending(t, s, name)
		s.world.SetUp("east1", false)
		for {
			m, err := s.Get(t.Context(), name)
			if err != nil || time.Since(began) > time.Hour {
				t.Fatalf("after %v the move is %s (%s), error %v", time.Since(began), m.State, m.Fault, err)
			}
			if m.State == drover.MoveUndoing {
				break
			}
			time.Sleep(time.Second)
		}
		if took := time.Since(began); took < executor.DefaultStepPatience || took > executor.DefaultStepPatience+time.Minute {
			t.Errorf("undone after %v", took)
		}
		s.world.SetUp("east1", true)
		if m := s.end(t, name); m.State != drover.MoveUndone || len(s.world.Check(m, r.Disks, true)) > 0 {
			t.Errorf("the move is %s (%s): %v", m.State, m.Fault, s.world.Check(m, r.Disks, true))
		}
	})
}

// From the pivot on there is no end to the patience, whichever side is away.
func TestPivotIsAskedWithoutEnd(t *testing.T) {
	for _, host := range []string{"west1", "east1"} {
		synctest.Test(t, func(t *testing.T) {
			s := open(t, executor.Config{}, "west1", "east1")
			r := nth(0, "west", "east")
			s.world.AddVM(r.VM)
			name := s.start(t, r).Name
			time.Sleep(1050 * time.Millisecond) // the guest is paused, or about to run
			s.world.SetUp(host, false)
			time.Sleep(5 * time.Hour)
			m, err := s.Get(t.Context(), name)
			if err != nil || m.State.Final() || m.State == drover.MoveUndoing || m.Fault == "" {
				t.Errorf("%s is away: the move is %s (%s), error %v", host, m.State, m.Fault, err)
			}
			s.world.SetUp(host, true)
			if m := s.end(t, name); m.State != drover.MoveDone || len(s.world.Check(m, r.Disks, true)) > 0 {
				t.Errorf("%s is back: the move is %s (%s): %v", host, m.State, m.Fault, s.world.Check(m, r.Disks, true))
			}
		})
	}
}

// An agent's error may be a whole log: the move shows its beginning, on one line.
func TestFaultIsBrief(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t, executor.Config{}, "west1", "east1")
		r := nth(0, "west", "east")
		s.world.AddVM(r.VM)
		s.world.SetFault(func(c executortest.Call) error {
			if c.Step == "create-volumes" {
				return drover.Errorf(drover.Internal, "test", "%s", strings.Repeat("line ☂\n", 1<<18))
			}
			return nil
		})
		m := s.end(t, s.start(t, r).Name)
		if m.State != drover.MoveUndone || len(m.Fault) > 1200 || !strings.HasPrefix(m.Fault, "create-volumes: test: line ☂ line") || strings.Contains(m.Fault, "\n") {
			t.Errorf("the move is %s: %.100q… (%d bytes)", m.State, m.Fault, len(m.Fault))
		}
	})
}

// What no retry can mend ends stuck, and says what is lost.
func TestStuck(t *testing.T) {
	for name, test := range map[string]struct {
		method drover.Method
		fault  func(*executortest.World, executortest.Call) error
		why    string
	}{
		"the VM is lost on both sides": {drover.Live, func(w *executortest.World, c executortest.Call) error {
			if c.Step == "transfer" && !c.After {
				w.Destroy("west1", "vm0")
				return drover.Errorf(drover.Internal, "test", "the guest is gone")
			}
			return nil
		}, "neither side has the VM"},
		"the VM is lost at its destination": {drover.Live, func(w *executortest.World, c executortest.Call) error {
			if c.Step == "transfer" && c.After {
				w.Destroy("east1", "vm0")
			}
			return nil
		}, "the destination does not have the VM"},
		"the definition is lost": {drover.Cold, func(w *executortest.World, c executortest.Call) error {
			if c.Step == "copy" && c.Action != nil && !c.After {
				w.Destroy("west1", "vm0")
				return drover.Errorf(drover.Exhausted, "test", "no room")
			}
			return nil
		}, "lost the VM's definition"},
	} {
		synctest.Test(t, func(t *testing.T) {
			s := open(t, executor.Config{}, "west1", "east1")
			r := nth(0, "west", "east")
			r.Method = test.method
			r.Definition = []byte("definition of vm0")
			s.world.AddVM(r.VM)
			s.world.SetFault(func(c executortest.Call) error { return test.fault(s.world, c) })
			m := s.end(t, s.start(t, r).Name)
			if m.State != drover.MoveStuck || !strings.Contains(m.Fault, test.why) || strings.Contains(m.Fault, "\n") {
				t.Errorf("%s: the move is %s: %s", name, m.State, m.Fault)
			}
			if err := s.Cancel(t.Context(), m.Name); drover.KindOf(err) != drover.Refused {
				t.Errorf("%s: canceling it: %v, want refused", name, err)
			}
		})
	}
}

// The source of a cold move must not run again before its definition at the
// destination is gone for good, however long that takes.
func TestSourceWaitsForUndefine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t, executor.Config{}, "west1", "east1")
		r := nth(0, "west", "east")
		r.Method = drover.Cold
		s.world.AddVM(r.VM)
		var mu sync.Mutex
		var order []string
		undefines := 0
		s.world.SetFault(func(c executortest.Call) error {
			mu.Lock()
			defer mu.Unlock()
			if _, back := c.Action.(executor.TakeBack); back && !c.After {
				order = append(order, "take-back")
			}
			if _, un := c.Action.(executor.Undefine); un && c.After {
				// Done, but nobody hears of it for a long time.
				if undefines++; undefines <= 20 {
					return drover.Errorf(drover.Unavailable, "test", "the answer is lost")
				}
				order = append(order, "undefine")
			}
			if c.Step == "start" && !c.After {
				return drover.Errorf(drover.Internal, "test", "it does not start here")
			}
			return nil
		})
		name := s.start(t, r).Name
		time.Sleep(time.Minute)
		if state := s.world.VM("west1", "vm0"); state != "" {
			t.Errorf("the source has the VM back (%s) while nobody knows whether the destination has", state)
		}
		m := s.end(t, name)
		if m.State != drover.MoveUndone || len(s.world.Check(m, r.Disks, true)) > 0 {
			t.Errorf("the move is %s (%s): %v", m.State, m.Fault, s.world.Check(m, r.Disks, true))
		}
		if i := slices.Index(order, "take-back"); i < 1 || order[i-1] != "undefine" {
			t.Errorf("the order was %v", order)
		}
	})
}

// Somebody starts the VM at its destination behind the move's back: the pivot
// has passed, whatever the move thought.
func TestStartedByHand(t *testing.T) {
	for _, off := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			s := open(t, executor.Config{}, "west1", "east1")
			r := nth(0, "west", "east")
			r.Method = drover.Cold
			if off {
				r.VM.State = drover.VMOff
			}
			s.world.AddVM(r.VM)
			s.world.SetFault(func(c executortest.Call) error {
				if c.Step == "start" && !c.After {
					s.world.StartByHand("east1", "vm0")
					return drover.Errorf(drover.Internal, "test", "somebody was faster")
				}
				return nil
			})
			name := s.start(t, r).Name
			time.Sleep(time.Minute)
			m, err := s.Get(t.Context(), name)
			if err != nil || m.State == drover.MoveUndoing || m.State == drover.MoveUndone || s.world.VM("west1", "vm0") != "" {
				t.Errorf("off %v: the move is %s (%s), error %v; the source has %q", off, m.State, m.Fault, err, s.world.VM("west1", "vm0"))
			}
		})
	}
}
