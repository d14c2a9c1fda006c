// Package control is the guest's control interface over HTTP: the requests
// and replies, and a client for them. Package main of the guest serves it on
// port 8080.
//
//	GET    /healthz      "ok" once the guest's services run
//	GET    /stats        Stats
//	DELETE /stats/gap    forgets the largest scheduling gap; measures from then on
//	POST   /spin         Spin → SpinStats: keeps the processor busy, and tells
//	                     how it got on and how long it stood still
//	GET    /addresses    []Address: what the guest answers to
//	DELETE /addresses/A  takes the address A away, with its sessions
//	POST   /memory       Memory: starts the memory writer, or changes it
//	DELETE /memory       stops it and frees its working set
//	POST   /disk         Disk: starts the disk writer, or changes it
//	DELETE /disk         stops it
//	GET    /disk/acks    a stream of journal.Ack, one JSON document per line,
//	                     from the boot's first or from ?from=SEQ on
//	GET    /disk/check   DiskCheck: the guest's own reading of its disk
//	POST   /disk/check   journal.Acks → DiskCheck: the same, judged against
//	                     acknowledgements that were recorded outside
//
// A request that cannot be met is answered with a 4xx status and
// {"error": "…"}; then nothing has changed.
package control

import (
	"fmt"
	"net/netip"

	"github.com/drover-vm/drover/lab/guest/journal"
	"github.com/drover-vm/drover/lab/guest/session"
)

// Ports of the guest's services.
const (
	// SessionPort is where package session answers.
	SessionPort = 7000
	// HTTPPort is where the control interface answers.
	HTTPPort = 8080
)

// MaxRate bounds the writers, in bytes per second: more than any emulated
// guest can do, and small enough that arithmetic cannot overflow.
const MaxRate = 64 << 30

// Memory sets the memory writer: it dirties the pages of its working set one
// after another, so that each page is dirtied once per pass.
type Memory struct {
	// WorkingSetBytes is rounded up to whole pages.
	WorkingSetBytes int64 `json:"working_set_bytes"`
	// RateBytesPerS is the rate of dirtying: pages per second × page size.
	RateBytesPerS int64 `json:"rate_bytes_per_s"`
	// Compressible is the share of each page, 0 to 1, that repeats one
	// value; the rest is random. The content changes with every write.
	Compressible float64 `json:"compressible"`
}

// Validate checks the request as far as that is possible outside the guest.
func (m Memory) Validate() error {
	switch {
	case m.WorkingSetBytes <= 0:
		return fmt.Errorf("working_set_bytes %d: want more than 0", m.WorkingSetBytes)
	case m.RateBytesPerS < 0 || m.RateBytesPerS > MaxRate:
		return fmt.Errorf("rate_bytes_per_s %d: want 0 to %d", m.RateBytesPerS, int64(MaxRate))
	case !(m.Compressible >= 0 && m.Compressible <= 1): // also refuses NaN
		return fmt.Errorf("compressible %v: want 0 to 1", m.Compressible)
	}
	return nil
}

// Disk sets the disk writer.
type Disk struct {
	// RateBytesPerS is the rate of writing; 0 writes as fast as the disk
	// acknowledges.
	RateBytesPerS int64 `json:"rate_bytes_per_s"`
	// BlockBytes is the size of a record; 0 means 4096.
	BlockBytes int `json:"block_bytes"`
	// RingBytes bounds the ring; 0 takes the disk, 1 GiB at most.
	RingBytes int64 `json:"ring_bytes,omitempty"`
	// Sync asks for the medium's acknowledgement (O_DSYNC); nil means true.
	// Without it an acknowledged record may sit in the host's cache.
	Sync *bool `json:"sync,omitempty"`
	// Format starts a new journal whatever is on the disk.
	Format bool `json:"format,omitempty"`
}

// Validate checks the request as far as that is possible outside the guest.
func (d Disk) Validate() error {
	if d.RateBytesPerS < 0 || d.RateBytesPerS > MaxRate {
		return fmt.Errorf("rate_bytes_per_s %d: want 0 to %d", d.RateBytesPerS, int64(MaxRate))
	}
	if d.RingBytes < 0 {
		return fmt.Errorf("ring_bytes %d: want 0 or more", d.RingBytes)
	}
	if d.BlockBytes < 0 || d.BlockBytes > journal.MaxBlockBytes || d.BlockBytes%journal.MinBlockBytes != 0 {
		return fmt.Errorf("block_bytes %d: want a multiple of %d up to %d", d.BlockBytes, journal.MinBlockBytes, journal.MaxBlockBytes)
	}
	return nil
}

// MaxSpin bounds how long a guest's processor is kept busy by one request.
const MaxSpin = 60_000

// Spin asks for a stretch of work in small steps, before all else that the guest
// does.
type Spin struct {
	// DurationMS is how long to work, in milliseconds.
	DurationMS int64 `json:"duration_ms"`
}

// Validate checks the request.
func (s Spin) Validate() error {
	if s.DurationMS <= 0 || s.DurationMS > MaxSpin {
		return fmt.Errorf("duration_ms %d: want 1 to %d", s.DurationMS, MaxSpin)
	}
	return nil
}

// SpinStats is how a stretch of work got on.
type SpinStats struct {
	// Steps were made in DurationMS.
	Steps      int64   `json:"steps"`
	DurationMS float64 `json:"duration_ms"`
	// LongestMS is how long the longest step took; a step that nothing interrupts
	// takes some 30 µs without KVM.
	LongestMS float64 `json:"longest_ms"`
	// Gaps are the steps by how long they took, ascending; what is empty is left
	// out.
	Gaps []Gaps `json:"gaps"`
	// Long are the first MaxLong of those that took LongMS or more, in their order.
	Long []Gap `json:"long,omitempty"`
	// Result is what was computed, so that it had to be.
	Result uint64 `json:"result,string"`
}

// LongMS is from when on a step is told with its moment, in milliseconds, and
// MaxLong how many are: of more the histogram tells enough.
const (
	LongMS  = 1
	MaxLong = 4096
)

// Gap is a step that took long.
type Gap struct {
	// AtMS is when it began, since the work did, and MS how long it took.
	AtMS float64 `json:"at_ms"`
	MS   float64 `json:"ms"`
}

// Gaps are steps that took at most UpToMS milliseconds, and more than those
// before.
type Gaps struct {
	UpToMS float64 `json:"up_to_ms"`
	Count  int64   `json:"count"`
}

// Stats is the guest's state and counters. Counters start at boot.
type Stats struct {
	Name   string     `json:"name"`
	BootID journal.ID `json:"boot_id"`
	// UptimeMS is the time since boot in milliseconds, by the guest's clock,
	// which stands still while the guest is paused.
	UptimeMS  int64         `json:"uptime_ms"`
	Addresses []string      `json:"addresses"`
	Sessions  session.Stats `json:"sessions"`
	Memory    MemoryStats   `json:"memory"`
	Disk      DiskStats     `json:"disk"`
	Gap       GapStats      `json:"gap"`
}

// Address is one of the guest's addresses.
type Address struct {
	Prefix netip.Prefix `json:"prefix"`
	// Primary is true for the address that a new connection to somewhere outside
	// of the guest's subnets has.
	Primary bool `json:"primary"`
	// Sessions counts the TCP sessions that use it, from either side.
	Sessions int `json:"sessions"`
}

// MemoryStats is the state of the memory writer.
type MemoryStats struct {
	Running bool `json:"running"`
	Memory
	// WrittenBytes counts the pages dirtied × page size.
	WrittenBytes int64 `json:"written_bytes"`
	// SkippedBytes is what the writer was due to write and did not because
	// the guest got too little time.
	SkippedBytes int64 `json:"skipped_bytes"`
}

// DiskStats is the state of the disk writer.
type DiskStats struct {
	// Device is the disk's path in the guest, empty when it has none.
	Device  string `json:"device"`
	Running bool   `json:"running"`
	journal.Geometry
	// FirstSeq and LastSeq are the records acknowledged in this boot, 0 for
	// none; there are none missing in between.
	FirstSeq     uint64 `json:"first_seq"`
	LastSeq      uint64 `json:"last_seq"`
	WrittenBytes int64  `json:"written_bytes"`
	// Errors counts failed writes; each is repeated until it succeeds.
	Errors uint64 `json:"errors"`
	// MaxWriteMS is the longest write in milliseconds.
	MaxWriteMS float64 `json:"max_write_ms"`
}

// GapStats tells how long the guest did not get to run.
type GapStats struct {
	// MaxMS is by how much the worst wake-up of a 10 ms timer was late, in
	// milliseconds of the guest's monotonic clock. A pause of the whole
	// guest shows here only as far as that clock runs on. 0 until it was asked
	// for with DELETE /stats/gap.
	MaxMS float64 `json:"max_ms"`
	// AtUptimeMS is when that was, since boot.
	AtUptimeMS int64 `json:"at_uptime_ms"`
}

// DiskCheck is the guest's reading of its own disk.
type DiskCheck struct {
	journal.Scan
	// Verdict judges the records acknowledged in this boot, or those that were
	// handed in.
	Verdict journal.Verdict `json:"verdict"`
}
