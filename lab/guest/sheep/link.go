package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// maxLinkUpdates is how many messages about devices may wait to be read; the
// guest has two devices, and each change sends a few.
const maxLinkUpdates = 16

// linkWatch tells whoever asks when the device's cable has been put in again.
type linkWatch struct {
	log    *slog.Logger
	device string

	mu       sync.Mutex
	watchers []chan struct{}
}

// came returns a channel that gets a value after the link has come up; several
// times in a row may be one value. Before run.
func (w *linkWatch) came() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := make(chan struct{}, 1)
	w.watchers = append(w.watchers, c)
	return c
}

// subscribe begins to listen, on the calling thread's network; stop ends it.
func (w *linkWatch) subscribe() (updates <-chan netlink.LinkUpdate, stop func(), err error) {
	ch, done := make(chan netlink.LinkUpdate, maxLinkUpdates), make(chan struct{})
	if err := netlink.LinkSubscribe(ch, done); err != nil {
		return nil, nil, fmt.Errorf("watch %s: %w", w.device, err)
	}
	return ch, func() {
		close(done)
		for range ch { // until the library's goroutine has ended
		}
	}, nil
}

// run announces the guest's addresses and tells the watchers whenever the link
// has come up, until ctx is done.
func (w *linkWatch) run(ctx context.Context, updates <-chan netlink.LinkUpdate) {
	up, changes := true, carrierChanges(w.device)
	for {
		var u netlink.LinkUpdate
		select {
		case <-ctx.Done():
			return
		case u = <-updates:
		}
		if u.Link == nil || u.Attrs().Name != w.device {
			continue
		}
		running := u.IfInfomsg.Flags&unix.IFF_RUNNING != 0
		now := carrierChanges(w.device)
		// A cable that is out for less than a second shows in the counter only.
		came := running && (!up || now != changes)
		if came || up && !running {
			w.log.Info("link", "device", w.device, "up", running)
		}
		up, changes = running, now
		if !came {
			continue
		}
		if err := announce(w.device); err != nil {
			w.log.Warn("announce addresses", "err", err)
		}
		w.mu.Lock()
		for _, c := range w.watchers {
			select {
			case c <- struct{}{}:
			default:
			}
		}
		w.mu.Unlock()
	}
}

// carrierChanges counts how often the cable was put in or taken out; -1 where
// the kernel does not say.
func carrierChanges(device string) int {
	b, err := os.ReadFile(filepath.Join("/sys/class/net", device, "carrier_changes"))
	if err != nil {
		return -1
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return -1
	}
	return n
}

// announce tells the segment where the device's addresses are: a gratuitous ARP
// (RFC 5227, 3) for each IPv4 address, an unsolicited neighbour advertisement
// (RFC 4861, 7.2.6) for each IPv6 one.
func announce(device string) error {
	i, err := net.InterfaceByName(device)
	if err != nil {
		return err
	}
	addrs, err := i.Addrs()
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("packet socket: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	for _, a := range addrs {
		ipnet, ok := a.(*net.IPNet)
		if !ok {
			continue
		}
		frame := arpFrame(i.HardwareAddr, ipnet.IP)
		if ipnet.IP.To4() == nil {
			frame = advertisementFrame(i.HardwareAddr, ipnet.IP)
		}
		if err := unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: i.Index}); err != nil {
			return fmt.Errorf("announce %s: %w", ipnet, err)
		}
	}
	return nil
}

// arpFrame is an ARP request for one's own address, to everybody.
func arpFrame(mac net.HardwareAddr, ip net.IP) []byte {
	ip = ip.To4()
	f := make([]byte, 0, 42)
	f = append(f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)
	f = append(f, mac...)
	f = append(f, 0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1)
	f = append(f, mac...)
	f = append(f, ip...)
	f = append(f, 0, 0, 0, 0, 0, 0)
	return append(f, ip...)
}

// advertisementFrame is a neighbour advertisement to all nodes, with the override
// flag and the link-layer address.
func advertisementFrame(mac net.HardwareAddr, ip net.IP) []byte {
	ip = ip.To16()
	allNodes := net.IPv6linklocalallnodes
	icmp := make([]byte, 0, 32)
	icmp = append(icmp, 136, 0, 0, 0, 0x20, 0, 0, 0)
	icmp = append(icmp, ip...)
	icmp = append(icmp, 2, 1)
	icmp = append(icmp, mac...)
	// RFC 4443, 2.3: over a pseudo header of both addresses, length and protocol.
	sum := uint32(len(icmp)) + unix.IPPROTO_ICMPV6
	for _, part := range [][]byte{ip, allNodes, icmp} {
		for i := 0; i < len(part); i += 2 {
			sum += uint32(part[i])<<8 | uint32(part[i+1])
		}
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	icmp[2], icmp[3] = byte(^sum>>8), byte(^sum)

	f := make([]byte, 0, 54+len(icmp))
	f = append(f, 0x33, 0x33, 0, 0, 0, 1)
	f = append(f, mac...)
	f = append(f, 0x86, 0xdd, 0x60, 0, 0, 0, 0, byte(len(icmp)), unix.IPPROTO_ICMPV6, 255)
	f = append(f, ip...)
	f = append(f, allNodes...)
	return append(f, icmp...)
}
