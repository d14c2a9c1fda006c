package server

import (
	"cmp"
	"context"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
)

const (
	// meshEvery is the longest until the mesh is looked at again: for edges that
	// refused what they were told.
	meshEvery = 15 * time.Second
	// meshLimit bounds telling one edge.
	meshLimit = 10 * time.Second
)

// keepMesh tells every edge of the others until ctx ends: at once after
// something has changed, or an edge was away.
//
// A key is changed in steps that follow from what edges say of themselves, so
// that any server goes on with them: an edge that has a key to come is told to
// the others with both; when all have taken that in, it adopts it; then the
// others are told of the new one alone.
func (s *Server) keepMesh(ctx context.Context) {
	select {
	case <-s.leading:
	case <-ctx.Done():
		return
	}
	for {
		s.mendMesh(ctx)
		t := time.NewTimer(meshEvery)
		select {
		case <-s.fleet.meshChanged:
		case <-t.C:
		case <-ctx.Done():
		}
		t.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

// mendMesh tells those edges that know something else than they should.
func (s *Server) mendMesh(ctx context.Context) {
	ends := s.fleet.meshEnds()
	up := slices.DeleteFunc(slices.Clone(ends), func(e meshEnd) bool { return !e.up })
	told := askEdges(up, func(e meshEnd) bool {
		err := s.tellMesh(ctx, e, ends)
		if err != nil && ctx.Err() == nil {
			s.log.WarnContext(ctx, "an edge could not be told of the mesh", "host", e.agent.Name, "error", err)
		}
		return err == nil
	})
	if slices.Contains(told, false) || len(up) < len(ends) {
		return // a key that not all know would cut those off
	}
	for _, e := range up {
		if e.mesh.NextKey == "" {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, meshLimit)
		_, err := e.agent.client.RotateMesh(ctx, &droverv1.RotateMeshRequest{Adopt: e.mesh.NextKey})
		cancel()
		if err != nil {
			s.log.WarnContext(ctx, "an edge does not adopt its next key", "host", e.agent.Name, "error", err)
			continue
		}
		s.log.InfoContext(ctx, "an edge has adopted its next key", "host", e.agent.Name)
	}
}

// meshEnd is one edge's end of the mesh, as it was described last.
type meshEnd struct {
	agent *agent
	up    bool
	mesh  drover.MeshState
	// told is what it was told last, empty after it was away.
	told string
}

// meshEnds returns one end for each site, by site.
func (f *fleet) meshEnds() []meshEnd {
	f.mu.Lock()
	defer f.mu.Unlock()
	var ends []meshEnd
	seen := map[string]bool{}
	for _, a := range f.sorted() {
		if a.mesh == nil || seen[a.Site] {
			continue
		}
		seen[a.Site] = true
		ends = append(ends, meshEnd{a, a.host.Up, *a.mesh, a.meshTold})
	}
	slices.SortFunc(ends, func(a, b meshEnd) int { return cmp.Compare(a.agent.Site, b.agent.Site) })
	return ends
}

// peer is the end as the others have to know it.
func (e meshEnd) peer() (drover.MeshPeer, error) {
	p := drover.MeshPeer{Site: e.agent.Site, Key: e.mesh.Key, NextKey: e.mesh.NextKey, Addresses: e.mesh.Addresses}
	host, _, err := net.SplitHostPort(e.agent.Address)
	if err != nil {
		return p, drover.E(drover.Invalid, "agent "+e.agent.Name, err)
	}
	p.Endpoint, err = netip.ParseAddrPort(net.JoinHostPort(host, strconv.Itoa(int(e.mesh.Port))))
	if err != nil {
		// A name is no endpoint: the tunnel's other end has to call.
		p.Endpoint = netip.AddrPort{}
	}
	return p, nil
}

// tellMesh tells one edge of all others, unless that is what it was told.
func (s *Server) tellMesh(ctx context.Context, e meshEnd, all []meshEnd) error {
	var peers []drover.MeshPeer
	for _, other := range all {
		if other.agent == e.agent {
			continue
		}
		p, err := other.peer()
		if err != nil {
			return err
		}
		peers = append(peers, p)
	}
	sign := meshSign(e.mesh, peers)
	if e.told == sign {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, meshLimit)
	defer cancel()
	kept, err := s.unheard(ctx, e)
	if err != nil {
		return err
	}
	if _, err := e.agent.client.SetMesh(ctx, &droverv1.SetMeshRequest{Peers: api.ListToProto(append(peers, kept...), api.MeshPeerToProto)}); err != nil {
		return err
	}
	s.fleet.mu.Lock()
	e.agent.meshTold = sign
	s.fleet.mu.Unlock()
	s.log.InfoContext(ctx, "an edge was told of the mesh", "host", e.agent.Name, "peers", len(peers)+len(kept))
	return nil
}

// unheard returns the edge's peers at sites whose edges this server has not heard
// of since its start, and which may be well all the same.
func (s *Server) unheard(ctx context.Context, e meshEnd) ([]drover.MeshPeer, error) {
	silent := s.fleet.silentSites()
	if len(silent) == 0 {
		return nil, nil
	}
	r, err := e.agent.client.EdgeStatus(ctx, &droverv1.EdgeStatusRequest{Brief: true})
	if err != nil {
		return nil, err
	}
	state := api.EdgeStateFromProto(r.GetState())
	return slices.DeleteFunc(state.Peers, func(p drover.MeshPeer) bool { return !silent[p.Site] }), nil
}

// silentSites are those that have an agent which was not heard of yet, and no
// known end of the mesh.
func (f *fleet) silentSites() map[string]bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	silent := map[string]bool{}
	for _, a := range f.agents {
		if !a.heard {
			silent[a.Site] = true
		}
	}
	for _, a := range f.agents {
		if a.mesh != nil {
			delete(silent, a.Site)
		}
	}
	return silent
}

// meshSign names what an edge was told, and to which key of its own: one that
// has lost its keys is told again.
func meshSign(own drover.MeshState, peers []drover.MeshPeer) string {
	var sign strings.Builder
	sign.WriteString(own.Key)
	for _, p := range peers {
		for _, v := range []string{p.Site, p.Key, p.NextKey, p.Endpoint.String()} {
			sign.WriteString("\n" + v)
		}
		for _, a := range p.Addresses {
			sign.WriteString(" " + a.String())
		}
	}
	return sign.String()
}

func askEdges[T any](ends []meshEnd, ask func(meshEnd) T) []T {
	agents := make([]*agent, len(ends))
	by := map[*agent]meshEnd{}
	for i, e := range ends {
		agents[i], by[e.agent] = e.agent, e
	}
	return askAll(agents, func(a *agent) T { return ask(by[a]) })
}

// sameMesh reports whether two ends are the same to the others.
func sameMesh(a, b *drover.MeshState) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Key == b.Key && a.NextKey == b.NextKey && a.Port == b.Port && slices.Equal(a.Addresses, b.Addresses)
}

// wakeMesh has keepMesh look again.
func (f *fleet) wakeMesh() {
	select {
	case f.meshChanged <- struct{}{}:
	default:
	}
}

// RotateEdge implements DroverService.
func (s service) RotateEdge(ctx context.Context, r *droverv1.RotateEdgeRequest) (*droverv1.RotateEdgeResponse, error) {
	if err := drover.CheckName("site", r.GetSite()); err != nil {
		return nil, err
	}
	ends := s.fleet.meshEnds()
	i := slices.IndexFunc(ends, func(e meshEnd) bool { return e.agent.Site == r.GetSite() })
	if i < 0 {
		return nil, drover.Errorf(drover.NotFound, "site "+r.GetSite(), "no edge with an end of the mesh is known there")
	}
	made, err := ends[i].agent.client.RotateMesh(ctx, &droverv1.RotateMeshRequest{})
	if err != nil {
		return nil, err
	}
	return &droverv1.RotateEdgeResponse{Mesh: made.GetMesh()}, nil
}
