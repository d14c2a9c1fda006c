package drivertest

import (
	"context"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// The balancer that the suite works on has these backends of its own.
const (
	// BalancerBackend shares sessions by weight among two servers, each of
	// weight BalancerWeight, and takes servers at run time.
	BalancerBackend = "web"
	// BalancerFixed has one server and takes none at run time.
	BalancerFixed = "fixed"
	// BalancerOne and BalancerTwo are the servers of BalancerBackend;
	// BalancerFixed has the first alone.
	BalancerOne, BalancerTwo = "one", "two"
	// BalancerWeight is the weight of those servers.
	BalancerWeight = 10
)

// Balancing is a balancer with something real behind it.
type Balancing struct {
	// Open opens the driver; each time as after a restart of its process. The
	// caller closes it before it opens another.
	Open func(t *testing.T) driver.Balancer
	// Reload makes the balancer read its configuration again.
	Reload func(t *testing.T)
	// Visit makes n sessions one after the other through BalancerBackend and
	// counts them by the address that served them.
	Visit func(t *testing.T, n int) map[netip.AddrPort]int
	// Hold makes a session that stays.
	Hold func(t *testing.T) Held
	// Spare is an address that answers; Dead is one that does not.
	Spare, Dead netip.AddrPort
}

// Held is a session that stays.
type Held struct {
	Server netip.AddrPort
	// Alive reports whether the session still answers.
	Alive func() bool
	// End ends it from the client's side.
	End func()
}

var (
	balancerOwner = driver.VMOwner("5f0c1d5e-6a3e-4c8b-9a59-0d8f1c1f2a01")
	balancerOther = driver.MoveOwner("other-1")
)

// Balancer is the conformance suite of driver.Balancer. setup is called for
// each test and gives a balancer that nobody has changed.
func Balancer(t *testing.T, setup func(t *testing.T) Balancing) {
	for name, test := range map[string]func(*balancerTest){
		"Observe": testBalancerObserve, "Add": testBalancerAdd, "Health": testBalancerHealth,
		"Weights": testBalancerWeights, "Drain": testBalancerDrain, "Force": testBalancerForce,
		"Restore": testBalancerRestore, "Owners": testBalancerOwners, "Restart": testBalancerRestart,
		"Reload": testBalancerReload, "BadInput": testBalancerBadInput, "Check": testBalancerCheck,
		"Close": testBalancerClose,
	} {
		t.Run(name, func(t *testing.T) {
			b := &balancerTest{T: t, Balancing: setup(t)}
			b.driver = b.Open(t)
			t.Cleanup(func() { b.driver.Close() })
			test(b)
		})
	}
}

type balancerTest struct {
	*testing.T
	Balancing
	driver driver.Balancer
}

func (b *balancerTest) ok(err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

func (b *balancerTest) kind(err error, want drover.Kind) {
	b.Helper()
	if err == nil || drover.KindOf(err) != want {
		b.Errorf("got %v, want an error of kind %v", err, want)
	}
}

func (b *balancerTest) add(name string) string {
	b.Helper()
	b.ok(b.driver.Add(b.Context(), balancerOwner, BalancerBackend, driver.ServerSpec{Name: name, Address: b.Spare, Weight: 20, Check: quickCheck()}))
	return driver.ServerName(balancerOwner, name)
}

func quickCheck() *driver.ServerCheck {
	return &driver.ServerCheck{Interval: 50 * time.Millisecond, Rise: 1, Fall: 1}
}

func (b *balancerTest) server(name string) driver.Server {
	b.Helper()
	all, err := b.driver.Servers(b.Context(), BalancerBackend)
	b.ok(err)
	i := slices.IndexFunc(all, func(s driver.Server) bool { return s.Name == name })
	if i < 0 {
		b.Fatalf("no server %s among %+v", name, all)
	}
	return all[i]
}

func (b *balancerTest) has(name string) bool {
	b.Helper()
	all, err := b.driver.Servers(b.Context(), BalancerBackend)
	b.ok(err)
	return slices.ContainsFunc(all, func(s driver.Server) bool { return s.Name == name })
}

// until waits for something that the balancer does by itself.
func (b *balancerTest) until(what string, f func() bool) {
	b.Helper()
	waitUntil(b.T, what, f)
}

// waitUntil fails the test when something does not come about within ten
// seconds, far beyond what a loaded machine needs.
func waitUntil(t *testing.T, what string, f func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for !f() {
		select {
		case <-ctx.Done():
			t.Fatalf("did not come about: %s", what)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (b *balancerTest) owned() []driver.OwnedServer {
	b.Helper()
	all, err := b.driver.List(b.Context())
	b.ok(err)
	return all
}

func testBalancerObserve(b *balancerTest) {
	all, err := b.driver.Backends(b.Context())
	b.ok(err)
	var names []string
	for _, one := range all {
		names = append(names, one.Name)
		if one.Algorithm == "" {
			b.Errorf("backend %s has no algorithm", one.Name)
		}
	}
	slices.Sort(names)
	if diff := cmp.Diff([]string{BalancerFixed, BalancerBackend}, names); diff != "" {
		b.Error(diff)
	}
	one := b.server(BalancerOne)
	if one.Owner != "" || one.State != driver.ServerReady || one.Weight != BalancerWeight || one.InitialWeight != BalancerWeight || one.Backend != BalancerBackend {
		b.Errorf("a server of the configuration: %+v", one)
	}
	b.Visit(b.T, 4)
	if n := b.server(BalancerOne).Total + b.server(BalancerTwo).Total; n != 4 {
		b.Errorf("after 4 sessions the totals are %d", n)
	}
	held := b.Hold(b.T)
	sessions := func() int { return b.server(BalancerOne).Sessions + b.server(BalancerTwo).Sessions }
	b.until("the held session is counted", func() bool { return sessions() == 1 })
	held.End()
	b.until("the ended session is not", func() bool { return sessions() == 0 })
	_, err = b.driver.Servers(b.Context(), "nowhere")
	b.kind(err, drover.NotFound)
	if len(b.owned()) != 0 {
		b.Errorf("nobody has changed anything, and yet: %+v", b.owned())
	}
}

func testBalancerAdd(b *balancerTest) {
	name := b.add("a")
	b.add("a") // again
	got := b.server(name)
	if got.Owner != balancerOwner || got.State != driver.ServerMaint || got.Address != b.Spare || got.Weight != 20 {
		b.Errorf("an added server: %+v", got)
	}
	if n := b.Visit(b.T, 20)[b.Spare]; n != 0 {
		b.Errorf("%d sessions before it was ready", n)
	}
	err := b.driver.Add(b.Context(), balancerOwner, BalancerBackend, driver.ServerSpec{Name: "a", Address: b.Dead, Weight: 1})
	b.kind(err, drover.Exists)
	want := []driver.OwnedServer{{Owner: balancerOwner, Backend: BalancerBackend, Name: name, Added: true}}
	if diff := cmp.Diff(want, b.owned()); diff != "" {
		b.Error(diff)
	}
	b.ok(b.driver.Ready(b.Context(), balancerOwner, BalancerBackend, name))
	b.ok(b.driver.Ready(b.Context(), balancerOwner, BalancerBackend, name))
	b.until("it gets sessions", func() bool { return b.Visit(b.T, 4)[b.Spare] > 0 })
	for range 2 { // the second finds nothing
		b.ok(b.driver.Drain(b.Context(), balancerOwner, BalancerBackend, name))
		b.until("it is drained", func() bool { return b.server(name).Drained() })
		if n, err := b.driver.Remove(b.Context(), balancerOwner, BalancerBackend, name, false); n != 0 || err != nil {
			b.Fatalf("Remove: %d, %v", n, err)
		}
		if n, err := b.driver.Remove(b.Context(), balancerOwner, BalancerBackend, name, false); n != 0 || err != nil {
			b.Fatalf("Remove of a missing one: %d, %v", n, err)
		}
		b.add("a")
	}
	_, err = b.driver.Remove(b.Context(), balancerOwner, BalancerBackend, name, false)
	b.ok(err)
	if b.has(name) || len(b.owned()) != 0 {
		b.Errorf("after Remove: %+v", b.owned())
	}
}

func testBalancerHealth(b *balancerTest) {
	up := b.add("up")
	b.ok(b.driver.Add(b.Context(), balancerOwner, BalancerBackend, driver.ServerSpec{Name: "down", Address: b.Dead, Weight: 20, Check: quickCheck()}))
	down := driver.ServerName(balancerOwner, "down")
	b.ok(b.driver.Add(b.Context(), balancerOwner, BalancerBackend, driver.ServerSpec{Name: "none", Address: b.Spare, Weight: 20}))
	b.until("the good one's check says so before it has traffic", func() bool { return b.server(up).Health == driver.HealthUp })
	b.until("the dead one's says so", func() bool { return b.server(down).Health == driver.HealthDown })
	if h := b.server(driver.ServerName(balancerOwner, "none")).Health; h != driver.HealthNone {
		b.Errorf("without a check: %s", h)
	}
	for _, name := range []string{up, down} {
		if s := b.server(name); s.State != driver.ServerMaint || s.Total != 0 {
			b.Errorf("a check alone has changed %+v", s)
		}
	}
}

func testBalancerWeights(b *balancerTest) {
	name := b.add("a") // 20 beside 10 and 10
	b.until("it is healthy", func() bool { return b.server(name).Health == driver.HealthUp })
	b.ok(b.driver.Ready(b.Context(), balancerOwner, BalancerBackend, name))
	b.until("it gets sessions", func() bool { return b.Visit(b.T, 4)[b.Spare] > 0 })
	share := func(want int) {
		b.Helper()
		if n := b.Visit(b.T, 40)[b.Spare]; n < want-2 || n > want+2 {
			b.Errorf("%d of 40 sessions, want about %d", n, want)
		}
	}
	share(20)
	b.ok(b.driver.SetWeight(b.Context(), balancerOwner, BalancerBackend, name, 5))
	b.ok(b.driver.SetWeight(b.Context(), balancerOwner, BalancerBackend, name, 5))
	share(8)
	b.ok(b.driver.SetWeight(b.Context(), balancerOwner, BalancerBackend, BalancerOne, 0))
	b.ok(b.driver.SetWeight(b.Context(), balancerOwner, BalancerBackend, BalancerTwo, 0))
	share(40)
	b.ok(b.driver.SetWeight(b.Context(), balancerOwner, BalancerBackend, name, 0))
	b.ok(b.driver.SetWeight(b.Context(), balancerOwner, BalancerBackend, BalancerOne, driver.MaxWeight))
	share(0)
}

func testBalancerDrain(b *balancerTest) {
	name := b.add("a")
	b.ok(b.driver.Drain(b.Context(), balancerOwner, BalancerBackend, BalancerOne))
	b.ok(b.driver.Drain(b.Context(), balancerOwner, BalancerBackend, BalancerTwo))
	b.ok(b.driver.Ready(b.Context(), balancerOwner, BalancerBackend, name))
	b.until("it gets sessions", func() bool { return b.Visit(b.T, 1)[b.Spare] > 0 })
	held := b.Hold(b.T)
	if held.Server != b.Spare {
		b.Fatalf("the session is with %v, not with the only server that is ready", held.Server)
	}
	_, err := b.driver.Remove(b.Context(), balancerOwner, BalancerBackend, name, false)
	b.kind(err, drover.Refused)

	b.ok(b.driver.Drain(b.Context(), balancerOwner, BalancerBackend, name))
	b.ok(b.driver.Ready(b.Context(), balancerOwner, BalancerBackend, BalancerOne))
	if n := b.Visit(b.T, 10)[b.Spare]; n != 0 {
		b.Errorf("%d new sessions while it drains", n)
	}
	if s := b.server(name); s.State != driver.ServerDrain || s.Sessions != 1 || s.Drained() {
		b.Errorf("while it drains: %+v", s)
	}
	_, err = b.driver.Remove(b.Context(), balancerOwner, BalancerBackend, name, false)
	b.kind(err, drover.Refused)
	if s := b.server(name); s.State != driver.ServerDrain || !held.Alive() {
		b.Errorf("a refused Remove has changed it: %+v, session alive: %v", s, held.Alive())
	}
	held.End()
	b.until("it is drained", func() bool { return b.server(name).Drained() })
	_, err = b.driver.Remove(b.Context(), balancerOwner, BalancerBackend, name, false)
	b.ok(err)
	if b.has(name) {
		b.Error("it is still there")
	}
}

func testBalancerForce(b *balancerTest) {
	name := b.add("a")
	b.ok(b.driver.Drain(b.Context(), balancerOwner, BalancerBackend, BalancerOne))
	b.ok(b.driver.Drain(b.Context(), balancerOwner, BalancerBackend, BalancerTwo))
	b.ok(b.driver.Ready(b.Context(), balancerOwner, BalancerBackend, name))
	b.until("it gets sessions", func() bool { return b.Visit(b.T, 1)[b.Spare] > 0 })
	first, second := b.Hold(b.T), b.Hold(b.T)
	b.until("both are counted", func() bool { return b.server(name).Sessions == 2 })
	n, err := b.driver.Remove(b.Context(), balancerOwner, BalancerBackend, name, true)
	if n != 2 || err != nil {
		b.Errorf("Remove by force: %d sessions ended, %v; want 2", n, err)
	}
	if first.Alive() || second.Alive() || b.has(name) {
		b.Errorf("after Remove by force: alive %v %v, there %v", first.Alive(), second.Alive(), b.has(name))
	}
}

func testBalancerRestore(b *balancerTest) {
	b.ok(b.driver.Restore(b.Context(), balancerOwner, BalancerBackend, BalancerOne)) // nothing to do
	b.ok(b.driver.SetWeight(b.Context(), balancerOwner, BalancerBackend, BalancerOne, 3))
	b.ok(b.driver.Drain(b.Context(), balancerOwner, BalancerBackend, BalancerOne))
	b.ok(b.driver.SetWeight(b.Context(), balancerOwner, BalancerBackend, BalancerOne, 4))
	want := []driver.OwnedServer{{Owner: balancerOwner, Backend: BalancerBackend, Name: BalancerOne}}
	if diff := cmp.Diff(want, b.owned()); diff != "" {
		b.Error(diff)
	}
	if s := b.server(BalancerOne); s.Weight != 4 || s.State != driver.ServerDrain {
		b.Errorf("changed: %+v", s)
	}
	_, err := b.driver.Remove(b.Context(), balancerOwner, BalancerBackend, BalancerOne, true)
	b.kind(err, drover.Refused)
	for range 2 {
		b.ok(b.driver.Restore(b.Context(), balancerOwner, BalancerBackend, BalancerOne))
		if s := b.server(BalancerOne); s.Weight != BalancerWeight || s.State != driver.ServerReady {
			b.Errorf("restored: %+v", s)
		}
	}
	if len(b.owned()) != 0 {
		b.Errorf("after Restore: %+v", b.owned())
	}
}

func testBalancerOwners(b *balancerTest) {
	name := b.add("a")
	b.ok(b.driver.Drain(b.Context(), balancerOwner, BalancerBackend, BalancerOne))
	for _, server := range []string{name, BalancerOne} {
		before := b.server(server)
		b.kind(b.driver.SetWeight(b.Context(), balancerOther, BalancerBackend, server, 1), drover.Exists)
		b.kind(b.driver.Drain(b.Context(), balancerOther, BalancerBackend, server), drover.Exists)
		b.kind(b.driver.Ready(b.Context(), balancerOther, BalancerBackend, server), drover.Exists)
		if after := b.server(server); before.Weight != after.Weight || before.State != after.State {
			b.Errorf("another owner has changed %+v to %+v", before, after)
		}
	}
	b.kind(b.driver.Restore(b.Context(), balancerOther, BalancerBackend, BalancerOne), drover.Exists)
	_, err := b.driver.Remove(b.Context(), balancerOther, BalancerBackend, name, true)
	b.kind(err, drover.Exists)
	// Another owner's server of the same name is another server.
	b.ok(b.driver.Add(b.Context(), balancerOther, BalancerBackend, driver.ServerSpec{Name: "a", Address: b.Dead, Weight: 1}))
	_, err = b.driver.Remove(b.Context(), balancerOther, BalancerBackend, driver.ServerName(balancerOther, "a"), false)
	b.ok(err)
	if !b.has(name) || b.server(BalancerOne).State != driver.ServerDrain {
		b.Error("what was the other's is gone")
	}
}

func testBalancerRestart(b *balancerTest) {
	name := b.add("a")
	b.ok(b.driver.SetWeight(b.Context(), balancerOwner, BalancerBackend, BalancerOne, 7))
	before := b.owned()
	b.reopen()
	if diff := cmp.Diff(before, b.owned()); diff != "" {
		b.Error(diff)
	}
	b.ok(b.driver.Restore(b.Context(), balancerOwner, BalancerBackend, BalancerOne))
	_, err := b.driver.Remove(b.Context(), balancerOwner, BalancerBackend, name, false)
	b.ok(err)
	if s := b.server(BalancerOne); s.Weight != BalancerWeight || b.has(name) || len(b.owned()) != 0 {
		b.Errorf("after a restart nothing was undone: %+v, %+v", s, b.owned())
	}
}

func (b *balancerTest) reopen() {
	b.Helper()
	b.ok(b.driver.Close())
	b.driver = b.Open(b.T)
}

func testBalancerReload(b *balancerTest) {
	for _, open := range []bool{true, false} { // the driver sees it, or is not there
		name := b.add("a")
		b.ok(b.driver.SetWeight(b.Context(), balancerOwner, BalancerBackend, name, 40))
		b.ok(b.driver.Ready(b.Context(), balancerOwner, BalancerBackend, name))
		b.ok(b.driver.Drain(b.Context(), balancerOwner, BalancerBackend, BalancerOne))
		b.ok(b.driver.SetWeight(b.Context(), balancerOwner, BalancerBackend, BalancerTwo, 1))
		if open {
			b.Reload(b.T)
		} else {
			b.ok(b.driver.Close())
			b.Reload(b.T)
			b.driver = b.Open(b.T)
		}
		s := b.server(name)
		if s.State != driver.ServerReady || s.Weight != 40 || s.Address != b.Spare {
			b.Errorf("after a reload: %+v", s)
		}
		if one, two := b.server(BalancerOne), b.server(BalancerTwo); one.State != driver.ServerDrain || two.Weight != 1 {
			b.Errorf("after a reload: %+v and %+v", one, two)
		}
		b.until("its check finds it healthy", func() bool { return b.server(name).Health == driver.HealthUp })
		b.until("it gets sessions", func() bool { return b.Visit(b.T, 8)[b.Spare] >= 6 })
		b.ok(b.driver.Restore(b.Context(), balancerOwner, BalancerBackend, BalancerOne))
		b.ok(b.driver.Restore(b.Context(), balancerOwner, BalancerBackend, BalancerTwo))
		b.until("the process before has ended", func() bool { return !b.server(name).Unseen })
		_, err := b.driver.Remove(b.Context(), balancerOwner, BalancerBackend, name, true)
		b.ok(err)
	}
	b.Reload(b.T)
	if one := b.server(BalancerOne); one.State != driver.ServerReady || one.Weight != BalancerWeight || len(b.owned()) != 0 {
		b.Errorf("after all was undone, and a reload: %+v, %+v", one, b.owned())
	}
}

func testBalancerBadInput(b *balancerTest) {
	ctx, good := b.Context(), driver.ServerSpec{Name: "a", Address: b.Spare, Weight: 1}
	with := func(f func(*driver.ServerSpec)) driver.ServerSpec { s := good; f(&s); return s }
	for name, spec := range map[string]driver.ServerSpec{
		"no name":       with(func(s *driver.ServerSpec) { s.Name = "" }),
		"two commands":  with(func(s *driver.ServerSpec) { s.Name = "a;shutdown" }),
		"a blank":       with(func(s *driver.ServerSpec) { s.Name = "a b" }),
		"no address":    with(func(s *driver.ServerSpec) { s.Address = netip.AddrPort{} }),
		"no port":       with(func(s *driver.ServerSpec) { s.Address = netip.AddrPortFrom(b.Spare.Addr(), 0) }),
		"heavy":         with(func(s *driver.ServerSpec) { s.Weight = driver.MaxWeight + 1 }),
		"negative":      with(func(s *driver.ServerSpec) { s.Weight = -1 }),
		"negative fall": with(func(s *driver.ServerSpec) { s.Check = &driver.ServerCheck{Fall: -1} }),
	} {
		b.Run(name, func(t *testing.T) {
			if err := b.driver.Add(ctx, balancerOwner, BalancerBackend, spec); drover.KindOf(err) != drover.Invalid || err == nil {
				t.Errorf("got %v, want an error of kind invalid", err)
			}
		})
	}
	b.kind(b.driver.Add(ctx, "nobody", BalancerBackend, good), drover.Invalid)
	b.kind(b.driver.Add(ctx, balancerOwner, "no\nbackend", good), drover.Invalid)
	b.kind(b.driver.Add(ctx, balancerOwner, "nowhere", good), drover.NotFound)
	b.kind(b.driver.Add(ctx, balancerOwner, BalancerFixed, good), drover.Refused)
	b.kind(b.driver.SetWeight(ctx, balancerOwner, BalancerBackend, BalancerOne, -1), drover.Invalid)
	b.kind(b.driver.SetWeight(ctx, balancerOwner, BalancerFixed, BalancerOne, 3), drover.Refused)
	b.kind(b.driver.Drain(ctx, balancerOwner, BalancerBackend, "nobody"), drover.NotFound)
	b.kind(b.driver.Drain(ctx, balancerOwner, "nowhere", BalancerOne), drover.NotFound)
	b.kind(b.driver.Ready(ctx, balancerOwner, BalancerBackend, ""), drover.Invalid)
	if len(b.owned()) != 0 {
		b.Errorf("bad input has left %+v", b.owned())
	}
}

func testBalancerCheck(b *balancerTest) {
	for backend, want := range map[string]bool{BalancerBackend: true, BalancerFixed: false, "nowhere": false} {
		checks, err := b.driver.Check(b.Context(), backend)
		b.ok(err)
		ok := true
		for _, c := range checks {
			ok = ok && c.OK
			if c.Name == "" || !c.OK && c.Fix == "" {
				b.Errorf("%s: %+v says nothing", backend, c)
			}
		}
		if ok != want || len(checks) == 0 {
			b.Errorf("%s: %+v, want ok %v", backend, checks, want)
		}
	}
}

func testBalancerClose(b *balancerTest) {
	name := b.add("a")
	b.ok(b.driver.Close())
	b.ok(b.driver.Close())
	_, err := b.driver.Backends(b.Context())
	b.kind(err, drover.Canceled)
	b.kind(b.driver.Drain(b.Context(), balancerOwner, BalancerBackend, BalancerOne), drover.Canceled)
	b.driver = b.Open(b.T)
	if !b.has(name) {
		b.Error("closing the driver has removed a server")
	}
	ctx, cancel := context.WithCancel(b.Context())
	cancel()
	b.kind(b.driver.Drain(ctx, balancerOwner, BalancerBackend, BalancerOne), drover.Canceled)
	if b.server(BalancerOne).State != driver.ServerReady {
		b.Error("a canceled call has drained it")
	}
}
