package executor

import "github.com/drover-vm/drover/saga"

// warmMethod is the warm move: the cold one, with most of the disks sent while
// the VM runs.
//
//	reserve-target   destination   release
//	reserve-source   source        release
//	create-volumes   destination   delete-volumes
//	replicate        source        stop-replication
//	shutdown         source        take-back (starts it, if it ran)
//	give-up          source        take-back
//	copy-changes     source        cancel
//	define           destination   undefine
//	start            destination   PIVOT: settled by undefine
//	verify           destination   ─
//	release-source   source        ─
//	release          both          ─
//
// Replicate sends the disks in rounds, each of which leaves the destination with
// the disks as they were at one moment. It ends when what was written since is
// small enough for the downtime that is allowed, or does not become less. From
// then on it is a cold move that has little to copy: what was written since the
// last round, which the hypervisor has recorded in the images, and which can
// be read from them when the VM is off.
//
// Nothing in replicate is noticed by the VM's users, and it is repeatable at any
// point: an agent that died goes on from the last round that is complete. Its
// undo comes after the VM has been started again (take-back), and ends the
// recording.
func warmMethod() method {
	return method{id: "warm/1", steps: append(warmSteps(), ungated()...)}
}

// warmSteps are those before the VM is started.
func warmSteps() []step {
	return []step{
		reserveTarget(),
		reserveSource(),
		createVolumes("rounds are written into images of the same size at the destination"),
		replicate(),
		shutdown(),
		giveUp(),
		copyChanges(),
		define(),
	}
}

func replicate() step {
	return step{
		Step: saga.Step{
			Name: "replicate",
			Why:  "before the shutdown: it is the long part, and the VM runs meanwhile",
		},
		do: func(s *state) []call {
			r := s.Request
			return []call{{host: r.From.Host, action: Replicate{
				PeerAddress: r.ToAddress, PeerHost: r.To.Host, Disks: r.Disks, Bandwidth: r.Bandwidth, MaxDowntime: r.MaxDowntime,
			}}}
		},
		note: func(s *state, _ int, r Result) error {
			s.measured(r)
			return nil
		},
		undo: func(s *state) []call {
			return []call{{host: s.Request.From.Host, action: StopReplication{}}}
		},
	}
}

func copyChanges() step {
	st := copyDisks()
	st.Name = "copy-changes"
	st.Why = "after give-up, so that nothing changes behind its back; only what was written since the last round, since this is downtime"
	st.do = func(s *state) []call {
		r := s.Request
		return []call{{host: r.From.Host, action: Copy{
			PeerAddress: r.ToAddress, PeerHost: r.To.Host, Disks: r.Disks, Bandwidth: r.Bandwidth, Changes: true,
		}}}
	}
	st.undo = func(s *state) []call {
		return []call{{host: s.Request.From.Host, cancel: "copy-changes"}}
	}
	return st
}
