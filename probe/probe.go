// Package probe measures the outage of a moved machine as a client sees it.
// It runs anywhere a client can run: it needs a TCP address or a URL and
// nothing of Drover.
//
// # What is measured
//
// A Prober is a number of clients, each with one long-lived TCP session on
// which a beat (a short request line) is sent every Config.Beat, whether or
// not the ones before were answered. So a stall does not slow the measurement
// down and hide itself, as it would if the next request waited for the last
// reply. Beside them an HTTP client starts a request on a new connection
// every Config.HTTPInterval, again without waiting.
//
// outage_ms is the longest time between two consecutive replies that any one
// of the TCP clients saw, nothing subtracted: with a beat of 10 ms and a calm
// path it is a little over 10. The time from the last reply to the end of the
// measurement counts as well. A client whose session is lost connects again,
// and its gap lasts until the first reply on the new session: for a machine
// that was restarted the outage ends when it serves again, not when the old
// session broke.
//
// outage_http_ms is the longest time between two successful responses, by
// their arrival.
//
// The two differ for a reason. TCP's retransmission timer doubles while a
// path is silent, from about 200 ms up: after an outage of 3 s the next
// retransmission of an open session may be 3 s away, and its client sees 6 s.
// That is the truth for that client and is reported as it is. New connections
// are started all the time and find the path soon after it is back, so
// outage_http_ms is closer to the outage of the path (a first SYN that is
// lost is repeated after 1 s, but the next request is never far behind).
//
// The prober can itself be kept waiting by its machine. prober_stall_ms says
// for how long at most: an outage of that size may be the prober's own.
package probe

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/drover-vm/drover"
)

// Kind is a request and reply protocol.
type Kind string

// The kinds.
const (
	// KindSheep is the lab guest's session protocol: every reply proves the
	// state of the session, and a session that lost it counts as lost.
	KindSheep Kind = "sheep"
	// KindRedis sends PING and wants +PONG.
	KindRedis Kind = "redis"
	// KindLine sends Config.Send as a line and wants the line Config.Expect.
	KindLine Kind = "line"
)

// Defaults and limits of a Config.
const (
	DefaultSessions     = 4
	DefaultBeat         = 10 * time.Millisecond
	DefaultLostAfter    = 30 * time.Second
	DefaultHTTPInterval = 50 * time.Millisecond
	DefaultHTTPTimeout  = 5 * time.Second
	DefaultOpenTimeout  = 10 * time.Second

	// MaxSessions keeps the beats' cost well under one processor.
	MaxSessions = 256
	// MinBeat is where the prober's own timers become the measurement.
	MinBeat = time.Millisecond
	// maxInFlight bounds the unanswered beats of a session, and the HTTP
	// requests, whatever the limits above say: more teach nothing.
	maxInFlight = 8192
	// reconnectPause is the wait between attempts to connect again, and
	// reconnectTimeout bounds one: the kernel repeats a lost SYN only after
	// a second, a fresh attempt is sooner.
	reconnectPause   = 50 * time.Millisecond
	reconnectTimeout = time.Second
)

// Config says what to measure. Zero values take the defaults.
type Config struct {
	// Target is the host:port of the TCP sessions; empty for none.
	Target string
	// Kind is their protocol, KindSheep when empty.
	Kind Kind
	// Send and Expect are KindLine's request and reply, without line ends.
	Send, Expect string
	// Sessions is the number of clients.
	Sessions int
	// Beat is the interval between two beats of a session.
	Beat time.Duration
	// LostAfter is how long a session may be silent before it counts as
	// lost.
	LostAfter time.Duration

	// URL is asked over HTTP; empty for none. A status below 400 is a
	// success. Certificates are not verified: it is reachability that is
	// measured.
	URL string
	// HTTPInterval is the interval between the starts of two requests.
	HTTPInterval time.Duration
	// HTTPTimeout bounds a request with its connection.
	HTTPTimeout time.Duration

	// OpenTimeout bounds the opening of all sessions by Start.
	OpenTimeout time.Duration
	// Dial makes connections; nil means net.Dialer's. A lab passes one that
	// dials inside a namespace.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Log gets lost sessions; nil for none.
	Log *slog.Logger
}

// Validate returns an error of kind Invalid that names the first field that
// cannot be used.
func (c Config) Validate() error {
	const op = "probe"
	bad := func(format string, args ...any) error { return drover.Errorf(drover.Invalid, op, format, args...) }
	if c.Target == "" && c.URL == "" {
		return bad("neither a target nor a URL: want at least one")
	}
	if c.Target != "" {
		if _, port, err := net.SplitHostPort(c.Target); err != nil || port == "" {
			return bad("target %q: want HOST:PORT", c.Target)
		}
	}
	if c.URL != "" {
		if u, err := url.Parse(c.URL); err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
			return bad("url %q: want http:// or https:// and a host", c.URL)
		}
	}
	switch c.Kind {
	case "", KindSheep, KindRedis:
	case KindLine:
		if c.Send == "" || c.Expect == "" {
			return bad("kind line: want what to send and what to expect")
		}
	default:
		return bad("kind %q: want sheep, redis or line", c.Kind)
	}
	if c.Sessions < 0 || c.Sessions > MaxSessions {
		return bad("sessions %d: want 1 to %d", c.Sessions, MaxSessions)
	}
	if c.Beat < 0 || (c.Beat > 0 && c.Beat < MinBeat) {
		return bad("beat %v: want at least %v", c.Beat, MinBeat)
	}
	for _, d := range []struct {
		name  string
		value time.Duration
	}{
		{"lost-after", c.LostAfter}, {"http-interval", c.HTTPInterval}, {"http-timeout", c.HTTPTimeout}, {"open-timeout", c.OpenTimeout},
	} {
		if d.value < 0 {
			return bad("%s %v: want more than 0", d.name, d.value)
		}
	}
	return nil
}

func (c Config) withDefaults() Config {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&c.Beat, DefaultBeat)
	def(&c.LostAfter, DefaultLostAfter)
	def(&c.HTTPInterval, DefaultHTTPInterval)
	def(&c.HTTPTimeout, DefaultHTTPTimeout)
	def(&c.OpenTimeout, DefaultOpenTimeout)
	if c.Kind == "" {
		c.Kind = KindSheep
	}
	if c.Sessions == 0 {
		c.Sessions = DefaultSessions
	}
	if c.Dial == nil {
		c.Dial = new(net.Dialer).DialContext
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

// Prober is a running measurement.
type Prober struct {
	cfg     Config
	started time.Time
	slots   []*slot
	web     *web // nil without a URL

	cancel  context.CancelFunc
	unwatch func() bool // of the caller's context
	wg      sync.WaitGroup

	mu    sync.Mutex
	ended time.Time // zero while it runs
}

// Run measures until ctx is done and returns the result; ctx's end is not an
// error. Otherwise it fails as Start does.
func Run(ctx context.Context, cfg Config) (Result, error) {
	p, err := Start(ctx, cfg)
	if err != nil {
		return Result{}, err
	}
	<-ctx.Done()
	return p.Stop(), nil
}

// Start opens all sessions, waits for the first reply on each and for the
// first HTTP response, and measures from then on until Stop is called or ctx
// is done; Stop has to be called in either case. It fails with kind Invalid
// for a bad configuration and Unavailable when a session cannot be opened in
// time; then nothing is left running.
func Start(ctx context.Context, cfg Config) (*Prober, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	run, cancel := context.WithCancel(ctx)
	p := &Prober{cfg: cfg, started: time.Now(), cancel: cancel}
	var waits []<-chan error
	if cfg.Target != "" {
		for i := range cfg.Sessions {
			s := newSlot(cfg, i)
			p.slots = append(p.slots, s)
			p.wg.Go(func() { s.run(run) })
			waits = append(waits, s.opened)
		}
	}
	if cfg.URL != "" {
		p.web = newWeb(cfg, &http.Transport{
			DisableKeepAlives: true,
			DialContext:       cfg.Dial,
			TLSClientConfig:   &tls.Config{InsecureSkipVerify: true},
		})
		p.wg.Go(func() { p.web.run(run) })
		waits = append(waits, p.web.opened)
	}
	p.unwatch = context.AfterFunc(ctx, p.finish)
	timeout := time.NewTimer(cfg.OpenTimeout)
	defer timeout.Stop()
	for _, w := range waits {
		var err error
		select {
		case err = <-w:
		case <-run.Done():
			err = run.Err()
		case <-timeout.C:
			err = fmt.Errorf("no answer within %v", cfg.OpenTimeout)
		}
		if err != nil {
			p.Stop()
			kind := drover.Unavailable
			if ctx.Err() != nil {
				kind = drover.Canceled
			}
			return nil, drover.E(kind, "probe", err)
		}
	}
	return p, nil
}

// Stop ends the measurement, waits for all that it started, and returns the
// result. Calling it again returns the same result.
func (p *Prober) Stop() Result {
	p.finish()
	p.unwatch()
	p.cancel()
	p.wg.Wait()
	return p.Snapshot()
}

// finish closes the books, once.
func (p *Prober) finish() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.ended.IsZero() {
		return
	}
	p.ended = time.Now()
	for _, s := range p.slots {
		s.finish(p.ended)
	}
	if p.web != nil {
		p.web.finish(p.ended)
	}
}

// Snapshot returns the result so far. A gap that is still open counts up to
// now.
func (p *Prober) Snapshot() Result {
	p.mu.Lock()
	now := p.ended
	p.mu.Unlock()
	if now.IsZero() {
		now = time.Now()
	}
	r := Result{
		Target: p.cfg.Target, URL: p.cfg.URL, Started: p.started, Ended: now,
		Sessions: len(p.slots), Lost: []Loss{}, Gaps: []Gap{}, Boots: []string{},
	}
	if len(p.slots) > 0 {
		r.Kind = p.cfg.Kind
	}
	var before, after histogram
	for _, s := range p.slots {
		s.addTo(&r, now, &before, &after)
	}
	r.RTT = RTT{Before: before.latency(), After: after.latency()}
	if p.web != nil {
		p.web.addTo(&r, now)
	}
	return r
}

// describe gives the reason of a loss in the words of a client.
func describe(err error) string {
	if errors.Is(err, io.EOF) {
		return "closed by the server"
	}
	return err.Error()
}
