package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/wan"
)

const (
	// sampleEvery is how often the hypervisor is asked how far it is.
	sampleEvery = 500 * time.Millisecond
	// prepareLimit bounds the start of the receiving hypervisor: it takes
	// under a second, and a busy host some.
	prepareLimit = 60 * time.Second
	// finishLimit bounds the wait for the answer to Finish. When it is over the
	// guest has been paused for so long that asking again (Fate) is as good.
	finishLimit = 30 * time.Second
	// settleWait is how long an action waits for a transfer to be settled
	// before it says that the outcome is not known; settling goes on.
	settleWait = 20 * time.Second
)

// transfer moves the running VM, switchover included.
func (a *Agent) transfer(ctx context.Context, j *job, ref moveRef, t *droverv1.Transfer) (*droverv1.RunResult, error) {
	op := "transfer vm " + ref.vm
	if err := errors.Join(a.needHypervisor(), checkPeer(t.GetPeerAddress(), t.GetPeerHost()), checkEdge(t.GetSourceEdge()), checkEdge(t.GetTargetEdge())); err != nil {
		return nil, err
	}
	r, err := a.sourceRecord(ref)
	if err != nil {
		return nil, err
	}
	if r.Out != nil {
		switch r.Out.State {
		case outMoved:
			return r.Out.result(), nil
		case outBegun, outGivenUp, outAccepted:
			// An earlier process of this agent was in the middle of it.
			moved, err := a.resolver.wait(ctx, ref.move, settleWait)
			if err != nil || moved {
				return a.outcome(ref.move, err)
			}
			if r, err = a.sourceRecord(ref); err != nil {
				return nil, err
			}
		}
	}
	if ref.generation <= r.RefusedGeneration {
		return nil, drover.Errorf(drover.Refused, op, "the transfer of generation %d was given back or refused by the destination%s; the guest is here",
			r.RefusedGeneration, because(r.Out))
	}
	if err := a.dropReplicas(ctx, ref); err != nil {
		return nil, drover.E(drover.KindOf(err), op, err)
	}
	f := &flight{
		a: a, j: j, ref: ref, log: j.log, msg: t,
		peer: a.peers.at(t.GetPeerAddress(), t.GetPeerHost()), subject: r.subject(), endRate: func() {},
	}
	err = f.run(ctx)
	if err == nil {
		return a.outcome(ref.move, nil)
	}
	f.close()
	// Whatever is left is settled the way a crash's remains are.
	moved, serr := a.resolver.wait(context.WithoutCancel(ctx), ref.move, settleWait)
	switch {
	case serr != nil:
		return nil, drover.E(drover.Unknown, op, errors.Join(serr, err))
	case moved:
		return a.outcome(ref.move, nil)
	default:
		return nil, drover.E(drover.KindOf(err), op, err)
	}
}

func because(o *outRecord) string {
	if o == nil || o.Fault == "" {
		return ""
	}
	return " (" + o.Fault + ")"
}

// outcome is the result of a transfer that has moved the VM.
func (a *Agent) outcome(move string, err error) (*droverv1.RunResult, error) {
	if err != nil {
		return nil, err
	}
	r, err := a.journal.move(move)
	if err != nil {
		return nil, err
	}
	if r == nil || r.Out == nil {
		return nil, drover.Errorf(drover.Corrupt, "journal", "move %s: its transfer is gone", move)
	}
	return r.Out.result(), nil
}

func (o *outRecord) result() *droverv1.RunResult {
	f := o.Figures
	return &droverv1.RunResult{
		Moved:       o.State == outMoved,
		PauseNanos:  f.Pause.Nanoseconds(),
		MemoryBytes: f.MemoryBytes, DiskBytes: f.DiskBytes, PathWireBytes: f.PathBytes, Path: api.OptionalPathToProto(f.Path),
		StoppedUnixNanos: unixNanos(f.Stopped), ResumedUnixNanos: unixNanos(f.Resumed),
	}
}

func unixNanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func fromUnixNanos(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n)
}

// sourceRecord returns the record of a move whose source this host is.
func (a *Agent) sourceRecord(ref moveRef) (*record, error) {
	r, err := a.journal.move(ref.move)
	if err != nil {
		return nil, err
	}
	if r == nil || r.Target {
		return nil, drover.Errorf(drover.Refused, "move "+ref.move, "host %s has not reserved vm %s as its source", a.config.Name, ref.vm)
	}
	return r, nil
}

// flight is one attempt at a transfer.
type flight struct {
	a    *Agent
	j    *job
	ref  moveRef
	log  *slog.Logger
	msg  *droverv1.Transfer
	peer *api.PeerClient
	// subject is whose content it is; endRate ends the changing of its rate.
	subject wan.Subject
	endRate func()

	out     driver.Outgoing
	token   []byte
	memory  drover.Bytes // the guest's
	nics    []drover.NIC // likewise
	caught  *catching
	session *wan.Sender
	began   time.Time // of Perform
	stats   driver.MigrationStats
	statsMu sync.Mutex
}

// run carries the guest over and switches. On an error the journal says how
// far it came; the caller settles.
func (f *flight) run(ctx context.Context) error {
	a := f.a
	err := a.journal.update(f.ref.move, "begun", func(r *record) error {
		if err := r.fence(f.ref); err != nil {
			return err
		}
		r.Peer = f.msg.GetPeerHost()
		r.Out = &outRecord{
			State: outBegun, Generation: f.ref.generation,
			PeerAddress: f.msg.GetPeerAddress(), PeerHost: f.msg.GetPeerHost(),
		}
		return nil
	})
	if err != nil {
		return err
	}
	defer f.close()
	defer func() { f.endRate() }()
	prepared, err := f.prepare(ctx)
	if err != nil {
		return err
	}
	cookie, err := f.perform(ctx, prepared)
	if err != nil {
		return err
	}
	// The guest is paused; nothing that can wait is done from here on.
	if err := f.switchOver(ctx, cookie); err != nil {
		return err
	}
	if f.msg.GetSourceEdge() != nil {
		// Whoever is told that this is done has the source's edge cut over.
		<-f.caught.handedOver()
	}
	return nil
}

// close frees what the flight holds; it decides nothing.
func (f *flight) close() {
	f.caught.end()
	if f.session != nil {
		_ = f.session.Close()
		f.a.metrics.end(f.ref, f.session.Figures())
	}
	if f.out != nil {
		_ = f.out.Close()
	}
	_ = f.a.sockets.remove(f.ref.move)
}

func (f *flight) spec(ctx context.Context, disks []*droverv1.DiskPlan) driver.MigrationSpec {
	aim := time.Duration(f.msg.GetMaxPauseMillis()) * time.Millisecond
	spec := migrationSpec(f.ref.vm, f.a.sockets, f.ref.move, disks, memoryPause(aim, f.a.roundTrip(ctx, f.msg.GetPeerAddress(), f.msg.GetPeerHost())))
	spec.MostPause = aim
	spec.AutoConverge = !f.msg.GetNoThrottle()
	spec.DisksStay = len(f.msg.GetRemote()) > 0
	if aim <= 0 {
		spec.MostPause = mostPause
	}
	return spec
}

// migrationSpec is the same on both ends but for the sockets. Only the top is
// copied if that holds for every disk: the hypervisors know no mixture. The
// hypervisor's own bandwidth is unlimited: the data path limits memory and disks
// together, and by holding them back lets the hypervisor measure what there is.
func migrationSpec(vm string, s sockets, move string, disks []*droverv1.DiskPlan, pause time.Duration) driver.MigrationSpec {
	spec := driver.MigrationSpec{
		Name: vm, MemorySocket: s.memory(move), DiskSocket: s.disk(move),
		MaxPause: pause, TopOnly: len(disks) > 0,
	}
	for _, d := range disks {
		spec.CopyDisks = append(spec.CopyDisks, d.GetTarget())
		spec.TopOnly = spec.TopOnly && d.GetTopOnly()
	}
	return spec
}

// prepare begins the migration here and makes the peer ready.
func (f *flight) prepare(ctx context.Context) ([]byte, error) {
	a := f.a
	disks, err := f.plans(ctx)
	if err != nil {
		return nil, err
	}
	if err := a.sockets.make(f.ref.move); err != nil {
		return nil, err
	}
	spec := f.spec(ctx, disks)
	if spec.Persistent, err = f.stored(ctx); err != nil {
		return nil, err
	}
	f.out, err = a.hyp.Begin(ctx, f.ref.vm, spec)
	if err != nil {
		return nil, err
	}
	approach := a.wan.Approach(f.msg.GetPeerAddress(), f.msg.GetPeerHost())
	defer approach.Close()
	offer := f.out.Offer()
	if offer.Definition, err = f.elsewhere(offer.Definition); err != nil {
		return nil, err
	}
	prep, cancel := context.WithTimeout(ctx, prepareLimit)
	defer cancel()
	resp, err := f.peer.Prepare(prep, &droverv1.PrepareRequest{
		Ref: f.ref.proto(), Definition: offer.Definition, Cookie: offer.Cookie, Disks: disks,
		MaxPauseMillis: f.msg.GetMaxPauseMillis(), Tenant: f.subject.Tenant, TargetEdge: f.msg.GetTargetEdge(), Guest: f.msg.GetGuest(),
		ReplicaOf: f.ref.uuid,
	})
	if err != nil {
		return nil, peerError(ctx, err)
	}
	f.token = resp.GetToken()
	return resp.GetCookie(), f.connect(prep, resp, approach)
}

// stored is the definition for the VM's next start at the destination; none
// where it is as here.
func (f *flight) stored(ctx context.Context) (driver.Definition, error) {
	if f.msg.GetRetarget() == nil && len(f.msg.GetRemote()) == 0 {
		return nil, nil
	}
	def, err := f.a.hyp.Definition(ctx, f.ref.vm)
	if err != nil {
		return nil, err
	}
	return f.elsewhere(def)
}

// connect opens the data path and the sockets at which the hypervisor will
// find it.
func (f *flight) connect(ctx context.Context, resp *droverv1.PrepareResponse, approach *wan.Approach) error {
	a := f.a
	offered, err := sourcesFromProto(resp.GetSources())
	if err != nil {
		return err
	}
	f.session, err = a.wan.Send(ctx, wan.SendOptions{
		Address: f.msg.GetPeerAddress(), Peer: f.msg.GetPeerHost(), Token: f.token, Offered: offered,
		Subject: f.subject, Rate: drover.BitRate(f.msg.GetBandwidthBps()), Approach: approach,
	})
	if err != nil {
		return err
	}
	f.endRate = a.flights.set(f.ref.move, f.session.SetRate)
	memory, disk := a.sockets.memory(f.ref.move), a.sockets.disk(f.ref.move)
	return errors.Join(
		f.session.ListenMemory(memory, f.memory), a.sockets.give(memory),
		f.session.ListenDisks(disk), a.sockets.give(disk),
	)
}

// plans are the disks to copy. A disk that has no backing at all is carried
// whole by either way of copying, so it does not keep the others from being
// copied above their backing files only.
func (f *flight) plans(ctx context.Context) ([]*droverv1.DiskPlan, error) {
	vm, err := f.a.hyp.VM(ctx, f.ref.vm)
	if err != nil {
		return nil, err
	}
	f.memory, f.nics = vm.MemoryBytes, vm.NICs
	backed := make(map[string]bool)
	for _, d := range vm.Disks {
		backed[d.Target] = len(d.Backing) > 0
		for _, b := range d.Backing {
			// It may have been attached since the images were looked at.
			if err := f.a.knowImage(ctx, f.subject.Tenant, b.Path); err != nil {
				f.log.Info("backing file is of no use to the data path", "path", b.Path, "err", err)
			}
		}
	}
	top := true
	for _, d := range f.msg.GetDisks() {
		has, known := backed[d.GetTarget()]
		if !known {
			return nil, drover.Errorf(drover.Invalid, "transfer", "vm %s has no disk %q", f.ref.vm, d.GetTarget())
		}
		top = top && (d.GetTopOnly() || !has)
	}
	plans := make([]*droverv1.DiskPlan, 0, len(f.msg.GetDisks()))
	for _, d := range f.msg.GetDisks() {
		plans = append(plans, &droverv1.DiskPlan{
			Target: d.GetTarget(), Path: d.GetPath(), Format: d.GetFormat(), VirtualBytes: d.GetVirtualBytes(),
			BackingPath: d.GetBackingPath(), BackingFormat: d.GetBackingFormat(), TopOnly: top,
			AllocatedBytes: d.GetAllocatedBytes(),
		})
	}
	return plans, nil
}

// perform runs the transfer to the point where the guest is paused here.
func (f *flight) perform(ctx context.Context, prepared []byte) ([]byte, error) {
	watch, stop := context.WithCancel(ctx)
	var helpers sync.WaitGroup
	helpers.Go(func() { f.sample(watch) })
	helpers.Go(func() { keepWarm(watch, f.peer) })
	helpers.Go(func() { f.a.keepEdgeWarm(watch, f.msg.GetSourceEdge()) })
	f.began = f.a.clock()
	f.caught = f.catch()
	// The hypervisor cannot abort a mirror whose socket nobody reads: when this
	// ends early, so do its connections.
	unhook := context.AfterFunc(ctx, func() { _ = f.session.Close() })
	cookie, err := f.out.Perform(ctx, prepared)
	unhook()
	stop()
	if err == nil {
		// The helpers end beside the switchover: waiting would lengthen the pause.
		f.caught.performed()
		f.a.jobs.group.Go(helpers.Wait)
		return cookie, nil
	}
	helpers.Wait()
	if perr := f.session.Err(); perr != nil {
		// The hypervisor only saw its socket close.
		err = drover.E(drover.KindOf(err), "", fmt.Errorf("%w (data path: %w)", err, perr))
	}
	return nil, err
}

// sample reads the statistics and tells the job until ctx ends.
func (f *flight) sample(ctx context.Context) {
	for sleep(ctx, sampleEvery, nil) == nil {
		s, err := f.out.Progress(ctx)
		if err != nil {
			continue
		}
		f.keep(s)
		p := drover.Progress{
			Phase:      s.Phase,
			DoneBytes:  s.MemoryDoneBytes + s.DiskDoneBytes,
			TotalBytes: s.MemoryDoneBytes + s.MemoryRemainingBytes + s.DiskDoneBytes + s.DiskRemainingBytes,
			Rate:       s.Rate, ETASeconds: -1,
		}
		if left := s.MemoryRemainingBytes + s.DiskRemainingBytes; s.Rate > 0 {
			p.ETASeconds = float64(left) * 8 / float64(s.Rate)
		}
		path := f.session.Progress()
		path.ThrottlePercent = s.ThrottlePercent
		p.Path = &path
		f.j.report(f.a.clock(), p)
		f.a.metrics.report(f.ref, *f.figures().Path, path)
	}
}

// keep remembers figures; the hypervisor forgets some at the end.
func (f *flight) keep(s driver.MigrationStats) {
	f.statsMu.Lock()
	defer f.statsMu.Unlock()
	old := f.stats
	f.stats = s
	f.stats.MemoryDoneBytes = max(old.MemoryDoneBytes, s.MemoryDoneBytes)
	f.stats.DiskDoneBytes = max(old.DiskDoneBytes, s.DiskDoneBytes)
	f.stats.Pause = max(old.Pause, s.Pause)
	f.stats.ThrottlePercent = max(old.ThrottlePercent, s.ThrottlePercent)
}

func (f *flight) figures() transferFigure {
	f.statsMu.Lock()
	defer f.statsMu.Unlock()
	path := f.session.Figures()
	path.ThrottlePercent = f.stats.ThrottlePercent
	return transferFigure{
		Pause:       f.stats.Pause,
		MemoryBytes: int64(f.stats.MemoryDoneBytes), DiskBytes: int64(f.stats.DiskDoneBytes),
		PathBytes: int64(path.Total().WireBytes), Path: &path,
	}
}
