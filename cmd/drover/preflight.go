package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
)

// target says where a VM shall be, and how; preflight and move share it.
type target struct {
	clientFlags
	to     placeFlag
	method methodFlag
	// localEgress and addresses are for methods that change networks.
	localEgress bool
	addresses   []string
	// storage is "stay" for disks that stay; disksOnly brings those that did.
	storage   string
	disksOnly bool
	place     newPlaceFlags
	clone     cloneFlags
}

func (t *target) register(cmd *cobra.Command) {
	cmd.Flags().Var(&t.to, "to", "where the VM shall be: SITE or SITE/HOST; with a site alone the server picks the host")
	cmd.Flags().Var(&t.method, "method", "how it gets there (default: as drover advise says)")
	cmd.Flags().BoolVar(&t.localEgress, "local-egress", false, "for stretch: what others send to the VM takes no way by its segment's home")
	cmd.Flags().StringSliceVar(&t.addresses, "address", nil, "address that the VM has in its segment, where neither its guest agent nor its metadata says so; may be repeated")
	cmd.Flags().StringVar(&t.storage, "storage", "", "stay: the VM's disks stay where they are, and it works on them over the WAN (for stretch, route, renumber and live)")
	cmd.Flags().BoolVar(&t.disksOnly, "disks-only", false, "bring disks that stayed to where the VM is, while it runs; without --to")
	t.place.register(cmd)
	t.clone.register(cmd, &t.place)
	_ = cmd.RegisterFlagCompletionFunc("to", completeFlag(&t.clientFlags, places))
	_ = cmd.RegisterFlagCompletionFunc("method", cobra.FixedCompletions(methodStrings(), cobra.ShellCompDirectiveNoFileComp))
	cmd.ValidArgsFunction = complete(&t.clientFlags, vmNames)
	t.clientFlags.register(cmd)
}

// check is cobra's Args for a command with one VM and --to.
func (t *target) check(c *cobra.Command, args []string) error {
	if err := oneArg("VM")(c, args); err != nil {
		return err
	}
	if err := drover.CheckName("VM", args[0]); err != nil {
		return err
	}
	switch {
	case t.disksOnly && (t.to.Site != "" || t.method != "" || t.storage != ""):
		return drover.Errorf(drover.Invalid, "", "--disks-only brings disks to where the VM is: want it without --to, --method and --storage")
	case t.storage != "" && t.storage != "stay":
		return drover.Errorf(drover.Invalid, "", "--storage %q: want stay, or leave it out for disks that come along", t.storage)
	case t.disksOnly:
	case t.to.Site == "":
		return drover.Errorf(drover.Invalid, "", "missing --to: want --to SITE or --to SITE/HOST")
	}
	return errors.Join(t.place.check(), t.clone.check(drover.Method(t.method)))
}

func newPreflightCommand(a *app) *cobra.Command {
	var t target
	cmd := &cobra.Command{
		Use:     "preflight VM --to SITE",
		Short:   "Check from both ends whether a move would work; changes nothing",
		Example: "drover preflight web1 --to south\ndrover preflight web1 --to south/s2 --method cold -o json",
		Args:    t.check,
		RunE: func(c *cobra.Command, args []string) error {
			return t.call(c.Context(), func(ctx context.Context, cl *api.Client) error {
				r, err := cl.Preflight(ctx, &droverv1.PreflightRequest{
					Vm: args[0], To: api.PlaceToProto(drover.Place(t.to)), Method: string(t.method),
					LocalEgress: t.localEgress, Addresses: t.addresses, Renumber: t.place.proto(drover.Method(t.method)),
					Clone: t.clone.proto(drover.Method(t.method)), Storage: t.storage, DisksOnly: t.disksOnly,
				})
				if err != nil {
					return err
				}
				p := api.PreflightFromProto(r.GetPreflight())
				if a.output == formatJSON {
					err = a.json(p)
				} else {
					err = a.preflightTable(p)
				}
				if err != nil {
					return err
				}
				return refusal(p)
			})
		},
	}
	t.register(cmd)
	return cmd
}

// refusal is the error of a preflight that does not hold.
func refusal(p drover.Preflight) error {
	if p.OK {
		return nil
	}
	var failed []string
	for _, c := range p.Checks {
		if !c.OK && !c.Warning {
			failed = append(failed, c.Name)
		}
	}
	return drover.Errorf(drover.Refused, "", "%s cannot move to %s: %d of %d checks failed (%s); nothing was changed",
		p.VM, p.To, len(failed), len(p.Checks), strings.Join(failed, ", "))
}

func (a *app) preflightTable(p drover.Preflight) error {
	rows := make([][]string, len(p.Checks))
	for i, c := range p.Checks {
		rows[i] = []string{c.Name, verdict(c), c.Detail, c.Fix}
	}
	if err := a.table([]string{"CHECK", "RESULT", "FINDING", "WHAT TO DO"}, rows); err != nil {
		return err
	}
	_, err := fmt.Fprintln(a.out, preflightAnswer(p))
	return err
}

// preflightAnswer is what the checks come to.
func preflightAnswer(p drover.Preflight) string {
	by := ""
	if p.Method != "" && p.Method != drover.Stay {
		by = " by method " + string(p.Method)
	}
	switch {
	case p.OK:
		return fmt.Sprintf("%s would move to %s%s", p.VM, p.To, by)
	case p.Method == drover.Stay:
		return fmt.Sprintf("%s should stay, and not move to %s", p.VM, p.To)
	default:
		return fmt.Sprintf("%s cannot move to %s%s", p.VM, p.To, by)
	}
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func verdict(c drover.Check) string {
	switch {
	case c.OK:
		return "ok"
	case c.Warning:
		return "warning"
	default:
		return "FAILED"
	}
}

// preflightLine says in one line that the report holds, with a line more for
// each warning.
func preflightLine(w io.Writer, p drover.Preflight) {
	var warnings []drover.Check
	for _, c := range p.Checks {
		if !c.OK {
			warnings = append(warnings, c)
		}
	}
	if len(warnings) == 0 {
		fmt.Fprintf(w, "preflight: %d checks, all good\n", len(p.Checks))
		return
	}
	fmt.Fprintf(w, "preflight: %d checks, %d with a warning\n", len(p.Checks), len(warnings))
	for _, c := range warnings {
		fmt.Fprintf(w, "  %s: %s", c.Name, c.Detail)
		if c.Fix != "" {
			fmt.Fprintf(w, " (%s)", c.Fix)
		}
		fmt.Fprintln(w)
	}
}
