package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/wan"
)

// digestLimit bounds asking for a digest that the destination has in its
// journal.
const digestLimit = 15 * time.Second

// copyDisks sends the VM's disks to the peer. The VM must have been given up:
// nothing may change them meanwhile.
func (a *Agent) copyDisks(ctx context.Context, j *job, ref moveRef, m *droverv1.Copy) (*droverv1.RunResult, error) {
	op := "copy disks of vm " + ref.vm
	if err := errors.Join(a.needHypervisor(), checkPeer(m.GetPeerAddress(), m.GetPeerHost())); err != nil {
		return nil, err
	}
	r, err := a.sourceRecord(ref)
	if err != nil {
		return nil, err
	}
	if !r.GivenUp {
		return nil, drover.Errorf(drover.Refused, op, "the source has not given it up: its disks could change")
	}
	base := int64(0)
	if m.GetChanges() {
		if r.Warm == nil || r.Warm.Done == 0 {
			return nil, drover.Errorf(drover.Refused, op, "no round of it has been sent: its changes alone would be of no use")
		}
		base = r.Warm.Done
	} else if r.Warm != nil && a.changesKnown(ctx, r, m.GetDisks()) {
		// A replica is there: what changed since its last round is all that is left.
		base = r.Warm.Done
	}
	to := copyTo{
		address: m.GetPeerAddress(), host: m.GetPeerHost(), tenant: r.Tenant, subject: r.subject(),
		disks: m.GetDisks(), rate: drover.BitRate(m.GetBandwidthBps()), base: base,
	}
	session, end, err := a.openCopy(ctx, ref, to)
	if base > 0 && !m.GetChanges() && err != nil && drover.KindOf(err) == drover.NotFound {
		base, to.base = 0, 0 // the replica is not there, or another
		session, end, err = a.openCopy(ctx, ref, to)
	}
	if err != nil {
		return nil, changesLost(err, base)
	}
	defer end()
	defer a.flights.set(ref.move, session.SetRate)()
	c := &copying{a: a, j: j, ref: ref, owner: r.Warm.name(ref.move), peer: a.peers.at(m.GetPeerAddress(), m.GetPeerHost()), session: session, began: time.Now()}
	for _, d := range m.GetDisks() {
		if base == 0 {
			c.total += drover.Bytes(d.GetAllocatedBytes())
		}
	}
	for _, d := range m.GetDisks() {
		if err := changesLost(c.disk(ctx, d, base), base); err != nil {
			return nil, drover.E(drover.KindOf(err), op+": "+d.GetTarget(), err)
		}
	}
	path := c.session.Figures()
	a.metrics.end(ref, path)
	return &droverv1.RunResult{
		DiskBytes: int64(c.data), PathWireBytes: int64(path.Total().WireBytes), Path: api.PathFiguresToProto(path),
	}, nil
}

// changesKnown reports whether the images of a VM that is off say what has changed
// since the last round.
func (a *Agent) changesKnown(ctx context.Context, r *record, disks []*droverv1.DiskPlan) bool {
	if r.Warm.Done == 0 {
		return false
	}
	for _, d := range disks {
		img, err := a.volumes.OpenChanges(ctx, d.GetPath(), checkpoint(r.Warm.name(r.Move), r.Warm.Done))
		if err != nil {
			a.log.Warn("all of the disks crosses: what changed since the replica's last round is not known", "move", r.Move, "disk", d.GetTarget(), "err", err)
			return false
		}
		_ = img.Close()
	}
	return true
}

// changesLost says what it means that what changed is not to be had: the move
// cannot go on, since copying all would take the VM down for as long as that takes.
func changesLost(err error, base int64) error {
	if base == 0 || drover.KindOf(err) != drover.NotFound {
		return err
	}
	return drover.Errorf(drover.Refused, "", "what was written since the last round is not known any more, so the move has to begin anew: %w", err)
}

// copyTo is where disks are to be copied to, and what of them.
type copyTo struct {
	address, host string
	tenant        string
	subject       wan.Subject
	disks         []*droverv1.DiskPlan
	rate          drover.BitRate
	round, base   int64 // see PrepareRequest
}

// openCopy opens a session for disks. The session, at both ends, is the caller's
// to end.
func (a *Agent) openCopy(ctx context.Context, ref moveRef, to copyTo) (session *wan.Sender, end func(), err error) {
	peer := a.peers.at(to.address, to.host)
	prep, cancel := context.WithTimeout(ctx, prepareLimit)
	defer cancel()
	approach := a.wan.Approach(to.address, to.host)
	defer approach.Close()
	resp, err := peer.Prepare(prep, &droverv1.PrepareRequest{
		Ref: ref.proto(), Disks: to.disks, Tenant: to.tenant, Round: to.round, Base: to.base, ReplicaOf: to.subject.VM,
	})
	if err != nil {
		return nil, nil, peerError(ctx, err)
	}
	defer func() {
		if err != nil {
			a.endCopy(context.WithoutCancel(ctx), peer, ref)
		}
	}()
	offered, err := sourcesFromProto(resp.GetSources())
	if err != nil {
		return nil, nil, err
	}
	session, err = a.wan.Send(prep, wan.SendOptions{
		Address: to.address, Peer: to.host, Token: resp.GetToken(), Offered: offered, Subject: to.subject, Rate: to.rate,
		Approach: approach,
	})
	if err != nil {
		return nil, nil, err
	}
	return session, func() {
		_ = session.Close()
		a.endCopy(context.WithoutCancel(ctx), peer, ref)
	}, nil
}

func (a *Agent) endCopy(ctx context.Context, peer *api.PeerClient, ref moveRef) {
	ctx, cancel := context.WithTimeout(ctx, abandonLimit)
	defer cancel()
	if _, err := peer.Abandon(ctx, &droverv1.AbandonRequest{Ref: ref.proto()}); err != nil {
		a.log.Warn("the destination could not be told that the copy has ended", "move", ref.move, "err", err)
	}
}

// copying is one run of copyDisks, or a round of replicate.
type copying struct {
	a    *Agent
	j    *job
	ref  moveRef
	peer *api.PeerClient // for disk
	// owner is under whose name changes are recorded.
	owner   string
	session *wan.Sender
	began   time.Time
	// round is the number of replicate's; zero: none.
	round int64
	// total is what is to be sent as planned, before what earlier disks were,
	// data what of it was not zeros.
	total, before, data drover.Bytes
}

// disk sends a disk of a VM that is off, or what of it has changed since a round.
func (c *copying) disk(ctx context.Context, d *droverv1.DiskPlan, base int64) error {
	img, err := c.open(ctx, d, base)
	if err != nil {
		return err
	}
	defer img.Close()
	digest, err := c.send(ctx, d.GetTarget(), img)
	if err != nil {
		return err
	}
	ask, cancel := context.WithTimeout(ctx, digestLimit)
	defer cancel()
	resp, err := c.peer.Digest(ask, &droverv1.DigestRequest{Ref: c.ref.proto(), Target: d.GetTarget()})
	if err != nil {
		return peerError(ctx, err)
	}
	if !bytes.Equal(resp.GetDigest(), digest[:]) {
		return drover.Errorf(drover.Corrupt, "compare digests", "the destination has %x in its journal, %x was sent", resp.GetDigest(), digest)
	}
	return nil
}

func (c *copying) open(ctx context.Context, d *droverv1.DiskPlan, base int64) (driver.ImageReader, error) {
	if base > 0 {
		return c.a.volumes.OpenChanges(ctx, d.GetPath(), checkpoint(c.owner, base))
	}
	return c.a.volumes.OpenRead(ctx, d.GetPath(), d.GetTopOnly())
}

// send sends what an image has, and returns the digest that both ends found.
func (c *copying) send(ctx context.Context, target string, img driver.ImageReader) ([32]byte, error) {
	report, err := c.session.SendImage(ctx, target, img, c.progress)
	if err != nil {
		return [32]byte{}, err
	}
	c.before += report.DataBytes + report.ZeroBytes
	c.data += report.DataBytes
	return report.Digest, nil
}

// phase is a phase's name, with its round.
func (c *copying) phase(name string) string {
	if c.round == 0 {
		return name
	}
	return fmt.Sprintf("round %d %s", c.round, name)
}

func (c *copying) progress(phase string, done, total drover.Bytes) {
	p := drover.Progress{Phase: c.phase(phase), DoneBytes: c.before + done, TotalBytes: max(c.total, c.before+total), ETASeconds: -1}
	if took := time.Since(c.began).Seconds(); took > 0 && phase == "copy" {
		p.Rate = drover.BitRate(float64(p.DoneBytes) * 8 / took)
		if p.Rate > 0 {
			p.ETASeconds = float64(p.TotalBytes-p.DoneBytes) * 8 / float64(p.Rate)
		}
	}
	path := c.session.Progress()
	p.Path = &path
	c.a.metrics.report(c.ref, c.session.Figures(), path)
	c.j.report(c.a.clock(), p)
}

// receiveDisk opens the volume that a disk is copied to.
func (a *Agent) receiveDisk(ctx context.Context, move, target string) (wan.Image, error) {
	var v volumeRecord
	var in inRecord
	dirty := false
	err := a.journal.update(move, "copy-begun", func(r *record) error {
		op := "receive disk " + target
		p := r.volume(target)
		switch {
		case p == nil || !p.Made:
			return drover.Errorf(drover.Refused, op, "move %s has made no volume for it", move)
		case r.Defined:
			return drover.Errorf(drover.Refused, op, "the vm is defined already")
		case r.In == nil || p.Round < r.In.Base:
			return drover.Errorf(drover.Refused, op, "it does not have the round that this one is based on")
		}
		in = *r.In
		if in.Base == 0 {
			dirty, p.Dirty, p.Round = p.Dirty, true, 0
		}
		delete(r.Copied, target)
		v = *p
		return nil
	})
	if err != nil {
		return nil, err
	}
	a.forgetReplica(move)
	if dirty {
		// What an interrupted copy wrote is not zeros, and what is not sent
		// must read as such.
		if err := errors.Join(a.volumes.Delete(ctx, v.Spec.Path), a.volumes.Create(ctx, v.Spec)); err != nil {
			return nil, err
		}
	}
	img, err := a.volumes.OpenWrite(ctx, v.Spec.Path)
	if err != nil {
		return nil, err
	}
	return receivedImage{img, a, move, target, in.Round}, nil
}

// receivedImage is a volume that a disk is copied to.
type receivedImage struct {
	driver.ImageWriter
	a            *Agent
	move, target string
	// round that it brings; zero: the last, or the only one.
	round int64
}

// Seal journals that the copy is there, or a round of it.
func (i receivedImage) Seal(r wan.CopyReport) error {
	err := i.a.journal.update(i.move, "copied", func(rec *record) error {
		if i.round > 0 {
			v := rec.volume(i.target)
			if v == nil {
				return drover.Errorf(drover.Refused, "receive disk "+i.target, "its volume is gone")
			}
			v.Round = i.round
			return nil
		}
		if rec.Copied == nil {
			rec.Copied = make(map[string]copyRecord)
		}
		rec.Copied[i.target] = copyRecord{Digest: r.Digest[:], DataBytes: r.DataBytes}
		return nil
	})
	if err == nil {
		i.a.log.Info("disk received", "move", i.move, "disk", i.target, "round", i.round, "data", r.DataBytes.String())
	}
	return err
}

// Digest returns the digest of a disk that was copied here.
func (a peerService) Digest(ctx context.Context, req *droverv1.DigestRequest) (*droverv1.DigestResponse, error) {
	ref, caller, unlock, err := a.peerCall(ctx, req.GetRef())
	if err != nil {
		return nil, err
	}
	defer unlock()
	r, err := a.journal.move(ref.move)
	if err != nil {
		return nil, err
	}
	if r == nil || !r.Target {
		return nil, drover.Errorf(drover.NotFound, "move "+ref.move, "it is not reserved here")
	}
	if err := r.bind(caller); err != nil {
		return nil, err
	}
	c, ok := r.Copied[req.GetTarget()]
	if !ok {
		return nil, drover.Errorf(drover.NotFound, "move "+ref.move, "disk %q has not been copied", req.GetTarget())
	}
	return &droverv1.DigestResponse{Digest: c.Digest}, nil
}

// fileThere reports whether anything lies at the path.
func fileThere(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
