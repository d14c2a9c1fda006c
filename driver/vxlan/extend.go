package vxlan

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
)

// Extend joins the bridge to the remotes for the owner.
func (s *Segments) Extend(ctx context.Context, owner driver.Owner, ext driver.Extension) error {
	op := "extend segment " + ext.Segment
	if err := owner.Validate(); err != nil {
		return err
	}
	if err := ext.Validate(); err != nil {
		return err
	}
	if err := s.begin(ctx, op); err != nil {
		return err
	}
	defer s.mu.Unlock()
	return fail(op, s.extend(ctx, owner, ext))
}

func (s *Segments) extend(ctx context.Context, owner driver.Owner, ext driver.Extension) error {
	bridge, err := s.bridge(ext.Bridge)
	if err != nil {
		return err
	}
	e, err := s.standing(ext)
	if err != nil {
		return err
	}
	if why, err := s.otherWay(bridge, ext.Remotes); err != nil {
		return err
	} else if why != "" {
		return drover.Errorf(drover.Refused, "loop", "%s", why)
	}
	if err := s.listen(ctx, e, bridge, ext); err != nil {
		return err
	}
	if e.marks, err = s.claim(e.marks, owner, ext); err != nil {
		return err
	}
	if e.link == nil {
		if e.link, err = s.addTunnel(ext); err != nil {
			return s.abandon(e, err)
		}
	}
	e.segment, e.bridge = ext.Segment, ext.Bridge
	if err := s.plug(e.link, bridge, ext); err != nil {
		return err
	}
	if err := s.setRemotes(e.link, e.marks.remotes()); err != nil {
		return err
	}
	if err := s.egress(e, ext); err != nil {
		return err
	}
	// What was known before a part of the extension was lost, or was at a
	// remote that is none any more.
	if err := s.applyStations(e, reachable(e.marks)); err != nil {
		return err
	}
	if err := s.guardStart(e); err != nil {
		return err
	}
	if err := s.nl.LinkSetUp(e.link); err != nil {
		return fmt.Errorf("set %s up: %w", e.link.Name, err)
	}
	return nil
}

// standing returns the extension as it is, which may be not at all, unless it
// contradicts what is asked for.
func (s *Segments) standing(ext driver.Extension) (*extension, error) {
	all, err := s.extensions()
	if err != nil {
		return nil, err
	}
	for _, e := range all {
		switch {
		case e.segment == ext.Segment && e.marks.vni != ext.VNI:
			return nil, drover.Errorf(drover.Refused, "VNI", "it is extended with %d, not %d", e.marks.vni, ext.VNI)
		case e.segment != ext.Segment && e.marks.vni == ext.VNI && e.segment != "":
			return nil, drover.Errorf(drover.Refused, "VNI", "%d is segment %s's", ext.VNI, e.segment)
		case e.marks.vni != ext.VNI:
			continue
		case e.bridge != "" && e.bridge != ext.Bridge && len(e.marks.claims) > 0:
			return nil, drover.Errorf(drover.Refused, "bridge", "it is extended in %s, not in %s", e.bridge, ext.Bridge)
		case e.link != nil && e.local() != ext.Local:
			return nil, drover.Errorf(drover.Refused, "local address", "it is extended from %v, not from %v", e.local(), ext.Local)
		case e.link != nil && e.link.Port != int(s.cfg.Port):
			return nil, drover.Errorf(drover.Refused, "port", "it is extended on UDP port %d, not %d", e.link.Port, s.cfg.Port)
		}
		return e, nil
	}
	// Nothing of ours: a foreign interface with our name is an error here.
	link, err := s.tunnel(ext.VNI)
	return &extension{segment: ext.Segment, bridge: ext.Bridge, link: link, marks: &marks{vni: ext.VNI}}, err
}

// claim records the owner with its remotes, in a table that is made if there
// is none, and returns the marks as they are then.
func (s *Segments) claim(m *marks, owner driver.Owner, ext driver.Extension) (*marks, error) {
	vnis, err := s.tables()
	if err != nil {
		return nil, err
	}
	t := newTable(ext.VNI)
	if !slices.Contains(vnis, ext.VNI) {
		t = s.addTable(ext.VNI)
	}
	if gone := elementsOf(m.claims, func(c claim) bool { return c.owner == owner }); len(gone) > 0 {
		if err := s.nft.SetDeleteElements(t.owners, gone); err != nil {
			return nil, err
		}
	}
	var added []nftables.SetElement
	for _, r := range ext.Remotes {
		added = append(added, claim{owner: owner, remote: r.Address, segment: ext.Segment, bridge: ext.Bridge}.element())
	}
	if err := s.nft.SetAddElements(t.owners, added); err != nil {
		return nil, err
	}
	if err := s.commit("record owner " + string(owner)); err != nil {
		return nil, err
	}
	return s.readMarks(ext.VNI)
}

// elementsOf returns the keys of the claims that are meant.
func elementsOf(claims []claim, meant func(claim) bool) []nftables.SetElement {
	var all []nftables.SetElement
	for _, c := range claims {
		if meant(c) {
			all = append(all, nftables.SetElement{Key: c.element().Key})
		}
	}
	return all
}

// abandon removes the marks of an extension of which nothing else could be made.
func (s *Segments) abandon(e *extension, cause error) error {
	s.nft.DelTable(newTable(e.marks.vni).Table)
	if err := s.commit("remove marks"); err != nil {
		return fmt.Errorf("%w; and %w", cause, err)
	}
	return cause
}

// egress records the gateway and makes the rules that keep it at its site.
func (s *Segments) egress(e *extension, ext driver.Extension) error {
	t := newTable(ext.VNI)
	s.nft.FlushSet(t.gateway)
	s.setGateway(t, ext, e.link.HardwareAddr)
	if ext.LocalEgress {
		var addresses []string
		for _, a := range ext.Gateway.Addresses {
			addresses = append(addresses, a.String())
		}
		if err := s.nft.SetAddElements(t.gateway, []nftables.SetElement{{
			Key: macKey(ext.Gateway.MAC), Comment: strings.Join(addresses, ","),
		}}); err != nil {
			return err
		}
	}
	return s.commit("local egress")
}

// reachable returns the recorded stations without those behind remotes that are none.
func reachable(m *marks) []driver.Station {
	remotes := m.remotes()
	out := func(a netip.Addr) bool { return a.IsValid() && !slices.Contains(remotes, a) }
	var all []driver.Station
	for _, st := range m.stations {
		if out(st.At) {
			continue
		}
		if out(st.Next) {
			st.Next = netip.Addr{}
		}
		all = append(all, st)
	}
	return all
}

// Retract ends the owner's need.
func (s *Segments) Retract(ctx context.Context, owner driver.Owner, segment string) error {
	op := "retract segment " + segment
	if err := owner.Validate(); err != nil {
		return err
	}
	if err := drover.CheckName("segment", segment); err != nil {
		return err
	}
	if err := s.begin(ctx, op); err != nil {
		return err
	}
	defer s.mu.Unlock()
	all, err := s.extensions()
	if err != nil {
		return fail(op, err)
	}
	for _, e := range all {
		if e.segment == segment {
			return fail(op, s.retract(e, owner))
		}
	}
	return nil
}

func (s *Segments) retract(e *extension, owner driver.Owner) error {
	t := newTable(e.marks.vni)
	left := slices.DeleteFunc(slices.Clone(e.marks.claims), func(c claim) bool { return c.owner == owner })
	if len(left) == 0 {
		return s.remove(e)
	}
	gone := elementsOf(e.marks.claims, func(c claim) bool { return c.owner == owner })
	if len(gone) == 0 {
		return nil
	}
	if err := s.nft.SetDeleteElements(t.owners, gone); err != nil {
		return err
	}
	if err := s.commit("remove owner " + string(owner)); err != nil {
		return err
	}
	e.marks.claims = left
	if e.link == nil {
		return nil
	}
	if err := s.setRemotes(e.link, e.marks.remotes()); err != nil {
		return err
	}
	if g := s.guards[e.marks.vni]; g != nil {
		g.watch(e.marks.remotes())
	}
	return s.applyStations(e, reachable(e.marks))
}

// remove removes the extension, its marks last.
func (s *Segments) remove(e *extension) error {
	if g := s.guards[e.marks.vni]; g != nil {
		g.stop()
		delete(s.guards, e.marks.vni)
	}
	if e.link != nil {
		if err := s.nl.LinkDel(e.link); err != nil && !missing(err) {
			return fmt.Errorf("remove %s: %w", e.link.Name, err)
		}
	}
	bridge, err := s.bridge(e.bridge)
	if err == nil {
		var have map[netip.Addr]netlink.Neigh
		if have, err = s.neighbors(bridge); err == nil {
			err = s.dropNeighbors(bridge, e.marks.stations, nil, have)
		}
	} else if drover.KindOf(err) == drover.NotFound {
		err = nil // its neighbours went with it
	}
	if err != nil {
		return err
	}
	vnis, err := s.tables()
	if err != nil || !slices.Contains(vnis, e.marks.vni) {
		return err
	}
	s.nft.DelTable(newTable(e.marks.vni).Table)
	return s.commit("remove marks")
}
