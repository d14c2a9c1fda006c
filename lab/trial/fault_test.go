package trial_test

import (
	"context"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/lab/trial"
)

// testFaults breaks something while a move is under way. However
// it ends, the VM runs exactly once, with all its writes, and nothing of the
// move is left where the VM is not.
func testFaults(t *testing.T) {
	kill := func(service string) func(*testing.T, context.Context, string) {
		return func(t *testing.T, ctx context.Context, node string) {
			if err := shared.Drover(ctx, nil, "lab", "service", node, service, "kill"); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, tt := range []struct {
		name   string
		method drover.Method
		phase  string
		// at is "source", "target" or "server".
		at  string
		hit func(*testing.T, context.Context, string)
	}{
		{"source agent dies in memory", drover.Live, "memory", "source", kill("agent")},
		{"target agent dies in memory", drover.Live, "memory", "target", kill("agent")},
		{"server dies in memory", drover.Live, "memory", "server", kill("server")},
		{"target libvirtd dies in memory", drover.Live, "memory", "target", kill("libvirtd")},
		{"source agent dies in copy", drover.Cold, "copy", "source", kill("agent")},
		{"server dies in copy", drover.Cold, "copy", "server", kill("server")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx := timeout(t, 4*time.Minute)
			vm := map[drover.Method]string{drover.Live: "sheep1", drover.Cold: "sheep2"}[tt.method]
			guest := guestOf(t, shared, vm)
			// Well below the bandwidth of the move, which would never end else; a disk that
			// the other site knows is copied before that can be seen.
			var load *trial.Load
			rate := "80Mbit"
			if tt.method == drover.Live {
				load = work(t, ctx, guest, 1e6)
			} else {
				load, rate = fresh(t, ctx, guest), slowly
			}
			v, to := opposite(t, ctx, vm)
			var m drover.Move
			if err := shared.Drover(ctx, &m, "move", vm, "--to", to.String(), "--method", string(tt.method), "--detach", "--bandwidth", rate); err != nil {
				t.Fatal(err)
			}
			reach(t, ctx, m.Name, tt.phase)
			tt.hit(t, ctx, map[string]string{"source": v.Host, "target": to.Host, "server": "server"}[tt.at])
			m, err := shared.Settled(ctx, m.Name)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("ended %s: %s", m.State, m.Fault)
			want := map[drover.MoveState]string{drover.MoveDone: to.Host, drover.MoveUndone: v.Host}[m.State]
			if want == "" {
				t.Fatalf("the move is %q (%s), want done or undone", m.State, m.Fault)
			}
			onlyAt(t, ctx, vm, want, "running")
			if tt.method == drover.Live {
				if err := load.SameBoot(ctx); err != nil {
					t.Error(err)
				}
			}
			intact(t, ctx, guest, load)
		})
	}
}

// reach waits until the move has carried some bytes of the phase.
func reach(t *testing.T, ctx context.Context, move, phase string) {
	t.Helper()
	for {
		var m drover.Move
		err := shared.Drover(ctx, &m, "moves", "get", move)
		switch {
		case err == nil && m.Progress != nil && m.Progress.Phase == phase && m.Progress.DoneBytes > 0:
			return
		case err == nil && m.State.Final():
			t.Fatalf("the move ended %q (%s) before it was in phase %s", m.State, m.Fault, phase)
		}
		select {
		case <-ctx.Done():
			t.Fatalf("the move did not come to phase %s: %+v (%v)", phase, m.Progress, err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// testTwentyMoves moves one working guest back and forth.
func testTwentyMoves(t *testing.T) {
	if !*soak {
		t.Skip("minutes, and more of the same: with -soak")
	}
	const times = 20
	ctx := timeout(t, times*2*time.Minute)
	guest := guestOf(t, shared, "sheep1")
	load := work(t, ctx, guest, 10e6)
	for i := range times {
		_, to := opposite(t, ctx, "sheep1")
		m, err := shared.Move(ctx, "sheep1", to.String(), "--method", "live")
		if err != nil {
			t.Fatalf("move %d: %v", i, err)
		}
		onlyAt(t, ctx, "sheep1", to.Host, "running")
		if m.Measured.SessionsLost == nil || *m.Measured.SessionsLost != 0 {
			t.Errorf("move %d: sessions lost %v, want 0", i, m.Measured.SessionsLost)
		}
		if err := load.SameBoot(ctx); err != nil {
			t.Fatalf("move %d: %v", i, err)
		}
	}
	intact(t, ctx, guest, load)
}
