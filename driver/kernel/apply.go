package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

const (
	// protocol marks routes, rules and entries as Drover's.
	protocol = 215
	// Rules of old addresses come after the kernel's own of local addresses (0)
	// and before the main table (32766).
	oldPriority = 21500
)

// apply makes what stands for the entries before stand for those after. Each
// line is written before what it demands is made, and goes after that is gone.
// What others than the owner demand is not looked at, unless it is shared, so
// that a change takes as long with hundreds of owners as with one.
func apply(owner driver.Owner, before, after []entry, limits map[netip.Addr]time.Duration) error {
	o, err := readOwned()
	if err != nil {
		return err
	}
	if len(before) == 0 && len(after) == 0 && o.table == nil {
		return nil
	}
	now, then := demands(after...), demands(before...)
	save, err := sysctlsToSave(now, o.saved)
	if err != nil {
		return err
	}
	if err := write(o, before, after, save, limits); err != nil {
		return err
	}
	own := slices.DeleteFunc(slices.Clone(after), func(e entry) bool { return e.owner != owner })
	if err := ensure(demands(own...)); err != nil {
		return err
	}
	if err := takeFrames(before, after); err != nil {
		return err
	}
	if err := remove(now, then); err != nil {
		return err
	}
	for path, value := range save {
		o.saved[path] = value
	}
	return erase(before, after, now)
}

// write writes the new lines and chains.
func write(o owned, before, after []entry, save map[string]string, limits map[netip.Addr]time.Duration) error {
	b, err := newBatch()
	if err != nil {
		return err
	}
	if o.table == nil {
		b.create()
	}
	for _, e := range after {
		if !slices.Contains(before, e) {
			b.addLine(e.String(), e.role == driver.RoleWatch)
		}
	}
	for path, value := range save {
		b.addLine(sysctlMark+path+" "+value, false)
	}
	old := chains(before)
	for key, s := range chains(after) {
		if _, ok := old[key]; !ok {
			b.addChain(s)
		}
	}
	b.setLimits(o, limits)
	return b.commit()
}

// erase takes out the lines and chains that have gone, and gives sysctls back
// that nobody needs any more. With the last line the table goes.
func erase(before, after []entry, now demand) error {
	o, err := readOwned()
	if err != nil {
		return err
	}
	b, err := newBatch()
	if err != nil {
		return err
	}
	needed := map[string]string{}
	for s := range now.sysctls {
		needed[s.path] = s.value
	}
	for path, value := range o.saved {
		if _, ok := needed[path]; ok {
			continue
		}
		if err := writeSysctl(path, value); err != nil {
			return err
		}
		b.note(b.DelRule(o.rules[sysctlMark+path+" "+value]))
		delete(o.saved, path)
	}
	if len(after) == 0 {
		b.DelTable(b.table)
		return b.commit()
	}
	over := map[netip.Addr]time.Duration{}
	for _, e := range before {
		if slices.Contains(after, e) {
			continue
		}
		if r := o.rules[e.String()]; r != nil {
			b.note(b.DelRule(r))
		}
		if e.role == driver.RoleForwardOld && !slices.ContainsFunc(after, func(x entry) bool { return x.role == e.role && x.prefix == e.prefix }) {
			over[e.prefix.Addr()] = 0
		}
	}
	b.setLimits(o, over)
	kept := chains(after)
	for key, s := range chains(before) {
		if _, ok := kept[key]; !ok {
			b.delChain(s)
		}
	}
	return b.commit()
}

func sysctlPath(path string) string { return filepath.Join("/proc/sys", path) }

func readSysctl(path string) (string, error) {
	b, err := os.ReadFile(sysctlPath(path))
	return strings.TrimSpace(string(b)), err
}

// sysctlsToSave returns the values from before of those that have to change.
func sysctlsToSave(now demand, saved map[string]string) (map[string]string, error) {
	save := map[string]string{}
	for s := range now.sysctls {
		if _, ok := saved[s.path]; ok {
			continue
		}
		value, err := readSysctl(s.path)
		if err != nil {
			return nil, fmt.Errorf("sysctl: %w", err)
		}
		if value != s.value {
			save[s.path] = value
		}
	}
	return save, nil
}

// writeSysctl sets a value; an interface that is gone has none.
func writeSysctl(path, value string) error {
	err := os.WriteFile(sysctlPath(path), []byte(value), 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// ensure makes what is demanded, whatever of it is there already.
func ensure(d demand) error {
	for s := range d.sysctls {
		if err := writeSysctl(s.path, s.value); err != nil {
			return fmt.Errorf("sysctl: %w", err)
		}
	}
	for p := range d.peers {
		if err := ensurePeer(p); err != nil {
			return err
		}
	}
	for r := range d.routes {
		if err := ensureRoute(r); err != nil {
			return err
		}
	}
	for p := range d.proxies {
		if err := ensureProxy(p); err != nil {
			return err
		}
	}
	for r := range d.rules {
		if err := ensureRule(r); err != nil {
			return err
		}
	}
	return nil
}

// remove takes away what was demanded and is no longer, in the reverse order.
func remove(now, then demand) error {
	var errs []error
	for r := range then.rules {
		if !now.rules[r] {
			errs = append(errs, removeRule(r))
		}
	}
	for p := range then.proxies {
		if !now.proxies[p] {
			errs = append(errs, removeProxy(p))
		}
	}
	for r := range then.routes {
		if !now.routes[r] && !now.replaces(r) {
			errs = append(errs, removeRoute(r.prefix))
		}
	}
	for p := range then.peers {
		if !now.peers[p] {
			errs = append(errs, removePeer(p, len(now.peers) == 0))
		}
	}
	return errors.Join(errs...)
}

// replaces reports whether another route to the same prefix is demanded, which
// has taken the place of r.
func (d demand) replaces(r route) bool {
	for other := range d.routes {
		if other.prefix == r.prefix {
			return true
		}
	}
	return false
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func netlinkFamily(addr netip.Addr) int {
	if addr.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// needLink returns the interface, or drover.NotFound.
func needLink(name string) (netlink.Link, error) {
	l, err := netlink.LinkByName(name)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil, drover.E(drover.NotFound, "interface "+name, err)
	}
	return l, err
}

// needBridgeAndRouter is what it takes to proxy addresses.
func needBridgeAndRouter(bridge string, addresses ...netip.Addr) error {
	if _, err := needLink(bridge); err != nil {
		return err
	}
	for _, addr := range addresses {
		if _, err := router(netlinkFamily(addr)); err != nil {
			return err
		}
	}
	return nil
}

// dumpTries bounds how often a table is read that changes meanwhile.
const dumpTries = 5

// listRoutes reads routes, again when the kernel says that it was interrupted.
func listRoutes(family int, filter *netlink.Route, mask uint64) (routes []netlink.Route, err error) {
	for range dumpTries {
		routes, err = netlink.RouteListFiltered(family, filter, mask)
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return routes, err
}

// router is the next hop of the edge's default route, the best one if there
// are several.
func router(family int) (netlink.Route, error) {
	routes, err := listRoutes(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return netlink.Route{}, fmt.Errorf("list routes: %w", err)
	}
	best, found := netlink.Route{}, false
	for _, r := range routes {
		if r.Dst != nil && (!r.Dst.IP.IsUnspecified() || ones(r.Dst) != 0) || r.Protocol == protocol {
			continue
		}
		if len(r.MultiPath) > 0 {
			r.LinkIndex, r.Gw, r.Via = r.MultiPath[0].LinkIndex, r.MultiPath[0].Gw, r.MultiPath[0].Via
		}
		if r.Gw == nil && r.Via == nil || r.LinkIndex == 0 {
			continue
		}
		if !found || r.Priority < best.Priority {
			best, found = r, true
		}
	}
	if !found {
		name := map[int]string{unix.AF_INET: "IPv4", unix.AF_INET6: "IPv6"}[family]
		return best, drover.Errorf(drover.Refused, "find the edge's router", "there is no default %s route with a next hop", name)
	}
	return best, nil
}

func ones(n *net.IPNet) int {
	bits, _ := n.Mask.Size()
	return bits
}

// findRoute returns the route to a prefix in the main table, whosever it is.
func findRoute(p netip.Prefix) (*netlink.Route, error) {
	routes, err := listRoutes(netlinkFamily(p.Addr()), &netlink.Route{Table: unix.RT_TABLE_MAIN, Dst: ipNet(p)}, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_DST)
	if err != nil {
		return nil, fmt.Errorf("list routes to %v: %w", p, err)
	}
	for i := range routes {
		if routes[i].Protocol != protocol {
			return &routes[i], nil
		}
	}
	if len(routes) == 0 {
		return nil, nil
	}
	return &routes[0], nil
}

// wanted is the kernel's route for r.
func (r route) wanted() (*netlink.Route, error) {
	want := &netlink.Route{Dst: ipNet(r.prefix), Table: unix.RT_TABLE_MAIN, Protocol: protocol, Family: netlinkFamily(r.prefix.Addr())}
	if r.dev == "" {
		hop, err := router(want.Family)
		if err != nil {
			return nil, err
		}
		want.LinkIndex, want.Gw, want.Via = hop.LinkIndex, hop.Gw, hop.Via
		return want, nil
	}
	l, err := needLink(r.dev)
	if err != nil {
		return nil, err
	}
	want.LinkIndex = l.Attrs().Index
	if want.Family == unix.AF_INET {
		want.Scope = unix.RT_SCOPE_LINK
	}
	return want, nil
}

func sameRoute(x, y *netlink.Route) bool {
	return x.LinkIndex == y.LinkIndex && x.Gw.Equal(y.Gw) && x.Protocol == y.Protocol
}

func ensureRoute(r route) error {
	op := "route to " + r.prefix.String()
	want, err := r.wanted()
	if err != nil {
		return err
	}
	have, err := findRoute(r.prefix)
	switch {
	case err != nil:
		return err
	case have == nil:
	case have.Protocol != protocol:
		return drover.Errorf(drover.Exists, op, "there is one already that is not Drover's")
	case sameRoute(have, want):
		return nil
	}
	// One call, so that there is no moment without a route.
	if err := netlink.RouteReplace(want); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	return nil
}

func removeRoute(p netip.Prefix) error {
	have, err := findRoute(p)
	if err != nil || have == nil || have.Protocol != protocol {
		return err
	}
	return gone("remove route to "+p.String(), netlink.RouteDel(have))
}

// gone takes "it is not there" for success.
func gone(op string, err error) error {
	for _, fine := range []error{unix.ESRCH, unix.ENOENT, unix.ENODEV, unix.EADDRNOTAVAIL} {
		if errors.Is(err, fine) {
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	return nil
}
