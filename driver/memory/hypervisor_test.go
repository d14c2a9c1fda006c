package memory_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/driver/drivertest"
	"github.com/drover-vm/drover/driver/memory"
)

// newFleet returns two hosts, a and b.
func newFleet() (*memory.Fleet, [2]*memory.Hypervisor) {
	fleet := memory.NewFleet(nil)
	var hosts [2]*memory.Hypervisor
	for i, name := range []string{"a", "b"} {
		hosts[i] = fleet.AddHost(drover.Host{
			Name: name, UUID: "uuid-" + name, Arch: "x86_64", CPUModel: "Model-1", CPUs: 2, MemoryBytes: drover.GiB,
			HypervisorVersion: "10.0.2", ManagerVersion: "11.3.0", Accelerators: []string{"tcg"},
			Machines: []string{"pc-q35-10.0"}, Networks: []string{"br0"},
		})
	}
	return fleet, hosts
}

func testVM() drover.VM {
	return drover.VM{
		Name: "vm", UUID: "d0000000-0000-4000-8000-00000000000f",
		VCPUs: 1, MemoryBytes: 64 * drover.MiB, Machine: "pc-q35-10.0", Accelerator: "tcg",
		Disks: []drover.Disk{{Target: "vda", Path: "/images/vm.qcow2", Format: "qcow2", VirtualBytes: drover.MiB}},
	}
}

func must(t interface {
	Helper()
	Fatal(...any)
}, err error,
) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestHypervisorConformance(t *testing.T) {
	fleet, hosts := newFleet()
	setup := drivertest.HypervisorSetup{
		VM: drover.VM{VCPUs: 1, MemoryBytes: 64 * drover.MiB, Machine: "pc-q35-10.0", Accelerator: "tcg"},
		Define: func(_ *testing.T, vm drover.VM) driver.Definition {
			return memory.NewDefinition(vm)
		},
		DiskFolder: "/images",
		Stall: func(*testing.T) (<-chan struct{}, func()) {
			reached := make(chan struct{})
			var once sync.Once
			fleet.SetTransfer(func(ctx context.Context, _, _, _ string) error {
				once.Do(func() { close(reached) })
				<-ctx.Done()
				return ctx.Err()
			})
			return reached, func() { fleet.SetTransfer(nil) }
		},
	}
	for i, h := range hosts {
		name := string("ab"[i])
		setup.Hosts[i] = drivertest.HypervisorHost{
			Name:         name,
			Open:         func(*testing.T) driver.Hypervisor { return h },
			Crash:        func(*testing.T, driver.Hypervisor) { fleet.Crash(name) },
			StopManager:  func(*testing.T) { fleet.StopManager(name) },
			StartManager: func(*testing.T) { fleet.StartManager(name) },
			CreateDisk:   func(*testing.T, drover.VM, drover.Disk) {},
			MarkDisks: func(t *testing.T, vm drover.VM) {
				must(t, h.Start(t.Context(), vm.Name))
				must(t, fleet.Write(name, vm.Name))
				must(t, h.Destroy(t.Context(), vm.Name))
			},
			VerifyDisks: func(t *testing.T, vm drover.VM) {
				must(t, h.Start(t.Context(), vm.Name)) // the monitor compares
				must(t, h.Destroy(t.Context(), vm.Name))
			},
		}
	}
	drivertest.Hypervisor(t, setup)
	for _, violation := range fleet.Violations() {
		t.Error(violation)
	}
}

// running defines the VM at a and lets it run with a write acknowledged.
func running(t *testing.T) (*memory.Fleet, [2]*memory.Hypervisor, drover.VM) {
	fleet, hosts := newFleet()
	vm := testVM()
	_, err := hosts[0].Define(t.Context(), memory.NewDefinition(vm))
	must(t, err)
	must(t, hosts[0].Start(t.Context(), vm.Name))
	must(t, fleet.Write("a", vm.Name))
	return fleet, hosts, vm
}

// TestMonitor breaks each rule once, to see that the monitor notices.
func TestMonitor(t *testing.T) {
	t.Run("RunsTwice", func(t *testing.T) {
		fleet, hosts, vm := running(t)
		_, err := hosts[1].Define(t.Context(), memory.NewDefinition(vm))
		must(t, err)
		fleet.CopyDisk("/images/vm.qcow2", "a", "b")
		must(t, hosts[1].Start(t.Context(), vm.Name))
		wantViolation(t, fleet, "while it runs on a")
	})
	t.Run("LostWrites", func(t *testing.T) {
		fleet, hosts, vm := running(t)
		must(t, hosts[0].Destroy(t.Context(), vm.Name))
		_, err := hosts[1].Define(t.Context(), memory.NewDefinition(vm))
		must(t, err)
		must(t, hosts[1].Start(t.Context(), vm.Name))
		wantViolation(t, fleet, "0 of 1 acknowledged writes")
	})
	t.Run("DisksForgottenInAMove", func(t *testing.T) {
		fleet, hosts, vm := running(t)
		out, err := hosts[0].Begin(t.Context(), vm.Name, driver.MigrationSpec{Name: vm.Name})
		must(t, err)
		in, err := hosts[1].Prepare(t.Context(), driver.MigrationSpec{Name: vm.Name}, out.Offer())
		must(t, err)
		cookie, err := out.Perform(t.Context(), in.Prepared())
		must(t, err)
		_, err = in.Finish(t.Context(), cookie)
		must(t, err)
		wantViolation(t, fleet, "acknowledged writes")
	})
	t.Run("SourceResumedAfterFinish", func(t *testing.T) {
		fleet, hosts, vm := running(t)
		must(t, move(t.Context(), hosts[0], hosts[1], vm, func() {
			must(t, hosts[0].Settle(t.Context(), vm.Name, driver.SettleResume))
		}))
		wantViolation(t, fleet, "while it runs on b")
	})
}

func wantViolation(t *testing.T, fleet *memory.Fleet, text string) {
	t.Helper()
	for _, violation := range fleet.Violations() {
		if strings.Contains(violation, text) {
			return
		}
	}
	t.Errorf("violations %q are without %q", fleet.Violations(), text)
}

// move is a migration by the book: what a failure of each phase asks for is
// done. late runs between Finish and Confirm.
func move(ctx context.Context, from, to *memory.Hypervisor, vm drover.VM, late func()) error {
	spec := driver.MigrationSpec{Name: vm.Name, CopyDisks: []string{"vda"}}
	out, err := from.Begin(ctx, vm.Name, spec)
	if err != nil {
		return err
	}
	defer out.Close()
	in, err := to.Prepare(ctx, spec, out.Offer())
	if err != nil {
		return err
	}
	defer in.Close()
	cookie, err := out.Perform(ctx, in.Prepared())
	if err != nil {
		return err
	}
	finished, err := in.Finish(ctx, cookie)
	if err != nil {
		if drover.KindOf(err) == drover.Unknown {
			return err
		}
		return errors.Join(err, out.Confirm(ctx, nil, false))
	}
	if late != nil {
		late()
	}
	return out.Confirm(ctx, finished, true)
}

// TestFaults moves a VM to and fro with a fault struck at any call, settles
// what the fault left by looking at both hosts, and expects the VM to run
// exactly once with all its writes.
func TestFaults(t *testing.T) {
	ops := []string{"begin", "prepare", "perform", "finish", "confirm", "abandon", "none"}
	kinds := []drover.Kind{drover.Internal, drover.Unavailable, drover.Unknown}
	strikes := []string{"error", "crash source", "crash destination", "manager of source", "manager of destination"}
	rapid.Check(t, func(t *rapid.T) {
		ctx := context.Background()
		fleet, hosts := newFleet()
		vm := testVM()
		_, err := hosts[0].Define(ctx, memory.NewDefinition(vm))
		must(t, err)
		must(t, hosts[0].Start(ctx, vm.Name))
		at := 0
		for range rapid.IntRange(1, 6).Draw(t, "moves") {
			from, to := hosts[at], hosts[1-at]
			names := [2]string{"a", "b"}
			must(t, fleet.Write(names[at], vm.Name))
			op := rapid.SampledFrom(ops).Draw(t, "op")
			kind := rapid.SampledFrom(kinds).Draw(t, "kind")
			moment := rapid.SampledFrom([]memory.Moment{memory.Before, memory.After}).Draw(t, "moment")
			strike := rapid.SampledFrom(strikes).Draw(t, "strike")
			fleet.SetFault(func(_, gotOp, _ string, gotMoment memory.Moment) error {
				if gotOp != op || gotMoment != moment {
					return nil
				}
				switch strike {
				case "crash source":
					fleet.Crash(names[at])
				case "crash destination":
					fleet.Crash(names[1-at])
				case "manager of source":
					fleet.StopManager(names[at])
				case "manager of destination":
					fleet.StopManager(names[1-at])
				default:
					return drover.Errorf(kind, op, "struck")
				}
				return nil
			})
			moveErr := move(ctx, from, to, vm, nil)
			fleet.SetFault(nil)
			fleet.StartManager("a")
			fleet.StartManager("b")
			// The rule: where the destination runs it, the source gives it up;
			// where it does not, nothing stays there and the source runs on.
			there, err := to.VM(ctx, vm.Name)
			if err == nil && there.State == drover.VMRunning {
				must(t, from.Settle(ctx, vm.Name, driver.SettleGone))
				at = 1 - at
			} else {
				must(t, to.Settle(ctx, vm.Name, driver.SettleGone))
				must(t, from.Settle(ctx, vm.Name, driver.SettleResume))
			}
			if got := fleet.RunsAt(vm.Name); len(got) != 1 || got[0] != names[at] {
				t.Fatalf("after %v the vm runs at %v, want %s", moveErr, got, names[at])
			}
			for i, h := range hosts {
				if list, err := h.List(ctx); err != nil || (i == at) != (len(list) == 1) {
					t.Fatalf("after %v host %s has %v, %v", moveErr, names[i], list, err)
				}
			}
			if violations := fleet.Violations(); len(violations) > 0 {
				t.Fatal(fmt.Sprint(violations))
			}
		}
	})
}

func TestPowerOff(t *testing.T) {
	fleet, hosts, vm := running(t)
	fleet.PowerOff("a")
	if _, err := hosts[0].VM(t.Context(), vm.Name); drover.KindOf(err) != drover.Unavailable {
		t.Fatalf("a host without power answers: %v", err)
	}
	fleet.StartManager("a")
	must(t, hosts[0].Start(t.Context(), vm.Name))
	if violations := fleet.Violations(); len(violations) > 0 {
		t.Error(violations)
	}
}
