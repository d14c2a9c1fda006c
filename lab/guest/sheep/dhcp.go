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
	"github.com/vishvananda/netlink"
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
	// defaultLease is taken when the server names no time.
	defaultLease = time.Hour
)

// dhcp keeps a lease on one device: it asks for one, renews it at T1 and,
// when that fails until the lease ends or the server refuses, gives the
// address up and asks for a new one.
type dhcp struct {
	log    *slog.Logger
	device string
	set    settings

	lease *nclient4.Lease
	addr  netip.Prefix // configured at present, invalid for none
}

func newDHCP(log *slog.Logger, device string, set settings) *dhcp {
	return &dhcp{log: log, device: device, set: set}
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
			sleep(ctx, d.untilRenewal())
		case d.lease != nil && (errors.As(err, &refused) || !time.Now().Before(d.expires())):
			d.log.Warn("lease lost", "address", d.addr, "err", err)
			d.lease = nil
			if err := d.withdraw(); err != nil {
				return err
			}
		default:
			d.log.Warn("no answer to DHCP request, trying again", "err", err)
			sleep(ctx, dhcpPause)
		}
	}
	return nil
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
	if d.lease == nil {
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
	d.lease = lease
	return nil
}

func (d *dhcp) leaseTime() time.Duration { return d.lease.ACK.IPAddressLeaseTime(defaultLease) }

func (d *dhcp) expires() time.Time { return d.lease.CreationTime.Add(d.leaseTime()) }

// untilRenewal is T1 of RFC 2131: the server's, or half of the lease.
func (d *dhcp) untilRenewal() time.Duration {
	return time.Until(d.lease.CreationTime.Add(d.lease.ACK.IPAddressRenewalTime(d.leaseTime() / 2)))
}

// apply configures what the lease says. An address that has changed is
// replaced, new before old.
func (d *dhcp) apply() error {
	link, err := netlink.LinkByName(d.device)
	if err != nil {
		return fmt.Errorf("find %s: %w", d.device, err)
	}
	ack := d.lease.ACK
	got, err := leasePrefix(ack)
	if err != nil {
		return err
	}
	if err := netlink.AddrReplace(link, address(got)); err != nil {
		return fmt.Errorf("add address %s: %w", got, err)
	}
	if d.addr != got {
		d.log.Info("address leased", "device", d.device, "address", got, "server", ack.ServerIdentifier(), "lease", d.leaseTime())
		if err := d.withdraw(); err != nil {
			return err
		}
		d.addr = got
	}
	if routers := ack.Router(); len(routers) > 0 {
		gw, _ := netip.AddrFromSlice(routers[0].To4())
		if err := setGateway(link, gw, []netip.Prefix{got}); err != nil {
			return err
		}
	}
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

// withdraw removes the configured address.
func (d *dhcp) withdraw() error {
	if !d.addr.IsValid() {
		return nil
	}
	link, err := netlink.LinkByName(d.device)
	if err != nil {
		return fmt.Errorf("find %s: %w", d.device, err)
	}
	if err := netlink.AddrDel(link, address(d.addr)); err != nil {
		return fmt.Errorf("remove address %s: %w", d.addr, err)
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
