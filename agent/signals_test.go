package agent

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/driver/memory"
	"github.com/drover-vm/drover/wan"
)

// quickPace is everything all the time.
var quickPace = pace{
	Counters: 5 * time.Millisecond, Survey: 10 * time.Millisecond, Share: 1, Content: 20 * time.Millisecond,
	Way: 20 * time.Millisecond, Sessions: 5 * time.Millisecond,
	Asked:   []time.Duration{time.Millisecond, 2 * time.Millisecond, 4 * time.Millisecond},
	Windows: []time.Duration{2 * time.Millisecond, 4 * time.Millisecond, 8 * time.Millisecond},
}

// The memory of the VM that is watched: golden pages, pages of its own, and the
// rest absent. The guest writes its own ones, over and over.
const (
	goldenPages = 1000
	ownPages    = 1000
	allPages    = 4096
)

// watched is a world whose north1 has a guest that is looked at.
func watched(t *testing.T) (*world, *memory.Pages) { return watchedAt(t, quickPace) }

func watchedAt(t *testing.T, p pace) (*world, *memory.Pages) {
	w := newWorld(t)
	w.pace = p
	w.addVM()
	h := w.hosts["north1"]
	pages := memory.NewPages(allPages)
	golden := bytes.Repeat([]byte("golden image content "), diskLen/21+1)[:diskLen]
	for i := range int64(goldenPages) {
		pages.Write(i, golden[i*driver.PageBytes:][:driver.PageBytes])
	}
	noise := make([]byte, driver.PageBytes)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range int64(ownPages) {
		for j := 0; j < len(noise); j += 8 {
			binary.LittleEndian.PutUint64(noise[j:], r.Uint64())
		}
		pages.Write(goldenPages+i, noise)
	}
	h.signals, h.pings = memory.NewSignals(h.hyp, time.Millisecond), memory.NewPings()
	h.signals.SetMemory(vmName, pages)
	h.pings.Set(netip.MustParseAddrPort(w.hosts["south1"].address).Addr(), 3*time.Millisecond, 1)
	h.current().cancel()
	h.restart()
	south := w.hosts["south1"].current().agent
	must(t, south.knowImage(t.Context(), "", gold))
	stop := make(chan struct{})
	var writer sync.WaitGroup
	writer.Go(func() {
		for n := uint64(1); ; n++ {
			select {
			case <-stop:
				return
			case <-time.After(100 * time.Microsecond):
			}
			page := bytes.Clone(noise)
			binary.LittleEndian.PutUint64(page, n)
			pages.Write(int64(goldenPages+n%ownPages), page)
		}
	})
	t.Cleanup(func() { close(stop); writer.Wait() })
	return w, pages
}

// observe asks north1 until what it has seen is enough.
func (w *world) observe(what string, enough func(*droverv1.ObserveResponse) bool) *droverv1.ObserveResponse {
	w.t.Helper()
	req := &droverv1.ObserveRequest{Peers: []*droverv1.ObservedPeer{
		{Site: "south", Host: "south1", Address: w.hosts["south1"].address, Content: true, Way: true},
	}}
	for end := time.Now().Add(60 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		r, err := w.client("north1").Observe(w.t.Context(), req)
		must(w.t, err)
		if enough(r) {
			return r
		}
	}
	w.t.Fatalf("never seen: %s", what)
	return nil
}

// first is the VM's signals.
func first(r *droverv1.ObserveResponse) drover.Signals {
	if len(r.GetVms()) != 1 {
		return drover.Signals{}
	}
	return api.SignalsFromProto(r.GetVms()[0])
}

func TestSignals(t *testing.T) {
	w, pages := watched(t)
	r := w.observe("all of it", func(r *droverv1.ObserveResponse) bool {
		s := first(r)
		return s.KnownShare["south"].Or(0) > 0 && s.CPUShare.Known() && s.CompressedShare.Or(0) > 0.9 && s.Dirty.Samples >= 3 && len(r.GetWays()) == 1
	})
	s := first(r)
	if s.VM != vmName || s.UUID != vmUUID || s.Host != "north1" || s.Skipped != "" {
		t.Errorf("%s %s on %s, skipped %q", s.VM, s.UUID, s.Host, s.Skipped)
	}
	near := func(what string, got drover.Reading, want, bound float64) {
		t.Helper()
		if !got.Known() || math.Abs(got.Value-want) > bound {
			t.Errorf("%s is %+v, want %.2f", what, got, want)
		}
	}
	near("zero share", s.ZeroShare, 1-float64(goldenPages+ownPages)/allPages, 1e-9) // all pages are looked at
	near("known share", s.KnownShare["south"], 0.5, 0.1)
	// Golden pages are on this host, too, once they are catalogued: noise is left.
	near("compressed share", s.CompressedShare, 1, 0.01)
	if first, last := s.Dirty.Points[0].Bytes, s.Dirty.Points[2].Bytes; first <= 0 || last < first || last > ownPages*driver.PageBytes {
		t.Errorf("written %v", s.Dirty.Points)
	}
	if s.MemoryUsedBytes.Known() || s.Sessions.Known() || s.DiskWriteBytesPerSecond.Or(0) != 0 {
		t.Errorf("what nobody can know is known: %+v", s)
	}
	l := api.LinkSignalsFromProto(r.GetWays()[0])
	near("round trip", l.RTTMillis, 3, 1e-9)
	near("loss", l.LossShare, 1-math.Sqrt(0.9), 1e-9)
	if l.From != "north" || l.To != "south" || l.CapacityBPS.Known() || l.FreeBPS.Known() {
		t.Errorf("way %+v", l)
	}
	if n := len(pages.Present()); n != goldenPages+ownPages {
		t.Errorf("%d pages are present after being looked at, %d were before", n, goldenPages+ownPages)
	}
	h := api.HostSignalsFromProto(r.GetHost())
	near("free processors", h.CPUFreeShare, 0.5, 0.1)
}

// TestSignalsInUse begins a move, and wants the guest to be left alone from then on.
func TestSignalsInUse(t *testing.T) {
	w, pages := watched(t)
	w.observe("a survey", func(r *droverv1.ObserveResponse) bool { return first(r).ZeroShare.Known() })
	w.ask("north1", "reserve-source", 1, &droverv1.Reserve{})
	used := func(r *droverv1.ObserveResponse) bool {
		return strings.Contains(first(r).Skipped, "a move is using it")
	}
	w.observe("that a move uses it", used)
	g := w.hosts["north1"].current().agent.signals
	ended := func() int64 {
		g.mu.Lock()
		defer g.mu.Unlock()
		return g.figures.ended
	}
	reads, before := pages.Reads(), ended()
	s := first(w.observe("two more tries", func(*droverv1.ObserveResponse) bool { return ended() >= before+2 }))
	if n := pages.Reads(); n != reads {
		t.Errorf("%d pages were read of a guest that a move uses", n-reads)
	}
	if !s.ZeroShare.Known() {
		t.Error("what was known before is forgotten")
	}
	w.ask("north1", "release-source", 1, &droverv1.Release{})
	w.observe("that it is looked at again", func(r *droverv1.ObserveResponse) bool { return first(r).Skipped == "" })
}

// TestSignalsStop ends a survey in the middle when a move begins.
func TestSignalsStop(t *testing.T) {
	w, pages := watched(t)
	w.observe("a survey", func(r *droverv1.ObserveResponse) bool { return first(r).ZeroShare.Known() })
	var once sync.Once
	var after int64
	begun := make(chan struct{})
	pages.OnRead = func(int64) {
		select {
		case <-begun:
			after++
		default:
		}
		once.Do(func() {
			go func() {
				w.ask("north1", "reserve-source", 1, &droverv1.Reserve{})
				close(begun)
			}()
			<-begun
		})
	}
	w.observe("that a move uses it", func(r *droverv1.ObserveResponse) bool {
		return strings.Contains(first(r).Skipped, "a move is using it")
	})
	w.hosts["north1"].current().cancel()
	if <-w.hosts["north1"].current().ended; after > 4*allPages/2 {
		t.Errorf("%d pages were read after the move had begun", after)
	}
	w.hosts["north1"].current().client.Close()
	w.hosts["north1"].start()
}

func TestSignalsOff(t *testing.T) {
	w, _ := watched(t)
	w.observe("a survey", func(r *droverv1.ObserveResponse) bool { return first(r).ZeroShare.Known() })
	must(t, w.hosts["north1"].hyp.Destroy(t.Context(), vmName))
	s := first(w.observe("that it is off", func(r *droverv1.ObserveResponse) bool { return first(r).Skipped == "it is off" }))
	if !s.ZeroShare.Known() {
		t.Error("how it was when it ran is forgotten")
	}
	must(t, w.hosts["north1"].hyp.Undefine(t.Context(), vmName))
	w.observe("that it is gone", func(r *droverv1.ObserveResponse) bool { return len(r.GetVms()) == 0 })
}

func TestObserveRefuses(t *testing.T) {
	w := newWorld(t)
	for name, req := range map[string]*droverv1.ObserveRequest{
		"address": {Peers: []*droverv1.ObservedPeer{{Site: "south", Host: "south1", Address: "here"}}},
		"site":    {Peers: []*droverv1.ObservedPeer{{Site: "so uth", Host: "south1", Address: "192.0.2.1:7"}}},
		"subject": {Subjects: []*droverv1.ObservedSubject{{Uuid: "u", Addresses: []string{"somewhere"}}}},
		"many":    {Peers: make([]*droverv1.ObservedPeer, maxPeersTold+1)},
	} {
		if _, err := w.client("north1").Observe(t.Context(), req); drover.KindOf(err) != drover.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	peer := api.NewPeerClient(w.hosts["south1"].address, w.issue("agent", "north1"), "south1")
	defer peer.Close()
	for _, req := range []*droverv1.HeldRequest{{}, {VmUuid: "u", Fingerprints: make([]uint64, wan.MinHeld-1)}, {VmUuid: "u", Fingerprints: make([]uint64, wan.MaxHeld+1)}} {
		if _, err := peer.Held(t.Context(), req); drover.KindOf(err) != drover.Invalid && drover.KindOf(err) != drover.Refused {
			t.Errorf("%d fingerprints: %v", len(req.GetFingerprints()), err)
		}
	}
}

// TestTracked follows sessions that come and go by what conntrack says of them.
func TestTracked(t *testing.T) {
	at := time.Date(2026, 3, 2, 10, 0, 0, 0, time.UTC)
	w := &watchedSubject{}
	session := func(port int, age time.Duration) driver.AddressSession {
		return driver.AddressSession{
			Address: netip.MustParseAddrPort("10.0.0.1:80"), Peer: netip.MustParseAddrPort(fmt.Sprintf("10.0.0.2:%d", port)),
			Protocol: "tcp", State: "established", Live: true, Age: age,
		}
	}
	// Every second one begins that lives for 30 s; ten that were there before are of
	// unknown age.
	for second := range 300 {
		var open []driver.AddressSession
		for port := max(0, second-29); port <= second; port++ {
			open = append(open, session(1000+port, 0))
		}
		for old := range max(0, 10-second) {
			open = append(open, session(old, 0))
		}
		gone := session(9, time.Hour)
		gone.Live = false
		w.tracked(append(open, gone), at.Add(time.Duration(second)*time.Second))
	}
	if w.sessions.Value != 30 {
		t.Errorf("%v sessions, want 30", w.sessions)
	}
	if l := w.lifetimes; math.Abs(l.P50Seconds-30) > 1 || math.Abs(l.P99Seconds-30) > 1 || l.Samples < 200 {
		t.Errorf("they live %+v, want 30 s", l)
	}
	if n := len(w.open); n > maxLives {
		t.Errorf("%d sessions are followed", n)
	}
}

func TestBalanced(t *testing.T) {
	at := time.Date(2026, 3, 2, 10, 0, 0, 0, time.UTC)
	w := &watchedSubject{}
	for i := range 20 {
		// Two come each second, forty are open: each lives for 20 s.
		w.balanced(driver.Server{Sessions: 38, Queued: 2, Total: uint64(30 * i)}, at.Add(time.Duration(i)*15*time.Second))
	}
	if w.sessions.Value != 40 || math.Abs(w.lifetimes.P50Seconds-20*math.Ln2) > 0.1 {
		t.Errorf("%v sessions live %+v", w.sessions, w.lifetimes)
	}
	w = &watchedSubject{}
	for i := range 20 {
		w.balanced(driver.Server{Sessions: 3, Total: 3}, at.Add(time.Duration(i)*15*time.Second))
	}
	if w.lifetimes.Known() {
		t.Errorf("nobody comes, and %+v", w.lifetimes)
	}
}

func TestDistinctWrites(t *testing.T) {
	r := func(v float64) drover.Reading { return drover.Reading{Value: v, At: time.Unix(1, 0)} }
	for _, tt := range []struct {
		writes    drover.Reading
		allocated float64
		want      drover.Reading
	}{
		{drover.Reading{}, 1e9, drover.Reading{}},
		{r(0), 1e9, r(0)},
		{r(1e6), 6e6, r(1e5)},
		{r(1e6), 1e12, drover.Reading{}},
		{r(1e6), 0, drover.Reading{}},
	} {
		if got := distinctWrites(tt.writes, tt.allocated); got != tt.want {
			t.Errorf("%v of %v: %v, want %v", tt.writes, tt.allocated, got, tt.want)
		}
	}
}

// TestSignalsClock turns the clock back: nothing is late for ever, and no rate is
// made of it.
func TestSignalsClock(t *testing.T) {
	now := time.Date(2026, 3, 2, 10, 0, 0, 0, time.UTC)
	a := &Agent{clock: func() time.Time { return now }}
	g := newSignals(a, nil, nil)
	w := &watchedVM{vm: drover.VM{State: drover.VMRunning}, surveyed: now}
	g.vms["u"] = w
	if g.due() != "" {
		t.Error("due at once")
	}
	now = now.Add(-24 * time.Hour)
	if g.due() != "u" {
		t.Error("a guest that was looked at in the future is never looked at again")
	}
	key := peerKey{"192.0.2.1:7", "p"}
	w.prints = make([]uint64, wan.MinHeld)
	w.asked = map[peerKey]time.Time{key: now.Add(time.Hour)}
	g.peers = []peerTold{{peerKey: key, site: "s", content: true}}
	a.config = Config{}
	if len(g.questions()) != 1 {
		t.Error("a host that was asked in the future is never asked again")
	}
}

var errSilent = errors.New("silent")

// silent is a hypervisor whose signals fail.
type silent struct{ driver.Signals }

func (silent) Counters(context.Context) ([]driver.VMCounters, error) { return nil, errSilent }
func (silent) Memory(context.Context, string) (driver.GuestMemory, error) {
	return nil, drover.E(drover.Refused, "", errSilent)
}

func TestSignalsSilent(t *testing.T) {
	w := newWorld(t)
	a := w.hosts["north1"].current().agent
	g := newSignals(a, silent{}, nil)
	g.count(t.Context())
	g.vms["u"] = &watchedVM{vm: drover.VM{Name: "v", UUID: "u", State: drover.VMRunning}}
	g.surveyOne(t.Context(), "u")
	if s := g.vms["u"].s; !strings.Contains(s.Skipped, "silent") || s.ZeroShare.Known() || s.Dirty.Known() {
		t.Errorf("%+v", s)
	}
}

// TestSurveyNow: who asks for a look gets one of now, whatever the pace is and
// whatever was seen before; a guest that a move uses is left alone.
func TestSurveyNow(t *testing.T) {
	seldom := quickPace
	seldom.Survey = time.Hour
	w, pages := watchedAt(t, seldom)
	ask := func(uuid string) error {
		_, err := w.client("north1").Survey(t.Context(), &droverv1.SurveyRequest{VmUuid: uuid})
		return err
	}
	look := func() drover.Signals {
		t.Helper()
		must(t, ask(vmUUID))
		s := first(w.observe("anything", func(*droverv1.ObserveResponse) bool { return true }))
		if !s.ZeroShare.Known() || s.Dirty.Samples != 1 || len(s.Dirty.Points) != 3 || s.Dirty.Points[2].WindowSeconds != 0.004 {
			t.Fatalf("%+v", s)
		}
		return s
	}
	w.observe("the survey of the usual kind", func(r *droverv1.ObserveResponse) bool { return first(r).ZeroShare.Known() })
	before := look()
	noise := make([]byte, driver.PageBytes)
	for i := range int64(ownPages) {
		binary.LittleEndian.PutUint64(noise, uint64(i)+1)
		pages.Write(goldenPages+ownPages+i, noise)
	}
	if after := look(); before.ZeroShare.Value-after.ZeroShare.Value < 0.2 {
		t.Errorf("zeros before %v, after a quarter was written %v", before.ZeroShare.Value, after.ZeroShare.Value)
	}
	if err := ask("nobody"); drover.KindOf(err) != drover.NotFound {
		t.Errorf("a VM that is not there: %v", err)
	}
	if err := ask("no/name"); drover.KindOf(err) != drover.Invalid {
		t.Errorf("no name: %v", err)
	}
	w.ask("north1", "reserve-source", 1, &droverv1.Reserve{})
	reads := pages.Reads()
	if err := ask(vmUUID); drover.KindOf(err) != drover.Refused || !strings.Contains(err.Error(), "a move is using it") {
		t.Errorf("a VM that a move uses: %v", err)
	}
	if n := pages.Reads(); n != reads {
		t.Errorf("%d pages were read of a guest that a move uses", n-reads)
	}
	w.ask("north1", "release-source", 1, &droverv1.Release{})
}
