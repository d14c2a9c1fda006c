package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
)

// moveFlags are the wishes a move can be started with.
type moveFlags struct {
	target
	keepSource, forceShutdown, detach, noThrottle bool
	bandwidth                                     rateFlag
	maxPause, grace, maxDowntime                  durationFlag
	gate                                          gateFlags
}

func newMoveCommand(a *app) *cobra.Command {
	var f moveFlags
	cmd := &cobra.Command{
		Use:   "move VM --to SITE",
		Short: "Move a VM, and say what a client saw of it",
		Long: "Moves a VM to another site or host. The preflight runs first, and a move that would fail changes nothing\n" +
			"(exit status 3, with the preflight's report as the result). Then the command watches the move; interrupting it\n" +
			"leaves the move running.",
		Example: "drover move web1 --to south\ndrover move db1 --to south/s2 --method cold --shutdown-grace 5m\n" +
			"drover move db1 --to south --method warm --health tcp:5432 --on-unhealthy return\n" +
			"drover move web1 --to south --method stretch --local-egress\n" +
			"drover move web1 --to south --method route --storage stay\ndrover move web1 --disks-only\n" +
			"drover move web1 --to south --method redirect --backend web --drain-cap 5m\n" +
			"drover move web1 --to south --method renumber --segment green --name web1.example.net",
		Args: func(c *cobra.Command, args []string) error {
			return errors.Join(f.check(c, args), f.gate.check())
		},
		RunE: func(c *cobra.Command, args []string) error {
			return f.call(c.Context(), func(ctx context.Context, cl *api.Client) error {
				return a.move(ctx, cl, args[0], &f)
			})
		},
	}
	f.register(cmd)
	fl := cmd.Flags()
	fl.BoolVar(&f.keepSource, "keep-source", false, "keep the VM's disks at the source after the move")
	fl.BoolVar(&f.detach, "detach", false, "do not wait for the move's end")
	fl.Var(&f.bandwidth, "bandwidth", "most that the move may send, such as 100Mbit (default: unlimited)")
	fl.Var(&f.maxPause, "max-pause", "pause that a live move aims at, such as 300ms")
	fl.BoolVar(&f.noThrottle, "no-throttle", false, "for live: do not hold the guest's processors back when its memory changes faster than it can be sent")
	fl.Var(&f.maxDowntime, "max-downtime", "for warm: how long sending the last changes may take, such as 2s, beside shutting down and booting")
	f.gate.register(cmd)
	fl.Var(&f.grace, "shutdown-grace", "for warm and cold: how long the guest may take to power off")
	fl.BoolVar(&f.forceShutdown, "force-shutdown", false, "for warm and cold: pull the plug when the guest has not powered off in time")
	cmd.AddCommand(newMoveWatchCommand(a), newMoveCancelCommand(a), newMoveRateCommand(a), newMoveEndOldCommand(a))
	return cmd
}

// move starts a move and, unless it is to be detached, watches it to its end.
func (a *app) move(ctx context.Context, cl *api.Client, vm string, f *moveFlags) error {
	r, err := cl.StartMove(ctx, &droverv1.StartMoveRequest{
		Vm: vm, To: api.PlaceToProto(drover.Place(f.to)), Method: string(f.method),
		KeepSource: f.keepSource, RequestId: rand.Text(), BandwidthBps: int64(f.bandwidth),
		MaxPauseMillis: f.maxPause.millis(), ShutdownGraceMillis: f.grace.millis(), ForceShutdown: f.forceShutdown,
		LocalEgress: f.localEgress, Addresses: f.addresses, Renumber: f.place.proto(drover.Method(f.method)),
		Clone: f.clone.proto(drover.Method(f.method)), Storage: f.storage, DisksOnly: f.disksOnly,
		NoThrottle: f.noThrottle, MaxDowntimeMillis: f.maxDowntime.millis(), Gate: f.gate.proto(),
	})
	if ctx.Err() != nil {
		return drover.Errorf(drover.Canceled, "", "interrupted while the move was being started; see: drover moves")
	}
	if err != nil {
		return err
	}
	if r.GetMove() == nil {
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
	if r.GetPreflight() != nil {
		preflightLine(a.err, api.PreflightFromProto(r.GetPreflight()))
	}
	m := api.MoveFromProto(r.GetMove())
	if f.detach {
		fmt.Fprintf(a.err, "move %s goes on by itself; %s\n", m.Name, howToGoOn(m.Name))
		return a.moveResult(m)
	}
	return a.watch(ctx, cl, m.Name)
}

func howToGoOn(name string) string {
	return "watch it: drover move watch " + name + "; cancel it: drover move cancel " + name
}

func newMoveWatchCommand(a *app) *cobra.Command {
	var f clientFlags
	cmd := &cobra.Command{
		Use:   "watch MOVE",
		Short: "Follow a move to its end",
		Args:  oneArg("MOVE"),
		RunE: func(c *cobra.Command, args []string) error {
			return f.call(c.Context(), func(ctx context.Context, cl *api.Client) error {
				return a.watch(ctx, cl, args[0])
			})
		},
		ValidArgsFunction: complete(&f, unfinishedMoves),
	}
	f.register(cmd)
	return cmd
}

func newMoveCancelCommand(a *app) *cobra.Command {
	var f clientFlags
	var detach bool
	cmd := &cobra.Command{
		Use:   "cancel MOVE",
		Short: "Undo a move that has not passed the point of no return",
		Args:  oneArg("MOVE"),
		RunE: func(c *cobra.Command, args []string) error {
			return f.call(c.Context(), func(ctx context.Context, cl *api.Client) error {
				r, err := cl.CancelMove(ctx, &droverv1.CancelMoveRequest{Name: args[0]})
				if err != nil {
					return err
				}
				m := api.MoveFromProto(r.GetMove())
				if !detach && !m.State.Final() {
					if m, err = a.follow(ctx, cl, args[0]); err != nil {
						return err
					}
				}
				if err := a.moveResult(m); err != nil {
					return err
				}
				if m.State == drover.MoveUndone || !m.State.Final() {
					return nil // what was asked for
				}
				return outcome(m)
			})
		},
		ValidArgsFunction: complete(&f, unfinishedMoves),
	}
	f.register(cmd)
	cmd.Flags().BoolVar(&detach, "detach", false, "do not wait until the move is undone")
	return cmd
}

func newMoveRateCommand(a *app) *cobra.Command {
	var f clientFlags
	cmd := &cobra.Command{
		Use:   "rate MOVE RATE",
		Short: "Change how much a move may send, while it runs",
		Long: "Changes how much a move may send: memory and disks together, in bits per second, or \"unlimited\".\n" +
			"It holds at once where the move is sending, and for all that it still has to send.",
		Example: "drover move rate m0abc 100Mbit\ndrover move rate m0abc unlimited",
		Args:    moveAndRate,
		RunE: func(c *cobra.Command, args []string) error {
			return f.call(c.Context(), func(ctx context.Context, cl *api.Client) error {
				bps, err := parseLimit(args[1])
				if err != nil {
					return err
				}
				r, err := cl.SetMoveRate(ctx, &droverv1.SetMoveRateRequest{Name: args[0], BandwidthBps: int64(bps)})
				if err != nil {
					return err
				}
				m := api.MoveFromProto(r.GetMove())
				if a.output == formatJSON {
					return a.json(m)
				}
				limit := "without limit"
				if m.Bandwidth > 0 {
					limit = "at up to " + m.Bandwidth.String()
				}
				_, err = fmt.Fprintf(a.out, "move %s of %s sends %s\n", m.Name, m.VM, limit)
				return err
			})
		},
		ValidArgsFunction: complete(&f, unfinishedMoves),
	}
	f.register(cmd)
	return cmd
}

// moveAndRate wants a move and a rate that can be read.
func moveAndRate(c *cobra.Command, args []string) error {
	if len(args) != 2 {
		return drover.Errorf(drover.Invalid, "", "want MOVE and RATE, got %d arguments (see %s --help)", len(args), c.CommandPath())
	}
	_, err := parseLimit(args[1])
	return err
}

// parseLimit reads a rate above zero, or "unlimited", which is zero.
func parseLimit(s string) (drover.BitRate, error) {
	if s == "unlimited" {
		return 0, nil
	}
	r, err := drover.ParseBitRate(s)
	if err == nil && r <= 0 {
		err = fmt.Errorf("rate %q: want more than zero, or unlimited", s)
	}
	return r, drover.E(drover.Invalid, "", err)
}

func newMovesCommand(a *app) *cobra.Command {
	cmd := newListCommand(a, listing[drover.Move]{
		noun: "moves", one: "move", short: "List the moves, with what was measured", fetch: fetchMoves,
		get: func(ctx context.Context, c *api.Client, name string) (drover.Move, error) {
			r, err := c.GetMove(ctx, &droverv1.GetMoveRequest{Name: name})
			return api.MoveFromProto(r.GetMove()), err
		},
		name: func(m drover.Move) string { return m.Name },
		head: []string{"MOVE", "VM", "FROM", "TO", "METHOD", "STATE", "BEGUN", "TOTAL", "PAUSE", "OUTAGE", "WIRE", "LOST", "FAULT"},
		row: func(m drover.Move) []string {
			f := m.Measured
			return []string{
				m.Name, m.VM, m.From.String(), m.To.String(), string(m.Method), string(m.State), moment(m.Created),
				seconds(f.TotalSeconds), millis(f.PauseMillis), millis(f.OutageMillis), bytesOf(f.WireBytes),
				count(f.SessionsLost), m.Fault,
			}
		},
	})
	cmd.AddCommand(newMoveWatchCommand(a))
	return cmd
}

// moveResult shows a move as a command's result.
func (a *app) moveResult(m drover.Move) error {
	if a.output == formatJSON {
		return a.json(m)
	}
	var b strings.Builder
	switch m.State {
	case drover.MoveDone:
		if line := ended(m); line != "" {
			b.WriteString(line)
			break
		}
		fmt.Fprintf(&b, "done: %s is at %s\n", m.VM, m.To)
	case drover.MoveUndone:
		fmt.Fprintf(&b, "undone: %s is at %s as before\n", m.VM, m.From)
	case drover.MoveStuck:
		fmt.Fprintf(&b, "stuck: %s from %s to %s needs a person\n", m.VM, m.From, m.To)
	default:
		fmt.Fprintf(&b, "%s: move %s of %s from %s to %s by method %s\n", m.State, m.Name, m.VM, m.From, m.To, m.Method)
	}
	if m.Gate != nil {
		fmt.Fprintln(&b, "  gate:", m.Gate)
	}
	if line := cloneLine(m); line != "" {
		fmt.Fprintln(&b, " ", line)
	}
	if line := renumberLine(m.Renumber); line != "" {
		fmt.Fprintln(&b, " ", line)
	}
	if line := expectedLine(m.Forecast); line != "" {
		fmt.Fprintln(&b, "  expected:", line)
	}
	if line := figuresLine(m.Measured); line != "" {
		fmt.Fprintln(&b, " ", line)
	}
	for _, line := range pathLines(m.Measured.Path) {
		fmt.Fprintln(&b, " ", line)
	}
	_, err := fmt.Fprint(a.out, b.String())
	return err
}

// figuresLine shows what was measured, and only that.
func figuresLine(f drover.Figures) string {
	var parts []string
	for _, p := range []struct{ name, value string }{
		{"total", seconds(f.TotalSeconds)},
		{"pause", millis(f.PauseMillis)},
		{"outage", millis(f.OutageMillis)},
		{"http outage", millis(f.OutageHTTP)},
		{"wire", bytesOf(f.WireBytes)},
		{"guest", bytesOf(f.GuestBytes)},
		{"cost", price(f.Cost)},
		{"extra round trip", millis(f.ExtraRTT)},
		{"trombone", rateAbove0(f.HairpinBPS)},
		{"disks left behind", rateAbove0(f.RemoteIOBPS)},
		{"sessions lost", lostOf(f)},
	} {
		if p.value != "" {
			parts = append(parts, p.name+" "+p.value)
		}
	}
	return strings.Join(parts, "   ")
}

func rateOf(bps *int64) string {
	if bps == nil {
		return ""
	}
	return drover.BitRate(*bps).String()
}

// rateAbove0 shows what is worth showing.
func rateAbove0(bps *int64) string {
	if bps == nil || *bps == 0 {
		return ""
	}
	return rateOf(bps)
}

func lostOf(f drover.Figures) string {
	if f.SessionsLost != nil && f.Sessions != nil {
		return fmt.Sprintf("%d of %d", *f.SessionsLost, *f.Sessions)
	}
	return count(f.SessionsLost)
}

// outcome is the error of a move that has not ended where it should.
func outcome(m drover.Move) error {
	switch m.State {
	case drover.MoveDone:
		return nil
	case drover.MoveUndone:
		return drover.Errorf(drover.Internal, "move "+m.Name, "undone, %s is at %s as before: %s", m.VM, m.From, orDash(m.Fault))
	case drover.MoveStuck:
		return drover.Errorf(drover.Internal, "move "+m.Name, "stuck: %s; look at drover moves get %s -o json", orDash(m.Fault), m.Name)
	default:
		return drover.Errorf(drover.Internal, "move "+m.Name, "%s", m.State)
	}
}
