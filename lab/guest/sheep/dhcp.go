package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
)

const (
	// dhcpTimeout is how long one message waits for its answer before it is
	// sent again; a relay over a WAN adds its round trip.
	dhcpTimeout = 2 * time.Second
	// dhcpTries bounds the messages of one attempt.
	dhcpTries = 3
	// dhcpPause is the wait between attempts without a lease. They go on as
	// long as the guest runs: without an address there is nothing else to do.
	dhcpPause = time.Second
	// sweepInterval is how often old addresses are looked at.
	sweepInterval = time.Second
	// defaultLease is taken when the server names no time.
	defaultLease = time.Hour
)

// dhcp keeps a lease on one device: it asks for one, renews it at T1 and,
// when that fails until the lease ends or the server refuses, gives the
// address up and asks for a new one. When the cable was out it asks as if for
// the first time, since it may be another network; the address it had stays
// for its sessions if the answer is another one.
type dhcp struct {
	log    *slog.Logger
	device string
	set    settings
	book   *addressBook
	up     <-chan struct{} // the link came up

	lease *nclient4.Lease
	addr  netip.Prefix // configured at present, invalid for none
	anew  bool         // ask for any lease, not for this one
}

func newDHCP(log *slog.Logger, set settings, book *addressBook, up <-chan struct{}) *dhcp {
	return &dhcp{log: log, device: book.device, set: set, book: book, up: up}
}

// run keeps the lease until ctx is done. It returns an error only when the
// device cannot be configured.
func (d *dhcp) run(ctx context.Context) error {
	// A machine without a hardware source has no random numbers at boot, and
	// the library only polls for them. A blocking read makes the kernel
	// gather some, in about a second.
	if _, err := rand.Read(make([]byte, 16)); err != nil {
		return fmt.Errorf("seed random numbers: %w", err)
	}
	for ctx.Err() == nil {
		err := d.exchange(ctx)
		var refused *nclient4.ErrNak
		switch {
		case err == nil:
			if err := d.apply(); err != nil {
				return err
			}
			if d.set.dhcpOnce {
				return nil // and never again, whatever happens to the network
			}
			err = d.rest(ctx, d.untilRenewal())
		case d.lease != nil && !d.anew && (errors.As(err, &refused) || !time.Now().Before(d.expires())):
			d.log.Warn("lease lost", "address", d.addr, "err", err)
			d.lease = nil
			err = d.withdraw()
		default:
			d.log.Warn("no answer to DHCP request, trying again", "err", err)
			err = d.rest(ctx, dhcpPause)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// rest waits until it is time for the next message, which is also when the link
// has come up, and drops old addresses meanwhile.
func (d *dhcp) rest(ctx context.Context, limit time.Duration) error {
	due := time.After(limit)
	sweep := time.NewTicker(sweepInterval)
	defer sweep.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-due:
			return nil
		case <-d.up:
			d.anew = true
			return nil
		case <-sweep.C:
			if err := d.book.sweep(); err != nil {
				return err
			}
		}
	}
}

// exchange gets a lease, or renews the one there is.
func (d *dhcp) exchange(ctx context.Context) error {
	// The socket lives for one exchange only: an open raw socket would copy
	// all of the guest's traffic.
	c, err := nclient4.New(d.device, nclient4.WithTimeout(dhcpTimeout), nclient4.WithRetry(dhcpTries))
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	var lease *nclient4.Lease
	if d.lease == nil || d.anew {
		var mods []dhcpv4.Modifier
		if d.set.name != "" {
			mods = append(mods, dhcpv4.WithOption(dhcpv4.OptHostName(d.set.name)))
		}
		lease, err = c.Request(ctx, mods...)
	} else {
		lease, err = c.Renew(ctx, d.lease)
	}
	if err != nil {
		return err
	}
	d.lease, d.anew = lease, false
	return nil
}

func (d *dhcp) leaseTime() time.Duration { return d.lease.ACK.IPAddressLeaseTime(defaultLease) }

func (d *dhcp) expires() time.Time { return d.lease.CreationTime.Add(d.leaseTime()) }

// untilRenewal is T1 of RFC 2131: the server's, or half of the lease.
func (d *dhcp) untilRenewal() time.Duration {
	return time.Until(d.lease.CreationTime.Add(d.lease.ACK.IPAddressRenewalTime(d.leaseTime() / 2)))
}

// apply configures what the lease says. An address that has changed is kept for
// its sessions; one that somebody else has given the guest meanwhile, or has
// changed, stays as it is.
func (d *dhcp) apply() error {
	ack := d.lease.ACK
	got, err := leasePrefix(ack)
	if err != nil {
		return err
	}
	if d.addr == got && d.book.has(got.Addr()) {
		return nil
	}
	d.log.Info("address leased", "device", d.device, "address", got, "server", ack.ServerIdentifier(), "lease", d.leaseTime())
	var gw netip.Addr
	if routers := ack.Router(); len(routers) > 0 {
		gw, _ = netip.AddrFromSlice(routers[0].To4())
	}
	if err := d.book.adopt(got, d.addr, gw); err != nil {
		return err
	}
	d.addr = got
	if servers := ack.DNS(); len(servers) > 0 && len(d.set.dns) == 0 {
		var list []netip.Addr
		for _, ip := range servers {
			if a, ok := netip.AddrFromSlice(ip.To4()); ok {
				list = append(list, a)
			}
		}
		return writeResolver(list)
	}
	return nil
}

// withdraw removes the configured address, for good.
func (d *dhcp) withdraw() error {
	if !d.addr.IsValid() {
		return nil
	}
	if err := d.book.remove(d.addr.Addr()); err != nil && !errors.Is(err, errNoAddress) {
		return err
	}
	d.addr = netip.Prefix{}
	return nil
}

func leasePrefix(ack *dhcpv4.DHCPv4) (netip.Prefix, error) {
	ip, ok := netip.AddrFromSlice(ack.YourIPAddr.To4())
	if !ok || ip.IsUnspecified() {
		return netip.Prefix{}, fmt.Errorf("lease without an address: %s", ack.Summary())
	}
	mask := ack.SubnetMask()
	if mask == nil {
		mask = net.IP(ip.AsSlice()).DefaultMask()
	}
	bits, _ := mask.Size()
	return netip.PrefixFrom(ip, bits), nil
}
