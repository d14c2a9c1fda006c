package dhcp

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"sync"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// NetworksConfig says where libvirt is and which of its networks are segments.
type NetworksConfig struct {
	// Socket is libvirtd's or virtnetworkd's.
	Socket string
	// Segments are the networks' names by segment.
	Segments map[string]string
}

// Networks is the DHCP service of libvirt's own networks.
type Networks struct {
	calls
	log      *slog.Logger
	socket   string
	segments map[string]string
	now      func() time.Time
	// one lets one change at a time pick an address.
	one sync.Mutex
}

var _ driver.Leases = (*Networks)(nil)

// NewNetworks opens libvirt's networks. Nothing is sent yet.
func NewNetworks(log *slog.Logger, cfg NetworksConfig) (*Networks, error) {
	for segment, name := range cfg.Segments {
		if err := drover.CheckName("segment", segment); err != nil {
			return nil, err
		}
		if err := drover.CheckName("network", name); err != nil {
			return nil, err
		}
	}
	n := &Networks{log: log, socket: cfg.Socket, segments: maps.Clone(cfg.Segments), now: time.Now}
	n.open()
	return n, nil
}

// on runs f with a segment's network.
func (n *Networks) on(ctx context.Context, segment string, f func(*golibvirt.Libvirt, *network) error) error {
	name, ok := n.segments[segment]
	if !ok {
		return drover.Errorf(drover.NotFound, "", "no segment %q here", segment)
	}
	reading := true
	err := n.with(ctx, func(rpc *golibvirt.Libvirt) error {
		net, err := readNetwork(rpc, segment, name)
		if err != nil {
			return err
		}
		reading = false
		return f(rpc, net)
	})
	if reading {
		err = asked(err)
	}
	return err
}

// Reserve implements driver.Leases.
func (n *Networks) Reserve(ctx context.Context, owner driver.Owner, want driver.LeaseRequest) (driver.Lease, error) {
	if err := owner.Validate(); err != nil {
		return driver.Lease{}, err
	}
	want, err := want.Normal()
	if err != nil {
		return driver.Lease{}, err
	}
	op := "reserve an address in " + want.Segment + " for " + want.MAC
	ctx, end, err := n.begin(ctx, op)
	if err != nil {
		return driver.Lease{}, err
	}
	defer end()
	n.one.Lock()
	defer n.one.Unlock()
	lease := driver.Lease{Owner: owner, Segment: want.Segment, MAC: want.MAC, Hostname: want.Hostname}
	for range pickTries {
		again := false
		err = n.on(ctx, want.Segment, func(rpc *golibvirt.Libvirt, net *network) error {
			m, err := net.plan(owner, want, n.now())
			if err != nil {
				return err
			}
			if again, err = n.write(rpc, net, m, want); err != nil || again {
				return err
			}
			for _, v4 := range []bool{true, false} {
				if a := m.address(v4); a.IsValid() {
					lease.Addresses = append(lease.Addresses, a)
				}
			}
			if m.V6 != "" {
				lease.DUID, lease.IAID = want.DUID, want.IAID
			}
			return nil
		})
		if err != nil {
			return driver.Lease{}, wrap(op, err)
		}
		if !again {
			n.log.InfoContext(ctx, "addresses reserved", "segment", want.Segment, "mac", want.MAC, "owner", owner, "addresses", lease.Addresses)
			return lease, nil
		}
	}
	return driver.Lease{}, drover.Errorf(drover.Exhausted, op, "%d addresses were taken while they were picked", pickTries)
}

// plan says what the MAC's mark is to be.
func (net *network) plan(owner driver.Owner, want driver.LeaseRequest, now time.Time) (networkMark, error) {
	old, marked := net.mark(want.MAC)
	if marked && old.Owner != owner {
		return old, drover.Errorf(drover.Exists, "", "%s has reserved addresses for it", old.Owner)
	}
	m := networkMark{Owner: owner, MAC: want.MAC, Hostname: want.Hostname}
	if marked {
		m.Hostname = old.Hostname
	}
	for _, v4 := range []bool{true, false} {
		if _, _, serves := ip(net.definitions[live], v4); !serves {
			if a := want.Wish(v4); a.IsValid() {
				return m, drover.Errorf(drover.Invalid, "", "%v: the network has no DHCP of that family", a)
			}
			continue
		}
		a, static, err := net.choose(old, want, v4, now)
		if err != nil {
			return m, err
		}
		if v4 {
			m.V4 = a.String()
		} else {
			m.V6, m.DUID = a.String(), colons(want.DUID)
		}
		if static {
			m.Static += map[bool]string{true: "4", false: "6"}[v4]
		}
	}
	return m, nil
}

// choose picks the address of one family; static says that an administrator's
// entry gives it to the client already.
func (net *network) choose(old networkMark, want driver.LeaseRequest, v4 bool, now time.Time) (a netip.Addr, static bool, err error) {
	wish := want.Wish(v4)
	one, _, _ := ip(net.definitions[live], v4)
	at, err := prefix(one)
	if err != nil {
		return a, false, err
	}
	if wish.IsValid() && (!at.Contains(wish) || wish == at.Addr() || v4 && (wish == at.Masked().Addr() || wish == lastOf(at))) {
		return a, false, drover.Errorf(drover.Invalid, "", "%v is not a client's address in network %v", wish, at.Masked())
	}
	has, static := old.address(v4), old.static(v4)
	if !has.IsValid() {
		has, static, _ = net.own(clientOf(want), v4, now)
	}
	for _, a := range []netip.Addr{wish, has} {
		if err := want.Avoided(a); err != nil {
			return a, false, err
		}
	}
	if has.IsValid() {
		if wish.IsValid() && wish != has {
			return a, false, drover.Errorf(drover.Exists, "", "it has %v", has)
		}
		return has, static, nil
	}
	used := net.used(v4, now, want.Avoid...)
	if wish.IsValid() {
		if used[wish] == taken {
			return a, false, drover.Errorf(drover.Exists, "", "%v is used by another", wish)
		}
		return wish, false, nil
	}
	ranges, err := pools(one)
	if err != nil {
		return a, false, err
	}
	a, ok := pick(ranges, used)
	if !ok {
		return a, false, drover.Errorf(drover.Exhausted, "", "no address of network %v is free", at.Masked())
	}
	return a, false, nil
}

// write makes what the mark says; again says that a client or another driver
// was faster, and that nothing of it was left.
func (n *Networks) write(rpc *golibvirt.Libvirt, net *network, m networkMark, want driver.LeaseRequest) (again bool, err error) {
	old, marked := net.mark(m.MAC)
	if !marked || old != m {
		if err := net.setMark(rpc, m.MAC, &m); err != nil {
			return false, err
		}
	}
	c := clientOf(want)
	for _, v4 := range []bool{true, false} {
		if a := m.address(v4); a.IsValid() && !m.static(v4) && err == nil {
			err = net.putHost(rpc, c.host(a, m.Hostname), v4)
		}
	}
	if marked && err == nil {
		return false, nil // it stands since before
	}
	now, readErr := readNetwork(rpc, net.segment, net.ref.Name)
	if readErr != nil {
		return false, errors.Join(err, readErr)
	}
	lost := false
	for _, v4 := range []bool{true, false} {
		a := m.address(v4)
		lost = lost || a.IsValid() && now.others(c, a, n.now())
	}
	if !lost && err == nil {
		return false, nil
	}
	if !marked {
		if undo := now.clear(rpc, m, c); undo != nil {
			return false, errors.Join(err, undo)
		}
	}
	if lost && len(want.Addresses) == 0 {
		return true, nil
	}
	if lost {
		return false, drover.Errorf(drover.Exists, "", "somebody else was faster to take one of %v", want.Addresses)
	}
	return false, err
}

// clear removes what a mark says, then the mark.
func (net *network) clear(rpc *golibvirt.Libvirt, m networkMark, c client) error {
	for _, v4 := range []bool{true, false} {
		if a := m.address(v4); a.IsValid() && !m.static(v4) {
			if err := net.dropHost(rpc, c, a); err != nil {
				return err
			}
		}
	}
	return net.setMark(rpc, m.MAC, nil)
}

// Release implements driver.Leases.
func (n *Networks) Release(ctx context.Context, owner driver.Owner, segment, mac string) error {
	if err := owner.Validate(); err != nil {
		return err
	}
	want, err := driver.LeaseRequest{Segment: segment, MAC: mac}.Normal()
	if err != nil {
		return err
	}
	op := "release the addresses in " + segment + " of " + want.MAC
	ctx, end, err := n.begin(ctx, op)
	if err != nil {
		return err
	}
	defer end()
	n.one.Lock()
	defer n.one.Unlock()
	return wrap(op, n.on(ctx, segment, func(rpc *golibvirt.Libvirt, net *network) error {
		m, ok := net.mark(want.MAC)
		if !ok || m.Owner != owner {
			return nil
		}
		n.log.InfoContext(ctx, "addresses released", "segment", segment, "mac", m.MAC, "owner", owner, "v4", m.V4, "v6", m.V6)
		return net.clear(rpc, m, client{m.MAC, m.DUID})
	}))
}
