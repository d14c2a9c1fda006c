package trial_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/lab"
	"github.com/drover-vm/drover/lab/trial"
)

// user is a client program that stays, as it is used by hand: lines in, lines out.
type user struct {
	t     *testing.T
	name  string
	in    io.WriteCloser
	lines chan string
	cmd   *exec.Cmd
}

// newUser starts a program in the client's node.
func newUser(t *testing.T, ctx context.Context, l *lab.Lab, name string, args ...string) *user {
	t.Helper()
	cmd, err := l.Command(ctx, "c1", append([]string{name}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	u := &user{t: t, name: name, cmd: cmd, lines: make(chan string, 64)}
	if u.in, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(u.lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			u.lines <- s.Text()
		}
	}()
	return u
}

// said is the next line that it has written.
func (u *user) said() string {
	u.t.Helper()
	select {
	case line, open := <-u.lines:
		if !open {
			u.t.Fatalf("%s has ended", u.name)
		}
		return line
	case <-time.After(time.Minute):
		u.t.Fatalf("%s says nothing", u.name)
	}
	return ""
}

// ask types a line and returns what is written to it.
func (u *user) ask(line string) string {
	u.t.Helper()
	if _, err := fmt.Fprintln(u.in, line); err != nil {
		u.t.Fatalf("%s: %v", u.name, err)
	}
	return u.said()
}

const (
	// downloadSize is that of the guest's file /1g, which is zeros.
	downloadSize = 1 << 30
	// unhurried is what the user takes of it while the guest moves, in bytes a second.
	unhurried = 1 << 20
)

// download takes the file slowly until it is told to hurry.
type download struct {
	got   atomic.Int64
	hurry atomic.Bool
	ended chan error
}

func newDownload(t *testing.T, ctx context.Context, l *lab.Lab, url string) *download {
	t.Helper()
	cmd, err := l.Command(ctx, "c1", "curl", "-sSf", "--no-buffer", url)
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	d := &download{ended: make(chan error, 1)}
	go func() {
		buf := make([]byte, 256<<10)
		var wrong error
		for {
			n, err := out.Read(buf)
			for _, b := range buf[:n] {
				if b != 0 && wrong == nil {
					wrong = fmt.Errorf("a byte near %d is %#x, want 0", d.got.Load(), b)
				}
			}
			if d.got.Add(int64(n)); err != nil {
				break
			}
			// The half of it fast, then slowly, or it would be over before the guest moves.
			if !d.hurry.Load() && d.got.Load() > downloadSize/2 {
				time.Sleep(time.Duration(n) * time.Second / unhurried)
			}
		}
		if err := cmd.Wait(); err != nil {
			wrong = err
		}
		d.ended <- wrong
	}()
	return d
}

// TestClientsSurvive moves a Debian guest by each method that goes between
// networks, one after the other, while a transaction, a subscription and a
// download, all begun before the first move, are under way.
func TestClientsSurvive(t *testing.T) {
	if !*soak {
		t.Skip("minutes: with -soak")
	}
	ctx := timeout(t, 20*time.Minute) // building the image is part of it the first time
	l := &trial.Lab{Bin: shared.Bin, Name: "sessions", Log: shared.Log}
	t.Cleanup(func() {
		if err := l.Down(context.WithoutCancel(ctx)); err != nil {
			t.Error(err)
		}
	})
	if err := trial.Up(ctx, l, "sessions"); err != nil {
		t.Fatal(err)
	}
	running, err := lab.Open(lab.Options{Exe: l.Bin}, l.Name)
	if err != nil {
		t.Fatal(err)
	}
	const home = "10.50.0.21"
	for { // the probe speaks to Redis; PostgreSQL takes longer to be ready
		if _, err := l.Exec(ctx, "c1", "pg_isready", "-q", "-h", home); err == nil {
			break
		} else if ctx.Err() != nil {
			t.Fatal("PostgreSQL did not come up")
		}
		time.Sleep(500 * time.Millisecond)
	}
	s := &survivors{t: t, lab: l, now: home}
	s.psql = newUser(t, ctx, running, "psql", "-XqAt", "-v", "ON_ERROR_STOP=1", "-h", home, "-U", "postgres", "bench")
	s.transaction = s.psql.ask("BEGIN; CREATE TABLE survivors (n int); SELECT txid_current(), pg_backend_pid();")
	// Unlike a person's, its output is buffered where it is no terminal, and it does
	// not look at its input: the shell ends it when that ends.
	s.redis = newUser(t, ctx, running, "sh", "-c", `stdbuf -oL redis-cli -h "$1" SUBSCRIBE news & cat >/dev/null; kill $!`, "sh", home)
	for range 3 { // subscribe, news, 1
		s.redis.said()
	}
	s.file = newDownload(t, ctx, running, "http://"+home+"/1g")
	for s.file.got.Load() < downloadSize/2 {
		if ctx.Err() != nil {
			t.Fatal("half of the file was not downloaded in time")
		}
		time.Sleep(100 * time.Millisecond)
	}
	s.check(ctx, "before all")
	for _, m := range []struct {
		method drover.Method
		to     string
	}{{drover.Stretch, "south"}, {drover.Stretch, "north"}, {drover.Route, "south"}, {drover.Route, "north"}} {
		mv, err := l.Move(ctx, "deb1", m.to, "--method", string(m.method))
		if err != nil {
			t.Fatal(err)
		}
		s.moved(mv)
		s.check(ctx, string(m.method)+" to "+m.to)
	}
	s.renumber(ctx)
}

// survivors are the three clients.
type survivors struct {
	t           *testing.T
	lab         *trial.Lab
	psql, redis *user
	file        *download
	transaction string
	// now is where new clients find the guest.
	now string
	n   int
}

func (s *survivors) moved(m drover.Move) {
	s.t.Helper()
	f := m.Measured
	if f.SessionsLost == nil || *f.SessionsLost != 0 || f.PauseMillis == nil || f.OutageMillis == nil {
		s.t.Errorf("by %s: measured %+v, want no session lost", m.Method, f)
		return
	}
	s.t.Logf("by %s to %s: total %.1f s, pause %.0f ms, outage %.0f ms", m.Method, m.To, *f.TotalSeconds, *f.PauseMillis, *f.OutageMillis)
}

// check uses all three.
func (s *survivors) check(ctx context.Context, when string) {
	s.t.Helper()
	s.n++
	if got := s.psql.ask("SELECT txid_current(), pg_backend_pid();"); got != s.transaction {
		s.t.Errorf("%s: the transaction is %q, was %q", when, got, s.transaction)
	}
	if got := s.psql.ask(fmt.Sprintf("INSERT INTO survivors VALUES (%d) RETURNING n;", s.n)); got != fmt.Sprint(s.n) {
		s.t.Errorf("%s: the transaction's insert is answered %q", when, got)
	}
	news := fmt.Sprintf("%d-%s", s.n, strings.ReplaceAll(when, " ", "-"))
	if out, err := s.lab.Exec(ctx, "c1", "redis-cli", "-h", s.now, "PUBLISH", "news", news); err != nil || strings.TrimSpace(string(out)) != "1" {
		s.t.Errorf("%s: published to %q subscribers, error %v, want 1", when, out, err)
	}
	if got := []string{s.redis.said(), s.redis.said(), s.redis.said()}; strings.Join(got, " ") != "message news "+news {
		s.t.Errorf("%s: the subscription says %q", when, got)
	}
	before := s.file.got.Load()
	for end := time.Now().Add(time.Minute); s.file.got.Load() == before; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			s.t.Fatalf("%s: the download stands at %d", when, before)
		}
	}
	if got := s.file.got.Load(); got >= downloadSize {
		s.t.Errorf("%s: the download is over already", when)
	}
}

// renumber is the last: what is open keeps the move waiting, until it is done.
func (s *survivors) renumber(ctx context.Context) {
	t := s.t
	var m drover.Move
	if err := s.lab.Drover(ctx, &m, "move", "deb1", "--to", "south", "--method", "renumber", "--segment", "green", "--old-limit", "15m", "--detach"); err != nil {
		t.Fatal(err)
	}
	for m.Renumber == nil || m.Renumber.OldSessions == nil {
		if m.State.Final() || ctx.Err() != nil {
			t.Fatalf("the move is %s (%s)", m.State, m.Fault)
		}
		time.Sleep(300 * time.Millisecond)
		if err := s.lab.Drover(ctx, &m, "moves", "get", m.Name); err != nil {
			t.Fatal(err)
		}
	}
	s.moved(m)
	s.now = m.Renumber.New[0].String()
	s.check(ctx, "renumber")
	if m.State != drover.MoveRunning {
		t.Errorf("the move is %s while its old sessions go on", m.State)
	}
	if got := s.psql.ask("COMMIT; SELECT count(*) FROM survivors;"); got != fmt.Sprint(s.n) {
		t.Errorf("committed %s rows, want %d", got, s.n)
	}
	_ = s.psql.in.Close()
	if err := s.psql.cmd.Wait(); err != nil {
		t.Errorf("psql: %v", err)
	}
	_ = s.redis.in.Close()
	_ = s.redis.cmd.Wait() // ended by a signal
	s.file.hurry.Store(true)
	if err := <-s.file.ended; err != nil || s.file.got.Load() != downloadSize {
		t.Errorf("downloaded %d bytes, want %d, error %v", s.file.got.Load(), downloadSize, err)
	}
	// What was committed over the old address is there by the new one.
	out, err := s.lab.Exec(ctx, "c1", "psql", "-XqAt", "-h", s.now, "-U", "postgres", "bench", "-c", "SELECT count(*) FROM survivors")
	if err != nil || strings.TrimSpace(string(out)) != fmt.Sprint(s.n) {
		t.Errorf("by the new address there are %q rows, error %v, want %d", out, err, s.n)
	}
	if m, err = s.lab.Settled(ctx, m.Name); err != nil || m.State != drover.MoveDone {
		t.Fatalf("the move is %s (%s), error %v", m.State, m.Fault, err)
	}
	s.moved(m)
	var d drover.Diagnosis
	if err := s.lab.Drover(ctx, &d, "doctor"); err != nil || !d.OK {
		t.Errorf("doctor: %v, %+v", err, d.Findings)
	}
}
