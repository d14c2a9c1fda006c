package wanem

import "encoding/binary"

// Sizes of what a TAP hands over.
const (
	// vnetLen is the length of the virtio-net header without mergeable buffers
	// (struct virtio_net_hdr of linux/virtio_net.h).
	vnetLen = 10
	// maxFrame holds the largest frame a TAP reads: the virtio-net header, an
	// Ethernet header with two VLAN tags, and 64 KiB of IP packet.
	maxFrame = vnetLen + 22 + 1<<16
	// maxHeader bounds the headers of a packet that can be divided: Ethernet
	// with tags, IPv6 with extension headers, TCP with options. Longer ones
	// are passed whole.
	maxHeader = 256
)

// Fields of the virtio-net header, little-endian as asked for at opening.
const (
	vnetFlags      = 0
	vnetGSOType    = 1
	vnetHdrLen     = 2
	vnetGSOSize    = 4
	vnetCsumStart  = 6
	vnetCsumOffset = 8

	flagNeedsCsum = 1
	gsoNone       = 0
	gsoTCPv4      = 1
	gsoTCPv6      = 4
	gsoECN        = 0x80
)

const (
	etherLen      = 14
	etherTypeIPv4 = 0x0800
	etherTypeIPv6 = 0x86dd
	etherTypeVLAN = 0x8100
	etherTypeQinQ = 0x88a8

	protoTCP = 6

	tcpCsumOffset = 16
	tcpFIN        = 0x01
	tcpPSH        = 0x08
	tcpCWR        = 0x80
)

// layout is what shaping needs to know of a frame. Offsets count from the
// Ethernet header. Only an offload packet that could be parsed to the end of
// its TCP header has mss > 0; any other frame is one segment.
type layout struct {
	l2, l4, header int // end of Ethernet, start of TCP, end of TCP header
	mss            int // payload bytes per segment
	payload        int // bytes behind header
	segments       int
	v6             bool
}

// parse reads the layout of a frame that begins with its virtio-net header. It
// accepts any bytes: what it does not understand is one segment.
func parse(frame []byte) layout {
	if len(frame) <= vnetLen {
		return layout{segments: 1}
	}
	eth := frame[vnetLen:]
	whole := layout{l2: min(etherLen, len(eth)), header: len(eth), segments: 1}
	if len(eth) < etherLen {
		return whole
	}
	etherType, l2 := binary.BigEndian.Uint16(eth[12:]), etherLen
	for (etherType == etherTypeVLAN || etherType == etherTypeQinQ) && len(eth) >= l2+4 && l2 < 22 {
		etherType, l2 = binary.BigEndian.Uint16(eth[l2+2:]), l2+4
	}
	whole.l2 = l2
	mss := int(binary.LittleEndian.Uint16(frame[vnetGSOSize:]))
	if mss == 0 {
		return whole
	}
	lay := layout{l2: l2, mss: mss}
	ok := false
	switch frame[vnetGSOType] &^ gsoECN {
	case gsoTCPv4:
		lay.l4, ok = tcpStartV4(eth, l2, etherType)
	case gsoTCPv6:
		lay.v6 = true
		lay.l4, ok = tcpStartV6(eth, l2, etherType)
	}
	if !ok || len(eth) < lay.l4+20 {
		return whole
	}
	lay.header = lay.l4 + int(eth[lay.l4+12]>>4)*4
	if lay.header < lay.l4+20 || lay.header > maxHeader || lay.header >= len(eth) {
		return whole
	}
	lay.payload = len(eth) - lay.header
	lay.segments = (lay.payload + mss - 1) / mss
	return lay
}

func tcpStartV4(eth []byte, l2 int, etherType uint16) (int, bool) {
	if etherType != etherTypeIPv4 || len(eth) < l2+20 || eth[l2]>>4 != 4 || eth[l2+9] != protoTCP {
		return 0, false
	}
	ihl := int(eth[l2]&0xf) * 4
	return l2 + ihl, ihl >= 20
}

// tcpStartV6 walks the extension headers that a TCP segment may carry:
// hop-by-hop (0), routing (43) and destination options (60).
func tcpStartV6(eth []byte, l2 int, etherType uint16) (int, bool) {
	if etherType != etherTypeIPv6 || len(eth) < l2+40 || eth[l2]>>4 != 6 {
		return 0, false
	}
	next, at := eth[l2+6], l2+40
	for next == 0 || next == 43 || next == 60 {
		if len(eth) < at+8 || at > maxHeader {
			return 0, false
		}
		next, at = eth[at], at+(int(eth[at+1])+1)*8
	}
	return at, next == protoTCP
}

// wire returns the bytes of segments [first, first+count) on the wire, each
// with its Ethernet, IP and TCP headers.
func (l *layout) wire(first, count int) int {
	if l.mss == 0 {
		return l.header
	}
	return count*l.header + min((first+count)*l.mss, l.payload) - first*l.mss
}

// charge returns what the rate charges for the same segments: wire without the
// Ethernet headers.
func (l *layout) charge(first, count int) int { return l.wire(first, count) - count*l.l2 }

// run builds, in head, the virtio-net, Ethernet, IP and TCP headers of a packet
// that carries only segments [first, first+count) of frame, and returns them
// and the slice of frame that is its payload. What changes from the original
// is what the kernel's own segmentation changes: IP length, IPv4 id and
// checksum, TCP sequence number, and FIN and PSH (last segment only) and CWR
// (first only). The TCP checksum is left partial over the new length, as
// checksum offload wants it.
func (l *layout) run(head *[vnetLen + maxHeader]byte, frame []byte, first, count int) (headers, payload []byte) {
	headers = head[:vnetLen+l.header]
	copy(headers, frame)
	from, to := first*l.mss, min((first+count)*l.mss, l.payload)
	payload = frame[vnetLen+l.header+from : vnetLen+l.header+to]

	headers[vnetFlags] = flagNeedsCsum
	if count == 1 {
		headers[vnetGSOType] = gsoNone
		binary.LittleEndian.PutUint16(headers[vnetGSOSize:], 0)
	}
	binary.LittleEndian.PutUint16(headers[vnetHdrLen:], uint16(l.header))
	binary.LittleEndian.PutUint16(headers[vnetCsumStart:], uint16(l.l4))
	binary.LittleEndian.PutUint16(headers[vnetCsumOffset:], tcpCsumOffset)

	ip, tcp := headers[vnetLen+l.l2:vnetLen+l.l4], headers[vnetLen+l.l4:]
	length := len(ip) + len(tcp) + len(payload)
	var addresses []byte
	if l.v6 {
		addresses = ip[8:40]
		binary.BigEndian.PutUint16(ip[4:], uint16(length-40))
	} else {
		addresses = ip[12:20]
		binary.BigEndian.PutUint16(ip[2:], uint16(length))
		binary.BigEndian.PutUint16(ip[4:], binary.BigEndian.Uint16(ip[4:])+uint16(first))
		binary.BigEndian.PutUint16(ip[10:], 0)
		binary.BigEndian.PutUint16(ip[10:], ^fold(sum(0, ip)))
	}
	binary.BigEndian.PutUint32(tcp[4:], binary.BigEndian.Uint32(tcp[4:])+uint32(from))
	if first+count < l.segments {
		tcp[13] &^= tcpFIN | tcpPSH
	}
	if first > 0 {
		tcp[13] &^= tcpCWR
	}
	pseudo := uint32(protoTCP) + uint32(len(tcp)+len(payload))
	binary.BigEndian.PutUint16(tcp[tcpCsumOffset:], fold(sum(pseudo, addresses)))
	return headers, payload
}

// sum adds b to an Internet checksum (RFC 1071) that has not been folded yet.
func sum(s uint32, b []byte) uint32 {
	for len(b) >= 2 {
		s += uint32(b[0])<<8 | uint32(b[1])
		b = b[2:]
	}
	if len(b) == 1 {
		s += uint32(b[0]) << 8
	}
	return s
}

// fold adds the carries back in until 16 bits are left.
func fold(s uint32) uint16 {
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}
