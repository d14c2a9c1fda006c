package forecast

import (
	"time"

	"github.com/drover-vm/drover"
)

// Input is what a forecast is made from. Nothing of it has to be known: what is
// not is assumed, named in the forecast's Unknown, and widens its ranges.
type Input struct {
	Now     time.Time
	Method  drover.Method
	VM      drover.VM
	Signals drover.Signals
	// From and To are the two ends.
	From, To drover.Place
	// Hosts at both ends as observed; a zero Host is not known.
	Source, Target drover.Host
	Sender         drover.HostSignals
	// Link is the way from From to To.
	Link  drover.LinkSignals
	Terms Terms
}

// Terms are how the move is to be made: what an operator may ask for.
type Terms struct {
	// Bandwidth is the most that it may send; zero is unlimited.
	Bandwidth drover.BitRate
	// MaxPause is the pause that a live move aims at, MaxDowntime what the last
	// changes of a warm one may take; zero leaves both to the agent.
	MaxPause, MaxDowntime time.Duration
	// NoThrottle leaves the guest's processors alone.
	NoThrottle bool
	// DrainCap is how long old sessions may go on in a redirect; zero is the
	// usual one.
	DrainCap time.Duration
	// LocalEgress has a stretched VM use the gateway where it is.
	LocalEgress bool
	// Boot is how long the guest takes from its start until it serves, Shutdown
	// from being asked until it is off; zero is not known.
	Boot, Shutdown time.Duration
	// CopyBytes is how much of the disks has to be copied, when that has been
	// planned; nil is what they have allocated.
	CopyBytes *drover.Bytes
	// PricePerGiB is what a GiB over the link costs, in any currency; nil is not
	// known.
	PricePerGiB *float64
}

// Inside reports whether the move stays inside a site.
func (in Input) Inside() bool { return in.From.Site == in.To.Site }

// MeasuredLink is what is known of a link that nobody has measured yet: what was
// bought. It is as old as anything can be that is still believed.
func MeasuredLink(l drover.Link, from, to string, now time.Time) drover.LinkSignals {
	s := drover.LinkSignals{Link: l.Name, From: from, To: to}
	bought := now.Add(-boughtAge)
	if l.Rate > 0 {
		s.CapacityBPS = drover.Reading{Value: float64(l.Rate), At: bought}
	}
	if l.RTTMillis > 0 {
		s.RTTMillis = drover.Reading{Value: l.RTTMillis, At: bought}
	}
	return s
}

// boughtAge makes what a contract says count less than what was measured.
const boughtAge = 7 * 24 * time.Hour
