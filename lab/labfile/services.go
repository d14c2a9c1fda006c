package labfile

import "net/netip"

// How packets find other sites; see File.Routing.
const (
	RoutingStatic = "static"
	RoutingBGP    = "bgp"
)

// Software of name servers.
const (
	DNSBind = "bind"
	DNSKnot = "knot"
)

// Software of DHCP servers.
const (
	DHCPKea     = "kea"
	DHCPDnsmasq = "dnsmasq"
)

// DNS is a zone with its name servers, which run on edges.
type DNS struct {
	Zone string `yaml:"zone,need" want:"a domain name such as lab.example"`
	// Primary is the site whose server takes updates.
	Primary string `yaml:"primary,need" want:"the name of a site"`
	// Secondaries are the sites whose servers follow it.
	Secondaries []string `yaml:"secondaries" want:"a list of site names"`
	// Software is bind or knot.
	Software string `yaml:"software" want:"bind or knot"`
	// TTL of the zone's records in seconds.
	TTL int `yaml:"ttl" want:"a whole number of seconds from 1 to 86400"`
}

// Sites are the sites that serve the zone, the primary's first.
func (d *DNS) Sites() []string { return append([]string{d.Primary}, d.Secondaries...) }

// DHCP is a DHCP server for a segment, which runs on a site's edge. It serves
// IPv6 too where the segment has it.
type DHCP struct {
	Site    string `yaml:"site,need" want:"the name of a site"`
	Segment string `yaml:"segment,need" want:"the name of a segment"`
	// Software is kea or dnsmasq, the same for all of a site.
	Software string `yaml:"software" want:"kea or dnsmasq"`
	// Pool and Pool6 are what it gives to whoever asks; a few free addresses at the
	// end of the subnet unless set.
	Pool  Range `yaml:"pool" want:"a range of the segment's addresses such as 10.50.0.200-10.50.0.215"`
	Pool6 Range `yaml:"pool6" want:"a range of the segment's addresses such as fd00:50::1:0-fd00:50::1:ff"`
}

// Balancer is a service that HAProxy on a site's edge spreads over guests.
type Balancer struct {
	Name string `yaml:"name,need" want:"a name of up to 32 lower-case letters, digits and dashes"`
	Site string `yaml:"site,need" want:"the name of a site"`
	// Address and Address6 are in the site's access or transport subnet; the
	// edge's own unless set, of the access subnet if there is one.
	Address  Addr  `yaml:"address" want:"an IPv4 address such as 10.3.9.80"`
	Address6 Addr6 `yaml:"address6" want:"an IPv6 address such as fd00:9::80"`
	Port     int   `yaml:"port,need" want:"a port from 1 to 65535"`
	// Backends are the guests that serve, each at BackendPort.
	Backends    []string `yaml:"backends" want:"a list of guests"`
	BackendPort int      `yaml:"backend_port" want:"a port from 1 to 65535"`
	// CheckHTTP is the path whose answer says that a backend is healthy; without
	// it one that takes a connection is.
	CheckHTTP string `yaml:"check_http" want:"a path such as /healthz"`
}

// Listens are the addresses of the service, IPv4 first.
func (b *Balancer) Listens() []netip.AddrPort {
	list := []netip.AddrPort{netip.AddrPortFrom(b.Address.Addr, uint16(b.Port))}
	if b.Address6.IsValid() {
		list = append(list, netip.AddrPortFrom(b.Address6.Addr, uint16(b.Port)))
	}
	return list
}
