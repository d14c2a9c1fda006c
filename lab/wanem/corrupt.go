package wanem

import "encoding/binary"

// A flipped bit has to reach the application, or nothing is tested: TCP's own
// checksum finds one flipped bit always, and the segment would only be sent
// again. Between TAPs with checksum offload the sum in the packet covers no
// more than the pseudo-header, and the receiving kernel takes the payload for
// verified (NEEDS_CSUM in the virtio-net header). A packet that carries its
// whole sum has it corrected for the flip, as damage in a router's memory would
// be covered by the sum that is made afterwards.

// corrupter flips one random bit in the TCP payload of every Nth segment that
// has one.
type corrupter struct {
	every int // 0: none
	seen  int // segments with payload since the last flip
}

// tcpSegment is where a TCP packet has what corruption touches; offsets from
// the Ethernet header.
type tcpSegment struct {
	tcp, payload, end int
}

// tcpPayload finds the TCP payload of a frame, whole or to be divided; false
// for anything else, fragments included.
func tcpPayload(frame []byte, l2 int) (s tcpSegment, ok bool) {
	eth := frame[vnetLen:]
	if l2 < etherLen || len(eth) < l2+20 {
		return s, false
	}
	etherType := binary.BigEndian.Uint16(eth[l2-2:])
	switch etherType {
	case etherTypeIPv4:
		if s.tcp, ok = tcpStartV4(eth, l2, etherType); !ok {
			return s, false
		}
		const moreFragmentsAndOffset = 0x3fff
		if binary.BigEndian.Uint16(eth[l2+6:])&moreFragmentsAndOffset != 0 {
			return s, false
		}
		s.end = l2 + int(binary.BigEndian.Uint16(eth[l2+2:]))
	case etherTypeIPv6:
		if s.tcp, ok = tcpStartV6(eth, l2, etherType); !ok {
			return s, false
		}
		s.end = l2 + 40 + int(binary.BigEndian.Uint16(eth[l2+4:]))
	default:
		return s, false
	}
	// What follows the IP packet is Ethernet's padding.
	if s.end = min(s.end, len(eth)); s.end < s.tcp+20 {
		return s, false
	}
	s.payload = s.tcp + int(eth[s.tcp+12]>>4)*4
	return s, s.payload >= s.tcp+20 && s.payload < s.end
}

// corrupt counts the i-th segment of a frame that is about to be carried, and
// flips a bit in it when its turn has come.
func (s *shaper) corrupt(frame []byte, lay *layout, i int) {
	if s.corrupter.every == 0 || len(frame) <= vnetLen {
		return
	}
	seg, ok := tcpPayload(frame, lay.l2)
	if !ok {
		return
	}
	if lay.mss > 0 {
		seg.payload += i * lay.mss
		seg.end = min(seg.end, seg.payload+lay.mss)
	}
	if seg.payload >= seg.end {
		return
	}
	if s.corrupter.seen++; s.corrupter.seen < s.corrupter.every {
		return
	}
	s.corrupter.seen = 0
	bit := s.random.IntN(8 * (seg.end - seg.payload))
	flip(frame, seg, seg.payload+bit/8, byte(1)<<(bit%8))
	s.count.CorruptedPackets++
}

// flip inverts a bit of the payload byte at the offset at, and corrects a TCP
// checksum that covers the payload.
func flip(frame []byte, seg tcpSegment, at int, bit byte) {
	eth := frame[vnetLen:]
	old := eth[at]
	eth[at] ^= bit
	if frame[vnetFlags]&flagNeedsCsum != 0 {
		return
	}
	was, is := uint32(old), uint32(eth[at])
	if (at-seg.tcp)%2 == 0 { // the first byte of a 16-bit word
		was, is = was<<8, is<<8
	}
	// RFC 1624: HC' = ~(~HC + ~m + m').
	field := eth[seg.tcp+tcpCsumOffset:]
	sum := uint32(^binary.BigEndian.Uint16(field)) + uint32(^uint16(was)) + is
	binary.BigEndian.PutUint16(field, ^fold(sum))
}
