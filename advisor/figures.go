package advisor

import (
	"fmt"

	"github.com/drover-vm/drover"
)

// figures compares the forecast with the requirements that have one.
func (c *candidate) figures() {
	r, f := c.Needs.Requirements, c.advice.Forecast
	var total, pause, outage, extra, cost *drover.Range
	if f != nil {
		total, pause, outage, extra, cost = f.TotalSeconds, f.PauseMillis, f.OutageMillis, f.ExtraRTT, f.Cost
	}
	if pause == nil {
		pause = outage // who is started anew stands still as long as it is away
	}
	if outage == nil {
		outage = pause
	}
	if total != nil {
		c.pro("takes %s", spread(total, span))
	}
	stands := c.VM.State == drover.VMRunning && c.advice.Method != drover.Spawn
	if stands && c.advice.Method != drover.Redirect {
		c.limit("pause", pause, r.MaxPauseMillis, ms)
	}
	if stands {
		c.limit("outage", outage, r.MaxOutageMillis, ms)
	}
	c.limit("longer round trip", extra, r.MaxExtraRTTMillis, ms)
	c.limit("cost", cost, r.MaxCost, digits)
	if r.MaxCost != nil && f != nil && f.WireBytes != nil && cost == nil {
		c.change("name the price of the link between %s and %s in the server's file", c.From.Name, c.To.Name)
	}
	c.deadline(total)
}

// limit compares a figure's P90 with the most that is allowed; nil allows all.
func (c *candidate) limit(what string, have *drover.Range, most *float64, unit func(float64) string) {
	switch {
	case most == nil && have == nil:
	case most == nil:
		if have.P90 > 0 {
			c.pro("%s %s", what, spread(have, unit))
		}
	case have == nil:
		c.untold("%s of %s at most is wanted, and nothing could be foreseen", what, unit(*most))
	case have.P90 <= *most:
		c.pro("%s at most %s in nine cases of ten, %s allowed", what, unit(have.P90), unit(*most))
	case have.P50 <= *most || have.P90 <= *most*(1+nearShare):
		c.nearly("%s up to %s in nine cases of ten, %s allowed (half of the cases: %s)", what, unit(have.P90), unit(*most), unit(have.P50))
		c.change("allow a %s of %s", what, unit(have.P90))
	default:
		c.miss("%s %s, %s allowed", what, spread(have, unit), unit(*most))
		c.change("allow a %s of %s", what, unit(have.P90))
	}
}

// nearly notes a requirement that is missed by a little.
func (c *candidate) nearly(format string, args ...any) {
	c.near++
	text := "nearly: " + fmt.Sprintf(format, args...)
	c.decide(text)
	c.advice.Nearly = append(c.advice.Nearly, text)
}

func (c *candidate) deadline(total *drover.Range) {
	until := c.Needs.Requirements.Until(c.Now)
	if until.IsZero() {
		return
	}
	left := until.Sub(c.Now).Seconds()
	switch {
	case left <= 0:
		c.miss("it had to have ended by %s, which is over", moment(until))
		c.change("set another deadline")
	case total == nil:
		c.untold("it has to have ended by %s, and nothing could be foreseen", moment(until))
	case total.P90 <= left:
		c.pro("ends in %s in nine cases of ten, %s are left until its deadline", span(total.P90), span(left))
	case total.P50 <= left:
		c.nearly("ends in %s in nine cases of ten, %s are left until its deadline", span(total.P90), span(left))
	default:
		c.miss("takes %s, and %s are left until its deadline", spread(total, span), span(left))
	}
}

// noise is what a figure has to reach to be worth a caveat: less is in the
// measuring.
const (
	noiseBPS    = 10_000
	noiseMillis = 0.5
)

// caveats says what follows from taking the method.
func (c *candidate) caveats() {
	m, f := c.advice.Method, c.advice.Forecast
	apart := c.From.Name != c.To.Name
	if f != nil {
		if h := f.HairpinBPS; h != nil && h.P50 >= noiseBPS {
			until := "as long as it is away from home"
			if m == drover.Stretch {
				until = "until the segment is retracted"
			}
			c.caveat("trombone: about %s of its traffic go by way of %s %s", bitRate(h.P50), c.From.Name, until)
		}
		if e := f.ExtraRTT; e != nil && e.P50 >= noiseMillis && c.Needs.Requirements.MaxExtraRTTMillis == nil {
			c.caveat("round trips of its clients become about %s longer", ms(e.P50))
		}
		if io := f.RemoteIOBPS; io != nil && io.P50 >= noiseBPS {
			c.caveat("its storage stays %s: %s of its reading and writing cross the WAN", c.far(), bitRate(io.P50))
		}
		if f.Calibrated == 0 {
			c.caveat("no move here has been compared with its forecast yet: the ranges are wide")
		}
		for _, u := range f.Unknown {
			c.caveat("assumed: %s", u)
		}
	} else if c.advice.Feasible {
		c.caveat("no forecast could be made")
	}
	if apart && c.way.bought && keepsMemory(m) {
		c.caveat("the link has not been measured: its figures are those of the server's file")
	}
	if m == drover.Renumber && c.advice.Feasible {
		c.caveat("who has noted its old address has to learn the new one")
	}
}

// far says how far the sites are apart.
func (c *candidate) far() string {
	if c.way.km > 0 {
		return km(c.way.km) + " away"
	}
	return "at " + c.From.Name
}
