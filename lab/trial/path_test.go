package trial_test

import (
	"context"
	"strconv"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/lab/guest/control"
	"github.com/drover-vm/drover/lab/trial"
)

// outlived is longer than connections are silent before they are given up, so
// that the data path has to begin new ones and go on where it was, and shorter
// than any limit.
const outlived = 8 * time.Second

// slowly is a rate at which the phases of a move last for seconds.
const slowly = "25Mbit"

// testCuts cuts the link between the sites twice while a move is under way: it goes
// on where it was, and no client loses its session.
func testCuts(t *testing.T) {
	m := moveThrough(t, func(ctx context.Context, move string) {
		for _, phase := range []string{"disk", "memory"} {
			reach(t, ctx, move, phase)
			setLink(t, ctx, "--cut")
			time.Sleep(outlived)
			setLink(t, ctx, "--heal")
		}
	})
	p := m.Measured.Path
	if p == nil {
		t.Fatal("the data path's figures are missing")
	}
	total := p.Total()
	t.Logf("%d cuts of %.1f s, %s sent again of %s", total.Cuts, total.CutSeconds, total.RetransmittedBytes, total.WireBytes)
	if total.Cuts != 2 || total.CutSeconds <= 0 {
		t.Errorf("the data path counted %d cuts of %.1f s, want two", total.Cuts, total.CutSeconds)
	}
}

// flipEvery are the segments with payload to one flipped bit: a move has some
// thousands.
const flipEvery = 1500

// testFlippedBits has bits flipped between the agents, unseen by TCP:
// the data path drops the connection and sends again what it carried, and the
// guest's memory and disk are what they were.
func testFlippedBits(t *testing.T) {
	ctx := timeout(t, time.Minute)
	before, err := shared.CorruptConnections(ctx)
	if err != nil {
		t.Fatal(err)
	}
	moveThrough(t, func(ctx context.Context, move string) {
		reach(t, ctx, move, "disk")
		t.Cleanup(func() { setLink(t, context.WithoutCancel(ctx), "--corrupt", "0") })
		setLink(t, ctx, "--corrupt", strconv.Itoa(flipEvery))
	})
	ctx = timeout(t, time.Minute)
	after, err := shared.CorruptConnections(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d connections were dropped as corrupt", after-before)
	if after == before {
		t.Error("no agent noticed a flipped bit")
	}
}

// moveThrough moves a working guest live and lets something happen meanwhile. The
// move has to end well, sessions, writes and all.
func moveThrough(t *testing.T, happen func(ctx context.Context, move string)) drover.Move {
	t.Helper()
	const vm = "sheep1"
	ctx := timeout(t, 4*time.Minute)
	guest := guestOf(t, shared, vm)
	load := fresh(t, ctx, guest)
	_, to := opposite(t, ctx, vm)
	var m drover.Move
	if err := shared.Drover(ctx, &m, "move", vm, "--to", to.String(), "--method", "live", "--detach", "--bandwidth", slowly); err != nil {
		t.Fatal(err)
	}
	happen(ctx, m.Name)
	m, err := shared.Settled(ctx, m.Name)
	if err != nil {
		t.Fatal(err)
	}
	if m.State != drover.MoveDone {
		t.Fatalf("the move is %q (%s), want done", m.State, m.Fault)
	}
	onlyAt(t, ctx, vm, to.Host, "running")
	if err := load.SameBoot(ctx); err != nil {
		t.Error(err)
	}
	if f := m.Measured; f.SessionsLost == nil || f.Sessions == nil || *f.SessionsLost != 0 || *f.Sessions == 0 {
		t.Errorf("sessions lost %v of %v, want 0 of some", f.SessionsLost, f.Sessions)
	}
	intact(t, ctx, guest, load)
	return m
}

// fresh has the guest write much to its memory and disk that the other site
// cannot have, and go on slowly, so that every phase of a move has something to
// carry.
func fresh(t *testing.T, ctx context.Context, guest *control.Client) *trial.Load {
	t.Helper()
	if err := trial.WaitHealthy(ctx, guest); err != nil {
		t.Fatal(err)
	}
	memory := control.Memory{WorkingSetBytes: 16 << 20, RateBytesPerS: 16e6}
	load, err := trial.StartLoad(ctx, guest, memory, control.Disk{RateBytesPerS: 8e6})
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(3 * time.Second) // of writing
	memory.RateBytesPerS = 500e3
	if err := guest.StartMemory(ctx, memory); err != nil {
		t.Fatal(err)
	}
	if err := guest.StartDisk(ctx, control.Disk{RateBytesPerS: 200e3}); err != nil {
		t.Fatal(err)
	}
	return load
}

func setLink(t *testing.T, ctx context.Context, flags ...string) {
	t.Helper()
	if err := shared.Drover(ctx, nil, append([]string{"lab", "link", "north", "south"}, flags...)...); err != nil {
		t.Error(err)
	}
}
