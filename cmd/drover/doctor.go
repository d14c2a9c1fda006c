package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
)

func newDoctorCommand(a *app) *cobra.Command {
	var flags clientFlags
	var remove bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Look at all hosts and edges for what stands without being needed",
		Long: "Asks every agent what stands for a VM or a move, in routers, name servers, DHCP servers, load balancers\n" +
			"and the network itself, and compares it with the VMs and moves there are. Exit status 0 when there is\n" +
			"nothing to find, 1 otherwise.",
		Example: "drover doctor\ndrover doctor --remove -o json",
		Args:    noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return flags.call(c.Context(), func(ctx context.Context, cl *api.Client) error {
				r, err := cl.Diagnose(ctx, &droverv1.DiagnoseRequest{Remove: remove})
				if err != nil {
					return err
				}
				d := drover.Diagnosis{OK: r.GetOk(), Findings: api.ListFromProto(r.GetFindings(), api.FindingFromProto)}
				if a.output == formatJSON {
					err = a.json(d)
				} else {
					err = a.findings(d)
				}
				if err != nil || d.OK {
					return err
				}
				return exitStatus(1)
			})
		},
	}
	cmd.Flags().BoolVar(&remove, "remove", false, "remove what belongs to VMs and moves that are no more")
	flags.register(cmd)
	return cmd
}

func (a *app) findings(d drover.Diagnosis) error {
	if len(d.Findings) == 0 {
		_, err := fmt.Fprintln(a.out, "nothing to find")
		return err
	}
	rows := make([][]string, len(d.Findings))
	for i, f := range d.Findings {
		fix := f.Fix
		if f.Removed {
			fix = "removed"
		}
		rows[i] = []string{f.Where, f.Kind, f.Owner, f.What, fix}
	}
	return a.table([]string{"WHERE", "KIND", "OWNER", "WHAT", "FIX"}, rows)
}
