package agent

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/wan"
)

// endRoundLimit bounds the end of a backup when its round is over, however that
// was.
const endRoundLimit = time.Minute

// replication is one run of replicate.
type replication struct {
	a        *Agent
	j        *job
	ref      moveRef
	msg      *droverv1.Replicate
	tenant   string
	subject  wan.Subject
	downtime time.Duration
	// owner is under whose name the rounds' checkpoints are known.
	owner string
	// done is the newest round that the destination has.
	done int64
	// freezes has the guest's file systems frozen at the backup's beginning, and
	// frozen is how that went.
	freezes bool
	frozen  string

	mu   sync.Mutex
	rate drover.BitRate // may be changed while it runs
	// fastest is the best that a round has reached.
	fastest drover.BitRate
	session *wan.Sender
}

// speed is the rate at which the rest will be sent, as far as is known: the best
// so far, since small rounds are mostly waiting, within what is allowed.
func (w *replication) speed() drover.BitRate {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.fastest
}

// setRate is for this round and those to come.
func (w *replication) setRate(r drover.BitRate) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rate = r
	if w.session != nil {
		w.session.SetRate(r)
	}
}

// round takes the next one. Where the destination does not have what it would be
// based on, or the hypervisor not the record, it is a round of everything.
func (w *replication) round(ctx context.Context) error {
	err := w.send(ctx, w.done)
	if w.done == 0 || drover.KindOf(err) != drover.NotFound {
		return err
	}
	w.j.log.Warn("all is sent once more: what the last round left cannot be built on", "err", err)
	err = w.a.journal.update(w.ref.move, "round-lost", func(r *record) error {
		r.Warm.Done = 0
		return nil
	})
	if err != nil {
		return err
	}
	w.done = 0
	if err := w.tidy(ctx, 0); err != nil {
		return err
	}
	return w.send(ctx, 0)
}

// send takes a round based on another; zero: of everything.
func (w *replication) send(ctx context.Context, base int64) error {
	var number int64
	err := w.a.journal.update(w.ref.move, "round-begun", func(r *record) error {
		r.Warm.Last++
		r.Warm.Next = w.a.clock() // before it is: a replica is never called younger than it is
		number = r.Warm.Last
		return nil
	})
	if err != nil {
		return err
	}
	session, end, err := w.a.openCopy(ctx, w.ref, copyTo{
		address: w.msg.GetPeerAddress(), host: w.msg.GetPeerHost(), tenant: w.tenant, subject: w.subject,
		disks: w.msg.GetDisks(), rate: w.limit(), round: number, base: base,
	})
	if err != nil {
		return err
	}
	defer end()
	w.use(session)
	defer w.use(nil)
	defer w.a.flights.set(w.ref.move, w.setRate)()
	figures, err := w.sendDisks(ctx, session, number, base)
	if err != nil {
		return err
	}
	path := session.Figures()
	w.a.metrics.end(w.ref, path)
	err = w.a.journal.update(w.ref.move, "round-done", func(r *record) error {
		r.Warm.Done, r.Warm.Point = number, r.Warm.Next
		f := &r.Warm.Figures
		f.DiskBytes += figures.data
		f.PathBytes += int64(path.Total().WireBytes)
		if f.Path != nil {
			path = path.Plus(*f.Path)
		}
		f.Path = &path
		return nil
	})
	if err != nil {
		return err
	}
	w.done = number
	w.mu.Lock()
	w.fastest = max(w.fastest, figures.rate())
	if w.rate > 0 {
		w.fastest = min(w.fastest, w.rate)
	}
	w.mu.Unlock()
	return nil
}

func (w *replication) limit() drover.BitRate {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.rate
}

func (w *replication) use(s *wan.Sender) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.session = s
}

// roundFigures are one round's.
type roundFigures struct {
	data, all int64
	took      time.Duration
}

// rate is what was got through, in the guest's bytes.
func (f roundFigures) rate() drover.BitRate {
	if f.took <= 0 {
		return 0
	}
	return drover.BitRate(float64(f.all) * 8 / f.took.Seconds())
}

// sendDisks freezes the disks and sends them.
func (w *replication) sendDisks(ctx context.Context, session *wan.Sender, number, base int64) (f roundFigures, err error) {
	owner := driver.MoveOwner(w.owner)
	spec := driver.BackupSpec{Checkpoint: checkpoint(w.owner, number), Socket: w.a.sockets.backup(w.ref.move)}
	if base > 0 {
		spec.Since = checkpoint(w.owner, base)
	}
	for _, d := range w.msg.GetDisks() {
		spec.Disks = append(spec.Disks, driver.BackupDisk{Target: d.GetTarget(), Scratch: scratchOf(owner, d)})
	}
	if len(spec.Disks) == 0 {
		return f, nil
	}
	if err := w.a.sockets.make(w.ref.move); err != nil {
		return f, err
	}
	defer w.a.sockets.remove(w.ref.move)
	backup, err := w.begin(ctx, spec)
	if err != nil {
		return f, err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endRoundLimit)
		defer cancel()
		err = errors.Join(err, backup.End(ctx))
	}()
	c := &copying{a: w.a, j: w.j, ref: w.ref, session: session, began: time.Now(), round: number}
	for _, d := range w.msg.GetDisks() {
		if base == 0 {
			c.total += drover.Bytes(d.GetAllocatedBytes())
		}
	}
	for _, d := range w.msg.GetDisks() {
		if err := w.sendDisk(ctx, c, backup, d, base == 0); err != nil {
			return f, drover.E(drover.KindOf(err), d.GetTarget(), err)
		}
	}
	return roundFigures{data: int64(c.data), all: int64(c.before), took: time.Since(c.began)}, nil
}

func (w *replication) sendDisk(ctx context.Context, c *copying, backup driver.Backup, d *droverv1.DiskPlan, all bool) error {
	img, err := backup.Open(ctx, d.GetTarget())
	if err != nil {
		return err
	}
	defer img.Close()
	if all && d.GetTopOnly() {
		below, err := w.a.volumes.OpenRead(ctx, d.GetBackingPath(), false)
		if err != nil {
			return err
		}
		defer below.Close()
		report := func(done, total int64) {
			c.j.report(w.a.clock(), drover.Progress{
				Phase: c.phase("compare"), DoneBytes: drover.Bytes(done), TotalBytes: drover.Bytes(total), ETASeconds: -1,
			})
		}
		if img, err = aboveOf(ctx, img, below, report); err != nil {
			return err
		}
	}
	_, err = c.send(ctx, d.GetTarget(), img)
	return err
}

// backup is the path of the socket at which the hypervisor serves frozen disks.
func (s sockets) backup(move string) string { return filepath.Join(s.folder(move), "b") }
