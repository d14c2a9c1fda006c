package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/executor"
	"github.com/drover-vm/drover/store"
	"github.com/drover-vm/drover/store/memory"
)

// replicaWorld is all that keeping a replica needs: a VM, its move, two agents
// that keep replicas in memory, and a link.
type replicaWorld struct {
	mu      sync.Mutex
	vm      drover.VM
	there   bool
	move    drover.Move
	moving  bool
	over    bool
	down    map[string]string
	link    drover.BitRate
	busy    bool
	planned error

	// took is how long a round takes; runs are the actions asked for, in order.
	took  time.Duration
	runs  []string
	rates []drover.BitRate
	// lost makes rounds of a replica fail, fails all of them.
	lost  string
	fails error
	// made are replicas at either host, and points those of done rounds.
	made   map[string]bool
	points map[string]time.Time
}

func newReplicaWorld() *replicaWorld {
	return &replicaWorld{
		vm:    drover.VM{Name: "web1", UUID: "u1", Site: "north", Host: "n1", State: drover.VMRunning},
		there: true, down: map[string]string{}, took: time.Second, made: map[string]bool{}, points: map[string]time.Time{},
	}
}

func (w *replicaWorld) set(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

func (w *replicaWorld) protectedVM(context.Context, string) (drover.VM, bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.vm, w.there, nil
}

func (w *replicaWorld) movingVM(context.Context, string) (drover.Move, bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.move, w.moving, nil
}

func (w *replicaWorld) retired(context.Context, string) (bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.over, nil
}

func (w *replicaWorld) reachable(host string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.down[host]
}

func (w *replicaWorld) planReplica(_ context.Context, vm string, to drover.Place) (executor.Request, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	to.Host = "s1"
	return executor.Request{
		VM: w.vm, From: drover.Place{Site: w.vm.Site, Host: w.vm.Host}, To: to, FromAddress: "a:1", ToAddress: "b:1",
		Disks: []executor.DiskPlan{{Target: "vda", Path: "/i/" + vm, VirtualBytes: 1}},
	}, w.planned
}

func (w *replicaWorld) linkOf(context.Context, string, string) (drover.BitRate, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.link, w.busy
}

// Run is the agents' side.
func (w *replicaWorld) Run(ctx context.Context, host string, ref executor.Ref, step string, action executor.Action, progress func(drover.Progress)) (executor.Result, error) {
	w.mu.Lock()
	key := host + " " + ref.Move
	w.runs = append(w.runs, fmt.Sprintf("%s %s %d", key, step, ref.Generation))
	took, fails := w.took, w.fails
	if w.down[host] != "" {
		w.mu.Unlock()
		return executor.Result{}, drover.Errorf(drover.Unavailable, step, "nobody answers")
	}
	defer w.mu.Unlock()
	switch v := action.(type) {
	case executor.Reserve:
		w.made[key] = true
	case executor.Release:
		delete(w.made, key)
	case executor.Replicate:
		if !w.made[key] || !w.made[v.PeerHost+" "+ref.Move] {
			return executor.Result{}, drover.Errorf(drover.Refused, step, "not reserved")
		}
		point := time.Now()
		if fails == nil {
			w.mu.Unlock()
			progress(drover.Progress{Phase: "copy"})
			select {
			case <-time.After(took):
			case <-ctx.Done():
			}
			w.mu.Lock()
			if ctx.Err() != nil {
				return executor.Result{}, executor.CallCut(ctx.Err())
			}
			fails = w.fails
		}
		if w.lost == ref.Move {
			fails = drover.Errorf(drover.NotFound, step, "no such record")
		}
		if fails != nil {
			return executor.Result{}, fails
		}
		if _, done := w.points[ref.Move+step]; !done {
			w.points[ref.Move+step] = point
		}
		return executor.Result{DiskBytes: 7, PathWireBytes: 5, Point: w.points[ref.Move+step]}, nil
	}
	return executor.Result{}, nil
}

func (w *replicaWorld) Cancel(context.Context, string, executor.Ref, string) error { return nil }

func (w *replicaWorld) SetRate(_ context.Context, _ string, _ executor.Ref, r drover.BitRate) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rates = append(w.rates, r)
	return nil
}

// rounds counts the rounds asked for, of one replica or of all.
func (w *replicaWorld) rounds(of string) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.runs {
		if strings.Contains(r, of) && strings.Contains(r, " round-") {
			n++
		}
	}
	return n
}

// led is a server's part that leads.
type led struct {
	*protector
	stop func()
}

func lead(t *testing.T, kept store.Inventory, w *replicaWorld) led {
	t.Helper()
	k := newProtector(kept.Protections(), w, w, slog.New(slog.DiscardHandler), time.Now)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- k.run(ctx) }()
	synctest.Wait()
	return led{k, func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}}
}

func (l led) want(t *testing.T, rpo time.Duration, rate drover.BitRate) {
	t.Helper()
	_, err := l.protect(t.Context(), drover.Protection{
		VM: "web1", VMUUID: "u1", To: drover.Place{Site: "south", Host: "s1"}, RPOSeconds: rpo.Seconds(), Rate: rate,
	})
	if err != nil {
		t.Fatal(err)
	}
}

func (l led) one(t *testing.T) drover.Protection {
	t.Helper()
	all := l.list()
	if len(all) != 1 {
		t.Fatalf("%d protections, want one", len(all))
	}
	return all[0]
}

// age checks that the replica never gets older than it may be, for a while.
func (l led) age(t *testing.T, d time.Duration) {
	t.Helper()
	for range int(d / time.Second) {
		time.Sleep(time.Second)
		synctest.Wait()
		if p := l.one(t); !p.RPOOK || p.State != drover.ProtectionOK {
			t.Fatalf("it is %s (%s), %v old", p.State, p.Why, p.AgeSeconds)
		}
	}
}

func TestProtectionKeepsItsAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newReplicaWorld()
		l := lead(t, memory.New(), w)
		defer l.stop()
		l.want(t, 30*time.Second, 0)
		time.Sleep(1500 * time.Millisecond)
		if p := l.one(t); p.State != drover.ProtectionOK || p.Rounds != 1 || p.RoundBytes != 7 || p.RoundWireBytes != 5 || p.RoundSeconds != 1 {
			t.Fatalf("after the first round it is %+v", p)
		}
		l.age(t, 5*time.Minute)
		// Not more often than it has to be: a round each 25 s, about.
		if n := w.rounds(""); n < 11 || n > 15 {
			t.Errorf("%d rounds in five minutes", n)
		}
		w.set(func() { w.took = 8 * time.Second })
		time.Sleep(time.Minute)
		l.age(t, 3*time.Minute)
		w.set(func() { w.took = 40 * time.Second })
		time.Sleep(4 * time.Minute)
		if p := l.one(t); p.State != drover.ProtectionLate || p.RPOOK || !strings.Contains(p.Why, "a round takes 40s") {
			t.Errorf("with rounds that take longer than the RPO it is %s (%s)", p.State, p.Why)
		}
	})
}

func TestProtectionHindered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newReplicaWorld()
		l := lead(t, memory.New(), w)
		defer l.stop()
		l.want(t, 20*time.Second, 0)
		time.Sleep(5 * time.Second)
		for _, tt := range []struct {
			why      string
			on, off  func()
			mentions string
		}{
			{"host down", func() { w.down["s1"] = "no route" }, func() { delete(w.down, "s1") }, "host s1 does not answer: no route"},
			{"vm off", func() { w.vm.State = drover.VMOff }, func() { w.vm.State = drover.VMRunning }, "the VM is off"},
			{"vm gone", func() { w.there = false }, func() { w.there = true }, "no host has the VM"},
			{"moving", func() { w.moving, w.move = true, drover.Move{Name: "m1"} }, func() { w.moving = false }, "move m1"},
			{"link down", func() { w.fails = drover.E(drover.Unavailable, "dial", errors.New("the link is cut")) }, func() { w.fails = nil }, "the link is cut"},
		} {
			w.set(tt.on)
			time.Sleep(time.Minute)
			p := l.one(t)
			if p.State != drover.ProtectionPaused || p.RPOOK || !strings.Contains(p.Why, tt.mentions) {
				t.Errorf("%s: it is %s (%s), rpo ok %v", tt.why, p.State, p.Why, p.RPOOK)
			}
			w.set(tt.off)
			time.Sleep(time.Minute + 10*time.Second) // the longest wait after a failure
			if p := l.one(t); p.State != drover.ProtectionOK {
				t.Errorf("after %s: it is %s (%s)", tt.why, p.State, p.Why)
			}
		}
		if p := l.one(t); p.Resyncs != 0 {
			t.Errorf("all was sent %d times more", p.Resyncs)
		}
	})
}

// TestProtectionResync: what cannot be built on is replaced by another replica, and
// goes only when that is complete.
func TestProtectionResync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newReplicaWorld()
		l := lead(t, memory.New(), w)
		defer l.stop()
		l.want(t, 20*time.Second, 0)
		time.Sleep(5 * time.Second)
		first := l.beginsWith("u1", "n1", "s1")
		if first == "" {
			t.Fatal("a move would begin with nothing")
		}
		w.set(func() { w.lost, w.took = first, 5*time.Second })
		for l.one(t).Resyncs == 0 {
			time.Sleep(time.Second)
		}
		synctest.Wait()
		if l.beginsWith("u1", "n1", "s1") != "" {
			t.Error("a move would begin with a replica that is not complete")
		}
		w.set(func() {
			if !w.made["s1 "+first] {
				t.Error("the earlier replica is gone before the new one is complete")
			}
		})
		time.Sleep(20 * time.Second)
		second := l.beginsWith("u1", "n1", "s1")
		if second == "" || second == first {
			t.Errorf("a move would begin with %q", second)
		}
		// The VM has moved, and not to where its replica is.
		w.set(func() { w.vm.Host, w.vm.Site = "e1", "east" })
		time.Sleep(30 * time.Second)
		if p := l.one(t); p.From.Host != "e1" || p.State != drover.ProtectionOK || p.Resyncs != 2 {
			t.Errorf("after the VM has moved it is %+v", p)
		}
		w.set(func() {
			if len(w.made) != 2 {
				t.Errorf("of replicas there are %v", w.made)
			}
		})
	})
}

// TestProtectionEnds: asked for, or because the VM is there, nothing is left.
func TestProtectionEnds(t *testing.T) {
	for name, end := range map[string]func(*testing.T, *replicaWorld, led){
		"asked for": func(t *testing.T, _ *replicaWorld, l led) {
			if _, gone, err := l.end(t.Context(), "u1", "web1"); err != nil || !gone {
				t.Errorf("it is gone %v: %v", gone, err)
			}
		},
		"moved there": func(_ *testing.T, w *replicaWorld, _ led) { w.set(func() { w.vm.Site, w.vm.Host = "south", "s2" }) },
		"replaced":    func(_ *testing.T, w *replicaWorld, _ led) { w.set(func() { w.there, w.over = false, true }) },
		"host away": func(t *testing.T, w *replicaWorld, l led) {
			w.set(func() { w.down["n1"] = "gone" })
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			if p, gone, err := l.end(ctx, "u1", "web1"); err != nil || gone || p.State != drover.ProtectionEnding || !strings.Contains(p.Why, "nobody answers") {
				t.Errorf("with a host away it is gone %v, %s (%s): %v", gone, p.State, p.Why, err)
			}
			w.set(func() { delete(w.down, "n1") })
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, kept := newReplicaWorld(), memory.New()
				l := lead(t, kept, w)
				defer l.stop()
				l.want(t, 20*time.Second, 0)
				time.Sleep(5 * time.Second)
				end(t, w, l)
				time.Sleep(2 * time.Minute)
				if all := l.list(); len(all) != 0 {
					t.Errorf("protections: %+v", all)
				}
				if len(w.made) != 0 {
					t.Errorf("left at the agents: %v", w.made)
				}
				if all, _, err := kept.Protections().List(t.Context()); err != nil || len(all) != 0 {
					t.Errorf("kept: %v, %v", all, err)
				}
			})
		})
	}
}

// TestProtectionTakenUp: another server goes on where one was stopped, with a newer
// generation, and takes no round twice.
func TestProtectionTakenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, kept := newReplicaWorld(), memory.New()
		l := lead(t, kept, w)
		l.want(t, 20*time.Second, 0)
		w.set(func() { w.took = 3 * time.Second })
		for !l.one(t).Sending || l.one(t).Rounds == 0 {
			time.Sleep(500 * time.Millisecond)
		}
		before := l.one(t)
		l.stop()
		names, err := replicaNames(t.Context(), kept.Protections())
		if err != nil || len(names) != 1 {
			t.Errorf("kept names: %v, %v", names, err)
		}
		l = lead(t, kept, w)
		defer l.stop()
		time.Sleep(10 * time.Second)
		after := l.one(t)
		if after.Rounds != before.Rounds+1 || after.Resyncs != 0 || after.State != drover.ProtectionOK {
			t.Errorf("before %+v, after %+v", before, after)
		}
		w.set(func() {
			last := w.runs[len(w.runs)-1]
			if !strings.HasSuffix(last, fmt.Sprintf("round-%d 2", after.Rounds)) {
				t.Errorf("the last call is %q, want one of generation 2", last)
			}
		})
	})
}

// TestProtectionRate: a round under way is told when a move crosses the link, and
// two share it.
func TestProtectionRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newReplicaWorld()
		w.link, w.took = 100*drover.Mbps, 20*time.Second
		l := lead(t, memory.New(), w)
		defer l.stop()
		l.want(t, time.Minute, 0)
		time.Sleep(2 * time.Second)
		if p := l.one(t); !p.Sending || p.Allotted != 25*drover.Mbps || p.Progress == nil {
			t.Errorf("a round alone: %+v", p)
		}
		w.set(func() { w.busy = true })
		time.Sleep(2 * time.Second)
		w.set(func() { w.busy = false })
		time.Sleep(2 * time.Second)
		l.want(t, time.Minute, drover.Mbps)
		time.Sleep(2 * time.Second)
		w.set(func() {
			if want := []drover.BitRate{2500 * drover.Kbps, 25 * drover.Mbps, drover.Mbps}; fmt.Sprint(w.rates) != fmt.Sprint(want) {
				t.Errorf("it was told %v, want %v", w.rates, want)
			}
		})
	})
}

func TestProtectAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newReplicaWorld()
		l := lead(t, memory.New(), w)
		defer l.stop()
		l.want(t, 20*time.Second, 0)
		l.want(t, 40*time.Second, drover.Mbps)
		if p := l.one(t); p.RPOSeconds != 40 || p.Rate != drover.Mbps {
			t.Errorf("asked again it is %+v", p)
		}
		p := drover.Protection{VM: "web1", VMUUID: "u1", To: drover.Place{Site: "east", Host: "e1"}, RPOSeconds: 20}
		if _, err := l.protect(t.Context(), p); drover.KindOf(err) != drover.Refused {
			t.Errorf("another place: %v", err)
		}
		if _, _, err := l.end(t.Context(), "u2", "web2"); drover.KindOf(err) != drover.NotFound {
			t.Errorf("the end of none: %v", err)
		}
	})
}

func TestAllotment(t *testing.T) {
	for _, tt := range []struct {
		link   drover.BitRate
		n      int
		moving bool
		most   drover.BitRate
		want   drover.BitRate
	}{
		{0, 1, false, 0, 0},
		{0, 1, true, drover.Mbps, drover.Mbps},
		{200 * drover.Mbps, 1, false, 0, 50 * drover.Mbps},
		{200 * drover.Mbps, 2, false, 0, 25 * drover.Mbps},
		{200 * drover.Mbps, 1, true, 0, 5 * drover.Mbps},
		{200 * drover.Mbps, 1, false, 3 * drover.Mbps, 3 * drover.Mbps},
		{drover.Mbps, 8, true, 0, leastReplicaRate},
	} {
		if got := allotment(tt.link, tt.n, tt.moving, tt.most); got != tt.want {
			t.Errorf("%+v: %v", tt, got)
		}
	}
}
