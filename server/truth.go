package server

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/executor"
)

const (
	// recoverLimit is how long a move's outage is followed after its end. It
	// has to cover a guest's boot, since a cold move ends when the guest
	// starts: a Debian guest without hardware acceleration serves after 20 s.
	recoverLimit = time.Minute
	// settleLeast and settleMost bound the time that open sessions get, once
	// new ones are answered, to be answered too. TCP's retransmission timer
	// doubles while a path is silent, so they may be late by as much as the
	// outage was long; twice the pause covers that.
	settleLeast = 2 * time.Second
	settleMost  = 15 * time.Second
	// recoverRetry is the wait between two looks at whether new sessions are
	// answered.
	recoverRetry = 250 * time.Millisecond
	// probeStartLimit bounds the start of the probes: a VM that does not answer
	// its clients now will not be measured, but must be moved all the same.
	probeStartLimit = 15 * time.Second
	// countersLimit bounds the reading of the links' counters.
	countersLimit = 5 * time.Second
)

// truth measures moves from outside: what the links carried and what clients
// saw. It implements executor.Observer.
//
// What was read before the first step is kept in memory. A server that takes
// a move up has not read it: that move's wire_bytes are then what the agents'
// data path has counted itself (so without other traffic and without TCP's and
// IP's headers). The probes run on at the agents and are asked for their result
// all the same.
type truth struct {
	s *Server

	mu    sync.Mutex
	moves map[string]*before
}

// before is what was read before a move's first step.
type before struct {
	// wire is the sum of both directions per link that joins the two sites.
	wire map[string]drover.Bytes
	// vm is the move's, at its source; nil when it was not seen.
	vm *drover.VM
	// probing are the hosts whose agents run a probe for the move.
	probing []string
}

var _ executor.Observer = (*truth)(nil)

func newTruth(s *Server) *truth { return &truth{s: s, moves: map[string]*before{}} }

// MoveStarting reads the counters and starts the probes.
func (t *truth) MoveStarting(ctx context.Context, m drover.Move) error {
	b := &before{vm: t.moved(ctx, m)}
	probing, perr := t.startProbes(ctx, m)
	b.probing = probing
	var werr error
	if m.Generation == 1 {
		// Last, so that opening the probes' sessions is not counted.
		b.wire, werr = t.readWire(ctx, m)
	}
	t.mu.Lock()
	t.moves[m.Name] = b
	t.mu.Unlock()
	return errors.Join(perr, werr)
}

// MoveEnded reads the counters again, waits until clients are answered again,
// and ends the probes.
func (t *truth) MoveEnded(ctx context.Context, m drover.Move) (drover.Figures, error) {
	t.mu.Lock()
	b := t.moves[m.Name]
	delete(t.moves, m.Name)
	t.mu.Unlock()
	t.s.meter.end(m)
	t.s.signals.learn(ctx, m)
	if err := t.s.inheritNeeds(ctx, m); err != nil {
		t.s.log.WarnContext(ctx, "a vm that was made lacks the requirements of the one that it is like", "move", m.Name, "error", err)
	}
	defer t.s.oracle.relearn()
	var f drover.Figures
	var werr error
	if b != nil && len(b.wire) > 0 {
		var after map[string]drover.Bytes
		if after, werr = t.readWire(ctx, m); werr == nil {
			f.WireBytes, werr = carried(b.wire, after)
		}
	}
	if m.Generation > 1 && len(t.joining(m)) > 0 {
		f.WireBytes = m.Measured.PathWireBytes
	}
	f.Cost = t.cost(m, f)
	detour := t.detour(ctx, m, b)
	t.stopProbes(ctx, m, t.probersOf(m, b), &f)
	detour(&f)
	return f, werr
}

// moved is the move's VM as it is seen now, nil when it is not.
func (t *truth) moved(ctx context.Context, m drover.Move) *drover.VM {
	moves, err := t.s.moving(ctx)
	if err != nil {
		return nil
	}
	for _, v := range t.s.fleet.viewVMs(moves) {
		if v.UUID == m.VMUUID {
			return &v
		}
	}
	return nil
}

// carried is what all links have carried in between. Counters that began
// anew make it unknown.
func carried(before, after map[string]drover.Bytes) (*int64, error) {
	var sum int64
	for name, was := range before {
		is, ok := after[name]
		if !ok || is < was {
			return nil, drover.Errorf(drover.Unknown, "count link "+name, "its counters began anew during the move")
		}
		sum += int64(is - was)
	}
	return &sum, nil
}

// readWire observes, now, the counters of the links that join the move's two
// sites, at the edges that report them.
func (t *truth) readWire(ctx context.Context, m drover.Move) (map[string]drover.Bytes, error) {
	links := t.joining(m)
	if len(links) == 0 {
		return nil, nil // inside a site, or by way of others: nothing to read
	}
	ctx, cancel := context.WithTimeout(ctx, countersLimit)
	defer cancel()
	wire := map[string]drover.Bytes{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, a := range t.edges(m) {
		wg.Go(func() {
			r, err := a.client.Describe(ctx, &droverv1.DescribeRequest{})
			if err != nil {
				t.s.log.WarnContext(ctx, "edge does not tell its links' counters", "edge", a.Name, "move", m.Name, "error", err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			for _, c := range r.GetLinks() {
				if slices.Contains(links, c.GetName()) {
					wire[c.GetName()] = max(wire[c.GetName()], drover.Bytes(c.GetAbBytes()+c.GetBaBytes()))
				}
			}
		})
	}
	wg.Wait()
	if len(wire) < len(links) {
		return nil, drover.Errorf(drover.Unavailable, "count links", "%d of %d links between %s and %s are counted by no edge that answers", len(links)-len(wire), len(links), m.From.Site, m.To.Site)
	}
	return wire, nil
}

// joining names the links between the move's two sites.
func (t *truth) joining(m drover.Move) []string {
	var names []string
	for _, l := range t.s.fleet.viewLinks() {
		if l.Joins(m.From.Site, m.To.Site) && m.From.Site != m.To.Site {
			names = append(names, l.Name)
		}
	}
	return names
}

// edges returns the agents at the move's two sites that count links.
func (t *truth) edges(m drover.Move) []*agent {
	f := t.s.fleet
	f.mu.Lock()
	defer f.mu.Unlock()
	var found []*agent
	for _, a := range f.sorted() {
		if (a.Site == m.From.Site || a.Site == m.To.Site) && (len(a.links) > 0 || a.host.Edge) {
			found = append(found, a)
		}
	}
	return found
}

// startProbes starts a probe at every agent that has one, for a VM that says
// where its clients reach it, and returns who runs one.
func (t *truth) startProbes(ctx context.Context, m drover.Move) ([]string, error) {
	target := t.target(ctx, m)
	if target == nil {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, probeStartLimit)
	defer cancel()
	var mu sync.Mutex
	var wg sync.WaitGroup
	var probing []string
	for _, a := range t.probers() {
		wg.Go(func() {
			_, err := a.client.ProbeStart(ctx, &droverv1.ProbeStartRequest{Move: m.Name, Target: api.ProbeTargetToProto(*target)})
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				probing = append(probing, a.Name)
				return
			}
			t.s.log.DebugContext(ctx, "agent runs no probe", "host", a.Name, "move", m.Name, "error", err)
		})
	}
	wg.Wait()
	slices.Sort(probing)
	if len(probing) == 0 {
		return nil, drover.Errorf(drover.Unavailable, "probe vm "+m.VM, "no agent could start a probe of %s%s: what clients see will not be measured", target.TCP, target.HTTP)
	}
	t.s.log.InfoContext(ctx, "probes run", "move", m.Name, "at", probing)
	return probing, nil
}

// probers returns the agents that are asked for a probe: those that answer.
// One that has none refuses.
func (t *truth) probers() []*agent {
	f := t.s.fleet
	f.mu.Lock()
	defer f.mu.Unlock()
	var found []*agent
	for _, a := range f.sorted() {
		if a.host.Up {
			found = append(found, a)
		}
	}
	return found
}

// probersOf returns the agents that may run a probe for the move: those that
// this server started one at, or all when an earlier server may have.
func (t *truth) probersOf(m drover.Move, b *before) []*agent {
	if b == nil || m.Generation > 1 {
		return t.probers()
	}
	var found []*agent
	for _, name := range b.probing {
		if a := t.s.fleet.agents[name]; a != nil {
			found = append(found, a)
		}
	}
	return found
}

// target is where the move's VM is probed, nil when it does not say.
func (t *truth) target(ctx context.Context, m drover.Move) *drover.ProbeTarget {
	if m.Method == drover.Redirect {
		// The VM itself is not what clients go on with: they know the service.
		if m.Clone == nil {
			return nil
		}
		return m.Clone.Probe
	}
	moves, err := t.s.moving(ctx)
	if err != nil {
		return nil
	}
	for _, v := range t.s.fleet.viewVMs(moves) {
		if v.UUID == m.VMUUID {
			return v.Probe
		}
	}
	return nil
}

// stopProbes ends the move's probes, once clients are answered again, and
// takes over what the client saw that had it worst.
func (t *truth) stopProbes(ctx context.Context, m drover.Move, at []*agent, f *drover.Figures) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	target := t.target(ctx, m)
	for _, a := range at {
		wg.Go(func() {
			var after float64
			if target != nil && m.State != drover.MoveStuck {
				after = t.recovered(ctx, a, m, target)
			}
			r, err := a.client.ProbeStop(ctx, &droverv1.ProbeStopRequest{Move: m.Name})
			if err != nil {
				t.s.log.DebugContext(ctx, "agent tells of no probe", "host", a.Name, "move", m.Name, "error", err)
				return
			}
			if fault := r.GetResult().GetFault(); fault != "" {
				// What it saw is still the most that a client can have seen.
				t.s.log.WarnContext(ctx, "a probe doubts its own figures", "host", a.Name, "move", m.Name, "fault", fault)
			}
			mu.Lock()
			defer mu.Unlock()
			if r.GetFound() {
				worst(f, r.GetResult())
				if before := r.GetResult().GetRttP50Ms(); m.State == drover.MoveDone && keepsRunning(m.Method) && before > 0 && after > 0 {
					f.ExtraRTT = larger(f.ExtraRTT, after-before)
				}
			}
		})
	}
	wg.Wait()
}

// recovered returns when the VM answers the agent's clients again, or when
// that has taken too long. A probe of its own tells: it starts only where new
// sessions are answered. An agent without a prober is not waited for. It returns
// the median round trip of then in milliseconds, zero where it is not known.
func (t *truth) recovered(ctx context.Context, a *agent, m drover.Move, target *drover.ProbeTarget) float64 {
	ctx, cancel := context.WithTimeout(ctx, recoverLimit)
	defer cancel()
	name := m.Name + ".after"
	for {
		_, err := a.client.ProbeStart(ctx, &droverv1.ProbeStartRequest{Move: name, Target: api.ProbeTargetToProto(*target)})
		if err == nil {
			break
		}
		if ctx.Err() != nil || !drover.KindOf(err).Retryable() {
			return 0
		}
		t.s.pause(ctx, recoverRetry)
	}
	settle := settleLeast
	if p := m.Measured.PauseMillis; p != nil && keepsRunning(m.Method) {
		settle = min(max(settle, time.Duration(2**p*float64(time.Millisecond))), settleMost)
	}
	t.s.pause(ctx, settle)
	r, err := a.client.ProbeStop(ctx, &droverv1.ProbeStopRequest{Move: name})
	if err != nil {
		t.s.log.WarnContext(ctx, "probe is left running", "host", a.Name, "probe", name, "error", err)
	}
	return r.GetResult().GetRttP50Ms()
}

// worst takes over each figure that is worse than the one there. Sessions add
// up, since each client has its own.
func worst(f *drover.Figures, r *droverv1.ProbeResult) {
	if r.GetBeatsSent() > 0 {
		f.OutageMillis = larger(f.OutageMillis, r.GetOutageMs())
		f.Sessions = plus(f.Sessions, r.GetSessions())
		f.SessionsLost = plus(f.SessionsLost, r.GetSessionsLost())
	}
	if r.GetHttpOk()+r.GetHttpFailed() > 0 {
		f.OutageHTTP = larger(f.OutageHTTP, r.GetOutageHttpMs())
		if r.GetBeatsSent() == 0 { // all that there is of clients
			f.OutageMillis = larger(f.OutageMillis, r.GetOutageHttpMs())
		}
	}
}

func larger(old *float64, v float64) *float64 {
	if old != nil {
		v = max(*old, v)
	}
	return &v
}

func plus(old *int64, v int64) *int64 {
	if old != nil {
		v += *old
	}
	return &v
}
