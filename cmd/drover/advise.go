package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
)

// adviseFlags are what advice is asked with.
type adviseFlags struct {
	clientFlags
	to     placeFlag
	all    bool
	quick  bool
	fresh  bool
	whyNot methodFlag
}

func newAdviseCommand(a *app) *cobra.Command {
	var f adviseFlags
	cmd := &cobra.Command{
		Use:   "advise VM [--to SITE]",
		Short: "Say by which method a VM should move, or why it should stay",
		Long: "Says by which method a VM should come to a site, or that it should stay, with the reasons for and against each\n" +
			"method and what would change the answer. Without --to it says at which site the VM should be. Nothing is changed.\n\n" +
			"Exit status 3 where the answer is not to go where was asked, or where the method of --why-not cannot be taken.",
		Example: "drover advise db1 --to south\ndrover advise db1\ndrover advise --all --to south\ndrover advise db1 --to south --why-not cold",
		Args:    f.check,
		RunE: func(c *cobra.Command, args []string) error {
			return f.call(c.Context(), func(ctx context.Context, cl *api.Client) error {
				if f.all {
					return a.adviseAll(ctx, cl, f.to.Site)
				}
				return a.advise(ctx, cl, args[0], &f)
			})
		},
	}
	fl := cmd.Flags()
	fl.Var(&f.to, "to", "where the VM would be: SITE or SITE/HOST (default: the best site)")
	fl.BoolVar(&f.all, "all", false, "of every VM that is not there, in a table, as far as the inventory can tell")
	fl.BoolVar(&f.quick, "quick", false, "do not have the agents check what is advised")
	fl.BoolVar(&f.fresh, "fresh", false, "have the VM's agent look at it first, which takes some seconds")
	fl.Var(&f.whyNot, "why-not", "say what is for and against this method")
	_ = cmd.RegisterFlagCompletionFunc("to", completeFlag(&f.clientFlags, places))
	_ = cmd.RegisterFlagCompletionFunc("why-not", cobra.FixedCompletions(methodStrings(), cobra.ShellCompDirectiveNoFileComp))
	cmd.ValidArgsFunction = complete(&f.clientFlags, vmNames)
	f.register(cmd)
	return cmd
}

// check is cobra's Args.
func (f *adviseFlags) check(c *cobra.Command, args []string) error {
	bad := func(format string, args ...any) error {
		return drover.Errorf(drover.Invalid, "", format+" (see drover advise --help)", args...)
	}
	switch {
	case f.all && len(args) > 0:
		return bad("want --all or a VM, not both")
	case f.all && (f.to.Site == "" || f.to.Host != ""):
		return bad("missing --to: want --all --to SITE")
	case f.all && f.fresh:
		return bad("--fresh is for one VM")
	case f.all && f.whyNot != "":
		return bad("--why-not is for one VM")
	case f.all:
		return nil
	case f.whyNot != "" && f.to.Site == "":
		return bad("missing --to: want --why-not METHOD --to SITE")
	}
	if err := oneArg("VM")(c, args); err != nil {
		return err
	}
	return drover.CheckName("VM", args[0])
}

func (a *app) advise(ctx context.Context, cl *api.Client, vm string, f *adviseFlags) error {
	r := &droverv1.AdviseRequest{Vm: vm, NoPreflight: f.quick, Fresh: f.fresh}
	if f.to.Site != "" {
		r.To = api.PlaceToProto(drover.Place(f.to))
	}
	resp, err := cl.Advise(ctx, r)
	if err != nil {
		return err
	}
	advice := api.AdviceFromProto(resp.GetAdvice())
	if f.whyNot != "" {
		return a.whyNot(advice, drover.Method(f.whyNot))
	}
	if a.output == formatJSON {
		err = a.json(advice)
	} else {
		err = a.adviceText(advice, f.to.Site == "")
	}
	if err != nil || f.to.Site == "" || advice.Method != drover.Stay || advice.From == f.to.Site {
		return err
	}
	return drover.Errorf(drover.Refused, "", "%s should stay at %s", advice.VM, advice.From)
}

// whyNot says all of one method.
func (a *app) whyNot(advice drover.Advice, m drover.Method) error {
	entry := advice.Of(m)
	if entry == nil {
		return drover.Errorf(drover.Internal, "", "the server says nothing of method %s", m)
	}
	if a.output == formatJSON {
		if err := a.json(entry); err != nil {
			return err
		}
	} else {
		var b strings.Builder
		fmt.Fprintf(&b, "%s to %s by %s: %s\n", advice.VM, advice.To, m, judged(*entry, advice.Method))
		methodLines(&b, *entry, "  ")
		if _, err := fmt.Fprint(a.out, b.String()); err != nil {
			return err
		}
	}
	if entry.Feasible {
		return nil
	}
	return drover.Errorf(drover.Refused, "", "%s cannot go to %s by %s", advice.VM, advice.To, m)
}

// judged says in a word what a method is.
func judged(m drover.MethodAdvice, advised drover.Method) string {
	switch {
	case m.Method == advised:
		return "advised"
	case m.Meets && m.Method != drover.Stay:
		return "would do; " + string(advised) + " is simpler"
	case !m.Feasible:
		return "not possible"
	case len(m.Nearly) > 0:
		return "nearly"
	default:
		return "not advised"
	}
}

// methodLines writes what is for and against a method.
func methodLines(b *strings.Builder, m drover.MethodAdvice, indent string) {
	for _, part := range []struct {
		sign  string
		lines []string
	}{{"+ ", m.For}, {"- ", m.Against}, {"! ", m.Caveats}, {"> ", m.Changes}} {
		for _, l := range part.lines {
			fmt.Fprintln(b, indent+part.sign+l)
		}
	}
	if line := forecastLine(m.Forecast); line != "" {
		fmt.Fprintln(b, indent+"= "+line)
	}
}

// forecastLine shows the figures of a forecast that matter most.
func forecastLine(f *drover.Forecast) string {
	if f == nil {
		return ""
	}
	var parts []string
	add := func(name string, r *drover.Range, unit func(*float64) string) {
		if r != nil {
			parts = append(parts, fmt.Sprintf("%s %s (%s to %s)", name, unit(&r.P50), unit(&r.P10), unit(&r.P90)))
		}
	}
	add("total", f.TotalSeconds, seconds)
	add("pause", f.PauseMillis, millis)
	add("outage", f.OutageMillis, millis)
	add("wire", f.WireBytes, func(v *float64) string { return drover.Bytes(*v).String() })
	if f.Cost != nil && f.Cost.P90 > 0 {
		add("cost", f.Cost, price)
	}
	return strings.Join(parts, "   ")
}

// adviceText shows an advice: the answer, why, what would change it, and the
// other methods with what weighs most.
func (a *app) adviceText(advice drover.Advice, best bool) error {
	var b strings.Builder
	switch {
	case advice.Method == drover.Stay:
		fmt.Fprintf(&b, "%s: stay at %s\n", advice.VM, advice.From)
	case best:
		fmt.Fprintf(&b, "%s: to %s by %s\n", advice.VM, advice.To, advice.Method)
	default:
		fmt.Fprintf(&b, "%s from %s to %s: %s\n", advice.VM, advice.From, advice.To, advice.Method)
	}
	for _, l := range advice.Reasons {
		fmt.Fprintln(&b, "  "+l)
	}
	if m := advice.Of(advice.Method); m != nil && m.Method != drover.Stay {
		for _, l := range m.Caveats {
			fmt.Fprintln(&b, "  ! "+l)
		}
	}
	for _, l := range advice.Changes {
		fmt.Fprintln(&b, "  what would change it: "+l)
	}
	for _, l := range advice.Faults {
		fmt.Fprintln(&b, "  requirements: "+l)
	}
	if _, err := fmt.Fprint(a.out, b.String()); err != nil {
		return err
	}
	if len(advice.Methods) > 1 {
		if err := a.table([]string{"METHOD", "VERDICT", "TOTAL", "PAUSE", "OUTAGE", "WHAT WEIGHS MOST"}, methodRows(advice)); err != nil {
			return err
		}
	}
	if len(advice.Sites) == 0 {
		return nil
	}
	rows := make([][]string, len(advice.Sites))
	for i, s := range advice.Sites {
		rows[i] = []string{s.To, string(s.Method), s.Reason}
	}
	return a.table([]string{"SITE", "METHOD", "REASON"}, rows)
}

func methodRows(advice drover.Advice) [][]string {
	var rows [][]string
	for _, m := range advice.Methods {
		weighs := slices.Concat(m.Against, m.For)
		if m.Method == advice.Method {
			weighs = slices.Concat(m.For, m.Against)
		}
		weighs = append(weighs, "") // for who has none
		row := append([]string{string(m.Method), judged(m, advice.Method)}, figuresOf(m.Forecast)...)
		rows = append(rows, append(row, weighs[0]))
	}
	return rows
}

// figuresOf are the three times of a forecast, as far as they are known.
func figuresOf(f *drover.Forecast) []string {
	if f == nil {
		return []string{"", "", ""}
	}
	middle := func(r *drover.Range, unit func(*float64) string) string {
		if r == nil {
			return ""
		}
		return unit(&r.P50)
	}
	return []string{middle(f.TotalSeconds, seconds), middle(f.PauseMillis, millis), middle(f.OutageMillis, millis)}
}

func (a *app) adviseAll(ctx context.Context, cl *api.Client, to string) error {
	r, err := cl.AdviseAll(ctx, &droverv1.AdviseAllRequest{To: to})
	if err != nil {
		return err
	}
	all := api.ListFromProto(r.GetAdvices(), api.AdviceFromProto)
	if a.output == formatJSON {
		return a.json(all)
	}
	rows := make([][]string, len(all))
	for i, advice := range all {
		var f *drover.Forecast
		if m := advice.Of(advice.Method); m != nil {
			f = m.Forecast
		}
		row := append([]string{advice.VM, advice.From, string(advice.Method)}, figuresOf(f)...)
		rows[i] = append(row, shortReason(advice))
	}
	return a.table([]string{"VM", "FROM", "METHOD", "TOTAL", "PAUSE", "OUTAGE", "WHY"}, rows)
}

// shortReason is the one that says most in a table.
func shortReason(advice drover.Advice) string {
	switch {
	case len(advice.Reasons) == 0:
		return ""
	case advice.Method != drover.Stay || len(advice.Reasons) == 1 || !strings.HasPrefix(advice.Reasons[1], "not "):
		return advice.Reasons[0]
	default:
		return advice.Reasons[1] // the first only says that there is no way
	}
}
