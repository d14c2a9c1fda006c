package api

import (
	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api/droverv1"
)

// RangeToProto converts a range; nil stays nil.
func RangeToProto(r *drover.Range) *droverv1.Range {
	if r == nil {
		return nil
	}
	return &droverv1.Range{P10: r.P10, P50: r.P50, P90: r.P90}
}

// RangeFromProto converts a range; nil stays nil.
func RangeFromProto(p *droverv1.Range) *drover.Range {
	if p == nil {
		return nil
	}
	return &drover.Range{P10: p.GetP10(), P50: p.GetP50(), P90: p.GetP90()}
}

// ForecastToProto converts a forecast; nil stays nil.
func ForecastToProto(f *drover.Forecast) *droverv1.Forecast {
	if f == nil {
		return nil
	}
	return &droverv1.Forecast{
		Method: string(f.Method), AtUnixNanos: nanos(f.At),
		TotalS: RangeToProto(f.TotalSeconds), PauseMs: RangeToProto(f.PauseMillis), OutageMs: RangeToProto(f.OutageMillis),
		WireBytes: RangeToProto(f.WireBytes), GuestBytes: RangeToProto(f.GuestBytes), SessionsLost: RangeToProto(f.SessionsLost),
		ExtraRttMs: RangeToProto(f.ExtraRTT), HairpinBps: RangeToProto(f.HairpinBPS), RemoteIoBps: RangeToProto(f.RemoteIOBPS),
		Cost: RangeToProto(f.Cost), Convergence: convergenceToProto(f.Convergence),
		Calibrated: int64(f.Calibrated), Unknown: f.Unknown, Points: f.Points,
	}
}

// ForecastFromProto converts a forecast; nil stays nil.
func ForecastFromProto(p *droverv1.Forecast) *drover.Forecast {
	if p == nil {
		return nil
	}
	return &drover.Forecast{
		Method: drover.Method(p.GetMethod()), At: fromNanos(p.GetAtUnixNanos()),
		TotalSeconds: RangeFromProto(p.GetTotalS()), PauseMillis: RangeFromProto(p.GetPauseMs()), OutageMillis: RangeFromProto(p.GetOutageMs()),
		WireBytes: RangeFromProto(p.GetWireBytes()), GuestBytes: RangeFromProto(p.GetGuestBytes()), SessionsLost: RangeFromProto(p.GetSessionsLost()),
		ExtraRTT: RangeFromProto(p.GetExtraRttMs()), HairpinBPS: RangeFromProto(p.GetHairpinBps()), RemoteIOBPS: RangeFromProto(p.GetRemoteIoBps()),
		Cost: RangeFromProto(p.GetCost()), Convergence: convergenceFromProto(p.GetConvergence()),
		Calibrated: int(p.GetCalibrated()), Unknown: p.GetUnknown(), Points: p.GetPoints(),
	}
}

func convergenceToProto(c *drover.Convergence) *droverv1.Convergence {
	if c == nil {
		return nil
	}
	p := &droverv1.Convergence{
		Will: c.Will, Probability: c.Probability,
		DirtyBytesPerSecond: c.DirtyBytesPerSecond, CarryBytesPerSecond: c.CarryBytesPerSecond,
	}
	for _, r := range c.Remedies {
		p.Remedies = append(p.Remedies, &droverv1.Remedy{
			Kind: string(r.Kind), MoreBps: int64(r.Rate), PauseMs: r.PauseMillis, ThrottlePercent: int64(r.ThrottlePercent),
			Hour: int64(r.Hour), Detail: r.Detail,
		})
	}
	return p
}

func convergenceFromProto(p *droverv1.Convergence) *drover.Convergence {
	if p == nil {
		return nil
	}
	c := &drover.Convergence{
		Will: p.GetWill(), Probability: p.GetProbability(),
		DirtyBytesPerSecond: p.GetDirtyBytesPerSecond(), CarryBytesPerSecond: p.GetCarryBytesPerSecond(),
	}
	for _, r := range p.GetRemedies() {
		c.Remedies = append(c.Remedies, drover.Remedy{
			Kind: drover.RemedyKind(r.GetKind()), Rate: drover.BitRate(r.GetMoreBps()), PauseMillis: r.GetPauseMs(),
			ThrottlePercent: int(r.GetThrottlePercent()), Hour: int(r.GetHour()), Detail: r.GetDetail(),
		})
	}
	return c
}

func statedToProto(s drover.StatedRequirement) *droverv1.StatedRequirement {
	return &droverv1.StatedRequirement{Name: s.Name, Value: s.Value, Source: s.Source}
}

func statedFromProto(p *droverv1.StatedRequirement) drover.StatedRequirement {
	return drover.StatedRequirement{Name: p.GetName(), Value: p.GetValue(), Source: p.GetSource()}
}

// RequirementsToProto converts what a VM needs.
func RequirementsToProto(v drover.VMRequirements) *droverv1.Requirements {
	return &droverv1.Requirements{Vm: v.VM, Stated: each(v.Stated, statedToProto), Faults: v.Faults, Contradictions: v.Contradictions}
}

// RequirementsFromProto converts what a VM needs. What was stated is not read
// again.
func RequirementsFromProto(p *droverv1.Requirements) drover.VMRequirements {
	return drover.VMRequirements{
		VM: p.GetVm(), Stated: each(p.GetStated(), statedFromProto), Faults: p.GetFaults(), Contradictions: p.GetContradictions(),
	}
}

// AdviceToProto converts an advice.
func AdviceToProto(a drover.Advice) *droverv1.Advice {
	return &droverv1.Advice{
		Vm: a.VM, From: a.From, To: a.To, Method: string(a.Method), Reasons: a.Reasons, Changes: a.Changes,
		Requirements: each(a.Requirements, statedToProto), Faults: a.Faults,
		Methods: each(a.Methods, methodAdviceToProto), Sites: each(a.Sites, siteAdviceToProto),
	}
}

// AdviceFromProto converts an advice.
func AdviceFromProto(p *droverv1.Advice) drover.Advice {
	return drover.Advice{
		VM: p.GetVm(), From: p.GetFrom(), To: p.GetTo(), Method: drover.Method(p.GetMethod()),
		Reasons: append([]string{}, p.GetReasons()...), Changes: p.GetChanges(),
		Requirements: each(p.GetRequirements(), statedFromProto), Faults: p.GetFaults(),
		Methods: each(p.GetMethods(), methodAdviceFromProto), Sites: each(p.GetSites(), siteAdviceFromProto),
	}
}

func methodAdviceToProto(m drover.MethodAdvice) *droverv1.MethodAdvice {
	return &droverv1.MethodAdvice{
		Method: string(m.Method), Feasible: m.Feasible, Meets: m.Meets, For: m.For, Against: m.Against, Nearly: m.Nearly,
		Caveats: m.Caveats, Changes: m.Changes, Forecast: ForecastToProto(m.Forecast),
	}
}

func methodAdviceFromProto(p *droverv1.MethodAdvice) drover.MethodAdvice {
	return drover.MethodAdvice{
		Method: drover.Method(p.GetMethod()), Feasible: p.GetFeasible(), Meets: p.GetMeets(), For: p.GetFor(), Against: p.GetAgainst(),
		Nearly: p.GetNearly(), Caveats: p.GetCaveats(), Changes: p.GetChanges(), Forecast: ForecastFromProto(p.GetForecast()),
	}
}

func siteAdviceToProto(s drover.SiteAdvice) *droverv1.SiteAdvice {
	return &droverv1.SiteAdvice{To: s.To, Method: string(s.Method), Reason: s.Reason}
}

func siteAdviceFromProto(p *droverv1.SiteAdvice) drover.SiteAdvice {
	return drover.SiteAdvice{To: p.GetTo(), Method: drover.Method(p.GetMethod()), Reason: p.GetReason()}
}
