package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// linkWait is how long the network device may take to appear: probing it
// takes a fraction of a second even when emulated on a busy machine.
const linkWait = 20 * time.Second

// waitLink returns the first Ethernet device, set up, and sets up loopback.
func waitLink(ctx context.Context, limit time.Duration, set settings) (netlink.Link, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		links, err := netlink.LinkList()
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return nil, fmt.Errorf("list network devices: %w", err)
		}
		var found netlink.Link
		for _, l := range links {
			switch {
			case l.Attrs().Flags&net.FlagLoopback != 0:
				err = netlink.LinkSetUp(l)
			case found == nil && len(l.Attrs().HardwareAddr) == 6:
				found = l
				if err = configureIPv6(l.Attrs().Name, set); err == nil {
					err = netlink.LinkSetUp(l)
				}
			}
			if err != nil {
				return nil, fmt.Errorf("set up %s: %w", l.Attrs().Name, err)
			}
		}
		if found != nil {
			return found, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("no network device after %v", limit)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// cutLinks sets all devices but loopback down, as systems do before they power
// off: a kernel that is powering off must have nothing to send. Debian's 6.1.192,
// and any that lacks Linux's commit 0d0eff39ceb3 ("virtio_ring: fix infinite loop
// in virtnet_poll_cleantx when device is broken"), never powers off when a
// connection retransmits after its virtio devices were shut down: the transmit
// queue's loop waits for buffers that a closed queue does not give back.
func cutLinks(log *slog.Logger) error {
	links, err := netlink.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("list network devices: %w", err)
	}
	var faults []error
	for _, l := range links {
		a := l.Attrs()
		if a.Flags&net.FlagLoopback != 0 || a.Flags&net.FlagUp == 0 {
			continue
		}
		if err := netlink.LinkSetDown(l); err != nil {
			faults = append(faults, fmt.Errorf("set down %s: %w", a.Name, err))
			continue
		}
		log.Info("link set down", "device", a.Name)
	}
	return errors.Join(faults...)
}

// configureIPv6 decides, before the device is up, what the kernel does by itself.
// The lab's addresses are known to be nobody else's, so nothing waits for
// duplicates; router advertisements are for those who ask for them.
func configureIPv6(device string, set settings) error {
	accept, autoconf := "0", "0"
	if set.ra {
		accept, autoconf = "2", "1"
	}
	for _, s := range []struct{ key, value string }{
		{"accept_dad", "0"}, {"dad_transmits", "0"}, {"accept_ra", accept}, {"autoconf", autoconf},
	} {
		err := os.WriteFile("/proc/sys/net/ipv6/conf/"+device+"/"+s.key, []byte(s.value), 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) { // a kernel without IPv6
			return fmt.Errorf("IPv6 setting %s: %w", s.key, err)
		}
	}
	return nil
}

// configureStatic gives link the addresses of the command line.
func configureStatic(log *slog.Logger, link netlink.Link, set settings) error {
	if set.mtu > 0 {
		if err := netlink.LinkSetMTU(link, set.mtu); err != nil {
			return fmt.Errorf("set mtu %d: %w", set.mtu, err)
		}
	}
	for _, p := range set.prefixes {
		if err := netlink.AddrReplace(link, address(p)); err != nil {
			return fmt.Errorf("add address %s: %w", p, err)
		}
		log.Info("address", "device", link.Attrs().Name, "address", p)
	}
	for _, gw := range set.gateways {
		if err := setGateway(link, gw, set.prefixes, netip.Addr{}); err != nil {
			return err
		}
	}
	if len(set.dns) > 0 {
		return writeResolver(set.dns)
	}
	return nil
}

func address(p netip.Prefix) *netlink.Addr {
	a := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
	if p.Addr().Is6() {
		// The address is the lab's to give; waiting for duplicates would
		// only delay the first connection.
		a.Flags = unix.IFA_F_NODAD
	}
	return a
}

// setGateway makes gw the default route of its family. A gateway outside the
// guest's prefixes is reached on the link all the same: a routed guest has a
// /32 or /128. New connections have the source, if it is valid.
func setGateway(link netlink.Link, gw netip.Addr, prefixes []netip.Prefix, source netip.Addr) error {
	route := &netlink.Route{LinkIndex: link.Attrs().Index, Gw: gw.AsSlice(), Flags: int(netlink.FLAG_ONLINK)}
	for _, p := range prefixes {
		if p.Contains(gw) {
			route.Flags = 0
		}
	}
	if source.IsValid() {
		route.Src = source.AsSlice()
	}
	if gw.Is4() {
		route.Dst = &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
	} else {
		route.Dst = &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
	}
	if err := netlink.RouteReplace(route); err != nil {
		return fmt.Errorf("add default route via %s: %w", gw, err)
	}
	return nil
}

func writeResolver(servers []netip.Addr) error {
	var b strings.Builder
	for _, a := range servers {
		fmt.Fprintf(&b, "nameserver %s\n", a)
	}
	if err := os.WriteFile("/etc/resolv.conf", []byte(b.String()), 0o644); err != nil {
		return fmt.Errorf("write resolver configuration: %w", err)
	}
	return nil
}
