package advisor

import (
	"fmt"

	"github.com/drover-vm/drover"
)

// needs compares what the method keeps with what the VM needs.
func (c *candidate) needs() {
	r := c.Needs.Requirements
	m := c.advice.Method
	if !r.Allows(m) {
		c.miss("only %s may be used for it", list(r.Methods))
		c.change("allow %s in its methods", m)
	}
	c.sessions(r)
	c.address(r)
	if drover.Wants(r.KeepMemory) && c.VM.State == drover.VMRunning && !keepsMemory(m) {
		c.miss("what is in its memory (%s) would be lost, and it is to be kept", c.VM.MemoryBytes)
	}
	if drover.Wants(r.KeepMAC) {
		if c.nature.mac == keeps {
			c.pro("its hardware address stays, which its licence is bound to")
		} else {
			c.miss("the new VM would have another hardware address, and its licence is bound to this one")
		}
	}
	if drover.Wants(r.Layer2) {
		if m == drover.Stretch || m == drover.Live || c.Joined && c.nature.address == ifJoined {
			c.pro("it stays in the layer 2 network in which others look for it")
		} else {
			c.miss("it would leave the layer 2 network in which others look for it")
		}
	}
	c.another(r)
}

// miss notes a requirement that is not met.
func (c *candidate) miss(format string, args ...any) {
	c.broken++
	if c.advice.Feasible {
		c.decide(fmt.Sprintf(format, args...))
	} else {
		c.contra(format, args...)
	}
}

// untold notes a requirement of which nobody can say whether it would be met.
func (c *candidate) untold(format string, args ...any) {
	c.open++
	c.decide(fmt.Sprintf(format, args...))
}

// assume notes one that nobody has asked for, and that is taken for granted
// since nobody has said otherwise.
func (c *candidate) assume(stated *bool, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if stated != nil {
		c.miss("%s", text)
		return
	}
	c.assumed++
	c.advice.Against = append(c.advice.Against, text+", and nobody has said that this does not matter")
}

func (c *candidate) sessions(r drover.Requirements) {
	if c.VM.State != drover.VMRunning || r.KeepSessions != nil && !*r.KeepSessions {
		return
	}
	open := "open sessions"
	if s := c.openSessions(); s >= 1.5 { // one is also what is assumed where nobody has counted them
		open = fmt.Sprintf("%.0f open sessions", s)
	}
	m := c.advice.Method
	switch c.nature.sessions {
	case keeps:
		c.pro("%s go on", open)
	case drains:
		c.drained(r, open)
	default:
		if m == drover.Spawn {
			// Nothing stops: what is against it is said of another VM.
			return
		}
		c.assume(r.KeepSessions, "%s would be lost", open)
	}
}

// openSessions is how many a forecast of a method that loses them all counts,
// negative where none says.
func (c *candidate) openSessions() float64 {
	for _, m := range []drover.Method{drover.Cold, drover.Warm} {
		if f, ok := c.Forecasts[m]; ok && f.SessionsLost != nil {
			return f.SessionsLost.P50
		}
	}
	return -1
}

// lostMost is the expected loss below which none is lost: forecasts are means.
const lostMost = 0.5

// drained says whether sessions end by themselves before their server stops.
func (c *candidate) drained(r drover.Requirements, open string) {
	f := c.advice.Forecast
	switch {
	case f == nil || f.SessionsLost == nil:
		c.untold("whether %s end before the old VM stops is not known", open)
	case f.SessionsLost.P90 <= lostMost:
		c.pro("%s end by themselves before the old VM stops", open)
	case f.SessionsLost.P50 <= lostMost && r.KeepSessions != nil:
		c.nearly("in one case of ten %s sessions outlive the drain and are lost", digits(f.SessionsLost.P90))
	default:
		c.assume(r.KeepSessions, "about %s sessions would outlive the drain and be lost (up to %s)", digits(f.SessionsLost.P50), digits(f.SessionsLost.P90))
		c.change("drain for longer, or wait for its sessions to end")
	}
}

func (c *candidate) address(r drover.Requirements) {
	if r.KeepAddress != nil && !*r.KeepAddress {
		return
	}
	m := c.advice.Method
	switch k := c.nature.address; {
	case k == keeps:
		c.pro("clients go on using its address")
	case k == ifJoined && c.Joined:
		c.pro("its address stays: %s and %s are one layer 2 network", c.From.Name, c.To.Name)
	case k == byService && r.Service != "":
		c.pro("clients use the address of service %s, which stays", r.Service)
	case m == drover.Spawn:
		if drover.Wants(r.KeepAddress) {
			c.miss("the new VM has another address, and clients are to go on using this one")
		}
	case m == drover.Renumber:
		c.assume(r.KeepAddress, "new sessions would need its new address")
	case k == ifJoined:
		c.assume(r.KeepAddress, "it would not be reached at %s by the address that it has", c.To.Name)
	default:
		c.assume(r.KeepAddress, "the second VM has another address")
	}
}

// another says whether a second VM does in place of this one.
func (c *candidate) another(r drover.Requirements) {
	m := c.advice.Method
	if m != drover.Spawn && m != drover.Redirect {
		return
	}
	switch {
	case drover.Wants(r.Stateless):
		c.pro("it is stateless: another made of its template does as well")
	case r.Stateless == nil:
		c.miss("a second VM lacks what this one writes, and nobody has said that it is stateless")
		if !drover.Wants(r.KeepMemory) { // else that would contradict it
			c.change("say that it is stateless, if it is")
		}
	default:
		c.miss("it has a state of its own, which a second VM would lack")
	}
	switch {
	case m == drover.Redirect && r.Service == "":
		c.impossible("no load balancer's backend is known to send sessions to it")
		if !drover.Wants(r.KeepMemory) {
			c.change("say of which service it is, if it stands behind a load balancer")
		}
	case m == drover.Redirect:
		c.pro("the load balancer of service %s sends new sessions to the second VM", r.Service)
	case r.Service != "":
		c.miss("the load balancer of service %s would go on sending sessions to this one; redirect takes them away", r.Service)
	default:
		c.pro("nothing of this one has to be carried, and nothing stops")
		c.caveat("%s goes on at %s until somebody removes it", c.VM.Name, c.From.Name)
	}
}
