package executor_test

import (
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/executor"
	"github.com/drover-vm/drover/executor/executortest"
	"github.com/drover-vm/drover/network"
	"github.com/drover-vm/drover/store"
)

// byNetwork reports whether the scenario's move has something to do with edges.
func (sc scenario) byNetwork() bool { return sc.method == drover.Stretch || sc.method == drover.Route }

// hostsOf are the agents that may die in a scenario.
func hostsOf(sc scenario) []string {
	hosts := []string{"west1", "east1"}
	if sc.byNetwork() || sc.method.Makes() || sc.method == drover.Renumber {
		hosts = append(hosts, "west-edge", "east-edge")
	}
	return hosts
}

func withNetwork(sc scenario, r *executor.Request) {
	if !sc.byNetwork() {
		return
	}
	r.VM.NICs = []drover.NIC{{
		MAC: "52:54:00:00:00:01", Network: "br-blue",
		Addresses: []netip.Addr{netip.MustParseAddr("10.50.0.11"), netip.MustParseAddr("fd00:50::11")},
	}}
	r.Locks = []string{"address/10.50.0.11", "address/fd00:50::11"}
	r.LocalEgress = sc.method == drover.Stretch
	if sc.method == drover.Stretch {
		r.Locks = append(r.Locks, "segment/blue")
	}
}

// setNetwork gives the world its edges. A VM that goes back has been brought away
// before.
func setNetwork(w *executortest.World, sc scenario, r executor.Request) []string {
	if !sc.byNetwork() {
		return nil
	}
	w.SetNetwork(segments(sc), edges, neighbours(r.VM))
	if sc.back == "" {
		return nil
	}
	if err := w.CarryOut(away(sc, r)); err != nil {
		return []string{err.Error()}
	}
	return nil
}

var edges = []network.Edge{{Site: "west", Host: "west-edge", Address: "10.0.1.1:7000"}, {Site: "east", Host: "east-edge", Address: "10.0.2.1:7000"}}

func segments(sc scenario) []drover.Segment {
	s := drover.Segment{
		Name: "blue", Home: "west", Sites: []string{"west", "east"}, Bridge: "br-blue",
		Subnets: []netip.Prefix{netip.MustParsePrefix("10.50.0.0/24"), netip.MustParsePrefix("fd00:50::/64")},
	}
	if sc.back != "" {
		s.Home = "east"
	}
	return []drover.Segment{s}
}

// neighbours are the VM and another in its segment, at home.
func neighbours(v drover.VM) []drover.VM {
	n := drover.VM{Name: "db1", UUID: "33333333", Site: "east", NICs: []drover.NIC{{MAC: "52:54:00:00:00:02", Network: "br-blue"}}}
	return []drover.VM{v, n}
}

// away is the request by which the scenario's VM came to where it is.
func away(sc scenario, r executor.Request) executor.Request {
	r.From, r.To = r.To, r.From
	r.VM.Site, r.Method = r.From.Site, sc.back
	return r
}

// checkNetwork compares what stands at edges after a move with what was there
// before, or with what the same move leaves where nothing befalls it.
func checkNetwork(w *executortest.World, sc scenario, r executor.Request, m drover.Move, before []string) []string {
	if !sc.byNetwork() {
		return nil
	}
	want := before
	if m.State == drover.MoveDone {
		calm := executortest.NewWorld("west1", "east1", "west-edge", "east-edge")
		defer calm.Close()
		calm.SetNetwork(segments(sc), edges, neighbours(r.VM))
		var err error
		if sc.back != "" {
			err = calm.CarryOut(away(sc, r))
		}
		if err == nil {
			err = calm.CarryOut(r)
		}
		if err != nil {
			return []string{err.Error()}
		}
		want = calm.EdgeFacts()
		if (len(want) == 0) != (sc.back != "") {
			return []string{fmt.Sprintf("a move leaves %v at edges", want)}
		}
	}
	if got := w.EdgeFacts(); !slices.Equal(got, want) {
		return []string{fmt.Sprintf("edges have %v, want %v", got, want)}
	}
	return nil
}

// The sites cut over by themselves: the server's own call finds it done. A call
// that is lost, or late, changes nothing in the end.
func TestCutOverCalls(t *testing.T) {
	for _, method := range []drover.Method{drover.Stretch, drover.Route} {
		for _, late := range []time.Duration{0, 150 * time.Millisecond, 3 * time.Second, time.Minute} {
			for _, lost := range []bool{false, true} {
				name := fmt.Sprintf("%s: calls %v late, lost %v", method, late, lost)
				sc := scenario{method: method}
				var calls atomic.Int32
				sc.fault = func(_ *executortest.World, c executortest.Call) error {
					if c.Step != "call-out" {
						return nil
					}
					calls.Add(1)
					time.Sleep(late)
					if lost {
						return drover.Errorf(drover.Unavailable, "test", "lost")
					}
					return nil
				}
				want(t, name, bubble(t, name, sc), drover.MoveDone)
				if calls.Load() == 0 {
					t.Errorf("%s: no host calls its edge", name)
				}
			}
		}
	}
}

// A VM that is away by one method goes home by the other.
func TestHomeByAnotherMethod(t *testing.T) {
	for _, sc := range []scenario{{method: drover.Stretch, back: drover.Route}, {method: drover.Route, back: drover.Stretch}} {
		name := fmt.Sprintf("home by %s, away by %s", sc.method, sc.back)
		want(t, name, bubble(t, name, sc), drover.MoveDone)
		for _, step := range []string{"create-volumes", "plan-network", "stage-cut-over"} {
			sc := sc
			sc.fault = once(1, at(step, true), fail(drover.Refused))
			want(t, name, bubble(t, name+", "+step+" fails", sc), drover.MoveUndone)
		}
	}
}

// Without anybody who knows edges, nothing begins that could not end.
func TestNoPlanner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t, executor.Config{}, "west1", "east1")
		r := request(scenario{method: drover.Route})
		s.world.AddVM(r.VM)
		m := s.end(t, s.start(t, r).Name)
		if wrong := s.world.Check(m, r.Disks, true); m.State != drover.MoveUndone || len(wrong) > 0 {
			t.Errorf("the move is %s (%s): %v", m.State, m.Fault, wrong)
		}
	})
}

// Moves with a lock in common follow one another, in the order in which they
// came, though links have room; others do not wait for them. An executor that
// takes them up keeps to that.
func TestLocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t, executor.Config{Limits: executor.Limits{MovesPerLink: 10}}, "west1", "east1", "south1")
		begin := func(n int, to string, locks ...string) string {
			r := nth(n, "west", to)
			r.Locks = locks
			s.world.AddVM(r.VM)
			return s.start(t, r).Name
		}
		first := begin(1, "east", "segment/blue", "address/1")
		second := begin(2, "south", "segment/blue", "address/2")
		third := begin(3, "east", "address/2", "address/3") // wants what the second waits for, too
		free := begin(4, "east", "address/4")
		ended := map[string]time.Time{}
		started := map[string]time.Time{}
		for _, name := range []string{first, free, second, third} {
			m := s.end(t, name)
			if m.State != drover.MoveDone {
				t.Fatalf("%s is %s (%s)", name, m.State, m.Fault)
			}
			started[name], ended[name] = m.Steps[0].Started, m.Ended
		}
		if started[second].Before(ended[first]) || started[third].Before(ended[second]) {
			t.Errorf("started %v, ended %v: want one after the other", started, ended)
		}
		if !started[free].Before(ended[first]) {
			t.Error("a move without a lock in common has waited")
		}
	})
}

func TestLocksAreTakenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t, executor.Config{Limits: executor.Limits{MovesPerLink: 10}}, "west1", "east1")
		var names []string
		for n := 1; n <= 2; n++ {
			r := nth(n, "west", "east")
			r.Locks = []string{"segment/blue"}
			s.world.AddVM(r.VM)
			names = append(names, s.start(t, r).Name)
			time.Sleep(150 * time.Millisecond)
		}
		if err := s.Executor.Close(); err != nil {
			t.Fatal(err)
		}
		next := executor.New(executor.Config{Journal: s.journal, Agents: s.world, Log: testLog(), Limits: executor.Limits{MovesPerLink: 10}})
		defer next.Close()
		if err := next.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.Executor = next
		a, b := s.end(t, names[0]), s.end(t, names[1])
		if a.State != drover.MoveDone || b.State != drover.MoveDone || b.Steps[0].Started.Before(a.Ended) {
			t.Errorf("%s, begun %v, ended %v; %s, begun %v: want one after the other", a.State, a.Steps[0].Started, a.Ended, b.State, b.Steps[0].Started)
		}
		records, _, err := s.journal.List(t.Context(), store.Filter{Unfinished: true})
		if err != nil || len(records) > 0 {
			t.Errorf("%d moves are unfinished, error %v", len(records), err)
		}
	})
}
