package drover

import (
	"fmt"
	"time"
)

// Bounds of what may be asked of a protection.
const (
	// MinRPO is what rounds can keep up with: each takes a few seconds however
	// little it sends.
	MinRPO = 5 * time.Second
	// MaxRPO is beyond what anybody would call warm.
	MaxRPO = 7 * 24 * time.Hour
)

// ProtectionState is how a protection is doing.
type ProtectionState string

// The states of a protection.
const (
	// ProtectionStarting: the first round of everything is not complete.
	ProtectionStarting ProtectionState = "starting"
	// ProtectionOK: the replica is as young as it has to be.
	ProtectionOK ProtectionState = "ok"
	// ProtectionLate: it is older; Why says why.
	ProtectionLate ProtectionState = "late"
	// ProtectionPaused: no round can be taken now; Why says why. The replica
	// stays, and RPOOK still says whether it is young enough.
	ProtectionPaused ProtectionState = "paused"
	// ProtectionEnding: the replica is being removed.
	ProtectionEnding ProtectionState = "ending"
)

// Protection is a replica of a VM's disks that is kept at another site, in rounds
// while the VM runs. Moves of the VM to there begin with the replica.
type Protection struct {
	VM     string `json:"vm"`
	VMUUID string `json:"vm_uuid"`
	// From is where the VM is, To where the replica is.
	From Place `json:"from"`
	To   Place `json:"to"`
	// RPOSeconds is how old the replica may be at most.
	RPOSeconds float64 `json:"rpo_s"`
	// Rate is what its rounds may send; zero: what the link has for replicas.
	Rate BitRate `json:"rate_bps,omitempty"`
	// Created is when it was asked for.
	Created time.Time `json:"created"`

	State ProtectionState `json:"state"`
	// Why says why the state is not ok; empty otherwise.
	Why string `json:"why,omitempty"`
	// Point is the moment that the replica's content is of; zero: it has none yet.
	Point time.Time `json:"point,omitzero"`
	// AgeSeconds is how long ago that was; nil: there is none. RPOOK says whether
	// it is within the RPO.
	AgeSeconds *float64 `json:"age_s"`
	RPOOK      bool     `json:"rpo_ok"`
	// Sending says that a round is under way: until it is complete, the replica's
	// images hold parts of it too, so that only a move by this VM can use them.
	Sending bool `json:"sending"`
	// Rounds is how many were completed. Of the last: RoundBytes are the disks'
	// bytes that had changed, RoundWireBytes what crossed the link for them,
	// RoundSeconds is how long it took.
	Rounds         int64   `json:"rounds"`
	RoundBytes     Bytes   `json:"round_bytes"`
	RoundWireBytes Bytes   `json:"round_wire_bytes"`
	RoundSeconds   float64 `json:"round_s"`
	// Allotted is what the round under way may send now; zero: unlimited.
	Allotted BitRate `json:"allotted_bps,omitempty"`
	// Resyncs is how often all had to be compared again since the record of
	// changes was lost, or the VM had moved.
	Resyncs int64 `json:"resyncs"`
	// Progress of the round under way; nil for none.
	Progress *Progress `json:"progress,omitempty"`
}

// RPO is RPOSeconds as a time.
func (p Protection) RPO() time.Duration { return time.Duration(p.RPOSeconds * float64(time.Second)) }

// RoundTime is RoundSeconds as a time.
func (p Protection) RoundTime() time.Duration {
	return time.Duration(p.RoundSeconds * float64(time.Second))
}

// Validate reports what is wrong with what was asked for; the kind is Invalid.
func (p Protection) Validate() error {
	const op = "protect"
	if err := CheckName("vm", p.VM); err != nil {
		return err
	}
	if err := CheckName("to.site", p.To.Site); err != nil {
		return err
	}
	switch {
	case p.RPO() < MinRPO || p.RPO() > MaxRPO:
		return E(Invalid, op, fmt.Errorf("rpo %s: want %s to %s", p.RPO(), MinRPO, MaxRPO))
	case p.Rate < 0:
		return E(Invalid, op, fmt.Errorf("rate of %d bit/s: want more than zero, or 0 for what the link has for replicas", int64(p.Rate)))
	}
	return nil
}

// At returns the protection as it is at a moment: with its age, and whether that
// will do.
func (p Protection) At(now time.Time) Protection {
	p.AgeSeconds, p.RPOOK = nil, false
	if !p.Point.IsZero() {
		age := max(0, now.Sub(p.Point))
		p.AgeSeconds, p.RPOOK = new(age.Seconds()), age <= p.RPO()
	}
	switch {
	case p.State == ProtectionOK && !p.RPOOK:
		p.State = ProtectionLate
	case p.State == ProtectionLate && p.RPOOK:
		p.State, p.Why = ProtectionOK, ""
	}
	return p
}
