package driver

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/drover-vm/drover"
)

// Routes announces host routes at a site's edge to the site's own routers, so
// that the addresses of a VM are reached where the VM is.
//
// Only host routes are ever announced, /32 or /128; any other prefix, and
// announcing one of a family for which the edge has no next hop, is
// drover.Invalid. The next hop is the edge's own address towards its routers.
// Nothing that a router announces is used or passed on, and the kernel's routes
// are never touched.
//
// What is announced is recorded durably with its owner by the implementation
// before a neighbour hears of it. This is the one contract whose marks are not
// in the technology itself: a routing protocol has no place for an owner, and a
// speaker that ends forgets what it said, while its routers go on believing it
// for a while. So the record is read back at the start and announced again, a
// restart of the agent withdraws nothing, and what List returns is what routers
// will believe, with its owners. All of it carries a mark of the protocol (a
// BGP community) by which a router's operator tells it from the rest.
//
// Methods may be called concurrently and repeated. A call that is canceled
// after it was recorded is carried out all the same. The caller closes.
type Routes interface {
	// Announce announces the prefixes for the owner, all or none, and returns
	// when they have been sent to every neighbour whose session is established
	// and that takes the family: from then on the cut-over is a matter of the
	// routers. Without such a neighbour, or when one does not take them in time,
	// it is drover.Unavailable: the routes are recorded and are announced as
	// soon as a neighbour is there; repeating the call tells whether they were.
	// One that the owner has already is fine; one of another owner is
	// drover.Exists, too many are drover.Exhausted, and then nothing is changed.
	Announce(ctx context.Context, owner Owner, prefixes ...netip.Prefix) error
	// Withdraw withdraws the owner's prefixes and returns when every
	// established neighbour was told. Without one it is drover.Unavailable: they
	// are forgotten here and no neighbour hears of them again; the ones it heard
	// of end with the restart time of the lost session at the latest. What the
	// owner does not have is fine, and a route of another owner stays.
	Withdraw(ctx context.Context, owner Owner, prefixes ...netip.Prefix) error
	// List returns every route on record, ordered by prefix.
	List(ctx context.Context) ([]Route, error)
	// Neighbors returns every configured neighbour with the state of its
	// session, in the order of the configuration.
	Neighbors(ctx context.Context) ([]RouteNeighbor, error)
	// Close ends the sessions without withdrawing anything: routers that know
	// graceful restart keep the routes for the restart time. After it every
	// method is drover.Unavailable.
	Close() error
}

// Route is a host route that an edge announces.
type Route struct {
	Owner   Owner
	Prefix  netip.Prefix
	NextHop netip.Addr
	// Sent is the number of neighbours with an established session that this
	// route has been sent to.
	Sent int
}

// RouteNeighbor is a router that an edge announces to.
type RouteNeighbor struct {
	Address netip.Addr
	AS      uint32
	State   SessionState
	// Since is when the session entered its state.
	Since time.Time
	// Advertised is the number of routes sent to the neighbour in this session.
	Advertised int
	// Fault says why the session is not established, as far as is known.
	Fault string
}

// SessionState is the state of a BGP session, by its name in RFC 4271.
type SessionState string

// States of a session. Routes are exchanged in the last one only.
const (
	SessionIdle        SessionState = "idle"
	SessionConnect     SessionState = "connect"
	SessionActive      SessionState = "active"
	SessionOpenSent    SessionState = "open-sent"
	SessionOpenConfirm SessionState = "open-confirm"
	SessionEstablished SessionState = "established"
)

// CheckHostRoutes reports what is wrong with prefixes to announce or to
// withdraw; the kind is drover.Invalid.
func CheckHostRoutes(prefixes ...netip.Prefix) error {
	if len(prefixes) == 0 {
		return drover.Errorf(drover.Invalid, "host route", "no prefix given")
	}
	for _, p := range prefixes {
		if err := checkHostRoute(p); err != nil {
			return drover.E(drover.Invalid, "host route", err)
		}
	}
	return nil
}

func checkHostRoute(p netip.Prefix) error {
	a := p.Addr()
	switch {
	case !p.IsValid():
		return fmt.Errorf("%v: want an address and /32 or /128", p)
	case !p.IsSingleIP():
		return fmt.Errorf("%v: only host routes are announced, want %v/%d", p, a, a.BitLen())
	case a.Is4In6():
		return fmt.Errorf("%v: want the IPv4 address itself, %v/32", p, a.Unmap())
	case a.IsUnspecified(), a.IsLoopback(), a.IsMulticast(), a.IsLinkLocalUnicast():
		return fmt.Errorf("%v: not an address that routers forward to", p)
	}
	return nil
}
