package advisor

import (
	"fmt"
	"math"

	"github.com/drover-vm/drover"
)

// certain is how sure convergence has to be: as sure as all other figures, of
// which the P90 counts.
const certain = 0.9

// nearShare is how far a figure may be above its limit to be called nearly met.
const nearShare = 0.2

// candidate is a method under judgement.
type candidate struct {
	*Question
	policy *Policy
	way    way
	nature nature
	advice drover.MethodAdvice

	// broken are requirements that it does not meet although somebody has asked
	// for them, near those that it misses by a little, assumed those that nobody
	// has asked for, open those that cannot be told.
	broken, near, assumed, open int
	// decisive are those of the reasons against it that keep it from being right.
	decisive []string
}

func (c *candidate) pro(format string, args ...any) {
	c.advice.For = append(c.advice.For, fmt.Sprintf(format, args...))
}

func (c *candidate) contra(format string, args ...any) {
	c.advice.Against = append(c.advice.Against, fmt.Sprintf(format, args...))
}

// decide notes a reason against it that keeps it from being right.
func (c *candidate) decide(text string) {
	c.advice.Against = append(c.advice.Against, text)
	c.decisive = append(c.decisive, text)
}

func (c *candidate) caveat(format string, args ...any) {
	c.advice.Caveats = append(c.advice.Caveats, fmt.Sprintf(format, args...))
}

func (c *candidate) change(format string, args ...any) {
	c.advice.Changes = append(c.advice.Changes, fmt.Sprintf(format, args...))
}

// impossible says why it cannot be done at all.
func (c *candidate) impossible(format string, args ...any) {
	if c.advice.Feasible { // what makes it impossible weighs more than what else is missed
		c.decisive = nil
	}
	c.advice.Feasible = false
	c.decide(fmt.Sprintf(format, args...))
}

// judge says all that is to be said of a method, apart from what concerns the
// site itself.
func judge(q *Question, p *Policy, w way, m drover.Method) *candidate {
	c := &candidate{Question: q, policy: p, way: w, nature: natureOf(m)}
	c.advice = drover.MethodAdvice{Method: m, Feasible: true}
	if f, ok := q.Forecasts[m]; ok {
		c.advice.Forecast = sound(f)
	}
	c.state()
	c.checks()
	c.convergence()
	c.rules()
	c.needs()
	c.figures()
	c.caveats()
	if p.worseThanStaying(m) {
		c.miss("the server's order prefers to stay")
		c.change("move %s before stay in the server's order", m)
	}
	c.advice.Meets = c.advice.Feasible && c.broken+c.near+c.assumed+c.open == 0
	return c
}

// sound is a forecast without what is no number: that could not be said.
func sound(f drover.Forecast) *drover.Forecast {
	for _, r := range []**drover.Range{
		&f.TotalSeconds, &f.PauseMillis, &f.OutageMillis, &f.WireBytes, &f.GuestBytes,
		&f.SessionsLost, &f.ExtraRTT, &f.HairpinBPS, &f.RemoteIOBPS, &f.Cost,
	} {
		if *r != nil && !(finite((*r).P10) && finite((*r).P50) && finite((*r).P90)) {
			*r = nil
		}
	}
	if v := f.Convergence; v != nil && !(finite(v.Probability) && finite(v.DirtyBytesPerSecond) && finite(v.CarryBytesPerSecond)) {
		f.Convergence = nil
	}
	return &f
}

func finite(v float64) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) }

// state looks at the VM itself.
func (c *candidate) state() {
	m := c.advice.Method
	if c.Move != nil {
		c.impossible("move %s of it to %s is %s", c.Move.Name, c.Move.To, c.Move.State)
		return
	}
	off := c.VM.State != drover.VMRunning
	switch {
	case off && c.nature.running:
		c.impossible("%s is %s: there is nothing to keep running", c.VM.Name, c.VM.State)
	case c.From.Name == c.To.Name && (m == drover.Stretch || m == drover.Route || m == drover.Renumber):
		c.impossible("it is for moves between sites, and both hosts are at %s", c.To.Name)
	case m == drover.Live && !c.Joined:
		c.impossible("its segments are not one layer 2 network at %s and %s", c.From.Name, c.To.Name)
	case (m == drover.Stretch || m == drover.Route) && c.Joined:
		c.impossible("its segments are one layer 2 network at %s and %s already: live does the same", c.From.Name, c.To.Name)
	case off && m == drover.Cold:
		c.pro("%s is %s: nothing is interrupted", c.VM.Name, c.VM.State)
	}
}

// checks quotes what a preflight found.
func (c *candidate) checks() {
	for _, k := range c.Checks[c.advice.Method] {
		switch {
		case k.OK:
		case k.Warning:
			c.caveat("%s: %s", k.Name, k.Detail)
		default:
			c.impossible("%s: %s", k.Name, k.Detail)
			if k.Fix != "" {
				c.change("%s", k.Fix)
			}
		}
	}
}

// convergence says whether the rounds of a live move come to an end.
func (c *candidate) convergence() {
	f := c.advice.Forecast
	if !keepsMemory(c.advice.Method) || f == nil || f.Convergence == nil {
		return
	}
	v := f.Convergence
	rates := fmt.Sprintf("the guest rewrites %s, the link carries %s after reduction", perSecond(v.DirtyBytesPerSecond), perSecond(v.CarryBytesPerSecond))
	switch {
	case !v.Will:
		c.impossible("%s: will not converge%s", rates, c.remedies(v))
	case v.Probability < certain:
		c.nearly("%s: converges in %s of such cases, 90 %% are wanted%s", rates, percent(v.Probability), c.remedies(v))
	default:
		c.pro("%s: converges", rates)
	}
}

// remedies says the mildest that the forecast knows, with its figure, and notes
// all as what would change the mind.
func (c *candidate) remedies(v *drover.Convergence) string {
	said := ""
	for i, r := range v.Remedies {
		text := ""
		switch r.Kind {
		case drover.RemedyBandwidth:
			text = fmt.Sprintf("at %s more it would", r.Rate)
			c.change("give the move %s more of the link: %s converges then", r.Rate, c.advice.Method)
		case drover.RemedyPause:
			text = fmt.Sprintf("with a pause of %s it would", ms(r.PauseMillis))
			c.change("allow a pause of %s: %s converges then", ms(r.PauseMillis), c.advice.Method)
		case drover.RemedyThrottle:
			text = fmt.Sprintf("with its processors held back by %d %% it would", r.ThrottlePercent)
			c.change("hold its processors back by %d %%: %s converges then", r.ThrottlePercent, c.advice.Method)
		default:
			text = r.Detail
			if r.Detail != "" {
				c.change("%s", r.Detail)
			}
		}
		if i == 0 || said == "" {
			said = text
		}
	}
	if said == "" {
		return ""
	}
	return "; " + said
}

// rules quotes the rule sets.
func (c *candidate) rules() {
	if c.From.Name == c.To.Name {
		return
	}
	for _, r := range c.policy.Rules {
		if !r.applies(c.advice.Method) {
			continue
		}
		v := r.judge(c.way)
		name := r.title()
		switch {
		case len(v.broken) > 0 && r.Refuse:
			c.impossible("%s forbids it: %s", name, sentence(v.broken))
			c.change("change rule %s, which forbids %s", r.Name, c.advice.Method)
		case len(v.broken) > 0:
			c.contra("outside %s: %s", name, sentence(v.broken))
		case len(v.kept) > 0:
			c.pro("within %s: %s", name, sentence(v.kept))
		}
		if len(v.open) > 0 {
			c.caveat("%s cannot be checked wholly: %s", name, sentence(v.open))
		}
	}
}
