package tap

import (
	"encoding/binary"
	"net"

	"golang.org/x/sys/unix"
)

// Offsets in an Ethernet frame, and what stands there.
const (
	destinationAt, sourceAt, typeAt = 0, 6, 12
	nextHeaderAt, icmpTypeAt        = 20, 54
	neighborSolicitation            = 135
	groupBit                        = 1
	// vlanPresent is SKF_AD_OFF + SKF_AD_VLAN_TAG_PRESENT of linux/filter.h:
	// whether the kernel keeps a VLAN's tag beside the frame.
	vlanPresent = 0xfffff000 + 48
)

// wanted is a filter of classic BPF that takes frames to the card, and those to a
// group that may ask for one of its addresses, but none that it sends itself and
// none with a VLAN's tag.
func wanted(card net.HardwareAddr) []unix.SockFilter {
	high, low := binary.BigEndian.Uint32(card[:4]), uint32(binary.BigEndian.Uint16(card[4:]))
	load := func(size uint16, at uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | size | unix.BPF_ABS, K: at}
	}
	// jump: to takes and leaves are the two last instructions.
	type line struct {
		unix.SockFilter
		yes, no string
	}
	const take, leave, next = "take", "leave", ""
	is := func(k uint32, yes, no string) line {
		return line{unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: k}, yes, no}
	}
	plain := func(f unix.SockFilter) line { return line{SockFilter: f} }
	program := []line{
		plain(load(unix.BPF_W, vlanPresent)), is(0, next, leave),
		plain(load(unix.BPF_W, sourceAt)), is(high, next, "foreign"),
		plain(load(unix.BPF_H, sourceAt+4)), is(low, leave, next),
		// foreign:
		plain(load(unix.BPF_W, destinationAt)), is(high, next, "group"),
		plain(load(unix.BPF_H, destinationAt+4)), is(low, take, leave),
		// group:
		plain(load(unix.BPF_B, destinationAt)),
		{unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, K: groupBit}, next, leave},
		plain(load(unix.BPF_H, typeAt)), is(unix.ETH_P_ARP, take, next), is(unix.ETH_P_IPV6, next, leave),
		plain(load(unix.BPF_B, nextHeaderAt)), is(unix.IPPROTO_ICMPV6, next, leave),
		plain(load(unix.BPF_B, icmpTypeAt)), is(neighborSolicitation, take, leave),
	}
	labels := map[string]int{"foreign": 6, "group": 10, take: len(program), leave: len(program) + 1}
	filter := make([]unix.SockFilter, 0, len(program)+2)
	for i, l := range program {
		jump := func(to string) uint8 {
			if to == next {
				return 0
			}
			return uint8(labels[to] - i - 1)
		}
		l.Jt, l.Jf = jump(l.yes), jump(l.no)
		filter = append(filter, l.SockFilter)
	}
	const everything = 0x40000
	return append(filter,
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: everything},
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: 0})
}
