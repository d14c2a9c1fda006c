package trial_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/lab/guest/control"
)

// noRecords fails when a host still records what a VM changes, in a running VM,
// in an image at rest or in one kept aside.
func noRecords(t *testing.T, ctx context.Context, vm string) {
	t.Helper()
	hosts, err := shared.Hosts(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range hosts {
		script := `cd /var/lib/libvirt/images
for f in * .drover-*; do [ -f "$f" ] && qemu-img info -U "$f" | grep -o 'name: drover-[^ ]*'; done
ls -A | grep -F drover-scratch
virsh checkpoint-list "$1" --name 2>/dev/null | grep drover
virsh backup-dumpxml "$1" 2>/dev/null | head -1
true`
		out, err := shared.Exec(ctx, h.Name, "sh", "-c", script, "sh", vm)
		if err != nil {
			t.Fatal(err)
		}
		if s := strings.TrimSpace(string(out)); s != "" {
			t.Errorf("%s is left at %s", s, h.Name)
		}
	}
}

// downtime is how long the VM was down by the steps' own times, and what of it
// was neither shutting down nor starting.
func downtime(m drover.Move) (all, between time.Duration) {
	at := make(map[string]drover.StepRecord)
	for _, s := range m.Steps {
		at[s.Name] = s
	}
	return at["start"].Ended.Sub(at["shutdown"].Started), at["start"].Started.Sub(at["shutdown"].Ended)
}

// testWarmMove: the guest writes to its disk during the rounds, and all that was
// acknowledged is there; a client sees to it that it is well.
func testWarmMove(t *testing.T) {
	ctx := timeout(t, 4*time.Minute)
	guest := guestOf(t, shared, "sheep2")
	load := work(t, ctx, guest, 1e6)
	time.Sleep(2 * time.Second) // some writes to lose
	client, err := shared.Client()
	if err != nil {
		t.Fatal(err)
	}
	_, to := opposite(t, ctx, "sheep2")
	m, err := shared.Move(ctx, "sheep2", to.String(), "--method", "warm",
		"--health", fmt.Sprintf("tcp:%d", control.HTTPPort), "--health-from", client)
	if err != nil {
		t.Fatal(err)
	}
	all, between := downtime(m)
	t.Logf("down for %s, of it neither shutting down nor starting %s; %s of its disk sent", all, between, drover.Bytes(*m.Measured.DiskBytes))
	if m.Gate == nil || m.Gate.State != drover.GateCommitted || m.Gate.Healthy == nil || !*m.Gate.Healthy {
		t.Errorf("its gate is %+v", m.Gate)
	}
	onlyAt(t, ctx, "sheep2", to.Host, "running")
	intact(t, ctx, guest, load)
	noRecords(t, ctx, "sheep2")
}

// testWarmReturns: a VM that is not well at its destination goes back, with the
// disks that it had when it left.
func testWarmReturns(t *testing.T) {
	ctx := timeout(t, 4*time.Minute)
	guest := guestOf(t, shared, "sheep2")
	load := work(t, ctx, guest, 1e6)
	time.Sleep(2 * time.Second)
	// What it would write at the destination is to be lost.
	intact(t, ctx, guest, load)
	v, to := opposite(t, ctx, "sheep2")
	client, err := shared.Client()
	if err != nil {
		t.Fatal(err)
	}
	m, err := shared.Move(ctx, "sheep2", to.String(), "--method", "warm", "--health", "tcp:9", "--health-from", client, "--health-timeout", "5s")
	wantStatus(t, err, 1)
	if m.State != drover.MoveUndone || !strings.Contains(m.Fault, "is lost") || m.Gate == nil || m.Gate.State != drover.GateReturned {
		t.Fatalf("the move is %s (%s), its gate %v", m.State, m.Fault, m.Gate)
	}
	onlyAt(t, ctx, "sheep2", v.Host, "running")
	noRecords(t, ctx, "sheep2")
	load = work(t, ctx, guest, 0)
	time.Sleep(time.Second)
	intact(t, ctx, guest, load)
}

// testColdCommittedByHand: a gate waits for an operator.
func testColdCommittedByHand(t *testing.T) {
	ctx := timeout(t, 4*time.Minute)
	_, to := opposite(t, ctx, "sheep2")
	var m drover.Move
	if err := shared.Drover(ctx, &m, "move", "sheep2", "--to", to.String(), "--method", "cold", "--gate", "manual", "--detach"); err != nil {
		t.Fatal(err)
	}
	for m.Gate == nil || m.Gate.State != drover.GateWaiting {
		if m.State.Final() || ctx.Err() != nil {
			t.Fatalf("the move is %s (%s), its gate %v", m.State, m.Fault, m.Gate)
		}
		time.Sleep(200 * time.Millisecond)
		if err := shared.Drover(ctx, &m, "moves", "get", m.Name); err != nil {
			t.Fatal(err)
		}
	}
	if err := shared.Drover(ctx, &m, "commit", m.Name); err != nil {
		t.Fatal(err)
	}
	if m.State != drover.MoveDone {
		t.Errorf("the move is %s (%s)", m.State, m.Fault)
	}
	onlyAt(t, ctx, "sheep2", to.Host, "running")
}

// testWarmFaults: agents die while rounds are sent; the move goes on, and ends
// with every acknowledged write.
func testWarmFaults(t *testing.T) {
	for _, at := range []string{"source", "target"} {
		t.Run(at+" agent dies in a round", func(t *testing.T) {
			ctx := timeout(t, 4*time.Minute)
			guest := guestOf(t, shared, "sheep2")
			load := work(t, ctx, guest, 1e6)
			v, to := opposite(t, ctx, "sheep2")
			var m drover.Move
			if err := shared.Drover(ctx, &m, "move", "sheep2", "--to", to.String(), "--method", "warm", "--detach", "--bandwidth", "20Mbit"); err != nil {
				t.Fatal(err)
			}
			reach(t, ctx, m.Name, "round 1 copy")
			node := map[string]string{"source": v.Host, "target": to.Host}[at]
			if err := shared.Drover(ctx, nil, "lab", "service", node, "agent", "kill"); err != nil {
				t.Fatal(err)
			}
			m, err := shared.Settled(ctx, m.Name)
			if err != nil {
				t.Fatal(err)
			}
			if m.State != drover.MoveDone {
				t.Errorf("the move is %s (%s), want done", m.State, m.Fault)
			}
			onlyAt(t, ctx, "sheep2", map[drover.MoveState]string{drover.MoveDone: to.Host, drover.MoveUndone: v.Host}[m.State], "running")
			intact(t, ctx, guest, load)
			noRecords(t, ctx, "sheep2")
		})
	}
}
