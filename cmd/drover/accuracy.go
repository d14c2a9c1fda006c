package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
)

// newAccuracyCommand shows how well forecasts have come true.
func newAccuracyCommand(a *app) *cobra.Command {
	var (
		f         clientFlags
		method    methodFlag
		since, by durationFlag
	)
	cmd := &cobra.Command{
		Use:   "accuracy",
		Short: "Say how well forecasts of moves have come true",
		Long: "Compares what was expected of every finished move with what was measured, for each method and figure: the number of\n" +
			"moves, the bias (the median of forecast less truth, relative to the truth), the median and the 90 % quantile of the\n" +
			"relative error without its sign, and the coverage, which is the share of the truths inside P10 to P90 (80 % is right).",
		Example: "drover accuracy\ndrover accuracy --method live --since 720h\ndrover accuracy --by 168h -o json",
		Args:    noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return f.call(c.Context(), func(ctx context.Context, cl *api.Client) error {
				r := &droverv1.AccuracyRequest{Method: string(method), PeriodNanos: int64(by)}
				if since > 0 {
					r.SinceUnixNanos = time.Now().Add(-time.Duration(since)).UnixNano()
				}
				resp, err := cl.Accuracy(ctx, r)
				if err != nil {
					return err
				}
				return a.accuracy(api.ListFromProto(resp.GetAccuracy(), api.AccuracyFromProto), by > 0)
			})
		},
	}
	f.register(cmd)
	fl := cmd.Flags()
	fl.Var(&method, "method", "only moves by this method")
	fl.Var(&since, "since", "only moves that ended within this time, such as 720h")
	fl.Var(&by, "by", "one line for each such time, such as 168h, to see how it changes")
	return cmd
}

func (a *app) accuracy(all []drover.Accuracy, periods bool) error {
	if a.output == formatJSON {
		return a.json(all)
	}
	head := []string{"METHOD", "FIGURE", "MOVES", "BIAS", "MEDIAN ERROR", "P90 ERROR", "COVERAGE"}
	if periods {
		head = append([]string{"FROM"}, head...)
	}
	rows := make([][]string, len(all))
	for i, v := range all {
		rows[i] = []string{
			string(v.Method), v.Figure, strconv.Itoa(v.Moves), fmt.Sprintf("%+.1f %%", 100*v.Bias), percents(v.MedianError), percents(v.P90Error), percents(v.Coverage),
		}
		if periods {
			rows[i] = append([]string{moment(v.From)}, rows[i]...)
		}
	}
	return a.table(head, rows)
}

func percents(v float64) string { return fmt.Sprintf("%.1f %%", 100*v) }

// expectedLine shows what was expected of a move, of the figures that a person
// asks for first.
func expectedLine(f *drover.Forecast) string {
	if f == nil {
		return ""
	}
	bytes := func(v float64) string { return drover.Bytes(v).String() }
	ms := func(v float64) string { return millis(&v) }
	parts := []string{}
	for _, p := range []struct {
		name string
		r    *drover.Range
		show func(float64) string
	}{
		{"total", f.TotalSeconds, func(v float64) string { return seconds(&v) }},
		{"pause", f.PauseMillis, ms},
		{"outage", f.OutageMillis, ms},
		{"wire", f.WireBytes, bytes},
		{"cost", f.Cost, func(v float64) string { return price(&v) }},
	} {
		if p.r != nil && p.r.P90 > 0 {
			parts = append(parts, fmt.Sprintf("%s %s (%s to %s)", p.name, p.show(p.r.P50), p.show(p.r.P10), p.show(p.r.P90)))
		}
	}
	if c := f.Convergence; c != nil && !c.Will {
		parts = append(parts, "will not converge by itself")
	}
	return strings.Join(parts, "   ")
}

// leftText is how long a move has still to go.
func leftText(g *drover.Progress) string {
	switch {
	case g == nil:
		return ""
	case g.Left != nil && g.Left.P90 >= 1:
		return fmt.Sprintf("ETA %.0f s (%.0f to %.0f)", g.Left.P50, g.Left.P10, g.Left.P90)
	case g.Left != nil:
		return "ETA 1 s"
	}
	return ""
}
