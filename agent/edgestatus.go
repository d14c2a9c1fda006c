package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/driver"
)

const (
	// checkLimit bounds asking one server beside the edge whether it can be
	// used.
	checkLimit = 5 * time.Second
	// staleHandshake is the age at which the session with another edge is taken
	// for broken: with keepalives there is a handshake every two minutes.
	staleHandshake = 3 * time.Minute
)

// EdgeStatus implements AgentService.
func (a agentService) EdgeStatus(ctx context.Context, req *droverv1.EdgeStatusRequest) (*droverv1.EdgeStatusResponse, error) {
	e, err := a.siteEdge()
	if err != nil {
		return nil, err
	}
	return &droverv1.EdgeStatusResponse{State: api.EdgeStateToProto(e.state(ctx, req.GetBrief()))}, nil
}

// state observes the edge: what cannot be observed is among its faults.
func (e *edge) state(ctx context.Context, brief bool) drover.EdgeState {
	s := drover.EdgeState{Name: e.a.config.Name, Site: e.a.config.Site, Up: true, Faults: []string{}}
	fault := func(format string, args ...any) { s.Faults = append(s.Faults, fmt.Sprintf(format, args...)) }
	e.stateMesh(ctx, &s, fault)
	if brief {
		return s
	}
	for _, seg := range e.config.Segments {
		s.Segments = append(s.Segments, seg.domain())
	}
	e.stateExtended(ctx, &s, fault)
	e.stateRoutes(ctx, &s, fault)
	e.stateServers(ctx, &s, fault)
	if e.Addresses != nil {
		traffic, err := e.Addresses.Metered(ctx, nil)
		if err != nil {
			fault("traffic: %v", err)
		}
		for _, t := range traffic {
			s.Traffic = append(s.Traffic, drover.EdgeTraffic{Address: t.Address, To: drover.EdgePaths(t.To), From: drover.EdgePaths(t.From)})
		}
	}
	return s
}

// brief is the part of the state that a server is told all the time.
func (e *edge) describe(ctx context.Context, r *droverv1.DescribeResponse) error {
	for _, s := range e.config.Segments {
		r.Segments = append(r.Segments, api.SegmentToProto(s.domain()))
	}
	passages, faults := e.passages(ctx)
	if faults != nil {
		faults = fmt.Errorf("traffic: %w", faults)
	} else {
		r.Passages, r.PassagesUnixNanos = api.ListToProto(passages, api.EdgePassageToProto), e.a.clock().UnixNano()
	}
	if e.Tunnels == nil {
		return faults
	}
	r.MeshRttMs = e.trips.millis()
	self, err := e.Tunnels.Self(ctx)
	if err != nil {
		return errors.Join(faults, fmt.Errorf("mesh: %w", err))
	}
	r.Mesh = api.MeshToProto(meshState(self))
	return faults
}

type edgeFault func(format string, args ...any)

func (e *edge) stateMesh(ctx context.Context, s *drover.EdgeState, fault edgeFault) {
	if e.Tunnels == nil {
		return
	}
	self, err := e.Tunnels.Self(ctx)
	if err != nil {
		fault("mesh: %v", err)
		return
	}
	s.Mesh = meshState(self)
	peers, err := e.Tunnels.Peers(ctx)
	if err != nil {
		fault("mesh: %v", err)
	}
	trips := e.trips.millis()
	for _, p := range peers {
		m := drover.MeshPeer{
			Site: p.Name, Key: p.Key.String(), Endpoint: p.Endpoint, Addresses: p.Addresses, Handshake: p.Handshake,
			ReceivedBytes: p.ReceivedBytes, SentBytes: p.SentBytes, RTTMillis: trips[p.Name],
		}
		if !p.Next.IsZero() {
			m.NextKey = p.Next.String()
		}
		s.Peers = append(s.Peers, m)
		switch {
		case p.Handshake.IsZero():
			fault("mesh: no handshake with the edge of site %s yet", p.Name)
		case e.a.clock().Sub(p.Handshake) > staleHandshake:
			fault("mesh: the last handshake with the edge of site %s is %s old", p.Name, e.a.clock().Sub(p.Handshake).Round(time.Second))
		}
	}
}

func (e *edge) stateExtended(ctx context.Context, s *drover.EdgeState, fault edgeFault) {
	if e.Segments == nil {
		return
	}
	all, err := e.Segments.List(ctx)
	if err != nil {
		fault("segments: %v", err)
	}
	for _, x := range all {
		out := drover.ExtendedSegment{
			Segment: x.Segment, LocalEgress: x.LocalEgress, Owners: []string{}, Sites: []string{}, Fault: x.Fault,
		}
		for _, o := range x.Owners {
			out.Owners = append(out.Owners, string(o))
		}
		for _, r := range x.Remotes {
			out.Sites = append(out.Sites, e.siteOf(r))
		}
		slices.Sort(out.Sites)
		count, err := e.Segments.Counters(ctx, x.Segment)
		if err == nil {
			out.ReceivedBytes, out.SentBytes = count.Received.Bytes, count.Sent.Bytes
		} else if x.Fault == "" {
			fault("segment %s: %v", x.Segment, err)
		}
		if x.Fault != "" {
			fault("segment %s: %s", x.Segment, x.Fault)
		}
		s.Extended = append(s.Extended, out)
	}
}

// siteOf names the site of a remote edge, by its address where it is unknown.
func (e *edge) siteOf(r driver.Remote) string {
	e.mesh.Lock()
	defer e.mesh.Unlock()
	for site, p := range e.peers {
		for _, a := range p.Addresses {
			if a.Addr() == r.Address {
				return site
			}
		}
	}
	return r.Address.String()
}

func (e *edge) stateRoutes(ctx context.Context, s *drover.EdgeState, fault edgeFault) {
	if e.Routes == nil {
		return
	}
	all, err := e.Routes.Neighbors(ctx)
	if err != nil {
		fault("routes: %v", err)
	}
	for _, n := range all {
		s.Neighbors = append(s.Neighbors, drover.EdgeNeighbor{
			Address: n.Address, AS: n.AS, State: string(n.State), Since: n.Since, Advertised: n.Advertised, Fault: n.Fault,
		})
		if n.State != driver.SessionEstablished {
			fault("router %s: the session is %s: %s", n.Address, n.State, n.Fault)
		}
	}
}

func (e *edge) stateServers(ctx context.Context, s *drover.EdgeState, fault edgeFault) {
	ask := func(kind, name string, check func(context.Context) error) {
		ctx, cancel := context.WithTimeout(ctx, checkLimit)
		defer cancel()
		server := drover.EdgeServer{Kind: kind, Name: name}
		if err := check(ctx); err != nil {
			server.Fault = err.Error()
			fault("%s %s: %v", kind, name, err)
		}
		s.Servers = append(s.Servers, server)
	}
	for _, zone := range slices.Sorted(maps.Keys(e.Names)) {
		ask(drover.EdgeDNS, zone, func(ctx context.Context) error { return e.Names[zone].Check(ctx) })
	}
	for _, segment := range slices.Sorted(maps.Keys(e.Leases)) {
		ask(drover.EdgeDHCP, segment, func(ctx context.Context) error {
			_, err := e.Leases[segment].Free(ctx, segment)
			return err
		})
	}
	for _, backend := range slices.Sorted(maps.Keys(e.Balancers)) {
		ask(drover.EdgeBalancer, backend, func(ctx context.Context) error {
			return failed(e.Balancers[backend].Check(ctx, backend))
		})
	}
}
