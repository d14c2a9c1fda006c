package agent

import (
	"context"
	"path/filepath"
	"slices"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/driver"
)

// A warm move's disks are sent in rounds while the VM runs:
//
//	source agent                              source hypervisor      destination agent
//	  │ journal: round 2 begun                      │                      │
//	  │ ── Prepare(round 2, base 1) ─────────────────────────────────────▶ │ its volumes have round 1
//	  │ ── BeginBackup(checkpoint 2, since 1) ─────▶│ disks frozen,        │
//	  │                                             │ changes recorded     │
//	  │ ◀══ NBD: what changed since 1 ══════════════│                      │
//	  │ ══ data path, read back, digests compared ═══════════════════════▶ │ journal: has round 2
//	  │ ── End ────────────────────────────────────▶│                      │
//	  │ journal: round 2 done                       │                      │
//	  │ ── RemoveCheckpoint(1) ────────────────────▶│                      │
//
// A round that breaks off is taken again since the same checkpoint: what it had
// written is written again, and more. So the destination's volumes, once they
// have been complete, only ever need what changed since the round that they are
// known to have. Numbers are never used twice.

const (
	// downtimeUsual is how long the last changes may take to be sent when nobody
	// says: less than what shutting down and booting differ by from time to time.
	downtimeUsual = time.Second
	// maxRounds bounds the rounds of one run. Where each leaves nine tenths of the
	// one before, twenty leave an eighth; more is not worth the VM's disks' time.
	maxRounds = 20
	// shrinks is what a round has to get the rest down to, to be worth another;
	// maxFlat is how many in a row may miss it: one may be the guest's nightly job.
	shrinks = 0.9
	maxFlat = 2
)

// warmRecord is the source's side of a warm move.
type warmRecord struct {
	// Last is the number of the newest checkpoint that may have been begun. Done
	// is that of the newest round that the destination has complete; zero: none.
	Last int64 `json:"last"`
	Done int64 `json:"done,omitempty"`
	// Frozen says that the guest's file systems may be frozen, for a copy of them.
	Frozen bool `json:"frozen,omitempty"`
	// Owner names the replica that it was taken from, and whose checkpoints it goes
	// on with; empty: its own.
	Owner string `json:"owner,omitempty"`
	// Point is when the newest round that is complete was frozen, Next when the one
	// that was begun was.
	Point time.Time `json:"point,omitzero"`
	Next  time.Time `json:"next,omitzero"`
	// Figures of all rounds so far.
	Figures transferFigure `json:"figures"`
}

// name is under which the move's checkpoints are known.
func (w *warmRecord) name(move string) string {
	if w != nil && w.Owner != "" {
		return w.Owner
	}
	return move
}

// checkpoint names one of a move's.
func checkpoint(move string, number int64) driver.Checkpoint {
	return driver.Checkpoint{Owner: driver.MoveOwner(move), Number: number}
}

// replicate sends the disks in rounds until the rest is small.
func (a *Agent) replicate(ctx context.Context, j *job, ref moveRef, m *droverv1.Replicate) (*droverv1.RunResult, error) {
	op := "replicate vm " + ref.vm
	if err := a.needHypervisor(); err != nil {
		return nil, err
	}
	if err := checkPeer(m.GetPeerAddress(), m.GetPeerHost()); err != nil {
		return nil, err
	}
	r, err := a.sourceRecord(ref)
	if err != nil {
		return nil, err
	}
	if r.GivenUp {
		return nil, drover.Errorf(drover.Refused, op, "it has been given up already")
	}
	if r.Warm == nil {
		r.Warm = new(warmRecord)
		err := a.journal.update(ref.move, "warm", func(r *record) error {
			r.Warm = new(warmRecord)
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	w := &replication{
		a: a, j: j, ref: ref, msg: m, tenant: r.Tenant, subject: r.subject(), done: r.Warm.Done, owner: r.Warm.name(ref.move),
		downtime: time.Duration(m.GetMaxDowntimeMillis()) * time.Millisecond, rate: drover.BitRate(m.GetBandwidthBps()),
	}
	if w.downtime <= 0 {
		w.downtime = downtimeUsual
	}
	if r.Keeps != m.GetOnce() {
		return nil, drover.Errorf(drover.Refused, op, "once is for replicas, and for them alone")
	}
	if m.GetOnce() {
		result, err := w.once(ctx)
		return result, drover.E(drover.KindOf(err), op, err)
	}
	if err := w.run(ctx); err != nil {
		return nil, drover.E(drover.KindOf(err), op, err)
	}
	if r, err = a.sourceRecord(ref); err != nil {
		return nil, err
	}
	f := r.Warm.Figures
	result := &droverv1.RunResult{DiskBytes: f.DiskBytes, PathWireBytes: f.PathBytes}
	if f.Path != nil {
		result.Path = api.PathFiguresToProto(*f.Path)
	}
	return result, nil
}

// run takes rounds.
func (w *replication) run(ctx context.Context) error {
	previous, flat := drover.Bytes(-1), 0
	for n := 1; ; n++ {
		off, err := w.isOff(ctx)
		switch {
		case err != nil:
			return err
		case off && w.done > 0:
			// What was written since is in the images' records.
			return nil
		case off:
			return drover.Errorf(drover.Refused, "", "it is off: move it cold")
		}
		if err := w.tidy(ctx, w.done); err != nil {
			return err
		}
		if err := w.round(ctx); err != nil {
			return err
		}
		left, err := w.a.hyp.ChangedBytes(ctx, w.ref.vm, checkpoint(w.owner, w.done))
		if kind := drover.KindOf(err); n < maxRounds && (kind == drover.Refused || kind == drover.NotFound) {
			continue // it has just been shut down, or died and was started again
		}
		if err != nil {
			return err
		}
		why := w.enough(left, n)
		if previous >= 0 && float64(left) > shrinks*float64(previous) {
			flat++
		} else {
			flat = 0
		}
		if why == "" && flat >= maxFlat {
			why = "what is left does not become less"
		}
		w.j.log.Info("round done", "round", w.done, "left", left.String(), "rate", w.speed().String(), "ends", why)
		if why != "" {
			return w.tidy(ctx, w.done)
		}
		previous = left
	}
}

// enough says why no further round is needed; empty when one is.
func (w *replication) enough(left drover.Bytes, n int) string {
	rate := w.speed()
	switch {
	case left == 0:
		return "nothing is left"
	case rate > 0 && float64(left)*8/float64(rate) <= w.downtime.Seconds():
		return "what is left fits the downtime"
	case n >= maxRounds:
		return "limit of rounds"
	}
	return ""
}

func (w *replication) isOff(ctx context.Context) (bool, error) {
	vm, err := w.a.vmHere(ctx, w.ref)
	if err != nil {
		return false, err
	}
	return vm.State != drover.VMRunning && vm.State != drover.VMPaused, nil
}

// tidy ends what an earlier round left, and removes all checkpoints of the move
// but the one given.
func (w *replication) tidy(ctx context.Context, keep int64) error {
	return w.a.tidyBackups(ctx, w.ref, w.msg.GetDisks(), keep)
}

// tidyBackups ends the move's backup and removes its checkpoints but one; zero:
// all that may ever have been. The VM may be running or off.
func (a *Agent) tidyBackups(ctx context.Context, ref moveRef, disks []*droverv1.DiskPlan, keep int64) error {
	r, err := a.journal.move(ref.move)
	if err != nil {
		return err
	}
	name := ref.move
	if r != nil {
		name = r.Warm.name(ref.move)
	}
	owner := driver.MoveOwner(name)
	if err := a.hyp.EndBackup(ctx, ref.vm, owner); err != nil {
		return err
	}
	known, err := a.hyp.Checkpoints(ctx, ref.vm)
	if err != nil {
		return err
	}
	if r != nil && r.Warm != nil {
		// The manager may have forgotten what the hypervisor still records.
		for _, n := range []int64{r.Warm.Done, r.Warm.Last} {
			if c := checkpoint(name, n); n > 0 && !slices.Contains(known, c) {
				known = append(known, c)
			}
		}
	}
	var targets []string
	for _, d := range disks {
		targets = append(targets, d.GetTarget())
	}
	for _, c := range known {
		if c.Owner != owner || c.Number == keep {
			continue
		}
		if err := a.hyp.RemoveCheckpoint(ctx, ref.vm, c, targets); err != nil {
			return err
		}
	}
	for _, d := range disks {
		if err := a.volumes.Delete(ctx, scratchOf(owner, d)); err != nil {
			return err
		}
	}
	return nil
}

// scratchOf is where the hypervisor keeps what the guest overwrites: beside the
// disk, where there is room for one.
func scratchOf(owner driver.Owner, d *droverv1.DiskPlan) string {
	return filepath.Join(filepath.Dir(d.GetPath()), driver.ScratchName(owner, d.GetTarget()))
}

// dropBitmaps removes the move's records from the images of a VM that is off.
func (a *Agent) dropBitmaps(ctx context.Context, r *record) error {
	owner := driver.MoveOwner(r.Warm.name(r.Move))
	for _, d := range r.Disks {
		if d.Shared || d.ReadOnly {
			continue
		}
		stored, err := a.volumes.Bitmaps(ctx, d.Path)
		if kind := drover.KindOf(err); err != nil && (kind == drover.NotFound || kind == drover.Refused) {
			continue // it is gone, or cannot have any
		}
		if err != nil {
			return err
		}
		for _, c := range stored {
			if c.Owner != owner {
				continue
			}
			if err := a.volumes.RemoveBitmap(ctx, d.Path, c); err != nil {
				return err
			}
		}
	}
	return nil
}

// stopReplication ends the rounds and the recording, whether the VM runs or not.
func (a *Agent) stopReplication(ctx context.Context, _ *job, ref moveRef, _ *droverv1.StopReplication) (*droverv1.RunResult, error) {
	if err := a.needHypervisor(); err != nil {
		return nil, err
	}
	r, err := a.journal.move(ref.move)
	if err != nil || r == nil || r.Warm == nil {
		return resultNow(), err
	}
	return resultNow(), a.undoWarm(ctx, ref, r)
}

// undoWarm ends the rounds of a move that is undone. A replica's record of changes
// goes back to the replica.
func (a *Agent) undoWarm(ctx context.Context, ref moveRef, r *record) error {
	if r.Warm.Owner != "" {
		if err := a.thaw(ctx, ref); err != nil {
			return err
		}
		if given, err := a.giveRecord(ref.move); given || err != nil {
			return err
		}
	}
	return a.endWarm(ctx, ref, r)
}

// endWarm removes what a warm move has made at its source besides figures.
func (a *Agent) endWarm(ctx context.Context, ref moveRef, r *record) error {
	if err := a.thaw(ctx, ref); err != nil {
		return err
	}
	vm, err := a.vmHere(ctx, ref)
	there := err == nil
	if err != nil && drover.KindOf(err) != drover.NotFound {
		return err
	}
	if there {
		var disks []*droverv1.DiskPlan
		for _, d := range r.Disks {
			if !d.Shared && !d.ReadOnly {
				disks = append(disks, &droverv1.DiskPlan{Target: d.Target, Path: d.Path})
			}
		}
		if err := a.tidyBackups(ctx, ref, disks, 0); err != nil {
			return err
		}
	}
	if !there || vm.State != drover.VMRunning && vm.State != drover.VMPaused {
		if err := a.dropBitmaps(ctx, r); err != nil {
			return err
		}
	}
	return a.journal.update(ref.move, "warm-ended", func(r *record) error {
		r.Warm = nil
		return nil
	})
}
