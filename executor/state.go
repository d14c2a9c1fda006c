package executor

import (
	"encoding/json"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/network"
	"github.com/drover-vm/drover/saga"
	"github.com/drover-vm/drover/store"
)

// stateVersion is the version of the executor's part of a record. Fields may
// be added under the same version.
const stateVersion = 1

// state is what the executor needs to go on with a move, beside what the move
// shows. It is kept with the move after every change.
type state struct {
	Version int          `json:"version"`
	Table   string       `json:"table"`
	Request Request      `json:"request"`
	Journal saga.Journal `json:"journal"`
	// Cause is why the move is undone; it stays, while Trouble is what hinders
	// the step that is being tried and goes when that succeeds.
	Cause   string `json:"cause,omitempty"`
	Trouble string `json:"trouble,omitempty"`

	// RateSet says that Request.Bandwidth was changed after the move began.
	RateSet bool `json:"rate_set,omitempty"`

	// Gate is nil for a move without one. Committed is the operator's word that
	// opens it.
	Gate      *drover.GateRecord `json:"gate,omitempty"`
	Committed bool               `json:"committed,omitempty"`

	// What steps have found out.

	WasRunning *bool  `json:"was_running,omitempty"`
	Definition []byte `json:"definition,omitempty"`
	// Network is what edges do, once it has been planned.
	Network *network.Plan `json:"network,omitempty"`
	// Remote is where the destination reaches the disks that stay.
	Remote []RemoteDisk `json:"remote,omitempty"`
	// Renumbered is what is known of a VM's new and old addresses.
	Renumbered renumbered `json:"renumbered,omitzero"`
	// Made is what is known of the VM that spawn and redirect make.
	Made    cloneState `json:"made,omitzero"`
	Stopped time.Time  `json:"stopped,omitzero"`
	Resumed time.Time  `json:"resumed,omitzero"`
	Sums    sums       `json:"sums,omitzero"`

	// move is the record's name.
	move string
}

// sums are figures added up over a move's steps.
type sums struct {
	Pause         time.Duration `json:"pause_ns,omitempty"`
	MemoryBytes   drover.Bytes  `json:"memory_bytes,omitempty"`
	DiskBytes     drover.Bytes  `json:"disk_bytes,omitempty"`
	PathWireBytes drover.Bytes  `json:"path_wire_bytes,omitempty"`
	// Known: at least one step has reported what it carried.
	Known bool `json:"known,omitempty"`
	// Path is nil until a step has reported on the data path.
	Path *drover.PathFigures `json:"path,omitempty"`
}

// running reports whether the VM has to run at the end: as Shutdown found it,
// or else as it was observed.
func (s *state) running() bool {
	if s.WasRunning != nil {
		return *s.WasRunning
	}
	return s.Request.running()
}

// definition is what the source has given up, or else what the request has.
func (s *state) definition() []byte {
	if len(s.Definition) > 0 {
		return s.Definition
	}
	if len(s.Request.Definition) > 0 {
		return s.Request.Definition
	}
	return nil
}

// measured adds a step's figures.
func (s *state) measured(r Result) {
	if !r.Stopped.IsZero() {
		s.Stopped = r.Stopped
	}
	if !r.Resumed.IsZero() {
		s.Resumed = r.Resumed
	}
	if r.Pause != 0 {
		s.Sums.Pause = r.Pause
	}
	s.Sums.MemoryBytes += r.MemoryBytes
	s.Sums.DiskBytes += r.DiskBytes
	s.Sums.PathWireBytes += r.PathWireBytes
	if r.Path != nil {
		path := *r.Path
		if s.Sums.Path != nil {
			path = path.Plus(*s.Sums.Path)
		}
		s.Sums.Path = &path
	}
	s.Sums.Known = s.Sums.Known || r.MemoryBytes != 0 || r.DiskBytes != 0 || r.PathWireBytes != 0
}

// figures are what the steps have measured themselves. The pause is the
// hypervisor's own or, for a guest that was shut down, what lies between its
// stop and its start by the two hosts' clocks.
func (s *state) figures(from, to time.Time) drover.Figures {
	var f drover.Figures
	if !from.IsZero() {
		f.TotalSeconds = new(to.Sub(from).Seconds())
	}
	pause := s.Sums.Pause
	if pause == 0 && !s.Stopped.IsZero() && s.Resumed.After(s.Stopped) {
		pause = s.Resumed.Sub(s.Stopped)
	}
	if pause != 0 {
		f.PauseMillis = new(float64(pause) / float64(time.Millisecond))
	}
	if s.Sums.Known {
		f.MemoryBytes = new(int64(s.Sums.MemoryBytes))
		f.DiskBytes = new(int64(s.Sums.DiskBytes))
		f.GuestBytes = new(int64(s.Sums.MemoryBytes + s.Sums.DiskBytes))
		f.PathWireBytes = new(int64(s.Sums.PathWireBytes))
	}
	f.Path = s.Sums.Path
	f.SessionsLost = s.Made.Lost
	return f
}

// ended drops what only an unfinished move needs.
func (s *state) ended() {
	s.Request.Definition, s.Definition = nil, nil
}

// clone returns a copy that can be changed apart from s. What is shared is
// never changed in place.
func (s *state) clone() *state {
	c := *s
	return &c
}

// openState reads a record's state, of any version so far.
func openState(r store.Record) (*state, method, error) {
	op := "open move " + r.Move.Name
	var s state
	if err := json.Unmarshal(r.State, &s); err != nil {
		return nil, method{}, drover.E(drover.Corrupt, op, err)
	}
	if s.Version < 1 || s.Version > stateVersion {
		return nil, method{}, drover.Errorf(drover.Corrupt, op, "version %d: this Drover reads 1 to %d", s.Version, stateVersion)
	}
	m, err := methodByID(s.Table)
	if err != nil {
		return nil, method{}, drover.E(drover.Corrupt, op, err)
	}
	if err := s.Journal.Fits(m.table()); err != nil {
		return nil, method{}, drover.E(drover.Corrupt, op, err)
	}
	s.move = r.Move.Name
	return &s, m, nil
}

// merge takes over the figures of more that are not nil.
func merge(f *drover.Figures, more drover.Figures) {
	take(&f.TotalSeconds, more.TotalSeconds)
	take(&f.PauseMillis, more.PauseMillis)
	take(&f.OutageMillis, more.OutageMillis)
	take(&f.WireBytes, more.WireBytes)
	take(&f.GuestBytes, more.GuestBytes)
	take(&f.SessionsLost, more.SessionsLost)
	take(&f.ExtraRTT, more.ExtraRTT)
	take(&f.HairpinBPS, more.HairpinBPS)
	take(&f.RemoteIOBPS, more.RemoteIOBPS)
	take(&f.Cost, more.Cost)
	take(&f.OutageHTTP, more.OutageHTTP)
	take(&f.Sessions, more.Sessions)
	take(&f.MemoryBytes, more.MemoryBytes)
	take(&f.DiskBytes, more.DiskBytes)
	take(&f.PathWireBytes, more.PathWireBytes)
	take(&f.Path, more.Path)
}

func take[T any](to **T, from *T) {
	if from != nil {
		*to = from
	}
}
