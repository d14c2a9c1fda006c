package executortest

import (
	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/executor"
)

// diskRounds is how many there are of an undisturbed replication.
const diskRounds = 3

// replicate sends the disks in rounds while the guest writes.
func (j *job) replicate(a executor.Replicate) (executor.Result, error) {
	for n := range diskRounds {
		j.tell("copy", n, diskRounds)
		for _, d := range a.Disks {
			for _, torn := range []bool{true, false} {
				if err := j.rest(); err != nil {
					return executor.Result{}, err
				}
				if err := j.part(func() error { return j.sendRound(a, d, torn) }); err != nil {
					return executor.Result{}, err
				}
			}
		}
		err := j.part(func() error {
			_, there, err := j.peer(a.PeerHost)
			if err == nil {
				there.synced = true
			}
			return err
		})
		if err != nil {
			return executor.Result{}, err
		}
	}
	return executor.Result{DiskBytes: drover.Bytes(diskRounds * len(a.Disks)), PathWireBytes: drover.Bytes(diskRounds * len(a.Disks))}, nil
}

// sendRound is half of a disk's round; w.mu is held.
func (j *job) sendRound(a executor.Replicate, d executor.DiskPlan, torn bool) error {
	v, err := j.vm()
	if err != nil {
		return err
	}
	if v.state != drover.VMRunning {
		return drover.Errorf(drover.Refused, "replicate", "%s is %s", v.name, v.state)
	}
	peer, _, err := j.peer(a.PeerHost)
	if err != nil {
		return err
	}
	from, to := j.h.volumes[d.Path], peer.volumes[d.Path]
	if from == nil || to == nil {
		return drover.Errorf(drover.Internal, "replicate", "%s is missing: source %v, target %v", d.Path, from == nil, to == nil)
	}
	j.j.recording = true
	to.write, to.torn = from.write, torn
	j.w.guestWrites(j.h, v)
	return nil
}

func (j *job) stopReplication() error {
	if err := j.endOthers(); err != nil {
		return err
	}
	if err := j.hold(); err != nil {
		return err
	}
	return j.part(func() error {
		j.j.recording = false
		return nil
	})
}

// stopVM gives up what the guest wrote here.
func (j *job) stopVM() error {
	if err := j.endOthers(); err != nil {
		return err
	}
	if err := j.hold(); err != nil {
		return err
	}
	return j.part(func() error {
		if j.j.committed {
			j.w.wrongf("%s is asked to stop %s, which was committed", j.h.name, j.j.vm)
			return drover.Errorf(drover.Refused, "stop-vm", "it was committed")
		}
		v := j.h.vms[j.j.vm]
		if v == nil || !j.j.ran {
			return nil
		}
		v.state, j.j.ran = drover.VMOff, false
		j.w.written[v.uuid] = j.j.before
		j.w.serves()
		return nil
	})
}

func (j *job) checkHealth() (executor.Result, error) {
	for range 3 {
		if err := j.rest(); err != nil {
			return executor.Result{}, err
		}
	}
	var r executor.Result
	return r, j.part(func() error {
		why := j.w.sick[j.j.vm]
		if v := j.h.vms[j.j.vm]; why == "" && v != nil && v.state != drover.VMRunning {
			why = "it is " + string(v.state)
		}
		r.Healthy, r.Detail = why == "", why
		return nil
	})
}

func (j *job) commit() error {
	if err := j.rest(); err != nil {
		return err
	}
	return j.part(func() error {
		if j.j.uncommitted {
			return drover.Errorf(drover.Refused, "commit", "it was given up before")
		}
		j.j.committed = true
		return nil
	})
}

func (j *job) abortCommit() (executor.Result, error) {
	if err := j.endOthers(); err != nil {
		return executor.Result{}, err
	}
	if err := j.hold(); err != nil {
		return executor.Result{}, err
	}
	var r executor.Result
	return r, j.part(func() error {
		j.j.uncommitted = !j.j.committed
		r.Moved = j.j.committed
		return nil
	})
}
