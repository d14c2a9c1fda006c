package reduce

import (
	"sync"
	"time"
)

const (
	// chooseEvery is how often a Chooser decides, each change costs the compressors their windows.
	chooseEvery = 500 * time.Millisecond
	// chooseBytes is how much has to have been compressed since.
	chooseBytes = 1 << 20
	// hardShare is what part of the lanes' time levels above LevelDefault may take, easyShare the others: bytes are
	// not worth the processors that the guest runs on, but a link that waits is.
	hardShare, easyShare = 0.6, 0.9
	// fullStock is how full the store ahead of the link has to be for a harder level to be tried with easyShare as well: what
	// waits there bridges the time until it has shown to be too hard. Above emptyStock no easier
	// level is taken, because the link does not wait for the compressors.
	fullStock, emptyStock = 0.5, 0.25
	// gain is how much faster another level has to be, slack how much slower a harder one may be.
	gain, slack = 1.1, 0.95
	// smooth is the weight of what was measured last.
	smooth = 0.5
	// keepLevel is how long a level is kept at least, because what fills a window of 8 MiB takes a second or two to pay, unless
	// the link has been waiting in each of starved decisions.
	keepLevel = 3 * time.Second
	starved   = 2
)

// levelSize is what levels make of the same content, relative to LevelDefault; measured on memory pages.
var levelSize = [levels]float64{
	LevelStored: 4, LevelS2: 1.54, LevelFastest: 1.08, LevelDefault: 1, LevelBetter: 0.96, LevelBest: 0.92,
}

// Chooser chooses the level with which the most memory crosses, from how fast the compressors are, how well the
// content compresses, and what the link takes: the slower of compressors and link counts. It is safe for
// concurrent use.
type Chooser struct {
	now             func() time.Time
	lanes           float64
	lowest, highest Level

	mu     sync.Mutex
	level  Level
	since  time.Time
	raw    float64 // compressed since, in bytes …
	work   float64 // … times the level's cost …
	packed float64 // … and what became of them, as LevelDefault would have made it
	busy   time.Duration
	speed  float64   // bytes a second of one lane at a cost of 1
	ratio  float64   // at LevelDefault
	link   float64   // bytes a second; 0 is unknown
	stock  float64   // how full the store ahead of the link is, 0 to 1
	taken  time.Time // when level was
	waits  int       // decisions in a row that found the store empty
}

// NewChooser returns a Chooser that starts with LevelDefault and stays between lowest and highest. lanes is how
// many compressors work at a time; now tells the time.
func NewChooser(lowest, highest Level, lanes int, now func() time.Time) *Chooser {
	return &Chooser{
		now: now, lanes: float64(max(1, lanes)), level: min(max(LevelDefault, lowest), highest),
		lowest: lowest, highest: highest, since: now(),
	}
}

// Level returns the level for the next batch.
func (c *Chooser) Level() Level {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.level
}

// Compressed notes that a lane made packed bytes out of raw ones at the level, and how long that took.
func (c *Chooser) Compressed(level Level, raw, packed int, d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.raw += float64(raw)
	c.work += float64(raw) * levelCost[level]
	c.packed += float64(packed) / levelSize[level]
	c.busy += d
	now := c.now()
	if now.Sub(c.since) < chooseEvery || c.raw < chooseBytes || c.busy <= 0 {
		return
	}
	c.speed = blend(c.speed, c.work/c.busy.Seconds())
	c.ratio = blend(c.ratio, c.packed/c.raw)
	c.since, c.raw, c.work, c.packed, c.busy = now, 0, 0, 0, 0
	c.choose()
}

// Link notes how many bytes a second the link takes, and how full, from 0 to 1, the store of what waits for it is.
func (c *Chooser) Link(bytesPerSecond, stock float64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.link, c.stock = blend(c.link, bytesPerSecond), stock
}

func blend(old, measured float64) float64 {
	if old == 0 {
		return measured
	}
	return old + smooth*(measured-old)
}

// choose takes another level if there is reason to. mu is held.
func (c *Chooser) choose() {
	if c.link == 0 {
		return
	}
	if c.waits++; c.stock > emptyStock {
		c.waits = 0
	}
	if c.waits < starved && c.now().Sub(c.taken) < keepLevel {
		return
	}
	hard := hardShare
	if c.stock >= fullStock {
		hard = easyShare
	}
	best, lowest := c.level, c.lowest
	if c.stock > emptyStock {
		lowest = c.level
	}
	for l := lowest; l <= c.highest; l++ {
		if c.crosses(l, hard) > c.crosses(best, hard)*gain || l > best && c.crosses(l, hard) >= c.crosses(best, hard)*slack {
			best = l
		}
	}
	if best != c.level {
		c.level, c.taken = best, c.now()
	}
}

// crosses is how many bytes of memory a second would cross with a level, those above LevelDefault taking the share hard
// of the lanes' time.
func (c *Chooser) crosses(l Level, hard float64) float64 {
	share := easyShare
	if l > LevelDefault {
		share = hard
	}
	return min(c.lanes*share*c.speed/levelCost[l], c.link/(c.ratio*levelSize[l]))
}
