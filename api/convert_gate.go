package api

import (
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api/droverv1"
)

// GateToProto converts a gate; nil stays nil.
func GateToProto(g *drover.Gate) *droverv1.Gate {
	if g == nil {
		return nil
	}
	p := &droverv1.Gate{Manual: g.Manual, OnUnhealthy: string(g.OnUnhealthy)}
	if h := g.Health; h != nil {
		p.Health = &droverv1.HealthCheck{Kind: string(h.Kind), Target: h.Target, From: h.From, LimitNanos: int64(h.Limit)}
	}
	return p
}

// GateFromProto converts a gate; nil stays nil.
func GateFromProto(p *droverv1.Gate) *drover.Gate {
	if p == nil {
		return nil
	}
	g := &drover.Gate{Manual: p.GetManual(), OnUnhealthy: drover.Unhealthy(p.GetOnUnhealthy())}
	if h := p.GetHealth(); h != nil {
		g.Health = &drover.HealthCheck{
			Kind: drover.HealthKind(h.GetKind()), Target: h.GetTarget(), From: h.GetFrom(), Limit: time.Duration(h.GetLimitNanos()),
		}
	}
	return g
}

// GateRecordToProto converts what has become of a gate; nil stays nil.
func GateRecordToProto(g *drover.GateRecord) *droverv1.GateRecord {
	if g == nil {
		return nil
	}
	return &droverv1.GateRecord{Gate: GateToProto(&g.Gate), State: string(g.State), Healthy: g.Healthy, Detail: g.Detail}
}

// GateRecordFromProto converts what has become of a gate; nil stays nil.
func GateRecordFromProto(p *droverv1.GateRecord) *drover.GateRecord {
	if p == nil {
		return nil
	}
	g := &drover.GateRecord{State: drover.GateState(p.GetState()), Healthy: p.Healthy, Detail: p.GetDetail()}
	if gate := GateFromProto(p.GetGate()); gate != nil {
		g.Gate = *gate
	}
	return g
}
