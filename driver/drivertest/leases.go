package drivertest

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// LeasesService is a DHCP service with the segments "blue" and "green", each
// with LeasesPool addresses of both families, and clients that ask it.
type LeasesService struct {
	// Pool are blue's addresses of both families, in order.
	Pool []netip.Addr
	// Open returns a driver of the service that the suite closes.
	Open func(t *testing.T) driver.Leases
	// Ask is a DHCP client of the segment with that MAC, which takes what it is
	// given for both families, in order; nothing when the pool is full.
	Ask func(t *testing.T, segment, mac string) []netip.Addr
	// Static is a reservation in blue that an administrator has made, outside
	// of the pool or in it.
	Static driver.Lease
	// Stop ends the service without a chance to save anything; Start starts it
	// again.
	Stop, Start func(t *testing.T)
}

// LeasesPool is how many addresses of each family a segment can give out.
const LeasesPool = 4

// Leases runs the conformance suite of driver.Leases. New makes a service
// without leases, which the test's cleanup ends.
func Leases(t *testing.T, newService func(t *testing.T) LeasesService) {
	for _, c := range []struct {
		name string
		run  func(*testing.T, *leasesCase)
	}{
		{"Reserve", leasesReserve},
		{"Wish", leasesWish},
		{"Repeat", leasesRepeat},
		{"Owners", leasesOwners},
		{"Used", leasesUsed},
		{"Exhausted", leasesExhausted},
		{"Avoid", leasesAvoid},
		{"Own", leasesOwn},
		{"Static", leasesStatic},
		{"Segments", leasesSegments},
		{"BadInput", leasesBadInput},
		{"Restart", leasesRestart},
		{"Concurrent", leasesConcurrent},
		{"CanceledAndClosed", leasesCanceledAndClosed},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newService(t)
			d := s.Open(t)
			t.Cleanup(func() { noError(t, d.Close()) })
			c.run(t, &leasesCase{LeasesService: s, d: d, t: t})
		})
	}
}

// leasesCase is one test's service and driver.
type leasesCase struct {
	LeasesService
	d driver.Leases
	t *testing.T
}

const (
	leasesOwnerA = driver.Owner("vm/6d0d1f1e-0000-4000-8000-00000000000a")
	leasesOwnerB = driver.Owner("move/m-2")
	leasesMAC    = "52:54:00:d0:00:01"
)

// stranger is the MAC of a client that is not Drover's.
func stranger(n int) string { return fmt.Sprintf("52:54:00:5a:00:%02x", n) }

func (c *leasesCase) reserve(owner driver.Owner, want driver.LeaseRequest) driver.Lease {
	c.t.Helper()
	l, err := c.d.Reserve(c.t.Context(), owner, want)
	noError(c.t, err)
	return l
}

func (c *leasesCase) listed(want ...driver.Lease) {
	c.t.Helper()
	got, err := c.d.List(c.t.Context())
	noError(c.t, err)
	c.same(got, want)
}

// same compares leases; IAIDs are not told by every service.
func (c *leasesCase) same(got, want []driver.Lease) {
	c.t.Helper()
	if len(got) == len(want) {
		got, want = slices.Clone(got), slices.Clone(want)
		for i := range got {
			if got[i].IAID == 0 {
				want[i].IAID = 0
			}
		}
	}
	if d := cmp.Diff(want, got, cmp.Comparer(sameAddr)); d != "" {
		c.t.Fatalf("leases (-want +got):\n%s", d)
	}
}

func (c *leasesCase) free(want int) {
	c.t.Helper()
	got, err := c.d.Free(c.t.Context(), "blue")
	noError(c.t, err)
	if n := uint64(want); got.V4 != n || got.V6 != n {
		c.t.Fatalf("free: %+v, want %d of each family", got, want)
	}
}

// asked fails unless a client gets exactly the addresses.
func (c *leasesCase) asked(segment, mac string, want []netip.Addr) {
	c.t.Helper()
	if got := c.Ask(c.t, segment, mac); !slices.Equal(got, want) {
		c.t.Fatalf("the client %s got %v, want %v", mac, got, want)
	}
}

// leasesReserve: a client gets what was reserved, whoever asked before it.
func leasesReserve(t *testing.T, c *leasesCase) {
	c.free(LeasesPool)
	want := driver.LeaseRequest{Segment: "blue", MAC: "52-54-00-D0-00-01", Hostname: "Web1"}
	got := c.reserve(leasesOwnerA, want)
	if len(got.Addresses) != 2 || !got.Addresses[0].Is4() || !got.Addresses[1].Is6() ||
		!slices.Contains(c.Pool, got.Addresses[0]) || !slices.Contains(c.Pool, got.Addresses[1]) {
		t.Fatalf("reserved %+v of %v", got, c.Pool)
	}
	if got.MAC != leasesMAC || got.Owner != leasesOwnerA || got.Segment != "blue" || got.Hostname != "web1" || len(got.DUID) == 0 {
		t.Fatalf("reserved %+v", got)
	}
	c.free(LeasesPool - 1)
	c.listed(got)
	if list := c.Ask(t, "blue", stranger(1)); len(list) != 2 || list[0] == got.Addresses[0] || list[1] == got.Addresses[1] {
		t.Fatalf("a stranger got %v of %v", list, got)
	}
	c.asked("blue", leasesMAC, got.Addresses)
	c.free(LeasesPool - 2)
	c.listed(got) // the client has taken it, and it is still marked
	c.asked("blue", leasesMAC, got.Addresses)
	c.listed(got)
	found, err := c.d.Find(t.Context(), leasesMAC)
	noError(t, err)
	c.same(found, []driver.Lease{got})
	found, err = c.d.Find(t.Context(), stranger(1))
	noError(t, err)
	if len(found) != 1 || found[0].Owner != "" || found[0].Segment != "blue" || len(found[0].Addresses) != 2 {
		t.Fatalf("of a stranger: %+v", found)
	}
	found, err = c.d.Find(t.Context(), stranger(9))
	noError(t, err)
	c.same(found, nil)
	noError(t, c.d.Release(t.Context(), leasesOwnerA, "blue", leasesMAC))
	c.listed()
}

// leasesWish: a wished address is what the client gets.
func leasesWish(t *testing.T, c *leasesCase) {
	for i, wish := range [][]netip.Addr{
		{c.Pool[1], c.Pool[LeasesPool+2]},
		{c.Pool[LeasesPool]},
		{c.Pool[0]},
	} {
		mac := fmt.Sprintf("52:54:00:d0:00:1%d", i)
		got := c.reserve(leasesOwnerA, driver.LeaseRequest{Segment: "blue", MAC: mac, Addresses: wish})
		for _, a := range wish {
			if !slices.Contains(got.Addresses, a) || len(got.Addresses) != 2 {
				t.Fatalf("wished %v, reserved %v", wish, got.Addresses)
			}
		}
		c.asked("blue", mac, got.Addresses)
	}
	c.free(LeasesPool - 3)
}

// leasesRepeat: the same again is the same, by another driver too.
func leasesRepeat(t *testing.T, c *leasesCase) {
	ctx := t.Context()
	want := driver.LeaseRequest{Segment: "blue", MAC: leasesMAC, Hostname: "web1"}
	first := c.reserve(leasesOwnerA, want)
	other := c.Open(t)
	defer func() { noError(t, other.Close()) }()
	for _, wish := range [][]netip.Addr{nil, first.Addresses, first.Addresses[1:]} {
		want.Addresses = wish
		again, err := other.Reserve(ctx, leasesOwnerA, want)
		noError(t, err)
		c.same([]driver.Lease{again}, []driver.Lease{first})
	}
	for _, a := range c.Pool {
		if slices.Contains(first.Addresses, a) {
			continue
		}
		want.Addresses = []netip.Addr{a}
		_, err := other.Reserve(ctx, leasesOwnerA, want)
		volumeKind(t, err, drover.Exists)
	}
	c.listed(first)
	for range 2 {
		noError(t, other.Release(ctx, leasesOwnerA, "blue", leasesMAC))
		c.free(LeasesPool)
	}
	noError(t, c.d.Release(ctx, leasesOwnerB, "green", stranger(1)))
}

// leasesOwners: what one owner has reserved is not another's.
func leasesOwners(t *testing.T, c *leasesCase) {
	ctx := t.Context()
	got := c.reserve(leasesOwnerA, driver.LeaseRequest{Segment: "blue", MAC: leasesMAC})
	_, err := c.d.Reserve(ctx, leasesOwnerB, driver.LeaseRequest{Segment: "blue", MAC: leasesMAC})
	volumeKind(t, err, drover.Exists)
	for _, a := range got.Addresses {
		_, err = c.d.Reserve(ctx, leasesOwnerB, driver.LeaseRequest{Segment: "blue", MAC: stranger(1), Addresses: []netip.Addr{a}})
		volumeKind(t, err, drover.Exists)
	}
	noError(t, c.d.Release(ctx, leasesOwnerB, "blue", leasesMAC))
	c.listed(got)
	c.free(LeasesPool - 1) // what failed for one family has left none of the other
}

// leasesUsed: an address that a client has by itself is not given away.
func leasesUsed(t *testing.T, c *leasesCase) {
	theirs := c.Ask(t, "blue", stranger(1))
	for _, a := range theirs {
		_, err := c.d.Reserve(t.Context(), leasesOwnerA, driver.LeaseRequest{Segment: "blue", MAC: leasesMAC, Addresses: []netip.Addr{a}})
		volumeKind(t, err, drover.Exists)
	}
	c.listed()
	got := c.reserve(leasesOwnerA, driver.LeaseRequest{Segment: "blue", MAC: leasesMAC})
	c.asked("blue", stranger(1), theirs)
	c.asked("blue", leasesMAC, got.Addresses)
}

// leasesExhausted: a full pool is said to be one, and nothing stays.
func leasesExhausted(t *testing.T, c *leasesCase) {
	ctx := t.Context()
	var held []driver.Lease
	for i := range LeasesPool {
		if i%2 == 0 {
			if got := c.Ask(t, "blue", stranger(i)); len(got) != 2 {
				t.Fatalf("the client got %v", got)
			}
			continue
		}
		held = append(held, c.reserve(leasesOwnerA, driver.LeaseRequest{Segment: "blue", MAC: stranger(i)}))
	}
	c.free(0)
	_, err := c.d.Reserve(ctx, leasesOwnerA, driver.LeaseRequest{Segment: "blue", MAC: leasesMAC})
	volumeKind(t, err, drover.Exhausted)
	c.listed(held...)
	noError(t, c.d.Release(ctx, leasesOwnerA, "blue", held[0].MAC))
	got := c.reserve(leasesOwnerB, driver.LeaseRequest{Segment: "blue", MAC: leasesMAC})
	if !slices.Equal(got.Addresses, held[0].Addresses) {
		t.Fatalf("reserved %v, only %v was free", got.Addresses, held[0].Addresses)
	}
	c.asked("blue", leasesMAC, got.Addresses)
}

// leasesAvoid: what is to be avoided is neither picked nor given to who has it or
// wishes it, and does not count as free.
func leasesAvoid(t *testing.T, c *leasesCase) {
	ctx := t.Context()
	refused := func(want driver.LeaseRequest) {
		t.Helper()
		_, err := c.d.Reserve(ctx, leasesOwnerA, want)
		volumeKind(t, err, drover.Exists)
		c.listed()
	}
	last := []netip.Addr{c.Pool[0], c.Pool[LeasesPool]}
	rest := slices.Concat(c.Pool[1:LeasesPool], c.Pool[LeasesPool+1:])
	want := driver.LeaseRequest{Segment: "blue", MAC: leasesMAC, Avoid: rest}
	for _, a := range rest {
		want.Addresses = []netip.Addr{a}
		refused(want)
	}
	n, err := c.d.Free(ctx, "blue", rest...)
	noError(t, err)
	if n.V4 != 1 || n.V6 != 1 {
		t.Fatalf("free: %+v, want one of each family", n)
	}
	want.Addresses = nil
	got := c.reserve(leasesOwnerA, want)
	if !slices.Equal(got.Addresses, last) {
		t.Fatalf("reserved %v, only %v was not to be avoided", got.Addresses, last)
	}
	c.asked("blue", leasesMAC, last)
	_, err = c.d.Reserve(ctx, leasesOwnerB, driver.LeaseRequest{Segment: "blue", MAC: stranger(1), Avoid: rest})
	volumeKind(t, err, drover.Exhausted)
	c.listed(got)
	noError(t, c.d.Release(ctx, leasesOwnerA, "blue", leasesMAC))
	own := c.Ask(t, "blue", stranger(2))
	for _, a := range own {
		refused(driver.LeaseRequest{Segment: "blue", MAC: stranger(2), Avoid: []netip.Addr{a}})
	}
	c.asked("blue", stranger(2), own)
}

// leasesOwn: a client's own addresses can be made sure of, and stay its own.
func leasesOwn(t *testing.T, c *leasesCase) {
	ctx := t.Context()
	own := c.Ask(t, "blue", leasesMAC)
	c.listed()
	got := c.reserve(leasesOwnerA, driver.LeaseRequest{Segment: "blue", MAC: leasesMAC})
	if !slices.Equal(got.Addresses, own) {
		t.Fatalf("the client has %v, reserved %v", own, got.Addresses)
	}
	c.listed(got)
	c.asked("blue", leasesMAC, own)
	noError(t, c.d.Release(ctx, leasesOwnerA, "blue", leasesMAC))
	c.listed()
	found, err := c.d.Find(ctx, leasesMAC)
	noError(t, err)
	if len(found) != 1 || found[0].Owner != "" || !slices.Equal(found[0].Addresses, own) {
		t.Fatalf("released, the client has %+v, had %v", found, own)
	}
	c.asked("blue", leasesMAC, own)
}

// leasesStatic: an administrator's reservation is seen and left alone.
func leasesStatic(t *testing.T, c *leasesCase) {
	ctx := t.Context()
	check := func() {
		t.Helper()
		found, err := c.d.Find(ctx, c.Static.MAC)
		noError(t, err)
		c.same(found, []driver.Lease{c.Static})
	}
	check()
	for _, a := range c.Static.Addresses {
		_, err := c.d.Reserve(ctx, leasesOwnerA, driver.LeaseRequest{Segment: "blue", MAC: leasesMAC, Addresses: []netip.Addr{a}})
		volumeKind(t, err, drover.Exists)
	}
	noError(t, c.d.Release(ctx, leasesOwnerA, "blue", c.Static.MAC))
	check()
	c.listed()
	if got := c.Ask(t, "blue", c.Static.MAC); !slices.Contains(got, c.Static.Addresses[0]) {
		t.Fatalf("its client got %v, want %v", got, c.Static.Addresses)
	}
}

// leasesSegments: a MAC may have something in each segment.
func leasesSegments(t *testing.T, c *leasesCase) {
	ctx := t.Context()
	blue := c.reserve(leasesOwnerA, driver.LeaseRequest{Segment: "blue", MAC: leasesMAC})
	green := c.reserve(leasesOwnerA, driver.LeaseRequest{Segment: "green", MAC: leasesMAC})
	c.listed(blue, green)
	found, err := c.d.Find(ctx, leasesMAC)
	noError(t, err)
	c.same(found, []driver.Lease{blue, green})
	c.asked("green", leasesMAC, green.Addresses)
	c.asked("blue", leasesMAC, blue.Addresses)
	noError(t, c.d.Release(ctx, leasesOwnerA, "blue", leasesMAC))
	c.listed(green)
	c.asked("green", leasesMAC, green.Addresses)
}

func leasesBadInput(t *testing.T, c *leasesCase) {
	ctx := t.Context()
	good := driver.LeaseRequest{Segment: "blue", MAC: leasesMAC}
	bad := func(kind drover.Kind, edit func(*driver.LeaseRequest)) {
		t.Helper()
		r := good
		edit(&r)
		_, err := c.d.Reserve(ctx, leasesOwnerA, r)
		volumeKind(t, err, kind)
	}
	for _, mac := range []string{"", "x", "52:54:00:d0:00", "52:54:00:d0:00:01:02:03", "00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01"} {
		bad(drover.Invalid, func(r *driver.LeaseRequest) { r.MAC = mac })
		volumeKind(t, c.d.Release(ctx, leasesOwnerA, "blue", mac), drover.Invalid)
		_, err := c.d.Find(ctx, mac)
		volumeKind(t, err, drover.Invalid)
	}
	for _, segment := range []string{"", "a/b", "../blue", "a b"} {
		bad(drover.Invalid, func(r *driver.LeaseRequest) { r.Segment = segment })
		volumeKind(t, c.d.Release(ctx, leasesOwnerA, segment, leasesMAC), drover.Invalid)
		_, err := c.d.Free(ctx, segment)
		volumeKind(t, err, drover.Invalid)
	}
	bad(drover.NotFound, func(r *driver.LeaseRequest) { r.Segment = "red" })
	volumeKind(t, c.d.Release(ctx, leasesOwnerA, "red", leasesMAC), drover.NotFound)
	_, err := c.d.Free(ctx, "red")
	volumeKind(t, err, drover.NotFound)
	for _, host := range []string{"a b", "-", "a..b", "<x/>", "a\"b", "ü"} {
		bad(drover.Invalid, func(r *driver.LeaseRequest) { r.Hostname = host })
	}
	for _, list := range [][]netip.Addr{
		{{}},
		addresses("0.0.0.0"), addresses("203.0.113.1"), addresses("2001:db8:ffff::1"), addresses("224.0.0.1"),
		addresses("127.0.0.1"), addresses("fe80::1"), c.Pool[:2],
	} {
		bad(drover.Invalid, func(r *driver.LeaseRequest) { r.Addresses = list })
	}
	bad(drover.Invalid, func(r *driver.LeaseRequest) { r.DUID = []byte{1} })
	bad(drover.Invalid, func(r *driver.LeaseRequest) { r.DUID = make([]byte, 200) })
	_, err = c.d.Reserve(ctx, "nobody", good)
	volumeKind(t, err, drover.Invalid)
	volumeKind(t, c.d.Release(ctx, "nobody", "blue", leasesMAC), drover.Invalid)
	c.listed()
	c.free(LeasesPool)
}

// leasesRestart: a service that is down says so; what was reserved outlives it
// and the driver.
func leasesRestart(t *testing.T, c *leasesCase) {
	ctx := t.Context()
	got := c.reserve(leasesOwnerA, driver.LeaseRequest{Segment: "blue", MAC: leasesMAC, Hostname: "web1"})
	c.Stop(t)
	_, err := c.d.Reserve(ctx, leasesOwnerA, driver.LeaseRequest{Segment: "blue", MAC: stranger(1)})
	volumeKind(t, err, drover.Unavailable)
	volumeKind(t, c.d.Release(ctx, leasesOwnerA, "blue", leasesMAC), drover.Unavailable)
	_, err = c.d.Find(ctx, leasesMAC)
	volumeKind(t, err, drover.Unavailable)
	_, err = c.d.List(ctx)
	volumeKind(t, err, drover.Unavailable)
	_, err = c.d.Free(ctx, "blue")
	volumeKind(t, err, drover.Unavailable)
	c.Start(t)
	c.listed(got)
	next := c.Open(t)
	defer func() { noError(t, next.Close()) }()
	list, err := next.List(ctx)
	noError(t, err)
	c.same(list, []driver.Lease{got})
	c.asked("blue", leasesMAC, got.Addresses)
	noError(t, next.Release(ctx, leasesOwnerA, "blue", leasesMAC))
	c.listed()
}

// leasesConcurrent: those who ask at once get different addresses.
func leasesConcurrent(t *testing.T, c *leasesCase) {
	other := c.Open(t)
	defer func() { noError(t, other.Close()) }()
	got := make([]driver.Lease, LeasesPool)
	errs := make([]error, LeasesPool)
	var wg sync.WaitGroup
	for i := range LeasesPool {
		d := c.d
		if i%2 == 1 {
			d = other
		}
		wg.Go(func() {
			got[i], errs[i] = d.Reserve(t.Context(), leasesOwnerA, driver.LeaseRequest{Segment: "blue", MAC: stranger(i)})
		})
	}
	wg.Wait()
	for i, err := range errs {
		if err != nil {
			t.Fatalf("reserve %d: %v", i, err)
		}
	}
	c.listed(got...)
	c.free(0)
	for _, l := range got[:2] {
		c.asked("blue", l.MAC, l.Addresses)
	}
}

func leasesCanceledAndClosed(t *testing.T, c *leasesCase) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	want := driver.LeaseRequest{Segment: "blue", MAC: leasesMAC}
	_, err := c.d.Reserve(ctx, leasesOwnerA, want)
	volumeKind(t, err, drover.Canceled)
	_, err = c.d.List(ctx)
	volumeKind(t, err, drover.Canceled)
	d := c.Open(t)
	got, err := d.Reserve(t.Context(), leasesOwnerA, want)
	noError(t, err)
	noError(t, d.Close())
	noError(t, d.Close())
	_, err = d.List(t.Context())
	volumeKind(t, err, drover.Canceled)
	c.listed(got)
}
