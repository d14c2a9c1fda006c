package server

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/executor"
	"github.com/drover-vm/drover/forecast"
	"github.com/drover-vm/drover/store"
)

// relearnEvery bounds how old the model may be while no move ends here: another
// server may have led some.
const relearnEvery = 10 * time.Minute

// oracle makes forecasts from what is observed and from how earlier ones came true.
type oracle struct {
	s *Server

	mu    sync.Mutex
	model *forecast.Model // nil: to be learned
	at    time.Time       // when it was
	ended time.Time       // when a move was last about to end
}

func newOracle(s *Server) *oracle { return &oracle{s: s} }

// learned is the model with all moves that have ended. Where they cannot be read,
// it is the one of before, or one that knows of none: a forecast is never worth
// refusing a move for.
func (o *oracle) learned(ctx context.Context) *forecast.Model {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := o.s.now()
	age, fresh := now.Sub(o.at), o.at.Sub(o.ended) > settledAfter || now.Before(o.ended)
	if o.model != nil && age >= 0 && age < relearnEvery && fresh {
		return o.model
	}
	records, _, err := o.s.deps.Journal.List(ctx, store.Filter{})
	if err != nil {
		o.s.log.WarnContext(ctx, "forecasts go without what earlier moves have shown", "error", err)
		if o.model != nil {
			return o.model
		}
		return forecast.New(nil, now)
	}
	moves := make([]drover.Move, len(records))
	for i, r := range records {
		moves[i] = r.Move
	}
	o.model, o.at = forecast.New(moves, now), now
	return o.model
}

// settledAfter is how long after its observer a move may still be journaled as
// ended: until then every forecast looks again.
const settledAfter = 30 * time.Second

// relearn has the next forecasts look at the moves again: one ends.
func (o *oracle) relearn() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ended = o.s.now()
}

// input is what is known of a move of a VM.
func (o *oracle) input(v drover.VM, to drover.Place, method drover.Method, terms forecast.Terms) forecast.Input {
	f := o.s.fleet
	in := forecast.Input{
		Now: o.s.now(), Method: method, VM: v, From: drover.Place{Site: v.Site, Host: v.Host}, To: to, Terms: terms,
		Link: drover.LinkSignals{From: v.Site, To: to.Site},
	}
	in.Source, _ = f.host(v.Host)
	in.Target, _ = f.host(to.Host)
	var link *drover.Link
	links := f.viewLinks()
	if i := slices.IndexFunc(links, func(l drover.Link) bool { return l.Joins(v.Site, to.Site) }); i >= 0 && v.Site != to.Site {
		link = &links[i]
	}
	o.s.signals.tell(&in, link)
	in.Terms.PricePerGiB = pricePerGiB(v.Site, to.Site, link)
	return in
}

// tell completes an input with what has been observed; of a link that nobody has
// measured, with what was bought.
func (g *signals) tell(in *forecast.Input, link *drover.Link) {
	in.Signals, in.Sender = g.vm(in.VM), g.host(in.From.Host)
	if in.Inside() {
		return
	}
	in.Link = g.way(in.From.Site, in.To.Site)
	if link == nil {
		return
	}
	bought := forecast.MeasuredLink(*link, in.From.Site, in.To.Site, in.Now)
	if !in.Link.CapacityBPS.Known() {
		in.Link.CapacityBPS = bought.CapacityBPS
	}
	if !in.Link.RTTMillis.Known() {
		in.Link.RTTMillis = bought.RTTMillis
	}
}

// foretell is the forecast of a move that has been decided.
func (o *oracle) foretell(ctx context.Context, r executor.Request) *drover.Forecast {
	terms := forecast.Terms{
		Bandwidth: r.Bandwidth, MaxPause: r.MaxPause, MaxDowntime: r.MaxDowntime, NoThrottle: r.NoThrottle, LocalEgress: r.LocalEgress,
	}
	var bytes drover.Bytes
	for _, d := range r.Disks {
		if !d.Fresh {
			bytes += d.AllocatedBytes
		}
	}
	terms.CopyBytes = &bytes
	if r.Clone != nil && r.Clone.Service != nil {
		terms.DrainCap = r.Clone.Service.DrainCap
	}
	f := o.learned(ctx).Forecast(o.input(r.VM, r.To, r.Method, terms))
	return &f
}

// withLeft adds to a move under way how long it has still to go.
func (s *Server) withLeft(m drover.Move) drover.Move {
	left := forecast.Remaining(m, s.now())
	if left == nil {
		return m
	}
	p := drover.Progress{ETASeconds: -1, Updated: s.now().UTC()}
	if m.Progress != nil {
		p = *m.Progress
	}
	p.Left = left
	m.Progress = &p
	return m
}

// leastPeriod keeps an answer small: a row for each method, figure and period.
const leastPeriod = time.Hour

// Accuracy implements DroverService.
func (s service) Accuracy(ctx context.Context, r *droverv1.AccuracyRequest) (*droverv1.AccuracyResponse, error) {
	if m := r.GetMethod(); m != "" && !slices.Contains(drover.Methods(), drover.Method(m)) {
		return nil, drover.Errorf(drover.Invalid, "method", "%q: want one of %s, or nothing for all", m, methodList())
	}
	period := time.Duration(r.GetPeriodNanos())
	if period < 0 || period > 0 && period < leastPeriod {
		return nil, drover.Errorf(drover.Invalid, "period", "%v: want 0 (one for all) or at least %v", period, leastPeriod)
	}
	records, _, err := s.deps.Journal.List(ctx, store.Filter{})
	if err != nil {
		return nil, err
	}
	var moves []drover.Move
	for _, rec := range records {
		m := rec.Move
		if (r.GetMethod() == "" || string(m.Method) == r.GetMethod()) && (r.GetSinceUnixNanos() == 0 || m.Ended.UnixNano() >= r.GetSinceUnixNanos()) {
			moves = append(moves, m)
		}
	}
	return &droverv1.AccuracyResponse{Accuracy: api.ListToProto(forecast.Accuracy(moves, period), api.AccuracyToProto)}, nil
}

func methodList() string {
	var names []string
	for _, m := range drover.Methods() {
		names = append(names, string(m))
	}
	return strings.Join(names, ", ")
}
