package main

import "time"

// maxCatchUp bounds what a writer makes up for after it did not get to run:
// more would turn a pause into a burst at the very moment when the path is
// busiest.
const maxCatchUp = 100 * time.Millisecond

// pace turns a rate into whole units of work that are due.
type pace struct {
	perSecond float64 // units
	last      time.Time
	due       float64 // units, with a fraction
}

// take returns how many units are due at now, and how many were dropped
// because they are older than maxCatchUp.
func (p *pace) take(now time.Time) (units, dropped int64) {
	if p.last.IsZero() {
		p.last = now
	}
	p.due += p.perSecond * now.Sub(p.last).Seconds()
	p.last = now
	if limit := p.perSecond*maxCatchUp.Seconds() + 1; p.due > limit {
		dropped = int64(p.due - limit)
		p.due -= float64(dropped)
	}
	units = int64(p.due)
	p.due -= float64(units)
	return units, dropped
}
