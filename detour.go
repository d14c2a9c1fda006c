package drover

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
