package agent

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
)

// service listens on loopback as a VM's service would, until the test ends it.
func service(t *testing.T) (address string, end func()) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.Close()
		}
	}()
	return l.Addr().String(), func() { _ = l.Close(); <-done }
}

// A server is waited for until its sessions have ended, or the time is over.
func TestAttendDrains(t *testing.T) {
	w := newEdgeWorld(t).start()
	at, end := service(t)
	defer end()
	s, err := w.balancer.Session("web")
	must(t, err)
	_, err = w.do(
		drover.EdgeOp{Do: drover.AddServer, Backend: "web", Name: "new", Target: "10.60.0.21:80", Weight: 10},
		drover.EdgeOp{Do: drover.ReadyServer, Backend: "web", Name: "new"},
		drover.EdgeOp{Do: drover.DrainServer, Backend: "web", Name: "old"},
	)
	must(t, err)
	watch := &droverv1.Attend{Kind: "tcp", Target: at, ForMillis: 700, Backend: "web", Server: "old"}
	r, err := w.run(1, watch)
	if err != nil || !r.GetHealthy() || r.GetSessions() != 1 {
		t.Errorf("at the cap: %v, %v: want it well, with one session left", r, err)
	}
	time.AfterFunc(300*time.Millisecond, s.End)
	watch.ForMillis = 60_000
	r, err = w.run(1, watch)
	if err != nil || !r.GetHealthy() || r.GetSessions() != 0 {
		t.Errorf("drained: %v, %v: want it well, with none", r, err)
	}
}

// A VM that is not well any more is told of long before the time is over.
func TestAttendSick(t *testing.T) {
	w := newEdgeWorld(t).start()
	at, end := service(t)
	time.AfterFunc(300*time.Millisecond, end)
	r, err := w.run(1, &droverv1.Attend{Kind: "tcp", Target: at, ForMillis: 60_000, Backend: "web"})
	if err != nil || r.GetHealthy() || !strings.Contains(r.GetDetail(), "refused") {
		t.Errorf("%v, %v: want it not well, and why", r, err)
	}
	for name, c := range map[string]struct {
		m    *droverv1.Attend
		kind drover.Kind
	}{
		"no such backend": {&droverv1.Attend{Backend: "nosuch"}, drover.NotFound},
		"no such server":  {&droverv1.Attend{Backend: "web", Server: "nosuch", ForMillis: 1000}, drover.NotFound},
		"no check":        {&droverv1.Attend{Backend: "web", Kind: "smoke", Target: "x"}, drover.Invalid},
		"too long":        {&droverv1.Attend{Backend: "web", ForMillis: int64(1e12)}, drover.Invalid},
	} {
		if _, err := w.run(1, c.m); drover.KindOf(err) != c.kind {
			t.Errorf("%s: %v, want %v", name, err, c.kind)
		}
	}
}

// All that stands for an owner who is no more goes, and nothing of others.
func TestForgetOwner(t *testing.T) {
	w := newEdgeWorld(t).start().meshed()
	others := []drover.EdgeOp{
		{Do: drover.SetName, Owner: "vm/0f0f0f0f-0000-4000-8000-000000000001", Name: "theirs.example", Addresses: addresses("10.60.0.22")},
		{Do: drover.AddServer, Owner: "vm/0f0f0f0f-0000-4000-8000-000000000001", Backend: "web", Name: "theirs", Target: "10.60.0.22:80"},
	}
	_, err := w.do(others...)
	must(t, err)
	before := w.standing()
	_, err = w.do(
		drover.EdgeOp{Do: drover.ReserveLease, Segment: "blue", MAC: vmMAC},
		drover.EdgeOp{Do: drover.SetName, Name: "web.example", Addresses: addresses("10.60.0.21")},
		drover.EdgeOp{Do: drover.SetName, Name: "new.example", Addresses: addresses("10.60.0.21")},
		drover.EdgeOp{Do: drover.AddServer, Backend: "web", Name: "new", Target: "10.60.0.21:80"},
		drover.EdgeOp{Do: drover.DrainServer, Backend: "web", Name: "old"},
		drover.EdgeOp{Do: drover.AnnounceRoutes, Addresses: vmAddresses},
		drover.EdgeOp{Do: drover.DeliverHere, Segment: "blue", Addresses: vmAddresses},
	)
	must(t, err)
	for range 2 {
		_, err = w.do(drover.EdgeOp{Do: drover.ForgetOwner})
		must(t, err)
	}
	if got := w.standing(); !slices.Equal(got, before) {
		t.Errorf("there is left\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(before, "\n"))
	}
}

// An edge says for a preflight what its servers would say later.
func TestCheckEdge(t *testing.T) {
	w := newEdgeWorld(t).start()
	_, err := w.do(
		drover.EdgeOp{Do: drover.AddServer, Backend: "web", Name: "new", Target: "10.60.0.21:80", Weight: 7},
		drover.EdgeOp{Do: drover.WeighServer, Backend: "web", Name: "old", Weight: 30},
		drover.EdgeOp{Do: drover.SetName, Name: "ours.example", Addresses: addresses("10.60.0.21")},
	)
	must(t, err)
	r, err := w.client.CheckEdge(t.Context(), &droverv1.CheckEdgeRequest{Backend: "web"})
	must(t, err)
	servers := api.ListFromProto(r.GetServers(), api.BackendServerFromProto)
	i := slices.IndexFunc(servers, func(s drover.BackendServer) bool { return s.Name == "old" })
	if len(servers) != 2 || i < 0 || servers[i].ChangedBy != edgeOwner || servers[i].Weight != 30 || servers[i].Address != netip.MustParseAddrPort("10.50.0.11:80") {
		t.Fatalf("servers %+v", servers)
	}
	if added := servers[1-i]; added.Owner != edgeOwner || added.ChangedBy != "" {
		t.Errorf("the added one is %+v", added)
	}
	for _, c := range []struct {
		what string
		ask  *droverv1.CheckEdgeRequest
		ok   bool
		says string
	}{
		{"a free name", &droverv1.CheckEdgeRequest{Name: "free.example"}, true, "can be set"},
		{"a name of somebody's", &droverv1.CheckEdgeRequest{Name: "web.example"}, false, "answers 10.50.0.11 already"},
		{"a name with the addresses it may have", &droverv1.CheckEdgeRequest{Name: "web.example", Addresses: []string{"10.50.0.11"}}, true, "can be set"},
		{"a name of another owner's", &droverv1.CheckEdgeRequest{Name: "ours.example"}, false, "is being changed for " + edgeOwner},
		{"a name elsewhere", &droverv1.CheckEdgeRequest{Name: "web.elsewhere"}, false, "none of the zones"},
		{"a segment", &droverv1.CheckEdgeRequest{Segment: "blue"}, true, "2 IPv4 addresses free"},
		{"a segment without DHCP", &droverv1.CheckEdgeRequest{Segment: "green"}, false, "no DHCP service"},
	} {
		r, err := w.client.CheckEdge(t.Context(), c.ask)
		must(t, err)
		checks := api.ChecksFromProto(r.GetChecks())
		if len(checks) != 1 || checks[0].OK != c.ok || !strings.Contains(checks[0].Detail, c.says) || !c.ok && checks[0].Fix == "" {
			t.Errorf("%s: %+v, want it to say %q", c.what, checks, c.says)
		}
	}
	if _, err := w.client.CheckEdge(t.Context(), &droverv1.CheckEdgeRequest{Backend: "nosuch"}); drover.KindOf(err) != drover.NotFound {
		t.Errorf("no such backend: %v", err)
	}
}
