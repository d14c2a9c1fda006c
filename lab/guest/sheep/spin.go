package main

import (
	"context"
	"errors"
	"math"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/drover-vm/drover/lab/guest/control"
)

// errSpinning says that the guest's processor is measured already: two at once
// would measure each other.
var errSpinning = errors.New("the processor is being measured already")

const (
	// spinRounds of arithmetic are a step: some 30 µs of an emulated processor, so
	// that reading the clock is little of it.
	spinRounds = 5000
	// spinPriority keeps the guest's own services from being what is measured.
	spinPriority = -20
	// gapBase and gapGrowth are the histogram's: 0.1 ms, and four bounds for each
	// doubling.
	gapBase   = 100 * time.Microsecond
	gapGrowth = 4
	// gapBounds reach 0.1 ms × 2^(60/4), some three seconds.
	gapBounds = 61
)

// spinner does small steps of work as fast as the processor lets it, and notes how
// long each took.
type spinner struct{ one sync.Mutex }

// run works for a while. The thread that does it ends with it, and its priority,
// too.
func (s *spinner) run(ctx context.Context, req control.Spin) (control.SpinStats, error) {
	if err := req.Validate(); err != nil {
		return control.SpinStats{}, err
	}
	if !s.one.TryLock() {
		return control.SpinStats{}, errSpinning
	}
	defer s.one.Unlock()
	done := make(chan control.SpinStats)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := syscall.Setpriority(syscall.PRIO_PROCESS, 0, spinPriority); err != nil {
			close(done)
			return
		}
		done <- spin(ctx, time.Duration(req.DurationMS)*time.Millisecond)
	}()
	stats, ok := <-done
	if !ok {
		return stats, errors.New("the priority could not be set")
	}
	return stats, ctx.Err()
}

// spin is the work itself.
func spin(ctx context.Context, d time.Duration) control.SpinStats {
	var counts [gapBounds + 1]int64
	stats := control.SpinStats{Long: make([]control.Gap, 0, control.MaxLong)} // no allocation while it works
	seed := uint64(1)
	began := time.Now()
	for last, end := began, began.Add(d); last.Before(end) && ctx.Err() == nil; {
		for range spinRounds {
			seed = seed*6364136223846793005 + 1442695040888963407 // Knuth, MMIX
		}
		now := time.Now()
		took := millis(now.Sub(last))
		if took >= control.LongMS && len(stats.Long) < control.MaxLong {
			stats.Long = append(stats.Long, control.Gap{AtMS: millis(last.Sub(began)), MS: took})
		}
		stats.Steps++
		counts[gapBucket(now.Sub(last))]++
		stats.LongestMS = max(stats.LongestMS, took)
		last = now
	}
	stats.DurationMS = millis(time.Since(began))
	stats.Result = seed
	for i, n := range counts {
		if n > 0 {
			stats.Gaps = append(stats.Gaps, control.Gaps{UpToMS: gapBound(i), Count: n})
		}
	}
	return stats
}

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// gapBound is a bucket's upper bound in milliseconds.
func gapBound(i int) float64 {
	return float64(gapBase) / float64(time.Millisecond) * math.Exp2(float64(i)/gapGrowth)
}

// gapBucket is the bucket of a time; the last one has no bound.
func gapBucket(d time.Duration) int {
	if d <= gapBase {
		return 0
	}
	return min(gapBounds, int(math.Ceil(gapGrowth*math.Log2(float64(d)/float64(gapBase)))))
}
