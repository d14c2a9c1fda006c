package drivertest

import (
	"testing"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// crashSource ends the source's client and relays and opens another.
func (f *fixture) crashSource(t *testing.T, tr *trip) {
	f.Hosts[0].Crash(t, f.a)
	tr.route.cut()
	f.a = f.Hosts[0].Open(t)
}

func testSourceDiesBeforePerform(t *testing.T, f *fixture) {
	f.run(t, false)
	tr := f.prepare(t)
	f.crashSource(t, tr)
	succeed(t, tr.in.Close())
	succeed(t, f.a.Settle(t.Context(), f.vm.Name, driver.SettleResume))
	f.wantStays(t)
}

func testSourceDiesInPerform(t *testing.T, f *fixture) {
	f.run(t, false)
	tr := f.prepare(t)
	reached := tr.stall(t, true)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = tr.out.Perform(t.Context(), tr.in.Prepared())
	}()
	<-reached
	f.Hosts[0].Crash(t, f.a)
	// The relays are still there: the transfer is the next life's to abort.
	f.a = f.Hosts[0].Open(t)
	for range 2 {
		succeed(t, f.a.Settle(t.Context(), f.vm.Name, driver.SettleResume))
	}
	wantState(t, f.a, f.vm.Name, drover.VMRunning)
	succeed(t, tr.in.Close())
	tr.route.cut()
	<-ended
	wantState(t, f.a, f.vm.Name, drover.VMRunning)
	wantGone(t, f.b, f.vm.Name)
}

func testSourceDiesBeforeFinish(t *testing.T, f *fixture) {
	f.run(t, true)
	tr := f.perform(t)
	f.crashSource(t, tr)
	wantState(t, f.a, f.vm.Name, drover.VMPaused)
	// The destination is told to give up; then the source may run on.
	succeed(t, tr.in.Abandon(t.Context()))
	wantGone(t, f.b, f.vm.Name)
	wantState(t, f.a, f.vm.Name, drover.VMPaused)
	for range 2 {
		succeed(t, f.a.Settle(t.Context(), f.vm.Name, driver.SettleResume))
	}
	f.wantMovable(t)
}

func testSourceDiesBeforeConfirm(t *testing.T, f *fixture) {
	f.run(t, true)
	tr := f.finishes(t)
	f.crashSource(t, tr)
	wantState(t, f.a, f.vm.Name, drover.VMPaused)
	for range 2 {
		succeed(t, f.a.Settle(t.Context(), f.vm.Name, driver.SettleGone))
	}
	f.wantMoved(t)
}

func testDestinationDiesBeforeFinish(t *testing.T, f *fixture) {
	f.run(t, true)
	tr := f.perform(t)
	f.Hosts[1].Crash(t, f.b)
	f.b = f.Hosts[1].Open(t)
	eventuallyGone(t, f.b, f.vm.Name)
	failAs(t, f.b.Settle(t.Context(), f.vm.Name, driver.SettleResume), drover.NotFound)
	succeed(t, f.b.Settle(t.Context(), f.vm.Name, driver.SettleGone))
	succeed(t, tr.out.Confirm(t.Context(), nil, false))
	succeed(t, tr.out.Close())
	f.wantStays(t)
}

func testDestinationDiesAfterFinish(t *testing.T, f *fixture) {
	f.run(t, true)
	tr := f.finishes(t)
	f.Hosts[1].Crash(t, f.b)
	f.b = f.Hosts[1].Open(t)
	for range 2 {
		succeed(t, f.b.Settle(t.Context(), f.vm.Name, driver.SettleResume))
	}
	succeed(t, tr.out.Confirm(t.Context(), tr.finish, true))
	f.wantMoved(t)
	succeed(t, f.b.Settle(t.Context(), f.vm.Name, driver.SettleGone))
	wantGone(t, f.b, f.vm.Name)
}

func testSettleOpenMigration(t *testing.T, f *fixture) {
	f.run(t, false)
	tr := f.perform(t)
	succeed(t, f.b.Settle(t.Context(), f.vm.Name, driver.SettleGone))
	wantGone(t, f.b, f.vm.Name)
	succeed(t, f.a.Settle(t.Context(), f.vm.Name, driver.SettleResume))
	succeed(t, tr.in.Close())
	succeed(t, tr.out.Close())
	f.wantStays(t)
}

// restart kills a host's manager and starts it again.
func restart(t *testing.T, host HypervisorHost, h driver.Hypervisor) {
	t.Helper()
	host.StopManager(t)
	host.StartManager(t)
	eventually(t, "wait for the manager", func() error {
		_, err := h.List(t.Context())
		return err
	})
}

func testSourceManagerDiesInPerform(t *testing.T, f *fixture) {
	f.run(t, false)
	tr := f.prepare(t)
	reached := tr.stall(t, true)
	ended := make(chan error, 1)
	go func() {
		_, err := tr.out.Perform(t.Context(), tr.in.Prepared())
		ended <- err
	}()
	<-reached
	restart(t, f.Hosts[0], f.a)
	failAs(t, <-ended, drover.Unavailable)
	wantState(t, f.a, f.vm.Name, drover.VMRunning)
	succeed(t, tr.in.Close())
	wantGone(t, f.b, f.vm.Name)
}

func testSourceManagerDiesBeforeFinish(t *testing.T, f *fixture) {
	f.run(t, true)
	tr := f.finishes(t)
	restart(t, f.Hosts[0], f.a)
	wantState(t, f.a, f.vm.Name, drover.VMPaused)
	wantState(t, f.b, f.vm.Name, drover.VMRunning)
	if err := tr.out.Confirm(t.Context(), tr.finish, true); err != nil {
		t.Logf("Confirm after the manager's restart: %v", err)
		succeed(t, f.a.Settle(t.Context(), f.vm.Name, driver.SettleGone))
	}
	f.wantMoved(t)
}

func testDestinationManagerDiesBeforeFinish(t *testing.T, f *fixture) {
	f.run(t, true)
	tr := f.perform(t)
	restart(t, f.Hosts[1], f.b)
	_, err := tr.in.Finish(t.Context(), tr.cookie)
	if err == nil || drover.KindOf(err) == drover.Unknown {
		t.Fatalf("Finish after the manager's restart: %v", err)
	}
	eventuallyGone(t, f.b, f.vm.Name)
	succeed(t, tr.out.Confirm(t.Context(), nil, false))
	succeed(t, tr.out.Close())
	f.wantMovable(t)
}
