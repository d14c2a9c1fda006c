package agent

import (
	"bytes"
	"context"
	"errors"
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
	peer := a.peers.at(m.GetPeerAddress(), m.GetPeerHost())
	prep, cancel := context.WithTimeout(ctx, prepareLimit)
	defer cancel()
	resp, err := peer.Prepare(prep, &droverv1.PrepareRequest{Ref: ref.proto(), Disks: m.GetDisks(), Tenant: r.Tenant})
	if err != nil {
		return nil, peerError(ctx, err)
	}
	// The session ends with the job, however it ends.
	defer a.endCopy(context.WithoutCancel(ctx), peer, ref)
	offered, err := sourcesFromProto(resp.GetSources())
	if err != nil {
		return nil, err
	}
	session, err := a.wan.Send(prep, wan.SendOptions{
		Address: m.GetPeerAddress(), Peer: m.GetPeerHost(), Token: resp.GetToken(), Offered: offered,
		Subject: r.subject(), Rate: drover.BitRate(m.GetBandwidthBps()),
	})
	if err != nil {
		return nil, err
	}
	defer session.Close()
	defer a.flights.set(ref.move, session.SetRate)()
	c := &copying{a: a, j: j, ref: ref, peer: peer, msg: m, session: session, began: time.Now()}
	for _, d := range m.GetDisks() {
		c.total += drover.Bytes(d.GetAllocatedBytes())
	}
	for _, d := range m.GetDisks() {
		if err := c.disk(ctx, d); err != nil {
			return nil, drover.E(drover.KindOf(err), op+": "+d.GetTarget(), err)
		}
	}
	path := c.session.Figures()
	a.metrics.end(ref, path)
	return &droverv1.RunResult{
		DiskBytes: int64(c.data), PathWireBytes: int64(path.Total().WireBytes), Path: api.PathFiguresToProto(path),
	}, nil
}

func (a *Agent) endCopy(ctx context.Context, peer *api.PeerClient, ref moveRef) {
	ctx, cancel := context.WithTimeout(ctx, abandonLimit)
	defer cancel()
	if _, err := peer.Abandon(ctx, &droverv1.AbandonRequest{Ref: ref.proto()}); err != nil {
		a.log.Warn("the destination could not be told that the copy has ended", "move", ref.move, "err", err)
	}
}

// copying is one run of copyDisks.
type copying struct {
	a       *Agent
	j       *job
	ref     moveRef
	peer    *api.PeerClient
	msg     *droverv1.Copy
	session *wan.Sender
	began   time.Time
	// total is what is to be sent as planned, before what earlier disks were,
	// data what of it was not zeros.
	total, before, data drover.Bytes
}

func (c *copying) disk(ctx context.Context, d *droverv1.DiskPlan) error {
	img, err := c.a.volumes.OpenRead(ctx, d.GetPath(), d.GetTopOnly())
	if err != nil {
		return err
	}
	defer img.Close()
	report, err := c.session.SendImage(ctx, d.GetTarget(), img, c.progress)
	if err != nil {
		return err
	}
	ask, cancel := context.WithTimeout(ctx, digestLimit)
	defer cancel()
	resp, err := c.peer.Digest(ask, &droverv1.DigestRequest{Ref: c.ref.proto(), Target: d.GetTarget()})
	if err != nil {
		return peerError(ctx, err)
	}
	if !bytes.Equal(resp.GetDigest(), report.Digest[:]) {
		return drover.Errorf(drover.Corrupt, "compare digests", "the destination has %x in its journal, %x was sent", resp.GetDigest(), report.Digest)
	}
	c.before += report.DataBytes + report.ZeroBytes
	c.data += report.DataBytes
	return nil
}

func (c *copying) progress(phase string, done, total drover.Bytes) {
	p := drover.Progress{Phase: phase, DoneBytes: c.before + done, TotalBytes: max(c.total, c.before+total), ETASeconds: -1}
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
	dirty := false
	err := a.journal.update(move, "copy-begun", func(r *record) error {
		p := r.volume(target)
		if p == nil || !p.Made {
			return drover.Errorf(drover.Refused, "receive disk "+target, "move %s has made no volume for it", move)
		}
		if r.Defined {
			return drover.Errorf(drover.Refused, "receive disk "+target, "the vm is defined already")
		}
		dirty, p.Dirty = p.Dirty, true
		delete(r.Copied, target)
		v = *p
		return nil
	})
	if err != nil {
		return nil, err
	}
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
	return receivedImage{img, a, move, target}, nil
}

// receivedImage is a volume that a disk is copied to.
type receivedImage struct {
	driver.ImageWriter
	a            *Agent
	move, target string
}

// Seal journals that the copy is there.
func (i receivedImage) Seal(r wan.CopyReport) error {
	err := i.a.journal.update(i.move, "copied", func(rec *record) error {
		if rec.Copied == nil {
			rec.Copied = make(map[string]copyRecord)
		}
		rec.Copied[i.target] = copyRecord{Digest: r.Digest[:], DataBytes: r.DataBytes}
		return nil
	})
	if err == nil {
		i.a.log.Info("disk received", "move", i.move, "disk", i.target, "data", r.DataBytes.String())
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
