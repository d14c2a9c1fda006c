package drivertest

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// trip is one migration from a to b, up to some phase.
type trip struct {
	f      *fixture
	route  *route
	copies bool
	out    driver.Outgoing
	in     driver.Incoming
	cookie []byte // of Perform
	finish []byte // of Finish
}

// run defines the fixture's VM at a, with a marked disk where asked, and lets
// it run.
func (f *fixture) run(t *testing.T, withDisk bool) {
	t.Helper()
	ctx := t.Context()
	if withDisk {
		f.vm.Disks = []drover.Disk{f.disk}
		for _, host := range f.Hosts {
			host.CreateDisk(t, f.vm, f.disk)
		}
	}
	_, err := f.a.Define(ctx, f.Define(t, f.vm))
	succeed(t, err)
	if withDisk {
		f.Hosts[0].MarkDisks(t, f.vm)
	}
	succeed(t, f.a.Start(ctx, f.vm.Name))
}

// prepare opens a migration up to and with Prepare.
func (f *fixture) prepare(t *testing.T) *trip {
	t.Helper()
	tr := &trip{f: f, route: newRoute(t), copies: len(f.vm.Disks) > 0}
	var err error
	tr.out, err = f.a.Begin(t.Context(), f.vm.Name, tr.route.source(f.vm, tr.copies))
	succeed(t, err)
	t.Cleanup(func() { _ = tr.out.Close() })
	tr.in, err = f.b.Prepare(t.Context(), tr.route.destination(f.vm, tr.copies), tr.out.Offer())
	succeed(t, err)
	t.Cleanup(func() { _ = tr.in.Close() })
	wantState(t, f.a, f.vm.Name, drover.VMRunning)
	wantState(t, f.b, f.vm.Name, drover.VMPaused)
	return tr
}

// perform goes on to the end of Perform.
func (f *fixture) perform(t *testing.T) *trip {
	t.Helper()
	tr := f.prepare(t)
	var err error
	tr.cookie, err = tr.out.Perform(t.Context(), tr.in.Prepared())
	succeed(t, err)
	wantState(t, f.a, f.vm.Name, drover.VMPaused)
	wantState(t, f.b, f.vm.Name, drover.VMPaused)
	return tr
}

// finishes goes on to the end of Finish.
func (f *fixture) finishes(t *testing.T) *trip {
	t.Helper()
	tr := f.perform(t)
	var err error
	tr.finish, err = tr.in.Finish(t.Context(), tr.cookie)
	succeed(t, err)
	wantState(t, f.a, f.vm.Name, drover.VMPaused)
	wantState(t, f.b, f.vm.Name, drover.VMRunning)
	return tr
}

// stall makes this trip's transfer stop half way in its memory or its disks.
func (tr *trip) stall(t *testing.T, memory bool) <-chan struct{} {
	if tr.f.Stall != nil {
		reached, release := tr.f.Stall(t)
		t.Cleanup(release)
		return reached
	}
	r := tr.route.disk
	if memory {
		r = tr.route.memory
	}
	r.stallAt = 128 << 10 // behind the handshakes, before the end
	return r.stalled
}

// wantStays checks that the VM is at a alone.
func (f *fixture) wantStays(t *testing.T) {
	t.Helper()
	wantState(t, f.a, f.vm.Name, drover.VMRunning)
	eventuallyGone(t, f.b, f.vm.Name)
}

// wantMovable checks that the VM is at a alone and that nothing is in the way
// of moving it now.
func (f *fixture) wantMovable(t *testing.T) {
	t.Helper()
	f.wantStays(t)
	again := f.finishes(t)
	succeed(t, again.out.Confirm(t.Context(), again.finish, true))
	f.wantMoved(t)
}

// wantMoved checks that the VM is at b alone.
func (f *fixture) wantMoved(t *testing.T) {
	t.Helper()
	wantGone(t, f.a, f.vm.Name)
	vm, err := f.b.VM(t.Context(), f.vm.Name)
	succeed(t, err)
	if vm.State != drover.VMRunning || !vm.Persistent {
		t.Fatalf("at its destination the VM is %s, persistent %v; want it running and persistent", vm.State, vm.Persistent)
	}
	if _, err := f.b.Definition(t.Context(), f.vm.Name); err != nil {
		t.Fatal(err)
	}
}

func testMigrate(t *testing.T, f *fixture) {
	ctx := t.Context()
	f.run(t, true)
	there := f.finishes(t)
	again, err := there.in.Finish(ctx, there.cookie)
	succeed(t, err)
	if !bytes.Equal(again, there.finish) {
		t.Errorf("Finish repeated gives another cookie")
	}
	failAs(t, there.in.Abandon(ctx), drover.Refused)
	for range 2 {
		succeed(t, there.out.Confirm(ctx, there.finish, true))
	}
	failAs(t, there.out.Confirm(ctx, there.finish, false), drover.Refused)
	f.wantMoved(t)
	stats, err := there.out.Progress(ctx)
	succeed(t, err)
	if stats.Phase != "done" || stats.MemoryTotalBytes < f.vm.MemoryBytes || stats.MemoryDoneBytes == 0 || stats.MemoryRemainingBytes != 0 ||
		stats.PageBytes == 0 {
		t.Errorf("final statistics %+v", stats)
	}
	succeed(t, there.out.Close())
	succeed(t, there.in.Close())
	f.wantMoved(t)

	f.a, f.b = f.b, f.a
	back := f.finishes(t)
	succeed(t, back.out.Confirm(ctx, back.finish, true))
	f.wantMoved(t)
	succeed(t, f.b.Destroy(ctx, f.vm.Name))
	f.Hosts[0].VerifyDisks(t, f.vm)
	f.a, f.b = f.b, f.a
}

func testMigrateTopOnly(t *testing.T, f *fixture) {
	ctx := t.Context()
	f.disk.Backing = []drover.Backing{{Path: f.DiskFolder + "/golden.qcow2", Format: "qcow2"}}
	f.run(t, true)
	tr := f.finishes(t)
	succeed(t, tr.out.Confirm(ctx, tr.finish, true))
	f.wantMoved(t)
	vm, err := f.b.VM(ctx, f.vm.Name)
	succeed(t, err)
	if len(vm.Disks) != 1 || len(vm.Disks[0].Backing) != 1 || vm.Disks[0].Backing[0].Path != f.disk.Backing[0].Path {
		t.Errorf("at its destination the vm has disks %+v, want one above %s", vm.Disks, f.disk.Backing[0].Path)
	}
	if f.Stall == nil {
		// What is below stays out of the bytes: it is larger than all else.
		if sent := tr.route.disk.sent.Load(); sent == 0 || sent > int64(f.disk.VirtualBytes)/2 {
			t.Errorf("%d bytes of disks were sent, want those of the top image only", sent)
		}
	}
	succeed(t, f.b.Destroy(ctx, f.vm.Name))
	f.Hosts[1].VerifyDisks(t, f.vm)
}

// testMigratePersistent hands over another definition for the next start than
// the one by which the guest runs.
func testMigratePersistent(t *testing.T, f *fixture) {
	ctx := t.Context()
	f.run(t, false)
	r := newRoute(t)
	next := f.vm
	next.Labels = map[string]string{"role": "for the next start"}
	spec := r.source(f.vm, false)
	spec.Persistent = f.Define(t, next)
	out, err := f.a.Begin(ctx, f.vm.Name, spec)
	succeed(t, err)
	defer out.Close()
	in, err := f.b.Prepare(ctx, r.destination(f.vm, false), out.Offer())
	succeed(t, err)
	defer in.Close()
	cookie, err := out.Perform(ctx, in.Prepared())
	succeed(t, err)
	finish, err := in.Finish(ctx, cookie)
	succeed(t, err)
	succeed(t, out.Confirm(ctx, finish, true))
	f.wantMoved(t)
	for _, step := range []struct{ when, role string }{{"running", f.vm.Labels["role"]}, {"off", next.Labels["role"]}} {
		vm, err := f.b.VM(ctx, f.vm.Name)
		succeed(t, err)
		if vm.Labels["role"] != step.role {
			t.Errorf("%s, it has the label %q, want %q", step.when, vm.Labels["role"], step.role)
		}
		succeed(t, f.b.Destroy(ctx, f.vm.Name))
	}
}

func testBeginRefused(t *testing.T, f *fixture) {
	ctx := t.Context()
	_, err := f.a.Define(ctx, f.Define(t, f.vm))
	succeed(t, err)
	_, err = f.a.Begin(ctx, f.vm.Name, newRoute(t).source(f.vm, false))
	failAs(t, err, drover.Refused) // it is off
	succeed(t, f.a.Start(ctx, f.vm.Name))
	out, err := f.a.Begin(ctx, f.vm.Name, newRoute(t).source(f.vm, false))
	succeed(t, err)
	failAs(t, out.Confirm(ctx, nil, true), drover.Refused) // nothing was given up
	succeed(t, out.Confirm(ctx, nil, false))
	succeed(t, out.Confirm(ctx, nil, false))
	succeed(t, out.Close())
	f.wantStays(t)
}

func testPrepareRefused(t *testing.T, f *fixture) {
	ctx := t.Context()
	f.run(t, false)
	twin := f.vm
	twin.UUID = "d1000000-0000-4000-8000-000000000001"
	_, err := f.b.Define(ctx, f.Define(t, twin))
	succeed(t, err)
	r := newRoute(t)
	out, err := f.a.Begin(ctx, f.vm.Name, r.source(f.vm, false))
	succeed(t, err)
	_, err = f.b.Prepare(ctx, r.destination(f.vm, false), out.Offer())
	failAs(t, err, drover.Exists)
	wantState(t, f.b, f.vm.Name, drover.VMOff) // the other one, untouched
	succeed(t, f.b.Undefine(ctx, f.vm.Name))
	succeed(t, out.Close())
	f.wantStays(t)
}

func testPrepareCanceled(t *testing.T, f *fixture) {
	f.run(t, false)
	r := newRoute(t)
	out, err := f.a.Begin(t.Context(), f.vm.Name, r.source(f.vm, false))
	succeed(t, err)
	for _, after := range []time.Duration{0, 20 * time.Millisecond, 100 * time.Millisecond} {
		ctx, cancel := context.WithTimeout(t.Context(), after)
		in, err := f.b.Prepare(ctx, r.destination(f.vm, false), out.Offer())
		cancel()
		if err == nil { // it was quicker
			succeed(t, in.Close())
		}
		eventuallyGone(t, f.b, f.vm.Name)
	}
	succeed(t, out.Close())
	f.wantStays(t)
}

func testAbandon(t *testing.T, f *fixture) {
	f.run(t, true)
	tr := f.prepare(t)
	succeed(t, tr.in.Abandon(t.Context()))
	succeed(t, tr.in.Abandon(t.Context()))
	wantGone(t, f.b, f.vm.Name)
	_, err := tr.in.Finish(t.Context(), nil)
	failAs(t, err, drover.Refused)
	succeed(t, tr.in.Close())
	succeed(t, tr.out.Close())
	wantState(t, f.a, f.vm.Name, drover.VMRunning)
	// Close alone does the same.
	tr = f.prepare(t)
	succeed(t, tr.in.Close())
	succeed(t, tr.out.Close())
	f.wantMovable(t)
}

func testPerformFails(t *testing.T, f *fixture) {
	f.run(t, false)
	tr := f.prepare(t)
	succeed(t, tr.in.Close()) // nobody listens any more
	if _, err := tr.out.Perform(t.Context(), tr.in.Prepared()); err == nil {
		t.Fatal("Perform without a destination: no error")
	}
	wantState(t, f.a, f.vm.Name, drover.VMRunning)
	succeed(t, tr.out.Confirm(t.Context(), nil, false))
	succeed(t, tr.out.Close())
	f.wantStays(t)
}

// canceled cancels a Perform that hangs half way.
func (f *fixture) canceled(t *testing.T, memory bool) {
	tr := f.prepare(t)
	reached := tr.stall(t, memory)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		<-reached
		cancel()
		if !memory {
			tr.route.cut() // a mirror waits for its socket
		}
	}()
	_, err := tr.out.Perform(ctx, tr.in.Prepared())
	failAs(t, err, drover.Canceled)
	wantState(t, f.a, f.vm.Name, drover.VMRunning)
	succeed(t, tr.in.Close())
	succeed(t, tr.out.Close())
	tr.route.cut()
	if f.Stall == nil {
		f.wantMovable(t)
	}
}

func testPerformCanceledInMemory(t *testing.T, f *fixture) {
	f.run(t, false)
	f.canceled(t, true)
}

func testPerformCanceledInDisk(t *testing.T, f *fixture) {
	f.run(t, true)
	f.canceled(t, false)
}

func testCloseWhilePerforming(t *testing.T, f *fixture) {
	f.run(t, false)
	tr := f.prepare(t)
	reached := tr.stall(t, true)
	ended := make(chan error, 1)
	go func() {
		_, err := tr.out.Perform(t.Context(), tr.in.Prepared())
		ended <- err
	}()
	<-reached
	stats, err := tr.out.Progress(t.Context())
	succeed(t, err)
	if stats.Phase != "memory" || stats.MemoryTotalBytes == 0 {
		t.Errorf("statistics in the middle of the memory: %+v", stats)
	}
	succeed(t, tr.out.Close())
	failAs(t, <-ended, drover.Canceled)
	wantState(t, f.a, f.vm.Name, drover.VMRunning)
	succeed(t, tr.in.Close())
	wantGone(t, f.b, f.vm.Name)
}

func testFinishRefused(t *testing.T, f *fixture) {
	f.run(t, true)
	tr := f.perform(t)
	if _, err := tr.in.Finish(t.Context(), []byte("no cookie")); err == nil || drover.KindOf(err) == drover.Unknown {
		t.Fatalf("Finish with a wrong cookie: %v", err)
	}
	wantGone(t, f.b, f.vm.Name)
	for range 2 {
		succeed(t, tr.out.Confirm(t.Context(), nil, false))
	}
	failAs(t, tr.out.Confirm(t.Context(), nil, true), drover.Refused)
	succeed(t, tr.out.Close())
	f.wantMovable(t)
}

func testGivenBack(t *testing.T, f *fixture) {
	f.run(t, true)
	tr := f.perform(t)
	succeed(t, tr.in.Abandon(t.Context()))
	wantGone(t, f.b, f.vm.Name)
	wantState(t, f.a, f.vm.Name, drover.VMPaused)
	succeed(t, tr.out.Confirm(t.Context(), nil, false))
	succeed(t, tr.out.Close())
	f.wantStays(t)
}
