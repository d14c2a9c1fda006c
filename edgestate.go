package drover

import (
	"net/netip"
	"time"
)

// EdgeState is a site's edge as its agent observes it.
type EdgeState struct {
	Name string `json:"name"`
	Site string `json:"site"`
	// Up is false when its agent did not answer; nothing but Faults is known then.
	Up bool `json:"up"`
	// Mesh is nil where the edge has no part in one.
	Mesh      *MeshState        `json:"mesh,omitempty"`
	Peers     []MeshPeer        `json:"peers"`
	Segments  []Segment         `json:"segments"`
	Extended  []ExtendedSegment `json:"extended"`
	Neighbors []EdgeNeighbor    `json:"neighbors"`
	Servers   []EdgeServer      `json:"servers"`
	Traffic   []EdgeTraffic     `json:"traffic"`
	// Faults are what is wrong, one line each.
	Faults []string `json:"faults"`
}

// MeshState is an edge's own end of the encrypted mesh between the sites.
type MeshState struct {
	Interface string         `json:"interface"`
	Addresses []netip.Prefix `json:"addresses"`
	// Port is the UDP port that peers send to, Key the public key; NextKey,
	// unless empty, is the one to come.
	Port    uint16 `json:"port"`
	Key     string `json:"key"`
	NextKey string `json:"next_key,omitempty"`
	MTU     int    `json:"mtu"`
	// Kernel is whether the kernel's WireGuard is used.
	Kernel bool `json:"kernel"`
}

// MeshPeer is another edge in the mesh, named by its site.
type MeshPeer struct {
	Site    string `json:"site"`
	Key     string `json:"key"`
	NextKey string `json:"next_key,omitempty"`
	// Endpoint is where it is reached; invalid when it has to call first.
	Endpoint  netip.AddrPort `json:"endpoint,omitzero"`
	Addresses []netip.Prefix `json:"addresses"`
	// Handshake is when the last one was completed; zero when none was.
	Handshake     time.Time `json:"handshake,omitzero"`
	ReceivedBytes Bytes     `json:"received_bytes"`
	SentBytes     Bytes     `json:"sent_bytes"`
	// RTTMillis is the round trip through the mesh; zero when it is not known.
	RTTMillis float64 `json:"rtt_ms,omitempty"`
}

// ExtendedSegment is a segment that an edge has joined with those of Sites.
type ExtendedSegment struct {
	Segment     string   `json:"segment"`
	Owners      []string `json:"owners"`
	Sites       []string `json:"sites"`
	LocalEgress bool     `json:"local_egress"`
	// What has crossed since it was extended.
	ReceivedBytes Bytes `json:"received_bytes"`
	SentBytes     Bytes `json:"sent_bytes"`
	// Fault says why nothing crosses; empty is well.
	Fault string `json:"fault,omitempty"`
}

// EdgeNeighbor is a router that the edge announces to.
type EdgeNeighbor struct {
	Address netip.Addr `json:"address"`
	AS      uint32     `json:"as"`
	// State is the session's, by its name in RFC 4271, since Since.
	State string    `json:"state"`
	Since time.Time `json:"since,omitzero"`
	// Advertised is the number of routes sent in this session.
	Advertised int    `json:"advertised"`
	Fault      string `json:"fault,omitempty"`
}

// Kinds of servers that an edge works with.
const (
	EdgeDNS      = "dns"
	EdgeDHCP     = "dhcp"
	EdgeBalancer = "balancer"
)

// EdgeServer is a name server, a DHCP service or a load balancer.
type EdgeServer struct {
	Kind string `json:"kind"`
	// Name is the zone, the segment or the backend.
	Name string `json:"name"`
	// Fault says why it cannot be used; empty is well.
	Fault string `json:"fault,omitempty"`
}

// EdgeTraffic is the bytes of one metered address through an edge: To was
// sent to the address, From it sent.
type EdgeTraffic struct {
	Address netip.Addr `json:"address"`
	To      EdgePaths  `json:"to"`
	From    EdgePaths  `json:"from"`
}

// EdgePaths is bytes by where they came from and where they went: the edge's
// router, a bridge of its site, or a tunnel to another site.
type EdgePaths struct {
	RouterBridge Bytes `json:"router_bridge"`
	BridgeRouter Bytes `json:"bridge_router"`
	RouterTunnel Bytes `json:"router_tunnel"`
	TunnelRouter Bytes `json:"tunnel_router"`
	BridgeTunnel Bytes `json:"bridge_tunnel"`
	TunnelBridge Bytes `json:"tunnel_bridge"`
	// RouterRouter is what the router sent here and got back.
	RouterRouter Bytes `json:"router_router"`
	// Inside is what went from one bridge to another, or from one tunnel.
	Inside Bytes `json:"inside"`
}

// Finding is something that stands without being needed.
type Finding struct {
	// Where is the host or the edge, Kind what it is of.
	Where string `json:"where"`
	Kind  string `json:"kind"`
	// Owner is "vm/UUID" or "move/NAME"; empty for what has none.
	Owner string `json:"owner,omitempty"`
	What  string `json:"what"`
	Fix   string `json:"fix,omitempty"`
	// Removed says that it has been, by this diagnosis.
	Removed bool `json:"removed,omitempty"`
}

// Diagnosis is what was found at all hosts and edges.
type Diagnosis struct {
	// OK is true when there is nothing to find (any more).
	OK       bool      `json:"ok"`
	Findings []Finding `json:"findings"`
}
