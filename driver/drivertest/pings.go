package drivertest

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// PingsSetup is what the conformance suite of driver.Pings needs to know of an
// implementation.
type PingsSetup struct {
	New func(t *testing.T) driver.Pings
	// Answers is a host that answers, Silent one that does not.
	Answers, Silent netip.Addr
}

// Pings runs the conformance suite.
func Pings(t *testing.T, setup PingsSetup) {
	p := setup.New(t)
	defer func() { succeed(t, p.Close()) }()
	const count = 5
	ask := func(ctx context.Context, to netip.Addr, n int, limit time.Duration) (driver.PingResult, error) {
		return p.Ping(ctx, to, n, time.Millisecond, limit)
	}
	// Two at a time take none of each other's answers.
	others := make(chan error, 1)
	go func() {
		_, err := ask(t.Context(), setup.Answers, count, suiteLimit)
		others <- err
	}()
	r, err := ask(t.Context(), setup.Answers, count, suiteLimit)
	succeed(t, err)
	succeed(t, <-others)
	if r.Sent != count || r.Received != count || len(r.Trips) != count {
		t.Fatalf("%+v, want %d answers", r, count)
	}
	for _, trip := range r.Trips {
		if trip <= 0 || trip > suiteLimit {
			t.Errorf("a round trip of %s", trip)
		}
	}
	_, err = ask(t.Context(), setup.Silent, 2, 50*time.Millisecond)
	failAs(t, err, drover.Unavailable)
	for _, bad := range []struct {
		to netip.Addr
		n  int
	}{{netip.Addr{}, 1}, {netip.IPv6Unspecified(), 1}, {netip.MustParseAddr("224.0.0.1"), 1}, {setup.Answers, 0}, {setup.Answers, driver.MaxPings + 1}} {
		_, err := ask(t.Context(), bad.to, bad.n, time.Second)
		failAs(t, err, drover.Invalid)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = ask(ctx, setup.Answers, 1, time.Second)
	failAs(t, err, drover.Canceled)
}
