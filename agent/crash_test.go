package agent

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api/droverv1"
)

// step is a point in a run at which an agent can die.
type deathPoint struct {
	host, point string
	// nth occurrence of that point on that host.
	nth int
}

func (p deathPoint) String() string { return fmt.Sprintf("%s %s %d", p.host, p.point, p.nth) }

// tracePoints records the points of one run.
func (w *world) tracePoints() func() []deathPoint {
	var mu sync.Mutex
	var all []deathPoint
	seen := make(map[string]int)
	w.setPoint(func(host, point string) error {
		mu.Lock()
		defer mu.Unlock()
		seen[host+point]++
		all = append(all, deathPoint{host, point, seen[host+point]})
		return nil
	})
	return func() []deathPoint {
		mu.Lock()
		defer mu.Unlock()
		return all
	}
}

// dieAt kills the host's agent once, when it comes to the point. It returns
// whether it has.
func (w *world) dieAt(p deathPoint) func() bool {
	var mu sync.Mutex
	n, died := 0, false
	w.setPoint(func(host, point string) error {
		if host != p.host || point != p.point {
			return nil
		}
		mu.Lock()
		n++
		now := n == p.nth && !died
		died = died || now
		mu.Unlock()
		if !now {
			return nil
		}
		w.hosts[host].kill()
		return errDead
	})
	return func() bool {
		mu.Lock()
		defer mu.Unlock()
		return died
	}
}

// campaign tries each point of a run, in a world of its own and some of them at a time:
// who has died is waited for, and what is waited for costs nothing.
func campaign(t *testing.T, points []deathPoint, try func(t *testing.T, i int, p deathPoint)) {
	t.Helper()
	for i, p := range points {
		t.Run(p.String(), func(t *testing.T) {
			t.Parallel()
			try(t, i, p)
		})
	}
}

// livePoints are all points of an undisturbed live move.
func livePoints(t *testing.T) []deathPoint {
	w := newWorld(t)
	w.addVM()
	w.supervise()
	w.begin()
	points := w.tracePoints()
	_, err := w.run("north1", "transfer", 1, w.transferAction())
	must(t, err)
	w.finish(1, nil)
	return points()
}

// TestDieAnywhere kills either agent at every journal write and every
// hypervisor call of a live move, and asks for the transfer again: the VM must
// run exactly once and nothing may be left.
func TestDieAnywhere(t *testing.T) {
	campaign(t, livePoints(t), func(t *testing.T, i int, p deathPoint) {
		w := newWorld(t)
		w.addVM()
		w.supervise()
		w.begin()
		died := w.dieAt(p)
		generation := int64(1)
		_, err := w.run("north1", "transfer", generation, w.transferAction())
		if err != nil && inconclusive(err) {
			generation += int64(i % 2) // the server may have died as well
			_, err = w.insist("north1", "transfer", generation, w.transferAction())
		}
		at := w.finish(generation, err)
		if !died() {
			t.Fatal("the point was not reached")
		}
		w.checkOnce(at)
	})
}

// TestDieAnywhereThenUndo is the same with an executor that gives up at once.
func TestDieAnywhereThenUndo(t *testing.T) {
	campaign(t, livePoints(t), func(t *testing.T, _ int, p deathPoint) {
		w := newWorld(t)
		w.addVM()
		w.supervise()
		w.begin()
		died := w.dieAt(p)
		_, err := w.run("north1", "transfer", 1, w.transferAction())
		if err != nil {
			err = errors.New("undo")
		}
		at := w.finish(2, err)
		if !died() {
			t.Fatal("the point was not reached")
		}
		w.checkOnce(at)
	})
}

// TestFinishReplyLost breaks every connection at the moment when the guest
// runs at the destination and the source does not know it.
func TestFinishReplyLost(t *testing.T) {
	for _, point := range []string{
		"before journal in-accepted", "after journal in-accepted",
		"after hypervisor finish", "before journal running", "after journal running",
	} {
		t.Run(point, func(t *testing.T) {
			w := newWorld(t)
			w.addVM()
			w.begin()
			var once sync.Once
			w.setPoint(func(host, at string) error {
				if host == "south1" && at == point {
					once.Do(w.hosts["south1"].listen.sever)
				}
				return nil
			})
			_, err := w.insist("north1", "transfer", 1, w.transferAction())
			at := w.finish(1, err)
			if at != "south1" {
				t.Errorf("the vm is at %s: a lost reply is no reason to stay", at)
			}
			w.checkOnce(at)
		})
	}
}

// TestPartitionDuringFinish cuts the destination off before Finish reaches it,
// and after it has accepted. The guest must stay paused at the source for as
// long as the cut lasts, and end up running once.
func TestPartitionDuringFinish(t *testing.T) {
	for point, want := range map[string]string{
		"after hypervisor perform":  "north1", // Finish never arrives: Fate refuses
		"after journal in-accepted": "south1", // the answer never arrives
	} {
		t.Run(point, func(t *testing.T) {
			w := newWorld(t)
			w.addVM()
			w.begin()
			var once sync.Once
			cut := make(chan struct{})
			w.setPoint(func(_, at string) error {
				if at == point {
					once.Do(func() { w.hosts["south1"].listen.partition(true); close(cut) })
				}
				return nil
			})
			ended := make(chan error, 1)
			go func() {
				_, err := w.run("north1", "transfer", 1, w.transferAction())
				ended <- err
			}()
			<-cut
			// Long enough for several questions; the outcome must still be open.
			time.Sleep(500 * time.Millisecond)
			select {
			case err := <-ended:
				t.Errorf("the transfer ended during the cut: %v", err)
				ended <- err
			default:
			}
			vm, err := w.hosts["north1"].hyp.VM(t.Context(), vmName)
			must(t, err)
			if vm.State != drover.VMPaused {
				t.Errorf("during the cut the vm is %s at its source", vm.State)
			}
			w.hosts["south1"].listen.partition(false)
			at := w.finish(1, <-ended)
			if at != want {
				t.Errorf("the vm is at %s, want %s", at, want)
			}
			w.checkOnce(at)
		})
	}
}

// TestSettlesWithoutServer kills the source's agent when it has given the
// guest up, and asks nobody anything: the next life must find out by itself.
func TestSettlesWithoutServer(t *testing.T) {
	for _, point := range []string{"after journal given-up", "before journal out-accepted", "after hypervisor confirm", "after hypervisor perform"} {
		t.Run(point, func(t *testing.T) {
			w := newWorld(t)
			w.addVM()
			w.supervise()
			w.begin()
			w.dieAt(deathPoint{"north1", point, 1})
			_, err := w.run("north1", "transfer", 1, w.transferAction())
			if err == nil {
				t.Fatal("the transfer ended well although its agent died")
			}
			deadline := time.Now().Add(30 * time.Second)
			for len(w.fleet.RunsAt(vmName)) != 1 || w.open() {
				if time.Now().After(deadline) {
					t.Fatalf("not settled: it runs at %v", w.fleet.RunsAt(vmName))
				}
				time.Sleep(10 * time.Millisecond)
			}
			at := w.fleet.RunsAt(vmName)[0]
			r, err := w.insist("north1", "transfer", 1, w.abortAction())
			must(t, err)
			if r.GetMoved() != (at == "south1") {
				t.Errorf("it runs at %s, but moved is %v", at, r.GetMoved())
			}
			if got := w.finish(1, errors.New("ask again")); got != at {
				t.Errorf("it ran at %s and ended at %s", at, got)
			}
			w.checkOnce(at)
		})
	}
}

// open reports whether a transfer is not settled yet.
func (w *world) open() bool {
	r, err := w.hosts["north1"].current().agent.journal.move(moveName)
	return err != nil || r == nil || r.Out == nil || r.Out.State != outMoved && r.Out.State != outEnded
}

// TestFinishRefused lets the destination's hypervisor fail to run the guest:
// it must run on at its source.
func TestFinishRefused(t *testing.T) {
	w := newWorld(t)
	w.addVM()
	w.begin()
	w.setPoint(func(host, at string) error {
		if at == "before hypervisor finish" {
			return drover.Errorf(drover.Internal, "finish", "device state does not load")
		}
		return nil
	})
	_, err := w.run("north1", "transfer", 1, w.transferAction())
	if err == nil {
		t.Fatal("the transfer ended well")
	}
	if got := w.fleet.RunsAt(vmName); len(got) != 1 || got[0] != "north1" {
		t.Errorf("after the refusal the vm runs at %v", got)
	}
	// A late Finish must be refused for ever.
	rec, err := w.hosts["south1"].current().agent.journal.move(moveName)
	must(t, err)
	if rec.In.State != inRefused || rec.RefusedGeneration != 1 {
		t.Errorf("the destination's record: %+v", rec.In)
	}
	resp, err := w.hosts["north1"].current().agent.peers.at(w.hosts["south1"].address, "south1").Finish(t.Context(), &droverv1.FinishRequest{
		Ref:   &droverv1.MoveRef{Move: moveName, Generation: 1, Vm: vmName, VmUuid: vmUUID},
		Token: rec.In.Token, Cookie: []byte("late"),
	})
	must(t, err)
	if resp.GetRunning() || resp.GetFault() == "" {
		t.Errorf("the late Finish was answered %v", resp)
	}
	w.finish(1, errors.New("refused"))
	w.checkOnce("north1")
}

// TestFinishUnknown lets the destination's hypervisor lose the answer of
// Finish: the guest is persistent there, so the way is forward.
func TestFinishUnknown(t *testing.T) {
	w := newWorld(t)
	w.addVM()
	w.begin()
	w.setPoint(func(host, at string) error {
		if at == "after hypervisor finish" {
			return drover.Errorf(drover.Unknown, "finish", "the connection broke")
		}
		return nil
	})
	_, err := w.insist("north1", "transfer", 1, w.transferAction())
	at := w.finish(1, err)
	if at != "south1" {
		t.Errorf("the vm is at %s", at)
	}
	w.checkOnce("south1")
}
