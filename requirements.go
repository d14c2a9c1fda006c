package drover

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Requirements are what a VM needs, whatever is done with it. What is nil,
// zero or empty nobody has asked for.
type Requirements struct {
	// KeepSessions: open sessions go on. Sessions that end by themselves before a
	// move stops their server were kept.
	KeepSessions *bool `json:"keep_sessions,omitempty"`
	// KeepAddress: clients go on using the address they know.
	KeepAddress *bool `json:"keep_address,omitempty"`
	// KeepMAC: the hardware address stays, because a licence is bound to it.
	KeepMAC *bool `json:"keep_mac,omitempty"`
	// KeepMemory: what is in the memory is not on a disk.
	KeepMemory *bool `json:"keep_memory,omitempty"`
	// Layer2: others find it by broadcast, multicast or its hardware address, so
	// it has to stay in their layer 2 network.
	Layer2 *bool `json:"layer2,omitempty"`
	// Stateless: nothing of it has to be kept; another one made of the same
	// template does as well.
	Stateless *bool `json:"stateless,omitempty"`
	// MaxPauseMillis and MaxOutageMillis are the most that the VM may stand
	// still, and be away for its clients.
	MaxPauseMillis  *float64 `json:"max_pause_ms,omitempty"`
	MaxOutageMillis *float64 `json:"max_outage_ms,omitempty"`
	// MaxExtraRTTMillis is the most that a round trip to it may become longer.
	MaxExtraRTTMillis *float64 `json:"max_extra_rtt_ms,omitempty"`
	// Deadline is when a move has to have ended, Within how long it may take.
	Deadline time.Time     `json:"deadline,omitzero"`
	Within   time.Duration `json:"within_ns,omitempty"`
	// MaxCost is the most that a move may cost, in the unit of the forecasts.
	MaxCost *float64 `json:"max_cost,omitempty"`
	// Sites and Countries are the only ones where its data may be; countries by
	// their two letters (ISO 3166-1).
	Sites     []string `json:"sites,omitempty"`
	Countries []string `json:"countries,omitempty"`
	// With are VMs whose site it has to be at, Apart those whose site it must
	// not be at.
	With  []string `json:"with,omitempty"`
	Apart []string `json:"apart,omitempty"`
	// Service is the load balancer's backend that it is a server of.
	Service string `json:"service,omitempty"`
	// Methods are the only ones by which it may be moved.
	Methods []Method `json:"methods,omitempty"`
}

const (
	// maxRequirementText bounds one requirement as it is written, and
	// maxRequirementItems what a list may name: beyond them nothing was meant.
	maxRequirementText  = 4096
	maxRequirementItems = 100
	// maxRequirementTime bounds times: beyond it a digit is wrong.
	maxRequirementTime = 365 * 24 * time.Hour
	// anything lifts a requirement that a weaker source has.
	anything = "any"
)

// requirement is one of them: how it is written, what would be right, and how
// it is read.
type requirement struct {
	name, want string
	read       func(r *Requirements, text string) bool
}

// requirements are all of them, in the order in which they are shown.
func requirements() []requirement {
	return []requirement{
		{"keep-sessions", wantYes, yes(func(r *Requirements) **bool { return &r.KeepSessions })},
		{"keep-address", wantYes, yes(func(r *Requirements) **bool { return &r.KeepAddress })},
		{"keep-mac", wantYes, yes(func(r *Requirements) **bool { return &r.KeepMAC })},
		{"keep-memory", wantYes, yes(func(r *Requirements) **bool { return &r.KeepMemory })},
		{"layer2", wantYes, yes(func(r *Requirements) **bool { return &r.Layer2 })},
		{"stateless", wantYes, yes(func(r *Requirements) **bool { return &r.Stateless })},
		{"max-pause", wantTime, millis(func(r *Requirements) **float64 { return &r.MaxPauseMillis })},
		{"max-outage", wantTime, millis(func(r *Requirements) **float64 { return &r.MaxOutageMillis })},
		{"max-extra-rtt", wantTime, millis(func(r *Requirements) **float64 { return &r.MaxExtraRTTMillis })},
		{"deadline", "a moment such as 2026-12-24T18:00:00Z, or a time from the asking on, such as 30m", readDeadline},
		{"max-cost", "a number of at least zero", readCost},
		{"sites", "names of sites with commas between them", names(func(r *Requirements) *[]string { return &r.Sites })},
		{"countries", "two letters for each country with commas between them, such as DE,FR", readCountries},
		{"with", "names of VMs with commas between them", names(func(r *Requirements) *[]string { return &r.With })},
		{"apart", "names of VMs with commas between them", names(func(r *Requirements) *[]string { return &r.Apart })},
		{"service", "the name of a load balancer's backend", readService},
		{"methods", "methods with commas between them, of live, stretch, route, renumber, redirect, warm, cold, spawn", readMethods},
	}
}

const (
	wantYes  = "yes or no"
	wantTime = "a time such as 300ms or 2m"
)

// RequirementNames are the names by which requirements are written, in the order
// in which they are shown.
func RequirementNames() []string {
	all := requirements()
	list := make([]string, len(all))
	for i, q := range all {
		list[i] = q.name
	}
	return list
}

// CheckRequirement reports what is wrong with a requirement as it is written; the
// kind is Invalid.
func CheckRequirement(name, value string) error {
	return readRequirement(new(Requirements), name, value)
}

func readRequirement(r *Requirements, name, value string) error {
	all := requirements()
	i := slices.IndexFunc(all, func(q requirement) bool { return q.name == name })
	value = strings.TrimSpace(value)
	switch {
	case i < 0:
		return Errorf(Invalid, "requirement", "%q is none: want one of %s", clip(name), strings.Join(RequirementNames(), ", "))
	case strings.EqualFold(value, anything):
		return nil
	case len(value) > maxRequirementText || value == "" || !all[i].read(r, value):
		return Errorf(Invalid, "requirement "+name, "%q: want %s, or any", clip(value), all[i].want)
	}
	return nil
}

// clip shortens what somebody wrote for a line that quotes it.
func clip(s string) string {
	const most = 60
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}

// RequirementLayer is requirements as one source has them, by their names.
type RequirementLayer struct {
	// Source is shown with each: "metadata", "drover", "label tier=web".
	Source string
	Values map[string]string
}

// KeptRequirements are those of a VM that were set through Drover.
type KeptRequirements struct {
	UUID string `json:"uuid"`
	// VM is its name when they were set last, for who looks at them by hand.
	VM string `json:"vm"`
	// Values by the requirements' names, as they were written.
	Values map[string]string `json:"values"`
}

// StatedRequirement is one requirement as it was written, and by whom.
type StatedRequirement struct {
	Name   string `json:"name"`
	Value  string `json:"value"`
	Source string `json:"source"`
}

// VMRequirements are what several sources say together that a VM needs.
type VMRequirements struct {
	// VM is its name.
	VM string `json:"vm"`
	// Stated are the requirements that hold, each with its source.
	Stated []StatedRequirement `json:"requirements"`
	// Faults are what could not be read, and what contradicts itself, one line
	// each. What could not be read holds not.
	Faults []string `json:"faults,omitempty"`
	// Contradictions are among the Faults too: with one of them nothing can be
	// right.
	Contradictions []string `json:"contradictions,omitempty"`

	Requirements Requirements `json:"-"`
}

// SettleRequirements reads what sources say of a VM, the weakest first: a later
// one wins, requirement by requirement. What cannot be read is a fault, and the
// weaker source's word holds.
func SettleRequirements(vm string, layers ...RequirementLayer) VMRequirements {
	v := VMRequirements{VM: vm, Stated: []StatedRequirement{}}
	won := map[string]StatedRequirement{}
	for _, l := range layers {
		for name, value := range l.Values {
			if err := CheckRequirement(name, value); err != nil {
				v.Faults = append(v.Faults, fmt.Sprintf("%s: %s", l.Source, err))
				continue
			}
			won[name] = StatedRequirement{name, strings.TrimSpace(value), l.Source}
		}
	}
	slices.Sort(v.Faults)
	for _, q := range requirements() {
		s, ok := won[q.name]
		if !ok || strings.EqualFold(s.Value, anything) {
			continue
		}
		_ = readRequirement(&v.Requirements, s.Name, s.Value) // it was checked above
		v.Stated = append(v.Stated, s)
	}
	v.Contradictions = v.Requirements.Contradictions()
	v.Faults = append(v.Faults, v.Contradictions...)
	return v
}

// Wants reports whether somebody has said yes.
func Wants(b *bool) bool { return b != nil && *b }

// Contradictions names the requirements that cannot hold together, one line for
// each pair.
func (r Requirements) Contradictions() []string {
	var found []string
	only := func(wanted bool, what string, able ...Method) {
		if !wanted || len(r.Methods) == 0 || slices.ContainsFunc(r.Methods, func(m Method) bool { return slices.Contains(able, m) }) {
			return
		}
		found = append(found, fmt.Sprintf("%s contradicts methods %s: only %s can; allow one of them, or say that it is not needed",
			what, joined(r.Methods), joined(able)))
	}
	only(Wants(r.KeepSessions), "keep-sessions", Live, Stretch, Route, Renumber, Redirect)
	only(Wants(r.KeepMemory), "keep-memory", Live, Stretch, Route, Renumber)
	only(Wants(r.Layer2), "layer2", Live, Stretch)
	only(Wants(r.KeepMAC), "keep-mac", Live, Stretch, Route, Renumber, Warm, Cold)
	only(Wants(r.KeepAddress), "keep-address", Live, Stretch, Route, Redirect, Warm, Cold)
	if Wants(r.Stateless) && Wants(r.KeepMemory) {
		found = append(found, "keep-memory contradicts stateless: either nothing of the VM has to be kept, or its memory has")
	}
	for _, vm := range r.With {
		if slices.Contains(r.Apart, vm) {
			found = append(found, fmt.Sprintf("with %s contradicts apart %s: it cannot be where the VM has to be and where it must not be", vm, vm))
		}
	}
	return found
}

func joined(methods []Method) string {
	list := make([]string, len(methods))
	for i, m := range methods {
		list[i] = string(m)
	}
	return strings.Join(list, ", ")
}

// Allows reports whether the VM may be moved by the method.
func (r Requirements) Allows(m Method) bool {
	return len(r.Methods) == 0 || slices.Contains(r.Methods, m)
}

// Until is when a move that begins now has to have ended; the zero time where
// nobody has asked for it.
func (r Requirements) Until(now time.Time) time.Time {
	if r.Within == 0 {
		return r.Deadline
	}
	return now.Add(r.Within)
}
