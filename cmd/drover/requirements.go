package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
)

func newRequirementsCommand(a *app) *cobra.Command {
	var f clientFlags
	var clear bool
	cmd := &cobra.Command{
		Use:   "requirements VM [NAME=VALUE]...",
		Short: "Show or set what a VM needs",
		Long: "Shows what a VM needs and who says so, or sets it. What is set here wins over the VM's metadata, which wins over\n" +
			"the server's defaults; \"any\" lifts a requirement that one of those has, an empty value takes back what was set here.\n\n" +
			"Requirements: " + strings.Join(drover.RequirementNames(), ", ") + ".",
		Example: "drover requirements db1\ndrover requirements db1 keep-sessions=yes max-pause=300ms countries=DE,FR\n" +
			"drover requirements db1 max-pause=\ndrover requirements db1 --clear",
		Args: checkRequirements,
		RunE: func(c *cobra.Command, args []string) error {
			return f.call(c.Context(), func(ctx context.Context, cl *api.Client) error {
				v, err := requirements(ctx, cl, args[0], args[1:], clear)
				if err != nil {
					return err
				}
				return a.requirementsTable(v)
			})
		},
		ValidArgsFunction: complete(&f, vmNames),
	}
	cmd.Flags().BoolVar(&clear, "clear", false, "forget all that was set here before")
	f.register(cmd)
	return cmd
}

// checkRequirements is cobra's Args: a VM, then NAME=VALUE.
func checkRequirements(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return oneArg("VM")(c, args)
	}
	if err := drover.CheckName("VM", args[0]); err != nil {
		return err
	}
	seen := map[string]bool{}
	for _, arg := range args[1:] {
		name, value, ok := strings.Cut(arg, "=")
		if !ok {
			return drover.Errorf(drover.Invalid, "", "%q: want NAME=VALUE, such as max-pause=300ms", arg)
		}
		if seen[name] {
			return drover.Errorf(drover.Invalid, "", "%s is there twice: want it once", name)
		}
		seen[name] = true
		if value == "" {
			value = "any" // of the name alone
		}
		if err := drover.CheckRequirement(name, value); err != nil {
			return err
		}
	}
	return nil
}

// requirements sets what was given, and returns what holds then.
func requirements(ctx context.Context, cl *api.Client, vm string, given []string, clear bool) (drover.VMRequirements, error) {
	if len(given) == 0 && !clear {
		r, err := cl.GetRequirements(ctx, &droverv1.GetRequirementsRequest{Vm: vm})
		return api.RequirementsFromProto(r.GetRequirements()), err
	}
	values := map[string]string{}
	for _, arg := range given {
		name, value, _ := strings.Cut(arg, "=")
		values[name] = value
	}
	r, err := cl.SetRequirements(ctx, &droverv1.SetRequirementsRequest{Vm: vm, Values: values, Clear: clear})
	return api.RequirementsFromProto(r.GetRequirements()), err
}

func (a *app) requirementsTable(v drover.VMRequirements) error {
	if a.output == formatJSON {
		return a.json(v)
	}
	rows := make([][]string, len(v.Stated))
	for i, s := range v.Stated {
		rows[i] = []string{s.Name, s.Value, s.Source}
	}
	if err := a.table([]string{"REQUIREMENT", "VALUE", "SAID BY"}, rows); err != nil {
		return err
	}
	for _, f := range v.Faults {
		if _, err := fmt.Fprintln(a.out, "fault:", f); err != nil {
			return err
		}
	}
	return nil
}
