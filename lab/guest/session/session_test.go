package session_test

import (
	"bufio"
	"context"
	"fmt"
	"hash/fnv"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/drover-vm/drover/lab/guest/session"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func serve(t *testing.T) (*session.Server, string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := session.New(slog.New(slog.DiscardHandler), "b00t")
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return s, ln.Addr().String()
}

func dial(t *testing.T, addr string) (net.Conn, *bufio.Reader) {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return conn, bufio.NewReader(conn)
}

func TestRepliesProveState(t *testing.T) {
	s, addr := serve(t)
	for id := 1; id <= 2; id++ { // each session has state of its own
		conn, in := dial(t, addr)
		h := fnv.New64a()
		var all strings.Builder
		for n := 10; n < 15; n++ {
			fmt.Fprintf(&all, "ECHO %d\n", n)
		}
		if _, err := io.WriteString(conn, all.String()); err != nil { // pipelined
			t.Fatal(err)
		}
		for i := range 5 {
			_, _ = fmt.Fprintf(h, "ECHO %d\n", 10+i)
			got, err := in.ReadString('\n')
			want := fmt.Sprintf("OK %d %d %d b00t %016x\n", id, i+1, 10+i, h.Sum64())
			if err != nil || got != want {
				t.Fatalf("reply %q (%v), want %q", got, err, want)
			}
		}
	}
	if st := s.Stats(); st.Opened != 2 || st.Lines != 10 || st.Failed != 0 {
		t.Errorf("stats %+v", st)
	}
}

func TestBadLinesAreRefused(t *testing.T) {
	_, addr := serve(t)
	for line, want := range map[string]string{
		"HELO 1\n":               "want ECHO <n>",
		"ECHO -1\n":              "want an unsigned decimal number",
		"ECHO 1x\n":              "want an unsigned decimal number",
		"\n":                     "want ECHO <n>",
		strings.Repeat("x", 100): "line longer than 64 bytes",
	} {
		conn, in := dial(t, addr)
		if _, err := io.WriteString(conn, line); err != nil {
			t.Fatal(err)
		}
		got, err := in.ReadString('\n')
		if err != nil || !strings.HasPrefix(got, "ERR ") || !strings.Contains(got, want) {
			t.Errorf("%q: reply %q (%v), want ERR and %q", line, got, err, want)
		}
		if rest, err := io.ReadAll(in); len(rest) > 0 || (err != nil && !strings.Contains(err.Error(), "reset")) {
			t.Errorf("%q: session goes on with %q, %v", line, rest, err)
		}
	}
}
