package probe

import (
	"math"
	"slices"
	"time"
)

const (
	// maxGaps, maxLosses and maxBoots bound the lists of a Result.
	maxGaps   = 10
	maxLosses = 100
	maxBoots  = 16
)

// Result is what the clients saw. Durations are in milliseconds.
type Result struct {
	Target string `json:"target,omitempty"`
	Kind   Kind   `json:"kind,omitempty"`
	URL    string `json:"url,omitempty"`

	Started time.Time `json:"started"`
	Ended   time.Time `json:"ended"`

	// OutageMS is the longest time between two consecutive replies that a
	// TCP client saw; see the package comment for its exact meaning.
	OutageMS float64 `json:"outage_ms"`
	// OutageHTTPMS is the longest time between two successful responses.
	OutageHTTPMS float64 `json:"outage_http_ms"`
	// RTT is the time from a beat to its reply, before and after each
	// client's longest gap. Beats sent during that gap are in neither.
	RTT RTT `json:"rtt_ms"`
	// ProberStallMS is how late the prober itself was at worst in sending a
	// beat.
	ProberStallMS float64 `json:"prober_stall_ms"`

	// Sessions is the number of TCP clients. SessionsLost counts the
	// sessions that were reset, closed, silent for longer than the limit, or
	// could not prove their state: it may exceed Sessions, since a client
	// connects again.
	Sessions     int `json:"sessions"`
	SessionsLost int `json:"sessions_lost"`
	// Lost lists the first losses.
	Lost []Loss `json:"lost"`
	// Boots lists the boots of the lab guest that replied: more than one
	// means that it was restarted, or that two were running.
	Boots []string `json:"boots"`

	// BeatsSent and BeatsAnswered count the beats of all sessions;
	// BeatsSkipped are those that were due while too many were unanswered.
	BeatsSent     int64 `json:"beats_sent"`
	BeatsAnswered int64 `json:"beats_answered"`
	BeatsSkipped  int64 `json:"beats_skipped"`

	HTTPOK     int64 `json:"http_ok"`
	HTTPFailed int64 `json:"http_failed"`

	// Gaps lists the longest gaps, longest first, TCP and HTTP together.
	Gaps []Gap `json:"gaps"`
}

// RTT is latency before and after the longest gap.
type RTT struct {
	Before Latency `json:"before"`
	After  Latency `json:"after"`
}

// Latency sums up round-trip times in milliseconds; the percentiles are exact
// to 2 %. All are 0 when nothing was measured.
type Latency struct {
	P50 float64 `json:"p50"`
	P90 float64 `json:"p90"`
	Max float64 `json:"max"`
}

// Gap is a time without a reply.
type Gap struct {
	// Client is the number of the TCP client from 0, or -1 for HTTP.
	Client int       `json:"client"`
	From   time.Time `json:"from"`
	MS     float64   `json:"ms"`
}

// Loss is a lost session.
type Loss struct {
	Client int       `json:"client"`
	At     time.Time `json:"at"`
	Reason string    `json:"reason"`
}

// gaps keeps the longest gaps of one client.
type gaps struct {
	client int
	list   []Gap // longest first
}

func (g *gaps) add(from, to time.Time) {
	gap := Gap{Client: g.client, From: from, MS: ms(to.Sub(from))}
	if len(g.list) == maxGaps && gap.MS <= g.list[maxGaps-1].MS {
		return
	}
	g.list = longest(append(g.list, gap))
}

// with returns the list with one more gap and leaves g as it is.
func (g *gaps) with(from, to time.Time) []Gap {
	c := gaps{client: g.client, list: slices.Clone(g.list)}
	c.add(from, to)
	return c.list
}

func longest(list []Gap) []Gap {
	slices.SortStableFunc(list, func(a, b Gap) int {
		switch {
		case a.MS > b.MS:
			return -1
		case a.MS < b.MS:
			return 1
		default:
			return 0
		}
	})
	return list[:min(len(list), maxGaps)]
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// histogram counts durations in buckets whose bounds grow by 2 %, from a
// microsecond up to over an hour, so that its size does not depend on how
// long is measured. The zero value is empty.
type histogram struct {
	counts [buckets]int64
	total  int64
	max    time.Duration
}

const (
	buckets = 1152
	growth  = 1.02
)

var logGrowth = math.Log(growth)

func (h *histogram) add(d time.Duration) {
	i := 0
	if d > time.Microsecond {
		i = min(buckets-1, int(math.Log(float64(d)/float64(time.Microsecond))/logGrowth)+1)
	}
	h.counts[i]++
	h.total++
	h.max = max(h.max, d)
}

func (h *histogram) merge(o *histogram) {
	for i, n := range o.counts {
		h.counts[i] += n
	}
	h.total += o.total
	h.max = max(h.max, o.max)
}

func (h *histogram) latency() Latency {
	return Latency{P50: h.percentile(0.5), P90: h.percentile(0.9), Max: ms(h.max)}
}

// percentile returns the upper bound of the bucket that holds the q-th part
// of all durations, in milliseconds.
func (h *histogram) percentile(q float64) float64 {
	want, seen := int64(math.Ceil(q*float64(h.total))), int64(0)
	for i, n := range h.counts {
		if seen += n; n > 0 && seen >= want {
			bound := time.Duration(float64(time.Microsecond) * math.Pow(growth, float64(i)))
			return ms(min(bound, h.max))
		}
	}
	return 0
}
