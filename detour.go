package drover

import "time"

// RemoteIO is what a guest has read from and written to disks that were left
// behind at another site, since its host began to count. Counters only grow;
// ones that are smaller than before began anew.
type RemoteIO struct {
	ReadBytes    Bytes `json:"read_bytes"`
	WrittenBytes Bytes `json:"written_bytes"`
	Operations   int64 `json:"operations"`
	// LatencyMillis is how long the guest waited for an operation, the mean over
	// those of the last seconds; zero when there were none.
	LatencyMillis float64 `json:"latency_ms"`
	// LatencyP95Millis is what 95 of 100 of them waited for at most.
	LatencyP95Millis float64 `json:"latency_p95_ms"`
}

// Bytes is both directions together.
func (r RemoteIO) Bytes() Bytes { return r.ReadBytes + r.WrittenBytes }

// EdgePassage is what a site's edge has to do with the traffic of a VM that is
// away from where its addresses are announced by default, as counted since the
// edge was asked to. Counters only grow; ones that are smaller than before began
// anew.
type EdgePassage struct {
	// Owner is "vm/UUID", or "move/NAME" for the old addresses of a move.
	Owner string `json:"owner"`
	// Method is how the VM went: stretch, route or renumber.
	Method Method `json:"method"`
	// Here says that the VM is at this edge's site; otherwise it has left it.
	Here bool `json:"here"`
	// Announced says that this edge announces its addresses as host routes, so
	// that what is sent to it from elsewhere comes straight here.
	Announced bool `json:"announced"`
	// LocalEgress says that each site's own gateway serves its segment, so that
	// what it sends to elsewhere leaves where it is.
	LocalEgress bool `json:"local_egress"`
	// In and Out are what was sent to the VM from outside of the site, and what
	// it sent there, by way of this edge.
	In  Bytes `json:"in_bytes"`
	Out Bytes `json:"out_bytes"`
	// Crossed is all that went between this site and the VM at another, in both
	// directions: In and Out, and what is between it and its neighbours here.
	Crossed Bytes `json:"crossed_bytes"`
}

// Detour is what a VM pays for not being where its addresses are announced and
// its disks are, as observed last. What is nil is not known, or not any more.
type Detour struct {
	// HairpinBPS is how much of its traffic to and from outside takes the way
	// through a site where it is not.
	HairpinBPS *int64 `json:"hairpin_bps,omitempty"`
	// NeighborsBPS is between it and those that were its neighbours at such a
	// site, which no other way would avoid.
	NeighborsBPS *int64 `json:"neighbors_bps,omitempty"`
	// ExtraRTT is the round trip, in milliseconds, that such a packet and its
	// answer pay: that between the two edges, half of it where one of the two
	// takes the straight way. Zero where none takes it.
	ExtraRTT *float64 `json:"extra_rtt_ms,omitempty"`
	// RemoteIOBPS is what it reads from and writes to disks left behind.
	RemoteIOBPS *int64 `json:"remote_io_bps,omitempty"`
	// Ways are the sites that its traffic takes or may take its way through.
	Ways []DetourWay `json:"detours,omitempty"`
	// Metered is when the oldest of the figures of Ways was read; where they are
	// not known any more, when they were last.
	Metered time.Time `json:"metered,omitzero"`
}

// DetourWay is one site that a VM's traffic takes its way through.
type DetourWay struct {
	Site string `json:"site"`
	// Method is how the VM went from there.
	Method Method `json:"method"`
	// Ingress and Egress say whether what is sent to it from outside comes that
	// way, and whether what it sends leaves so.
	Ingress bool `json:"ingress"`
	Egress  bool `json:"egress"`
	// What goes through it, as in Detour.
	HairpinBPS   *int64 `json:"hairpin_bps,omitempty"`
	NeighborsBPS *int64 `json:"neighbors_bps,omitempty"`
}
