package executor

import (
	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/saga"
)

// spawnMethod makes a new VM at the destination, like the one that the move is of,
// which goes on and is not touched.
//
//	reserve-target      destination     release
//	reserve-addresses   edges           release-lease
//	create-volumes      destination     delete-volumes
//	define              destination     undefine
//	start               destination     stop-vm
//	health              an edge         ─
//	set-name            an edge         restore-name
//	add-server          balancer's      remove-server
//	ready-server        balancer's      drain-server
//	commit              destination     PIVOT: settled by abort-commit
//	verify              destination     ─
//	release             all             ─
//
// Nothing of it is seen by anybody before the health check has passed. What comes
// between that and commit may still be refused (a name that is another's, a
// backend that takes no servers), so the point of no return lies after it. Until
// then all is taken back, the new VM with it. The source's host has no part in
// this: what the new VM is like was read before.
func spawnMethod() method {
	return method{id: "spawn/1", steps: []step{
		reserveTarget(),
		reserveAddresses(),
		createClone(),
		defineClone(),
		startClone(),
		cloneHealth(),
		setName(),
		addServer("when it is well; the load balancer takes its time to see that, too"),
		readyServer(),
		commit(),
		verifyClone(),
		releaseClone(false),
	}}
}

// readyServer lets the new VM take sessions.
func readyServer() step {
	one := func(s *state, do drover.EdgeVerb, undo bool) []call {
		v := s.Request.Clone.Service
		if v == nil {
			return nil
		}
		return []call{{host: v.Edge, action: Edge{Ops: []drover.EdgeOp{s.newServer(do)}, Undo: undo}}}
	}
	return step{
		Step: saga.Step{
			Name: "ready-server",
			Why:  "last before the end: from here on it has users",
		},
		do:   func(s *state) []call { return one(s, drover.ReadyServer, false) },
		undo: func(s *state) []call { return one(s, drover.DrainServer, true) },
	}
}

// verifyClone reads the new VM's real state. One that is gone is reported; there
// is no other copy of it that could be mistaken for it.
func verifyClone() step {
	st := verify()
	st.Why = "what was the VM's before is not touched without the destination's own word that the new one runs"
	st.do = func(s *state) []call {
		return []call{{host: s.Request.To.Host, action: Verify{Running: true}}}
	}
	st.lost = map[saga.Verb]string{
		saga.Do: "the new VM was well, but the destination does not have the VM any more; the one that it is like has not been touched",
	}
	return st
}
