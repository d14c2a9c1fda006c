package node

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// holder serves a node's services in this process, without namespaces.
func holder(t *testing.T, services ...Service) (dir string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "dn") // short, for the socket
	if err != nil {
		t.Fatal(err)
	}
	c := Config{Name: "n", Dir: dir, Services: services}
	if err := c.Write(); err != nil {
		t.Fatal(err)
	}
	logs, err := os.OpenRoot(filepath.Join(dir, logFolder))
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: ControlSocket(dir), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	sup := newSupervisor(slog.New(slog.DiscardHandler), services, logs)
	done := make(chan struct{}, 2)
	go func() { sup.reap(ctx); done <- struct{}{} }()
	go func() {
		if err := serve(ctx, slog.New(slog.DiscardHandler), l, sup); err != nil {
			t.Error(err)
		}
		done <- struct{}{}
	}()
	t.Cleanup(func() {
		for _, s := range services {
			if _, err := Ask(context.Background(), dir, Stop, s.Name); err != nil {
				t.Error(err)
			}
		}
		cancel()
		<-done
		<-done
		logs.Close()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
		goleak.VerifyNone(t)
	})
	return dir
}

func ask(t *testing.T, dir string, a Action, service string) []Status {
	t.Helper()
	st, err := Ask(t.Context(), dir, a, service)
	if err != nil {
		t.Fatalf("%s %s: %v", a, service, err)
	}
	return st
}

// until asks for the states until ok says so.
func until(t *testing.T, dir, what string, ok func([]Status) bool) []Status {
	t.Helper()
	var st []Status
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if st = ask(t, dir, List, ""); ok(st) {
			return st
		}
	}
	t.Fatalf("not %s: %+v", what, st)
	return nil
}

func TestServices(t *testing.T) {
	dir := holder(t,
		Service{Name: "lives", Args: []string{"sh", "-c", "echo $MARK; exec sleep 1000"}, Env: []string{"MARK=marked"}},
		Service{Name: "dies", Args: []string{"sh", "-c", "exit 3"}})
	if st := ask(t, dir, List, ""); st[0].State != Stopped || st[1].State != Stopped {
		t.Fatalf("%+v: want nothing running yet", st)
	}
	first := ask(t, dir, Start, "lives")[0]
	if first.State != Running || first.PID == 0 {
		t.Fatalf("%+v: want it running", first)
	}
	if again := ask(t, dir, Start, "lives")[0]; again.PID != first.PID {
		t.Errorf("%+v: want the process that runs left alone", again)
	}
	// It is killed when it has written: on a busy machine a shell takes a while.
	for range 1000 {
		if b, err := os.ReadFile(ServiceLog(dir, "lives")); err == nil && len(b) > 0 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	ask(t, dir, Kill, "lives")
	st := until(t, dir, "started again", func(st []Status) bool { return st[0].State == Running && st[0].PID != first.PID })
	if st[0].Starts != 2 || st[0].LastExit != "signal killed" {
		t.Errorf("%+v: want a second start after a kill", st[0])
	}
	if st := ask(t, dir, Restart, "lives"); st[0].State != Running || st[0].Starts != 3 {
		t.Errorf("%+v: want a third start", st[0])
	}
	if st := ask(t, dir, Stop, "lives"); st[0].State != Stopped || st[0].PID != 0 || st[0].LastExit != "signal terminated" {
		t.Errorf("%+v: want it stopped", st[0])
	}
	if _, err := Ask(t.Context(), dir, Kill, "lives"); err == nil || !strings.Contains(err.Error(), "not running") {
		t.Errorf("%v: want nothing to kill", err)
	}
	// A start that was killed at once may not have come to write.
	b, err := os.ReadFile(ServiceLog(dir, "lives"))
	if err != nil || len(b) == 0 || strings.ReplaceAll(string(b), "marked\n", "") != "" {
		t.Errorf("the log is %q, %v", b, err)
	}

	ask(t, dir, Start, "dies")
	st = until(t, dir, "dying again", func(st []Status) bool { return st[1].Starts >= 2 && st[1].State == Waiting })
	if st[1].LastExit != "status 3" {
		t.Errorf("%+v: want its exit status", st[1])
	}
	// Stopped while it waits for its next start, it never has one.
	starts := ask(t, dir, Stop, "dies")[1].Starts
	time.Sleep(restartDelay + restartDelay/2)
	if st := ask(t, dir, List, "")[1]; st.State != Stopped || st.Starts != starts {
		t.Errorf("%+v: want it to stay stopped after %d starts", st, starts)
	}
}

func TestAskErrors(t *testing.T) {
	dir := holder(t, Service{Name: "none", Args: []string{"no-such-program"}})
	for _, c := range []struct {
		action  Action
		service string
		want    string
	}{
		{Start, "none", "no-such-program"},
		{Start, "other", `no service "other" here, there are [none]`},
		{"dance", "none", `unknown action "dance"`},
	} {
		if _, err := Ask(t.Context(), dir, c.action, c.service); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %s: %v, want %s", c.action, c.service, err, c.want)
		}
	}
	if _, err := Ask(t.Context(), t.TempDir(), List, ""); err == nil || !strings.Contains(err.Error(), "holder does not answer") {
		t.Errorf("%v: want no holder", err)
	}
}

func TestConfig(t *testing.T) {
	for _, c := range []Config{
		{},
		{Name: "n", Dir: "/x", Services: []Service{{Name: "a/b", Args: []string{"x"}}}},
		{Name: "n", Dir: "/x", Services: []Service{{Name: "a"}}},
		{Name: "n", Dir: "/x", Services: []Service{{Name: "a", Args: []string{"x"}}, {Name: "a", Args: []string{"x"}}}},
	} {
		if err := c.Validate(); err == nil {
			t.Errorf("%+v is valid", c)
		}
	}
}

// TestStartAndWait starts processes that are ready, say why not, end, and hang.
func TestStartAndWait(t *testing.T) {
	start := func(ctx context.Context, script string) (*exec.Cmd, error) {
		cmd := exec.Command("sh", "-c", script)
		return cmd, StartAndWait(ctx, cmd)
	}
	cmd, err := start(t.Context(), "printf ok >&3; exec 3>&-; exec sleep 1000")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(cmd.Process.Kill(), ignoreExit(cmd.Wait())); err != nil {
		t.Error(err)
	}
	if _, err := start(t.Context(), "printf 'no bridge' >&3; exit 1"); err == nil || err.Error() != "no bridge" {
		t.Errorf("%v: want what the process said", err)
	}
	if _, err := start(t.Context(), "exit 4"); err == nil || !strings.Contains(err.Error(), "exit status 4") {
		t.Errorf("%v: want its exit status", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	if _, err := start(ctx, "exec sleep 1000"); !errors.Is(err, context.Canceled) {
		t.Errorf("%v: want it canceled", err)
	}
}

func ignoreExit(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil
	}
	return err
}

// TestMainAlone runs the holder's entry outside a lab: it refuses.
func TestMainAlone(t *testing.T) {
	for _, args := range [][]string{nil, {"--lab", "/nonexistent", "--node", "n"}, {"--bogus"}} {
		if status := Main(args); status != 1 {
			t.Errorf("%v: exit status %d, want 1", args, status)
		}
	}
}
