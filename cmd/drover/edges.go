package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
)

func newSegmentsCommand(a *app) *cobra.Command {
	return newListCommand(a, listing[drover.Segment]{
		noun: "segments", one: "segment", short: "List the layer 2 networks of VMs, and the sites where they are", fetch: fetchSegments,
		name: func(s drover.Segment) string { return s.Name },
		head: []string{"SEGMENT", "HOME", "SITES", "JOINED", "SUBNETS", "GATEWAYS", "BRIDGE", "VNI"},
		row: func(s drover.Segment) []string {
			joined := "no"
			if s.Joined {
				joined = "yes"
			}
			return []string{s.Name, s.Home, list(s.Sites), joined, texts(s.Subnets), texts(s.Gateways), s.Bridge, fmt.Sprint(s.VNI)}
		},
	})
}

func newEdgesCommand(a *app) *cobra.Command {
	cmd := newListCommand(a, listing[drover.EdgeState]{
		noun: "edges", one: "edge", short: "List the sites' edges and what they are connected to", fetch: fetchEdges,
		name: func(e drover.EdgeState) string { return e.Name },
		head: []string{"EDGE", "SITE", "STATE", "MESH", "PEERS", "EXTENDED", "ROUTERS", "SERVERS", "FAULTS"},
		row:  edgeRow,
	})
	cmd.AddCommand(newRotateCommand(a))
	return cmd
}

func edgeRow(e drover.EdgeState) []string {
	state := "up"
	if !e.Up {
		state = "down"
	}
	var mesh string
	if e.Mesh != nil {
		mesh = texts(e.Mesh.Addresses)
	}
	var peers, extended, routers, servers []string
	for _, p := range e.Peers {
		since := "never"
		if !p.Handshake.IsZero() {
			since = time.Since(p.Handshake).Round(time.Second).String()
		}
		peers = append(peers, p.Site+" "+since)
	}
	for _, x := range e.Extended {
		extended = append(extended, x.Segment+" to "+strings.Join(x.Sites, " "))
	}
	for _, n := range e.Neighbors {
		routers = append(routers, n.Address.String()+" "+n.State)
	}
	for _, s := range e.Servers {
		servers = append(servers, s.Kind+" "+s.Name)
	}
	return []string{
		e.Name, e.Site, state, mesh, list(peers), list(extended), list(routers), list(servers), strings.Join(e.Faults, "; "),
	}
}

func newRotateCommand(a *app) *cobra.Command {
	var flags clientFlags
	cmd := &cobra.Command{
		Use:   "rotate SITE",
		Short: "Give a site's end of the mesh a new key",
		Long: "Makes the key that is to come. The server tells all other edges of it, and has it taken into use as soon as\n" +
			"every edge knows it; what runs through the tunnels goes on.",
		Args: oneArg("SITE"),
		RunE: func(c *cobra.Command, args []string) error {
			return flags.call(c.Context(), func(ctx context.Context, cl *api.Client) error {
				r, err := cl.RotateEdge(ctx, &droverv1.RotateEdgeRequest{Site: args[0]})
				if err != nil {
					return err
				}
				m := api.MeshFromProto(r.GetMesh())
				if m == nil {
					return drover.Errorf(drover.Internal, "rotate", "the edge has answered without its mesh")
				}
				if a.output == formatJSON {
					return a.json(m)
				}
				return a.table([]string{"KEY", "NEXT KEY"}, [][]string{{m.Key, m.NextKey}})
			})
		},
	}
	flags.register(cmd)
	return cmd
}

func texts[T fmt.Stringer](items []T) string {
	out := make([]string, len(items))
	for i, v := range items {
		out[i] = v.String()
	}
	return list(out)
}

func fetchSegments(ctx context.Context, c *api.Client) ([]drover.Segment, error) {
	r, err := c.ListSegments(ctx, &droverv1.ListSegmentsRequest{})
	return api.ListFromProto(r.GetSegments(), api.SegmentFromProto), err
}

func fetchEdges(ctx context.Context, c *api.Client) ([]drover.EdgeState, error) {
	r, err := c.ListEdges(ctx, &droverv1.ListEdgesRequest{})
	return api.ListFromProto(r.GetEdges(), api.EdgeStateFromProto), err
}
