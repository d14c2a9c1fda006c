package wanem

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"
)

// offloadFrame describes a TCP packet as the kernel hands it to a TAP.
type offloadFrame struct {
	v6        bool
	vlans     int
	extension bool // an IPv6 destination options header
	options   int  // bytes of TCP options
	mss       int
	payload   []byte
	id        uint16
	seq       uint32
	flags     byte
}

// bytes returns the frame with its virtio-net header and the TCP checksum that
// checksum offload leaves: the pseudo-header's sum.
func (f offloadFrame) bytes() []byte {
	var b []byte
	b = append(b, 2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1)
	for range f.vlans {
		b = append(b, 0x81, 0x00, 0, 7)
	}
	l2 := len(b) + 2
	tcpLen := 20 + f.options + len(f.payload)
	var pseudo []byte
	if f.v6 {
		b = append(b, 0x86, 0xdd, 0x60, 0, 0, 0)
		next, extra := byte(6), []byte(nil)
		if f.extension {
			next, extra = 60, []byte{6, 0, 1, 4, 0, 0, 0, 0}
		}
		b = binary.BigEndian.AppendUint16(b, uint16(len(extra)+tcpLen))
		b = append(b, next, 64)
		b = append(b, bytes.Repeat([]byte{0xfd}, 16)...)
		b = append(b, bytes.Repeat([]byte{0xfe}, 16)...)
		pseudo = b[len(b)-32:]
		b = append(b, extra...)
	} else {
		b = append(b, 0x08, 0x00, 0x45, 0)
		b = binary.BigEndian.AppendUint16(b, uint16(20+tcpLen))
		b = binary.BigEndian.AppendUint16(b, f.id)
		b = append(b, 0x40, 0, 64, 6, 0, 0, 10, 1, 2, 3, 10, 4, 5, 6)
		pseudo = b[len(b)-8:]
		binary.BigEndian.PutUint16(b[l2+10:], ^reference(b[l2:l2+20]))
	}
	pseudo = append(bytes.Clone(pseudo), 0, 6, byte(tcpLen>>8), byte(tcpLen))
	l4 := len(b)
	b = append(b, 0x13, 0x88, 0x27, 0x10)
	b = binary.BigEndian.AppendUint32(b, f.seq)
	b = append(b, 0, 0, 0, 9, byte(20+f.options)/4<<4, f.flags, 0xff, 0xff)
	b = binary.BigEndian.AppendUint16(b, reference(pseudo))
	b = append(b, 0, 0)
	b = append(b, bytes.Repeat([]byte{1}, f.options)...)
	header := len(b)
	b = append(b, f.payload...)

	vnet := make([]byte, vnetLen)
	vnet[vnetFlags], vnet[vnetGSOType] = flagNeedsCsum, gsoTCPv4
	if f.v6 {
		vnet[vnetGSOType] = gsoTCPv6
	}
	binary.LittleEndian.PutUint16(vnet[vnetHdrLen:], uint16(header))
	binary.LittleEndian.PutUint16(vnet[vnetGSOSize:], uint16(f.mss))
	binary.LittleEndian.PutUint16(vnet[vnetCsumStart:], uint16(l4))
	binary.LittleEndian.PutUint16(vnet[vnetCsumOffset:], 16)
	return append(vnet, b...)
}

// reference is RFC 1071's sum in its plainest form, not inverted.
func reference(b []byte) uint16 {
	if len(b)%2 == 1 {
		b = append(bytes.Clone(b), 0)
	}
	var s int
	for i := 0; i < len(b); i += 2 {
		s += int(b[i])*256 + int(b[i+1])
	}
	for s > 0xffff {
		s = s%0x10000 + s/0x10000
	}
	return uint16(s)
}

func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

var offloadCases = map[string]offloadFrame{
	"ipv4":             {mss: 1448, payload: pattern(60000), options: 12, id: 0xfff0, seq: 0xffff0000, flags: 0x18 | tcpFIN},
	"ipv4 odd":         {mss: 1447, payload: pattern(5001), id: 1, seq: 5, flags: 0x10 | tcpCWR},
	"ipv4 vlan":        {mss: 1448, payload: pattern(9000), vlans: 1, options: 12, flags: 0x18},
	"ipv4 two vlans":   {mss: 536, payload: pattern(3000), vlans: 2, flags: 0x18},
	"ipv4 one segment": {mss: 1448, payload: pattern(1448), options: 12, flags: 0x18},
	"ipv6":             {v6: true, mss: 1428, payload: pattern(60000), options: 12, seq: 77, flags: 0x18 | tcpFIN | tcpCWR},
	"ipv6 extension":   {v6: true, extension: true, mss: 1000, payload: pattern(4321), flags: 0x18},
}

// Every way to cut a packet into two runs yields valid packets that carry the
// original's bytes with the right numbers.
func TestRunsAreValidPackets(t *testing.T) {
	for name, f := range offloadCases {
		t.Run(name, func(t *testing.T) {
			frame := f.bytes()
			lay := parse(frame)
			if want := (len(f.payload) + f.mss - 1) / f.mss; lay.segments != want {
				t.Fatalf("%d segments, want %d", lay.segments, want)
			}
			for cut := 0; cut <= lay.segments; cut++ {
				var got []byte
				for _, run := range [][2]int{{0, cut}, {cut, lay.segments - cut}} {
					if run[1] == 0 {
						continue
					}
					var head [vnetLen + maxHeader]byte
					headers, payload := lay.run(&head, frame, run[0], run[1])
					if err := checkRun(f, lay, headers, payload, run[0], run[1]); err != nil {
						t.Fatalf("segments %d to %d: %v", run[0], run[0]+run[1]-1, err)
					}
					got = append(got, payload...)
				}
				if !bytes.Equal(got, f.payload) {
					t.Fatalf("cut at %d: payload differs", cut)
				}
			}
		})
	}
}

// checkRun looks at a run as a receiver does, with nothing taken from run.
func checkRun(f offloadFrame, lay layout, headers, payload []byte, first, count int) error {
	vnet, eth := headers[:vnetLen], append(bytes.Clone(headers[vnetLen:]), payload...)
	l2 := 14 + 4*f.vlans
	l4 := int(binary.LittleEndian.Uint16(vnet[vnetCsumStart:]))
	ip, tcp := eth[l2:l4], eth[l4:]
	if gso := vnet[vnetGSOType] != gsoNone; gso != (count > 1) {
		return fmt.Errorf("offload type %d for %d segments", vnet[vnetGSOType], count)
	}
	var pseudo []byte
	if f.v6 {
		if n := int(binary.BigEndian.Uint16(ip[4:])); n != len(ip)-40+len(tcp) {
			return fmt.Errorf("IPv6 payload length %d", n)
		}
		pseudo = bytes.Clone(ip[8:40])
	} else {
		if n := int(binary.BigEndian.Uint16(ip[2:])); n != len(ip)+len(tcp) {
			return fmt.Errorf("IPv4 length %d", n)
		}
		if s := reference(ip); s != 0xffff {
			return fmt.Errorf("IPv4 checksum: sum %#x", s)
		}
		if id := binary.BigEndian.Uint16(ip[4:]); id != f.id+uint16(first) {
			return fmt.Errorf("IPv4 id %d", id)
		}
		pseudo = bytes.Clone(ip[12:20])
	}
	if seq := binary.BigEndian.Uint32(tcp[4:]); seq != f.seq+uint32(first*f.mss) {
		return fmt.Errorf("sequence number %d", seq)
	}
	want := f.flags
	if first+count < lay.segments {
		want &^= tcpFIN | tcpPSH
	}
	if first > 0 {
		want &^= tcpCWR
	}
	if tcp[13] != want {
		return fmt.Errorf("flags %#x, want %#x", tcp[13], want)
	}
	// What a network card does: sum from csum_start, with the partial sum in
	// place, and store. What the receiver does: sum with the pseudo-header.
	offset := int(binary.LittleEndian.Uint16(vnet[vnetCsumOffset:]))
	binary.BigEndian.PutUint16(tcp[offset:], ^reference(tcp))
	pseudo = append(pseudo, 0, 6, byte(len(tcp)>>8), byte(len(tcp)))
	if s := reference(append(pseudo, tcp...)); s != 0xffff {
		return fmt.Errorf("TCP checksum: sum %#x", s)
	}
	return nil
}

func TestWireCountsHeadersPerSegment(t *testing.T) {
	f := offloadCases["ipv4"]
	lay := parse(f.bytes())
	segments := (60000 + 1447) / 1448
	if got, want := lay.wire(0, lay.segments), 60000+segments*(14+20+32); got != want {
		t.Errorf("wire bytes %d, want %d", got, want)
	}
	if got, want := lay.charge(0, lay.segments), 60000+segments*(20+32); got != want {
		t.Errorf("charged bytes %d, want %d", got, want)
	}
}

func TestOtherFramesAreOneSegment(t *testing.T) {
	tcp := offloadCases["ipv4"].bytes()
	mutate := func(f func(b []byte)) []byte {
		b := bytes.Clone(tcp)
		f(b)
		return b
	}
	v6 := offloadCases["ipv6 extension"].bytes()
	// An options header of 8 + 31×8 bytes takes the headers beyond maxHeader.
	longHeader := append(bytes.Clone(v6[:vnetLen+14+40]), append([]byte{6, 31}, make([]byte, 254)...)...)
	longHeader = append(longHeader, v6[vnetLen+14+48:]...)
	arp := append(make([]byte, vnetLen+12), append([]byte{8, 6}, make([]byte, 28)...)...)
	for name, frame := range map[string][]byte{
		"empty":          {},
		"header only":    make([]byte, vnetLen),
		"runt":           make([]byte, vnetLen+5),
		"arp":            arp,
		"no offload":     mutate(func(b []byte) { b[vnetGSOType], b[vnetGSOSize], b[vnetGSOSize+1] = 0, 0, 0 }),
		"size, no type":  mutate(func(b []byte) { b[vnetGSOType] = 0 }),
		"udp offload":    mutate(func(b []byte) { b[vnetGSOType] = 5 }),
		"not tcp":        mutate(func(b []byte) { b[vnetLen+14+9] = 17 }),
		"wrong family":   mutate(func(b []byte) { b[vnetGSOType] = gsoTCPv6 }),
		"short ihl":      mutate(func(b []byte) { b[vnetLen+14] = 0x44 }),
		"short offset":   mutate(func(b []byte) { b[vnetLen+14+20+12] = 0x40 }),
		"truncated ip":   tcp[:vnetLen+14+19],
		"truncated tcp":  tcp[:vnetLen+14+20+19],
		"no payload":     tcp[:vnetLen+14+20+32],
		"truncated ext":  v6[:vnetLen+14+40+1],
		"ext to nowhere": append(bytes.Clone(v6[:vnetLen+14+41]), append([]byte{255}, v6[vnetLen+14+42:]...)...),
		"long header":    longHeader,
		"vlan tag alone": append(make([]byte, vnetLen+12), 0x81, 0),
	} {
		if lay := parse(frame); lay.segments != 1 || lay.mss != 0 {
			t.Errorf("%s: %+v, want one segment", name, lay)
		}
	}
}

// FuzzFrame: no frame makes the shaper panic, lose count, or write outside of
// the frame's own bytes.
func FuzzFrame(f *testing.F) {
	for _, c := range offloadCases {
		f.Add(c.bytes(), uint16(1), uint64(1))
	}
	f.Add([]byte{}, uint16(0), uint64(2))
	f.Fuzz(func(t *testing.T, frame []byte, cut uint16, seed uint64) {
		if len(frame) > maxFrame {
			frame = frame[:maxFrame]
		}
		lay := parse(frame)
		parts := 0
		for i := range lay.segments {
			parts += lay.wire(i, 1)
		}
		if all := lay.wire(0, lay.segments); all != parts || all < 0 {
			t.Fatalf("segments have %d bytes, the whole %d", parts, all)
		}
		if lay.mss > 0 {
			var head [vnetLen + maxHeader]byte
			first := int(cut) % lay.segments
			headers, payload := lay.run(&head, frame, first, lay.segments-first)
			if len(headers) != vnetLen+lay.header || len(payload) != lay.payload-first*lay.mss {
				t.Fatalf("run of %d and %d bytes", len(headers), len(payload))
			}
		}
		s := newShaper(Shape{RateBps: 1e6, Loss: 0.3, QueueBytes: 20000}, seed)
		at, b, kept := s.slot()
		n := copy(b, frame)
		s.offer(0, n, at, b, kept)
		for ; s.n > 0; s.pop() {
			s.deliver(s.record(0))
		}
		if got := s.count.Packets + s.count.DroppedPackets; got != uint64(lay.segments) {
			t.Fatalf("%d segments counted of %d", got, lay.segments)
		}
		if got := s.count.Bytes + s.count.DroppedBytes; got != uint64(parts) {
			t.Fatalf("%d bytes counted of %d", got, parts)
		}
	})
}
