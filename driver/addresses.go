package driver

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"time"

	"github.com/drover-vm/drover"
)

// Addresses is the network stack of one site's edge, as far as it decides where
// the addresses of VMs are: delivered here, to be found at another site, or old
// ones whose sessions go on through the mesh.
//
// Methods may be called concurrently. Everything is repeatable: what is as it
// should be stays, the rest is made so; a call whose context ends, or that
// fails, may have done a part, which repeating it completes and Remove undoes.
// What was made carries its owner, outlives the driver and is found again by the
// next one. Routes, rules, entries and tables that were not made by Drover are
// never changed: one in the way gives drover.Exists, and so does an address that
// another owner has placed elsewhere. A bridge or mesh interface that is
// missing gives drover.NotFound, an address that is no host's drover.Invalid.
type Addresses interface {
	// DeliverHere routes the addresses into the bridge of this site, whatever
	// the rest of their subnet does. It ends what Elsewhere did for the owner.
	// With a MAC, neighbours on the bridge are told of it at once; and it is told
	// of neighbours, as far as ProxyRest leads them away from the bridge: that they
	// have this edge's MAC, in the place of those that it may remember.
	DeliverHere(ctx context.Context, owner Owner, d Delivery) error
	// Elsewhere makes neighbours on the bridge reach the addresses through this
	// edge, which sends them to its router: they live at another site.
	// Neighbours are told at once. It ends what DeliverHere did for the owner.
	// An edge without a router gives drover.Refused.
	Elsewhere(ctx context.Context, owner Owner, addresses []netip.Addr, bridge string) error
	// ProxyRest does for all other addresses of the subnets, on a bridge of a site
	// that is not the subnets' home, what Elsewhere does: each address that lives
	// on this bridge has to be delivered here.
	ProxyRest(ctx context.Context, owner Owner, subnets []netip.Prefix, bridge string) error
	// ForwardOld sends the sessions of addresses that have left this site through
	// the mesh to the edge where their VM is now. Only sessions that were under
	// way go: new ones are refused with a reset or an ICMP error, and after the
	// limit all are. Watch has to have been on before, so that they are known; of
	// TCP, where a beginning can be told from the rest, those go on as well that
	// were silent since, but nobody can count them.
	// Given again, another edge replaces the one before, and the limit
	// starts anew.
	ForwardOld(ctx context.Context, owner Owner, f OldForward) error
	// AcceptOld is the other end: what ForwardOld sends is delivered to the bridge,
	// and what the VM answers from its old addresses goes back the same way.
	// New sessions from them are refused.
	AcceptOld(ctx context.Context, owner Owner, a OldAccept) error
	// Watch has the edge keep track of the addresses' sessions from now on.
	Watch(ctx context.Context, owner Owner, addresses []netip.Addr) error
	// Sessions returns the sessions of the addresses that the edge knows, whoever
	// asked for them to be watched. None is no error.
	Sessions(ctx context.Context, addresses []netip.Addr) ([]AddressSession, error)
	// Forget drops the sessions from what the edge knows, and says how many it
	// were. ForwardOld refuses them then, but for those of TCP that speak again.
	Forget(ctx context.Context, addresses []netip.Addr) (int, error)
	// Stations asks on the bridge who has the addresses, by ARP and neighbour
	// discovery, and returns those that somebody answered for, in their order.
	// It takes a few seconds where nobody does. Routing and proxies of this edge
	// are not looked at.
	Stations(ctx context.Context, bridge string, addresses []netip.Addr) ([]AddressStation, error)
	// Meter counts the bytes to and from the addresses from now on.
	Meter(ctx context.Context, owner Owner, addresses []netip.Addr) error
	// Metered returns the counts, of every metered address when none is named,
	// sorted by address; one that is not metered is left out. It is asked every few
	// seconds.
	Metered(ctx context.Context, addresses []netip.Addr) ([]AddressTraffic, error)
	// Remove undoes all of the owner, or only its roles when some are given.
	// Missing is fine.
	Remove(ctx context.Context, owner Owner, roles ...AddressRole) error
	// List returns everything that stands, with its owners, read from the
	// technology, sorted by owner, role and prefix.
	List(ctx context.Context) ([]PlacedAddress, error)
	// Check says for a preflight whether the edge forwards, knows its router and
	// can do all this on the bridge; an error only when it could not be checked.
	Check(ctx context.Context, bridge string) ([]drover.Check, error)
	// Close ends the driver. What it made stays, but neighbour discovery of
	// ProxyRest for IPv6 rests until the next driver is opened.
	Close() error
}

// AddressRole is why something stands.
type AddressRole string

// The roles, one for each method.
const (
	RoleDeliver    AddressRole = "deliver"
	RoleElsewhere  AddressRole = "elsewhere"
	RoleRest       AddressRole = "rest"
	RoleForwardOld AddressRole = "forward-old"
	RoleAcceptOld  AddressRole = "accept-old"
	RoleWatch      AddressRole = "watch"
	RoleMeter      AddressRole = "meter"
)

// AddressRoles are all of them.
var AddressRoles = []AddressRole{RoleDeliver, RoleElsewhere, RoleRest, RoleForwardOld, RoleAcceptOld, RoleWatch, RoleMeter}

// Delivery is where addresses are.
type Delivery struct {
	Addresses []netip.Addr
	Bridge    string
	// MAC is the guest's, to be announced; empty announces nothing.
	MAC string
	// Neighbors are addresses of others that the guest may remember. They are told
	// before DeliverHere returns; those of a small IPv4 subnet, where that is quickly
	// done, follow, whether they are named or not.
	Neighbors []netip.Addr
}

// MeshPath is the way to another edge.
type MeshPath struct {
	// Interface is the mesh's here, Remote the other edge's address in it.
	Interface string
	Remote    netip.Addr
}

// OldForward is old addresses at the site that their VM has left.
type OldForward struct {
	Addresses []netip.Addr
	// Bridge is where they were: its neighbours reach them through this edge.
	Bridge string
	// To is the edge where the VM is now.
	To MeshPath
	// Limit is how long sessions may go on, at most MaxOldLimit.
	Limit time.Duration
	// All lets new sessions go as well, without a limit: for a VM that nothing
	// else reaches.
	All bool
}

// OldAccept is old addresses at the site where their VM is now.
type OldAccept struct {
	Addresses []netip.Addr
	// Bridge is where the VM is.
	Bridge string
	// From is the edge of the addresses' own site.
	From MeshPath
	// Subnets are what the VM takes for its own link, because of its old
	// addresses: it reaches them through this edge.
	Subnets []netip.Prefix
	// Gateways are those that it uses, old and new ones: it is told at once that
	// they are this edge's, or it may send to a station of another site that had
	// one of them before.
	Gateways []netip.Addr
	// All lets the VM begin new sessions from its old addresses.
	All bool
}

// Limits of addresses.
const (
	// MaxOldLimit bounds how long an old address may be kept: who needs it for
	// longer should not renumber.
	MaxOldLimit = 30 * 24 * time.Hour
	// maxPlaced bounds the addresses of one call: a VM has a few.
	maxPlaced = 256
)

// PlacedAddress is something that stands for an owner.
type PlacedAddress struct {
	Owner  Owner
	Role   AddressRole
	Prefix netip.Prefix
	// Bridge is empty for RoleWatch and RoleMeter.
	Bridge string
	// Remote is the other edge's mesh address, for old addresses; All as they
	// were asked for.
	Remote netip.Addr
	All    bool
	// Missing says that a part of it is not there, for instance because the
	// bridge was removed; repeating the call mends it.
	Missing bool
}

// AddressSession is a session of an address, as the edge tracks it.
type AddressSession struct {
	// Address is the one asked for, Peer the other end; a port is zero where the
	// protocol has none.
	Address, Peer netip.AddrPort
	// Outgoing says that the address began it.
	Outgoing bool
	// Protocol is the name or else the number of the protocol above IP.
	Protocol string
	// State is the tracker's own word: established, fin-wait, replied, ….
	State string
	// Live says that it would be missed: it was answered and has not ended.
	Live bool
	// Age is since its first packet; zero when unknown. Idle is since its last
	// one, as far as State tells; Expires is when it is forgotten if no packet comes.
	Age, Idle, Expires time.Duration
	// Received and Sent are bytes to and from Address since it was watched.
	Received, Sent drover.Bytes
}

// AddressStation is who has an address on a bridge.
type AddressStation struct {
	Address netip.Addr
	MAC     string // in lower case, with colons
}

// AddressTraffic is the bytes of one address through this edge, by where they
// came from and where they went: the edge's router, a bridge of this site, or
// a tunnel to another site.
type AddressTraffic struct {
	Address netip.Addr
	// To is what was sent to the address, From what it sent.
	To, From AddressPaths
	// For are those who have it metered, sorted.
	For []MeteredFor
}

// MeteredFor is an owner that has an address metered.
type MeteredFor struct {
	Owner Owner
	// Role is how the same owner has placed the address here: RoleDeliver,
	// RoleElsewhere, RoleForwardOld or RoleAcceptOld; empty where it has not.
	Role AddressRole
}

// MeterRoles completes a meter's owners by what they have placed: placed are
// all entries of one address.
func MeterRoles(placed []PlacedAddress) []MeteredFor {
	var all []MeteredFor
	for _, p := range placed {
		if p.Role != RoleMeter || slices.ContainsFunc(all, func(m MeteredFor) bool { return m.Owner == p.Owner }) {
			continue
		}
		m := MeteredFor{Owner: p.Owner}
		for _, o := range placed {
			if o.Owner == p.Owner && slices.Contains([]AddressRole{RoleDeliver, RoleElsewhere, RoleForwardOld, RoleAcceptOld}, o.Role) {
				m.Role = o.Role
			}
		}
		all = append(all, m)
	}
	slices.SortFunc(all, func(x, y MeteredFor) int { return cmp.Compare(x.Owner, y.Owner) })
	return all
}

// AddressPaths is bytes by their way through an edge.
type AddressPaths struct {
	RouterBridge, BridgeRouter drover.Bytes
	RouterTunnel, TunnelRouter drover.Bytes
	BridgeTunnel, TunnelBridge drover.Bytes
	// RouterRouter is what the router sent here and got back.
	RouterRouter drover.Bytes
	// Inside is what went from one bridge to another, or from one tunnel.
	Inside drover.Bytes
}

// Hairpin is what crossed this edge twice over the WAN in vain, to the address
// and from it: it came from the router and left into a tunnel, or the other way
// round, or back to the router. Where the address is at another site but on this
// site's extended bridge, that bridge is the way into the tunnel: extended says so.
func (t AddressTraffic) Hairpin(extended bool) (to, from drover.Bytes) {
	to = t.To.RouterTunnel + t.To.TunnelRouter + t.To.RouterRouter
	from = t.From.RouterTunnel + t.From.TunnelRouter + t.From.RouterRouter
	if extended {
		to += t.To.RouterBridge
		from += t.From.BridgeRouter
	}
	return to, from
}

// Neighbors is what went between the address and others on bridges of this
// site, through this edge as a router.
func (t AddressTraffic) Neighbors() drover.Bytes {
	return t.To.BridgeRouter + t.From.RouterBridge + t.To.BridgeTunnel + t.From.TunnelBridge
}

// Validate reports what is wrong with a delivery.
func (d Delivery) Validate() error {
	if d.MAC != "" {
		mac, err := net.ParseMAC(d.MAC)
		if err != nil || len(mac) != 6 || mac[0]&1 != 0 {
			return fmt.Errorf("MAC %q: want a station's, such as 52:54:00:12:34:56", d.MAC)
		}
	}
	if len(d.Neighbors) > 0 {
		if err := CheckHostAddresses(d.Neighbors); err != nil {
			return fmt.Errorf("neighbors: %w", err)
		}
	}
	return CheckPlaced(d.Addresses, d.Bridge)
}

// Validate reports what is wrong with it.
func (f OldForward) Validate() error {
	if f.Limit <= 0 || f.Limit > MaxOldLimit {
		return fmt.Errorf("limit %v: want more than zero, up to %v", f.Limit, MaxOldLimit)
	}
	if err := f.To.validate(); err != nil {
		return err
	}
	return CheckPlaced(f.Addresses, f.Bridge)
}

// Validate reports what is wrong with it.
func (a OldAccept) Validate() error {
	if err := a.From.validate(); err != nil {
		return err
	}
	if len(a.Subnets) > 0 {
		if err := CheckSubnets(a.Subnets); err != nil {
			return err
		}
	}
	if len(a.Gateways) > 0 {
		if err := CheckHostAddresses(a.Gateways); err != nil {
			return fmt.Errorf("gateways: %w", err)
		}
	}
	return CheckPlaced(a.Addresses, a.Bridge)
}

func (p MeshPath) validate() error {
	if err := checkInterface("mesh interface", p.Interface); err != nil {
		return err
	}
	if !isHost(p.Remote) {
		return fmt.Errorf("mesh address %v of the other edge: want one of a host", p.Remote)
	}
	return nil
}

// CheckPlaced reports what is wrong with addresses on a bridge.
func CheckPlaced(addresses []netip.Addr, bridge string) error {
	if err := checkInterface("bridge", bridge); err != nil {
		return err
	}
	return CheckHostAddresses(addresses)
}

// CheckHostAddresses reports addresses that no VM is known by elsewhere.
func CheckHostAddresses(addresses []netip.Addr) error {
	if len(addresses) == 0 || len(addresses) > maxPlaced {
		return fmt.Errorf("%d addresses: want 1 to %d", len(addresses), maxPlaced)
	}
	for _, a := range addresses {
		if !isHost(a) {
			return fmt.Errorf("address %v: want a host's, valid beyond its link", a)
		}
	}
	return nil
}

func isHost(a netip.Addr) bool {
	return a.IsValid() && !a.Is4In6() && a.Zone() == "" && !a.IsUnspecified() && !a.IsLoopback() && !a.IsMulticast() &&
		!a.IsLinkLocalUnicast() && a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// CheckSubnets reports prefixes that are no subnet of hosts.
func CheckSubnets(subnets []netip.Prefix) error {
	if len(subnets) == 0 || len(subnets) > maxPlaced {
		return fmt.Errorf("%d subnets: want 1 to %d", len(subnets), maxPlaced)
	}
	for _, p := range subnets {
		if !p.IsValid() || p != p.Masked() || p.Bits() < 8 || p.Bits() > p.Addr().BitLen()-2 || !isHost(p.Addr()) {
			return fmt.Errorf("subnet %v: want a network of hosts, such as 192.0.2.0/24", p)
		}
	}
	return nil
}

// interfaceNames are those that Linux takes and that are written without quotes.
var interfaceNames = regexp.MustCompile(`^[A-Za-z0-9_.:@-]{1,15}$`)

func checkInterface(field, name string) error {
	if !interfaceNames.MatchString(name) || slices.Contains([]string{".", "..", "all", "default"}, name) {
		return fmt.Errorf("%s %q: want the name of an interface", field, name)
	}
	return nil
}
