package kernel

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

const (
	// carrierName is the interface of old addresses, one for all other edges.
	carrierName  = "dvold"
	carrierAlias = "drover:old-addresses"
	// carrierVNI and carrierPort are the same at all edges, and not those of
	// extended segments.
	carrierVNI  = 2150215
	carrierPort = 14789
	// What VXLAN adds over each family: Ethernet 14, VXLAN 8, UDP 8, IP 20 or 40.
	overhead4, overhead6 = 50, 70
	// minMTU is what IPv6 demands of any link.
	minMTU = 1280
	// Routing tables of other edges are counted from here.
	firstTable, lastTable = 21500, 21500 + 1023
)

// ForwardOld implements driver.Addresses.
func (a *Addresses) ForwardOld(ctx context.Context, owner driver.Owner, f driver.OldForward) error {
	const op = "forward old addresses"
	if err := check(op, owner, f.Validate()); err != nil {
		return err
	}
	limits := map[netip.Addr]time.Duration{}
	for _, addr := range f.Addresses {
		if !f.All {
			limits[addr] = f.Limit
		}
	}
	err := a.changeOld(ctx, op, owner, f.To, f.Bridge, limits, func(entries []entry, table int) []entry {
		entries = without(entries, owner, f.Addresses, driver.RoleForwardOld)
		for _, addr := range f.Addresses {
			entries = with(entries, entry{owner, driver.RoleForwardOld, hostPrefix(addr), f.Bridge, f.To.Remote, table, f.All})
		}
		return entries
	})
	if err != nil {
		return err
	}
	return a.look(ctx, op, func() error { return a.announce(f.Addresses, f.Bridge, "") })
}

// AcceptOld implements driver.Addresses.
func (a *Addresses) AcceptOld(ctx context.Context, owner driver.Owner, o driver.OldAccept) error {
	const op = "accept old addresses"
	if err := check(op, owner, o.Validate()); err != nil {
		return err
	}
	err := a.changeOld(ctx, op, owner, o.From, o.Bridge, nil, func(entries []entry, table int) []entry {
		entries = without(entries, owner, o.Addresses, driver.RoleAcceptOld)
		entries = slices.DeleteFunc(entries, func(e entry) bool {
			return e.owner == owner && e.role == driver.RoleAcceptOld && slices.Contains(o.Subnets, e.prefix)
		})
		for _, addr := range o.Addresses {
			entries = with(entries, entry{owner, driver.RoleAcceptOld, hostPrefix(addr), o.Bridge, o.From.Remote, table, o.All})
		}
		for _, p := range o.Subnets {
			entries = with(entries, entry{owner, driver.RoleAcceptOld, p, o.Bridge, o.From.Remote, table, o.All})
		}
		return entries
	})
	if err != nil || len(o.Gateways) == 0 {
		return err
	}
	// The VM has another gateway's MAC in mind, which it would not doubt for seconds.
	return a.look(ctx, op, func() error { return a.announceGateways(o.Gateways, o.Bridge) })
}

func (a *Addresses) changeOld(ctx context.Context, op string, owner driver.Owner, path driver.MeshPath, bridge string, limits map[netip.Addr]time.Duration, f func([]entry, int) []entry) error {
	return a.run(ctx, op, func() error {
		before, err := readEntries()
		if err != nil {
			return err
		}
		if _, err := needLink(bridge); err != nil {
			return err
		}
		if err := checkPath(path); err != nil {
			return err
		}
		table, err := tableOf(before, path.Remote)
		if err != nil {
			return err
		}
		after := f(slices.Clone(before), table)
		if err := conflict(after); err != nil {
			return err
		}
		return errors.Join(apply(owner, before, after, limits), a.respond(after))
	})
}

// checkPath sees that the other edge is reached through the mesh and not
// beside it, and that what goes through fits.
func checkPath(path driver.MeshPath) error {
	op := fmt.Sprintf("mesh path to %v", path.Remote)
	link, err := needLink(path.Interface)
	if err != nil {
		return err
	}
	routes, err := netlink.RouteGet(path.Remote.AsSlice())
	if err != nil || len(routes) == 0 || routes[0].LinkIndex != link.Attrs().Index {
		return drover.Errorf(drover.Unavailable, op, "it does not lead through %s (%v)", path.Interface, err)
	}
	if mtu := innerMTU(link.Attrs().MTU, path.Remote); mtu < minMTU {
		return drover.Errorf(drover.Refused, op, "the MTU of %s is %d, which leaves %d: want at least %d", path.Interface, link.Attrs().MTU, mtu, minMTU)
	}
	return nil
}

func innerMTU(outer int, remote netip.Addr) int {
	if remote.Is4() {
		return outer - overhead4
	}
	return outer - overhead6
}

// tableOf returns the routing table that leads to the edge, a new one if no
// entry has one yet. A table with somebody else's routes is passed over.
func tableOf(entries []entry, remote netip.Addr) (int, error) {
	used := map[int]bool{}
	for _, e := range entries {
		if e.remote == remote {
			return e.table, nil
		}
		used[e.table] = true
	}
	for table := firstTable; table <= lastTable; table++ {
		if used[table] {
			continue
		}
		foreign := false
		for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
			routes, err := listRoutes(family, &netlink.Route{Table: table}, netlink.RT_FILTER_TABLE)
			if err != nil && !errors.Is(err, unix.ENOENT) {
				return 0, fmt.Errorf("list routes of table %d: %w", table, err)
			}
			foreign = foreign || len(routes) > 0
		}
		if !foreign {
			return table, nil
		}
	}
	return 0, drover.Errorf(drover.Exhausted, "find a routing table", "all from %d to %d are in use", firstTable, lastTable)
}

// station is an edge's end of the carrier: a MAC and a link-local address that
// follow from its mesh address.
func station(mesh netip.Addr) (net.HardwareAddr, netip.Addr) {
	sum := sha256.Sum256(append([]byte("drover old addresses "), mesh.AsSlice()...))
	mac := net.HardwareAddr{0x02, sum[0], sum[1], sum[2], sum[3], sum[4]}
	ll := [16]byte{0: 0xfe, 1: 0x80, 8: 0x02, 9: 0x15}
	copy(ll[10:], sum[5:11])
	return mac, netip.AddrFrom16(ll)
}

// carrier returns the interface of old addresses, nil if there is none.
func carrier() (*netlink.Vxlan, error) {
	l, err := needLink(carrierName)
	switch {
	case drover.KindOf(err) == drover.NotFound && err != nil:
		return nil, nil
	case err != nil:
		return nil, err
	}
	v, ok := l.(*netlink.Vxlan)
	if !ok || l.Attrs().Alias != carrierAlias {
		return nil, drover.Errorf(drover.Exists, "interface "+carrierName, "there is one already that is not Drover's")
	}
	return v, nil
}

// makeCarrier makes it, or completes it after a crash.
func makeCarrier(remote netip.Addr) (netlink.Link, error) {
	have, err := carrier()
	if err != nil {
		return nil, err
	}
	if have != nil && have.Attrs().Flags&net.FlagUp != 0 {
		if local, _ := netip.AddrFromSlice(have.SrcAddr); local.Unmap().Is4() != remote.Is4() {
			return nil, drover.Errorf(drover.Refused, "old addresses", "the mesh address %v is not of the family of the other edges' (%v)", remote, have.SrcAddr)
		}
		return have, nil
	}
	if have != nil {
		if err := netlink.LinkDel(have); err != nil {
			return nil, err
		}
	}
	routes, err := netlink.RouteGet(remote.AsSlice())
	if err != nil || len(routes) == 0 {
		return nil, drover.Errorf(drover.Unavailable, "mesh path to "+remote.String(), "no route: %v", err)
	}
	local, _ := netip.AddrFromSlice(routes[0].Src)
	local = local.Unmap()
	mesh, err := netlink.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		return nil, err
	}
	mac, _ := station(local)
	l := &netlink.Vxlan{
		LinkAttrs: netlink.LinkAttrs{Name: carrierName, HardwareAddr: mac, MTU: innerMTU(mesh.Attrs().MTU, remote), Alias: carrierAlias},
		VxlanId:   carrierVNI, Port: carrierPort, SrcAddr: local.AsSlice(),
	}
	if err := netlink.LinkAdd(l); err != nil {
		return nil, fmt.Errorf("make interface %s: %w", carrierName, err)
	}
	// It is ours alone: no addresses of the kernel's choice, and no filter by
	// source, since what comes from strangers comes through here. The other edge is
	// a next hop by its link-local address for either family, also where edges have
	// IPv6 off.
	err = errors.Join(
		netlink.LinkSetAlias(l, carrierAlias),
		writeSysctl("net/ipv6/conf/"+carrierName+"/disable_ipv6", "0"),
		writeSysctl("net/ipv6/conf/"+carrierName+"/addr_gen_mode", "1"),
		writeSysctl("net/ipv6/conf/"+carrierName+"/accept_ra", "0"),
		writeSysctl("net/ipv6/conf/"+carrierName+"/forwarding", "1"),
		writeSysctl("net/ipv4/conf/"+carrierName+"/forwarding", "1"),
		writeSysctl("net/ipv4/conf/"+carrierName+"/rp_filter", "0"),
		netlink.LinkSetUp(l),
	)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("set up interface %s: %w", carrierName, err), netlink.LinkDel(l))
	}
	return l, nil
}

// peerParts are what leads to another edge: its entry in the carrier's
// forwarding table, its fixed neighbour, the default routes of its table.
func peerParts(l netlink.Link, p peer) (fdb, neighbour *netlink.Neigh, routes []*netlink.Route) {
	mac, ll := station(p.remote)
	index := l.Attrs().Index
	fdb = &netlink.Neigh{
		LinkIndex: index, Family: unix.AF_BRIDGE, State: netlink.NUD_PERMANENT | netlink.NUD_NOARP,
		Flags: netlink.NTF_SELF, IP: p.remote.AsSlice(), HardwareAddr: mac,
	}
	neighbour = &netlink.Neigh{LinkIndex: index, Family: unix.AF_INET6, State: netlink.NUD_PERMANENT, IP: ll.AsSlice(), HardwareAddr: mac}
	for _, all := range []string{"0.0.0.0/0", "::/0"} {
		dst := netip.MustParsePrefix(all)
		r := &netlink.Route{LinkIndex: index, Dst: ipNet(dst), Table: p.table, Protocol: protocol, Family: netlinkFamily(dst.Addr())}
		if dst.Addr().Is4() {
			r.Via = &netlink.Via{AddrFamily: unix.AF_INET6, Addr: ll.AsSlice()}
		} else {
			r.Gw = ll.AsSlice()
		}
		routes = append(routes, r)
	}
	return fdb, neighbour, routes
}

func ensurePeer(p peer) error {
	l, err := makeCarrier(p.remote)
	if err != nil {
		return err
	}
	op := "way to the edge " + p.remote.String()
	fdb, neighbour, routes := peerParts(l, p)
	for _, n := range []*netlink.Neigh{fdb, neighbour} {
		if err := netlink.NeighSet(n); err != nil {
			return fmt.Errorf("%s: %w", op, err)
		}
	}
	for _, r := range routes {
		if err := netlink.RouteReplace(r); err != nil {
			return fmt.Errorf("%s: default route of table %d: %w", op, p.table, err)
		}
	}
	return nil
}

// removePeer takes the way to an edge away; with the last one goes the carrier,
// and everything on it.
func removePeer(p peer, last bool) error {
	have, err := carrier()
	if drover.KindOf(err) == drover.Exists && err != nil || err == nil && have == nil {
		return nil // ours is gone, whatever has its name
	}
	if err != nil {
		return err
	}
	op := "remove the way to the edge " + p.remote.String()
	if last {
		return gone(op, netlink.LinkDel(have))
	}
	fdb, neighbour, routes := peerParts(have, p)
	var errs []error
	for _, r := range routes {
		errs = append(errs, gone(op, netlink.RouteDel(r)))
	}
	for _, n := range []*netlink.Neigh{neighbour, fdb} {
		errs = append(errs, gone(op, netlink.NeighDel(n)))
	}
	return errors.Join(errs...)
}

func (r rule) wanted() *netlink.Rule {
	w := netlink.NewRule()
	w.Family, w.Table, w.Priority, w.Protocol = netlinkFamily(r.prefix.Addr()), r.table, oldPriority, protocol
	if r.from {
		w.Src, w.IifName = ipNet(r.prefix), r.iif
	} else {
		w.Dst = ipNet(r.prefix)
	}
	return w
}

// hasRule reports whether the rule stands.
func hasRule(r rule) (bool, error) {
	want := r.wanted()
	var rules []netlink.Rule
	var err error
	for range dumpTries {
		if rules, err = netlink.RuleList(want.Family); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return false, fmt.Errorf("list rules: %w", err)
	}
	return slices.ContainsFunc(rules, func(x netlink.Rule) bool {
		return x.Priority == want.Priority && x.Table == want.Table && x.Protocol == protocol && x.IifName == want.IifName &&
			sameNet(x.Src, want.Src) && sameNet(x.Dst, want.Dst)
	}), nil
}

func sameNet(x, y *net.IPNet) bool {
	if x == nil || y == nil {
		return x == y
	}
	return x.String() == y.String()
}

func ensureRule(r rule) error {
	has, err := hasRule(r)
	if err != nil || has {
		return err
	}
	if err := netlink.RuleAdd(r.wanted()); err != nil {
		return fmt.Errorf("add rule for %v: %w", r.prefix, err)
	}
	return nil
}

func removeRule(r rule) error {
	has, err := hasRule(r)
	if err != nil || !has {
		return err
	}
	return gone("remove rule for "+r.prefix.String(), netlink.RuleDel(r.wanted()))
}
