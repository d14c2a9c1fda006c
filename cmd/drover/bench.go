package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/lab/bench"
)

// newBenchCommand measures Drover in labs of its own.
func newBenchCommand(a *app) *cobra.Command {
	var (
		o    bench.Options
		list bool
		only []string
	)
	cmd := &cobra.Command{
		Use:   "bench NAME",
		Short: "Measure Drover in a lab; prints a table, or one JSON document",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if list {
				for _, b := range bench.All() {
					fmt.Fprintf(a.out, "%-10s %s\n", b.Name, b.Doc)
				}
				return nil
			}
			if len(args) != 1 {
				return drover.Errorf(drover.Invalid, "bench", "want the name of a benchmark (see drover bench --list)")
			}
			if o.Runs < 0 {
				return drover.Errorf(drover.Invalid, "--runs", "%d: want 1 or more", o.Runs)
			}
			picked, err := parseOnly(only)
			if err != nil {
				return err
			}
			o.Only, o.Commit, o.Log = picked, version, a.err
			if o.Bin, err = os.Executable(); err != nil {
				return err
			}
			report, err := bench.Run(cmd.Context(), args[0], o)
			if report != nil {
				err = errors.Join(err, a.printReport(report))
			}
			return err
		},
	}
	f := cmd.Flags()
	f.BoolVar(&list, "list", false, "name the benchmarks there are")
	f.StringSliceVar(&only, "only", nil, "pick rows, as KEY=VALUE,…")
	f.Int64Var(&o.Seed, "seed", 1, "what random choices are drawn from")
	f.IntVar(&o.Runs, "runs", 0, "how often each row is measured; 0 is the benchmark's own choice")
	f.DurationVar(&o.ReturnAfter, "return-after", 10*time.Minute, "wan: how long a guest is away before it returns")
	f.StringVar(&o.Record, "record", "", "forecast: write each move with all that it was foretold from to this file")
	f.StringVar(&o.Replay, "replay", "", "forecast: foretell the moves of such a file anew, without a lab")
	f.StringVar(&o.LabFile, "lab", "", "measure in this lab (a file or a ready lab's name)")
	f.StringVar(&o.Guest, "guest", "", "measure this guest of the lab")
	return cmd
}

// newFillCommand is the benchmark's own process; it is not for people.
func newFillCommand() *cobra.Command {
	return &cobra.Command{
		Use: bench.FillSubcommand, Short: "Fill a link through the data path", Hidden: true, DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, args []string) error {
			if status := bench.FillMain(args); status != 0 {
				return exitStatus(status)
			}
			return nil
		},
	}
}

// parseOnly reads KEY=VALUE pairs; a key may come more than once.
func parseOnly(pairs []string) (map[string][]string, error) {
	only := map[string][]string{}
	for _, p := range pairs {
		k, v, ok := strings.Cut(p, "=")
		if !ok || k == "" {
			return nil, drover.Errorf(drover.Invalid, "--only", "%q: want KEY=VALUE", p)
		}
		only[k] = append(only[k], v)
	}
	return only, nil
}

func (a *app) printReport(r *bench.Report) error {
	if a.output == formatJSON {
		enc := json.NewEncoder(a.out)
		enc.SetIndent("", "  ")
		return enc.Encode(r)
	}
	var columns []string
	for _, row := range r.Rows {
		for k := range row {
			if !slices.Contains(columns, k) {
				columns = append(columns, k)
			}
		}
	}
	slices.Sort(columns)
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, strings.Join(columns, "\t"))
	for _, row := range r.Rows {
		for _, c := range columns {
			switch v := row[c].(type) {
			case nil:
				fmt.Fprint(w, "-\t")
			case float64:
				fmt.Fprintf(w, "%.4g\t", v)
			default:
				fmt.Fprintf(w, "%v\t", v)
			}
		}
		fmt.Fprintln(w)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, k := range slices.Sorted(func(yield func(string) bool) {
		for k := range r.Summary {
			if !yield(k) {
				return
			}
		}
	}) {
		fmt.Fprintf(a.out, "%s: %v\n", k, r.Summary[k])
	}
	return nil
}
