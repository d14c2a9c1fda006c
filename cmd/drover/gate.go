package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
)

// gateFlags say what a VM has to pass before its source is released.
type gateFlags struct {
	mode, health, from, onUnhealthy string
	limit                           durationFlag
}

func (g *gateFlags) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&g.health, "health", "", "for warm and cold: how the VM is seen to be well at its destination:\ntcp:PORT, tcp:IP:PORT, http://ADDRESS/PATH or command:NAME (a program in the agent's folder of checks)")
	f.StringVar(&g.from, "health-from", "", "agent that checks (default: the destination host's)")
	f.Var(&g.limit, "health-timeout", "how long it may take to become well (default: "+drover.DefaultHealthLimit.String()+")")
	f.StringVar(&g.onUnhealthy, "on-unhealthy", "", "when it does not: return (to the source; what it wrote at the destination is lost),\nkeep (until drover commit or drover return) or commit (default: return)")
	f.StringVar(&g.mode, "gate", "", "for warm and cold: manual waits for drover commit or drover return, auto (with --health the default) does not")
	for name, values := range map[string][]string{"gate": {"auto", "manual"}, "on-unhealthy": {"return", "keep", "commit"}} {
		_ = cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
	}
}

// check says what cannot be right before anything is asked of a server.
func (g *gateFlags) check() error {
	if g.mode != "" && g.mode != "auto" && g.mode != "manual" {
		return drover.Errorf(drover.Invalid, "", "--gate %q: want auto or manual", g.mode)
	}
	if g.health == "" {
		if g.from != "" || g.limit != 0 {
			return drover.Errorf(drover.Invalid, "", "--health-from and --health-timeout are of no use without --health")
		}
	} else if _, err := drover.ParseHealth(g.health); err != nil {
		return err
	}
	return drover.Gate{OnUnhealthy: drover.Unhealthy(g.onUnhealthy)}.Validate()
}

// proto is the gate as the API has it; nil when none was asked for.
func (g *gateFlags) proto() *droverv1.Gate {
	if g.mode == "" && g.health == "" && g.onUnhealthy == "" {
		return nil
	}
	gate := &drover.Gate{Manual: g.mode == "manual", OnUnhealthy: drover.Unhealthy(g.onUnhealthy)}
	if g.health != "" {
		h, _ := drover.ParseHealth(g.health) // checked before
		h.From, h.Limit = g.from, time.Duration(g.limit)
		gate.Health = &h
	}
	return api.GateToProto(gate)
}

func newCommitCommand(a *app) *cobra.Command {
	return newGateCommand(a, &cobra.Command{
		Use:   "commit MOVE",
		Short: "Open the gate of a move: its VM stays at the destination, for good",
		Long: "Opens the gate of a warm or cold move whose VM has been started at its destination, whatever its health check\n" +
			"says. From then on there is no way back, and the source is released.",
	}, func(ctx context.Context, cl *api.Client, name string) (*droverv1.Move, error) {
		r, err := cl.CommitMove(ctx, &droverv1.CommitMoveRequest{Name: name})
		return r.GetMove(), err
	}, drover.MoveDone)
}

func newReturnCommand(a *app) *cobra.Command {
	return newGateCommand(a, &cobra.Command{
		Use:   "return MOVE",
		Short: "Take the VM of a move at its gate back to its source",
		Long: "Stops the VM at its destination and starts it again at its source, from the source's own disks. What it wrote at\n" +
			"the destination is lost.",
	}, func(ctx context.Context, cl *api.Client, name string) (*droverv1.Move, error) {
		r, err := cl.ReturnMove(ctx, &droverv1.ReturnMoveRequest{Name: name})
		return r.GetMove(), err
	}, drover.MoveUndone)
}

// newGateCommand is a command that says an operator's word and waits for the
// end that it leads to.
func newGateCommand(a *app, cmd *cobra.Command, say func(context.Context, *api.Client, string) (*droverv1.Move, error), end drover.MoveState) *cobra.Command {
	var f clientFlags
	var detach bool
	cmd.Args = oneArg("MOVE")
	cmd.RunE = func(c *cobra.Command, args []string) error {
		return f.call(c.Context(), func(ctx context.Context, cl *api.Client) error {
			p, err := say(ctx, cl, args[0])
			if err != nil {
				return err
			}
			m := api.MoveFromProto(p)
			if !detach && !m.State.Final() {
				if m, err = a.follow(ctx, cl, args[0]); err != nil {
					return err
				}
			}
			if err := a.moveResult(m); err != nil {
				return err
			}
			if m.State == end || !m.State.Final() {
				return nil // what was asked for
			}
			return outcome(m)
		})
	}
	cmd.ValidArgsFunction = complete(&f, unfinishedMoves)
	f.register(cmd)
	cmd.Flags().BoolVar(&detach, "detach", false, "do not wait for the move's end")
	return cmd
}

// gateLine is what an operator has to know of a gate while it is waited at.
func gateLine(m drover.Move) string {
	if m.Gate == nil || m.Gate.State != drover.GateWaiting {
		return ""
	}
	return fmt.Sprintf("gate %s; go on: drover commit %s; or back: drover return %s", m.Gate, m.Name, m.Name)
}
