package server_test

import (
	"strings"
	"testing"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/server/servertest"
)

// TestGate: an operator commits and returns at a gate; who is not well goes back.
func TestGate(t *testing.T) {
	in := newInstallation(t)
	in.allUp()
	in.until("the VM", func() bool { return len(in.vms()) == 1 })
	waiting := func(m drover.Move) bool { return m.Gate != nil && m.Gate.State == drover.GateWaiting }
	final := func(m drover.Move) bool { return m.State.Final() }
	manual := func(to *droverv1.Place) drover.Move {
		m := in.startMove(&droverv1.StartMoveRequest{Vm: "web1", To: to, Method: "warm", Gate: api.GateToProto(&drover.Gate{Manual: true})})
		return in.follow(m.Name, waiting)
	}

	m := manual(to("south", "s1"))
	if _, err := in.client.ReturnMove(t.Context(), &droverv1.ReturnMoveRequest{Name: m.Name}); err != nil {
		t.Fatal(err)
	}
	if m = in.follow(m.Name, final); m.State != drover.MoveUndone || !strings.Contains(m.Fault, "is lost") {
		t.Errorf("returned, the move is %s (%s)", m.State, m.Fault)
	}
	m = manual(to("south", "s1"))
	if _, err := in.client.CommitMove(t.Context(), &droverv1.CommitMoveRequest{Name: m.Name}); err != nil {
		t.Fatal(err)
	}
	if m = in.follow(m.Name, final); m.State != drover.MoveDone || m.Gate.State != drover.GateCommitted {
		t.Errorf("committed, the move is %s (%s), its gate %+v", m.State, m.Fault, m.Gate)
	}
	if _, err := in.client.ReturnMove(t.Context(), &droverv1.ReturnMoveRequest{Name: m.Name}); drover.KindOf(err) != drover.Refused {
		t.Errorf("return of a move that has ended: %v, want refused", err)
	}

	in.Agents["n1"].Set(func(s *servertest.State) { s.Sick = "nobody answers" })
	in.until("the VM at its new place", func() bool { return in.vms()[0].Host == "s1" })
	m = in.startMove(&droverv1.StartMoveRequest{Vm: "web1", To: to("north", "n1"), Method: "cold", Gate: api.GateToProto(&drover.Gate{
		Health: &drover.HealthCheck{Kind: drover.HealthTCP, Target: "192.0.2.7:80"},
	})})
	if m = in.follow(m.Name, final); m.State != drover.MoveUndone || !strings.Contains(m.Fault, "nobody answers") {
		t.Errorf("not well, the move is %s (%s)", m.State, m.Fault)
	}
}

// TestBadGate: what cannot be right is said before anything begins.
func TestBadGate(t *testing.T) {
	in := newInstallation(t)
	in.allUp()
	in.until("the VM", func() bool { return len(in.vms()) == 1 })
	for name, g := range map[string]*drover.Gate{
		"on unhealthy":  {OnUnhealthy: "weep"},
		"way":           {Health: &drover.HealthCheck{Kind: "ping", Target: "x"}},
		"unknown agent": {Health: &drover.HealthCheck{Kind: drover.HealthTCP, Target: "192.0.2.7:80", From: "nobody"}},
	} {
		_, err := in.client.StartMove(t.Context(), &droverv1.StartMoveRequest{Vm: "web1", To: to("south", "s1"), Method: "cold", Gate: api.GateToProto(g)})
		if drover.KindOf(err) != drover.Invalid {
			t.Errorf("%s: %v, want invalid", name, err)
		}
	}
	_, err := in.client.StartMove(t.Context(), &droverv1.StartMoveRequest{Vm: "web1", To: to("south", "s1"), Method: "live", Gate: api.GateToProto(&drover.Gate{})})
	if drover.KindOf(err) != drover.Invalid {
		t.Errorf("a live move with a gate: %v, want invalid", err)
	}
}
