package drivertest

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// RoutesSetup is what the conformance suite of driver.Routes needs to know of
// an implementation: an edge with one router.
type RoutesSetup struct {
	// Open opens the edge's routes: the first time with nothing on record, later
	// with what the one before it left, which the suite has closed. It does not
	// wait for the session.
	Open func(t *testing.T) driver.Routes
	// Table returns the host routes that the router has learnt and uses.
	Table func(t *testing.T) map[netip.Prefix]netip.Addr
	// Session takes down the router's side of the session, or lets it come up.
	Session func(t *testing.T, up bool)
	// NextHop4 and NextHop6 are the edge's own addresses.
	NextHop4, NextHop6 netip.Addr
}

// routesBed is the one edge that all cases of a run use, one after the other,
// because a session takes seconds to come up.
type routesBed struct {
	RoutesSetup
	routes driver.Routes
}

// Owners and prefixes of the suite.
var (
	routesAlice = driver.VMOwner("0b9f6f2e-1111-4111-8111-111111111111")
	routesBob   = driver.MoveOwner("bob-1")
	routes4     = netip.MustParsePrefix("192.0.2.10/32")
	routes6     = netip.MustParsePrefix("2001:db8::10/128")
	routesNext4 = netip.MustParsePrefix("192.0.2.11/32")
)

// Routes runs the conformance suite of driver.Routes.
func Routes(t *testing.T, setup RoutesSetup) {
	b := &routesBed{RoutesSetup: setup, routes: setup.Open(t)}
	t.Cleanup(func() { noError(t, b.routes.Close()) })
	b.established(t)
	for _, c := range []struct {
		name string
		run  func(*testing.T, *routesBed)
	}{
		{"Lifecycle", routesLifecycle},
		{"Owners", routesOwners},
		{"BadInput", routesBadInput},
		{"Canceled", routesCanceled},
		{"Concurrent", routesConcurrent},
		{"Reopen", routesReopen},
		{"NoSession", routesNoSession},
		{"Closed", routesClosed}, // the last one: it leaves them closed
	} {
		t.Run(c.name, func(t *testing.T) { c.run(t, b) })
	}
}

// routesPatience bounds the waits for what a router does in its own time.
const routesPatience = time.Minute

// eventually waits for f to return "", which says what is missing otherwise.
func (b *routesBed) eventually(t *testing.T, f func() string) {
	t.Helper()
	deadline := time.Now().Add(routesPatience)
	for missing := f(); missing != ""; missing = f() {
		if time.Now().After(deadline) {
			t.Fatalf("after %v: %s", routesPatience, missing)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// neighbor is the edge's only one.
func (b *routesBed) neighbor(t *testing.T) driver.RouteNeighbor {
	t.Helper()
	list, err := b.routes.Neighbors(t.Context())
	noError(t, err)
	if len(list) != 1 {
		t.Fatalf("neighbours %+v, want one", list)
	}
	return list[0]
}

func (b *routesBed) established(t *testing.T) {
	t.Helper()
	b.eventually(t, func() string {
		if n := b.neighbor(t); n.State != driver.SessionEstablished {
			return fmt.Sprintf("no session: %+v", n)
		}
		return ""
	})
}

// learnt waits until the router uses these host routes and no others.
func (b *routesBed) learnt(t *testing.T, prefixes ...netip.Prefix) {
	t.Helper()
	want := map[netip.Prefix]netip.Addr{}
	for _, p := range prefixes {
		want[p] = b.hop(p)
	}
	b.eventually(t, func() string {
		got := b.Table(t)
		if maps.Equal(got, want) {
			return ""
		}
		return fmt.Sprintf("the router has %v, want %v", got, want)
	})
}

func (b *routesBed) hop(p netip.Prefix) netip.Addr {
	if p.Addr().Is4() {
		return b.NextHop4
	}
	return b.NextHop6
}

// recorded checks what is on record, with owners and the number of neighbours
// it was sent to.
func (b *routesBed) recorded(t *testing.T, want ...driver.Route) {
	t.Helper()
	for i := range want {
		want[i].NextHop = b.hop(want[i].Prefix)
	}
	got, err := b.routes.List(t.Context())
	noError(t, err)
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); diff != "" {
		t.Fatalf("on record (-want +got):\n%s", diff)
	}
}

// routesLifecycle: announced and withdrawn, each also twice.
func routesLifecycle(t *testing.T, b *routesBed) {
	ctx := t.Context()
	b.recorded(t)
	for range 2 {
		noError(t, b.routes.Announce(ctx, routesAlice, routes4, routes6))
		b.recorded(t, driver.Route{Owner: routesAlice, Prefix: routes4, Sent: 1}, driver.Route{Owner: routesAlice, Prefix: routes6, Sent: 1})
		if n := b.neighbor(t); n.Advertised != 2 || n.Fault != "" || n.Since.IsZero() || n.AS == 0 {
			t.Fatalf("neighbour %+v, want 2 routes advertised, no fault", n)
		}
		b.learnt(t, routes4, routes6)
	}
	for range 2 {
		noError(t, b.routes.Withdraw(ctx, routesAlice, routes4))
		b.recorded(t, driver.Route{Owner: routesAlice, Prefix: routes6, Sent: 1})
		b.learnt(t, routes6)
	}
	noError(t, b.routes.Withdraw(ctx, routesAlice, routes6, routes4))
	b.recorded(t)
	b.learnt(t)
	if n := b.neighbor(t); n.Advertised != 0 {
		t.Fatalf("neighbour %+v, want nothing advertised", n)
	}
}

// routesOwners: a prefix has one owner, and nobody else's calls change it.
func routesOwners(t *testing.T, b *routesBed) {
	ctx := t.Context()
	noError(t, b.routes.Announce(ctx, routesAlice, routes4))
	volumeKind(t, b.routes.Announce(ctx, routesBob, routes4), drover.Exists)
	volumeKind(t, b.routes.Announce(ctx, routesBob, routesNext4, routes4), drover.Exists) // all or none
	noError(t, b.routes.Withdraw(ctx, routesBob, routes4))
	b.recorded(t, driver.Route{Owner: routesAlice, Prefix: routes4, Sent: 1})
	b.learnt(t, routes4)
	// When the owner has let go, another may have it.
	noError(t, b.routes.Withdraw(ctx, routesAlice, routes4))
	noError(t, b.routes.Announce(ctx, routesBob, routes4))
	b.recorded(t, driver.Route{Owner: routesBob, Prefix: routes4, Sent: 1})
	b.learnt(t, routes4)
	noError(t, b.routes.Withdraw(ctx, routesBob, routes4))
	b.learnt(t)
}

// routesBadInput: what is no host route is refused and changes nothing.
func routesBadInput(t *testing.T, b *routesBed) {
	ctx := t.Context()
	for _, p := range []netip.Prefix{
		{},
		netip.MustParsePrefix("192.0.2.0/24"),
		netip.MustParsePrefix("192.0.2.10/31"),
		netip.MustParsePrefix("0.0.0.0/0"),
		netip.MustParsePrefix("2001:db8::/64"),
		netip.MustParsePrefix("::/0"),
		netip.MustParsePrefix("::ffff:192.0.2.10/128"),
		netip.MustParsePrefix("0.0.0.0/32"),
		netip.MustParsePrefix("127.0.0.1/32"),
		netip.MustParsePrefix("224.0.0.1/32"),
		netip.MustParsePrefix("fe80::1/128"),
	} {
		volumeKind(t, b.routes.Announce(ctx, routesAlice, p), drover.Invalid)
		volumeKind(t, b.routes.Announce(ctx, routesAlice, routes4, p), drover.Invalid)
		volumeKind(t, b.routes.Withdraw(ctx, routesAlice, p), drover.Invalid)
	}
	volumeKind(t, b.routes.Announce(ctx, routesAlice), drover.Invalid)
	volumeKind(t, b.routes.Withdraw(ctx, routesAlice), drover.Invalid)
	for _, owner := range []driver.Owner{"", "vm", "vm/", "disk/1"} {
		volumeKind(t, b.routes.Announce(ctx, owner, routes4), drover.Invalid)
		volumeKind(t, b.routes.Withdraw(ctx, owner, routes4), drover.Invalid)
	}
	b.recorded(t)
	b.learnt(t)
}

// routesCanceled: a call that is canceled before it began changes nothing.
func routesCanceled(t *testing.T, b *routesBed) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	volumeKind(t, b.routes.Announce(ctx, routesAlice, routes4), drover.Canceled)
	noError(t, b.routes.Announce(t.Context(), routesBob, routes4))
	volumeKind(t, b.routes.Withdraw(ctx, routesBob, routes4), drover.Canceled)
	_, err := b.routes.List(ctx)
	volumeKind(t, err, drover.Canceled)
	_, err = b.routes.Neighbors(ctx)
	volumeKind(t, err, drover.Canceled)
	b.recorded(t, driver.Route{Owner: routesBob, Prefix: routes4, Sent: 1})
	noError(t, b.routes.Withdraw(t.Context(), routesBob, routes4))
}

// routesConcurrent: many callers at once, of whom only one may have a prefix
// that several want.
func routesConcurrent(t *testing.T, b *routesBed) {
	const callers, each = 8, 25
	own := func(caller, i int) []netip.Prefix {
		return []netip.Prefix{
			netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 51, byte(100 + caller), byte(i + 1)}), 32),
			netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 14: byte(caller), 15: byte(i + 1)}), 128),
		}
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var all []netip.Prefix
	var winners int
	for caller := range callers {
		wg.Go(func() {
			owner := driver.MoveOwner(fmt.Sprintf("caller-%d", caller))
			for i := range each {
				mine := own(caller, i)
				if err := b.routes.Announce(t.Context(), owner, mine...); err != nil {
					t.Error(err)
				}
				if i%5 == 4 { // announced, withdrawn, announced
					if err := b.routes.Withdraw(t.Context(), owner, mine...); err != nil {
						t.Error(err)
					}
					if err := b.routes.Announce(t.Context(), owner, mine...); err != nil {
						t.Error(err)
					}
				}
				mu.Lock()
				all = append(all, mine...)
				mu.Unlock()
			}
			err := b.routes.Announce(t.Context(), owner, routes4)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				winners++
				all = append(all, routes4)
			case drover.KindOf(err) != drover.Exists:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if winners != 1 {
		t.Errorf("%d callers got the same prefix", winners)
	}
	b.learnt(t, all...)
	list, err := b.routes.List(t.Context())
	noError(t, err)
	byOwner := map[driver.Owner][]netip.Prefix{}
	for _, r := range list {
		byOwner[r.Owner] = append(byOwner[r.Owner], r.Prefix)
	}
	for owner, prefixes := range byOwner {
		noError(t, b.routes.Withdraw(t.Context(), owner, prefixes...))
	}
	b.learnt(t)
}

// routesReopen: closing withdraws nothing, and who opens again finds his own.
func routesReopen(t *testing.T, b *routesBed) {
	noError(t, b.routes.Announce(t.Context(), routesAlice, routes4))
	noError(t, b.routes.Announce(t.Context(), routesBob, routes6))
	b.learnt(t, routes4, routes6)
	noError(t, b.routes.Close())
	b.learnt(t, routes4, routes6)
	b.routes = b.Open(t)
	b.recorded(t, driver.Route{Owner: routesAlice, Prefix: routes4, Sent: sent(b, t)}, driver.Route{Owner: routesBob, Prefix: routes6, Sent: sent(b, t)})
	b.established(t)
	volumeKind(t, b.routes.Announce(t.Context(), routesBob, routes4), drover.Exists)
	noError(t, b.routes.Announce(t.Context(), routesAlice, routes4))
	b.learnt(t, routes4, routes6)
	noError(t, b.routes.Withdraw(t.Context(), routesBob, routes6))
	noError(t, b.routes.Withdraw(t.Context(), routesAlice, routes4))
	b.learnt(t)
	b.recorded(t)
}

// sent is what Sent says of every route right after the opening: nothing has
// been sent where a session takes time, everything where it does not.
func sent(b *routesBed, t *testing.T) int {
	if b.neighbor(t).State == driver.SessionEstablished {
		return 1
	}
	return 0
}

// routesNoSession: without a neighbour changes are kept, and are carried out
// when one comes.
func routesNoSession(t *testing.T, b *routesBed) {
	ctx := t.Context()
	noError(t, b.routes.Announce(ctx, routesAlice, routes4))
	b.learnt(t, routes4)
	b.Session(t, false)
	b.eventually(t, func() string {
		if n := b.neighbor(t); n.State == driver.SessionEstablished || n.Fault == "" {
			return fmt.Sprintf("neighbour %+v, want no session and a fault", n)
		}
		return ""
	})
	for range 2 {
		volumeKind(t, b.routes.Announce(ctx, routesAlice, routes6), drover.Unavailable)
	}
	volumeKind(t, b.routes.Announce(ctx, routesBob, routes6), drover.Exists)
	b.recorded(t, driver.Route{Owner: routesAlice, Prefix: routes4}, driver.Route{Owner: routesAlice, Prefix: routes6})
	volumeKind(t, b.routes.Withdraw(ctx, routesAlice, routes4), drover.Unavailable)
	noError(t, b.routes.Withdraw(ctx, routesAlice, routes4)) // nothing is left to do
	b.recorded(t, driver.Route{Owner: routesAlice, Prefix: routes6})
	b.Session(t, true)
	b.learnt(t, routes6)
	b.established(t)
	noError(t, b.routes.Announce(ctx, routesAlice, routes6))
	b.recorded(t, driver.Route{Owner: routesAlice, Prefix: routes6, Sent: 1})
	noError(t, b.routes.Withdraw(ctx, routesAlice, routes6))
	b.learnt(t)
}

// routesClosed: nothing works after Close but Close.
func routesClosed(t *testing.T, b *routesBed) {
	ctx := t.Context()
	noError(t, b.routes.Announce(ctx, routesAlice, routes4))
	b.learnt(t, routes4)
	noError(t, b.routes.Close())
	noError(t, b.routes.Close())
	_, errList := b.routes.List(ctx)
	_, errNeighbors := b.routes.Neighbors(ctx)
	for _, err := range []error{
		b.routes.Announce(ctx, routesAlice, routes6), b.routes.Withdraw(ctx, routesAlice, routes4), errList, errNeighbors,
	} {
		volumeKind(t, err, drover.Unavailable)
	}
	if got := b.Table(t); len(got) != 1 {
		t.Fatalf("the router has %v after Close, want the route", got)
	}
}
