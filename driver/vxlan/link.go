package vxlan

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	linkPrefix = "dvx"
	// aliasPrefix begins the alias of every interface of ours; the segment's name follows.
	aliasPrefix = "drover:segment/"
)

// noAddresses is IN6_ADDR_GEN_MODE_NONE of linux/if_link.h.
const noAddresses = 1

func linkName(vni uint32) string { return linkPrefix + strconv.FormatUint(uint64(vni), 10) }

// bridge returns the segment's bridge.
func (s *Segments) bridge(name string) (netlink.Link, error) {
	l, err := s.nl.LinkByName(name)
	switch {
	case missing(err):
		return nil, drover.Errorf(drover.NotFound, "bridge "+name, "there is no such interface")
	case err != nil:
		return nil, fmt.Errorf("bridge %s: %w", name, err)
	case l.Type() != "bridge":
		return nil, drover.Errorf(drover.Invalid, "bridge "+name, "it is a %s", l.Type())
	}
	return l, nil
}

// tunnel returns the extension's interface, or nil. One of its name that is
// not ours is drover.Exists.
func (s *Segments) tunnel(vni uint32) (*netlink.Vxlan, error) {
	name := linkName(vni)
	l, err := s.nl.LinkByName(name)
	if missing(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", name, err)
	}
	v, ok := l.(*netlink.Vxlan)
	if !ok || !strings.HasPrefix(v.Alias, aliasPrefix) {
		return nil, drover.Errorf(drover.Exists, "interface "+name, "somebody else has made it")
	}
	return v, nil
}

// addTunnel makes the interface, down and in no bridge.
func (s *Segments) addTunnel(ext driver.Extension) (*netlink.Vxlan, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = linkName(ext.VNI), mtu(ext), tunnelMAC(ext)
	err := s.nl.LinkAdd(&netlink.Vxlan{
		LinkAttrs: attrs, VxlanId: int(ext.VNI), SrcAddr: ext.Local.AsSlice(), Port: int(s.cfg.Port),
	})
	if errors.Is(err, unix.EEXIST) || errors.Is(err, unix.EADDRINUSE) {
		return nil, drover.Errorf(drover.Exists, "VNI "+strconv.Itoa(int(ext.VNI)), "somebody else uses it on port %d: %w", s.cfg.Port, err)
	}
	if err != nil {
		return nil, fmt.Errorf("add interface %s: %w", attrs.Name, err)
	}
	l, err := s.nl.LinkByName(attrs.Name)
	if err != nil {
		return nil, fmt.Errorf("find interface %s: %w", attrs.Name, err)
	}
	v, ok := l.(*netlink.Vxlan)
	if !ok {
		return nil, fmt.Errorf("interface %s is a %s now", attrs.Name, l.Type())
	}
	return v, nil
}

// tunnelMAC is a MAC that no other edge has in the segment, and a great one: a
// bridge without an address of its own takes the smallest of its ports'.
func tunnelMAC(ext driver.Extension) net.HardwareAddr {
	sum := sha256.Sum256(binary.BigEndian.AppendUint32(ext.Local.AsSlice(), ext.VNI))
	return append(net.HardwareAddr{0xfe}, sum[:macBytes-1]...)
}

func mtu(ext driver.Extension) int { return cmp.Or(ext.MTU, driver.DefaultSegmentMTU) }

// plug makes the interface a port of the bridge with the flags that a tunnel
// has, and repairs what of it somebody has changed.
func (s *Segments) plug(v *netlink.Vxlan, bridge netlink.Link, ext driver.Extension) error {
	// The kernel takes no alias for an interface that is being made.
	if want := aliasPrefix + ext.Segment; v.Alias != want {
		if err := s.nl.LinkSetAlias(v, want); err != nil {
			return fmt.Errorf("mark %s: %w", v.Name, err)
		}
		v.Alias = want
	}
	if v.MTU != mtu(ext) {
		if err := s.nl.LinkSetMTU(v, mtu(ext)); err != nil {
			return fmt.Errorf("MTU of %s: %w", v.Name, err)
		}
	}
	if err := s.nl.LinkSetIP6AddrGenMode(v, noAddresses); err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
		return fmt.Errorf("addresses of %s: %w", v.Name, err) // a port has none of its own
	}
	if v.MasterIndex != bridge.Attrs().Index {
		if err := s.nl.LinkSetMaster(v, bridge); err != nil {
			return fmt.Errorf("put %s into %s: %w", v.Name, bridge.Attrs().Name, err)
		}
		v.MasterIndex = bridge.Attrs().Index
	}
	for _, f := range []struct {
		name string
		set  func(netlink.Link, bool) error
	}{
		{"isolated", s.nl.LinkSetIsolated},
		{"neigh_suppress", s.nl.LinkSetBrNeighSuppress},
		{"guard", s.nl.LinkSetGuard},
	} {
		if err := f.set(v, true); err != nil {
			return fmt.Errorf("set %s of %s: %w", f.name, v.Name, err)
		}
	}
	return nil
}

// zeroMAC is the entry of a VXLAN device for what is for everybody.
var zeroMAC = make(net.HardwareAddr, macBytes)

// fdbEntries returns what the device (self) and its port in the bridge have.
func (s *Segments) fdbEntries(v *netlink.Vxlan) ([]netlink.Neigh, error) {
	return dump(func() ([]netlink.Neigh, error) { return s.nl.NeighList(v.Index, unix.AF_BRIDGE) })
}

// setRemotes makes the list for everybody exactly these.
func (s *Segments) setRemotes(v *netlink.Vxlan, remotes []netip.Addr) error {
	have, err := s.fdbEntries(v)
	if err != nil {
		return fmt.Errorf("read entries of %s: %w", v.Name, err)
	}
	want := map[netip.Addr]bool{}
	for _, r := range remotes {
		want[r] = true
	}
	for _, e := range have {
		dst, ok := netip.AddrFromSlice(e.IP)
		dst = dst.Unmap()
		if !bytes.Equal(e.HardwareAddr, zeroMAC) || !ok {
			continue
		}
		if want[dst] {
			delete(want, dst)
			continue
		}
		if err := s.nl.NeighDel(&e); err != nil && !missing(err) {
			return fmt.Errorf("remove remote %v of %s: %w", dst, v.Name, err)
		}
	}
	for r := range want {
		e := toEdge(v, zeroMAC, r)
		if err := s.nl.NeighAppend(e); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add remote %v to %s: %w", r, v.Name, err)
		}
	}
	return nil
}

// toEdge is the device's entry that a MAC is behind an edge.
func toEdge(v *netlink.Vxlan, mac net.HardwareAddr, edge netip.Addr) *netlink.Neigh {
	return &netlink.Neigh{
		LinkIndex: v.Index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF, State: netlink.NUD_PERMANENT,
		HardwareAddr: mac, IP: edge.AsSlice(),
	}
}

// toTunnel is the bridge's entry that a MAC is behind the tunnel. Marked as
// learnt externally, it does not age, and gives way to what a port learns.
func toTunnel(v *netlink.Vxlan, mac net.HardwareAddr) *netlink.Neigh {
	return &netlink.Neigh{
		LinkIndex: v.Index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_MASTER | netlink.NTF_EXT_LEARNED,
		State: netlink.NUD_NOARP, HardwareAddr: mac,
	}
}

// otherWay says which tunnel of somebody else joins the bridge to one of the
// addresses already, or "".
func (s *Segments) otherWay(bridge netlink.Link, remotes []driver.Remote) (string, error) {
	to := map[netip.Addr]bool{}
	for _, r := range remotes {
		to[r.Address] = true
		for _, a := range r.Others {
			to[a] = true
		}
	}
	links, err := dump(s.nl.LinkList)
	if err != nil {
		return "", fmt.Errorf("list interfaces: %w", err)
	}
	for _, l := range links {
		v, ok := l.(*netlink.Vxlan)
		if !ok || v.MasterIndex != bridge.Attrs().Index || strings.HasPrefix(v.Alias, aliasPrefix) {
			continue
		}
		if a, ok := netip.AddrFromSlice(v.Group); ok && to[a.Unmap()] {
			return fmt.Sprintf("%s leads to %v already", v.Name, a.Unmap()), nil
		}
		entries, err := s.fdbEntries(v)
		if err != nil {
			return "", fmt.Errorf("read entries of %s: %w", v.Name, err)
		}
		for _, e := range entries {
			if a, ok := netip.AddrFromSlice(e.IP); ok && to[a.Unmap()] {
				return fmt.Sprintf("%s leads to %v already", v.Name, a.Unmap()), nil
			}
		}
	}
	return "", nil
}
