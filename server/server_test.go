package server_test

import (
	"context"
	"errors"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/executor"
	"github.com/drover-vm/drover/pki"
	"github.com/drover-vm/drover/server"
	"github.com/drover-vm/drover/server/servertest"
	"github.com/drover-vm/drover/store/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait of a test for something that comes by itself.
const patience = 30 * time.Second

// installation is a world with a server.
type installation struct {
	*servertest.World
	t      *testing.T
	cfg    server.Config
	store  *memory.Store
	client *api.Client
	stop   func() error
}

// quick makes the executor give up on an agent while a test still looks.
var quick = executor.Limits{StepPatience: 2 * time.Second, RetryFirst: 5 * time.Millisecond, RetryMost: 50 * time.Millisecond}

// newInstallation makes two sites: n1 with web1 and ne, s1 and se, with a
// prober at c1.
func newInstallation(t *testing.T) *installation {
	t.Helper()
	w := servertest.New(t,
		servertest.Place{Name: "n1", Site: "north"}, servertest.Place{Name: "ne", Site: "north"},
		servertest.Place{Name: "s1", Site: "south"}, servertest.Place{Name: "s2", Site: "south"},
		servertest.Place{Name: "se", Site: "south"}, servertest.Place{Name: "c1", Site: "north"})
	for _, e := range []struct{ name, site string }{{"ne", "north"}, {"se", "south"}, {"c1", "north"}} {
		w.Agents[e.name].Set(func(s *servertest.State) {
			s.Host = servertest.Edge(e.name, e.site)
			if e.name != "c1" {
				s.Links = []*droverv1.LinkCounters{{Name: "north-south", A: "north", B: "south", AbBytes: 1000, BaBytes: 100}}
			}
		})
	}
	w.Agents["c1"].Set(func(s *servertest.State) {
		s.Probe = &droverv1.ProbeResult{OutageMs: 118, OutageHttpMs: 90, Sessions: 4, BeatsSent: 1000, BeatsAnswered: 1000, HttpOk: 50}
	})
	w.Agents["s2"].Set(func(s *servertest.State) { s.Host.MemoryFreeBytes = drover.GiB })
	w.Agents["n1"].Set(func(s *servertest.State) { s.VMs["web1"] = servertest.VM("web1") })
	in := &installation{World: w, t: t, cfg: w.Config("north", "south"), store: memory.New()}
	in.start()
	t.Cleanup(func() { in.end() })
	return in
}

// start runs a server on the installation's store and waits until it has
// heard of every agent that answers.
func (in *installation) start() {
	in.t.Helper()
	tls, err := pki.Config(in.cfg.TLS)
	if err != nil {
		in.t.Fatal(err)
	}
	s, err := server.New(server.Deps{Journal: in.store, Inventory: in.store, TLS: tls, Limits: quick, Sleep: briefly}, in.cfg)
	if err != nil {
		in.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	in.client = in.dial(pki.Operator, "alice")
	in.stop = func() error {
		cancel()
		in.client.Close()
		return <-ended
	}
}

// briefly spends a thousandth of the time.
func briefly(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d / 1000):
	case <-ctx.Done():
	}
}

func (in *installation) dial(role pki.Role, name string) *api.Client {
	in.t.Helper()
	cfg, err := pki.Config(in.Files(role, name))
	if err != nil {
		in.t.Fatal(err)
	}
	c, err := api.NewClient("unix://"+in.cfg.Socket, cfg)
	if err != nil {
		in.t.Fatal(err)
	}
	return c
}

// end stops the server; again is fine.
func (in *installation) end() {
	in.t.Helper()
	if in.stop == nil {
		return
	}
	if err := in.stop(); err != nil {
		in.t.Errorf("run: %v", err)
	}
	in.stop = nil
}

// until waits for something that comes by itself.
func (in *installation) until(what string, ok func() bool) {
	in.t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			in.t.Fatalf("waited %v for %s", patience, what)
		}
	}
}

func (in *installation) hosts() map[string]drover.Host {
	in.t.Helper()
	r, err := in.client.ListHosts(in.t.Context(), &droverv1.ListHostsRequest{})
	if err != nil {
		in.t.Fatal(err)
	}
	by := map[string]drover.Host{}
	for _, h := range api.ListFromProto(r.GetHosts(), api.HostFromProto) {
		by[h.Name] = h
	}
	return by
}

func (in *installation) vms() []drover.VM {
	in.t.Helper()
	r, err := in.client.ListVMs(in.t.Context(), &droverv1.ListVMsRequest{})
	if err != nil {
		in.t.Fatal(err)
	}
	return api.ListFromProto(r.GetVms(), api.VMFromProto)
}

// allUp waits until every agent has answered.
func (in *installation) allUp() {
	in.t.Helper()
	in.until("all hosts to be up", func() bool {
		for _, h := range in.hosts() {
			if !h.Up {
				return false
			}
		}
		return true
	})
}

// startMove asks for a move and wants it to be accepted.
func (in *installation) startMove(r *droverv1.StartMoveRequest) drover.Move {
	in.t.Helper()
	resp, err := in.client.StartMove(in.t.Context(), r)
	if err != nil {
		in.t.Fatal(err)
	}
	if resp.GetMove() == nil {
		in.t.Fatalf("refused: %v", resp.GetPreflight())
	}
	return api.MoveFromProto(resp.GetMove())
}

// follow watches a move until f is content, and returns it as it is then.
func (in *installation) follow(name string, f func(drover.Move) bool) drover.Move {
	in.t.Helper()
	ctx, cancel := context.WithTimeout(in.t.Context(), patience)
	defer cancel()
	stream, err := in.client.WatchMove(ctx, &droverv1.WatchMoveRequest{Name: name})
	if err != nil {
		in.t.Fatal(err)
	}
	defer stream.Close()
	var m drover.Move
	for stream.Receive() {
		if m = api.MoveFromProto(stream.Msg().GetMove()); f(m) {
			return m
		}
	}
	in.t.Fatalf("the stream ended with move %s %s (%s): %v", name, m.State, m.Fault, stream.Err())
	return m
}

func final(m drover.Move) bool { return m.State.Final() }

// atStep is content while the step sends progress.
func atStep(step string) func(drover.Move) bool {
	return func(m drover.Move) bool { return m.Progress != nil && m.Progress.Step == step }
}

func to(site, host string) *droverv1.Place { return &droverv1.Place{Site: site, Host: host} }

func TestInventory(t *testing.T) {
	in := newInstallation(t)
	in.allUp()
	ctx := t.Context()
	sites, err := in.client.ListSites(ctx, &droverv1.ListSitesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if got := sites.GetSites(); len(got) != 2 || !slices.Equal(got[1].GetHosts(), []string{"s1", "s2"}) {
		t.Errorf("sites: %v, want north and south with s1 and s2, without edges", got)
	}
	links, err := in.client.ListLinks(ctx, &droverv1.ListLinksRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if l := api.LinkFromProto(links.GetLinks()[0]); l != (drover.Link{Name: "north-south", A: "north", B: "south", Rate: 200 * drover.Mbps, RTTMillis: 50, ABBytes: 1000, BABytes: 100}) {
		t.Errorf("link: %+v", l)
	}
	services, err := in.client.ListServices(ctx, &droverv1.ListServicesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if s := services.GetServices(); len(s) != 1 || s[0].GetVm() != "web1" || s[0].GetSite() != "north" || s[0].GetProbe().GetTcp() == "" {
		t.Errorf("services: %v", s)
	}
	vms := in.vms()
	if len(vms) != 1 || vms[0].Host != "n1" || vms[0].Site != "north" || len(vms[0].Disks) != 2 {
		t.Errorf("vms: %+v", vms)
	}
}

func TestAgentDownAndFlapping(t *testing.T) {
	in := newInstallation(t)
	in.allUp()
	for range 3 {
		in.Agents["n1"].Stop()
		in.until("n1 to be down", func() bool { return !in.hosts()["n1"].Up })
		h := in.hosts()["n1"]
		if h.Fault == "" || h.LastSeen.IsZero() || h.MemoryBytes == 0 {
			t.Errorf("down: %+v, want its fault and what was known of it", h)
		}
		if vms := in.vms(); len(vms) != 1 || vms[0].Name != "web1" {
			t.Errorf("vms while their host is down: %v, want web1 as last seen", vms)
		}
		in.Agents["n1"].Start()
		in.until("n1 to be up", func() bool { return in.hosts()["n1"].Up })
		if h := in.hosts()["n1"]; h.Fault != "" {
			t.Errorf("up again with the fault %q", h.Fault)
		}
	}
}

func TestRestartedServerKnows(t *testing.T) {
	in := newInstallation(t)
	in.allUp()
	in.end()
	for _, a := range in.Agents {
		a.Stop()
	}
	in.start()
	h := in.hosts()["n1"]
	if h.Up || h.MemoryBytes != 8*drover.GiB || h.LastSeen.IsZero() || h.Fault == "" {
		t.Errorf("n1: %+v, want it down with what the first server saw", h)
	}
	if vms := in.vms(); len(vms) != 1 || vms[0].Name != "web1" || vms[0].Host != "n1" {
		t.Errorf("vms: %v, want web1 on n1", vms)
	}
}

func TestVMOnTwoHosts(t *testing.T) {
	in := newInstallation(t)
	in.allUp()
	in.Agents["s1"].Set(func(s *servertest.State) { s.VMs["web1"] = servertest.VM("web1") })
	in.until("the fault to be told", func() bool {
		h := in.hosts()
		return strings.Contains(h["n1"].Fault, "web1 runs here and on s1") && strings.Contains(h["s1"].Fault, "web1 runs here and on n1")
	})
	if vms := in.vms(); len(vms) != 2 {
		t.Errorf("vms: %v, want both copies shown", vms)
	}
	_, err := in.client.Preflight(t.Context(), &droverv1.PreflightRequest{Vm: "web1", To: to("south", "s2")})
	if drover.KindOf(err) != drover.Refused {
		t.Errorf("preflight: %v, want refused", err)
	}
	// A definition that was left over is the other host's fault alone.
	in.Agents["s1"].Set(func(s *servertest.State) {
		v := s.VMs["web1"]
		v.State = drover.VMOff
		s.VMs["web1"] = v
	})
	in.until("the other fault", func() bool {
		h := in.hosts()
		return h["n1"].Fault == "" && strings.Contains(h["s1"].Fault, "web1 is off here and running on n1")
	})
	if vms := in.vms(); len(vms) != 1 || vms[0].Host != "n1" {
		t.Errorf("vms: %v, want the running one", vms)
	}
	in.Agents["s1"].Set(func(s *servertest.State) { delete(s.VMs, "web1") })
	in.until("no fault", func() bool { return in.hosts()["s1"].Fault == "" })
}

func TestRoles(t *testing.T) {
	in := newInstallation(t)
	for _, role := range []pki.Role{pki.Agent, pki.Server} {
		c := in.dial(role, "mallory")
		_, err := c.ListVMs(t.Context(), &droverv1.ListVMsRequest{})
		if drover.KindOf(err) != drover.Denied || !strings.Contains(err.Error(), "mallory") {
			t.Errorf("%s: %v, want denied", role, err)
		}
		stream, err := c.WatchMove(t.Context(), &droverv1.WatchMoveRequest{Name: "m"})
		if err == nil {
			for stream.Receive() {
			}
			err = errors.Join(stream.Err(), stream.Close())
		}
		if drover.KindOf(err) != drover.Denied {
			t.Errorf("%s, stream: %v, want denied", role, err)
		}
		c.Close()
	}
}

func TestListensOnTCP(t *testing.T) {
	in := newInstallation(t)
	in.end()
	in.cfg.Listen = freePort(t)
	in.start()
	cfg, err := pki.Config(in.Files(pki.Operator, "bob"))
	if err != nil {
		t.Fatal(err)
	}
	c, err := api.NewClient("https://"+in.cfg.Listen, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.ListSites(t.Context(), &droverv1.ListSitesRequest{}); err != nil {
		t.Errorf("over TCP: %v", err)
	}
	// Neither its port nor its socket is taken away from a living server.
	tls, err := pki.Config(in.cfg.TLS)
	if err != nil {
		t.Fatal(err)
	}
	for _, change := range []func(*server.Config){
		func(c *server.Config) { c.Socket = "" },
		func(c *server.Config) { c.Listen = "" },
	} {
		second := in.cfg
		change(&second)
		if s, err := server.New(server.Deps{Journal: in.store, Inventory: in.store, TLS: tls}, second); drover.KindOf(err) != drover.Unavailable {
			t.Errorf("second server: %v, want unavailable", err)
			if err == nil {
				s.Close()
			}
		}
	}
	if _, err := os.Stat(in.cfg.Socket); err != nil {
		t.Errorf("the first server's socket is gone: %v", err)
	}
}

// freePort asks the kernel for a port that is free now.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestLeading(t *testing.T) {
	in := newInstallation(t)
	in.end()
	tls, err := pki.Config(in.cfg.TLS)
	if err != nil {
		t.Fatal(err)
	}
	led, lose := make(chan struct{}), make(chan struct{})
	s, err := server.New(server.Deps{
		Journal: in.store, Inventory: in.store, TLS: tls, Sleep: briefly,
		Lead: func(ctx context.Context) (context.Context, error) {
			select {
			case <-led:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
			ctx, cancel := context.WithCancel(ctx)
			go func() {
				<-lose
				cancel()
			}()
			return ctx, nil
		},
	}, in.cfg)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Run(t.Context()) }()
	in.client = in.dial(pki.Operator, "alice")
	defer in.client.Close()
	in.allUp()
	if _, err := in.client.StartMove(t.Context(), &droverv1.StartMoveRequest{Vm: "web1", To: to("south", "")}); drover.KindOf(err) != drover.Unavailable {
		t.Errorf("start without leading: %v, want unavailable", err)
	}
	close(led)
	m := in.startMove(&droverv1.StartMoveRequest{Vm: "web1", To: to("south", "")})
	in.follow(m.Name, final)
	close(lose)
	if err := <-ended; drover.KindOf(err) != drover.Unavailable {
		t.Errorf("run after losing the lead: %v, want unavailable", err)
	}
}
