package kernel

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync"

	"github.com/vishvananda/netns"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/namespace"
)

var _ driver.Addresses = (*Addresses)(nil)

// Config describes an edge.
type Config struct {
	// Namespace is the path of its network namespace; empty is the process's own.
	Namespace string
	Log       *slog.Logger
}

// Addresses is the network stack of an edge.
type Addresses struct {
	log    *slog.Logger
	space  netns.NsHandle // negative: the process's own
	ctx    context.Context
	cancel context.CancelFunc
	done   sync.WaitGroup

	// life is read-locked by every operation, so that Close waits for them.
	life   sync.RWMutex
	closed bool

	// mu is held for a change: the chain of owned lines is read, changed and
	// written back.
	mu sync.Mutex
	// responders answer neighbour discovery for the rest of IPv6 subnets, by bridge.
	responders map[string]*responder

	// saying guards what was announced last of each address, by a number that
	// grows. It is as large as the addresses that this process has placed.
	saying sync.Mutex
	said   uint64
	latest map[netip.Addr]uint64
}

// New returns a driver for the edge, and takes up what an earlier one left. The
// caller closes it.
func New(cfg Config) (*Addresses, error) {
	if os.Geteuid() != 0 {
		return nil, drover.Errorf(drover.Denied, "edge's addresses", "changing routes takes root")
	}
	a := &Addresses{log: cfg.Log, space: -1, responders: map[string]*responder{}, latest: map[netip.Addr]uint64{}}
	if a.log == nil {
		a.log = slog.New(slog.DiscardHandler)
	}
	if cfg.Namespace != "" {
		space, err := netns.GetFromPath(cfg.Namespace)
		if err != nil {
			return nil, drover.E(drover.NotFound, "edge's addresses: namespace "+cfg.Namespace, err)
		}
		a.space = space
	}
	a.ctx, a.cancel = context.WithCancel(context.Background())
	err := a.run(a.ctx, "take up what stands", func() error {
		entries, err := readEntries()
		if err != nil {
			return err
		}
		return a.respond(entries)
	})
	if err != nil {
		return nil, errors.Join(err, a.Close())
	}
	return a, nil
}

// Close implements driver.Addresses.
func (a *Addresses) Close() error {
	a.cancel()
	a.life.Lock()
	defer a.life.Unlock()
	if a.closed {
		return nil
	}
	a.closed = true
	for _, r := range a.responders {
		r.close()
	}
	a.done.Wait()
	if a.space >= 0 {
		return a.space.Close()
	}
	return nil
}

// run runs f, alone, in the edge's namespace.
func (a *Addresses) run(ctx context.Context, op string, f func() error) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.look(ctx, op, f)
}

// look runs f in the edge's namespace; with mu held, or without for what only
// reads.
func (a *Addresses) look(ctx context.Context, op string, f func() error) error {
	a.life.RLock()
	defer a.life.RUnlock()
	switch {
	case a.ctx.Err() != nil:
		return drover.Errorf(drover.Canceled, op, "the driver is closed")
	case ctx.Err() != nil:
		return drover.E(drover.Canceled, op, ctx.Err())
	}
	return wrap(op, a.inside(f))
}

func wrap(op string, err error) error {
	var e *drover.Error
	if errors.As(err, &e) {
		return drover.E(e.Kind, op, err)
	}
	return drover.E(drover.Internal, op, err)
}

// inside runs f in the edge's namespace.
func (a *Addresses) inside(f func() error) error {
	if a.space < 0 {
		return f()
	}
	return namespace.In(a.space, f)
}

// change computes the entries that are to stand from those that do, and makes
// it so.
func (a *Addresses) change(ctx context.Context, op string, owner driver.Owner, f func([]entry) ([]entry, error)) error {
	return a.run(ctx, op, func() error {
		before, err := readEntries()
		if err != nil {
			return err
		}
		after, err := f(slices.Clone(before))
		if err != nil {
			return err
		}
		if err := conflict(after); err != nil {
			return err
		}
		return errors.Join(apply(owner, before, after, nil), a.respond(after))
	})
}

func hostPrefix(addr netip.Addr) netip.Prefix { return netip.PrefixFrom(addr, addr.BitLen()) }

// without removes the owner's entries of these roles for these addresses.
func without(entries []entry, owner driver.Owner, addresses []netip.Addr, roles ...driver.AddressRole) []entry {
	return slices.DeleteFunc(entries, func(e entry) bool {
		return e.owner == owner && slices.Contains(roles, e.role) && e.prefix.IsSingleIP() && slices.Contains(addresses, e.prefix.Addr())
	})
}

// with adds entries that are not there yet.
func with(entries []entry, more ...entry) []entry {
	for _, e := range more {
		if !slices.Contains(entries, e) {
			entries = append(entries, e)
		}
	}
	return entries
}

// DeliverHere implements driver.Addresses.
func (a *Addresses) DeliverHere(ctx context.Context, owner driver.Owner, d driver.Delivery) error {
	const op = "deliver addresses here"
	if err := check(op, owner, d.Validate()); err != nil {
		return err
	}
	var stands []entry
	err := a.change(ctx, op, owner, func(entries []entry) ([]entry, error) {
		if _, err := needLink(d.Bridge); err != nil {
			return nil, err
		}
		entries = without(entries, owner, d.Addresses, driver.RoleDeliver, driver.RoleElsewhere)
		for _, addr := range d.Addresses {
			entries = with(entries, entry{owner: owner, role: driver.RoleDeliver, prefix: hostPrefix(addr), bridge: d.Bridge})
		}
		stands = slices.Clone(entries)
		return entries, nil
	})
	if err != nil {
		return err
	}
	return a.look(ctx, op, func() error {
		if err := forgetNeighbours(d.Addresses, d.Bridge); err != nil {
			return err
		}
		if d.MAC == "" {
			a.supersede(d.Addresses)
			return nil
		}
		return errors.Join(a.announce(d.Addresses, d.Bridge, d.MAC), a.tell(owner, d, stands))
	})
}

// Elsewhere implements driver.Addresses.
func (a *Addresses) Elsewhere(ctx context.Context, owner driver.Owner, addresses []netip.Addr, bridge string) error {
	const op = "find addresses elsewhere"
	if err := check(op, owner, driver.CheckPlaced(addresses, bridge)); err != nil {
		return err
	}
	err := a.change(ctx, op, owner, func(entries []entry) ([]entry, error) {
		if err := needBridgeAndRouter(bridge, addresses...); err != nil {
			return nil, err
		}
		entries = without(entries, owner, addresses, driver.RoleDeliver, driver.RoleElsewhere)
		for _, addr := range addresses {
			entries = with(entries, entry{owner: owner, role: driver.RoleElsewhere, prefix: hostPrefix(addr), bridge: bridge})
		}
		return entries, nil
	})
	if err != nil {
		return err
	}
	return a.look(ctx, op, func() error { return a.announce(addresses, bridge, "") })
}

// ProxyRest implements driver.Addresses.
func (a *Addresses) ProxyRest(ctx context.Context, owner driver.Owner, subnets []netip.Prefix, bridge string) error {
	const op = "proxy the rest of a subnet"
	err := driver.CheckSubnets(subnets)
	if err == nil {
		err = driver.CheckPlaced([]netip.Addr{subnets[0].Addr()}, bridge)
	}
	if err := check(op, owner, err); err != nil {
		return err
	}
	return a.change(ctx, op, owner, func(entries []entry) ([]entry, error) {
		for _, p := range subnets {
			if err := needBridgeAndRouter(bridge, p.Addr()); err != nil {
				return nil, err
			}
			entries = with(entries, entry{owner: owner, role: driver.RoleRest, prefix: p, bridge: bridge})
		}
		return entries, nil
	})
}

// Watch implements driver.Addresses.
func (a *Addresses) Watch(ctx context.Context, owner driver.Owner, addresses []netip.Addr) error {
	return a.mark(ctx, "watch sessions", owner, driver.RoleWatch, addresses)
}

// Meter implements driver.Addresses.
func (a *Addresses) Meter(ctx context.Context, owner driver.Owner, addresses []netip.Addr) error {
	return a.mark(ctx, "meter addresses", owner, driver.RoleMeter, addresses)
}

func (a *Addresses) mark(ctx context.Context, op string, owner driver.Owner, role driver.AddressRole, addresses []netip.Addr) error {
	if err := check(op, owner, driver.CheckHostAddresses(addresses)); err != nil {
		return err
	}
	return a.change(ctx, op, owner, func(entries []entry) ([]entry, error) {
		for _, addr := range addresses {
			entries = with(entries, entry{owner: owner, role: role, prefix: hostPrefix(addr)})
		}
		return entries, nil
	})
}

// Remove implements driver.Addresses.
func (a *Addresses) Remove(ctx context.Context, owner driver.Owner, roles ...driver.AddressRole) error {
	const op = "remove an owner's addresses"
	for _, r := range roles {
		if !slices.Contains(driver.AddressRoles, r) {
			return drover.Errorf(drover.Invalid, op, "role %q: want one of %v", r, driver.AddressRoles)
		}
	}
	if err := owner.Validate(); err != nil {
		return err
	}
	return a.change(ctx, op, owner, func(entries []entry) ([]entry, error) {
		return slices.DeleteFunc(entries, func(e entry) bool {
			gone := e.owner == owner && (len(roles) == 0 || slices.Contains(roles, e.role))
			if gone && e.prefix.IsSingleIP() {
				a.supersede([]netip.Addr{e.prefix.Addr()})
			}
			return gone
		}), nil
	})
}

// List implements driver.Addresses.
func (a *Addresses) List(ctx context.Context) ([]driver.PlacedAddress, error) {
	var all []driver.PlacedAddress
	err := a.run(ctx, "list addresses", func() error {
		entries, err := readEntries()
		if err != nil {
			return err
		}
		slices.SortFunc(entries, compareEntries)
		for _, e := range entries {
			whole, err := stands(e)
			if err != nil {
				return err
			}
			all = append(all, driver.PlacedAddress{
				Owner: e.owner, Role: e.role, Prefix: e.prefix, Bridge: e.bridge, Remote: e.remote, All: e.all, Missing: !whole,
			})
		}
		return nil
	})
	return all, err
}

func check(op string, owner driver.Owner, more error) error {
	if err := owner.Validate(); err != nil {
		return err
	}
	return drover.E(drover.Invalid, op, more)
}
