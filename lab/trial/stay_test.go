package trial_test

import (
	"context"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/lab/trial"
)

// testStorageStays: a guest that writes moves without its disk, works on it over the
// WAN through a cut and through the death of both hosts' agents, and its disk
// follows while it runs. Nothing that was acknowledged is lost.
func testStorageStays(t *testing.T) {
	ctx := timeout(t, 6*time.Minute)
	const vm = "sheep1"
	guest := guestOf(t, shared, vm)
	load := work(t, ctx, guest, 1e6)
	home, to := opposite(t, ctx, vm)
	m, err := shared.Move(ctx, vm, to.String(), "--method", "live", "--storage", "stay")
	if err != nil {
		t.Fatal(err)
	}
	if f := m.Measured; f.SessionsLost == nil || *f.SessionsLost != 0 || f.DiskBytes == nil || *f.DiskBytes != 0 {
		t.Errorf("sessions lost %v, disk bytes %v: want none", f.SessionsLost, f.DiskBytes)
	}
	where, err := shared.Where(ctx, vm)
	if err != nil || len(where) != 1 || where[to.Host] != "running" {
		t.Fatalf("it is at %v (%v), want it running at %s alone", where, err, to.Host)
	}
	progresses(t, ctx, load, "right after the move")
	now := seen(t, ctx, vm)
	if io := now.RemoteIO; io == nil || io.WrittenBytes == 0 || io.Operations == 0 || io.LatencyMillis <= 0 || io.LatencyP95Millis < io.LatencyMillis/10 {
		t.Errorf("what crosses the WAN is shown as %+v", io)
	} else {
		t.Logf("over the WAN: %s read, %s written, %d operations, %.1f ms each, %.1f ms the 95th of 100",
			io.ReadBytes, io.WrittenBytes, io.Operations, io.LatencyMillis, io.LatencyP95Millis)
	}
	if l := now.Disks[0].Left; l == nil || l.Host != home.Host || l.Path != home.Disks[0].Path {
		t.Errorf("its disk is said to be at %+v, want %s on %s", l, home.Disks[0].Path, home.Host)
	}
	doctorFinds(t, ctx, 0)
	_, err = shared.Move(ctx, vm, drover.Place{Site: home.Site, Host: home.Host}.String(), "--method", "live")
	wantStatus(t, err, 3)

	setLink(t, ctx, "--cut")
	time.Sleep(5 * time.Second)
	setLink(t, ctx, "--heal")
	progresses(t, ctx, load, "after a cut of 5 s")
	for _, host := range []string{to.Host, home.Host} {
		if err := shared.Drover(ctx, nil, "lab", "service", host, "agent", "kill"); err != nil {
			t.Fatal(err)
		}
		progresses(t, ctx, load, "after the agent of "+host+" died")
	}
	if err := load.SameBoot(ctx); err != nil {
		t.Error(err)
	}

	if m = bringDisks(t, ctx, vm); m.Method != drover.Disks || m.Measured.DiskBytes == nil || *m.Measured.DiskBytes == 0 {
		t.Errorf("by %s, %v bytes", m.Method, m.Measured.DiskBytes)
	}
	progresses(t, ctx, load, "after its disk has come")
	if err := load.SameBoot(ctx); err != nil {
		t.Error(err)
	}
	if now = seen(t, ctx, vm); now.RemoteIO != nil || now.Disks[0].Left != nil || now.Disks[0].Path != home.Disks[0].Path {
		t.Errorf("it has disks %+v, and over the WAN %+v", now.Disks, now.RemoteIO)
	}
	if d := now.Disks[0]; d.AllocatedBytes > d.VirtualBytes/2 {
		t.Errorf("of a disk that is nearly empty, %s of %s are allocated", d.AllocatedBytes, d.VirtualBytes)
	}
	intact(t, ctx, guest, load)
	onlyAt(t, ctx, vm, to.Host, "running")
	doctorFinds(t, ctx, 0)
	wantStatus(t, shared.Drover(ctx, nil, "move", vm, "--disks-only"), 3)
}

// bringDisks brings a VM's disks to it, as soon as the server sees their hosts'
// agents again.
func bringDisks(t *testing.T, ctx context.Context, vm string) drover.Move {
	t.Helper()
	for {
		var p drover.Preflight
		err := shared.Drover(ctx, &p, "preflight", vm, "--disks-only")
		if err == nil {
			break
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%+v: %v", p, err)
		case <-time.After(500 * time.Millisecond):
		}
	}
	var m drover.Move
	if err := shared.Drover(ctx, &m, "move", vm, "--disks-only"); err != nil {
		t.Fatal(err)
	}
	return m
}

// progresses waits until the guest's writes are acknowledged again.
func progresses(t *testing.T, ctx context.Context, load *trial.Load, when string) {
	t.Helper()
	before := load.Acked()
	for load.Acked() < before+20 {
		select {
		case <-ctx.Done():
			t.Fatalf("%s: of the guest's writes %d were acknowledged, before it %d", when, load.Acked(), before)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// seen is a VM as the server shows it, when that knows what stands of it.
func seen(t *testing.T, ctx context.Context, vm string) drover.VM {
	t.Helper()
	time.Sleep(4 * time.Second) // hosts are observed every 3
	var v drover.VM
	if err := shared.Drover(ctx, &v, "vms", "get", vm); err != nil {
		t.Fatal(err)
	}
	return v
}

// doctorFinds fails unless the doctor finds that many leftovers.
func doctorFinds(t *testing.T, ctx context.Context, want int) {
	t.Helper()
	var d drover.Diagnosis
	err := shared.Drover(ctx, &d, "doctor")
	if err != nil || len(d.Findings) != want {
		t.Errorf("the doctor finds %+v (%v), want %d", d.Findings, err, want)
	}
}
