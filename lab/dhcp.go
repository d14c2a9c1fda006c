package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/drover-vm/drover/lab/labfile"
	"github.com/drover-vm/drover/lab/node"
	"github.com/drover-vm/drover/lab/topology"
)

// dhcpPrefix begins the name of the service that gives out a segment's addresses
// with dnsmasq.
const dhcpPrefix = "dhcp-"

// dhcpServer is the program that serves DHCP where the lab file names no other.
const dhcpServer = "dnsmasq"

// isDnsmasq reports whether a service is one of dhcpServices.
func isDnsmasq(service string) bool { return strings.HasPrefix(service, dhcpPrefix) }

// dnsmasqLeases is the file of what a segment's dnsmasq has given out.
func dnsmasqLeases(segment string) string { return "/run/" + dhcpPrefix + segment + ".leases" }

// dhcpServices are the DHCP servers of an edge that are dnsmasq: one for each
// segment for which the lab file names it, and, where it names none, for each
// whose gateway the edge is and that has guests which ask. The latter give out
// nothing but the addresses that the lab file reserves.
func dhcpServices(f *labfile.File, n *topology.Node, dir string) ([]node.Service, error) {
	var list []node.Service
	for i := range f.Segments {
		seg := &f.Segments[i]
		conf := dnsmasqConf(f, seg, n.Site)
		if conf == "" {
			continue
		}
		name := dhcpPrefix + seg.Name
		if err := os.WriteFile(filepath.Join(dir, confDir, name+".conf"), []byte(conf), 0o644); err != nil {
			return nil, err
		}
		list = append(list, node.Service{
			Name: name,
			Args: []string{dhcpServer, "--keep-in-foreground", "--log-facility=-", "--pid-file=", "--conf-file=" + confDir + "/" + name + ".conf"},
		})
	}
	return list, nil
}

// dnsmasqConf is the configuration of a segment's dnsmasq at a site, "" when
// there is none.
func dnsmasqConf(f *labfile.File, seg *labfile.Segment, site string) string {
	i := slices.IndexFunc(f.DHCP, func(d labfile.DHCP) bool { return d.Site == site && d.Segment == seg.Name })
	hosts := ""
	for _, g := range askingGuests(f, seg.Name) {
		own := g.Address.String()
		if i >= 0 && g.Address6.IsValid() {
			own += ",[" + g.Address6.String() + "]"
		}
		hosts += fmt.Sprintf("dhcp-host=%s,%s,%s\n", g.MAC, own, g.Name)
	}
	leases, ranges := "leasefile-ro", fmt.Sprintf("dhcp-range=%s,static\n", seg.Subnet.Addr())
	switch {
	case i >= 0 && f.DHCP[i].Software != labfile.DHCPDnsmasq:
		return ""
	case i >= 0:
		d := &f.DHCP[i]
		leases = "dhcp-leasefile=" + dnsmasqLeases(seg.Name)
		ranges = fmt.Sprintf("dhcp-range=%s,%s,%d\n", d.Pool.From, d.Pool.To, leaseSeconds)
		if seg.Subnet6.IsValid() {
			ranges += fmt.Sprintf("dhcp-range=%s,%s,%d,%d\n", d.Pool6.From, d.Pool6.To, seg.Subnet6.Bits(), leaseSeconds)
		}
	case site != seg.Home() || hosts == "":
		return ""
	case seg.IsJoined() && slices.ContainsFunc(f.DHCP, func(d labfile.DHCP) bool { return d.Segment == seg.Name }):
		return "" // the other site's answers here, too
	}
	return fmt.Sprintf("port=0\nuser=root\ninterface=%s\nbind-interfaces\nexcept-interface=lo\n"+
		"%sdhcp-option=option:router,%s\ndhcp-authoritative\n%s\n%s",
		topology.SegmentBridge(seg.Name), ranges, seg.Gateway, leases, hosts)
}

// askingGuests are the guests in a segment that ask for their address.
func askingGuests(f *labfile.File, segment string) []*labfile.Guest {
	var list []*labfile.Guest
	for i := range f.Guests {
		if g := &f.Guests[i]; g.DHCP && g.Segment == segment {
			list = append(list, g)
		}
	}
	return list
}
