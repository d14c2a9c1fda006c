package executor

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/network"
	"github.com/drover-vm/drover/saga"
	"github.com/drover-vm/drover/store"
)

// renumberMethod is the live move into another segment, where the VM has other
// addresses.
//
//	reserve-target   destination     release
//	reserve-source   source          release
//	create-volumes   destination     delete-volumes
//	reserve-lease    its edge        release-lease, release at edges
//	prepare-edges    two edges       forget, restore-name
//	add-address      source          drop-address
//	stage-cut-over   two edges       stage nothing
//	transfer         source          PIVOT: settled by abort-transfer
//	cut-over         two edges       ─
//	new-address      destination     ─
//	verify           destination     ─
//	release-source   source          ─
//	drain-old        source's edge   ─ (asked: has the last old session ended?)
//	retract          two edges       ─
//	drop-address     destination     ─
//	release          all             ─
//
// The new addresses are reserved, and answered by the guest, before it moves:
// so that they can be reached with its first instruction at the destination,
// where the cut-over gives them its name. Making them the ones that the guest
// begins sessions from is asked by the host itself, as soon as it runs; the step
// new-address sees that it has come about.
//
// Past the pivot there is one thing that nobody can be made to do: a guest may not
// take its new addresses. Then its old ones are opened for new sessions, too, by
// way of its old site, and the move waits in new-address until somebody has
// helped the guest. At no moment is it out of reach.
//
// The move is under way until the old sessions have ended, in drain-old: another
// move of the VM would take them from where they are forwarded to. An operator
// sees how many there are, and ends them early by EndOld.
func renumberMethod() method {
	return method{id: "renumber/1", steps: []step{
		reserveTarget(),
		reserveSource(),
		createVolumes("the disk mirror needs images of the same size at the destination"),
		reserveLease(),
		extend("prepare-edges", "sessions are tracked from before the guest moves, or none would be known; a name's TTL is to be short by then"),
		addAddress(),
		stageCutOver(),
		transfer(),
		cutOver(),
		newAddress(),
		verify(),
		releaseSource(),
		drainOld(),
		retract("when no old session is left, or they have had their time: what goes now is their way"),
		dropAddress(),
		releaseRenumbered(),
	}}
}

// renumbered is what a move by renumber has found out.
type renumbered struct {
	New []netip.Prefix `json:"new,omitempty"`
	// Held is why the old addresses are open for new sessions.
	Held string `json:"held,omitempty"`
	// Since is when old sessions began to be forwarded, as far as the limit is
	// counted from it.
	Since time.Time `json:"since,omitzero"`
	// Sessions are the old ones as counted last, Lost those that were cut.
	Sessions *int64 `json:"sessions,omitempty"`
	Lost     int64  `json:"lost,omitempty"`
	// Ended is an operator's word.
	Ended bool   `json:"ended,omitempty"`
	Left  string `json:"left,omitempty"`
	// Measured is what clients saw of the move, before old sessions were waited
	// for.
	Measured *drover.Figures `json:"measured,omitempty"`
}

func (s *state) renumber() network.Renumber {
	if s.Request.Renumber == nil {
		return network.Renumber{}
	}
	return *s.Request.Renumber
}

// owner is whose the things are that end with the move.
func (s *state) owner() string { return "move/" + s.move }

func reserveLease() step {
	return step{
		Step: saga.Step{
			Name: "reserve-lease",
			Why:  "before anything that depends on the new addresses; a pool may have none",
		},
		do: func(s *state) []call { return edgeCalls([]network.Task{s.renumber().Reserve()}, false) },
		note: func(s *state, _ int, r Result) error {
			rn := s.renumber()
			if err := rn.CheckNew(r.Addresses); err != nil {
				return err
			}
			s.Renumbered.New = r.Addresses
			p := rn.Plan(s.owner(), r.Addresses)
			s.Network = &p
			return nil
		},
		undo: func(s *state) []call {
			rn := s.renumber()
			// Edges have no reservation with which they would forget the move.
			return append(edgeCalls([]network.Task{rn.Release()}, true), s.releaseBothEdges()...)
		},
	}
}

// releaseBothEdges has the two edges forget the move, whether or not their
// addresses have been planned.
func (s *state) releaseBothEdges() []call {
	rn := s.renumber()
	return []call{{host: rn.Target.Host, action: Release{}, part: "target"}, {host: rn.Source.Host, action: Release{}, part: "source"}}
}

func addAddress() step {
	return step{
		Step: saga.Step{
			Name: "add-address",
			Why:  "so that the new address is answered with the guest's first instruction at the destination; at the source nobody asks for it",
		},
		do: func(s *state) []call {
			rn := s.renumber()
			if !rn.Agent {
				return nil
			}
			return []call{{host: s.Request.From.Host, action: ChangeGuest{GuestChange: GuestChange{MAC: rn.MAC, Add: s.Renumbered.New}}}}
		},
		note: func(_ *state, _ int, r Result) error {
			if !r.Healthy {
				return drover.Errorf(drover.Refused, "add-address", "the guest does not take its new address: %s", r.Detail)
			}
			return nil
		},
		undo: func(s *state) []call {
			rn := s.renumber()
			if !rn.Agent || len(s.Renumbered.New) == 0 {
				return nil
			}
			return []call{{host: s.Request.From.Host, action: ChangeGuest{GuestChange: s.dropNew(), Undo: true}}}
		},
	}
}

// dropNew takes the new addresses away from the guest.
func (s *state) dropNew() GuestChange {
	c := GuestChange{MAC: s.renumber().MAC}
	for _, p := range s.Renumbered.New {
		c.Drop = append(c.Drop, p.Addr())
	}
	return c
}

// primary makes the new addresses those that the guest begins sessions from.
func (s *state) primary() GuestChange {
	rn := s.renumber()
	if !rn.Agent {
		return GuestChange{MAC: rn.MAC, Ask: true}
	}
	return GuestChange{MAC: rn.MAC, Add: s.Renumbered.New, Gateways: rn.Gateways(s.Renumbered.New), Primary: true}
}

// intoSegment completes the transfer of a VM that gets into another segment.
func (s *state) intoSegment(t *Transfer) {
	if s.Request.Renumber == nil {
		return
	}
	rn := s.renumber()
	t.Retarget = &Retarget{MAC: rn.MAC, Network: rn.To.Bridge, Probe: rn.Probe(s.Request.VM.Probe, s.Renumbered.New)}
	change := s.primary()
	t.Guest = &change
}

const (
	// askTries is how often a guest without an agent is made to ask DHCP: a cable
	// that was out for a moment may go unnoticed once.
	askTries = 2
	// dhcpTime is how long a guest may take to get an address once its cable is
	// plugged in: clients ask at once, and again after seconds where that went
	// unheard.
	dhcpTime = 10 * time.Second
	// helpEvery is how often it is looked whether somebody has helped a guest.
	helpEvery = 15 * time.Second
	// drainEvery is how often old sessions are counted.
	drainEvery = 2 * time.Second
)

func newAddress() step {
	return step{
		Step: saga.Step{
			Name: "new-address",
			Why:  "before anything else that takes time: until then new sessions may not reach the guest",
		},
		do:   func(*state) []call { return nil },
		work: func(ctx context.Context, w *worker, s *state, ask asker) error { return w.takeNew(ctx, s, ask) },
	}
}

// takeNew sees that the guest has its new addresses. If it does not take them it
// is kept in reach by its old ones, until it does.
func (w *worker) takeNew(ctx context.Context, s *state, ask asker) error {
	for first := true; ; first = false {
		why, err := w.took(ctx, s, ask, first)
		if err != nil {
			return err
		}
		if why == "" {
			return w.holdOld(ctx, s, ask, "")
		}
		if err := w.holdOld(ctx, s, ask, why); err != nil {
			return err
		}
		if err := w.e.clock.Sleep(ctx, helpEvery); err != nil {
			return err
		}
	}
}

// took makes the guest take its new addresses, and says why it has not. One
// without an agent is made to ask for them only at first: to take its cable out
// later would cut those who get through by the old ones.
func (w *worker) took(ctx context.Context, s *state, ask asker, first bool) (why string, err error) {
	rn := s.renumber()
	change := call{host: s.Request.To.Host, action: ChangeGuest{GuestChange: s.primary()}}
	if rn.Agent {
		r, err := ask(ctx, change)
		if err != nil || r.Healthy {
			return "", err
		}
		return "the guest's agent does not make them its own: " + r.Detail, nil
	}
	find := FindStation{Segment: rn.To.Name, MAC: rn.MAC, Wait: dhcpTime}
	for _, p := range s.Renumbered.New {
		find.Addresses = append(find.Addresses, p.Addr())
	}
	for try := 0; ; try++ {
		r, err := ask(ctx, call{host: rn.Target.Host, action: find})
		switch {
		case err != nil || r.Healthy:
			return "", err
		case try == askTries || !first || s.Renumbered.Held != "":
			return r.Detail, nil
		}
		if _, err := ask(ctx, change); err != nil {
			return "", err
		}
	}
}

// holdOld keeps the guest in reach by its old addresses as long as there is a
// why, and ends that when there is none.
func (w *worker) holdOld(ctx context.Context, s *state, ask asker, why string) error {
	if s.Renumbered.Held == why {
		return nil
	}
	rn, word := s.renumber(), "close"
	tasks := rn.Narrow(s.owner(), s.Renumbered.New)
	if why != "" {
		w.log.WarnContext(ctx, "the guest has not taken its new addresses; its old ones stay open", "why", why)
		tasks, word = rn.Open(s.owner()), "open"
	}
	if why == "" || s.Renumbered.Held == "" {
		// Agents answer for what they have done under the same name before, which
		// may have been undone since.
		part := fmt.Sprintf("%s-%d", word, w.e.clock.Now().UnixMilli())
		for _, t := range tasks {
			if _, err := ask(ctx, call{host: t.Host, action: Edge{Ops: t.Ops}, part: part}); err != nil {
				return err
			}
		}
	}
	s.Renumbered.Held = why
	return w.showRenumbered(ctx, s)
}

func drainOld() step {
	return step{
		Step: saga.Step{
			Name: "drain-old",
			Why:  "with all else done: it lasts as long as the VM's users have sessions from before",
		},
		do:   func(*state) []call { return nil },
		work: func(ctx context.Context, w *worker, s *state, ask asker) error { return w.drainOld(ctx, s, ask) },
	}
}

// drainOld waits for the last of the old sessions, their limit, or an operator.
func (w *worker) drainOld(ctx context.Context, s *state, ask asker) error {
	if s.Renumbered.Since.IsZero() {
		s.Renumbered.Since = w.e.clock.Now().UTC()
	}
	if err := w.measureNow(ctx, s); err != nil {
		return err
	}
	rn := s.renumber()
	until := s.Renumbered.Since.Add(rn.Limit)
	for {
		s.Renumbered.Ended = w.now().Renumbered.Ended
		r, err := ask(ctx, call{host: rn.Source.Host, action: CountSessions{Addresses: rn.Old}})
		if err != nil {
			return err
		}
		n := int64(r.Sessions)
		over := s.Renumbered.Ended || !w.e.clock.Now().Before(until)
		if was := s.Renumbered.Sessions; was == nil || *was != n {
			s.Renumbered.Sessions = &n
			if err := w.showRenumbered(ctx, s); err != nil {
				return err
			}
		}
		if n == 0 || over {
			s.Renumbered.Lost = n
			return nil
		}
		if err := w.e.clock.Sleep(ctx, drainEvery); err != nil {
			return err
		}
	}
}

// withLost adds sessions that were cut.
func withLost(f drover.Figures, cut int64) drover.Figures {
	if f.SessionsLost != nil {
		cut += *f.SessionsLost
	}
	if cut > 0 || f.SessionsLost != nil {
		f.SessionsLost = &cut
	}
	return f
}

// showRenumbered journals what is known while a step goes on.
func (w *worker) showRenumbered(ctx context.Context, noted *state) error {
	return w.change(ctx, func(s *state, rec *store.Record) error {
		ended := s.Renumbered.Ended // the one thing that others write
		s.Renumbered = noted.Renumbered
		s.Renumbered.Ended = ended
		rec.Move.Renumber, rec.Move.Fault = projectRenumber(s), fault(s, rec.Move.State)
		if m := s.Renumbered.Measured; m != nil {
			rec.Move.Measured = *m
		}
		return nil
	})
}

// measureNow measures what clients saw of the move, once: what watches it for
// them would have sessions of its own without end.
func (w *worker) measureNow(ctx context.Context, s *state) error {
	if s.Renumbered.Measured != nil {
		return nil
	}
	m := w.move()
	m.State, m.Progress = drover.MoveDone, nil
	f, err := w.measure(ctx, m, s, w.e.clock.Now().UTC())
	if err != nil {
		return err
	}
	s.Renumbered.Measured = &f
	return w.showRenumbered(ctx, s)
}

func dropAddress() step {
	return step{
		Step: saga.Step{
			Name: "drop-address",
			Why:  "last in the guest: as long as an address has a way, it is answered",
		},
		do: func(s *state) []call {
			rn := s.renumber()
			if !rn.Agent {
				return nil
			}
			return []call{{host: s.Request.To.Host, action: ChangeGuest{GuestChange: GuestChange{MAC: rn.MAC, Drop: rn.Old}}}}
		},
		note: func(s *state, _ int, r Result) error {
			if !r.Healthy {
				// Nobody can reach it by them any more, so they do no harm.
				s.Renumbered.Left = fmt.Sprintf("the guest keeps %v until its next boot: %s", s.renumber().Old, r.Detail)
			}
			return nil
		},
	}
}

func releaseRenumbered() step {
	st := release()
	hosts := st.do
	st.do = func(s *state) []call { return append(hosts(s), s.releaseBothEdges()...) }
	return st
}

// projectRenumber shows what becomes of the addresses.
func projectRenumber(s *state) *drover.Renumbered {
	rn := s.Request.Renumber
	if rn == nil {
		return nil
	}
	r := &drover.Renumbered{
		Segment: rn.To.Name, Old: rn.Old, Name: rn.Name, OldSessions: s.Renumbered.Sessions, Held: s.Renumbered.Held, Left: s.Renumbered.Left,
	}
	for _, p := range s.Renumbered.New {
		r.New = append(r.New, p.Addr())
	}
	if !s.Renumbered.Since.IsZero() {
		r.Until = s.Renumbered.Since.Add(rn.Limit)
	}
	return r
}

// heldFault is what a move says that waits for its guest to take new addresses.
func heldFault(s *state) string {
	if s.Renumbered.Held == "" {
		return ""
	}
	return fmt.Sprintf("new-address: %s has not taken %v, and is reached by %v through %s until it has: %s; set them in the guest, or have it ask DHCP",
		s.Request.VM.Name, s.Renumbered.New, s.renumber().Old, s.Request.From.Site, s.Renumbered.Held)
}

// EndOld ends the old sessions of a move by renumber that waits for them, and
// returns when that is journaled. Repeating it is fine. drover.Refused: the move is
// none, or is not that far, or its VM is in reach by nothing else; otherwise the
// errors of Cancel.
func (e *Executor) EndOld(ctx context.Context, name string) error {
	op := "end old sessions of move " + name
	w := e.worker(name)
	if w == nil {
		return e.notHere(ctx, name, op)
	}
	return w.journaled(ctx, op, func() error {
		return w.change(e.life, func(s *state, _ *store.Record) error {
			switch {
			case s.Request.Renumber == nil:
				return drover.Errorf(drover.Refused, "", "its method is %s: it has none", s.Request.Method)
			case s.Journal.Pivot != saga.Passed:
				return drover.Errorf(drover.Refused, "", "the VM has not moved yet; to undo the move, cancel it")
			case s.Renumbered.Held != "":
				return drover.Errorf(drover.Refused, "", "the VM is reached by its old addresses alone: %s", s.Renumbered.Held)
			}
			s.Renumbered.Ended = true
			return nil
		})
	})
}
