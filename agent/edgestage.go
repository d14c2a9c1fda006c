package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"net/netip"
	"slices"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/sync/errgroup"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/driver"
)

// edgeRecord is what an edge keeps of a move, from its first action here to its
// Release.
type edgeRecord struct {
	Move string `json:"move"`
	// Generation is the newest seen.
	Generation int64  `json:"generation"`
	VM         string `json:"vm"`
	VMUUID     string `json:"vm_uuid"`
	// Staged is what the cut-over does, By who may call it out. Both go with the
	// cut-over, which was at Cut.
	Staged []drover.EdgeOp `json:"staged,omitempty"`
	By     string          `json:"by,omitempty"`
	Cut    time.Time       `json:"cut,omitzero"`
	Seen   time.Time       `json:"seen"`
}

func (r *edgeRecord) unstage() { r.Staged, r.By = nil, "" }

// maxEdgeRecords bounds the moves that an edge remembers, a name and a few
// numbers each unless something is staged.
const maxEdgeRecords = 1024

// edgeMoves begins the keys of records.
const edgeMoves = "move\x00"

func edgeKey(move string) []byte { return []byte(edgeMoves + move) }

func readEdge(tx *bbolt.Tx, move string) (*edgeRecord, error) {
	raw := tx.Bucket(edgeBucket).Get(edgeKey(move))
	if raw == nil {
		return nil, nil
	}
	r := new(edgeRecord)
	if err := json.Unmarshal(raw, r); err != nil {
		return nil, drover.Errorf(drover.Corrupt, "journal", "move %s: %w", move, err)
	}
	return r, nil
}

func (j *journal) edgeMove(move string) (*edgeRecord, error) {
	var r *edgeRecord
	err := j.db.View(func(tx *bbolt.Tx) (err error) {
		r, err = readEdge(tx, move)
		return err
	})
	return r, journalError(err)
}

// edgeMoves returns all records, by move.
func (j *journal) edgeMoves() ([]*edgeRecord, error) {
	var all []*edgeRecord
	err := j.db.View(func(tx *bbolt.Tx) error {
		c := tx.Bucket(edgeBucket).Cursor()
		for k, _ := c.Seek([]byte(edgeMoves)); k != nil && bytes.HasPrefix(k, []byte(edgeMoves)); k, _ = c.Next() {
			r, err := readEdge(tx, string(k[len(edgeMoves):]))
			if err != nil {
				return err
			}
			all = append(all, r)
		}
		return nil
	})
	return all, journalError(err)
}

// fenceEdge refuses an older generation, or one of a move that was released, and
// changes the move's record.
func (j *journal) fenceEdge(ref moveRef, now time.Time, change func(*edgeRecord)) error {
	op := "move " + ref.move
	return j.write("edge", func(tx *bbolt.Tx) error {
		if s, err := readStone(tx, ref.move); err != nil || s != nil && ref.generation < s.Generation {
			if err != nil {
				return err
			}
			return tooOld(op, ref.generation, s.Generation)
		}
		r, err := readEdge(tx, ref.move)
		if err != nil {
			return err
		}
		if r == nil {
			r = &edgeRecord{Move: ref.move, VM: ref.vm, VMUUID: ref.uuid}
		}
		switch {
		case ref.generation < r.Generation:
			return tooOld(op, ref.generation, r.Generation)
		case r.VM != ref.vm || r.VMUUID != ref.uuid:
			return drover.Errorf(drover.Refused, op, "it is the move of vm %s (%s), not of %s (%s)", r.VM, r.VMUUID, ref.vm, ref.uuid)
		}
		r.Generation, r.Seen = ref.generation, now
		change(r)
		raw, err := json.Marshal(r)
		if err != nil {
			return err
		}
		if err := tx.Bucket(edgeBucket).Put(edgeKey(ref.move), raw); err != nil {
			return err
		}
		return dropOldEdges(tx)
	})
}

// dropOldEdges forgets the moves not heard of for longest, but none that has
// something staged.
func dropOldEdges(tx *bbolt.Tx) error {
	b := tx.Bucket(edgeBucket)
	for b.Inspect().KeyN > maxEdgeRecords {
		var oldest *edgeRecord
		c := b.Cursor()
		for k, _ := c.Seek([]byte(edgeMoves)); k != nil && bytes.HasPrefix(k, []byte(edgeMoves)); k, _ = c.Next() {
			r, err := readEdge(tx, string(k[len(edgeMoves):]))
			if err != nil {
				return err
			}
			if len(r.Staged) == 0 && (oldest == nil || r.Seen.Before(oldest.Seen)) {
				oldest = r
			}
		}
		if oldest == nil {
			return nil
		}
		if err := b.Delete(edgeKey(oldest.Move)); err != nil {
			return err
		}
	}
	return nil
}

// stageEdge carries out a StageEdge action.
func (a *Agent) stageEdge(ctx context.Context, _ *job, ref moveRef, m *droverv1.StageEdge) (*droverv1.RunResult, error) {
	e, err := a.siteEdge()
	if err != nil {
		return nil, err
	}
	ops, err := edgeOps(m.GetOps())
	if err != nil {
		return nil, err
	}
	unlock, err := a.locks.lock(ctx, ref.move)
	if err != nil {
		return nil, err
	}
	defer unlock()
	for i, op := range ops {
		if err := e.could(ctx, op); err != nil {
			return nil, opError(i, op, err)
		}
	}
	return resultNow(), a.journal.fenceEdge(ref, a.clock(), func(r *edgeRecord) {
		r.Staged, r.By, r.Cut = ops, m.GetBy(), time.Time{}
	})
}

// CutOver implements PeerService.
func (a peerService) CutOver(ctx context.Context, req *droverv1.CutOverRequest) (*droverv1.CutOverResponse, error) {
	e, err := a.siteEdge()
	if err != nil {
		return nil, err
	}
	// A caller that goes away, or loses its patience, does not stop it half way.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), opLimit)
	defer cancel()
	ref, caller, unlock, err := a.peerCall(ctx, req.GetRef())
	if err != nil {
		return nil, err
	}
	defer unlock()
	r, err := a.journal.edgeMove(ref.move)
	op := "cut-over of move " + ref.move
	switch {
	case err != nil:
		return nil, err
	case r == nil || r.VMUUID != ref.uuid || len(r.Staged) == 0 && r.Cut.IsZero():
		return nil, drover.Errorf(drover.NotFound, op, "nothing is staged for it here")
	case ref.generation < r.Generation:
		return nil, tooOld(op, ref.generation, r.Generation)
	case r.By != "" && r.By != caller:
		return nil, drover.Errorf(drover.Denied, op, "agent %s is to call it out, not %s", r.By, caller)
	case !r.Cut.IsZero():
		return &droverv1.CutOverResponse{AtUnixNanos: r.Cut.UnixNano()}, nil
	}
	began := a.clock()
	e.standing.work.RLock()
	defer e.standing.work.RUnlock()
	if req.GetRoutesOnly() {
		routes := slices.DeleteFunc(slices.Clone(r.Staged), func(op drover.EdgeOp) bool {
			return op.Do != drover.AnnounceRoutes && op.Do != drover.WithdrawRoutes
		})
		return &droverv1.CutOverResponse{AtUnixNanos: a.clock().UnixNano()}, e.carryOutAll(ctx, routes)
	}
	if err := e.carryOutAll(ctx, r.Staged); err != nil {
		a.log.Warn("cut-over failed", "move", ref.move, "err", err)
		return nil, err
	}
	at := a.clock()
	a.log.Info("cut-over done", "move", ref.move, "vm", ref.vm, "ops", len(r.Staged), "took", at.Sub(began).Round(time.Microsecond))
	// Noted first: with the record of the cut-over gone, nothing else would say
	// that they were carried out.
	err = e.stood(r.Staged...)
	if err == nil {
		err = a.journal.fenceEdge(ref, at, func(r *edgeRecord) {
			r.Staged, r.Cut = nil, at // By stays: the call may be repeated
		})
	}
	return &droverv1.CutOverResponse{AtUnixNanos: at.UnixNano()}, err
}

// edgeLane says which operations must keep their order: those that change what
// the edge itself forwards, a host route before it is announced, and those of
// each of the servers beside it.
func edgeLane(v drover.EdgeVerb) string {
	switch v {
	case drover.LowerName, drover.SetName, drover.SettleName, drover.RestoreName:
		return drover.EdgeDNS
	case drover.ReserveLease, drover.ReleaseLease:
		return drover.EdgeDHCP
	case drover.AddServer, drover.ReadyServer, drover.WeighServer, drover.DrainServer, drover.RemoveServer:
		return drover.EdgeBalancer
	case drover.ExtendSegment, drover.RetractSegment, drover.SetStation, drover.DropStation:
		return "segments"
	default:
		return "addresses"
	}
}

// carryOutAll does the operations of each lane in their order, and the lanes at
// once. One that fails does not keep other lanes from going on.
func (e *edge) carryOutAll(ctx context.Context, ops []drover.EdgeOp) error {
	lanes := map[string][]int{}
	for i, op := range ops {
		lanes[edgeLane(op.Do)] = append(lanes[edgeLane(op.Do)], i)
	}
	var g errgroup.Group
	out := new(edgeOutcome)
	for _, lane := range lanes {
		g.Go(func() error {
			for _, i := range lane {
				if err := e.carryOut(ctx, ops[i], out, false); err != nil {
					return opError(i, ops[i], err)
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// could reports why an operation could not be carried out, as far as can be seen
// without doing it.
func (e *edge) could(ctx context.Context, op drover.EdgeOp) error {
	ctx, cancel := context.WithTimeout(ctx, opLimit)
	defer cancel()
	switch edgeLane(op.Do) {
	case drover.EdgeDNS:
		d, err := e.zone(op.Name)
		if err != nil {
			return err
		}
		return d.Check(ctx, op.Name)
	case drover.EdgeDHCP:
		d, err := e.leases(op.Segment)
		if err != nil {
			return err
		}
		if op.Do == drover.ReserveLease {
			_, err = e.reservable(ctx, d, op)
		}
		if err == nil {
			_, err = d.Free(ctx, op.Segment)
		}
		return err
	case drover.EdgeBalancer:
		d, err := e.balancer(op.Backend)
		if err != nil {
			return err
		}
		return failed(d.Check(ctx, op.Backend))
	case "segments":
		return e.couldSegment(ctx, op)
	default:
		return e.couldAddress(ctx, op)
	}
}

func (e *edge) couldSegment(ctx context.Context, op drover.EdgeOp) error {
	if _, err := e.extender(); err != nil {
		return err
	}
	if _, err := e.segment(op.Segment); err != nil {
		return err
	}
	if op.Do == drover.ExtendSegment {
		_, err := e.extension(ctx, op)
		return err
	}
	for _, site := range []string{op.Site, op.Next} {
		if site == "" || site == e.a.config.Site {
			continue
		}
		if _, err := e.peer(site); err != nil {
			return err
		}
	}
	return nil
}

func (e *edge) couldAddress(ctx context.Context, op drover.EdgeOp) error {
	switch op.Do {
	case drover.AnnounceRoutes:
		d, err := e.router()
		if err != nil {
			return err
		}
		if err := driver.CheckHostRoutes(hostRoutes(op.Addresses)...); err != nil {
			return err
		}
		if err := e.couldLead(ctx, op); err != nil {
			return err
		}
		all, err := d.Neighbors(ctx)
		if err == nil && !slices.ContainsFunc(all, func(n driver.RouteNeighbor) bool { return n.State == driver.SessionEstablished }) {
			err = drover.Errorf(drover.Unavailable, "announce routes", "edge %s has no session with any router", e.a.config.Name)
		}
		return err
	case drover.WithdrawRoutes:
		_, err := e.router()
		return err
	}
	d, err := e.addresses()
	if err != nil {
		return err
	}
	if op.Segment == "" {
		return nil
	}
	s, err := e.segment(op.Segment)
	if err != nil {
		return err
	}
	if op.Do == drover.ForwardOld || op.Do == drover.AcceptOld {
		if _, err := e.meshPath(ctx, op.Site); err != nil {
			return err
		}
	}
	if err := failed(d.Check(ctx, s.Bridge)); err != nil || op.Do != drover.DeliverHere {
		return err
	}
	return e.untaken(ctx, op)
}

// couldLead reports addresses that could not be announced: of a family for which
// the routers know no next hop, or led somewhere for another VM.
func (e *edge) couldLead(ctx context.Context, op drover.EdgeOp) error {
	for _, a := range op.Addresses {
		if b := e.config.BGP; b != nil && !slices.ContainsFunc(b.Addresses, func(hop netip.Addr) bool { return hop.Is4() == a.Is4() }) {
			family := "IPv6"
			if a.Is4() {
				family = "IPv4"
			}
			return e.lacks("%s cannot be announced: it has no %s address towards its routers (edge.bgp.addresses in its file)", a, family)
		}
	}
	return e.untaken(ctx, op)
}

// failed is the first finding that is not OK, as an error.
func failed(checks []drover.Check, err error) error {
	for _, c := range checks {
		if err == nil && !c.OK && !c.Warning {
			err = drover.Errorf(drover.Refused, c.Name, "%s (%s)", c.Detail, c.Fix)
		}
	}
	return err
}
