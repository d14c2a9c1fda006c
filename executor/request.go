package executor

import (
	"slices"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/network"
)

// Request is a move as it has been decided: nothing is left to choose. It is
// kept in the journal with the move.
type Request struct {
	// ID is the caller's name for the request: Start with the same one again
	// returns the same move. Empty: never the same.
	ID string `json:"id,omitempty"`
	// VM as observed at its source.
	VM drover.VM `json:"vm"`
	// From and To name site and host; they differ in the host.
	From drover.Place `json:"from"`
	To   drover.Place `json:"to"`
	// FromAddress and ToAddress are where the two agents reach each other,
	// "ip:port".
	FromAddress string        `json:"from_address"`
	ToAddress   string        `json:"to_address"`
	Method      drover.Method `json:"method"`
	Reasons     []string      `json:"reasons,omitempty"`
	// Disks says how each disk crosses. Shared disks are not among them: they
	// are neither copied nor deleted.
	Disks []DiskPlan `json:"disks,omitempty"`
	// Left are the disks that stay at the source, where the VM works on them from
	// its new place; none with them comes along then.
	Left []DiskPlan `json:"left,omitempty"`
	// Definition is the VM's at its source, used by cold moves where GiveUp
	// does not return one.
	Definition []byte `json:"definition,omitempty"`
	// Bandwidth bounds memory and disks together; zero is unlimited.
	Bandwidth drover.BitRate `json:"bandwidth_bps,omitempty"`
	// MaxPause is the pause that a live move may aim at; zero leaves it to the
	// agent.
	MaxPause time.Duration `json:"max_pause_ns,omitempty"`
	// NoThrottle keeps a live move from holding the guest's processors back
	// when its memory changes faster than it can be carried.
	NoThrottle bool `json:"no_throttle,omitempty"`
	// ShutdownGrace is how long a cold move waits for the guest to power off;
	// zero takes DefaultShutdownGrace. ShutdownForce then pulls the plug;
	// without it the move is undone.
	ShutdownGrace time.Duration `json:"shutdown_grace_ns,omitempty"`
	ShutdownForce bool          `json:"shutdown_force,omitempty"`
	// KeepSource keeps the disks at the source after the move.
	KeepSource bool `json:"keep_source,omitempty"`
	// MaxDowntime is how long the last changes of a warm move may take to be
	// sent; zero leaves it to the agent.
	MaxDowntime time.Duration `json:"max_downtime_ns,omitempty"`
	// Gate is what a warm or cold move's VM has to pass at its destination; nil:
	// that it was started.
	Gate *drover.Gate `json:"gate,omitempty"`
	// LocalEgress keeps the traffic of a stretched VM from going by way of its
	// segment's home.
	LocalEgress bool `json:"local_egress,omitempty"`
	// Renumber is the VM's way into another segment; nil for other methods.
	Renumber *network.Renumber `json:"renumber,omitempty"`
	// Clone is the VM that spawn and redirect make; nil for other methods.
	Clone *Clone `json:"clone,omitempty"`
	// Replica names one of the VM that is kept at the destination's host, and that
	// a warm or cold move begins with; empty: none.
	Replica string `json:"replica,omitempty"`
	// Forecast is what was expected of the move; it is kept with it.
	Forecast *drover.Forecast `json:"-"`
	// Locks are names of which two moves under way have none in common, such as
	// "address/10.0.0.7": the second waits for the first to end.
	Locks []string `json:"locks,omitempty"`
}

// maxLocks bounds what one move can keep others from: a VM has a few addresses.
const maxLocks = 256

// DefaultShutdownGrace is what most guests need to power off: systemd gives
// services 90 s to stop.
const DefaultShutdownGrace = 2 * time.Minute

// maxDefinitionBytes bounds a VM's definition. Those of VMs with hundreds of
// devices stay below it, and it may stand in a record twice (see
// store.MaxRecordBytes; in base 64 it takes a third more).
const maxDefinitionBytes = 256 << 10

// Validate reports whether the request can be carried out at all. The error's
// kind is drover.Invalid and names the field; or drover.Refused when the
// method does not suit the VM's state.
func (r Request) Validate() error {
	op := "move " + r.VM.Name
	bad := func(format string, args ...any) error { return drover.Errorf(drover.Invalid, op, format, args...) }
	switch {
	case r.VM.Name == "":
		return drover.Errorf(drover.Invalid, "move", "vm.name is missing")
	case r.VM.UUID == "":
		return bad("vm.uuid is missing")
	case r.From.Site == "" || r.From.Host == "":
		return bad("from %q: want site/host", r.From)
	case r.To.Site == "" || r.To.Host == "":
		return bad("to %q: want site/host", r.To)
	case r.From.Host == r.To.Host:
		return bad("from and to are the same host %q", r.To.Host)
	case r.FromAddress == "":
		return bad("from_address is missing: want the source agent's ip:port")
	case r.ToAddress == "":
		return bad("to_address is missing: want the destination agent's ip:port")
	case len(r.Definition) > maxDefinitionBytes:
		return bad("definition of %d bytes: want at most %d", len(r.Definition), maxDefinitionBytes)
	case r.Bandwidth < 0:
		return bad("bandwidth_bps %d: want 0 (unlimited) or more", int64(r.Bandwidth))
	case r.MaxPause < 0:
		return bad("max_pause %v: want 0 (the agent's choice) or more", r.MaxPause)
	case r.ShutdownGrace < 0:
		return bad("shutdown_grace %v: want 0 (%v) or more", r.ShutdownGrace, DefaultShutdownGrace)
	case len(r.Locks) > maxLocks:
		return bad("%d locks: want at most %d", len(r.Locks), maxLocks)
	case r.LocalEgress && r.Method != drover.Stretch:
		return bad("local_egress is for the method %s: by %s traffic takes the direct way, or its segment is one", drover.Stretch, r.Method)
	case (r.Method == drover.Renumber) != (r.Renumber != nil):
		return bad("renumber: want it for the method %s, and for no other", drover.Renumber)
	case r.Replica != "" && r.Method != drover.Warm && r.Method != drover.Cold:
		return bad("replica %s: the methods %s and %s begin with one, %s finds its content", r.Replica, drover.Warm, drover.Cold, r.Method)
	case r.MaxDowntime < 0:
		return bad("max_downtime %v: want 0 (the agent's choice) or more", r.MaxDowntime)
	}
	if _, err := methodOf(r); err != nil {
		return drover.E(drover.Invalid, op, err)
	}
	if (r.keepsRunning() || r.Method == drover.Disks || r.Method == drover.Warm || r.Method == drover.Redirect) && r.VM.State != drover.VMRunning {
		return drover.Errorf(drover.Refused, op, "it is %s: only a running VM moves %s, take the method cold", r.VM.State, r.Method)
	}
	if r.Gate != nil {
		if err := r.Gate.Validate(); err != nil {
			return drover.E(drover.Invalid, op, err)
		}
	}
	if err := r.Clone.validate(r, bad); err != nil {
		return err
	}
	if r.leavesDisks() && len(r.Disks) > 0 {
		return bad("left: %d disks stay and %d come along: want one or the other", len(r.Left), len(r.Disks))
	}
	return r.checkDisks(bad)
}

// leavesDisks reports whether the VM's disks stay at the source.
func (r Request) leavesDisks() bool { return len(r.Left) > 0 }

// checkDisks makes sure that no shared disk would be copied or deleted.
func (r Request) checkDisks(bad func(string, ...any) error) error {
	shared := make(map[string]bool)
	for _, d := range r.VM.Disks {
		if d.Shared && r.Method != drover.Disks {
			shared[d.Target], shared[d.Path] = true, true
		}
	}
	seen := make(map[string]bool)
	for _, d := range slices.Concat(r.Disks, r.Left) {
		switch {
		case d.Target == "" || d.Path == "":
			return bad("disks: target %q with path %q: want both", d.Target, d.Path)
		case seen[d.Target]:
			return bad("disks: target %q stands in it twice", d.Target)
		case shared[d.Target] || shared[d.Path]:
			return bad("disks: %q is shared: it is neither copied nor deleted, leave it out", d.Target)
		case d.VirtualBytes <= 0:
			return bad("disks: %q: virtual_bytes %d: want more than 0", d.Target, int64(d.VirtualBytes))
		}
		seen[d.Target] = true
	}
	return nil
}

// keepsRunning reports whether the guest goes on at the destination where it was
// at the source.
func (r Request) keepsRunning() bool {
	return r.Method == drover.Live || r.Method == drover.Stretch || r.Method == drover.Route || r.Method == drover.Renumber
}

// running reports whether the VM was executing when it was observed.
func (r Request) running() bool {
	return r.VM.State == drover.VMRunning || r.VM.State == drover.VMPaused
}

func (r Request) shutdownGrace() time.Duration {
	if r.ShutdownGrace == 0 {
		return DefaultShutdownGrace
	}
	return r.ShutdownGrace
}
