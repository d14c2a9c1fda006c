package main

import (
	"context"
	"sync"
	"time"

	"github.com/drover-vm/drover/lab/guest/control"
)

// gapTick is the meter's interval: the beat of the outside prober.
const gapTick = 10 * time.Millisecond

// gapMeter measures how late a periodic wake-up can be, from its first reset on:
// an emulated processor that is woken a hundred times a second takes a tenth of a
// core, and a lab has a dozen guests of whom nobody asks.
type gapMeter struct {
	started time.Time
	asked   chan struct{} // has a value after the first reset

	mu    sync.Mutex
	worst control.GapStats
}

func newGapMeter() *gapMeter {
	return &gapMeter{started: time.Now(), asked: make(chan struct{}, 1)}
}

func (g *gapMeter) run(ctx context.Context) {
	select {
	case <-ctx.Done():
		return
	case <-g.asked:
	}
	tick := time.NewTicker(gapTick)
	defer tick.Stop()
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := time.Now()
		late := float64(now.Sub(last)-gapTick) / float64(time.Millisecond)
		last = now
		g.mu.Lock()
		if late > g.worst.MaxMS {
			g.worst = control.GapStats{MaxMS: late, AtUptimeMS: now.Sub(g.started).Milliseconds()}
		}
		g.mu.Unlock()
	}
}

func (g *gapMeter) stats() control.GapStats {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.worst
}

// reset forgets what was measured, and begins to measure.
func (g *gapMeter) reset() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.worst = control.GapStats{}
	select {
	case g.asked <- struct{}{}:
	default:
	}
}
