package driver

import (
	"context"
	"time"

	"github.com/drover-vm/drover"
)

// Definition is a VM's persistent configuration in the hypervisor's own
// language (libvirt domain XML). Callers store and carry it, unread.
type Definition []byte

// Hypervisor is what runs VMs on one host.
//
// All methods may be called concurrently. A name that does not exist gives
// drover.NotFound, except where a method says that missing is fine. A manager
// that is down gives drover.Unavailable, and the driver reconnects on the next
// call. Close ends it; it stops no VM.
type Hypervisor interface {
	// Host observes the machine: CPU, memory, versions, machine types,
	// networks. Name, Site, Address and volumes are the caller's to fill.
	Host(ctx context.Context) (drover.Host, error)
	// List observes every VM that is defined or running. Disk sizes and
	// backing chains are filled as far as the manager knows them.
	List(ctx context.Context) ([]drover.VM, error)
	// VM observes one.
	VM(ctx context.Context, name string) (drover.VM, error)
	// Watch sends the name of each VM whose state or definition may have
	// changed. The channel is closed when ctx ends or the manager goes away;
	// a slow reader loses events, never the last one for a name.
	Watch(ctx context.Context) (<-chan VMEvent, error)

	// Definition returns the persistent configuration, secrets included.
	Definition(ctx context.Context, name string) (Definition, error)
	// Define makes def known without starting it. Repeating it is fine;
	// another VM with the same name and another UUID gives drover.Exists.
	Define(ctx context.Context, def Definition) (name string, err error)
	// Undefine forgets the configuration; missing is fine. A running VM
	// gives drover.Refused. Disks stay.
	Undefine(ctx context.Context, name string) error
	// Start boots the VM; running already is fine.
	Start(ctx context.Context, name string) error
	// Shutdown asks the guest to power off and returns at once; off already
	// is fine.
	Shutdown(ctx context.Context, name string) error
	// Destroy ends the VM's execution as pulling the plug would; off or
	// missing is fine.
	Destroy(ctx context.Context, name string) error

	// Compatible says which of the VM's needs (CPU model and features,
	// machine type, hypervisor version, NIC networks, accelerator) this host
	// does not meet. def is a Definition from another host; source is that
	// host as observed there. Nothing is changed.
	Compatible(ctx context.Context, def Definition, source drover.Host) ([]drover.Check, error)

	Migrator
	Backuper
	DiskCopier
	Close() error
}

// VMEvent says that a VM changed.
type VMEvent struct {
	Name string
	// What is "started", "resumed", "suspended", "stopped", "defined",
	// "undefined", "migrated" or "changed".
	What string
	At   time.Time
}

// Migrator splits a live migration into the phases between which the two
// sites have to agree. They are those of libvirt's migration protocol 3
// (libvirt source, src/libvirt-domain.c, comment above virDomainMigrateVersion3):
//
//	source  Begin ──offer──▶ Prepare  destination (QEMU waits, guest not started)
//	source  Perform: memory and disks flow; at its end the guest is PAUSED here
//	                 ──cookie──▶ Finish  the guest runs at the destination
//	source  Confirm: the paused guest is destroyed (or resumed, when given back)
//
// Neither side starts or resumes the guest on its own after Perform: that is
// for the caller, who must have the source's word before Finish and the
// destination's before Confirm.
type Migrator interface {
	// Begin opens the migration of a running VM at its source.
	Begin(ctx context.Context, name string, spec MigrationSpec) (Outgoing, error)
	// Prepare starts the receiving hypervisor process at the destination.
	Prepare(ctx context.Context, spec MigrationSpec, offer Offer) (Incoming, error)
	// Settle ends what an Outgoing or Incoming of an earlier process left
	// behind, so that the VM is in the state given, and is repeatable.
	// At the source: SettleResume makes the guest run on (gone: NotFound);
	// SettleGone destroys and undefines it (missing is fine).
	// At the destination: SettleGone destroys and undefines what was received;
	// SettleResume starts or resumes it where its persistent definition is there.
	// A migration that is still in its transfer is aborted first.
	Settle(ctx context.Context, name string, to Settlement) error
}

// Settlement is what Settle leaves a VM in.
type Settlement int

// The settlements.
const (
	SettleResume Settlement = iota
	SettleGone
)

// MigrationSpec is what both sides need to know of a migration. Sockets are
// paths of unix sockets on the respective host: at the source a relay listens
// on them; at the destination the hypervisor does.
type MigrationSpec struct {
	// Name of the VM.
	Name string
	// MemorySocket carries the memory stream, DiskSocket the disks' NBD.
	MemorySocket string
	DiskSocket   string
	// CopyDisks are the targets ("vda") whose content has to be carried.
	// Each exists at the destination beforehand with the same virtual size
	// (Top: with the same backing file). Empty: none.
	CopyDisks []string
	// TopOnly says that the destination's disks have the same backing files,
	// so that only what is above them has to be copied.
	TopOnly bool
	// DisksStay says that no disk is to be copied although the hosts share none:
	// the destination's definition (Offer's) names where it reaches them. That no
	// two hosts write to one is for the caller.
	DisksStay bool
	// Bandwidth bounds the memory stream, zero is unlimited.
	Bandwidth drover.BitRate
	// MaxPause is how long the memory's last round may take at first; zero
	// takes 300 ms. Where the guest writes too much for it to be reached, the
	// driver raises it in steps, at most to MostPause; a MostPause below
	// MaxPause leaves it where it is.
	MaxPause, MostPause time.Duration
	// AutoConverge lets the hypervisor hold the guest's processors back, by
	// more and more, while its memory changes faster than it can be carried.
	AutoConverge bool
	// Persistent is what is stored at the destination as the VM's definition;
	// empty: what is stored at the source. It is the source's to hand over, so
	// Begin reads it and Prepare does not. What the guest runs by there is the
	// offer's.
	Persistent Definition
}

// Offer is what the source's Begin tells the destination's Prepare.
type Offer struct {
	Definition Definition
	Cookie     []byte
}

// Outgoing is the source's half of one migration, bound to this process.
// Close frees it without deciding anything; if Perform has not ended, the
// migration is aborted and the guest runs on.
type Outgoing interface {
	Offer() Offer
	// Perform moves memory and disks and returns when all is at the
	// destination and the guest is paused here; the cookie goes to Finish.
	// Any error means that the guest runs on here (or still does), and the
	// driver has made sure of it; when the kind is drover.Unknown it could
	// not, and Settle has to. Canceling ctx aborts; whoever cancels also ends
	// the connections that go through the spec's sockets, since QEMU waits for
	// what it has written to them.
	Perform(ctx context.Context, prepared []byte) (cookie []byte, err error)
	// Progress may be called while Perform runs, and after it for the final
	// statistics.
	Progress(ctx context.Context) (MigrationStats, error)
	// Confirm ends the migration at the source: moved destroys and undefines
	// the paused guest; otherwise it is resumed. Repeatable.
	Confirm(ctx context.Context, cookie []byte, moved bool) error
	Close() error
}

// Incoming is the destination's half. Close without Finish destroys what was
// received.
type Incoming interface {
	// Prepared is the cookie for Perform.
	Prepared() []byte
	// Finish makes the guest persistent and lets it run here, and returns the
	// cookie for Confirm. On error the guest does not run here and never will
	// from this migration, unless the error's kind is drover.Unknown.
	Finish(ctx context.Context, cookie []byte) ([]byte, error)
	// Abandon destroys what was received. Repeatable.
	Abandon(ctx context.Context) error
	Close() error
}

// MigrationStats are the hypervisor's own figures of a migration.
type MigrationStats struct {
	Phase string // "disk", "memory", "switchover", "done"
	// Memory and disk: bytes to move in all, and moved so far, re-sent ones
	// included.
	MemoryTotalBytes, MemoryDoneBytes, MemoryRemainingBytes drover.Bytes
	DiskTotalBytes, DiskDoneBytes, DiskRemainingBytes       drover.Bytes
	Rate                                                    drover.BitRate
	DirtyPagesPerSecond                                     int64
	PageBytes                                               drover.Bytes
	Rounds                                                  int64
	// ThrottlePercent is by how much the guest's processors are held back now,
	// or were at the end.
	ThrottlePercent int
	// Pause is the downtime the hypervisor measured, zero until it has.
	Pause   time.Duration
	Elapsed time.Duration
}
