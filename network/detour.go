package network

import (
	"cmp"
	"math"
	"slices"
	"time"

	"github.com/drover-vm/drover"
)

// Passing is what the edge of a site says of one of a VM's owners, with what its
// counters have grown by, in bits per second.
type Passing struct {
	Site string
	drover.EdgePassage
	// Rates are zero unless Known: an edge that has just begun, or that has not
	// been heard of for long, does not say.
	InBPS, OutBPS, CrossedBPS float64
	Known                     bool
	// Read is when the counters were read last.
	Read time.Time
}

// Detour judges what the VM pays for where it is. Passings are those of its
// owners, at all edges; trip is the round trip between two edges in milliseconds,
// and whether it is known. What disks left behind cost is not looked at.
//
// A VM whose segments are at home where it is pays nothing, unless old sessions
// still come from elsewhere. One that is elsewhere, with nobody at its home who
// counts, is not known about.
func Detour(vm drover.VM, segments []drover.Segment, passings []Passing, trip func(a, b string) (float64, bool)) drover.Detour {
	d := detour{vm: vm, trip: trip, passings: passings, hairpin: new(float64), neighbors: new(float64), extra: new(float64)}
	for _, n := range vm.NICs {
		seg, known := SegmentOf(segments, n)
		if !known || seg.Home != vm.Site && !d.counted(seg) {
			d.unknown()
		}
	}
	for _, p := range passings {
		if !p.Here && p.Site != vm.Site {
			d.add(p)
		}
	}
	d.out.HairpinBPS, d.out.NeighborsBPS, d.out.ExtraRTT = whole(d.hairpin), whole(d.neighbors), d.extra
	slices.SortStableFunc(d.out.Ways, func(a, b drover.DetourWay) int { return cmp.Compare(a.Site, b.Site) })
	return d.out
}

// detour is one in the making: what is nil is not known.
type detour struct {
	vm                        drover.VM
	passings                  []Passing
	trip                      func(a, b string) (float64, bool)
	hairpin, neighbors, extra *float64
	out                       drover.Detour
}

func (d *detour) unknown() { d.hairpin, d.neighbors, d.extra = nil, nil, nil }

// counted reports whether the segment's home says what passes there.
func (d *detour) counted(seg drover.Segment) bool {
	return !seg.Joined && slices.ContainsFunc(d.passings, func(p Passing) bool {
		return p.Site == seg.Home && !p.Here && p.Method != drover.Renumber
	})
}

// add adds what goes by way of one site.
func (d *detour) add(p Passing) {
	way := drover.DetourWay{Site: p.Site, Method: p.Method}
	if d.out.Metered.IsZero() || p.Read.Before(d.out.Metered) {
		d.out.Metered = p.Read
	}
	if p.Known {
		hairpin := p.InBPS + p.OutBPS
		// Two counters are not read at the same moment.
		neighbors := max(0, p.CrossedBPS-hairpin)
		way.HairpinBPS, way.NeighborsBPS = whole(&hairpin), whole(&neighbors)
		way.Ingress, way.Egress = p.InBPS > 0, p.OutBPS > 0
		d.hairpin, d.neighbors = plus(d.hairpin, hairpin), plus(d.neighbors, neighbors)
	} else {
		d.unknown()
	}
	straight := true
	if p.Method == drover.Stretch {
		straight = d.stretched(p, &way)
	}
	d.out.Ways = append(d.out.Ways, way)
	ends := 0.0
	for _, by := range []bool{way.Ingress, way.Egress} {
		if by {
			ends++
		}
	}
	rtt, known := d.trip(d.vm.Site, p.Site)
	switch {
	case !straight || ends > 0 && !known:
		d.extra = nil
	case d.extra != nil && ends > 0:
		*d.extra = max(*d.extra, rtt*ends/2)
	}
}

// stretched says which ways lead through the home of a segment that was extended,
// whether or not something has gone there lately. It is not known where the edge
// at the VM's site does not say whether it announces it.
func (d *detour) stretched(home Passing, way *drover.DetourWay) (known bool) {
	i := slices.IndexFunc(d.passings, func(p Passing) bool {
		return p.Here && p.Owner == home.Owner && p.Site == d.vm.Site && !p.Read.IsZero()
	})
	if i < 0 {
		return false
	}
	way.Ingress = way.Ingress || !d.passings[i].Announced
	way.Egress = way.Egress || !home.LocalEgress
	return true
}

func plus(sum *float64, v float64) *float64 {
	if sum == nil {
		return nil
	}
	v += *sum
	return &v
}

func whole(v *float64) *int64 {
	if v == nil {
		return nil
	}
	n := int64(math.Round(*v))
	return &n
}
