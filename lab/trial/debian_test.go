package trial_test

import (
	"errors"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/lab"
	"github.com/drover-vm/drover/lab/trial"
)

// clientTime is how long the database clients work: longer than the move.
const clientTime = "45"

// TestDebianMovesUnderItsClients moves a Debian guest live while
// redis-benchmark and pgbench work on it from outside. They may see latency
// and nothing else.
func TestDebianMovesUnderItsClients(t *testing.T) {
	t.Parallel()
	l := &trial.Lab{Bin: shared.Bin, Name: *labName + "-debian", Log: shared.Log}
	bringUp(t, l, "debian")
	ctx := timeout(t, 5*time.Minute)
	running, err := lab.Open(lab.Options{Exe: l.Bin}, l.Name)
	if err != nil {
		t.Fatal(err)
	}
	address := running.Guests[0].Address

	// The probe speaks to Redis; PostgreSQL takes longer to be ready.
	for {
		if _, err := l.Exec(ctx, "c1", "pg_isready", "-q", "-h", address); err == nil {
			break
		}
		select {
		case <-ctx.Done():
			t.Fatal("PostgreSQL did not come up")
		case <-time.After(500 * time.Millisecond):
		}
	}

	type ended struct {
		out []byte
		err error
	}
	start := func(args ...string) chan ended {
		cmd, err := running.Command(ctx, "c1", args...)
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan ended, 1)
		go func() {
			out, err := cmd.CombinedOutput()
			done <- ended{out, err}
		}()
		return done
	}
	redis := start("timeout", "-s", "INT", clientTime, "redis-benchmark", "-h", address, "-c", "4", "-t", "set,get", "-l", "-q")
	postgres := start("pgbench", "-h", address, "-U", "postgres", "-n", "-c", "2", "-T", clientTime, "bench")
	select { // the load is there before the move begins
	case e := <-redis:
		t.Fatalf("redis-benchmark ended at once: %v\n%s", e.err, e.out)
	case e := <-postgres:
		t.Fatalf("pgbench ended at once: %v\n%s", e.err, e.out)
	case <-time.After(3 * time.Second):
	}
	m, err := l.Move(ctx, "deb1", "south", "--method", "live")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.OnlyAt(ctx, "deb1", m.To.Host, "running"); err != nil {
		t.Error(err)
	}
	f := m.Measured
	if f.SessionsLost == nil || *f.SessionsLost != 0 || f.WireBytes == nil {
		t.Errorf("figures %+v, want no session lost", f)
	} else {
		t.Logf("total %.1f s, pause %.0f ms, outage %.0f ms, wire %s", *f.TotalSeconds, *f.PauseMillis, *f.OutageMillis, drover.Bytes(*f.WireBytes))
	}
	p := <-postgres
	if p.err != nil || !strings.Contains(string(p.out), "number of failed transactions: 0 ") {
		t.Errorf("pgbench: %v\n%s", p.err, p.out)
	}
	r := <-redis
	var exit *exec.ExitError
	const timedOut = 124 // timeout(1) ended it, as it should
	if !errors.As(r.err, &exit) || exit.ExitCode() != timedOut || strings.Contains(strings.ToLower(string(r.out)), "error") {
		t.Errorf("redis-benchmark: %v\n%.2000s", r.err, r.out)
	}
}
