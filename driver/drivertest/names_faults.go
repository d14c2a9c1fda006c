package drivertest

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

func namesBadInput(t *testing.T, c *namesCase) {
	ctx, name, serial := t.Context(), c.name("web1"), c.Serial(t)
	long := strings.Repeat("x", 64)
	for _, bad := range []string{
		"", ".", "web1", "web1.elsewhere.test", c.name("*"), c.name("-a"), c.name("a-"), c.name("a..b"), c.name("a b"),
		c.name(long), c.name(strings.Repeat(long[1:]+".", 4) + "x"), "x" + c.Zone, c.name("ü"), c.name("a\x00"), c.name(`a"`),
	} {
		_, err := c.d.Lower(ctx, namesOwnerA, bad, time.Second)
		volumeKind(t, err, drover.Invalid)
		_, err = c.d.Set(ctx, namesOwnerA, bad, namesNew, 0)
		volumeKind(t, err, drover.Invalid)
		_, err = c.d.Answers(ctx, bad)
		volumeKind(t, err, drover.Invalid)
		_, err = c.d.WaitAnswers(ctx, bad, namesOld)
		volumeKind(t, err, drover.Invalid)
		_, err = c.d.Owned(ctx, bad)
		volumeKind(t, err, drover.Invalid)
		volumeKind(t, c.d.Settle(ctx, namesOwnerA, bad), drover.Invalid)
		volumeKind(t, c.d.Restore(ctx, namesOwnerA, bad), drover.Invalid)
		volumeKind(t, c.d.Check(ctx, bad), drover.Invalid)
	}
	for _, owner := range []driver.Owner{"", "vm", "vm/", "host/x", "vm/a b"} {
		_, err := c.d.Lower(ctx, owner, name, time.Second)
		volumeKind(t, err, drover.Invalid)
		_, err = c.d.Set(ctx, owner, name, namesNew, 0)
		volumeKind(t, err, drover.Invalid)
		volumeKind(t, c.d.Settle(ctx, owner, name), drover.Invalid)
		volumeKind(t, c.d.Restore(ctx, owner, name), drover.Invalid)
	}
	var many []netip.Addr
	for i := range driver.MaxNameAddresses + 1 {
		many = append(many, netip.AddrFrom4([4]byte{10, 0, 1, byte(i)}))
	}
	for _, bad := range [][]netip.Addr{nil, {{}}, addresses("0.0.0.0"), addresses("::"), addresses("224.0.0.1"), addresses("fe80::1%eth0"), many} {
		_, err := c.d.Set(ctx, namesOwnerA, name, bad, 0)
		volumeKind(t, err, drover.Invalid)
	}
	for _, ttl := range []time.Duration{-1, 1, time.Second / 2, 1500 * time.Millisecond, 8 * 24 * time.Hour} {
		_, err := c.d.Set(ctx, namesOwnerA, name, namesNew, ttl)
		volumeKind(t, err, drover.Invalid)
		_, err = c.d.Lower(ctx, namesOwnerA, name, ttl)
		volumeKind(t, err, drover.Invalid)
	}
	if now := c.Serial(t); now != serial {
		t.Errorf("bad input changed the zone: serial %d, then %d", serial, now)
	}
}

// namesWrongKey: a key that the server does not have changes nothing.
func namesWrongKey(t *testing.T, c *namesCase) {
	ctx, name := t.Context(), c.name("web1")
	c.Put(t, name, namesOld)
	serial := c.Serial(t)
	wrong := c.OpenWrongKey(t)
	defer func() { noError(t, wrong.Close()) }()
	volumeKind(t, wrong.Check(ctx), drover.Denied)
	volumeKind(t, wrong.Check(ctx, name), drover.Denied)
	_, err := wrong.Lower(ctx, namesOwnerA, name, time.Second)
	volumeKind(t, err, drover.Denied)
	_, err = wrong.Set(ctx, namesOwnerA, name, namesNew, 0)
	volumeKind(t, err, drover.Denied)
	volumeKind(t, wrong.Restore(ctx, namesOwnerA, name), drover.Denied)
	volumeKind(t, wrong.Settle(ctx, namesOwnerA, name), drover.Denied)
	_, err = wrong.List(ctx)
	volumeKind(t, err, drover.Denied)
	_, err = wrong.Owned(ctx, name)
	volumeKind(t, err, drover.Denied)
	c.answered(name, namesOld)
	if now := c.Serial(t); now != serial {
		t.Errorf("the wrong key changed the zone: serial %d, then %d", serial, now)
	}
}

func namesCheckChangesNothing(t *testing.T, c *namesCase) {
	ctx, name := t.Context(), c.name("web1")
	c.Put(t, name, namesOld)
	mark := c.lower(namesOwnerA, name, time.Second)
	serial := c.Serial(t)
	noError(t, c.d.Check(ctx))
	noError(t, c.d.Check(ctx, name, c.name("missing"), c.Zone))
	if now := c.Serial(t); now != serial {
		t.Errorf("Check changed the zone: serial %d, then %d", serial, now)
	}
	c.listed(mark)
	c.answered(name, mark.Now)
}

// namesLagging: a server that does not follow is told by its name, and waited for.
func namesLagging(t *testing.T, c *namesCase) {
	name := c.name("web1")
	c.Put(t, name, namesOld)
	c.answered(name, namesOld)
	c.Lag(t)
	moved := c.set(namesOwnerA, name, namesNew, time.Second)
	answers, err := c.d.Answers(t.Context(), name)
	noError(t, err)
	old, current := 0, 0
	for _, a := range answers {
		switch {
		case moved.Now.Answer(a.Records):
			current++
		case namesOld.Answer(a.Records):
			old++
		}
	}
	if old == 0 || current == 0 || old+current != len(answers) {
		t.Fatalf("with servers that lag: %+v", answers)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	answers, err = c.d.WaitAnswers(ctx, name, moved.Now)
	volumeKind(t, err, drover.Unavailable)
	if len(answers) != old+current {
		t.Fatalf("the last answers: %+v", answers)
	}
	for _, a := range answers {
		if namesOld.Answer(a.Records) != strings.Contains(err.Error(), a.Server) {
			t.Errorf("the error does not tell who lags: %v; %+v", err, answers)
		}
	}
	done := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(t.Context(), namesWait)
		defer cancel()
		_, err := c.d.WaitAnswers(ctx, name, moved.Now)
		done <- err
	}()
	c.Follow(t)
	noError(t, <-done)
}

// namesSecondaryDown: a server that is down hinders no change, and is told.
func namesSecondaryDown(t *testing.T, c *namesCase) {
	name := c.name("web1")
	c.Put(t, name, namesOld)
	c.answered(name, namesOld)
	c.StopSecondary(t)
	moved := c.set(namesOwnerA, name, namesNew, 0)
	answers, err := c.d.Answers(t.Context(), name)
	noError(t, err)
	faults := 0
	for _, a := range answers {
		if a.Fault != "" {
			faults++
		}
	}
	if faults != 1 {
		t.Fatalf("one server is down, %d faults: %+v", faults, answers)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err = c.d.WaitAnswers(ctx, name, moved.Now)
	volumeKind(t, err, drover.Unavailable)
}

func namesPrimaryDown(t *testing.T, c *namesCase) {
	ctx, name := t.Context(), c.name("web1")
	c.Put(t, name, namesOld)
	c.StopPrimary(t)
	volumeKind(t, c.d.Check(ctx), drover.Unavailable)
	_, err := c.d.Lower(ctx, namesOwnerA, name, time.Second)
	volumeKind(t, err, drover.Unavailable)
	_, err = c.d.Set(ctx, namesOwnerA, name, namesNew, 0)
	volumeKind(t, err, drover.Unavailable)
	volumeKind(t, c.d.Restore(ctx, namesOwnerA, name), drover.Unavailable)
	volumeKind(t, c.d.Settle(ctx, namesOwnerA, name), drover.Unavailable)
	_, err = c.d.List(ctx)
	volumeKind(t, err, drover.Unavailable)
	c.StartPrimary(t)
	noError(t, c.d.Check(ctx))
	c.set(namesOwnerA, name, namesNew, 0)
}

// namesRestart: a primary that crashes keeps what was set, and a new driver
// finds its own again.
func namesRestart(t *testing.T, c *namesCase) {
	name := c.name("web1")
	c.Put(t, name, namesOld)
	c.lower(namesOwnerA, name, time.Second)
	moved := c.set(namesOwnerA, name, namesNew, time.Second)
	c.StopPrimary(t)
	c.StartPrimary(t)
	c.listed(moved)
	next := c.Open(t)
	defer func() { noError(t, next.Close()) }()
	c.d = &borrowed{next}
	c.listed(moved)
	c.answered(name, moved.Now)
	noError(t, next.Restore(t.Context(), namesOwnerA, name))
	c.answered(name, namesOld)
	c.listed()
}

// borrowed is a driver that somebody else closes.
type borrowed struct{ driver.Names }

func (borrowed) Close() error { return nil }

// namesManyAddresses: as many as are allowed fit into the mark.
func namesManyAddresses(t *testing.T, c *namesCase) {
	name := c.name("web1")
	var before, after []netip.Addr
	for i := range driver.MaxNameAddresses {
		before = append(before, netip.MustParseAddr(fmt.Sprintf("2001:db8:1111:2222:3333:4444:5555:%x", 0x1000+i)))
		after = append(after, netip.MustParseAddr(fmt.Sprintf("2001:db8:aaaa:2222:3333:4444:5555:%x", 0x1000+i)))
	}
	old := driver.NameRecords{Addresses: before, TTL6: time.Hour}
	c.Put(t, name, old)
	mark := c.set(namesOwnerA, name, after, time.Minute)
	c.answered(name, mark.Now)
	c.listed(mark)
	noError(t, c.d.Restore(t.Context(), namesOwnerA, name))
	c.answered(name, old)
}

// namesConcurrent: of two owners that want a name at once one gets it.
func namesConcurrent(t *testing.T, c *namesCase) {
	name := c.name("web1")
	c.Put(t, name, namesOld)
	owners := []driver.Owner{namesOwnerA, namesOwnerB, "move/m-3", "move/m-4"}
	errs := make([]error, len(owners))
	var wg sync.WaitGroup
	for i, owner := range owners {
		wg.Go(func() { _, errs[i] = c.d.Set(t.Context(), owner, name, namesNew, 0) })
	}
	wg.Wait()
	mark, err := c.d.Owned(t.Context(), name)
	noError(t, err)
	for i, owner := range owners {
		kind := drover.KindOf(errs[i])
		if won := errs[i] == nil; won != (mark.Owner == owner) || !won && kind != drover.Exists && kind != drover.Refused {
			t.Errorf("%s has it; %s: %v", mark.Owner, owner, errs[i])
		}
	}
	noError(t, c.d.Restore(t.Context(), mark.Owner, name))
	c.answered(name, namesOld)
}

func namesCanceled(t *testing.T, c *namesCase) {
	name := c.name("web1")
	c.Put(t, name, namesOld)
	serial := c.Serial(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	volumeKind(t, c.d.Check(ctx), drover.Canceled)
	_, err := c.d.Lower(ctx, namesOwnerA, name, time.Second)
	volumeKind(t, err, drover.Canceled)
	_, err = c.d.Set(ctx, namesOwnerA, name, namesNew, 0)
	volumeKind(t, err, drover.Canceled)
	_, err = c.d.Answers(ctx, name)
	volumeKind(t, err, drover.Canceled)
	_, err = c.d.WaitAnswers(ctx, name, namesOld)
	volumeKind(t, err, drover.Canceled)
	_, err = c.d.List(ctx)
	volumeKind(t, err, drover.Canceled)
	if now := c.Serial(t); now != serial {
		t.Errorf("serial %d, then %d", serial, now)
	}
}

// namesClose: a closed driver refuses, and what it did stays.
func namesClose(t *testing.T, c *namesCase) {
	name := c.name("web1")
	c.Put(t, name, namesOld)
	d := c.Open(t)
	mark, err := d.Lower(t.Context(), namesOwnerA, name, time.Second)
	noError(t, err)
	noError(t, d.Close())
	noError(t, d.Close())
	volumeKind(t, d.Check(t.Context()), drover.Canceled)
	_, err = d.List(t.Context())
	volumeKind(t, err, drover.Canceled)
	c.listed(mark)
}
