package memory_test

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/driver/drivertest"
	"github.com/drover-vm/drover/driver/memory"
)

// edgeConfig is an edge at a router.
func edgeConfig(r *memory.Router, record *memory.RouteRecord, n byte) memory.RoutesConfig {
	return memory.RoutesConfig{
		Record: record, Routers: []*memory.Router{r},
		NextHop4: netip.AddrFrom4([4]byte{10, 0, n, 2}), NextHop6: netip.AddrFrom16([16]byte{0xfd, 13: n, 15: 2}),
	}
}

func TestRoutes(t *testing.T) {
	r := memory.NewRouter(netip.MustParseAddr("10.0.1.1"), 65000)
	record := &memory.RouteRecord{}
	cfg := edgeConfig(r, record, 1)
	drivertest.Routes(t, drivertest.RoutesSetup{
		Open:     func(*testing.T) driver.Routes { return memory.NewRoutes(cfg) },
		Table:    func(*testing.T) map[netip.Prefix]netip.Addr { return r.Table() },
		Session:  func(_ *testing.T, up bool) { r.SetSession(record, up) },
		NextHop4: cfg.NextHop4, NextHop6: cfg.NextHop6,
	})
}

// TestRoutesThereAndBack: the address goes to another edge and returns.
func TestRoutesThereAndBack(t *testing.T) {
	r := memory.NewRouter(netip.MustParseAddr("10.0.1.1"), 65000)
	a, b := memory.NewRoutes(edgeConfig(r, nil, 1)), memory.NewRoutes(edgeConfig(r, nil, 2))
	web, prefix := driver.VMOwner("web"), netip.MustParsePrefix("192.0.2.1/32")
	want := func(hop string) {
		t.Helper()
		if got := r.Table()[prefix]; got != netip.MustParseAddr(hop) {
			t.Fatalf("next hop %v, want %s", got, hop)
		}
	}
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ok(a.Announce(t.Context(), web, prefix))
	want("10.0.1.2")
	ok(b.Announce(t.Context(), web, prefix))
	want("10.0.1.2") // the first is used while both are there
	ok(a.Withdraw(t.Context(), web, prefix))
	want("10.0.2.2")
	ok(a.Announce(t.Context(), web, prefix))
	ok(b.Withdraw(t.Context(), web, prefix))
	want("10.0.1.2")
}

// TestRoutesFault: each operation asks first, and a fault changes nothing.
func TestRoutesFault(t *testing.T) {
	fail := ""
	boom := drover.Errorf(drover.Internal, "", "as told")
	cfg := edgeConfig(memory.NewRouter(netip.MustParseAddr("10.0.1.1"), 65000), nil, 1)
	cfg.Fault = func(op string) error {
		if op == fail {
			return boom
		}
		return nil
	}
	e := memory.NewRoutes(cfg)
	ctx, web, prefix := t.Context(), driver.VMOwner("web"), netip.MustParsePrefix("192.0.2.1/32")
	for _, step := range []struct {
		op  string
		run func() error
	}{
		{"announce", func() error { return e.Announce(ctx, web, prefix) }},
		{"list", func() error { _, err := e.List(ctx); return err }},
		{"neighbors", func() error { _, err := e.Neighbors(ctx); return err }},
		{"withdraw", func() error { return e.Withdraw(ctx, web, prefix) }},
	} {
		before := len(cfg.Routers[0].Table())
		fail = step.op
		if err := step.run(); !errors.Is(err, boom) {
			t.Fatalf("%s: got %v, want the fault", step.op, err)
		}
		if now := len(cfg.Routers[0].Table()); now != before {
			t.Fatalf("%s: %d routes after the fault, %d before", step.op, now, before)
		}
		fail = ""
		if err := step.run(); err != nil {
			t.Fatalf("%s, after its fault: %v", step.op, err)
		}
	}
}
