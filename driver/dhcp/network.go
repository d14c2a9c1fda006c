package dhcp

import (
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"
	"libvirt.org/go/libvirtxml"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// Where a network's definition is changed: in the network that runs, or in
// what is started next time.
const (
	live   = uint32(golibvirt.NetworkUpdateAffectLive)
	config = uint32(golibvirt.NetworkUpdateAffectConfig)
	// xmlInactive asks for the definition of config (virNetworkXMLFlags).
	xmlInactive = 1
)

// network is what libvirt says of one.
type network struct {
	segment string
	ref     golibvirt.Network
	// definitions are live's and, for a persistent network, config's.
	definitions map[uint32]libvirtxml.Network
	leases      []golibvirt.NetworkDhcpLease
	marks       []networkMark
}

// networkMark is a MAC's element in the network's metadata.
type networkMark struct {
	XMLName  xml.Name     `xml:"lease"`
	Owner    driver.Owner `xml:"owner,attr"`
	MAC      string       `xml:"mac,attr"`
	Hostname string       `xml:"hostname,attr,omitempty"`
	V4       string       `xml:"v4,attr,omitempty"`
	V6       string       `xml:"v6,attr,omitempty"`
	DUID     string       `xml:"duid,attr,omitempty"`
	// Static names the families, "4", "6" or "46", whose host entry was there
	// before; it is not removed.
	Static string `xml:"static,attr,omitempty"`
}

const (
	// markPrefix begins the namespace of a mark; a MAC follows.
	markPrefix = "urn:drover:lease:"
	// markAlias is the namespace's alias in the XML.
	markAlias = "drover"
)

// markSpace is the namespace of a MAC's mark.
func markSpace(mac string) string { return markPrefix + strings.ReplaceAll(mac, ":", "-") }

// readNetwork reads all there is to know of a segment's network.
func readNetwork(rpc *golibvirt.Libvirt, segment, name string) (*network, error) {
	ref, err := rpc.NetworkLookupByName(name)
	if err != nil {
		return nil, err
	}
	active, err := rpc.NetworkIsActive(ref)
	if err != nil {
		return nil, err
	}
	if active == 0 {
		return nil, drover.Errorf(drover.Unavailable, "", "network %s is not started", name)
	}
	persistent, err := rpc.NetworkIsPersistent(ref)
	if err != nil {
		return nil, err
	}
	n := &network{segment: segment, ref: ref, definitions: make(map[uint32]libvirtxml.Network)}
	for _, where := range []uint32{live, config} {
		var flags uint32
		if where == config {
			if persistent == 0 {
				continue
			}
			flags = xmlInactive
		}
		text, err := rpc.NetworkGetXMLDesc(ref, flags)
		if err != nil {
			return nil, err
		}
		var def libvirtxml.Network
		if err := def.Unmarshal(text); err != nil {
			return nil, fmt.Errorf("definition of network %s: %w", name, err)
		}
		n.definitions[where] = def
		if def.Metadata != nil {
			n.addMarks(def.Metadata.XML)
		}
	}
	n.leases, _, err = rpc.NetworkGetDhcpLeases(ref, nil, 1, 0)
	return n, err
}

// addMarks reads the marks among the metadata's elements.
func (n *network) addMarks(text string) {
	for dec := xml.NewDecoder(strings.NewReader(text)); ; {
		token, err := dec.Token()
		if err != nil {
			return // its end: libvirt has parsed it before
		}
		start, ok := token.(xml.StartElement)
		if !ok {
			continue
		}
		var m networkMark
		if !strings.HasPrefix(start.Name.Space, markPrefix) {
			if dec.Skip() != nil {
				return
			}
			continue
		}
		if dec.DecodeElement(&m, &start) != nil {
			return
		}
		m.XMLName = xml.Name{} // libvirt adds the namespace by itself
		known := slices.ContainsFunc(n.marks, func(o networkMark) bool { return o.MAC == m.MAC })
		if m.Owner.Validate() == nil && start.Name.Space == markSpace(m.MAC) && !known {
			n.marks = append(n.marks, m)
		}
	}
}

// mark returns a MAC's mark.
func (n *network) mark(mac string) (networkMark, bool) {
	for _, m := range n.marks {
		if m.MAC == mac {
			return m, true
		}
	}
	return networkMark{}, false
}

// address returns the mark's address of a family, invalid for none.
func (m networkMark) address(v4 bool) netip.Addr {
	text := m.V6
	if v4 {
		text = m.V4
	}
	a, _ := netip.ParseAddr(text)
	return a
}

// static reports whether the family's entry was there before.
func (m networkMark) static(v4 bool) bool {
	if v4 {
		return strings.Contains(m.Static, "4")
	}
	return strings.Contains(m.Static, "6")
}

// ip returns the network's element of a family that has DHCP, and its index.
func ip(def libvirtxml.Network, v4 bool) (libvirtxml.NetworkIP, int, bool) {
	for i, one := range def.IPs {
		a, err := netip.ParseAddr(one.Address)
		if err == nil && a.Is4() == v4 && one.DHCP != nil {
			return one, i, true
		}
	}
	return libvirtxml.NetworkIP{}, 0, false
}

// prefix returns the network's address and prefix of a family.
func prefix(one libvirtxml.NetworkIP) (netip.Prefix, error) {
	a, err := netip.ParseAddr(one.Address)
	if err != nil {
		return netip.Prefix{}, err
	}
	length := int(one.Prefix)
	if mask := net.ParseIP(one.Netmask).To4(); mask != nil {
		length, _ = net.IPMask(mask).Size()
	}
	return netip.PrefixFrom(a, length), nil
}

// pools returns the ranges of a family.
func pools(one libvirtxml.NetworkIP) ([]pool, error) {
	var list []pool
	for _, r := range one.DHCP.Ranges {
		p, err := parsePool(r.Start + "-" + r.End)
		if err != nil {
			return nil, err
		}
		list = append(list, p)
	}
	return list, nil
}

// client is who asks: a MAC for DHCP, a DUID for DHCPv6.
type client struct{ mac, duid string }

func clientOf(want driver.LeaseRequest) client { return client{want.MAC, colons(want.DUID)} }

// host makes the client's entry.
func (c client) host(a netip.Addr, name string) libvirtxml.NetworkDHCPHost {
	if name != "" && (name[0] < 'a' || name[0] > 'z') {
		name = "" // libvirt takes names that begin with a letter only
	}
	h := libvirtxml.NetworkDHCPHost{Name: name, IP: a.String(), MAC: c.mac}
	if a.Is6() {
		h.MAC, h.ID = "", c.duid
	}
	return h
}

// has reports whether the entry is the client's.
func (c client) has(h libvirtxml.NetworkDHCPHost) bool {
	if mac, err := driver.NormalMAC(h.MAC); err == nil {
		return mac == c.mac
	}
	return h.ID != "" && sameHex(h.ID, c.duid)
}

// leased reports whether the lease is the client's.
func (c client) leased(l golibvirt.NetworkDhcpLease) bool {
	if a, err := netip.ParseAddr(l.Ipaddr); err == nil && a.Is6() && len(l.Clientid) > 0 {
		return sameHex(l.Clientid[0], c.duid)
	}
	return leaseMAC(l) == c.mac
}

// leaseMAC is the MAC of a lease's client.
func leaseMAC(l golibvirt.NetworkDhcpLease) string {
	a, err := netip.ParseAddr(l.Ipaddr)
	if err == nil && a.Is6() && len(l.Clientid) > 0 {
		if mac := duidMAC(unhex(l.Clientid[0])); mac != "" {
			return mac
		}
	}
	if len(l.Mac) > 0 {
		mac, _ := driver.NormalMAC(l.Mac[0])
		return mac
	}
	return ""
}

func unhex(text string) []byte {
	raw, err := hex.DecodeString(strings.ReplaceAll(text, ":", ""))
	if err != nil || len(raw) == 0 {
		return nil
	}
	return raw
}

func sameHex(a, b string) bool { return strings.EqualFold(a, b) }

// running reports whether a lease has not ended.
func running(l golibvirt.NetworkDhcpLease, now time.Time) bool {
	return l.Expirytime == 0 || l.Expirytime > now.Unix()
}

// used says which addresses of a family are not free, those to avoid among them.
func (n *network) used(v4 bool, now time.Time, avoid ...netip.Addr) map[netip.Addr]use {
	used := make(map[netip.Addr]use)
	for _, a := range avoid {
		used[a] = taken
	}
	for _, def := range n.definitions {
		one, _, ok := ip(def, v4)
		if !ok {
			continue
		}
		for _, text := range append([]string{one.Address}, hostIPs(one)...) {
			if a, err := netip.ParseAddr(text); err == nil {
				used[a] = taken
			}
		}
	}
	for _, l := range n.leases {
		if a, err := netip.ParseAddr(l.Ipaddr); err == nil && a.Is4() == v4 && running(l, now) {
			used[a] = taken
		}
	}
	for _, m := range n.marks {
		if a := m.address(v4); a.IsValid() {
			used[a] = taken
		}
	}
	return used
}

func hostIPs(one libvirtxml.NetworkIP) []string {
	var list []string
	for _, h := range one.DHCP.Hosts {
		list = append(list, h.IP)
	}
	return list
}

// own returns the address that a client has without an owner: of a host entry,
// or of a lease.
func (n *network) own(c client, v4 bool, now time.Time) (a netip.Addr, static, ok bool) {
	for _, def := range n.definitions {
		one, _, serves := ip(def, v4)
		if !serves {
			continue
		}
		for _, h := range one.DHCP.Hosts {
			if a, err := netip.ParseAddr(h.IP); err == nil && c.has(h) {
				return a, true, true
			}
		}
	}
	for _, l := range n.leases {
		if a, err := netip.ParseAddr(l.Ipaddr); err == nil && a.Is4() == v4 && running(l, now) && c.leased(l) {
			return a, false, true
		}
	}
	return netip.Addr{}, false, false
}

// update adds or deletes a host entry in one place, or in both.
func (n *network) update(rpc *golibvirt.Libvirt, where uint32, h libvirtxml.NetworkDHCPHost, v4, add bool) error {
	def, ok := n.definitions[where]
	if !ok { // both: they have the same elements
		def = n.definitions[live]
	}
	_, index, _ := ip(def, v4)
	text, err := xml.Marshal(h)
	if err != nil {
		return err
	}
	command := golibvirt.NetworkUpdateCommandDelete
	if add {
		command = golibvirt.NetworkUpdateCommandAddLast
	}
	return rpc.NetworkUpdateCompat(n.ref, command, golibvirt.NetworkSectionIPDhcpHost, int32(index), string(text), golibvirt.NetworkUpdateFlags(where))
}

// places calls f for the definitions that need it, for both at once if they
// do: each call makes libvirt write files and dnsmasq read them.
func (n *network) places(needs func(libvirtxml.Network) bool, f func(where uint32) error) error {
	var where uint32
	for place, def := range n.definitions {
		if needs(def) {
			where |= place
		}
	}
	if where == live|config && len(n.definitions[live].IPs) != len(n.definitions[config].IPs) {
		if err := f(live); err != nil {
			return err
		}
		where = config
	}
	if where == 0 {
		return nil
	}
	return f(where)
}

// putHost has a host entry be in all places.
func (n *network) putHost(rpc *golibvirt.Libvirt, h libvirtxml.NetworkDHCPHost, v4 bool) error {
	return n.places(func(def libvirtxml.Network) bool {
		one, _, serves := ip(def, v4)
		return serves && !slices.ContainsFunc(one.DHCP.Hosts, func(o libvirtxml.NetworkDHCPHost) bool { return sameHost(o, h) })
	}, func(where uint32) error { return n.update(rpc, where, h, v4, true) })
}

// dropHost has the client's entry for the address be in no place.
func (n *network) dropHost(rpc *golibvirt.Libvirt, c client, a netip.Addr) error {
	v4 := a.Is4()
	for {
		var found libvirtxml.NetworkDHCPHost
		for _, def := range n.definitions {
			one, _, serves := ip(def, v4)
			if !serves {
				continue
			}
			for _, h := range one.DHCP.Hosts {
				if at, err := netip.ParseAddr(h.IP); err == nil && at == a && c.has(h) {
					found = h
				}
			}
		}
		if found.IP == "" {
			return nil
		}
		err := n.places(func(def libvirtxml.Network) bool {
			one, _, serves := ip(def, v4)
			return serves && slices.Contains(one.DHCP.Hosts, found)
		}, func(where uint32) error { return n.update(rpc, where, found, v4, false) })
		if err != nil {
			return err
		}
		for _, def := range n.definitions {
			if one, _, serves := ip(def, v4); serves {
				one.DHCP.Hosts = slices.DeleteFunc(one.DHCP.Hosts, func(h libvirtxml.NetworkDHCPHost) bool { return h == found })
			}
		}
	}
}

// sameHost reports whether two entries give the same address to the same client.
func sameHost(a, b libvirtxml.NetworkDHCPHost) bool {
	x, err1 := netip.ParseAddr(a.IP)
	y, err2 := netip.ParseAddr(b.IP)
	return err1 == nil && err2 == nil && x == y && strings.EqualFold(a.MAC, b.MAC) && sameHex(a.ID, b.ID)
}

// setMark writes a MAC's mark, or removes it.
func (n *network) setMark(rpc *golibvirt.Libvirt, mac string, m *networkMark) error {
	flags := live
	if _, ok := n.definitions[config]; ok {
		flags |= config
	}
	var text, alias golibvirt.OptString
	if m != nil {
		raw, err := xml.Marshal(m)
		if err != nil {
			return err
		}
		text, alias = optional(string(raw)), optional(markAlias)
	}
	return rpc.NetworkSetMetadata(n.ref, int32(golibvirt.NetworkMetadataElement), text, alias, optional(markSpace(mac)), flags)
}
