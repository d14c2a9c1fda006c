package wanem

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"testing"
	"time"
)

// differences counts the bits that differ.
func differences(a, b []byte) (n int) {
	for i := range a {
		n += bits.OnesCount8(a[i] ^ b[i])
	}
	return n
}

// whole is an offload frame's bytes as a packet that carries its full checksum
// and is not to be divided.
func (f offloadFrame) whole() []byte {
	b := f.bytes()
	l4 := vnetLen + int(binary.LittleEndian.Uint16(b[vnetCsumStart:]))
	binary.BigEndian.PutUint16(b[l4+tcpCsumOffset:], ^fold(sum(0, b[l4:])))
	clear(b[:vnetLen])
	return b
}

// full is the sum that a receiver computes: 0xffff for an intact packet.
func (f offloadFrame) full(b []byte) uint16 {
	partial := f.bytes()
	l4 := vnetLen + int(binary.LittleEndian.Uint16(partial[vnetCsumStart:]))
	pseudo := binary.BigEndian.Uint16(partial[l4+tcpCsumOffset:])
	return fold(uint32(pseudo) + sum(0, b[l4:]))
}

func TestEveryNthSegmentHasOneBitFlipped(t *testing.T) {
	for _, test := range []struct {
		name  string
		frame offloadFrame
		whole bool
	}{
		{"IPv4, to be divided", offloadFrame{mss: 100, payload: pattern(1000), options: 12}, false},
		{"IPv6, to be divided", offloadFrame{mss: 100, payload: pattern(1000), v6: true, extension: true}, false},
		{"IPv4 with VLAN", offloadFrame{mss: 100, payload: pattern(1000), vlans: 1}, false},
		{"IPv4, full checksum", offloadFrame{payload: pattern(999)}, true},
		{"IPv6, full checksum", offloadFrame{payload: pattern(1001), v6: true, options: 12}, true},
		{"a last segment of one byte", offloadFrame{mss: 100, payload: pattern(101)}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			original, segments := test.frame.bytes(), 1
			if test.whole {
				original = test.frame.whole()
				if got := test.frame.full(original); got != 0xffff {
					t.Fatalf("the test's own packet has the sum %#x", got)
				}
			} else {
				segments = (len(test.frame.payload) + test.frame.mss - 1) / test.frame.mss
			}
			const every, frames = 3, 60
			b := newBench(Shape{CorruptEvery: every})
			flipped := 0
			for range frames {
				b.got = nil
				b.send(original)
				b.until(b.now + int64(time.Second))
				if len(b.got) != 1 {
					t.Fatalf("%d arrivals of one frame", len(b.got))
				}
				got := b.got[0].data
				n := differences(original[len(original)-len(test.frame.payload):], got[len(got)-len(test.frame.payload):])
				flipped += n
				if !test.whole && differences(original, got) != n {
					t.Error("a header has changed")
				}
				if test.whole && test.frame.full(got) != 0xffff {
					t.Errorf("the receiver would find it: sum %#x", test.frame.full(got))
				}
			}
			want := frames * segments / every
			if flipped != want || b.count.CorruptedPackets != uint64(want) {
				t.Errorf("%d bits flipped, %d counted, want %d", flipped, b.count.CorruptedPackets, want)
			}
		})
	}
}

// What carries no TCP payload passes unchanged.
func TestNothingElseIsCorrupted(t *testing.T) {
	ack := offloadFrame{payload: nil}.whole()
	padded := append(bytes.Clone(ack), 0, 0, 0, 0, 0, 0)
	fragment := offloadFrame{payload: pattern(100)}.whole()
	fragment[vnetLen+etherLen+6] |= 0x20 // more fragments
	udp := offloadFrame{payload: pattern(100)}.whole()
	udp[vnetLen+etherLen+9] = 17
	for name, frame := range map[string][]byte{
		"acknowledgement": ack, "padded acknowledgement": padded, "fragment": fragment, "UDP": udp,
		"ARP": plain(60, 1), "short": fragment[:vnetLen+30], "empty": fragment[:vnetLen],
	} {
		b := newBench(Shape{CorruptEvery: 1})
		b.send(frame)
		b.until(int64(time.Second))
		if len(b.got) != 1 || !bytes.Equal(b.got[0].data, frame) || b.count.CorruptedPackets != 0 {
			t.Errorf("%s: %d arrivals, %d corrupted", name, len(b.got), b.count.CorruptedPackets)
		}
	}
}
