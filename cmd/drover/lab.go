package main

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/lab"
	"github.com/drover-vm/drover/lab/files"
	"github.com/drover-vm/drover/lab/labfile"
	"github.com/drover-vm/drover/lab/node"
)

// defaultLab is the ready lab that "lab up" without a file starts.
const defaultLab = "pair"

// labFlags are what all lab commands share.
type labFlags struct {
	dir, name string
}

func (f *labFlags) options(a *app) lab.Options {
	return lab.Options{Dir: f.dir, Log: a.logger()}
}

// open finds the lab that --lab names, or the only one.
func (f *labFlags) open(a *app) (*lab.Lab, error) { return lab.Open(f.options(a), f.name) }

// newLabCommand runs data centers on this machine.
func newLabCommand(a *app) *cobra.Command {
	f := &labFlags{}
	c := &cobra.Command{
		Use:   "lab",
		Short: "Run several data centers on this machine, from one lab file",
		Long: "Run several data centers on this machine, from one lab file: hosts with libvirt, guests, agents and\n" +
			"a server in namespaces, and emulated WAN links between the sites. Needs root.\n\n" +
			"Ready lab files: " + strings.Join(files.Names(), ", ") + ".",
	}
	c.PersistentFlags().StringVar(&f.dir, "state-dir", "", "folder of all labs (default $"+lab.DirEnv+" or "+lab.DefaultDir+")")
	c.AddCommand(newLabUpCommand(a, f), newLabCheckCommand(a, f), newLabDownCommand(a, f), newLabListCommand(a, f),
		newLabExecCommand(a, f), newLabServiceCommand(a, f), newLabLinkCommand(a, f))
	return c
}

// newLabProcessCommands are the background processes of a lab; they are not for
// people.
func newLabProcessCommands() []*cobra.Command {
	hidden := func(name, short string, main func([]string) int) *cobra.Command {
		return &cobra.Command{
			Use: name, Short: short, Hidden: true, DisableFlagParsing: true,
			RunE: func(_ *cobra.Command, args []string) error {
				if status := main(args); status != 0 {
					return exitStatus(status)
				}
				return nil
			},
		}
	}
	return []*cobra.Command{
		hidden(node.Subcommand, "Hold a node of a lab", node.Main),
		hidden(lab.WANSubcommand, "Carry a lab's WAN links", lab.WANMain),
	}
}

// labFlag adds --lab.
func labFlag(a *app, c *cobra.Command, f *labFlags) {
	c.Flags().StringVar(&f.name, "lab", "", "the lab, where several are up")
	_ = c.RegisterFlagCompletionFunc("lab", func(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		return labNames(a, f), cobra.ShellCompDirectiveNoFileComp
	})
}

func labNames(a *app, f *labFlags) []string {
	return lab.Names(f.options(a))
}

func newLabUpCommand(a *app, f *labFlags) *cobra.Command {
	var bare, wait bool
	var name string
	c := &cobra.Command{
		Use:   "up [FILE]",
		Short: "Start the data centers of a lab file, or of a ready one (" + strings.Join(files.Names(), ", ") + ")",
		Args:  atMostOne("FILE"),
		RunE: func(c *cobra.Command, args []string) error {
			file, err := labfile.Load(oneOr(args, defaultLab))
			if err != nil {
				return err
			}
			if c.Flags().Changed("name") {
				if err := file.Rename(name); err != nil {
					return err
				}
			}
			o := f.options(a)
			o.Bare, o.WaitGuests = bare, wait
			l, err := lab.Up(c.Context(), o, file)
			if err != nil {
				return err
			}
			if a.output == formatJSON {
				return a.json(l.State)
			}
			return a.labTables([]lab.State{l.State})
		},
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return files.Names(), cobra.ShellCompDirectiveDefault
		},
	}
	c.Flags().StringVar(&name, "name", "", "name of the lab instead of the file's, so that one file can be up twice")
	c.Flags().BoolVar(&bare, "bare", false, "without agents and server: hosts, guests and links only")
	c.Flags().BoolVar(&wait, "wait-guests", false, "wait until the guests' probes answer")
	return c
}

func newLabCheckCommand(a *app, f *labFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "check [FILE]",
		Short: "Check a lab file against this machine; start nothing",
		Args:  atMostOne("FILE"),
		RunE: func(c *cobra.Command, args []string) error {
			file, err := labfile.Load(oneOr(args, defaultLab))
			if err != nil {
				return err
			}
			if err := lab.Check(c.Context(), f.options(a), file); err != nil {
				return err
			}
			if a.output == formatJSON {
				return a.json(map[string]any{"ok": true, "name": file.Name})
			}
			_, err = fmt.Fprintln(a.out, file)
			return err
		},
	}
}

func newLabDownCommand(a *app, f *labFlags) *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use:   "down [NAME]",
		Short: "Remove a lab and everything of it, in whatever state it is",
		Args:  atMostOne("NAME"),
		RunE: func(c *cobra.Command, args []string) error {
			name := oneOr(args, "")
			if all && name != "" {
				return drover.Errorf(drover.Invalid, "", "--all and the name %q: want one of them", name)
			}
			done, err := lab.Down(c.Context(), f.options(a), name, all)
			if err != nil {
				return err
			}
			if a.output == formatJSON {
				return a.json(map[string][]string{"down": append([]string{}, done...)})
			}
			if len(done) == 0 {
				_, err = fmt.Fprintln(a.err, "nothing to do: no such lab is up")
				return err
			}
			_, err = fmt.Fprintln(a.out, strings.Join(done, "\n"))
			return err
		},
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return labNames(a, f), cobra.ShellCompDirectiveNoFileComp
		},
	}
	c.Flags().BoolVar(&all, "all", false, "every lab of this machine")
	return c
}

func newLabListCommand(a *app, f *labFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the labs: nodes, links, and where the guests are",
		Args:  noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			labs, err := lab.List(c.Context(), f.options(a))
			if err != nil {
				return err
			}
			if a.output == formatJSON {
				return a.json(map[string][]lab.State{"labs": labs})
			}
			return a.labTables(labs)
		},
	}
}

// labTables shows labs, their nodes and their guests.
func (a *app) labTables(labs []lab.State) error {
	var heads, nodes, guests [][]string
	for _, l := range labs {
		heads = append(heads, []string{l.Name, string(l.Phase), fmt.Sprint(len(l.Nodes)), fmt.Sprint(len(l.Links)), fmt.Sprint(len(l.Guests)), l.Client})
		for _, n := range l.Nodes {
			nodes = append(nodes, []string{l.Name, n.Name, string(n.Role), n.Site, n.Address})
		}
		for _, g := range l.Guests {
			guests = append(guests, []string{l.Name, g.Name, g.Host, g.State, g.Address, g.Image})
		}
	}
	for _, t := range []struct {
		head []string
		rows [][]string
	}{
		{[]string{"LAB", "STATE", "NODES", "LINKS", "GUESTS", "CONFIG"}, heads},
		{[]string{"LAB", "NODE", "ROLE", "SITE", "ADDRESS"}, nodes},
		{[]string{"LAB", "GUEST", "HOST", "STATE", "ADDRESS", "IMAGE"}, guests},
	} {
		if len(t.rows) == 0 {
			continue
		}
		if err := a.table(t.head, t.rows); err != nil {
			return err
		}
	}
	return nil
}

func newLabExecCommand(a *app, f *labFlags) *cobra.Command {
	c := &cobra.Command{
		Use:   "exec NODE -- CMD [ARG...]",
		Short: "Run a command inside a node, with its exit status",
		Args: func(c *cobra.Command, args []string) error {
			if len(execArgs(args)) < 2 {
				return drover.Errorf(drover.Invalid, "", "want a node and a command: drover lab exec n1 -- ip address")
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			l, err := f.open(a)
			if err != nil {
				return err
			}
			args = execArgs(args)
			cmd, err := l.Command(c.Context(), args[0], args[1:]...)
			if err != nil {
				return err
			}
			cmd.Stdin, cmd.Stdout, cmd.Stderr = a.in, a.out, a.err
			if in, ok := a.in.(*os.File); ok && term.IsTerminal(int(in.Fd())) {
				// The terminal's own signals reach the command as they reach us.
				cmd.SysProcAttr, cmd.Cancel = nil, nil
			}
			err = cmd.Run()
			if exit, ok := err.(*exec.ExitError); ok && exit.ExitCode() >= 0 {
				return exitStatus(exit.ExitCode())
			}
			return err
		},
	}
	labFlag(a, c, f)
	c.Flags().SetInterspersed(false)
	return c
}

// execArgs drops the "--" between node and command: what follows the node is the
// command's in any case.
func execArgs(args []string) []string {
	if len(args) > 1 && args[1] == "--" {
		return slices.Delete(slices.Clone(args), 1, 2)
	}
	return args
}

func newLabServiceCommand(a *app, f *labFlags) *cobra.Command {
	actions := []string{string(node.Start), string(node.Stop), string(node.Restart), string(node.Kill)}
	c := &cobra.Command{
		Use:   "service NODE [SERVICE " + strings.Join(actions, "|") + "]",
		Short: "Show the services of a node, or stop, start, restart or kill one",
		Long: "Show the services of a node, or stop, start, restart or kill one.\n\n" +
			"A killed service is started again after a second, as after any other death; a stopped one stays down.",
		Args: func(c *cobra.Command, args []string) error {
			if len(args) != 1 && len(args) != 3 {
				return drover.Errorf(drover.Invalid, "", "want %s", usage(c))
			}
			if len(args) == 3 && !slices.Contains(actions, args[2]) {
				return drover.Errorf(drover.Invalid, "", "%q: want one of %s", args[2], strings.Join(actions, ", "))
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			l, err := f.open(a)
			if err != nil {
				return err
			}
			action, service := node.List, ""
			if len(args) == 3 {
				action, service = node.Action(args[2]), args[1]
			}
			states, err := l.Service(c.Context(), args[0], action, service)
			if err != nil {
				return err
			}
			if a.output == formatJSON {
				return a.json(map[string]any{"node": args[0], "services": states})
			}
			var rows [][]string
			for _, s := range states {
				rows = append(rows, []string{s.Name, string(s.State), fmt.Sprint(s.Starts), s.LastExit})
			}
			return a.table([]string{"SERVICE", "STATE", "STARTS", "LAST EXIT"}, rows)
		},
	}
	labFlag(a, c, f)
	return c
}

// atMostOne wants one argument or none.
func atMostOne(what string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) > 1 {
			return drover.Errorf(drover.Invalid, "", "%q is one argument too many: want at most one %s", args[1], what)
		}
		return nil
	}
}

func oneOr(args []string, def string) string {
	if len(args) == 0 {
		return def
	}
	return args[0]
}
