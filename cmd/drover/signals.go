package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
)

// newSignalsCommand shows what is known of a VM that decides what moving it costs.
func newSignalsCommand(a *app) *cobra.Command {
	var flags clientFlags
	var fresh bool
	cmd := &cobra.Command{
		Use:   "signals VM",
		Short: "Show what has been observed of a VM: memory, how it is written, disks, network, sessions",
		Args:  oneArg("VM"),
		RunE: func(c *cobra.Command, args []string) error {
			return flags.call(c.Context(), func(ctx context.Context, cl *api.Client) error {
				r, err := cl.GetSignals(ctx, &droverv1.GetSignalsRequest{Vm: args[0], Fresh: fresh})
				if err != nil {
					return err
				}
				s := api.SignalsFromProto(r.GetSignals())
				if a.output == formatJSON {
					return a.json(drover.ObservedVM{Signals: s, OnHost: api.HostSignalsFromProto(r.GetHost())})
				}
				return a.table([]string{"SIGNAL", "VALUE", "AGE", "RESTS ON"}, signalRows(s, time.Now()))
			})
		},
		ValidArgsFunction: complete(&flags, func(ctx context.Context, cl *api.Client) ([]string, error) {
			all, err := fetchVMs(ctx, cl)
			names := make([]string, len(all))
			for i, v := range all {
				names[i] = v.Name
			}
			return names, err
		}),
	}
	cmd.Flags().BoolVar(&fresh, "fresh", false, "have its agent look at it now, which takes some seconds")
	flags.register(cmd)
	return cmd
}

// signalRows is one row for each signal; what is not known has no value.
func signalRows(s drover.Signals, now time.Time) [][]string {
	var rows [][]string
	add := func(name string, r drover.Reading, show func(float64) string) {
		row := []string{name, "", "", ""}
		if r.Known() {
			row[1], row[2], row[3] = show(r.Value), age(r.At, now), "samples"
			if r.Samples > 0 {
				row[3] = fmt.Sprintf("%d samples", r.Samples)
			}
			if r.Observed {
				row[3] = "a move"
			}
		}
		rows = append(rows, row)
	}
	bytes := func(v float64) string { return drover.Bytes(v).String() }
	perSecond := func(v float64) string { return drover.Bytes(v).String() + "/s" }
	bps := func(v float64) string { return drover.BitRate(v).String() }
	add("memory", s.MemoryBytes, bytes)
	add("memory used", s.MemoryUsedBytes, bytes)
	add("zero", s.ZeroShare, share)
	for _, site := range slices.Sorted(maps.Keys(s.KnownShare)) {
		add("known at "+site, s.KnownShare[site], share)
	}
	add("compressed to", s.CompressedShare, share)
	add("sent again as", s.ResentShare, share)
	for _, p := range s.Dirty.Points {
		add(fmt.Sprintf("written in %g s", p.WindowSeconds),
			drover.Reading{Value: p.Bytes, At: s.Dirty.At, Samples: s.Dirty.Samples, Observed: s.Dirty.Observed}, bytes)
	}
	add("hot", s.HotBytes, bytes)
	add("hot time", s.HotSeconds, func(v float64) string { return fmt.Sprintf("%.2g s", v) })
	add("cold", s.ColdBytesPerSecond, perSecond)
	add("disk allocated", s.DiskAllocatedBytes, bytes)
	for _, site := range slices.Sorted(maps.Keys(s.DiskKnownShare)) {
		add("disk known at "+site, s.DiskKnownShare[site], share)
	}
	add("disk compressed to", s.DiskCompressedShare, share)
	add("disk reads", s.DiskReadBytesPerSecond, perSecond)
	add("disk writes", s.DiskWriteBytesPerSecond, perSecond)
	add("disk writes, distinct", s.DiskDistinctBytesPerSecond, perSecond)
	add("received", s.NetworkRxBPS, bps)
	add("sent", s.NetworkTxBPS, bps)
	add("processors", s.CPUShare, share)
	add("sessions", s.Sessions, func(v float64) string { return fmt.Sprintf("%.0f", v) })
	if l := s.Lifetimes; l.Known() {
		rows = append(rows, []string{
			"sessions live", fmt.Sprintf("%.3g s, 90 %% %.3g s, 99 %% %.3g s", l.P50Seconds, l.P90Seconds, l.P99Seconds),
			age(l.At, now), fmt.Sprintf("%d samples", l.Samples),
		})
	}
	if s.Skipped != "" {
		rows = append(rows, []string{"not looked at", s.Skipped, "", ""})
	}
	return rows
}

func share(v float64) string { return fmt.Sprintf("%.1f %%", 100*v) }

func age(at, now time.Time) string {
	return (drover.Reading{At: at}).Age(now).Round(time.Second).String()
}

// observedLink is a link with what has been measured of it, in both directions.
type observedLink struct {
	drover.Link
	Signals []drover.LinkSignals `json:"signals"`
}

// newGetLinkCommand shows one link with what has been measured of it.
func newGetLinkCommand(a *app, links listing[drover.Link]) *cobra.Command {
	var flags clientFlags
	cmd := newGetCommand(a, links)
	cmd.RunE = func(c *cobra.Command, args []string) error {
		return flags.call(c.Context(), func(ctx context.Context, cl *api.Client) error {
			l, err := links.find(ctx, cl, args[0])
			if err != nil {
				return err
			}
			r, err := cl.ListLinkSignals(ctx, &droverv1.ListLinkSignalsRequest{Link: l.Name})
			if err != nil {
				return err
			}
			seen := observedLink{Link: l, Signals: api.ListFromProto(r.GetSignals(), api.LinkSignalsFromProto)}
			if a.output == formatJSON {
				return a.json(seen)
			}
			if err := show(a, links, []drover.Link{l}); err != nil {
				return err
			}
			fmt.Fprintln(a.out)
			var rows [][]string
			for _, s := range seen.Signals {
				rows = append(rows, wayRow(s, time.Now()))
			}
			return a.table([]string{"FROM", "TO", "RTT", "JITTER", "LOSS", "CAPACITY", "FREE", "AGE", "HOURS KNOWN"}, rows)
		})
	}
	cmd.ResetFlags()
	flags.register(cmd)
	return cmd
}

func wayRow(s drover.LinkSignals, now time.Time) []string {
	known := func(r drover.Reading, show func(float64) string) string {
		if !r.Known() {
			return ""
		}
		return show(r.Value)
	}
	ms := func(v float64) string { return fmt.Sprintf("%.3g ms", v) }
	bps := func(v float64) string { return drover.BitRate(v).String() }
	row := []string{
		s.From, s.To, known(s.RTTMillis, ms), known(s.JitterMillis, ms), known(s.LossShare, share),
		known(s.CapacityBPS, bps), known(s.FreeBPS, bps), "", fmt.Sprintf("%d of %d", len(s.Week), drover.HoursOfWeek),
	}
	if !s.At.IsZero() {
		row[7] = age(s.At, now)
	}
	return row
}
