package executor

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/drover-vm/drover"
)

// Ref names a move to an agent. An agent refuses (drover.Refused) a generation
// older than one it has seen for that move.
type Ref struct {
	Move       string
	Generation int64
	VM, VMUUID string
}

// Agents is how a step reaches a host. It is implemented by the API's client
// for real, and in memory by executortest and the simulator.
//
// What the executor relies on:
//
//   - An action is named by move and step. Asking for one that runs finds it;
//     one that has succeeded is answered again from the agent's journal; one
//     that has failed, or was forgotten, is begun anew.
//   - Cutting a call (ctx, a lost connection) does not end the action.
//   - An error whose kind is Unavailable or Unknown says nothing about whether
//     the action took effect. Any other says that it has ended and failed,
//     perhaps half way.
//   - An error made by CallCut says that the call broke, while the action, if it
//     was begun, goes on. Any other comes from the agent.
//   - The actions that take back (Release, DeleteVolumes, AbortTransfer,
//     TakeBack, Undefine, StopReplication, StopVM, AbortCommit, ReclaimDisks,
//     DetachDisks, AbortBring) first end every other action of the same move on
//     their host, and wait for that.
//   - Actions other than Reserve, Release, CheckHealth, Edge, StageEdge, CountSessions, FindStation and Attend
//     need the move's reservation on their host. After Release, a late Reserve of the same move is refused.
type Agents interface {
	// Run starts or finds the action, calls progress (never after it has
	// returned) while the action runs, and returns when it has ended.
	Run(ctx context.Context, host string, ref Ref, step string, action Action, progress func(drover.Progress)) (Result, error)
	// Cancel asks a running action to end; its Run then fails with
	// drover.Canceled, unless it succeeds first. Nothing to cancel is fine.
	Cancel(ctx context.Context, host string, ref Ref, step string) error
	// SetRate changes how much the move's Transfer or Copy under way may send.
	// drover.NotFound: nothing is being sent (yet).
	SetRate(ctx context.Context, host string, ref Ref, rate drover.BitRate) error
}

// CallCut makes err say that nobody has answered to a call, or not to its end.
// Its kind and text stay. nil stays nil.
func CallCut(err error) error {
	if err == nil {
		return nil
	}
	return callCut{err}
}

type callCut struct{ error }

func (c callCut) Unwrap() error { return c.error }

func isCut(err error) bool { return errors.As(err, new(callCut)) }

// Action is what an agent is asked to do: one of the types below that have an
// isAction method. All are repeatable.
type Action interface{ isAction() }

// Reserve admits a move to this host: no VM of that name or UUID may be here
// (target), or it must be (source), and no other move may have it.
type Reserve struct {
	Target      bool
	MemoryBytes drover.Bytes
	// DisksOnly: the target has the VM, and the source has disks that it has left
	// there.
	DisksOnly bool
	// Replica names one of the VM that is kept where the move goes. At the source
	// its record of changes becomes the move's, until Release gives it back.
	Replica string
	// Keeps reserves for a replica: it keeps no move away, and gives way to one.
	Keeps bool
}

// Release ends the reservation and forgets the move. Missing is fine.
type Release struct{ Target bool }

// CreateVolumes makes the empty images into which disks are carried.
type CreateVolumes struct {
	Disks []DiskPlan
	// Replica names one whose images become the move's, as far as they are whole;
	// DeleteVolumes and Release give them back, unless a guest has run on them.
	Replica string
}

// DeleteVolumes deletes what CreateVolumes of the same move has made here.
type DeleteVolumes struct{}

// DiskPlan says how one disk crosses.
type DiskPlan struct {
	Target       string       `json:"target"` // "vda"
	Path         string       `json:"path"`
	Format       string       `json:"format"`
	VirtualBytes drover.Bytes `json:"virtual_bytes"`
	// BackingPath is the file below the top image, where the destination has
	// it; empty when the whole content crosses.
	BackingPath   string `json:"backing_path,omitempty"`
	BackingFormat string `json:"backing_format,omitempty"`
	TopOnly       bool   `json:"top_only,omitempty"`
	// Fresh images stay as they are made: nothing is carried into them.
	Fresh          bool         `json:"fresh,omitempty"`
	AllocatedBytes drover.Bytes `json:"allocated_bytes"`
}

// Transfer is the live migration, run by the source's agent, including the
// switchover, which the two agents decide between them. Its Result says Moved.
type Transfer struct {
	PeerAddress, PeerHost string
	Disks                 []DiskPlan
	Bandwidth             drover.BitRate // zero: unlimited
	MaxPause              time.Duration  // zero: the agent's choice
	// NoThrottle leaves the guest's processors alone when its memory changes
	// faster than it can be carried.
	NoThrottle bool
	// SourceEdge and TargetEdge are told of the switchover, each by the host of
	// its own site.
	SourceEdge, TargetEdge EdgeAgent
	// Retarget is nil for a VM that stays in its segments. Guest is done by the
	// destination's agent as soon as the guest runs there, as far as it can be:
	// whoever needs it asks again (ChangeGuest).
	Retarget *Retarget
	Guest    *GuestChange
	// Remote are the disks that stay here, as AttachDisks has said.
	Remote []RemoteDisk
}

// AbortTransfer makes sure that no transfer of this move is under way or will
// be, and that the VM runs at the source; or its Result says that it has
// Moved. drover.NotFound says that the VM is lost on both sides.
type AbortTransfer struct{ PeerAddress, PeerHost string }

// Shutdown powers the guest off. Its Result says WasRunning, also when it is
// repeated.
type Shutdown struct {
	Grace time.Duration
	// Force pulls the plug when the guest has not powered off in time.
	Force bool
}

// GiveUp takes the VM's definition away from the source and keeps it in the
// agent's journal, so that nothing can start the VM there. Its Result has the
// Definition.
type GiveUp struct{}

// TakeBack undoes GiveUp, and starts the VM when Start says so or when the
// agent's journal says that Shutdown found it running. A VM that was not given
// up is fine. drover.NotFound says that the definition is lost.
type TakeBack struct{ Start bool }

// Copy sends disks from the source to the peer and compares digests.
type Copy struct {
	PeerAddress, PeerHost string
	Disks                 []DiskPlan
	Bandwidth             drover.BitRate // zero: unlimited
	// Changes sends only what was written since the last round of Replicate.
	Changes bool
}

// Replicate sends the disks of a VM that runs on, in rounds: first all, then what
// was written meanwhile, until what is left can be sent in MaxDowntime or does not
// become less. What the destination has of an earlier attempt is kept.
type Replicate struct {
	PeerAddress, PeerHost string
	Disks                 []DiskPlan
	Bandwidth             drover.BitRate // zero: unlimited
	MaxDowntime           time.Duration  // zero: the agent's choice
	// Once is a replica's: one round, after which the Result has its Point.
	// drover.NotFound says that no round can be built on those before.
	Once bool
}

// StopReplication ends what Replicate has begun at the source, the recording of
// changes included. Nothing begun is fine.
type StopReplication struct{}

// StopVM ends the VM's execution at the target and gives up what it wrote there;
// off or missing is fine. One that was committed gives drover.Refused.
type StopVM struct{}

// CheckHealth asks until the VM is well, or Limit is over: its Result says
// Healthy, and Detail. At the target it also looks whether the VM runs; without a
// Kind that is all. It needs no reservation.
type CheckHealth struct {
	Kind   drover.HealthKind
	Target string
	Limit  time.Duration
}

// Commit makes the VM at the target the one that counts: StopVM and Undefine are
// refused from then on. Refused after AbortCommit.
type Commit struct{}

// AbortCommit makes sure that no Commit of this move is or will be accepted; or
// its Result says Moved: it has been.
type AbortCommit struct{}

// Define makes the definition known at the target.
type Define struct{ Definition []byte }

// Undefine undoes Define; missing is fine. A VM that runs here, or has run
// since Define, gives drover.Refused.
type Undefine struct{}

// StartVM boots the VM; running already is fine. TargetEdge is told then.
type StartVM struct{ TargetEdge EdgeAgent }

// Verify reads the VM's real state here. A VM that is not here gives
// drover.NotFound; one that is, but not running when Running is set (or
// running when it is not), any other kind.
type Verify struct{ Running bool }

// ReleaseSource removes what the VM left at its source: the definition kept by
// GiveUp and, unless KeepVolumes, the images of Disks. A VM that still runs
// here gives drover.Refused.
type ReleaseSource struct {
	KeepVolumes bool
	Disks       []DiskPlan
}

func (Reserve) isAction()         {}
func (Release) isAction()         {}
func (CreateVolumes) isAction()   {}
func (DeleteVolumes) isAction()   {}
func (Replicate) isAction()       {}
func (StopReplication) isAction() {}
func (StopVM) isAction()          {}
func (CheckHealth) isAction()     {}
func (Commit) isAction()          {}
func (AbortCommit) isAction()     {}
func (Transfer) isAction()        {}
func (AbortTransfer) isAction()   {}
func (Shutdown) isAction()        {}
func (GiveUp) isAction()          {}
func (TakeBack) isAction()        {}
func (Copy) isAction()            {}
func (Define) isAction()          {}
func (Undefine) isAction()        {}
func (StartVM) isAction()         {}
func (Verify) isAction()          {}
func (ReleaseSource) isAction()   {}

// Result is what an action that succeeded says. Fields that the action does
// not fill are zero.
type Result struct {
	// Moved: for Transfer, AbortTransfer and AbortCommit, whether the VM is at
	// the destination, for good.
	Moved bool
	// Healthy and Detail: for CheckHealth, how it ended and what was seen last.
	Healthy bool
	Detail  string
	// WasRunning: for Shutdown and GiveUp, whether the VM was running before.
	WasRunning bool
	// Definition: for GiveUp.
	Definition []byte
	// Pause as the hypervisor measured it.
	Pause time.Duration
	// Guest bytes carried, and bytes that the data path put on the wire.
	MemoryBytes, DiskBytes, PathWireBytes drover.Bytes
	// Point is the moment that the replica is of: for Replicate Once.
	Point time.Time
	// Path is what the data path did; nil where there was none.
	Path *drover.PathFigures
	// When the guest stopped at the source and ran at the destination, by the
	// respective host's clock; zero when not known.
	Stopped, Resumed time.Time
	// Addresses, with the length of their subnet, and Gateways: for Edge with
	// drover.ReserveLease.
	Addresses []netip.Prefix
	Gateways  []netip.Addr
	// RemoteDisks: for AttachDisks.
	RemoteDisks []RemoteDisk
	// Sessions: for CountSessions those that are open, for Edge those that it
	// has ended.
	Sessions int
}
