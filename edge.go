package drover

import (
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// EdgeVerb is what a site's edge is asked to do for a VM.
type EdgeVerb string

// The verbs, each with the fields of EdgeOp that it reads besides Do and Owner.
const (
	// ExtendSegment joins Segment here with the edges of Sites, over the mesh.
	// LocalEgress keeps the gateway's traffic at its site.
	ExtendSegment EdgeVerb = "extend-segment"
	// RetractSegment takes the owner's part in Segment's extension back; with
	// the last owner the extension goes.
	RetractSegment EdgeVerb = "retract-segment"
	// SetStation says that MAC with Addresses is in Segment at Site, or here
	// where Site is empty; Next is the site to which a move takes it from here.
	SetStation EdgeVerb = "set-station"
	// DropStation forgets MAC in Segment.
	DropStation EdgeVerb = "drop-station"
	// DeliverHere routes Addresses into Segment's bridge here; neighbours are
	// told of MAC, and MAC that Neighbors are this edge's, where they are.
	DeliverHere EdgeVerb = "deliver-here"
	// Elsewhere makes neighbours in Segment reach Addresses through this edge.
	Elsewhere EdgeVerb = "elsewhere"
	// ProxyRest does so for all other addresses of Segment, away from its home.
	ProxyRest EdgeVerb = "proxy-rest"
	// AnnounceRoutes and WithdrawRoutes announce Addresses as host routes.
	AnnounceRoutes EdgeVerb = "announce-routes"
	WithdrawRoutes EdgeVerb = "withdraw-routes"
	// WatchSessions has this edge keep track of the sessions of Addresses.
	WatchSessions EdgeVerb = "watch-sessions"
	// MeterTraffic counts the bytes to and from Addresses.
	MeterTraffic EdgeVerb = "meter-traffic"
	// ForwardOld sends the open sessions of Addresses, which were in Segment
	// here, through the mesh to Site, for Limit at most; with Force new ones as
	// well, and without a limit.
	ForwardOld EdgeVerb = "forward-old"
	// AcceptOld delivers what ForwardOld of Site sends into Segment here.
	// Subnets are those of the old addresses, Gateways by which the VM reaches
	// others from those and from its new ones: all are this edge's from now on.
	// With Force the VM may begin new sessions from old addresses.
	AcceptOld EdgeVerb = "accept-old"
	// ForgetAddresses undoes all of the owner that the verbs from DeliverHere
	// to AcceptOld did, but for the routes announced.
	ForgetAddresses EdgeVerb = "forget-addresses"
	// LowerName gives Name a TTL of Limit at most, SetName gives it Addresses,
	// SettleName ends the change, RestoreName takes it back.
	LowerName   EdgeVerb = "lower-name"
	SetName     EdgeVerb = "set-name"
	SettleName  EdgeVerb = "settle-name"
	RestoreName EdgeVerb = "restore-name"
	// ReserveLease has MAC get an address in Segment by DHCP: one of Addresses,
	// or any; DUID and IAID are by what DHCPv6 knows its guest, if that is known.
	// ReleaseLease ends that.
	ReserveLease EdgeVerb = "reserve-lease"
	ReleaseLease EdgeVerb = "release-lease"
	// AddServer puts a server named Name, at Target ("ip:port"), into Backend
	// with Weight, not yet taking sessions; ReadyServer lets it take them,
	// WeighServer changes its share, DrainServer lets it take no new ones,
	// RemoveServer takes it out again, or, where the load balancer has it by itself,
	// gives it back what it had. Force ends its sessions; without, one that
	// has some is not removed.
	AddServer    EdgeVerb = "add-server"
	ReadyServer  EdgeVerb = "ready-server"
	WeighServer  EdgeVerb = "weigh-server"
	DrainServer  EdgeVerb = "drain-server"
	RemoveServer EdgeVerb = "remove-server"
	// ForgetOwner undoes all that stands here for the owner, who is no more.
	ForgetOwner EdgeVerb = "forget-owner"
)

// EdgeOp is one thing that a site's edge does for a VM. All are repeatable,
// and marked with their owner.
type EdgeOp struct {
	Do EdgeVerb `json:"do"`
	// Owner is "vm/UUID" for what stands as long as the VM needs it,
	// "move/NAME" for what ends with a move.
	Owner       string         `json:"owner"`
	Segment     string         `json:"segment,omitempty"`
	Sites       []string       `json:"sites,omitempty"`
	Site        string         `json:"site,omitempty"`
	Next        string         `json:"next,omitempty"`
	MAC         string         `json:"mac,omitempty"`
	Addresses   []netip.Addr   `json:"addresses,omitempty"`
	Subnets     []netip.Prefix `json:"subnets,omitempty"`
	Gateways    []netip.Addr   `json:"gateways,omitempty"`
	Neighbors   []netip.Addr   `json:"neighbors,omitempty"`
	Name        string         `json:"name,omitempty"`
	Backend     string         `json:"backend,omitempty"`
	Target      string         `json:"target,omitempty"`
	Weight      int            `json:"weight,omitempty"`
	LocalEgress bool           `json:"local_egress,omitempty"`
	Limit       time.Duration  `json:"limit_ns,omitempty"`
	Force       bool           `json:"force,omitempty"`
	DUID        []byte         `json:"duid,omitempty"`
	IAID        uint32         `json:"iaid,omitempty"`
}

// edgeNeeds says what each verb cannot do without.
var edgeNeeds = map[EdgeVerb][]string{
	ExtendSegment: {"segment", "sites"}, RetractSegment: {"segment"},
	SetStation: {"segment", "mac"}, DropStation: {"segment", "mac"},
	DeliverHere: {"segment", "addresses"}, Elsewhere: {"segment", "addresses"}, ProxyRest: {"segment"},
	AnnounceRoutes: {"addresses"}, WithdrawRoutes: {"addresses"},
	WatchSessions: {"addresses"}, MeterTraffic: {"addresses"},
	ForwardOld: {"segment", "addresses", "site", "limit"}, AcceptOld: {"segment", "addresses", "site"},
	ForgetAddresses: {},
	LowerName:       {"name", "limit"}, SetName: {"name", "addresses"}, SettleName: {"name"}, RestoreName: {"name"},
	ReserveLease: {"segment", "mac"}, ReleaseLease: {"segment", "mac"},
	AddServer: {"backend", "name", "target"}, ReadyServer: {"backend", "name"}, WeighServer: {"backend", "name"},
	DrainServer: {"backend", "name"}, RemoveServer: {"backend", "name"},
	ForgetOwner: {},
}

// maxEdgeList bounds each list of an operation: a VM has a few addresses, a
// segment a few dozen sites.
const maxEdgeList = 256

// Validate reports what is wrong with an operation as far as it alone can tell;
// the kind is Invalid.
func (o EdgeOp) Validate() error {
	op := "edge operation " + string(o.Do)
	needs, known := edgeNeeds[o.Do]
	if !known {
		return Errorf(Invalid, "edge operation", "%q is none", string(o.Do))
	}
	has := map[string]bool{
		"segment": o.Segment != "", "sites": len(o.Sites) > 0, "site": o.Site != "", "mac": o.MAC != "",
		"addresses": len(o.Addresses) > 0, "name": o.Name != "", "backend": o.Backend != "", "target": o.Target != "",
		"limit": o.Limit > 0,
	}
	for _, n := range needs {
		if !has[n] {
			return Errorf(Invalid, op, "%s is missing", n)
		}
	}
	if o.Owner == "" {
		return Errorf(Invalid, op, "owner is missing")
	}
	if len(o.Addresses) > maxEdgeList || len(o.Sites) > maxEdgeList || len(o.Subnets) > maxEdgeList || len(o.Gateways) > maxEdgeList || len(o.Neighbors) > maxEdgeList {
		return Errorf(Invalid, op, "more than %d addresses, sites, subnets, gateways or neighbors", maxEdgeList)
	}
	for _, a := range slices.Concat(o.Addresses, o.Gateways, o.Neighbors) {
		if !a.IsValid() || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() {
			return E(Invalid, op, fmt.Errorf("address %v: want one of a host", a))
		}
	}
	for _, n := range slices.Concat(o.Sites, []string{o.Segment, o.Site, o.Next}) {
		if n == "" {
			continue
		}
		if err := CheckName("site or segment", n); err != nil {
			return E(Invalid, op, err)
		}
	}
	return nil
}

// Segment is a layer 2 network for VMs, as the edges of its sites know it.
type Segment struct {
	Name string `json:"name"`
	// Home is the site to which routers send its subnets by default.
	Home string `json:"home"`
	// Sites are where it exists.
	Sites    []string       `json:"sites"`
	Subnets  []netip.Prefix `json:"subnets"`
	Gateways []netip.Addr   `json:"gateways,omitempty"`
	// GatewayMAC is the gateway's, the same at every site.
	GatewayMAC string `json:"gateway_mac,omitempty"`
	// Joined segments are one layer 2 network at all their sites without
	// Drover's doing.
	Joined bool `json:"joined"`
	// Bridge is what NICs are attached to, the same on all hosts.
	Bridge string `json:"bridge"`
	VNI    uint32 `json:"vni,omitempty"`
}

// Contains reports whether the address is in one of the segment's subnets.
func (s Segment) Contains(a netip.Addr) bool {
	return slices.ContainsFunc(s.Subnets, func(p netip.Prefix) bool { return p.Contains(a) })
}

// At reports whether the segment exists at the site.
func (s Segment) At(site string) bool { return slices.Contains(s.Sites, site) }
