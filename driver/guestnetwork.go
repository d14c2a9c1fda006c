package driver

import (
	"net/netip"
	"strings"
)

// GuestNetwork is what a guest is told that reads its addresses from its kernel's
// command line, by words of these forms, each as often as it has addresses:
//
//	drover.name=NAME  drover.ip=ADDRESS/BITS  drover.gw=ADDRESS
//	ip=ADDRESS:SERVER:GATEWAY:NETMASK:NAME:…  (Linux, admin-guide/nfs/nfsroot)
//
// A guest that asks DHCP ("drover.ip=dhcp", "ip=dhcp") does so still.
type GuestNetwork struct {
	Hostname string
	// Addresses of the first network card, with the length of their subnet.
	Addresses []netip.Prefix
	Gateways  []netip.Addr
}

// CommandLine replaces the words that a command line has. The n-th of a family
// becomes the n-th new one of it, and goes where there is none; a word that the
// line does not have is not added.
func (n GuestNetwork) CommandLine(line string) string {
	addresses, gateways := map[bool][]string{}, map[bool][]string{}
	for _, p := range n.Addresses {
		addresses[p.Addr().Is4()] = append(addresses[p.Addr().Is4()], p.String())
	}
	for _, g := range n.Gateways {
		gateways[g.Is4()] = append(gateways[g.Is4()], g.String())
	}
	var out []string
	for word := range strings.SplitSeq(line, " ") {
		key, value, _ := strings.Cut(word, "=")
		switch key {
		case "drover.name":
			if n.Hostname != "" {
				word = key + "=" + n.Hostname
			}
		case "drover.ip":
			if p, err := netip.ParsePrefix(value); err == nil {
				word = next(key, addresses, p.Addr())
			}
		case "drover.gw":
			if a, err := netip.ParseAddr(value); err == nil {
				word = next(key, gateways, a)
			}
		case "ip":
			word = "ip=" + n.kernelIP(value)
		}
		if word != "" || line == "" {
			out = append(out, word)
		}
	}
	return strings.Join(out, " ")
}

// next takes the next value of the address's family; "" when there is none.
func next(key string, values map[bool][]string, like netip.Addr) string {
	list := values[like.Is4()]
	if len(list) == 0 {
		return ""
	}
	values[like.Is4()] = list[1:]
	return key + "=" + list[0]
}

// kernelIP replaces what Linux's own parameter says, where it names an address.
func (n GuestNetwork) kernelIP(value string) string {
	const address, gateway, mask, name = 0, 2, 3, 4
	fields := strings.Split(value, ":")
	if a, err := netip.ParseAddr(fields[address]); err != nil || !a.Is4() || len(fields) <= mask {
		return value
	}
	for _, p := range n.Addresses {
		if !p.Addr().Is4() {
			continue
		}
		fields[address], fields[mask], fields[gateway] = p.Addr().String(), netmask(p.Bits()), ""
		for _, g := range n.Gateways {
			if g.Is4() {
				fields[gateway] = g.String()
			}
		}
		if len(fields) > name && fields[name] != "" && n.Hostname != "" {
			fields[name] = n.Hostname
		}
		break
	}
	return strings.Join(fields, ":")
}

func netmask(bits int) string {
	mask := ^uint32(0) << (32 - bits)
	return netip.AddrFrom4([4]byte{byte(mask >> 24), byte(mask >> 16), byte(mask >> 8), byte(mask)}).String()
}
