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

// replicas are what the agent has reserved for replicas.
func replicas(a *servertest.Agent) (n int) {
	a.Get(func(s *servertest.State) { n = len(s.Replicas) })
	return n
}

func (in *installation) protections() []drover.Protection {
	in.t.Helper()
	r, err := in.client.ListProtections(in.t.Context(), &droverv1.ListProtectionsRequest{})
	if err != nil {
		in.t.Fatal(err)
	}
	return api.ListFromProto(r.GetProtections(), api.ProtectionFromProto)
}

func TestProtect(t *testing.T) {
	in := newInstallation(t)
	in.allUp()
	protect := &droverv1.ProtectRequest{Vm: "web1", To: to("south", "s2"), RpoMillis: 30_000}
	for name, bad := range map[string]*droverv1.ProtectRequest{
		"rpo":     {Vm: "web1", To: to("south", ""), RpoMillis: 10},
		"rate":    {Vm: "web1", To: to("south", ""), RpoMillis: 30_000, BandwidthBps: -1},
		"to.site": {Vm: "web1", To: to("", ""), RpoMillis: 30_000},
	} {
		if _, err := in.client.Protect(t.Context(), bad); drover.KindOf(err) != drover.Invalid || !strings.Contains(err.Error(), name) {
			t.Errorf("bad %s: %v", name, err)
		}
	}
	in.Agents["s2"].Set(func(s *servertest.State) {
		s.TargetChecks = []drover.Check{{Name: "disk-space", Detail: "too little", Fix: "free some"}}
	})
	if r, err := in.client.Protect(t.Context(), protect); err != nil || r.GetProtection() != nil || r.GetPreflight().GetOk() {
		t.Errorf("a replica that would not fit: %v, %v", r, err)
	}
	in.Agents["s2"].Set(func(s *servertest.State) { s.TargetChecks = nil })
	if _, err := in.client.Protect(t.Context(), protect); err != nil {
		t.Fatal(err)
	}
	in.until("a round", func() bool {
		all := in.protections()
		return len(all) == 1 && all[0].Rounds > 0 && all[0].RPOOK
	})
	p := in.protections()[0]
	if p.To.Host != "s2" || p.State != drover.ProtectionOK || p.RoundBytes != 3<<20 || p.RoundWireBytes != 1<<20 || p.AgeSeconds == nil {
		t.Errorf("it is %+v", p)
	}
	if d, err := in.client.Diagnose(t.Context(), &droverv1.DiagnoseRequest{}); err != nil || !d.GetOk() {
		t.Errorf("diagnosis: %v, %v", d, err)
	}
	// A move to the site goes to where the replica is, and begins with it.
	m := in.startMove(&droverv1.StartMoveRequest{Vm: "web1", To: to("south", ""), Method: "warm"})
	m = in.follow(m.Name, func(m drover.Move) bool { return m.State.Final() })
	if m.State != drover.MoveDone || m.To.Host != "s2" {
		t.Errorf("the move is %s (%s), to %s", m.State, m.Fault, m.To)
	}
	in.until("the protection's end", func() bool { return len(in.protections()) == 0 })
	if replicas(in.Agents["n1"]) != 0 || replicas(in.Agents["s2"]) != 0 {
		t.Error("a replica is left")
	}
	if _, err := in.client.EndProtection(t.Context(), &droverv1.EndProtectionRequest{Vm: "web1"}); drover.KindOf(err) != drover.NotFound {
		t.Errorf("the end of none: %v", err)
	}
}

// TestProtectLeftover: what belongs to no protection is found.
func TestProtectLeftover(t *testing.T) {
	in := newInstallation(t)
	in.allUp()
	in.withService()
	in.Agents["se"].Set(func(s *servertest.State) {
		s.Edge.Owned = []*droverv1.OwnedThing{{Kind: "replica", Owner: "move/replica-old-1", What: "replica of vm web9"}}
	})
	d, err := in.client.Diagnose(t.Context(), &droverv1.DiagnoseRequest{Remove: true})
	if err != nil || len(d.GetFindings()) != 1 {
		t.Fatalf("%v, %v", d, err)
	}
	if f := d.GetFindings()[0]; !f.GetRemoved() || !strings.Contains(f.GetWhat(), "belongs to no protection") {
		t.Errorf("it found %v", f)
	}
}

// TestRemoveMade: what spawn has made is removed with all that stands for it, and
// nothing else is.
func TestRemoveMade(t *testing.T) {
	in := newInstallation(t)
	in.allUp()
	in.withService()
	if _, err := in.client.RemoveVM(t.Context(), &droverv1.RemoveMadeVMRequest{Vm: "web1", Force: true}); drover.KindOf(err) != drover.Refused {
		t.Errorf("removing a VM that was not made here: %v", err)
	}
	m := in.startMove(&droverv1.StartMoveRequest{Vm: "web1", To: to("south", ""), Method: "spawn", Clone: &droverv1.CloneWish{Backend: "web"}})
	m = in.follow(m.Name, func(m drover.Move) bool { return m.State.Final() })
	in.until("both VMs", func() bool { return len(in.vms()) == 2 })
	owner := "vm/" + m.Clone.UUID
	in.Agents["ne"].Set(func(s *servertest.State) {
		s.Edge.Owned = []*droverv1.OwnedThing{{Kind: "server", Owner: owner, What: "server web1-south"}, {Kind: "server", Owner: "vm/other", What: "another"}}
		s.Edge.Backend = append(slices.Clone(s.Edge.Backend), drover.BackendServer{
			Name: "drover:web1-south", Owner: owner, Address: netip.MustParseAddrPort("10.60.0.21:8080"), State: "ready", Weight: 1, Sessions: 2,
		})
	})
	if _, err := in.client.RemoveVM(t.Context(), &droverv1.RemoveMadeVMRequest{Vm: "web1-south"}); drover.KindOf(err) != drover.Refused || !strings.Contains(err.Error(), "2 sessions") {
		t.Errorf("removing a VM with sessions: %v", err)
	}
	in.Agents["ne"].Get(func(s *servertest.State) {
		if !slices.Contains(s.Edge.Done, "drain-server drover:web1-south") {
			t.Errorf("it gets new sessions still: %v", s.Edge.Done)
		}
	})
	r, err := in.client.RemoveVM(t.Context(), &droverv1.RemoveMadeVMRequest{Vm: "web1-south", Force: true})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.GetRemoved()) != 3 {
		t.Errorf("removed: %v", r.GetRemoved())
	}
	in.until("one VM", func() bool { vms := in.vms(); return len(vms) == 1 && vms[0].Name == "web1" })
	in.Agents["ne"].Get(func(s *servertest.State) {
		if len(s.Edge.Owned) != 1 || s.Edge.Owned[0].GetOwner() != "vm/other" {
			t.Errorf("at the edge stand %v", s.Edge.Owned)
		}
	})
}
