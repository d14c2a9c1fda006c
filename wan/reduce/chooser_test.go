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
					ctl.Link(link)
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
	ctl.Link(1e12)
	if step(); ctl.Level() != LevelFastest {
		t.Errorf("level %v on a link without bounds", ctl.Level())
	}
	for range 60 {
		ctl.Link(1)
	}
	if step(); ctl.Level() != LevelDefault {
		t.Errorf("level %v on a link that takes nothing", ctl.Level())
	}
}
