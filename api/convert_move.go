package api

import (
	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api/droverv1"
)

// PlaceToProto converts a place.
func PlaceToProto(p drover.Place) *droverv1.Place {
	return &droverv1.Place{Site: p.Site, Host: p.Host}
}

// PlaceFromProto converts a place.
func PlaceFromProto(p *droverv1.Place) drover.Place {
	return drover.Place{Site: p.GetSite(), Host: p.GetHost()}
}

// MoveToProto converts a move.
func MoveToProto(m drover.Move) *droverv1.Move {
	p := &droverv1.Move{
		Name: m.Name, Vm: m.VM, VmUuid: m.VMUUID, From: PlaceToProto(m.From), To: PlaceToProto(m.To),
		Method: string(m.Method), Reasons: m.Reason, KeepSource: m.KeepSource, BandwidthBps: int64(m.Bandwidth), Generation: m.Generation,
		State: string(m.State), Fault: m.Fault,
		CreatedUnixNanos: nanos(m.Created), EndedUnixNanos: nanos(m.Ended),
		Measured: FiguresToProto(m.Measured), Forecast: ForecastToProto(m.Forecast), Steps: each(m.Steps, StepRecordToProto), Gate: GateRecordToProto(m.Gate), Renumber: RenumberedToProto(m.Renumber), Clone: CloneToProto(m.Clone),
	}
	if m.Progress != nil {
		p.Progress = ProgressToProto(*m.Progress)
	}
	return p
}

// MoveFromProto converts a move.
func MoveFromProto(p *droverv1.Move) drover.Move {
	m := drover.Move{
		Name: p.GetName(), VM: p.GetVm(), VMUUID: p.GetVmUuid(), From: PlaceFromProto(p.GetFrom()), To: PlaceFromProto(p.GetTo()),
		Method: drover.Method(p.GetMethod()), Reason: p.GetReasons(), KeepSource: p.GetKeepSource(), Bandwidth: drover.BitRate(p.GetBandwidthBps()), Generation: p.GetGeneration(),
		State: drover.MoveState(p.GetState()), Fault: p.GetFault(),
		Created: fromNanos(p.GetCreatedUnixNanos()), Ended: fromNanos(p.GetEndedUnixNanos()),
		Measured: FiguresFromProto(p.GetMeasured()), Forecast: ForecastFromProto(p.GetForecast()), Steps: each(p.GetSteps(), StepRecordFromProto), Gate: GateRecordFromProto(p.GetGate()), Renumber: RenumberedFromProto(p.GetRenumber()), Clone: CloneFromProto(p.GetClone()),
	}
	if p.GetProgress() != nil {
		g := ProgressFromProto(p.GetProgress())
		m.Progress = &g
	}
	return m
}

// StepRecordToProto converts a step's record.
func StepRecordToProto(s drover.StepRecord) *droverv1.StepRecord {
	return &droverv1.StepRecord{
		Name: s.Name, State: string(s.State), Attempts: int32(s.Attempts),
		StartedUnixNanos: nanos(s.Started), EndedUnixNanos: nanos(s.Ended), Fault: s.Fault,
	}
}

// StepRecordFromProto converts a step's record.
func StepRecordFromProto(s *droverv1.StepRecord) drover.StepRecord {
	return drover.StepRecord{
		Name: s.GetName(), State: drover.StepState(s.GetState()), Attempts: int(s.GetAttempts()),
		Started: fromNanos(s.GetStartedUnixNanos()), Ended: fromNanos(s.GetEndedUnixNanos()), Fault: s.GetFault(),
	}
}

// FiguresToProto converts figures; what was not measured stays absent.
func FiguresToProto(f drover.Figures) *droverv1.Figures {
	return &droverv1.Figures{
		TotalS: f.TotalSeconds, PauseMs: f.PauseMillis, OutageMs: f.OutageMillis,
		WireBytes: f.WireBytes, GuestBytes: f.GuestBytes, SessionsLost: f.SessionsLost,
		ExtraRttMs: f.ExtraRTT, HairpinBps: f.HairpinBPS, RemoteIoBps: f.RemoteIOBPS, Cost: f.Cost,
		OutageHttpMs: f.OutageHTTP, Sessions: f.Sessions, MemoryBytes: f.MemoryBytes, DiskBytes: f.DiskBytes,
		PathWireBytes: f.PathWireBytes, Path: OptionalPathToProto(f.Path),
	}
}

// FiguresFromProto converts figures; what is absent was not measured.
func FiguresFromProto(f *droverv1.Figures) drover.Figures {
	if f == nil {
		return drover.Figures{}
	}
	return drover.Figures{
		TotalSeconds: f.TotalS, PauseMillis: f.PauseMs, OutageMillis: f.OutageMs,
		WireBytes: f.WireBytes, GuestBytes: f.GuestBytes, SessionsLost: f.SessionsLost,
		ExtraRTT: f.ExtraRttMs, HairpinBPS: f.HairpinBps, RemoteIOBPS: f.RemoteIoBps, Cost: f.Cost,
		OutageHTTP: f.OutageHttpMs, Sessions: f.Sessions, MemoryBytes: f.MemoryBytes, DiskBytes: f.DiskBytes,
		PathWireBytes: f.PathWireBytes, Path: OptionalPathFromProto(f.Path),
	}
}

// ProgressToProto converts a step's progress.
func ProgressToProto(p drover.Progress) *droverv1.Progress {
	return &droverv1.Progress{
		Step: p.Step, Phase: p.Phase, DoneBytes: int64(p.DoneBytes), TotalBytes: int64(p.TotalBytes),
		RateBps: int64(p.Rate), EtaS: p.ETASeconds, UpdatedUnixNanos: nanos(p.Updated),
		Path: pathProgressToProto(p.Path), LeftS: RangeToProto(p.Left),
	}
}

// ProgressFromProto converts a step's progress.
func ProgressFromProto(p *droverv1.Progress) drover.Progress {
	return drover.Progress{
		Step: p.GetStep(), Phase: p.GetPhase(), DoneBytes: drover.Bytes(p.GetDoneBytes()), TotalBytes: drover.Bytes(p.GetTotalBytes()),
		Rate: drover.BitRate(p.GetRateBps()), ETASeconds: p.GetEtaS(), Updated: fromNanos(p.GetUpdatedUnixNanos()),
		Path: pathProgressFromProto(p.GetPath()), Left: RangeFromProto(p.GetLeftS()),
	}
}

// CheckToProto converts a finding.
func CheckToProto(c drover.Check) *droverv1.Check {
	return &droverv1.Check{Name: c.Name, Ok: c.OK, Detail: c.Detail, Fix: c.Fix, Warning: c.Warning}
}

// CheckFromProto converts a finding.
func CheckFromProto(c *droverv1.Check) drover.Check {
	return drover.Check{Name: c.GetName(), OK: c.GetOk(), Detail: c.GetDetail(), Fix: c.GetFix(), Warning: c.GetWarning()}
}

// ChecksToProto converts findings.
func ChecksToProto(cs []drover.Check) []*droverv1.Check { return each(cs, CheckToProto) }

// ChecksFromProto converts findings.
func ChecksFromProto(cs []*droverv1.Check) []drover.Check { return each(cs, CheckFromProto) }

// PreflightToProto converts a report.
func PreflightToProto(p drover.Preflight) *droverv1.Preflight {
	return &droverv1.Preflight{
		Vm: p.VM, To: PlaceToProto(p.To), Method: string(p.Method), Ok: p.OK, Checks: ChecksToProto(p.Checks),
	}
}

// PreflightFromProto converts a report.
func PreflightFromProto(p *droverv1.Preflight) drover.Preflight {
	return drover.Preflight{
		VM: p.GetVm(), To: PlaceFromProto(p.GetTo()), Method: drover.Method(p.GetMethod()), OK: p.GetOk(),
		Checks: ChecksFromProto(p.GetChecks()),
	}
}

// ListToProto and ListFromProto convert lists with one of the conversions
// above; the result is never nil.
func ListToProto[A, B any](in []A, f func(A) *B) []*B { return each(in, f) }

// ListFromProto is described at ListToProto.
func ListFromProto[A, B any](in []*A, f func(*A) B) []B { return each(in, f) }
