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

// protectFlags say what is wanted of a VM's replica.
type protectFlags struct {
	clientFlags
	to         placeFlag
	rpo        durationFlag
	rate       rateFlag
	list, stop bool
}

func newProtectCommand(a *app) *cobra.Command {
	var f protectFlags
	cmd := &cobra.Command{
		Use:   "protect VM --to SITE[/HOST] --rpo TIME | VM --stop | --list",
		Short: "Keep a replica of a VM's disks at another site, for a move that has little left to send",
		Long: "Keeps a replica of a running VM's disks at another site, in rounds that send what was written since the one before, so\n" +
			"that it is never older than the RPO. Moves of the VM to there begin with it: warm and cold send what was written since the\n" +
			"last round, all others find the content there. The protection ends when the VM has moved there.\n\n" +
			"Replicas together get a quarter of a link's rate, and a tenth of that while a move crosses it. Asked again for the same\n" +
			"place, RPO and rate are changed. --stop removes the replica and all that was recorded for it.",
		Example: "drover protect web1 --to south --rpo 30s\ndrover protect --list -o json\ndrover protect web1 --stop",
		Args:    f.check,
		RunE: func(c *cobra.Command, args []string) error {
			return f.call(c.Context(), func(ctx context.Context, cl *api.Client) error {
				switch {
				case f.list:
					return a.listProtections(ctx, cl)
				case f.stop:
					return a.endProtection(ctx, cl, args[0])
				default:
					return a.protect(ctx, cl, args[0], &f)
				}
			})
		},
		ValidArgsFunction: complete(&f.clientFlags, vmNames),
	}
	fl := cmd.Flags()
	fl.Var(&f.to, "to", "where the replica shall be: SITE or SITE/HOST; with a site alone the server picks the host")
	fl.Var(&f.rpo, "rpo", "how old the replica may be at most, "+drover.MinRPO.String()+" or more")
	fl.Var(&f.rate, "rate", "the most that its rounds may send (default: what the link has for replicas)")
	fl.BoolVar(&f.stop, "stop", false, "end the protection and remove the replica")
	fl.BoolVar(&f.list, "list", false, "show all protections")
	_ = cmd.RegisterFlagCompletionFunc("to", completeFlag(&f.clientFlags, places))
	cmd.MarkFlagsMutuallyExclusive("list", "stop", "to")
	f.register(cmd)
	return cmd
}

// check says what cannot be right before anything is asked of a server.
func (f *protectFlags) check(c *cobra.Command, args []string) error {
	if f.list {
		return noArgs(c, args)
	}
	if len(args) != 1 {
		return drover.Errorf(drover.Invalid, "", "want VM, or --list; got %d arguments (see %s --help)", len(args), c.CommandPath())
	}
	if err := drover.CheckName("VM", args[0]); err != nil {
		return err
	}
	if f.stop {
		if f.rpo != 0 || f.rate != 0 {
			return drover.Errorf(drover.Invalid, "", "--rpo and --rate are of no use with --stop")
		}
		return nil
	}
	if f.to.Site == "" {
		return drover.Errorf(drover.Invalid, "", "missing --to: want --to SITE or --to SITE/HOST")
	}
	if f.rpo == 0 {
		return drover.Errorf(drover.Invalid, "", "missing --rpo: want --rpo TIME, such as 30s")
	}
	return f.wish(args[0]).Validate()
}

func (f *protectFlags) wish(vm string) drover.Protection {
	return drover.Protection{VM: vm, To: drover.Place(f.to), RPOSeconds: time.Duration(f.rpo).Seconds(), Rate: drover.BitRate(f.rate)}
}

func (a *app) protect(ctx context.Context, cl *api.Client, vm string, f *protectFlags) error {
	r, err := cl.Protect(ctx, &droverv1.ProtectRequest{
		Vm: vm, To: api.PlaceToProto(drover.Place(f.to)), RpoMillis: f.rpo.millis(), BandwidthBps: int64(f.rate),
	})
	if err != nil {
		return err
	}
	if r.GetProtection() == nil {
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
	}
	p := api.ProtectionFromProto(r.GetProtection())
	if a.output == formatJSON {
		return a.json(p)
	}
	_, err = fmt.Fprintf(a.out, "%s is protected at %s, with a replica that is at most %s old (see drover protect --list)\n", p.VM, p.To, p.RPO())
	return err
}

func (a *app) endProtection(ctx context.Context, cl *api.Client, vm string) error {
	r, err := cl.EndProtection(ctx, &droverv1.EndProtectionRequest{Vm: vm})
	if err != nil {
		return err
	}
	if r.GetProtection() != nil {
		p := api.ProtectionFromProto(r.GetProtection())
		if a.output == formatJSON {
			if err := a.json(p); err != nil {
				return err
			}
		}
		return drover.Errorf(drover.Unavailable, "", "the protection of %s is ending, and goes on to: %s", vm, p.Why)
	}
	if a.output == formatJSON {
		return a.json(struct {
			VM    string `json:"vm"`
			Ended bool   `json:"ended"`
		}{vm, true})
	}
	_, err = fmt.Fprintf(a.out, "%s is not protected any more, nothing of its replica is left\n", vm)
	return err
}

func (a *app) listProtections(ctx context.Context, cl *api.Client) error {
	r, err := cl.ListProtections(ctx, &droverv1.ListProtectionsRequest{})
	if err != nil {
		return err
	}
	all := api.ListFromProto(r.GetProtections(), api.ProtectionFromProto)
	if a.output == formatJSON {
		if all == nil {
			all = []drover.Protection{}
		}
		return a.json(all)
	}
	rows := make([][]string, len(all))
	for i, p := range all {
		rows[i] = protectionRow(p)
	}
	return a.table([]string{"VM", "FROM", "TO", "STATE", "AGE", "RPO", "ROUNDS", "LAST ROUND", "ON THE WIRE", "RATE", "WHY"}, rows)
}

func protectionRow(p drover.Protection) []string {
	last := ""
	if p.Rounds > 0 {
		last = fmt.Sprintf("%s in %.1f s", p.RoundBytes, p.RoundSeconds)
	}
	state := string(p.State)
	if p.Sending {
		state += ", sending"
	}
	return []string{
		p.VM, p.From.String(), p.To.String(), state, seconds(p.AgeSeconds), p.RPO().String(), fmt.Sprint(p.Rounds), last, size(p.RoundWireBytes),
		rate(p.Allotted), p.Why,
	}
}

// makeFlags are those of making a VM.
var makeFlags = []string{"like", "to", "detach", "backend", "segment", "name", "health", "health-from", "health-timeout"}

// checkRemove says what cannot be asked for together with removing a VM.
func checkRemove(c *cobra.Command, name string) error {
	var others []string
	for _, f := range makeFlags {
		if c.Flags().Changed(f) {
			others = append(others, "--"+f)
		}
	}
	if len(others) > 0 {
		return drover.Errorf(drover.Invalid, "", "--remove takes the VM's name and --force alone, not %s", strings.Join(others, ", "))
	}
	return drover.CheckName("NAME", name)
}

// removeVM removes a VM that was made.
func (a *app) removeVM(ctx context.Context, cl *api.Client, name string, force bool) error {
	r, err := cl.RemoveVM(ctx, &droverv1.RemoveMadeVMRequest{Vm: name, Force: force})
	if err != nil {
		return err
	}
	if a.output == formatJSON {
		return a.json(struct {
			VM      drover.VM `json:"vm"`
			Removed []string  `json:"removed"`
		}{api.VMFromProto(r.GetVm()), r.GetRemoved()})
	}
	for _, line := range r.GetRemoved() {
		if _, err := fmt.Fprintln(a.out, "removed:", line); err != nil {
			return err
		}
	}
	return nil
}
