package driver

import (
	"context"
	"net/netip"
	"time"

	"github.com/drover-vm/drover"
)

// Signals is what can be seen of a host and its VMs without disturbing them:
// counters that the hypervisor keeps anyway, and guests' memory, looked at from
// outside while they run.
//
// Nothing is written, nothing is set, no guest is stopped, and no page comes into
// being because it was looked at. Methods may be called concurrently. A VM that
// is not there gives drover.NotFound, one that does not run drover.Refused, a
// manager that is down drover.Unavailable.
type Signals interface {
	// Counters reads the counters of every VM that runs, in one go, ordered by
	// name. What is not known of one is left out of it.
	Counters(ctx context.Context) ([]VMCounters, error)
	// Memory opens the memory of a VM that runs. Where it cannot be told from the
	// rest of the hypervisor's process it is drover.Refused. The handle is bound
	// to that run of the VM.
	Memory(ctx context.Context, name string) (GuestMemory, error)
	// Processors reads how long the host's processors were idle and how long that
	// would have been at most, since some time that does not change while it is up.
	Processors(ctx context.Context) (idle, all time.Duration, err error)
	Close() error
}

// VMCounters are one VM's running totals since its start on this host. A total
// that is smaller than before began anew.
type VMCounters struct {
	Name, UUID string
	// At is when they were read.
	At time.Time
	// CPUTime is what its virtual processors have used, all together; VCPUs how
	// many there are.
	CPUTime time.Duration
	VCPUs   int
	// MemoryBytes is what the guest has now: its balloon's size.
	MemoryBytes drover.Bytes
	// UsedBytes is what the guest says that it uses, without page cache; nil
	// where it does not say, or has not lately.
	UsedBytes *drover.Bytes
	// ResidentBytes is what the VM's process holds of the host's memory.
	ResidentBytes drover.Bytes
	// Disks are all of its drives.
	Disks []DiskCounters
	// ReceivedBytes and SentBytes are the guest's, over all its NICs.
	ReceivedBytes, SentBytes drover.Bytes
}

// DiskCounters are one disk's.
type DiskCounters struct {
	Target                  string
	ReadBytes, WrittenBytes drover.Bytes
	Writes                  int64
	// AllocatedBytes is what the top image takes on the host, HighestBytes the end of
	// what was ever written to it; zero where they are not known.
	AllocatedBytes, HighestBytes drover.Bytes
}

// PageState says what there is of a page of a guest's memory.
type PageState uint8

// The states of a page.
const (
	// PageAbsent was never touched: the guest would read zeros.
	PageAbsent PageState = iota
	// PagePresent is in the host's memory.
	PagePresent
	// PageAway was put elsewhere by the host, to swap for instance: to read it
	// would bring it back.
	PageAway
)

// PageBytes is the size of the pages of GuestMemory, and of the blocks of the
// data path.
const PageBytes = 4096

// GuestMemory is the memory of one VM that runs. Not for concurrent use.
type GuestMemory interface {
	// Pages is how many there are.
	Pages() int64
	// State says what there is of a page.
	State(page int64) (PageState, error)
	// Read copies a page, which must be present, into p of PageBytes. What the guest
	// writes meanwhile may be in it in part. A VM that has ended gives
	// drover.NotFound.
	Read(page int64, p []byte) error
	Close() error
}

// Pings measures the way to another host with a few small packets.
type Pings interface {
	// Ping sends count echo requests to the address, gap apart, and waits at most
	// limit for the last answer. A host that answers nothing at all is
	// drover.Unavailable: whether packets are lost or refused cannot be told then.
	Ping(ctx context.Context, to netip.Addr, count int, gap, limit time.Duration) (PingResult, error)
	Close() error
}

// PingResult is what came back.
type PingResult struct {
	Sent, Received int
	// Trips are the round trips of those that did, in the order sent.
	Trips []time.Duration
}

// MaxPings bounds the packets of one asking: enough to see a jitter, and few
// enough that nobody takes them for an attack.
const MaxPings = 64

// CheckPing refuses what cannot be asked.
func CheckPing(to netip.Addr, count int) error {
	if !to.IsValid() || to.IsUnspecified() || to.IsMulticast() {
		return drover.Errorf(drover.Invalid, "ping", "%q: want a host's address", to.String())
	}
	if count < 1 || count > MaxPings {
		return drover.Errorf(drover.Invalid, "ping "+to.String(), "%d packets: want 1 to %d", count, MaxPings)
	}
	return nil
}
