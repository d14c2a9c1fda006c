package probe_test

import (
	"bufio"
	"context"
	"fmt"
	"hash"
	"hash/fnv"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/lab/guest/session"
	"github.com/drover-vm/drover/probe"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// server is the lab guest's real session server behind a relay on loopback
// that can stall or reset the sessions that pass it.
type server struct {
	addr string

	mu      sync.Mutex
	stalled sync.RWMutex // held for writing during a stall
	conns   []net.Conn
	backend atomic.Pointer[string]
}

func startSessions(t *testing.T, boot string) (addr string) {
	t.Helper()
	ln := listen(t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- session.New(slog.New(slog.DiscardHandler), boot).Serve(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("session server: %v", err)
		}
	})
	return ln.Addr().String()
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

func startRelay(t *testing.T, backend string) *server {
	t.Helper()
	s := &server{}
	s.backend.Store(&backend)
	ln := listen(t)
	s.addr = ln.Addr().String()
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			in, err := ln.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", *s.backend.Load())
			if err != nil {
				_ = in.Close()
				continue
			}
			s.mu.Lock()
			s.conns = append(s.conns, in, out)
			s.mu.Unlock()
			wg.Go(func() { s.copy(out, in) })
			wg.Go(func() { s.copy(in, out) })
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		s.reset()
		wg.Wait()
	})
	return s
}

func (s *server) copy(to, from net.Conn) {
	defer func() { _, _ = to.Close(), from.Close() }()
	buf := make([]byte, 1<<16)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		s.stalled.RLock()
		_, err = to.Write(buf[:n])
		s.stalled.RUnlock()
		if err != nil {
			return
		}
	}
}

// reset breaks all sessions with a TCP reset.
func (s *server) reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.conns {
		_ = c.(*net.TCPConn).SetLinger(0)
		_ = c.Close()
	}
	s.conns = nil
}

// stall keeps everything back for d.
func (s *server) stall(d time.Duration) {
	s.stalled.Lock()
	time.Sleep(d)
	s.stalled.Unlock()
}

// until waits for the prober to have seen something.
func until(t *testing.T, p *probe.Prober, what string, seen func(probe.Result) bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !seen(p.Snapshot()); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not seen; result %+v", what, p.Snapshot())
		}
	}
}

func start(t *testing.T, cfg probe.Config) *probe.Prober {
	t.Helper()
	p, err := probe.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Stop() })
	return p
}

func TestStallIsMeasuredAndNoSessionLost(t *testing.T) {
	s := startRelay(t, startSessions(t, "b1"))
	p := start(t, probe.Config{Target: s.addr})
	until(t, p, "50 beats", func(r probe.Result) bool { return r.BeatsAnswered >= 50 })
	sent := p.Snapshot().BeatsSent
	const outage = 700 * time.Millisecond
	s.stall(outage)
	during := p.Snapshot()
	until(t, p, "replies after the stall", func(r probe.Result) bool { return r.BeatsAnswered >= during.BeatsSent+50 })
	r := p.Stop()
	if r.OutageMS < 700 {
		t.Errorf("outage_ms = %v, want at least the stall's 700", r.OutageMS)
	}
	if r.SessionsLost != 0 || r.Sessions != 4 {
		t.Errorf("lost %d of %d sessions: %v", r.SessionsLost, r.Sessions, r.Lost)
	}
	// Beats go on while nothing is answered: a prober that waits for each
	// reply would send one per session here.
	if n := during.BeatsSent - sent; n < 4*10 {
		t.Errorf("%d beats sent during the stall by 4 sessions, want them to go on", n)
	}
	// The replies that the stall held back are in the gap, not in the
	// latency before or after it.
	if r.RTT.Before.P50 <= 0 || r.RTT.After.P50 <= 0 {
		t.Errorf("rtt = %+v, want measurements before and after", r.RTT)
	}
	if r.RTT.Before.Max >= 700 || r.RTT.After.Max >= 700 {
		t.Errorf("rtt = %+v contains beats of the outage", r.RTT)
	}
	if len(r.Gaps) != 10 || r.Gaps[0].MS != r.OutageMS {
		t.Errorf("gaps = %v, want 10, the first of %v ms", r.Gaps, r.OutageMS)
	}
	if len(r.Boots) != 1 || r.Boots[0] != "b1" {
		t.Errorf("boots = %v, want b1", r.Boots)
	}
}

func TestResetLosesSessionsAndOutageEndsAtReconnect(t *testing.T) {
	s := startRelay(t, startSessions(t, "b1"))
	p := start(t, probe.Config{Target: s.addr, Sessions: 3})
	until(t, p, "20 beats", func(r probe.Result) bool { return r.BeatsAnswered >= 20 })
	second := startSessions(t, "b2") // the machine is started again
	s.backend.Store(&second)
	s.reset()
	until(t, p, "second boot", func(r probe.Result) bool { return len(r.Boots) == 2 })
	answered := p.Snapshot().BeatsAnswered
	until(t, p, "more replies", func(r probe.Result) bool { return r.BeatsAnswered > answered+30 })
	r := p.Stop()
	if r.SessionsLost != 3 || len(r.Lost) != 3 {
		t.Errorf("lost %d sessions (%v), want 3", r.SessionsLost, r.Lost)
	}
}

func TestUnansweredTailCounts(t *testing.T) {
	s := startRelay(t, startSessions(t, "b1"))
	p := start(t, probe.Config{Target: s.addr, Sessions: 1})
	s.stalled.Lock()
	time.Sleep(300 * time.Millisecond)
	snap := p.Snapshot()
	r := p.Stop()
	s.stalled.Unlock()
	// One reply may have been on its way when the stall began.
	if snap.OutageMS < 200 || r.OutageMS < snap.OutageMS {
		t.Errorf("outage_ms = %v, then %v at the end: want the open gap counted", snap.OutageMS, r.OutageMS)
	}
	if again := p.Stop(); again.OutageMS != r.OutageMS || !again.Ended.Equal(r.Ended) {
		t.Errorf("second Stop: %v, want %v", again.OutageMS, r.OutageMS)
	}
}

func TestSilenceBeyondLimitLosesSession(t *testing.T) {
	s := startRelay(t, startSessions(t, "b1"))
	p := start(t, probe.Config{Target: s.addr, Sessions: 1, LostAfter: 200 * time.Millisecond})
	s.stalled.Lock()
	until(t, p, "loss", func(r probe.Result) bool { return r.SessionsLost > 0 })
	s.stalled.Unlock()
	r := p.Stop()
	if !strings.Contains(r.Lost[0].Reason, "silent for 200ms") {
		t.Errorf("reason %q", r.Lost[0].Reason)
	}
}

// TestStateIsProven has a server that answers well formed, and at the tenth
// line forgets one part of the session's state.
func TestStateIsProven(t *testing.T) {
	for name, forget := range map[string]func(*sheepSession){
		"count":   func(s *sheepSession) { s.count = 0 },
		"session": func(s *sheepSession) { s.id = "8" },
		"boot":    func(s *sheepSession) { s.boot = "b2" },
		"hash":    func(s *sheepSession) { s.hash.Reset() },
		"number":  func(s *sheepSession) { s.skew = 1 },
	} {
		t.Run(name, func(t *testing.T) {
			addr := serveLines(t, func() func(string) string {
				s := newSheepSession("7", "b1")
				lines := 0
				return func(line string) string {
					if lines++; lines == 10 {
						forget(s)
					}
					return s.answer(line)
				}
			})
			p := start(t, probe.Config{Target: addr, Sessions: 1})
			until(t, p, "loss", func(r probe.Result) bool { return r.SessionsLost > 0 })
			r := p.Stop()
			if want := "session state lost: " + name; !strings.HasPrefix(r.Lost[0].Reason, want) {
				t.Errorf("reason %q, want %q", r.Lost[0].Reason, want)
			}
		})
	}
}

func TestRedisAndLine(t *testing.T) {
	for _, tc := range []struct {
		cfg       probe.Config
		want, bad string
	}{
		{probe.Config{Kind: probe.KindRedis}, "PING\r\n+PONG\r\n", "-LOADING\r\n"},
		{probe.Config{Kind: probe.KindLine, Send: "hello", Expect: "world"}, "hello\nworld\n", "nobody\n"},
	} {
		t.Run(string(tc.cfg.Kind), func(t *testing.T) {
			request, reply, _ := strings.Cut(tc.want, "\n")
			var broken atomic.Bool
			addr := serveLines(t, func() func(string) string {
				return func(line string) string {
					if line != request+"\n" || broken.Load() {
						return tc.bad
					}
					return reply
				}
			})
			tc.cfg.Target, tc.cfg.Sessions = addr, 2
			p := start(t, tc.cfg)
			until(t, p, "20 beats", func(r probe.Result) bool { return r.BeatsAnswered >= 20 })
			if r := p.Snapshot(); r.SessionsLost != 0 {
				t.Errorf("lost: %v", r.Lost)
			}
			broken.Store(true)
			until(t, p, "loss", func(r probe.Result) bool { return r.SessionsLost >= 2 })
		})
	}
}

func TestHTTPOutage(t *testing.T) {
	var down atomic.Bool
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if down.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer srv.Close()
	p := start(t, probe.Config{URL: srv.URL, HTTPInterval: 10 * time.Millisecond})
	until(t, p, "10 responses", func(r probe.Result) bool { return r.HTTPOK >= 10 })
	down.Store(true)
	time.Sleep(400 * time.Millisecond)
	down.Store(false)
	ok := p.Snapshot().HTTPOK
	until(t, p, "responses again", func(r probe.Result) bool { return r.HTTPOK > ok+10 })
	r := p.Stop()
	if r.OutageHTTPMS < 380 { // a request may have been under way
		t.Errorf("outage_http_ms = %v, want about 400", r.OutageHTTPMS)
	}
	if r.HTTPFailed == 0 || r.OutageMS != 0 || r.Gaps[0].Client != -1 {
		t.Errorf("result %+v", r)
	}
}

func TestStartFailsInOneLine(t *testing.T) {
	ln := listen(t)
	free := ln.Addr().String()
	_ = ln.Close()
	mute := listen(t) // accepts in the kernel and never answers
	defer func() { _ = mute.Close() }()
	for name, tc := range map[string]struct {
		cfg  probe.Config
		kind drover.Kind
		want string
	}{
		"nothing":     {probe.Config{}, drover.Invalid, "neither a target nor a URL"},
		"no port":     {probe.Config{Target: "host"}, drover.Invalid, `target "host": want HOST:PORT`},
		"kind":        {probe.Config{Target: "h:1", Kind: "smtp"}, drover.Invalid, `kind "smtp"`},
		"line":        {probe.Config{Target: "h:1", Kind: probe.KindLine}, drover.Invalid, "kind line: want what to send"},
		"sessions":    {probe.Config{Target: "h:1", Sessions: -1}, drover.Invalid, "sessions -1"},
		"beat":        {probe.Config{Target: "h:1", Beat: time.Microsecond}, drover.Invalid, "beat 1µs"},
		"limit":       {probe.Config{Target: "h:1", LostAfter: -1}, drover.Invalid, "lost-after"},
		"url":         {probe.Config{URL: "ftp://h"}, drover.Invalid, `url "ftp://h"`},
		"refused":     {probe.Config{Target: free}, drover.Unavailable, "refused"},
		"mute":        {probe.Config{Target: mute.Addr().String(), OpenTimeout: 50 * time.Millisecond}, drover.Unavailable, "no answer within 50ms"},
		"url refused": {probe.Config{URL: "http://" + free}, drover.Unavailable, "refused"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := probe.Start(t.Context(), tc.cfg)
			if err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "\n") {
				t.Fatalf("error %v, want one line with %q", err, tc.want)
			}
			if drover.KindOf(err) != tc.kind {
				t.Errorf("kind %v, want %v", drover.KindOf(err), tc.kind)
			}
		})
	}
}

func TestRunEndsWithContext(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	r, err := probe.Run(ctx, probe.Config{Target: startSessions(t, "b1"), Beat: 2 * time.Millisecond})
	if err != nil || r.BeatsAnswered == 0 || r.SessionsLost != 0 {
		t.Errorf("result %+v, error %v", r, err)
	}
}

// serveLines answers each line of each connection by a function of its own.
func serveLines(t *testing.T, newAnswer func() func(string) string) (addr string) {
	t.Helper()
	ln := listen(t)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer func() { _ = conn.Close() }()
				answer := newAnswer()
				in := bufio.NewReader(conn)
				for {
					line, err := in.ReadString('\n')
					if err != nil {
						return
					}
					if _, err := io.WriteString(conn, answer(line)); err != nil {
						return
					}
				}
			})
		}
	})
	t.Cleanup(func() { _ = ln.Close(); wg.Wait() })
	return ln.Addr().String()
}

// sheepSession is the guest's protocol written down a second time, so that a
// test can break it.
type sheepSession struct {
	id, boot string
	count    uint64
	hash     hash.Hash64
	skew     uint64
}

func newSheepSession(id, boot string) *sheepSession {
	return &sheepSession{id: id, boot: boot, hash: fnv.New64a()}
}

func (s *sheepSession) answer(line string) string {
	var n uint64
	if _, err := fmt.Sscanf(line, "ECHO %d\n", &n); err != nil {
		return "ERR\n"
	}
	s.count++
	_, _ = s.hash.Write([]byte(line))
	return fmt.Sprintf("OK %s %d %d %s %016x\n", s.id, s.count, n+s.skew, s.boot, s.hash.Sum64())
}
