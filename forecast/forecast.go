package forecast

import (
	"slices"

	"github.com/drover-vm/drover"
)

// answers are the models' points, by the index of their figure in figures.
type answers [figureCount]point

// The figures, in the order of drover.Forecast.Each.
const (
	totalSeconds = iota
	pauseMillis
	outageMillis
	wireBytes
	guestBytes
	sessionsLost
	extraRTT
	hairpinBPS
	remoteIO
	cost
	figureCount
)

// figureNames are the figures' names in JSON.
var figureNames = func() (names [figureCount]string) {
	for i, f := range (drover.Forecast{}).Each() {
		names[i] = f.Name
	}
	return names
}()

// floors are the steps in which a figure is told: a difference below is none, and
// relative errors are of at least that much.
var floors = [figureCount]float64{
	totalSeconds: 0.1, pauseMillis: 5, outageMillis: 20, wireBytes: 100e3, guestBytes: 100e3,
	sessionsLost: 0.5, extraRTT: 0.5, hairpinBPS: 10e3, remoteIO: 10e3, cost: 0.01,
}

func (a *answers) set(figure int, g guess) {
	a[figure] = point{guess{sane(g.value), min(sane(g.spread), mostSpread)}, true}
}

// Forecast says what the move would cost. It never fails: what is not known widens
// the ranges, and is named.
func (m *Model) Forecast(in Input) drover.Forecast {
	f := newFacts(in, m.taught)
	out := drover.Forecast{Method: in.Method, At: in.Now}
	if in.Method == drover.Stay {
		for i := range figureCount {
			put(&out, i, *exact(0))
		}
		return out
	}
	var a answers
	switch in.Method {
	case drover.Cold:
		a.copied(f, cold(f))
	case drover.Warm:
		a.copied(f, warm(f))
	case drover.Spawn, drover.Redirect:
		a.spawned(spawn(f, in.Method == drover.Redirect))
	default:
		out.Convergence = a.live(f)
	}
	n := notice(f)
	a.set(extraRTT, n.extra)
	a.set(hairpinBPS, n.hairpin)
	a.set(remoteIO, n.remote)
	if price := in.Terms.PricePerGiB; price != nil && a[wireBytes].known {
		a.set(cost, guess{a[wireBytes].value / float64(drover.GiB) * sane(*price), a[wireBytes].spread})
	}
	m.calibrate(in.Method, wayOf(in.From, in.To), map[string]float64{pointLink: f.link.value, pointRTT: f.rtt.value, pointPacked: f.sampled, pointDisk: f.disk.value}, &a, &out)
	slices.Sort(f.unknown)
	out.Unknown = slices.Compact(f.unknown)
	return out
}

// put sets a figure of a forecast by its index.
func put(f *drover.Forecast, figure int, r drover.Range) {
	to := [figureCount]**drover.Range{
		&f.TotalSeconds, &f.PauseMillis, &f.OutageMillis, &f.WireBytes, &f.GuestBytes,
		&f.SessionsLost, &f.ExtraRTT, &f.HairpinBPS, &f.RemoteIOBPS, &f.Cost,
	}
	*to[figure] = &r
}

func (a *answers) live(f *facts) *drover.Convergence {
	t := foretell(f)
	a.set(totalSeconds, t.total)
	a.set(pauseMillis, scaled(t.pause, 1e3))
	a.set(outageMillis, scaled(outage(f.in.Method, t.pause, f.rtt.value), 1e3))
	a.set(wireBytes, t.wire)
	a.set(guestBytes, t.guest)
	// Open sessions go on; what is lost is what a long pause lets time out.
	a.set(sessionsLost, guess{f.opened.value * lostAt(t.pause.value), f.opened.spread})
	c := t.convergence
	if !c.Will {
		c.Remedies = remedies(f)
	}
	return &c
}

// lostAt is the share of the sessions that a pause of that many seconds ends:
// applications give up after tens of seconds.
func lostAt(pause float64) float64 {
	const patience = 20.0
	if pause <= patience {
		return 0
	}
	return share(1 - patience/pause)
}

func (a *answers) copied(f *facts, c copied) {
	a.set(totalSeconds, c.total)
	a.set(pauseMillis, scaled(c.down, 1e3))
	a.set(outageMillis, scaled(c.outage, 1e3))
	a.set(wireBytes, c.wire)
	a.set(guestBytes, c.guest)
	a.set(sessionsLost, f.opened)
}

func (a *answers) spawned(s spawned) {
	a.set(totalSeconds, s.total)
	a.set(pauseMillis, guess{})
	a.set(outageMillis, guess{})
	a.set(wireBytes, s.wire)
	a.set(guestBytes, s.guest)
	a.set(sessionsLost, s.drain.lost)
}

func scaled(g guess, by float64) guess { return guess{g.value * by, g.spread} }
