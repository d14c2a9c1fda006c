package reduce

import (
	"sync"
	"time"
)

// How a Controller judges.
const (
	// judgeEvery is how long it looks before it decides: long beside a batch (10 to 30 ms),
	// short beside a move.
	judgeEvery = 250 * time.Millisecond
	// judgeBatches is how many batches it wants to have seen.
	judgeBatches = 4
	// upBlocked: a harder level is tried when the link holds the sender up for more than this share of the time.
	upBlocked = 0.3
	// upBusy: and when the compressor would then be busy for less than this share.
	upBusy = 0.8
	// downBusy and downBlocked: an easier level is taken when the compressor is busy for more than downBusy of the
	// time, while the link holds up the sender for less than downBlocked.
	downBusy    = 0.85
	downBlocked = 0.25
	// idleBlocked: below it the link is not what anything waits for.
	idleBlocked = 0.1
	// downJudgements in a row have to say so.
	downJudgements = 3
	// firstPause and longestPause are how many judgements pass after a step down before the harder level is tried again; it doubles
	// each time, because every change costs the compressor its window.
	firstPause   = 4
	longestPause = 64
)

// levelCost is the time that levels take for the same content, relative to each other; measured on
// memory pages. Only the ratio of neighbours matters.
var levelCost = [levels]float64{
	LevelStored: 0.05, LevelS2: 0.4, LevelFastest: 1, LevelDefault: 1.3, LevelBetter: 2.6, LevelBest: 11,
}

// Controller chooses the level from what the link takes and what the cores give: when
// the link is what everything waits for, it goes up, when the compressor is, down. It is safe for concurrent
// use.
type Controller struct {
	now   func() time.Time
	lanes float64

	mu       sync.Mutex
	level    Level
	lowest   Level
	highest  Level
	since    time.Time
	busy     time.Duration
	blocked  time.Duration
	batches  int
	pause    int // judgements left before going up
	short    int // judgements in a row that the compressor was too slow
	nextRest int
}

// NewController returns a controller that starts with LevelDefault and stays
// between lowest and highest. lanes is how many compressors work at a time; now tells the time.
func NewController(lowest, highest Level, lanes int, now func() time.Time) *Controller {
	return &Controller{
		now: now, lanes: float64(max(1, lanes)), level: min(max(LevelDefault, lowest), highest),
		lowest: lowest, highest: highest, since: now(), nextRest: firstPause,
	}
}

// Level returns the level for the next batch.
func (c *Controller) Level() Level {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.level
}

// Compressed notes that a batch was compressed and how long that took.
func (c *Controller) Compressed(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.busy += d
	c.batches++
	c.judge()
}

// Sent notes how long the channel took to accept a batch.
func (c *Controller) Sent(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.blocked += d
	c.judge()
}

// judge changes the level if there is reason to. mu is held.
func (c *Controller) judge() {
	now := c.now()
	passed := now.Sub(c.since)
	if passed < judgeEvery || c.batches < judgeBatches {
		return
	}
	busy := c.busy.Seconds() / passed.Seconds() / c.lanes
	blocked := c.blocked.Seconds() / passed.Seconds()
	c.since, c.busy, c.blocked, c.batches = now, 0, 0, 0
	if c.pause > 0 {
		c.pause--
	}
	if !(busy > downBusy && blocked < downBlocked) {
		c.short = 0
	}
	switch {
	case busy > downBusy && blocked < downBlocked && c.level > c.lowest:
		// The link takes bursts, at its start above all, that it does not keep up.
		if c.short++; c.short < downJudgements {
			return
		}
		c.level--
		c.pause = c.nextRest
		c.nextRest = min(2*c.nextRest, longestPause)
	case blocked < idleBlocked && c.level > LevelDefault:
		// Neither link nor compressor holds anything up, but the hypervisor: a
		// harder level only takes processor time from it and its guest.
		c.level--
	case blocked > upBlocked && c.level < c.highest && c.pause == 0 &&
		busy*levelCost[c.level+1]/levelCost[c.level] < upBusy:
		c.level++
	}
}
