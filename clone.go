package drover

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Clone is the VM that a move by spawn or redirect makes at its destination.
type Clone struct {
	Name string `json:"name"`
	UUID string `json:"uuid"`
	// Addresses are those that were reserved for it; empty before.
	Addresses []netip.Addr `json:"addresses,omitempty"`
	// Probe is where clients reach the service that it takes part in; nil where
	// nobody has said.
	Probe *ProbeTarget `json:"probe,omitempty"`
}

// CloneWish is what an operator wants of the VM that spawn or redirect makes.
type CloneWish struct {
	// Name of the new VM; empty: the VM's and its new site's, made unique.
	Name string
	// Segment that it is in, of those at the destination; empty: the VM's own where
	// it is one network at both sites, else the one at home there.
	Segment string
	// DNSName is made to answer with its addresses; empty: none is.
	DNSName string
	// Backend of a load balancer that it becomes a server of; empty: of none.
	// Redirect needs one.
	Backend string
	// Fresh begins its disks anew above their golden images, as spawn always does.
	Fresh bool
	// WeightSteps are the shares of new sessions in percent that it gets, one
	// after the other; nil: DefaultWeightSteps. StepTime is how long each holds.
	WeightSteps []int
	StepTime    time.Duration
	// DrainCap is how long the old server's sessions may go on; zero:
	// DefaultDrainCap.
	DrainCap time.Duration
	// Probe is where clients reach the service during the move; nil: it is not
	// looked at.
	Probe *ProbeTarget
}

// DefaultWeightSteps give a new server a few sessions first, then half of them,
// then all.
func DefaultWeightSteps() []int { return []int{10, 50, 100} }

const (
	// DefaultStepTime is several checks of a load balancer, and with some load
	// some sessions.
	DefaultStepTime = 10 * time.Second
	// DefaultDrainCap is what most sessions of a web service need to end; those
	// of databases or calls need longer.
	DefaultDrainCap = 10 * time.Minute
	// MaxCloneTime bounds both: beyond it a digit is wrong.
	MaxCloneTime = 24 * time.Hour
	// maxWeightSteps is one for each percent.
	maxWeightSteps = 100
)

// Validate reports what is wrong with a wish for the method; the kind is
// Invalid.
func (w CloneWish) Validate(m Method) error {
	bad := func(field, format string, args ...any) error { return Errorf(Invalid, field, format, args...) }
	for field, name := range map[string]string{"new name": w.Name, "segment": w.Segment} {
		if name == "" {
			continue
		}
		if err := CheckName(field, name); err != nil {
			return err
		}
	}
	if w.DNSName != "" && (len(w.DNSName) > 253 || strings.ContainsAny(w.DNSName, " \t\r\n\"'\\;()") || !strings.Contains(w.DNSName, ".")) {
		return bad("name", "%q: want a DNS name with its zone, such as web.example.net", w.DNSName)
	}
	if m == Redirect && w.Backend == "" {
		return bad("backend", "missing: redirect needs the load balancer's backend that the VM serves")
	}
	if m != Redirect && (w.Fresh || len(w.WeightSteps) > 0 || w.StepTime != 0 || w.DrainCap != 0 || w.Probe != nil) {
		return bad("method", "%s: fresh disks, weight steps, step time, drain cap and probe are for %s", m, Redirect)
	}
	for field, d := range map[string]time.Duration{"step time": w.StepTime, "drain cap": w.DrainCap} {
		if d < 0 || d > MaxCloneTime {
			return bad(field, "%v: want up to %v", d, MaxCloneTime)
		}
	}
	return CheckWeightSteps(w.WeightSteps)
}

// CheckWeightSteps reports what is wrong with shares in percent; none are fine.
func CheckWeightSteps(steps []int) error {
	if len(steps) == 0 {
		return nil
	}
	bad := func() error {
		return E(Invalid, "weight steps", fmt.Errorf("%v: want rising percentages that end with 100, such as 10,50,100", steps))
	}
	if len(steps) > maxWeightSteps || steps[len(steps)-1] != 100 || steps[0] < 1 {
		return bad()
	}
	for i := 1; i < len(steps); i++ {
		if steps[i] <= steps[i-1] {
			return bad()
		}
	}
	return nil
}

// IsZero reports whether nothing is wished.
func (w CloneWish) IsZero() bool {
	return w.Name == "" && w.Segment == "" && w.DNSName == "" && w.Backend == "" && !w.Fresh && len(w.WeightSteps) == 0 &&
		w.StepTime == 0 && w.DrainCap == 0 && w.Probe == nil
}

// BackendServer is a server behind a load balancer, as its edge sees it.
type BackendServer struct {
	// Name is the balancer's own for it.
	Name string `json:"name"`
	// Owner is who added it through Drover, ChangedBy who changed it; both empty
	// for a server that is there without Drover's doing.
	Owner     string `json:"owner,omitempty"`
	ChangedBy string `json:"changed_by,omitempty"`
	// Address is not valid where only a host name is known.
	Address netip.AddrPort `json:"address,omitzero"`
	// State is "ready", "drain" or "maint".
	State    string `json:"state"`
	Weight   int    `json:"weight"`
	Sessions int    `json:"sessions"`
}

// Makes reports whether the method makes another VM and leaves the one it is
// named for where it is, at least at first.
func (m Method) Makes() bool { return slices.Contains([]Method{Redirect, Spawn}, m) }
