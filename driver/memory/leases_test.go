package memory_test

import (
	"errors"
	"net/netip"
	"slices"
	"testing"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/driver/drivertest"
	"github.com/drover-vm/drover/driver/memory"
)

// addressRange returns n addresses from first on.
func addressRange(first string, n int) []netip.Addr {
	var list []netip.Addr
	for a := netip.MustParseAddr(first); n > 0; n-- {
		list = append(list, a)
		a = a.Next()
	}
	return list
}

func TestLeases(t *testing.T) {
	drivertest.Leases(t, func(*testing.T) drivertest.LeasesService {
		both := func(four, six string) []netip.Addr {
			return slices.Concat(addressRange(four, drivertest.LeasesPool), addressRange(six, drivertest.LeasesPool))
		}
		blue := both("10.77.1.10", "fd77:1::10")
		static := driver.Lease{
			Segment: "blue", MAC: "52:54:00:00:00:99", Hostname: "printer",
			Addresses: []netip.Addr{netip.MustParseAddr("10.77.1.99")},
		}
		s := memory.NewLeaseService(memory.LeaseServiceConfig{
			Segments: map[string][]netip.Addr{"blue": blue, "green": both("10.77.2.10", "fd77:2::10")},
			Static:   []driver.Lease{static},
		})
		return drivertest.LeasesService{
			Pool:   blue,
			Static: static,
			Open:   func(*testing.T) driver.Leases { return s.Open() },
			Ask:    func(_ *testing.T, segment, mac string) []netip.Addr { return s.Ask(segment, mac) },
			Stop:   func(*testing.T) { s.SetDown(true) },
			Start:  func(*testing.T) { s.SetDown(false) },
		}
	})
}

// TestLeasesFault: each operation asks first, under its documented name, and a
// fault changes nothing.
func TestLeasesFault(t *testing.T) {
	fail := ""
	boom := drover.Errorf(drover.Unavailable, "", "as told")
	s := memory.NewLeaseService(memory.LeaseServiceConfig{
		Segments: map[string][]netip.Addr{"blue": addressRange("10.0.0.1", 1)},
		Fault: func(op, _ string) error {
			if op == fail {
				return boom
			}
			return nil
		},
	})
	d, ctx, owner, mac := s.Open(), t.Context(), driver.MoveOwner("m-1"), "52:54:00:00:00:01"
	for _, step := range []struct {
		op    string
		run   func() error
		after int // leases after it
	}{
		{"reserve", func() error {
			_, err := d.Reserve(ctx, owner, driver.LeaseRequest{Segment: "blue", MAC: mac})
			return err
		}, 1},
		{"find", func() error { _, err := d.Find(ctx, mac); return err }, 1},
		{"list", func() error { _, err := d.List(ctx); return err }, 1},
		{"free", func() error { _, err := d.Free(ctx, "blue"); return err }, 1},
		{"release", func() error { return d.Release(ctx, owner, "blue", mac) }, 0},
	} {
		before, err := d.List(ctx)
		if err != nil {
			t.Fatal(err)
		}
		fail = step.op
		if err := step.run(); !errors.Is(err, boom) {
			t.Fatalf("%s: got %v, want the fault", step.op, err)
		}
		fail = ""
		if now, _ := d.List(ctx); len(now) != len(before) {
			t.Fatalf("%s: the fault changed %v to %v", step.op, before, now)
		}
		if err := step.run(); err != nil {
			t.Fatalf("%s, after its fault: %v", step.op, err)
		}
		if now, _ := d.List(ctx); len(now) != step.after {
			t.Fatalf("%s: %v", step.op, now)
		}
	}
}
