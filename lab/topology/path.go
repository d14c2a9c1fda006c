package topology

import (
	"fmt"
	"strconv"
	"time"

	"github.com/drover-vm/drover/lab/labfile"
)

// ways says by which link (its index in the file) traffic leaves a site for
// another one, keyed by {from, to}.
type ways map[[2]string]int

// hopCost makes the way with fewer links win between ways of equal delay.
const hopCost = time.Nanosecond

// paths finds the ways between all sites: two sites that a link joins use it,
// others use the way of least delay (Floyd and Warshall; a lab has few sites).
// Links that a stretched segment crosses must have room for it.
func paths(f *labfile.File) (ways, labfile.Problems) {
	first := ways{}
	cost := map[[2]string]time.Duration{}
	for i, l := range f.Links {
		for _, k := range [][2]string{{l.A, l.B}, {l.B, l.A}} {
			first[k], cost[k] = i, l.OneWay()+hopCost
		}
	}
	for _, mid := range f.Sites {
		for _, a := range f.Sites {
			for _, b := range f.Sites {
				x, okX := cost[[2]string{a.Name, mid.Name}]
				y, okY := cost[[2]string{mid.Name, b.Name}]
				k := [2]string{a.Name, b.Name}
				if old, ok := cost[k]; !okX || !okY || a.Name == b.Name || ok && old <= x+y {
					continue
				}
				cost[k], first[k] = x+y, first[[2]string{a.Name, mid.Name}]
			}
		}
	}
	// A packet on a way of least delay that meets a link to where it is going takes
	// it, so this cannot make a loop.
	for i, l := range f.Links {
		first[[2]string{l.A, l.B}], first[[2]string{l.B, l.A}] = i, i
	}
	var problems labfile.Problems
	reported := map[int]bool{}
	for _, seg := range f.Segments {
		if !seg.IsJoined() {
			continue
		}
		for _, a := range seg.Sites {
			for _, b := range seg.Sites {
				for _, i := range walk(f, first, a, b) {
					l := f.Links[i]
					if l.MTU >= guestMTU+vxlanOverhead || reported[i] {
						continue
					}
					reported[i] = true
					problems = append(problems, f.Problem(fmt.Sprintf("links[%d].mtu", i), strconv.Itoa(l.MTU),
						fmt.Sprintf("segment %s crosses this link, want at least %d", seg.Name, guestMTU+vxlanOverhead)))
				}
			}
		}
	}
	return first, problems
}

// walk lists the links from one site to another. Which ones BGP takes is not for
// the plan to say: it may be any.
func walk(f *labfile.File, first ways, from, to string) []int {
	var links []int
	if f.BGP() && from != to {
		for i := range f.Links {
			links = append(links, i)
		}
		return links
	}
	for from != to && len(links) <= len(f.Sites) {
		i, ok := first[[2]string{from, to}]
		if !ok {
			return links
		}
		links = append(links, i)
		if l := f.Links[i]; l.A == from {
			from = l.B
		} else {
			from = l.A
		}
	}
	return links
}
