package api

import (
	"math"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api/droverv1"
)

// ReadingToProto converts a reading; one that is not known becomes nil.
func ReadingToProto(r drover.Reading) *droverv1.Reading {
	if !r.Known() {
		return nil
	}
	return &droverv1.Reading{Value: r.Value, AtUnixNanos: nanos(r.At), Samples: r.Samples, Observed: r.Observed}
}

// ReadingFromProto converts a reading; what is no number is not known.
func ReadingFromProto(p *droverv1.Reading) drover.Reading {
	r := drover.Reading{Value: p.GetValue(), At: fromNanos(p.GetAtUnixNanos()), Samples: p.GetSamples(), Observed: p.GetObserved()}
	if !r.Known() {
		return drover.Reading{}
	}
	return r
}

func readingsToProto(in map[string]drover.Reading) map[string]*droverv1.Reading {
	out := map[string]*droverv1.Reading{}
	for k, r := range in {
		if p := ReadingToProto(r); p != nil {
			out[k] = p
		}
	}
	return out
}

// readingsFromProto is nil for none.
func readingsFromProto(in map[string]*droverv1.Reading) map[string]drover.Reading {
	var out map[string]drover.Reading
	for k, p := range in {
		if r := ReadingFromProto(p); r.Known() {
			if out == nil {
				out = make(map[string]drover.Reading, len(in))
			}
			out[k] = r
		}
	}
	return out
}

func dirtyToProto(c drover.DirtyCurve) *droverv1.DirtyCurve {
	if !c.Known() {
		return nil
	}
	p := &droverv1.DirtyCurve{AtUnixNanos: nanos(c.At), Samples: c.Samples, Observed: c.Observed}
	for _, d := range c.Points {
		p.Points = append(p.Points, &droverv1.DirtyPoint{WindowS: d.WindowSeconds, Bytes: d.Bytes})
	}
	return p
}

func dirtyFromProto(p *droverv1.DirtyCurve) drover.DirtyCurve {
	c := drover.DirtyCurve{At: fromNanos(p.GetAtUnixNanos()), Samples: p.GetSamples(), Observed: p.GetObserved()}
	for _, d := range p.GetPoints() {
		point := drover.DirtyPoint{WindowSeconds: d.GetWindowS(), Bytes: d.GetBytes()}
		if s := point.WindowSeconds + point.Bytes; math.IsNaN(s) || math.IsInf(s, 0) {
			return drover.DirtyCurve{}
		}
		c.Points = append(c.Points, point)
	}
	if !c.Known() {
		return drover.DirtyCurve{}
	}
	return c
}

// LifetimesToProto converts lifetimes; ones that are not known become nil.
func LifetimesToProto(l drover.Lifetimes) *droverv1.Lifetimes {
	if !l.Known() {
		return nil
	}
	return &droverv1.Lifetimes{P50S: l.P50Seconds, P90S: l.P90Seconds, P99S: l.P99Seconds, AtUnixNanos: nanos(l.At), Samples: l.Samples}
}

// LifetimesFromProto converts lifetimes.
func LifetimesFromProto(p *droverv1.Lifetimes) drover.Lifetimes {
	l := drover.Lifetimes{
		P50Seconds: p.GetP50S(), P90Seconds: p.GetP90S(), P99Seconds: p.GetP99S(), At: fromNanos(p.GetAtUnixNanos()), Samples: p.GetSamples(),
	}
	if s := l.P50Seconds + l.P90Seconds + l.P99Seconds; !l.Known() || math.IsNaN(s) || math.IsInf(s, 0) {
		return drover.Lifetimes{}
	}
	return l
}

// SignalsToProto converts a VM's signals.
func SignalsToProto(s drover.Signals) *droverv1.Signals {
	return &droverv1.Signals{
		Vm: s.VM, Uuid: s.UUID, Host: s.Host, AtUnixNanos: nanos(s.At), Skipped: s.Skipped,
		MemoryBytes: ReadingToProto(s.MemoryBytes), MemoryUsedBytes: ReadingToProto(s.MemoryUsedBytes),
		ZeroShare: ReadingToProto(s.ZeroShare), KnownShare: readingsToProto(s.KnownShare),
		KnownHereShare: ReadingToProto(s.KnownHereShare), KnownHereCompressedShare: ReadingToProto(s.KnownHereCompressedShare),
		CompressedShare: ReadingToProto(s.CompressedShare), ResentShare: ReadingToProto(s.ResentShare),
		Dirty: dirtyToProto(s.Dirty), HotBytes: ReadingToProto(s.HotBytes), HotS: ReadingToProto(s.HotSeconds),
		ColdBytesPerS:      ReadingToProto(s.ColdBytesPerSecond),
		DiskAllocatedBytes: ReadingToProto(s.DiskAllocatedBytes), DiskKnownShare: readingsToProto(s.DiskKnownShare),
		DiskCompressedShare: ReadingToProto(s.DiskCompressedShare), DiskReadBytesPerS: ReadingToProto(s.DiskReadBytesPerSecond),
		DiskWriteBytesPerS: ReadingToProto(s.DiskWriteBytesPerSecond), DiskDistinctBytesPerS: ReadingToProto(s.DiskDistinctBytesPerSecond),
		NetworkRxBps: ReadingToProto(s.NetworkRxBPS), NetworkTxBps: ReadingToProto(s.NetworkTxBPS),
		CpuShare: ReadingToProto(s.CPUShare), Sessions: ReadingToProto(s.Sessions), Lifetimes: LifetimesToProto(s.Lifetimes),
	}
}

// SignalsFromProto converts a VM's signals.
func SignalsFromProto(p *droverv1.Signals) drover.Signals {
	return drover.Signals{
		VM: p.GetVm(), UUID: p.GetUuid(), Host: p.GetHost(), At: fromNanos(p.GetAtUnixNanos()), Skipped: p.GetSkipped(),
		MemoryBytes: ReadingFromProto(p.GetMemoryBytes()), MemoryUsedBytes: ReadingFromProto(p.GetMemoryUsedBytes()),
		ZeroShare: ReadingFromProto(p.GetZeroShare()), KnownShare: readingsFromProto(p.GetKnownShare()),
		KnownHereShare: ReadingFromProto(p.GetKnownHereShare()), KnownHereCompressedShare: ReadingFromProto(p.GetKnownHereCompressedShare()),
		CompressedShare: ReadingFromProto(p.GetCompressedShare()), ResentShare: ReadingFromProto(p.GetResentShare()),
		Dirty: dirtyFromProto(p.GetDirty()), HotBytes: ReadingFromProto(p.GetHotBytes()), HotSeconds: ReadingFromProto(p.GetHotS()),
		ColdBytesPerSecond: ReadingFromProto(p.GetColdBytesPerS()),
		DiskAllocatedBytes: ReadingFromProto(p.GetDiskAllocatedBytes()), DiskKnownShare: readingsFromProto(p.GetDiskKnownShare()),
		DiskCompressedShare: ReadingFromProto(p.GetDiskCompressedShare()), DiskReadBytesPerSecond: ReadingFromProto(p.GetDiskReadBytesPerS()),
		DiskWriteBytesPerSecond: ReadingFromProto(p.GetDiskWriteBytesPerS()), DiskDistinctBytesPerSecond: ReadingFromProto(p.GetDiskDistinctBytesPerS()),
		NetworkRxBPS: ReadingFromProto(p.GetNetworkRxBps()), NetworkTxBPS: ReadingFromProto(p.GetNetworkTxBps()),
		CPUShare: ReadingFromProto(p.GetCpuShare()), Sessions: ReadingFromProto(p.GetSessions()), Lifetimes: LifetimesFromProto(p.GetLifetimes()),
	}
}

// HostSignalsToProto converts a host's signals.
func HostSignalsToProto(s drover.HostSignals) *droverv1.HostSignals {
	return &droverv1.HostSignals{
		Host: s.Host, AtUnixNanos: nanos(s.At),
		EncodeBytesPerS: ReadingToProto(s.EncodeBytesPerSecond), CpuFreeShare: ReadingToProto(s.CPUFreeShare),
	}
}

// HostSignalsFromProto converts a host's signals.
func HostSignalsFromProto(p *droverv1.HostSignals) drover.HostSignals {
	return drover.HostSignals{
		Host: p.GetHost(), At: fromNanos(p.GetAtUnixNanos()),
		EncodeBytesPerSecond: ReadingFromProto(p.GetEncodeBytesPerS()), CPUFreeShare: ReadingFromProto(p.GetCpuFreeShare()),
	}
}

// LinkSignalsToProto converts the signals of a way between sites.
func LinkSignalsToProto(s drover.LinkSignals) *droverv1.LinkSignals {
	return &droverv1.LinkSignals{
		Link: s.Link, From: s.From, To: s.To, AtUnixNanos: nanos(s.At),
		RttMs: ReadingToProto(s.RTTMillis), JitterMs: ReadingToProto(s.JitterMillis), LossShare: ReadingToProto(s.LossShare),
		CapacityBps: ReadingToProto(s.CapacityBPS), FreeBps: ReadingToProto(s.FreeBPS),
		Week: ListToProto(s.Week, func(h drover.LinkHour) *droverv1.LinkHour {
			return &droverv1.LinkHour{Hour: int32(h.Hour), RttMs: h.RTTMillis, LossShare: h.LossShare, FreeBps: h.FreeBPS, Samples: h.Samples}
		}),
	}
}

// LinkSignalsFromProto converts the signals of a way between sites.
func LinkSignalsFromProto(p *droverv1.LinkSignals) drover.LinkSignals {
	s := drover.LinkSignals{
		Link: p.GetLink(), From: p.GetFrom(), To: p.GetTo(), At: fromNanos(p.GetAtUnixNanos()),
		RTTMillis: ReadingFromProto(p.GetRttMs()), JitterMillis: ReadingFromProto(p.GetJitterMs()), LossShare: ReadingFromProto(p.GetLossShare()),
		CapacityBPS: ReadingFromProto(p.GetCapacityBps()), FreeBPS: ReadingFromProto(p.GetFreeBps()),
	}
	for _, h := range p.GetWeek() {
		s.Week = append(s.Week, drover.LinkHour{
			Hour: int(h.GetHour()), RTTMillis: h.GetRttMs(), LossShare: h.GetLossShare(), FreeBPS: h.GetFreeBps(), Samples: h.GetSamples(),
		})
	}
	return s
}
