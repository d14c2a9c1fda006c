package kernel

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// ndaProtocol is NDA_PROTOCOL of linux/neighbour.h: who made a neighbour entry.
const ndaProtocol = 12

// proxyEntry is one of the kernel's proxy entries.
type proxyEntry struct {
	proxy
	protocol byte
}

// listProxies reads the proxy entries of an interface, with their protocol,
// which the netlink package does not read.
func listProxies(index int, dev string, family int) ([]proxyEntry, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETNEIGH, unix.NLM_F_DUMP)
	req.AddData(&netlink.Ndmsg{Family: uint8(family), Index: uint32(index), Flags: netlink.NTF_PROXY})
	var messages [][]byte
	var err error
	for range dumpTries {
		if messages, err = req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWNEIGH); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("list proxy entries: %w", err)
	}
	var all []proxyEntry
	for _, m := range messages {
		var head netlink.Ndmsg
		if len(m) < head.Len() {
			continue
		}
		attributes, err := nl.ParseRouteAttr(m[head.Len():])
		if err != nil {
			return nil, fmt.Errorf("list proxy entries: %w", err)
		}
		// struct ndmsg: family at 0, interface at 4, flags at 10.
		if int(nl.NativeEndian().Uint32(m[4:8])) != index || m[10]&netlink.NTF_PROXY == 0 {
			continue
		}
		e := proxyEntry{proxy: proxy{dev: dev}}
		for _, a := range attributes {
			switch {
			case a.Attr.Type == netlink.NDA_DST:
				e.addr, _ = netip.AddrFromSlice(a.Value)
			case a.Attr.Type == ndaProtocol && len(a.Value) > 0:
				e.protocol = a.Value[0]
			}
		}
		all = append(all, e)
	}
	return all, nil
}

// findProxy returns the entry, nil if there is none.
func findProxy(p proxy) (*proxyEntry, int, error) {
	l, err := needLink(p.dev)
	if err != nil {
		return nil, 0, err
	}
	all, err := listProxies(l.Attrs().Index, p.dev, netlinkFamily(p.addr))
	if err != nil {
		return nil, 0, err
	}
	for _, e := range all {
		if e.addr == p.addr {
			return &e, l.Attrs().Index, nil
		}
	}
	return nil, l.Attrs().Index, nil
}

func ensureProxy(p proxy) error {
	have, index, err := findProxy(p)
	switch {
	case err != nil:
		return err
	case have != nil && have.protocol != protocol:
		return drover.Errorf(drover.Exists, "proxy entry for "+p.addr.String(), "there is one already that is not Drover's")
	case have != nil:
		return nil
	}
	return changeProxy(p, index, unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
}

func removeProxy(p proxy) error {
	have, index, err := findProxy(p)
	if drover.KindOf(err) == drover.NotFound || err == nil && (have == nil || have.protocol != protocol) {
		return nil
	}
	if err != nil {
		return err
	}
	return gone("remove", changeProxy(p, index, unix.RTM_DELNEIGH, 0))
}

func changeProxy(p proxy, index, command, flags int) error {
	req := nl.NewNetlinkRequest(command, flags|unix.NLM_F_ACK)
	req.AddData(&netlink.Ndmsg{Family: uint8(netlinkFamily(p.addr)), Index: uint32(index), State: netlink.NUD_PERMANENT, Flags: netlink.NTF_PROXY})
	req.AddData(nl.NewRtAttr(netlink.NDA_DST, p.addr.AsSlice()))
	req.AddData(nl.NewRtAttr(ndaProtocol, []byte{protocol}))
	if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return fmt.Errorf("proxy entry for %v on %s: %w", p.addr, p.dev, err)
	}
	return nil
}

// forgetNeighbours drops what the edge has learnt of the addresses on the
// bridge, so that it asks anew.
func forgetNeighbours(addresses []netip.Addr, bridge string) error {
	l, err := needLink(bridge)
	if err != nil {
		return err
	}
	all, err := netlink.NeighList(l.Attrs().Index, netlink.FAMILY_ALL)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("list neighbours on %s: %w", bridge, err)
	}
	for _, n := range all {
		addr, _ := netip.AddrFromSlice(n.IP)
		// What somebody has set for good is not learnt.
		if n.State&netlink.NUD_PERMANENT != 0 || !slices.Contains(addresses, addr.Unmap()) {
			continue
		}
		if err := gone("forget neighbour "+addr.String(), netlink.NeighDel(&n)); err != nil {
			return err
		}
	}
	return nil
}

// stands reports whether everything is there that an entry demands.
func stands(e entry) (bool, error) {
	d := demands(e)
	for r := range d.routes {
		want, err := r.wanted()
		if kind := drover.KindOf(err); err != nil && (kind == drover.NotFound || kind == drover.Refused) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		have, err := findRoute(r.prefix)
		if err != nil || have == nil || !sameRoute(have, want) {
			return false, err
		}
	}
	for r := range d.rules {
		if has, err := hasRule(r); err != nil || !has {
			return false, err
		}
	}
	for p := range d.proxies {
		have, _, err := findProxy(p)
		if drover.KindOf(err) == drover.NotFound && err != nil {
			return false, nil
		}
		if err != nil || have == nil {
			return false, err
		}
	}
	for s := range d.sysctls {
		if value, err := readSysctl(s.path); err != nil || value != s.value {
			return false, nil //nolint:nilerr // an interface that is gone has no sysctl
		}
	}
	return standsWay(d, e)
}

// standsWay is the same for the way to another edge.
func standsWay(d demand, e entry) (bool, error) {
	for p := range d.peers {
		l, err := carrier()
		if err != nil || l == nil {
			return false, err
		}
		for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
			routes, err := listRoutes(family, &netlink.Route{Table: p.table}, netlink.RT_FILTER_TABLE)
			if err != nil || len(routes) == 0 {
				return false, err
			}
		}
	}
	if e.role == driver.RoleRest || !e.prefix.IsSingleIP() {
		_, err := needLink(e.bridge)
		if drover.KindOf(err) == drover.NotFound && err != nil {
			return false, nil
		}
		return err == nil, err
	}
	return true, nil
}
