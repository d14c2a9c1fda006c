package agent

import (
	"cmp"
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/forecast/sample"
)

// pace is how often things are looked at. What costs nothing is looked at often
// enough for a move's forecast to be of now; what costs a guest something, seldom
// enough that it stays below a hundredth of a processor.
type pace struct {
	// Counters are read this often, one call to the hypervisor for all VMs.
	Counters time.Duration
	// Survey is how often one guest's memory is looked at, at most.
	Survey time.Duration
	// Windows are the times over which its changes are counted.
	Windows []time.Duration
	// Asked are the Windows of a survey that somebody waits for.
	Asked []time.Duration
	// Share is which part of one processor all surveys of a host may take: after
	// one that took t, none begins for t/Share.
	Share float64
	// Content is how often another host is asked what it has of a guest.
	Content time.Duration
	// Way is how often the way to another site is measured.
	Way time.Duration
	// Sessions is how often an edge looks at a VM's sessions.
	Sessions time.Duration
}

// UsualSurvey is how often a guest's memory is looked at where no file says
// otherwise.
const UsualSurvey = 2 * time.Minute

var usualPace = pace{
	Counters: 15 * time.Second,
	Survey:   UsualSurvey,
	Windows:  sample.Windows,
	Asked:    []time.Duration{100 * time.Millisecond, time.Second, 3 * time.Second},
	Share:    0.01,
	Content:  10 * time.Minute,
	Way:      30 * time.Second,
	Sessions: 15 * time.Second,
}

const (
	// rateSpan is over how long rates are means: a burst of a few seconds is no
	// reason for another plan. rateMost is how far apart readings may be: after a
	// longer silence of the hypervisor a mean says little about now.
	rateSpan = time.Minute
	rateMost = 5 * time.Minute
	// curvesKept is how many of a guest's last surveys make its dirty curve, and
	// curveAge how old they may be: ten minutes of the usual pace.
	curvesKept = 6
	curveAge   = 15 * time.Minute
	// jitter spreads what is done periodically, so that hosts that were started
	// together do not stay in step.
	jitter = 0.1
	// maxPeersTold and maxSubjectsTold bound what one server may ask to be watched.
	maxPeersTold    = 4096
	maxSubjectsTold = 65536
)

// signals watch the VMs here, the ways to other hosts and, on an edge, sessions.
type signals struct {
	a     *Agent
	d     driver.Signals // nil on an edge
	pings driver.Pings   // nil: round trips are those of the agents' own calls
	pace  pace

	mu sync.Mutex
	// what follows is guarded by mu
	vms      map[string]*watchedVM // by UUID
	idle     sample.Rate
	busy     sample.Rate
	peers    []peerTold
	ways     map[peerKey]*watchedWay
	subjects map[string]*watchedSubject // by UUID
	figures  signalFigures

	// asked has one token: who has it answers another agent's question; so has
	// urgent: who has it looks at a guest for somebody who waits.
	asked, urgent chan struct{}
}

// signalFigures are for the metrics.
type signalFigures struct {
	surveys, ended, asked int64
	busy                  time.Duration
}

// watchedVM is what has been seen of one VM.
type watchedVM struct {
	vm       drover.VM
	s        drover.Signals
	cpu      sample.Rate
	rx, tx   sample.Rate
	reads    sample.Rate
	writes   sample.Rate
	curves   []drover.DirtyCurve
	prints   []uint64 // of pages that are not zero
	surveyed time.Time
	// urgent is when somebody asked for a look that was made at once: surveys that
	// began before it are of another time.
	urgent time.Time
	// asked is when each peer was asked last what it has.
	asked map[peerKey]time.Time
}

// peerTold is an agent at another site, as the server says.
type peerTold struct {
	peerKey
	site         string
	content, way bool
}

func newSignals(a *Agent, d driver.Signals, p driver.Pings) *signals {
	s := &signals{
		a: a, d: d, pings: p, pace: a.config.Signals.pace(),
		vms: map[string]*watchedVM{}, ways: map[peerKey]*watchedWay{}, subjects: map[string]*watchedSubject{},
		asked: make(chan struct{}, 1), urgent: make(chan struct{}, 1),
		idle: newRate(), busy: newRate(),
	}
	return s
}

func newRate() sample.Rate { return sample.Rate{Span: rateSpan, Most: rateMost} }

// run watches until ctx ends.
func (s *signals) run(ctx context.Context) {
	group, ctx := errgroup.WithContext(ctx)
	loop := func(every time.Duration, f func(context.Context)) {
		group.Go(func() error {
			for {
				f(ctx)
				if sleep(ctx, jittered(every), nil) != nil {
					return nil
				}
			}
		})
	}
	if s.d != nil {
		loop(s.pace.Counters, func(ctx context.Context) {
			s.count(ctx)
			s.askContent(ctx)
		})
		if !s.a.config.Signals.Off {
			group.Go(func() error { s.survey(ctx); return nil })
		}
	}
	loop(s.pace.Way/4, s.measureWays)
	if s.a.siteedge != nil {
		loop(s.pace.Sessions, s.countSubjects)
	}
	_ = group.Wait()
}

func jittered(d time.Duration) time.Duration {
	return d + time.Duration((rand.Float64()*2-1)*jitter*float64(d))
}

// count reads all counters.
func (s *signals) count(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, observeLimit)
	defer cancel()
	counters, err := s.d.Counters(ctx)
	if err != nil {
		s.a.log.Debug("no counters of the vms", "err", err)
		return
	}
	vms, err := s.a.hyp.List(ctx)
	if err != nil {
		s.a.log.Debug("vms are not known", "err", err)
		return
	}
	now := s.a.clock()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.present(vms)
	for _, c := range counters {
		if w := s.vms[c.UUID]; w != nil {
			w.count(c, now)
		}
	}
	if idle, all, err := s.d.Processors(ctx); err == nil {
		s.idle.Add(now, idle.Seconds())
		s.busy.Add(now, all.Seconds())
	}
}

// present takes over which VMs there are. What was seen of one that is off stays
// until it is gone: it says how it was when it ran. mu is held.
func (s *signals) present(vms []drover.VM) {
	here := map[string]bool{}
	for _, vm := range vms {
		here[vm.UUID] = true
		w := s.vms[vm.UUID]
		if w == nil {
			w = &watchedVM{cpu: newRate(), rx: newRate(), tx: newRate(), reads: newRate(), writes: newRate(), asked: map[peerKey]time.Time{}}
			s.vms[vm.UUID] = w
		}
		w.vm = vm
		w.s.VM, w.s.UUID, w.s.Host = vm.Name, vm.UUID, s.a.config.Name
		switch {
		case vm.State != drover.VMRunning:
			w.s.Skipped = "it is " + string(vm.State)
		case s.a.config.Signals.Off:
			w.s.Skipped = "the agent's file says that guests' memory is left alone"
		}
	}
	for uuid := range s.vms {
		if !here[uuid] {
			delete(s.vms, uuid)
		}
	}
}

// count takes over one VM's counters.
func (w *watchedVM) count(c driver.VMCounters, now time.Time) {
	known := func(v float64) drover.Reading { return drover.Reading{Value: v, At: now, Samples: 1} }
	if c.MemoryBytes > 0 {
		w.s.MemoryBytes = known(float64(c.MemoryBytes))
	}
	w.s.MemoryUsedBytes = drover.Reading{}
	if c.UsedBytes != nil {
		w.s.MemoryUsedBytes = known(float64(*c.UsedBytes))
	}
	w.cpu.Add(now, c.CPUTime.Seconds())
	w.rx.Add(now, float64(c.ReceivedBytes))
	w.tx.Add(now, float64(c.SentBytes))
	var reads, writes, allocated float64
	for _, d := range c.Disks {
		i := slices.IndexFunc(w.vm.Disks, func(v drover.Disk) bool { return v.Target == d.Target })
		if i < 0 || w.vm.Disks[i].ReadOnly {
			continue
		}
		reads, writes = reads+float64(d.ReadBytes), writes+float64(d.WrittenBytes)
		if !w.vm.Disks[i].Shared {
			allocated += float64(d.AllocatedBytes)
		}
	}
	w.reads.Add(now, reads)
	w.writes.Add(now, writes)
	w.s.DiskAllocatedBytes = known(allocated)
	w.s.CPUShare = sample.Times(w.cpu.PerSecond(), 1/float64(max(1, c.VCPUs)))
	w.s.NetworkRxBPS, w.s.NetworkTxBPS = sample.Times(w.rx.PerSecond(), 8), sample.Times(w.tx.PerSecond(), 8)
	w.s.DiskReadBytesPerSecond, w.s.DiskWriteBytesPerSecond = w.reads.PerSecond(), w.writes.PerSecond()
	w.s.DiskDistinctBytesPerSecond = distinctWrites(w.s.DiskWriteBytesPerSecond, allocated)
	w.s.At = now
}

// distinctSpan is the time within which a block that is written again counts
// once; see drover.Signals.
const distinctSpan = 60

// distinctWrites is what of a disk's writes is not written again within a minute,
// as far as counters can tell: nothing of nothing, and no more than there is of
// the disk. Otherwise it is not known.
func distinctWrites(writes drover.Reading, allocated float64) drover.Reading {
	switch {
	case !writes.Known() || writes.Value == 0:
		return writes
	case allocated > 0 && writes.Value*distinctSpan > allocated:
		writes.Value = allocated / distinctSpan
		return writes
	}
	return drover.Reading{}
}

// inUse says why a guest must be left alone: a move is using it.
func (s *signals) inUse(uuid string) (why string, err error) {
	all, err := s.a.journal.moves()
	if err != nil {
		return "", err
	}
	for _, r := range all {
		if r.VMUUID == uuid {
			return "move " + r.Move + " is using it", nil
		}
	}
	return "", nil
}

// Observe tells what has been seen, and takes over what is to be watched.
func (a agentService) Observe(_ context.Context, req *droverv1.ObserveRequest) (*droverv1.ObserveResponse, error) {
	if n := len(req.GetPeers()); n > maxPeersTold {
		return nil, drover.Errorf(drover.Invalid, "peers", "%d: want at most %d", n, maxPeersTold)
	}
	if n := len(req.GetSubjects()); n > maxSubjectsTold {
		return nil, drover.Errorf(drover.Invalid, "subjects", "%d: want at most %d", n, maxSubjectsTold)
	}
	var peers []peerTold
	for _, p := range req.GetPeers() {
		if err := checkPeer(p.GetAddress(), p.GetHost()); err != nil {
			return nil, err
		}
		if err := drover.CheckName("site", p.GetSite()); err != nil {
			return nil, err
		}
		peers = append(peers, peerTold{peerKey{p.GetAddress(), p.GetHost()}, p.GetSite(), p.GetContent(), p.GetWay()})
	}
	s := a.signals
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.tell(peers, req.GetSubjects()); err != nil {
		return nil, err
	}
	resp := &droverv1.ObserveResponse{Host: api.HostSignalsToProto(s.host())}
	for _, w := range s.vms {
		resp.Vms = append(resp.Vms, api.SignalsToProto(w.s))
	}
	slices.SortFunc(resp.Vms, func(x, y *droverv1.Signals) int { return cmp.Compare(x.GetVm(), y.GetVm()) })
	for _, p := range s.peers {
		if w := s.ways[p.peerKey]; w != nil && p.way {
			resp.Ways = append(resp.Ways, api.LinkSignalsToProto(w.signals(a.config.Site, p.site)))
		}
	}
	for uuid, w := range s.subjects {
		resp.Sessions = append(resp.Sessions, &droverv1.ObservedSessions{
			Uuid: uuid, Sessions: api.ReadingToProto(w.sessions), Lifetimes: api.LifetimesToProto(w.lifetimes),
		})
	}
	return resp, nil
}

// tell takes over what is to be watched; what is not any more is forgotten. mu is
// held.
func (s *signals) tell(peers []peerTold, subjects []*droverv1.ObservedSubject) error {
	named := map[string]*watchedSubject{}
	for _, p := range subjects {
		list, err := api.ParseAddresses("addresses", p.GetAddresses())
		if err != nil {
			return err
		}
		w := s.subjects[p.GetUuid()]
		if w == nil || !slices.Equal(w.addresses, list) {
			w = &watchedSubject{addresses: list}
		}
		named[p.GetUuid()] = w
	}
	s.peers, s.subjects = peers, named
	keep := map[peerKey]bool{}
	for _, p := range peers {
		keep[p.peerKey] = true
		if p.way && s.ways[p.peerKey] == nil {
			s.ways[p.peerKey] = &watchedWay{}
		}
	}
	for k := range s.ways {
		if !keep[k] {
			delete(s.ways, k)
		}
	}
	return nil
}

// host is what is known of this machine. mu is held.
func (s *signals) host() drover.HostSignals {
	h := drover.HostSignals{Host: s.a.config.Name}
	idle, all := s.idle.PerSecond(), s.busy.PerSecond()
	if idle.Known() && all.Known() && all.Value > 0 {
		h.CPUFreeShare = drover.Reading{Value: min(1, max(0, idle.Value/all.Value)), At: idle.At, Samples: idle.Samples}
		h.At = idle.At
	}
	return h
}
