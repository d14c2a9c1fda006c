package sample

import (
	"time"

	"github.com/drover-vm/drover"
)

// HourSamples is how many measurements an hour's mean rests on at most: later ones
// then replace earlier ones with a weight of 1/HourSamples. At one measurement a
// minute these are the last four weeks.
const HourSamples = 240

// Hours adds a measurement to what a link is usually like, by the hour of the week.
// Loss and what is free may be unknown: they then count as before. Hours come and
// stay in order.
func Hours(week []drover.LinkHour, at time.Time, rttMillis float64, loss, free drover.Reading) []drover.LinkHour {
	hour := drover.HourOfWeek(at)
	i := 0
	for i < len(week) && week[i].Hour < hour {
		i++
	}
	if i == len(week) || week[i].Hour != hour {
		week = append(week, drover.LinkHour{})
		copy(week[i+1:], week[i:])
		week[i] = drover.LinkHour{Hour: hour, RTTMillis: rttMillis, LossShare: loss.Or(0), FreeBPS: free.Or(0)}
	}
	h := &week[i]
	h.Samples++
	w := 1 / float64(min(h.Samples, HourSamples))
	h.RTTMillis += w * (rttMillis - h.RTTMillis)
	h.LossShare += w * (loss.Or(h.LossShare) - h.LossShare)
	h.FreeBPS += w * (free.Or(h.FreeBPS) - h.FreeBPS)
	return week
}
