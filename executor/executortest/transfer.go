package executortest

import (
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/executor"
)

// rounds of a transfer, each of which takes one Pace.
const rounds = 3

// transfer is a live migration as the two agents agree on it:
//
//	source                                   target
//	memory, disks ─────────────────────────▶ volumes
//	guest paused, journal: given up
//	               ── Finish ──────────────▶ journal: accepted; guest runs
//	               ◀───────────── running ──
//	guest destroyed, journal: moved
func (j *job) transfer(a executor.Transfer) (executor.Result, error) {
	var none executor.Result
	if (a.Retarget == nil) != (a.Guest == nil) {
		return none, drover.Errorf(drover.Invalid, "transfer", "into another segment %v, with other addresses %v", a.Retarget, a.Guest)
	}
	given := false
	err := j.part(func() error {
		if j.j.aborted {
			return drover.Errorf(drover.Canceled, "transfer", "it was aborted for good")
		}
		given = j.j.given
		j.j.stays = len(a.Remote) > 0
		return nil
	})
	if err != nil {
		return none, err
	}
	if given { // by an agent that has crashed since
		moved, err := j.fate(a.PeerHost)
		if err != nil && drover.KindOf(err).Retryable() {
			err = drover.E(drover.Unknown, "transfer", err)
		}
		if err != nil || moved {
			return executor.Result{Moved: moved}, err
		}
	}
	for round := range rounds {
		j.tell("memory", round, rounds)
		if err := j.rest(); err != nil {
			return none, err
		}
		if err := j.part(func() error { return j.mirror(a, true) }); err != nil {
			return none, err
		}
	}
	// The switchover: from here on it cannot be canceled.
	stopped := time.Now()
	err = j.part(func() error {
		v, err := j.vm()
		if err != nil {
			return err
		}
		if v.state != drover.VMRunning {
			return drover.Errorf(drover.Internal, "transfer", "%s is %s", v.name, v.state)
		}
		j.w.stop(j.h, v, drover.VMPaused)
		j.j.given = true
		return j.mirror(a, false)
	})
	if err == nil {
		err = j.hold()
	}
	if err == nil {
		err = j.part(func() error { return j.finish(a.PeerHost) })
	}
	if err == nil {
		j.callOut(a.TargetEdge, a.PeerHost)
		j.callGuest(a)
		err = j.hold() // the answer's way back
	}
	if err != nil && drover.KindOf(err).Retryable() {
		return none, drover.E(drover.Unknown, "transfer", err) // paused and given up: to be asked again
	}
	moved, ferr := j.fate(a.PeerHost)
	if ferr != nil {
		return none, ferr
	}
	if !moved {
		return none, err
	}
	j.callOut(a.SourceEdge, j.h.name)
	return executor.Result{
		Moved: true, Pause: time.Since(stopped), Stopped: stopped, Resumed: time.Now(),
		MemoryBytes: rounds, DiskBytes: drover.Bytes(len(a.Disks)), PathWireBytes: rounds,
		Path: &drover.PathFigures{Memory: drover.PathPhase{GuestBytes: rounds, WireBytes: rounds}},
	}, nil
}

// mirror carries the disks; w.mu is held.
func (j *job) mirror(a executor.Transfer, torn bool) error {
	peer, _, err := j.peer(a.PeerHost)
	if err != nil {
		return err
	}
	for _, d := range a.Disks {
		from, to := j.h.volumes[d.Path], peer.volumes[d.Path]
		if from == nil || to == nil {
			return drover.Errorf(drover.Internal, "transfer", "%s is missing: source %v, target %v", d.Path, from == nil, to == nil)
		}
		to.write, to.torn = from.write, torn
	}
	return nil
}

// finish lets the guest run at the target, unless that has refused for good;
// w.mu is held.
func (j *job) finish(host string) error {
	peer, m, err := j.peer(host)
	if err != nil {
		return err
	}
	if m.refused {
		return drover.Errorf(drover.Refused, "finish", "%s has refused for good", host)
	}
	if !m.accepted {
		m.accepted = true
		v := &vm{name: j.j.vm, uuid: j.j.uuid, state: drover.VMPaused, paths: append([]string(nil), m.created...)}
		if j.j.stays {
			j.receiveRemote(peer, v)
		}
		peer.vms[v.name] = v
		j.w.run(peer, v)
	}
	return nil
}

// fate asks the target how it ended, which makes the answer final, and acts on
// it: the guest is destroyed here, or resumed.
func (j *job) fate(host string) (moved bool, err error) {
	err = j.part(func() error {
		_, m, err := j.peer(host)
		if err != nil {
			if drover.KindOf(err) == drover.Refused {
				return drover.E(drover.Internal, "fate", err)
			}
			return err
		}
		if !m.accepted {
			m.refused = true
		}
		moved = m.accepted
		return nil
	})
	if err != nil {
		return false, err
	}
	if err := j.hold(); err != nil {
		return false, err
	}
	return moved, j.part(func() error {
		v := j.h.vms[j.j.vm]
		switch {
		case moved:
			delete(j.h.vms, j.j.vm)
			j.j.moved = true
		case v == nil:
			return drover.Errorf(drover.NotFound, "fate", "%s is on neither side", j.j.vm)
		default:
			j.w.run(j.h, v)
			j.j.given = false
		}
		return nil
	})
}

func (j *job) abortTransfer(a executor.AbortTransfer) (executor.Result, error) {
	if err := j.endOthers(); err != nil {
		return executor.Result{}, err
	}
	var given, moved bool
	err := j.part(func() error {
		j.j.aborted = true
		given, moved = j.j.given, j.j.moved
		if !given {
			v, err := j.vm()
			if err != nil {
				return err
			}
			if v.state != drover.VMRunning {
				return drover.Errorf(drover.Internal, "abort-transfer", "%s is %s", v.name, v.state)
			}
		}
		return nil
	})
	if err != nil || moved || !given {
		return executor.Result{Moved: moved}, err
	}
	moved, err = j.fate(a.PeerHost)
	return executor.Result{Moved: moved}, err
}
