package labfile

import (
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"
)

// Limits of services.
const (
	maxBalancers    = 64
	maxZones        = 16
	maxBalancerName = 32
	maxZoneName     = 100 // of 253, the rest is for the names in it
	maxPort         = 65535
	// maxTTL is a day: a lab does not live longer.
	maxTTL     = 86400
	defaultTTL = 300
	// poolSize is how many addresses a DHCP server gets that is not told which:
	// more than anything in a lab asks for at once.
	poolSize = 16
	// poolBits bounds how far from a subnet's first address pools are looked for.
	poolBits = 16
)

var (
	zoneName = regexp.MustCompile(`^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	// recordName is a name below a zone. The servers take underscores, too.
	recordName = regexp.MustCompile(`^([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.)*[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?$`)
	urlPath    = regexp.MustCompile(`^/[A-Za-z0-9._~/?&=%-]*$`)
)

// NameServer is the name of a site's name server within every zone it serves.
func NameServer(site string) string { return "ns-" + site }

func (c *checker) balancers() {
	if len(c.f.Balancers) > maxBalancers {
		c.report("balancers", fmt.Sprint(len(c.f.Balancers)), fmt.Sprintf("too many load balancers, want at most %d", maxBalancers))
	}
	names := map[string]bool{}
	listens := map[netip.AddrPort]string{}
	for i := range c.f.Balancers {
		b := &c.f.Balancers[i]
		at := fmt.Sprintf("balancers[%d]", i)
		if c.name(at+".name", b.Name, maxBalancerName) {
			if names[b.Name] {
				c.report(at+".name", b.Name, "two load balancers have this name")
			}
			if c.f.guest(b.Name) != nil {
				c.report(at+".name", b.Name, "a guest has this name")
			}
		}
		names[b.Name] = true
		c.port(at+".port", b.Port)
		c.backends(b, at)
		if s := c.knownSite(at+".site", b.Site); s != nil {
			c.balancerAddress(b, s, at)
		}
		if !b.Address.IsValid() {
			continue
		}
		for _, l := range b.Listens() {
			if other, taken := listens[l]; taken && !c.bad[at+".port"] {
				c.report(at+".port", fmt.Sprint(b.Port), fmt.Sprintf("%s is taken by load balancer %s", l, other))
			}
			listens[l] = b.Name
		}
	}
}

// balancerAddress checks the addresses of a service, or gives it the edge's.
func (c *checker) balancerAddress(b *Balancer, s *Site, at string) {
	own := s.Transport.Prefix
	if s.Access.IsValid() {
		own = s.Access.Prefix
	}
	switch {
	case c.bad[at+".address"] || !own.IsValid():
	case !b.Address.IsValid():
		b.Address.Addr = own.Addr().Next()
	case s.Transport.Contains(b.Address.Addr):
		c.shared(at+".address", b.Address.Addr, s.Transport.Prefix)
	default:
		c.shared(at+".address", b.Address.Addr, own)
	}
	switch {
	case c.bad[at+".address6"]:
	case b.Address6.IsValid() && !s.Access6.IsValid():
		c.report(at+".address6", b.Address6.String(), fmt.Sprintf("site %s has no access6 subnet for it", s.Name))
	case s.Access6.IsValid() && !b.Address6.IsValid():
		b.Address6.Addr = s.Access6.First()
	case s.Access6.IsValid():
		c.shared(at+".address6", b.Address6.Addr, s.Access6.Prefix)
	}
}

// balancerTaken begins the key of an address that is a service's: services may
// share one, at different ports.
const balancerTaken = "balancers["

// shared is address for a service, which may use the edge's own and that of
// another service.
func (c *checker) shared(path string, addr netip.Addr, subnet netip.Prefix) {
	if addr == subnet.Addr().Next() || strings.HasPrefix(c.used[addr], balancerTaken) {
		return
	}
	c.address(path, addr, subnet, "site's")
}

func (c *checker) port(path string, port int) {
	if !c.bad[path] && (port < 1 || port > maxPort) {
		c.report(path, fmt.Sprint(port), fmt.Sprintf("want a port from 1 to %d", maxPort))
	}
}

func (c *checker) backends(b *Balancer, at string) {
	for i, name := range b.Backends {
		path := fmt.Sprintf("%s.backends[%d]", at, i)
		switch {
		case c.f.guest(name) == nil:
			c.report(path, name, "unknown guest, want one of "+list(c.f.Guests, func(g Guest) string { return g.Name }))
		case slices.Contains(b.Backends[:i], name):
			c.report(path, name, "the guest is there twice, want it once")
		}
	}
	if _, set := c.lines[at+".backend_port"]; !set {
		b.BackendPort = b.Port
	} else {
		c.port(at+".backend_port", b.BackendPort)
	}
	if b.CheckHTTP != "" && !urlPath.MatchString(b.CheckHTTP) {
		c.report(at+".check_http", b.CheckHTTP, "want a path such as /healthz")
	}
}

func (c *checker) dns() {
	if len(c.f.DNS) > maxZones {
		c.report("dns", fmt.Sprint(len(c.f.DNS)), fmt.Sprintf("too many zones, want at most %d", maxZones))
	}
	zones, software := map[string]bool{}, map[string]string{}
	for i := range c.f.DNS {
		d := &c.f.DNS[i]
		at := fmt.Sprintf("dns[%d]", i)
		if !c.bad[at+".zone"] && d.Zone != "" {
			if len(d.Zone) > maxZoneName || !zoneName.MatchString(d.Zone) {
				c.report(at+".zone", d.Zone, fmt.Sprintf("want a domain name of up to %d lower-case letters, digits, dashes and dots", maxZoneName))
			} else if zones[d.Zone] {
				c.report(at+".zone", d.Zone, "the zone is there twice, want it once")
			}
		}
		zones[d.Zone] = true
		c.oneOf(at+".software", &d.Software, DNSBind, DNSBind, DNSKnot)
		c.knownSite(at+".primary", d.Primary)
		c.siteList(at+".secondaries", d.Secondaries)
		if j := slices.Index(d.Secondaries, d.Primary); j >= 0 && d.Primary != "" {
			c.report(fmt.Sprintf("%s.secondaries[%d]", at, j), d.Primary, "the site is the primary, want another")
		}
		for _, s := range d.Sites() {
			c.sameSoftware(at+".software", s, d.Software, software)
		}
		if _, set := c.lines[at+".ttl"]; !set {
			d.TTL = defaultTTL
		}
		if !c.bad[at+".ttl"] && (d.TTL < 1 || d.TTL > maxTTL) {
			c.report(at+".ttl", fmt.Sprint(d.TTL), fmt.Sprintf("want a whole number of seconds from 1 to %d", maxTTL))
		}
	}
	c.recordNames()
}

// sameSoftware checks that a site has one kind of server: two would want the
// same port.
func (c *checker) sameSoftware(path, site, software string, of map[string]string) {
	if site == "" || software == "" || c.bad[path] {
		return
	}
	if other, set := of[site]; set && other != software {
		c.report(path, software, fmt.Sprintf("site %s runs %s already, want one of them for all of the site", site, other))
		return
	}
	of[site] = software
}

// recordNames checks that the lab's names can be names of a zone.
func (c *checker) recordNames() {
	if len(c.f.DNS) == 0 {
		return
	}
	taken := map[string]string{}
	for _, d := range c.f.DNS {
		for _, s := range d.Sites() {
			taken[NameServer(s)] = "the name server of site " + s
		}
	}
	check := func(path, name string) {
		if c.bad[path] || name == "" {
			return
		}
		if other, is := taken[strings.ToLower(name)]; is {
			c.report(path, name, "the name is taken by "+other)
		} else if !recordName.MatchString(name) {
			c.report(path, name, "not a name that a DNS zone can have, want labels of up to 63 letters, digits, dashes and underscores")
		}
	}
	for i := range c.f.Guests {
		check(fmt.Sprintf("guests[%d].name", i), c.f.Guests[i].Name)
	}
	for i := range c.f.Balancers {
		check(fmt.Sprintf("balancers[%d].name", i), c.f.Balancers[i].Name)
	}
}

func (c *checker) dhcp() {
	software, served := map[string]string{}, map[[2]string]bool{}
	for i := range c.f.DHCP {
		d := &c.f.DHCP[i]
		at := fmt.Sprintf("dhcp[%d]", i)
		c.oneOf(at+".software", &d.Software, DHCPKea, DHCPKea, DHCPDnsmasq)
		c.knownSite(at+".site", d.Site)
		c.sameSoftware(at+".software", d.Site, d.Software, software)
		seg := c.knownSegment(at+".segment", d.Segment, d.Site)
		if seg == nil {
			continue
		}
		for _, s := range seg.Sites {
			switch {
			case !served[[2]string{s, seg.Name}]:
			case s == d.Site:
				c.report(at+".segment", d.Segment, fmt.Sprintf("site %s has a DHCP server for it already", s))
			case seg.IsJoined():
				c.report(at+".segment", d.Segment, fmt.Sprintf("the segment is joined with site %s, whose DHCP server would answer too, want one of them", s))
			}
		}
		served[[2]string{d.Site, seg.Name}] = true
		c.pool(at+".pool", &d.Pool, seg.Subnet.Prefix)
		if !seg.Subnet6.IsValid() {
			if d.Pool6.IsValid() {
				c.report(at+".pool6", d.Pool6.String(), "there is no IPv6 in the segment, want subnet6 there too")
			}
			continue
		}
		c.pool(at+".pool6", &d.Pool6, seg.Subnet6.Prefix)
	}
}

// pool checks a range that a DHCP server gives out, or finds one.
func (c *checker) pool(path string, r *Range, subnet netip.Prefix) {
	if c.bad[path] || !subnet.IsValid() {
		return
	}
	if !r.IsValid() {
		if *r = c.freePool(subnet); !r.IsValid() {
			c.report(path, subnet.String(), fmt.Sprintf("the subnet has no %d free addresses in a row, want a larger subnet or a pool", poolSize))
			return
		}
		c.pools[*r] = path
		return
	}
	if !subnet.Contains(r.From) || !subnet.Contains(r.To) || r.From == subnet.Addr() || r.From.Is4() && r.To == last(subnet) {
		c.report(path, r.String(), "want addresses within "+subnet.String())
		return
	}
	if a, by := c.conflict(*r); by != "" {
		c.report(path, r.String(), fmt.Sprintf("%s in it is taken by %s", a, by))
		return
	}
	c.pools[*r] = path
}

// conflict finds the last address of r that somebody else has.
func (c *checker) conflict(r Range) (at netip.Addr, by string) {
	for _, a := range slices.SortedFunc(maps.Keys(c.used), netip.Addr.Compare) {
		if r.Contains(a) {
			at, by = a, c.used[a]
		}
	}
	for p, key := range c.pools {
		if p.Contains(r.To) || r.Contains(p.To) {
			if end := p.To; !at.IsValid() || at.Less(end) {
				at, by = end, key
			}
		}
	}
	return at, by
}

// freePool finds poolSize free addresses in a row: from the middle of the subnet
// upwards, then from its beginning. Of a large subnet it looks at the first part.
func (c *checker) freePool(subnet netip.Prefix) Range {
	bits := max(subnet.Bits(), subnet.Addr().BitLen()-poolBits)
	middle := subnet.Addr().AsSlice()
	middle[bits/8] |= 1 << (7 - bits%8)
	half, _ := netip.AddrFromSlice(middle)
	part := netip.PrefixFrom(subnet.Addr(), bits)
	for _, from := range []netip.Addr{half, subnet.Addr().Next()} {
		for {
			r := Range{From: from, To: from}
			for range poolSize - 1 {
				r.To = r.To.Next()
			}
			if !part.Contains(r.To) || r.To == last(part) {
				break
			}
			a, by := c.conflict(r)
			if by == "" {
				return r
			}
			from = a.Next()
		}
	}
	return Range{}
}

// guest returns the guest of that name, or nil.
func (f *File) guest(name string) *Guest {
	for i := range f.Guests {
		if f.Guests[i].Name == name {
			return &f.Guests[i]
		}
	}
	return nil
}
