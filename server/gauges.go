package server

import (
	"maps"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/network"
)

const (
	// rateWindow is the time over which rates are taken: three observations and
	// one more, so that a burst is seen soon, and its end too.
	rateWindow = 12 * time.Second
	// rateLeast is the shortest time over which a rate says something.
	rateLeast = time.Second
	// rateStale is how old a reading may be: agents observe every three seconds,
	// so one that has missed five is not to be relied on.
	rateStale = 15 * time.Second
	// rateForget is how long a counter that is not there any more is remembered,
	// for a move that asks for it at its end.
	rateForget = 5 * time.Minute
	// readingsApart is how far apart readings are that are kept, but for the newest:
	// agents send more often when something changes.
	readingsApart = 500 * time.Millisecond
)

// reading is counters at one time, by the agent's clock.
type reading struct {
	at     time.Time
	values [3]drover.Bytes
}

// readings are those of one set of counters, over the last rateWindow and the one
// before that; first is the first since they began.
type readings struct {
	first reading
	last  []reading
	// seen is when the last one came, by the server's clock.
	seen time.Time
}

// add takes over a reading. Counters that have fallen began anew.
func (r *readings) add(x reading, now time.Time) {
	r.seen = now
	if n := len(r.last); n > 0 {
		newest := r.last[n-1]
		if !x.at.After(newest.at) {
			return
		}
		for i, v := range x.values {
			if v < newest.values[i] {
				r.last = nil
			}
		}
	}
	if len(r.last) == 0 {
		r.first = x
	}
	if n := len(r.last); n > 1 && r.last[n-1].at.Sub(r.last[n-2].at) < readingsApart {
		r.last = r.last[:n-1]
	}
	r.last = append(r.last, x)
	for len(r.last) > 2 && x.at.Sub(r.last[1].at) >= rateWindow {
		r.last = r.last[1:]
	}
}

// rates are by how much the counters have grown of late, in bits per second; ok
// is false where that is not known.
func (r *readings) rates(now time.Time) (bps [3]float64, ok bool) {
	if now.Sub(r.seen) > rateStale {
		return bps, false
	}
	return r.since(r.last[0])
}

// mean is the same since they began, however long they have been gone.
func (r *readings) mean() (bps [3]float64, ok bool) { return r.since(r.first) }

func (r *readings) since(from reading) (bps [3]float64, ok bool) {
	to := r.last[len(r.last)-1]
	took := to.at.Sub(from.at)
	if took < rateLeast {
		return bps, false
	}
	for i := range bps {
		bps[i] = float64(to.values[i]-from.values[i]) * 8 / took.Seconds()
	}
	return bps, true
}

// gauge is what an edge says of one of its passages, and its counters. gone says
// that nothing stands for the owner there any more.
type gauge struct {
	drover.EdgePassage
	readings
	gone bool
}

// gauges are what one agent's counters say of VMs: an edge's of those that are
// away, by owner, a host's of disks left behind, by the VM's UUID.
type gauges struct {
	passages map[string]*gauge
	remoteIO map[string]*readings
	// trips are the round trips to the edges of other sites, in milliseconds, as
	// of tripsSeen.
	trips     map[string]float64
	tripsSeen time.Time
}

// take takes over an observation that came now.
func (g *gauges) take(r *droverv1.DescribeResponse, now time.Time) {
	if g.passages == nil {
		g.passages, g.remoteIO = map[string]*gauge{}, map[string]*readings{}
	}
	g.trips, g.tripsSeen = r.GetMeshRttMs(), now
	for _, was := range g.passages {
		was.gone = was.gone || r.GetPassagesUnixNanos() != 0
	}
	for _, p := range api.ListFromProto(r.GetPassages(), api.EdgePassageFromProto) {
		was := g.passages[p.Owner]
		if was == nil || was.Method != p.Method || was.Here != p.Here {
			was = &gauge{}
			g.passages[p.Owner] = was
		}
		was.EdgePassage, was.gone = p, false
		was.add(reading{time.Unix(0, r.GetPassagesUnixNanos()), [3]drover.Bytes{p.In, p.Out, p.Crossed}}, now)
	}
	for _, v := range r.GetVms() {
		io := v.GetRemoteIo()
		if io == nil {
			delete(g.remoteIO, v.GetUuid())
			continue
		}
		if g.remoteIO[v.GetUuid()] == nil {
			g.remoteIO[v.GetUuid()] = &readings{}
		}
		g.remoteIO[v.GetUuid()].add(reading{time.Unix(0, r.GetClockUnixNanos()), [3]drover.Bytes{drover.Bytes(io.GetReadBytes()), drover.Bytes(io.GetWrittenBytes())}}, now)
	}
	maps.DeleteFunc(g.passages, func(_ string, p *gauge) bool { return now.Sub(p.seen) > rateForget })
	maps.DeleteFunc(g.remoteIO, func(_ string, r *readings) bool { return now.Sub(r.seen) > rateForget })
}

// sight is an agent and what its counters say.
type sight struct {
	*agent
	*gauges
}

// passings are what the agents say of owners.
func passings(sights []sight, now time.Time) map[string][]network.Passing {
	by := map[string][]network.Passing{}
	for _, s := range sights {
		for owner, g := range s.passages {
			if g.gone {
				continue
			}
			bps, known := g.rates(now)
			by[owner] = append(by[owner], network.Passing{
				Site: s.Site, EdgePassage: g.EdgePassage, InBPS: bps[0], OutBPS: bps[1], CrossedBPS: bps[2], Known: known, Read: g.seen,
			})
		}
	}
	return by
}

// trip returns what is known of the round trips between the edges of sites.
func trip(sights []sight, now time.Time) func(a, b string) (float64, bool) {
	by := map[[2]string]float64{}
	for _, s := range sights {
		if now.Sub(s.tripsSeen) > rateStale {
			continue
		}
		for to, ms := range s.trips {
			by[[2]string{s.Site, to}] = ms
		}
	}
	return func(a, b string) (float64, bool) {
		ms, ok := by[[2]string{a, b}]
		if !ok {
			ms, ok = by[[2]string{b, a}]
		}
		return ms, ok
	}
}
