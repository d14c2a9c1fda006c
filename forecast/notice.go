package forecast

import (
	"math"

	"github.com/drover-vm/drover"
)

// What a client notices of a live move is the pause, what the network needs to
// lead to the new place, and what TCP adds: a segment that was sent into the
// pause is lost with the source, and is sent again when its timer is due, which
// doubles each time (RFC 6298; Linux begins with 200 ms over the round trip). So
// an open session is answered at the first such moment after the way is there.
const (
	leastTimer = 0.200
	// announce is the segment's bridges learning where the guest is: within a site
	// at once, by self-announcement.
	announce = 0.020
	// routeSwitch is the edges' part and the sites' routers': a host route withdrawn
	// and announced, 63 ms in a router's kernel, twice.
	routeSwitch = 0.100
	// extended is the same over a stretched segment: the other edges' tables.
	extended = 0.060
	// renumbered is the guest's new lease beside the tunnel for the old address.
	renumbered = 0.300
)

// outage is what a client sees of a pause, in seconds.
func outage(method drover.Method, pause guess, rtt float64) guess {
	way := announce
	switch method {
	case drover.Route:
		way = routeSwitch
	case drover.Stretch:
		way = extended
	case drover.Renumber:
		way = renumbered
	}
	quiet := pause.value + way
	timer := leastTimer + rtt
	// The lost segments' timers began throughout the last moments before the
	// pause; half of the doubled time is what one waits for on average.
	n := math.Max(0, math.Log2(quiet/timer+1))
	at := timer * (math.Pow(2, math.Ceil(n)) - 1)
	middle := (quiet + min(at, 2*quiet+timer)) / 2
	return guess{middle, with(pause.spread, 0.30)}
}

// noticed are the lasting costs of where the VM is then.
type noticed struct {
	extra, hairpin, remote guess
}

func notice(f *facts) noticed {
	var n noticed
	if f.in.Inside() {
		return n
	}
	ms, spread := f.rtt.value*1e3, f.rtt.spread
	switch f.in.Method {
	case drover.Stretch:
		// Clients come in by the segment's home, and answers leave by it, so each
		// packet takes the link once more; with local egress only those that come.
		n.extra = guess{ms, with(spread, 0.3)}
		n.hairpin = f.traffic
		if f.in.Terms.LocalEgress {
			rx := f.in.Signals.NetworkRxBPS
			n.hairpin = guess{rx.Or(f.traffic.value / 3), with(f.traffic.spread, 0.3)}
			n.extra = guess{ms / 2, with(spread, 0.4)}
		}
	case drover.Live, drover.Route, drover.Renumber:
		// Nearer to some clients, farther from others, by the link at most.
		n.extra = guess{ms / 3, with(spread, 1)}
	}
	if f.remote.value > 0 && staysUp(f.in.Method) {
		n.remote = guess{f.remote.value * 8, with(f.remote.spread, 0.2)}
	}
	return n
}

// staysUp reports whether the guest itself goes on at the destination.
func staysUp(m drover.Method) bool {
	switch m {
	case drover.Live, drover.Stretch, drover.Route, drover.Renumber:
		return true
	}
	return false
}
