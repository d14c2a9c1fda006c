package api

import (
	"net/netip"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api/droverv1"
)

// CloneToProto converts the VM that a move makes; nil stays nil.
func CloneToProto(c *drover.Clone) *droverv1.Clone {
	if c == nil {
		return nil
	}
	return &droverv1.Clone{Name: c.Name, Uuid: c.UUID, Addresses: AddressesToProto(c.Addresses), Probe: optionalProbe(c.Probe)}
}

// CloneFromProto converts the VM that a move makes; nil stays nil. Addresses that
// cannot be read are left out: they are shown, and nothing else.
func CloneFromProto(p *droverv1.Clone) *drover.Clone {
	if p == nil {
		return nil
	}
	c := &drover.Clone{Name: p.GetName(), UUID: p.GetUuid(), Probe: OptionalProbeFromProto(p.GetProbe())}
	for _, text := range p.GetAddresses() {
		if a, err := netip.ParseAddr(text); err == nil {
			c.Addresses = append(c.Addresses, a)
		}
	}
	return c
}

// OptionalProbeFromProto converts a probe target; nil stays nil.
func OptionalProbeFromProto(p *droverv1.ProbeTarget) *drover.ProbeTarget {
	if p == nil {
		return nil
	}
	t := ProbeTargetFromProto(p)
	return &t
}

// OptionalProbeToProto converts a probe target; nil stays nil.
func OptionalProbeToProto(p *drover.ProbeTarget) *droverv1.ProbeTarget { return optionalProbe(p) }

// CloneWishToProto converts a wish; one for nothing is nil.
func CloneWishToProto(w drover.CloneWish) *droverv1.CloneWish {
	if w.IsZero() {
		return nil
	}
	p := &droverv1.CloneWish{
		Name: w.Name, Segment: w.Segment, DnsName: w.DNSName, Backend: w.Backend, Fresh: w.Fresh,
		StepTimeMillis: w.StepTime.Milliseconds(), DrainCapMillis: w.DrainCap.Milliseconds(), Probe: optionalProbe(w.Probe),
	}
	for _, s := range w.WeightSteps {
		p.WeightSteps = append(p.WeightSteps, int32(s))
	}
	return p
}

// CloneWishFromProto converts a wish.
func CloneWishFromProto(p *droverv1.CloneWish) drover.CloneWish {
	w := drover.CloneWish{
		Name: p.GetName(), Segment: p.GetSegment(), DNSName: p.GetDnsName(), Backend: p.GetBackend(), Fresh: p.GetFresh(),
		StepTime: time.Duration(p.GetStepTimeMillis()) * time.Millisecond, DrainCap: time.Duration(p.GetDrainCapMillis()) * time.Millisecond,
		Probe: OptionalProbeFromProto(p.GetProbe()),
	}
	for _, s := range p.GetWeightSteps() {
		w.WeightSteps = append(w.WeightSteps, int(s))
	}
	return w
}

// BackendServerToProto converts a load balancer's server.
func BackendServerToProto(s drover.BackendServer) *droverv1.BackendServer {
	p := &droverv1.BackendServer{
		Name: s.Name, Owner: s.Owner, ChangedBy: s.ChangedBy, State: s.State, Weight: int32(s.Weight), Sessions: int64(s.Sessions),
	}
	if s.Address.IsValid() {
		p.Address = s.Address.String()
	}
	return p
}

// BackendServerFromProto converts a load balancer's server. An address that cannot
// be read is none.
func BackendServerFromProto(p *droverv1.BackendServer) drover.BackendServer {
	address, _ := netip.ParseAddrPort(p.GetAddress())
	return drover.BackendServer{
		Name: p.GetName(), Owner: p.GetOwner(), ChangedBy: p.GetChangedBy(), Address: address, State: p.GetState(),
		Weight: int(p.GetWeight()), Sessions: int(p.GetSessions()),
	}
}
