package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/executor"
	"github.com/drover-vm/drover/pki"
	"github.com/drover-vm/drover/server"
	"github.com/drover-vm/drover/server/servertest"
	"github.com/drover-vm/drover/store"
	"github.com/drover-vm/drover/store/memory"
)

var update = flag.Bool("update", false, "rewrite the scripts' golden output")

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"drover": func() {
			ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
			status := run(ctx, stdio{os.Stdin, os.Stdout, os.Stderr}, os.Args[1:])
			stop()
			os.Exit(status)
		},
	})
}

// TestScripts runs the command line as a shell does, against a server in this
// process with two sites: n1 (web1, off1) and s1, s2.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:           "testdata/script",
		UpdateScripts: *update,
		Setup: func(env *testscript.Env) error {
			in := newInstallation(t, env)
			env.Values[installationKey{}] = in
			env.Setenv(configVariable, in.client)
			env.Setenv(labsVariable, filepath.Join(env.WorkDir, "labs"))
			env.Setenv("HOME", env.WorkDir)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"status":    status,
			"agent":     agentDo,
			"server":    serverDo,
			"await":     await,
			"lastmove":  lastMove,
			"allup":     allUp,
			"awaitfile": awaitFile,
		},
	})
}

type installationKey struct{}

// installation is a world with a server, and a client file for it.
type installation struct {
	*servertest.World
	t      *testing.T
	cfg    server.Config
	store  *memory.Store
	client string
	once   sync.Once
	cancel context.CancelFunc
	ended  chan error
}

func newInstallation(t *testing.T, env *testscript.Env) *installation {
	w := servertest.New(t,
		servertest.Place{Name: "n1", Site: "north"}, servertest.Place{Name: "s1", Site: "south"}, servertest.Place{Name: "s2", Site: "south"})
	in := &installation{World: w, t: t, cfg: w.Config("north", "south"), store: memory.New()}
	w.Agents["s2"].Set(func(s *servertest.State) { s.Host.MemoryFreeBytes = drover.GiB })
	w.Agents["n1"].Set(func(s *servertest.State) {
		s.VMs["web1"] = servertest.VM("web1")
		off := servertest.VM("off1")
		off.State, off.Probe = drover.VMOff, nil
		s.VMs["off1"] = off
		s.Links = []*droverv1.LinkCounters{{Name: "north-south", A: "north", B: "south", AbBytes: 1000, BaBytes: 100}}
		s.Probe = &droverv1.ProbeResult{OutageMs: 118, OutageHttpMs: 90, Sessions: 4, BeatsSent: 1000, BeatsAnswered: 1000, HttpOk: 50}
		s.SourceChecks = []drover.Check{{Name: "reach", OK: true, Detail: "the target answers"}}
	})
	for _, name := range []string{"s1", "s2"} {
		w.Agents[name].Set(func(s *servertest.State) {
			s.TargetChecks = []drover.Check{{Name: "memory", OK: true, Detail: "enough"}}
		})
	}
	in.client = filepath.Join(env.WorkDir, "client.yaml")
	f := w.Files(pki.Operator, "alice")
	text := fmt.Sprintf("server: unix://%s\ntls:\n  ca: %s\n  cert: %s\n  key: %s\n", in.cfg.Socket, f.CA, f.Cert, f.Key)
	if err := os.WriteFile(in.client, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	in.start()
	env.Defer(in.stop)
	return in
}

func (in *installation) start() {
	tls, err := pki.Config(in.cfg.TLS)
	if err != nil {
		in.t.Fatal(err)
	}
	s, err := server.New(server.Deps{
		Journal: in.store, Inventory: in.store, TLS: tls,
		Log:    slog.New(slog.DiscardHandler),
		Limits: executor.Limits{StepPatience: 2 * time.Second, RetryFirst: 5 * time.Millisecond, RetryMost: 50 * time.Millisecond},
		Sleep: func(ctx context.Context, d time.Duration) {
			select {
			case <-time.After(d / 1000):
			case <-ctx.Done():
			}
		},
	}, in.cfg)
	if err != nil {
		in.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	in.once, in.cancel, in.ended = sync.Once{}, cancel, make(chan error, 1)
	go func() { in.ended <- s.Run(ctx) }()
}

func (in *installation) stop() {
	in.once.Do(func() {
		in.cancel()
		if err := <-in.ended; err != nil {
			in.t.Errorf("server: %v", err)
		}
	})
}

func of(ts *testscript.TestScript) *installation {
	return ts.Value(installationKey{}).(*installation)
}

// status runs a command and wants its exit status: status 2 drover bogus.
func status(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status N COMMAND…")
	}
	err := ts.Exec(args[1], args[2:]...)
	got := 0
	if err != nil {
		var code interface{ ExitCode() int }
		if !errors.As(err, &code) {
			ts.Fatalf("%v", err)
		}
		got = code.ExitCode()
	}
	if fmt.Sprint(got) != args[0] {
		ts.Fatalf("exit status %d, want %s", got, args[0])
	}
}

// agentDo changes an agent: agent NAME stop|start, agent NAME hold|let|fail STEP,
// agent NAME short (of memory).
func agentDo(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: agent NAME stop|start|hold STEP|let STEP|fail STEP|short")
	}
	a := of(ts).Agents[args[0]]
	switch what := args[1]; what {
	case "stop":
		a.Stop()
	case "start":
		a.Start()
	case "short":
		a.Set(func(s *servertest.State) {
			s.TargetChecks = []drover.Check{{Name: "memory", Detail: "256 MiB wanted, 100 MiB free", Fix: "free memory on " + args[0] + ", or take another host"}}
		})
	case "hold":
		a.Set(func(s *servertest.State) { s.Hold[args[2]] = make(chan struct{}) })
	case "let":
		a.Set(func(s *servertest.State) {
			close(s.Hold[args[2]])
			delete(s.Hold, args[2])
		})
	case "fail":
		a.Set(func(s *servertest.State) {
			s.Fail[args[2]] = drover.Errorf(drover.Exhausted, strings.ReplaceAll(args[2], "-", " "), "no space left")
		})
	default:
		ts.Fatalf("agent: %q", what)
	}
}

// serverDo ends or starts the server.
func serverDo(ts *testscript.TestScript, _ bool, args []string) {
	switch in := of(ts); args[0] {
	case "stop":
		in.stop()
	case "start":
		in.start()
	default:
		ts.Fatalf("server: %q", args[0])
	}
}

// awaitFile waits until a file has the text: awaitfile TEXT FILE.
func awaitFile(ts *testscript.TestScript, _ bool, args []string) {
	var got []byte
	for end := time.Now().Add(30 * time.Second); !strings.Contains(string(got), args[0]); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			ts.Fatalf("no %q in %s within 30 s:\n%s", args[0], args[1], got)
		}
		got, _ = os.ReadFile(ts.MkAbs(args[1]))
	}
}

// lastMove sets $MOVE to the name of the newest move.
func lastMove(ts *testscript.TestScript, _ bool, _ []string) {
	all, _, err := of(ts).store.List(context.Background(), store.Filter{})
	ts.Check(err)
	if len(all) == 0 {
		ts.Fatalf("there is no move")
	}
	ts.Setenv("MOVE", all[len(all)-1].Move.Name)
}

// allUp waits until the server has heard of every agent.
func allUp(ts *testscript.TestScript, _ bool, _ []string) {
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if ts.Exec("drover", "hosts", "-o", "json") == nil && !strings.Contains(ts.ReadFile("stdout"), `"up": false`) {
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("not every host is up within 30 s")
		}
	}
}

// await runs a command again and again until its output has the text:
// await TEXT COMMAND….
func await(ts *testscript.TestScript, _ bool, args []string) {
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		err := ts.Exec(args[1], args[2:]...)
		if strings.Contains(ts.ReadFile("stdout")+ts.ReadFile("stderr"), args[0]) {
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("no %q within 30 s (%v)", args[0], err)
		}
	}
}
