package server

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/goccy/go-yaml/ast"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/advisor"
)

// AdviceConfig is what the adviser goes by, for all VMs.
type AdviceConfig struct {
	// Order is that of preference, the simplest first; see advisor.Policy.
	Order []drover.Method `yaml:"order,omitempty"`
	// RulesFile is a file of rule sets; a set with the name of a built-in one
	// takes its place.
	RulesFile string `yaml:"rules_file,omitempty"`
	// Rules are the sets in force, by their names; nil: all.
	Rules []string `yaml:"rules,omitempty"`
	// Refuse are those of them that forbid what is outside, whatever they say
	// themselves.
	Refuse []string `yaml:"refuse,omitempty"`
	// Defaults are requirements of VMs that say nothing themselves; a later one
	// wins.
	Defaults []NeedsConfig `yaml:"defaults,omitempty"`

	// Own are the sets of RulesFile, which whoever reads this file reads too.
	Own []RuleSetConfig `yaml:"-"`
}

// NeedsConfig are requirements of the VMs with a label.
type NeedsConfig struct {
	// Label is "name=value", or a name that has any value; empty: all VMs.
	Label        string            `yaml:"label,omitempty"`
	Requirements map[string]string `yaml:"requirements"`
}

// matches reports whether the VM has the label.
func (n NeedsConfig) matches(vm drover.VM) bool {
	if n.Label == "" {
		return true
	}
	name, value, exact := strings.Cut(n.Label, "=")
	got, has := vm.Labels[name]
	return has && (!exact || got == value)
}

// RulesConfig is a file of rule sets.
type RulesConfig struct {
	RuleSets []RuleSetConfig `yaml:"rule_sets"`
}

// RuleSetConfig is a rule set as a file has it; see advisor.RuleSet.
type RuleSetConfig struct {
	Name          string          `yaml:"name"`
	Source        string          `yaml:"source"`
	Methods       []drover.Method `yaml:"methods"`
	MaxRTT        Duration        `yaml:"max_rtt"`
	MinRate       Rate            `yaml:"min_rate"`
	MaxDistanceKM float64         `yaml:"max_distance_km"`
	MaxLoss       Percent         `yaml:"max_loss"`
	Refuse        bool            `yaml:"refuse"`
}

func (r RuleSetConfig) ruleSet() advisor.RuleSet {
	return advisor.RuleSet{
		Name: r.Name, Source: r.Source, Methods: r.Methods, MaxRTTMillis: r.MaxRTT.millis(), MinRate: drover.BitRate(r.MinRate),
		MaxDistanceKM: r.MaxDistanceKM, MaxLossShare: float64(r.MaxLoss), Refuse: r.Refuse,
	}
}

// Limits of what the file may hold: more was not meant.
const (
	maxRuleSets = 100
	maxDefaults = 1000
)

// Validate reports everything that is wrong with a file of rule sets.
func (c RulesConfig) Validate() error {
	v := &faults{}
	v.count("rule_sets", len(c.RuleSets), 1, maxRuleSets)
	names := map[string]bool{}
	for i, r := range c.RuleSets {
		v.unique(fmt.Sprintf("rule_sets[%d].name", i), "rule set", r.Name, names)
		if err := r.ruleSet().Validate(); err != nil {
			v.check(drover.E(drover.Invalid, fmt.Sprintf("rule_sets[%d]", i), err))
		}
	}
	return v.err()
}

func (c AdviceConfig) validate(v *faults) {
	if err := advisor.CheckOrder(c.Order); err != nil {
		v.check(drover.E(drover.Invalid, "advice", err))
	}
	if len(c.Own) > 0 {
		v.check(RulesConfig{c.Own}.Validate())
	}
	known := c.known()
	for field, names := range map[string][]string{"advice.rules": c.Rules, "advice.refuse": c.Refuse} {
		for _, name := range names {
			if !slices.ContainsFunc(known, func(r advisor.RuleSet) bool { return r.Name == name }) {
				all := make([]string, len(known))
				for i, r := range known {
					all[i] = r.Name
				}
				v.add(field, "%q: want the name of a rule set: %s", name, strings.Join(all, ", "))
			}
		}
	}
	v.count("advice.defaults", len(c.Defaults), 0, maxDefaults)
	for i, d := range c.Defaults {
		at := fmt.Sprintf("advice.defaults[%d].", i)
		if len(d.Requirements) == 0 {
			v.add(at+"requirements", "missing: want at least one, such as keep-sessions: yes")
		}
		for _, name := range slices.Sorted(maps.Keys(d.Requirements)) {
			if err := drover.CheckRequirement(name, d.Requirements[name]); err != nil {
				v.check(drover.E(drover.Invalid, at+"requirements", err))
			}
		}
	}
}

// known are all rule sets: the built-in ones, and the file's in place of or
// beside them.
func (c AdviceConfig) known() []advisor.RuleSet {
	all := advisor.BuiltinRules()
	for _, own := range c.Own {
		r := own.ruleSet()
		if i := slices.IndexFunc(all, func(o advisor.RuleSet) bool { return o.Name == r.Name }); i >= 0 {
			all[i] = r
		} else {
			all = append(all, r)
		}
	}
	return all
}

// policy is the file's word for the adviser.
func (c AdviceConfig) policy() advisor.Policy {
	p := advisor.Policy{Order: c.Order}
	for _, r := range c.known() {
		if c.Rules != nil && !slices.Contains(c.Rules, r.Name) {
			continue
		}
		r.Refuse = r.Refuse || slices.Contains(c.Refuse, r.Name)
		p.Rules = append(p.Rules, r)
	}
	return p
}

// Percent is a share as files write it: "0.1%".
type Percent float64

// UnmarshalYAML reads a share in percent.
func (p *Percent) UnmarshalYAML(n ast.Node) error {
	v, err := parsePercent(n.GetToken().Value)
	*p = Percent(v)
	return placed(n, err)
}
