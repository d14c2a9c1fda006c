package kernel

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/ti-mo/conntrack"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/drover-vm/drover"
)

// Check implements driver.Addresses.
func (a *Addresses) Check(ctx context.Context, bridge string) ([]drover.Check, error) {
	var all []drover.Check
	add := func(name, detail, fix string, err error, warning bool) {
		c := drover.Check{Name: name, OK: err == nil, Detail: detail}
		if err != nil {
			c.Detail, c.Fix, c.Warning = err.Error(), fix, warning
		}
		all = append(all, c)
	}
	err := a.look(ctx, "check the edge", func() error {
		link, err := needLink(bridge)
		add("edge has the bridge", bridge, "create the segment's bridge "+bridge+" at this edge", err, false)
		const forward4, forward6 = "net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"
		add("edge forwards", forward4+" is 1", "set "+forward4+" to 1", wantSysctl(forward4, "1"), false)
		add("edge forwards", forward6+" is 1", "set "+forward6+" to 1", wantSysctl(forward6, "1"), !hasIPv6(link))
		for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
			_, err := router(family)
			add("edge has a router", "default route", "add a default route with the site's router as next hop", err, family == unix.AF_INET6)
		}
		add("edge tracks sessions", "conntrack and nftables answer", "use a kernel with nf_conntrack, nf_conntrack_netlink and nf_tables", canTrack(), false)
		// Strict filters would drop what a proxied address sends.
		var strict error
		for _, s := range []string{"net/ipv4/conf/all/rp_filter", "net/ipv4/conf/" + bridge + "/rp_filter"} {
			if value, err := readSysctl(s); err == nil && value == "1" {
				strict = errors.Join(strict, fmt.Errorf("%s is 1", s))
			}
		}
		add("edge takes packets from where routes do not lead", "rp_filter is not strict", "set rp_filter to 2 or 0", strict, true)
		return nil
	})
	return all, err
}

// hasIPv6 says whether the edge is in the segment of a bridge by IPv6. Where it is
// not, nothing of that family is to be forwarded for it.
func hasIPv6(link netlink.Link) bool {
	if link == nil {
		return false
	}
	all, err := netlink.AddrList(link, netlink.FAMILY_V6)
	return err != nil || slices.ContainsFunc(all, func(a netlink.Addr) bool { return a.IP.IsGlobalUnicast() })
}

func wantSysctl(path, want string) error {
	value, err := readSysctl(path)
	if err == nil && value != want {
		err = fmt.Errorf("%s is %s", path, value)
	}
	return err
}

func canTrack() error {
	c, err := conntrack.Dial(nil)
	if err != nil {
		return err
	}
	_, err = c.StatsGlobal()
	n, bad := nftables.New()
	if bad == nil {
		_, bad = n.ListTables()
	}
	return errors.Join(err, c.Close(), bad)
}
