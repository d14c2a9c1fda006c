package drover

import "encoding/json"

// PathCount counts blocks (of 4 KiB, disks' and memory's alike) of one kind.
type PathCount struct {
	Blocks int64 `json:"blocks"`
	// GuestBytes are what the blocks hold for the guest; WireBytes what they
	// took of the batches that carried them, before framing and encryption.
	GuestBytes Bytes `json:"guest_bytes"`
	WireBytes  Bytes `json:"wire_bytes"`
}

func (c PathCount) plus(d PathCount) PathCount {
	return PathCount{c.Blocks + d.Blocks, c.GuestBytes + d.GuestBytes, c.WireBytes + d.WireBytes}
}

func (c PathCount) minus(d PathCount) PathCount {
	return PathCount{c.Blocks - d.Blocks, c.GuestBytes - d.GuestBytes, c.WireBytes - d.WireBytes}
}

// PathKinds are the ways in which a block crosses.
type PathKinds struct {
	// Zero blocks are named, not sent.
	Zero PathCount `json:"zero"`
	// Same blocks were sent before and have not changed since.
	Same PathCount `json:"same"`
	// Reference blocks are known at the destination from elsewhere: an image, a
	// disk, another memory.
	Reference PathCount `json:"reference"`
	// Delta blocks cross as their difference from an older version.
	Delta      PathCount `json:"delta"`
	Compressed PathCount `json:"compressed"`
	// Raw blocks did not become smaller by compression.
	Raw PathCount `json:"raw"`
	// Opaque is what is not made of blocks: the devices' states, and a stream
	// that was not understood.
	Opaque PathCount `json:"opaque"`
}

// PathKind is one of PathKinds with its name.
type PathKind struct {
	Name string
	PathCount
}

// Each returns the kinds with their names, in the order of their cost.
func (k PathKinds) Each() []PathKind {
	return []PathKind{
		{"zero", k.Zero},
		{"same", k.Same},
		{"reference", k.Reference},
		{"delta", k.Delta},
		{"compressed", k.Compressed},
		{"raw", k.Raw},
		{"opaque", k.Opaque},
	}
}

// join combines two sets kind by kind.
func (k PathKinds) join(l PathKinds, f func(PathCount, PathCount) PathCount) PathKinds {
	return PathKinds{
		Zero: f(k.Zero, l.Zero), Same: f(k.Same, l.Same), Reference: f(k.Reference, l.Reference), Delta: f(k.Delta, l.Delta),
		Compressed: f(k.Compressed, l.Compressed), Raw: f(k.Raw, l.Raw), Opaque: f(k.Opaque, l.Opaque),
	}
}

// PathPhase is what the data path did in one phase of a move, or in all of it.
// In JSON it also has ratio, guest_bytes_per_s and wire_bps.
type PathPhase struct {
	// Seconds that the phase took.
	Seconds float64 `json:"seconds"`
	// GuestBytes are what the hypervisor handed over, WireBytes what went over
	// the WAN for it in both directions: batches, frames, acknowledgements and
	// what was sent again, with TLS's share and without TCP's and IP's.
	GuestBytes Bytes `json:"guest_bytes"`
	WireBytes  Bytes `json:"wire_bytes"`
	// RetransmittedBytes of WireBytes were sent again by the path after a cut or
	// for a reference that did not verify; TCP's own are not among them.
	RetransmittedBytes Bytes `json:"retransmitted_bytes"`
	// Cuts are the times at which no connection was left, CutSeconds how long
	// that lasted in all.
	Cuts       int64   `json:"cuts"`
	CutSeconds float64 `json:"cut_s"`
	// MissedReferences are blocks that the destination turned out not to have.
	MissedReferences int64 `json:"missed_references"`
	// CPUSeconds that the source's end of the data path computed.
	CPUSeconds float64   `json:"cpu_s"`
	Kinds      PathKinds `json:"kinds"`
}

// Plus adds the phase q.
func (p PathPhase) Plus(q PathPhase) PathPhase {
	return PathPhase{
		Seconds: p.Seconds + q.Seconds, GuestBytes: p.GuestBytes + q.GuestBytes, WireBytes: p.WireBytes + q.WireBytes,
		RetransmittedBytes: p.RetransmittedBytes + q.RetransmittedBytes, Cuts: p.Cuts + q.Cuts, CutSeconds: p.CutSeconds + q.CutSeconds,
		MissedReferences: p.MissedReferences + q.MissedReferences, CPUSeconds: p.CPUSeconds + q.CPUSeconds,
		Kinds: p.Kinds.join(q.Kinds, PathCount.plus),
	}
}

// Minus takes the phase q away: what has been counted since q was.
func (p PathPhase) Minus(q PathPhase) PathPhase {
	return PathPhase{
		Seconds: p.Seconds - q.Seconds, GuestBytes: p.GuestBytes - q.GuestBytes, WireBytes: p.WireBytes - q.WireBytes,
		RetransmittedBytes: p.RetransmittedBytes - q.RetransmittedBytes, Cuts: p.Cuts - q.Cuts, CutSeconds: p.CutSeconds - q.CutSeconds,
		MissedReferences: p.MissedReferences - q.MissedReferences, CPUSeconds: p.CPUSeconds - q.CPUSeconds,
		Kinds: p.Kinds.join(q.Kinds, PathCount.minus),
	}
}

// Ratio is the wire's bytes over the guest's; zero when there were none.
func (p PathPhase) Ratio() float64 {
	if p.GuestBytes <= 0 {
		return 0
	}
	return float64(p.WireBytes) / float64(p.GuestBytes)
}

// KnownRatio is the part of the guest's bytes that the destination had already
// or that were zeros; zero when there were none.
func (p PathPhase) KnownRatio() float64 {
	if p.GuestBytes <= 0 {
		return 0
	}
	k := p.Kinds
	return float64(k.Zero.GuestBytes+k.Same.GuestBytes+k.Reference.GuestBytes) / float64(p.GuestBytes)
}

// GuestRate is the effective bandwidth, in the guest's bytes per second.
func (p PathPhase) GuestRate() float64 { return perSecond(p.GuestBytes, p.Seconds) }

// WireRate is what the wire carried on average.
func (p PathPhase) WireRate() BitRate { return BitRate(8 * perSecond(p.WireBytes, p.Seconds)) }

func perSecond(b Bytes, seconds float64) float64 {
	if seconds <= 0 {
		return 0
	}
	return float64(b) / seconds
}

// MarshalJSON adds what follows from the figures.
func (p PathPhase) MarshalJSON() ([]byte, error) {
	type plain PathPhase
	return json.Marshal(struct {
		plain
		Ratio     float64 `json:"ratio"`
		GuestRate float64 `json:"guest_bytes_per_s"`
		WireRate  BitRate `json:"wire_bps"`
	}{plain(p), p.Ratio(), p.GuestRate(), p.WireRate()})
}

// PathFigures are what the data path between the two agents did for a move.
// In JSON they also have total, the sum of the phases.
//
// Bytes and blocks are told apart by what they are of: Disk and Memory are what
// the disks' and the memory's channels carried before the guest was paused,
// Switchover what both carried from then on. Seconds, cuts, what was sent again
// and CPU count where they happened: to Disk until memory begins to flow, then
// to Memory, from the pause on to Switchover. A cold move has Disk alone.
type PathFigures struct {
	Disk       PathPhase `json:"disk"`
	Memory     PathPhase `json:"memory"`
	Switchover PathPhase `json:"switchover"`
	// ThrottlePercent is the most that the hypervisor held the guest's
	// processors back by, so that its memory could be carried.
	ThrottlePercent int `json:"throttle_percent"`
}

// Total is the sum of the phases.
func (f PathFigures) Total() PathPhase { return f.Disk.Plus(f.Memory).Plus(f.Switchover) }

// Plus adds the figures of another step of the same move.
func (f PathFigures) Plus(g PathFigures) PathFigures {
	return PathFigures{
		Disk: f.Disk.Plus(g.Disk), Memory: f.Memory.Plus(g.Memory), Switchover: f.Switchover.Plus(g.Switchover),
		ThrottlePercent: max(f.ThrottlePercent, g.ThrottlePercent),
	}
}

// MarshalJSON adds the total.
func (f PathFigures) MarshalJSON() ([]byte, error) {
	type plain PathFigures
	return json.Marshal(struct {
		plain
		Total PathPhase `json:"total"`
	}{plain(f), f.Total()})
}

// PathProgress is what the data path is doing, in short.
type PathProgress struct {
	// GuestBytes and WireBytes since the move began.
	GuestBytes Bytes `json:"guest_bytes"`
	WireBytes  Bytes `json:"wire_bytes"`
	// WireRate is what the wire carries now, Limit the most that it may; zero
	// is unlimited.
	WireRate BitRate `json:"wire_bps"`
	Limit    BitRate `json:"limit_bps,omitempty"`
	// CutSeconds is how long no connection has been there; zero while one is.
	CutSeconds float64 `json:"cut_s,omitempty"`
	// ThrottlePercent is by how much the guest's processors are held back now.
	ThrottlePercent int `json:"throttle_percent,omitempty"`
}
