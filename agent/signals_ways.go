package agent

import (
	"context"
	"math"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/forecast/sample"
)

// What measuring a way costs: ten packets of 84 bytes each half minute are 450
// bit/s there and as much back.
const (
	wayPings = 10
	wayGap   = 100 * time.Millisecond
	wayLimit = 2 * time.Second
	// waysKept is how many askings loss and jitter rest on: half an hour, 600
	// packets, which shows a loss of one in two hundred.
	waysKept = 60
)

// watchedWay is what has been measured of the way to one peer.
type watchedWay struct {
	tried   time.Time
	askings []asking
}

// asking is one measurement.
type asking struct {
	at             time.Time
	sent, received int
	trips          []time.Duration // ascending
}

// measureWays measures the ways that are due, one after another.
func (s *signals) measureWays(ctx context.Context) {
	for {
		s.mu.Lock()
		now := s.a.clock()
		i := slices.IndexFunc(s.peers, func(p peerTold) bool {
			w := s.ways[p.peerKey]
			since := time.Duration(0)
			if w != nil {
				since = now.Sub(w.tried)
			}
			return p.way && w != nil && (w.tried.IsZero() || since < 0 || since >= s.pace.Way)
		})
		if i < 0 {
			s.mu.Unlock()
			return
		}
		p := s.peers[i]
		s.ways[p.peerKey].tried = now
		s.mu.Unlock()
		got, err := s.measure(ctx, p)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			s.a.log.Debug("the way to a host is not known", "host", p.host, "err", err)
			continue
		}
		s.mu.Lock()
		if w := s.ways[p.peerKey]; w != nil {
			w.askings = append(w.askings, got)
			w.askings = w.askings[max(0, len(w.askings)-waysKept):]
		}
		s.mu.Unlock()
	}
}

// measure asks the peer's kernel and, where that does not answer, its agent. The
// latter tells no loss: TCP hides it.
func (s *signals) measure(ctx context.Context, p peerTold) (asking, error) {
	if host, _, err := net.SplitHostPort(p.address); err == nil && s.pings != nil {
		if to, err := netip.ParseAddr(host); err == nil {
			r, err := s.pings.Ping(ctx, to.Unmap(), wayPings, wayGap, wayLimit)
			if err == nil {
				slices.Sort(r.Trips)
				return asking{at: s.a.clock(), sent: r.Sent, received: r.Received, trips: r.Trips}, nil
			}
			s.a.log.Debug("no echo", "host", p.host, "err", err)
		}
	}
	client := s.a.peers.at(p.address, p.host)
	if _, err := ping(ctx, client); err != nil { // the connection may have to be made
		return asking{}, peerError(ctx, err)
	}
	began := time.Now()
	if _, err := ping(ctx, client); err != nil {
		return asking{}, peerError(ctx, err)
	}
	return asking{at: s.a.clock(), trips: []time.Duration{time.Since(began)}}, nil
}

// signals are what the measurements say. The round trip and its jitter are of the
// last minutes, loss of all that are kept.
func (w *watchedWay) signals(from, to string) drover.LinkSignals {
	l := drover.LinkSignals{From: from, To: to}
	if len(w.askings) == 0 {
		return l
	}
	last := w.askings[len(w.askings)-1]
	l.At = last.at
	l.RTTMillis = drover.Reading{Value: millis(last.trips[(len(last.trips)-1)/2]), At: last.at, Samples: int64(len(last.trips))}
	if n := len(last.trips); n > 1 {
		// Mean distance from the fastest, which is the way without queues.
		sum := 0.0
		for _, t := range last.trips {
			sum += millis(t - last.trips[0])
		}
		l.JitterMillis = drover.Reading{Value: sum / float64(n), At: last.at, Samples: int64(n)}
	}
	sent, received := 0, 0
	for _, a := range w.askings {
		sent, received = sent+a.sent, received+a.received
	}
	if sent > 0 {
		l.LossShare = drover.Reading{Value: roundTripLoss(sent, received), At: last.at, Samples: int64(sent)}
	}
	return l
}

// roundTripLoss is the loss of one direction, as if both lose alike: what is heard
// again has survived two.
func roundTripLoss(sent, received int) float64 {
	return 1 - math.Sqrt(float64(received)/float64(sent))
}

const (
	// maxLives bounds the sessions of one VM that are followed, and livesKept the
	// ended ones that are remembered: enough for the 99th percentile.
	maxLives  = 4096
	livesKept = 4096
	// livesLeast is how many have to have ended for quantiles to be told.
	livesLeast = 20
)

// watchedSubject is a VM whose sessions pass this edge.
type watchedSubject struct {
	addresses []netip.Addr
	// open are the sessions that were there at the last look.
	open map[string]openSession
	// ended are the latest that ended.
	ended []sample.Life
	// totals are of a load balancer's server.
	totals    *sample.Rate
	sessions  drover.Reading
	lifetimes drover.Lifetimes
}

// openSession is one that is followed.
type openSession struct {
	// age was its age when first seen, at when that was; before says that it may be
	// older than that.
	age  time.Duration
	at   time.Time
	last time.Time
}
