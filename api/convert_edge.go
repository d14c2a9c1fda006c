package api

import (
	"net/netip"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api/droverv1"
)

// Addresses cross as text. What an agent or a server says of the world and
// cannot be read is left out; what somebody is to act on gives an error.

func textOf[T interface{ String() string }](in []T) []string {
	out := make([]string, 0, len(in))
	for _, a := range in {
		out = append(out, a.String())
	}
	return out
}

// readable parses those that can be.
func readable[T any](in []string, parse func(string) (T, error)) []T {
	out := make([]T, 0, len(in))
	for _, s := range in {
		if v, err := parse(s); err == nil {
			out = append(out, v)
		}
	}
	return out
}

// ParseAddresses reads addresses; the kind of an error is drover.Invalid.
func ParseAddresses(field string, in []string) ([]netip.Addr, error) {
	return parseAll(field, in, netip.ParseAddr)
}

// ParsePrefixes reads prefixes; the kind of an error is drover.Invalid.
func ParsePrefixes(field string, in []string) ([]netip.Prefix, error) {
	return parseAll(field, in, netip.ParsePrefix)
}

func parseAll[T any](field string, in []string, parse func(string) (T, error)) ([]T, error) {
	var out []T
	for _, s := range in {
		v, err := parse(s)
		if err != nil {
			return nil, drover.E(drover.Invalid, field, err)
		}
		out = append(out, v)
	}
	return out, nil
}

// AddressesToProto and PrefixesToProto write them as text.
func AddressesToProto(in []netip.Addr) []string { return textOf(in) }

// PrefixesToProto is described at AddressesToProto.
func PrefixesToProto(in []netip.Prefix) []string { return textOf(in) }

// EdgeOpToProto converts an edge's operation.
func EdgeOpToProto(o drover.EdgeOp) *droverv1.EdgeOp {
	return &droverv1.EdgeOp{
		Do: string(o.Do), Owner: o.Owner, Segment: o.Segment, Sites: o.Sites, Site: o.Site, Next: o.Next, Mac: o.MAC,
		Addresses: textOf(o.Addresses), Subnets: textOf(o.Subnets), Name: o.Name, Backend: o.Backend, Target: o.Target,
		Weight: int32(o.Weight), LocalEgress: o.LocalEgress, LimitNanos: int64(o.Limit),
		Force: o.Force, Duid: o.DUID, Iaid: o.IAID, Gateways: textOf(o.Gateways), Neighbors: textOf(o.Neighbors),
	}
}

// EdgeOpFromProto converts and checks an edge's operation; the kind of an error
// is drover.Invalid.
func EdgeOpFromProto(p *droverv1.EdgeOp) (drover.EdgeOp, error) {
	o := drover.EdgeOp{
		Do: drover.EdgeVerb(p.GetDo()), Owner: p.GetOwner(), Segment: p.GetSegment(), Sites: p.GetSites(), Site: p.GetSite(),
		Next: p.GetNext(), MAC: p.GetMac(), Name: p.GetName(), Backend: p.GetBackend(), Target: p.GetTarget(),
		Weight: int(p.GetWeight()), LocalEgress: p.GetLocalEgress(), Limit: time.Duration(p.GetLimitNanos()),
		Force: p.GetForce(), DUID: p.GetDuid(), IAID: p.GetIaid(),
	}
	op := "edge operation " + p.GetDo()
	var err error
	if o.Addresses, err = ParseAddresses(op, p.GetAddresses()); err != nil {
		return o, err
	}
	if o.Subnets, err = ParsePrefixes(op, p.GetSubnets()); err != nil {
		return o, err
	}
	if o.Gateways, err = ParseAddresses(op, p.GetGateways()); err != nil {
		return o, err
	}
	if o.Neighbors, err = ParseAddresses(op, p.GetNeighbors()); err != nil {
		return o, err
	}
	return o, o.Validate()
}

// SegmentToProto converts a segment.
func SegmentToProto(s drover.Segment) *droverv1.Segment {
	return &droverv1.Segment{
		Name: s.Name, Home: s.Home, Sites: s.Sites, Subnets: textOf(s.Subnets), Gateways: textOf(s.Gateways),
		GatewayMac: s.GatewayMAC, Joined: s.Joined, Bridge: s.Bridge, Vni: s.VNI,
	}
}

// SegmentFromProto converts a segment.
func SegmentFromProto(p *droverv1.Segment) drover.Segment {
	return drover.Segment{
		Name: p.GetName(), Home: p.GetHome(), Sites: append([]string{}, p.GetSites()...),
		Subnets: readable(p.GetSubnets(), netip.ParsePrefix), Gateways: readable(p.GetGateways(), netip.ParseAddr),
		GatewayMAC: p.GetGatewayMac(), Joined: p.GetJoined(), Bridge: p.GetBridge(), VNI: p.GetVni(),
	}
}

// EdgeStateToProto converts an edge's state.
func EdgeStateToProto(s drover.EdgeState) *droverv1.EdgeState {
	p := &droverv1.EdgeState{
		Name: s.Name, Site: s.Site, Up: s.Up, Peers: each(s.Peers, MeshPeerToProto), Segments: each(s.Segments, SegmentToProto),
		Extended: each(s.Extended, extendedToProto), Neighbors: each(s.Neighbors, neighborToProto),
		Servers: each(s.Servers, edgeServerToProto), Traffic: each(s.Traffic, trafficToProto), Faults: s.Faults,
	}
	p.Mesh = MeshToProto(s.Mesh)
	return p
}

// EdgeStateFromProto converts an edge's state.
func EdgeStateFromProto(p *droverv1.EdgeState) drover.EdgeState {
	s := drover.EdgeState{
		Name: p.GetName(), Site: p.GetSite(), Up: p.GetUp(), Peers: each(p.GetPeers(), MeshPeerFromProto),
		Segments: each(p.GetSegments(), SegmentFromProto), Extended: each(p.GetExtended(), extendedFromProto),
		Neighbors: each(p.GetNeighbors(), neighborFromProto), Servers: each(p.GetServers(), edgeServerFromProto),
		Traffic: each(p.GetTraffic(), trafficFromProto), Faults: append([]string{}, p.GetFaults()...),
	}
	s.Mesh = MeshFromProto(p.GetMesh())
	return s
}

// MeshToProto converts an edge's end of the mesh; nil is none.
func MeshToProto(m *drover.MeshState) *droverv1.Mesh {
	if m == nil {
		return nil
	}
	return &droverv1.Mesh{
		Interface: m.Interface, Addresses: textOf(m.Addresses), Port: uint32(m.Port), Key: m.Key, NextKey: m.NextKey,
		Mtu: int32(m.MTU), Kernel: m.Kernel,
	}
}

// MeshFromProto converts an edge's end of the mesh; nil is none.
func MeshFromProto(m *droverv1.Mesh) *drover.MeshState {
	if m == nil {
		return nil
	}
	return &drover.MeshState{
		Interface: m.GetInterface(), Addresses: readable(m.GetAddresses(), netip.ParsePrefix), Port: uint16(m.GetPort()),
		Key: m.GetKey(), NextKey: m.GetNextKey(), MTU: int(m.GetMtu()), Kernel: m.GetKernel(),
	}
}

// MeshPeerToProto converts a peer of the mesh.
func MeshPeerToProto(m drover.MeshPeer) *droverv1.MeshPeer {
	p := &droverv1.MeshPeer{
		Site: m.Site, Key: m.Key, NextKey: m.NextKey, Addresses: textOf(m.Addresses), HandshakeUnixNanos: nanos(m.Handshake),
		ReceivedBytes: int64(m.ReceivedBytes), SentBytes: int64(m.SentBytes), RttMs: m.RTTMillis,
	}
	if m.Endpoint.IsValid() {
		p.Endpoint = m.Endpoint.String()
	}
	return p
}

// MeshPeerFromProto converts a peer of the mesh.
func MeshPeerFromProto(p *droverv1.MeshPeer) drover.MeshPeer {
	m := drover.MeshPeer{
		Site: p.GetSite(), Key: p.GetKey(), NextKey: p.GetNextKey(), Addresses: readable(p.GetAddresses(), netip.ParsePrefix),
		Handshake: fromNanos(p.GetHandshakeUnixNanos()), ReceivedBytes: drover.Bytes(p.GetReceivedBytes()), SentBytes: drover.Bytes(p.GetSentBytes()),
		RTTMillis: p.GetRttMs(),
	}
	if at, err := netip.ParseAddrPort(p.GetEndpoint()); err == nil {
		m.Endpoint = at
	}
	return m
}

func extendedToProto(e drover.ExtendedSegment) *droverv1.ExtendedSegment {
	return &droverv1.ExtendedSegment{
		Segment: e.Segment, Owners: e.Owners, Sites: e.Sites, LocalEgress: e.LocalEgress,
		ReceivedBytes: int64(e.ReceivedBytes), SentBytes: int64(e.SentBytes), Fault: e.Fault,
	}
}

func extendedFromProto(p *droverv1.ExtendedSegment) drover.ExtendedSegment {
	return drover.ExtendedSegment{
		Segment: p.GetSegment(), Owners: append([]string{}, p.GetOwners()...), Sites: append([]string{}, p.GetSites()...),
		LocalEgress: p.GetLocalEgress(), ReceivedBytes: drover.Bytes(p.GetReceivedBytes()), SentBytes: drover.Bytes(p.GetSentBytes()),
		Fault: p.GetFault(),
	}
}

func neighborToProto(n drover.EdgeNeighbor) *droverv1.EdgeNeighbor {
	return &droverv1.EdgeNeighbor{
		Address: n.Address.String(), As: n.AS, State: n.State, SinceUnixNanos: nanos(n.Since), Advertised: int32(n.Advertised), Fault: n.Fault,
	}
}

func neighborFromProto(p *droverv1.EdgeNeighbor) drover.EdgeNeighbor {
	n := drover.EdgeNeighbor{
		AS: p.GetAs(), State: p.GetState(), Since: fromNanos(p.GetSinceUnixNanos()), Advertised: int(p.GetAdvertised()), Fault: p.GetFault(),
	}
	if a, err := netip.ParseAddr(p.GetAddress()); err == nil {
		n.Address = a
	}
	return n
}

func edgeServerToProto(s drover.EdgeServer) *droverv1.EdgeServer {
	return &droverv1.EdgeServer{Kind: s.Kind, Name: s.Name, Fault: s.Fault}
}

func edgeServerFromProto(p *droverv1.EdgeServer) drover.EdgeServer {
	return drover.EdgeServer{Kind: p.GetKind(), Name: p.GetName(), Fault: p.GetFault()}
}

func trafficToProto(t drover.EdgeTraffic) *droverv1.EdgeTraffic {
	return &droverv1.EdgeTraffic{Address: t.Address.String(), To: pathsToProto(t.To), From: pathsToProto(t.From)}
}

func trafficFromProto(p *droverv1.EdgeTraffic) drover.EdgeTraffic {
	t := drover.EdgeTraffic{To: pathsFromProto(p.GetTo()), From: pathsFromProto(p.GetFrom())}
	if a, err := netip.ParseAddr(p.GetAddress()); err == nil {
		t.Address = a
	}
	return t
}

func pathsToProto(e drover.EdgePaths) *droverv1.EdgePaths {
	return &droverv1.EdgePaths{
		RouterBridge: int64(e.RouterBridge), BridgeRouter: int64(e.BridgeRouter), RouterTunnel: int64(e.RouterTunnel),
		TunnelRouter: int64(e.TunnelRouter), BridgeTunnel: int64(e.BridgeTunnel), TunnelBridge: int64(e.TunnelBridge),
		Inside: int64(e.Inside), RouterRouter: int64(e.RouterRouter),
	}
}

func pathsFromProto(p *droverv1.EdgePaths) drover.EdgePaths {
	return drover.EdgePaths{
		RouterBridge: drover.Bytes(p.GetRouterBridge()), BridgeRouter: drover.Bytes(p.GetBridgeRouter()),
		RouterTunnel: drover.Bytes(p.GetRouterTunnel()), TunnelRouter: drover.Bytes(p.GetTunnelRouter()),
		BridgeTunnel: drover.Bytes(p.GetBridgeTunnel()), TunnelBridge: drover.Bytes(p.GetTunnelBridge()),
		Inside: drover.Bytes(p.GetInside()), RouterRouter: drover.Bytes(p.GetRouterRouter()),
	}
}

// FindingToProto converts a finding of a diagnosis.
func FindingToProto(f drover.Finding) *droverv1.Finding {
	return &droverv1.Finding{Where: f.Where, Kind: f.Kind, Owner: f.Owner, What: f.What, Fix: f.Fix, Removed: f.Removed}
}

// FindingFromProto converts a finding of a diagnosis.
func FindingFromProto(p *droverv1.Finding) drover.Finding {
	return drover.Finding{
		Where: p.GetWhere(), Kind: p.GetKind(), Owner: p.GetOwner(), What: p.GetWhat(), Fix: p.GetFix(), Removed: p.GetRemoved(),
	}
}
