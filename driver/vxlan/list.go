package vxlan

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
	"github.com/vishvananda/netlink"
)

// extension is one as it was found: its interface, its table, or both.
type extension struct {
	segment, bridge string
	link            *netlink.Vxlan // nil when it is missing
	marks           *marks         // never nil; without claims when there is no table
}

func (e *extension) local() netip.Addr {
	if e.link == nil {
		return netip.Addr{}
	}
	a, _ := netip.AddrFromSlice(e.link.SrcAddr)
	return a.Unmap()
}

// extensions finds all there are.
func (s *Segments) extensions() ([]*extension, error) {
	links, err := dump(s.nl.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	names, byVNI, unmarked := map[int]string{}, map[uint32]*extension{}, map[uint32]*netlink.Vxlan{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	for _, l := range links {
		v, ok := l.(*netlink.Vxlan)
		if !ok {
			continue
		}
		segment, ours := strings.CutPrefix(v.Alias, aliasPrefix)
		if v.Name != linkName(uint32(v.VxlanId)) {
			continue
		}
		if !ours {
			unmarked[uint32(v.VxlanId)] = v
			continue
		}
		byVNI[uint32(v.VxlanId)] = &extension{
			segment: segment, bridge: names[v.MasterIndex], link: v, marks: &marks{vni: uint32(v.VxlanId)},
		}
	}
	vnis, err := s.tables()
	if err != nil {
		return nil, err
	}
	for _, vni := range vnis {
		m, err := s.readMarks(vni)
		if err != nil {
			return nil, err
		}
		e := byVNI[vni]
		if e == nil {
			e = &extension{}
			byVNI[vni] = e
			// A crash between an interface and its alias: owners are recorded
			// only where the name was free.
			if v := unmarked[vni]; v != nil && v.Alias == "" && len(m.claims) > 0 {
				e.link, e.bridge = v, names[v.MasterIndex]
			}
		}
		e.marks = m
		e.segment, e.bridge = cmp.Or(e.segment, m.segment()), cmp.Or(m.bridge(), e.bridge)
	}
	var all []*extension
	for _, e := range byVNI {
		all = append(all, e)
	}
	slices.SortFunc(all, func(a, b *extension) int {
		return cmp.Or(cmp.Compare(a.segment, b.segment), cmp.Compare(a.marks.vni, b.marks.vni))
	})
	return all, nil
}

// extended returns a segment's extension, with its interface; another is drover.NotFound.
func (s *Segments) extended(segment string) (*extension, error) {
	all, err := s.extensions()
	if err != nil {
		return nil, err
	}
	for _, e := range all {
		if e.segment == segment && e.link != nil && len(e.marks.claims) > 0 {
			return e, nil
		}
	}
	return nil, drover.Errorf(drover.NotFound, "extension", "segment %q is not extended", segment)
}

// List returns every extension with its owners.
func (s *Segments) List(ctx context.Context) ([]driver.ExtendedSegment, error) {
	const op = "list extended segments"
	if err := s.begin(ctx, op); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	all, err := s.extensions()
	if err != nil {
		return nil, fail(op, err)
	}
	var list []driver.ExtendedSegment
	for _, e := range all {
		list = append(list, s.describe(e))
	}
	return list, nil
}

func (s *Segments) describe(e *extension) driver.ExtendedSegment {
	d := driver.ExtendedSegment{
		Extension: driver.Extension{
			Segment: e.segment, Bridge: e.bridge, VNI: e.marks.vni, Local: e.local(),
			LocalEgress: e.marks.gateway.MAC != "", Gateway: e.marks.gateway,
		},
		Owners: e.marks.owners(), Stations: e.marks.stations, Interface: linkName(e.marks.vni),
	}
	for _, r := range e.marks.remotes() {
		d.Remotes = append(d.Remotes, driver.Remote{Address: r})
	}
	switch {
	case e.link == nil:
		d.Fault, d.Missing = "the tunnel's interface is missing", true
		return d
	case len(e.marks.claims) == 0:
		d.Fault, d.Missing = "the marks of its owners are missing", true
	case e.link.MasterIndex == 0:
		d.Fault, d.Missing = "the tunnel's interface is in no bridge", true
	case e.link.Flags&net.FlagUp == 0:
		d.Fault = "the tunnel is shut"
		if g := s.guards[e.marks.vni]; g != nil {
			d.Fault = cmp.Or(g.fault(), d.Fault)
		}
	}
	d.MTU = e.link.MTU
	return d
}

// Counters returns what has crossed.
func (s *Segments) Counters(ctx context.Context, segment string) (driver.SegmentCounters, error) {
	op := "counters of segment " + segment
	if err := s.begin(ctx, op); err != nil {
		return driver.SegmentCounters{}, err
	}
	defer s.mu.Unlock()
	e, err := s.extended(segment)
	if err != nil {
		return driver.SegmentCounters{}, fail(op, err)
	}
	c, err := s.count(e.marks.vni)
	if err != nil {
		return driver.SegmentCounters{}, fail(op, err)
	}
	if st := e.link.Statistics; st != nil {
		c.Received = driver.TrafficCount{Frames: st.RxPackets, Bytes: drover.Bytes(st.RxBytes)}
		c.Sent = driver.TrafficCount{Frames: st.TxPackets, Bytes: drover.Bytes(st.TxBytes)}
	}
	return c, nil
}
