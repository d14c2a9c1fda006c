package drover

import (
	"fmt"
	"regexp"
	"strings"
	"time"
)

// Method is a way for a VM to be elsewhere.
type Method string

// The methods, from DESIGN: eight ways to be elsewhere, and one to stay.
const (
	Live     Method = "live"
	Stretch  Method = "stretch"
	Route    Method = "route"
	Renumber Method = "renumber"
	Redirect Method = "redirect"
	Warm     Method = "warm"
	Cold     Method = "cold"
	Spawn    Method = "spawn"
	Stay     Method = "stay"
	// Disks is no way to be elsewhere: it brings disks that were left behind to
	// where their VM is.
	Disks Method = "disks"
)

// Methods are the ways to be elsewhere, the simplest first: what touches least of
// the VM, of its users and of the network. Stay is none of them.
func Methods() []Method {
	return []Method{Spawn, Redirect, Cold, Warm, Live, Route, Renumber, Stretch}
}

// MoveState is where a move is in its life.
type MoveState string

// The states of a move. Done, Undone and Failed are final.
const (
	MovePending MoveState = "pending" // accepted, no step begun
	MoveRunning MoveState = "running" // going forward
	MoveUndoing MoveState = "undoing" // a step failed before the pivot
	MoveDone    MoveState = "done"    // the VM is at its destination
	MoveUndone  MoveState = "undone"  // the VM is where it was, nothing left behind
	MoveStuck   MoveState = "stuck"   // cannot go on without a person; says why
)

// Final reports whether the move will not change any more.
func (s MoveState) Final() bool { return s == MoveDone || s == MoveUndone || s == MoveStuck }

// Move is one VM's way from one host to another.
type Move struct {
	Name   string   `json:"move"`
	VM     string   `json:"vm"`
	VMUUID string   `json:"vm_uuid"`
	From   Place    `json:"from"`
	To     Place    `json:"to"`
	Method Method   `json:"method"`
	Reason []string `json:"reasons,omitempty"`
	// KeepSource keeps the VM's disks at the source after the move.
	KeepSource bool `json:"keep_source,omitempty"`
	// Bandwidth is the most that it may send; zero is unlimited.
	Bandwidth BitRate `json:"bandwidth_bps,omitempty"`
	// Generation fences late messages: agents refuse an older one. It rises
	// each time another executor takes the move up.
	Generation int64     `json:"generation"`
	State      MoveState `json:"state"`
	// Fault says what went wrong, in one line, when State is undoing, undone
	// or stuck.
	Fault   string    `json:"fault,omitempty"`
	Created time.Time `json:"created"`
	Ended   time.Time `json:"ended,omitzero"`
	// Forecast is what was expected before it began; nil when nobody had said.
	Forecast *Forecast    `json:"forecast,omitempty"`
	Measured Figures      `json:"measured"`
	Steps    []StepRecord `json:"steps"`
	Progress *Progress    `json:"progress,omitempty"`
	// Gate is nil for a move without one.
	Gate *GateRecord `json:"gate,omitempty"`
	// Renumber is what becomes of the VM's addresses; nil for other methods.
	Renumber *Renumbered `json:"renumber,omitempty"`
	// Clone is the VM that spawn or redirect makes; nil for other methods.
	Clone *Clone `json:"clone,omitempty"`
}

// Place is a host at a site.
type Place struct {
	Site string `json:"site"`
	Host string `json:"host"`
}

// String returns "site/host".
func (p Place) String() string {
	if p.Host == "" {
		return p.Site
	}
	return p.Site + "/" + p.Host
}

// ParsePlace reads "site" or "site/host".
func ParsePlace(s string) (Place, error) {
	site, host, slash := strings.Cut(s, "/")
	if err := CheckName("site", site); err != nil {
		return Place{}, err
	}
	if slash {
		if err := CheckName("host", host); err != nil {
			return Place{}, err
		}
	}
	return Place{Site: site, Host: host}, nil
}

// StepState is where a step is.
type StepState string

// The states of a step.
const (
	StepPending StepState = "pending"
	StepRunning StepState = "running"
	StepDone    StepState = "done"
	StepFailed  StepState = "failed"
	StepUndoing StepState = "undoing"
	StepUndone  StepState = "undone"
)

// StepRecord is what the journal says of a step.
type StepRecord struct {
	Name     string    `json:"name"`
	State    StepState `json:"state"`
	Attempts int       `json:"attempts"`
	Started  time.Time `json:"started,omitzero"`
	Ended    time.Time `json:"ended,omitzero"`
	Fault    string    `json:"fault,omitempty"`
}

// Figures are a move's figures as measured. A nil field was not measured;
// zero is a measured zero. Forecasts have the same fields as ranges.
type Figures struct {
	TotalSeconds  *float64 `json:"total_s,omitempty"`
	PauseMillis   *float64 `json:"pause_ms,omitempty"`
	OutageMillis  *float64 `json:"outage_ms,omitempty"`
	WireBytes     *int64   `json:"wire_bytes,omitempty"`
	GuestBytes    *int64   `json:"guest_bytes,omitempty"`
	SessionsLost  *int64   `json:"sessions_lost,omitempty"`
	ExtraRTT      *float64 `json:"extra_rtt_ms,omitempty"`
	HairpinBPS    *int64   `json:"hairpin_bps,omitempty"`
	RemoteIOBPS   *int64   `json:"remote_io_bps,omitempty"`
	Cost          *float64 `json:"cost,omitempty"`
	OutageHTTP    *float64 `json:"outage_http_ms,omitempty"`
	Sessions      *int64   `json:"sessions,omitempty"`
	MemoryBytes   *int64   `json:"memory_bytes,omitempty"`
	DiskBytes     *int64   `json:"disk_bytes,omitempty"`
	PathWireBytes *int64   `json:"path_wire_bytes,omitempty"`
	// Path is what the data path between the two agents did.
	Path *PathFigures `json:"path,omitempty"`
}

// Progress is how far the running step has come. Sizes are guest bytes.
type Progress struct {
	Step string `json:"step"`
	// Phase is "disk", "memory", "switchover", "copy", "verify", "round 2 copy"
	// (of a warm move, and so on) or empty.
	Phase      string  `json:"phase,omitempty"`
	DoneBytes  Bytes   `json:"done_bytes"`
	TotalBytes Bytes   `json:"total_bytes"`
	Rate       BitRate `json:"rate_bps"`
	// ETASeconds is negative when not known.
	ETASeconds float64 `json:"eta_s"`
	// Left is how long the whole move has still to go, in seconds; nil when
	// nobody can say.
	Left    *Range    `json:"left_s,omitempty"`
	Updated time.Time `json:"updated"`
	// Path is nil where no data path is at work.
	Path *PathProgress `json:"path,omitempty"`
}

// Check is one finding of a preflight.
type Check struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"`
	// Fix says what to do about it; empty when OK.
	Fix string `json:"fix,omitempty"`
	// Warning findings do not forbid the move.
	Warning bool `json:"warning,omitempty"`
}

// Preflight is the report of everything checked before a move.
type Preflight struct {
	VM     string  `json:"vm"`
	To     Place   `json:"to"`
	Method Method  `json:"method"`
	OK     bool    `json:"ok"`
	Checks []Check `json:"checks"`
}

// namePattern is what libvirt, DNS labels and file names all accept, so that a
// name can be used in each of them without quoting.
var namePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

// CheckName reports whether s can name a site, host, VM, link or move.
// The error names the field, the value and what would be right.
func CheckName(field, s string) error {
	if !namePattern.MatchString(s) {
		return &Error{Kind: Invalid, Op: field, Err: fmt.Errorf(
			"%q is not a name: want 1 to 63 letters, digits, dots, dashes or underscores, beginning with a letter or digit", s)}
	}
	return nil
}
