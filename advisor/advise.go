package advisor

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/drover-vm/drover"
)

// Advise says by which method the VM should come to the site, or that it should
// stay. All methods are in the answer, the best first.
func Advise(q Question, p Policy) drover.Advice {
	w := wayOf(&q)
	found := make([]*candidate, 0, len(drover.Methods()))
	for _, m := range drover.Methods() {
		found = append(found, judge(&q, &p, w, m))
	}
	against := objections(&q, q.To)
	for _, c := range found {
		for _, o := range against {
			c.advice.Meets = false
			c.miss("%s", o.why)
		}
		c.weighty()
	}
	slices.SortStableFunc(found, func(a, b *candidate) int {
		return cmp.Or(cmp.Compare(a.class(), b.class()), cmp.Compare(a.missed(), b.missed()),
			cmp.Compare(p.rank(a.advice.Method), p.rank(b.advice.Method)))
	})
	a := drover.Advice{
		VM: q.VM.Name, From: q.From.Name, To: q.To.Name, Method: drover.Stay,
		Requirements: q.Needs.Stated, Faults: q.Needs.Faults,
	}
	best := found[0]
	switch {
	case len(q.Needs.Contradictions) > 0:
		a.Reasons = q.Needs.Contradictions
		a.Changes = []string{"mend its requirements (drover requirements " + q.VM.Name + ")"}
	case q.To.Name == q.From.Name && q.Host == "":
		a.Reasons = []string{fmt.Sprintf("it is at %s already", q.To.Name)}
	case q.To.Name == q.From.Name && q.Host == q.VM.Host:
		a.Reasons = []string{fmt.Sprintf("it is on %s/%s already", q.To.Name, q.Host)}
	case best.class() <= classAssumed:
		a.Method, a.Reasons = best.advice.Method, best.why(found)
	default:
		a.Reasons, a.Changes = staying(&q, found, against)
	}
	a.Methods = entries(found, a)
	return a
}

// The classes of methods, the best first. Those up to classAssumed can be
// advised.
const (
	classRight      = iota // feasible, and meets all
	classAssumed           // misses only what nobody has asked for
	classNear              // misses something by a little
	classOpen              // cannot be told
	classBroken            // misses what somebody has asked for
	classInfeasible        // cannot be done
)

func (c *candidate) class() int {
	switch {
	case !c.advice.Feasible:
		return classInfeasible
	case c.broken > 0:
		return classBroken
	case c.open > 0:
		return classOpen
	case c.near > 0:
		return classNear
	case c.assumed > 0:
		return classAssumed
	default:
		return classRight
	}
}

// missed is how much is missed, to order what is not right.
func (c *candidate) missed() int {
	if !c.advice.Feasible {
		return 0 // by their order: how many things are in the way says little
	}
	return c.broken + c.open + c.near + c.assumed
}

// why says why the method is the advice: what it is, that it is the simplest, and
// what speaks against those that are simpler.
func (c *candidate) why(all []*candidate) []string {
	reasons := []string{c.nature.does}
	if c.class() == classRight {
		reasons[0] += "; the simplest that meets all it needs"
	} else {
		reasons[0] += "; no method gives it all that a VM is taken to need of which nobody has said anything"
	}
	reasons = append(reasons, c.advice.For...)
	for _, against := range c.advice.Against {
		reasons = append(reasons, "but "+against)
	}
	for _, other := range c.simpler(all) {
		reasons = append(reasons, fmt.Sprintf("not %s: %s", other.advice.Method, other.first()))
	}
	return reasons
}

// simpler are the methods that come before c in the order, and that it was
// preferred to, in that order.
func (c *candidate) simpler(all []*candidate) []*candidate {
	rank := c.policy.rank
	var found []*candidate
	for _, o := range all {
		if rank(o.advice.Method) < rank(c.advice.Method) && len(o.advice.Against) > 0 {
			found = append(found, o)
		}
	}
	slices.SortFunc(found, func(a, b *candidate) int { return cmp.Compare(rank(a.advice.Method), rank(b.advice.Method)) })
	return found
}

// maxChanges bounds what is said to change the mind: who needs more than these
// looks at each method.
const maxChanges = 5

// staying says why none is right, and what would change that.
func staying(q *Question, all []*candidate, against []objection) (reasons, changes []string) {
	note := func(change string) {
		if change != "" && !slices.Contains(changes, change) && len(changes) < maxChanges {
			changes = append(changes, change)
		}
	}
	switch {
	case q.Move != nil:
		reasons = []string{fmt.Sprintf("move %s of it to %s is %s", q.Move.Name, q.Move.To, q.Move.State)}
		return reasons, []string{"wait for its end (drover move watch " + q.Move.Name + ")"}
	case len(against) > 0:
		for _, o := range against {
			reasons = append(reasons, o.why)
			note(o.change)
		}
		return reasons, changes
	}
	reasons = []string{fmt.Sprintf("no method takes it to %s and gives it all that it needs", q.To.Name)}
	// That no other VM would do is the least of reasons to stay: most would not.
	all = slices.Clone(all)
	slices.SortStableFunc(all, func(a, b *candidate) int { return cmp.Compare(a.makes(), b.makes()) })
	for _, c := range all {
		if why := c.first(); why != "" {
			reasons = append(reasons, fmt.Sprintf("not %s: %s", c.advice.Method, why))
		}
		for _, change := range c.advice.Changes {
			note(change)
		}
	}
	return reasons, changes
}

// weighty puts what keeps a method from being right before what only speaks
// against it.
func (c *candidate) weighty() {
	rest := slices.DeleteFunc(slices.Clone(c.advice.Against), func(s string) bool { return slices.Contains(c.decisive, s) })
	c.advice.Against = append(slices.Clone(c.decisive), rest...)
}

// makes is 1 for methods that make another VM.
func (c *candidate) makes() int {
	if c.advice.Method.Makes() {
		return 1
	}
	return 0
}

// first is what weighs most against it; empty where nothing does.
func (c *candidate) first() string {
	switch {
	case len(c.decisive) > 0:
		return c.decisive[0]
	case len(c.advice.Against) > 0:
		return c.advice.Against[0]
	}
	return ""
}

// entries are the methods as they are shown, with stay where it belongs: before
// all others when it is the advice, after what can be advised else.
func entries(found []*candidate, a drover.Advice) []drover.MethodAdvice {
	stay := drover.MethodAdvice{Method: drover.Stay, Feasible: true, Meets: a.Method == drover.Stay}
	if stay.Meets {
		stay.For, stay.Changes = a.Reasons, a.Changes
	} else {
		stay.Against = []string{fmt.Sprintf("%s takes it to %s, as was asked", a.Method, a.To)}
	}
	list := make([]drover.MethodAdvice, 0, len(found)+1)
	if stay.Meets {
		list = append(list, stay)
	}
	for _, c := range found {
		if !stay.Meets && stay.Method != "" && c.class() > classAssumed {
			list, stay.Method = append(list, stay), ""
		}
		list = append(list, c.advice)
	}
	if !stay.Meets && stay.Method != "" {
		list = append(list, stay)
	}
	return list
}
