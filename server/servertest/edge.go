package servertest

import (
	"context"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
)

// EdgeState is what an agent that is a site's edge shows; see State.
type EdgeState struct {
	Mesh     *drover.MeshState
	Segments []drover.Segment
	// Extended segments, and routers with their sessions.
	Extended  []drover.ExtendedSegment
	Neighbors []drover.EdgeNeighbor
	// Servers that the edge works with, Backend those of its load balancer's, and
	// Done the operations that it has carried out, as "VERB NAME".
	Servers []drover.EdgeServer
	Backend []drover.BackendServer
	Done    []string
	// Peers are those that SetMesh has set, PeersSet how often it was called.
	Peers    []drover.MeshPeer
	PeersSet int
	// Owned stands at the agent, until RemoveOwned; Removed has those calls, as
	// "KIND OWNER".
	Owned   []*droverv1.OwnedThing
	Removed []string
	// Passages are what of VMs passes it, Trips its round trips to others.
	Passages []drover.EdgePassage
	Trips    map[string]float64
	// OpChecks is what CheckOps finds, Leases what it says of a MAC.
	OpChecks []drover.Check
	Leases   []*droverv1.HeldLease
}

func (a *Agent) edge() (EdgeState, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.state.Edge == nil {
		return EdgeState{}, drover.Errorf(drover.Refused, "host "+a.Name, "it is no site's edge")
	}
	e := *a.state.Edge
	e.Owned = slices.Clone(e.Owned)
	return e, nil
}

func (s service) EdgeStatus(context.Context, *droverv1.EdgeStatusRequest) (*droverv1.EdgeStatusResponse, error) {
	e, err := s.edge()
	if err != nil {
		return nil, err
	}
	state := drover.EdgeState{
		Name: s.Name, Site: s.Site, Up: true, Mesh: e.Mesh, Peers: e.Peers, Segments: e.Segments,
		Extended: e.Extended, Neighbors: e.Neighbors, Servers: e.Servers,
	}
	return &droverv1.EdgeStatusResponse{State: api.EdgeStateToProto(state)}, nil
}

func (s service) SetMesh(_ context.Context, r *droverv1.SetMeshRequest) (*droverv1.SetMeshResponse, error) {
	if _, err := s.edge(); err != nil {
		return nil, err
	}
	s.Set(func(st *State) {
		st.Edge.Peers = api.ListFromProto(r.GetPeers(), api.MeshPeerFromProto)
		st.Edge.PeersSet++
	})
	return &droverv1.SetMeshResponse{}, nil
}

// Owned answers for hosts too: nothing stands there.
func (s service) Owned(context.Context, *droverv1.OwnedRequest) (*droverv1.OwnedResponse, error) {
	e, err := s.edge()
	if err != nil {
		return &droverv1.OwnedResponse{}, nil
	}
	r := &droverv1.OwnedResponse{}
	for _, t := range e.Owned {
		r.Things = append(r.Things, proto.CloneOf(t))
	}
	return r, nil
}

func (s service) RemoveOwned(_ context.Context, r *droverv1.RemoveOwnedRequest) (*droverv1.RemoveOwnedResponse, error) {
	if _, err := s.edge(); err != nil {
		return nil, err
	}
	s.Set(func(st *State) {
		st.Edge.Removed = append(st.Edge.Removed, r.GetKind()+" "+r.GetOwner())
		st.Edge.Owned = slices.DeleteFunc(slices.Clone(st.Edge.Owned), func(t *droverv1.OwnedThing) bool {
			return t.GetOwner() == r.GetOwner() && t.GetKind() == r.GetKind()
		})
	})
	return &droverv1.RemoveOwnedResponse{}, nil
}

func (s service) RotateMesh(_ context.Context, r *droverv1.RotateMeshRequest) (*droverv1.RotateMeshResponse, error) {
	e, err := s.edge()
	switch {
	case err != nil:
		return nil, err
	case e.Mesh == nil:
		return nil, drover.Errorf(drover.Refused, "host "+s.Name, "it has no part in the mesh")
	case r.GetAdopt() != "" && r.GetAdopt() != e.Mesh.NextKey:
		return nil, drover.Errorf(drover.Refused, "host "+s.Name, "%s is not the key to come", r.GetAdopt())
	}
	next := *e.Mesh
	if r.GetAdopt() != "" {
		next.Key, next.NextKey = next.NextKey, ""
	} else {
		next.NextKey = next.Key + "+"
	}
	s.Set(func(st *State) { st.Edge.Mesh = &next })
	return &droverv1.RotateMeshResponse{Mesh: api.MeshToProto(&next)}, nil
}
