package dhcp

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// calls is a driver's calls under way, which end with it.
type calls struct {
	mu     sync.Mutex
	closed bool
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

func (c *calls) open() { c.ctx, c.cancel = context.WithCancel(context.Background()) }

// begin counts a call and ties its context to the driver's; the caller calls
// the function it returns when the call ends.
func (c *calls) begin(ctx context.Context, op string) (context.Context, func(), error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return ctx, nil, drover.Errorf(drover.Canceled, op, "the driver is closed")
	}
	if err := ctx.Err(); err != nil {
		kind := drover.Canceled
		if errors.Is(err, context.DeadlineExceeded) {
			kind = drover.Unavailable
		}
		return ctx, nil, drover.E(kind, op, err)
	}
	c.wg.Add(1)
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(c.ctx, cancel)
	return ctx, func() { stop(); cancel(); c.wg.Done() }, nil
}

// Close implements driver.Leases: it ends all calls under way and waits for
// them. What is reserved stays.
func (c *calls) Close() error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.cancel()
	c.wg.Wait()
	return nil
}

// collection puts the addresses of one client in one segment together.
type collection struct{ list []driver.Lease }

func (c *collection) add(one driver.Lease) {
	i := slices.IndexFunc(c.list, func(l driver.Lease) bool {
		return l.Segment == one.Segment && l.MAC == one.MAC && l.Owner == one.Owner && l.MAC != ""
	})
	if i < 0 {
		c.list = append(c.list, one)
		return
	}
	l := &c.list[i]
	l.Addresses = append(l.Addresses, one.Addresses...)
	if l.Hostname == "" {
		l.Hostname = one.Hostname
	}
	if len(one.DUID) > 0 {
		l.DUID, l.IAID = one.DUID, one.IAID
	}
}

// sorted returns what keep keeps, in order.
func (c *collection) sorted(keep func(driver.Lease) bool) []driver.Lease {
	var list []driver.Lease
	for _, l := range c.list {
		if keep(l) {
			slices.SortFunc(l.Addresses, netip.Addr.Compare)
			list = append(list, l)
		}
	}
	driver.SortLeases(list)
	return list
}
