package advisor

import (
	"fmt"
	"slices"

	"github.com/drover-vm/drover"
)

// RuleSet is limits under a name, for moves that keep a guest running over a WAN.
// A limit that is zero is none.
type RuleSet struct {
	Name string
	// Source says whose figures these are; it is quoted with the name.
	Source string
	// Methods that it is for; nil: those that keep the guest running.
	Methods []drover.Method
	// MaxRTTMillis is for the round trip, MinRate for the link, MaxDistanceKM as
	// the crow flies, MaxLossShare between 0 and 1.
	MaxRTTMillis  float64
	MinRate       drover.BitRate
	MaxDistanceKM float64
	MaxLossShare  float64
	// Refuse forbids what is outside; else it is quoted, and no more.
	Refuse bool
}

// BuiltinRules are the limits that are quoted most: of classic, 10 ms are
// vSphere 5.0's (Broadcom KB 310156, "Understanding Metro vMotion"), 622 Mbit/s
// and 200 km those that Cisco and VMware published with their first long-distance
// moves in 2009; of later, 150 ms are vSphere 6.0's (Broadcom KB 336244).
func BuiltinRules() []RuleSet {
	return []RuleSet{
		{
			Name: "classic", Source: "classic long-distance live migration", MaxRTTMillis: 10,
			MinRate: 622 * drover.Mbps, MaxDistanceKM: 200,
		},
		{Name: "later", Source: "later long-distance live migration", MaxRTTMillis: 150},
	}
}

// Validate reports what is wrong with a rule set; the kind is Invalid.
func (r RuleSet) Validate() error {
	if err := drover.CheckName("rule set", r.Name); err != nil {
		return err
	}
	bad := func(format string, args ...any) error {
		return drover.Errorf(drover.Invalid, "rule set "+r.Name, format, args...)
	}
	switch {
	case r.MaxRTTMillis < 0 || r.MinRate < 0 || r.MaxDistanceKM < 0 || r.MaxLossShare < 0 || r.MaxLossShare > 1:
		return bad("want limits of at least zero, and a loss of 100%% at most")
	case r.MaxRTTMillis == 0 && r.MinRate == 0 && r.MaxDistanceKM == 0 && r.MaxLossShare == 0:
		return bad("it has no limit: want at least one of max_rtt, min_rate, max_distance_km, max_loss")
	}
	for _, m := range r.Methods {
		if !slices.Contains(drover.Methods(), m) {
			return bad("%q is no method", m)
		}
	}
	return nil
}

// applies reports whether the set is for the method.
func (r RuleSet) applies(m drover.Method) bool {
	if r.Methods == nil {
		return keepsMemory(m)
	}
	return slices.Contains(r.Methods, m)
}

// verdict is what a rule set says of a way: limits kept, limits broken, and those
// that nobody can check, each in plain words.
type verdict struct{ kept, broken, open []string }

// judge checks the way between two sites.
func (r RuleSet) judge(w way) verdict {
	var v verdict
	limit := func(what string, known bool, value string, within bool, bound string) {
		switch {
		case !known:
			v.open = append(v.open, what+" not known, limit "+bound)
		case within:
			v.kept = append(v.kept, fmt.Sprintf("%s %s, limit %s", what, value, bound))
		default:
			v.broken = append(v.broken, fmt.Sprintf("%s %s, limit %s", what, value, bound))
		}
	}
	if r.MaxRTTMillis > 0 {
		limit("round trip", w.rtt > 0, ms(w.rtt), w.rtt <= r.MaxRTTMillis, ms(r.MaxRTTMillis))
	}
	if r.MinRate > 0 {
		limit("link", w.rate > 0, w.rate.String(), w.rate >= r.MinRate, r.MinRate.String())
	}
	if r.MaxDistanceKM > 0 {
		limit("distance", w.km >= 0, km(w.km), w.km <= r.MaxDistanceKM, km(r.MaxDistanceKM))
	}
	if r.MaxLossShare > 0 {
		limit("loss", w.loss >= 0, percent(w.loss), w.loss <= r.MaxLossShare, percent(r.MaxLossShare))
	}
	return v
}

// Forbidden says which rule forbids a method for the way, and with which figures;
// empty where none does.
func Forbidden(q Question, p Policy, m drover.Method) string {
	if q.From.Name == q.To.Name {
		return ""
	}
	w := wayOf(&q)
	for _, r := range p.Rules {
		if v := r.judge(w); r.Refuse && r.applies(m) && len(v.broken) > 0 {
			return fmt.Sprintf("%s forbids %s: %s", r.title(), m, sentence(v.broken))
		}
	}
	return ""
}

// title is how a rule set is quoted.
func (r RuleSet) title() string {
	if r.Source == "" {
		return "rule " + r.Name
	}
	return "rule " + r.Name + " (" + r.Source + ")"
}
