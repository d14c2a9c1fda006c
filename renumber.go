package drover

import (
	"net/netip"
	"strings"
	"time"
)

// RenumberWish is what an operator wants of a VM's new place in a move by
// renumber.
type RenumberWish struct {
	// Segment at the destination; empty: the only one that is at home there.
	Segment string
	// Addresses to have there, one of each family at most; a family without one
	// gets what DHCP has.
	Addresses []netip.Addr
	// DNSName is made to answer with the new addresses; empty: none is.
	DNSName string
	// OldLimit is how long sessions of the old addresses may go on; zero: the
	// server's choice.
	OldLimit time.Duration
}

const (
	// DefaultOldLimit is how long old sessions may go on where nobody says
	// otherwise: most end within minutes, and who has longer ones knows.
	DefaultOldLimit = time.Hour
	// MaxOldLimit is what edges take: who needs an address for longer should keep
	// it.
	MaxOldLimit = 30 * 24 * time.Hour
	// maxNewAddresses is one of each family.
	maxNewAddresses = 2
)

// Validate reports what is wrong with a wish as far as it alone can tell; the
// kind is Invalid.
func (w RenumberWish) Validate() error {
	if w.Segment != "" {
		if err := CheckName("segment", w.Segment); err != nil {
			return err
		}
	}
	if n := len(w.Addresses); n > maxNewAddresses || n == maxNewAddresses && w.Addresses[0].Is4() == w.Addresses[1].Is4() {
		return Errorf(Invalid, "new address", "%v: want one of each family at most", w.Addresses)
	}
	for _, a := range w.Addresses {
		if !a.IsGlobalUnicast() || a.Zone() != "" || a.Is4In6() {
			return Errorf(Invalid, "new address", "%v: want one of a host", a)
		}
	}
	if len(w.DNSName) > 253 || strings.ContainsAny(w.DNSName, " \t\r\n\"'\\;()") || w.DNSName != "" && !strings.Contains(w.DNSName, ".") {
		return Errorf(Invalid, "name", "%q: want a DNS name with its zone, such as web1.example.net", w.DNSName)
	}
	if w.OldLimit < 0 || w.OldLimit > MaxOldLimit {
		return Errorf(Invalid, "old limit", "%v: want more than zero, up to %v", w.OldLimit, MaxOldLimit)
	}
	return nil
}

// IsZero reports whether nothing is wished.
func (w RenumberWish) IsZero() bool {
	return w.Segment == "" && len(w.Addresses) == 0 && w.DNSName == "" && w.OldLimit == 0
}

// Renumbered is what becomes of a VM's addresses in a move by renumber.
type Renumbered struct {
	Segment string       `json:"segment"`
	Old     []netip.Addr `json:"old"`
	// New is empty until they are reserved.
	New  []netip.Addr `json:"new,omitempty"`
	Name string       `json:"name,omitempty"`
	// OldSessions are those of the old addresses that were open when they were
	// counted last; nil: not counted yet. They end at Until at the latest.
	OldSessions *int64    `json:"old_sessions,omitempty"`
	Until       time.Time `json:"until,omitzero"`
	// Held says why the old addresses still take new sessions: the guest has not
	// taken its new ones.
	Held string `json:"held,omitempty"`
	// Left says what is left in the guest that could not be taken away.
	Left string `json:"left,omitempty"`
}
