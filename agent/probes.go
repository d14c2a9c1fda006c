package agent

import (
	"context"
	"sync"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
)

const (
	// maxProbes bounds the probes that run at once, one per move.
	maxProbes = 64
	// probeLife ends a probe that nobody stops: longer than any move, shorter
	// than a server's outage would let it run.
	probeLife = 24 * time.Hour
)

// probes are the client-side probes by move.
type probes struct {
	prober  Prober
	allowed bool
	clock   func() time.Time

	mu      sync.Mutex
	running map[string]runningProbe
}

type runningProbe struct {
	probe Probe
	began time.Time
}

func newProbes(p Prober, allowed bool, clock func() time.Time) *probes {
	return &probes{prober: p, allowed: allowed, clock: clock, running: make(map[string]runningProbe)}
}

// start begins a move's probe; one that runs already is fine.
func (p *probes) start(ctx context.Context, move string, target drover.ProbeTarget) error {
	op := "probe for move " + move
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.allowed {
		return drover.Errorf(drover.Refused, op, "this agent's file does not set probe: true")
	}
	for m, r := range p.running {
		if p.clock().Sub(r.began) > probeLife {
			r.probe.Stop()
			delete(p.running, m)
		}
	}
	if _, on := p.running[move]; on {
		return nil
	}
	if len(p.running) >= maxProbes {
		return drover.Errorf(drover.Exhausted, op, "%d probes are running, the limit is %d", len(p.running), maxProbes)
	}
	probe, err := p.prober.Start(ctx, target)
	if err != nil {
		return err
	}
	p.running[move] = runningProbe{probe, p.clock()}
	return nil
}

// stop ends a move's probe.
func (p *probes) stop(move string) (ProbeResult, bool) {
	p.mu.Lock()
	r, on := p.running[move]
	delete(p.running, move)
	p.mu.Unlock()
	if !on {
		return ProbeResult{}, false
	}
	return r.probe.Stop(), true
}

func (p *probes) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for move, r := range p.running {
		r.probe.Stop()
		delete(p.running, move)
	}
}

// ProbeStart begins to watch a VM as a client does.
func (a agentService) ProbeStart(ctx context.Context, req *droverv1.ProbeStartRequest) (*droverv1.ProbeStartResponse, error) {
	if err := drover.CheckName("move", req.GetMove()); err != nil {
		return nil, err
	}
	if req.GetTarget().GetTcp() == "" && req.GetTarget().GetHttp() == "" {
		return nil, drover.Errorf(drover.Invalid, "target", "missing: want tcp, http or both")
	}
	err := a.probes.start(context.WithoutCancel(ctx), req.GetMove(), api.ProbeTargetFromProto(req.GetTarget()))
	return &droverv1.ProbeStartResponse{}, err
}

// ProbeStop ends it. One that does not run is not found.
func (a agentService) ProbeStop(_ context.Context, req *droverv1.ProbeStopRequest) (*droverv1.ProbeStopResponse, error) {
	r, found := a.probes.stop(req.GetMove())
	if !found {
		return &droverv1.ProbeStopResponse{}, nil
	}
	return &droverv1.ProbeStopResponse{Found: true, Result: &droverv1.ProbeResult{
		OutageMs: millis(r.Outage), OutageHttpMs: millis(r.OutageHTTP),
		Sessions: r.Sessions, SessionsLost: r.SessionsLost,
		BeatsSent: r.BeatsSent, BeatsAnswered: r.BeatsAnswered,
		RttP50Ms: millis(r.RTTMedian), HttpOk: r.HTTPOK, HttpFailed: r.HTTPFailed, Fault: r.Fault,
	}}, nil
}

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
