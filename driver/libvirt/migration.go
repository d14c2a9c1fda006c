package libvirt

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

const (
	// defaultPause is the pause QEMU aims at when the caller names none; it is
	// QEMU's own default.
	defaultPause = 300 * time.Millisecond
	// unlimitedMiB is "no limit" in the MiB/s that libvirt takes: the largest
	// number that it can turn into bytes. Left to itself QEMU keeps to
	// 128 MiB/s.
	unlimitedMiB = math.MaxInt64 >> 20
	// pollInterval is how often a state that libvirt sends no event for is
	// read again.
	pollInterval = 50 * time.Millisecond
	// settleLimit bounds bringing a VM into a definite state. Libvirt waits up
	// to 30 s for a VM's lock, and a manager that was restarted has to find
	// its VMs again.
	settleLimit = 90 * time.Second
	// settleGrace is how long libvirt is given to end on its own what its
	// client has left: a receiving QEMU, a transfer that is told to abort. It
	// takes milliseconds unless sockets are stuck.
	settleGrace = 5 * time.Second
)

// migrationFlags: the destination keeps the guest paused until Finish resumes
// it, so that a connection that breaks in Finish never ends a running guest.
const migrationFlags = golibvirt.MigrateLive | golibvirt.MigratePersistDest | golibvirt.MigrateUndefineSource |
	golibvirt.MigrateChangeProtection | golibvirt.MigratePaused

// terms are a MigrationSpec in libvirt's words: the same for each phase on
// one side.
type terms struct {
	flags  golibvirt.DomainMigrateFlags
	params []golibvirt.TypedParam
}

func termsOf(spec driver.MigrationSpec) terms {
	t := terms{flags: migrationFlags, params: []golibvirt.TypedParam{
		stringParam(golibvirt.MigrateParamURI, "unix://"+spec.MemorySocket),
		{Field: golibvirt.MigrateParamBandwidth, Value: *golibvirt.NewTypedParamValueUllong(bandwidthMiB(spec.Bandwidth))},
	}}
	if len(spec.Persistent) > 0 {
		t.params = append(t.params, stringParam(golibvirt.MigrateParamPersistXML, string(spec.Persistent)))
	}
	if spec.AutoConverge {
		t.flags |= golibvirt.MigrateAutoConverge
		t.params = append(t.params,
			intParam(golibvirt.MigrateParamAutoConvergeInitial, throttleInitial),
			intParam(golibvirt.MigrateParamAutoConvergeIncrement, throttleIncrement))
	}
	if spec.DisksStay {
		// To libvirt it is unsafe that a disk which is not shared is not copied.
		t.flags |= golibvirt.MigrateUnsafe
	}
	if len(spec.CopyDisks) == 0 {
		return t
	}
	if spec.TopOnly {
		t.flags |= golibvirt.MigrateNonSharedInc
	} else {
		t.flags |= golibvirt.MigrateNonSharedDisk
	}
	t.params = append(t.params, stringParam(golibvirt.MigrateParamDisksURI, "unix://"+spec.DiskSocket))
	for _, target := range spec.CopyDisks {
		t.params = append(t.params, stringParam(golibvirt.MigrateParamMigrateDisks, target))
	}
	return t
}

// How much QEMU holds the guest's processors back, in percent: at first, when two
// rounds in a row have each left more than half of what they carried dirty, and
// more each time that happens again, at most once a second (migration/ram.c,
// migration_trigger_throttle; its own first step is 20). It begins low because
// the pause is allowed to grow at the same time (roundWatch), which most guests
// feel less.
const (
	throttleInitial   = 10
	throttleIncrement = 10
)

func intParam(name string, v int32) golibvirt.TypedParam {
	return golibvirt.TypedParam{Field: name, Value: *golibvirt.NewTypedParamValueInt(v)}
}

// with returns the parameters and another.
func (t terms) with(extra golibvirt.TypedParam) []golibvirt.TypedParam {
	return append([]golibvirt.TypedParam{extra}, t.params...)
}

func stringParam(name, value string) golibvirt.TypedParam {
	return golibvirt.TypedParam{Field: name, Value: *golibvirt.NewTypedParamValueString(value)}
}

// bandwidthMiB rounds down to libvirt's MiB/s, but not to zero. Libvirt
// applies it to the memory stream and to each disk's mirror.
func bandwidthMiB(rate drover.BitRate) uint64 {
	if rate <= 0 {
		return unlimitedMiB
	}
	return max(1, uint64(rate)/8>>20)
}

func checkSpec(spec driver.MigrationSpec) error {
	if err := drover.CheckName("vm", spec.Name); err != nil {
		return err
	}
	if spec.MemorySocket == "" || len(spec.CopyDisks) > 0 && spec.DiskSocket == "" {
		return drover.Errorf(drover.Invalid, "migrate "+spec.Name, "the sockets for memory and disks must be named")
	}
	return nil
}

// finishCookie is what Incoming.Finish hands to Outgoing.Confirm.
type finishCookie struct {
	Libvirt []byte `json:"libvirt"`
	// PauseMillis is the guest's pause: what libvirt measured from the stop at
	// the source to the end of its Finish, plus the time to resume.
	PauseMillis float64 `json:"pause_ms"`
}

func (c finishCookie) encode() ([]byte, error) { return json.Marshal(c) }

// decodeFinishCookie accepts none: a caller that has lost the cookie may still
// confirm, only the statistics are poorer.
func decodeFinishCookie(data []byte) (finishCookie, error) {
	var c finishCookie
	if len(data) == 0 {
		return c, nil
	}
	if err := json.Unmarshal(data, &c); err != nil {
		return c, drover.Errorf(drover.Invalid, "", "cookie of finish: %w", err)
	}
	return c, nil
}

// isIncoming reports whether the domain is a QEMU that is still receiving: its
// job has no statistics, which libvirt says with an error of its own.
func isIncoming(rpc *golibvirt.Libvirt, dom golibvirt.Domain) (bool, error) {
	_, _, err := rpc.DomainGetJobStats(dom, 0)
	switch {
	case err == nil:
		return false, nil
	case hasCode(err, golibvirt.ErrOperationUnsupported):
		return true, nil
	case hasCode(err, golibvirt.ErrOperationInvalid): // not running
		return false, nil
	case hasCode(err, golibvirt.ErrInternalError):
		// "backup job data missing": its job is a backup that is just beginning or
		// ending, so that it is not one of receiving.
		return false, nil
	}
	return false, err
}

// removeSockets takes away the sockets that QEMU listened at; it closes them
// without removing the files.
func removeSockets(spec driver.MigrationSpec) {
	for _, path := range []string{spec.MemorySocket, spec.DiskSocket} {
		if path != "" {
			_ = os.Remove(path)
		}
	}
}

// Settle brings the VM into the state given, whatever a migration left of it.
// A migration of this process is closed first.
func (h *Hypervisor) Settle(ctx context.Context, name string, to driver.Settlement) error {
	if err := drover.CheckName("vm", name); err != nil {
		return err
	}
	h.mu.Lock()
	open := h.migrations[name]
	h.mu.Unlock()
	if open != nil {
		_ = open.Close()
	}
	return h.settle(ctx, name, to)
}

func (h *Hypervisor) settle(ctx context.Context, name string, to driver.Settlement) error {
	ctx, cancel := context.WithTimeout(ctx, settleLimit)
	defer cancel()
	op, step := "settle", settleGone
	if to == driver.SettleResume {
		op, step = "resume", settleResume
	}
	began := time.Now()
	for {
		done, err := askDomain(ctx, h, op, name, func(rpc *golibvirt.Libvirt, dom golibvirt.Domain) (bool, error) {
			return step(rpc, dom, time.Since(began) > settleGrace)
		})
		if notFound(err) && to == driver.SettleGone {
			return nil
		}
		if done || err != nil {
			return err
		}
		if err := pause(ctx, pollInterval); err != nil {
			return drover.Errorf(drover.Unknown, op+" "+name, "it has not settled within %s: %w", settleLimit, err)
		}
	}
}

// pause waits, or returns ctx's error.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// settleGone takes one step towards a VM that does not exist.
func settleGone(rpc *golibvirt.Libvirt, dom golibvirt.Domain, late bool) (bool, error) {
	active, err := rpc.DomainIsActive(dom)
	if err != nil {
		return false, err
	}
	if active != 0 {
		if !late { // killing QEMU ends a transfer that does not abort, too
			if busy, err := abortTransfer(rpc, dom); busy || err != nil {
				return false, err
			}
		}
		if err := destroy(rpc, dom); err != nil {
			return false, err
		}
		return false, nil // look again: it is gone unless it is persistent
	}
	return true, undefine(rpc, dom)
}

// settleResume takes one step towards a running VM.
func settleResume(rpc *golibvirt.Libvirt, dom golibvirt.Domain, late bool) (bool, error) {
	incoming, err := isIncoming(rpc, dom)
	if err != nil {
		return false, err
	}
	if incoming {
		// What is being received never became a VM; libvirt ends it when it
		// notices that its client is gone.
		if late {
			return false, destroy(rpc, dom)
		}
		return false, nil
	}
	state, reason, err := rpc.DomainGetState(dom, 0)
	if err != nil {
		return false, err
	}
	switch stateOf(golibvirt.DomainState(state), reason) {
	case drover.VMRunning:
		busy, err := abortTransfer(rpc, dom)
		return !busy && err == nil, err
	case drover.VMPaused:
		if busy, err := abortTransfer(rpc, dom); busy || err != nil {
			return false, err
		}
		return false, rpc.DomainResume(dom)
	default:
		return false, start(rpc, dom)
	}
}

// abortTransfer asks an outgoing transfer to end and reports whether there
// still is one.
func abortTransfer(rpc *golibvirt.Libvirt, dom golibvirt.Domain) (bool, error) {
	kind, _, err := rpc.DomainGetJobStats(dom, 0)
	if hasCode(err, golibvirt.ErrOperationUnsupported) || hasCode(err, golibvirt.ErrOperationInvalid) {
		return false, nil // receiving, or not running
	}
	if err != nil || golibvirt.DomainJobType(kind) == golibvirt.DomainJobNone {
		return false, err
	}
	err = rpc.DomainAbortJob(dom)
	if hasCode(err, golibvirt.ErrOperationInvalid) || hasCode(err, golibvirt.ErrOperationFailed) {
		err = nil // it has ended meanwhile, or cannot be aborted just now
	}
	return true, err
}

// keepRunning makes sure, after a failed Perform, that a guest that was not
// given up runs on. It outlives the caller's context: a paused guest that
// nobody resumes is the one outcome that must not be.
func (h *Hypervisor) keepRunning(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleLimit)
	defer cancel()
	began := time.Now()
	for {
		done, err := askDomain(ctx, h, "keep running", name, func(rpc *golibvirt.Libvirt, dom golibvirt.Domain) (bool, error) {
			state, reason, err := rpc.DomainGetState(dom, 0)
			if err != nil {
				return false, err
			}
			switch stateOf(golibvirt.DomainState(state), reason) {
			case drover.VMOff, drover.VMCrashed:
				return true, errStopped
			case drover.VMPaused:
				if !pausedByMigration(golibvirt.DomainPausedReason(reason)) {
					return true, nil // somebody else's pause
				}
			}
			return settleResume(rpc, dom, time.Since(began) > settleGrace)
		})
		switch {
		case errors.Is(err, errStopped), notFound(err):
			return errStopped
		case err == nil && done:
			return nil
		case err != nil && !drover.KindOf(err).Retryable():
			return err
		}
		if waitErr := pause(ctx, pollInterval); waitErr != nil {
			return fmt.Errorf("%w (last: %v)", waitErr, err)
		}
	}
}

// pausedByMigration reports whether a failed migration may be why a guest is
// paused. A user's pause, or an I/O error's, is not the migration's to end.
func pausedByMigration(reason golibvirt.DomainPausedReason) bool {
	switch reason {
	case golibvirt.DomainPausedMigration, golibvirt.DomainPausedUnknown, golibvirt.DomainPausedAPIError:
		return true
	}
	return false
}

// errStopped says that the guest ended by itself while it was being moved.
var errStopped = errors.New("the guest has stopped meanwhile")
