package labfile

import (
	"errors"
	"net/netip"
	"strings"
)

var (
	errNotIPv4    = errors.New("not an IPv4 address")
	errNotIPv6    = errors.New("not an IPv6 address")
	errNotSubnet  = errors.New("not a subnet")
	errNotSubnet6 = errors.New("not an IPv6 subnet of 48 to 112 bits")
	errNotRange   = errors.New("not a range of addresses")
)

// Addr is an IPv4 address.
type Addr struct{ netip.Addr }

// UnmarshalText reads an IPv4 address.
func (a *Addr) UnmarshalText(b []byte) error {
	v, err := netip.ParseAddr(string(b))
	if err == nil && !v.Is4() {
		err = errNotIPv4
	}
	a.Addr = v
	return err
}

// Prefix is an IPv4 subnet with room for at least two hosts.
type Prefix struct{ netip.Prefix }

// UnmarshalText reads a subnet and refuses one that names a host within it.
func (p *Prefix) UnmarshalText(b []byte) error {
	v, err := netip.ParsePrefix(string(b))
	switch {
	case err != nil:
	case !v.Addr().Is4():
		err = errNotIPv4
	case v.Masked() != v || v.Bits() > 29 || v.Bits() < 8:
		err = errNotSubnet
	}
	p.Prefix = v
	return err
}

// First is the first address of the subnet, which its edge has.
func (p Prefix) First() netip.Addr { return p.Addr().Next() }

// Addr6 is an IPv6 address.
type Addr6 struct{ netip.Addr }

// UnmarshalText reads an IPv6 address that is good beyond its own cable.
func (a *Addr6) UnmarshalText(b []byte) error {
	v, err := netip.ParseAddr(string(b))
	if err == nil && (!v.Is6() || v.Is4In6() || v.Zone() != "" || v.IsUnspecified() || v.IsLoopback() || v.IsMulticast() || v.IsLinkLocalUnicast()) {
		err = errNotIPv6
	}
	a.Addr = v
	return err
}

// Prefix6 is an IPv6 subnet. What is smaller than 16 bits of hosts has no room
// for the pools of DHCP servers, and /48 is what a site has.
type Prefix6 struct{ netip.Prefix }

// UnmarshalText reads a subnet and refuses one that names a host within it.
func (p *Prefix6) UnmarshalText(b []byte) error {
	v, err := netip.ParsePrefix(string(b))
	switch {
	case err != nil:
	case !v.Addr().Is6() || v.Addr().Is4In6() || v.Addr().IsMulticast() || v.Addr().IsLinkLocalUnicast():
		err = errNotIPv6
	case v.Masked() != v || v.Bits() < 48 || v.Bits() > 112:
		err = errNotSubnet6
	}
	p.Prefix = v
	return err
}

// First is the first address of the subnet, which its edge has.
func (p Prefix6) First() netip.Addr { return p.Addr().Next() }

// Range is a range of addresses of one family, both ends included; written
// "10.50.0.200-10.50.0.215".
type Range struct{ From, To netip.Addr }

// UnmarshalText reads a range.
func (r *Range) UnmarshalText(b []byte) error {
	from, to, ok := strings.Cut(string(b), "-")
	if !ok {
		return errNotRange
	}
	var err [2]error
	r.From, err[0] = netip.ParseAddr(strings.TrimSpace(from))
	r.To, err[1] = netip.ParseAddr(strings.TrimSpace(to))
	if e := errors.Join(err[:]...); e != nil {
		return e
	}
	if r.From.Is4() != r.To.Is4() || r.To.Less(r.From) {
		return errNotRange
	}
	return nil
}

// IsValid reports whether there is a range.
func (r Range) IsValid() bool { return r.From.IsValid() }

// Contains reports whether a is in the range.
func (r Range) Contains(a netip.Addr) bool {
	return r.IsValid() && a.Is4() == r.From.Is4() && !a.Less(r.From) && !r.To.Less(a)
}

// String prints the range as it is written in a lab file.
func (r Range) String() string { return r.From.String() + "-" + r.To.String() }
