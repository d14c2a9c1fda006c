package advisor

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/drover-vm/drover"
)

// Best says at which site a VM should be: where it is, unless its requirements
// forbid that. q is a question for any site; all are the advices for the others.
func Best(q Question, all []drover.Advice, p Policy) drover.Advice {
	against := objections(&q, q.From)
	all = slices.Clone(all)
	slices.SortStableFunc(all, func(a, b drover.Advice) int { return cmp.Or(compareSites(p, a, b), cmp.Compare(a.To, b.To)) })
	best := drover.Advice{
		VM: q.VM.Name, From: q.From.Name, To: q.From.Name, Method: drover.Stay,
		Requirements: q.Needs.Stated, Faults: q.Needs.Faults,
	}
	switch {
	case len(q.Needs.Contradictions) > 0:
		best.Reasons = q.Needs.Contradictions
	case len(against) == 0:
		best.Reasons = []string{fmt.Sprintf("nothing asks for a move: at %s it has all that it needs", q.From.Name)}
		if len(all) > 0 && all[0].Method != drover.Stay {
			best.Changes = []string{fmt.Sprintf("%s would be the simplest other site, by %s (drover advise %s --to %s)",
				all[0].To, all[0].Method, q.VM.Name, all[0].To)}
		}
	case len(all) == 0 || all[0].Method == drover.Stay:
		best.Reasons = []string{"it should be elsewhere, and there is no way to a site that is better"}
		for _, o := range against {
			best.Reasons = append(best.Reasons, o.why)
			best.Changes = append(best.Changes, o.change)
		}
	default:
		best = all[0]
		var why []string
		for _, o := range against {
			why = append(why, fmt.Sprintf("not at %s: %s", q.From.Name, o.why))
		}
		best.Reasons = append(why, best.Reasons...)
	}
	if len(best.Methods) == 0 {
		best.Methods = []drover.MethodAdvice{{Method: drover.Stay, Feasible: true, Meets: len(against) == 0, For: best.Reasons, Changes: best.Changes}}
	}
	best.Sites = make([]drover.SiteAdvice, 0, len(all))
	for _, a := range all {
		best.Sites = append(best.Sites, drover.SiteAdvice{To: a.To, Method: a.Method, Reason: a.Reasons[0]})
	}
	return best
}

// compareSites puts sites first that can be reached, of those the ones by the
// simplest method, of those the ones that are nearest to the clients and soonest
// reached.
func compareSites(p Policy, a, b drover.Advice) int {
	if (a.Method == drover.Stay) != (b.Method == drover.Stay) {
		if a.Method == drover.Stay {
			return 1
		}
		return -1
	}
	if a.Method == drover.Stay {
		return 0
	}
	ma, mb := a.Of(a.Method), b.Of(b.Method)
	return cmp.Or(cmp.Compare(rightFirst(ma), rightFirst(mb)), cmp.Compare(p.rank(a.Method), p.rank(b.Method)),
		compareFigure(ma, mb, func(f *drover.Forecast) *drover.Range { return f.ExtraRTT }),
		compareFigure(ma, mb, func(f *drover.Forecast) *drover.Range { return f.TotalSeconds }))
}

func rightFirst(m *drover.MethodAdvice) int {
	if m.Meets {
		return 0
	}
	return 1
}

// compareFigure compares a figure of two forecasts; one that nobody knows is
// worth as much as any.
func compareFigure(a, b *drover.MethodAdvice, of func(*drover.Forecast) *drover.Range) int {
	if a.Forecast == nil || b.Forecast == nil || of(a.Forecast) == nil || of(b.Forecast) == nil {
		return 0
	}
	return cmp.Compare(of(a.Forecast).P50, of(b.Forecast).P50)
}
