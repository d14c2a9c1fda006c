package executortest

import (
	"slices"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/executor"
)

func timer(d time.Duration) <-chan time.Time { return time.After(d) }

// sleep passes the time of one part; an end of the action is noticed by the
// next part.
func (j *job) sleep() error {
	if j.w.Pace <= 0 {
		return nil
	}
	select {
	case <-timer(j.w.Pace):
	case <-j.ctx.Done():
	}
	return nil
}

// act carries out the action that it is.
func (j *job) act() (executor.Result, error) {
	var none executor.Result
	switch a := j.action.(type) {
	case executor.Reserve:
		return none, j.reserve(a)
	case executor.Release:
		return none, j.release()
	case executor.CreateVolumes:
		return none, j.createVolumes(a)
	case executor.DeleteVolumes:
		return none, j.deleteVolumes()
	case executor.Transfer:
		return j.transfer(a)
	case executor.AbortTransfer:
		return j.abortTransfer(a)
	case executor.Shutdown:
		return j.shutdown()
	case executor.GiveUp:
		return j.giveUp()
	case executor.TakeBack:
		return none, j.takeBack(a)
	case executor.Copy:
		return j.copyDisks(a)
	case executor.Define:
		return none, j.define(a)
	case executor.Undefine:
		return none, j.undefine()
	case executor.StartVM:
		return j.start()
	case executor.Verify:
		return none, j.verify(a)
	case executor.ReleaseSource:
		return none, j.releaseSource(a)
	case executor.Replicate:
		return j.replicate(a)
	case executor.StopReplication:
		return none, j.stopReplication()
	case executor.StopVM:
		return none, j.stopVM()
	case executor.CheckHealth:
		return j.checkHealth()
	case executor.Commit:
		return none, j.commit()
	case executor.AbortCommit:
		return j.abortCommit()
	case executor.Edge:
		return leased(a), j.edge(a)
	case executor.DefineClone:
		return none, j.defineClone(a)
	case executor.CopyClone:
		return j.copyClone(a)
	case executor.Attend:
		return j.attend(a)
	case executor.StageEdge:
		return none, j.stageEdge(a)
	case executor.CountSessions:
		return j.countSessions()
	case executor.ChangeGuest:
		return j.changeGuest(a)
	case executor.FindStation:
		return j.findStation(a)
	case executor.LendDisks:
		return none, j.lend(a)
	case executor.ReclaimDisks:
		return none, j.reclaim()
	case executor.AttachDisks:
		return j.attachDisks(a)
	case executor.DetachDisks:
		return none, j.detach()
	case executor.BringDisks:
		return j.bring(a)
	case executor.AbortBring:
		return j.abortBring()
	default:
		return none, drover.Errorf(drover.Invalid, j.key.step, "unknown action %T", a)
	}
}

// vm finds the VM on this host; w.mu is held.
func (j *job) vm() (*vm, error) {
	if v := j.h.vms[j.j.vm]; v != nil {
		return v, nil
	}
	return nil, drover.Errorf(drover.NotFound, j.key.step, "%s is not on %s", j.j.vm, j.h.name)
}

func (j *job) reserve(a executor.Reserve) error {
	if err := j.rest(); err != nil {
		return err
	}
	return j.part(func() error {
		for name, other := range j.h.moves {
			if name != j.key.move && other.uuid == j.j.uuid && !other.released {
				return drover.Errorf(drover.Refused, "reserve", "move %s has it", name)
			}
		}
		if v := j.h.vms[j.j.vm]; (v != nil) == (a.Target != a.DisksOnly) {
			return drover.Errorf(drover.Refused, "reserve", "%s on %s: there %v, want %v", j.j.vm, j.h.name, v != nil, !a.Target)
		}
		if a.DisksOnly && !a.Target && j.h.lent[j.j.uuid] == "" {
			return drover.Errorf(drover.Refused, "reserve", "%s has no disk of %s", j.h.name, j.j.vm)
		}
		j.j.disksOnly = a.DisksOnly
		j.j.reserved, j.j.released = true, false
		return nil
	})
}

func (j *job) release() error {
	if err := j.endOthers(); err != nil {
		return err
	}
	if err := j.hold(); err != nil {
		return err
	}
	return j.part(func() error {
		if j.j.kept != nil || j.j.given && !j.j.moved {
			j.w.wrongf("%s forgets move %s while it has the VM in its care", j.h.name, j.key.move)
		}
		if !j.j.moved && !j.j.given && !j.j.disksOnly {
			j.takeBackLent()
		}
		j.j.reserved, j.j.released, j.j.staged = false, true, nil
		return nil
	})
}

func (j *job) createVolumes(a executor.CreateVolumes) error {
	for _, d := range a.Disks {
		if err := j.rest(); err != nil {
			return err
		}
		err := j.part(func() error {
			if slices.Contains(j.j.created, d.Path) {
				return nil
			}
			if j.h.volumes[d.Path] != nil {
				return drover.Errorf(drover.Exists, "create-volumes", "%s is there already", d.Path)
			}
			j.j.created = append(j.j.created, d.Path)
			j.h.volumes[d.Path] = &volume{torn: !d.Fresh}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (j *job) deleteVolumes() error {
	if err := j.endOthers(); err != nil {
		return err
	}
	for {
		if err := j.hold(); err != nil {
			return err
		}
		more := false
		err := j.part(func() error {
			if j.j.accepted || j.j.ran || j.j.pivoting {
				j.w.wrongf("%s is asked to delete the volumes of %s, which is its own by now", j.h.name, j.j.vm)
				return drover.Errorf(drover.Refused, "delete-volumes", "the VM is here")
			}
			j.j.synced = false
			if len(j.j.created) > 0 {
				delete(j.h.volumes, j.j.created[0])
				j.j.created = j.j.created[1:]
			}
			more = len(j.j.created) > 0
			return nil
		})
		if err != nil || !more {
			return err
		}
	}
}

func (j *job) shutdown() (executor.Result, error) {
	err := j.part(func() error {
		v, err := j.vm()
		if err == nil && j.j.wasRunning == nil {
			j.j.wasRunning = new(v.state == drover.VMRunning)
		}
		return err
	})
	if err != nil {
		return executor.Result{}, err
	}
	if err := j.rest(); err != nil {
		return executor.Result{}, err
	}
	var r executor.Result
	return r, j.part(func() error {
		v, err := j.vm()
		if err != nil {
			return err
		}
		j.w.stop(j.h, v, drover.VMOff)
		r.WasRunning, r.Stopped = *j.j.wasRunning, time.Now()
		return nil
	})
}

func (j *job) giveUp() (executor.Result, error) {
	if err := j.rest(); err != nil {
		return executor.Result{}, err
	}
	r := executor.Result{Definition: []byte("definition of " + j.j.vm)}
	return r, j.part(func() error {
		if j.j.kept != nil {
			return nil
		}
		v, err := j.vm()
		if err != nil {
			return err
		}
		if v.state == drover.VMRunning {
			return drover.Errorf(drover.Refused, "give-up", "%s runs", v.name)
		}
		j.j.kept = v
		delete(j.h.vms, v.name)
		return nil
	})
}

func (j *job) takeBack(a executor.TakeBack) error {
	if err := j.endOthers(); err != nil {
		return err
	}
	if err := j.hold(); err != nil {
		return err
	}
	err := j.part(func() error {
		if j.j.kept != nil {
			// What was recorded goes with the definition.
			j.h.vms[j.j.vm], j.j.kept, j.j.recording = j.j.kept, nil, false
		}
		_, err := j.vm()
		return err
	})
	if err != nil {
		return err
	}
	if err := j.hold(); err != nil {
		return err
	}
	return j.part(func() error {
		v, err := j.vm()
		if err == nil && (a.Start || j.j.wasRunning != nil && *j.j.wasRunning) {
			j.w.run(j.h, v)
		}
		return err
	})
}

func (j *job) copyDisks(a executor.Copy) (executor.Result, error) {
	r := executor.Result{DiskBytes: drover.Bytes(len(a.Disks)), PathWireBytes: drover.Bytes(len(a.Disks))}
	for i, d := range a.Disks {
		j.tell("copy", i, len(a.Disks))
		for _, torn := range []bool{true, false} {
			if err := j.rest(); err != nil {
				return executor.Result{}, err
			}
			err := j.part(func() error {
				if j.j.kept == nil {
					return drover.Errorf(drover.Refused, "copy", "%s has not been given up", j.j.vm)
				}
				peer, there, err := j.peer(a.PeerHost)
				if err != nil {
					return err
				}
				if a.Changes && (!j.j.recording || !there.synced) {
					return drover.Errorf(drover.Refused, "copy", "changes of what? recorded %v, received %v", j.j.recording, there.synced)
				}
				from, to := j.h.volumes[d.Path], peer.volumes[d.Path]
				if from == nil || to == nil {
					return drover.Errorf(drover.Internal, "copy", "%s is missing: source %v, target %v", d.Path, from == nil, to == nil)
				}
				to.write, to.torn = from.write, torn
				return nil
			})
			if err != nil {
				return executor.Result{}, err
			}
		}
	}
	return r, nil
}

func (j *job) define(a executor.Define) error {
	if err := j.rest(); err != nil {
		return err
	}
	return j.part(func() error {
		if v := j.h.vms[j.j.vm]; v != nil {
			return nil
		}
		if string(a.Definition) != "definition of "+j.j.vm {
			return drover.Errorf(drover.Invalid, "define", "definition %q", a.Definition)
		}
		j.h.vms[j.j.vm] = &vm{name: j.j.vm, uuid: j.j.uuid, state: drover.VMOff, paths: slices.Clone(j.j.created)}
		return nil
	})
}

func (j *job) undefine() error {
	if err := j.endOthers(); err != nil {
		return err
	}
	if err := j.hold(); err != nil {
		return err
	}
	return j.part(func() error {
		v := j.h.vms[j.j.vm]
		if j.j.committed {
			j.w.wrongf("%s is asked to undefine %s, which was committed", j.h.name, j.j.vm)
		}
		if j.j.ran || v != nil && v.state == drover.VMRunning {
			return drover.Errorf(drover.Refused, "undefine", "%s has run here", j.j.vm)
		}
		delete(j.h.vms, j.j.vm)
		return nil
	})
}

func (j *job) start() (executor.Result, error) {
	if err := j.rest(); err != nil {
		return executor.Result{}, err
	}
	err := j.part(func() error {
		v, err := j.vm()
		if err == nil {
			if v.state != drover.VMRunning && !j.j.ran {
				j.j.before = j.w.written[v.uuid]
			}
			j.j.ran = true
			j.w.run(j.h, v)
		}
		return err
	})
	if err != nil {
		return executor.Result{}, err
	}
	return executor.Result{Resumed: time.Now()}, j.hold()
}

func (j *job) verify(a executor.Verify) error {
	if err := j.hold(); err != nil {
		return err
	}
	return j.part(func() error {
		v, err := j.vm()
		if err != nil {
			return err
		}
		if (v.state == drover.VMRunning) != a.Running {
			return drover.Errorf(drover.Internal, "verify", "%s is %s, want running %v", v.name, v.state, a.Running)
		}
		return nil
	})
}

func (j *job) releaseSource(a executor.ReleaseSource) error {
	if err := j.hold(); err != nil {
		return err
	}
	return j.part(func() error {
		if v := j.h.vms[j.j.vm]; v != nil {
			j.w.wrongf("%s is asked to remove what %s has left, but it is here", j.h.name, v.name)
			return drover.Errorf(drover.Refused, "release-source", "%s is here", v.name)
		}
		j.j.kept, j.j.recording = nil, false
		if j.j.disksOnly {
			j.forgetLent()
		}
		for _, d := range a.Disks {
			if !a.KeepVolumes {
				delete(j.h.volumes, d.Path)
			}
		}
		return nil
	})
}
