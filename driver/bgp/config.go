package bgp

import (
	"fmt"
	"math"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/drover-vm/drover"
)

// Config is an edge's end of BGP.
type Config struct {
	// Dir is the folder of the record of routes; it is made when missing. Only
	// one Speaker at a time has it.
	Dir string
	// AS is the edge's autonomous system.
	AS uint32
	// RouterID names the edge in BGP, an IPv4 address; NextHop4 when left out.
	RouterID netip.Addr
	// NextHop4 and NextHop6 are the edge's addresses towards its routers.
	// Sessions are opened from them, and routes of a family without one are
	// refused.
	NextHop4, NextHop6 netip.Addr
	// Neighbors are the site's routers, directly connected.
	Neighbors []Neighbor
	// Community is put on every route; AS:215 when left out.
	Community Community
	// Hold is after how long without a word from it a router is given up, and
	// it the edge: whole seconds from 3 on, 3 when left out. Keepalive is how
	// often the edge sends one: a third of Hold when left out.
	Hold, Keepalive time.Duration
	// Restart is how long routers are asked to keep the routes while the agent
	// restarts; 30 s when left out. It is also how long the traffic of an edge
	// whose agent died for good may still be sent there.
	Restart time.Duration
	// BFD finds a dead path in milliseconds where the routers speak it too. Its
	// price: a router that gives a session up over BFD does not wait for a
	// restart of the agent, and FRR resets a new session once while BFD comes up.
	BFD BFD
	// Command runs the child; this program with Subcommand when left out.
	Command []string
}

// Neighbor is a router.
type Neighbor struct {
	Address netip.Addr `json:"address"`
	AS      uint32     `json:"as"`
	// Port is the router's; 179 when left out.
	Port uint16 `json:"port,omitempty"`
	// Password is that of TCP MD5 signatures (RFC 2385), none when empty.
	Password string `json:"password,omitempty"`
}

// BFD is Bidirectional Forwarding Detection (RFC 5880) with all neighbours;
// the zero value is none.
type BFD struct {
	// Interval is the one between two packets, each way.
	Interval time.Duration `json:"interval"`
	// Multiplier is the number of missing packets that make a path dead; 3 when
	// left out.
	Multiplier uint8 `json:"multiplier"`
}

const (
	// routeMark is Drover's number among routing protocols, as in the kernel.
	routeMark = 215

	defaultHold    = 3 * time.Second // the least that RFC 4271 allows
	defaultRestart = 30 * time.Second
	// maxRestart is what fits the capability's 12 bits.
	maxRestart = 4095 * time.Second
	// minBFD is what FRR allows; less would take a process of its own class.
	minBFD = 10 * time.Millisecond
	maxBFD = time.Minute
	// maxPassword is the kernel's TCP_MD5SIG_MAXKEYLEN.
	maxPassword = 80
	// maxNeighbors bounds what a call waits for; a site has two or four.
	maxNeighbors = 16
)

// withDefaults fills in what was left out.
func (c Config) withDefaults() Config {
	if c.RouterID == (netip.Addr{}) {
		c.RouterID = c.NextHop4
	}
	if c.Community == (Community{}) {
		c.Community = communityOf(c.AS)
	}
	if c.Hold == 0 {
		c.Hold = defaultHold
	}
	if c.Keepalive == 0 {
		c.Keepalive = max(c.Hold/3, time.Second).Truncate(time.Second)
	}
	if c.Restart == 0 {
		c.Restart = defaultRestart
	}
	if c.BFD.Interval != 0 && c.BFD.Multiplier == 0 {
		c.BFD.Multiplier = 3
	}
	return c
}

// Validate reports what is wrong with the configuration; the kind is
// drover.Invalid.
func (c Config) Validate() error {
	return drover.E(drover.Invalid, "bgp", c.withDefaults().check())
}

func (c Config) check() error {
	switch {
	case !filepath.IsAbs(c.Dir):
		return fmt.Errorf("dir %q: want the absolute path of a folder for the record of routes", c.Dir)
	case c.AS == 0:
		return fmt.Errorf("as 0: want the number of the edge's autonomous system")
	case !c.NextHop4.IsValid() && !c.NextHop6.IsValid():
		return fmt.Errorf("next hop: want the edge's own address towards its routers, IPv4, IPv6 or both")
	case c.NextHop4.IsValid() && !usable(c.NextHop4, true):
		return fmt.Errorf("next hop %v: want an IPv4 address of the edge", c.NextHop4)
	case c.NextHop6.IsValid() && !usable(c.NextHop6, false):
		return fmt.Errorf("next hop %v: want a global or unique local IPv6 address of the edge", c.NextHop6)
	case !c.RouterID.Is4() || c.RouterID.IsUnspecified():
		return fmt.Errorf("router id %v: want an IPv4 address that no other speaker has", c.RouterID)
	case c.Hold < defaultHold || c.Hold > math.MaxUint16*time.Second || c.Hold%time.Second != 0:
		return fmt.Errorf("hold %v: want whole seconds from 3s to %ds", c.Hold, math.MaxUint16)
	case c.Keepalive < time.Second || c.Keepalive > c.Hold/3 || c.Keepalive%time.Second != 0:
		return fmt.Errorf("keepalive %v: want whole seconds from 1s to a third of hold %v", c.Keepalive, c.Hold)
	case c.Restart < time.Second || c.Restart > maxRestart || c.Restart%time.Second != 0:
		return fmt.Errorf("restart %v: want whole seconds from 1s to %v", c.Restart, maxRestart)
	case c.BFD.Interval != 0 && (c.BFD.Interval < minBFD || c.BFD.Interval > maxBFD):
		return fmt.Errorf("bfd interval %v: want %v to %v", c.BFD.Interval, minBFD, maxBFD)
	case len(c.Neighbors) == 0 || len(c.Neighbors) > maxNeighbors:
		return fmt.Errorf("%d neighbours: want 1 to %d", len(c.Neighbors), maxNeighbors)
	}
	return c.checkNeighbors()
}

func (c Config) checkNeighbors() error {
	seen := map[netip.Addr]bool{}
	for _, n := range c.Neighbors {
		switch {
		case !usable(n.Address, true) && !usable(n.Address, false):
			return fmt.Errorf("neighbour %v: want the IPv4 or IPv6 address of a router, not a link-local one", n.Address)
		case seen[n.Address]:
			return fmt.Errorf("neighbour %v is there twice", n.Address)
		case n.Address == c.NextHop4 || n.Address == c.NextHop6:
			return fmt.Errorf("neighbour %v is the edge itself", n.Address)
		case n.AS == 0:
			return fmt.Errorf("neighbour %v: as 0: want the number of the router's autonomous system", n.Address)
		case len(n.Password) > maxPassword:
			return fmt.Errorf("neighbour %v: a password of %d bytes: want at most %d", n.Address, len(n.Password), maxPassword)
		case n.Address.Is4() && !c.NextHop4.IsValid(), n.Address.Is6() && !c.NextHop6.IsValid():
			return fmt.Errorf("neighbour %v: the edge has no next hop of its family", n.Address)
		}
		seen[n.Address] = true
	}
	return nil
}

func usable(a netip.Addr, v4 bool) bool {
	return a.IsValid() && a.Is4() == v4 && !a.Is4In6() && a.Zone() == "" && a.IsGlobalUnicast()
}

// nextHop is the one for a prefix; the zero Addr when the edge has none.
func (c Config) nextHop(p netip.Prefix) netip.Addr {
	if p.Addr().Is4() {
		return c.NextHop4
	}
	return c.NextHop6
}

// Community is a BGP community: one of RFC 1997, of an autonomous system with
// 16 bits and a number, or a large one of RFC 8092 with two numbers.
type Community struct {
	AS     uint32
	First  uint32
	Second uint32
	Large  bool
}

// communityOf is the one that marks what an autonomous system's edges announce.
func communityOf(as uint32) Community {
	return Community{AS: as, First: routeMark, Large: as > math.MaxUint16}
}

// ParseCommunity reads AS:NUMBER or, large, AS:NUMBER:NUMBER.
func ParseCommunity(s string) (Community, error) {
	parts := strings.Split(s, ":")
	bits := 32
	if len(parts) == 2 {
		bits = 16
	}
	var n [3]uint32
	ok := len(parts) == 2 || len(parts) == 3
	for i, p := range parts[:min(len(parts), len(n))] {
		v, err := strconv.ParseUint(p, 10, bits)
		ok = ok && err == nil
		n[i] = uint32(v)
	}
	if !ok || n[0] == 0 {
		return Community{}, drover.Errorf(drover.Invalid, "community", "%q: want AS:NUMBER of 16 bits each, or AS:NUMBER:NUMBER of 32", s)
	}
	return Community{AS: n[0], First: n[1], Second: n[2], Large: len(parts) == 3}, nil
}

// String is the form that ParseCommunity reads.
func (c Community) String() string {
	if c.Large {
		return fmt.Sprintf("%d:%d:%d", c.AS, c.First, c.Second)
	}
	return fmt.Sprintf("%d:%d", c.AS, c.First)
}

// MarshalText is String.
func (c Community) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText is ParseCommunity.
func (c *Community) UnmarshalText(b []byte) (err error) {
	*c, err = ParseCommunity(string(b))
	return err
}
