package agent

import (
	"context"
	"errors"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/driver"
)

// A running VM's disks are copied as they are at one moment: a round of a warm
// move that is based on nothing, and that nothing is based on.
//
//	guest            source agent                 hypervisor        destination agent
//	  │ ◀── Freeze ──── │                             │                    │
//	  │                 │ ── BeginBackup ───────────▶ │ disks as of now    │
//	  │ ◀── Thaw ────── │                             │                    │
//	  │ writes on       │ ◀══ NBD: the disks ════════ │                    │
//	  │                 │ ══ data path, read back, digests compared ═════▶ │
//	  │                 │ ── End, RemoveCheckpoint ─▶ │                    │
//
// That the guest is frozen is in the journal before it is: whoever comes after a
// crash thaws it first.

const (
	// frozenLimit bounds the time for which a guest stays frozen because of the
	// hypervisor: its users wait meanwhile. A backup begins within a tenth of a
	// second, unless something else is under way.
	frozenLimit = 5 * time.Second
	// thawTries and thawAgain bound thawing at the end of a copy. A guest that does
	// not thaw is tried again with every step that follows, and at the agent's start.
	thawTries = 5
	thawAgain = 2 * time.Second
)

// copyClone sends the disks of a VM that runs on to where they become another's.
func (a *Agent) copyClone(ctx context.Context, j *job, ref moveRef, m *droverv1.CopyClone) (*droverv1.RunResult, error) {
	op := "copy disks of vm " + ref.vm
	if err := errors.Join(a.needHypervisor(), checkPeer(m.GetPeerAddress(), m.GetPeerHost()), drover.CheckName("clone", m.GetName())); err != nil {
		return nil, err
	}
	r, err := a.sourceRecord(ref)
	if err != nil {
		return nil, err
	}
	if r.GivenUp {
		return nil, drover.Errorf(drover.Refused, op, "it has been given up")
	}
	err = a.journal.update(ref.move, "clone", func(r *record) error {
		if r.Warm == nil {
			r.Warm = new(warmRecord)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if err := a.thaw(ctx, ref); err != nil {
		return nil, err
	}
	w := &replication{
		a: a, j: j, ref: ref, tenant: r.Tenant, subject: r.subject(), rate: drover.BitRate(m.GetBandwidthBps()),
		owner: ref.move,
		msg:   &droverv1.Replicate{PeerAddress: m.GetPeerAddress(), PeerHost: m.GetPeerHost(), Disks: m.GetDisks()},
	}
	if err := w.tidy(ctx, 0); err != nil {
		return nil, err
	}
	// To the peer the move is that of the new VM.
	there := ref
	there.vm, there.uuid = m.GetName(), m.GetUuid()
	result, err := w.sendClone(ctx, there)
	if err != nil {
		return nil, drover.E(drover.KindOf(err), op, err)
	}
	return result, w.tidy(ctx, 0)
}

// sendClone sends all of the disks as they are now.
func (w *replication) sendClone(ctx context.Context, there moveRef) (*droverv1.RunResult, error) {
	var number int64
	err := w.a.journal.update(w.ref.move, "round-begun", func(r *record) error {
		r.Warm.Last++
		number = r.Warm.Last
		return nil
	})
	if err != nil {
		return nil, err
	}
	session, end, err := w.a.openCopy(ctx, there, copyTo{
		address: w.msg.GetPeerAddress(), host: w.msg.GetPeerHost(), tenant: w.tenant, subject: w.subject,
		disks: w.msg.GetDisks(), rate: w.limit(),
	})
	if err != nil {
		return nil, err
	}
	defer end()
	defer w.a.flights.set(w.ref.move, session.SetRate)()
	w.freezes = true
	figures, err := w.sendDisks(ctx, session, number, 0)
	if err != nil {
		return nil, err
	}
	path := session.Figures()
	w.a.metrics.end(w.ref, path)
	return &droverv1.RunResult{
		DiskBytes: figures.data, PathWireBytes: int64(path.Total().WireBytes), Path: api.PathFiguresToProto(path), Detail: w.frozen,
	}, nil
}

// begin begins a backup; of a clone with the guest's file systems frozen, where
// that is possible.
func (w *replication) begin(ctx context.Context, spec driver.BackupSpec) (driver.Backup, error) {
	if !w.freezes {
		return w.a.hyp.BeginBackup(ctx, w.ref.vm, spec)
	}
	guests := w.a.guests.guests
	if guests == nil {
		w.frozen = "as after a power cut: this agent reaches into no guest"
		return w.a.hyp.BeginBackup(ctx, w.ref.vm, spec)
	}
	if err := w.a.markFrozen(w.ref.move, true); err != nil {
		return nil, err
	}
	err := guests.Freeze(ctx, w.ref.vm)
	if err != nil {
		if ctx.Err() != nil {
			return nil, errors.Join(err, w.a.thaw(ctx, w.ref))
		}
		w.frozen = "as after a power cut: " + err.Error()
		w.j.log.Warn("the guest's file systems are not frozen for the copy", "err", err)
		// Half a freeze may be one.
		if err := w.a.thawOnce(ctx, w.ref); err != nil {
			w.j.log.Warn("nor can it be asked to thaw", "err", err)
		}
		return w.a.hyp.BeginBackup(ctx, w.ref.vm, spec)
	}
	w.frozen = "with the guest's file systems frozen"
	limited, cancel := context.WithTimeout(ctx, frozenLimit)
	defer cancel()
	backup, err := w.a.hyp.BeginBackup(limited, w.ref.vm, spec)
	if terr := w.a.thaw(ctx, w.ref); terr != nil {
		err = errors.Join(err, terr)
		if backup != nil {
			err = errors.Join(err, backup.End(context.WithoutCancel(ctx)))
		}
		return nil, err
	}
	return backup, err
}

func (a *Agent) markFrozen(move string, frozen bool) error {
	return a.journal.update(move, "frozen", func(r *record) error {
		if r.Warm != nil {
			r.Warm.Frozen = frozen
		}
		return nil
	})
}

// thaw thaws a guest that the journal says may be frozen, several times if need be;
// once also for a caller that is canceled.
func (a *Agent) thaw(ctx context.Context, ref moveRef) error {
	for n := 1; ; n++ {
		err := a.thawOnce(context.WithoutCancel(ctx), ref)
		if err == nil || n >= thawTries {
			return err
		}
		a.log.Error("a guest does not thaw", "move", ref.move, "vm", ref.vm, "err", err)
		if sleep(ctx, thawAgain, nil) != nil {
			return err
		}
	}
}

func (a *Agent) thawOnce(ctx context.Context, ref moveRef) error {
	r, err := a.journal.move(ref.move)
	if err != nil || r == nil || r.Warm == nil || !r.Warm.Frozen || a.guests.guests == nil {
		return err
	}
	if err := a.guests.guests.Thaw(ctx, ref.vm); err != nil {
		return err
	}
	return a.markFrozen(ref.move, false)
}

// thawLeft thaws what an earlier process has left frozen.
func (a *Agent) thawLeft(ctx context.Context) {
	all, err := a.journal.moves()
	if err != nil {
		a.log.Error("cannot look for frozen guests", "err", err)
		return
	}
	for _, r := range all {
		if r.Warm == nil || !r.Warm.Frozen || ctx.Err() != nil {
			continue
		}
		if err := a.thaw(ctx, moveRef{move: r.Move, vm: r.VM, uuid: r.VMUUID}); err != nil {
			a.log.Error("a guest stays frozen", "move", r.Move, "vm", r.VM, "err", err)
		}
	}
}
