package executor

import (
	"context"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/saga"
)

// method is a way to be elsewhere as a table of steps.
type method struct {
	// id names the table and its version. A journal keeps it, so that a move
	// begun by an older Drover goes on by the table it was begun with.
	id    string
	steps []step
}

// step is one line of a method's table: what saga needs to know of it, and
// what it asks of agents.
type step struct {
	saga.Step
	// do and undo return the calls to make, in order. The undo of a step that
	// has none is nil.
	do, undo func(*state) []call
	// note reads the result of do's call number n into the state. An error
	// fails the step.
	note func(s *state, n int, r Result) error
	// settle says whether the pivot has passed, and makes sure that it does
	// not pass any more if it has not. Any error means: ask again. For the
	// pivot only.
	settle func(context.Context, *state, asker) (passed bool, err error)
	// local does the part of a step that asks no agent, before do's calls; nil
	// for most. What it notes in the state is kept when the step is done.
	local func(context.Context, *Executor, *state) error
	// work does the part of a step whose calls depend on each other's results,
	// after do's; nil for most. What it notes is kept when the step is done.
	work func(ctx context.Context, w *worker, s *state, ask asker) error
	// patient steps are asked for again for as long as it takes when nobody
	// answers: only a definite failure undoes the move.
	patient bool
	// ahead steps change nothing that a client could see and send nothing worth
	// counting, so they need not wait for the observer.
	ahead bool
	// idle says that from here on no guest bytes cross, so that the link is
	// free for other moves.
	idle bool
	// hold is asked once the calls have succeeded, and again with each change of
	// the state as long as it says wait. An error fails the step.
	hold func(*state) (wait bool, err error)
	// lost says, per verb, what drover.NotFound means there: that the VM or its
	// definition is gone and no retry will bring it back.
	lost map[saga.Verb]string
}

// call is one call of an agent.
type call struct {
	host string
	// action to run; nil cancels the action of the step named.
	action Action
	cancel string
	// part tells apart two actions of one step on one host: agents know an
	// action by its name alone, and would answer the second with the result of
	// the first.
	part string
}

// asker makes a call and waits for its end.
type asker func(context.Context, call) (Result, error)

// table returns the method's steps as saga sees them.
func (m method) table() saga.Table {
	t := make(saga.Table, len(m.steps))
	for i, s := range m.steps {
		t[i] = s.Step
		t[i].HasUndo = s.undo != nil
	}
	return t
}

// methods are all tables by which moves are made.
func methods() []method {
	return []method{
		liveMethod(), stretchMethod(), routeMethod(), coldMethod(), coldGatedMethod(), warmMethod(), warmGatedMethod(),
		renumberMethod(), spawnMethod(), redirectMethod(),
		stayMethod(liveMethod()), stayMethod(stretchMethod()), stayMethod(routeMethod()), stayMethod(renumberMethod()), disksMethod(),
	}
}

// methodOf returns the table by which a new move is made.
func methodOf(r Request) (method, error) {
	m, err := plainMethodOf(r)
	switch {
	case err != nil || !r.leavesDisks():
		return m, err
	case !r.keepsRunning():
		return method{}, drover.Errorf(drover.Invalid, "storage", "method %s does not leave disks behind: take %s, %s, %s or %s, which keep the VM running",
			r.Method, drover.Stretch, drover.Route, drover.Renumber, drover.Live)
	default:
		return stayMethod(m), nil
	}
}

// plainMethodOf is methodOf for disks that come along.
func plainMethodOf(r Request) (method, error) {
	gated := r.Gate != nil
	switch {
	case r.Method == drover.Disks && !gated:
		return disksMethod(), nil
	case r.Method == drover.Live && !gated:
		return liveMethod(), nil
	case r.Method == drover.Stretch && !gated:
		return stretchMethod(), nil
	case r.Method == drover.Route && !gated:
		return routeMethod(), nil
	case r.Method == drover.Renumber && !gated:
		return renumberMethod(), nil
	case r.Method == drover.Cold && !gated:
		return coldMethod(), nil
	case r.Method == drover.Cold:
		return coldGatedMethod(), nil
	case r.Method == drover.Warm && !gated:
		return warmMethod(), nil
	case r.Method == drover.Warm:
		return warmGatedMethod(), nil
	case r.Method == drover.Spawn && !gated:
		return spawnMethod(), nil
	case r.Method == drover.Redirect && !gated:
		return redirectMethod(), nil
	case r.Method.Makes():
		return method{}, drover.Errorf(drover.Invalid, "gate", "method %s has none: it goes by the new VM's health; want it for %s or %s", r.Method, drover.Warm, drover.Cold)
	case r.keepsRunning():
		return method{}, drover.Errorf(drover.Invalid, "gate", "method %s has none: its guest goes on where it was; want it for %s or %s", r.Method, drover.Warm, drover.Cold)
	default:
		return method{}, drover.Errorf(drover.Invalid, "method", "%q is not one that can be carried out: want %s, %s, %s, %s, %s, %s, %s or %s", r.Method,
			drover.Live, drover.Stretch, drover.Route, drover.Renumber, drover.Warm, drover.Cold, drover.Redirect, drover.Spawn)
	}
}

// methodByID returns the table that a journal names.
func methodByID(id string) (method, error) {
	for _, m := range methods() {
		if m.id == id {
			return m, nil
		}
	}
	return method{}, drover.Errorf(drover.Corrupt, "method", "this Drover has no step table %q", id)
}

// Table returns the steps of a request's method, for showing them.
func Table(r Request) (saga.Table, error) {
	way, err := methodOf(r)
	if err != nil {
		return nil, err
	}
	return way.table(), nil
}

// The steps that methods share.

func reserveTarget() step {
	return step{
		Step: saga.Step{
			Name: "reserve-target",
			Why:  "first, because it is the likeliest to be refused and costs nothing yet",
		},
		ahead: true,
		do: func(s *state) []call {
			return []call{{host: s.Request.To.Host, action: Reserve{Target: true, MemoryBytes: s.Request.VM.MemoryBytes}}}
		},
		undo: func(s *state) []call {
			return []call{{host: s.Request.To.Host, action: Release{Target: true}}}
		},
	}
}

func reserveSource() step {
	return step{
		Step: saga.Step{
			Name: "reserve-source",
			Why:  "from here on no other move can have the VM, and its source watches over it",
		},
		ahead: true,
		do: func(s *state) []call {
			return []call{{host: s.Request.From.Host, action: Reserve{MemoryBytes: s.Request.VM.MemoryBytes, Replica: s.Request.Replica}}}
		},
		undo: func(s *state) []call {
			return []call{{host: s.Request.From.Host, action: Release{}}}
		},
	}
}

func createVolumes(why string) step {
	return step{
		Step:  saga.Step{Name: "create-volumes", Why: why},
		ahead: true,
		do: func(s *state) []call {
			return []call{{host: s.Request.To.Host, action: CreateVolumes{Disks: s.Request.Disks, Replica: s.Request.Replica}}}
		},
		undo: func(s *state) []call {
			return []call{{host: s.Request.To.Host, action: DeleteVolumes{}}}
		},
	}
}

func verify() step {
	return step{
		Step: saga.Step{
			Name: "verify",
			Why:  "the source's copy is not touched before the destination's own word that the VM is there",
		},
		do: func(s *state) []call {
			return []call{{host: s.Request.To.Host, action: Verify{Running: s.running()}}}
		},
		lost: map[saga.Verb]string{
			saga.Do: "the move has passed the point of no return, but the destination does not have the VM; the source's disks are kept",
		},
	}
}

func releaseSource() step {
	return step{
		Step: saga.Step{
			Name: "release-source",
			Why:  "the only step that deletes guest data, so it comes after everything that could still tell against it",
		},
		do: func(s *state) []call {
			return []call{{host: s.Request.From.Host, action: ReleaseSource{KeepVolumes: s.Request.KeepSource, Disks: s.Request.Disks}}}
		},
	}
}

func release() step {
	return step{
		Step: saga.Step{
			Name: "release",
			Why:  "last, because an agent forgets the move with its reservation",
		},
		do: func(s *state) []call {
			return []call{
				{host: s.Request.To.Host, action: Release{Target: true}},
				{host: s.Request.From.Host, action: Release{}},
			}
		},
	}
}
