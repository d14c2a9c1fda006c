package drover_test

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/drover-vm/drover"
)

func TestRequirementsAreRead(t *testing.T) {
	v := drover.SettleRequirements("db1", drover.RequirementLayer{Source: "metadata", Values: map[string]string{
		"keep-sessions": "yes", "keep-address": "True", "stateless": "no", "max-pause": "500ms", "max-outage": " 2s ",
		"deadline": "30m", "sites": "north, south", "countries": "de,FR", "with": "web1", "max-cost": "12.5",
		"service": "web", "methods": "route,STRETCH", "max-extra-rtt": "20ms",
	}})
	if len(v.Faults) > 0 {
		t.Fatalf("faults: %q", v.Faults)
	}
	want := drover.Requirements{
		KeepSessions: new(true), KeepAddress: new(true), Stateless: new(false), MaxPauseMillis: new(500.0), MaxOutageMillis: new(2000.0),
		Within: 30 * time.Minute, Sites: []string{"north", "south"}, Countries: []string{"DE", "FR"}, With: []string{"web1"},
		MaxCost: new(12.5), Service: "web", Methods: []drover.Method{drover.Route, drover.Stretch}, MaxExtraRTTMillis: new(20.0),
	}
	if !reflect.DeepEqual(v.Requirements, want) {
		t.Errorf("read\n%+v, want\n%+v", v.Requirements, want)
	}
	if len(v.Stated) != 13 || v.Stated[0] != (drover.StatedRequirement{Name: "keep-sessions", Value: "yes", Source: "metadata"}) {
		t.Errorf("stated: %+v", v.Stated)
	}
}

// The later source wins, one requirement at a time; any lifts one.
func TestRequirementsAreLayered(t *testing.T) {
	v := drover.SettleRequirements("v",
		drover.RequirementLayer{Source: "label tier=web", Values: map[string]string{"keep-sessions": "no", "max-pause": "1s", "service": "web"}},
		drover.RequirementLayer{Source: "metadata", Values: map[string]string{"max-pause": "300ms", "service": "not a name"}},
		drover.RequirementLayer{Source: "drover", Values: map[string]string{"keep-sessions": "any"}})
	if v.Requirements.KeepSessions != nil {
		t.Error("any did not lift keep-sessions")
	}
	if p := v.Requirements.MaxPauseMillis; p == nil || *p != 300 {
		t.Errorf("max-pause %v, want metadata's 300 ms", p)
	}
	if v.Requirements.Service != "web" {
		t.Errorf("service %q: what cannot be read took the place of what can", v.Requirements.Service)
	}
	if len(v.Faults) != 1 || !strings.Contains(v.Faults[0], `metadata: requirement service: "not a name": want`) {
		t.Errorf("faults: %q", v.Faults)
	}
}

func TestRequirementsContradict(t *testing.T) {
	for _, tt := range []struct {
		name   string
		values map[string]string
		want   string
	}{
		{"sessions and cold only", map[string]string{"keep-sessions": "yes", "methods": "cold"}, "keep-sessions contradicts methods cold"},
		{"layer 2 and routes", map[string]string{"layer2": "yes", "methods": "route,warm"}, "layer2 contradicts methods route, warm"},
		{"memory and stateless", map[string]string{"keep-memory": "yes", "stateless": "yes"}, "keep-memory contradicts stateless"},
		{"with and apart", map[string]string{"with": "a,b", "apart": "b"}, "with b contradicts apart b"},
		{"mac and spawn", map[string]string{"keep-mac": "yes", "methods": "spawn"}, "keep-mac contradicts methods spawn"},
		{"address and renumber", map[string]string{"keep-address": "yes", "methods": "renumber"}, "keep-address contradicts methods renumber"},
		{"one of them can", map[string]string{"keep-sessions": "yes", "methods": "cold,route"}, ""},
		{"not wanted", map[string]string{"keep-sessions": "no", "methods": "cold"}, ""},
	} {
		v := drover.SettleRequirements("v", drover.RequirementLayer{Source: "metadata", Values: tt.values})
		switch {
		case tt.want == "" && len(v.Contradictions) > 0:
			t.Errorf("%s: %q", tt.name, v.Contradictions)
		case tt.want != "" && (len(v.Contradictions) != 1 || !strings.Contains(v.Contradictions[0], tt.want)):
			t.Errorf("%s: %q, want one line with %q", tt.name, v.Contradictions, tt.want)
		}
		if len(v.Faults) != len(v.Contradictions) {
			t.Errorf("%s: faults %q", tt.name, v.Faults)
		}
	}
}

func TestBadRequirements(t *testing.T) {
	for name, value := range map[string]string{
		"keep-sessions": "perhaps", "max-pause": "-1s", "max-outage": "12", "deadline": "0s", "max-cost": "NaN", "sites": "a,,b",
		"countries": "Germany", "with": "a b", "service": "", "methods": "teleport", "speed": "yes", "keep-mac": strings.Repeat("y", 5000),
	} {
		err := drover.CheckRequirement(name, value)
		if drover.KindOf(err) != drover.Invalid || err == nil {
			t.Errorf("%s %q: %v, want invalid", name, value, err)
			continue
		}
		if text := err.Error(); !strings.Contains(text, "want") || strings.Contains(text, "\n") || len(text) > 400 {
			t.Errorf("%s: not one clear line: %s", name, text)
		}
	}
}

func FuzzRequirements(f *testing.F) {
	f.Add("max-pause", "300ms")
	f.Add("methods", "cold,route")
	f.Add("countries", "de")
	f.Fuzz(func(t *testing.T, name, value string) {
		v := drover.SettleRequirements("v", drover.RequirementLayer{Source: "metadata", Values: map[string]string{name: value}})
		if len(v.Stated) > 0 && len(v.Faults) > 0 {
			t.Errorf("%q %q: both held and not: %+v", name, value, v)
		}
	})
}
