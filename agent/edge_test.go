package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/driver/memory"
	"github.com/drover-vm/drover/pki"
)

// edgeWorld is a site's edge, north's, with everything around it in memory. It
// knows south's edge, and not moon's.
type edgeWorld struct {
	t       *testing.T
	dir     string
	address string
	server  *tls.Config
	own     *tls.Config
	issue   func(pki.Role, string) *tls.Config

	mesh     *memory.Mesh
	segments *memory.SegmentsKernel
	router   *memory.Router
	routes   *memory.RouteRecord
	kernel   *memory.Edge
	zone     *memory.NameZone
	leases   *memory.LeaseService
	balancer *memory.LoadBalancer
	// slow is asked before each operation on an address; bare leaves all but
	// the segments out of the file.
	slow func(string) error
	bare bool

	agent  *Agent
	client *api.AgentClient
	stop   func()
	step   int
}

func addresses(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, a := range list {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func newEdgeWorld(t *testing.T) *edgeWorld {
	t.Helper()
	w := &edgeWorld{
		t: t, dir: shortDir(t), address: freeAddress(t), mesh: memory.NewMesh(), segments: memory.NewSegmentsKernel("br-blue"),
		router: memory.NewRouter(netip.MustParseAddr("100.127.0.1"), 64601), routes: &memory.RouteRecord{},
		zone: memory.NewNameZone(memory.NameZoneConfig{Zone: "example"}),
		leases: memory.NewLeaseService(memory.LeaseServiceConfig{Segments: map[string][]netip.Addr{
			"blue": addresses("10.50.0.200", "10.50.0.201", "fd00:50::200"),
		}}),
		balancer: memory.NewLoadBalancer(),
		slow:     func(string) error { return nil },
	}
	w.kernel = memory.NewEdge(memory.EdgeConfig{
		Bridges: []string{"br-blue"}, Mesh: "drover0", Remotes: addresses("100.125.0.2"), Fault: func(op string) error { return w.slow(op) },
	})
	w.zone.Put("web.example", driver.NameRecords{Addresses: addresses("10.50.0.11"), TTL4: 5 * time.Minute})
	w.balancer.Configure("web", false, 100, map[string]netip.AddrPort{"old": netip.MustParseAddrPort("10.50.0.11:80")})
	ca, err := pki.NewCA(filepath.Join(t.TempDir(), "ca"), time.Now())
	must(t, err)
	w.issue = func(role pki.Role, name string) *tls.Config {
		f, err := ca.Issue(pki.Identity{Role: role, Name: name}, []string{"127.0.0.1"}, t.TempDir(), time.Now())
		must(t, err)
		cfg, err := pki.Config(f)
		must(t, err)
		return cfg
	}
	w.server, w.own = w.issue(pki.Server, "server"), w.issue(pki.Agent, "edge-north")
	return w
}

func (w *edgeWorld) config() Config {
	c := Config{
		Name: "edge-north", Site: "north", Listen: w.address, Run: filepath.Join(w.dir, "run"), State: filepath.Join(w.dir, "state"),
		TLS: pki.Files{CA: "/tls/ca", Cert: "/tls/cert", Key: "/tls/key"},
		Edge: &Edge{Segments: []EdgeSegment{{
			Name: "blue", Bridge: "br-blue", Home: "north", Sites: []string{"north", "south", "moon"}, VNI: 100,
			Subnets:  []netip.Prefix{netip.MustParsePrefix("10.50.0.0/24"), netip.MustParsePrefix("fd00:50::/64")},
			Gateways: addresses("10.50.0.1", "fd00:50::1"), GatewayMAC: "52:54:00:00:00:fe",
		}}},
	}
	if w.bare {
		return c
	}
	c.Edge.Mesh = &EdgeMesh{Addresses: []netip.Prefix{netip.MustParsePrefix("100.125.0.1/16")}}
	c.Edge.BGP = &EdgeBGP{AS: 64701, Addresses: addresses("100.127.0.2", "fd00:127::2"), Neighbors: []EdgeRouting{{Address: netip.MustParseAddr("100.127.0.1"), AS: 64601}}}
	c.Edge.Zones = []EdgeZone{{Name: "example", Primary: "10.1.0.1", KeyFile: "/key"}}
	c.Edge.DHCP = []EdgeDHCP{{Kea4: "/kea4", Kea6: "/kea6", Segments: []string{"blue"}}}
	c.Edge.Balancers = []EdgeBalancer{{Socket: "/haproxy", Backends: []string{"web"}}}
	return c
}

// start begins a process of the agent, with drivers of its own.
func (w *edgeWorld) start() *edgeWorld {
	t := w.t
	t.Helper()
	seg := memory.OpenSegments(w.segments, nil)
	deps := Deps{TLS: w.own, Log: slog.New(slog.DiscardHandler), Edge: EdgeDrivers{Segments: seg, Addresses: w.kernel.Open()}}
	closers := []func() error{seg.Close}
	if !w.bare {
		tunnels, err := w.mesh.Open(memory.TunnelsConfig{
			Endpoint: netip.MustParseAddrPort("127.0.0.1:51820"), Addresses: []netip.Prefix{netip.MustParsePrefix("100.125.0.1/16")},
		})
		must(t, err)
		routes := memory.NewRoutes(memory.RoutesConfig{
			Record: w.routes, Routers: []*memory.Router{w.router}, NextHop4: netip.MustParseAddr("100.127.0.2"), NextHop6: netip.MustParseAddr("fd00:127::2"),
		})
		deps.Edge.Tunnels, deps.Edge.Routes = tunnels, routes
		deps.Edge.Names = map[string]driver.Names{"example": w.zone.Open(true)}
		deps.Edge.Leases = map[string]driver.Leases{"blue": w.leases.Open()}
		deps.Edge.Balancers = map[string]driver.Balancer{"web": w.balancer.Open()}
		closers = append(closers, tunnels.Close, routes.Close)
	}
	a, err := New(deps, w.config())
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.Serve(ctx) }()
	w.agent, w.client = a, api.NewAgentClient(w.address, w.server, "edge-north")
	var once sync.Once
	w.stop = func() {
		once.Do(func() {
			cancel()
			w.client.Close()
			if err := <-ended; err != nil {
				t.Errorf("the agent ended with %v", err)
			}
			for _, c := range closers {
				must(t, c())
			}
		})
	}
	t.Cleanup(w.stop)
	w.await()
	return w
}

// await waits until the agent listens.
func (w *edgeWorld) await() {
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		_, err := w.client.Describe(w.t.Context(), &droverv1.DescribeRequest{})
		if err == nil {
			return
		}
		if time.Now().After(end) {
			w.t.Fatal(err)
		}
	}
}

// meshed tells the edge of south's.
func (w *edgeWorld) meshed() *edgeWorld {
	w.t.Helper()
	_, err := w.client.SetMesh(w.t.Context(), &droverv1.SetMeshRequest{Peers: []*droverv1.MeshPeer{{
		Site: "south", Key: driver.TunnelKey{7}.String(), Endpoint: "127.0.0.2:51820", Addresses: []string{"100.125.0.2/16"},
	}}})
	must(w.t, err)
	return w
}

const edgeOwner = "vm/" + vmUUID

func (w *edgeWorld) run(generation int64, action any) (*droverv1.RunResult, error) {
	w.step++
	r := &droverv1.RunRequest{
		Ref:  &droverv1.MoveRef{Move: moveName, Generation: generation, Vm: vmName, VmUuid: vmUUID},
		Step: fmt.Sprintf("step-%d", w.step),
	}
	switch a := action.(type) {
	case *droverv1.Edge:
		r.Action = &droverv1.RunRequest_Edge{Edge: a}
	case *droverv1.StageEdge:
		r.Action = &droverv1.RunRequest_StageEdge{StageEdge: a}
	case *droverv1.CountSessions:
		r.Action = &droverv1.RunRequest_CountSessions{CountSessions: a}
	case *droverv1.Release:
		r.Action = &droverv1.RunRequest_Release{Release: a}
	case *droverv1.Attend:
		r.Action = &droverv1.RunRequest_Attend{Attend: a}
	}
	ctx, cancel := context.WithTimeout(w.t.Context(), 30*time.Second)
	defer cancel()
	stream, err := w.client.Run(ctx, r)
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	var result *droverv1.RunResult
	for stream.Receive() {
		if got := stream.Msg().GetResult(); got != nil {
			result = got
		}
	}
	return result, stream.Err()
}

func opsOf(ops ...drover.EdgeOp) []*droverv1.EdgeOp {
	for i := range ops {
		if ops[i].Owner == "" {
			ops[i].Owner = edgeOwner
		}
	}
	return api.ListToProto(ops, api.EdgeOpToProto)
}

func (w *edgeWorld) do(ops ...drover.EdgeOp) (*droverv1.RunResult, error) {
	return w.run(1, &droverv1.Edge{Ops: opsOf(ops...)})
}

// standing is all that stands, in words.
func (w *edgeWorld) standing() []string {
	w.t.Helper()
	r, err := w.client.Owned(w.t.Context(), &droverv1.OwnedRequest{})
	must(w.t, err)
	list := append([]string{}, r.GetFaults()...)
	for _, x := range r.GetThings() {
		list = append(list, x.GetKind()+" "+x.GetWhat())
	}
	all, err := w.agent.siteedge.Segments.List(w.t.Context())
	must(w.t, err)
	for _, x := range all {
		for _, s := range x.Stations {
			list = append(list, fmt.Sprintf("station %s at %v next %v", s.MAC, s.At, s.Next))
		}
	}
	for p := range w.router.Table() {
		list = append(list, "routed "+p.String())
	}
	if !w.bare {
		servers, err := w.agent.siteedge.Balancers["web"].Servers(w.t.Context(), "web")
		must(w.t, err)
		for _, s := range servers {
			list = append(list, fmt.Sprintf("server %s %s %d", s.Name, s.State, s.Weight))
		}
	}
	slices.Sort(list)
	return list
}

// vmAddresses are those of the VM.
var vmAddresses = addresses("10.50.0.11", "fd00:50::11")

const vmMAC = "52:54:00:00:00:0b"

// edgeVerbs are operations, each with what has to be before it, what stands by
// it then, and what takes it back.
var edgeVerbs = []struct {
	op     drover.EdgeOp
	before []drover.EdgeOp
	stands string
	undo   drover.EdgeOp
}{
	{
		op:     drover.EdgeOp{Do: drover.ExtendSegment, Segment: "blue", Sites: []string{"north", "south"}, LocalEgress: true},
		stands: "extension ", undo: drover.EdgeOp{Do: drover.RetractSegment, Segment: "blue"},
	},
	{
		op:     drover.EdgeOp{Do: drover.SetStation, Segment: "blue", MAC: vmMAC, Site: "north", Next: "south"},
		before: []drover.EdgeOp{{Do: drover.ExtendSegment, Segment: "blue", Sites: []string{"south"}}},
		stands: "station " + vmMAC + " at invalid IP next 100.125.0.2", undo: drover.EdgeOp{Do: drover.DropStation, Segment: "blue", MAC: vmMAC},
	},
	{
		op:     drover.EdgeOp{Do: drover.DeliverHere, Segment: "blue", Addresses: vmAddresses, MAC: vmMAC},
		stands: "deliver ", undo: drover.EdgeOp{Do: drover.ForgetAddresses},
	},
	{
		op:     drover.EdgeOp{Do: drover.Elsewhere, Segment: "blue", Addresses: vmAddresses},
		stands: "elsewhere ", undo: drover.EdgeOp{Do: drover.ForgetAddresses},
	},
	{
		op:     drover.EdgeOp{Do: drover.ProxyRest, Segment: "blue"},
		stands: "rest ", undo: drover.EdgeOp{Do: drover.ForgetAddresses},
	},
	{
		op:     drover.EdgeOp{Do: drover.AnnounceRoutes, Addresses: vmAddresses},
		stands: "routed fd00:50::11/128", undo: drover.EdgeOp{Do: drover.WithdrawRoutes, Addresses: vmAddresses},
	},
	{
		op:     drover.EdgeOp{Do: drover.WatchSessions, Addresses: vmAddresses},
		stands: "watch ", undo: drover.EdgeOp{Do: drover.ForgetAddresses},
	},
	{
		op:     drover.EdgeOp{Do: drover.MeterTraffic, Addresses: vmAddresses},
		stands: "meter ", undo: drover.EdgeOp{Do: drover.ForgetAddresses},
	},
	{
		op:     drover.EdgeOp{Do: drover.ForwardOld, Segment: "blue", Addresses: vmAddresses, Site: "south", Limit: time.Hour},
		stands: "forward-old ", undo: drover.EdgeOp{Do: drover.ForgetAddresses},
	},
	{
		op:     drover.EdgeOp{Do: drover.AcceptOld, Segment: "blue", Addresses: addresses("10.60.0.9"), Site: "south", Subnets: []netip.Prefix{netip.MustParsePrefix("10.60.0.0/24")}},
		stands: "accept-old ", undo: drover.EdgeOp{Do: drover.ForgetAddresses},
	},
	{
		op:     drover.EdgeOp{Do: drover.LowerName, Name: "web.example", Limit: time.Second},
		stands: "name change of name web.example", undo: drover.EdgeOp{Do: drover.RestoreName, Name: "web.example"},
	},
	{
		op:     drover.EdgeOp{Do: drover.SetName, Name: "web.example", Addresses: addresses("10.60.0.9")},
		stands: "name change of name web.example", undo: drover.EdgeOp{Do: drover.SettleName, Name: "web.example"},
	},
	{
		op:     drover.EdgeOp{Do: drover.ReserveLease, Segment: "blue", MAC: vmMAC},
		stands: "lease lease of [10.50.0.20", undo: drover.EdgeOp{Do: drover.ReleaseLease, Segment: "blue", MAC: vmMAC},
	},
	{
		op:     drover.EdgeOp{Do: drover.AddServer, Backend: "web", Name: "new", Target: "10.60.0.9:80", Weight: 10},
		stands: "server drover-vm:" + vmUUID + ":new maint 10", undo: drover.EdgeOp{Do: drover.RemoveServer, Backend: "web", Name: "new"},
	},
	{
		op:     drover.EdgeOp{Do: drover.ReadyServer, Backend: "web", Name: "new"},
		before: []drover.EdgeOp{{Do: drover.AddServer, Backend: "web", Name: "new", Target: "10.60.0.9:80", Weight: 10}},
		stands: "server drover-vm:" + vmUUID + ":new ready 10", undo: drover.EdgeOp{Do: drover.RemoveServer, Backend: "web", Name: "new", Force: true},
	},
	{
		op:     drover.EdgeOp{Do: drover.WeighServer, Backend: "web", Name: "old", Weight: 3},
		stands: "server old ready 3", undo: drover.EdgeOp{Do: drover.RemoveServer, Backend: "web", Name: "old"},
	},
	{
		op:     drover.EdgeOp{Do: drover.DrainServer, Backend: "web", Name: "old"},
		stands: "server old drain 100", undo: drover.EdgeOp{Do: drover.RemoveServer, Backend: "web", Name: "old"},
	},
}

// TestEdgeVerbs does every operation twice, takes it back twice, and expects
// nothing to be left.
func TestEdgeVerbs(t *testing.T) {
	w := newEdgeWorld(t).start().meshed()
	nothing := w.standing()
	for _, v := range edgeVerbs {
		t.Run(string(v.op.Do), func(t *testing.T) {
			if len(v.before) > 0 {
				_, err := w.do(v.before...)
				must(t, err)
			}
			for range 2 {
				_, err := w.do(v.op)
				must(t, err)
			}
			if got := w.standing(); !slices.ContainsFunc(got, func(s string) bool { return strings.HasPrefix(s, v.stands) }) {
				t.Errorf("want %q among\n%s", v.stands, strings.Join(got, "\n"))
			}
			for range 2 {
				_, err := w.run(1, &droverv1.Edge{Undo: true, Ops: opsOf(v.undo)})
				must(t, err)
			}
			if len(v.before) > 0 && v.before[0].Do == drover.ExtendSegment {
				_, err := w.do(drover.EdgeOp{Do: drover.RetractSegment, Segment: "blue"})
				must(t, err)
			}
			if diff := cmp.Diff(nothing, w.standing()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestEdgeResults(t *testing.T) {
	w := newEdgeWorld(t).start()
	r, err := w.do(
		drover.EdgeOp{Do: drover.ReserveLease, Segment: "blue", MAC: vmMAC, Addresses: addresses("10.50.0.201")},
		drover.EdgeOp{Do: drover.WatchSessions, Addresses: vmAddresses},
	)
	must(t, err)
	if got, want := r.GetAddresses(), []string{"10.50.0.201/24", "fd00:50::200/64"}; !slices.Equal(got, want) {
		t.Errorf("addresses %v, want %v", got, want)
	}
	if got, want := r.GetGateways(), []string{"10.50.0.1", "fd00:50::1"}; !slices.Equal(got, want) {
		t.Errorf("gateways %v, want %v", got, want)
	}
	for i, live := range []bool{true, true, false} {
		w.kernel.AddSession(driver.AddressSession{
			Address: netip.AddrPortFrom(vmAddresses[0], 80), Peer: netip.AddrPortFrom(netip.MustParseAddr("10.3.0.9"), uint16(1000+i)), Protocol: "tcp", Live: live,
		})
	}
	if r, err = w.run(1, &droverv1.CountSessions{Addresses: []string{"10.50.0.11"}}); err != nil || r.GetSessions() != 2 {
		t.Errorf("%v, %v: want 2 sessions", r, err)
	}
	s, err := w.balancer.Session("web")
	must(t, err)
	if r, err = w.run(1, &droverv1.CountSessions{Backend: "web", Server: "old"}); err != nil || r.GetSessions() != 1 {
		t.Errorf("%v, %v: want 1 session", r, err)
	}
	s.End()
	// A count is never an old one.
	if r, err = w.run(1, &droverv1.CountSessions{Backend: "web", Server: "old"}); err != nil || r.GetSessions() != 0 {
		t.Errorf("%v, %v: want none", r, err)
	}
}

// TestEdgeLacks asks for what is not there.
func TestEdgeLacks(t *testing.T) {
	w := newEdgeWorld(t).start().meshed()
	bare := newEdgeWorld(t)
	bare.bare = true
	bare.start()
	for _, c := range []struct {
		w    *edgeWorld
		op   drover.EdgeOp
		kind drover.Kind
		says string
	}{
		{w, drover.EdgeOp{Do: "dance"}, drover.Invalid, `ops[0]: edge operation: "dance" is none`},
		{w, drover.EdgeOp{Do: drover.ForgetAddresses, Owner: "me"}, drover.Invalid, `want vm/UUID or move/NAME`},
		{w, drover.EdgeOp{Do: drover.ExtendSegment, Segment: "red", Sites: []string{"south"}}, drover.NotFound, "segment red: it does not exist at site north"},
		{w, drover.EdgeOp{Do: drover.ExtendSegment, Segment: "blue", Sites: []string{"moon"}}, drover.Unavailable, "site moon: edge edge-north does not know"},
		{w, drover.EdgeOp{Do: drover.SetStation, Segment: "blue", MAC: vmMAC}, drover.NotFound, "it is not extended"},
		{w, drover.EdgeOp{Do: drover.DeliverHere, Segment: "red", Addresses: vmAddresses}, drover.NotFound, "segment red"},
		{w, drover.EdgeOp{Do: drover.SetName, Name: "web.other", Addresses: vmAddresses}, drover.Refused, `name "web.other" is in none of the zones`},
		{w, drover.EdgeOp{Do: drover.ReserveLease, Segment: "red", MAC: vmMAC}, drover.Refused, `no DHCP service for segment "red"`},
		{w, drover.EdgeOp{Do: drover.AddServer, Backend: "web", Name: "new", Target: "here"}, drover.Invalid, `target: "here": want IP:PORT`},
		{w, drover.EdgeOp{Do: drover.DrainServer, Backend: "mail", Name: "a"}, drover.NotFound, "backend mail"},
		{w, drover.EdgeOp{Do: drover.DrainServer, Backend: "web", Name: "nosuch"}, drover.NotFound, "nosuch"},
		{bare, drover.EdgeOp{Do: drover.AnnounceRoutes, Addresses: vmAddresses}, drover.Refused, "edge.bgp is missing from its file"},
		{bare, drover.EdgeOp{Do: drover.ExtendSegment, Segment: "blue", Sites: []string{"south"}}, drover.Refused, "edge.mesh is missing from its file"},
		{bare, drover.EdgeOp{Do: drover.ForwardOld, Segment: "blue", Addresses: vmAddresses, Site: "south", Limit: time.Hour}, drover.Refused, "edge.mesh is missing"},
		{bare, drover.EdgeOp{Do: drover.SetName, Name: "web.example", Addresses: vmAddresses}, drover.Refused, "none of the zones"},
		{bare, drover.EdgeOp{Do: drover.ReserveLease, Segment: "blue", MAC: vmMAC}, drover.Refused, "no DHCP service"},
		{bare, drover.EdgeOp{Do: drover.AddServer, Backend: "web", Name: "new", Target: "10.60.0.9:80"}, drover.NotFound, "backend web"},
	} {
		before := c.w.standing()
		ops := opsOf(c.op)
		for what, action := range map[string]any{"edge": &droverv1.Edge{Ops: ops}, "stage": &droverv1.StageEdge{Ops: ops}} {
			if what == "stage" && (strings.Contains(c.says, "not extended") || strings.Contains(c.says, "target") || strings.Contains(c.says, "nosuch")) {
				continue // it may be true by the time of the cut-over
			}
			_, err := c.w.run(1, action)
			if drover.KindOf(err) != c.kind || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%s of %s: got %v, want one line with %q", what, c.op.Do, err, c.says)
			}
		}
		if diff := cmp.Diff(before, c.w.standing()); diff != "" {
			t.Errorf("%s has left something: %s", c.op.Do, diff)
		}
	}
	host := newWorld(t)
	_, err := host.runRequest("north1", &droverv1.RunRequest{
		Ref: &droverv1.MoveRef{Move: moveName, Generation: 1, Vm: vmName, VmUuid: vmUUID}, Step: "s",
		Action: &droverv1.RunRequest_Edge{Edge: &droverv1.Edge{Ops: opsOf(drover.EdgeOp{Do: drover.ForgetAddresses})}},
	})
	if drover.KindOf(err) != drover.Refused || !strings.Contains(err.Error(), "it is no site's edge") {
		t.Errorf("a host: got %v", err)
	}
}

// TestEdgeDriverFails: the operation that failed is named, those after it are
// not begun, and repeating ends well.
func TestEdgeDriverFails(t *testing.T) {
	w := newEdgeWorld(t).start()
	w.slow = func(op string) error {
		if op == "elsewhere" {
			return drover.Errorf(drover.Unavailable, op, "the kernel is busy")
		}
		return nil
	}
	ops := []drover.EdgeOp{
		{Do: drover.MeterTraffic, Addresses: vmAddresses}, {Do: drover.Elsewhere, Segment: "blue", Addresses: vmAddresses}, {Do: drover.AnnounceRoutes, Addresses: vmAddresses},
	}
	_, err := w.do(ops...)
	if drover.KindOf(err) != drover.Unavailable || !strings.Contains(err.Error(), "ops[1] elsewhere") {
		t.Errorf("got %v", err)
	}
	if n := len(w.router.Table()); n != 0 {
		t.Errorf("%d routes were announced after the failure", n)
	}
	w.slow = func(string) error { return nil }
	_, err = w.do(ops...)
	must(t, err)
	if n := len(w.router.Table()); n != 2 {
		t.Errorf("%d routes, want 2", n)
	}
}

// TestWithdrawWithoutRouters: taking routes back does not wait for routers that
// are gone.
func TestWithdrawWithoutRouters(t *testing.T) {
	w := newEdgeWorld(t).start()
	_, err := w.do(drover.EdgeOp{Do: drover.AnnounceRoutes, Addresses: vmAddresses})
	must(t, err)
	w.router.SetSession(w.routes, false)
	_, err = w.do(drover.EdgeOp{Do: drover.WithdrawRoutes, Addresses: vmAddresses})
	must(t, err)
	w.router.SetSession(w.routes, true)
	if got := w.router.Table(); len(got) != 0 {
		t.Errorf("the router has %v", got)
	}
	w.router.SetSession(w.routes, false)
	if _, err := w.run(1, &droverv1.StageEdge{Ops: opsOf(drover.EdgeOp{Do: drover.AnnounceRoutes, Addresses: vmAddresses})}); drover.KindOf(err) != drover.Unavailable {
		t.Errorf("staged without a router: %v", err)
	}
}

func (w *edgeWorld) cutOver(host string, generation int64) (int64, error) {
	c := api.NewPeerClient(w.address, w.issue(pki.Agent, host), "edge-north")
	defer c.Close()
	r, err := c.CutOver(w.t.Context(), &droverv1.CutOverRequest{
		Ref: &droverv1.MoveRef{Move: moveName, Generation: generation, Vm: vmName, VmUuid: vmUUID},
	})
	return r.GetAtUnixNanos(), err
}

// TestCutOver stages operations and has them called out, once.
func TestCutOver(t *testing.T) {
	w := newEdgeWorld(t).start().meshed()
	var mu sync.Mutex
	var order []string
	w.slow = func(op string) error {
		mu.Lock()
		defer mu.Unlock()
		order = append(order, op)
		if op == "deliver here" {
			time.Sleep(20 * time.Millisecond) // whoever does not wait for it gets ahead
			if len(w.router.Table()) > 0 {
				return errors.New("announced before it is delivered")
			}
		}
		return nil
	}
	ops := opsOf(
		drover.EdgeOp{Do: drover.DeliverHere, Segment: "blue", Addresses: vmAddresses}, drover.EdgeOp{Do: drover.AnnounceRoutes, Addresses: vmAddresses},
		drover.EdgeOp{Do: drover.SetName, Name: "web.example", Addresses: addresses("10.60.0.9")},
		drover.EdgeOp{Do: drover.DrainServer, Backend: "web", Name: "old"},
	)
	if _, err := w.cutOver("n1", 1); drover.KindOf(err) != drover.NotFound {
		t.Errorf("nothing is staged: got %v", err)
	}
	_, err := w.run(2, &droverv1.StageEdge{Ops: ops[:1], By: "n1"})
	must(t, err)
	_, err = w.run(2, &droverv1.StageEdge{Ops: ops, By: "n1"})
	must(t, err)
	if _, err := w.run(1, &droverv1.StageEdge{}); drover.KindOf(err) != drover.Refused {
		t.Errorf("an older generation: got %v", err)
	}
	if _, err := w.cutOver("n1", 1); drover.KindOf(err) != drover.Refused {
		t.Errorf("called out by an older generation: got %v", err)
	}
	if _, err := w.cutOver("n2", 2); drover.KindOf(err) != drover.Denied {
		t.Errorf("another host: got %v", err)
	}
	if len(w.router.Table()) != 0 {
		t.Error("it was carried out before it was called out")
	}
	// What is staged outlives the agent.
	w.stop()
	w.start()
	first, err := w.cutOver("n1", 2)
	must(t, err)
	if len(w.router.Table()) != 2 || !slices.Contains(w.standing(), "server old drain 100") {
		t.Errorf("after the cut-over:\n%s", strings.Join(w.standing(), "\n"))
	}
	again, err := w.cutOver("n1", 2)
	if err != nil || again != first {
		t.Errorf("repeated: %d, %v; want %d", again, err, first)
	}
	if n := len(slices.DeleteFunc(order, func(op string) bool { return op != "deliver here" })); n != 1 {
		t.Errorf("delivered %d times", n)
	}
	// Release forgets it.
	_, err = w.run(2, &droverv1.Release{})
	must(t, err)
	if _, err := w.cutOver("n1", 2); drover.KindOf(err) != drover.NotFound {
		t.Errorf("released: got %v", err)
	}
	if _, err := w.run(1, &droverv1.Edge{}); drover.KindOf(err) != drover.Refused {
		t.Errorf("an older generation after the release: got %v", err)
	}
}

// TestCutOverAfterUndo: what is being undone does not happen after all.
func TestCutOverAfterUndo(t *testing.T) {
	w := newEdgeWorld(t).start()
	ops := opsOf(drover.EdgeOp{Do: drover.AnnounceRoutes, Addresses: vmAddresses})
	_, err := w.run(1, &droverv1.StageEdge{Ops: ops})
	must(t, err)
	_, err = w.run(1, &droverv1.Edge{Undo: true, Ops: opsOf(drover.EdgeOp{Do: drover.WithdrawRoutes, Addresses: vmAddresses})})
	must(t, err)
	if _, err := w.cutOver("n1", 1); drover.KindOf(err) != drover.NotFound {
		t.Errorf("got %v", err)
	}
	if len(w.router.Table()) != 0 {
		t.Error("it was announced")
	}
	// One that fails stays staged, and may be called out again.
	_, err = w.run(1, &droverv1.StageEdge{Ops: ops})
	must(t, err)
	w.router.SetSession(w.routes, false)
	if _, err := w.cutOver("n1", 1); drover.KindOf(err) != drover.Unavailable {
		t.Errorf("without a router: got %v", err)
	}
	w.router.SetSession(w.routes, true)
	_, err = w.cutOver("n1", 1)
	must(t, err)
}

// TestUndoEndsOtherActions: an undo does not wait for what it takes back.
func TestUndoEndsOtherActions(t *testing.T) {
	w := newEdgeWorld(t)
	begun := make(chan struct{})
	block := make(chan struct{})
	var once sync.Once
	w.slow = func(op string) error {
		if op == "meter" {
			once.Do(func() { close(begun) })
			<-block
			time.Sleep(time.Millisecond)
		}
		return nil
	}
	w.start()
	// So many that the undo finds some of them left to do.
	ops := slices.Repeat([]drover.EdgeOp{{Do: drover.MeterTraffic, Addresses: vmAddresses}}, maxEdgeOps-1)
	ops = append(ops, drover.EdgeOp{Do: drover.AnnounceRoutes, Addresses: vmAddresses})
	first := make(chan error, 1)
	go func() {
		_, err := w.run(1, &droverv1.Edge{Ops: opsOf(ops...)})
		first <- err
	}()
	<-begun
	undone := make(chan error, 1)
	u := &droverv1.RunRequest{
		Ref: &droverv1.MoveRef{Move: moveName, Generation: 1, Vm: vmName, VmUuid: vmUUID}, Step: "undo",
		Action: &droverv1.RunRequest_Edge{Edge: &droverv1.Edge{Undo: true, Ops: opsOf(drover.EdgeOp{Do: drover.ForgetAddresses})}},
	}
	go func() {
		stream, err := w.client.Run(context.Background(), u)
		if err == nil {
			for stream.Receive() {
			}
			err = stream.Err()
			stream.Close()
		}
		undone <- err
	}()
	// The undo is there before the action is let go on.
	for !w.agent.jobs.undoing(moveName) {
		time.Sleep(time.Millisecond)
	}
	close(block)
	if err := <-first; drover.KindOf(err) != drover.Canceled {
		t.Errorf("the action ended with %v", err)
	}
	must(t, <-undone)
	if len(w.router.Table()) != 0 || strings.Contains(w.kernel.State(), "meter") {
		t.Errorf("after the undo: %v, %s", w.router.Table(), w.kernel.State())
	}
}

// undoing reports whether an undo of the move runs.
func (js *jobs) undoing(move string) bool {
	js.mu.Lock()
	defer js.mu.Unlock()
	for k := range js.running {
		if k.move == move && k.kind == "undo-edge" {
			return true
		}
	}
	return false
}

// TestEdgeRestart: the next process finds what stands, and the mesh.
func TestEdgeRestart(t *testing.T) {
	w := newEdgeWorld(t).start().meshed()
	_, err := w.do(
		drover.EdgeOp{Do: drover.ExtendSegment, Segment: "blue", Sites: []string{"south"}}, drover.EdgeOp{Do: drover.AnnounceRoutes, Addresses: vmAddresses},
		drover.EdgeOp{Do: drover.ReserveLease, Segment: "blue", MAC: vmMAC},
	)
	must(t, err)
	before := w.standing()
	w.stop()
	w.start()
	if diff := cmp.Diff(before, w.standing()); diff != "" {
		t.Error(diff)
	}
	r, err := w.client.EdgeStatus(t.Context(), &droverv1.EdgeStatusRequest{})
	must(t, err)
	s := api.EdgeStateFromProto(r.GetState())
	if len(s.Peers) != 1 || s.Peers[0].Site != "south" || len(s.Extended) != 1 || !slices.Equal(s.Extended[0].Sites, []string{"south"}) ||
		len(s.Neighbors) != 1 || len(s.Servers) != 3 || len(s.Segments) != 1 {
		t.Errorf("%+v", s)
	}
	// Nobody has shaken hands in memory: that is all that is wrong.
	if len(s.Faults) != 1 || !strings.Contains(s.Faults[0], "no handshake with the edge of site south") {
		t.Errorf("faults %q", s.Faults)
	}
	_, err = w.do(drover.EdgeOp{Do: drover.ExtendSegment, Segment: "blue", Sites: []string{"south"}})
	must(t, err)
}

// TestRemoveOwned removes what an owner has, kind by kind, and nothing else.
func TestRemoveOwned(t *testing.T) {
	w := newEdgeWorld(t).start().meshed()
	nothing := w.standing()
	for _, v := range edgeVerbs {
		_, err := w.do(append(slices.Clone(v.before), v.op)...)
		if drover.KindOf(err) == drover.Exists {
			continue // the addresses are elsewhere by an operation before
		}
		must(t, err)
	}
	_, err := w.run(1, &droverv1.StageEdge{Ops: opsOf(drover.EdgeOp{Do: drover.ForgetAddresses})})
	must(t, err)
	r, err := w.client.Owned(t.Context(), &droverv1.OwnedRequest{})
	must(t, err)
	kinds := map[string]bool{}
	for _, x := range r.GetThings() {
		kinds[x.GetKind()] = true
		// A VM that was moved by a host route has its address at home still, where it
		// may be given to nobody else.
		if x.GetKind() == ownedLease && x.GetAt() != "" {
			t.Errorf("%s is needed at site %q only", x.GetWhat(), x.GetAt())
		}
		_, err := w.client.RemoveOwned(t.Context(), &droverv1.RemoveOwnedRequest{Owner: "vm/another", Kind: x.GetKind()})
		if x.GetKind() != ownedStaged {
			must(t, err)
		}
	}
	again, err := w.client.Owned(t.Context(), &droverv1.OwnedRequest{})
	must(t, err)
	if len(again.GetThings()) != len(r.GetThings()) {
		t.Errorf("removed for another owner: %v", again)
	}
	for _, kind := range []string{ownedExtension, ownedRoute, ownedName, ownedLease, ownedServer, ownedStaged, "accept-old", "watch", "meter"} {
		if !kinds[kind] {
			t.Errorf("nothing of kind %s stands", kind)
		}
	}
	for _, x := range r.GetThings() {
		_, err := w.client.RemoveOwned(t.Context(), &droverv1.RemoveOwnedRequest{Owner: x.GetOwner(), Kind: x.GetKind()})
		must(t, err)
	}
	if diff := cmp.Diff(nothing, w.standing()); diff != "" {
		t.Error(diff)
	}
	if _, err := w.client.RemoveOwned(t.Context(), &droverv1.RemoveOwnedRequest{Owner: edgeOwner, Kind: "everything"}); drover.KindOf(err) != drover.Invalid {
		t.Errorf("an unknown kind: got %v", err)
	}
}

// TestRemoveOwnedName: a name is put back, or stays as it is.
func TestRemoveOwnedName(t *testing.T) {
	w := newEdgeWorld(t).start()
	for kind, want := range map[string]string{ownedName: "10.50.0.11", ownedNameKept: "10.60.0.9"} {
		_, err := w.do(drover.EdgeOp{Do: drover.SetName, Name: "web.example", Addresses: addresses("10.60.0.9"), Owner: "move/m"})
		must(t, err)
		_, err = w.client.RemoveOwned(t.Context(), &droverv1.RemoveOwnedRequest{Owner: "move/m", Kind: kind})
		must(t, err)
		got, err := w.agent.siteedge.Names["example"].Answers(t.Context(), "web.example")
		must(t, err)
		if a := got[0].Records.Addresses; len(a) != 1 || a[0].String() != want {
			t.Errorf("%s: the name has %v, want %s", kind, a, want)
		}
		w.zone.Put("web.example", driver.NameRecords{Addresses: addresses("10.50.0.11"), TTL4: 5 * time.Minute})
	}
}

func TestRotateMesh(t *testing.T) {
	w := newEdgeWorld(t).start()
	first, err := w.client.RotateMesh(t.Context(), &droverv1.RotateMeshRequest{})
	must(t, err)
	next := first.GetMesh().GetNextKey()
	if _, err := w.client.RotateMesh(t.Context(), &droverv1.RotateMeshRequest{Adopt: driver.TunnelKey{9}.String()}); drover.KindOf(err) != drover.Refused {
		t.Errorf("another key: got %v", err)
	}
	second, err := w.client.RotateMesh(t.Context(), &droverv1.RotateMeshRequest{Adopt: next})
	must(t, err)
	if m := second.GetMesh(); next == "" || m.GetKey() != next || m.GetNextKey() != "" {
		t.Errorf("%v, then %v", first, second)
	}
	d, err := w.client.Describe(t.Context(), &droverv1.DescribeRequest{})
	must(t, err)
	if d.GetMesh().GetKey() != next || len(d.GetSegments()) != 1 {
		t.Errorf("described as %v, %v", d.GetMesh(), d.GetSegments())
	}
}
