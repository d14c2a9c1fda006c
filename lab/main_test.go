package lab_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/drover-vm/drover/lab"
	"github.com/drover-vm/drover/lab/labfile"
	"github.com/drover-vm/drover/lab/node"
)

// upCommand makes the test binary start the lab file os.Args[3] in the folder
// os.Args[2], so that a test can kill it half way.
const upCommand = "test-lab-up"

// TestMain lets the test binary be the drover that a lab's holders and emulator
// run.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case node.Subcommand:
			os.Exit(node.Main(os.Args[2:]))
		case lab.WANSubcommand:
			os.Exit(lab.WANMain(os.Args[2:]))
		case upCommand:
			os.Exit(upMain(os.Args[2], os.Args[3]))
		}
	}
	os.Exit(m.Run())
}

func upMain(dir, file string) int {
	f, err := labfile.Load(file)
	if err == nil {
		_, err = lab.Up(context.Background(), lab.Options{Dir: dir, Bare: true}, f)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// testWriter passes log lines to the test.
type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

// options are for the labs of this test alone; when it ends they are taken down
// and nothing of them may be left.
func options(t *testing.T) lab.Options {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test starts a lab and needs root: run it as root")
	}
	// Not t.TempDir: sockets live in it, and their paths have to be short.
	dir, err := os.MkdirTemp("", "dl")
	if err != nil {
		t.Fatal(err)
	}
	before := interfaces(t)
	o := lab.Options{Dir: dir, Bare: true, Log: slog.New(slog.NewTextHandler(testWriter{t}, nil))}
	t.Cleanup(func() {
		down := o
		down.Log = nil
		if _, err := lab.Down(context.Background(), down, "", true); err != nil {
			t.Errorf("down: %v", err)
		}
		nothingLeft(t, dir, before)
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return o
}

// interfaces are the machine's own interfaces.
func interfaces(t *testing.T) []string {
	t.Helper()
	list, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, i := range list {
		names = append(names, i.Name)
	}
	return names
}

// nothingLeft checks that no process, mount, file or interface of the labs in dir
// is left on the machine.
func nothingLeft(t *testing.T, dir string, before []string) {
	t.Helper()
	left, err := os.ReadDir(dir)
	if err != nil {
		t.Error(err)
	}
	for _, e := range left {
		t.Errorf("left behind: %s", filepath.Join(dir, e.Name()))
	}
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range procs {
		if filepath.Base(p) == fmt.Sprint(os.Getpid()) {
			continue
		}
		// A process that ends meanwhile has nothing to be read.
		args, _ := os.ReadFile(p + "/cmdline")
		if strings.Contains(string(args), dir) {
			t.Errorf("left behind: process %s %q", filepath.Base(p), args)
		}
		mounts, _ := os.ReadFile(p + "/mountinfo")
		for line := range strings.Lines(string(mounts)) {
			if strings.Contains(line, dir) {
				t.Errorf("left behind: a mount of process %s: %s", filepath.Base(p), line)
			}
		}
	}
	for _, name := range interfaces(t) {
		if !slices.Contains(before, name) {
			t.Errorf("left behind: interface %s", name)
		}
	}
}

// load parses a lab file.
func load(t *testing.T, text string) *labfile.File {
	t.Helper()
	f, err := labfile.Parse("test.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// up starts a lab and fails the test when it does not start.
func up(t *testing.T, o lab.Options, f *labfile.File) *lab.Lab {
	t.Helper()
	l, err := lab.Up(t.Context(), o, f)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// sh runs a shell command in a node and returns its output.
func sh(t *testing.T, l *lab.Lab, name, script string) (string, error) {
	t.Helper()
	cmd, err := l.Command(t.Context(), name, "sh", "-c", script)
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// must runs a shell command in a node that has to succeed.
func must(t *testing.T, l *lab.Lab, name, script string) string {
	t.Helper()
	out, err := sh(t, l, name, script)
	if err != nil {
		t.Fatalf("%s: %s: %v\n%s", name, script, err, out)
	}
	return out
}
