package kernel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

const (
	// askLimit is longer than the kernel asks for before it gives up: three
	// times, a second apart.
	askLimit = 5 * time.Second
	// askPoll is how often the kernel's table is read meanwhile.
	askPoll = 20 * time.Millisecond
)

// Stations implements driver.Addresses. The kernel asks: it is told to use an
// address that it knows nothing of. What it knew before might be of a station
// that has gone, so it forgets that first, unless it was told by somebody.
func (a *Addresses) Stations(ctx context.Context, bridge string, addresses []netip.Addr) ([]driver.AddressStation, error) {
	const op = "ask for addresses"
	if err := driver.CheckPlaced(addresses, bridge); err != nil {
		return nil, drover.E(drover.Invalid, op, err)
	}
	var found []driver.AddressStation
	err := a.look(ctx, op, func() error {
		link, err := needLink(bridge)
		if err != nil {
			return err
		}
		index := link.Attrs().Index
		for _, addr := range addresses {
			if err := ask(index, addr); err != nil {
				return fmt.Errorf("%v on %s: %w", addr, bridge, err)
			}
		}
		ctx, cancel := context.WithTimeout(ctx, askLimit)
		defer cancel()
		for {
			var waiting bool
			if found, waiting, err = answered(index, addresses); err != nil || !waiting {
				return err
			}
			t := time.NewTimer(askPoll)
			select {
			case <-t.C:
			case <-ctx.Done():
				t.Stop()
				if errors.Is(ctx.Err(), context.DeadlineExceeded) {
					return nil // who has not answered by now does not
				}
				return ctx.Err()
			}
		}
	})
	return found, err
}

// ask has the kernel ask for an address.
func ask(index int, addr netip.Addr) error {
	n, err := neighbourOf(index, addr)
	if err != nil {
		return err
	}
	if n != nil {
		if n.State&(netlink.NUD_PERMANENT|netlink.NUD_NOARP) != 0 {
			return nil
		}
		if err := gone("forget a neighbour", netlink.NeighDel(n)); err != nil {
			return err
		}
	}
	return netlink.NeighSet(&netlink.Neigh{
		LinkIndex: index, Family: netlinkFamily(addr), IP: addr.AsSlice(), State: netlink.NUD_NONE, Flags: netlink.NTF_USE,
	})
}

// answered returns the stations that are known, and whether the kernel still
// asks for others.
func answered(index int, addresses []netip.Addr) (found []driver.AddressStation, waiting bool, err error) {
	for _, addr := range addresses {
		n, err := neighbourOf(index, addr)
		switch {
		case err != nil:
			return nil, false, err
		case n == nil, n.State&netlink.NUD_FAILED != 0:
		case n.State&netlink.NUD_INCOMPLETE != 0 || n.State == netlink.NUD_NONE:
			waiting = true
		case len(n.HardwareAddr) > 0:
			found = append(found, driver.AddressStation{Address: addr, MAC: n.HardwareAddr.String()})
		}
	}
	return found, waiting, nil
}

// neighbourOf is what the kernel knows of an address, nil for nothing.
func neighbourOf(index int, addr netip.Addr) (*netlink.Neigh, error) {
	var all []netlink.Neigh
	var err error
	for range dumpTries {
		if all, err = netlink.NeighList(index, netlinkFamily(addr)); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("list neighbours: %w", err)
	}
	i := slices.IndexFunc(all, func(n netlink.Neigh) bool {
		ip, _ := netip.AddrFromSlice(n.IP)
		return ip.Unmap() == addr && n.Flags&unix.NTF_PROXY == 0
	})
	if i < 0 {
		return nil, nil
	}
	return &all[i], nil
}
