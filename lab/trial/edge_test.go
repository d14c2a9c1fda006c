package trial_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/lab"
	"github.com/drover-vm/drover/lab/node"
	"github.com/drover-vm/drover/lab/trial"
	"github.com/drover-vm/drover/pki"
)

// edgeTrial is the lab, and a server of the test's own to its edges.
type edgeTrial struct {
	*routedTrial
	ca *pki.CA
	// dhcp are the DHCP servers of south.
	dhcp []lab.EdgeDHCP
	// step counts the actions, so that each has a name of its own.
	step int
}

// stranger is the VM of the test's own that no host has.
const stranger = "vm/0f0f0f0f-0000-4000-8000-000000000001"

// testEdge has the edges of a lab do everything that a move may ask of them, and
// looks at the components themselves.
func testEdge(r *routedTrial) {
	ca, err := pki.LoadCA(filepath.Join(r.lab.Dir, "pki"))
	if err != nil {
		r.t.Fatal(err)
	}
	e := &edgeTrial{routedTrial: r, ca: ca, dhcp: r.services("south").DHCP}
	for _, sub := range []struct {
		name string
		run  func(*edgeTrial)
	}{
		{"mesh", (*edgeTrial).mesh},
		{"vms", (*edgeTrial).vms},
		{"segment", (*edgeTrial).segment},
		{"routes", (*edgeTrial).routes},
		{"cut-over", (*edgeTrial).cutOver},
		{"name", (*edgeTrial).name},
		{"lease", (*edgeTrial).lease},
		{"balancer", (*edgeTrial).balancer},
		{"killed", (*edgeTrial).killed},
		{"rotation", (*edgeTrial).rotation},
		{"doctor", (*edgeTrial).doctor},
	} {
		r.t.Run(sub.name, func(t *testing.T) {
			here := *r
			here.t = t
			one := edgeTrial{routedTrial: &here, ca: e.ca, dhcp: e.dhcp, step: e.step}
			sub.run(&one)
			e.step = one.step
		})
	}
}

// eventually waits for something that comes by itself.
func (e *edgeTrial) eventually(what string, ok func() error) {
	e.t.Helper()
	var err error
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if err = ok(); err == nil {
			return
		}
	}
	e.t.Fatalf("waited a minute for %s: %v", what, err)
}

// says is what a line writes that is run in a node.
func (e *edgeTrial) says(node, line string) string {
	e.t.Helper()
	out, err := e.shell(node, line)
	if err != nil {
		e.t.Fatalf("%s: %s: %v", node, line, err)
	}
	return out
}

func (e *edgeTrial) edges() map[string]drover.EdgeState {
	e.t.Helper()
	var all []drover.EdgeState
	if err := e.Drover(timeout(e.t, time.Minute), &all, "edges"); err != nil {
		e.t.Fatal(err)
	}
	by := map[string]drover.EdgeState{}
	for _, s := range all {
		by[s.Site] = s
	}
	return by
}

// relay makes the agent of a node reachable for this process, which is in
// another network.
func (e *edgeTrial) relay(at string) string {
	e.t.Helper()
	n, err := e.lab.Node(at)
	if err != nil {
		e.t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			near, err := listener.Accept()
			if err != nil {
				return
			}
			far, err := e.lab.Dial(context.Background(), at, "tcp", net.JoinHostPort(n.Address, "7443"))
			if err != nil {
				near.Close()
				continue
			}
			go func() { _, _ = io.Copy(far, near); far.Close() }()
			go func() { _, _ = io.Copy(near, far); near.Close() }()
		}
	}()
	return listener.Addr().String()
}

// agentOf is a site's edge, as a server reaches it.
func (e *edgeTrial) agentOf(site string) *api.AgentClient {
	e.t.Helper()
	files, err := e.ca.Issue(pki.Identity{Role: pki.Server, Name: "trial"}, nil, e.t.TempDir(), time.Now())
	if err != nil {
		e.t.Fatal(err)
	}
	cfg, err := pki.Config(files)
	if err != nil {
		e.t.Fatal(err)
	}
	c := api.NewAgentClient(e.relay("edge-"+site), cfg, "edge-"+site)
	e.t.Cleanup(c.Close)
	return c
}

func (e *edgeTrial) ref() *droverv1.MoveRef {
	return &droverv1.MoveRef{Move: "trial-1", Generation: 1, Vm: "trial", VmUuid: "0f0f0f0f-0000-4000-8000-000000000001"}
}

// try asks a site's edge for operations.
func (e *edgeTrial) try(site string, ops ...drover.EdgeOp) (*droverv1.RunResult, error) {
	e.t.Helper()
	return e.action(site, &droverv1.RunRequest{Action: &droverv1.RunRequest_Edge{
		Edge: &droverv1.Edge{Ops: api.ListToProto(ops, api.EdgeOpToProto)},
	}})
}

func (e *edgeTrial) action(site string, r *droverv1.RunRequest) (*droverv1.RunResult, error) {
	e.t.Helper()
	e.step++
	r.Ref, r.Step = e.ref(), fmt.Sprintf("step-%d", e.step)
	stream, err := e.agentOf(site).Run(timeout(e.t, time.Minute), r)
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

// do asks for operations, twice: all are repeatable.
func (e *edgeTrial) do(site string, ops ...drover.EdgeOp) *droverv1.RunResult {
	e.t.Helper()
	for i := range ops {
		if ops[i].Owner == "" {
			ops[i].Owner = stranger
		}
	}
	var r *droverv1.RunResult
	for range 2 {
		var err error
		if r, err = e.try(site, ops...); err != nil {
			e.t.Fatalf("%s: %v", site, err)
		}
	}
	return r
}

func (e *edgeTrial) mesh() {
	e.eventually("the mesh and the routers", func() error {
		states := e.edges()
		if len(states) != 3 {
			return fmt.Errorf("%d edges", len(states))
		}
		for _, s := range states {
			if len(s.Faults) > 0 || len(s.Peers) != 2 || len(s.Neighbors) != 1 {
				return fmt.Errorf("%s: %+v", s.Name, s)
			}
		}
		return nil
	})
	for _, a := range []string{"100.125.0.2", "fd64:726f:7672::3"} {
		e.says("edge-north", "ping -c 1 -W 5 "+a)
	}
}

// vms expects the guests' addresses in the inventory, as their agents say.
func (e *edgeTrial) vms() {
	e.eventually("the addresses of sheep1", func() error {
		var v drover.VM
		if err := e.Drover(timeout(e.t, time.Minute), &v, "vms", "get", "sheep1"); err != nil {
			return err
		}
		want := []netip.Addr{netip.MustParseAddr("10.50.0.11"), netip.MustParseAddr("fd00:50::11")}
		if len(v.NICs) != 1 || !slices.Equal(v.NICs[0].Addresses, want) {
			return fmt.Errorf("%+v", v.NICs)
		}
		return nil
	})
}

func (e *edgeTrial) segment() {
	sites := []string{"north", "south"}
	for _, site := range sites {
		e.do(site, drover.EdgeOp{Do: drover.ExtendSegment, Segment: "blue", Sites: sites, LocalEgress: true})
	}
	e.do("south", drover.EdgeOp{
		Do: drover.SetStation, Segment: "blue", MAC: "52:54:00:aa:00:01", Site: "north", Addresses: []netip.Addr{netip.MustParseAddr("10.50.0.77")},
	})
	for _, site := range sites {
		if out := e.says("edge-"+site, "ip -o link show type vxlan"); !strings.Contains(out, "master br-blue") {
			e.t.Errorf("%s: %s", site, out)
		}
	}
	if out := e.says("edge-south", "bridge fdb show"); !strings.Contains(out, "52:54:00:aa:00:01") {
		e.t.Errorf("the station is not known: %s", out)
	}
	if x := e.edges()["north"].Extended; len(x) != 1 || !slices.Equal(x[0].Sites, []string{"south"}) || x[0].Fault != "" {
		e.t.Errorf("north says %+v", x)
	}
	if _, err := e.try("north", drover.EdgeOp{Do: drover.ExtendSegment, Owner: stranger, Segment: "blue", Sites: []string{"moon"}}); drover.KindOf(err) != drover.Unavailable {
		e.t.Errorf("an unknown site: got %v", err)
	}
	if _, err := e.try("north", drover.EdgeOp{Do: drover.ExtendSegment, Owner: stranger, Segment: "green", Sites: sites}); drover.KindOf(err) != drover.NotFound {
		e.t.Errorf("a segment that is not at the site: got %v", err)
	}
	for _, site := range sites {
		e.do(site, drover.EdgeOp{Do: drover.RetractSegment, Segment: "blue"})
		if out := e.says("edge-"+site, "ip -o link show type vxlan"); out != "" {
			e.t.Errorf("%s: still there: %s", site, out)
		}
	}
}

var strays = []netip.Addr{netip.MustParseAddr("10.50.0.77"), netip.MustParseAddr("fd00:50::77")}

func (e *edgeTrial) announce() []drover.EdgeOp {
	return []drover.EdgeOp{
		{Do: drover.DeliverHere, Owner: stranger, Segment: "blue", Addresses: strays, MAC: "52:54:00:aa:00:01"},
		{Do: drover.ProxyRest, Owner: stranger, Segment: "blue"},
		{Do: drover.AnnounceRoutes, Owner: stranger, Addresses: strays},
		{Do: drover.MeterTraffic, Owner: stranger, Addresses: strays},
	}
}

func (e *edgeTrial) withdraw() []drover.EdgeOp {
	return []drover.EdgeOp{
		{Do: drover.WithdrawRoutes, Owner: stranger, Addresses: strays},
		{Do: drover.ForgetAddresses, Owner: stranger},
	}
}

// routed waits until all routers send the stray addresses to south, or nobody.
func (e *edgeTrial) routed(there bool) {
	e.t.Helper()
	for _, router := range []string{"north-router", "south-router", "west-router"} {
		e.eventually(fmt.Sprintf("host routes in %s: %v", router, there), func() error {
			out := e.says(router, "vtysh -c 'show ip route' -c 'show ipv6 route'")
			for _, a := range strays {
				if strings.Contains(out, netip.PrefixFrom(a, a.BitLen()).String()) != there {
					return errors.New(out)
				}
			}
			return nil
		})
	}
}

func (e *edgeTrial) routes() {
	e.do("south", e.announce()...)
	e.routed(true)
	if out := e.says("edge-south", "ip route show 10.50.0.77"); !strings.Contains(out, "br-blue") {
		e.t.Errorf("it is not delivered: %s", out)
	}
	e.do("north", drover.EdgeOp{Do: drover.Elsewhere, Segment: "blue", Addresses: strays})
	if _, err := e.try("west", e.announce()...); drover.KindOf(err) != drover.Refused {
		e.t.Errorf("an edge without segments: got %v", err)
	}
	e.do("south", e.withdraw()...)
	e.do("north", drover.EdgeOp{Do: drover.ForgetAddresses})
	e.routed(false)
}

// cutOver stages the same and lets a host of the site call it out.
func (e *edgeTrial) cutOver() {
	stage := func(ops []drover.EdgeOp) error {
		_, err := e.action("south", &droverv1.RunRequest{Action: &droverv1.RunRequest_StageEdge{
			StageEdge: &droverv1.StageEdge{Ops: api.ListToProto(ops, api.EdgeOpToProto), By: "s1"},
		}})
		return err
	}
	call := func(host string) error {
		files, err := e.ca.Issue(pki.Identity{Role: pki.Agent, Name: host}, nil, e.t.TempDir(), time.Now())
		if err != nil {
			return err
		}
		cfg, err := pki.Config(files)
		if err != nil {
			return err
		}
		c := api.NewPeerClient(e.relay("edge-south"), cfg, "edge-south")
		defer c.Close()
		began := time.Now()
		r, err := c.CutOver(timeout(e.t, time.Minute), &droverv1.CutOverRequest{Ref: e.ref()})
		e.t.Logf("called by %s: %v, %d", host, time.Since(began).Round(time.Millisecond), r.GetAtUnixNanos())
		return err
	}
	if err := stage(e.announce()); err != nil {
		e.t.Fatal(err)
	}
	e.routed(false)
	if err := call("n1"); drover.KindOf(err) != drover.Denied {
		e.t.Errorf("another host: got %v", err)
	}
	for range 2 {
		if err := call("s1"); err != nil {
			e.t.Fatal(err)
		}
	}
	e.routed(true)
	e.do("south", e.withdraw()...)
	e.routed(false)
	if err := stage(nil); err != nil {
		e.t.Fatal(err)
	}
	if err := call("s1"); drover.KindOf(err) != drover.NotFound {
		e.t.Errorf("with nothing staged: got %v", err)
	}
}

// answer asks a name server.
func (e *edgeTrial) answer(server, name, kind string) string {
	e.t.Helper()
	return e.says("c1", fmt.Sprintf("dig +noall +answer @%s %s %s | awk '{print $2, $5}'", server, name, kind))
}

func (e *edgeTrial) name() {
	const name = "sheep1.routed.example"
	// The zone's servers: the primary at north, a secondary at south.
	servers := []string{"10.1.0.1", "10.2.0.1"}
	before := e.answer(servers[0], name, "A")
	if !strings.HasPrefix(before, "300 10.50.0.11") {
		e.t.Fatalf("the name is %q", before)
	}
	e.do("west", drover.EdgeOp{Do: drover.LowerName, Name: name, Limit: time.Second})
	if got := e.answer(servers[0], name, "A"); got != "1 10.50.0.11" {
		e.t.Errorf("lowered: %q", got)
	}
	r := e.do("west", drover.EdgeOp{Do: drover.SetName, Name: name, Addresses: []netip.Addr{netip.MustParseAddr("10.60.0.9")}, Limit: time.Second})
	if r.GetDetail() != "" {
		e.t.Errorf("not every server answers: %s", r.GetDetail())
	}
	for _, s := range servers {
		if got := e.answer(s, name, "A"); got != "1 10.60.0.9" {
			e.t.Errorf("%s: %q", s, got)
		}
	}
	e.do("west", drover.EdgeOp{Do: drover.RestoreName, Name: name})
	if got := e.answer(servers[0], name, "A"); got != before {
		e.t.Errorf("restored: %q, before %q", got, before)
	}
}

func (e *edgeTrial) kea(family, command string) string {
	e.t.Helper()
	var socket string
	for _, d := range e.dhcp {
		if d.Subnet.Addr().Is4() == (family == "4") {
			socket = d.Socket
		}
	}
	return e.says("edge-south", fmt.Sprintf(`echo '{"command": "%s"}' | socat -t 5 - UNIX-CONNECT:%s`, command, socket))
}

func (e *edgeTrial) lease() {
	const mac = "52:54:00:aa:00:02"
	r := e.do("south", drover.EdgeOp{Do: drover.ReserveLease, Segment: "green", MAC: mac, Name: "trial"})
	if len(r.GetAddresses()) != 2 || !strings.HasPrefix(r.GetAddresses()[0], "10.60.0.") || !strings.HasSuffix(r.GetAddresses()[0], "/24") ||
		!slices.Equal(r.GetGateways(), []string{"10.60.0.1", "fd00:60::1"}) {
		e.t.Fatalf("reserved %v, gateways %v", r.GetAddresses(), r.GetGateways())
	}
	for _, family := range []string{"4", "6"} {
		if out := e.kea(family, "lease"+family+"-get-all"); !strings.Contains(out, stranger) {
			e.t.Errorf("Kea has no such lease: %s", out)
		}
	}
	e.do("south", drover.EdgeOp{Do: drover.ReleaseLease, Segment: "green", MAC: mac})
	for _, family := range []string{"4", "6"} {
		if out := e.kea(family, "lease"+family+"-get-all"); !strings.Contains(out, "0 IPv"+family+" lease(s) found") {
			e.t.Errorf("Kea still has a lease: %s", out)
		}
	}
	if _, err := e.try("south", drover.EdgeOp{Do: drover.ReserveLease, Owner: stranger, Segment: "blue", MAC: mac}); drover.KindOf(err) != drover.Refused {
		e.t.Errorf("a segment without DHCP: got %v", err)
	}
}

func (e *edgeTrial) haproxy(command string) string {
	e.t.Helper()
	return e.says("edge-west", fmt.Sprintf("echo '%s' | socat -t 5 - UNIX-CONNECT:/run/haproxy/admin.sock", command))
}

func (e *edgeTrial) balancer() {
	const name = "drover-vm:0f0f0f0f-0000-4000-8000-000000000001:two"
	op := func(do drover.EdgeVerb) drover.EdgeOp {
		return drover.EdgeOp{Do: do, Backend: "web", Name: "two", Target: "10.50.0.12:8080", Weight: 50}
	}
	state := func(server string) string {
		for line := range strings.Lines(e.haproxy("show stat")) {
			if f := strings.Split(line, ","); len(f) > 18 && f[0] == "web" && f[1] == server {
				return f[17] + " " + f[18]
			}
		}
		return ""
	}
	e.do("west", op(drover.AddServer))
	if got := state(name); !strings.HasPrefix(got, "MAINT") {
		e.t.Errorf("added: %q", got)
	}
	e.do("west", op(drover.ReadyServer))
	e.eventually("the new server to be up", func() error {
		if got := state(name); got != "UP 50" {
			return errors.New(got)
		}
		return nil
	})
	weight := op(drover.WeighServer)
	weight.Weight = 10
	e.do("west", weight, op(drover.DrainServer))
	if got := state(name); !strings.HasPrefix(got, "DRAIN") {
		e.t.Errorf("drained: %q", got)
	}
	e.do("west", op(drover.RemoveServer))
	if got := state(name); got != "" {
		e.t.Errorf("removed: %q", got)
	}
	// HAProxy's own server is drained and gets back what it had.
	own := drover.EdgeOp{Do: drover.DrainServer, Backend: "web", Name: "web1"}
	e.do("west", own)
	if got := state("web1"); !strings.HasPrefix(got, "DRAIN") {
		e.t.Errorf("drained: %q", got)
	}
	own.Do = drover.RemoveServer
	e.do("west", own)
	if got := state("web1"); !strings.HasPrefix(got, "UP") {
		e.t.Errorf("given back: %q", got)
	}
	if _, err := e.try("west", drover.EdgeOp{Do: drover.DrainServer, Owner: stranger, Backend: "nosuch", Name: "a"}); drover.KindOf(err) != drover.NotFound {
		e.t.Errorf("an unknown backend: got %v", err)
	}
}

// owned is what stands at an edge, in words.
func (e *edgeTrial) owned(site string) []string {
	e.t.Helper()
	r, err := e.agentOf(site).Owned(timeout(e.t, time.Minute), &droverv1.OwnedRequest{})
	if err != nil {
		e.t.Fatal(err)
	}
	var list []string
	for _, x := range r.GetThings() {
		list = append(list, x.GetKind()+" "+x.GetOwner()+" "+x.GetWhat())
	}
	slices.Sort(list)
	return append(list, r.GetFaults()...)
}

// killed kills an edge's agent, which is started again, and expects everything
// as it was: what stands, what routers know, the mesh.
func (e *edgeTrial) killed() {
	e.do("south", append(e.announce(),
		drover.EdgeOp{Do: drover.ExtendSegment, Segment: "blue", Sites: []string{"north"}},
		drover.EdgeOp{Do: drover.ReserveLease, Segment: "green", MAC: "52:54:00:aa:00:03"},
		drover.EdgeOp{Do: drover.SetName, Name: "trial.routed.example", Addresses: strays},
	)...)
	e.routed(true)
	before := e.owned("south")
	if _, err := e.lab.Service(e.t.Context(), "edge-south", node.Kill, "agent"); err != nil {
		e.t.Fatal(err)
	}
	e.eventually("the agent to be back", func() error {
		_, err := e.agentOf("south").EdgeStatus(timeout(e.t, 10*time.Second), &droverv1.EdgeStatusRequest{Brief: true})
		return err
	})
	if diff := cmp.Diff(before, e.owned("south")); diff != "" {
		e.t.Error(diff)
	}
	e.mesh()
	e.routed(true)
	// What no host has and no move needs is found and removed.
	var d drover.Diagnosis
	var exit *trial.ExitError
	if err := e.Drover(timeout(e.t, time.Minute), &d, "doctor"); !errors.As(err, &exit) || exit.Status != 1 || d.OK || len(d.Findings) < len(before) {
		e.t.Errorf("doctor: %v, %+v", err, d)
	}
	if err := e.Drover(timeout(e.t, time.Minute), &d, "doctor", "--remove"); err != nil || !d.OK {
		e.t.Errorf("doctor --remove: %v, %+v", err, d)
	}
	e.routed(false)
}

// rotation gives an edge another key; the mesh goes on with it.
func (e *edgeTrial) rotation() {
	var next drover.MeshState
	if err := e.Drover(timeout(e.t, time.Minute), &next, "edges", "rotate", "north"); err != nil || next.NextKey == "" {
		e.t.Fatalf("%v: %+v", err, next)
	}
	e.eventually("the next key to be in use", func() error {
		states := e.edges()
		if m := states["north"].Mesh; m.Key != next.NextKey || m.NextKey != "" {
			return fmt.Errorf("north has %+v", m)
		}
		for _, site := range []string{"south", "west"} {
			for _, p := range states[site].Peers {
				if p.Site == "north" && (p.Key != next.NextKey || p.NextKey != "") {
					return fmt.Errorf("%s knows of %+v", site, p)
				}
			}
		}
		return nil
	})
	e.mesh()
}

// clean is what of Drover's stands in an edge's kernel, beside the mesh itself.
const clean = `nft list tables | grep drover; ip -o link show type vxlan; ip rule show | grep -w 215
ip route show table all proto 215 | grep -v 'dev drover0'; ip -6 route show table all proto 215 | grep -v 'dev drover0'
ip neigh show proxy; ip -6 neigh show proxy; true`

func (e *edgeTrial) doctor() {
	var d drover.Diagnosis
	if err := e.Drover(timeout(e.t, time.Minute), &d, "doctor"); err != nil || !d.OK || len(d.Findings) != 0 {
		e.t.Errorf("%v: %+v", err, d)
	}
	for _, site := range []string{"north", "south", "west"} {
		if out := e.says("edge-"+site, clean); out != "" {
			e.t.Errorf("%s: left in the kernel:\n%s", site, out)
		}
	}
	if out := e.haproxy("show servers state web"); strings.Contains(out, "drover-") {
		e.t.Errorf("left in HAProxy: %s", out)
	}
	if out := e.says("edge-north", "dig +noall +answer @127.0.0.1 -k /run/drover/conf/dns.key routed.example AXFR"); strings.Contains(out, "drover:") || strings.Contains(out, "trial.") {
		e.t.Errorf("left in DNS: %s", out)
	}
	for _, family := range []string{"4", "6"} {
		var answer []struct {
			Arguments struct{ Leases []map[string]any }
		}
		raw := e.kea(family, "lease"+family+"-get-all")
		if err := json.Unmarshal([]byte("["+strings.Trim(raw, "[] \n")+"]"), &answer); err != nil {
			e.t.Errorf("%v: %s", err, raw)
		}
		for _, a := range answer {
			if len(a.Arguments.Leases) > 0 {
				e.t.Errorf("left in Kea: %v", a.Arguments.Leases)
			}
		}
	}
}
