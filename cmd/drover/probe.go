package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/probe"
)

func newProbeCommand(a *app) *cobra.Command {
	var cfg probe.Config
	var kind string
	var length durationFlag
	cmd := &cobra.Command{
		Use:   "probe --tcp HOST:PORT --for TIME",
		Short: "Measure from here what a client sees of a service: outage, sessions lost",
		Long: "Measures what a client sees of a service: the longest time without an answer, over TCP sessions and HTTP,\n" +
			"and the sessions lost. It needs no server and runs anywhere a client can run. Without --for it runs until it is interrupted.",
		Example: "drover probe --tcp 10.20.0.10:7000 --kind sheep --for 30s\ndrover probe --http http://10.20.0.10/ --for 1m -o json",
		Args:    noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg.Kind = probe.Kind(kind)
			cfg.Log = a.logger()
			return a.probe(c.Context(), cfg, time.Duration(length))
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&cfg.Target, "tcp", "", "HOST:PORT of a line protocol")
	fl.StringVar(&kind, "kind", string(probe.KindSheep), "its protocol: sheep, redis or line")
	fl.StringVar(&cfg.Send, "send", "", "for kind line: the line to send")
	fl.StringVar(&cfg.Expect, "expect", "", "for kind line: the line that answers it")
	fl.IntVar(&cfg.Sessions, "sessions", probe.DefaultSessions, "TCP sessions to keep open")
	fl.DurationVar(&cfg.Beat, "beat", probe.DefaultBeat, "time between two requests on a session")
	fl.DurationVar(&cfg.LostAfter, "lost-after", probe.DefaultLostAfter, "silence after which a session counts as lost")
	fl.StringVar(&cfg.URL, "http", "", "URL to ask over HTTP")
	fl.Var(&length, "for", "how long to measure (default: until interrupted)")
	_ = cmd.RegisterFlagCompletionFunc("kind", cobra.FixedCompletions([]string{"sheep", "redis", "line"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// probe measures until the time is up or ctx ends, which is no failure.
func (a *app) probe(ctx context.Context, cfg probe.Config, length time.Duration) error {
	if cfg.Target == "" && cfg.URL == "" {
		return drover.Errorf(drover.Invalid, "", "nothing to probe: want --tcp HOST:PORT or --http URL")
	}
	p, err := probe.Start(ctx, cfg)
	if err != nil {
		return err
	}
	if length > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, length)
		defer cancel()
		fmt.Fprintf(a.err, "probing for %s\n", length)
	} else {
		fmt.Fprintln(a.err, "probing until interrupted")
	}
	<-ctx.Done()
	r := p.Stop()
	if a.output == formatJSON {
		return a.json(r)
	}
	return a.probeTable(r)
}

func (a *app) probeTable(r probe.Result) error {
	var rows [][]string
	if r.Target != "" {
		rows = append(rows, []string{
			"tcp " + r.Target, millis(&r.OutageMS), fmt.Sprintf("%d of %d", r.SessionsLost, r.Sessions),
			fmt.Sprintf("%d of %d", r.BeatsAnswered, r.BeatsSent), fmt.Sprintf("%.1f ms", r.RTT.Before.P50),
		})
	}
	if r.URL != "" {
		rows = append(rows, []string{
			r.URL, millis(&r.OutageHTTPMS), "", fmt.Sprintf("%d of %d", r.HTTPOK, r.HTTPOK+r.HTTPFailed), "",
		})
	}
	return a.table([]string{"PROBE", "OUTAGE", "SESSIONS LOST", "ANSWERED", "RTT"}, rows)
}
