package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/drover-vm/drover/lab/trial"
)

// newDemoCommand shows a live and a cold move on this machine.
func newDemoCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "demo",
		Short: "Show a live and a cold move between two data centers on this machine",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			exe, err := os.Executable()
			if err != nil {
				return err
			}
			return trial.Demo(cmd.Context(), exe, a.out, a.err)
		},
	}
}
