package main

import (
	"github.com/spf13/cobra"

	"github.com/drover-vm/drover/driver/bgp"
)

// newBGPSpeakerCommand is the process in which an edge's agent speaks BGP; it
// is not for people.
func newBGPSpeakerCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: bgp.Subcommand, Short: "Speak BGP for an edge's agent", Hidden: true, Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return bgp.Main(c.Context(), a.in, a.out)
		},
	}
}
