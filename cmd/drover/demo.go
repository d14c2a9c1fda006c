package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/drover-vm/drover/lab/trial"
)

// newDemoCommand shows every method on this machine.
func newDemoCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "demo",
		Short: "Show every method between three data centers on this machine",
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
