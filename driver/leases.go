package driver

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/drover-vm/drover"
)

// Leases is the DHCP service of one or more segments: which address a MAC gets
// when it asks.
//
// Every address that is reserved carries its owner in the service itself. A
// lease or a reservation that Drover did not make is never changed or removed;
// one that a client already holds by itself is marked when it is reserved, and
// only loses the mark when it is released.
//
// Every method may be repeated, after any error and by another process: it
// finds what it did. Methods may be called concurrently. Cancelling Reserve
// may leave a part of it, marked, which the next Reserve completes and Release
// removes. A segment that the service does not have gives drover.NotFound, bad
// arguments drover.Invalid, a service that does not answer drover.Unavailable,
// one that cannot do it drover.Refused. The caller closes.
type Leases interface {
	// Reserve has the MAC get an address of each family that the segment
	// serves: the wished one, or a free one of the segment's pools. Repeated,
	// it returns the same; with other wishes drover.Exists. An address that is
	// another's, and a MAC that is another owner's or that has another address
	// by itself, give drover.Exists, and so does one to be avoided that is wished
	// or that the MAC has; pools without a free address drover.Exhausted. A service may end what no client asks for within a day;
	// Reserve, repeated, makes it last again. On an error nothing new stays reserved, unless ctx
	// ended or the service was lost.
	Reserve(ctx context.Context, owner Owner, want LeaseRequest) (Lease, error)
	// Release ends what Reserve did; missing is fine, and so is what is not
	// the owner's. A client that has taken its address may have it until its
	// lease ends.
	Release(ctx context.Context, owner Owner, segment, mac string) error
	// Find returns what the MAC has in each segment, with and without an
	// owner, by segment, in order; none is an empty list.
	Find(ctx context.Context, mac string) ([]Lease, error)
	// List returns all that has an owner, by segment and MAC, in order.
	List(ctx context.Context) ([]Lease, error)
	// Free counts the addresses that Reserve could pick, but for those to avoid.
	Free(ctx context.Context, segment string, avoid ...netip.Addr) (FreeAddresses, error)
	Close() error
}

// LeaseRequest is an address to reserve.
type LeaseRequest struct {
	Segment string
	// MAC of the client, six bytes in hexadecimal with colons or dashes.
	MAC string
	// Hostname is told to the client where the service does that; empty means
	// none.
	Hostname string
	// Addresses wished, at most one of each family.
	Addresses []netip.Addr
	// Avoid are addresses that somebody else has in a way that the service cannot
	// know of: a VM, say, that has left the segment with them.
	Avoid []netip.Addr
	// DHCPv6 knows clients by an identity of their own choice. When the
	// client's is known, say from Find at the site it comes from, DUID and
	// IAID are it. An empty DUID means what a client makes of its MAC and
	// nothing else: DUID-LL (RFC 8415, 11.4) and the MAC's last four bytes.
	DUID []byte
	IAID uint32
}

// Lease is what a MAC has in one segment.
type Lease struct {
	// Owner is empty for what is not Drover's.
	Owner     Owner
	Segment   string
	MAC       string // in lower case, with colons
	Hostname  string
	Addresses []netip.Addr // in order, IPv4 before IPv6
	// DUID and IAID are the client's identity for DHCPv6; empty without an
	// IPv6 address. A service that does not tell IAIDs leaves it zero.
	DUID []byte
	IAID uint32
}

// FreeAddresses counts free addresses; what does not fit is the largest number.
type FreeAddresses struct {
	V4, V6 uint64
}

// Bounds of DHCPv6's DUIDs (RFC 8415, 11.1).
const (
	minDUIDBytes = 3
	maxDUIDBytes = 130
)

// Normal returns the request in the form that Lease has, with the identity for
// DHCPv6 filled in, or what is wrong with it; the kind is drover.Invalid.
func (r LeaseRequest) Normal() (LeaseRequest, error) {
	if err := drover.CheckName("segment", r.Segment); err != nil {
		return r, err
	}
	mac, err := NormalMAC(r.MAC)
	if err != nil {
		return r, err
	}
	r.MAC = mac
	r.Hostname = strings.TrimSuffix(strings.ToLower(r.Hostname), ".")
	if r.Hostname != "" {
		for label := range strings.SplitSeq(r.Hostname, ".") {
			if !hostLabel(label) || len(r.Hostname) > 253 {
				return r, drover.Errorf(drover.Invalid, "hostname", "%q is not a host's name", r.Hostname)
			}
		}
	}
	r.Addresses = slices.Clone(r.Addresses)
	for i, a := range r.Addresses {
		a = a.Unmap()
		if !a.IsValid() || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() || a.IsLinkLocalUnicast() {
			return r, drover.Errorf(drover.Invalid, "address", "%v cannot be reserved", a)
		}
		r.Addresses[i] = a
	}
	slices.SortFunc(r.Addresses, netip.Addr.Compare)
	r.Avoid = slices.Clone(r.Avoid)
	for i, a := range r.Avoid {
		r.Avoid[i] = a.Unmap()
	}
	if n := len(r.Addresses); n > 2 || n == 2 && r.Addresses[0].Is4() == r.Addresses[1].Is4() {
		return r, drover.Errorf(drover.Invalid, "address", "%v: want at most one of each family", r.Addresses)
	}
	if len(r.DUID) == 0 {
		r.DUID, r.IAID = macIdentity(mac)
	}
	if n := len(r.DUID); n < minDUIDBytes || n > maxDUIDBytes {
		return r, drover.Errorf(drover.Invalid, "DUID", "%d bytes: want %d to %d", n, minDUIDBytes, maxDUIDBytes)
	}
	return r, nil
}

// Avoided reports whether the address is one to avoid; the error says so.
func (r LeaseRequest) Avoided(a netip.Addr) error {
	if slices.Contains(r.Avoid, a) {
		return drover.Errorf(drover.Exists, "", "%v is another's, who is not in the segment", a)
	}
	return nil
}

// Wish returns the wished address of a family; it is invalid for none.
func (r LeaseRequest) Wish(v4 bool) netip.Addr {
	for _, a := range r.Addresses {
		if a.Is4() == v4 {
			return a
		}
	}
	return netip.Addr{}
}

// NormalMAC returns a MAC in lower case with colons; the kind is
// drover.Invalid for anything that is not a single station's MAC of six bytes.
func NormalMAC(mac string) (string, error) {
	hw, err := net.ParseMAC(mac)
	if err != nil || len(hw) != 6 || hw[0]&1 != 0 || bytes.Equal(hw, make([]byte, 6)) {
		return "", drover.E(drover.Invalid, "mac", fmt.Errorf("%q is not a station's MAC of six bytes", mac))
	}
	return hw.String(), nil
}

// macIdentity is the identity that a client without any other makes of its MAC.
func macIdentity(mac string) (duid []byte, iaid uint32) {
	hw, _ := net.ParseMAC(mac) // is in normal form
	duid = append([]byte{0, 3, 0, 1}, hw...)
	return duid, uint32(hw[2])<<24 | uint32(hw[3])<<16 | uint32(hw[4])<<8 | uint32(hw[5])
}

// SortLeases puts leases in the order of Leases.List.
func SortLeases(list []Lease) {
	slices.SortFunc(list, func(a, b Lease) int {
		if c := strings.Compare(a.Segment, b.Segment); c != 0 {
			return c
		}
		return strings.Compare(a.MAC, b.MAC)
	})
}
