package forecast

import (
	"fmt"
	"math"
	"time"

	"github.com/drover-vm/drover"
)

const (
	// mostFaster bounds how much faster a link is thought of, mostPatient how long
	// a pause: beyond, the remedy is none.
	mostFaster  = 1000.0
	mostPatient = 30.0
	// bisections make a remedy's figure as exact as it can be believed.
	bisections = 14
	// remedyMargin is on top of what just does: the forecast is one, too.
	remedyMargin = 1.1
)

// remedies are what would make the rounds end by themselves, the mildest first.
func remedies(f *facts) []drover.Remedy {
	var out []drover.Remedy
	if r, ok := quietHour(f); ok {
		out = append(out, r)
	}
	if r, ok := moreBandwidth(f); ok {
		out = append(out, r)
	}
	if r, ok := longerPause(f); ok {
		out = append(out, r)
	}
	if r, ok := throttled(f); ok {
		out = append(out, r)
	}
	return append(out, postCopy(f))
}

// at reports whether the rounds end on a link of that rate.
func (f *facts) at(bps float64) bool {
	g := *f
	g.link.value = max(bps, 8)
	return newLive(&g, 1, 1).rounds.alone()
}

// lowest is the least value between low and high, in a logarithmic search, at
// which does holds; it holds at high.
func lowest(low, high float64, does func(float64) bool) float64 {
	for range bisections {
		mid := math.Sqrt(low * high)
		if does(mid) {
			high = mid
		} else {
			low = mid
		}
	}
	return high
}

func moreBandwidth(f *facts) (drover.Remedy, bool) {
	now := f.link.value
	if !f.at(now*mostFaster) || f.at(now) {
		return drover.Remedy{}, false // the hosts are what is too slow
	}
	more := (lowest(now, now*mostFaster, f.at)*remedyMargin - now) / linkFill
	if cap := f.in.Link.CapacityBPS; cap.Known() && now/linkFill+more > 1.01*cap.Value && f.in.Terms.Bandwidth == 0 && !f.in.Link.FreeBPS.Known() {
		// It has the whole link already: this is to be bought, not allotted.
		return drover.Remedy{
			Kind: drover.RemedyBandwidth, Rate: rate(more), Hour: -1,
			Detail: fmt.Sprintf("a link with %s more would carry it", rate(more)),
		}, true
	}
	return drover.Remedy{
		Kind: drover.RemedyBandwidth, Rate: rate(more), Hour: -1,
		Detail: fmt.Sprintf("at %s more it would converge", rate(more)),
	}, true
}

// rate is in steps that a person would say.
func rate(bps float64) drover.BitRate {
	bps = sane(bps)
	if bps <= 0 {
		return 0
	}
	step := math.Pow(10, math.Floor(math.Log10(bps))-1)
	return drover.BitRate(min(math.Ceil(bps/step)*step, 1e15))
}

func longerPause(f *facts) (drover.Remedy, bool) {
	does := func(limit float64) bool {
		l := newLive(f, 1, 1)
		l.rounds.limit, l.rounds.most = limit, limit
		return l.rounds.alone()
	}
	_, now := pauses(f)
	if now >= mostPatient || !does(mostPatient) {
		return drover.Remedy{}, false
	}
	limit := lowest(min(now, mostPatient), mostPatient, does) * remedyMargin
	ms := math.Ceil((limit+roundTripsOfPause*f.rtt.value)*10) * 100
	return drover.Remedy{
		Kind: drover.RemedyPause, PauseMillis: ms, Hour: -1,
		Detail: fmt.Sprintf("a pause of %.1f s would be enough for what is left", ms/1e3),
	}, true
}

func throttled(f *facts) (drover.Remedy, bool) {
	for held := throttleFirst; held <= throttleMost-9; held += throttleMore {
		if newLive(f, 1, 1-float64(held)/100).rounds.alone() {
			return drover.Remedy{
				Kind: drover.RemedyThrottle, ThrottlePercent: held, Hour: -1,
				Detail: fmt.Sprintf("holding the guest's processors back by %d %% would do", held),
			}, true
		}
	}
	return drover.Remedy{}, false
}

// postCopy always ends; its price is a round trip for each page that the guest
// wants and that has not come yet.
func postCopy(f *facts) drover.Remedy {
	return drover.Remedy{
		Kind: drover.RemedyPostCopy, Hour: -1,
		Detail: fmt.Sprintf("a post-copy tail always ends, but each page that the guest misses then costs it %.0f ms, and a cut of the link stops it",
			math.Ceil(f.rtt.value*1e3)),
	}
}

// quietHour is the next hour in which the link leaves enough.
func quietHour(f *facts) (drover.Remedy, bool) {
	now := drover.HourOfWeek(f.in.Now)
	best, wait := drover.LinkHour{}, drover.HoursOfWeek+1
	for _, h := range f.in.Link.Week {
		if h.Samples <= 0 || h.Hour < 0 || h.Hour >= drover.HoursOfWeek {
			continue
		}
		in := (h.Hour - now + drover.HoursOfWeek) % drover.HoursOfWeek
		free := sane(h.FreeBPS) * linkFill
		if in == 0 || in >= wait || free <= f.link.value || f.in.Terms.Bandwidth > 0 || !f.at(free) {
			continue
		}
		best, wait = h, in
	}
	if wait > drover.HoursOfWeek {
		return drover.Remedy{}, false
	}
	at := f.in.Now.UTC().Truncate(time.Hour).Add(time.Duration(wait) * time.Hour)
	return drover.Remedy{
		Kind: drover.RemedyQuietHour, Hour: best.Hour,
		Detail: fmt.Sprintf("from %s UTC on the link usually has %s free, and that is enough", at.Format("Monday 15:04"), rate(best.FreeBPS)),
	}, true
}
