package agent

import (
	"context"
	"crypto/subtle"
	"errors"
	"sync"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/wan"
)

// acceptLimit bounds letting a received guest run: loading what is still on
// its way, defining it, resuming it. After it the guest's fate is read from the
// hypervisor.
const acceptLimit = 2 * time.Minute

// arrival is what this process holds of an incoming session.
type arrival struct {
	in      driver.Incoming // nil for a copy
	session *wan.Receiver   // nil before it is open
	// edge is told when the guest runs; nil for none. cool ends what keeps the
	// connection to it open.
	edge *droverv1.EdgeAgent
	cool context.CancelFunc
	// guest is changed when it runs; nil for nothing.
	guest *guestChange
	// token and peer are the session's; runs is closed when the guest may run
	// here, over when this has ended. They are for what is caught for it.
	token      []byte
	peer       string
	runs, over chan struct{}
	ending     sync.Once
	arrived    time.Time
}

func newArrival(peer string, token []byte) *arrival {
	return &arrival{peer: peer, token: token, runs: make(chan struct{}), over: make(chan struct{})}
}

// mayRun reports whether the guest has been allowed to run here.
func (a *arrival) mayRun() bool {
	select {
	case <-a.runs:
		return true
	default:
		return false
	}
}

// close ends the data path.
func (a *arrival) close() {
	a.ending.Do(func() { close(a.over) })
	if a.cool != nil {
		a.cool()
	}
	if a.session != nil {
		a.session.Close()
	}
}

// incomings are the arrivals by move.
type incomings struct {
	mu sync.Mutex
	m  map[string]*arrival
	// late are those whose guest runs here and for which frames may still be
	// handed over, lateLimit long.
	late map[string]*arrival
	// warm are those that keep connections to edges open.
	warm sync.WaitGroup
}

func (i *incomings) put(move string, a *arrival) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.m == nil {
		i.m = make(map[string]*arrival)
	}
	i.m[move] = a
}

func (i *incomings) get(move string) *arrival {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.m[move]
}

// lateLimit is longer than a source waits before it hands frames over: it
// begins with the guest's stop.
const lateLimit = 10 * time.Second

// keepLate has the arrival of a guest that runs here found by receiving.
func (i *incomings) keepLate(move string, a *arrival, now time.Time) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.late == nil {
		i.late = make(map[string]*arrival)
	}
	for m, old := range i.late {
		if now.Sub(old.arrived) > lateLimit {
			delete(i.late, m)
		}
	}
	a.arrived = now
	i.late[move] = a
}

// receiving is the arrival that frames may be handed to, nil for none.
func (i *incomings) receiving(move string) *arrival {
	i.mu.Lock()
	defer i.mu.Unlock()
	if a := i.m[move]; a != nil {
		return a
	}
	return i.late[move]
}

func (i *incomings) take(move string) *arrival {
	i.mu.Lock()
	defer i.mu.Unlock()
	a := i.m[move]
	delete(i.m, move)
	return a
}

// closeIncoming frees all; what was not accepted is destroyed by that.
func (a *Agent) closeIncoming() {
	a.incoming.mu.Lock()
	defer a.incoming.mu.Unlock()
	for move, arr := range a.incoming.m {
		if arr.in != nil {
			_ = arr.in.Close()
		}
		arr.close()
		_ = a.sockets.remove(move)
	}
	a.incoming.m = nil
	a.incoming.warm.Wait()
}

// Ping proves reachability, certificates and the clock.
func (a peerService) Ping(context.Context, *droverv1.PingRequest) (*droverv1.PingResponse, error) {
	return &droverv1.PingResponse{Name: a.config.Name, Site: a.config.Site, ClockUnixNanos: a.clock().UnixNano()}, nil
}

// peerCall checks who calls about which move, and takes the move's lock.
func (a peerService) peerCall(ctx context.Context, p *droverv1.MoveRef) (ref moveRef, caller string, unlock func(), err error) {
	if ref, err = checkRef(p); err != nil {
		return ref, "", nil, err
	}
	leave, err := a.calls.enter()
	if err != nil {
		return ref, "", nil, err
	}
	defer func() {
		if err != nil {
			leave()
		}
	}()
	id, ok := api.Caller(ctx)
	if !ok {
		return ref, "", nil, drover.Errorf(drover.Denied, "move "+ref.move, "the caller is not known")
	}
	free, err := a.locks.lock(ctx, ref.move)
	return ref, id.Name, func() { free(); leave() }, err
}

// bind refuses every agent but the one at the move's other end, which its
// first call makes itself known as.
func (r *record) bind(caller string) error {
	if r.Peer != "" && r.Peer != caller {
		return drover.Errorf(drover.Denied, "move "+r.Move, "its other end is agent %s, not %s", r.Peer, caller)
	}
	r.Peer = caller
	return nil
}

// Prepare makes this host ready to receive: a live migration or, without a
// definition, disks that package wan copies.
func (a peerService) Prepare(ctx context.Context, req *droverv1.PrepareRequest) (*droverv1.PrepareResponse, error) {
	if err := errors.Join(a.needHypervisor(), checkEdge(req.GetTargetEdge())); err != nil {
		return nil, err
	}
	ref, caller, unlock, err := a.peerCall(ctx, req.GetRef())
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := a.discard(ctx, ref.move); err != nil {
		return nil, err
	}
	token := newToken(randomBytes)
	if err := a.journal.update(ref.move, "prepared", func(r *record) error {
		return r.prepare(ref, caller, token, req)
	}); err != nil {
		return nil, err
	}
	resp, err := a.receive(ctx, ref, caller, token, req)
	if err != nil {
		work, cancel := context.WithTimeout(context.WithoutCancel(ctx), concludeLimit)
		defer cancel()
		return nil, errors.Join(err, a.discard(work, ref.move))
	}
	a.log.Info("ready to receive", "move", ref.move, "vm", ref.vm, "from", caller, "attempt", attemptID(token))
	return resp, nil
}

// prepare admits an attempt to the record.
func (r *record) prepare(ref moveRef, caller string, token []byte, req *droverv1.PrepareRequest) error {
	op := "prepare move " + ref.move
	if err := r.fence(ref); err != nil {
		return err
	}
	switch {
	case !r.Target:
		return drover.Errorf(drover.Refused, op, "this host is not its target")
	case r.In.owns():
		return drover.Errorf(drover.Refused, op, "the guest has arrived already")
	case ref.generation <= r.RefusedGeneration:
		return drover.Errorf(drover.Refused, op, "generation %d has been refused for good", r.RefusedGeneration)
	case req.GetBase() < 0 || req.GetRound() < 0 || req.GetRound() > 0 && req.GetRound() <= req.GetBase():
		return drover.Errorf(drover.Invalid, op, "round %d based on %d: want a later one", req.GetRound(), req.GetBase())
	}
	if err := r.bind(caller); err != nil {
		return err
	}
	for _, d := range req.GetDisks() {
		if v := r.volume(d.GetTarget()); req.GetBase() > 0 && (v == nil || v.Round < req.GetBase()) {
			return drover.Errorf(drover.NotFound, op, "disk %s does not have round %d here", d.GetTarget(), req.GetBase())
		}
	}
	r.In = &inRecord{
		State: inPrepared, Generation: ref.generation, Token: token, Copying: len(req.GetDefinition()) == 0,
		Round: req.GetRound(), Base: req.GetBase(),
	}
	return nil
}

// receive starts the receiving hypervisor and opens the data path.
func (a *Agent) receive(ctx context.Context, ref moveRef, caller string, token []byte, req *droverv1.PrepareRequest) (*droverv1.PrepareResponse, error) {
	guest, err := readGuestChange(req.GetGuest())
	if err != nil {
		return nil, err
	}
	arr := newArrival(caller, token)
	arr.edge, arr.guest = req.GetTargetEdge(), guest
	subject := wan.Subject{Move: ref.move, VM: ref.uuid, Tenant: req.GetTenant()}
	if req.GetBase() == 0 && req.GetReplicaOf() != "" {
		a.knowReplicas(ctx, ref, req.GetReplicaOf(), req.GetTenant())
	}
	offered := a.offer(ctx, subject, req.GetDisks())
	o := wan.ReceiveOptions{Token: token, Peer: caller, Subject: subject, Offered: offered}
	resp := &droverv1.PrepareResponse{Token: token, Sources: sourcesToProto(offered)}
	if len(req.GetDefinition()) == 0 {
		o.Image = func(ctx context.Context, target string) (wan.Image, error) {
			return a.receiveDisk(ctx, ref.move, target)
		}
	} else {
		if err := a.sockets.make(ref.move); err != nil {
			return nil, err
		}
		spec := migrationSpec(ref.vm, a.sockets, ref.move, req.GetDisks(), time.Duration(req.GetMaxPauseMillis())*time.Millisecond)
		spec.DisksStay = len(a.remote.of(ref.uuid)) > 0
		in, err := a.hyp.Prepare(ctx, spec, driver.Offer{Definition: req.GetDefinition(), Cookie: req.GetCookie()})
		if err != nil {
			return nil, err
		}
		arr.in, resp.Cookie = in, in.Prepared()
		o.MemorySocket, o.DiskSocket = a.sockets.memory(ref.move), a.sockets.disk(ref.move)
	}
	if arr.edge != nil {
		var warm context.Context
		warm, arr.cool = context.WithCancel(context.Background())
		a.incoming.warm.Go(func() { a.keepEdgeWarm(warm, arr.edge) })
	}
	a.incoming.put(ref.move, arr)
	session, err := a.wan.Receive(o)
	if err != nil {
		return nil, err
	}
	arr.session = session
	return resp, nil
}

// discard throws away what was prepared and not accepted; nothing prepared is
// fine. The move's lock is held.
func (a *Agent) discard(ctx context.Context, move string) error {
	arr := a.incoming.take(move)
	if arr != nil {
		arr.close()
	}
	r, err := a.journal.move(move)
	if err != nil || r == nil || r.In == nil || r.In.State != inPrepared {
		if arr != nil && arr.in != nil {
			_ = arr.in.Close()
		}
		return err
	}
	switch {
	case arr != nil && arr.in != nil:
		err = arr.in.Abandon(ctx)
		_ = arr.in.Close()
	case !r.In.Copying:
		err = a.removeReceived(ctx, r)
	}
	if err == nil {
		err = a.sockets.remove(move)
	}
	if err != nil {
		return err
	}
	return a.journal.update(move, "abandoned", func(r *record) error {
		r.In.State = inAbandoned
		return nil
	})
}

// removeReceived removes a guest that an earlier process was receiving. One
// that is persistent is not that guest: Finish makes it so, and was not called.
func (a *Agent) removeReceived(ctx context.Context, r *record) error {
	vm, err := a.hyp.VM(ctx, r.VM)
	switch {
	case err != nil && drover.KindOf(err) == drover.NotFound:
		return nil
	case err != nil:
		return err
	case vm.Persistent || vm.UUID != r.VMUUID:
		a.log.Warn("nothing received is left, but another vm of that name is here", "move", r.Move, "vm", r.VM)
		return nil
	}
	return a.hyp.Settle(ctx, r.VM, driver.SettleGone)
}

// Finish takes the source's word that it has given the guest up.
func (a peerService) Finish(ctx context.Context, req *droverv1.FinishRequest) (*droverv1.FinishResponse, error) {
	ref, caller, unlock, err := a.peerCall(ctx, req.GetRef())
	if err != nil {
		return nil, err
	}
	defer unlock()
	var in inRecord
	err = a.journal.update(ref.move, "in-accepted", func(r *record) error {
		if err := errors.Join(r.fence(ref), r.bind(caller)); err != nil {
			return err
		}
		err := r.accept(req.GetToken(), a.complete(ref.move, req.GetDisks()))
		if r.In != nil {
			in = *r.In
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	// The guest is this host's now: the caller's going away changes nothing.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), acceptLimit)
	defer cancel()
	switch in.State {
	case inAccepted:
		return a.letRun(ctx, ref, req.GetCookie())
	case inRunning:
		return &droverv1.FinishResponse{Running: true, Cookie: in.Cookie, ResumedUnixNanos: unixNanos(in.Resumed)}, nil
	case inRejected:
		end, err := a.decide(ctx, ref.move)
		return &droverv1.FinishResponse{Fault: end.Fault}, err
	default:
		return &droverv1.FinishResponse{Fault: in.Fault}, nil
	}
}

// complete reports whether what was prepared for a move is here, with all that
// the source's hypervisor was told is written.
func (a *Agent) complete(move string, disks []*droverv1.DiskPosition) bool {
	arr := a.incoming.get(move)
	if arr == nil || arr.session == nil {
		return false
	}
	acknowledged := make(map[string]wan.Position, len(disks))
	for _, d := range disks {
		acknowledged[d.GetExport()] = wan.Position{Operations: d.GetOperations(), Bytes: d.GetBytes()}
	}
	if err := arr.session.Missing(acknowledged); err != nil {
		a.log.Error("the guest's disks are not all here: it runs on at its source", "move", move, "err", err)
		return false
	}
	return true
}

// accept takes a Finish into the record: from prepared to accepted, or to
// rejected when what was prepared is not there any more. A repeated Finish
// leaves what is.
func (r *record) accept(token []byte, present bool) error {
	op := "finish move " + r.Move
	in := r.In
	switch {
	case in == nil || in.Copying || subtle.ConstantTimeCompare(in.Token, token) != 1:
		return drover.Errorf(drover.Refused, op, "nothing was prepared under this token")
	case in.State == inAccepted:
		return drover.Errorf(drover.Unknown, op, "an earlier Finish has not come to an end")
	case in.State != inPrepared:
		return nil
	case r.RefusedGeneration >= in.Generation || !present:
		in.State, in.Fault = inRejected, "what was prepared is not there any more"
	default:
		in.State = inAccepted
	}
	return nil
}

// letRun lets an accepted guest run here, or makes sure that it never will.
func (a *Agent) letRun(ctx context.Context, ref moveRef, cookie []byte) (*droverv1.FinishResponse, error) {
	began := a.clock()
	arr := a.incoming.get(ref.move)
	a.remote.open(ref.uuid)
	// What was caught for it is in its ports when it begins to run. It is let run
	// once: a Finish that did not come to an end is not begun again.
	close(arr.runs)
	confirm, err := arr.in.Finish(ctx, cookie)
	if err == nil {
		a.callOut(ref, arr.edge, nil)
		a.calls.group.Go(func() { a.changeArrived(ref, arr.guest) })
		resumed := a.observer.resumed(ref.vm, began)
		err = a.journal.update(ref.move, "running", func(r *record) error {
			r.In.State, r.In.Cookie, r.In.Resumed = inRunning, confirm, resumed
			return nil
		})
		if err != nil {
			return nil, drover.E(drover.Unknown, "finish move "+ref.move, err)
		}
		a.keepArrival(ref.move)
		a.log.Info("guest runs here", "move", ref.move, "vm", ref.vm, "resumed", resumed, "took", resumed.Sub(began))
		return &droverv1.FinishResponse{Running: true, Cookie: confirm, ResumedUnixNanos: unixNanos(resumed)}, nil
	}
	a.log.Error("received guest could not be run", "move", ref.move, "vm", ref.vm, "err", err)
	a.closeArrival(ref.move)
	if drover.KindOf(err) != drover.Unknown {
		if jerr := a.reject(ref.move, err.Error()); jerr != nil {
			return nil, drover.E(drover.Unknown, "finish move "+ref.move, jerr)
		}
	}
	in, rerr := a.decide(ctx, ref.move)
	switch {
	case rerr != nil:
		return nil, drover.E(drover.Unknown, "finish move "+ref.move, errors.Join(err, rerr))
	case in.State == inRunning:
		return &droverv1.FinishResponse{Running: true, Cookie: in.Cookie, ResumedUnixNanos: unixNanos(in.Resumed)}, nil
	default:
		return &droverv1.FinishResponse{Fault: in.Fault}, nil
	}
}

// closeArrival frees what this process holds of a session that has ended.
func (a *Agent) closeArrival(move string) {
	arr := a.incoming.take(move)
	if arr == nil {
		return
	}
	arr.close()
	if arr.in != nil {
		_ = arr.in.Close()
	}
	_ = a.sockets.remove(move)
}

// keepArrival frees what this process holds of a session whose guest runs here,
// and makes its memory known for later moves, beside everything else.
func (a *Agent) keepArrival(move string) {
	arr := a.incoming.get(move)
	if arr == nil {
		return
	}
	a.incoming.keepLate(move, arr, a.clock())
	a.incoming.take(move)
	a.calls.group.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), concludeLimit)
		defer cancel()
		_ = sleep(ctx, guestFirst, a.calls.ending)
		if err := arr.session.Keep(ctx); err != nil {
			a.log.Info("the guest's memory is not kept", "move", move, "err", err)
		}
		arr.close()
		if arr.in != nil {
			_ = arr.in.Close()
		}
		_ = a.sockets.remove(move)
	})
}
