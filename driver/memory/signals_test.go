package memory_test

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/driver/drivertest"
	"github.com/drover-vm/drover/driver/memory"
)

func TestSignalsConformance(t *testing.T) {
	_, hosts := newFleet()
	h := hosts[0]
	off := testVM()
	off.Name, off.UUID = "off", "d0000000-0000-4000-8000-00000000000e"
	for _, vm := range []drover.VM{testVM(), off} {
		_, err := h.Define(t.Context(), memory.NewDefinition(vm))
		must(t, err)
	}
	must(t, h.Start(t.Context(), "vm"))
	pages := memory.NewPages(int64(testVM().MemoryBytes / driver.PageBytes))
	stamp := byte(0)
	write := func(page int64) {
		stamp++
		pages.Write(page, bytes.Repeat([]byte{stamp | 1}, driver.PageBytes))
	}
	for page := int64(0); page < 100; page++ {
		write(page * 3)
	}
	// The guest writes one page of two while it is looked at.
	pages.OnRead = func(page int64) {
		if page%6 == 0 {
			write(page)
		}
	}
	drivertest.Signals(t, drivertest.SignalsSetup{
		New: func(*testing.T) driver.Signals {
			s := memory.NewSignals(h, time.Millisecond)
			s.SetMemory("vm", pages)
			s.SetCounters("vm", driver.VMCounters{At: time.Unix(1, 0)})
			return s
		},
		Running: "vm", Off: "off", MemoryBytes: testVM().MemoryBytes,
		End: func(t *testing.T) { must(t, h.Destroy(t.Context(), "vm")) },
	})
}

func TestPingsConformance(t *testing.T) {
	p := memory.NewPings()
	here := netip.MustParseAddr("192.0.2.9")
	p.Set(here, time.Millisecond, 0)
	drivertest.Pings(t, drivertest.PingsSetup{
		New:     func(*testing.T) driver.Pings { return p },
		Answers: here, Silent: netip.MustParseAddr("192.0.2.1"),
	})
}
