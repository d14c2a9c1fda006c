package executor

import (
	"net/netip"
	"time"

	"github.com/drover-vm/drover"
)

// GuestChange is a change of the addresses of a network card in the guest. What
// is empty is not changed.
type GuestChange struct {
	MAC string `json:"mac"`
	// Add gives it addresses, with Gateways. Without Primary they are answered
	// and nothing else; with it new connections begin from them.
	Add      []netip.Prefix `json:"add,omitempty"`
	Gateways []netip.Addr   `json:"gateways,omitempty"`
	Primary  bool           `json:"primary,omitempty"`
	// Drop takes addresses away.
	Drop []netip.Addr `json:"drop,omitempty"`
	// Ask takes its cable out and puts it back, so that a guest without an agent
	// asks DHCP again.
	Ask bool `json:"ask,omitempty"`
}

// ChangeGuest changes the addresses of the VM's guest, which runs here. Its
// Result says Healthy when that was done, and Detail when the guest would not:
// an error is the host's.
type ChangeGuest struct {
	GuestChange
	// Undo first ends every other action of the move on this host, as the
	// actions that take back do. A VM that does not run here is fine then.
	Undo bool
}

// FindStation asks in a segment, at the site of an edge, who has the addresses.
// Its Result says Healthy when all of them are MAC's, and Detail. It goes on
// asking for the time of Wait as long as one is not. Nothing is changed.
type FindStation struct {
	Segment, MAC string
	Addresses    []netip.Addr
	Wait         time.Duration
}

// Retarget is how a VM that is moved live is attached at its destination, now
// and from its next start on.
type Retarget struct {
	// MAC is the network card's; Network is its bridge there.
	MAC     string `json:"mac"`
	Network string `json:"network"`
	// Probe is where clients see it there; nil: as before.
	Probe *drover.ProbeTarget `json:"probe,omitempty"`
}

func (ChangeGuest) isAction() {}
func (FindStation) isAction() {}
