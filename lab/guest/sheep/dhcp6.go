package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/dhcpv6/nclient6"
	"github.com/insomniacslk/dhcp/iana"
)

// dhcp6 keeps an address by DHCPv6 on one device. It asks anew instead of
// renewing, which a server answers with the address that the guest has; the
// default route is the command line's or a router advertisement's, since DHCPv6
// names none.
type dhcp6 struct {
	log  *slog.Logger
	set  settings
	book *addressBook
	up   <-chan struct{} // the link came up

	addr netip.Prefix // configured at present, invalid for none
}

// run keeps the address until ctx is done. It returns an error only when the
// device cannot be configured.
func (d *dhcp6) run(ctx context.Context) error {
	for ctx.Err() == nil {
		got, again, err := d.exchange(ctx)
		if err != nil {
			d.log.Warn("no answer to DHCPv6 request, trying again", "err", err)
			again = dhcpPause
		} else if err := d.apply(got); err != nil {
			return err
		}
		if err == nil && d.set.dhcpOnce {
			return nil
		}
		timer := time.NewTimer(again)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-d.up:
		}
		timer.Stop()
		if err := d.book.sweep(); err != nil {
			return err
		}
	}
	return nil
}

// exchange returns an address and when to ask again.
func (d *dhcp6) exchange(ctx context.Context) (netip.Prefix, time.Duration, error) {
	c, err := nclient6.New(d.book.device, nclient6.WithTimeout(dhcpTimeout), nclient6.WithRetry(dhcpTries))
	if err != nil {
		return netip.Prefix{}, 0, err
	}
	defer func() { _ = c.Close() }()
	// Who asks is the network card, at each boot and of each copy its own.
	reply, err := c.RapidSolicit(ctx, dhcpv6.WithClientID(&dhcpv6.DUIDLL{
		HWType: iana.HWTypeEthernet, LinkLayerAddr: c.InterfaceAddr(),
	}))
	if err != nil {
		return netip.Prefix{}, 0, err
	}
	return lease6(reply)
}

// lease6 reads a reply. An address of DHCPv6 has no subnet (RFC 8415, 21.6).
func lease6(reply *dhcpv6.Message) (netip.Prefix, time.Duration, error) {
	ia := reply.Options.OneIANA()
	if ia == nil {
		return netip.Prefix{}, 0, errors.New("reply without an address")
	}
	if s := ia.Options.Status(); s != nil && s.StatusCode != 0 {
		return netip.Prefix{}, 0, fmt.Errorf("refused: %s", s.StatusMessage)
	}
	one := ia.Options.OneAddress()
	if one == nil || one.ValidLifetime == 0 {
		return netip.Prefix{}, 0, errors.New("reply without an address")
	}
	a, ok := netip.AddrFromSlice(one.IPv6Addr)
	if !ok || !a.IsGlobalUnicast() {
		return netip.Prefix{}, 0, fmt.Errorf("reply with address %s", one.IPv6Addr)
	}
	again := ia.T1
	if again <= 0 {
		again = one.PreferredLifetime / 2
	}
	return netip.PrefixFrom(a, a.BitLen()), max(again, dhcpPause), nil
}

func (d *dhcp6) apply(got netip.Prefix) error {
	if d.addr == got && d.book.has(got.Addr()) {
		return nil
	}
	d.log.Info("address leased", "device", d.book.device, "address", got)
	var gw netip.Addr
	for _, a := range d.set.gateways {
		if a.Is6() {
			gw = a
		}
	}
	err := d.book.adopt(got, d.addr, gw)
	d.addr = got
	return err
}
