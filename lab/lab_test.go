package lab_test

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"strings"
	"testing"

	"github.com/drover-vm/drover/lab"
	"github.com/drover-vm/drover/lab/labfile"
)

// testWriter passes log lines to the test.
type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

// options are for a lab of this test alone: its folder is short because sockets
// live in it.
func options(t *testing.T) lab.Options {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test starts a lab and needs root: run it as root")
	}
	dir, err := os.MkdirTemp("", "dl")
	if err != nil {
		t.Fatal(err)
	}
	o := lab.Options{Dir: dir, Bare: true, Log: slog.New(slog.NewTextHandler(testWriter{t}, nil))}
	t.Cleanup(func() {
		o.Log = nil
		if _, err := lab.Down(context.Background(), o, "", true); err != nil {
			t.Errorf("down: %v", err)
		}
		if err := os.Remove(dir); err != nil {
			t.Errorf("the labs' folder is not empty: %v", err)
		}
	})
	return o
}

func load(t *testing.T, text string) *labfile.File {
	t.Helper()
	f, err := labfile.Parse("test.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestTiny(t *testing.T) {
	ctx := t.Context()
	o := options(t)
	o.WaitGuests = true
	f, err := labfile.Load("tiny")
	if err != nil {
		t.Fatal(err)
	}
	l, err := lab.Up(ctx, o, f)
	if err != nil {
		t.Fatal(err)
	}
	cmd, err := l.Command(ctx, "s1", "ping", "-c", "3", "-i", "0.2", "10.1.0.2")
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Run()
	t.Log(out.String(), err)
}
