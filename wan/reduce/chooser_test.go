package reduce

import (
	"testing"
	"time"
)

// TestChooser: against compressors and links of known speed, the level with which the most crosses.
func TestChooser(t *testing.T) {
	for _, c := range []struct {
		name  string
		link  float64 // bytes/s
		speed float64 // bytes/s of one lane at LevelFastest
		lanes int
		want  Level
	}{
		{"a slow link", 1.25e6, 150e6, 1, LevelBest},
		{"100 Mbit/s, two quick lanes", 12.5e6, 150e6, 2, LevelBetter},
		{"100 Mbit/s, two slow lanes", 12.5e6, 50e6, 2, LevelDefault},
		{"100 Mbit/s, one very slow lane", 12.5e6, 20e6, 1, LevelS2},
		{"10 Gbit/s", 1.25e9, 150e6, 2, LevelStored},
	} {
		t.Run(c.name, func(t *testing.T) {
			clock := time.Unix(0, 0)
			ctl := NewChooser(LevelStored, LevelBest, c.lanes, func() time.Time { return clock })
			run := func(link float64) Level {
				for end := clock.Add(10 * time.Second); clock.Before(end); {
					l := ctl.Level()
					const raw = 256 << 10
					d := time.Duration(raw * levelCost[l] / c.speed * float64(time.Second))
					clock = clock.Add(d / time.Duration(c.lanes))
					ctl.Link(link, 0)
					ctl.Compressed(l, raw, int(raw*0.25*levelSize[l]), d)
				}
				return ctl.Level()
			}
			if got := run(c.link); got != c.want {
				t.Errorf("level %v, want %v", got, c.want)
			}
			if got := run(5e5); got < LevelBetter {
				t.Errorf("level %v when the link has become slow", got)
			}
			if got := run(1e10); got != LevelStored {
				t.Errorf("level %v when the link has become fast", got)
			}
		})
	}
}

// TestChooserKeepsToItsLimits: and to the level it began with while nothing is known of the link.
func TestChooserKeepsToItsLimits(t *testing.T) {
	clock := time.Unix(0, 0)
	ctl := NewChooser(LevelFastest, LevelDefault, 1, func() time.Time { return clock })
	step := func() {
		for range 20 {
			clock = clock.Add(100 * time.Millisecond)
			ctl.Compressed(ctl.Level(), 1<<20, 1<<18, 10*time.Millisecond)
		}
	}
	if step(); ctl.Level() != LevelDefault {
		t.Errorf("level %v without a word of the link", ctl.Level())
	}
	ctl.Link(1e12, 0)
	if step(); ctl.Level() != LevelFastest {
		t.Errorf("level %v on a link without bounds", ctl.Level())
	}
	for range 60 {
		ctl.Link(1, 0)
	}
	if step(); ctl.Level() != LevelDefault {
		t.Errorf("level %v on a link that takes nothing", ctl.Level())
	}
}

// TestChooserGoesByTheStock: a full store ahead of the link lets slow compressors try a harder level, and none
// takes an easier one before the store runs empty.
func TestChooserGoesByTheStock(t *testing.T) {
	clock := time.Unix(0, 0)
	ctl := NewChooser(LevelS2, LevelBetter, 2, func() time.Time { return clock })
	// Two lanes that make 50 MB/s each at LevelFastest, and a link that takes 12.5 MB/s of what they make.
	run := func(speed, stock float64) Level {
		for end := clock.Add(5 * time.Second); clock.Before(end); {
			l := ctl.Level()
			const raw = 256 << 10
			d := time.Duration(raw * levelCost[l] / speed * float64(time.Second))
			clock = clock.Add(d / 2)
			ctl.Link(12.5e6, stock)
			ctl.Compressed(l, raw, int(raw*0.3*levelSize[l]), d)
		}
		return ctl.Level()
	}
	if got := run(62e6, 0.1); got != LevelDefault {
		t.Errorf("level %v with a store that is nearly empty", got)
	}
	if got := run(62e6, 0.8); got != LevelBetter {
		t.Errorf("level %v with a store that is full", got)
	}
	if got := run(20e6, 0.4); got != LevelBetter {
		t.Errorf("level %v from slow compressors while the link does not wait", got)
	}
	if got := run(20e6, 0.1); got >= LevelDefault {
		t.Errorf("level %v from slow compressors while the link waits", got)
	}
}
