package wanem_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/lab/wanem"
)

// serve runs a control server until the test ends and returns its client.
func serve(t *testing.T, links ...*wanem.Link) wanem.Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "wan.sock")
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- wanem.Serve(ctx, slog.New(slog.DiscardHandler), path, links) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Errorf("the socket is left: %v", err)
		}
	})
	client := wanem.Client{Path: path}
	for {
		if _, err := client.List(ctx); err == nil {
			return client
		} else if drover.KindOf(err) != drover.Unavailable {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestControl(t *testing.T) {
	l, _, _ := newLink(t, wanem.Shape{RateBps: 1e9})
	client := serve(t, l)
	ctx := t.Context()

	all, err := client.List(ctx)
	if err != nil || len(all) != 1 || all[0].Name != "a-b" {
		t.Fatalf("%+v, %v", all, err)
	}
	rate, delay, cut := int64(100e6), 25*time.Millisecond, true
	after, err := client.Set(ctx, "a-b", wanem.ShapeChange{RateBps: &rate, Delay: &delay})
	if err != nil {
		t.Fatal(err)
	}
	want := wanem.Shape{RateBps: rate, Delay: delay}
	if diff := cmp.Diff(want, after.Shape); diff != "" {
		t.Error(diff)
	}
	if _, err := client.Set(ctx, "a-b", wanem.ShapeChange{Cut: &cut}); err != nil {
		t.Fatal(err)
	}
	want.Cut = true
	status, err := client.Status(ctx, "a-b")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(l.Status(), status); diff != "" {
		t.Errorf("client and link differ:\n%s", diff)
	}
	if status.Shape != want {
		t.Errorf("%+v, want %+v", status.Shape, want)
	}
	loss := 1.5
	_, err = client.Set(ctx, "a-b", wanem.ShapeChange{Loss: &loss})
	if drover.KindOf(err) != drover.Invalid || err.Error() != "set link a-b: loss 1.5: want a probability from 0 to 1" {
		t.Errorf("loss 1.5: %v", err)
	}
	for _, name := range []string{"x", "", ".", "a/b", "a-b&name=c", "\n"} {
		if _, err := client.Status(ctx, name); drover.KindOf(err) != drover.NotFound {
			t.Errorf("link %q: %v", name, err)
		}
	}
	if got := l.Status().Shape; got != want {
		t.Errorf("refused calls left %+v", got)
	}
}

// Changes of different settings from many clients at once are all kept.
func TestConcurrentChanges(t *testing.T) {
	l, _, _ := newLink(t, wanem.Shape{})
	client := serve(t, l)
	rate, delay, jitter, queue := int64(1e6), time.Second, time.Millisecond, 5000
	var wg sync.WaitGroup
	for _, c := range []wanem.ShapeChange{{RateBps: &rate}, {Delay: &delay}, {Jitter: &jitter}, {QueueBytes: &queue}} {
		wg.Go(func() {
			for range 10 {
				if _, err := client.Set(t.Context(), "a-b", c); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if got, want := l.Status().Shape, (wanem.Shape{RateBps: rate, Delay: delay, Jitter: jitter, QueueBytes: queue}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func TestControlRefusesBadBodies(t *testing.T) {
	l, _, _ := newLink(t, wanem.Shape{RateBps: 1e6})
	client := serve(t, l)
	raw := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", client.Path)
		},
	}}
	for body, says := range map[string]string{
		`{"rate":5}`:                   `unknown field \"rate\"`,
		`{"rate_bps":"fast"}`:          "rate_bps",
		`{"loss":`:                     "unexpected EOF",
		``:                             "EOF",
		`[]`:                           "array",
		`{"rate_bps":2000000} {"x":2}`: "comes after",
		`{"loss":` + strings.Repeat(" ", 1<<17) + `0}`: "too large",
	} {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPatch, "http://wanem/link?name=a-b", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		response, err := raw.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := io.ReadAll(response.Body)
		_ = response.Body.Close()
		if err != nil || response.StatusCode != http.StatusBadRequest || !strings.Contains(string(answer), says) {
			t.Errorf("%.40s: %s %s, %v", body, response.Status, answer, err)
		}
	}
	if got := l.Status().Shape; got != (wanem.Shape{RateBps: 1e6}) {
		t.Errorf("bad bodies left %+v", got)
	}
}

func TestControlSocket(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	folder := t.TempDir()
	nobody := wanem.Client{Path: filepath.Join(folder, "none.sock")}
	if _, err := nobody.List(t.Context()); drover.KindOf(err) != drover.Unavailable || !strings.Contains(err.Error(), nobody.Path) {
		t.Errorf("no server: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := nobody.List(ctx); drover.KindOf(err) != drover.Canceled {
		t.Errorf("canceled: %v", err)
	}

	client := serve(t)
	if err := wanem.Serve(t.Context(), log, client.Path, nil); drover.KindOf(err) != drover.Exists {
		t.Errorf("second server: %v", err)
	}
	if _, err := client.List(t.Context()); err != nil {
		t.Errorf("the first server after the second: %v", err)
	}
	info, err := os.Stat(client.Path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", info.Mode(), err)
	}

	file := filepath.Join(folder, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := wanem.Serve(t.Context(), log, file, nil); err == nil {
		t.Error("served on a plain file")
	}
	if b, _ := os.ReadFile(file); string(b) != "precious" {
		t.Error("the file is gone")
	}

	// What a killed process leaves: a socket nobody listens at.
	stale := filepath.Join(folder, "stale.sock")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	if err := dead.Close(); err != nil {
		t.Fatal(err)
	}
	if err := wanem.Serve(ctx, log, stale, nil); err != nil {
		t.Errorf("over a dead socket: %v", err)
	}
}

func ExampleFormatRate() {
	rate, err := wanem.ParseRate("622.08 Mbit")
	fmt.Println(rate, wanem.FormatRate(rate), err)
	// Output: 622080000 622.08 Mbit/s <nil>
}
