package tap

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

var _ driver.Catcher = (*Taps)(nil)

// Taps are the ports of this host's VMs, in the network namespace of the process.
type Taps struct {
	log *slog.Logger
}

// New returns the driver. It holds nothing.
func New(log *slog.Logger) *Taps {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Taps{log: log}
}

// tapMAC is the MAC that libvirt gives the tap of a card.
func tapMAC(card net.HardwareAddr) net.HardwareAddr {
	m := slices.Clone(card)
	m[0] = 0xfe
	if card[0] == 0xfe {
		m[0] = 0xfa
	}
	return m
}

// dumpTries is how often a list is asked for that changed while it was read.
const dumpTries = 5

// find returns the tap of a card.
func find(card net.HardwareAddr) (netlink.Link, error) {
	var links []netlink.Link
	var err error
	for range dumpTries {
		if links, err = netlink.LinkList(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, drover.E(kindOf(err), "find the port of "+card.String(), err)
	}
	want := tapMAC(card)
	for _, l := range links {
		if l.Type() == "tuntap" && slices.Equal(l.Attrs().HardwareAddr, want) {
			return l, nil
		}
	}
	return nil, drover.Errorf(drover.NotFound, "find the port of "+card.String(), "no tap of this host has the MAC %s", want)
}

// bridgeOf returns the index of the bridge that a tap is on and that hands this
// host what crosses it; zero and why not otherwise.
func bridgeOf(tap netlink.Link) (index int, why string) {
	master := tap.Attrs().MasterIndex
	if master == 0 {
		return 0, "it is on no bridge"
	}
	l, err := netlink.LinkByIndex(master)
	if err != nil {
		return 0, err.Error()
	}
	name := l.Attrs().Name
	if l.Type() != "bridge" {
		return 0, fmt.Sprintf("%s is a %s, no bridge", name, l.Type())
	}
	raw, err := os.ReadFile(filepath.Join("/sys/class/net", name, "bridge/vlan_filtering"))
	if err == nil && strings.TrimSpace(string(raw)) != "0" {
		return 0, "bridge " + name + " filters VLANs"
	}
	return master, ""
}

// kindOf is the kind of a system call's error.
func kindOf(err error) drover.Kind {
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return drover.Denied
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENETDOWN):
		return drover.NotFound
	case errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.EAGAIN):
		return drover.Exhausted
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EMSGSIZE):
		return drover.Invalid
	}
	return drover.Internal
}

// Port implements driver.Catcher.
func (t *Taps) Port(_ context.Context, mac string) (driver.Port, error) {
	card, err := driver.StationMAC(mac)
	if err != nil {
		return nil, err
	}
	link, err := find(card)
	if err != nil {
		return nil, err
	}
	fd, err := packetSocket()
	if err != nil {
		return nil, drover.E(kindOf(err), "open the port of "+mac, err)
	}
	return &port{fd: fd, to: unix.SockaddrLinklayer{Ifindex: link.Attrs().Index, Halen: 6}}, nil
}

// port is a socket that only sends.
type port struct {
	fd int
	to unix.SockaddrLinklayer
}

var nothing [driver.OffloadBytes]byte

// Give implements driver.Port.
func (p *port) Give(f driver.Frame) error {
	if err := f.Validate(); err != nil {
		return err
	}
	offload := f.Offload
	if len(offload) == 0 {
		offload = nothing[:]
	}
	// One write: header and frame are one packet.
	_, err := unix.SendmsgBuffers(p.fd, [][]byte{offload, f.Data}, nil, &p.to, unix.MSG_DONTWAIT)
	if err != nil {
		return drover.E(kindOf(err), "hand over a frame", err)
	}
	return nil
}

// Close implements driver.Port.
func (p *port) Close() error {
	if p.fd < 0 {
		return nil
	}
	err := unix.Close(p.fd)
	p.fd = -1
	return drover.E(drover.Internal, "close a port", err)
}

// packetSocket opens one that carries offloads and is bound to nothing.
func packetSocket() (int, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("packet socket: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("packet socket with offloads: %w", err)
	}
	return fd, nil
}
