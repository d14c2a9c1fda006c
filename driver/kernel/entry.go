package kernel

import (
	"cmp"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// entry is one thing that stands for an owner: a line of the chain "owned".
// It is comparable.
type entry struct {
	owner  driver.Owner
	role   driver.AddressRole
	prefix netip.Prefix
	bridge string     // empty for watch and meter
	remote netip.Addr // the other edge, for old addresses
	table  int        // the routing table that leads to it
	all    bool       // of old addresses, new sessions too
}

// allWord ends the line of an entry with all.
const allWord = "all"

// String is the line: the comment of a rule without effect.
func (e entry) String() string {
	words := []string{string(e.owner), string(e.role), e.prefix.String()}
	if e.bridge != "" {
		words = append(words, e.bridge)
	}
	if e.remote.IsValid() {
		words = append(words, e.remote.String(), strconv.Itoa(e.table))
	}
	if e.all {
		words = append(words, allWord)
	}
	return strings.Join(words, " ")
}

func parseEntry(line string) (e entry, err error) {
	words := strings.Fields(line)
	if len(words) < 3 {
		return e, fmt.Errorf("%q: want owner, role and prefix", line)
	}
	e.owner, e.role = driver.Owner(words[0]), driver.AddressRole(words[1])
	if err := e.owner.Validate(); err != nil {
		return e, err
	}
	if e.prefix, err = netip.ParsePrefix(words[2]); err != nil {
		return e, err
	}
	want := 3
	switch e.role {
	case driver.RoleWatch, driver.RoleMeter:
	case driver.RoleDeliver, driver.RoleElsewhere, driver.RoleRest:
		want = 4
	case driver.RoleForwardOld, driver.RoleAcceptOld:
		want = 6
		if len(words) == want+1 && words[want] == allWord {
			e.all, words = true, words[:want]
		}
	default:
		return e, fmt.Errorf("%q: no such role", line)
	}
	if len(words) != want {
		return e, fmt.Errorf("%q has %d words: want %d", line, len(words), want)
	}
	if want > 3 {
		e.bridge = words[3]
	}
	if want > 4 {
		if e.remote, err = netip.ParseAddr(words[4]); err != nil {
			return e, err
		}
		if e.table, err = strconv.Atoi(words[5]); err != nil {
			return e, err
		}
	}
	return e, nil
}

func compareEntries(x, y entry) int {
	return cmp.Or(cmp.Compare(x.owner, y.owner), cmp.Compare(x.role, y.role), x.prefix.Compare(y.prefix),
		cmp.Compare(x.bridge, y.bridge), x.remote.Compare(y.remote))
}

// conflict reports entries that cannot stand together: one address that is
// routed to two places.
func conflict(entries []entry) error {
	place := map[netip.Prefix]entry{}
	old := map[string]entry{}
	for _, e := range entries {
		if r, ok := e.mainRoute(); ok {
			if other, ok := place[r.prefix]; ok {
				if o, _ := other.mainRoute(); o != r {
					return drover.Errorf(drover.Exists, "address "+e.prefix.Addr().String(), "%s and %s place it differently (%s, %s)", other.owner, e.owner, other, e)
				}
			}
			place[r.prefix] = e
		}
		if e.remote.IsValid() && e.prefix.IsSingleIP() {
			key := e.prefix.String()
			if other, ok := old[key]; ok && (other.role != e.role || other.owner != e.owner || other.remote != e.remote || other.bridge != e.bridge) {
				return drover.Errorf(drover.Exists, "old address "+e.prefix.Addr().String(), "it is %s's (%s)", other.owner, other)
			}
			old[key] = e
		}
	}
	return nil
}

// route is a route that entries demand: into an interface, or to the edge's
// router if none is named.
type route struct {
	prefix netip.Prefix
	dev    string
}

// rule leads packets to or from a prefix to the table of another edge.
type rule struct {
	prefix netip.Prefix
	from   bool
	iif    string // with from
	table  int
}

// peer is another edge behind the interface of old addresses.
type peer struct {
	remote netip.Addr
	table  int
}

// proxy is an address for which this edge answers on an interface.
type proxy struct {
	addr netip.Addr
	dev  string
}

// sysctl is a value below /proc/sys that has to be so.
type sysctl struct{ path, value string }

// mainRoute is the route in the main table that a host's entry demands.
func (e entry) mainRoute() (route, bool) {
	switch {
	case !e.prefix.IsSingleIP():
	case e.role == driver.RoleDeliver, e.role == driver.RoleAcceptOld:
		return route{e.prefix, e.bridge}, true
	case e.role == driver.RoleElsewhere:
		return route{e.prefix, ""}, true
	}
	return route{}, false
}

// demand is what entries need of the kernel, beside nftables.
type demand struct {
	sysctls map[sysctl]bool
	peers   map[peer]bool
	routes  map[route]bool
	rules   map[rule]bool
	proxies map[proxy]bool
}

// demands is the pure function from lines to what has to stand.
func demands(entries ...entry) demand {
	d := demand{map[sysctl]bool{}, map[peer]bool{}, map[route]bool{}, map[rule]bool{}, map[proxy]bool{}}
	for _, e := range entries {
		if r, ok := e.mainRoute(); ok {
			d.routes[r] = true
		}
		switch e.role {
		case driver.RoleElsewhere:
			d.proxy(e)
		case driver.RoleRest:
			// Two halves are more specific than the bridge's own connected
			// route, and less than a host route.
			low, high := halves(e.prefix)
			d.routes[route{low, ""}], d.routes[route{high, ""}] = true, true
			d.proxyAll(e)
		case driver.RoleForwardOld:
			d.proxy(e)
			d.peers[peer{e.remote, e.table}] = true
			d.rules[rule{prefix: e.prefix, table: e.table}] = true
		case driver.RoleAcceptOld:
			if !e.prefix.IsSingleIP() {
				d.proxyAll(e)
				continue
			}
			d.peers[peer{e.remote, e.table}] = true
			d.rules[rule{prefix: e.prefix, from: true, iif: e.bridge, table: e.table}] = true
		case driver.RoleWatch:
			d.sysctls[sysctl{"net/netfilter/nf_conntrack_acct", "1"}] = true
			d.sysctls[sysctl{"net/netfilter/nf_conntrack_timestamp", "1"}] = true
		}
	}
	return d
}

// proxy has the kernel answer for one address, at once.
func (d demand) proxy(e entry) {
	d.proxies[proxy{e.prefix.Addr(), e.bridge}] = true
	d.sysctls[sysctl{family(e.prefix) + "/neigh/" + e.bridge + "/proxy_delay", "0"}] = true
	if e.prefix.Addr().Is6() {
		d.sysctls[sysctl{"net/ipv6/conf/" + e.bridge + "/proxy_ndp", "1"}] = true
	}
}

// proxyAll has the kernel answer for all that it would route away from the
// bridge. For IPv6 there is no such thing: see responder.
func (d demand) proxyAll(e entry) {
	if e.prefix.Addr().Is4() {
		d.sysctls[sysctl{"net/ipv4/conf/" + e.bridge + "/proxy_arp", "1"}] = true
		d.sysctls[sysctl{family(e.prefix) + "/neigh/" + e.bridge + "/proxy_delay", "0"}] = true
	}
}

func family(p netip.Prefix) string {
	if p.Addr().Is4() {
		return "net/ipv4"
	}
	return "net/ipv6"
}

func halves(p netip.Prefix) (low, high netip.Prefix) {
	bits := p.Bits()
	low = netip.PrefixFrom(p.Addr(), bits+1)
	b := p.Addr().AsSlice()
	b[bits/8] |= 0x80 >> (bits % 8)
	addr, _ := netip.AddrFromSlice(b)
	return low, netip.PrefixFrom(addr, bits+1)
}
