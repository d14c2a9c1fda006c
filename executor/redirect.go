package executor

import (
	"strconv"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/saga"
)

// redirectMethod starts a second VM at the destination and has the load balancer
// send new sessions there; the old one stops when its own have ended.
//
//	reserve-target      destination     release
//	reserve-source      source          release
//	reserve-addresses   edges           release-lease
//	create-volumes      destination     delete-volumes
//	copy                source          stop-replication (none for fresh disks)
//	define              destination     undefine
//	start               destination     stop-vm
//	health              balancer's      ─
//	set-name            an edge         restore-name
//	add-server          balancer's      remove-server
//	shift               balancer's      the old server's weight, as before
//	drain               balancer's      the old server ready, as before
//	commit              destination     PIVOT: settled by abort-commit
//	verify              destination     ─
//	shutdown            source          ─
//	retire              edges           ─
//	give-up             source          ─ (not with keep-source)
//	release-source      source          ─ (not with keep-source)
//	release             all             ─
//
// Two VMs of the same content run from start on. That is what this method is: it
// suits a service whose sessions do not care which of its servers they are
// with, and whose data is not on the VM's own disk. What the old VM writes after
// the copy stays with it.
//
// No client is refused at any time: the old server takes sessions until the new
// one takes all, and it ends only when it has none, or at the cap. The new VM's
// health is watched through all of it, from where its traffic comes; when it is
// not well, the old server, which has been running all the time, gets back what it
// had. The point of no return comes last before the old VM is shut down.
func redirectMethod() method {
	return method{id: "redirect/1", steps: []step{
		reserveTarget(),
		reserveSource(),
		reserveAddresses(),
		createClone(),
		copyClone(),
		defineClone(),
		startClone(),
		cloneHealth(),
		setName(),
		addServer("when it is well; it is weighed before it takes anything"),
		shift(),
		drain(),
		commit(),
		verifyClone(),
		shutdownOld(),
		retire(),
		giveUpOld(),
		releaseOld(),
		releaseClone(true),
	}}
}

// copyClone copies the disks, as they are at one moment.
func copyClone() step {
	return step{
		Step: saga.Step{
			Name: "copy",
			Why:  "while the VM runs: its file systems are frozen for the moment that the copy is of",
		},
		do: func(s *state) []call {
			r, c := s.Request, s.Request.Clone
			if c.Fresh {
				return nil
			}
			return []call{{host: r.From.Host, action: CopyClone{
				PeerAddress: r.ToAddress, PeerHost: r.To.Host, Name: c.Name, UUID: c.UUID, Disks: r.Disks, Bandwidth: r.Bandwidth,
			}}}
		},
		note: func(s *state, _ int, r Result) error {
			s.measured(r)
			return nil
		},
		undo: func(s *state) []call {
			if s.Request.Clone.Fresh {
				return nil
			}
			return []call{{host: s.Request.From.Host, action: StopReplication{}}}
		},
	}
}

// shift gives the new server its share of new sessions, more at each step, and
// watches it for a while after each.
func shift() step {
	return step{
		Step: saga.Step{
			Name: "shift",
			Why:  "a few sessions first: what the check does not see, they do",
		},
		do: func(s *state) []call {
			v := s.Request.Clone.Service
			var calls []call
			for i, w := range v.Steps {
				up, down := s.newServer(drover.WeighServer), s.oldServer(drover.WeighServer)
				up.Weight, down.Weight = w.New, w.Old
				ops := []drover.EdgeOp{up, down}
				if i == 0 {
					ops = append(ops, s.newServer(drover.ReadyServer))
				}
				calls = append(calls,
					call{host: v.Edge, part: part(i), action: Edge{Ops: ops}},
					call{host: v.Edge, part: "watch-" + strconv.Itoa(i+1), action: s.attend(v.StepTime, "")})
			}
			return calls
		},
		note: func(s *state, n int, r Result) error {
			if n%2 == 0 {
				return nil // the weighing
			}
			return s.well(r, givenBack)
		},
		undo: func(s *state) []call { return s.giveBack() },
	}
}

const givenBack = "; its traffic goes back to the old one"

// attend watches the new VM, and how the server old drains.
func (s *state) attend(d time.Duration, old string) Attend {
	h := s.health()
	return Attend{Kind: h.Kind, Target: h.Target, For: d, Backend: s.Request.Clone.Service.Backend, Server: old}
}

// oldServer is an operation on the server that is drained.
func (s *state) oldServer(do drover.EdgeVerb) drover.EdgeOp {
	v := s.Request.Clone.Service
	owner := v.Old.Owner
	if owner == "" {
		owner = s.Request.Clone.owner()
	}
	return drover.EdgeOp{Do: do, Owner: owner, Backend: v.Backend, Name: v.Old.Name}
}

// giveBack makes the old server what it was.
func (s *state) giveBack() []call {
	v := s.Request.Clone.Service
	ops := []drover.EdgeOp{s.oldServer(drover.RemoveServer)} // which restores it
	if v.Old.Owner != "" {
		weigh := s.oldServer(drover.WeighServer)
		weigh.Weight = v.Old.Weight
		ops = []drover.EdgeOp{weigh, s.oldServer(drover.ReadyServer)}
	}
	return []call{{host: v.Edge, action: Edge{Ops: ops, Undo: true}}}
}

// drain waits for the end of the old server's sessions.
func drain() step {
	return step{
		Step: saga.Step{
			Name: "drain",
			Why:  "when the new one takes all new sessions; the old ones end by themselves",
		},
		do: func(s *state) []call {
			v := s.Request.Clone.Service
			return []call{
				{host: v.Edge, action: Edge{Ops: []drover.EdgeOp{s.oldServer(drover.DrainServer)}}},
				{host: v.Edge, part: "watch", action: s.attend(v.DrainCap, v.Old.Full)},
			}
		},
		note: func(s *state, n int, r Result) error {
			if n == 0 {
				return nil
			}
			if err := s.well(r, givenBack); err != nil {
				return err
			}
			s.Made.Lost = new(int64(r.Sessions))
			return nil
		},
		undo: func(s *state) []call { return s.giveBack() },
	}
}

// shutdownOld ends the VM. That the guest does not listen is no reason to keep
// it: nobody has anything to do with it any more.
func shutdownOld() step {
	return step{
		Step: saga.Step{
			Name: "shutdown",
			Why:  "it has no sessions left, or those that it had are past the cap",
		},
		do: func(s *state) []call {
			return []call{{host: s.Request.From.Host, action: Shutdown{Grace: s.Request.shutdownGrace(), Force: true}}}
		},
	}
}

// retire has the edges forget the old VM. Servers that the load balancer has by
// itself and that were taken out of service for the old VM stay out of it.
func retire() step {
	return step{
		Step: saga.Step{
			Name: "retire",
			Why:  "what stood at edges for the old VM has nobody behind it from now on",
		},
		do: func(s *state) []call {
			r, c := s.Request, s.Request.Clone
			var calls []call
			for _, host := range c.Forget {
				ops := []drover.EdgeOp{{Do: drover.ForgetOwner, Owner: "vm/" + r.VM.UUID}}
				if host == c.Service.Edge {
					for _, name := range c.Service.Handed {
						ops = append(ops, drover.EdgeOp{Do: drover.DrainServer, Owner: c.owner(), Backend: c.Service.Backend, Name: name})
					}
				}
				calls = append(calls, call{host: host, action: Edge{Ops: ops}})
			}
			return calls
		},
	}
}

func giveUpOld() step {
	st := giveUp()
	st.Why = "so that nothing can start the old VM again; one that is to be kept stays defined, and off"
	do := st.do
	st.do = func(s *state) []call {
		if s.Request.KeepSource {
			return nil
		}
		return do(s)
	}
	st.note, st.undo, st.lost = nil, nil, nil
	return st
}

func releaseOld() step {
	st := releaseSource()
	do := st.do
	st.do = func(s *state) []call {
		if s.Request.KeepSource {
			return nil
		}
		return do(s)
	}
	return st
}
