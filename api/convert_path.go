package api

import (
	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api/droverv1"
)

// PathFiguresToProto converts the data path's figures.
func PathFiguresToProto(f drover.PathFigures) *droverv1.PathFigures {
	return &droverv1.PathFigures{
		Disk: pathPhaseToProto(f.Disk), Memory: pathPhaseToProto(f.Memory), Switchover: pathPhaseToProto(f.Switchover),
		ThrottlePercent: int32(f.ThrottlePercent),
	}
}

// PathFiguresFromProto converts the data path's figures.
func PathFiguresFromProto(f *droverv1.PathFigures) drover.PathFigures {
	return drover.PathFigures{
		Disk: pathPhaseFromProto(f.GetDisk()), Memory: pathPhaseFromProto(f.GetMemory()), Switchover: pathPhaseFromProto(f.GetSwitchover()),
		ThrottlePercent: int(f.GetThrottlePercent()),
	}
}

// OptionalPathToProto and OptionalPathFromProto keep nil, which says that no
// data path was at work.
func OptionalPathToProto(f *drover.PathFigures) *droverv1.PathFigures {
	if f == nil {
		return nil
	}
	return PathFiguresToProto(*f)
}

// OptionalPathFromProto is described at OptionalPathToProto.
func OptionalPathFromProto(f *droverv1.PathFigures) *drover.PathFigures {
	if f == nil {
		return nil
	}
	v := PathFiguresFromProto(f)
	return &v
}

func pathPhaseToProto(p drover.PathPhase) *droverv1.PathPhase {
	k := p.Kinds
	return &droverv1.PathPhase{
		Seconds: p.Seconds, GuestBytes: int64(p.GuestBytes), WireBytes: int64(p.WireBytes),
		RetransmittedBytes: int64(p.RetransmittedBytes), Cuts: p.Cuts, CutSeconds: p.CutSeconds,
		MissedReferences: p.MissedReferences, CpuS: p.CPUSeconds,
		Kinds: &droverv1.PathKinds{
			Zero: pathCountToProto(k.Zero), Same: pathCountToProto(k.Same), Reference: pathCountToProto(k.Reference),
			Delta: pathCountToProto(k.Delta), Compressed: pathCountToProto(k.Compressed), Raw: pathCountToProto(k.Raw),
			Opaque: pathCountToProto(k.Opaque),
		},
	}
}

func pathPhaseFromProto(p *droverv1.PathPhase) drover.PathPhase {
	k := p.GetKinds()
	return drover.PathPhase{
		Seconds: p.GetSeconds(), GuestBytes: drover.Bytes(p.GetGuestBytes()), WireBytes: drover.Bytes(p.GetWireBytes()),
		RetransmittedBytes: drover.Bytes(p.GetRetransmittedBytes()), Cuts: p.GetCuts(), CutSeconds: p.GetCutSeconds(),
		MissedReferences: p.GetMissedReferences(), CPUSeconds: p.GetCpuS(),
		Kinds: drover.PathKinds{
			Zero: pathCountFromProto(k.GetZero()), Same: pathCountFromProto(k.GetSame()), Reference: pathCountFromProto(k.GetReference()),
			Delta: pathCountFromProto(k.GetDelta()), Compressed: pathCountFromProto(k.GetCompressed()), Raw: pathCountFromProto(k.GetRaw()),
			Opaque: pathCountFromProto(k.GetOpaque()),
		},
	}
}

func pathCountToProto(c drover.PathCount) *droverv1.PathCount {
	return &droverv1.PathCount{Blocks: c.Blocks, GuestBytes: int64(c.GuestBytes), WireBytes: int64(c.WireBytes)}
}

func pathCountFromProto(c *droverv1.PathCount) drover.PathCount {
	return drover.PathCount{Blocks: c.GetBlocks(), GuestBytes: drover.Bytes(c.GetGuestBytes()), WireBytes: drover.Bytes(c.GetWireBytes())}
}

func pathProgressToProto(p *drover.PathProgress) *droverv1.PathProgress {
	if p == nil {
		return nil
	}
	return &droverv1.PathProgress{
		GuestBytes: int64(p.GuestBytes), WireBytes: int64(p.WireBytes), WireBps: int64(p.WireRate), LimitBps: int64(p.Limit),
		CutSeconds: p.CutSeconds, ThrottlePercent: int32(p.ThrottlePercent),
	}
}

func pathProgressFromProto(p *droverv1.PathProgress) *drover.PathProgress {
	if p == nil {
		return nil
	}
	return &drover.PathProgress{
		GuestBytes: drover.Bytes(p.GetGuestBytes()), WireBytes: drover.Bytes(p.GetWireBytes()),
		WireRate: drover.BitRate(p.GetWireBps()), Limit: drover.BitRate(p.GetLimitBps()),
		CutSeconds: p.GetCutSeconds(), ThrottlePercent: int(p.GetThrottlePercent()),
	}
}
