package memory

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// LeaseServiceConfig says what a DHCP service in memory is like.
type LeaseServiceConfig struct {
	// Segments are the addresses that each segment can give out.
	Segments map[string][]netip.Addr
	// Static are what an administrator has reserved; they have no owner.
	Static []driver.Lease
	// Fault, when set, is asked before each operation ("reserve", "release",
	// "find", "list", "free") on a segment or MAC; an error it returns is the
	// operation's.
	Fault func(op, what string) error
}

// LeaseService is a DHCP service, which outlives its drivers.
type LeaseService struct {
	cfg LeaseServiceConfig

	mu     sync.Mutex
	leases map[leaseKey]leaseHeld
	down   bool
}

type leaseKey struct {
	segment string
	address netip.Addr
}

// leaseHeld is what an address is held for; had says that the client has it
// by itself, owner or not.
type leaseHeld struct {
	driver.Lease
	had, static bool
}

// NewLeaseService makes a service.
func NewLeaseService(cfg LeaseServiceConfig) *LeaseService {
	s := &LeaseService{cfg: cfg, leases: make(map[leaseKey]leaseHeld)}
	for _, l := range cfg.Static {
		for _, a := range l.Addresses {
			one := l
			one.Owner, one.Addresses = "", []netip.Addr{a}
			s.leases[leaseKey{l.Segment, a}] = leaseHeld{Lease: one, static: true}
		}
	}
	return s
}

// Open returns a driver of the service.
func (s *LeaseService) Open() *Leases { return &Leases{service: s} }

// SetDown stops or starts the service; it forgets nothing.
func (s *LeaseService) SetDown(down bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = down
}

// Ask is a client that asks for addresses of each family; none is a full pool.
func (s *LeaseService) Ask(segment, mac string) []netip.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	var got []netip.Addr
	for _, v4 := range []bool{true, false} {
		a, ok := s.has(segment, mac, v4)
		if !ok {
			a, ok = s.pick(segment, v4, false)
		}
		if !ok {
			continue
		}
		key := leaseKey{segment, a}
		held, known := s.leases[key]
		if !known {
			held = leaseHeld{had: true, Lease: driver.Lease{Segment: segment, MAC: mac, Addresses: []netip.Addr{a}}}
			if !v4 {
				want, _ := driver.LeaseRequest{Segment: segment, MAC: mac}.Normal()
				held.DUID, held.IAID = want.DUID, want.IAID
			}
		}
		s.leases[key] = held
		got = append(got, a)
	}
	return got
}

// has returns the address that a MAC has.
func (s *LeaseService) has(segment, mac string, v4 bool) (netip.Addr, bool) {
	for key, held := range s.leases {
		if key.segment == segment && key.address.Is4() == v4 && held.MAC == mac {
			return key.address, true
		}
	}
	return netip.Addr{}, false
}

// pick returns the first or the last free address of a family.
func (s *LeaseService) pick(segment string, v4, last bool, avoid ...netip.Addr) (netip.Addr, bool) {
	list := s.free(segment, v4, avoid...)
	if len(list) == 0 {
		return netip.Addr{}, false
	}
	if last {
		return list[len(list)-1], true
	}
	return list[0], true
}

func (s *LeaseService) free(segment string, v4 bool, avoid ...netip.Addr) []netip.Addr {
	var list []netip.Addr
	for _, a := range s.cfg.Segments[segment] {
		if _, used := s.leases[leaseKey{segment, a}]; !used && a.Is4() == v4 && !slices.Contains(avoid, a) {
			list = append(list, a)
		}
	}
	slices.SortFunc(list, netip.Addr.Compare)
	return list
}

// serves reports whether a segment has addresses of a family.
func (s *LeaseService) serves(segment string, v4 bool) bool {
	return slices.ContainsFunc(s.cfg.Segments[segment], func(a netip.Addr) bool { return a.Is4() == v4 })
}

// Leases is the in-memory twin of the drivers of DHCP services.
type Leases struct {
	service *LeaseService
	mu      sync.Mutex
	closed  bool
}

var _ driver.Leases = (*Leases)(nil)

// enter checks what every operation needs and returns with the service locked
// when the error is nil.
func (d *Leases) enter(ctx context.Context, op, what string) error {
	d.mu.Lock()
	closed := d.closed
	d.mu.Unlock()
	if closed {
		return drover.Errorf(drover.Canceled, op, "the driver is closed")
	}
	if err := ctx.Err(); err != nil {
		return drover.E(nameContextKind(err), op, err)
	}
	if d.service.cfg.Fault != nil {
		if err := d.service.cfg.Fault(op, what); err != nil {
			return err
		}
	}
	d.service.mu.Lock()
	if d.service.down {
		d.service.mu.Unlock()
		return drover.Errorf(drover.Unavailable, op, "the service does not answer")
	}
	return nil
}

// known reports a segment that the service does not have.
func (s *LeaseService) known(op, segment string) error {
	if _, ok := s.cfg.Segments[segment]; !ok {
		return drover.Errorf(drover.NotFound, op, "no segment %q here", segment)
	}
	return nil
}

// Reserve implements driver.Leases.
func (d *Leases) Reserve(ctx context.Context, owner driver.Owner, want driver.LeaseRequest) (driver.Lease, error) {
	const op = "reserve"
	none := driver.Lease{}
	if err := owner.Validate(); err != nil {
		return none, err
	}
	want, err := want.Normal()
	if err != nil {
		return none, err
	}
	if err := d.enter(ctx, op, want.Segment); err != nil {
		return none, err
	}
	s := d.service
	defer s.mu.Unlock()
	if err := s.known(op, want.Segment); err != nil {
		return none, err
	}
	for _, a := range want.Addresses {
		static := s.leases[leaseKey{want.Segment, a}].static
		if !static && !slices.Contains(s.cfg.Segments[want.Segment], a) {
			return none, drover.Errorf(drover.Invalid, op, "%v is not one of the segment's", a)
		}
	}
	lease := driver.Lease{Owner: owner, Segment: want.Segment, MAC: want.MAC, Hostname: want.Hostname}
	before := maps.Clone(s.leases)
	for _, v4 := range []bool{true, false} {
		if !s.serves(want.Segment, v4) {
			continue
		}
		a, err := s.reserve(owner, want, v4)
		if err != nil {
			s.leases = before
			return none, err
		}
		lease.Addresses = append(lease.Addresses, a)
		if !v4 {
			lease.DUID, lease.IAID = want.DUID, want.IAID
		}
	}
	return lease, nil
}

// reserve reserves the address of one family.
func (s *LeaseService) reserve(owner driver.Owner, want driver.LeaseRequest, v4 bool) (netip.Addr, error) {
	const op = "reserve"
	wish := want.Wish(v4)
	a, has := s.has(want.Segment, want.MAC, v4)
	switch {
	case has && wish.IsValid() && wish != a:
		return a, drover.Errorf(drover.Exists, op, "it has %v", a)
	case has:
	case wish.IsValid():
		a = wish
	default:
		var ok bool
		if a, ok = s.pick(want.Segment, v4, true, want.Avoid...); !ok {
			return a, drover.Errorf(drover.Exhausted, op, "no address is free")
		}
	}
	if err := want.Avoided(a); err != nil {
		return a, drover.E(drover.Exists, op, err)
	}
	held, used := s.leases[leaseKey{want.Segment, a}]
	switch {
	case used && held.MAC != want.MAC:
		return a, drover.Errorf(drover.Exists, op, "%v is used by another", a)
	case used && held.Owner != "" && held.Owner != owner:
		return a, drover.Errorf(drover.Exists, op, "%s has reserved %v for it", held.Owner, a)
	}
	held.Segment, held.MAC, held.Owner, held.Addresses = want.Segment, want.MAC, owner, []netip.Addr{a}
	if !used {
		held.Hostname = want.Hostname
		if !v4 {
			held.DUID, held.IAID = want.DUID, want.IAID
		}
	}
	s.leases[leaseKey{want.Segment, a}] = held
	return a, nil
}

// Release implements driver.Leases.
func (d *Leases) Release(ctx context.Context, owner driver.Owner, segment, mac string) error {
	const op = "release"
	if err := owner.Validate(); err != nil {
		return err
	}
	want, err := driver.LeaseRequest{Segment: segment, MAC: mac}.Normal()
	if err != nil {
		return err
	}
	if err := d.enter(ctx, op, segment); err != nil {
		return err
	}
	s := d.service
	defer s.mu.Unlock()
	if err := s.known(op, segment); err != nil {
		return err
	}
	for key, held := range s.leases {
		if key.segment != segment || held.MAC != want.MAC || held.Owner != owner {
			continue
		}
		if held.had || held.static {
			held.Owner = ""
			s.leases[key] = held
		} else {
			delete(s.leases, key)
		}
	}
	return nil
}

// Find implements driver.Leases.
func (d *Leases) Find(ctx context.Context, mac string) ([]driver.Lease, error) {
	mac, err := driver.NormalMAC(mac)
	if err != nil {
		return nil, err
	}
	if err := d.enter(ctx, "find", mac); err != nil {
		return nil, err
	}
	defer d.service.mu.Unlock()
	return d.service.collect(func(l driver.Lease) bool { return l.MAC == mac }), nil
}

// List implements driver.Leases.
func (d *Leases) List(ctx context.Context) ([]driver.Lease, error) {
	if err := d.enter(ctx, "list", ""); err != nil {
		return nil, err
	}
	defer d.service.mu.Unlock()
	return d.service.collect(func(l driver.Lease) bool { return l.Owner != "" }), nil
}

// collect puts the addresses of one client in one segment together.
func (s *LeaseService) collect(keep func(driver.Lease) bool) []driver.Lease {
	var list []driver.Lease
	for _, held := range s.leases {
		one := held.Lease
		if !keep(one) {
			continue
		}
		i := slices.IndexFunc(list, func(l driver.Lease) bool {
			return l.Segment == one.Segment && l.MAC == one.MAC && l.Owner == one.Owner
		})
		if i < 0 {
			one.Addresses = slices.Clone(one.Addresses)
			list = append(list, one)
			continue
		}
		l := &list[i]
		l.Addresses = append(l.Addresses, one.Addresses...)
		slices.SortFunc(l.Addresses, netip.Addr.Compare)
		if len(one.DUID) > 0 {
			l.DUID, l.IAID = one.DUID, one.IAID
		}
	}
	driver.SortLeases(list)
	return list
}

// Free implements driver.Leases.
func (d *Leases) Free(ctx context.Context, segment string, avoid ...netip.Addr) (driver.FreeAddresses, error) {
	if err := drover.CheckName("segment", segment); err != nil {
		return driver.FreeAddresses{}, err
	}
	if err := d.enter(ctx, "free", segment); err != nil {
		return driver.FreeAddresses{}, err
	}
	s := d.service
	defer s.mu.Unlock()
	if err := s.known("free", segment); err != nil {
		return driver.FreeAddresses{}, err
	}
	return driver.FreeAddresses{V4: uint64(len(s.free(segment, true, avoid...))), V6: uint64(len(s.free(segment, false, avoid...)))}, nil
}

// Close implements driver.Leases.
func (d *Leases) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	return nil
}
