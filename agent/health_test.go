package agent

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api/droverv1"
)

// TestHealth asks in each way what is well, what is not and what gets well.
func TestHealth(t *testing.T) {
	w := newWorld(t)
	var tries atomic.Int32
	web := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/later" && tries.Add(1) < 2, r.URL.Path == "/bad":
			rw.WriteHeader(http.StatusServiceUnavailable)
		case r.URL.Path == "/elsewhere":
			http.Redirect(rw, r, "/bad", http.StatusFound)
		}
	}))
	defer web.Close()
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	nobody := closed.Addr().String()
	must(t, closed.Close())
	checks := filepath.Join(w.hosts["south1"].dir, "checks")
	must(t, os.MkdirAll(checks, 0o755))
	for name, text := range map[string]string{
		"good": `echo first; echo "$DROVER_VM $1"`, "bad": "echo no database; exit 3", "hangs": "sleep 60",
	} {
		must(t, os.WriteFile(filepath.Join(checks, name), []byte("#!/bin/sh\n"+text+"\n"), 0o755))
	}
	for _, c := range []struct {
		kind         drover.HealthKind
		target, want string
		healthy      bool
	}{
		{drover.HealthTCP, web.Listener.Addr().String(), "accepts connections", true},
		{drover.HealthTCP, nobody, "refused", false},
		{drover.HealthHTTP, web.URL + "/", "answers 200", true},
		{drover.HealthHTTP, web.URL + "/later", "answers 200", true},
		{drover.HealthHTTP, web.URL + "/elsewhere", "answers 302", true},
		{drover.HealthHTTP, web.URL + "/bad", "answers 503", false},
		{drover.HealthCommand, "good day", "good: web1 day", true},
		{drover.HealthCommand, "bad", "no database (exit status 3)", false},
		{drover.HealthCommand, "hangs", "killed", false},
		{"", "", "it runs", true},
	} {
		limit := int64(1200)
		if c.healthy {
			limit = 60_000
		}
		r := w.ask("south1", "gate", 1, &droverv1.CheckHealth{Kind: string(c.kind), Target: c.target, LimitMillis: limit})
		if r.GetHealthy() != c.healthy || !strings.Contains(r.GetDetail(), c.want) {
			t.Errorf("%s %s: healthy %v, %q; want %v, %q", c.kind, c.target, r.GetHealthy(), r.GetDetail(), c.healthy, c.want)
		}
	}
	for _, c := range []*droverv1.CheckHealth{
		{Kind: "command", Target: "missing"},
		{Kind: "command", Target: "../../bin/true"},
		{Kind: "tcp", Target: "x"},
		{Kind: "ping", Target: "x"},
	} {
		if _, err := w.run("south1", "gate", 1, c); drover.KindOf(err) != drover.Invalid {
			t.Errorf("%v: %v, want invalid", c, err)
		}
	}
}

// TestHealthEnds: a check ends when it is canceled, and when the VM has stopped.
func TestHealthEnds(t *testing.T) {
	w := newWorld(t)
	w.addVM()
	w.warm("start", 1)
	asked := make(chan error, 1)
	go func() {
		_, err := w.run("south1", "gate", 1, &droverv1.CheckHealth{Kind: "tcp", Target: "127.0.0.1:1", LimitMillis: 60_000})
		asked <- err
	}()
	for done := false; !done; {
		_, err := w.client("south1").Cancel(context.Background(), &droverv1.CancelRequest{Ref: request("gate", 1, &droverv1.CheckHealth{}).Ref, Step: "gate"})
		must(t, err)
		select {
		case err := <-asked:
			if drover.KindOf(err) != drover.Canceled {
				t.Errorf("a check that was canceled: %v", err)
			}
			done = true
		case <-time.After(50 * time.Millisecond):
		}
	}
	must(t, w.hosts["south1"].hyp.Destroy(t.Context(), vmName))
	r := w.ask("south1", "gate", 1, &droverv1.CheckHealth{Kind: "tcp", Target: "127.0.0.1:1", LimitMillis: 60_000})
	if r.GetHealthy() || !strings.Contains(r.GetDetail(), "does not run") {
		t.Errorf("a VM that is off: %v, %q", r.GetHealthy(), r.GetDetail())
	}
}
