package api

import (
	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api/droverv1"
)

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
