package agent

import (
	"slices"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// record is what the journal keeps of one move on this host, from Reserve to
// Release.
type record struct {
	Move string `json:"move"`
	// Generation is the newest seen.
	Generation int64  `json:"generation"`
	VM         string `json:"vm"`
	VMUUID     string `json:"vm_uuid"`
	// Target says which end of the move this host is.
	Target      bool         `json:"target"`
	MemoryBytes drover.Bytes `json:"memory_bytes,omitempty"`
	// Disks of the VM at its source, as observed at the reservation: what
	// ReleaseSource may delete at most.
	Disks []drover.Disk `json:"disks,omitempty"`
	// Tenant of the VM, as its label says at its source.
	Tenant string `json:"tenant,omitempty"`
	// Peer is the agent at the other end: bound by its first call.
	Peer string `json:"peer,omitempty"`
	// Keeps says that it is no move, but the keeping of a replica.
	Keeps bool `json:"keeps,omitempty"`

	Out *outRecord `json:"out,omitempty"`
	In  *inRecord  `json:"in,omitempty"`
	// RefusedGeneration: no Prepare of this generation or an older one is
	// accepted any more. At the source, no Transfer.
	RefusedGeneration int64 `json:"refused_generation,omitempty"`

	// Warm is set from the first round of a warm move until nothing of its rounds
	// is left here.
	Warm *warmRecord `json:"warm,omitempty"`

	// Volumes that CreateVolumes has made or was about to make.
	Volumes []volumeRecord `json:"volumes,omitempty"`
	// Copied disks at the destination, by target.
	Copied map[string]copyRecord `json:"copied,omitempty"`

	// WasRunning is what the first Shutdown found.
	WasRunning *bool `json:"was_running,omitempty"`
	// Asked says that the guest was asked to power off, and how long it was given;
	// 0 once it was started again.
	Asked time.Duration `json:"asked,omitempty"`
	// Definition is what GiveUp has taken; GivenUp says that it has been.
	Definition driver.Definition `json:"definition,omitempty"`
	GivenUp    bool              `json:"given_up,omitempty"`
	// Defined and Started at the destination, written before each is done.
	Defined bool `json:"defined,omitempty"`
	Started bool `json:"started,omitempty"`
	// Committed: the VM at the destination counts, for good. Uncommitted: it
	// never will, by this move.
	Committed   bool `json:"committed,omitempty"`
	Uncommitted bool `json:"uncommitted,omitempty"`
	// DisksOnly: the VM stays at the target, and the disks that it has left at the
	// source come to it. Bring is how far that is.
	DisksOnly bool         `json:"disks_only,omitempty"`
	Bring     *bringRecord `json:"bring,omitempty"`
	// Unplugged is the network card whose cable is out for a moment.
	Unplugged string `json:"unplugged,omitempty"`
}

// The states of an outgoing transfer.
const (
	outBegun    = "begun"    // the guest is the source's
	outGivenUp  = "given-up" // whose it is, only the destination knows
	outAccepted = "accepted" // the guest is the destination's
	outMoved    = "moved"    // and nothing of it is left here
	outEnded    = "ended"    // the guest is the source's, and runs
)

// outRecord is the source's side of a transfer.
type outRecord struct {
	State       string         `json:"state"`
	Generation  int64          `json:"generation"`
	PeerAddress string         `json:"peer_address"`
	PeerHost    string         `json:"peer_host"`
	Token       []byte         `json:"token,omitempty"`
	Cookie      []byte         `json:"cookie,omitempty"`
	Figures     transferFigure `json:"figures"`
	Fault       string         `json:"fault,omitempty"`
}

// transferFigure is what was measured, as far as it was known.
type transferFigure struct {
	Pause       time.Duration `json:"pause_ns,omitempty"`
	MemoryBytes int64         `json:"memory_bytes,omitempty"`
	DiskBytes   int64         `json:"disk_bytes,omitempty"`
	PathBytes   int64         `json:"path_bytes,omitempty"`
	// Path is nil where the data path has told nothing.
	Path    *drover.PathFigures `json:"path,omitempty"`
	Stopped time.Time           `json:"stopped,omitzero"`
	Resumed time.Time           `json:"resumed,omitzero"`
}

// The states of an incoming transfer.
const (
	inPrepared  = "prepared"  // the receiving hypervisor may be waiting
	inAccepted  = "accepted"  // the source has given the guest up to this host
	inRunning   = "running"   // and it runs here
	inRefused   = "refused"   // it never will
	inAbandoned = "abandoned" // thrown away by the source before it was given up
)

// inRecord is the destination's side.
type inRecord struct {
	State      string    `json:"state"`
	Generation int64     `json:"generation"`
	Token      []byte    `json:"token"`
	Cookie     []byte    `json:"cookie,omitempty"` // of Finish, for Confirm
	Resumed    time.Time `json:"resumed,omitzero"`
	Fault      string    `json:"fault,omitempty"`
	// Copying is true for a session that carries disks only. Round and Base are
	// those of PrepareRequest.
	Copying bool  `json:"copying,omitempty"`
	Round   int64 `json:"round,omitempty"`
	Base    int64 `json:"base,omitempty"`
}

// owns reports whether the guest is, or may be, this host's by this transfer.
func (in *inRecord) owns() bool {
	return in != nil && (in.State == inAccepted || in.State == inRunning)
}

// volumeRecord is written before the volume is made; Made after.
type volumeRecord struct {
	Target string            `json:"target"`
	Spec   driver.VolumeSpec `json:"spec"`
	Made   bool              `json:"made,omitempty"`
	// Fresh says that it stays as it was made: nothing is carried into it.
	Fresh bool `json:"fresh,omitempty"`
	// Dirty says that a copy into it has begun: another begins with an empty
	// volume.
	Dirty bool `json:"dirty,omitempty"`
	// Round is the newest of the source's rounds that it is known to hold in
	// full, together with parts of later ones maybe; zero: none.
	Round int64 `json:"round,omitempty"`
	// Replica names the one that it was taken from, where it lay at ReplicaPath;
	// empty: none, or a guest may have run on it since.
	Replica     string `json:"replica,omitempty"`
	ReplicaPath string `json:"replica_path,omitempty"`
}

// copyRecord is a disk that was copied, read back and found the same.
type copyRecord struct {
	Digest    []byte       `json:"digest"`
	DataBytes drover.Bytes `json:"data_bytes"`
}

// dropVolume forgets a volume.
func (r *record) dropVolume(target string) {
	r.Volumes = slices.DeleteFunc(r.Volumes, func(v volumeRecord) bool { return v.Target == target })
}

func (r *record) volume(target string) *volumeRecord {
	for i := range r.Volumes {
		if r.Volumes[i].Target == target {
			return &r.Volumes[i]
		}
	}
	return nil
}
