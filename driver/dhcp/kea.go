package dhcp

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// KeaConfig says where Kea is and which of its subnets are segments.
type KeaConfig struct {
	// Socket4 and Socket6 are the control sockets of kea-dhcp4 and kea-dhcp6;
	// empty for one that is not there.
	Socket4, Socket6 string
	Segments         map[string]KeaSegment
}

// KeaSegment is the subnets of a segment; an invalid prefix for a family that
// Kea does not serve there.
type KeaSegment struct {
	Subnet4, Subnet6 netip.Prefix
}

// pickTries bounds how often another free address is picked because a client
// has got the one before meanwhile. A busy service gives out a few addresses
// in the time between.
const pickTries = 16

// Kea is the DHCP service of Kea's servers.
type Kea struct {
	calls
	log      *slog.Logger
	families []keaFamily
	segments map[string]KeaSegment
	now      func() time.Time
	// one lets one change at a time pick an address.
	one sync.Mutex
}

var _ driver.Leases = (*Kea)(nil)

// NewKea opens Kea. Nothing is sent yet.
func NewKea(log *slog.Logger, cfg KeaConfig) (*Kea, error) {
	k := &Kea{log: log, segments: maps.Clone(cfg.Segments), now: time.Now}
	k.open()
	if cfg.Socket4 != "" {
		k.families = append(k.families, keaFamily{true, cfg.Socket4})
	}
	if cfg.Socket6 != "" {
		k.families = append(k.families, keaFamily{false, cfg.Socket6})
	}
	for name, s := range cfg.Segments {
		if err := drover.CheckName("segment", name); err != nil {
			return nil, err
		}
		four, six := s.Subnet4, s.Subnet6
		switch {
		case !four.IsValid() && !six.IsValid(),
			four.IsValid() && (!four.Addr().Is4() || cfg.Socket4 == "" || four != four.Masked()),
			six.IsValid() && (!six.Addr().Is6() || cfg.Socket6 == "" || six != six.Masked()):
			return nil, drover.Errorf(drover.Invalid, "segment "+name, "subnets %v and %v: want an IPv4 and an IPv6 prefix, or one of them, each with its socket", four, six)
		}
	}
	return k, nil
}

// prefix returns the segment's subnet of a family.
func (s KeaSegment) prefix(v4 bool) netip.Prefix {
	if v4 {
		return s.Subnet4
	}
	return s.Subnet6
}

// keaScope is what is known of a segment's family: the subnet and its leases.
type keaScope struct {
	keaFamily
	subnet keaSubnet
	leases []keaLease
}

// scopes reads all there is to know of a segment; the kind is drover.NotFound
// when there is no such segment.
func (k *Kea) scopes(ctx context.Context, segment string) ([]keaScope, error) {
	s, ok := k.segments[segment]
	if !ok {
		return nil, drover.Errorf(drover.NotFound, "", "no segment %q here", segment)
	}
	var list []keaScope
	for _, f := range k.families {
		prefix := s.prefix(f.v4)
		if !prefix.IsValid() {
			continue
		}
		subnets, err := f.subnets(ctx)
		if err != nil {
			return nil, err
		}
		i := slices.IndexFunc(subnets, func(sub keaSubnet) bool { return sub.prefix == prefix })
		if i < 0 {
			return nil, drover.Errorf(drover.NotFound, "", "Kea has no subnet %v", prefix)
		}
		leases, err := f.leases(ctx)
		if err != nil {
			return nil, err
		}
		sub := subnets[i]
		leases = slices.DeleteFunc(leases, func(l keaLease) bool { return l.Subnet != sub.ID || !l.address().IsValid() })
		list = append(list, keaScope{keaFamily: f, subnet: sub, leases: leases})
	}
	return list, nil
}

// used says which addresses are not free, those to avoid among them.
func (s keaScope) used(now time.Time, avoid ...netip.Addr) map[netip.Addr]use {
	used := make(map[netip.Addr]use, len(s.leases)+len(avoid))
	for _, l := range s.leases {
		used[l.address()] = taken
		// What has a mark stays its owner's until it is released.
		if _, owned := l.mark(); !owned && !l.live(now) {
			used[l.address()] = ended
		}
	}
	for _, r := range s.subnet.Reservations {
		for _, a := range r.addresses() {
			used[a] = taken
		}
	}
	for _, a := range avoid {
		used[a] = taken
	}
	return used
}

// of returns the client's lease, a live or marked one before one that has ended.
func (s keaScope) of(want driver.LeaseRequest, now time.Time) (keaLease, bool) {
	var found keaLease
	var ok bool
	for _, l := range s.leases {
		m, owned := l.mark()
		mine := owned && m.MAC == want.MAC
		if s.v4 {
			mac, err := driver.NormalMAC(l.MAC)
			mine = mine || err == nil && mac == want.MAC
		} else {
			mine = mine || l.DUID == colons(want.DUID) && l.IAID != nil && *l.IAID == want.IAID
		}
		if mine && (owned || l.live(now)) {
			found, ok = l, true
			if owned {
				break
			}
		}
	}
	return found, ok
}

// Reserve implements driver.Leases.
func (k *Kea) Reserve(ctx context.Context, owner driver.Owner, want driver.LeaseRequest) (driver.Lease, error) {
	if err := owner.Validate(); err != nil {
		return driver.Lease{}, err
	}
	want, err := want.Normal()
	if err != nil {
		return driver.Lease{}, err
	}
	op := "reserve an address in " + want.Segment + " for " + want.MAC
	ctx, end, err := k.begin(ctx, op)
	if err != nil {
		return driver.Lease{}, err
	}
	defer end()
	k.one.Lock()
	defer k.one.Unlock()
	scopes, err := k.scopes(ctx, want.Segment)
	if err != nil {
		return driver.Lease{}, wrap(op, err)
	}
	if err := wishesServed(want, scopes); err != nil {
		return driver.Lease{}, wrap(op, err)
	}
	lease := driver.Lease{Owner: owner, Segment: want.Segment, MAC: want.MAC, Hostname: want.Hostname}
	var undo []func(context.Context) error
	for _, s := range scopes {
		address, back, err := k.reserve(ctx, s, owner, want)
		if err != nil {
			for _, back := range undo {
				err = errors.Join(err, back(context.WithoutCancel(ctx)))
			}
			return driver.Lease{}, wrap(op, err)
		}
		if back != nil {
			undo = append(undo, back)
		}
		lease.Addresses = append(lease.Addresses, address)
		if !s.v4 {
			lease.DUID, lease.IAID = want.DUID, want.IAID
		}
	}
	if len(undo) > 0 {
		k.log.InfoContext(ctx, "addresses reserved", "segment", want.Segment, "mac", want.MAC, "owner", owner, "addresses", lease.Addresses)
	}
	return lease, nil
}

// wishesServed reports a wished address that the segment cannot give.
func wishesServed(want driver.LeaseRequest, scopes []keaScope) error {
	for _, a := range want.Addresses {
		i := slices.IndexFunc(scopes, func(s keaScope) bool { return s.v4 == a.Is4() })
		if i < 0 {
			return drover.Errorf(drover.Invalid, "", "%v: the segment has no addresses of that family", a)
		}
		reserved := slices.ContainsFunc(scopes[i].subnet.Reservations, func(r keaReservation) bool {
			return slices.Contains(r.addresses(), a)
		})
		if !reserved && !inPools(scopes[i].subnet.pools, a) {
			return drover.Errorf(drover.Invalid, "", "%v is in no pool of subnet %v: Kea would not give it to a client", a, scopes[i].subnet.prefix)
		}
	}
	return nil
}

// reserve reserves the address of one family; back undoes it, and is nil when
// there was nothing to do.
func (k *Kea) reserve(ctx context.Context, s keaScope, owner driver.Owner, want driver.LeaseRequest) (address netip.Addr, back func(context.Context) error, err error) {
	now, wish := k.now(), want.Wish(s.v4)
	if err := want.Avoided(wish); err != nil {
		return wish, nil, err
	}
	if have, ok := s.of(want, now); ok {
		return k.mine(ctx, s, have, owner, want)
	}
	used := s.used(now, want.Avoid...)
	for _, r := range s.subnet.Reservations {
		if list := r.addresses(); r.is(want.MAC, want.DUID) && len(list) > 0 {
			if wish.IsValid() && wish != list[0] {
				return wish, nil, drover.Errorf(drover.Exists, "", "Kea's configuration reserves %v for it", list[0])
			}
			wish = list[0]
			if err := want.Avoided(wish); err != nil {
				return wish, nil, err
			}
			delete(used, wish)
			for _, l := range s.leases {
				if l.address() == wish && l.live(now) {
					used[wish] = taken
				}
			}
		}
	}
	for range pickTries {
		address, ok := wish, true
		if !wish.IsValid() {
			address, ok = pick(s.subnet.pools, used)
		}
		switch {
		case !ok:
			return wish, nil, drover.Errorf(drover.Exhausted, "", "no address of subnet %v is free", s.subnet.prefix)
		case used[address] == taken:
			return wish, nil, drover.Errorf(drover.Exists, "", "%v is used by another", address)
		case used[address] == ended:
			if err := s.removeEnded(ctx, address, now); err != nil {
				return wish, nil, err
			}
		}
		err := s.add(ctx, s.newLease(address, owner, want, now))
		if err == nil {
			return address, func(ctx context.Context) error { return s.remove(ctx, address) }, nil
		}
		if drover.KindOf(err) != drover.Exists || wish.IsValid() {
			return wish, nil, err
		}
		used[address] = taken // a client was faster
	}
	return wish, nil, drover.Errorf(drover.Exhausted, "", "%d addresses of subnet %v were taken while they were picked", pickTries, s.subnet.prefix)
}

// mine goes on with a lease that the client has: the owner's, or its own.
func (k *Kea) mine(ctx context.Context, s keaScope, have keaLease, owner driver.Owner, want driver.LeaseRequest) (netip.Addr, func(context.Context) error, error) {
	address, wish := have.address(), want.Wish(s.v4)
	m, owned := have.mark()
	if err := want.Avoided(address); err != nil {
		return address, nil, err
	}
	switch {
	case owned && m.Owner != owner:
		return address, nil, drover.Errorf(drover.Exists, "", "%s has reserved %v for it", m.Owner, address)
	case wish.IsValid() && wish != address:
		return address, nil, drover.Errorf(drover.Exists, "", "it has %v", address)
	case owned && have.live(k.now()):
		return address, nil, nil
	}
	before, next := have, have
	if !owned {
		m = keaMark{Owner: owner, MAC: want.MAC, Hostname: want.Hostname, Had: have.ValidSeconds}
		next = next.marked(m)
	}
	next.State = keaDefault
	next.last(s.hold(), k.now())
	if err := s.update(ctx, next); err != nil {
		return address, nil, err
	}
	if owned { // it had ended, and stays the owner's
		return address, nil, nil
	}
	return address, func(ctx context.Context) error { return s.update(ctx, before) }, nil
}

// marked returns the lease with the mark.
func (l keaLease) marked(m keaMark) keaLease {
	raw, err := json.Marshal(m)
	if err != nil {
		panic(err) // strings and a number
	}
	l.Context = maps.Clone(l.Context)
	if l.Context == nil {
		l.Context = make(map[string]json.RawMessage, 1)
	}
	l.Context[markKey] = raw
	return l
}

// last makes the lease last for the time from now on.
func (l *keaLease) last(seconds int64, now time.Time) {
	l.ValidSeconds, l.Since = seconds, now.Unix()
	if l.Preferred != nil {
		l.Preferred = &seconds
	}
}

// newLease makes the lease of a client that has not asked yet.
func (s keaScope) newLease(address netip.Addr, owner driver.Owner, want driver.LeaseRequest, now time.Time) keaLease {
	l := keaLease{Address: address.String(), Subnet: s.subnet.ID, MAC: want.MAC, Hostname: want.Hostname}
	if !s.v4 {
		l.DUID, l.IAID, l.Preferred = colons(want.DUID), &want.IAID, new(int64)
	}
	l.last(s.hold(), now)
	l.Since = 0 // cannot be given
	return l.marked(keaMark{Owner: owner, MAC: want.MAC, Hostname: want.Hostname})
}

// removeEnded removes what Kea remembers of a lease that has ended, as it
// would itself when it gives the address to another.
func (s keaScope) removeEnded(ctx context.Context, address netip.Addr, now time.Time) error {
	var l keaLease
	found, err := command(ctx, s.socket, s.verb("get"), map[string]any{"ip-address": address.String()}, &l)
	if err != nil || !found {
		return asked(err)
	}
	if l.live(now) {
		return drover.Errorf(drover.Exists, "", "%v is used by another", address)
	}
	return s.remove(ctx, address)
}

// Release implements driver.Leases.
func (k *Kea) Release(ctx context.Context, owner driver.Owner, segment, mac string) error {
	if err := owner.Validate(); err != nil {
		return err
	}
	want, err := driver.LeaseRequest{Segment: segment, MAC: mac}.Normal()
	if err != nil {
		return err
	}
	op := "release the addresses in " + segment + " of " + want.MAC
	ctx, end, err := k.begin(ctx, op)
	if err != nil {
		return err
	}
	defer end()
	k.one.Lock()
	defer k.one.Unlock()
	scopes, err := k.scopes(ctx, segment)
	if err != nil {
		return wrap(op, err)
	}
	for _, s := range scopes {
		for _, l := range s.leases {
			m, owned := l.mark()
			if !owned || m.Owner != owner || m.MAC != want.MAC {
				continue
			}
			if err := s.giveBack(ctx, l, m, k.now()); err != nil {
				return wrap(op, err)
			}
			k.log.InfoContext(ctx, "address released", "segment", segment, "mac", want.MAC, "owner", owner, "address", l.Address)
		}
	}
	return nil
}

// giveBack ends a lease that Drover made, and takes the mark off one that the
// client had.
func (s keaScope) giveBack(ctx context.Context, l keaLease, m keaMark, now time.Time) error {
	if m.Had == 0 {
		return s.remove(ctx, l.address())
	}
	l.Context = maps.Clone(l.Context)
	delete(l.Context, markKey)
	if l.ValidSeconds == s.hold() { // the client has not renewed it since
		l.last(m.Had, now)
	}
	return s.update(ctx, l)
}
