package libvirt

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/drover-vm/drover/driver"
)

// How a guest's addresses change place, in the words of ip(8), so that Linux does
// with them what driver.GuestAddresses promises. All of it may be repeated, and
// begun again after it broke off.
//
//	            IPv4                                IPv6
//	primary     address with its subnet, source     address, preferred for ever, source of
//	            of the default route                the default route (metric 1: before a
//	                                                router advertisement's and a static one)
//	standby     address/32: no subnet's route,      the same address, deprecated and
//	            no choice as a source               without its subnet's route
//
// Linux takes an IPv4 address twice with two lengths and does not end sessions
// while one of them is left, so the short one comes before the long one goes. An
// IPv6 address is changed in place.

// The options of an IPv6 address. The address was given by whoever looks after the
// segment: waiting for a duplicate would only delay it.
const (
	preferredV6 = " nodad valid_lft forever preferred_lft forever"
	standbyV6   = " nodad noprefixroute valid_lft forever preferred_lft 0"
)

// addPlan returns the lines of a batch for ip(8) that make the change on an
// interface that has these addresses.
func addPlan(dev string, have []netip.Prefix, change driver.GuestAddresses) []string {
	var lines []string
	for _, four := range []bool{true, false} {
		family := func(p netip.Prefix) bool { return p.Addr().Is4() == four }
		have, add := filter(have, family), filter(change.Prefixes, family)
		switch {
		case len(add) == 0:
		case !change.Primary:
			lines = append(lines, standbyPlan(dev, have, add)...)
		case four:
			lines = append(lines, primaryPlan4(dev, have, add)...)
		default:
			lines = append(lines, primaryPlan6(dev, have, add)...)
		}
		for _, gw := range change.Gateways {
			if gw.Is4() == four {
				lines = append(lines, routeLine(dev, gw, add[0].Addr()))
			}
		}
	}
	return lines
}

// standbyPlan adds addresses that nothing but an answer uses. One that is there
// keeps its place.
func standbyPlan(dev string, have, add []netip.Prefix) []string {
	var lines []string
	for _, p := range add {
		switch {
		case hasAddress(have, p.Addr()):
		case p.Addr().Is4():
			lines = append(lines, fmt.Sprintf("address replace %s/32 dev %s", p.Addr(), dev))
		default:
			lines = append(lines, fmt.Sprintf("address replace %s dev %s%s", p, dev, standbyV6))
		}
	}
	return lines
}

func primaryPlan4(dev string, have, add []netip.Prefix) []string {
	var lines []string
	replace := func(p netip.Prefix) { lines = append(lines, fmt.Sprintf("address replace %s dev %s", p, dev)) }
	for _, p := range add {
		replace(p)
	}
	for _, p := range have {
		if !hasAddress(add, p.Addr()) && !p.IsSingleIP() {
			replace(single(p))
		}
	}
	// Last ones first: Linux takes a subnet's later addresses away with its
	// first one. A new one in the same subnet is a later one, so it is added
	// once more.
	again := false
	for _, p := range slices.Backward(have) {
		wanted := slices.Contains(add, p)
		if wanted || p.IsSingleIP() && !hasAddress(add, p.Addr()) {
			continue
		}
		lines = append(lines, fmt.Sprintf("address del %s dev %s", p, dev))
		again = again || slices.ContainsFunc(add, func(a netip.Prefix) bool { return a.Masked() == p.Masked() })
	}
	if again {
		for _, p := range add {
			replace(p)
		}
	}
	return lines
}

func primaryPlan6(dev string, have, add []netip.Prefix) []string {
	var lines []string
	for _, p := range have {
		if hasAddress(add, p.Addr()) && !slices.Contains(add, p) {
			// Its length cannot be changed in place.
			lines = append(lines, fmt.Sprintf("address del %s dev %s", p, dev))
		}
	}
	for _, p := range add {
		lines = append(lines, fmt.Sprintf("address replace %s dev %s%s", p, dev, preferredV6))
	}
	for _, p := range have {
		if !hasAddress(add, p.Addr()) {
			lines = append(lines, fmt.Sprintf("address replace %s dev %s%s", p, dev, standbyV6))
		}
	}
	// Two addresses of one subnet: the old one's change took its route away.
	for _, p := range add {
		if slices.ContainsFunc(have, func(h netip.Prefix) bool { return !hasAddress(add, h.Addr()) && h.Masked() == p.Masked() }) {
			lines = append(lines, fmt.Sprintf("address replace %s dev %s%s", p, dev, preferredV6))
		}
	}
	return lines
}

// routeLine makes a default route. The gateway need not be in the new address's
// subnet: a routed guest has none.
func routeLine(dev string, gw, source netip.Addr) string {
	to, metric := "0.0.0.0/0", ""
	if gw.Is6() {
		to, metric = "::/0", " metric 1"
	}
	return fmt.Sprintf("route replace %s via %s dev %s src %s onlink proto %d%s", to, gw, dev, source, driver.GuestRouteProtocol, metric)
}

// dropPlan returns the lines that take an address away, none when it is not
// there.
func dropPlan(dev string, have []netip.Prefix, drop netip.Addr) []string {
	var lines []string
	for _, p := range have {
		if p.Addr() == drop {
			lines = append(lines, fmt.Sprintf("address del %s dev %s", p, dev))
		}
	}
	if len(lines) == 0 || drop.Is6() {
		return lines
	}
	for _, p := range have { // see primaryPlan4 for addresses of the same subnet
		if p.Addr() != drop && !p.IsSingleIP() && slices.ContainsFunc(have, func(q netip.Prefix) bool {
			return q.Addr() == drop && q.Masked() == p.Masked()
		}) {
			lines = append(lines, fmt.Sprintf("address replace %s dev %s", p, dev))
		}
	}
	return lines
}

func filter(list []netip.Prefix, keep func(netip.Prefix) bool) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range list {
		if keep(p) {
			out = append(out, p)
		}
	}
	return out
}

func hasAddress(list []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Addr() == a })
}

// single is the address alone.
func single(p netip.Prefix) netip.Prefix { return netip.PrefixFrom(p.Addr(), p.Addr().BitLen()) }
