package labfile

import (
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/lab/wanem"
)

// Lengths of names. Interfaces are named after sites, hosts and segments with a
// prefix of up to four characters, and Linux allows fifteen; a lab's and a
// link's name become part of socket paths and of tables.
const (
	maxShortName = 11
	maxLabName   = 20
	maxLinkName  = 24
)

// Limits of a lab, far above what one machine runs: a larger number is a slip.
const (
	maxSites    = 32
	maxHosts    = 64 // at one site
	maxSegments = 64
	maxGuests   = 512
)

// WANRange holds the addresses at the ends of WAN links and between edges and
// routers, 4 for each; it is part of the shared address space of RFC 6598.
// WANRange6 is the same for IPv6, a unique local prefix (RFC 4193).
var (
	WANRange  = netip.MustParsePrefix("100.127.0.0/16")
	WANRange6 = netip.MustParsePrefix("fd4c:4142::/32")
)

// MTU limits and defaults in bytes.
const (
	minMTU     = 1280
	maxMTU     = 9000
	defaultMTU = 1600
)

// reservedSegments are names of bridges that are not segments'; see package topology.
var reservedSegments = []string{"net", "access"}

var lowerName = regexp.MustCompile(`^[a-z][a-z0-9-]*$`)

// checker judges what a decoder has read, and fills in defaults.
type checker struct {
	*decoder
	f *File
	// nodes maps every node's name to the key that took it.
	nodes map[string]string
	// used maps every address of the lab to the key that took it.
	used map[netip.Addr]string
	// pools are the ranges that DHCP servers give out, with the keys that took them.
	pools map[Range]string
}

func (c *checker) check() {
	c.nodes, c.used, c.pools = map[string]string{}, map[netip.Addr]string{}, map[Range]string{}
	c.name("name", c.f.Name, maxLabName)
	c.oneOf("accel", &c.f.Accel, "auto", "auto", "kvm", "tcg")
	c.oneOf("routing", &c.f.Routing, RoutingStatic, RoutingStatic, RoutingBGP)
	c.sites()
	c.segments()
	c.overlaps()
	c.links()
	c.clients()
	c.server()
	c.images()
	c.guests()
	c.hostMemory()
	c.balancers()
	c.dns()
	c.dhcp()
}

// name checks a name that becomes part of interface names, paths and host names.
func (c *checker) name(path, value string, limit int) bool {
	if c.bad[path] || value == "" && c.bad[parent(path)] {
		return false
	}
	if len(value) > limit || !lowerName.MatchString(value) {
		c.report(path, value, fmt.Sprintf("want a name of up to %d lower-case letters, digits and dashes, beginning with a letter", limit))
		return false
	}
	return true
}

// oneOf checks a word out of a few and fills in the default.
func (c *checker) oneOf(path string, value *string, def string, words ...string) {
	if c.bad[path] {
		return
	}
	if *value == "" {
		*value = def
	}
	if *value != "" && !slices.Contains(words, *value) {
		c.report(path, *value, "want one of "+strings.Join(words, ", "))
	}
}

// knownSite checks a reference to a site and returns it, or nil.
func (c *checker) knownSite(path, name string) *Site {
	if c.bad[path] || name == "" {
		return nil
	}
	s := c.f.site(name)
	if s == nil {
		c.report(path, name, "unknown site, want one of "+list(c.f.Sites, func(s Site) string { return s.Name }))
	}
	return s
}

// siteList checks a list of sites: known, none twice.
func (c *checker) siteList(path string, names []string) {
	for i, n := range names {
		at := fmt.Sprintf("%s[%d]", path, i)
		c.knownSite(at, n)
		if slices.Contains(names[:i], n) {
			c.report(at, n, "the site is there twice, want it once")
		}
	}
}

// node notes the name of a node, which no other may have.
func (c *checker) node(path, name string) {
	if other, taken := c.nodes[name]; taken {
		c.report(path, name, "the name is taken by "+other)
		return
	}
	c.nodes[name] = path
}

// address checks that addr is a host address of subnet that nobody has, and
// takes it. kind names the subnet in the problem.
func (c *checker) address(path string, addr netip.Addr, subnet netip.Prefix, kind string) {
	if c.bad[path] || !addr.IsValid() || !subnet.IsValid() {
		return
	}
	switch other, taken := c.used[addr]; {
	case !subnet.Contains(addr):
		c.report(path, addr.String(), fmt.Sprintf("not in the %s subnet %s", kind, subnet))
	case addr == subnet.Addr() || addr.Is4() && addr == last(subnet):
		c.report(path, addr.String(), fmt.Sprintf("the network's own or broadcast address of %s, want one between them", subnet))
	case taken:
		c.report(path, addr.String(), "the address is taken by "+other)
	default:
		c.used[addr] = path
	}
}

// nextFree takes the lowest free address of the subnet; invalid when it is full.
func (c *checker) nextFree(path string, subnet Prefix) netip.Addr {
	for a := subnet.First(); a.IsValid() && a != last(subnet.Prefix); a = a.Next() {
		if _, taken := c.used[a]; !taken {
			c.used[a] = path
			return a
		}
	}
	return netip.Addr{}
}

func (c *checker) sites() {
	f := c.f
	if len(f.Sites) == 0 && !c.bad["sites"] {
		c.report("sites", "", "want at least one site")
	}
	if len(f.Sites) > maxSites {
		c.report("sites", fmt.Sprint(len(f.Sites)), fmt.Sprintf("too many sites, want at most %d", maxSites))
	}
	seen := map[string]bool{}
	for i := range f.Sites {
		s := &f.Sites[i]
		at := fmt.Sprintf("sites[%d]", i)
		if c.name(at+".name", s.Name, maxShortName) {
			if seen[s.Name] {
				c.report(at+".name", s.Name, "two sites have this name")
			} else {
				c.node(at+".name", EdgeName(s.Name))
				if c.f.BGP() {
					c.node(at+".name", RouterName(s.Name))
				}
			}
			seen[s.Name] = true
		}
		if l := s.Location; l != nil {
			c.within(at+".location.lat", l.Lat, 90)
			c.within(at+".location.lon", l.Lon, 180)
		}
		for _, p := range []struct {
			key    string
			subnet netip.Prefix
		}{{".transport", s.Transport.Prefix}, {".access", s.Access.Prefix}, {".access6", s.Access6.Prefix}} {
			if p.subnet.IsValid() {
				c.used[p.subnet.Addr().Next()] = "the edge of site " + s.Name
			}
		}
		if s.Country != "" && drover.CheckCountry("country", s.Country) != nil {
			c.report(at+".country", s.Country, "want two capital letters, such as DE")
		}
		c.hosts(s, at)
	}
	c.nodes[ServerName] = "the server"
}

func (c *checker) within(path string, v, limit float64) {
	if !c.bad[path] && !(v >= -limit && v <= limit) {
		c.report(path, fmt.Sprint(v), fmt.Sprintf("want degrees from %v to %v", -limit, limit))
	}
}

func (c *checker) hosts(s *Site, at string) {
	if len(s.Hosts) > maxHosts {
		c.report(at+".hosts", fmt.Sprint(len(s.Hosts)), fmt.Sprintf("too many hosts, want at most %d at a site", maxHosts))
	}
	for i := range s.Hosts {
		h := &s.Hosts[i]
		path := fmt.Sprintf("%s.hosts[%d]", at, i)
		if c.name(path+".name", h.Name, maxShortName) {
			if h.Name == ServerName {
				c.report(path+".name", h.Name, "the name is taken by the server")
			} else {
				c.node(path+".name", h.Name)
			}
		}
		c.address(path+".address", h.Address.Addr, s.Transport.Prefix, "transport")
	}
	for i := range s.Hosts {
		h := &s.Hosts[i]
		path := fmt.Sprintf("%s.hosts[%d]", at, i)
		if h.Address.IsValid() || c.bad[path+".address"] || !s.Transport.IsValid() {
			continue
		}
		if h.Address.Addr = c.nextFree(path, s.Transport); !h.Address.IsValid() {
			c.report(at+".transport", s.Transport.String(), "too small for the site's hosts, want a larger subnet")
			return
		}
	}
}

func (c *checker) segments() {
	f := c.f
	if len(f.Segments) > maxSegments {
		c.report("segments", fmt.Sprint(len(f.Segments)), fmt.Sprintf("too many segments, want at most %d", maxSegments))
	}
	seen := map[string]bool{}
	for i := range f.Segments {
		s := &f.Segments[i]
		at := fmt.Sprintf("segments[%d]", i)
		if c.name(at+".name", s.Name, maxShortName) && seen[s.Name] {
			c.report(at+".name", s.Name, "two segments have this name")
		}
		if slices.Contains(reservedSegments, s.Name) {
			c.report(at+".name", s.Name, "the name is taken by a network that every site has")
		}
		seen[s.Name] = true
		if len(s.Sites) == 0 && !c.bad[at+".sites"] {
			c.report(at+".sites", "", "want at least one site")
		}
		c.siteList(at+".sites", s.Sites)
		if !s.Gateway.IsValid() && !c.bad[at+".gateway"] && s.Subnet.IsValid() {
			s.Gateway.Addr = s.Subnet.First()
		}
		c.address(at+".gateway", s.Gateway.Addr, s.Subnet.Prefix, "segment's")
		c.segment6(s, at)
	}
}

// segment6 is the segment's part of IPv6.
func (c *checker) segment6(s *Segment, at string) {
	if !s.Subnet6.IsValid() {
		if s.Gateway6.IsValid() && !c.bad[at+".subnet6"] {
			c.report(at+".gateway6", s.Gateway6.String(), "there is no subnet6 for it to be in, want subnet6 too")
		}
		return
	}
	if !s.Gateway6.IsValid() && !c.bad[at+".gateway6"] {
		s.Gateway6.Addr = s.Subnet6.First()
	}
	c.address(at+".gateway6", s.Gateway6.Addr, s.Subnet6.Prefix, "segment's IPv6")
}

// overlaps checks that no two subnets of the lab share an address.
func (c *checker) overlaps() {
	type named struct {
		path   string
		subnet netip.Prefix
	}
	all := []named{{"the addresses of the WAN links", WANRange}, {"the addresses of the WAN links", WANRange6}}
	add := func(path string, p netip.Prefix) {
		if !p.IsValid() || c.bad[path] {
			return
		}
		for _, o := range all {
			if o.subnet.Overlaps(p) {
				c.report(path, p.String(), fmt.Sprintf("overlaps %s (%s)", o.subnet, o.path))
				return
			}
		}
		all = append(all, named{path, p})
	}
	for i, s := range c.f.Sites {
		add(fmt.Sprintf("sites[%d].transport", i), s.Transport.Prefix)
		add(fmt.Sprintf("sites[%d].access", i), s.Access.Prefix)
		add(fmt.Sprintf("sites[%d].access6", i), s.Access6.Prefix)
	}
	for i, s := range c.f.Segments {
		add(fmt.Sprintf("segments[%d].subnet", i), s.Subnet.Prefix)
		add(fmt.Sprintf("segments[%d].subnet6", i), s.Subnet6.Prefix)
	}
}

func (c *checker) links() {
	names, joined := map[string]bool{}, map[[2]string]bool{}
	for i := range c.f.Links {
		l := &c.f.Links[i]
		at := fmt.Sprintf("links[%d]", i)
		a, b := c.knownSite(at+".a", l.A), c.knownSite(at+".b", l.B)
		if l.Name == "" && !c.bad[at+".name"] && a != nil && b != nil {
			l.Name = l.A + "-" + l.B
		}
		if l.Name != "" {
			c.name(at+".name", l.Name, maxLinkName)
			if names[l.Name] {
				c.report(at+".name", l.Name, "two links have this name")
			}
			names[l.Name] = true
		}
		if a != nil && b != nil {
			pair := [2]string{min(l.A, l.B), max(l.A, l.B)}
			switch {
			case a == b:
				c.report(at+".b", l.B, "both ends are the same site, want two")
			case joined[pair]:
				c.report(at, "", fmt.Sprintf("%s and %s are joined already, want one link between two sites", l.A, l.B))
			}
			joined[pair] = true
		}
		c.linkDelay(l, at, a, b)
		c.linkShape(l, at)
	}
	c.connected()
}

func (c *checker) linkDelay(l *Link, at string, a, b *Site) {
	switch {
	case c.bad[at+".delay"] || c.bad[at+".rtt"]:
	case l.Delay != nil && l.RTT != nil:
		c.report(at+".rtt", l.RTT.String(), "delay is given too, want one of them (delay is one way, rtt both)")
	case l.RTT != nil:
		half := *l.RTT / 2
		l.Delay = &half
	case l.Delay == nil && a != nil && b != nil:
		if a.Location == nil || b.Location == nil {
			c.report(at+".delay", "", "the key is missing, want delay (one way), rtt, or a location at both sites")
			return
		}
		d := Delay(DistanceDelay(*a.Location, *b.Location))
		l.Delay = &d
	}
}

func (c *checker) linkShape(l *Link, at string) {
	if l.MTU == 0 && !c.bad[at+".mtu"] {
		l.MTU = defaultMTU
		if _, set := c.lines[at+".mtu"]; set {
			l.MTU = 0
		}
	}
	if !c.bad[at+".mtu"] && (l.MTU < minMTU || l.MTU > maxMTU) {
		c.report(at+".mtu", fmt.Sprint(l.MTU), fmt.Sprintf("want a whole number from %d to %d", minMTU, maxMTU))
	}
	if l.Queue > wanem.MaxQueueBytes {
		c.report(at+".queue", fmt.Sprint(int64(l.Queue)), fmt.Sprintf("want at most %d MiB", wanem.MaxQueueBytes>>20))
	}
}

// Shape is what the emulator does to the link's packets.
func (l *Link) Shape() wanem.Shape {
	return wanem.Shape{
		RateBps: int64(l.Rate), Delay: l.OneWay(), Jitter: l.Jitter.Duration(),
		Loss: float64(l.Loss), QueueBytes: int(l.Queue),
	}
}

// connected checks that links lead from the first site to every other.
func (c *checker) connected() {
	if len(c.f.Sites) == 0 {
		return
	}
	reached := map[string]bool{c.f.Sites[0].Name: true}
	for grew := true; grew; {
		grew = false
		for _, l := range c.f.Links {
			if reached[l.A] != reached[l.B] {
				reached[l.A], reached[l.B] = true, true
				grew = true
			}
		}
	}
	for i, s := range c.f.Sites {
		if !reached[s.Name] && !c.bad[fmt.Sprintf("sites[%d].name", i)] {
			c.report(fmt.Sprintf("sites[%d]", i), s.Name, "no link leads to this site from "+c.f.Sites[0].Name)
		}
	}
}

func (c *checker) server() {
	s := c.knownSite("server", c.f.Server)
	if s == nil || !s.Transport.IsValid() {
		return
	}
	c.f.ServerAddress = c.nextFree("the server", s.Transport)
	if !c.f.ServerAddress.IsValid() {
		c.report("server", c.f.Server, fmt.Sprintf("transport %s has no address left for the server, want a larger subnet", s.Transport))
	}
}

// list joins the sorted names of items, for a problem's "want one of".
func list[T any](items []T, name func(T) string) string {
	names := make([]string, 0, len(items))
	for _, it := range items {
		if n := name(it); n != "" {
			names = append(names, n)
		}
	}
	slices.Sort(names)
	if len(names) == 0 {
		return "(there is none)"
	}
	return strings.Join(slices.Compact(names), ", ")
}

func keys[V any](m map[string]V) string {
	return list(slices.Collect(maps.Keys(m)), func(s string) string { return s })
}

func parent(path string) string {
	if i := strings.LastIndexAny(path, ".["); i >= 0 {
		return path[:i]
	}
	return ""
}

// last is the last address of a subnet, of IPv4 the broadcast address.
func last(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b) // 4 or 16 bytes, as they came
	return a
}
