package server_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/pki"
	"github.com/drover-vm/drover/server/servertest"
	"github.com/drover-vm/drover/store"
)

func TestPreflight(t *testing.T) {
	in := newInstallation(t)
	in.allUp()
	in.Agents["n1"].Set(func(s *servertest.State) {
		off := servertest.VM("off1")
		off.State = drover.VMOff
		alone := servertest.VM("alone1")
		alone.NICs[0].Network = "only-here"
		s.VMs["off1"], s.VMs["alone1"] = off, alone
		s.Host.Networks = append(s.Host.Networks, "only-here")
		s.SourceChecks = []drover.Check{{Name: "reach", OK: true, Detail: "s reaches n"}}
	})
	in.Agents["s1"].Set(func(s *servertest.State) {
		s.TargetChecks = []drover.Check{{Name: "memory", OK: true}, {Name: "cpu", Warning: true, Detail: "slower"}}
	})
	in.Agents["s2"].Set(func(s *servertest.State) {
		s.TargetChecks = []drover.Check{{Name: "memory", Detail: "too little", Fix: "take s1"}}
	})
	in.until("the VMs", func() bool { return len(in.vms()) == 3 })

	for _, tt := range []struct {
		name, vm, method string
		to               *droverv1.Place
		wantOK           bool
		wantTo           string
		wantMethod       drover.Method
		wantBad          []string
	}{
		{"site alone takes the host with the most memory", "web1", "", to("south", ""), true, "south/s1", drover.Live, nil},
		{"host named", "web1", "cold", to("south", "s1"), true, "south/s1", drover.Cold, nil},
		{"off goes cold", "off1", "", to("south", ""), true, "south/s1", drover.Cold, nil},
		{"segment missing goes cold", "alone1", "", to("south", ""), true, "south/s1", drover.Cold, nil},
		{"off does not go live", "off1", "live", to("south", ""), false, "south", drover.Live, []string{"method"}},
		{"target's finding", "web1", "", to("south", "s2"), false, "south/s2", drover.Live, []string{"memory"}},
		{"unknown site", "web1", "", to("east", ""), false, "east", "", []string{"target"}},
		{"unknown host", "web1", "", to("south", "s9"), false, "south/s9", "", []string{"target"}},
		{"host of another site", "web1", "", to("south", "n1"), false, "south/n1", "", []string{"target"}},
		{"where it is", "web1", "", to("north", "n1"), false, "north/n1", "", []string{"target"}},
		{"no other host there", "web1", "", to("north", ""), false, "north", "", []string{"target"}},
		{"an edge", "web1", "", to("south", "se"), false, "south/se", "", []string{"target"}},
		{"a segment that no edge knows", "web1", "stretch", to("south", ""), false, "south", drover.Stretch, []string{"segments"}},
		{"two at once", "off1", "live", to("east", ""), false, "east", drover.Live, []string{"target", "method"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, err := in.client.Preflight(t.Context(), &droverv1.PreflightRequest{Vm: tt.vm, To: tt.to, Method: tt.method})
			if err != nil {
				t.Fatal(err)
			}
			p := api.PreflightFromProto(r.GetPreflight())
			var bad []string
			for _, c := range p.Checks {
				if !c.OK && !c.Warning {
					bad = append(bad, c.Name)
					if c.Detail == "" || c.Fix == "" {
						t.Errorf("check %s: detail %q, fix %q: want both", c.Name, c.Detail, c.Fix)
					}
				}
			}
			wantTo := tt.wantTo
			if !tt.wantOK && tt.to.GetHost() == "" {
				wantTo = strings.TrimSuffix(p.To.String(), "/")
			}
			if p.OK != tt.wantOK || p.Method != tt.wantMethod || p.To.String() != wantTo || !slices.Equal(bad, tt.wantBad) {
				t.Errorf("got OK %v, method %q, to %s, failed %v; want %v, %q, %s, %v\n%+v",
					p.OK, p.Method, p.To, bad, tt.wantOK, tt.wantMethod, tt.wantTo, tt.wantBad, p.Checks)
			}
			if last := len(p.Checks) - 1; p.OK && tt.method == "cold" {
				if c := p.Checks[last]; c.Name != "advice" || !c.Warning || !strings.Contains(c.Detail, "live is advised; of cold: open sessions would be lost") {
					t.Errorf("the adviser says %+v of what is not advised", c)
				}
				p.Checks = p.Checks[:last]
			}
			if p.OK && (p.Checks[len(p.Checks)-3].Name != "reach" || p.Checks[len(p.Checks)-1].Name != "cpu") {
				t.Errorf("order: %+v, want the server's own, the source's, the target's", p.Checks)
			}
			// The same request as a move changes nothing when it does not hold.
			if tt.wantOK {
				return
			}
			m, err := in.client.StartMove(t.Context(), &droverv1.StartMoveRequest{Vm: tt.vm, To: tt.to, Method: tt.method})
			if err != nil || m.GetMove() != nil || m.GetPreflight().GetOk() {
				t.Errorf("start: %v, %v; want the report alone", m, err)
			}
		})
	}
	if kept, _, err := in.store.List(t.Context(), store.Filter{}); err != nil || len(kept) != 0 {
		t.Errorf("journal: %v, %v; want no move", kept, err)
	}
	for name, a := range in.Agents {
		if ran := a.Ran(); len(ran) != 0 {
			t.Errorf("%s ran %v, want nothing", name, ran)
		}
	}
	if _, err := in.client.Preflight(t.Context(), &droverv1.PreflightRequest{Vm: "nosuch", To: to("south", "")}); drover.KindOf(err) != drover.NotFound {
		t.Errorf("unknown vm: %v, want not found", err)
	}
}

func TestPreflightWithAgentsDown(t *testing.T) {
	in := newInstallation(t)
	in.allUp()
	for _, tt := range []struct{ down, check string }{{"s1", "target"}, {"n1", "vm"}} {
		in.Agents[tt.down].Stop()
		in.until(tt.down+" to be down", func() bool { return !in.hosts()[tt.down].Up })
		r, err := in.client.Preflight(t.Context(), &droverv1.PreflightRequest{Vm: "web1", To: to("south", "s1")})
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(r.GetPreflight().GetChecks(), func(c *droverv1.Check) bool { return c.GetName() == tt.check })
		if c := r.GetPreflight().GetChecks()[i]; c.GetOk() || r.GetPreflight().GetOk() || !strings.Contains(c.GetFix(), "drover agent") {
			t.Errorf("%s down: %v, want check %s to say how to start the agent", tt.down, c, tt.check)
		}
		in.Agents[tt.down].Start()
		in.allUp()
	}
}

func TestBadRequests(t *testing.T) {
	in := newInstallation(t)
	in.allUp()
	good := func() *droverv1.StartMoveRequest {
		return &droverv1.StartMoveRequest{Vm: "web1", To: to("south", "")}
	}
	for _, tt := range []struct {
		field string
		spoil func(*droverv1.StartMoveRequest)
	}{
		{"vm", func(r *droverv1.StartMoveRequest) { r.Vm = "" }},
		{"vm", func(r *droverv1.StartMoveRequest) { r.Vm = "../x" }},
		{"to.site", func(r *droverv1.StartMoveRequest) { r.To = nil }},
		{"to.host", func(r *droverv1.StartMoveRequest) { r.To = to("south", "a b") }},
		{"method", func(r *droverv1.StartMoveRequest) { r.Method = "teleport" }},
		{"method", func(r *droverv1.StartMoveRequest) { r.Method = "stay" }},
		{"bandwidth_bps", func(r *droverv1.StartMoveRequest) { r.BandwidthBps = -1 }},
		{"max_pause_millis", func(r *droverv1.StartMoveRequest) { r.MaxPauseMillis = -1 }},
		{"max_pause_millis", func(r *droverv1.StartMoveRequest) { r.MaxPauseMillis = 1 << 40 }},
		{"shutdown_grace_millis", func(r *droverv1.StartMoveRequest) { r.ShutdownGraceMillis = -5 }},
		{"request_id", func(r *droverv1.StartMoveRequest) { r.RequestId = strings.Repeat("x", 1000) }},
	} {
		r := good()
		tt.spoil(r)
		_, err := in.client.StartMove(t.Context(), r)
		if drover.KindOf(err) != drover.Invalid || !strings.HasPrefix(err.Error(), tt.field) {
			t.Errorf("%v: %v, want invalid, naming %s", r, err, tt.field)
		}
	}
	for _, name := range []string{"", "../x", "nosuch"} {
		want := drover.Invalid
		if name == "nosuch" {
			want = drover.NotFound
		}
		_, get := in.client.GetMove(t.Context(), &droverv1.GetMoveRequest{Name: name})
		_, cancel := in.client.CancelMove(t.Context(), &droverv1.CancelMoveRequest{Name: name})
		stream, watch := in.client.WatchMove(t.Context(), &droverv1.WatchMoveRequest{Name: name})
		if watch == nil {
			for stream.Receive() {
			}
			watch = stream.Err()
			stream.Close()
		}
		for call, err := range map[string]error{"get": get, "cancel": cancel, "watch": watch} {
			if drover.KindOf(err) != want {
				t.Errorf("%s %q: %v, want %s", call, name, err, want)
			}
		}
	}
}

func TestLiveMoveIsMeasured(t *testing.T) {
	in := newInstallation(t)
	in.allUp()
	in.Agents["se"].Set(func(s *servertest.State) {
		s.Probe = &droverv1.ProbeResult{OutageMs: 80, Sessions: 2, SessionsLost: 1, BeatsSent: 10, BeatsAnswered: 9}
	})
	in.Agents["c1"].Set(func(s *servertest.State) { s.Silent = 3 })
	m := in.startMove(&droverv1.StartMoveRequest{Vm: "web1", To: to("south", ""), RequestId: "r1"})
	m = in.follow(m.Name, final)
	if m.State != drover.MoveDone || m.To.Host != "s1" || m.Method != drover.Live {
		t.Fatalf("move: %+v", m)
	}
	f := m.Measured
	for _, g := range []struct {
		name string
		got  any
		want any
	}{
		{"pause_ms", f.PauseMillis, new(61.0)},
		{"outage_ms (the worst client's)", f.OutageMillis, new(118.0)},
		{"outage_http_ms", f.OutageHTTP, new(90.0)},
		{"sessions", f.Sessions, new(int64(6))},
		{"sessions_lost", f.SessionsLost, new(int64(1))},
		{"wire_bytes (both directions)", f.WireBytes, new(int64(200<<20 + 200<<20/100))},
		{"guest_bytes", f.GuestBytes, new(int64(310 << 20))},
		{"path_wire_bytes", f.PathWireBytes, new(int64(199 << 20))},
		{"path", f.Path, new(servertest.Path())},
		{"cost (not measured)", f.Cost, (*float64)(nil)},
	} {
		if diff := cmp.Diff(g.want, g.got); diff != "" {
			t.Errorf("%s: %s", g.name, diff)
		}
	}
	if f.TotalSeconds == nil || *f.TotalSeconds <= 0 {
		t.Errorf("total_s: %v", f.TotalSeconds)
	}
	for _, name := range []string{"c1", "se"} {
		in.Agents[name].Get(func(s *servertest.State) {
			// The one that sees the outage ends after the one that sees its end.
			if want := []string{m.Name + ".after", m.Name}; len(s.Probing) != 0 || !slices.Equal(s.Probed, want) || s.Silent != 0 {
				t.Errorf("%s: probes %v are left, %v have ended, want %v; %d times nobody would answer", name, s.Probing, s.Probed, want, s.Silent)
			}
		})
	}
	if vms := in.vms(); len(vms) != 1 || vms[0].Host != "s1" || vms[0].State != drover.VMRunning {
		t.Errorf("vms: %+v, want web1 running on s1", vms)
	}
	// The same request finds the same move, although the VM is there now.
	if again := in.startMove(&droverv1.StartMoveRequest{Vm: "web1", To: to("south", ""), RequestId: "r1"}); again.Name != m.Name {
		t.Errorf("repeated: move %s, want %s", again.Name, m.Name)
	}
}

func TestNotMeasuredStaysAbsent(t *testing.T) {
	in := newInstallation(t)
	in.allUp()
	in.Agents["c1"].Set(func(s *servertest.State) { s.Probe = nil })
	in.Agents["ne"].Stop()
	in.Agents["se"].Stop()
	m := in.startMove(&droverv1.StartMoveRequest{Vm: "web1", To: to("south", "")})
	m = in.follow(m.Name, final)
	if m.State != drover.MoveDone {
		t.Fatalf("move: %+v: a meter that fails must not fail it", m)
	}
	if f := m.Measured; f.WireBytes != nil || f.OutageMillis != nil || f.Sessions != nil || f.SessionsLost != nil {
		t.Errorf("measured: %+v, want no wire bytes and no outage", f)
	}
}

func TestColdMove(t *testing.T) {
	in := newInstallation(t)
	in.allUp()
	hold := make(chan struct{})
	in.Agents["n1"].Set(func(s *servertest.State) { s.Hold["copy"] = hold })
	m := in.startMove(&droverv1.StartMoveRequest{Vm: "web1", To: to("south", "s2"), Method: "cold"})
	in.follow(m.Name, atStep("copy"))
	// Neither end has the VM now; it is shown once all the same.
	if vms := in.vms(); len(vms) != 1 || vms[0].Name != "web1" || vms[0].State != drover.VMOff {
		t.Errorf("vms in the middle: %+v, want web1, off", vms)
	}
	r, err := in.client.Preflight(t.Context(), &droverv1.PreflightRequest{Vm: "web1", To: to("south", "")})
	if err != nil || r.GetPreflight().GetOk() {
		t.Errorf("preflight in the middle: %v, %v; want the unfinished move to forbid it", r, err)
	}
	close(hold)
	m = in.follow(m.Name, final)
	if m.State != drover.MoveDone || m.Measured.PauseMillis == nil || *m.Measured.PauseMillis <= 0 {
		t.Errorf("move: %+v, want done with a pause from shutdown to start", m)
	}
	if vms := in.vms(); len(vms) != 1 || vms[0].Host != "s2" || vms[0].State != drover.VMRunning {
		t.Errorf("vms: %+v, want web1 running on s2", vms)
	}
}

func TestFailedMoveIsUndone(t *testing.T) {
	in := newInstallation(t)
	in.allUp()
	in.Agents["s1"].Set(func(s *servertest.State) {
		s.Fail["create-volumes"] = drover.Errorf(drover.Exhausted, "create volumes", "no space")
	})
	m := in.startMove(&droverv1.StartMoveRequest{Vm: "web1", To: to("south", "s1")})
	m = in.follow(m.Name, final)
	if m.State != drover.MoveUndone || !strings.Contains(m.Fault, "no space") {
		t.Errorf("move: %s, %q; want undone for want of space", m.State, m.Fault)
	}
	if vms := in.vms(); len(vms) != 1 || vms[0].Host != "n1" || vms[0].State != drover.VMRunning {
		t.Errorf("vms: %+v, want web1 running on n1", vms)
	}
}

func TestCancel(t *testing.T) {
	in := newInstallation(t)
	in.allUp()
	in.Agents["n1"].Set(func(s *servertest.State) { s.Hold["transfer"] = make(chan struct{}) })
	m := in.startMove(&droverv1.StartMoveRequest{Vm: "web1", To: to("south", "s1")})
	mid := in.follow(m.Name, atStep("transfer"))
	if mid.Progress.DoneBytes != 64*drover.MiB || mid.Progress.Phase != "memory" {
		t.Errorf("progress: %+v", mid.Progress)
	}
	if _, err := in.client.CancelMove(t.Context(), &droverv1.CancelMoveRequest{Name: m.Name}); err != nil {
		t.Fatal(err)
	}
	if m = in.follow(m.Name, final); m.State != drover.MoveUndone {
		t.Errorf("move: %s (%s), want undone", m.State, m.Fault)
	}
	if _, err := in.client.CancelMove(t.Context(), &droverv1.CancelMoveRequest{Name: m.Name}); drover.KindOf(err) != drover.Refused {
		t.Errorf("cancel again: %v, want refused", err)
	}
}

func TestRestartResumes(t *testing.T) {
	in := newInstallation(t)
	in.allUp()
	hold := make(chan struct{})
	in.Agents["n1"].Set(func(s *servertest.State) { s.Hold["transfer"] = hold })
	m := in.startMove(&droverv1.StartMoveRequest{Vm: "web1", To: to("south", "s1")})
	in.follow(m.Name, atStep("transfer"))
	in.end()
	close(hold)
	in.start()
	m = in.follow(m.Name, final)
	if m.State != drover.MoveDone || m.Generation != 2 {
		t.Fatalf("move: %+v, want done by the second generation", m)
	}
	// The counters before the move were not read by this server; the agents'
	// own count is there.
	if got, want := m.Measured.WireBytes, m.Measured.PathWireBytes; got == nil || want == nil || *got != *want || *got != 199<<20 {
		t.Errorf("wire_bytes: %v, path_wire_bytes: %v, want the agent's %d for both", got, want, 199<<20)
	}
	if m.Measured.OutageMillis == nil {
		t.Error("outage_ms: not measured, but the probe ran on")
	}
}

func TestWatchEndsWithServer(t *testing.T) {
	in := newInstallation(t)
	in.allUp()
	hold := make(chan struct{})
	in.Agents["n1"].Set(func(s *servertest.State) { s.Hold["transfer"] = hold })
	m := in.startMove(&droverv1.StartMoveRequest{Vm: "web1", To: to("south", "s1")})
	c := in.dial(pki.Operator, "bob")
	defer c.Close()
	stream, err := c.WatchMove(t.Context(), &droverv1.WatchMoveRequest{Name: m.Name})
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	if !stream.Receive() {
		t.Fatal(stream.Err())
	}
	begun := time.Now()
	in.end()
	for stream.Receive() {
	}
	if err := stream.Err(); err != nil && !drover.KindOf(err).Retryable() {
		t.Errorf("the stream ended with %v, want unavailable", err)
	}
	t.Logf("the server ended within %v with a stream open", time.Since(begun))
	close(hold)
}

func TestSetMoveRate(t *testing.T) {
	in := newInstallation(t)
	in.allUp()
	hold := make(chan struct{})
	in.Agents["n1"].Set(func(s *servertest.State) { s.Hold["transfer"] = hold })
	set := func(name string, rate drover.BitRate) (drover.Move, error) {
		r, err := in.client.SetMoveRate(t.Context(), &droverv1.SetMoveRateRequest{Name: name, BandwidthBps: int64(rate)})
		return api.MoveFromProto(r.GetMove()), err
	}
	m := in.startMove(&droverv1.StartMoveRequest{Vm: "web1", To: to("south", "s1"), BandwidthBps: int64(drover.Gbps)})
	if m.Bandwidth != drover.Gbps {
		t.Errorf("the move's rate is %s, want 1 Gbit/s", m.Bandwidth)
	}
	in.follow(m.Name, atStep("transfer"))
	told := func(want ...drover.BitRate) {
		t.Helper()
		in.until(fmt.Sprintf("n1 to be told %v", want), func() (is bool) {
			in.Agents["n1"].Get(func(s *servertest.State) { is = slices.Equal(s.Rates, want) })
			return is
		})
	}
	if got, err := set(m.Name, 100*drover.Mbps); err != nil || got.Bandwidth != 100*drover.Mbps {
		t.Fatalf("set: %s, %v", got.Bandwidth, err)
	}
	told(100 * drover.Mbps)
	// A server that takes the move up tells it again, and what is new.
	in.end()
	in.start()
	in.until("the new server to have the move", func() bool { _, err := set(m.Name, 0); return err == nil })
	in.until("n1 to be told last that nothing limits it", func() (is bool) {
		in.Agents["n1"].Get(func(s *servertest.State) { is = s.Rates[len(s.Rates)-1] == 0 })
		return is
	})
	for _, tt := range []struct {
		name string
		rate drover.BitRate
		want drover.Kind
	}{{m.Name, -1, drover.Invalid}, {"", 1, drover.Invalid}, {"nosuch", 1, drover.NotFound}} {
		if _, err := set(tt.name, tt.rate); drover.KindOf(err) != tt.want {
			t.Errorf("%q, %d: %v, want %s", tt.name, tt.rate, err, tt.want)
		}
	}
	close(hold)
	if m = in.follow(m.Name, final); m.State != drover.MoveDone || m.Bandwidth != 0 {
		t.Errorf("move: %s at %s", m.State, m.Bandwidth)
	}
	if _, err := set(m.Name, 1); drover.KindOf(err) != drover.Refused {
		t.Errorf("after its end: %v, want refused", err)
	}
}

// TestAgentCutOff: an action whose agent is not to be reached for a while is found
// again, and a cold move's copy, which could still be undone, is not given up for
// cuts that are each shorter than the patience.
func TestAgentCutOff(t *testing.T) {
	in := newInstallation(t)
	in.allUp()
	hold := make(chan struct{})
	in.Agents["n1"].Set(func(s *servertest.State) { s.Hold["copy"] = hold })
	m := in.startMove(&droverv1.StartMoveRequest{Vm: "web1", To: to("south", "s1"), Method: "cold"})
	for range 3 {
		in.follow(m.Name, func(m drover.Move) bool { return atStep("copy")(m) && m.Fault == "" })
		in.Agents["n1"].Stop()
		if m = in.follow(m.Name, func(m drover.Move) bool { return m.Fault != "" || m.State.Final() }); m.State != drover.MoveRunning || !strings.Contains(m.Fault, "agent n1") {
			t.Fatalf("cut off: %s (%s)", m.State, m.Fault)
		}
		in.Agents["n1"].Start()
	}
	close(hold)
	if m = in.follow(m.Name, final); m.State != drover.MoveDone || m.Generation != 1 {
		t.Errorf("move: %s (%s) by generation %d", m.State, m.Fault, m.Generation)
	}
}

// TestForecastAndTruth: a move has what was expected of it, and the comparison with
// what was measured can be asked for.
func TestForecastAndTruth(t *testing.T) {
	in := newInstallation(t)
	in.allUp()
	r, err := in.client.StartMove(t.Context(), &droverv1.StartMoveRequest{Vm: "web1", To: to("south", "s1")})
	if err != nil {
		t.Fatal(err)
	}
	f := api.MoveFromProto(r.GetMove()).Forecast
	if f == nil || f.TotalSeconds == nil || f.WireBytes == nil || f.Convergence == nil || len(f.Unknown) == 0 || f.Calibrated != 0 {
		t.Fatalf("a first move of a guest that nobody has watched is forecast as %+v", f)
	}
	in.until("the move's end", func() bool {
		g, err := in.client.GetMove(t.Context(), &droverv1.GetMoveRequest{Name: r.GetMove().GetName()})
		return err == nil && drover.MoveState(g.GetMove().GetState()).Final()
	})
	g, err := in.client.GetMove(t.Context(), &droverv1.GetMoveRequest{Name: r.GetMove().GetName()})
	if err != nil {
		t.Fatal(err)
	}
	if m := api.MoveFromProto(g.GetMove()); m.State != drover.MoveDone || m.Forecast == nil || !cmp.Equal(*m.Forecast, *f) {
		t.Errorf("the move is %s and its forecast %+v, want done and that of before, %+v", m.State, m.Forecast, f)
	}
	a, err := in.client.Accuracy(t.Context(), &droverv1.AccuracyRequest{Method: "live"})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(a.GetAccuracy(), func(a *droverv1.Accuracy) bool { return a.GetFigure() == "total_s" && a.GetMoves() == 1 }) {
		t.Errorf("accuracy: %v", a.GetAccuracy())
	}
	for _, bad := range []*droverv1.AccuracyRequest{{Method: "magic"}, {PeriodNanos: -1}, {PeriodNanos: 1}} {
		if _, err := in.client.Accuracy(t.Context(), bad); drover.KindOf(err) != drover.Invalid {
			t.Errorf("%v: %v, want an invalid request", bad, err)
		}
	}
}
