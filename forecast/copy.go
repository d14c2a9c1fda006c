package forecast

import "math"

// What a copy of disks takes besides its bytes, in seconds.
const (
	copyFixed, copyTrips = 3.0, 25
	// readBack is how many bytes a second the destination reads again to compare.
	readBack = 300e6
	// startSeconds is a hypervisor's start.
	startSeconds, startEmulated = 0.6, 1.5
	// Guests power off and boot in some seconds to minutes: systemd stops services
	// for up to 90 s.
	usualShutdown, shutdownSpread = 8.0, 0.9
	usualBoot, bootSpread         = 20.0, 0.8
	// warmDowntime is what the agent allows the last changes to take.
	warmDowntime = 1.0
	// roundFixed is a round of a warm copy besides its bytes: freeze, backup, end.
	roundFixed = 2.0
	mostCopies = 40
)

// copied is a move with the guest off for a while.
type copied struct {
	total, down, outage, wire, guest guess
	converges                        bool
	rounds                           int
}

// diskPace is how many bytes of disk per second cross, and what is left of each.
func diskPace(f *facts) (rate, rho float64) {
	rho = max(f.diskKnown.value*pageName+(1-f.diskKnown.value)*f.diskSmall.value, pageName)
	return min(f.link.value/8/framing/rho, f.encode.value), rho
}

func diskSpread(f *facts) (time, wire float64) {
	return with(f.link.spread, f.disk.spread, 0.7*f.diskSmall.spread, f.diskKnown.spread), with(f.disk.spread, f.diskSmall.spread, f.diskKnown.spread)
}

// cold: shut down, copy all, start. The guest is off all the while.
func cold(f *facts) copied {
	rate, rho := diskPace(f)
	send := over(f.disk.value, rate)
	check := f.disk.value / readBack
	off, boot := offAndOn(f)
	start := startSeconds
	if f.emulate {
		start = startEmulated
	}
	time, wire := diskSpread(f)
	running := f.in.VM.State != "off"
	if !running {
		off = guess{}
	}
	fixed := copyFixed + copyTrips*f.rtt.value
	down := off.value/2 + send + check + fixed/2 + start // the guest is off from somewhere in its shutdown on
	c := copied{converges: true, rounds: 1}
	c.total = sum(guess{fixed + start, 0.3}, guess{send + check, with(modelSpread, time)}, off)
	c.down = sum(guess{fixed/2 + start, 0.3}, guess{send + check, with(modelSpread, time)}, guess{off.value / 2, with(off.spread, 0.5)})
	c.down.value = max(c.down.value, min(down, most))
	c.outage = sum(c.down, guess{off.value / 2, off.spread}, boot)
	if !running {
		c.down, c.outage = guess{}, guess{}
	}
	c.wire = guess{framing*f.disk.value*rho + control*c.total.value, with(modelSpread, wire)}
	c.guest = guess{f.disk.value, with(0.03, f.disk.spread)}
	return c
}

// warm: rounds of the disks while the guest runs, then shutdown, the last changes,
// start.
func warm(f *facts) copied {
	rate, rho := diskPace(f)
	limit := f.in.Terms.MaxDowntime.Seconds()
	if limit <= 0 {
		limit = warmDowntime
	}
	left, seconds, sent, rounds := f.disk.value, 0.0, 0.0, 0
	for rounds < mostCopies {
		took := over(left, rate) + roundFixed
		rounds++
		seconds, sent = seconds+took, sent+left
		next := min(f.diskUnique.value*took, f.disk.value+f.diskWrite.value*took)
		done := next <= rate*limit || next >= 0.9*left
		left = next
		if done {
			break
		}
	}
	off, boot := offAndOn(f)
	start := startSeconds
	if f.emulate {
		start = startEmulated
	}
	fixed := copyFixed + copyTrips*f.rtt.value
	last := over(left, rate)
	time, wire := diskSpread(f)
	c := copied{converges: left <= rate*limit, rounds: rounds}
	c.down = sum(guess{1 + 10*f.rtt.value + start, 0.3}, guess{last, with(0.3, time, f.diskUnique.spread)}, guess{off.value / 2, with(off.spread, 0.5)})
	c.total = sum(guess{seconds, with(modelSpread, time)}, guess{fixed, 0.3}, c.down, guess{off.value / 2, off.spread})
	c.outage = sum(c.down, guess{off.value / 2, off.spread}, boot)
	c.guest = guess{sent + left, with(0.05, f.disk.spread)}
	c.wire = guess{framing*(sent+left)*rho + control*c.total.value, with(modelSpread, wire)}
	return c
}

func offAndOn(f *facts) (off, boot guess) {
	off, boot = guess{usualShutdown, shutdownSpread}, guess{usualBoot, bootSpread}
	if d := f.in.Terms.Shutdown.Seconds(); d > 0 {
		off = guess{d, 0.3}
	} else {
		f.missOnce("how long the guest takes to power off")
	}
	if d := f.in.Terms.Boot.Seconds(); d > 0 {
		boot = guess{d, 0.3}
	} else {
		f.missOnce("how long the guest takes to boot")
	}
	return off, boot
}

func (f *facts) missOnce(what string) {
	for _, u := range f.unknown {
		if u == what {
			return
		}
	}
	f.miss(what)
}

// sum adds guesses that are independent of each other: variances add.
func sum(gs ...guess) guess {
	total, variance := 0.0, 0.0
	for _, g := range gs {
		sd := g.value * math.Sqrt(math.Expm1(min(g.spread*g.spread, 20)))
		total, variance = total+g.value, variance+min(sd*sd, 1e300)
	}
	if total <= 0 {
		return guess{}
	}
	return guess{min(total, most), min(math.Sqrt(math.Log1p(min(variance/(total*total), 1e12))), mostSpread)}
}
