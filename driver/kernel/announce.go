package kernel

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/drover-vm/drover"
)

// announceAgain is when announcements are repeated, after the first one at
// once: a frame may be lost, and some switches learn only from the second.
var announceAgain = []time.Duration{100 * time.Millisecond, time.Second}

// announce tells the stations on a bridge that the addresses have the MAC, or
// this edge's own on the bridge if it is empty. The first announcement is out when it
// returns, the repeated ones follow.
func (a *Addresses) announce(addresses []netip.Addr, bridge, mac string) error {
	return a.announceAs(addresses, bridge, mac, false)
}

// announceGateways is announce for addresses of gateways that this edge is now.
func (a *Addresses) announceGateways(addresses []netip.Addr, bridge string) error {
	return a.announceAs(addresses, bridge, "", true)
}

func (a *Addresses) announceAs(addresses []netip.Addr, bridge, mac string, gateway bool) error {
	link, err := needLink(bridge)
	if err != nil {
		return err
	}
	own := link.Attrs().HardwareAddr
	if len(own) != 6 {
		return drover.Errorf(drover.Invalid, "announce on "+bridge, "the interface has no Ethernet address")
	}
	of := own
	if mac != "" {
		if of, err = net.ParseMAC(mac); err != nil {
			return err
		}
	}
	frames := map[netip.Addr][][]byte{}
	for _, addr := range addresses {
		frames[addr] = announcements(own, of, addr, gateway)
	}
	s, err := openRaw(link, 0)
	if err != nil {
		return err
	}
	said := a.supersede(addresses)
	if err := a.say(s, said, frames); err != nil {
		s.close()
		return err
	}
	a.done.Go(func() {
		defer s.close()
		for _, d := range announceAgain {
			if sleep(a.ctx, d) != nil || a.say(s, said, frames) != nil {
				return
			}
		}
	})
	return nil
}

// supersede ends what is still to be said of the addresses, which is no longer
// true, and returns the number of what is said now.
func (a *Addresses) supersede(addresses []netip.Addr) uint64 {
	a.saying.Lock()
	defer a.saying.Unlock()
	a.said++
	for _, addr := range addresses {
		a.latest[addr] = a.said
	}
	return a.said
}

// say sends the frames of those addresses of which nothing else was said since.
func (a *Addresses) say(s *raw, said uint64, frames map[netip.Addr][][]byte) error {
	a.saying.Lock()
	defer a.saying.Unlock()
	for addr, f := range frames {
		if a.latest[addr] != said {
			continue
		}
		if err := s.send(f); err != nil {
			return err
		}
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// announcements are a gratuitous ARP request and reply (RFC 5227: stations
// differ in which they heed), or an unsolicited neighbour advertisement (RFC
// 4861, 7.2.6). They come from this edge's own MAC, so that no switch learns the
// guest's at the wrong port.
func announcements(own, of net.HardwareAddr, addr netip.Addr, gateway bool) [][]byte {
	if addr.Is6() {
		all := netip.MustParseAddr("ff02::1")
		return [][]byte{advertisement(own, net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, of, addr, addr, all, overriding(gateway))}
	}
	broadcast := net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	var frames [][]byte
	for _, operation := range []uint16{arpRequest, arpReply} {
		target := broadcast
		if operation == arpRequest {
			target = make(net.HardwareAddr, 6)
		}
		frames = append(frames, gratuitous(own, broadcast, of, target, addr, operation))
	}
	return frames
}

// ARP's operations (RFC 826).
const arpRequest, arpReply = 1, 2

// gratuitous is an ARP packet that says: addr has the MAC of.
func gratuitous(own, to, of, target net.HardwareAddr, addr netip.Addr, operation uint16) []byte {
	f := append(append([]byte{}, to...), own...)
	f = binary.BigEndian.AppendUint16(f, unix.ETH_P_ARP)
	f = append(f, 0, 1, 8, 0, 6, 4) // Ethernet, IPv4, their lengths
	f = binary.BigEndian.AppendUint16(f, operation)
	f = append(append(f, of...), addr.AsSlice()...)
	return append(append(f, target...), addr.AsSlice()...)
}

// The flags of a neighbour advertisement. An answer is marked as solicited and not
// to override, as for a proxy. A station that hears of its router without the
// router's flag takes it for one no more (RFC 4861, 7.2.5).
const (
	advertiseRouter, advertiseAnswer, advertiseOverride = 0x80, 0x40, 0x20
)

func overriding(gateway bool) byte {
	if gateway {
		return advertiseRouter | advertiseOverride
	}
	return advertiseOverride
}

// advertisement is a neighbour advertisement that says: target has the MAC of.
func advertisement(own, to, of net.HardwareAddr, target, src, dst netip.Addr, flags byte) []byte {
	icmp := []byte{136, 0, 0, 0, flags, 0, 0, 0}
	icmp = append(append(icmp, target.AsSlice()...), 2, 1) // option: the target's MAC, 8 bytes
	icmp = append(icmp, of...)
	binary.BigEndian.PutUint16(icmp[2:], icmpChecksum(src, dst, icmp))

	f := append(append([]byte{}, to...), own...)
	f = binary.BigEndian.AppendUint16(f, unix.ETH_P_IPV6)
	f = append(f, 0x60, 0, 0, 0)
	f = binary.BigEndian.AppendUint16(f, uint16(len(icmp)))
	f = append(f, unix.IPPROTO_ICMPV6, 255) // hop limit: from this link
	f = append(append(f, src.AsSlice()...), dst.AsSlice()...)
	return append(f, icmp...)
}

// icmpChecksum is that of RFC 4443, with the pseudo header; the packet's own
// field is zero.
func icmpChecksum(src, dst netip.Addr, icmp []byte) uint16 {
	b := append(src.AsSlice(), dst.AsSlice()...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(icmp)))
	b = append(append(b, 0, 0, 0, unix.IPPROTO_ICMPV6), icmp...)
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// raw is a packet socket on one interface.
type raw struct {
	fd    int
	index int
}

// openRaw opens one that receives frames of the type; none when it is zero.
func openRaw(link netlink.Link, ethertype uint16) (*raw, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("packet socket on %s: %w", link.Attrs().Name, err)
	}
	s := &raw{fd: fd, index: link.Attrs().Index}
	if ethertype != 0 {
		err = s.listen(ethertype)
	}
	if err != nil {
		s.close()
		return nil, fmt.Errorf("packet socket on %s: %w", link.Attrs().Name, err)
	}
	return s, nil
}

func (s *raw) send(frames [][]byte) error {
	for _, f := range frames {
		if err := unix.Sendto(s.fd, f, 0, &unix.SockaddrLinklayer{Ifindex: s.index, Halen: 6}); err != nil {
			return fmt.Errorf("send to interface %d: %w", s.index, err)
		}
	}
	return nil
}

func (s *raw) close() { unix.Close(s.fd) }
