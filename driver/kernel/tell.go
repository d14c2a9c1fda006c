package kernel

import (
	"errors"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"

	"github.com/drover-vm/drover/driver"
)

// A guest that has come from another site remembers the MACs of its neighbours
// there, for up to a minute, and sends to them what nobody here takes. This edge
// answers for those neighbours, so it says so to the guest, and to nobody else:
// other stations here have neighbours of their own.

// maxTold bounds the addresses of one guest that are told, two frames each: those
// of an IPv4 subnet of 22 bits, a thousandth of a second's traffic.
const maxTold = 1024

// tell tells the guest of a delivery of its neighbours: of those that are named
// before it returns, then of the others, and again for frames that were lost. It
// ends when the guest is not here any more.
func (a *Addresses) tell(owner driver.Owner, d driver.Delivery, stands []entry) error {
	link, err := needLink(d.Bridge)
	if err != nil {
		return err
	}
	own, err := localAddresses(link)
	if err != nil {
		return err
	}
	t := telling{owner: owner, Delivery: d, local: own, own: link.Attrs().HardwareAddr}
	if t.guest, err = net.ParseMAC(d.MAC); err != nil {
		return err
	}
	named, all := t.neighbours(stands)
	if len(all) == 0 {
		return nil
	}
	s, err := openRaw(link, 0)
	if err != nil {
		return err
	}
	if err := s.send(t.frames(named)); err != nil {
		s.close()
		return err
	}
	a.done.Go(func() {
		defer s.close()
		if s.send(t.frames(all[len(named):])) != nil {
			return
		}
		for _, after := range announceAgain {
			if sleep(a.ctx, after) != nil {
				return
			}
			var now []entry
			err := a.inside(func() (err error) {
				now, err = readEntries()
				return err
			})
			if err != nil {
				a.log.Warn("a guest is not told of its neighbours again", "owner", owner, "err", err)
				return
			}
			// Whoever has come here meanwhile speaks for itself.
			if _, all := t.neighbours(now); len(all) == 0 || s.send(t.frames(all)) != nil {
				return
			}
		}
	})
	return nil
}

// telling is a guest that is told of its neighbours.
type telling struct {
	owner driver.Owner
	driver.Delivery
	guest, own net.HardwareAddr
	local      []netip.Addr // this edge's own on the bridge
}

// neighbours returns the addresses that this edge answers for on the guest's
// bridge: those that are named, and all, the named ones first. There are none when
// the guest is not here.
func (t telling) neighbours(stands []entry) (named, all []netip.Addr) {
	here := map[netip.Addr]bool{}
	for _, addr := range t.local {
		here[addr] = true
	}
	var rest []netip.Prefix
	for _, e := range stands {
		switch {
		case e.bridge != t.Bridge:
		case e.role == driver.RoleRest:
			rest = append(rest, e.prefix)
		case e.prefix.IsSingleIP() && (e.role == driver.RoleDeliver || e.role == driver.RoleAcceptOld):
			here[e.prefix.Addr()] = true
		}
	}
	// A subnet matters in which the guest has an address itself.
	rest = slices.DeleteFunc(rest, func(p netip.Prefix) bool { return !t.to(p, stands).IsValid() })
	add := func(addr netip.Addr) {
		if !here[addr] && len(all) < maxTold && slices.ContainsFunc(rest, func(p netip.Prefix) bool { return p.Contains(addr) }) {
			here[addr] = true
			all = append(all, addr)
		}
	}
	for _, addr := range t.Neighbors {
		add(addr)
	}
	named = slices.Clone(all)
	for _, p := range rest {
		if !p.Addr().Is4() || 1<<(32-p.Bits()) > maxTold {
			continue
		}
		// The first is the network's own, the last everybody's.
		for addr := p.Addr().Next(); p.Contains(addr.Next()); addr = addr.Next() {
			add(addr)
		}
	}
	return named, all
}

// to is the guest's address in a subnet, if it is delivered here.
func (t telling) to(p netip.Prefix, stands []entry) netip.Addr {
	for _, addr := range t.Addresses {
		if p.Contains(addr) && slices.Contains(stands, entry{owner: t.owner, role: driver.RoleDeliver, prefix: hostPrefix(addr), bridge: t.Bridge}) {
			return addr
		}
	}
	return netip.Addr{}
}

// frames say to the guest alone that the addresses have this edge's MAC. For ARP
// these are a request and a reply, of which the latter lets the guest's kernel take
// it for confirmed; the target's MAC is the sender's in it, which makes it
// gratuitous to Linux.
func (t telling) frames(addresses []netip.Addr) [][]byte {
	var frames [][]byte
	for _, addr := range addresses {
		if addr.Is4() {
			frames = append(frames,
				gratuitous(t.own, t.guest, t.own, make(net.HardwareAddr, 6), addr, arpRequest),
				gratuitous(t.own, t.guest, t.own, t.own, addr, arpReply))
			continue
		}
		for _, to := range t.Addresses {
			if to.Is6() {
				frames = append(frames, advertisement(t.own, t.guest, t.own, addr, addr, to, advertiseOverride))
				break
			}
		}
	}
	return frames
}

// localAddresses are the interface's own.
func localAddresses(link netlink.Link) ([]netip.Addr, error) {
	all, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, err
	}
	var own []netip.Addr
	for _, a := range all {
		if addr, ok := netip.AddrFromSlice(a.IP); ok {
			own = append(own, addr.Unmap())
		}
	}
	return own, nil
}
