package drover

import (
	"math"
	"time"
)

// Reading is one figure as it was last observed. The zero Reading is of
// something that nobody has observed.
type Reading struct {
	Value float64 `json:"value"`
	// At is when it was last observed, by the clock of who observed it.
	At time.Time `json:"at"`
	// Samples is how many observations the value rests on: pages looked at,
	// round trips, readings of a counter.
	Samples int64 `json:"samples,omitempty"`
	// Observed is true where a real move has shown it, which counts more than
	// any sample.
	Observed bool `json:"observed,omitempty"`
}

// Known reports whether r was observed, and as a number.
func (r Reading) Known() bool {
	return !r.At.IsZero() && !math.IsNaN(r.Value) && !math.IsInf(r.Value, 0)
}

// Or is the value, or another where it is not known.
func (r Reading) Or(other float64) float64 {
	if r.Known() {
		return r.Value
	}
	return other
}

// Age is how old the reading is. A clock that has jumped back does not make it
// younger than new. It is meaningless for a reading that is not known.
func (r Reading) Age(now time.Time) time.Duration { return max(0, now.Sub(r.At)) }

// DirtyPoint is how much distinct memory a guest writes in a time.
type DirtyPoint struct {
	WindowSeconds float64 `json:"window_s"`
	// Bytes of all pages that were written at least once in it.
	Bytes float64 `json:"bytes"`
}

// DirtyCurve is how much distinct memory a guest writes in times of several
// lengths. It is concave: what is hot is written again and counts once. So one
// rate, times a duration, says too much.
type DirtyCurve struct {
	// Points by window, shortest first; windows of 0.1, 1 and 10 s are usual.
	Points []DirtyPoint `json:"points"`
	At     time.Time    `json:"at"`
	// Samples is how many windows of each length were looked at.
	Samples  int64 `json:"samples,omitempty"`
	Observed bool  `json:"observed,omitempty"`
}

// Known reports whether there is anything in the curve.
func (c DirtyCurve) Known() bool { return !c.At.IsZero() && len(c.Points) > 0 }

// Lifetimes are how long sessions of a service live, from opened to closed.
type Lifetimes struct {
	P50Seconds float64   `json:"p50_s"`
	P90Seconds float64   `json:"p90_s"`
	P99Seconds float64   `json:"p99_s"`
	At         time.Time `json:"at"`
	// Samples is how many ended sessions they rest on.
	Samples int64 `json:"samples,omitempty"`
}

// Known reports whether any session was seen to end.
func (l Lifetimes) Known() bool { return !l.At.IsZero() && l.Samples > 0 }

// Signals are what is known of a VM that decides what moving it costs. Shares
// are between 0 and 1.
type Signals struct {
	VM   string `json:"vm"`
	UUID string `json:"uuid"`
	Host string `json:"host"`
	// At is when the newest of them was observed.
	At time.Time `json:"at"`
	// Skipped says why the guest was not looked at, if it was not: it is off, a
	// move is using it, the budget of time is used up.
	Skipped string `json:"skipped,omitempty"`

	// MemoryBytes is what the guest has now; MemoryUsedBytes what it uses of it
	// by its own account (balloon), page cache not counted.
	MemoryBytes     Reading `json:"memory_bytes,omitzero"`
	MemoryUsedBytes Reading `json:"memory_used_bytes,omitzero"`
	// ZeroShare is the part of its pages that hold zeros.
	ZeroShare Reading `json:"zero_share,omitzero"`
	// KnownShare is the part of its other pages whose content is at a site
	// already, by the site's name.
	KnownShare map[string]Reading `json:"known_share,omitempty"`
	// KnownHereShare is the part of them whose content its own host has, besides in
	// the VM: of images, of what was sent before.
	KnownHereShare Reading `json:"known_here_share,omitzero"`
	// CompressedShare is what a compressor leaves of the pages that are neither
	// zeros nor known here, KnownHereCompressedShare of those that are known here,
	// and may have to be sent all the same: bytes out over bytes in.
	CompressedShare          Reading `json:"compressed_share,omitzero"`
	KnownHereCompressedShare Reading `json:"known_here_compressed_share,omitzero"`
	// ResentShare is what is left of a page that is sent again, as its
	// difference from before: bytes out over bytes in. Only moves show it.
	ResentShare Reading `json:"resent_share,omitzero"`
	// Dirty is how its memory is written. HotBytes are written over and over
	// (in less than HotSeconds each), the rest at ColdBytesPerSecond.
	Dirty              DirtyCurve `json:"dirty,omitzero"`
	HotBytes           Reading    `json:"hot_bytes,omitzero"`
	HotSeconds         Reading    `json:"hot_s,omitzero"`
	ColdBytesPerSecond Reading    `json:"cold_bytes_per_s,omitzero"`

	// DiskAllocatedBytes is what its disks' top images take that would have to be copied.
	DiskAllocatedBytes Reading `json:"disk_allocated_bytes,omitzero"`
	// DiskKnownShare is the part of that a site has already, by its name.
	DiskKnownShare map[string]Reading `json:"disk_known_share,omitempty"`
	// DiskCompressedShare is what a compressor leaves of the rest.
	DiskCompressedShare    Reading `json:"disk_compressed_share,omitzero"`
	DiskReadBytesPerSecond Reading `json:"disk_read_bytes_per_s,omitzero"`
	// DiskWriteBytesPerSecond is all that it writes, DiskDistinctBytesPerSecond
	// what of it is not written again within a minute.
	DiskWriteBytesPerSecond    Reading `json:"disk_write_bytes_per_s,omitzero"`
	DiskDistinctBytesPerSecond Reading `json:"disk_distinct_bytes_per_s,omitzero"`

	// NetworkRxBPS and NetworkTxBPS are bits per second to and from the guest.
	NetworkRxBPS Reading `json:"network_rx_bps,omitzero"`
	NetworkTxBPS Reading `json:"network_tx_bps,omitzero"`
	// CPUShare is how busy its virtual processors are, all together.
	CPUShare Reading `json:"cpu_share,omitzero"`
	// Sessions are open now; Lifetimes how long such sessions live.
	Sessions  Reading   `json:"sessions,omitzero"`
	Lifetimes Lifetimes `json:"lifetimes,omitzero"`
}

// HostSignals are what is known of a host that decides how fast it can send.
type HostSignals struct {
	Host string    `json:"host"`
	At   time.Time `json:"at"`
	// EncodeBytesPerSecond is how much of a guest's memory, zeros not counted, its
	// data path makes ready for the link in a second, all lanes together.
	EncodeBytesPerSecond Reading `json:"encode_bytes_per_s,omitzero"`
	// CPUFreeShare is the part of its processors that has nothing to do.
	CPUFreeShare Reading `json:"cpu_free_share,omitzero"`
}

// HoursOfWeek is how many hours a week has. The first begins on Monday at
// 00:00 UTC.
const HoursOfWeek = 168

// HourOfWeek is the hour of the week that t is in.
func HourOfWeek(t time.Time) int {
	u := t.UTC()
	return (int(u.Weekday())+6)%7*24 + u.Hour()
}

// LinkHour is what a link is usually like in one hour of the week.
type LinkHour struct {
	// Hour is 0 to HoursOfWeek-1.
	Hour      int     `json:"hour"`
	RTTMillis float64 `json:"rtt_ms"`
	LossShare float64 `json:"loss_share"`
	// FreeBPS is what others leave of it.
	FreeBPS float64 `json:"free_bps"`
	// Samples is how many measurements it rests on; zero says nothing is known.
	Samples int64 `json:"samples"`
}

// LinkSignals are what is known of the way from one site to another.
type LinkSignals struct {
	// Link is its name, empty where several lead there.
	Link string `json:"link,omitempty"`
	// From and To are the sites; what is free may differ by direction.
	From string    `json:"from"`
	To   string    `json:"to"`
	At   time.Time `json:"at"`

	RTTMillis    Reading `json:"rtt_ms,omitzero"`
	JitterMillis Reading `json:"jitter_ms,omitzero"`
	// LossShare is the part of the packets that are lost, between 0 and 1.
	LossShare Reading `json:"loss_share,omitzero"`
	// CapacityBPS is what it carries when nobody else uses it, FreeBPS what
	// others leave of it now; bits per second on the wire.
	CapacityBPS Reading `json:"capacity_bps,omitzero"`
	FreeBPS     Reading `json:"free_bps,omitzero"`
	// Week is what it is usually like, by the hour; those hours that are known.
	Week []LinkHour `json:"week,omitempty"`
}

// ObservedVM is a VM's signals with those of the host that it is on.
type ObservedVM struct {
	Signals
	OnHost HostSignals `json:"on_host,omitzero"`
}
