package vxlan

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	// neighborProtocol marks neighbour entries as Drover's; beside it the
	// table's addresses say which are this driver's.
	neighborProtocol = 215
	// ndaProtocol is NDA_PROTOCOL of linux/neighbour.h.
	ndaProtocol = 12
)

// SetStations makes these the known stations.
func (s *Segments) SetStations(ctx context.Context, segment string, stations []driver.Station) error {
	op := "stations of segment " + segment
	if err := s.begin(ctx, op); err != nil {
		return err
	}
	defer s.mu.Unlock()
	e, err := s.extended(segment)
	if err != nil {
		return fail(op, err)
	}
	remotes := e.marks.remotes()
	if err := driver.CheckStations(e.local(), remotes, stations); err != nil {
		return drover.E(drover.Invalid, op, err)
	}
	return fail(op, s.applyStations(e, normal(stations)))
}

// normal returns the stations with MACs in one form and everything in order.
func normal(stations []driver.Station) []driver.Station {
	all := slices.Clone(stations)
	for i, st := range all {
		all[i].MAC = net.HardwareAddr(macKey(st.MAC)).String()
		all[i].Addresses = slices.SortedFunc(slices.Values(st.Addresses), netip.Addr.Compare)
	}
	slices.SortFunc(all, func(a, b driver.Station) int { return slices.Compare(macKey(a.MAC), macKey(b.MAC)) })
	return all
}

// applyStations records the stations and makes the kernel follow. What the
// kernel does wrong after a crash in between, the next call repairs.
func (s *Segments) applyStations(e *extension, stations []driver.Station) error {
	bridge, err := s.bridge(e.bridge)
	if err != nil {
		return err
	}
	neighbors, err := s.neighbors(bridge)
	if err != nil {
		return err
	}
	stations = s.withoutForeign(e, stations, neighbors)
	// Removed first and recorded after, then recorded first and added after:
	// an entry of ours is on record at any moment.
	if err := s.dropNeighbors(bridge, e.marks.stations, stations, neighbors); err != nil {
		return err
	}
	if err := s.recordStations(e, stations); err != nil {
		return err
	}
	if err := s.applyEntries(e.link, stations); err != nil {
		return err
	}
	moving := slices.ContainsFunc(stations, func(st driver.Station) bool { return st.Next.IsValid() })
	if err := s.nl.LinkSetLearning(e.link, moving); err != nil {
		return fmt.Errorf("set learning of %s: %w", e.link.Name, err)
	}
	return s.addNeighbors(bridge, stations, neighbors)
}

// withoutForeign leaves out addresses for which somebody else has a permanent entry.
func (s *Segments) withoutForeign(e *extension, stations []driver.Station, have map[netip.Addr]netlink.Neigh) []driver.Station {
	ours := map[netip.Addr]bool{}
	for _, st := range e.marks.stations {
		for _, a := range st.Addresses {
			ours[a] = true
		}
	}
	all := slices.Clone(stations)
	for i, st := range all {
		all[i].Addresses = slices.DeleteFunc(slices.Clone(st.Addresses), func(a netip.Addr) bool {
			n, there := have[a]
			foreign := there && n.State&netlink.NUD_PERMANENT != 0 && !ours[a]
			if foreign {
				s.log.Warn("address has a permanent neighbour entry of somebody else: left as it is", "segment", e.segment, "address", a, "mac", st.MAC)
			}
			return foreign
		})
	}
	return all
}

// recordStations changes the sets in one transaction. The counters of stations
// that stay go on.
func (s *Segments) recordStations(e *extension, stations []driver.Station) error {
	t := newTable(e.marks.vni)
	before, after := byMAC(e.marks.stations), byMAC(stations)
	var gone, added []nftables.SetElement
	for mac := range before {
		if _, stays := after[mac]; !stays {
			gone = append(gone, nftables.SetElement{Key: macKey(mac)})
		}
	}
	var places, here, addresses []nftables.SetElement
	for mac, st := range after {
		if _, was := before[mac]; !was {
			added = append(added, nftables.SetElement{Key: macKey(mac)})
		}
		places = append(places, stationElement(st))
		if !st.At.IsValid() && !st.Next.IsValid() {
			here = append(here, nftables.SetElement{Key: macKey(mac)})
		}
		for _, a := range st.Addresses {
			addresses = append(addresses, addressElement(a, mac))
		}
	}
	s.nft.FlushSet(t.stations)
	s.nft.FlushSet(t.here)
	s.nft.FlushSet(t.addresses)
	for _, c := range []struct {
		set    *nftables.Set
		change func(*nftables.Set, []nftables.SetElement) error
		what   []nftables.SetElement
	}{
		{t.received, s.nft.SetDeleteElements, gone},
		{t.sent, s.nft.SetDeleteElements, gone},
		{t.received, s.nft.SetAddElements, added},
		{t.sent, s.nft.SetAddElements, added},
		{t.stations, s.nft.SetAddElements, places},
		{t.here, s.nft.SetAddElements, here},
		{t.addresses, s.nft.SetAddElements, addresses},
	} {
		for part := range slices.Chunk(c.what, elementsPerMessage) {
			if err := c.change(c.set, part); err != nil {
				return fmt.Errorf("set %s: %w", c.set.Name, err)
			}
		}
	}
	return s.commit("record stations")
}

// elementsPerMessage keeps a list of elements below the 64 KiB that one
// netlink attribute can hold: an element is less than 350 bytes.
const elementsPerMessage = 128

func byMAC(stations []driver.Station) map[string]driver.Station {
	m := map[string]driver.Station{}
	for _, st := range stations {
		m[st.MAC] = st
	}
	return m
}

// applyEntries makes the forwarding entries exactly those of the stations:
// the device's for all that are, or will be, elsewhere; the bridge's for those
// that are.
func (s *Segments) applyEntries(v *netlink.Vxlan, stations []driver.Station) error {
	edges, tunnel := map[string]netip.Addr{}, map[string]bool{}
	for _, st := range stations {
		if st.At.IsValid() {
			edges[st.MAC], tunnel[st.MAC] = st.At, true
		} else if st.Next.IsValid() {
			edges[st.MAC] = st.Next
		}
	}
	// What the port has learnt of a station on its way stays until it is told.
	moving := map[string]bool{}
	for _, st := range stations {
		moving[st.MAC] = st.Next.IsValid()
	}
	have, err := s.fdbEntries(v)
	if err != nil {
		return fmt.Errorf("read entries of %s: %w", v.Name, err)
	}
	for _, e := range have {
		mac := e.HardwareAddr.String()
		if mac == zeroMAC.String() || mac == v.HardwareAddr.String() {
			continue
		}
		if e.Flags&netlink.NTF_SELF != 0 {
			dst, _ := netip.AddrFromSlice(e.IP)
			if want, wanted := edges[mac]; wanted && want == dst.Unmap() {
				delete(edges, mac)
				continue
			} else if wanted {
				continue // replaced below
			}
		} else if tunnel[mac] && e.Flags&netlink.NTF_EXT_LEARNED != 0 {
			delete(tunnel, mac)
			continue
		} else if tunnel[mac] || moving[mac] || e.State&netlink.NUD_PERMANENT != 0 {
			continue
		} else {
			e.Flags |= netlink.NTF_MASTER
		}
		if err := s.nl.NeighDel(&e); err != nil && !missing(err) {
			return fmt.Errorf("remove entry %s of %s: %w", mac, v.Name, err)
		}
	}
	for mac, edge := range edges {
		if err := s.nl.NeighSet(toEdge(v, macKey(mac), edge)); err != nil {
			return fmt.Errorf("%s is at %v: %w", mac, edge, err)
		}
	}
	for mac := range maps.Keys(tunnel) {
		if err := s.nl.NeighSet(toTunnel(v, macKey(mac))); err != nil {
			return fmt.Errorf("%s is behind %s: %w", mac, v.Name, err)
		}
	}
	return nil
}

// neighbors returns the bridge's neighbour entries by address.
func (s *Segments) neighbors(bridge netlink.Link) (map[netip.Addr]netlink.Neigh, error) {
	all := map[netip.Addr]netlink.Neigh{}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		list, err := dump(func() ([]netlink.Neigh, error) { return s.nl.NeighList(bridge.Attrs().Index, family) })
		if err != nil {
			return nil, fmt.Errorf("read neighbours of %s: %w", bridge.Attrs().Name, err)
		}
		for _, n := range list {
			if a, ok := netip.AddrFromSlice(n.IP); ok {
				all[a.Unmap()] = n
			}
		}
	}
	return all, nil
}

// elsewhere returns the MAC for each address of stations at other sites.
func elsewhere(stations []driver.Station) map[netip.Addr]string {
	all := map[netip.Addr]string{}
	for _, st := range stations {
		if !st.At.IsValid() {
			continue
		}
		for _, a := range st.Addresses {
			all[a] = st.MAC
		}
	}
	return all
}

// dropNeighbors removes the entries of what is no longer elsewhere.
func (s *Segments) dropNeighbors(bridge netlink.Link, before, after []driver.Station, have map[netip.Addr]netlink.Neigh) error {
	keep := elsewhere(after)
	for a, mac := range elsewhere(before) {
		n, there := have[a]
		if keep[a] == mac || !there || n.State&netlink.NUD_PERMANENT == 0 || n.HardwareAddr.String() != mac {
			continue
		}
		if err := s.nl.NeighDel(&n); err != nil && !missing(err) {
			return fmt.Errorf("forget %v on %s: %w", a, bridge.Attrs().Name, err)
		}
	}
	return nil
}

func (s *Segments) addNeighbors(bridge netlink.Link, stations []driver.Station, have map[netip.Addr]netlink.Neigh) error {
	missing := map[netip.Addr]string{}
	for a, mac := range elsewhere(stations) {
		if n, there := have[a]; !there || n.State&netlink.NUD_PERMANENT == 0 || n.HardwareAddr.String() != mac {
			missing[a] = mac
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return s.within(func() error {
		for a, mac := range missing {
			if err := addNeighbor(bridge.Attrs().Index, a, macKey(mac)); err != nil {
				return fmt.Errorf("%v is %s on %s: %w", a, mac, bridge.Attrs().Name, err)
			}
		}
		return nil
	})
}

// addNeighbor adds or replaces an entry with our protocol, which the library
// has no field for.
func addNeighbor(index int, a netip.Addr, mac net.HardwareAddr) error {
	family := unix.AF_INET6
	if a.Is4() {
		family = unix.AF_INET
	}
	req := nl.NewNetlinkRequest(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE|unix.NLM_F_ACK)
	req.AddData(&netlink.Ndmsg{Family: uint8(family), Index: uint32(index), State: netlink.NUD_PERMANENT})
	req.AddData(nl.NewRtAttr(netlink.NDA_DST, a.AsSlice()))
	req.AddData(nl.NewRtAttr(netlink.NDA_LLADDR, mac))
	req.AddData(nl.NewRtAttr(ndaProtocol, []byte{neighborProtocol}))
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}
