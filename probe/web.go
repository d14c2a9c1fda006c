package probe

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"
)

// maxBody bounds what is read of a response: the measurement is not of its
// size.
const maxBody = 1 << 20

// web is the HTTP client: a new connection for each request.
type web struct {
	cfg    Config
	client *http.Client
	opened chan error // the first response, or why there is none

	mu       sync.Mutex
	open     bool
	finished bool
	lastOK   time.Time
	gaps     gaps
	ok       int64
	failed   int64
}

func newWeb(cfg Config, transport *http.Transport) *web {
	return &web{
		cfg: cfg,
		client: &http.Client{
			Transport:     transport,
			Timeout:       cfg.HTTPTimeout,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		opened: make(chan error, 1),
		gaps:   gaps{client: -1},
	}
}

func (w *web) run(ctx context.Context) {
	if err := w.get(ctx); err != nil {
		w.opened <- err
		return
	}
	w.count(ctx, nil, time.Now())
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, min(maxInFlight, int(w.cfg.HTTPTimeout/w.cfg.HTTPInterval)+16))
	tick := time.NewTicker(w.cfg.HTTPInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		select {
		case slots <- struct{}{}:
		default:
			continue
		}
		wg.Go(func() {
			defer func() { <-slots }()
			err := w.get(ctx)
			w.count(ctx, err, time.Now())
		})
	}
}

func (w *web) get(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, w.cfg.URL, nil)
	if err != nil {
		return err
	}
	resp, err := w.client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if _, err := io.Copy(io.Discard, io.LimitReader(resp.Body, maxBody)); err != nil {
		return fmt.Errorf("get %s: %w", w.cfg.URL, err)
	}
	if resp.StatusCode >= http.StatusBadRequest {
		return fmt.Errorf("get %s: %s", w.cfg.URL, resp.Status)
	}
	return nil
}

func (w *web) count(ctx context.Context, err error, now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.finished || (err != nil && ctx.Err() != nil):
	case err != nil:
		w.failed++
	default:
		w.ok++
		if !w.open {
			w.open = true
			w.opened <- nil
			w.lastOK = now
		} else if now.After(w.lastOK) { // requests overlap
			w.gaps.add(w.lastOK, now)
			w.lastOK = now
		}
	}
}

// finish closes the books at now.
func (w *web) finish(now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.finished {
		return
	}
	w.finished = true
	if w.open {
		w.gaps.add(w.lastOK, now)
	}
}

// addTo adds what this client saw up to now.
func (w *web) addTo(r *Result, now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	list := w.gaps.list
	if w.open && !w.finished {
		list = w.gaps.with(w.lastOK, now)
	}
	r.Gaps = longest(append(r.Gaps, list...))
	if len(list) > 0 {
		r.OutageHTTPMS = list[0].MS
	}
	r.HTTPOK, r.HTTPFailed = w.ok, w.failed
}
