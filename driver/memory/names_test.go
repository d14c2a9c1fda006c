package memory_test

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/driver/drivertest"
	"github.com/drover-vm/drover/driver/memory"
)

func TestNames(t *testing.T) {
	drivertest.Names(t, func(*testing.T) drivertest.NamesZone {
		const primary, secondary = "ns1.lab.test", "ns2.lab.test"
		z := memory.NewNameZone(memory.NameZoneConfig{Zone: "lab.test", Servers: []string{primary, secondary}})
		return drivertest.NamesZone{
			Zone:          "lab.test",
			Open:          func(*testing.T) driver.Names { return z.Open(true) },
			OpenWrongKey:  func(*testing.T) driver.Names { return z.Open(false) },
			Put:           func(_ *testing.T, name string, r driver.NameRecords) { z.Put(name, r) },
			PutText:       func(_ *testing.T, name, text string) { z.PutText(name, text) },
			Texts:         func(_ *testing.T, name string) []string { return z.Texts(name) },
			PutAlias:      func(_ *testing.T, name, target string) { z.PutAlias(name, target) },
			Serial:        func(*testing.T) uint32 { return z.Serial() },
			Lag:           func(*testing.T) { z.Lag(true) },
			Follow:        func(*testing.T) { z.Lag(false) },
			StopPrimary:   func(*testing.T) { z.SetDown(primary, true) },
			StartPrimary:  func(*testing.T) { z.SetDown(primary, false) },
			StopSecondary: func(*testing.T) { z.SetDown(secondary, true) },
		}
	})
}

// TestNamesFault: each operation asks first, under its documented name, and a
// fault changes nothing.
func TestNamesFault(t *testing.T) {
	fail := ""
	boom := drover.Errorf(drover.Unknown, "", "as told")
	z := memory.NewNameZone(memory.NameZoneConfig{Zone: "lab.test", Fault: func(op, _ string) error {
		if op == fail {
			return boom
		}
		return nil
	}})
	d, ctx, name := z.Open(true), t.Context(), "web1.lab.test"
	owner := driver.MoveOwner("m-1")
	list := []netip.Addr{netip.MustParseAddr("192.0.2.1")}
	for _, step := range []struct {
		op  string
		run func() error
	}{
		{"check", func() error { return d.Check(ctx) }},
		{"set", func() error { _, err := d.Set(ctx, owner, name, list, 0); return err }},
		{"lower", func() error { _, err := d.Lower(ctx, owner, name, time.Second); return err }},
		{"answers", func() error { _, err := d.Answers(ctx, name); return err }},
		{"answers", func() error { _, err := d.WaitAnswers(ctx, name, driver.NameRecords{Addresses: list}); return err }},
		{"owned", func() error { _, err := d.Owned(ctx, name); return err }},
		{"list", func() error { _, err := d.List(ctx); return err }},
		{"settle", func() error { return d.Settle(ctx, owner, name) }},
		{"restore", func() error { return d.Restore(ctx, owner, name) }},
	} {
		fail = step.op
		serial := z.Serial()
		if err := step.run(); !errors.Is(err, boom) || z.Serial() != serial {
			t.Fatalf("%s: got %v, want the fault and no change", step.op, err)
		}
		fail = ""
		if err := step.run(); err != nil {
			t.Fatalf("%s, after its fault: %v", step.op, err)
		}
	}
}
