package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"charm.land/fang/v2"
	"github.com/spf13/cobra"

	"github.com/drover-vm/drover"
)

// stdio is where a command reads and writes. Results go to out, everything
// else (progress, logs, errors) to err.
type stdio struct {
	in       io.Reader
	out, err io.Writer
}

// app is what all commands share: where they write, and the flags of the root.
type app struct {
	stdio
	output   format
	logLevel level
	// started is true once a command's own work has begun: until then every
	// failure is one of usage.
	started bool
}

// run carries out one command line and returns the exit status: 0 done,
// 1 failed, 2 bad usage, 3 refused.
func run(ctx context.Context, s stdio, args []string) int {
	a := &app{stdio: s, output: formatTable}
	root := a.rootCommand()
	root.SetArgs(args)
	root.SetIn(s.in)
	root.SetOut(s.out)
	root.SetErr(s.err)
	a.prepare(root)
	err := fang.Execute(ctx, root,
		fang.WithVersion(version),
		// Errors are printed by report, as one line each.
		fang.WithErrorHandler(func(io.Writer, fang.Styles, error) {}))
	return a.report(err)
}

// rootCommand is the tree of all commands.
func (a *app) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "drover",
		Short: "Moves virtual machines between data centers, and says when not to",
		Long: "Moves virtual machines between data centers, and says when not to.\n\n" +
			"Exit status: 0 done, 1 failed, 2 bad usage, 3 refused. With -o json, one JSON document is on\n" +
			"standard output; progress, logs and errors (one line each) are on standard error.",
	}
	root.PersistentFlags().VarP(&a.output, "output", "o", "how results are shown: table or json")
	root.PersistentFlags().Var(&a.logLevel, "log-level", "what is logged: debug, info, warn or error")
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json"}, cobra.ShellCompDirectiveNoFileComp))
	_ = root.RegisterFlagCompletionFunc("log-level", cobra.FixedCompletions([]string{"debug", "info", "warn", "error"}, cobra.ShellCompDirectiveNoFileComp))
	root.AddCommand(
		newSitesCommand(a), newHostsCommand(a), newLinksCommand(a), newVMsCommand(a), newServicesCommand(a), newMovesCommand(a),
		newSegmentsCommand(a), newEdgesCommand(a), newSignalsCommand(a), newDoctorCommand(a),
		newPreflightCommand(a), newAdviseCommand(a), newRequirementsCommand(a), newMoveCommand(a), newAccuracyCommand(a), newSpawnCommand(a), newProtectCommand(a), newCommitCommand(a), newReturnCommand(a), newProbeCommand(a),
		newServerCommand(a), newPKICommand(a), newVersionCommand(a),
	)
	root.AddCommand(a.parts()...)
	return root
}

// prepare gives every command of the tree what all have in common: usage
// errors of one kind, and groups that refuse unknown subcommands.
func (a *app) prepare(cmd *cobra.Command) {
	cmd.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return drover.Errorf(drover.Invalid, "", "%w (see %s --help)", err, c.CommandPath())
	})
	if !cmd.Runnable() {
		cmd.Args = cobra.ArbitraryArgs
		cmd.RunE = func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(c, args[0])
			}
			return c.Help()
		}
	} else if do := cmd.RunE; do != nil {
		cmd.RunE = func(c *cobra.Command, args []string) error {
			a.started = true
			return do(c, args)
		}
	} else {
		do := cmd.Run
		cmd.Run = func(c *cobra.Command, args []string) {
			a.started = true
			do(c, args)
		}
	}
	for _, c := range cmd.Commands() {
		a.prepare(c)
	}
}

func unknownCommand(c *cobra.Command, got string) error {
	c.SuggestionsMinimumDistance = 2
	if near := c.SuggestionsFor(got); len(near) > 0 {
		return drover.Errorf(drover.Invalid, "", "unknown command %q for %q, did you mean %s?",
			got, c.CommandPath(), strings.Join(near, " or "))
	}
	return drover.Errorf(drover.Invalid, "", "unknown command %q for %q (see %s --help)", got, c.CommandPath(), c.CommandPath())
}

// exitStatus ends a command with a status of its own, after everything there
// was to say has been said.
type exitStatus int

func (s exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

// report prints an error, one line "drover: …" for each fault, and returns the
// exit status.
func (a *app) report(err error) int {
	if err == nil {
		return 0
	}
	var status exitStatus
	if errors.As(err, &status) {
		return int(status)
	}
	for line := range strings.Lines(err.Error()) {
		if line = strings.TrimSpace(line); line != "" {
			fmt.Fprintln(a.err, "drover:", line)
		}
	}
	if !a.started {
		return drover.Invalid.ExitStatus()
	}
	return drover.KindOf(err).ExitStatus()
}

// logger writes structured lines to standard error.
func (a *app) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(a.err, &slog.HandlerOptions{Level: slog.Level(a.logLevel)}))
}

// format is the value of --output.
type format string

const (
	formatTable format = "table"
	formatJSON  format = "json"
)

// Set reads a format.
func (f *format) Set(s string) error {
	switch format(s) {
	case formatTable, formatJSON:
		*f = format(s)
		return nil
	}
	return errors.New("want table or json")
}

func (f *format) String() string { return string(*f) }

// Type names the value in help texts.
func (f *format) Type() string { return "FORMAT" }

// level is the value of --log-level.
type level slog.Level

// Set reads a level.
func (l *level) Set(s string) error {
	for _, v := range []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError} {
		if strings.EqualFold(v.String(), s) {
			*l = level(v)
			return nil
		}
	}
	return errors.New("want debug, info, warn or error")
}

func (l *level) String() string { return strings.ToLower(slog.Level(*l).String()) }

// Type names the value in help texts.
func (l *level) Type() string { return "LEVEL" }
