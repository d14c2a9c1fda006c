package bgp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/drover-vm/drover/driver"
)

const (
	// firstBackoff and maxBackoff bound the pause before a child that ended is
	// started again: routers keep the routes for Restart only, and a child that
	// cannot run must not fill the log.
	firstBackoff = 100 * time.Millisecond
	maxBackoff   = 10 * time.Second
	// steady is how long a child must have run for its end to count as the first.
	steady = 30 * time.Second
	// endLimit is how long a child may take to end when its input has.
	endLimit = 2 * time.Second

	// checkEvery is how often is looked whether the child has sent what it
	// should have; a neighbour that twice lacks the same route is sent the whole
	// table again. GoBGP loses a route that is announced in the instant in which
	// a session comes up.
	checkEvery = time.Second
	// maxResent is how often that is tried before the child is replaced.
	maxResent = 5

	// tailBytes is how much of a dead child's last words is kept: a panic's
	// first lines and its first goroutine.
	tailBytes = 4096
)

// supervise runs a child until ctx is canceled, and another when it ends.
func (s *Speaker) supervise(ctx context.Context) {
	backoff := firstBackoff
	for {
		started := time.Now()
		err := s.runChild(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(started) > steady {
			backoff = firstBackoff
		}
		s.log.Error("the BGP speaker ended and is started again", "err", err, "in", backoff)
		s.allDown(fmt.Sprintf("the speaker ended: %v", err))
		select {
		case <-ctx.Done():
			return
		case <-time.After(backoff):
		}
		backoff = min(2*backoff, maxBackoff)
	}
}

// runChild runs one child to its end and says why it ended.
func (s *Speaker) runChild(ctx context.Context) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	argv := s.cfg.Command
	if len(argv) == 0 {
		self, err := os.Executable()
		if err != nil {
			return err
		}
		argv = []string{self, Subcommand}
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	// A terminal's interrupt is for the agent, which ends its child itself.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	words := &tail{}
	cmd.Stderr = words
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	cmd.Cancel = in.Close
	cmd.WaitDelay = endLimit
	if err := cmd.Start(); err != nil {
		return err
	}
	var orders sync.WaitGroup
	orders.Go(func() { stop(s.sendOrders(ctx, json.NewEncoder(in))) })
	readErr := s.readEvents(json.NewDecoder(out))
	if readErr != nil {
		stop(readErr)
	}
	err = cmd.Wait()
	stop(nil)
	orders.Wait()
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		err = errors.Join(cause, err)
	}
	if err == nil {
		err = errors.New("it ended by itself")
	}
	if said := words.String(); said != "" {
		err = fmt.Errorf("%w: %s", err, said)
	}
	return err
}

// sendOrders gives the child its configuration and what changes; it returns
// when the child is gone or is to go.
func (s *Speaker) sendOrders(ctx context.Context, to *json.Encoder) error {
	if err := to.Encode(s.childConfig()); err != nil {
		return err
	}
	check := time.NewTicker(checkEvery)
	defer check.Stop()
	for {
		var orders []order
		var err error
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake:
			orders = s.changes()
		case <-check.C:
			orders, err = s.behind()
		}
		if err != nil {
			return err
		}
		for _, o := range orders {
			if err := to.Encode(o); err != nil {
				return err
			}
		}
	}
}

// childConfig is what a new child has to know; nothing is dirty after it.
func (s *Speaker) childConfig() childConfig {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := childConfig{
		AS: s.cfg.AS, RouterID: s.cfg.RouterID, NextHop4: s.cfg.NextHop4, NextHop6: s.cfg.NextHop6,
		Community: s.cfg.Community, Neighbors: s.cfg.Neighbors,
		Hold: int(s.cfg.Hold / time.Second), Keepalive: int(s.cfg.Keepalive / time.Second), Restart: int(s.cfg.Restart / time.Second),
		BFD: s.cfg.BFD,
	}
	for p := range s.routes {
		if s.cfg.nextHop(p).IsValid() { // a family may have lost its next hop since
			c.Routes = append(c.Routes, p)
		}
	}
	clear(s.dirty)
	return c
}

// changes is what the child has not been told yet.
func (s *Speaker) changes() []order {
	s.mu.Lock()
	defer s.mu.Unlock()
	var o order
	for p := range s.dirty {
		if _, ok := s.routes[p]; ok {
			o.Announce = append(o.Announce, p)
		} else {
			o.Withdraw = append(o.Withdraw, p)
		}
	}
	clear(s.dirty)
	if len(o.Announce)+len(o.Withdraw) == 0 {
		return nil
	}
	return []order{o}
}

// behind looks whether every established neighbour was sent what is on record,
// and nothing else. It returns reminders, or an error when they were in vain.
func (s *Speaker) behind() (reminders []order, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.peers {
		p.behind = s.difference(p)
		checks := 0 // that the oldest difference has outlived
		for _, n := range p.behind {
			checks = max(checks, n-1)
		}
		switch {
		case checks > maxResent:
			return nil, fmt.Errorf("%v was not sent what is on record for %v", p.Address, time.Duration(checks)*checkEvery)
		case checks > 0:
			s.log.Warn("a BGP neighbour was not sent everything, and is sent it again", "neighbor", p.Address, "routes", len(p.behind))
			reminders = append(reminders, order{Resend: p.Address})
		}
	}
	return reminders, nil
}

// difference is what an established neighbour should have been sent and was
// not, or the other way round, with the number of checks that found it so.
func (s *Speaker) difference(p *peer) map[netip.Prefix]int {
	if !p.established() {
		return nil
	}
	var found map[netip.Prefix]int
	note := func(prefix netip.Prefix) {
		if found == nil {
			found = map[netip.Prefix]int{}
		}
		found[prefix] = p.behind[prefix] + 1
	}
	for prefix := range s.routes {
		if _, ok := p.sent[prefix]; !ok && p.takes(prefix) {
			note(prefix)
		}
	}
	for prefix := range p.sent {
		if _, ok := s.routes[prefix]; !ok {
			note(prefix)
		}
	}
	return found
}

// readEvents takes what the child reports until it ends.
func (s *Speaker) readEvents(from *json.Decoder) error {
	for {
		var e event
		if err := from.Decode(&e); errors.Is(err, io.EOF) || errors.Is(err, os.ErrClosed) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read an event: %w", err)
		}
		s.take(e)
	}
}

// take notes an event.
func (s *Speaker) take(e event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case e.Session != nil:
		if p := s.peer(e.Session.Neighbor); p != nil {
			s.session(p, *e.Session)
		}
	case e.Sent != nil:
		if p := s.peer(e.Sent.Neighbor); p != nil {
			for _, prefix := range e.Sent.Withdrawn {
				delete(p.sent, prefix)
			}
			for _, prefix := range e.Sent.Announced {
				p.sent[prefix] = struct{}{}
			}
		}
	case e.Fault != nil:
		if p := s.peer(e.Fault.Neighbor); p != nil && !p.established() {
			p.fault = e.Fault.Text
		}
	case e.Log != nil:
		s.log.Log(context.Background(), slog.Level(e.Log.Level), "BGP speaker: "+e.Log.Text)
	}
	s.notify()
}

func (s *Speaker) peer(address netip.Addr) *peer {
	for _, p := range s.peers {
		if p.Address == address {
			return p
		}
	}
	return nil
}

// session notes a session's new state. What was sent is forgotten when a
// session ends and not when one begins: the first UPDATE may be heard of before
// the session is.
func (s *Speaker) session(p *peer, e sessionEvent) {
	switch {
	case e.State == driver.SessionEstablished:
		p.fault, p.v4, p.v6 = "", e.IPv4 && s.cfg.NextHop4.IsValid(), e.IPv6 && s.cfg.NextHop6.IsValid()
		s.log.Info("BGP session established", "neighbor", p.Address)
	case p.established():
		clear(p.sent)
		s.log.Warn("BGP session lost", "neighbor", p.Address, "why", e.Fault)
	}
	if e.Fault != "" {
		p.fault = e.Fault
	}
	if p.state != e.State {
		p.state, p.since = e.State, e.At
	}
}

// allDown notes that there is no child.
func (s *Speaker) allDown(fault string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.peers {
		clear(p.sent)
		p.fault = fault
		if p.state != driver.SessionIdle {
			p.state, p.since = driver.SessionIdle, time.Now()
		}
	}
	s.notify()
}

// tail keeps the first lines of what a child says at its end.
type tail struct {
	mu sync.Mutex
	b  strings.Builder
}

// Write never fails.
func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b.Write(p[:min(len(p), max(0, tailBytes-t.b.Len()))])
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(t.b.String())
}
