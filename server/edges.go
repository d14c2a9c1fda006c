package server

import (
	"cmp"
	"context"
	"maps"
	"slices"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
)

// ListSegments implements DroverService.
func (s service) ListSegments(context.Context, *droverv1.ListSegmentsRequest) (*droverv1.ListSegmentsResponse, error) {
	return &droverv1.ListSegmentsResponse{Segments: api.ListToProto(s.fleet.viewSegments(), api.SegmentToProto)}, nil
}

// viewSegments returns the segments that the edges know, by name. Each edge
// describes a segment in full; the home's word counts where they differ.
func (f *fleet) viewSegments() []drover.Segment {
	f.mu.Lock()
	defer f.mu.Unlock()
	by := map[string]drover.Segment{}
	for _, a := range f.sorted() {
		for _, seg := range a.segments {
			if _, known := by[seg.Name]; !known || seg.Home == a.Site {
				by[seg.Name] = seg
			}
		}
	}
	return slices.SortedFunc(maps.Values(by), func(a, b drover.Segment) int { return cmp.Compare(a.Name, b.Name) })
}

// ListEdges implements DroverService.
func (s service) ListEdges(ctx context.Context, _ *droverv1.ListEdgesRequest) (*droverv1.ListEdgesResponse, error) {
	return &droverv1.ListEdgesResponse{Edges: api.ListToProto(s.edgeStates(ctx), api.EdgeStateToProto)}, nil
}

// edgeStates asks every edge, all at once.
func (s *Server) edgeStates(ctx context.Context) []drover.EdgeState {
	return askAll(s.fleet.edges(), func(a *agent) drover.EdgeState {
		ctx, cancel := context.WithTimeout(ctx, edgeLimit)
		defer cancel()
		r, err := a.client.EdgeStatus(ctx, &droverv1.EdgeStatusRequest{})
		if err != nil {
			return drover.EdgeState{Name: a.Name, Site: a.Site, Faults: []string{err.Error()}}
		}
		state := api.EdgeStateFromProto(r.GetState())
		state.Name, state.Site, state.Up = a.Name, a.Site, true
		return state
	})
}
