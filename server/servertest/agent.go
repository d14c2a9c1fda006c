package servertest

import (
	"context"
	"crypto/tls"
	"errors"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/api/droverv1/droverv1connect"
	"github.com/drover-vm/drover/pki"
)

// Agent is an agent of the world. Change its fields through Set.
type Agent struct {
	Name, Site, Addr string

	world *World
	cfg   *tls.Config

	mu      sync.Mutex
	state   State
	changed chan struct{}
	web     *http.Server
	served  chan struct{}
	// done are the results of actions, by move and step.
	done map[string]*droverv1.RunResult
	past map[string]drover.VM
	ran  []string
}

// State is what an agent shows and how it behaves.
type State struct {
	Host  drover.Host
	VMs   map[string]drover.VM
	Links []*droverv1.LinkCounters
	// SourceChecks and TargetChecks are the agent's findings of a preflight.
	SourceChecks, TargetChecks []drover.Check
	SameBacking                map[string]bool
	// Sick is why VMs are not well as seen from here; empty: they are.
	Sick string
	// Fail makes the actions of a step fail; Hold makes them wait until the
	// channel is closed.
	Fail map[string]error
	Hold map[string]chan struct{}
	// Probe is what a probe will have seen; nil: the agent has no prober.
	Probe *droverv1.ProbeResult
	// Probing are the probes that run, by name, and Probed those that have.
	Probing map[string]*droverv1.ProbeTarget
	Probed  []string
	// Silent is how many probes do not start because nothing answers them.
	Silent int
	// Rates are those that moves were set to while a step held them.
	Rates []drover.BitRate
	// Replicas are those that are reserved here.
	Replicas map[string]bool
	// Seen is what the agent answers when it is asked what it has seen, Asked the last
	// such question.
	Seen  *droverv1.ObserveResponse
	Asked *droverv1.ObserveRequest
	// Surveys counts the surveys that it was asked for.
	Surveys int
	// Edge is nil for an agent that is no site's edge.
	Edge *EdgeState
}

func newAgent(w *World, p Place) *Agent {
	cfg, err := pki.Config(w.Files(pki.Agent, p.Name))
	if err != nil {
		w.t.Fatal(err)
	}
	return &Agent{
		Name: p.Name, Site: p.Site, world: w, cfg: api.ServerTLS(cfg),
		state: State{
			Host: Host(p.Name, p.Site), VMs: map[string]drover.VM{},
			Fail: map[string]error{}, Hold: map[string]chan struct{}{}, Probing: map[string]*droverv1.ProbeTarget{},
		},
		changed: make(chan struct{}), done: map[string]*droverv1.RunResult{}, past: map[string]drover.VM{},
	}
}

// Set changes the agent and wakes those who watch it.
func (a *Agent) Set(f func(*State)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f(&a.state)
	for name, v := range a.state.VMs {
		a.past[name] = v
	}
	close(a.changed)
	a.changed = make(chan struct{})
}

// Get reads the agent.
func (a *Agent) Get(f func(*State)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f(&a.state)
}

// Ran returns the steps that were run here, in order.
func (a *Agent) Ran() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.ran)
}

func (a *Agent) remembered(name string) (drover.VM, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	v, ok := a.past[name]
	return v, ok
}

// Start listens, on the address of the time before.
func (a *Agent) Start() {
	addr := a.Addr
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		a.world.t.Fatal(err)
	}
	a.Addr = l.Addr().String()
	path, h := droverv1connect.NewAgentServiceHandler(service{a}, api.HandlerOptions()...)
	mux := http.NewServeMux()
	mux.Handle(path, api.RequireRole(h, pki.Server))
	web, served := api.NewHTTPServer(mux), make(chan struct{})
	a.mu.Lock()
	a.web, a.served = web, served
	a.mu.Unlock()
	go func() {
		defer close(served)
		if err := web.Serve(tls.NewListener(l, a.cfg)); !errors.Is(err, http.ErrServerClosed) {
			a.world.t.Errorf("agent %s: %v", a.Name, err)
		}
	}()
}

// Stop cuts every connection, as a crash would. What was done stays known.
func (a *Agent) Stop() {
	a.mu.Lock()
	web, served := a.web, a.served
	a.web = nil
	a.mu.Unlock()
	if web != nil {
		web.Close()
		<-served
	}
}

func (a *Agent) describe() (*droverv1.DescribeResponse, <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	r := &droverv1.DescribeResponse{Host: api.HostToProto(a.state.Host), ClockUnixNanos: time.Now().UnixNano()}
	for _, name := range slices.Sorted(maps.Keys(a.state.VMs)) {
		r.Vms = append(r.Vms, api.VMToProto(a.state.VMs[name]))
	}
	r.Links = append(r.Links, a.state.Links...)
	if e := a.state.Edge; e != nil {
		r.Segments = api.ListToProto(e.Segments, api.SegmentToProto)
		r.Mesh = api.MeshToProto(e.Mesh)
		r.Passages, r.PassagesUnixNanos = api.ListToProto(e.Passages, api.EdgePassageToProto), r.GetClockUnixNanos()
		r.MeshRttMs = e.Trips
	}
	return r, a.changed
}

// service is the agent as servers see it.
type service struct{ *Agent }

func (s service) Describe(context.Context, *droverv1.DescribeRequest) (*droverv1.DescribeResponse, error) {
	r, _ := s.describe()
	return r, nil
}

func (s service) Watch(ctx context.Context, _ *droverv1.DescribeRequest, out *connect.ServerStream[droverv1.DescribeResponse]) error {
	for {
		r, changed := s.describe()
		if err := out.Send(r); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s service) CheckSource(_ context.Context, r *droverv1.CheckSourceRequest) (*droverv1.CheckSourceResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, ok := s.state.VMs[r.GetVm()]
	if !ok {
		return nil, drover.Errorf(drover.NotFound, "check source", "vm %s is not here", r.GetVm())
	}
	return &droverv1.CheckSourceResponse{
		Checks: api.ChecksToProto(s.state.SourceChecks), Vm: api.VMToProto(v),
		Definition: []byte("definition of " + v.Name), Host: api.HostToProto(s.state.Host),
	}, nil
}

func (s service) CheckTarget(_ context.Context, r *droverv1.CheckTargetRequest) (*droverv1.CheckTargetResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if string(r.GetDefinition()) != "definition of "+r.GetVm().GetName() && r.GetClone() == nil {
		return nil, drover.Errorf(drover.Invalid, "check target", "the source's definition did not arrive")
	}
	return &droverv1.CheckTargetResponse{
		Checks: api.ChecksToProto(s.state.TargetChecks), Host: api.HostToProto(s.state.Host), SameBacking: s.state.SameBacking,
	}, nil
}

func (s service) Run(ctx context.Context, r *droverv1.RunRequest, out *connect.ServerStream[droverv1.RunResponse]) error {
	key := r.GetRef().GetMove() + "/" + r.GetStep()
	s.mu.Lock()
	known, hold, fail := s.done[key], s.state.Hold[r.GetStep()], s.state.Fail[r.GetStep()]
	s.mu.Unlock()
	if known != nil {
		return out.Send(&droverv1.RunResponse{Result: known})
	}
	if hold != nil {
		p := drover.Progress{Phase: "memory", DoneBytes: 64 * drover.MiB, TotalBytes: 256 * drover.MiB, Rate: 100 * drover.Mbps, ETASeconds: 16}
		p.Path = &drover.PathProgress{GuestBytes: 64 * drover.MiB, WireBytes: 8 * drover.MiB, WireRate: 12 * drover.Mbps, Limit: 20 * drover.Mbps}
		if err := out.Send(&droverv1.RunResponse{Progress: api.ProgressToProto(p)}); err != nil {
			return err
		}
		select {
		case <-hold:
		case <-ctx.Done():
			return ctx.Err()
		}
		s.mu.Lock()
		fail = s.state.Fail[r.GetStep()]
		s.mu.Unlock()
	}
	if fail != nil {
		return fail
	}
	result, err := s.act(r)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.done[key] = result
	s.ran = append(s.ran, r.GetStep())
	s.mu.Unlock()
	return out.Send(&droverv1.RunResponse{Result: result})
}

// act has an action's effect on the world.
func (s service) act(r *droverv1.RunRequest) (*droverv1.RunResult, error) {
	if result, ok := s.makes(r); ok {
		return result, nil
	}
	if result, ok := s.keeps(r); ok {
		return result, nil
	}
	name := r.GetRef().GetVm()
	switch v := r.GetAction().(type) {
	case *droverv1.RunRequest_Transfer:
		peer, err := s.world.peer(v.Transfer.GetPeerHost())
		if err != nil {
			return nil, err
		}
		vm, err := s.world.vm(name)
		if err != nil {
			return nil, err
		}
		vm.State = drover.VMRunning
		s.Set(func(st *State) { delete(st.VMs, name) })
		peer.Set(func(st *State) { st.VMs[name] = vm })
		s.world.carry(200 << 20)
		return &droverv1.RunResult{
			Moved: true, PauseNanos: int64(61 * time.Millisecond), MemoryBytes: 270 << 20, DiskBytes: 40 << 20, PathWireBytes: 199 << 20,
			Path: api.PathFiguresToProto(Path()),
		}, nil
	case *droverv1.RunRequest_AbortTransfer:
		s.mu.Lock()
		_, here := s.state.VMs[name]
		s.mu.Unlock()
		return &droverv1.RunResult{Moved: !here}, nil
	case *droverv1.RunRequest_Shutdown:
		s.Set(func(st *State) { off(st, name) })
		return &droverv1.RunResult{WasRunning: true, StoppedUnixNanos: time.Now().UnixNano()}, nil
	case *droverv1.RunRequest_GiveUp:
		s.Set(func(st *State) { delete(st.VMs, name) })
		return &droverv1.RunResult{WasRunning: true, Definition: []byte("definition of " + name)}, nil
	case *droverv1.RunRequest_TakeBack, *droverv1.RunRequest_Define:
		vm, err := s.world.vm(name)
		if err != nil {
			return nil, err
		}
		vm.State = drover.VMOff
		if _, back := v.(*droverv1.RunRequest_TakeBack); back {
			vm.State = drover.VMRunning
		}
		s.Set(func(st *State) { st.VMs[name] = vm })
	case *droverv1.RunRequest_Replicate:
		s.world.carry(60 << 20)
		return &droverv1.RunResult{DiskBytes: 50 << 20, PathWireBytes: 51 << 20}, nil
	case *droverv1.RunRequest_StopVm:
		s.Set(func(st *State) { off(st, name) })
	case *droverv1.RunRequest_CheckHealth:
		s.mu.Lock()
		defer s.mu.Unlock()
		return &droverv1.RunResult{Healthy: s.state.Sick == "", Detail: s.state.Sick}, nil
	case *droverv1.RunRequest_Undefine:
		s.Set(func(st *State) { delete(st.VMs, name) })
	case *droverv1.RunRequest_Copy:
		s.world.carry(50 << 20)
		return &droverv1.RunResult{DiskBytes: 40 << 20, PathWireBytes: 41 << 20}, nil
	case *droverv1.RunRequest_Start:
		s.Set(func(st *State) {
			vm := st.VMs[name]
			vm.State = drover.VMRunning
			st.VMs[name] = vm
		})
		return &droverv1.RunResult{ResumedUnixNanos: time.Now().UnixNano()}, nil
	case *droverv1.RunRequest_Verify:
		s.mu.Lock()
		defer s.mu.Unlock()
		if _, here := s.state.VMs[name]; !here {
			return nil, drover.Errorf(drover.NotFound, "verify", "vm %s is not here", name)
		}
	}
	return &droverv1.RunResult{}, nil
}

// Path is what the data path did for every live move of the world.
func Path() drover.PathFigures {
	count := func(blocks int64, wire drover.Bytes) drover.PathCount {
		return drover.PathCount{Blocks: blocks, GuestBytes: drover.Bytes(blocks) * 4 * drover.KiB, WireBytes: wire}
	}
	return drover.PathFigures{
		Disk: drover.PathPhase{
			Seconds: 4, GuestBytes: 40 * drover.MiB, WireBytes: 20 * drover.MiB, CPUSeconds: 0.5,
			Kinds: drover.PathKinds{Compressed: count(10240, 20*drover.MiB)},
		},
		Memory: drover.PathPhase{
			Seconds: 10, GuestBytes: 268 * drover.MiB, WireBytes: 31 * drover.MiB, CPUSeconds: 1.5,
			RetransmittedBytes: drover.MiB, Cuts: 1, CutSeconds: 30, MissedReferences: 2,
			Kinds: drover.PathKinds{Zero: count(30000, 8192), Reference: count(20000, 65536), Delta: count(608, 300_000), Compressed: count(18000, 31*drover.MiB-400_000)},
		},
		Switchover:      drover.PathPhase{Seconds: 0.06, GuestBytes: 2 * drover.MiB, WireBytes: drover.MiB, Kinds: drover.PathKinds{Raw: count(512, drover.MiB)}},
		ThrottlePercent: 20,
	}
}

func off(st *State, name string) {
	vm := st.VMs[name]
	vm.State = drover.VMOff
	st.VMs[name] = vm
}

// carry counts bytes on every link of the world.
func (w *World) carry(n uint64) {
	for _, a := range w.Agents {
		a.Set(func(st *State) {
			for i, c := range st.Links {
				st.Links[i] = &droverv1.LinkCounters{Name: c.GetName(), A: c.GetA(), B: c.GetB(), AbBytes: c.GetAbBytes() + n, BaBytes: c.GetBaBytes() + n/100}
			}
		})
	}
}

func (s service) Cancel(_ context.Context, r *droverv1.CancelRequest) (*droverv1.CancelResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if hold := s.state.Hold[r.GetStep()]; hold != nil {
		s.state.Fail[r.GetStep()] = drover.Errorf(drover.Canceled, r.GetStep(), "canceled on request")
		delete(s.state.Hold, r.GetStep())
		close(hold)
	}
	return &droverv1.CancelResponse{}, nil
}

func (s service) SetRate(_ context.Context, r *droverv1.SetRateRequest) (*droverv1.SetRateResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.state.Hold) == 0 {
		return nil, drover.Errorf(drover.NotFound, "set rate", "nothing is being sent")
	}
	s.state.Rates = append(s.state.Rates, drover.BitRate(r.GetBandwidthBps()))
	return &droverv1.SetRateResponse{}, nil
}

func (s service) ProbeStart(_ context.Context, r *droverv1.ProbeStartRequest) (*droverv1.ProbeStartResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state.Probe == nil {
		return nil, drover.Errorf(drover.Refused, "probe", "this agent has no prober")
	}
	if s.state.Silent > 0 && strings.HasSuffix(r.GetMove(), ".after") {
		s.state.Silent--
		return nil, drover.Errorf(drover.Unavailable, "probe", "nobody answers")
	}
	s.state.Probing[r.GetMove()] = r.GetTarget()
	return &droverv1.ProbeStartResponse{}, nil
}

func (s service) ProbeStop(_ context.Context, r *droverv1.ProbeStopRequest) (*droverv1.ProbeStopResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, found := s.state.Probing[r.GetMove()]
	delete(s.state.Probing, r.GetMove())
	if !found {
		return &droverv1.ProbeStopResponse{}, nil
	}
	s.state.Probed = append(s.state.Probed, r.GetMove())
	return &droverv1.ProbeStopResponse{Found: true, Result: s.state.Probe}, nil
}
