package forecast

import "math"

// opening is the first round, in which every page is sent once, in the order of the
// guest's addresses. That order matters. Kernel, image and what a guest has kept for
// long lie in front, where the destination mostly knows them, and go as fast as the
// host finds their names; what a guest has been given lately lies behind, and goes as
// fast as the link takes it. A hypervisor that decides by the rate of the last tenth
// of a second whether the rest fits the pause decides in front by the one rate and
// behind by the other: a small guest's last pages, all of them new, may be left to
// the pause because those before them went fast.
type opening struct {
	bytes float64 // without zeros
	rate  float64 // bytes per second, in the mean
	known float64 // bytes in front
	front float64 // bytes per second of these
	zeros float64 // share of the guest's pages that the bytes are without
}

// blurred is by how many times more there may be behind than the pause would hold at
// the rate in front, before it is the rate behind that alone decides: kinds of pages
// are not parted neatly.
const blurred = 2.0

func (r rounds) opening() opening {
	o := opening{bytes: r.first, rate: r.before, known: share(r.known) * r.first, front: r.front, zeros: share(r.zeros)}
	if o.front <= o.rate || o.known >= o.bytes {
		o.known = 0 // nothing is known of an order
	}
	return o
}

// behind is the rate of what is not in front.
func (o opening) behind() float64 {
	if o.known <= 0 {
		return o.rate
	}
	return (o.bytes - o.known) / max(o.bytes/o.rate-o.known/o.front, 1e-9)
}

// lasts is how long the last bytes of the round take.
func (o opening) lasts(left float64) float64 {
	rest := min(left, o.bytes-o.known)
	return rest/o.behind() + (left-rest)/max(o.front, 1)
}

// after is what is left of so much after a time.
func (o opening) after(left, seconds float64) float64 {
	rest := o.bytes - o.known
	if front := max(0, left-rest) / max(o.front, 1); seconds < front {
		return left - seconds*o.front
	} else if front > 0 {
		left, seconds = rest, seconds-front
	}
	return max(0, left-seconds*o.behind())
}

// fits is how much may wait for the round to end within a pause, as the hypervisor
// sees it: to it, pages of zeros that it has not come to wait like others.
func (o opening) fits(pause float64) float64 {
	pause *= 1 - o.zeros
	slow := pause * o.behind()
	if o.known <= 0 {
		return slow
	}
	fast := pause * o.front
	ratio := max(1, (o.bytes-o.known)/max(fast, 1))
	weight := max(0, 1-math.Log(ratio)/math.Log(blurred))
	return slow * math.Pow(max(fast, slow)/max(slow, 1e-9), weight)
}
