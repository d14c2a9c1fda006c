package executor

import (
	"context"
	"slices"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/saga"
)

// RemoteDisk is a disk at a unix socket of the host where its VM is.
type RemoteDisk struct {
	Target string `json:"target"`
	Socket string `json:"socket"`
}

// LendDisks lets the peer work on these disks of the move's VM as soon as the VM
// has been given up here; what Release does not forget then. ReclaimDisks undoes
// it; a VM that may be gone gives drover.Refused.
type LendDisks struct {
	PeerHost string
	Disks    []DiskPlan
}

// ReclaimDisks undoes LendDisks.
type ReclaimDisks struct{}

// AttachDisks makes disks that the peer lends reachable for the hypervisor here. Its
// Result has RemoteDisks.
type AttachDisks struct {
	PeerAddress, PeerHost string
	Disks                 []DiskPlan
}

// DetachDisks undoes AttachDisks of the same move or, in a move of disks, ends the
// ways to all that the VM has left. A VM that uses them gives drover.Refused.
type DetachDisks struct{}

// BringDisks copies disks into the volumes that CreateVolumes has made, while the VM
// runs here, and has it go on with them. Its Result says Moved.
type BringDisks struct {
	Disks     []DiskPlan
	Bandwidth drover.BitRate // zero: unlimited
}

// AbortBring makes sure that no BringDisks of this move is under way or will be, and
// that the VM goes on with its disks where they were; or its Result says that they
// have Moved.
type AbortBring struct{}

func (LendDisks) isAction()    {}
func (ReclaimDisks) isAction() {}
func (AttachDisks) isAction()  {}
func (DetachDisks) isAction()  {}
func (BringDisks) isAction()   {}
func (AbortBring) isAction()   {}

// stayMethod is a live move that leaves the disks where they are:
//
//	reserve-target   destination     release
//	reserve-source   source          release
//	lend-disks       source          reclaim-disks
//	attach-disks     destination     detach-disks
//	… as the method, up to
//	transfer         source          PIVOT: settled by abort-transfer
//	… as the method, but release-source, which keeps the disks
//
// Where the method creates volumes, this one makes the destination's hypervisor a
// client of the source's disks. Lending comes before attaching, since attaching sees
// whether it works; and both before anything at edges. Nothing reads or writes by
// this way before the guest runs at the destination: the source's agent opens the
// image only when it has given the guest up, and the destination's lets requests
// through only when it has accepted it. Undone, the way goes from its far end, and
// the source's agent has closed the images before the guest resumes there.
func stayMethod(m method) method {
	m.id = "stay-" + m.id
	m.steps = slices.Clone(m.steps)
	at := slices.IndexFunc(m.steps, func(s step) bool { return s.Name == "create-volumes" })
	m.steps = slices.Replace(m.steps, at, at+1, lendDisks(), attachDisks())
	for i, s := range m.steps {
		if s.Name == "release-source" {
			m.steps[i] = releaseVM()
		}
	}
	return m
}

func lendDisks() step {
	return step{
		Step: saga.Step{
			Name: "lend-disks",
			Why:  "what the destination may work on is written down where it is, before anybody asks for it",
		},
		do: func(s *state) []call {
			r := s.Request
			return []call{{host: r.From.Host, action: LendDisks{PeerHost: r.To.Host, Disks: r.Left}}}
		},
		undo: func(s *state) []call {
			return []call{{host: s.Request.From.Host, action: ReclaimDisks{}}}
		},
	}
}

func attachDisks() step {
	return step{
		Step: saga.Step{
			Name: "attach-disks",
			Why:  "the receiving hypervisor opens its disks when it starts; whether they are reached is seen now",
		},
		do: func(s *state) []call {
			r := s.Request
			return []call{{host: r.To.Host, action: AttachDisks{PeerAddress: r.FromAddress, PeerHost: r.From.Host, Disks: r.Left}}}
		},
		note: func(s *state, _ int, r Result) error {
			if len(r.RemoteDisks) != len(s.Request.Left) {
				return drover.Errorf(drover.Internal, "attach-disks", "%d of %d disks are attached", len(r.RemoteDisks), len(s.Request.Left))
			}
			s.Remote = r.RemoteDisks
			return nil
		},
		undo: func(s *state) []call {
			return []call{{host: s.Request.To.Host, action: DetachDisks{}}}
		},
	}
}

// releaseVM is releaseSource for a VM whose disks stay.
func releaseVM() step {
	st := releaseSource()
	st.Why = "what is left of the VM goes; its disks stay, and are its disks"
	st.do = func(s *state) []call {
		return []call{{host: s.Request.From.Host, action: ReleaseSource{KeepVolumes: true}}}
	}
	return st
}

// disksMethod brings disks that were left behind to their VM. From is where they are,
// To where the VM is.
//
//	reserve-target   VM's host      release
//	reserve-source   disks' host    release
//	create-volumes   VM's host      delete-volumes
//	bring-disks      VM's host      PIVOT: settled by abort-bring
//	verify           VM's host      ─
//	detach-disks     VM's host      ─
//	release-source   disks' host    ─
//	release          both           ─
//
// The VM runs all the time, on the old disks until bring-disks has it go on with the
// new ones, which both hold every write by then. One agent decides that alone, and
// once it has begun it goes on to the end. The old images go last, when the VM's
// host has said that neither the VM nor its next start has to do with them.
func disksMethod() method {
	return method{id: "disks/1", steps: []step{
		ofDisks(reserveTarget(), true),
		ofDisks(reserveSource(), false),
		createVolumes("the disks are copied into images of the same size"),
		bringDisks(),
		verify(),
		detachOld(),
		releaseSource(),
		release(),
	}}
}

// ofDisks makes a reservation one for disks only.
func ofDisks(st step, target bool) step {
	st.do = func(s *state) []call {
		host := s.Request.From.Host
		if target {
			host = s.Request.To.Host
		}
		return []call{{host: host, action: Reserve{Target: target, DisksOnly: true}}}
	}
	return st
}

func bringDisks() step {
	return step{
		Step: saga.Step{
			Name:  "bring-disks",
			Why:   "copying and going on with the copies in one, since the VM's host alone can tell when they are the same",
			Pivot: true,
		},
		do: func(s *state) []call {
			r := s.Request
			return []call{{host: r.To.Host, action: BringDisks{Disks: r.Disks, Bandwidth: r.Bandwidth}}}
		},
		note: func(s *state, _ int, r Result) error {
			if !r.Moved {
				return drover.Errorf(drover.Internal, "bring-disks", "it ended without an error, but the disks have not come")
			}
			s.measured(r)
			return nil
		},
		settle: func(ctx context.Context, s *state, ask asker) (bool, error) {
			res, err := ask(ctx, call{host: s.Request.To.Host, action: AbortBring{}})
			if err == nil && res.Moved {
				s.measured(res)
			}
			return res.Moved, err
		},
	}
}

func detachOld() step {
	return step{
		Step: saga.Step{
			Name: "detach-disks",
			Why:  "before the old images go: their last user says here that it is none",
		},
		do: func(s *state) []call {
			return []call{{host: s.Request.To.Host, action: DetachDisks{}}}
		},
	}
}
