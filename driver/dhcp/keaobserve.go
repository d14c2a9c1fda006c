package dhcp

import (
	"context"
	"net/netip"
	"slices"
	"strings"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// Find implements driver.Leases.
func (k *Kea) Find(ctx context.Context, mac string) ([]driver.Lease, error) {
	mac, err := driver.NormalMAC(mac)
	if err != nil {
		return nil, err
	}
	return k.observe(ctx, "find "+mac, func(l driver.Lease) bool { return l.MAC == mac })
}

// List implements driver.Leases.
func (k *Kea) List(ctx context.Context) ([]driver.Lease, error) {
	return k.observe(ctx, "list leases", func(l driver.Lease) bool { return l.Owner != "" })
}

// observe returns what the segments have for clients, as far as keep says.
func (k *Kea) observe(ctx context.Context, op string, keep func(driver.Lease) bool) ([]driver.Lease, error) {
	ctx, end, err := k.begin(ctx, op)
	if err != nil {
		return nil, err
	}
	defer end()
	var list collection
	for segment := range k.segments {
		scopes, err := k.scopes(ctx, segment)
		if err != nil {
			return nil, wrap(op, err)
		}
		for _, s := range scopes {
			s.observe(segment, k, &list)
		}
	}
	return list.sorted(keep), nil
}

// observe adds what a subnet has.
func (s keaScope) observe(segment string, k *Kea, list *collection) {
	now := k.now()
	for _, l := range s.leases {
		m, owned := l.mark()
		if !owned && !l.live(now) {
			continue
		}
		one := driver.Lease{Owner: m.Owner, Segment: segment, MAC: l.mac(), Hostname: strings.TrimSuffix(l.Hostname, ".")}
		one.Addresses = append(one.Addresses, l.address())
		if m.Hostname != "" {
			one.Hostname = m.Hostname
		}
		if !s.v4 {
			one.DUID = l.duid()
			if l.IAID != nil {
				one.IAID = *l.IAID
			}
		}
		list.add(one)
	}
	for _, r := range s.subnet.Reservations {
		if mac, err := driver.NormalMAC(r.MAC); err == nil {
			for _, a := range r.addresses() {
				leased := slices.ContainsFunc(s.leases, func(l keaLease) bool {
					_, owned := l.mark()
					return l.address() == a && (owned || l.live(now))
				})
				if !leased {
					one := driver.Lease{Segment: segment, MAC: mac, Hostname: r.Hostname}
					one.Addresses = append(one.Addresses, a)
					list.add(one)
				}
			}
		}
	}
}

// Free implements driver.Leases.
func (k *Kea) Free(ctx context.Context, segment string, avoid ...netip.Addr) (driver.FreeAddresses, error) {
	if err := drover.CheckName("segment", segment); err != nil {
		return driver.FreeAddresses{}, err
	}
	op := "count free addresses in " + segment
	ctx, end, err := k.begin(ctx, op)
	if err != nil {
		return driver.FreeAddresses{}, err
	}
	defer end()
	scopes, err := k.scopes(ctx, segment)
	if err != nil {
		return driver.FreeAddresses{}, wrap(op, err)
	}
	var n driver.FreeAddresses
	for _, s := range scopes {
		if s.v4 {
			n.V4 = free(s.subnet.pools, s.used(k.now(), avoid...))
		} else {
			n.V6 = free(s.subnet.pools, s.used(k.now(), avoid...))
		}
	}
	return n, nil
}
