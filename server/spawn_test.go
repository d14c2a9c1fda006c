package server_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/server/servertest"
)

// withService gives south a segment with DHCP, and north a load balancer with a
// backend of which web1 is a server.
func (in *installation) withService() {
	in.Agents["se"].Set(func(s *servertest.State) {
		s.Edge = &servertest.EdgeState{
			Segments: []drover.Segment{{
				Name: "green", Home: "south", Sites: []string{"south"}, Bridge: "lan", Subnets: []netip.Prefix{netip.MustParsePrefix("10.60.0.0/24")},
			}},
			Servers: []drover.EdgeServer{{Kind: drover.EdgeDHCP, Name: "green"}},
		}
	})
	in.Agents["ne"].Set(func(s *servertest.State) {
		s.Edge = &servertest.EdgeState{
			Segments: []drover.Segment{{Name: "blue", Home: "north", Sites: []string{"north"}, Bridge: "lan"}},
			Servers:  []drover.EdgeServer{{Kind: drover.EdgeBalancer, Name: "web"}, {Kind: drover.EdgeDNS, Name: "example.net"}},
			Backend: []drover.BackendServer{
				{Name: "other", Address: netip.MustParseAddrPort("10.20.0.99:8080"), State: "maint", Weight: 1},
				{Name: "one", Address: netip.MustParseAddrPort("10.20.0.10:8080"), State: "ready", Weight: 1, Sessions: 3},
			},
		}
	})
	in.Agents["s1"].Set(func(s *servertest.State) { s.SameBacking = map[string]bool{"vda": true} })
	in.until("the segments to be known", func() bool {
		r, err := in.client.ListSegments(in.t.Context(), &droverv1.ListSegmentsRequest{})
		return err == nil && len(r.GetSegments()) == 2
	})
}

func TestSpawn(t *testing.T) {
	in := newInstallation(t)
	in.allUp()
	in.withService()
	m := in.startMove(&droverv1.StartMoveRequest{
		Vm: "web1", To: to("south", ""), Method: "spawn",
		Clone: &droverv1.CloneWish{Backend: "web", DnsName: "web2.example.net"},
	})
	m = in.follow(m.Name, func(m drover.Move) bool { return m.State.Final() })
	if m.State != drover.MoveDone || m.Clone == nil || m.Clone.Name != "web1-south" || len(m.Clone.Addresses) != 1 {
		t.Fatalf("the move is %s (%s), it made %+v", m.State, m.Fault, m.Clone)
	}
	in.until("both VMs to run", func() bool {
		vms := in.vms()
		return len(vms) == 2 && vms[0].State == drover.VMRunning && vms[1].State == drover.VMRunning && vms[1].Name == "web1-south"
	})
	made := in.vms()[1]
	if made.UUID == "uuid-web1" || made.NICs[0].MAC == "52:54:00:00:00:01" || made.Probe == nil || made.Probe.TCP != "10.60.0.21:7000" {
		t.Errorf("the new VM is %+v", made)
	}
	var done []string
	in.Agents["ne"].Get(func(s *servertest.State) { done = s.Edge.Done })
	if want := []string{"set-name web2.example.net", "add-server web1-south", "ready-server web1-south"}; !slices.Equal(done, want) {
		t.Errorf("the load balancer's edge did %v, want %v", done, want)
	}
	if slices.ContainsFunc(in.Agents["n1"].Ran(), func(string) bool { return true }) {
		t.Errorf("the host of the VM that it is like ran %v", in.Agents["n1"].Ran())
	}
	// A second one gets another name.
	m = in.startMove(&droverv1.StartMoveRequest{Vm: "web1", To: to("south", ""), Method: "spawn"})
	if m = in.follow(m.Name, func(m drover.Move) bool { return m.State.Final() }); m.Clone == nil || m.Clone.Name != "web1-south-2" {
		t.Errorf("the second one is %+v", m.Clone)
	}
}

func TestRedirect(t *testing.T) {
	in := newInstallation(t)
	in.allUp()
	in.withService()
	in.require(map[string]string{"countries": "DE"})
	m := in.startMove(&droverv1.StartMoveRequest{
		Vm: "web1", To: to("south", ""), Method: "redirect",
		// One of the backend's own servers has the new VM's name.
		Clone: &droverv1.CloneWish{Name: "one", Backend: "web", WeightSteps: []int32{50, 100}, StepTimeMillis: 10, DrainCapMillis: 20},
	})
	m = in.follow(m.Name, func(m drover.Move) bool { return m.State.Final() })
	if m.State != drover.MoveDone || m.Measured.SessionsLost == nil || *m.Measured.SessionsLost != 2 {
		t.Fatalf("the move is %s (%s), measured %+v", m.State, m.Fault, m.Measured)
	}
	in.until("the new VM to be the only one", func() bool {
		vms := in.vms()
		return len(vms) == 1 && vms[0].Name == "one"
	})
	// It needs what the other was said to need, of which nothing is left over.
	if n, err := in.client.GetRequirements(t.Context(), &droverv1.GetRequirementsRequest{Vm: "one"}); err != nil || len(n.GetRequirements().GetStated()) != 1 {
		t.Errorf("the new VM needs %v, %v", n, err)
	}
	if d := in.diagnose(false); len(d.Findings) != 0 {
		t.Errorf("left over: %+v", d)
	}
	var done []string
	in.Agents["ne"].Get(func(s *servertest.State) { done = s.Edge.Done })
	want := []string{
		"add-server one-2", "weigh-server one-2", "weigh-server one", "ready-server one-2",
		"weigh-server one-2", "weigh-server one", "drain-server one",
	}
	if !slices.Equal(done, want) {
		t.Errorf("the load balancer's edge did %v, want %v", done, want)
	}
}

// A new VM that is not well gives the traffic back.
func TestRedirectUnhealthy(t *testing.T) {
	in := newInstallation(t)
	in.allUp()
	in.withService()
	in.Agents["ne"].Set(func(s *servertest.State) { s.Sick = "nobody answers" })
	m := in.startMove(&droverv1.StartMoveRequest{
		Vm: "web1", To: to("south", ""), Method: "redirect", Clone: &droverv1.CloneWish{Backend: "web"},
	})
	m = in.follow(m.Name, func(m drover.Move) bool { return m.State.Final() })
	if m.State != drover.MoveUndone || !strings.Contains(m.Fault, "nobody answers") {
		t.Errorf("the move is %s (%s)", m.State, m.Fault)
	}
	in.until("web1 to be the only one", func() bool { vms := in.vms(); return len(vms) == 1 && vms[0].Name == "web1" })
}

// What cannot work is found before anything begins, with what to do about it.
func TestPreflightOfClones(t *testing.T) {
	for _, tt := range []struct {
		name, method string
		wish         *droverv1.CloneWish
		before       func(*installation)
		bad          []string
		says         string
	}{
		{name: "no such backend", method: "spawn", wish: &droverv1.CloneWish{Backend: "nosuch"}, bad: []string{"backend"}, says: "web"},
		{name: "name taken", method: "spawn", wish: &droverv1.CloneWish{Name: "web1"}, bad: []string{"name"}, says: "already"},
		{name: "no such segment", method: "spawn", wish: &droverv1.CloneWish{Segment: "blue"}, bad: []string{"segments"}, says: "not at south"},
		{name: "no zone", method: "spawn", wish: &droverv1.CloneWish{DnsName: "web.example.org"}, bad: []string{"dns-name"}, says: "example.org"},
		{
			name: "no golden image", method: "spawn", wish: &droverv1.CloneWish{}, bad: []string{"base-image"}, says: "golden",
			before: func(in *installation) { in.Agents["s1"].Set(func(s *servertest.State) { s.SameBacking = nil }) },
		},
		{
			name: "no golden image for fresh disks", method: "redirect", wish: &droverv1.CloneWish{Backend: "web", Fresh: true}, bad: []string{"base-image"}, says: "golden",
			before: func(in *installation) { in.Agents["s1"].Set(func(s *servertest.State) { s.SameBacking = nil }) },
		},
		{
			name: "no DHCP", method: "spawn", wish: &droverv1.CloneWish{}, bad: []string{"segments"}, says: "no address",
			before: func(in *installation) {
				in.Agents["se"].Set(func(s *servertest.State) { s.Edge.Servers = nil })
			},
		},
		{
			name: "a server of nobody's", method: "redirect", wish: &droverv1.CloneWish{Backend: "web"}, bad: []string{"server"}, says: "none of the servers",
			before: func(in *installation) {
				in.Agents["ne"].Set(func(s *servertest.State) { s.Edge.Backend = s.Edge.Backend[:1] })
			},
		},
		{
			name: "drained for another", method: "redirect", wish: &droverv1.CloneWish{Backend: "web"}, bad: []string{"server"}, says: "drain",
			before: func(in *installation) {
				in.Agents["ne"].Set(func(s *servertest.State) {
					s.Edge.Backend = slices.Clone(s.Edge.Backend)
					s.Edge.Backend[1].State, s.Edge.Backend[1].ChangedBy = "drain", "vm/another"
				})
			},
		},
		{
			name: "the balancer does not answer", method: "redirect", wish: &droverv1.CloneWish{Backend: "web"}, bad: []string{"balancer"}, says: "refused",
			before: func(in *installation) {
				in.Agents["ne"].Set(func(s *servertest.State) {
					s.TargetChecks = []drover.Check{{Name: "balancer", Detail: "connection refused", Fix: "start it"}}
				})
			},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in := newInstallation(t)
			in.allUp()
			in.withService()
			if tt.before != nil {
				tt.before(in)
			}
			r, err := in.client.StartMove(t.Context(), &droverv1.StartMoveRequest{Vm: "web1", To: to("south", ""), Method: tt.method, Clone: tt.wish})
			if err != nil || r.GetMove() != nil {
				t.Fatalf("%v, %v: want a report", r.GetMove(), err)
			}
			var bad []string
			for _, c := range api.PreflightFromProto(r.GetPreflight()).Checks {
				if c.OK || c.Warning {
					continue
				}
				bad = append(bad, c.Name)
				if !strings.Contains(c.Detail+c.Fix, tt.says) || c.Fix == "" {
					t.Errorf("%s: %q (%q), want it to say %q and what to do", c.Name, c.Detail, c.Fix, tt.says)
				}
			}
			if !slices.Equal(bad, tt.bad) {
				t.Errorf("failed %v, want %v", bad, tt.bad)
			}
		})
	}
}

func TestBadClones(t *testing.T) {
	in := newInstallation(t)
	in.allUp()
	for name, r := range map[string]*droverv1.StartMoveRequest{
		"backend":      {Method: "redirect"},
		"clone":        {Method: "cold", Clone: &droverv1.CloneWish{Name: "x"}},
		"new name":     {Method: "spawn", Clone: &droverv1.CloneWish{Name: "a b"}},
		"weight steps": {Method: "redirect", Clone: &droverv1.CloneWish{Backend: "web", WeightSteps: []int32{50, 10, 100}}},
		"drain cap":    {Method: "redirect", Clone: &droverv1.CloneWish{Backend: "web", DrainCapMillis: -1}},
		"fresh":        {Method: "spawn", Clone: &droverv1.CloneWish{Fresh: true}},
		"gate":         {Method: "spawn", Clone: &droverv1.CloneWish{}, Gate: &droverv1.Gate{Manual: true}},
		"name":         {Method: "spawn", Clone: &droverv1.CloneWish{DnsName: "nodots"}},
	} {
		r.Vm, r.To = "web1", to("south", "")
		if _, err := in.client.StartMove(t.Context(), r); drover.KindOf(err) != drover.Invalid || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v, want it to be refused by name", name, err)
		}
	}
}
