package agent

import (
	"cmp"
	"time"
)

// SignalsConfig is how guests' memory is looked at from outside.
type SignalsConfig struct {
	// Off leaves guests' memory alone: forecasts go by counters and by what moves
	// have shown.
	Off bool `yaml:"off,omitempty"`
	// Survey is how often one guest's memory is looked at, at most; zero takes two
	// minutes.
	Survey Duration `yaml:"survey,omitempty"`
	// Share is which part of one processor looking at all guests of a host may
	// take, above zero and up to 1; zero takes a hundredth.
	Share float64 `yaml:"share,omitempty"`
}

// Bounds of how guests are looked at: a survey takes eleven seconds, most of which
// it waits; one that is older than a day says nothing of now.
const (
	leastSurvey = time.Second
	mostSurvey  = 24 * time.Hour
	leastShare  = 1e-5
)

func (c SignalsConfig) validate(fault func(field, format string, args ...any)) {
	if d := time.Duration(c.Survey); d != 0 && (d < leastSurvey || d > mostSurvey) {
		fault("signals.survey", "%s: want %s to %s", d, leastSurvey, mostSurvey)
	}
	if s := c.Share; s != 0 && !(s >= leastShare && s <= 1) { // also refuses what is no number
		fault("signals.share", "%v: want a part of one processor from %v to 1, such as 0.01", s, leastShare)
	}
}

// pace is the usual one, with what the file says.
func (c SignalsConfig) pace() pace {
	p := usualPace
	p.Survey = cmp.Or(time.Duration(c.Survey), p.Survey)
	p.Share = cmp.Or(c.Share, p.Share)
	return p
}
