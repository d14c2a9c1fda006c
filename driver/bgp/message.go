package bgp

import (
	"net/netip"
	"time"

	"github.com/drover-vm/drover/driver"
)

// The Speaker and its child exchange JSON values, one after the other: first
// childConfig, then orders, down; events up.

// childConfig is all that a child has to know. It comes over standard input
// and not as arguments, because of the passwords.
type childConfig struct {
	AS        uint32         `json:"as"`
	RouterID  netip.Addr     `json:"routerID"`
	NextHop4  netip.Addr     `json:"nextHop4"`
	NextHop6  netip.Addr     `json:"nextHop6"`
	Community Community      `json:"community"`
	Neighbors []Neighbor     `json:"neighbors"`
	Hold      int            `json:"holdS"`
	Keepalive int            `json:"keepaliveS"`
	Restart   int            `json:"restartS"`
	BFD       BFD            `json:"bfd"`
	Routes    []netip.Prefix `json:"routes"`
}

// order tells the child of a change.
type order struct {
	Announce []netip.Prefix `json:"announce,omitempty"`
	Withdraw []netip.Prefix `json:"withdraw,omitempty"`
	// Resend is a neighbour that is to be sent the whole table once more.
	Resend netip.Addr `json:"resend,omitzero"`
}

// event is what the child reports: one of its fields.
type event struct {
	Session *sessionEvent `json:"session,omitempty"`
	Sent    *sentEvent    `json:"sent,omitempty"`
	Fault   *faultEvent   `json:"fault,omitempty"`
	Log     *logEvent     `json:"log,omitempty"`
}

// sessionEvent is a session in a new state.
type sessionEvent struct {
	Neighbor netip.Addr          `json:"neighbor"`
	State    driver.SessionState `json:"state"`
	At       time.Time           `json:"at"`
	// IPv4 and IPv6 are the families that an established session carries.
	IPv4  bool   `json:"ipv4"`
	IPv6  bool   `json:"ipv6"`
	Fault string `json:"fault,omitempty"`
}

// sentEvent is an UPDATE that was written to a neighbour's connection.
type sentEvent struct {
	Neighbor  netip.Addr     `json:"neighbor"`
	Announced []netip.Prefix `json:"announced,omitempty"`
	Withdrawn []netip.Prefix `json:"withdrawn,omitempty"`
}

// faultEvent says why a session does not come up.
type faultEvent struct {
	Neighbor netip.Addr `json:"neighbor"`
	Text     string     `json:"text"`
}

// logEvent is a line for the agent's log.
type logEvent struct {
	Level int    `json:"level"`
	Text  string `json:"text"`
}
