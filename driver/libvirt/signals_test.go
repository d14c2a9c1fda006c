package libvirt_test

import (
	"fmt"
	"log/slog"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/driver/drivertest"
	"github.com/drover-vm/drover/driver/libvirt"
	"github.com/drover-vm/drover/lab/guest/control"
)

// sheepMemory is what guestXML gives a guest.
const sheepMemory = 128 * drover.MiB

// testSignals runs the suite on a guest that writes to its memory, and checks
// what libvirt's figures mean. It ends the guest.
func testSignals(t *testing.T, h *guestHost, hv driver.Hypervisor, vm string, inside *control.Client) {
	until(t, "memory writer starts", func() error {
		return inside.StartMemory(t.Context(), control.Memory{WorkingSetBytes: 8 << 20, RateBytesPerS: 4 << 20})
	})
	proc := filepath.Join("/proc", strconv.Itoa(h.cmd.Process.Pid), "root/proc")
	open := func(t *testing.T) driver.Signals {
		log := slog.New(slog.NewTextHandler(testLog{t}, &slog.HandlerOptions{Level: slog.LevelDebug}))
		return libvirt.NewSignals(log, h.socket(), libvirt.SignalsConfig{Proc: proc, Run: filepath.Join(h.folder, "run/libvirt/qemu")})
	}
	t.Run("Received", func(t *testing.T) { testReceived(t, h, vm, open(t)) })
	drivertest.Signals(t, drivertest.SignalsSetup{
		New: open, Running: vm, Off: offVM.Name, MemoryBytes: sheepMemory,
		End: func(t *testing.T) {
			if err := hv.Destroy(t.Context(), vm); err != nil {
				t.Fatal(err)
			}
		},
	})
}

// testReceived sends a guest more than it answers: which direction is which?
func testReceived(t *testing.T, h *guestHost, vm string, s driver.Signals) {
	t.Cleanup(func() { _ = s.Close() })
	read := func() driver.VMCounters {
		all, err := s.Counters(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range all {
			if c.Name == vm {
				return c
			}
		}
		t.Fatalf("no counters of %s", vm)
		return driver.VMCounters{}
	}
	before := read()
	const bytes = 1 << 20
	h.run(t, "bash", "-c", "head -c "+strconv.Itoa(bytes)+" /dev/zero > /dev/udp/192.0.2.10/9")
	// An emulated guest takes only some of what comes at once, and that when it gets
	// to run: what waits for it is not received yet.
	until(t, "the guest receives what it was sent", func() error {
		after := read()
		received, sent := after.ReceivedBytes-before.ReceivedBytes, after.SentBytes-before.SentBytes
		if received < bytes/32 || sent > received/2 {
			return fmt.Errorf("%d bytes were sent to the guest: it received %s and sent %s", bytes, received, sent)
		}
		return nil
	})
}
