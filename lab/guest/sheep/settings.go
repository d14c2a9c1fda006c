package main

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// settings is what the kernel command line asks for.
type settings struct {
	name     string
	dhcp     bool
	dhcp6    bool
	ra       bool
	dhcpOnce bool
	agent    string // "", "off" or "hang"
	prefixes []netip.Prefix
	gateways []netip.Addr
	dns      []netip.Addr
	mtu      int // 0: leave it

	root     string // block device, empty: stay in the initramfs
	rootType string
	rootRO   bool
	init     string // program to hand over to, empty: decide by the image
}

func parseSettings(cmdline string) (settings, error) {
	s := settings{rootType: "ext4"}
	for _, word := range strings.Fields(cmdline) {
		key, value, _ := strings.Cut(word, "=")
		if err := s.set(key, value); err != nil {
			return s, fmt.Errorf("%s: %w", word, err)
		}
	}
	if s.dhcp {
		for _, p := range s.prefixes {
			if p.Addr().Is4() {
				return s, fmt.Errorf("drover.ip: both dhcp and %s: want one way for IPv4", p)
			}
		}
	}
	for i, a := range s.gateways {
		for _, b := range s.gateways[:i] {
			if a.Is4() == b.Is4() {
				return s, fmt.Errorf("drover.gw: %s and %s: want one per address family", b, a)
			}
		}
	}
	return s, nil
}

func (s *settings) set(key, value string) (err error) {
	switch key {
	case "drover.name":
		s.name = value
	case "drover.ip":
		err = s.addIPs(value)
	case "drover.gw":
		s.gateways, err = appendAddrs(s.gateways, value)
	case "drover.dns":
		s.dns, err = appendAddrs(s.dns, value)
	case "drover.dhcp":
		if s.dhcpOnce = value == "once"; !s.dhcpOnce {
			err = fmt.Errorf("want once")
		}
	case "drover.agent":
		if s.agent = value; value != agentOff && value != agentHang {
			err = fmt.Errorf("want %s or %s", agentOff, agentHang)
		}
	case "drover.mtu":
		s.mtu, err = strconv.Atoi(value)
		if err != nil || s.mtu < 576 || s.mtu > 65535 {
			err = fmt.Errorf("want 576 to 65535")
		}
	case "root":
		if !strings.HasPrefix(value, "/dev/") {
			err = fmt.Errorf("want a device such as /dev/vda")
		}
		s.root = value
	case "rootfstype":
		s.rootType = value
	case "ro":
		s.rootRO = true
	case "init":
		s.init = value
	default:
		if strings.HasPrefix(key, "drover.") {
			err = fmt.Errorf("unknown setting; known are drover.name, .ip, .gw, .dns, .mtu, .dhcp and .agent")
		}
	}
	return err
}

func (s *settings) addIPs(value string) error {
	for text := range strings.SplitSeq(value, ",") {
		switch text {
		case "dhcp":
			s.dhcp = true
			continue
		case "dhcp6":
			s.dhcp6 = true
			continue
		case "ra":
			s.ra = true
			continue
		}
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return fmt.Errorf("want ADDRESS/BITS, dhcp, dhcp6 or ra")
		}
		s.prefixes = append(s.prefixes, p)
	}
	return nil
}

func appendAddrs(list []netip.Addr, value string) ([]netip.Addr, error) {
	for text := range strings.SplitSeq(value, ",") {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return nil, fmt.Errorf("want IP addresses")
		}
		list = append(list, a)
	}
	return list, nil
}
