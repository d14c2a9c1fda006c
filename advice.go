package drover

import "encoding/json"

// Advice is how a VM should come to a site, or why it should not.
type Advice struct {
	VM string `json:"vm"`
	// From is the site where it is, To the one that was asked for, or the best.
	From string `json:"from"`
	To   string `json:"to"`
	// Method is the advice; Stay where nothing else is right.
	Method Method `json:"method"`
	// Reasons are why, in plain words, the weightiest first.
	Reasons []string `json:"reasons"`
	// Changes are what would change the advice, where it is to stay.
	Changes []string `json:"would_change,omitempty"`
	// Requirements that were respected, each with its source; Faults are what
	// could not be read in them.
	Requirements []StatedRequirement `json:"requirements"`
	Faults       []string            `json:"faults,omitempty"`
	// Methods are all of them, the best first, each with its own reasons.
	Methods []MethodAdvice `json:"methods"`
	// Sites are what was found of others, where the best was asked for.
	Sites []SiteAdvice `json:"sites,omitempty"`
}

// Of returns what is said of a method; nil where nothing is.
func (a Advice) Of(m Method) *MethodAdvice {
	for i := range a.Methods {
		if a.Methods[i].Method == m {
			return &a.Methods[i]
		}
	}
	return nil
}

// MethodAdvice is what is said of one method. In JSON it also has reasons, which
// are those for it, then those against.
type MethodAdvice struct {
	Method Method `json:"method"`
	// Feasible: it could be done, and no rule forbids it. Meets: and it gives the
	// VM all that it needs, in nine cases of ten.
	Feasible bool `json:"feasible"`
	Meets    bool `json:"meets"`
	// For and Against are reasons; Nearly are those of Against that are missed
	// by a little; Caveats are what follows from taking it.
	For     []string `json:"for"`
	Against []string `json:"against"`
	Nearly  []string `json:"nearly,omitempty"`
	Caveats []string `json:"caveats,omitempty"`
	// Changes are what would make it right.
	Changes []string `json:"would_change,omitempty"`
	// Forecast is nil where none could be made.
	Forecast *Forecast `json:"forecast,omitempty"`
}

// Reasons are those for the method, then those against.
func (m MethodAdvice) Reasons() []string {
	return append(append(make([]string, 0, len(m.For)+len(m.Against)), m.For...), m.Against...)
}

// MarshalJSON adds the reasons.
func (m MethodAdvice) MarshalJSON() ([]byte, error) {
	type plain MethodAdvice
	if m.For == nil {
		m.For = []string{}
	}
	if m.Against == nil {
		m.Against = []string{}
	}
	return json.Marshal(struct {
		plain
		Reasons []string `json:"reasons"`
	}{plain(m), m.Reasons()})
}

// SiteAdvice is an advice for one site in short.
type SiteAdvice struct {
	To     string `json:"to"`
	Method Method `json:"method"`
	Reason string `json:"reason"`
}
