package forecast

import (
	"math"
	"slices"

	"github.com/drover-vm/drover"
)

const (
	// busyShare of a move's time is what the link alone may have taken for it to tell how
	// fast its host is.
	busyShare = 0.95
	// taughtMoves are the newest moves that tell of a host, packedMoves of a VM: what
	// a host has besides, and what a guest holds, changes.
	taughtMoves = 4
	packedMoves = 4
	// leastTold is how many bytes a move must have sent to tell.
	leastTold = 32 << 20
	// packedTold, likewise, of pages that a compressor saw.
	packedTold = 1 << 20
	// mostFactor is by what samples can be off, either way; what is more is no sample
	// of that guest.
	mostFactor = 4
	// diskTold, likewise, of disks.
	diskTold = 1 << 20
	// mostOfDisks is what may cross of a byte of disks: what is written meanwhile, too.
	mostOfDisks = 1.25
	// allMoves are the newest moves of an installation that tell of all of it, and
	// priorMoves how many moves the built-in figure counts for beside them, or a new
	// sample beside what was seen of a VM.
	allMoves   = 6
	priorMoves = 2
)

// What a forecast was made with, beside the figures in its Points: later ones learn
// from how it came true.
const (
	pointLink   = "link_bps"
	pointRTT    = "rtt_s"
	pointPacked = "packed_share"
	pointDisk   = "disk_bytes"
)

var madeWith = [...]string{pointLink, pointRTT, pointPacked, pointDisk}

// taught is what moves that were made have shown of the parts of a move, where the
// models are told too little: how fast hosts encode, what a move takes besides its
// bytes, by how much samples of a guest's pages flatter or slander the compressor.
type taught struct {
	speed map[string]float64 // bytes of memory that is not zero, per second, by host
	// speedAll is that of all hosts together; zero is not known.
	speedAll float64
	rest     rests
	// ending is what comes after the last byte, pausing what of that the guest stands
	// still, besides bytes and round trips, in seconds, the newest first.
	ending, pausing []float64
	// packed is what a compressor left of a VM's pages, by its UUID; packedAll the
	// factor between that and what samples had said, of all VMs.
	packed    map[string][]packing
	packedAll float64
	// cameFrom is where a VM was before, by its UUID: there its disks are known as
	// they were; been are all places that it ever was at. kept, stale and fresh are what
	// crossed of disks that came to the one, to others of these, and to no such place,
	// wire bytes by bytes that had to be copied.
	cameFrom           map[string]string
	been               map[[2]string]bool
	kept, stale, fresh []float64
}

// packing is what a compressor left of a VM's pages in a move, and what samples had said
// before it.
type packing struct{ left, sampled float64 }

// rest is what a move took besides its bytes and the round trips of its link, in
// seconds. The server that leads it talks to both ends, so it depends on where they
// are.
type rest struct {
	from, to string
	seconds  float64
}

// rests are those of moves, the newest first, and what of them lies with each site.
type rests struct {
	all  []rest
	site map[string]float64
}

const (
	// restMoves are as many as tell of sites, restTurns how often sites and what they
	// have in common are weighed against each other: they settle within a few.
	restMoves, restTurns = 60, 12
	// restPrior is how many moves the guess that a site is like all others counts for.
	restPrior = 1.0
	// restUsual is how many times the median of what moves are off the base is usual.
	restUsual = 3.0
)

// learn finds what lies with each site: the means of what is left when the other end's
// part and the common one are taken away, drawn to none.
func (r *rests) learn() {
	r.site = map[string]float64{}
	for range restTurns {
		base := r.base(len(r.all))
		usual := r.usual(base)
		sum, n := map[string]float64{}, map[string]float64{}
		for _, m := range r.all {
			off := min(max(m.seconds-base, -usual), usual)
			sum[m.from], n[m.from] = sum[m.from]+off-r.site[m.to], n[m.from]+1
			sum[m.to], n[m.to] = sum[m.to]+off-r.site[m.from], n[m.to]+1
		}
		next := map[string]float64{}
		for site := range n {
			// Half of the way: the two ends of a move would answer each other's errors.
			next[site] = (r.site[site] + sum[site]/(n[site]+restPrior)) / 2
		}
		r.site = next
	}
}

// usual is by how much moves may be off the base to count in full: what took a move much
// longer is no site's.
func (r rests) usual(base float64) float64 {
	offs := make([]float64, len(r.all))
	for i, m := range r.all {
		offs[i] = math.Abs(m.seconds - base)
	}
	return restUsual * median(offs)
}

// base is what the newest n moves have in common, in the middle.
func (r rests) base(n int) float64 {
	var vs []float64
	for _, m := range r.all[:min(n, len(r.all))] {
		vs = append(vs, m.seconds-r.site[m.from]-r.site[m.to])
	}
	return median(vs)
}

// fixed is what is expected of a move between two sites besides its bytes; usual is
// what the models say.
func (t taught) fixed(from, to string, usual float64) float64 {
	n := float64(min(len(t.rest.all), allMoves))
	common := (n*t.rest.base(allMoves) + priorMoves*usual) / (n + priorMoves)
	return sane(common + t.rest.site[from] + t.rest.site[to])
}

// told are a move's measurements that teach, as the move tells them.
type told struct {
	drover.Move
	path   drover.PathFigures
	points map[string]float64
}

func teach(history []drover.Move) taught {
	t := taught{speed: map[string]float64{}, packed: map[string][]packing{}, packedAll: 1}
	speeds := map[string][]float64{}
	var all, fast []float64
	for _, h := range slices.Backward(history) {
		if h.State != drover.MoveDone || h.Measured.Path == nil || !staysUp(h.Method) {
			continue
		}
		m := told{h, *h.Measured.Path, nil}
		if h.Forecast != nil {
			m.points = h.Forecast.Points
		}
		if v, ok := m.encoded(); ok && len(fast) < allMoves {
			fast = append(fast, v)
			if len(speeds[h.From.Host]) < taughtMoves {
				speeds[h.From.Host] = append(speeds[h.From.Host], v)
			}
		}
		if v, ok := m.besides(); ok && len(t.rest.all) < restMoves {
			t.rest.all = append(t.rest.all, rest{h.From.Site, h.To.Site, v})
		}
		if ending, pausing, ok := m.ends(); ok && len(t.ending) < allMoves {
			t.ending, t.pausing = append(t.ending, ending), append(t.pausing, pausing)
		}
		if v, expected, ok := m.packed(); ok {
			if expected > 0 && len(all) < allMoves {
				all = append(all, min(max(v/expected, 1/mostFactor), mostFactor))
			}
			if len(t.packed[h.VMUUID]) < packedMoves {
				t.packed[h.VMUUID] = append(t.packed[h.VMUUID], packing{v, expected})
			}
		}
	}
	t.disks(history)
	t.rest.learn()
	t.speedAll = sane(median(slices.Clone(fast)))
	for host, vs := range speeds {
		t.speed[host] = math.Exp(drawn(logs(vs), math.Log(max(t.speedAll, 1)), priorMoves))
	}
	if len(all) > 0 {
		t.packedAll = math.Exp(drawn(logs(all), 0, priorMoves))
	}
	return t
}

// disks follows VMs from place to place.
func (t *taught) disks(history []drover.Move) {
	t.cameFrom, t.been = map[string]string{}, map[[2]string]bool{}
	for _, h := range history {
		if h.State != drover.MoveDone || h.Method.Makes() {
			continue
		}
		if left, ok := leftOfDisks(h); ok {
			told := t.ofDisks(h.VMUUID, h.To.Site)
			*told = append(*told, left)
		}
		t.cameFrom[h.VMUUID] = h.From.Site
		t.been[[2]string{h.VMUUID, h.From.Site}] = true
	}
	for _, told := range []*[]float64{&t.kept, &t.stale, &t.fresh} {
		*told = (*told)[max(0, len(*told)-allMoves):]
	}
}

// ofDisks is what moves have shown of disks that come to a site as a VM's would.
func (t *taught) ofDisks(uuid, site string) *[]float64 {
	switch {
	case t.cameFrom[uuid] == site:
		return &t.kept
	case t.been[[2]string{uuid, site}]:
		return &t.stale
	}
	return &t.fresh
}

// leftOfDisks is what crossed of a byte of disks that had to be copied. What the guest
// wrote meanwhile is no part of that, where the forecast tells how much it was.
func leftOfDisks(m drover.Move) (float64, bool) {
	p := m.Measured.Path
	if p == nil || !staysUp(m.Method) || p.Disk.GuestBytes < diskTold {
		return 0, false
	}
	copied := float64(p.Disk.GuestBytes)
	if m.Forecast != nil && m.Forecast.Points[pointDisk] >= diskTold/2 {
		copied = m.Forecast.Points[pointDisk]
	}
	return min(mostOfDisks, sane(float64(p.Disk.WireBytes)/copied)), true
}

// drawn is the median of values, drawn to a prior that counts as n of them.
func drawn(vs []float64, prior float64, n int) float64 {
	k := float64(len(vs))
	return (k*median(vs) + float64(n)*prior) / (k + float64(n))
}

func logs(vs []float64) []float64 {
	out := make([]float64, len(vs))
	for i, v := range vs {
		out[i] = math.Log(max(v, 1e-3))
	}
	return out
}

// encoded is how fast the source makes memory ready, in bytes that are not zero per
// second, those that are sent counted as often as they cost: what is left when the
// link's part of what held the move back is taken away.
func (m told) encoded() (float64, bool) {
	p := m.path.Memory
	bytes := float64(p.GuestBytes-p.Kinds.Zero.GuestBytes) + sendCost*float64(p.Kinds.Compressed.WireBytes+p.Kinds.Raw.WireBytes)
	link := float64(m.Bandwidth)
	if l := m.points[pointLink]; l > 0 && (link == 0 || l < link) {
		link = l
	}
	if link <= 0 || bytes < leastTold || p.Seconds <= 0 || p.CutSeconds > 0 {
		return 0, false
	}
	crossing := 8 * float64(p.WireBytes) / carried(link, m.points[pointRTT])
	if !(crossing <= busyShare*p.Seconds) {
		return 0, false
	}
	return sane(bytes / math.Cbrt(math.Pow(p.Seconds, 3)-math.Pow(crossing, 3))), true
}

// besides is what the move took besides its bytes and its round trips, in seconds.
func (m told) besides() (float64, bool) {
	rtt, known := m.points[pointRTT]
	total, p := m.Measured.TotalSeconds, m.path
	if !known || total == nil || !finite(*total) || p.Total().CutSeconds > 0 {
		return 0, false
	}
	rest := *total - p.Disk.Seconds - p.Memory.Seconds - p.Switchover.Seconds - liveTrips*sane(rtt)
	return sane(rest), true
}

// ends is what came after the last byte, and what of that the guest stood still, besides
// bytes and round trips, in seconds.
func (m told) ends() (ending, pausing float64, ok bool) {
	link, rtt := m.points[pointLink], sane(m.points[pointRTT])
	last, pause := m.path.Switchover, m.Measured.PauseMillis
	if !(link > 0) || pause == nil || !finite(*pause) || last.Seconds <= 0 || m.path.Total().CutSeconds > 0 {
		return 0, 0, false
	}
	known := 8*float64(last.WireBytes)/carried(link, rtt) + finishTrips*rtt
	return sane(last.Seconds - known), sane(*pause/1e3 - known), true
}

// packed is what a compressor left of pages, and what samples had said of that;
// zero is nothing.
func (m told) packed() (left, expected float64, ok bool) {
	k := m.path.Memory.Plus(m.path.Switchover).Kinds
	guest := float64(k.Compressed.GuestBytes + k.Raw.GuestBytes)
	if guest < packedTold {
		return 0, 0, false
	}
	return min(1, max(sane(float64(k.Compressed.WireBytes+k.Raw.WireBytes)/guest), leastShare)), share(m.points[pointPacked]), true
}
