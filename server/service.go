package server

import (
	"context"
	"time"

	"connectrpc.com/connect"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/api/droverv1/droverv1connect"
	"github.com/drover-vm/drover/store"
)

// service answers operators.
type service struct{ *Server }

var _ droverv1connect.DroverServiceHandler = service{}

// ListSites implements DroverService.
func (s service) ListSites(context.Context, *droverv1.ListSitesRequest) (*droverv1.ListSitesResponse, error) {
	return &droverv1.ListSitesResponse{Sites: api.ListToProto(s.fleet.viewSites(), api.SiteToProto)}, nil
}

// ListHosts implements DroverService.
func (s service) ListHosts(ctx context.Context, _ *droverv1.ListHostsRequest) (*droverv1.ListHostsResponse, error) {
	moves, err := s.moving(ctx)
	if err != nil {
		return nil, err
	}
	return &droverv1.ListHostsResponse{Hosts: api.ListToProto(s.fleet.viewHosts(moves), api.HostToProto)}, nil
}

// ListLinks implements DroverService.
func (s service) ListLinks(context.Context, *droverv1.ListLinksRequest) (*droverv1.ListLinksResponse, error) {
	return &droverv1.ListLinksResponse{Links: api.ListToProto(s.fleet.viewLinks(), api.LinkToProto)}, nil
}

// ListVMs implements DroverService.
func (s service) ListVMs(ctx context.Context, _ *droverv1.ListVMsRequest) (*droverv1.ListVMsResponse, error) {
	moves, err := s.moving(ctx)
	if err != nil {
		return nil, err
	}
	return &droverv1.ListVMsResponse{Vms: api.ListToProto(s.fleet.detoured(s.fleet.viewVMs(moves), moves), api.VMToProto)}, nil
}

// ListServices implements DroverService.
func (s service) ListServices(ctx context.Context, _ *droverv1.ListServicesRequest) (*droverv1.ListServicesResponse, error) {
	moves, err := s.moving(ctx)
	if err != nil {
		return nil, err
	}
	return &droverv1.ListServicesResponse{Services: api.ListToProto(s.fleet.viewServices(moves), api.ServiceToProto)}, nil
}

// ListMoves implements DroverService.
func (s service) ListMoves(ctx context.Context, r *droverv1.ListMovesRequest) (*droverv1.ListMovesResponse, error) {
	if r.GetVm() != "" {
		if err := drover.CheckName("vm", r.GetVm()); err != nil {
			return nil, err
		}
	}
	all, err := s.exec.List(ctx, store.Filter{})
	if err != nil {
		return nil, err
	}
	resp := &droverv1.ListMovesResponse{}
	for _, m := range all {
		if r.GetVm() == "" || m.VM == r.GetVm() {
			resp.Moves = append(resp.Moves, api.MoveToProto(s.withLeft(m)))
		}
	}
	return resp, nil
}

// GetMove implements DroverService.
func (s service) GetMove(ctx context.Context, r *droverv1.GetMoveRequest) (*droverv1.GetMoveResponse, error) {
	m, err := s.move(ctx, r.GetName())
	if err != nil {
		return nil, err
	}
	return &droverv1.GetMoveResponse{Move: api.MoveToProto(s.withLeft(m))}, nil
}

func (s service) move(ctx context.Context, name string) (drover.Move, error) {
	if err := drover.CheckName("move", name); err != nil {
		return drover.Move{}, err
	}
	return s.exec.Get(ctx, name)
}

// Preflight implements DroverService.
func (s service) Preflight(ctx context.Context, r *droverv1.PreflightRequest) (*droverv1.PreflightResponse, error) {
	to, method, err := readTarget(r)
	if err != nil {
		return nil, err
	}
	p, err := s.preflightAsked(ctx, r.GetVm(), to, method, r)
	if err != nil {
		return nil, err
	}
	return &droverv1.PreflightResponse{Preflight: api.PreflightToProto(p.report)}, nil
}

// readTarget checks what preflight and move have in common.
func readTarget(r interface {
	GetVm() string
	GetTo() *droverv1.Place
	GetMethod() string
	GetDisksOnly() bool
},
) (drover.Place, drover.Method, error) {
	if err := drover.CheckName("vm", r.GetVm()); err != nil {
		return drover.Place{}, "", err
	}
	to, method := api.PlaceFromProto(r.GetTo()), r.GetMethod()
	if r.GetDisksOnly() {
		if to != (drover.Place{}) {
			return to, "", drover.Errorf(drover.Invalid, "to", "%q: with disks_only they come to where the VM is, want nothing", to)
		}
		return to, drover.Method(method), nil
	}
	if err := drover.CheckName("to.site", to.Site); err != nil {
		return to, "", err
	}
	if to.Host != "" {
		if err := drover.CheckName("to.host", to.Host); err != nil {
			return to, "", err
		}
	}
	switch m := drover.Method(method); m {
	case "", drover.Live, drover.Stretch, drover.Route, drover.Renumber, drover.Redirect, drover.Warm, drover.Cold, drover.Spawn:
		return to, m, nil
	default:
		return to, "", drover.Errorf(drover.Invalid, "method", "%q: want live, stretch, route, renumber, redirect, warm, cold or spawn, or nothing to leave the choice to the server", method)
	}
}

const (
	// maxPauseLimit and maxGrace bound what may be asked for: beyond them a
	// digit too many is likelier than a wish.
	maxPauseLimit = time.Minute
	maxGrace      = 24 * time.Hour
	// maxRequestID bounds the caller's name for a request.
	maxRequestID = 128
)

func checkStart(r *droverv1.StartMoveRequest) error {
	between := func(field string, ms int64, most time.Duration) error {
		if ms < 0 || ms > most.Milliseconds() {
			return drover.Errorf(drover.Invalid, field, "%d: want 0 to %d", ms, most.Milliseconds())
		}
		return nil
	}
	if err := checkBandwidth(r.GetBandwidthBps()); err != nil {
		return err
	}
	if len(r.GetRequestId()) > maxRequestID {
		return drover.Errorf(drover.Invalid, "request_id", "%d bytes: want at most %d", len(r.GetRequestId()), maxRequestID)
	}
	if err := between("max_pause_millis", r.GetMaxPauseMillis(), maxPauseLimit); err != nil {
		return err
	}
	if err := between("max_downtime_millis", r.GetMaxDowntimeMillis(), maxGrace); err != nil {
		return err
	}
	return between("shutdown_grace_millis", r.GetShutdownGraceMillis(), maxGrace)
}

// StartMove implements DroverService.
func (s service) StartMove(ctx context.Context, r *droverv1.StartMoveRequest) (*droverv1.StartMoveResponse, error) {
	to, method, err := readTarget(r)
	if err == nil {
		err = checkStart(r)
	}
	if err == nil {
		err = s.mayLead(ctx)
	}
	if err != nil {
		return nil, err
	}
	// A repeated request would find its own move in the way of the preflight.
	switch m, found, err := s.known(ctx, r.GetVm(), r.GetRequestId()); {
	case err != nil:
		return nil, err
	case found:
		return &droverv1.StartMoveResponse{Move: api.MoveToProto(m)}, nil
	}
	p, err := s.preflightAsked(ctx, r.GetVm(), to, method, r)
	if err != nil {
		return nil, err
	}
	method = p.report.Method
	resp := &droverv1.StartMoveResponse{Preflight: api.PreflightToProto(p.report)}
	if !p.report.OK {
		return resp, nil
	}
	q := p.request
	q.ID = r.GetRequestId()
	q.KeepSource = r.GetKeepSource()
	q.Bandwidth = drover.BitRate(r.GetBandwidthBps())
	q.MaxPause = time.Duration(r.GetMaxPauseMillis()) * time.Millisecond
	q.ShutdownGrace = time.Duration(r.GetShutdownGraceMillis()) * time.Millisecond
	q.ShutdownForce = r.GetForceShutdown()
	q.NoThrottle = r.GetNoThrottle()
	q.MaxDowntime = time.Duration(r.GetMaxDowntimeMillis()) * time.Millisecond
	if q.Method == drover.Warm || q.Method == drover.Cold {
		q.Replica = s.protector.beginsWith(q.VM.UUID, q.From.Host, q.To.Host)
	}
	if !method.Makes() { // whose health is in its clone
		if q.Gate, err = s.gateOf(r.GetGate(), q.VM); err != nil {
			return nil, err
		}
	}
	q.Forecast = s.oracle.foretell(ctx, q)
	m, err := s.exec.Start(ctx, q)
	if err != nil {
		return nil, err
	}
	who, _ := api.Caller(ctx)
	s.log.InfoContext(ctx, "move accepted", "move", m.Name, "vm", m.VM, "from", m.From, "to", m.To, "method", m.Method, "by", who)
	resp.Move = api.MoveToProto(m)
	return resp, nil
}

// known finds the move of the VM that an earlier call of the same request
// started.
func (s service) known(ctx context.Context, vm, requestID string) (drover.Move, bool, error) {
	if requestID == "" {
		return drover.Move{}, false, nil
	}
	moves, err := s.moving(ctx)
	if err != nil {
		return drover.Move{}, false, err
	}
	v, err := s.fleet.find(vm, moves)
	if err != nil {
		return drover.Move{}, false, err
	}
	records, _, err := s.deps.Journal.List(ctx, store.Filter{VMUUID: v.UUID})
	if err != nil {
		return drover.Move{}, false, err
	}
	for _, r := range records {
		if r.RequestID == requestID {
			m, err := s.exec.Get(ctx, r.Move.Name)
			return m, err == nil, err
		}
	}
	return drover.Move{}, false, nil
}

// WatchMove implements DroverService.
func (s service) WatchMove(ctx context.Context, r *droverv1.WatchMoveRequest, out *connect.ServerStream[droverv1.WatchMoveResponse]) error {
	if err := drover.CheckName("move", r.GetName()); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	moves, err := s.exec.Watch(ctx, r.GetName())
	if err != nil {
		return err
	}
	for {
		select {
		case m, more := <-moves:
			if !more {
				// Final, or the caller or the executor has ended: the caller
				// knows which by what it was sent last.
				return nil
			}
			if err := out.Send(&droverv1.WatchMoveResponse{Move: api.MoveToProto(s.withLeft(m))}); err != nil {
				return err
			}
		case <-s.ending:
			return drover.Errorf(drover.Unavailable, "watch move "+r.GetName(), "the server is stopping")
		}
	}
}

// CancelMove implements DroverService.
func (s service) CancelMove(ctx context.Context, r *droverv1.CancelMoveRequest) (*droverv1.CancelMoveResponse, error) {
	if err := drover.CheckName("move", r.GetName()); err != nil {
		return nil, err
	}
	if err := s.mayLead(ctx); err != nil {
		return nil, err
	}
	if err := s.exec.Cancel(ctx, r.GetName()); err != nil {
		return nil, err
	}
	m, err := s.move(ctx, r.GetName())
	if err != nil {
		return nil, err
	}
	return &droverv1.CancelMoveResponse{Move: api.MoveToProto(m)}, nil
}

// SetMoveRate implements DroverService.
func (s service) SetMoveRate(ctx context.Context, r *droverv1.SetMoveRateRequest) (*droverv1.SetMoveRateResponse, error) {
	if err := drover.CheckName("move", r.GetName()); err != nil {
		return nil, err
	}
	if err := checkBandwidth(r.GetBandwidthBps()); err != nil {
		return nil, err
	}
	if err := s.mayLead(ctx); err != nil {
		return nil, err
	}
	if err := s.exec.SetRate(ctx, r.GetName(), drover.BitRate(r.GetBandwidthBps())); err != nil {
		return nil, err
	}
	m, err := s.move(ctx, r.GetName())
	if err != nil {
		return nil, err
	}
	who, _ := api.Caller(ctx)
	s.log.InfoContext(ctx, "rate of a move changed", "move", m.Name, "rate", m.Bandwidth, "by", who)
	return &droverv1.SetMoveRateResponse{Move: api.MoveToProto(m)}, nil
}

func checkBandwidth(bps int64) error {
	if bps < 0 {
		return drover.Errorf(drover.Invalid, "bandwidth_bps", "%d: want bits per second, or 0 for unlimited", bps)
	}
	return nil
}
