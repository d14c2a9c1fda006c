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

// The edge that the suite works on has two bridges, a router, and a mesh
// interface that leads to the other edges.
const (
	AddressesBridge = "br-web"
	AddressesOther  = "br-new"
	AddressesMesh   = "drover0"
)

// Other edges' addresses in the mesh.
var (
	AddressesRemote  = netip.MustParseAddr("10.99.0.2")
	AddressesRemote2 = netip.MustParseAddr("10.99.0.3")
	// AddressesForeign has a route into AddressesBridge that is not Drover's.
	AddressesForeign = netip.MustParseAddr("10.1.0.77")
)

var (
	placed4, placed6 = netip.MustParseAddr("10.1.0.5"), netip.MustParseAddr("2001:db8:1::5")
	placedBoth       = []netip.Addr{placed4, placed6}
	placedSubnets    = []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24"), netip.MustParsePrefix("2001:db8:1::/64")}
	placedOwner      = driver.VMOwner("5f0c1d5e-6a3e-4c8b-9a59-0d8f1c1f2a01")
	placedOther      = driver.MoveOwner("other-1")
	allRoles         = driver.AddressRoles
)

// Edge is an edge's network stack to test with.
type Edge struct {
	// Open opens the driver; each time as after a restart of its process. The
	// caller closes it before it opens another.
	Open func(t *testing.T) driver.Addresses
	// State is all that the driver could have changed, whosever it is.
	State func(t *testing.T) string
	// Converse makes a session from outside to 10.1.0.5, which lives on
	// AddressesBridge, and sends something both ways; it stays until the test ends.
	Converse func(t *testing.T)
}

// Addresses is the conformance suite of driver.Addresses. setup is called for
// each test and gives an edge that nobody has changed.
func Addresses(t *testing.T, setup func(t *testing.T) Edge) {
	for name, test := range map[string]func(*edgeTest){
		"Roles": testAddressesRoles, "Swap": testAddressesSwap, "Owners": testAddressesOwners, "Foreign": testAddressesForeign,
		"All": testAddressesAll, "Stations": testAddressesStations,
		"Restart": testAddressesRestart, "BadInput": testAddressesBadInput, "Missing": testAddressesMissing,
		"Sessions": testAddressesSessions, "Meter": testAddressesMeter, "Redirect": testAddressesRedirect, "Close": testAddressesClose,
	} {
		t.Run(name, func(t *testing.T) {
			e := &edgeTest{T: t, Edge: setup(t)}
			e.before = e.State(t)
			e.driver = e.Open(t)
			t.Cleanup(func() { e.driver.Close() })
			test(e)
		})
	}
}

type edgeTest struct {
	*testing.T
	Edge
	driver driver.Addresses
	before string
}

func (e *edgeTest) ok(err error) {
	e.Helper()
	if err != nil {
		e.Fatal(err)
	}
}

func (e *edgeTest) kind(err error, want drover.Kind) {
	e.Helper()
	if err == nil || drover.KindOf(err) != want {
		e.Errorf("got %v, want an error of kind %v", err, want)
	}
}

func (e *edgeTest) list() []driver.PlacedAddress {
	e.Helper()
	all, err := e.driver.List(e.Context())
	e.ok(err)
	return all
}

// same compares two lists.
func (e *edgeTest) same(want, got []driver.PlacedAddress) {
	e.Helper()
	compare := cmp.Comparer(func(x, y driver.PlacedAddress) bool { return x == y })
	if diff := cmp.Diff(want, got, compare); diff != "" {
		e.Error(diff)
	}
}

func (e *edgeTest) unchanged() {
	e.Helper()
	if diff := cmp.Diff(e.before, e.State(e.T)); diff != "" {
		e.Errorf("the edge is not as before:\n%s", diff)
	}
	if all := e.list(); len(all) != 0 {
		e.Errorf("List: %+v", all)
	}
}

func (e *edgeTest) forward(remote netip.Addr) driver.OldForward {
	return driver.OldForward{
		Addresses: placedBoth, Bridge: AddressesBridge, Limit: time.Hour,
		To: driver.MeshPath{Interface: AddressesMesh, Remote: remote},
	}
}

func (e *edgeTest) accept() driver.OldAccept {
	return driver.OldAccept{
		Addresses: placedBoth, Bridge: AddressesOther, Subnets: placedSubnets,
		From: driver.MeshPath{Interface: AddressesMesh, Remote: AddressesRemote},
	}
}

// do does what a role is for.
func (e *edgeTest) do(owner driver.Owner, role driver.AddressRole) error {
	ctx, d := e.Context(), e.driver
	switch role {
	case driver.RoleDeliver:
		return d.DeliverHere(ctx, owner, driver.Delivery{Addresses: placedBoth, Bridge: AddressesBridge, MAC: "52:54:00:00:00:05"})
	case driver.RoleElsewhere:
		return d.Elsewhere(ctx, owner, placedBoth, AddressesBridge)
	case driver.RoleRest:
		return d.ProxyRest(ctx, owner, placedSubnets, AddressesBridge)
	case driver.RoleForwardOld:
		return d.ForwardOld(ctx, owner, e.forward(AddressesRemote))
	case driver.RoleAcceptOld:
		return d.AcceptOld(ctx, owner, e.accept())
	case driver.RoleWatch:
		return d.Watch(ctx, owner, placedBoth)
	default:
		return d.Meter(ctx, owner, placedBoth)
	}
}

// wanted is what List has after do.
func wanted(owner driver.Owner, role driver.AddressRole) (all []driver.PlacedAddress) {
	p := driver.PlacedAddress{Owner: owner, Role: role}
	var prefixes []netip.Prefix
	for _, addr := range placedBoth {
		prefixes = append(prefixes, netip.PrefixFrom(addr, addr.BitLen()))
	}
	switch role {
	case driver.RoleDeliver, driver.RoleElsewhere:
		p.Bridge = AddressesBridge
	case driver.RoleRest:
		p.Bridge, prefixes = AddressesBridge, placedSubnets
	case driver.RoleForwardOld:
		p.Bridge, p.Remote = AddressesBridge, AddressesRemote
	case driver.RoleAcceptOld:
		p.Bridge, p.Remote = AddressesOther, AddressesRemote
		prefixes = append(prefixes, placedSubnets...)
	}
	slices.SortFunc(prefixes, netip.Prefix.Compare)
	for _, prefix := range prefixes {
		p.Prefix = prefix
		all = append(all, p)
	}
	return all
}

func testAddressesRoles(e *edgeTest) {
	for _, role := range allRoles {
		e.ok(e.do(placedOwner, role))
		once := e.State(e.T)
		if once == e.before {
			e.Errorf("%s has changed nothing", role)
		}
		e.ok(e.do(placedOwner, role))
		if diff := cmp.Diff(once, e.State(e.T)); diff != "" {
			e.Errorf("%s, done again, changes:\n%s", role, diff)
		}
		e.same(wanted(placedOwner, role), e.list())
		e.ok(e.driver.Remove(e.Context(), placedOther)) // has nothing
		e.ok(e.driver.Remove(e.Context(), placedOwner, without(allRoles, role)...))
		e.same(wanted(placedOwner, role), e.list())
		for range 2 {
			e.ok(e.driver.Remove(e.Context(), placedOwner, role))
			e.unchanged()
		}
	}
	for _, role := range []driver.AddressRole{driver.RoleElsewhere, driver.RoleRest, driver.RoleForwardOld, driver.RoleWatch, driver.RoleMeter} {
		e.ok(e.do(placedOwner, role))
	}
	e.ok(e.driver.Remove(e.Context(), placedOwner))
	e.unchanged()
}

func without(roles []driver.AddressRole, role driver.AddressRole) []driver.AddressRole {
	return slices.DeleteFunc(slices.Clone(roles), func(r driver.AddressRole) bool { return r == role })
}

func testAddressesSwap(e *edgeTest) {
	for _, role := range []driver.AddressRole{driver.RoleDeliver, driver.RoleElsewhere, driver.RoleDeliver} {
		e.ok(e.do(placedOwner, role))
		e.same(wanted(placedOwner, role), e.list())
	}
	e.ok(e.driver.DeliverHere(e.Context(), placedOwner, driver.Delivery{Addresses: placedBoth, Bridge: AddressesOther}))
	if all := e.list(); len(all) != 2 || all[0].Bridge != AddressesOther || all[0].Missing {
		e.Errorf("on the other bridge: %+v", all)
	}
	e.ok(e.driver.Elsewhere(e.Context(), placedOwner, []netip.Addr{placed6}, AddressesBridge))
	if all := e.list(); len(all) != 2 || all[0].Role != driver.RoleDeliver || all[1].Role != driver.RoleElsewhere {
		e.Errorf("one of two is elsewhere: %+v", all)
	}
	e.ok(e.driver.Remove(e.Context(), placedOwner))
	e.unchanged()
}

func testAddressesOwners(e *edgeTest) {
	// What two want alike stands until both are gone.
	for _, role := range []driver.AddressRole{driver.RoleDeliver, driver.RoleRest, driver.RoleWatch, driver.RoleMeter} {
		e.ok(e.do(placedOwner, role))
		e.ok(e.do(placedOther, role))
		e.ok(e.driver.Remove(e.Context(), placedOwner))
		e.same(wanted(placedOther, role), e.list())
		e.ok(e.driver.Remove(e.Context(), placedOther))
		e.unchanged()
	}
	// What they want differently, the first has.
	for _, pair := range [][2]driver.AddressRole{
		{driver.RoleDeliver, driver.RoleElsewhere},
		{driver.RoleElsewhere, driver.RoleDeliver},
		{driver.RoleElsewhere, driver.RoleAcceptOld},
		{driver.RoleForwardOld, driver.RoleForwardOld},
		{driver.RoleAcceptOld, driver.RoleAcceptOld},
	} {
		e.ok(e.do(placedOwner, pair[0]))
		e.kind(e.do(placedOther, pair[1]), drover.Exists)
		e.same(wanted(placedOwner, pair[0]), e.list())
		e.ok(e.driver.Remove(e.Context(), placedOwner))
		e.unchanged()
	}
}

func testAddressesAll(e *edgeTest) {
	ctx := e.Context()
	f, a := e.forward(AddressesRemote), e.accept()
	for _, all := range []bool{true, true, false, true} {
		f.All, a.All = all, all
		e.ok(e.driver.ForwardOld(ctx, placedOwner, f))
		want := wanted(placedOwner, driver.RoleForwardOld)
		for i := range want {
			want[i].All = all
		}
		e.same(want, e.list())
	}
	e.ok(e.driver.Remove(ctx, placedOwner))
	for _, all := range []bool{false, true, false} {
		a.All = all
		e.ok(e.driver.AcceptOld(ctx, placedOwner, a))
		want := wanted(placedOwner, driver.RoleAcceptOld)
		for i := range want {
			want[i].All = all
		}
		e.same(want, e.list())
	}
	e.ok(e.driver.Remove(ctx, placedOwner))
	e.unchanged()
}

func testAddressesStations(e *edgeTest) {
	free := []netip.Addr{netip.MustParseAddr("10.1.0.77"), netip.MustParseAddr("2001:db8:1::77")}
	found, err := e.driver.Stations(e.Context(), AddressesBridge, free)
	e.ok(err)
	if len(found) != 0 {
		e.Errorf("nobody has %v, but %+v", free, found)
	}
	_, err = e.driver.Stations(e.Context(), "br-none", placedBoth)
	e.kind(err, drover.NotFound)
	_, err = e.driver.Stations(e.Context(), AddressesBridge, nil)
	e.kind(err, drover.Invalid)
}

func testAddressesForeign(e *edgeTest) {
	addresses := []netip.Addr{AddressesForeign}
	e.kind(e.driver.Elsewhere(e.Context(), placedOwner, addresses, AddressesBridge), drover.Exists)
	e.kind(e.driver.DeliverHere(e.Context(), placedOwner, driver.Delivery{Addresses: addresses, Bridge: AddressesOther}), drover.Exists)
	e.ok(e.driver.Remove(e.Context(), placedOwner))
	e.unchanged()
}

func testAddressesRestart(e *edgeTest) {
	e.ok(e.do(placedOwner, driver.RoleElsewhere))
	e.ok(e.do(placedOwner, driver.RoleForwardOld))
	e.ok(e.do(placedOther, driver.RoleRest))
	before, state := e.list(), e.State(e.T)
	e.ok(e.driver.Close())
	e.driver = e.Open(e.T)
	e.same(before, e.list())
	if diff := cmp.Diff(state, e.State(e.T)); diff != "" {
		e.Errorf("a restart changes:\n%s", diff)
	}
	e.kind(e.do(placedOther, driver.RoleDeliver), drover.Exists)
	e.ok(e.driver.Remove(e.Context(), placedOwner))
	e.ok(e.driver.Remove(e.Context(), placedOther))
	e.unchanged()
}

func testAddressesBadInput(e *edgeTest) {
	ctx := e.Context()
	for _, bad := range []string{"0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "169.254.0.1", "::", "::1", "fe80::1", "ff02::1", "::ffff:10.1.0.5", "fe80::1%eth0"} {
		list := []netip.Addr{placed4, netip.MustParseAddr(bad)}
		e.kind(e.driver.DeliverHere(ctx, placedOwner, driver.Delivery{Addresses: list, Bridge: AddressesBridge}), drover.Invalid)
		e.kind(e.driver.Elsewhere(ctx, placedOwner, list, AddressesBridge), drover.Invalid)
		e.kind(e.driver.Watch(ctx, placedOwner, list), drover.Invalid)
		e.kind(e.driver.Meter(ctx, placedOwner, list), drover.Invalid)
		_, err := e.driver.Sessions(ctx, list)
		e.kind(err, drover.Invalid)
		_, err = e.driver.Forget(ctx, list)
		e.kind(err, drover.Invalid)
	}
	e.kind(e.driver.Elsewhere(ctx, placedOwner, nil, AddressesBridge), drover.Invalid)
	e.kind(e.driver.Elsewhere(ctx, "nobody", placedBoth, AddressesBridge), drover.Invalid)
	for _, bridge := range []string{"", "..", "a b", "a/b", "all", "much-too-long-name"} {
		e.kind(e.driver.Elsewhere(ctx, placedOwner, placedBoth, bridge), drover.Invalid)
		e.kind(e.driver.ProxyRest(ctx, placedOwner, placedSubnets, bridge), drover.Invalid)
	}
	e.kind(e.driver.DeliverHere(ctx, placedOwner, driver.Delivery{
		Addresses: placedBoth, Bridge: AddressesBridge, MAC: "52:54:00:00:00:05", Neighbors: []netip.Addr{netip.MustParseAddr("ff02::1")},
	}), drover.Invalid)
	for _, subnet := range []string{"10.1.0.5/24", "10.1.0.5/32", "0.0.0.0/0", "fe80::/64", "2001:db8::1/64"} {
		e.kind(e.driver.ProxyRest(ctx, placedOwner, []netip.Prefix{netip.MustParsePrefix(subnet)}, AddressesBridge), drover.Invalid)
	}
	for _, mac := range []string{"52:54", "nonsense", "01:00:5e:00:00:01"} {
		e.kind(e.driver.DeliverHere(ctx, placedOwner, driver.Delivery{Addresses: placedBoth, Bridge: AddressesBridge, MAC: mac}), drover.Invalid)
	}
	for _, limit := range []time.Duration{0, -1, driver.MaxOldLimit + 1} {
		f := e.forward(AddressesRemote)
		f.Limit = limit
		e.kind(e.driver.ForwardOld(ctx, placedOwner, f), drover.Invalid)
	}
	e.kind(e.driver.ForwardOld(ctx, placedOwner, e.forward(netip.Addr{})), drover.Invalid)
	e.kind(e.driver.Remove(ctx, placedOwner, "nothing"), drover.Invalid)
	e.kind(e.driver.Remove(ctx, "nobody"), drover.Invalid)
	e.unchanged()
}

func testAddressesMissing(e *edgeTest) {
	ctx := e.Context()
	const nowhere = "br-nowhere"
	e.kind(e.driver.DeliverHere(ctx, placedOwner, driver.Delivery{Addresses: placedBoth, Bridge: nowhere}), drover.NotFound)
	e.kind(e.driver.Elsewhere(ctx, placedOwner, placedBoth, nowhere), drover.NotFound)
	e.kind(e.driver.ProxyRest(ctx, placedOwner, placedSubnets, nowhere), drover.NotFound)
	f := e.forward(AddressesRemote)
	f.To.Interface = "nomesh0"
	e.kind(e.driver.ForwardOld(ctx, placedOwner, f), drover.NotFound)
	a := e.accept()
	a.Bridge = nowhere
	e.kind(e.driver.AcceptOld(ctx, placedOwner, a), drover.NotFound)
	f.To = driver.MeshPath{Interface: AddressesMesh, Remote: netip.MustParseAddr("192.0.2.200")} // not in the mesh
	e.kind(e.driver.ForwardOld(ctx, placedOwner, f), drover.Unavailable)
	if all, err := e.driver.Metered(ctx, placedBoth); len(all) != 0 || err != nil {
		e.Errorf("Metered without a meter: %+v, %v", all, err)
	}
	for bridge, want := range map[string]bool{AddressesBridge: true, nowhere: false} {
		checks, err := e.driver.Check(ctx, bridge)
		e.ok(err)
		ok := len(checks) > 0
		for _, c := range checks {
			ok = ok && c.OK
			if c.Name == "" || !c.OK && c.Fix == "" {
				e.Errorf("%s: %+v says nothing", bridge, c)
			}
		}
		if ok != want {
			e.Errorf("Check of %s: %+v, want ok %v", bridge, checks, want)
		}
	}
	e.unchanged()
}

func testAddressesSessions(e *edgeTest) {
	if all, err := e.driver.Sessions(e.Context(), placedBoth); len(all) != 0 || err != nil {
		e.Errorf("before anything: %+v, %v", all, err)
	}
	e.ok(e.do(placedOwner, driver.RoleWatch))
	e.Converse(e.T)
	all, err := e.driver.Sessions(e.Context(), placedBoth)
	e.ok(err)
	if len(all) != 1 || !all[0].Live || all[0].Outgoing || all[0].Address.Addr() != placed4 || !all[0].Peer.IsValid() || all[0].Received == 0 || all[0].Sent == 0 {
		e.Errorf("a session: %+v", all)
	}
	if other, err := e.driver.Sessions(e.Context(), []netip.Addr{placed6}); len(other) != 0 || err != nil {
		e.Errorf("of another address: %+v, %v", other, err)
	}
	for _, want := range []int{1, 0} {
		if n, err := e.driver.Forget(e.Context(), []netip.Addr{placed4}); n != want || err != nil {
			e.Errorf("Forget: %d, %v, want %d", n, err, want)
		}
	}
}

func testAddressesMeter(e *edgeTest) {
	e.ok(e.do(placedOwner, driver.RoleMeter))
	all, err := e.driver.Metered(e.Context(), nil)
	e.ok(err)
	zero := driver.AddressPaths{}
	if len(all) != 2 || all[0].Address != placed4 || all[1].Address != placed6 || all[0].To != zero || all[1].From != zero {
		e.Errorf("before anything: %+v", all)
	}
	e.Converse(e.T)
	e.ok(e.do(placedOther, driver.RoleMeter)) // keeps the counts
	all, err = e.driver.Metered(e.Context(), []netip.Addr{placed4})
	e.ok(err)
	if len(all) != 1 || all[0].To.RouterBridge == 0 || all[0].From.BridgeRouter == 0 || all[0].Neighbors() != 0 {
		e.Errorf("after a session: %+v", all)
	}
	for _, extended := range []bool{false, true} {
		to, from := all[0].Hairpin(extended)
		if (to > 0) != extended || (from > 0) != extended {
			e.Errorf("on an extended bridge %v: %d and %d bytes go in vain", extended, to, from)
		}
	}
	e.meterRoles()
	e.ok(e.driver.Remove(e.Context(), placedOther))
	again, err := e.driver.Metered(e.Context(), []netip.Addr{placed4})
	e.ok(err)
	if len(again) != 1 || again[0].To.RouterBridge < all[0].To.RouterBridge {
		e.Errorf("after another owner has left: %+v", again)
	}
}

// meterRoles: of those who have an address metered it is said how they have
// placed it; placedOther has not.
func (e *edgeTest) meterRoles() {
	e.Helper()
	for _, role := range []driver.AddressRole{driver.RoleDeliver, driver.RoleElsewhere, ""} {
		if role == "" {
			e.ok(e.driver.Remove(e.Context(), placedOwner, driver.RoleDeliver, driver.RoleElsewhere))
		} else {
			e.ok(e.do(placedOwner, role))
		}
		all, err := e.driver.Metered(e.Context(), nil)
		e.ok(err)
		want := []driver.MeteredFor{{Owner: placedOther}, {Owner: placedOwner, Role: role}}
		if placedOwner < placedOther {
			slices.Reverse(want)
		}
		for _, t := range all {
			if !slices.Equal(t.For, want) {
				e.Errorf("%v is metered for %v, want %v", t.Address, t.For, want)
			}
		}
	}
}

// testAddressesRedirect: a VM that moves on takes its old addresses along.
func testAddressesRedirect(e *edgeTest) {
	e.ok(e.do(placedOwner, driver.RoleForwardOld))
	e.ok(e.driver.ForwardOld(e.Context(), placedOwner, e.forward(AddressesRemote2)))
	for _, p := range e.list() {
		if p.Remote != AddressesRemote2 || p.Missing {
			e.Errorf("after it moved on: %+v", p)
		}
	}
	other := e.forward(AddressesRemote)
	other.Addresses = []netip.Addr{netip.MustParseAddr("10.1.0.6")}
	e.ok(e.driver.ForwardOld(e.Context(), placedOther, other))
	e.ok(e.driver.Remove(e.Context(), placedOwner))
	if all := e.list(); len(all) != 1 || all[0].Owner != placedOther || all[0].Missing {
		e.Errorf("the other's: %+v", all)
	}
	e.ok(e.driver.Remove(e.Context(), placedOther))
	e.unchanged()
}

func testAddressesClose(e *edgeTest) {
	e.ok(e.do(placedOwner, driver.RoleElsewhere))
	e.ok(e.driver.Close())
	e.ok(e.driver.Close())
	e.kind(e.do(placedOwner, driver.RoleDeliver), drover.Canceled)
	_, err := e.driver.List(e.Context())
	e.kind(err, drover.Canceled)
	e.driver = e.Open(e.T)
	e.same(wanted(placedOwner, driver.RoleElsewhere), e.list())
	ctx, cancel := context.WithCancel(e.Context())
	cancel()
	e.kind(e.driver.Remove(ctx, placedOwner), drover.Canceled)
	e.same(wanted(placedOwner, driver.RoleElsewhere), e.list())
}
