package drivertest

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// NamesZone is a zone on at least two authoritative servers, and what others
// than the driver do to it.
type NamesZone struct {
	// Zone is the zone's name.
	Zone string
	// Open returns a driver of the zone that the suite closes.
	Open func(t *testing.T) driver.Names
	// OpenWrongKey is Open with a key that the primary does not have.
	OpenWrongKey func(t *testing.T) driver.Names
	// Put replaces a name's addresses behind the driver's back.
	Put func(t *testing.T, name string, records driver.NameRecords)
	// PutText adds a TXT record with one string at a name.
	PutText func(t *testing.T, name, text string)
	// Texts returns the strings of the TXT records at a name.
	Texts func(t *testing.T, name string) []string
	// PutAlias makes a name an alias.
	PutAlias func(t *testing.T, name, target string)
	// Serial is a number that every change of the zone changes.
	Serial func(t *testing.T) uint32
	// Lag stops the servers' following the primary; Follow makes them follow
	// again.
	Lag, Follow func(t *testing.T)
	// StopPrimary ends the primary without a chance to save anything;
	// StartPrimary starts it again.
	StopPrimary, StartPrimary func(t *testing.T)
	// StopSecondary ends one that is not the primary.
	StopSecondary func(t *testing.T)
}

// Names runs the conformance suite of driver.Names. New makes an empty zone,
// which the test's cleanup ends.
func Names(t *testing.T, newZone func(t *testing.T) NamesZone) {
	for _, c := range []struct {
		name string
		run  func(*testing.T, *namesCase)
	}{
		{"Move", namesMove},
		{"Undo", namesUndo},
		{"Made", namesMade},
		{"OneFamily", namesOneFamily},
		{"Repeat", namesRepeat},
		{"Missing", namesMissing},
		{"OtherRecordsStay", namesOtherRecordsStay},
		{"ForeignChange", namesForeignChange},
		{"ForeignText", namesForeignText},
		{"Alias", namesAlias},
		{"Owners", namesOwners},
		{"BadInput", namesBadInput},
		{"WrongKey", namesWrongKey},
		{"CheckChangesNothing", namesCheckChangesNothing},
		{"Lagging", namesLagging},
		{"SecondaryDown", namesSecondaryDown},
		{"PrimaryDown", namesPrimaryDown},
		{"Restart", namesRestart},
		{"ManyAddresses", namesManyAddresses},
		{"Concurrent", namesConcurrent},
		{"Canceled", namesCanceled},
		{"Close", namesClose},
	} {
		t.Run(c.name, func(t *testing.T) {
			z := newZone(t)
			d := z.Open(t)
			t.Cleanup(func() { noError(t, d.Close()) })
			c.run(t, &namesCase{NamesZone: z, d: d, t: t})
		})
	}
}

// namesCase is one test's zone and driver.
type namesCase struct {
	NamesZone
	d driver.Names
	t *testing.T
}

const (
	namesOwnerA = driver.Owner("vm/6d0d1f1e-0000-4000-8000-00000000000a")
	namesOwnerB = driver.Owner("move/m-2")
	// namesWait is far longer than any server needs to follow.
	namesWait = 20 * time.Second
)

func (c *namesCase) name(label string) string { return label + "." + c.Zone }

func addresses(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, a := range list {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

// namesOld and namesNew are a name's records before and after a move.
var (
	namesOld = driver.NameRecords{
		Addresses: addresses("192.0.2.10", "2001:db8::10"), TTL4: time.Hour, TTL6: 2 * time.Hour,
	}
	namesNew = addresses("198.51.100.7", "2001:db8:1::7")
)

// answered waits until all servers answer the records, TTLs included.
func (c *namesCase) answered(name string, want driver.NameRecords) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), namesWait)
	defer cancel()
	answers, err := c.d.WaitAnswers(ctx, name, want)
	noError(c.t, err)
	if len(answers) < 2 {
		c.t.Fatalf("%d servers answer: %+v", len(answers), answers)
	}
	for _, a := range answers {
		if d := cmp.Diff(want, a.Records, cmp.Comparer(sameAddr)); d != "" {
			c.t.Fatalf("%s answers (-want +got):\n%s", a.Server, d)
		}
	}
}

func sameAddr(a, b netip.Addr) bool { return a == b }

// listed fails unless the zone has exactly the marks.
func (c *namesCase) listed(want ...driver.OwnedName) {
	c.t.Helper()
	got, err := c.d.List(c.t.Context())
	noError(c.t, err)
	if d := cmp.Diff(want, got, cmp.Comparer(sameAddr)); d != "" {
		c.t.Fatalf("marks (-want +got):\n%s", d)
	}
}

func (c *namesCase) lower(owner driver.Owner, name string, ttl time.Duration) driver.OwnedName {
	c.t.Helper()
	n, err := c.d.Lower(c.t.Context(), owner, name, ttl)
	noError(c.t, err)
	return n
}

func (c *namesCase) set(owner driver.Owner, name string, list []netip.Addr, ttl time.Duration) driver.OwnedName {
	c.t.Helper()
	n, err := c.d.Set(c.t.Context(), owner, name, list, ttl)
	noError(c.t, err)
	return n
}

// namesMove is a move's whole life: lowered, moved, settled.
func namesMove(t *testing.T, c *namesCase) {
	name := c.name("web1")
	c.Put(t, name, namesOld)
	c.answered(name, namesOld)
	lowered := c.lower(namesOwnerA, name, 5*time.Second)
	low := driver.NameRecords{Addresses: namesOld.Addresses, TTL4: 5 * time.Second, TTL6: 5 * time.Second}
	want := driver.OwnedName{Name: name, Owner: namesOwnerA, Before: namesOld, Now: low, Since: lowered.Since}
	if d := cmp.Diff(want, lowered, cmp.Comparer(sameAddr)); d != "" {
		t.Fatalf("Lower (-want +got):\n%s", d)
	}
	if time.Since(lowered.Since).Abs() > time.Hour {
		t.Fatalf("marked at %v", lowered.Since)
	}
	c.answered(name, low)
	c.listed(want)
	moved := c.set(namesOwnerA, name, namesNew, 5*time.Second)
	want.Now.Addresses = namesNew
	if d := cmp.Diff(want, moved, cmp.Comparer(sameAddr)); d != "" {
		t.Fatalf("Set (-want +got):\n%s", d)
	}
	c.answered(name, want.Now)
	c.listed(want)
	noError(t, c.d.Settle(t.Context(), namesOwnerA, name))
	c.answered(name, driver.NameRecords{Addresses: namesNew, TTL4: namesOld.TTL4, TTL6: namesOld.TTL6})
	c.listed()
	if _, err := c.d.Owned(t.Context(), name); drover.KindOf(err) != drover.NotFound {
		t.Fatalf("settled, and owned: %v", err)
	}
}

// namesUndo: whatever was done to a name, Restore puts it back.
func namesUndo(t *testing.T, c *namesCase) {
	name := c.name("web1")
	c.Put(t, name, namesOld)
	for _, steps := range [][]func(){
		{func() { c.lower(namesOwnerA, name, time.Second) }},
		{func() { c.set(namesOwnerA, name, namesNew, 0) }},
		{
			func() { c.lower(namesOwnerA, name, 3*time.Second) },
			func() { c.set(namesOwnerA, name, namesNew, 3*time.Second) },
			func() { c.set(namesOwnerA, name, namesNew[:1], 0) },
		},
	} {
		for _, step := range steps {
			step()
		}
		noError(t, c.d.Restore(t.Context(), namesOwnerA, name))
		c.answered(name, namesOld)
		c.listed()
	}
}

// namesMade: a name that was not there is made, and goes.
func namesMade(t *testing.T, c *namesCase) {
	name := c.name("burst1")
	got := c.set(namesOwnerB, name, namesNew, 0)
	made := driver.NameRecords{Addresses: namesNew, TTL4: driver.DefaultNameTTL, TTL6: driver.DefaultNameTTL}
	want := driver.OwnedName{Name: name, Owner: namesOwnerB, Now: made, Since: got.Since}
	c.answered(name, made)
	c.listed(want)
	noError(t, c.d.Restore(t.Context(), namesOwnerB, name))
	c.answered(name, driver.NameRecords{})
	c.listed()
	c.set(namesOwnerB, name, namesNew, time.Minute)
	noError(t, c.d.Settle(t.Context(), namesOwnerB, name))
	c.answered(name, driver.NameRecords{Addresses: namesNew, TTL4: time.Minute, TTL6: time.Minute})
}

// namesOneFamily: a family goes, and comes with the other's TTL.
func namesOneFamily(t *testing.T, c *namesCase) {
	name := c.name("four")
	old := driver.NameRecords{Addresses: addresses("192.0.2.10"), TTL4: time.Hour}
	c.Put(t, name, old)
	c.set(namesOwnerA, name, namesNew[1:], 0)
	c.answered(name, driver.NameRecords{Addresses: namesNew[1:], TTL6: time.Hour})
	noError(t, c.d.Restore(t.Context(), namesOwnerA, name))
	c.answered(name, old)
	c.set(namesOwnerA, name, namesNew, 0)
	noError(t, c.d.Settle(t.Context(), namesOwnerA, name))
	c.answered(name, driver.NameRecords{Addresses: namesNew, TTL4: time.Hour, TTL6: time.Hour})
}

// namesRepeat: everything done twice, by two drivers, is done once.
func namesRepeat(t *testing.T, c *namesCase) {
	name := c.name("web1")
	c.Put(t, name, namesOld)
	other := c.Open(t)
	defer func() { noError(t, other.Close()) }()
	ctx := t.Context()
	first := c.lower(namesOwnerA, name, 5*time.Second)
	serial := c.Serial(t)
	again, err := other.Lower(ctx, namesOwnerA, name, 5*time.Second)
	noError(t, err)
	if d := cmp.Diff(first, again, cmp.Comparer(sameAddr)); d != "" {
		t.Fatalf("Lower, again:\n%s", d)
	}
	// A higher TTL than there is does not raise it.
	if n := c.lower(namesOwnerA, name, time.Minute); n.Now.TTL4 != 5*time.Second {
		t.Fatalf("lowered to %v", n.Now.TTL4)
	}
	if now := c.Serial(t); now != serial {
		t.Fatalf("repeating changed the zone: serial %d, then %d", serial, now)
	}
	first = c.set(namesOwnerA, name, namesNew, 5*time.Second)
	serial = c.Serial(t)
	again, err = other.Set(ctx, namesOwnerA, name+".", append(addresses("::ffff:198.51.100.7"), namesNew[1], namesNew[1]), 5*time.Second)
	noError(t, err)
	if d := cmp.Diff(first, again, cmp.Comparer(sameAddr)); d != "" {
		t.Fatalf("Set, again:\n%s", d)
	}
	if now := c.Serial(t); now != serial {
		t.Fatalf("repeating changed the zone: serial %d, then %d", serial, now)
	}
	noError(t, c.d.Restore(ctx, namesOwnerA, name))
	serial = c.Serial(t)
	noError(t, other.Restore(ctx, namesOwnerA, name))
	noError(t, other.Settle(ctx, namesOwnerA, name))
	if now := c.Serial(t); now != serial {
		t.Fatalf("repeating changed the zone: serial %d, then %d", serial, now)
	}
	c.answered(name, namesOld)
}

func namesMissing(t *testing.T, c *namesCase) {
	ctx, name := t.Context(), c.name("nobody")
	_, err := c.d.Lower(ctx, namesOwnerA, name, time.Second)
	volumeKind(t, err, drover.NotFound)
	_, err = c.d.Owned(ctx, name)
	volumeKind(t, err, drover.NotFound)
	noError(t, c.d.Settle(ctx, namesOwnerA, name))
	noError(t, c.d.Restore(ctx, namesOwnerA, name))
	c.answered(name, driver.NameRecords{})
	c.listed()
}

// namesOtherRecordsStay: only addresses and the mark are touched.
func namesOtherRecordsStay(t *testing.T, c *namesCase) {
	name := c.name("web1")
	c.Put(t, name, namesOld)
	c.PutText(t, name, "v=spf1 -all")
	c.Put(t, c.name("a.web1"), namesOld)
	c.Put(t, c.name("web"), namesOld)
	c.lower(namesOwnerA, name, time.Second)
	c.set(namesOwnerA, name, namesNew, 0)
	noError(t, c.d.Restore(t.Context(), namesOwnerA, name))
	c.set(namesOwnerA, name, namesNew, 0)
	noError(t, c.d.Settle(t.Context(), namesOwnerA, name))
	if d := cmp.Diff([]string{"v=spf1 -all"}, c.Texts(t, name)); d != "" {
		t.Errorf("other records (-want +got):\n%s", d)
	}
	c.answered(c.name("a.web1"), namesOld)
	c.answered(c.name("web"), namesOld)
}

// namesForeignChange: what somebody else did since is never overwritten.
func namesForeignChange(t *testing.T, c *namesCase) {
	ctx, name := t.Context(), c.name("web1")
	theirs := driver.NameRecords{Addresses: addresses("203.0.113.99"), TTL4: time.Minute}
	for _, prepare := range []func(){
		func() { c.lower(namesOwnerA, name, time.Second) },
		func() { c.set(namesOwnerA, name, namesNew, 0) },
	} {
		c.Put(t, name, namesOld)
		prepare()
		mark, err := c.d.Owned(ctx, name)
		noError(t, err)
		for _, foreign := range []driver.NameRecords{theirs, {}} {
			c.Put(t, name, foreign)
			_, err := c.d.Lower(ctx, namesOwnerA, name, time.Second)
			volumeKind(t, err, drover.Refused)
			_, err = c.d.Set(ctx, namesOwnerA, name, addresses("198.51.100.8"), 0)
			volumeKind(t, err, drover.Refused)
			volumeKind(t, c.d.Restore(ctx, namesOwnerA, name), drover.Refused)
			c.answered(name, foreign)
			c.listed(mark) // for whoever has to look into it
		}
		c.Put(t, name, theirs)
		noError(t, c.d.Settle(ctx, namesOwnerA, name))
		c.answered(name, theirs)
		c.listed()
	}
}

// namesForeignText: a text at the mark's place that is not Drover's.
func namesForeignText(t *testing.T, c *namesCase) {
	ctx, name := t.Context(), c.name("web1")
	c.Put(t, name, namesOld)
	c.PutText(t, c.name("_drover.web1"), "drovers welcome")
	_, err := c.d.Lower(ctx, namesOwnerA, name, time.Second)
	volumeKind(t, err, drover.Refused)
	_, err = c.d.Set(ctx, namesOwnerA, name, namesNew, 0)
	volumeKind(t, err, drover.Refused)
	noError(t, c.d.Restore(ctx, namesOwnerA, name))
	noError(t, c.d.Settle(ctx, namesOwnerA, name))
	c.answered(name, namesOld)
	c.listed()
	if d := cmp.Diff([]string{"drovers welcome"}, c.Texts(t, c.name("_drover.web1"))); d != "" {
		t.Errorf("the text (-want +got):\n%s", d)
	}
}

func namesAlias(t *testing.T, c *namesCase) {
	ctx, name := t.Context(), c.name("www")
	c.Put(t, c.name("web1"), namesOld)
	c.PutAlias(t, name, c.name("web1"))
	_, err := c.d.Lower(ctx, namesOwnerA, name, time.Second)
	volumeKind(t, err, drover.Refused)
	_, err = c.d.Set(ctx, namesOwnerA, name, namesNew, 0)
	volumeKind(t, err, drover.Refused)
	c.answered(c.name("web1"), namesOld)
	c.listed()
}

// namesOwners: a name has one owner; what is another's is left alone.
func namesOwners(t *testing.T, c *namesCase) {
	ctx, name := t.Context(), c.name("web1")
	c.Put(t, name, namesOld)
	mark := c.lower(namesOwnerA, name, time.Second)
	_, err := c.d.Lower(ctx, namesOwnerB, name, time.Second)
	volumeKind(t, err, drover.Exists)
	_, err = c.d.Set(ctx, namesOwnerB, name, namesNew, 0)
	volumeKind(t, err, drover.Exists)
	noError(t, c.d.Restore(ctx, namesOwnerB, name))
	noError(t, c.d.Settle(ctx, namesOwnerB, name))
	c.listed(mark)
	made := c.set(namesOwnerB, c.name("app"), namesNew, 0)
	c.listed(made, mark)
	noError(t, c.d.Restore(ctx, namesOwnerA, name))
	c.listed(made)
	_, err = c.d.Set(ctx, namesOwnerB, name, namesNew, 0)
	noError(t, err)
}
