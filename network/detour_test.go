package network_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/network"
)

// words shows a detour in one line: what is not known is "?".
func words(d drover.Detour) string {
	bps := func(v *int64) string {
		if v == nil {
			return "?"
		}
		return fmt.Sprint(*v)
	}
	extra := "?"
	if d.ExtraRTT != nil {
		extra = fmt.Sprint(*d.ExtraRTT)
	}
	line := fmt.Sprintf("hairpin %s neighbors %s extra %s", bps(d.HairpinBPS), bps(d.NeighborsBPS), extra)
	for _, w := range d.Ways {
		line += fmt.Sprintf("; %s from %s", w.Method, w.Site)
		if w.Ingress {
			line += " in"
		}
		if w.Egress {
			line += " out"
		}
	}
	return line
}

func TestDetour(t *testing.T) {
	const owner = "vm/uuid1"
	at := time.Unix(1e9, 0)
	away := func(method drover.Method, in, out, crossed float64, localEgress bool) network.Passing {
		return network.Passing{
			Site: "north", EdgePassage: drover.EdgePassage{Owner: owner, Method: method, LocalEgress: localEgress},
			InBPS: in, OutBPS: out, CrossedBPS: crossed, Known: true, Read: at,
		}
	}
	here := func(announced bool) network.Passing {
		return network.Passing{
			Site: "south", EdgePassage: drover.EdgePassage{Owner: owner, Method: drover.Stretch, Here: true, Announced: announced, LocalEgress: true},
			InBPS: 1000, OutBPS: 2000, Known: true, Read: at,
		}
	}
	silent := away(drover.Stretch, 0, 0, 0, true)
	silent.Known = false
	old := away(drover.Renumber, 30, 40, 100, false)
	old.Owner = "move/m1"
	joined := blue
	joined.Joined = true
	green := blue
	green.Name, green.Home, green.Bridge = "green", "south", "br-green"
	for _, c := range []struct {
		name     string
		site     string
		seg      drover.Segment
		passings []network.Passing
		want     string
	}{
		{"at home", "north", blue, nil, "hairpin 0 neighbors 0 extra 0"},
		{"at home of a segment of the same bridge elsewhere", "north", joined, nil, "hairpin 0 neighbors 0 extra 0"},
		{"away, and nobody counts", "south", blue, nil, "hairpin ? neighbors ? extra ?"},
		{"away in a segment that is joined", "south", joined, nil, "hairpin ? neighbors ? extra ?"},
		{"in a segment that no edge knows", "north", drover.Segment{Name: "red"}, nil, "hairpin ? neighbors ? extra ?"},
		{
			"stretched, with the gateway there", "south", blue,
			[]network.Passing{away(drover.Stretch, 300, 200, 600, false), here(false)},
			"hairpin 500 neighbors 100 extra 50; stretch from north in out",
		},
		{
			"stretched, its own gateway", "south", blue,
			[]network.Passing{away(drover.Stretch, 300, 0, 299, true), here(false)},
			"hairpin 300 neighbors 0 extra 25; stretch from north in",
		},
		{
			"stretched, idle", "south", blue,
			[]network.Passing{away(drover.Stretch, 0, 0, 0, true), here(false)},
			"hairpin 0 neighbors 0 extra 25; stretch from north in",
		},
		{
			"stretched with local egress", "south", blue,
			[]network.Passing{away(drover.Stretch, 0, 0, 70, true), here(true)},
			"hairpin 0 neighbors 70 extra 0; stretch from north",
		},
		{
			"announced, but not heard by all", "south", blue,
			[]network.Passing{away(drover.Stretch, 5, 0, 5, true), here(true)},
			"hairpin 5 neighbors 0 extra 25; stretch from north in",
		},
		{
			"stretched, home does not say any more", "south", blue,
			[]network.Passing{silent, here(false)},
			"hairpin ? neighbors ? extra ?; stretch from north in",
		},
		{
			"stretched, its own edge does not say", "south", blue,
			[]network.Passing{away(drover.Stretch, 1, 2, 3, true)},
			"hairpin 3 neighbors 0 extra ?; stretch from north in out",
		},
		{
			"routed", "south", blue,
			[]network.Passing{away(drover.Route, 0, 0, 80, false)},
			"hairpin 0 neighbors 80 extra 0; route from north",
		},
		{
			"routed, and not all routers know", "south", blue,
			[]network.Passing{away(drover.Route, 9, 0, 9, false)},
			"hairpin 9 neighbors 0 extra 25; route from north in",
		},
		{
			"renumbered, with old sessions", "south", green,
			[]network.Passing{old},
			"hairpin 70 neighbors 30 extra 50; renumber from north in out",
		},
		{
			"no way to measure how far it is", "west", blue,
			[]network.Passing{away(drover.Route, 9, 0, 9, false)},
			"hairpin 9 neighbors 0 extra ?; route from north in",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := vm(1)
			v.Site = c.site
			v.NICs[0].Network = c.seg.Bridge
			if c.seg.Name == "red" {
				v.NICs[0].Network = "br-red"
			}
			d := network.Detour(v, []drover.Segment{c.seg}, c.passings, func(a, b string) (float64, bool) {
				return 50, a == "south" && b == "north"
			})
			if got := words(d); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
			if strings.Contains(c.want, ";") != d.Metered.Equal(at) {
				t.Errorf("metered at %v", d.Metered)
			}
		})
	}
}
