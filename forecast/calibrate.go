package forecast

import (
	"cmp"
	"math"
	"slices"
	"time"

	"github.com/drover-vm/drover"
)

// Model is the models with what this installation's earlier moves have taught.
// It is read only, and may be used concurrently.
type Model struct {
	now    time.Time
	groups map[group]*lesson
	taught taught
}

// group is what is calibrated together: the methods whose guest moves running,
// those that copy it while it is off, and those that make another.
type group struct {
	family drover.Method
	figure int
}

// family is the method that stands for a group of them.
func family(m drover.Method) drover.Method {
	switch {
	case staysUp(m):
		return drover.Live
	case m == drover.Redirect:
		return drover.Spawn
	}
	return m
}

const (
	// window is how many moves of a family are looked at: the newest. Forecasts and
	// truths are taken to be exchangeable within it, no further: links, hosts and
	// this program change.
	window = 200
	// Of two moves, one of them so many moves or so long ago, the older counts half.
	halfMoves = 20.0
	halfLife  = 45 * 24 * time.Hour
	// likeness is by what factor two moves may differ in length to count for each
	// other in full measure (a Gaussian's deviation, of the logarithm).
	likeness = 1.0
	// other is what a move by another method of the same family counts.
	other = 0.5
	// elsewhere is what a move over another way counts: a way that no move has taken yet
	// is less known.
	elsewhere = 0.5
	// priorWeight is what the built-in errors count beside the moves': as many
	// moves. The moment the history has some dozen, it decides alone.
	priorWeight = 2.5
	// priorWidth is by how much wider than the models say the built-in errors are:
	// models flatter themselves.
	priorWidth = 1.6
	// leastLine is from how many moves on a straight line is fitted.
	leastLine = 8
	// leastSpread keeps normalised residuals finite.
	leastSpread = 0.05
)

// lesson is what is known of one figure.
type lesson struct {
	offset, slope float64 // truth ≈ offset + slope · point
	past          []residual
}

// residual is by how much a move's truth was off the corrected point, in the
// models' own spreads. Those of a lesson are in ascending order.
type residual struct {
	off    float64
	weight float64
	method drover.Method
	way    way
	size   float64 // logarithm of the point
}

// way is the two sites of a move, the first by name first.
type way struct{ a, b string }

func wayOf(from, to drover.Place) way {
	return way{min(from.Site, to.Site), max(from.Site, to.Site)}
}

// New learns from moves that have been made, oldest first; those without a
// forecast or without a measurement teach nothing. Times in the future, after a
// clock has jumped, count as now, and the order counts beside them.
func New(history []drover.Move, now time.Time) *Model {
	m := &Model{now: now, groups: map[group]*lesson{}, taught: teach(history)}
	by := map[group][]pair{}
	for _, h := range slices.Backward(history) {
		for i, p := range pairs(h) {
			if g := (group{family(h.Method), i}); p.ok && len(by[g]) < window {
				p.weight = halved(float64(len(by[g]))/halfMoves) * halved(age(h.Ended, now).Hours()/halfLife.Hours())
				by[g] = append(by[g], p)
			}
		}
	}
	for g, ps := range by {
		m.groups[g] = learn(g.figure, ps)
	}
	return m
}

func halved(times float64) float64 { return math.Exp2(-sane(times)) }

func age(at, now time.Time) time.Duration { return max(0, now.Sub(at)) }

// pair is a model's answer and the truth.
type pair struct {
	ok                   bool
	method               drover.Method
	way                  way
	point, spread, truth float64
	weight               float64
}

// pairs are a move's, by figure.
func pairs(m drover.Move) [figureCount]pair {
	var ps [figureCount]pair
	if m.State != drover.MoveDone || m.Forecast == nil {
		return ps
	}
	for i, t := range m.Measured.Each() {
		p, known := m.Forecast.Points[t.Name]
		if !known || t.Value == nil || !finite(p) || !finite(*t.Value) {
			continue
		}
		spread := m.Forecast.Spreads[t.Name]
		if !finite(spread) {
			spread = 1
		}
		ps[i] = pair{ok: true, method: m.Method, way: wayOf(m.From, m.To), point: sane(p), spread: max(leastSpread, min(sane(spread), mostSpread)), truth: sane(*t.Value)}
	}
	return ps
}

func finite(v float64) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) }

// learn fits the line and keeps what is left.
func learn(figure int, ps []pair) *lesson {
	l := &lesson{slope: 1}
	if len(ps) >= leastLine {
		l.offset, l.slope = line(ps, floors[figure])
	}
	for _, p := range ps {
		off := math.Log((p.truth+floors[figure])/(l.correct(p.point)+floors[figure])) / p.spread
		l.past = append(l.past, residual{off: off, weight: p.weight, method: p.method, way: p.way, size: math.Log(p.point + floors[figure])})
	}
	slices.SortFunc(l.past, func(a, b residual) int { return cmp.Compare(a.off, b.off) })
	return l
}

func (l *lesson) correct(point float64) float64 { return sane(l.offset + l.slope*point) }

// linePoints bounds the pairs of a line: their number is squared.
const linePoints = 60

// line is a robust straight line through the newest pairs: the median of the
// slopes of all pairs of them (Theil 1950, Sen 1968), drawn to one by as many
// slopes of one as there are pairs, and the median of what is left. An installation's fixed costs
// are its offset. Errors count by their ratio, so a line that a few large moves
// draw does not spoil many small ones: it is kept only if it is better on the
// median ratio.
func line(ps []pair, floor float64) (offset, slope float64) {
	ps = ps[:min(len(ps), linePoints)]
	var slopes []float64
	for i, a := range ps {
		slopes = append(slopes, 1)
		for _, b := range ps[:i] {
			if d := a.point - b.point; math.Abs(d) > 0.2*max(a.point, b.point) {
				slopes = append(slopes, (a.truth-b.truth)/d)
			}
		}
	}
	slope = min(max(median(slopes), 0.25), 4)
	rest := make([]float64, len(ps))
	for i, p := range ps {
		rest[i] = p.truth - slope*p.point
	}
	offset = median(rest)
	if badness(ps, floor, offset, slope) > badness(ps, floor, 0, 1) {
		return 0, 1
	}
	return offset, slope
}

// badness is the median ratio between truth and line, as a logarithm.
func badness(ps []pair, floor, offset, slope float64) float64 {
	errs := make([]float64, len(ps))
	for i, p := range ps {
		errs[i] = math.Abs(math.Log((p.truth + floor) / (sane(offset+slope*p.point) + floor)))
	}
	return median(errs)
}

func median(vs []float64) float64 {
	if len(vs) == 0 {
		return 0
	}
	slices.Sort(vs)
	n := len(vs)
	return (vs[(n-1)/2] + vs[n/2]) / 2
}

// prior are the normalised residuals that stand for a history: a normal
// distribution's, at the middles of ten equal parts.
var prior = [10]float64{-1.6449, -1.0364, -0.6745, -0.3853, -0.1257, 0.1257, 0.3853, 0.6745, 1.0364, 1.6449}

// calibrate turns points into ranges. It is split conformal prediction (Vovk et
// al.; Papadopoulos et al. 2002) with residuals normalised by the models' own
// spread (Lei et al., JASA 2018) and weighted by likeness and age (Barber et al.,
// Annals of Statistics 2023); the weight of the move itself, which strictly would
// be at infinity, lies with the prior.
func (m *Model) calibrate(method drover.Method, over way, with map[string]float64, a *answers, out *drover.Forecast) {
	out.Points, out.Spreads = map[string]float64{}, map[string]float64{}
	for _, name := range madeWith {
		if v, known := with[name]; known {
			out.Points[name] = sane(v)
		}
	}
	for i, p := range a {
		if !p.known {
			continue
		}
		out.Points[figureNames[i]], out.Spreads[figureNames[i]] = p.value, p.spread
		l := m.groups[group{family(method), i}]
		if l == nil {
			l = &lesson{slope: 1}
		}
		if i == totalSeconds || len(l.past) > out.Calibrated {
			out.Calibrated = max(out.Calibrated, len(l.past))
		}
		spread := max(leastSpread, p.spread)
		low, middle, high := l.quantiles(method, over, math.Log(p.value+floors[i]))
		at := l.correct(p.value) + floors[i]
		f := func(q float64) float64 {
			return at*math.Exp(min(max(q*spread, -3*mostSpread), 3*mostSpread)) - floors[i]
		}
		if p.value == 0 && l.correct(0) == 0 && len(l.past) == 0 {
			put(out, i, *exact(0))
			continue
		}
		put(out, i, ordered(f(low), f(middle), f(high)))
	}
}

// Recalibrate is a forecast that was made by another Model as this one would have
// made it: the models' points and spreads stay, the ranges are new.
func (m *Model) Recalibrate(f drover.Forecast, from, to drover.Place) drover.Forecast {
	var a answers
	for i, name := range figureNames {
		if p, known := f.Points[name]; known {
			a.set(i, guess{p, f.Spreads[name]})
		}
	}
	f.Calibrated = 0
	over := wayOf(from, to)
	m.calibrate(f.Method, over, f.Points, &a, &f)
	return f
}

// quantiles are the 10, 50 and 90 % of the residuals, the prior's among them.
func (l *lesson) quantiles(method drover.Method, over way, size float64) (low, middle, high float64) {
	weights := make([]float64, len(l.past))
	total := priorWeight
	for i, r := range l.past {
		w := r.weight * math.Exp(-0.5*math.Pow((r.size-size)/likeness, 2))
		if r.method != method {
			w *= other
		}
		if r.way != over {
			w *= elsewhere
		}
		weights[i] = w
		total += w
	}
	find := func(q float64) float64 {
		sum, j := 0.0, 0
		for i := 0; i < len(l.past) || j < len(prior); {
			var v, w float64
			if j >= len(prior) || i < len(l.past) && l.past[i].off <= priorWidth*prior[j] {
				v, w = l.past[i].off, weights[i]
				i++
			} else {
				v, w = priorWidth*prior[j], priorWeight/float64(len(prior))
				j++
			}
			if sum += w; sum >= q*total {
				return v
			}
		}
		return priorWidth * prior[len(prior)-1]
	}
	low, middle, high = find(0.1), find(0.5), find(0.9)
	return low, l.significant(middle, high-low, weights), high
}

// significant is by how much the middle of residuals is off for certain: what it may be
// by chance, its standard error, is taken away. The models learn as well, so residuals
// of earlier forecasts are in part of what has been learned since, and to follow a few
// of them would correct it twice.
func (l *lesson) significant(middle, width float64, weights []float64) float64 {
	total, squares := priorWeight, priorWeight*priorWeight/float64(len(prior))
	for _, w := range weights {
		total, squares = total+w, squares+w*w
	}
	// A median's error is by the half of pi larger than a mean's variance.
	chance := math.Sqrt(math.Pi/2*squares) / total * width / (2 * z10)
	return math.Copysign(max(0, math.Abs(middle)-chance), middle)
}
