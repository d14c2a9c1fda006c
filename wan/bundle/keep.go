package bundle

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/wan/frame"
)

const (
	// tick is how often the bundle looks after itself.
	tick = 100 * time.Millisecond
	// While something is going on the far end is asked every pingActive and
	// given up after silentActive or silentTrips round trips of silence: longer
	// than TCP takes for two losses of the same packet, short enough that a cut
	// costs little more than itself. Any byte that comes ends the silence, so
	// that a slow link is not a dead one.
	pingActive   = 500 * time.Millisecond
	silentActive = 2 * time.Second
	silentTrips  = 6
	// A connection that falls silent younger than youth may be no dead one but
	// one on a path slower than all this was made for: each time, up to
	// maxPatience times, the limit doubles, until a connection has grown old.
	youth       = 20 * time.Second
	maxPatience = 3
	// The same for a bundle at rest since idleAfter, which is longer than both
	// ends can differ on it.
	pingIdle   = 2 * time.Second
	silentIdle = 8 * time.Second
	idleAfter  = 10 * time.Second
	// stalled is a tick so late that this process was not running: silence in
	// that time says nothing.
	stalled = 5 * tick
)

var errSilent = errors.New("nothing came")

// keep looks after the connections until the bundle ends.
func (b *Bundle) keep(ctx context.Context) {
	defer b.gate.leave(b)
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	last := b.now()
	for {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		now := b.now()
		for _, l := range b.look(now, now-last > stalled) {
			b.drop(l, fmt.Errorf("%w for %s", errSilent, (now-time.Duration(l.heard.Load())).Round(tick)))
		}
		last = now
	}
}

func (b *Bundle) idle(now time.Duration) bool {
	return b.unacked == 0 && now-b.activity > idleAfter
}

// look pings, measures, and returns the connections that are silent for too
// long.
func (b *Bundle) look(now time.Duration, stalled bool) (silent []*link) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil {
		return nil
	}
	if stalled {
		b.active = now
	}
	every, limit := pingActive, silentActive
	if b.idle(now) {
		every, limit = pingIdle, silentIdle
	}
	limit <<= b.patience
	ping, young := false, false
	var rtt time.Duration
	for _, l := range b.links {
		since := max(time.Duration(l.heard.Load()), b.active)
		if now-since > max(limit, silentTrips*l.rtt) {
			silent = append(silent, l)
			young = young || now-l.joined < youth
		} else if now-l.joined > youth {
			b.patience = 0
		}
		if now-l.pinged >= every && !l.wantPing {
			l.wantPing, ping = true, true
		}
		if l.rtt > 0 && (rtt == 0 || l.rtt < rtt) {
			rtt = l.rtt
		}
	}
	if young {
		b.patience = min(b.patience+1, maxPatience)
	}
	if rtt > 0 {
		b.stats.rtt = rtt
	}
	b.measure()
	if ping {
		b.work.Broadcast()
	}
	if b.cut.is && now-b.cut.since > b.cfg.CutLimit {
		err := fmt.Errorf("the path was cut for %s", (now - b.cut.since).Round(tick))
		if b.cut.lastFailure != nil {
			err = fmt.Errorf("%w; the last attempt: %w", err, b.cut.lastFailure)
		}
		b.end(drover.E(drover.Unavailable, "wan bundle", err))
	}
	return silent
}

// peakLoss is the share of the best rate that is forgotten each tick: half of
// it in seven seconds. Queues that followed the present rate would hold a path
// that was slow for a moment down for good.
const peakLoss = 100

// measure estimates the rate of delivery, and what may wait for a writer, be
// taken by one, and wait in the kernel.
func (b *Bundle) measure() {
	s := &b.stats
	s.ring[s.at%len(s.ring)] = s.acked - s.ackedBefore
	s.ackedBefore = s.acked
	s.at++
	var sum int64
	for _, n := range s.ring {
		sum += n
	}
	s.rate = sum * int64(time.Second/tick) / int64(len(s.ring))
	s.peak = max(s.rate, s.peak-s.peak/peakLoss)
	b.batch = int(min(max(s.peak*int64(batchTime)/int64(time.Second)/frame.FrameBytes, 1), maxBatch))
	if s.at < len(s.ring) {
		return
	}
	b.queueLimit = int(min(max(s.peak*int64(queueTime)/int64(time.Second), minQueue), maxQueue))
	if s.at%int(lowatEvery/tick) == 0 && s.peak > 0 {
		for _, l := range b.links {
			l.tuneLowat(s.peak / int64(len(b.links)))
		}
	}
}

// cut is the time without any connection.
type cut struct {
	is          bool
	since       time.Duration
	total       time.Duration
	lastFailure error
}

func (c *cut) begin(at time.Duration) { c.is, c.since = true, at }

func (c *cut) end(at time.Duration) {
	if c.is {
		c.total += at - c.since
		c.is, c.lastFailure = false, nil
	}
}
