package agent

import (
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"slices"
	"syscall"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/forecast/sample"
	"github.com/drover-vm/drover/wan"
)

// What one survey may cost. All of it is bounded in pages and in time, whatever the
// size of the guest.
const (
	// surveyPages are looked at four times: 32 MiB each. Of a guest that writes one page
	// of a hundred within a window, that share is seen within 11 % in two cases of
	// three, and six surveys make it 4.5 %.
	surveyPages = 8192
	// surveyBusy bounds the time spent reading: some four times what it takes on an
	// idle machine.
	surveyBusy = 250 * time.Millisecond
	// surveyChunk pages are read at a stretch, in less than a millisecond, and
	// surveyRest is slept then.
	surveyChunk = 256
	surveyRest  = time.Millisecond
	// packRuns stretches of packPages pages are compressed, some 20 ms in all: what
	// follows each other in memory is alike, and a compressor sees it together. Of
	// that likeness the share is off by more than as many single pages would be: it
	// is the number of stretches that counts.
	packRuns  = 64
	packPages = 16
	// packLeast is how many pages have to be left for a share to be told.
	packLeast = 32
	// surveyIdle is the wait where no guest is due.
	surveyIdle = 2 * time.Second
	// useEvery is how often the journal is asked, during a survey, whether a move
	// uses the guest now.
	useEvery = 20 * time.Millisecond
	// contentAtOnce bounds the questions to other hosts in one go.
	contentAtOnce = 8
	// heldLimit bounds one question to another host, or from one.
	heldLimit = 5 * time.Second
)

// SurveyNice is the priority of the thread that looks at guests' memory, the
// lowest there is: their own threads go before it, always.
const SurveyNice = 19

// errInUse ends a survey whose guest a move has begun to use.
var errInUse = errors.New("a move is using it")

// survey looks at one guest's memory after another until ctx ends.
func (s *signals) survey(ctx context.Context) {
	// The thread is not given back: it ends with this goroutine, and its priority
	// with it.
	runtime.LockOSThread()
	if err := syscall.Setpriority(syscall.PRIO_PROCESS, 0, SurveyNice); err != nil {
		s.a.log.Debug("guests are looked at with the usual priority", "err", err)
	}
	for {
		wait := min(surveyIdle, s.pace.Survey)
		if w := s.due(); w != "" {
			if busy := s.surveyOne(ctx, w); busy > 0 {
				wait = max(wait, time.Duration(float64(busy)/s.pace.Share))
			}
		}
		wait = min(wait, s.pace.Survey)
		if sleep(ctx, jittered(wait), nil) != nil {
			return
		}
	}
}

// due returns the VM that was not looked at for longest, if it is time.
func (s *signals) due() (uuid string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.a.clock()
	var oldest time.Time
	for id, w := range s.vms {
		since := now.Sub(w.surveyed)
		if w.vm.State != drover.VMRunning || !w.surveyed.IsZero() && since >= 0 && since < s.pace.Survey {
			continue
		}
		if uuid == "" || w.surveyed.Before(oldest) {
			uuid, oldest = id, w.surveyed
		}
	}
	return uuid
}

// surveyOne looks at one guest, and returns how long that kept a processor busy.
func (s *signals) surveyOne(ctx context.Context, uuid string) time.Duration {
	s.mu.Lock()
	w := s.vms[uuid]
	if w == nil {
		s.mu.Unlock()
		return 0
	}
	began := s.a.clock()
	w.surveyed = began
	vm := w.vm
	s.mu.Unlock()

	f, err := s.look(ctx, vm, s.pace.Windows)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.figures.surveys++
	s.figures.busy += f.Busy
	if w = s.vms[uuid]; w == nil || ctx.Err() != nil || !began.After(w.urgent) && !w.urgent.IsZero() {
		return f.Busy
	}
	if err != nil {
		s.figures.ended++
		w.s.Skipped = err.Error()
		if drover.KindOf(err) == drover.Refused || errors.Is(err, errInUse) {
			s.a.log.Debug("a guest is not looked at", "vm", vm.Name, "why", err)
		} else {
			s.a.log.Warn("a guest could not be looked at", "vm", vm.Name, "err", err)
		}
		return f.Busy
	}
	w.take(f, s.a.clock())
	return f.Busy
}

// found is what a survey has found.
type found struct {
	sample.Survey
	packed packed
}

// take takes a survey over.
func (w *watchedVM) take(f found, now time.Time) {
	w.s.Skipped = ""
	w.s.ZeroShare = f.ZeroShare()
	for to, r := range map[*drover.Reading]drover.Reading{
		&w.s.KnownHereShare: f.packed.here, &w.s.KnownHereCompressedShare: f.packed.known, &w.s.CompressedShare: f.packed.own,
	} {
		if r.Known() {
			*to = r
		}
	}
	w.prints = f.Hashes[:min(len(f.Hashes), wan.MaxHeld)]
	if c := f.Curve(); c.Known() {
		// A mean is of curves over the same windows.
		w.curves = append(slices.DeleteFunc(w.curves, func(o drover.DirtyCurve) bool { return !sameWindows(o, c) }), c)
		w.curves = w.curves[max(0, len(w.curves)-curvesKept):]
	}
	w.s.Dirty = sample.Concave(sample.MeanCurve(w.curves, now, curveAge))
	if split, ok := sample.Split(w.s.Dirty); ok {
		known := func(v float64) drover.Reading {
			return drover.Reading{Value: v, At: w.s.Dirty.At, Samples: w.s.Dirty.Samples}
		}
		w.s.HotBytes, w.s.HotSeconds, w.s.ColdBytesPerSecond = known(split.HotBytes), known(split.HotSeconds), known(split.ColdBytesPerSecond)
	}
	w.s.At = now
}

func sameWindows(a, b drover.DirtyCurve) bool {
	return slices.EqualFunc(a.Points, b.Points, func(x, y drover.DirtyPoint) bool { return x.WindowSeconds == y.WindowSeconds })
}

// look surveys a guest's memory. A move that begins ends it within useEvery.
func (s *signals) look(ctx context.Context, vm drover.VM, windows []time.Duration) (f found, err error) {
	if vm.State != drover.VMRunning {
		return f, drover.Errorf(drover.Refused, "", "it is %s", vm.State)
	}
	stop := s.stopper(vm.UUID)
	if err := stop(); err != nil {
		return f, err
	}
	m, err := s.d.Memory(ctx, vm.Name)
	if err != nil {
		return f, err
	}
	defer m.Close()
	f.Survey, err = sample.Look(ctx, pages{m}, sample.Options{
		Windows: windows, Pages: surveyPages, Busy: surveyBusy, Chunk: surveyChunk, Rest: surveyRest,
		Rand: rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())),
		Hash: wan.Fingerprint, Now: time.Now, Stop: stop,
		Sleep: func(ctx context.Context, d time.Duration) error { return sleep(ctx, max(0, d), nil) },
	})
	if err != nil {
		return f, err
	}
	f.At = s.a.clock()
	began := time.Now()
	f.packed, err = s.pack(ctx, vm, m, stop)
	f.Busy += time.Since(began)
	return f, err
}

// stopper returns what says, asked often, whether a move has begun to use a guest.
func (s *signals) stopper(uuid string) func() error {
	var last time.Time
	return func() error {
		if !last.IsZero() && time.Since(last) < useEvery {
			return nil
		}
		last = time.Now()
		why, err := s.inUse(uuid)
		if err == nil && why != "" {
			err = drover.E(drover.Refused, "", errInUse)
		}
		return err
	}
}

// pages are a guest's, for package sample.
type pages struct{ driver.GuestMemory }

func (p pages) State(page int64) (sample.State, error) {
	state, err := p.GuestMemory.State(page)
	switch state {
	case driver.PagePresent:
		return sample.Present, err
	case driver.PageAway:
		return sample.Away, err
	}
	return sample.Absent, err
}

// pack tells what a compressor leaves of pages that are not zero: of those that this
// host's own library has, which may be known elsewhere, and of the others.
func (s *signals) pack(ctx context.Context, vm drover.VM, m driver.GuestMemory, stop func() error) (packed, error) {
	r := rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
	var blocks [][]byte
	var prints []uint64
	for _, run := range sample.Runs(r, m.Pages(), packRuns, packPages) {
		if err := stop(); err != nil {
			return packed{}, err
		}
		for _, page := range run {
			state, err := m.State(page)
			if err != nil {
				return packed{}, err
			}
			if state != driver.PagePresent {
				continue
			}
			p := make([]byte, driver.PageBytes)
			if err := m.Read(page, p); err != nil {
				return packed{}, err
			}
			if print := wan.Fingerprint(p); print != 0 {
				blocks, prints = append(blocks, p), append(prints, print)
			}
		}
	}
	var here, own [][]byte
	known, err := s.a.wan.Known(ctx, s.subject(vm), prints)
	for i, b := range blocks {
		if err == nil && known[i] {
			here = append(here, b)
		} else {
			own = append(own, b)
		}
	}
	now := s.a.clock()
	var p packed
	if err == nil && len(blocks) > 0 {
		p.here = drover.Reading{Value: float64(len(here)) / float64(len(blocks)), At: now, Samples: int64(len(blocks))}
	}
	if p.own, err = packedShare(own, now); err != nil {
		return packed{}, err
	}
	p.known, err = packedShare(here, now)
	return p, err
}

// packed is which part of a sample of pages this host knows, and what a compressor
// leaves of them and of the others.
type packed struct{ here, known, own drover.Reading }

func packedShare(blocks [][]byte, now time.Time) (drover.Reading, error) {
	if len(blocks) < packLeast {
		return drover.Reading{}, nil
	}
	size, err := wan.Packed(blocks)
	if err != nil {
		return drover.Reading{}, err
	}
	n := len(blocks)
	return drover.Reading{Value: float64(size) / float64(n*driver.PageBytes), At: now, Samples: int64(n)}, nil
}

func (s *signals) subject(vm drover.VM) wan.Subject {
	return wan.Subject{VM: vm.UUID, Tenant: vm.Labels[s.a.config.tenantLabel()]}
}

// question is what another host is asked.
type question struct {
	peer    peerTold
	uuid    string
	subject wan.Subject
	prints  []uint64
}

// askContent asks other hosts what they have of the guests here, a few at a time,
// those first that were not asked for longest.
func (s *signals) askContent(ctx context.Context) {
	for _, q := range s.questions() {
		if why, err := s.inUse(q.uuid); err != nil || why != "" {
			continue
		}
		held, err := s.ask(ctx, q)
		if err != nil {
			s.a.log.Debug("a host does not tell what it has", "host", q.peer.host, "vm", q.uuid, "err", err)
			continue
		}
		s.mu.Lock()
		if w := s.vms[q.uuid]; w != nil {
			w.hold(q.peer.site, drover.Reading{
				Value: float64(held) / float64(len(q.prints)), At: s.a.clock(), Samples: int64(len(q.prints)),
			})
		}
		s.mu.Unlock()
	}
}

// hold takes over what one host of a site has. Of several hosts that were asked at
// about the same time the site is as good as the best: a move can be given to it.
func (w *watchedVM) hold(site string, r drover.Reading) {
	if old := w.s.KnownShare[site]; old.Known() && old.Value > r.Value && r.At.Sub(old.At) < usualPace.Content/2 {
		return
	}
	known := map[string]drover.Reading{site: r}
	for k, v := range w.s.KnownShare { // it may be being sent: never change it
		if k != site {
			known[k] = v
		}
	}
	w.s.KnownShare = known
}

// questions are those that are due.
func (s *signals) questions() (due []question) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.a.clock()
	for uuid, w := range s.vms {
		if len(w.prints) < wan.MinHeld || w.vm.State != drover.VMRunning {
			continue
		}
		for _, p := range s.peers {
			since := now.Sub(w.asked[p.peerKey])
			if !p.content || since >= 0 && since < s.pace.Content {
				continue
			}
			if len(due) == contentAtOnce {
				return due
			}
			w.asked[p.peerKey] = now
			due = append(due, question{peer: p, uuid: uuid, subject: s.subject(w.vm), prints: w.prints})
		}
	}
	return due
}

func (s *signals) ask(ctx context.Context, q question) (int32, error) {
	ctx, cancel := context.WithTimeout(ctx, heldLimit)
	defer cancel()
	resp, err := s.a.peers.at(q.peer.address, q.peer.host).Held(ctx, &droverv1.HeldRequest{
		VmUuid: q.subject.VM, Tenant: q.subject.Tenant, Fingerprints: q.prints,
	})
	if err != nil {
		return 0, peerError(ctx, err)
	}
	if n := resp.GetHeld(); n < 0 || int(n) > len(q.prints) {
		return 0, drover.Errorf(drover.Corrupt, "ask what host "+q.peer.host+" has", "%d of %d pages", n, len(q.prints))
	}
	return resp.GetHeld(), nil
}

// Held answers what a move of the VM could refer to here: a number, of what its
// tenant may know. One question at a time is worked on.
func (a peerService) Held(ctx context.Context, req *droverv1.HeldRequest) (*droverv1.HeldResponse, error) {
	if err := drover.CheckName("vm_uuid", req.GetVmUuid()); err != nil {
		return nil, err
	}
	if err := a.needHypervisor(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, heldLimit)
	defer cancel()
	select {
	case a.signals.asked <- struct{}{}:
		defer func() { <-a.signals.asked }()
	case <-ctx.Done():
		return nil, drover.Errorf(drover.Unavailable, "look for content", "others are being answered")
	}
	known, err := a.wan.Known(ctx, wan.Subject{VM: req.GetVmUuid(), Tenant: req.GetTenant()}, req.GetFingerprints())
	if err != nil {
		return nil, err
	}
	resp := &droverv1.HeldResponse{}
	for _, k := range known {
		if k {
			resp.Held++
		}
	}
	a.signals.mu.Lock()
	a.signals.figures.asked++
	a.signals.mu.Unlock()
	return resp, nil
}
