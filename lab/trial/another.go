package trial

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/drover-vm/drover"
)

// redirect is a journey of a service: another VM takes its place. A session that
// was open before ends by itself, while the old VM waits for it.
func (s *Scene) redirect(ctx context.Context, j Journey) (seen Seen, err error) {
	if err := s.serving(ctx); err != nil {
		return seen, err
	}
	v := s.visit(ctx)
	defer v.stop()
	leave := s.stay(ctx)
	defer leave()
	if err := wait(ctx, j.Settle); err != nil {
		return seen, err
	}
	m, err := s.begin(ctx, j, "--backend", s.Backend, "--as", j.As, "--service", "http://"+s.Service.String()+"/healthz")
	if err != nil {
		return seen, err
	}
	m, err = s.until(ctx, m.Name, draining)
	seen.Move = m
	if err != nil {
		return seen, err
	}
	// A user who is not done yet.
	if err := wait(ctx, time.Second); err != nil {
		return seen, err
	}
	kept, stayErr := leave()
	seen.Kept = kept
	if seen.Move, err = s.ended(ctx, m.Name); err != nil {
		return seen, errors.Join(err, stayErr)
	}
	seen.Visits = v.stop()
	delete(s.at, j.VM)
	if err := s.made(seen.Move); err != nil {
		return seen, err
	}
	if f := seen.Move.Measured; f.SessionsLost == nil || *f.SessionsLost != 0 {
		err = errors.New("old sessions were cut, or not counted")
	}
	where, whereErr := s.Where(ctx, j.VM)
	if len(where) > 0 {
		whereErr = errors.Join(whereErr, fmt.Errorf("the old VM is still known: %v", where))
	}
	return seen, errors.Join(err, stayErr, whereErr, seen.Visits.all(seen.Move, j.VM, j.As), s.OnlyAt(ctx, j.As, seen.Move.To.Host, "running"))
}

func draining(m drover.Move) bool {
	return slices.ContainsFunc(m.Steps, func(r drover.StepRecord) bool { return r.Name == "drain" && r.State == drover.StepRunning })
}

// all wants no failure during the move, and an answer of each of the guests.
func (v *Visits) all(m drover.Move, guests ...string) error {
	if n := len(v.Failed); n > 0 {
		first, last := v.Failed[0], v.Failed[n-1]
		return fmt.Errorf("%d requests have failed, from %s on until %s; the first: %s", n, during(m, first.At), during(m, last.At), first.Why)
	}
	for _, g := range guests {
		if v.By[g] == 0 {
			return fmt.Errorf("%s has answered nothing", g)
		}
	}
	return nil
}

// during names the step that a move was at.
func during(m drover.Move, at time.Time) string {
	step := "before it began"
	for _, r := range m.Steps {
		if !r.Started.IsZero() && !at.Before(r.Started) {
			step = fmt.Sprintf("%s + %.1f s", r.Name, at.Sub(r.Started).Seconds())
		}
	}
	return step
}

// made notes where the VM is that a move has made.
func (s *Scene) made(m drover.Move) error {
	if m.Clone == nil || len(m.Clone.Addresses) == 0 {
		return fmt.Errorf("move %s does not say what it has made", m.Name)
	}
	s.at[m.Clone.Name] = m.Clone.Addresses[0]
	return nil
}

// meetLimit is what a load balancer may take to send the first session to a server
// that is ready: some of its checks.
const meetLimit = 30 * time.Second

// spawn is the beginning of another VM, while the one it is like goes on.
func (s *Scene) spawn(ctx context.Context, j Journey) (seen Seen, err error) {
	if err := s.serving(ctx); err != nil {
		return seen, err
	}
	witness, err := s.watch(ctx, j.VM)
	if err != nil {
		return seen, err
	}
	defer witness.Stop()
	v := s.visit(ctx)
	defer v.stop()
	if err := wait(ctx, j.Settle); err != nil {
		return seen, err
	}
	seen.Move, err = s.Move(ctx, j.VM, j.To, append([]string{
		"--method", string(j.Method), "--as", j.As, "--backend", s.Backend, "--name", j.As + "." + s.Zone,
	}, j.Flags...)...)
	if err != nil {
		return seen, err
	}
	if err := s.made(seen.Move); err != nil {
		return seen, err
	}
	for end := time.Now().Add(meetLimit); !v.met(j.As) && time.Now().Before(end); {
		if err := wait(ctx, 100*time.Millisecond); err != nil {
			return seen, err
		}
	}
	seen.Visits = v.stop()
	r := witness.Stop()
	seen.Witness = &r
	return seen, errors.Join(
		seen.Visits.all(seen.Move, j.VM, j.As), sessionsKept(seen),
		s.OnlyAt(ctx, j.VM, seen.Move.From.Host, "running"), s.OnlyAt(ctx, j.As, seen.Move.To.Host, "running"),
	)
}

// forgetLimit is what a server may take to see that a VM is gone.
const forgetLimit = time.Minute

// Dismiss removes a VM as an operator does who knows only its host, and then has
// Drover take away what stands for it.
func (s *Scene) Dismiss(ctx context.Context, vm, host string) error {
	line := `virsh destroy "$1" && virsh undefine "$1" && rm -f /var/lib/libvirt/images/"$1".*`
	if _, err := s.Exec(ctx, host, "sh", "-c", line, "sh", vm); err != nil {
		return err
	}
	delete(s.at, vm)
	for end := time.Now().Add(forgetLimit); ; {
		if _, err := s.VM(ctx, vm); err != nil {
			break // not found: what stands for it is not needed any more
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s is still known after %s", vm, forgetLimit)
		}
		if err := wait(ctx, 300*time.Millisecond); err != nil {
			return err
		}
	}
	var d drover.Diagnosis
	if err := s.Drover(ctx, &d, "doctor", "--remove"); err != nil {
		return err
	}
	if !d.OK {
		return fmt.Errorf("doctor: %+v", d.Findings)
	}
	return nil
}
