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
