package api

import (
	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api/droverv1"
)

func remoteIOToProto(r *drover.RemoteIO) *droverv1.RemoteIO {
	if r == nil {
		return nil
	}
	return &droverv1.RemoteIO{
		ReadBytes: int64(r.ReadBytes), WrittenBytes: int64(r.WrittenBytes), Operations: r.Operations, LatencyMs: r.LatencyMillis, LatencyP95Ms: r.LatencyP95Millis,
	}
}

func remoteIOFromProto(r *droverv1.RemoteIO) *drover.RemoteIO {
	if r == nil {
		return nil
	}
	return &drover.RemoteIO{
		ReadBytes: drover.Bytes(r.GetReadBytes()), WrittenBytes: drover.Bytes(r.GetWrittenBytes()),
		Operations: r.GetOperations(), LatencyMillis: r.GetLatencyMs(), LatencyP95Millis: r.GetLatencyP95Ms(),
	}
}

func leftToProto(l *drover.LeftDisk) *droverv1.LeftDisk {
	if l == nil {
		return nil
	}
	return &droverv1.LeftDisk{Host: l.Host, Path: l.Path, Format: l.Format}
}

func leftFromProto(l *droverv1.LeftDisk) *drover.LeftDisk {
	if l == nil {
		return nil
	}
	return &drover.LeftDisk{Host: l.GetHost(), Path: l.GetPath(), Format: l.GetFormat()}
}

// EdgePassageToProto converts what passes an edge.
func EdgePassageToProto(p drover.EdgePassage) *droverv1.EdgePassage {
	return &droverv1.EdgePassage{
		Owner: p.Owner, Method: string(p.Method), Here: p.Here, Announced: p.Announced, LocalEgress: p.LocalEgress,
		InBytes: int64(p.In), OutBytes: int64(p.Out), CrossedBytes: int64(p.Crossed),
	}
}

// EdgePassageFromProto converts what passes an edge.
func EdgePassageFromProto(p *droverv1.EdgePassage) drover.EdgePassage {
	return drover.EdgePassage{
		Owner: p.GetOwner(), Method: drover.Method(p.GetMethod()), Here: p.GetHere(), Announced: p.GetAnnounced(),
		LocalEgress: p.GetLocalEgress(), In: drover.Bytes(p.GetInBytes()), Out: drover.Bytes(p.GetOutBytes()),
		Crossed: drover.Bytes(p.GetCrossedBytes()),
	}
}

// DetourToProto converts what a VM pays; what is not known stays absent.
func DetourToProto(d drover.Detour) *droverv1.Detour {
	return &droverv1.Detour{
		HairpinBps: d.HairpinBPS, NeighborsBps: d.NeighborsBPS, ExtraRttMs: d.ExtraRTT, RemoteIoBps: d.RemoteIOBPS,
		Ways: each(d.Ways, detourWayToProto), MeteredUnixNanos: nanos(d.Metered),
	}
}

// DetourFromProto converts what a VM pays; what is absent is not known.
func DetourFromProto(p *droverv1.Detour) drover.Detour {
	if p == nil {
		return drover.Detour{}
	}
	d := drover.Detour{
		HairpinBPS: p.HairpinBps, NeighborsBPS: p.NeighborsBps, ExtraRTT: p.ExtraRttMs, RemoteIOBPS: p.RemoteIoBps,
		Metered: fromNanos(p.GetMeteredUnixNanos()),
	}
	if len(p.GetWays()) > 0 {
		d.Ways = each(p.GetWays(), detourWayFromProto)
	}
	return d
}

func detourWayToProto(w drover.DetourWay) *droverv1.DetourWay {
	return &droverv1.DetourWay{
		Site: w.Site, Method: string(w.Method), Ingress: w.Ingress, Egress: w.Egress,
		HairpinBps: w.HairpinBPS, NeighborsBps: w.NeighborsBPS,
	}
}

func detourWayFromProto(p *droverv1.DetourWay) drover.DetourWay {
	return drover.DetourWay{
		Site: p.GetSite(), Method: drover.Method(p.GetMethod()), Ingress: p.GetIngress(), Egress: p.GetEgress(),
		HairpinBPS: p.HairpinBps, NeighborsBPS: p.NeighborsBps,
	}
}
