package advisor

import (
	"slices"
	"time"

	"github.com/drover-vm/drover"
)

// Question is one VM and one site where it might be, with all that is known.
type Question struct {
	Now time.Time
	VM  drover.VM
	// From and To are the sites.
	From, To drover.Site
	// Host is where at To, empty for wherever: then a VM that is at the site
	// stays.
	Host  string
	Needs drover.VMRequirements
	// Link is the link between the sites, as it was bought; nil where there is
	// none between just these two. Way is what was measured of the way there.
	Link *drover.Link
	Way  drover.LinkSignals
	// Forecasts by method; one that is missing could not be made.
	Forecasts map[drover.Method]drover.Forecast
	// Checks are what was found out before, by method; those of a preflight, or
	// what the inventory alone can tell.
	Checks map[drover.Method][]drover.Check
	// Joined says that the VM's segments are one layer 2 network at both sites.
	Joined bool
	// Sites are where other VMs are, by their names.
	Sites map[string]string
	// Move is the VM's unfinished move; nil for none.
	Move *drover.Move
}

// Policy is what an operator has settled for all VMs.
type Policy struct {
	// Order is that of preference. A method that is not in it comes after all
	// that are; those after Stay are never advised. Nil: drover.Methods.
	Order []drover.Method
	// Rules are the rule sets in force.
	Rules []RuleSet
}

// rank is a method's place in the order.
func (p Policy) rank(m drover.Method) int {
	order := p.Order
	if len(order) == 0 {
		order = drover.Methods()
	}
	if i := slices.Index(order, m); i >= 0 {
		return i
	}
	return len(order) + slices.Index(drover.Methods(), m)
}

// worseThanStaying reports whether the operator prefers to stay. Stay at the
// order's beginning only says that nothing is simpler.
func (p Policy) worseThanStaying(m drover.Method) bool {
	stay := slices.Index(p.Order, drover.Stay)
	return stay > 0 && p.rank(m) > stay
}

// CheckOrder reports what is wrong with an order; the kind is Invalid.
func CheckOrder(order []drover.Method) error {
	for i, m := range order {
		if m != drover.Stay && !slices.Contains(drover.Methods(), m) {
			return drover.Errorf(drover.Invalid, "order", "%q is no method: want some of stay, spawn, redirect, cold, warm, live, route, renumber, stretch", m)
		}
		if slices.Contains(order[:i], m) {
			return drover.Errorf(drover.Invalid, "order", "%s is there twice: want it once", m)
		}
	}
	return nil
}
