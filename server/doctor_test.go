package server

import (
	"strings"
	"testing"

	"github.com/drover-vm/drover/api/droverv1"
)

func TestLeftover(t *testing.T) {
	before := needs{
		vms: map[string]string{"home": "north", "away": "south", "came": "north", "moving": "north", "removed": "north"}, moves: map[string]bool{"ended": true},
		moving: map[string]bool{"moving": true}, stuck: map[string]bool{},
	}
	after := needs{
		vms: map[string]string{"home": "north", "away": "south", "came": "south", "moving": "north"}, moves: map[string]bool{"begun": true},
		moving: map[string]bool{"stalled": true}, stuck: map[string]bool{"stuck": true},
	}
	for _, c := range []struct {
		owner, at, off, why string
	}{
		{"vm/home", "", "", ""},
		{"vm/home", "north", "south", ""},
		{"vm/home", "south", "", "its VM is at site north"},
		{"vm/away", "", "south", "its VM is at site south"},
		{"vm/away", "south", "north", ""},
		{"vm/came", "north", "", ""},   // it has moved while this was found
		{"vm/removed", "", "", ""},     // likewise
		{"vm/moving", "moon", "", ""},  // what it needs is the move's to say
		{"vm/stalled", "moon", "", ""}, // likewise
		{"vm/gone", "", "", "its VM is nowhere"},
		{"move/ended", "", "", ""},
		{"move/begun", "", "", ""},
		{"move/stuck", "", "", "move stuck is stuck"},
		{"move/old", "", "", "move old is over or unknown"},
		{"", "", "", "it has no owner"},
		{"host/n1", "", "", "neither a VM nor a move"},
	} {
		got := leftover(&droverv1.OwnedThing{Owner: c.owner, At: c.at, Off: c.off}, before, after)
		if (got == "") != (c.why == "") || !strings.Contains(got, c.why) {
			t.Errorf("%+v: got %q", c, got)
		}
	}
	o := owned{agent: &agent{AgentConfig: AgentConfig{Name: "e"}}, things: []*droverv1.OwnedThing{{Owner: "move/stuck"}, {Owner: "move/old"}, {}}}
	for _, complete := range []bool{true, false} {
		for _, f := range o.findings(before, after, complete) {
			if (f.Fix == fixByDoctor) != (complete && f.Owner == "move/old") {
				t.Errorf("complete %v: %+v", complete, f)
			}
		}
	}
}
