package trial

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/lab/guest/control"
	"github.com/drover-vm/drover/probe"
)

// renumber is a journey into another segment. The sessions from before run on
// until they have been seen to; then they end, and with them the move.
func (s *Scene) renumber(ctx context.Context, j Journey) (seen Seen, err error) {
	load, err := StartLoad(ctx, s.guestAt(s.at[j.VM]), j.Memory, j.Disk)
	if err != nil {
		return seen, err
	}
	defer load.End()
	witness, err := s.watch(ctx, j.VM)
	if err != nil {
		return seen, err
	}
	defer witness.Stop()
	if err := wait(ctx, j.Settle); err != nil {
		return seen, err
	}
	site, _, _ := strings.Cut(j.To, "/")
	segment, err := s.SegmentAt(site)
	if err != nil {
		return seen, err
	}
	watching, cancel := context.WithCancel(ctx)
	defer cancel()
	first := s.firstByName(watching, j.VM+"."+s.Zone, s.file.Segment(segment).Subnet.Prefix)
	m, err := s.begin(ctx, j, "--segment", segment, "--name", j.VM+"."+s.Zone)
	if err != nil {
		return seen, err
	}
	m, err = s.until(ctx, m.Name, func(m drover.Move) bool { return m.Renumber != nil && m.Renumber.OldSessions != nil })
	seen.Move = m
	if err != nil || m.State.Final() {
		return seen, errors.Join(err, fmt.Errorf("move %s is %s: %s", m.Name, m.State, m.Fault))
	}
	s.at[j.VM] = m.Renumber.New[0]
	if err := heard(ctx, witness); err != nil {
		return seen, err
	}
	r := witness.Stop()
	seen.Witness = &r
	if seen.NewSession, err = newSession(ctx, first, r, m.Measured.PauseMillis); err != nil {
		return seen, err
	}
	cancel()
	guest := s.guestAt(s.at[j.VM])
	kept := s.intact(ctx, j, load, guest, &seen)
	if seen.Move, err = s.ended(ctx, m.Name); err != nil {
		return seen, errors.Join(err, kept)
	}
	return seen, errors.Join(kept, sessionsKept(seen), s.OnlyAt(ctx, j.VM, seen.Move.To.Host, "running"))
}

// newSessionLimit bounds the wait for a first session by name.
const newSessionLimit = 30 * time.Second

// newSession is how long after the guest resumed the first session by its name
// came about. It resumed when it had been silent for its pause, as far as a client
// can tell.
func newSession(ctx context.Context, first <-chan time.Time, r probe.Result, pauseMillis *float64) (*time.Duration, error) {
	if len(r.Gaps) == 0 || pauseMillis == nil {
		return nil, errors.New("the moment at which the guest resumed is not known")
	}
	resumed := r.Gaps[0].From.Add(time.Duration(*pauseMillis * float64(time.Millisecond)))
	select {
	case at := <-first:
		d := at.Sub(resumed)
		return &d, nil
	case <-time.After(newSessionLimit):
		return nil, errors.New("no new session by its name reaches it")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// firstByName keeps beginning sessions with a guest by its DNS name, past all
// caches, and tells when the first reaches an address of the segment. All that it
// began has ended when the channel is closed, after ctx has ended.
func (s *Scene) firstByName(ctx context.Context, name string, segment netip.Prefix) <-chan time.Time {
	reached := make(chan time.Time, 1)
	r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return s.node.Dial(ctx, s.Outside, network, s.dns.String())
	}}
	var once sync.Once
	try := func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		found, err := r.LookupNetIP(ctx, "ip4", name+".")
		if err != nil || len(found) == 0 || !segment.Contains(found[0].Unmap()) {
			return
		}
		c, err := s.dialOutside(ctx, "tcp", netip.AddrPortFrom(found[0].Unmap(), control.SessionPort).String())
		if err == nil {
			at := time.Now()
			_ = c.Close()
			once.Do(func() { reached <- at })
		}
	}
	go func() {
		var tries sync.WaitGroup
		defer close(reached)
		defer tries.Wait()
		for ctx.Err() == nil {
			tries.Go(func() { try(ctx) })
			_ = wait(ctx, 50*time.Millisecond)
		}
	}()
	return reached
}

// dialOutside connects from where the clients are.
func (s *Scene) dialOutside(ctx context.Context, network, address string) (net.Conn, error) {
	return s.node.Dial(ctx, s.Outside, network, address)
}
