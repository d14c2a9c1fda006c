package reduce

import (
	"testing"
	"time"
)

// settle runs a controller against a simulated link and compressor until it settles, and returns the
// level. A batch of 256 KiB compresses to ratio of that; fastest takes cost.
func settle(c *Controller, clock *time.Time, bytesPerSecond float64, fastest time.Duration, batches int) Level {
	ratio := [levels]float64{1, 0.37, 0.26, 0.24, 0.23, 0.22}
	var free time.Time // when the link has taken what it was given
	for range batches {
		l := c.Level()
		compress := time.Duration(float64(fastest) * levelCost[l])
		*clock = clock.Add(compress)
		c.Compressed(compress)
		send := time.Duration(ratio[l] * (256 << 10) / bytesPerSecond * float64(time.Second))
		// One batch may wait: the next one is compressed meanwhile.
		blocked := max(0, free.Sub(*clock))
		*clock = clock.Add(blocked)
		c.Sent(blocked)
		free = clock.Add(send)
	}
	return c.Level()
}

func TestController(t *testing.T) {
	for _, c := range []struct {
		name    string
		rate    float64 // bytes/s
		fastest time.Duration
		want    Level
	}{
		{"10 Mbit/s", 1.25e6, 2 * time.Millisecond, LevelBest},
		{"100 Mbit/s", 12.5e6, 1200 * time.Microsecond, LevelBetter},
		{"100 Mbit/s, slower cores", 12.5e6, 2 * time.Millisecond, LevelDefault},
		{"100 Mbit/s, slow cores", 12.5e6, 4 * time.Millisecond, LevelFastest},
		{"10 Gbit/s", 1.25e9, 2 * time.Millisecond, LevelS2},
	} {
		t.Run(c.name, func(t *testing.T) {
			clock := time.Unix(0, 0)
			ctl := NewController(LevelS2, LevelBest, 1, func() time.Time { return clock })
			if got := settle(ctl, &clock, c.rate, c.fastest, 2000); got != c.want {
				t.Errorf("level %v, want %v", got, c.want)
			}
			// A link that becomes slow, or fast, is noticed.
			if got := settle(ctl, &clock, 1e6, c.fastest, 3000); got != LevelBest {
				t.Errorf("level %v on a slow link", got)
			}
			if got := settle(ctl, &clock, 1e10, c.fastest, 3000); got != LevelS2 {
				t.Errorf("level %v on a fast link", got)
			}
		})
	}
}

// TestControllerSparesAnIdleLink: when pages come too slowly to fill the link,
// because nearly all are known, the harder levels are left again.
func TestControllerSparesAnIdleLink(t *testing.T) {
	clock := time.Unix(0, 0)
	ctl := NewController(LevelS2, LevelBest, 1, func() time.Time { return clock })
	if got := settle(ctl, &clock, 1e6, time.Millisecond, 1000); got != LevelBest {
		t.Fatalf("level %v on a slow link", got)
	}
	for range 200 {
		clock = clock.Add(20 * time.Millisecond)
		ctl.Compressed(4 * time.Millisecond)
		ctl.Sent(0)
	}
	if got := ctl.Level(); got != LevelDefault {
		t.Errorf("level %v while the hypervisor is what everything waits for", got)
	}
}

func TestControllerKeepsToItsLimits(t *testing.T) {
	clock := time.Unix(0, 0)
	ctl := NewController(LevelFastest, LevelDefault, 1, func() time.Time { return clock })
	if got := settle(ctl, &clock, 1e6, time.Millisecond, 1000); got != LevelDefault {
		t.Errorf("level %v", got)
	}
	if got := settle(ctl, &clock, 1e10, time.Millisecond, 1000); got != LevelFastest {
		t.Errorf("level %v", got)
	}
}
