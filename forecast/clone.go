package forecast

import "math"

const (
	// A second VM is prepared in some calls; its service has to be well.
	cloneFixed, healthSeconds = 3.0, 2.0
	// shiftSeconds is the usual time in which a load balancer's weights move over.
	shiftSeconds = 30.0
)

// spawned is a new VM beside the old one.
type spawned struct {
	total, wire, guest guess
	drain              drain
}

// spawn starts a new VM from what the destination has: bytes cross only as far as
// the template is not there. redirect copies the old one's disks, moves the load
// balancer's weights and waits for the old sessions.
func spawn(f *facts, redirect bool) spawned {
	rate, rho := diskPace(f)
	time, wire := diskSpread(f)
	_, boot := offAndOn(f)
	bytes := f.disk.value
	if !redirect && f.in.Terms.CopyBytes == nil {
		bytes = 0 // a template is at every site, or the preflight says so
	}
	parts := []guess{
		{cloneFixed + copyTrips*f.rtt.value + healthSeconds, 0.4},
		{over(bytes, rate), with(modelSpread, time)},
		boot,
	}
	s := spawned{}
	if redirect {
		s.drain = newDrain(f)
		parts = append(parts, guess{shiftSeconds, 0.5}, s.drain.seconds)
	}
	s.total = sum(parts...)
	s.guest = guess{bytes, with(0.05, f.disk.spread)}
	s.wire = guess{framing*bytes*rho + control*min(s.total.value, forever), with(modelSpread, wire)}
	if math.IsNaN(s.total.spread) {
		s.total.spread = mostSpread
	}
	return s
}
