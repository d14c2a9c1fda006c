package executor

import (
	"context"
	"fmt"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/saga"
)

// coldMethod is the cold move.
//
//	reserve-target   destination   release
//	reserve-source   source        release
//	create-volumes   destination   delete-volumes
//	shutdown         source        take-back (starts it, if it ran)
//	give-up          source        take-back
//	copy             source        cancel
//	define           destination   undefine
//	start            destination   PIVOT: settled by undefine
//	verify           destination   ─
//	release-source   source        ─
//	release          both          ─
//
// The point of no return is start: from the moment the guest may have run at
// the destination, its disks there may hold writes that the source's do not.
// Undefining at the destination settles it, because an agent refuses to
// undefine a VM that runs or has run since it was defined, and an undefined one
// cannot be started any more. A VM that was off stays off; start then only
// looks whether it is defined, and is the point of no return all the same.
//
// The source must not be able to run while the destination might, so the
// definition is given up before the copy begins, and undone in the reverse
// order: take-back comes after undefine has succeeded, never after it was
// merely asked for. That the order is kept is saga's rule; that undefine is
// asked until it has succeeded too.
//
// The disks are copied after give-up, not only after shutdown: nothing at the
// source can then change them behind the copy's back.
func coldMethod() method {
	return method{id: "cold/1", steps: append(coldSteps(), ungated()...)}
}

// coldSteps are those before the VM is started.
func coldSteps() []step {
	return []step{
		reserveTarget(),
		reserveSource(),
		createVolumes("before the shutdown, so that a full disk costs no downtime"),
		shutdown(),
		giveUp(),
		copyDisks(),
		define(),
	}
}

func shutdown() step {
	return step{
		Step: saga.Step{
			Name: "shutdown",
			Why:  "the first step that users notice, so all that can be prepared is",
		},
		do: func(s *state) []call {
			return []call{{host: s.Request.From.Host, action: Shutdown{Grace: s.Request.shutdownGrace(), Force: s.Request.ShutdownForce}}}
		},
		note: func(s *state, _ int, r Result) error {
			s.WasRunning = &r.WasRunning
			s.measured(r)
			return nil
		},
		// The definition is there again when this runs: give-up is undone first.
		undo: func(s *state) []call {
			return []call{{host: s.Request.From.Host, action: TakeBack{Start: s.running()}}}
		},
		lost: map[saga.Verb]string{saga.Undo: lostDefinition},
	}
}

const lostDefinition = "the source has lost the VM's definition; its disks are there"

func giveUp() step {
	return step{
		Step: saga.Step{
			Name: "give-up",
			Why:  "from here on nothing can start the VM at its source, not even by accident",
		},
		do: func(s *state) []call {
			return []call{{host: s.Request.From.Host, action: GiveUp{}}}
		},
		note: func(s *state, _ int, r Result) error {
			if len(r.Definition) > maxDefinitionBytes {
				return drover.Errorf(drover.Invalid, "give-up", "the VM's definition has %d bytes: want at most %d", len(r.Definition), maxDefinitionBytes)
			}
			if len(r.Definition) > 0 {
				s.Definition = r.Definition
			}
			if s.definition() == nil {
				return drover.Errorf(drover.Internal, "give-up", "neither the source nor the request has the VM's definition")
			}
			return nil
		},
		// Starting is left to the undo of shutdown, which comes next.
		undo: func(s *state) []call {
			return []call{{host: s.Request.From.Host, action: TakeBack{}}}
		},
		lost: map[saga.Verb]string{saga.Undo: lostDefinition},
	}
}

func copyDisks() step {
	return step{
		Step: saga.Step{
			Name: "copy",
			Why:  "after give-up, so that nothing changes the disks behind its back; digests are compared before anything relies on it",
		},
		do: func(s *state) []call {
			r := s.Request
			return []call{{host: r.From.Host, action: Copy{
				PeerAddress: r.ToAddress, PeerHost: r.To.Host, Disks: r.Disks, Bandwidth: r.Bandwidth,
			}}}
		},
		note: func(s *state, _ int, r Result) error {
			s.measured(r)
			return nil
		},
		// What it has written goes with the volumes; that it writes no more is
		// what matters before they go.
		undo: func(s *state) []call {
			return []call{{host: s.Request.From.Host, cancel: "copy"}}
		},
	}
}

func define() step {
	return step{
		Step: saga.Step{
			Name: "define",
			Why:  "after the copy, so that a VM that can be started has its disks",
		},
		do: func(s *state) []call {
			return []call{{host: s.Request.To.Host, action: Define{Definition: s.definition()}}}
		},
		undo: func(s *state) []call {
			return []call{{host: s.Request.To.Host, action: Undefine{}}}
		},
	}
}

func start() step {
	return step{
		Step: saga.Step{
			Name:  "start",
			Why:   "once the guest may have run here, the source's disks are the old ones",
			Pivot: true,
		},
		do: func(s *state) []call {
			if !s.running() {
				return []call{{host: s.Request.To.Host, action: Verify{}}}
			}
			return []call{{host: s.Request.To.Host, action: StartVM{}}}
		},
		note: func(s *state, _ int, r Result) error {
			s.measured(r)
			return nil
		},
		settle: settleStart,
	}
}

// settleStart takes the definition away again, or learns that it is too late.
// A refusal alone is not enough to call the move passed, since an agent may
// refuse for other reasons: the VM must be seen there as well.
func settleStart(ctx context.Context, s *state, ask asker) (bool, error) {
	host := s.Request.To.Host
	_, err := ask(ctx, call{host: host, action: Undefine{}})
	if err == nil {
		return false, nil
	}
	if drover.KindOf(err) != drover.Refused {
		return false, err
	}
	if _, seen := ask(ctx, call{host: host, action: Verify{Running: true}, part: "seen"}); seen != nil {
		return false, fmt.Errorf("%w; nor is it seen running there: %w", err, seen)
	}
	return true, nil
}
