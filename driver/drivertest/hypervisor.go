package drivertest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// HypervisorSetup is what the conformance suite of driver.Hypervisor needs to
// know of an implementation.
type HypervisorSetup struct {
	// Hosts are two hosts between which VMs can migrate.
	Hosts [2]HypervisorHost
	// VM is a small VM in the implementation's terms, without name, UUID and
	// disks; it runs without an operating system.
	VM drover.VM
	// Define makes a definition of a VM.
	Define func(t *testing.T, vm drover.VM) driver.Definition
	// DiskFolder is where disks are, by the same path on both hosts.
	DiskFolder string
	// Stall makes every transfer stop half way until release is called or it
	// is aborted; reached is closed when one has. Nil when the implementation
	// uses the sockets, whose relay the suite can stop itself.
	Stall func(t *testing.T) (reached <-chan struct{}, release func())
}

// HypervisorHost is one of the hosts.
type HypervisorHost struct {
	Name string
	// Open returns a driver for the host as another process would.
	Open func(t *testing.T) driver.Hypervisor
	// Crash ends a driver got from Open as if its process had been killed.
	Crash func(t *testing.T, h driver.Hypervisor)
	// StopManager kills the host's manager, StartManager starts it again.
	StopManager, StartManager func(t *testing.T)
	// CreateDisk makes an empty image, and the one below it, with the same
	// content on each host, where the disk has a backing image.
	CreateDisk func(t *testing.T, vm drover.VM, disk drover.Disk)
	// MarkDisks gives the disks of a VM that is defined and off a content that
	// VerifyDisks knows again.
	MarkDisks, VerifyDisks func(t *testing.T, vm drover.VM)
}

// suiteLimit bounds each wait of the suite for something that must come.
const suiteLimit = 60 * time.Second

// Hypervisor runs the conformance suite.
func Hypervisor(t *testing.T, setup HypervisorSetup) {
	tests := []struct {
		name string
		run  func(*testing.T, *fixture)
	}{
		{"Host", testHost},
		{"Lifecycle", testLifecycle},
		{"Missing", testMissing},
		{"Observe", testObserve},
		{"Watch", testWatch},
		{"Compatible", testCompatible},
		{"Concurrent", testConcurrent},
		{"Canceled", testCanceled},
		{"Migrate", testMigrate},
		{"MigrateTopOnly", testMigrateTopOnly},
		{"MigratePersistent", testMigratePersistent},
		{"DiskCopy", testDiskCopy},
		{"BeginRefused", testBeginRefused},
		{"PrepareRefused", testPrepareRefused},
		{"PrepareCanceled", testPrepareCanceled},
		{"Abandon", testAbandon},
		{"PerformFails", testPerformFails},
		{"PerformCanceledInMemory", testPerformCanceledInMemory},
		{"PerformCanceledInDisk", testPerformCanceledInDisk},
		{"CloseWhilePerforming", testCloseWhilePerforming},
		{"FinishRefused", testFinishRefused},
		{"GivenBack", testGivenBack},
		{"SourceClientDiesBeforePerform", testSourceDiesBeforePerform},
		{"SourceClientDiesInPerform", testSourceDiesInPerform},
		{"SourceClientDiesBeforeFinish", testSourceDiesBeforeFinish},
		{"SourceClientDiesBeforeConfirm", testSourceDiesBeforeConfirm},
		{"DestinationClientDiesBeforeFinish", testDestinationDiesBeforeFinish},
		{"DestinationClientDiesAfterFinish", testDestinationDiesAfterFinish},
		{"SettleOpenMigration", testSettleOpenMigration},
		{"ManagerRestart", testManagerRestart},
		{"SourceManagerDiesInPerform", testSourceManagerDiesInPerform},
		{"SourceManagerDiesBeforeFinish", testSourceManagerDiesBeforeFinish},
		{"DestinationManagerDiesBeforeFinish", testDestinationManagerDiesBeforeFinish},
	}
	for i, test := range tests {
		t.Run(test.name, func(t *testing.T) { test.run(t, newFixture(t, setup, i)) })
	}
}

// fixture is two fresh drivers and a VM of the test's own.
type fixture struct {
	HypervisorSetup
	a, b driver.Hypervisor
	vm   drover.VM
	disk drover.Disk
}

func newFixture(t *testing.T, setup HypervisorSetup, serial int) *fixture {
	f := &fixture{HypervisorSetup: setup}
	f.a, f.b = setup.Hosts[0].Open(t), setup.Hosts[1].Open(t)
	f.vm = setup.VM
	f.vm.Name = fmt.Sprintf("vm%d", serial)
	f.vm.UUID = fmt.Sprintf("d0000000-0000-4000-8000-%012d", serial)
	f.vm.Labels = map[string]string{"role": "test", "odd": `<"&>`}
	f.vm.Probe = &drover.ProbeTarget{TCP: "192.0.2.7:7", Kind: "line", HTTP: "http://192.0.2.7/"}
	f.disk = drover.Disk{
		Target: "vda", Path: setup.DiskFolder + "/" + f.vm.Name + ".qcow2", Format: "qcow2", VirtualBytes: 16 * drover.MiB,
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), suiteLimit)
		defer cancel()
		for i, host := range setup.Hosts {
			h := host.Open(t)
			if err := h.Settle(ctx, f.vm.Name, driver.SettleGone); err != nil {
				t.Errorf("take the vm away from host %d: %v", i, err)
			}
			succeed(t, h.Close())
		}
		succeed(t, f.a.Close())
		succeed(t, f.b.Close())
	})
	return f
}

// succeed fails the test on an error.
func succeed(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// failAs fails the test unless err is a drover.Error of that kind.
func failAs(t *testing.T, err error, want drover.Kind) {
	t.Helper()
	var shaped *drover.Error
	if !errors.As(err, &shaped) || shaped.Kind != want {
		t.Fatalf("error %v of kind %q, want kind %q", err, drover.KindOf(err), want)
	}
}

func wantState(t *testing.T, h driver.Hypervisor, name string, want drover.VMState) {
	t.Helper()
	vm, err := h.VM(t.Context(), name)
	succeed(t, err)
	if vm.State != want {
		t.Fatalf("%s is %s, want %s", name, vm.State, want)
	}
}

func wantGone(t *testing.T, h driver.Hypervisor, name string) {
	t.Helper()
	vm, err := h.VM(t.Context(), name)
	if err == nil {
		t.Fatalf("%s is there and %s, want it gone", name, vm.State)
	}
	failAs(t, err, drover.NotFound)
}

// eventually repeats f until it returns nil.
func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	deadline := time.Now().Add(suiteLimit)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// eventuallyGone waits until the VM is not known any more.
func eventuallyGone(t *testing.T, h driver.Hypervisor, name string) {
	t.Helper()
	eventually(t, "wait until "+name+" is gone", func() error {
		vm, err := h.VM(t.Context(), name)
		if err == nil {
			return fmt.Errorf("it is %s", vm.State)
		}
		if drover.KindOf(err) == drover.NotFound {
			return nil
		}
		return err
	})
}

func eventuallyState(t *testing.T, h driver.Hypervisor, name string, want drover.VMState) {
	t.Helper()
	eventually(t, "wait until "+name+" is "+string(want), func() error {
		vm, err := h.VM(t.Context(), name)
		if err == nil && vm.State != want {
			err = fmt.Errorf("it is %s", vm.State)
		}
		return err
	})
}

func testHost(t *testing.T, f *fixture) {
	var uuids []string
	for _, h := range []driver.Hypervisor{f.a, f.b} {
		host, err := h.Host(t.Context())
		succeed(t, err)
		if host.UUID == "" || host.Arch == "" || host.CPUModel == "" || host.HypervisorVersion == "" || host.ManagerVersion == "" {
			t.Errorf("a figure is missing: %+v", host)
		}
		if host.CPUs < 1 || host.MemoryBytes < 1 || host.MemoryFreeBytes < 1 || host.MemoryFreeBytes > host.MemoryBytes {
			t.Errorf("CPUs %d, memory %s, free %s", host.CPUs, host.MemoryBytes, host.MemoryFreeBytes)
		}
		if !slices.Contains(host.Accelerators, f.vm.Accelerator) {
			t.Errorf("accelerators %v are without %s", host.Accelerators, f.vm.Accelerator)
		}
		if !slices.Contains(host.Machines, f.vm.Machine) {
			t.Errorf("machines %v are without %s", host.Machines, f.vm.Machine)
		}
		uuids = append(uuids, host.UUID)
	}
	if uuids[0] == uuids[1] {
		t.Errorf("both hosts have UUID %s", uuids[0])
	}
}

func testLifecycle(t *testing.T, f *fixture) {
	ctx, name := t.Context(), f.vm.Name
	def := f.Define(t, f.vm)
	for range 2 {
		got, err := f.a.Define(ctx, def)
		succeed(t, err)
		if got != name {
			t.Fatalf("defined %q, want %q", got, name)
		}
	}
	wantState(t, f.a, name, drover.VMOff)
	twin := f.vm
	twin.UUID = "d1000000-0000-4000-8000-000000000000"
	_, err := f.a.Define(ctx, f.Define(t, twin))
	failAs(t, err, drover.Exists)
	alias := f.vm
	alias.Name += "-alias"
	_, err = f.a.Define(ctx, f.Define(t, alias))
	failAs(t, err, drover.Exists)
	_, err = f.a.Define(ctx, driver.Definition("not a definition"))
	failAs(t, err, drover.Invalid)

	succeed(t, f.a.Shutdown(ctx, name))
	succeed(t, f.a.Start(ctx, name))
	succeed(t, f.a.Start(ctx, name))
	wantState(t, f.a, name, drover.VMRunning)
	failAs(t, f.a.Undefine(ctx, name), drover.Refused)
	read, err := f.a.Definition(ctx, name)
	succeed(t, err)
	_, err = f.a.Define(ctx, read)
	succeed(t, err)
	succeed(t, f.a.Destroy(ctx, name))
	succeed(t, f.a.Destroy(ctx, name))
	wantState(t, f.a, name, drover.VMOff)

	_, err = f.b.Define(ctx, read)
	succeed(t, err)
	succeed(t, f.b.Start(ctx, name))
	wantState(t, f.b, name, drover.VMRunning)
	succeed(t, f.b.Destroy(ctx, name))
	for _, h := range []driver.Hypervisor{f.a, f.b} {
		succeed(t, h.Undefine(ctx, name))
		succeed(t, h.Undefine(ctx, name))
		wantGone(t, h, name)
	}
}

func testMissing(t *testing.T, f *fixture) {
	ctx, name := t.Context(), f.vm.Name
	_, err := f.a.VM(ctx, name)
	failAs(t, err, drover.NotFound)
	_, err = f.a.Definition(ctx, name)
	failAs(t, err, drover.NotFound)
	failAs(t, f.a.Start(ctx, name), drover.NotFound)
	failAs(t, f.a.Shutdown(ctx, name), drover.NotFound)
	succeed(t, f.a.Destroy(ctx, name))
	succeed(t, f.a.Undefine(ctx, name))
	succeed(t, f.a.Settle(ctx, name, driver.SettleGone))
	failAs(t, f.a.Settle(ctx, name, driver.SettleResume), drover.NotFound)
	_, err = f.a.Begin(ctx, name, newRoute(t).source(f.vm, false))
	failAs(t, err, drover.NotFound)
}

func testObserve(t *testing.T, f *fixture) {
	ctx := t.Context()
	f.vm.Disks = []drover.Disk{f.disk}
	f.Hosts[0].CreateDisk(t, f.vm, f.disk)
	_, err := f.a.Define(ctx, f.Define(t, f.vm))
	succeed(t, err)
	want := f.vm
	want.State, want.Persistent = drover.VMOff, true
	compare := func() {
		t.Helper()
		got, err := f.a.VM(ctx, f.vm.Name)
		succeed(t, err)
		if want.State == drover.VMRunning && got.Disks[0].VirtualBytes != f.disk.VirtualBytes {
			t.Errorf("the running VM's disk has %s, want %s", got.Disks[0].VirtualBytes, f.disk.VirtualBytes)
		}
		// Sizes are the Volumes' to know; CPU and files may be filled in.
		for _, vm := range []*drover.VM{&got, &want} {
			vm.Disks = slices.Clone(vm.Disks)
			vm.Disks[0].VirtualBytes, vm.Disks[0].AllocatedBytes, vm.CPU = 0, 0, ""
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("observed (-want +got):\n%s", diff)
		}
		list, err := f.a.List(ctx)
		succeed(t, err)
		if !slices.ContainsFunc(list, func(vm drover.VM) bool { return vm.UUID == f.vm.UUID && vm.State == want.State }) {
			t.Errorf("the list is without %s: %+v", f.vm.Name, list)
		}
	}
	compare()
	succeed(t, f.a.Start(ctx, f.vm.Name))
	want.State = drover.VMRunning
	compare()
}

func testWatch(t *testing.T, f *fixture) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	events, err := f.a.Watch(ctx)
	succeed(t, err)
	await := func(what ...string) {
		t.Helper()
		limit := time.After(suiteLimit)
		for {
			select {
			case event, ok := <-events:
				if !ok {
					t.Fatalf("the watch ended, want %v", what)
				}
				if event.Name == f.vm.Name && slices.Contains(what, event.What) {
					return
				}
			case <-limit:
				t.Fatalf("no event of %v", what)
			}
		}
	}
	_, err = f.a.Define(ctx, f.Define(t, f.vm))
	succeed(t, err)
	await("defined")
	succeed(t, f.a.Start(ctx, f.vm.Name))
	await("started", "resumed") // a later event takes an earlier one's place
	succeed(t, f.a.Destroy(ctx, f.vm.Name))
	await("stopped")
	// A reader that is slow still gets the last event of a name.
	for range 3 {
		succeed(t, f.a.Start(ctx, f.vm.Name))
		succeed(t, f.a.Destroy(ctx, f.vm.Name))
	}
	succeed(t, f.a.Undefine(ctx, f.vm.Name))
	await("undefined")
	cancel()
	eventually(t, "wait for the watch to end", func() error {
		select {
		case _, ok := <-events:
			if !ok {
				return nil
			}
		default:
		}
		return errors.New("it is open")
	})
}

func testCompatible(t *testing.T, f *fixture) {
	ctx := t.Context()
	source, err := f.a.Host(ctx)
	succeed(t, err)
	here, err := f.b.Host(ctx)
	succeed(t, err)
	tests := []struct {
		name   string
		change func(vm *drover.VM, source *drover.Host)
		fails  string
	}{
		{"plain", func(*drover.VM, *drover.Host) {}, ""},
		{"network", func(vm *drover.VM, _ *drover.Host) {
			vm.NICs = []drover.NIC{{MAC: "52:54:00:00:00:01", Network: "no-such-net", Model: "virtio"}}
		}, "network"},
		{"machine", func(vm *drover.VM, _ *drover.Host) { vm.Machine = "pc-q35-99.0" }, "machine"},
		{"files", func(vm *drover.VM, _ *drover.Host) { vm.Files = []string{"/no/such/kernel"} }, "files"},
		{"memory", func(vm *drover.VM, _ *drover.Host) { vm.MemoryBytes = here.MemoryBytes * 2 }, "memory"},
		{"accelerator", func(vm *drover.VM, _ *drover.Host) { vm.Accelerator = "xen" }, "accelerator"},
		{"cpu", func(vm *drover.VM, source *drover.Host) {
			vm.CPU, source.CPUModel = "host-passthrough", "Another-CPU"
		}, "cpu"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			vm, from := f.vm, source
			test.change(&vm, &from)
			checks, err := f.b.Compatible(ctx, f.Define(t, vm), from)
			succeed(t, err)
			seen := map[string]bool{}
			for _, c := range checks {
				seen[c.Name] = true
				wantOK := c.Name != test.fails
				// A machine type that nobody has fails other checks too.
				if c.OK != wantOK && !(test.name == "machine" && wantOK) {
					t.Errorf("check %+v, want ok %v", c, wantOK)
				}
				if c.Detail == "" && !c.OK || c.OK != (c.Fix == "") {
					t.Errorf("check %+v: want a detail, and a fix exactly when it is not ok", c)
				}
			}
			for _, name := range []string{"cpu", "machine", "qemu-version", "network", "files", "accelerator", "memory"} {
				if !seen[name] {
					t.Errorf("no check %s in %+v", name, checks)
				}
			}
		})
	}
	_, err = f.b.Compatible(ctx, driver.Definition("?"), source)
	failAs(t, err, drover.Invalid)
	wantGone(t, f.b, f.vm.Name)
}

func testConcurrent(t *testing.T, f *fixture) {
	ctx := t.Context()
	_, err := f.a.Define(ctx, f.Define(t, f.vm))
	succeed(t, err)
	succeed(t, f.a.Start(ctx, f.vm.Name))
	var wg sync.WaitGroup
	for i := range 24 {
		wg.Go(func() {
			var err error
			switch i % 4 {
			case 0:
				_, err = f.a.List(ctx)
			case 1:
				_, err = f.a.VM(ctx, f.vm.Name)
			case 2:
				_, err = f.a.Host(ctx)
			case 3:
				// One caller that gives up must not disturb the others.
				short, cancel := context.WithCancel(ctx)
				go cancel()
				_, _ = f.a.List(short)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func testCanceled(t *testing.T, f *fixture) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := f.a.List(ctx)
	failAs(t, err, drover.Canceled)
	_, err = f.a.Watch(ctx)
	failAs(t, err, drover.Canceled)
	_, err = f.a.Define(ctx, f.Define(t, f.vm))
	failAs(t, err, drover.Canceled)
	wantGone(t, f.a, f.vm.Name)
}

func testManagerRestart(t *testing.T, f *fixture) {
	ctx := t.Context()
	_, err := f.a.Define(ctx, f.Define(t, f.vm))
	succeed(t, err)
	succeed(t, f.a.Start(ctx, f.vm.Name))
	events, err := f.a.Watch(ctx)
	succeed(t, err)
	f.Hosts[0].StopManager(t)
	eventually(t, "wait for the watch to end", func() error {
		if _, ok := <-events; ok {
			return errors.New("it is open")
		}
		return nil
	})
	_, err = f.a.VM(ctx, f.vm.Name)
	failAs(t, err, drover.Unavailable)
	_, err = f.a.Begin(ctx, f.vm.Name, newRoute(t).source(f.vm, false))
	failAs(t, err, drover.Unavailable)
	f.Hosts[0].StartManager(t)
	eventuallyState(t, f.a, f.vm.Name, drover.VMRunning)
}
