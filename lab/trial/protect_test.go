package trial_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/drover-vm/drover"
)

// protection waits until the one there is is as wanted.
func protection(t *testing.T, ctx context.Context, what string, want func(drover.Protection) bool) drover.Protection {
	t.Helper()
	var last []drover.Protection
	for {
		err := shared.Drover(ctx, &last, "protect", "--list")
		if err == nil && len(last) == 1 && want(last[0]) {
			return last[0]
		}
		select {
		case <-ctx.Done():
			t.Fatalf("waiting for %s: %+v, %v", what, last, err)
		case <-time.After(300 * time.Millisecond):
		}
	}
}

// unprotected waits until there is no protection, and fails when something of one
// is left.
func unprotected(t *testing.T, ctx context.Context, vm string) {
	t.Helper()
	var all []drover.Protection
	for {
		err := shared.Drover(ctx, &all, "protect", "--list")
		if err == nil && len(all) == 0 {
			break
		}
		select {
		case <-ctx.Done():
			t.Fatalf("waiting for the end of protection: %+v, %v", all, err)
		case <-time.After(300 * time.Millisecond):
		}
	}
	noRecords(t, ctx, vm)
	hosts, err := shared.Hosts(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range hosts {
		out, err := shared.Exec(ctx, h.Name, "sh", "-c", "ls -A /var/lib/libvirt/images | grep -F drover-replica; true")
		if err != nil {
			t.Fatal(err)
		}
		if s := strings.TrimSpace(string(out)); s != "" {
			t.Errorf("%s is left at %s", s, h.Name)
		}
	}
	var d drover.Diagnosis
	if err := shared.Drover(ctx, &d, "doctor"); err != nil {
		t.Errorf("doctor: %+v, %v", d.Findings, err)
	}
}

// testProtect: a replica is kept while the guest writes and an agent dies; a warm
// move begins with it and sends little; a live move finds its content there.
func testProtect(t *testing.T) {
	ctx := timeout(t, 5*time.Minute)
	guest := guestOf(t, shared, "sheep2")
	load := work(t, ctx, guest, 1e6)
	time.Sleep(8 * time.Second) // more in the first round than in a later one
	v, to := opposite(t, ctx, "sheep2")
	if err := shared.Drover(ctx, nil, "protect", "sheep2", "--to", to.String(), "--rpo", "10s"); err != nil {
		t.Fatal(err)
	}
	first := protection(t, ctx, "the first round", func(p drover.Protection) bool { return p.Rounds >= 1 && p.State == drover.ProtectionOK })
	if err := shared.Drover(ctx, nil, "lab", "service", v.Host, "agent", "kill"); err != nil {
		t.Fatal(err)
	}
	p := protection(t, ctx, "rounds after the agent's death", func(p drover.Protection) bool {
		return p.Rounds >= first.Rounds+2 && p.State == drover.ProtectionOK && p.RPOOK
	})
	if p.Resyncs != 0 {
		t.Errorf("all was sent %d times more", p.Resyncs)
	}
	t.Logf("first round %s in %.1f s; round %d %s, %s on the wire, in %.1f s", first.RoundBytes, first.RoundSeconds, p.Rounds, p.RoundBytes, p.RoundWireBytes, p.RoundSeconds)
	m, err := shared.Move(ctx, "sheep2", to.Site, "--method", "warm")
	if err != nil {
		t.Fatal(err)
	}
	onlyAt(t, ctx, "sheep2", to.Host, "running")
	intact(t, ctx, guest, load)
	unprotected(t, ctx, "sheep2")
	// The guest writes 400 kB/s: what it wrote in the RPO, and in the move's rounds.
	sent := drover.Bytes(*m.Measured.DiskBytes)
	all, between := downtime(m)
	t.Logf("the warm move sent %s of the disk; down for %s, of it neither shutting down nor starting %s", sent, all, between)
	if sent >= first.RoundBytes {
		t.Errorf("the move sent %s of the disk, as much as the first round did (%s)", sent, first.RoundBytes)
	}
}

// testProtectLive: the content of a replica is known where a live move goes, and
// stopping a protection leaves nothing.
func testProtectLive(t *testing.T) {
	ctx := timeout(t, 5*time.Minute)
	guest := guestOf(t, shared, "sheep2")
	load := work(t, ctx, guest, 1e6)
	time.Sleep(3 * time.Second)
	_, to := opposite(t, ctx, "sheep2")
	if err := shared.Drover(ctx, nil, "protect", "sheep2", "--to", to.String(), "--rpo", "10s"); err != nil {
		t.Fatal(err)
	}
	first := protection(t, ctx, "the first round", func(p drover.Protection) bool { return p.Rounds >= 1 })
	m, err := shared.Move(ctx, "sheep2", to.String(), "--method", "live")
	if err != nil {
		t.Fatal(err)
	}
	onlyAt(t, ctx, "sheep2", to.Host, "running")
	intact(t, ctx, guest, load)
	unprotected(t, ctx, "sheep2")
	disk := m.Measured.Path.Disk
	t.Logf("of %s of the disk, %s in the replica's first round, %s crossed; %s as references, which took %s",
		disk.GuestBytes, first.RoundBytes, disk.WireBytes, disk.Kinds.Reference.GuestBytes, disk.Kinds.Reference.WireBytes)
	// Some of it the guest has written anew since.
	if disk.Kinds.Reference.GuestBytes < first.RoundBytes/4 {
		t.Errorf("%s of the disk crossed as references, the replica held %s", disk.Kinds.Reference.GuestBytes, first.RoundBytes)
	}

	_, to = opposite(t, ctx, "sheep2")
	if err := shared.Drover(ctx, nil, "protect", "sheep2", "--to", to.String(), "--rpo", "10s"); err != nil {
		t.Fatal(err)
	}
	protection(t, ctx, "the first round", func(p drover.Protection) bool { return p.Rounds >= 1 })
	if err := shared.Drover(ctx, nil, "protect", "sheep2", "--stop"); err != nil {
		t.Fatal(err)
	}
	unprotected(t, ctx, "sheep2")
}
