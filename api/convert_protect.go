package api

import (
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api/droverv1"
)

// ProtectionToProto converts a protection.
func ProtectionToProto(p drover.Protection) *droverv1.Protection {
	out := &droverv1.Protection{
		Vm: p.VM, VmUuid: p.VMUUID, From: PlaceToProto(p.From), To: PlaceToProto(p.To), RpoMillis: p.RPO().Milliseconds(),
		BandwidthBps: int64(p.Rate), State: string(p.State), Why: p.Why, CreatedUnixNanos: nanos(p.Created), PointUnixNanos: nanos(p.Point),
		AgeSeconds: p.AgeSeconds, RpoOk: p.RPOOK, Sending: p.Sending, Rounds: p.Rounds, RoundBytes: int64(p.RoundBytes),
		RoundWireBytes: int64(p.RoundWireBytes), RoundSeconds: p.RoundSeconds, AllottedBps: int64(p.Allotted), Resyncs: p.Resyncs,
	}
	if p.Progress != nil {
		out.Progress = ProgressToProto(*p.Progress)
	}
	return out
}

// ProtectionFromProto converts it back.
func ProtectionFromProto(p *droverv1.Protection) drover.Protection {
	out := drover.Protection{
		VM: p.GetVm(), VMUUID: p.GetVmUuid(), From: PlaceFromProto(p.GetFrom()), To: PlaceFromProto(p.GetTo()),
		RPOSeconds: (time.Duration(p.GetRpoMillis()) * time.Millisecond).Seconds(), Rate: drover.BitRate(p.GetBandwidthBps()),
		State: drover.ProtectionState(p.GetState()), Why: p.GetWhy(), Created: fromNanos(p.GetCreatedUnixNanos()), Point: fromNanos(p.GetPointUnixNanos()),
		RPOOK: p.GetRpoOk(), Sending: p.GetSending(), Rounds: p.GetRounds(),
		RoundBytes: drover.Bytes(p.GetRoundBytes()), RoundWireBytes: drover.Bytes(p.GetRoundWireBytes()), RoundSeconds: p.GetRoundSeconds(),
		Allotted: drover.BitRate(p.GetAllottedBps()), Resyncs: p.GetResyncs(),
	}
	if p != nil {
		out.AgeSeconds = p.AgeSeconds
	}
	if v := p.GetProgress(); v != nil {
		q := ProgressFromProto(v)
		out.Progress = &q
	}
	return out
}
