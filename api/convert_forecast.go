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
		Calibrated: int64(f.Calibrated), Unknown: f.Unknown, Points: f.Points, Spreads: f.Spreads,
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
		Calibrated: int(p.GetCalibrated()), Unknown: p.GetUnknown(), Points: p.GetPoints(), Spreads: p.GetSpreads(),
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

// AccuracyToProto converts an accuracy.
func AccuracyToProto(a drover.Accuracy) *droverv1.Accuracy {
	return &droverv1.Accuracy{
		Method: string(a.Method), Figure: a.Figure, FromUnixNanos: nanos(a.From), UntilUnixNanos: nanos(a.Until), Moves: int32(a.Moves),
		Bias: a.Bias, MedianError: a.MedianError, P90Error: a.P90Error, Coverage: a.Coverage,
	}
}

// AccuracyFromProto converts it back.
func AccuracyFromProto(a *droverv1.Accuracy) drover.Accuracy {
	return drover.Accuracy{
		Method: drover.Method(a.GetMethod()), Figure: a.GetFigure(), From: fromNanos(a.GetFromUnixNanos()), Until: fromNanos(a.GetUntilUnixNanos()), Moves: int(a.GetMoves()),
		Bias: a.GetBias(), MedianError: a.GetMedianError(), P90Error: a.GetP90Error(), Coverage: a.GetCoverage(),
	}
}
