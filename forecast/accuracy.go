package forecast

import (
	"cmp"
	"math"
	"slices"
	"time"

	"github.com/drover-vm/drover"
)

// Accuracy compares forecasts with truths: one element per method and figure of
// which there are both, and per period when one is given (counted from the Unix
// epoch, by the ends of the moves, so weeks begin on Thursdays). Only moves that
// were done count. It is empty when there are none.
func Accuracy(moves []drover.Move, period time.Duration) []drover.Accuracy {
	type key struct {
		from   int64
		method drover.Method
		figure int
	}
	by := map[key][]outcomeOf{}
	for _, m := range moves {
		if m.State != drover.MoveDone || m.Forecast == nil {
			continue
		}
		k := key{method: m.Method}
		if period > 0 {
			k.from = m.Ended.UnixNano() / int64(period)
		}
		forecasts := m.Forecast.Each()
		for i, t := range m.Measured.Each() {
			r := forecasts[i].Value
			if r == nil || t.Value == nil || !finite(*t.Value) || !finite(r.P50) {
				continue
			}
			k.figure = i
			by[k] = append(by[k], outcomeOf{at: m.Ended, off: Error(t.Name, r.P50, *t.Value), inside: r.Contains(*t.Value)})
		}
	}
	out := make([]drover.Accuracy, 0, len(by))
	for k, os := range by {
		a := drover.Accuracy{Method: k.method, Figure: figureNames[k.figure]}
		a.From, a.Until = os[0].at, os[0].at
		out = append(out, summarise(a, os))
	}
	slices.SortFunc(out, func(a, b drover.Accuracy) int {
		return cmp.Or(cmp.Compare(a.Method, b.Method), cmp.Compare(place(a.Figure), place(b.Figure)), a.From.Compare(b.From))
	})
	return out
}

// outcomeOf is one move's forecast against its truth.
type outcomeOf struct {
	at     time.Time
	off    float64
	inside bool
}

func summarise(a drover.Accuracy, os []outcomeOf) drover.Accuracy {
	offs, errs, inside := make([]float64, len(os)), make([]float64, len(os)), 0
	for i, o := range os {
		offs[i], errs[i] = o.off, math.Abs(o.off)
		if o.inside {
			inside++
		}
		if o.at.Before(a.From) {
			a.From = o.at
		}
		if o.at.After(a.Until) {
			a.Until = o.at
		}
	}
	a.Moves, a.Coverage = len(os), float64(inside)/float64(len(os))
	a.Bias, a.MedianError = median(offs), median(errs)
	a.P90Error = errs[min(len(errs)-1, int(math.Ceil(0.9*float64(len(errs))))-1)] // sorted by median
	return a
}

func place(figure string) int { return slices.Index(figureNames[:], figure) }

// Error is (foretold − truth) ÷ truth, of at least a step of the figure's: half a
// session more than none is no infinite error.
func Error(figure string, foretold, truth float64) float64 {
	floor := 1e-9
	if i := place(figure); i >= 0 {
		floor = floors[i]
	}
	return (sane(foretold) - sane(truth)) / max(sane(truth), floor)
}
