package main

import "github.com/spf13/cobra"

// parts are the commands besides the operator's own, each with a file of its
// own beside this one. A constructor gets the app: a.out for results, a.err
// for the rest, a.output for -o, a.logger().
func (a *app) parts() []*cobra.Command {
	lab := newLabCommand(a)
	lab.AddCommand(newDemoCommand(a))
	return append(newLabProcessCommands(), lab, newBenchCommand(a), newFillCommand(), newAgentCommand(a), newBGPSpeakerCommand(a))
}
