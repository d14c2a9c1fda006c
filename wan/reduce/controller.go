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
	// fullStore and emptyStore are how full a store between compressor and link has been for the whole time when
	// the link, or the compressor, is what everything waits for; storeBusy is how busy the compressor then is.
	fullStore  = 0.6
	emptyStore = 0.1
	storeBusy  = 0.6
	// storeJudgements in a row have to say that it is the compressor.
	storeJudgements = 2
	// restBusy is how busy the compressor may be at a harder level up to LevelDefault for it to be taken without need.
	restBusy = 0.3
	// downJudgements in a row have to say so, if there is no store to tell.
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
	stored   bool    // a store tells how full it is
	least    float64 // how full it was since
	most     float64
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

// Stored notes how full the store between compressor and link is, 0 to 1. With it, bursts of content in a guest's
// memory do not look like a slow compressor, nor stretches without any like a fast one.
func (c *Controller) Stored(share float64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.stored {
		c.stored, c.least, c.most = true, share, share
	}
	c.least, c.most = min(c.least, share), max(c.most, share)
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
	stored, least, most := c.stored, c.least, c.most
	c.since, c.busy, c.blocked, c.batches, c.stored = now, 0, 0, 0, false
	if c.pause > 0 {
		c.pause--
	}
	if !(busy > downBusy && blocked < downBlocked) && !(stored && most < emptyStore && busy > storeBusy && blocked < idleBlocked) {
		c.short = 0
	}
	up := blocked > upBlocked && c.level < c.highest && c.pause == 0 && busy*levelCost[min(c.level+1, c.highest)]/levelCost[c.level] < upBusy
	switch {
	case stored && most < emptyStore && busy > storeBusy && blocked < idleBlocked && c.level > c.lowest:
		if c.short++; c.short < storeJudgements {
			return
		}
		c.short = 0
		c.level--
		c.pause = c.nextRest
		c.nextRest = min(2*c.nextRest, longestPause)
	case c.level < LevelDefault && c.pause == 0 && busy*levelCost[c.level+1]/levelCost[c.level] < restBusy:
		// The compressor has little to do: it need not hurry.
		c.level++
	case stored && up && least < fullStore:
		// What waits may be the next stretch of references' to bridge.
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
	case up:
		c.level++
	}
}
