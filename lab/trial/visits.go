package trial

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/drover-vm/drover/lab/guest/control"
)

// Visits are requests of clients to the service, each over a session of its own.
type Visits struct {
	// By counts the answers of each guest.
	By map[string]int
	// Failed are the requests that were refused or not answered.
	Failed []Failure
	// Silence is the longest time between two answers.
	Silence time.Duration
}

// Failure is a request that was not answered.
type Failure struct {
	At  time.Time
	Why string
}

const (
	// visitEvery is the interval between two visits: the agents' probes ask the
	// service often enough to see a gap.
	visitEvery = 200 * time.Millisecond
	// visitLimit is when nobody waits for an answer any longer.
	visitLimit = 10 * time.Second
)

// visitor makes visits until it is told to stop.
type visitor struct {
	mu     sync.Mutex
	seen   Visits
	last   time.Time
	cancel context.CancelFunc
	ended  sync.WaitGroup
}

func (s *Scene) visit(ctx context.Context) *visitor {
	v := &visitor{seen: Visits{By: map[string]int{}}, last: time.Now()}
	transport := s.node.Transport(s.Outside)
	transport.DisableKeepAlives = true
	client := &http.Client{Transport: transport, Timeout: visitLimit}
	ctx, v.cancel = context.WithCancel(ctx)
	v.ended.Go(func() {
		for ctx.Err() == nil {
			v.ended.Go(func() { v.once(ctx, s, client) })
			_ = wait(ctx, visitEvery)
		}
	})
	return v
}

func (v *visitor) once(ctx context.Context, s *Scene, client *http.Client) {
	name, err := s.whoServes(ctx, client)
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case err == nil:
		v.seen.By[name]++
		v.seen.Silence = max(v.seen.Silence, time.Since(v.last))
		v.last = time.Now()
	case ctx.Err() == nil:
		v.seen.Failed = append(v.seen.Failed, Failure{time.Now(), err.Error()})
	}
}

// met says whether the guest has answered.
func (v *visitor) met(guest string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.seen.By[guest] > 0
}

func (v *visitor) stop() *Visits {
	v.cancel()
	v.ended.Wait()
	return &v.seen
}

// whoServes asks the service which guest it is.
func (s *Scene) whoServes(ctx context.Context, client *http.Client) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.Service.String()+"/stats", nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return "", errors.New(resp.Status)
	}
	var stats control.Stats
	if err := json.NewDecoder(resp.Body).Decode(&stats); err != nil {
		return "", err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return stats.Name, err
}

// serving waits until the service answers: the load balancer takes a moment to
// see that a server is there.
func (s *Scene) serving(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	transport := s.node.Transport(s.Outside)
	transport.DisableKeepAlives = true
	for {
		_, err := s.whoServes(ctx, &http.Client{Transport: transport, Timeout: 5 * time.Second})
		if err == nil {
			return nil
		}
		if wait(ctx, 200*time.Millisecond) != nil {
			return fmt.Errorf("the service does not answer: %w", err)
		}
	}
}

// stay keeps one session with the service open, with a request every while, until
// left is called; that returns how often it was answered. Its error is a session
// that did not last, or an answer of another guest than the first.
func (s *Scene) stay(ctx context.Context) (leave func() (int, error)) {
	transport := s.node.Transport(s.Outside)
	client := &http.Client{Transport: transport, Timeout: 20 * time.Second}
	var dials int
	dial := transport.DialContext
	transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		dials++
		return dial(ctx, network, address)
	}
	ctx, cancel := context.WithCancel(ctx)
	var ended sync.WaitGroup
	var fault error
	var first string
	answers := 0
	ended.Go(func() {
		defer transport.CloseIdleConnections()
		for ctx.Err() == nil && fault == nil {
			name, err := s.whoServes(ctx, client)
			switch {
			case ctx.Err() != nil:
				return
			case err != nil:
				fault = fmt.Errorf("an open session of the service is lost: %w", err)
			case dials > 1:
				fault = errors.New("an open session of the service had to be opened again")
			case first != "" && name != first:
				fault = fmt.Errorf("an open session with %s was answered by %s", first, name)
			}
			first = name
			answers++
			_ = wait(ctx, 300*time.Millisecond)
		}
	})
	return sync.OnceValues(func() (int, error) {
		cancel()
		ended.Wait()
		return answers, fault
	})
}
