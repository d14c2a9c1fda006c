package haproxy

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/drover-vm/drover/driver"
)

// crash ends HAProxy, its sessions and all that it knew, and starts it again as it is
// configured: so it is after a crash, or with the edge's reboot.
func (b *bench) crash(t *testing.T) {
	t.Helper()
	if b.contained {
		// Runs of one process id are told apart by the second of their start.
		noError(t, wait(t.Context(), time.Second))
	}
	b.stop(t)
	b.run = nil
	s := socket{filepath.Join(b.dir, "admin.sock")}
	for end := time.Now().Add(10 * time.Second); ; {
		if _, err := s.run(t.Context(), "show info"); err != nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("HAProxy does not end")
		}
	}
	if b.stateFile != "" {
		noError(t, os.RemoveAll(b.stateFile)) // the driver may not have written it yet
	}
	b.start(t)
}

// onlyTo waits until all new sessions go to one server, without asking the driver.
func (b *bench) onlyTo(t *testing.T, server int, what string) {
	t.Helper()
	want := b.servers[server].addr
	for end := time.Now().Add(20 * time.Second); ; {
		got := b.visit(t, 8)
		if got[want] == 8 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s: sessions go to %v, want all at %v", what, got, want)
		}
		noError(t, wait(t.Context(), endWait))
	}
}

// TestCrashOfRedirect: HAProxy comes back without anything that it knew, in the
// middle of a redirect and after it, while the driver is there and while it is not:
// the new VM's server, the shares and the drained old server are as they were.
func TestCrashOfRedirect(t *testing.T) {
	for name, c := range map[string]struct{ stateFile, contained bool }{
		"state file": {true, false}, "no state file": {false, false}, "the same process id": {false, true},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, c.stateFile, "admin")
			d, ctx := b.open(t), t.Context()
			noError(t, d.Drain(ctx, owner, "web", "two"))
			if b.contained = c.contained; b.contained {
				b.crash(t)
			}
			noError(t, d.Add(ctx, owner, "web", driver.ServerSpec{Name: "new", Address: b.servers[2].addr, Weight: 10, Check: &driver.ServerCheck{}}))
			added := driver.ServerName(owner, "new")
			noError(t, d.Ready(ctx, owner, "web", added))
			noError(t, d.SetWeight(ctx, owner, "web", "one", 5))
			noError(t, d.SetWeight(ctx, owner, "web", added, 35))

			b.crash(t) // sessions are being shifted
			if got := share(t, d, added); got != [4]int{5, 35, 1, 1} {
				t.Errorf("weights, drained and ready after a crash: %v", got)
			}
			noError(t, d.Drain(ctx, owner, "web", "one"))
			b.onlyTo(t, 2, "the old one drains")
			b.crash(t)
			b.onlyTo(t, 2, "the old one drained when HAProxy crashed")

			// The edge itself is booted: nobody looks after HAProxy at first, which has
			// run for a while when the driver comes.
			noError(t, d.Close())
			b.crash(t)
			noError(t, wait(ctx, 2*time.Second))
			if got := b.visit(t, 8); got[b.servers[2].addr] > 0 {
				t.Fatalf("nobody has told HAProxy of the new server: %v", got)
			}
			d = b.open(t)
			defer d.Close()
			b.onlyTo(t, 2, "after a reboot")
			_, err := d.Remove(ctx, owner, "web", added, true)
			noError(t, err)
			noError(t, d.Restore(ctx, owner, "web", "one"))
			noError(t, d.Restore(ctx, owner, "web", "two"))
			if list, err := d.List(ctx); err != nil || len(list) != 0 {
				t.Errorf("what was undone is still there: %+v, %v", list, err)
			}
		})
	}
}

// share is the weights of the old and the new server, whether two is drained, and
// whether the new one takes sessions.
func share(t *testing.T, d driver.Balancer, added string) (got [4]int) {
	t.Helper()
	all, err := d.Servers(t.Context(), "web")
	noError(t, err)
	for _, s := range all {
		switch s.Name {
		case "one":
			got[0] = s.Weight
		case added:
			got[1] = s.Weight
			if s.State == driver.ServerReady {
				got[3] = 1
			}
		case "two":
			if s.State == driver.ServerDrain {
				got[2] = 1
			}
		}
	}
	return got
}

// TestFormerOfAnotherBoot: a process id of another boot may be that of any process
// now, HAProxy's own among them, which would never be done with its sessions.
func TestFormerOfAnotherBoot(t *testing.T) {
	b := newBench(t, false, "admin")
	pid := b.run.Process.Pid
	for name, change := range map[string]func(*record){
		"another boot": func(r *record) { r.Boot, r.Pid, r.Former = "another", 1, []int{pid} },
		"the same id":  func(r *record) { r.Started-- },
	} {
		d := b.open(t)
		noError(t, d.Drain(t.Context(), owner, "web", "one"))
		noError(t, d.Close())
		dir := b.config().StateDir
		r, err := readRecord(dir)
		noError(t, err)
		change(&r)
		raw, err := json.Marshal(r)
		noError(t, err)
		noError(t, os.WriteFile(filepath.Join(dir, recordFile), raw, 0o600))
		d = b.open(t)
		all, err := d.Servers(t.Context(), "web")
		noError(t, err)
		for _, s := range all {
			if s.Unseen {
				t.Errorf("%s: %+v", name, s)
			}
		}
		noError(t, d.Close())
	}
}
