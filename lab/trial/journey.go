package trial

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/lab/guest/control"
	"github.com/drover-vm/drover/probe"
)

// Journey is one move of one guest by one method, under the eyes of clients.
type Journey struct {
	VM     string
	Method drover.Method
	// To is SITE or SITE/HOST.
	To string
	// As is the VM that spawn and redirect make.
	As string
	// Flags are more of the command's.
	Flags []string
	// Memory and Disk are what the guest does meanwhile; a rate of 0 leaves the
	// one out. Redirect and spawn, which make another guest, have none.
	Memory control.Memory
	Disk   control.Disk
	// Settle is how long the guest works before it moves, so that there is
	// something to lose.
	Settle time.Duration
}

// Seen is what clients saw of a journey, beside what the move itself says it
// measured. A nil field was not looked at.
type Seen struct {
	Move drover.Move
	// Witness is what one more client saw of the VM, a prober that is not any
	// agent's; of redirect and spawn, one with a session over the load balancer.
	Witness *probe.Result
	// Acked are the acknowledged writes, all of which the guest still has.
	Acked uint64
	// NewSession is, for renumber, the time from the guest's resuming to the first
	// new session that a client had with it by its name.
	NewSession *time.Duration
	// Visits are, for redirect and spawn, requests to the service over new
	// connections.
	Visits *Visits
	// Kept is, for redirect, how often a session that was open before the move was
	// answered by the old VM.
	Kept int
}

// Resumed reports whether the VM goes on from where it was.
func Resumed(m drover.Method) bool {
	return slices.Contains([]drover.Method{drover.Live, drover.Stretch, drover.Route, drover.Renumber}, m)
}

// Go makes the journey. Its error says what the method has promised and not kept:
// sessions, acknowledged writes, a VM that runs in one place only.
func (s *Scene) Go(ctx context.Context, j Journey) (Seen, error) {
	if _, known := s.at[j.VM]; !known {
		return Seen{}, fmt.Errorf("the lab %s has no guest %s", s.Name, j.VM)
	}
	switch j.Method {
	case drover.Renumber:
		return s.renumber(ctx, j)
	case drover.Redirect:
		return s.redirect(ctx, j)
	case drover.Spawn:
		return s.spawn(ctx, j)
	default:
		return s.keepAddress(ctx, j)
	}
}

// keepAddress is a journey at whose end the guest is reached as before.
func (s *Scene) keepAddress(ctx context.Context, j Journey) (seen Seen, err error) {
	guest := s.guestAt(s.at[j.VM])
	load, err := StartLoad(ctx, guest, j.Memory, j.Disk)
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
	seen.Move, err = s.Move(ctx, j.VM, j.To, append([]string{"--method", string(j.Method)}, j.Flags...)...)
	if err != nil {
		return seen, err
	}
	if err := WaitHealthy(ctx, guest); err != nil {
		return seen, err
	}
	if err := heard(ctx, witness); err != nil {
		return seen, err
	}
	r := witness.Stop()
	seen.Witness = &r
	return seen, errors.Join(s.intact(ctx, j, load, guest, &seen), sessionsKept(seen), s.OnlyAt(ctx, j.VM, seen.Move.To.Host, "running"))
}

// intact ends the load and has the guest prove that it has every acknowledged
// write, and, where it was not to be booted, that it was not.
func (s *Scene) intact(ctx context.Context, j Journey, load *Load, guest *control.Client, seen *Seen) error {
	load.At(guest)
	acks, err := load.Stop(ctx)
	seen.Acked = acks.Count()
	if err != nil {
		return err
	}
	if j.Disk.RateBytesPerS > 0 {
		check, err := guest.CheckDiskAgainst(ctx, acks)
		if err != nil {
			return err
		}
		if !check.Verdict.OK {
			return fmt.Errorf("data lost: %s", check.Verdict.Reason)
		}
	}
	if Resumed(j.Method) {
		return load.SameBoot(ctx)
	}
	return nil
}

// sessionsKept wants no session lost where the method keeps them, by either
// measurement.
func sessionsKept(seen Seen) error {
	f := seen.Move.Measured
	if !Resumed(seen.Move.Method) && seen.Move.Method != drover.Spawn {
		return nil
	}
	switch {
	case f.Sessions == nil || *f.Sessions == 0 || f.SessionsLost == nil || f.OutageMillis == nil:
		return errors.New("what clients saw was not measured")
	case *f.SessionsLost != 0:
		return fmt.Errorf("%d of %d sessions lost", *f.SessionsLost, *f.Sessions)
	case seen.Witness.SessionsLost != 0:
		return fmt.Errorf("a session of our own was lost: %s", seen.Witness.Lost[0].Reason)
	}
	return nil
}

// watch begins to probe a guest from outside: one session, a beat every 10 ms.
func (s *Scene) watch(ctx context.Context, vm string) (*probe.Prober, error) {
	return probe.Start(ctx, probe.Config{
		Target: fmt.Sprintf("%s:%d", s.at[vm], control.SessionPort), Sessions: 1, Dial: s.dialOutside,
	})
}

// heardLimit is what a session's last retransmission timer may be away after a
// cold move, with some room.
const heardLimit = time.Minute

// heard waits until the prober is answered again, or its last silence would have
// no end.
func heard(ctx context.Context, p *probe.Prober) error {
	ctx, cancel := context.WithTimeout(ctx, heardLimit)
	defer cancel()
	const some = 20 // beats in flight may still have been answered before
	for want := p.Snapshot().BeatsAnswered + some; p.Snapshot().BeatsAnswered < want; {
		if err := wait(ctx, 50*time.Millisecond); err != nil {
			return errors.New("our own client is not answered any more")
		}
	}
	return nil
}

// wait waits, unless ctx ends.
func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// begin starts a move and does not wait for it.
func (s *Scene) begin(ctx context.Context, j Journey, flags ...string) (drover.Move, error) {
	var m drover.Move
	args := slices.Concat([]string{"move", j.VM, "--to", j.To, "--method", string(j.Method), "--detach"}, flags, j.Flags)
	err := s.Drover(ctx, &m, args...)
	return m, err
}

// until waits until a move shows something, or has ended.
func (s *Scene) until(ctx context.Context, name string, ok func(drover.Move) bool) (drover.Move, error) {
	for {
		var m drover.Move
		if err := s.Drover(ctx, &m, "moves", "get", name); err != nil {
			return m, err
		}
		if ok(m) || m.State.Final() {
			return m, nil
		}
		if err := wait(ctx, 300*time.Millisecond); err != nil {
			return m, fmt.Errorf("move %s is %s (%s): %w", name, m.State, m.Fault, err)
		}
	}
}

// ended is the move when it is done, or an error.
func (s *Scene) ended(ctx context.Context, name string) (drover.Move, error) {
	m, err := s.Settled(ctx, name)
	if err == nil && m.State != drover.MoveDone {
		err = fmt.Errorf("move %s is %s: %s", name, m.State, m.Fault)
	}
	return m, err
}
