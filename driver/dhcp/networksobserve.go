package dhcp

import (
	"context"
	"net/netip"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// others reports whether somebody else has the address as well: a running
// lease, or an entry.
func (net *network) others(c client, a netip.Addr, now time.Time) bool {
	for _, l := range net.leases {
		if at, err := netip.ParseAddr(l.Ipaddr); err == nil && at == a && running(l, now) && !c.leased(l) {
			return true
		}
	}
	for _, def := range net.definitions {
		one, _, ok := ip(def, a.Is4())
		if !ok {
			continue
		}
		for _, h := range one.DHCP.Hosts {
			if at, err := netip.ParseAddr(h.IP); err == nil && at == a && !c.has(h) {
				return true
			}
		}
	}
	return false
}

// Find implements driver.Leases.
func (n *Networks) Find(ctx context.Context, mac string) ([]driver.Lease, error) {
	mac, err := driver.NormalMAC(mac)
	if err != nil {
		return nil, err
	}
	return n.observe(ctx, "find "+mac, func(l driver.Lease) bool { return l.MAC == mac })
}

// List implements driver.Leases.
func (n *Networks) List(ctx context.Context) ([]driver.Lease, error) {
	return n.observe(ctx, "list leases", func(l driver.Lease) bool { return l.Owner != "" })
}

// observe returns what the segments have for clients, as far as keep says.
func (n *Networks) observe(ctx context.Context, op string, keep func(driver.Lease) bool) ([]driver.Lease, error) {
	ctx, end, err := n.begin(ctx, op)
	if err != nil {
		return nil, err
	}
	defer end()
	var list collection
	for segment := range n.segments {
		err := n.on(ctx, segment, func(_ *golibvirt.Libvirt, net *network) error {
			net.observe(&list, n.now())
			return nil
		})
		if err != nil {
			return nil, wrap(op, asked(err))
		}
	}
	return list.sorted(keep), nil
}

// observe adds what the network has: marks, and what entries and leases say of
// clients without one.
func (net *network) observe(list *collection, now time.Time) {
	seen := make(map[netip.Addr]bool)
	add := func(one driver.Lease, a netip.Addr) {
		if seen[a] || one.MAC == "" {
			return
		}
		seen[a] = true
		one.Segment, one.Addresses = net.segment, append(one.Addresses, a)
		list.add(one)
	}
	for _, m := range net.marks {
		for _, v4 := range []bool{true, false} {
			one := driver.Lease{Owner: m.Owner, MAC: m.MAC, Hostname: m.Hostname}
			if !v4 {
				one.DUID = unhex(m.DUID)
			}
			if a := m.address(v4); a.IsValid() {
				add(one, a)
			}
		}
	}
	for _, def := range net.definitions {
		for _, v4 := range []bool{true, false} {
			one, _, ok := ip(def, v4)
			if !ok {
				continue
			}
			for _, h := range one.DHCP.Hosts {
				mac, err := driver.NormalMAC(h.MAC)
				if err != nil {
					mac = duidMAC(unhex(h.ID))
				}
				if a, err := netip.ParseAddr(h.IP); err == nil {
					add(driver.Lease{MAC: mac, Hostname: h.Name, DUID: unhex(h.ID)}, a)
				}
			}
		}
	}
	for _, l := range net.leases {
		a, err := netip.ParseAddr(l.Ipaddr)
		if err != nil || !running(l, now) {
			continue
		}
		one := driver.Lease{MAC: leaseMAC(l)}
		if len(l.Hostname) > 0 {
			one.Hostname = l.Hostname[0]
		}
		if a.Is6() && len(l.Clientid) > 0 {
			one.DUID = unhex(l.Clientid[0])
		}
		add(one, a)
	}
}

// Free implements driver.Leases.
func (n *Networks) Free(ctx context.Context, segment string, avoid ...netip.Addr) (driver.FreeAddresses, error) {
	var total driver.FreeAddresses
	if err := drover.CheckName("segment", segment); err != nil {
		return total, err
	}
	op := "count free addresses in " + segment
	ctx, end, err := n.begin(ctx, op)
	if err != nil {
		return total, err
	}
	defer end()
	err = n.on(ctx, segment, func(_ *golibvirt.Libvirt, net *network) error {
		for _, v4 := range []bool{true, false} {
			one, _, ok := ip(net.definitions[live], v4)
			if !ok {
				continue
			}
			ranges, err := pools(one)
			if err != nil {
				return err
			}
			count := free(ranges, net.used(v4, n.now(), avoid...))
			if v4 {
				total.V4 = count
			} else {
				total.V6 = count
			}
		}
		return nil
	})
	return total, wrap(op, asked(err))
}
