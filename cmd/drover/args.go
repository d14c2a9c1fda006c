package main

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/drover-vm/drover"
)

// noArgs refuses arguments; for a command with subcommands they are a
// subcommand that does not exist.
func noArgs(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if c.HasAvailableSubCommands() {
		return unknownCommand(c, args[0])
	}
	return drover.Errorf(drover.Invalid, "", "%q: %s takes no argument", args[0], c.CommandPath())
}

// oneArg wants exactly one argument; what names it ("VM").
func oneArg(what string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		switch len(args) {
		case 1:
			return nil
		case 0:
			return drover.Errorf(drover.Invalid, "", "missing %s: want %s", what, usage(c))
		default:
			return drover.Errorf(drover.Invalid, "", "%q is one argument too many: want %s", args[1], usage(c))
		}
	}
}

func usage(c *cobra.Command) string {
	return strings.TrimSuffix(c.UseLine(), " [flags]")
}
