package main

import (
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/lab"
	"github.com/drover-vm/drover/lab/labfile"
	"github.com/drover-vm/drover/lab/wanem"
)

// linkResult is a lab's WAN link as its emulator has it.
type linkResult struct {
	Name       string         `json:"name"`
	A          string         `json:"a"`
	B          string         `json:"b"`
	RateBps    int64          `json:"rate_bps"` // 0 is unlimited
	DelayMs    float64        `json:"delay_ms"` // one way
	JitterMs   float64        `json:"jitter_ms"`
	Loss       float64        `json:"loss"`
	QueueBytes int            `json:"queue_bytes"` // 0 is one round trip
	Cut        bool           `json:"cut"`
	Corrupt    int            `json:"corrupt_every"` // 0 is nothing
	AToB       wanem.Counters `json:"a_to_b"`
	BToA       wanem.Counters `json:"b_to_a"`
}

func newLinkResult(s wanem.Status) linkResult {
	ms := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
	return linkResult{
		Name: s.Name, A: s.Ends[0], B: s.Ends[1], RateBps: s.Shape.RateBps, DelayMs: ms(s.Shape.Delay),
		JitterMs: ms(s.Shape.Jitter), Loss: s.Shape.Loss, QueueBytes: s.Shape.QueueBytes, Cut: s.Shape.Cut,
		Corrupt: s.Shape.CorruptEvery,
		AToB:    s.Forward, BToA: s.Reverse,
	}
}

// linkFlags are the changes asked for; empty ones are none.
type linkFlags struct {
	rate, delay, jitter, loss string
	cut, heal                 bool
	corrupt                   string // how many packets
}

// change reads the flags.
func (f *linkFlags) change() (ch wanem.ShapeChange, err error) {
	bad := func(flag string, err error) (wanem.ShapeChange, error) {
		return ch, drover.E(drover.Invalid, "--"+flag, err)
	}
	if f.rate != "" {
		v, err := labfile.ParseRate(f.rate)
		if err != nil {
			return bad("rate", err)
		}
		ch.RateBps = &v
	}
	if f.delay != "" {
		v, err := labfile.ParseDelay(f.delay)
		if err != nil {
			return bad("delay", err)
		}
		ch.Delay = &v
	}
	if f.jitter != "" {
		v, err := labfile.ParseDelay(f.jitter)
		if err != nil {
			return bad("jitter", err)
		}
		ch.Jitter = &v
	}
	if f.loss != "" {
		v, err := labfile.ParseLoss(f.loss)
		if err != nil {
			return bad("loss", err)
		}
		ch.Loss = &v
	}
	if f.corrupt != "" {
		v, err := strconv.Atoi(f.corrupt)
		if err != nil || v < 0 {
			return bad("corrupt", fmt.Errorf("%q: want 0 (nothing) or every how many packets with data", f.corrupt))
		}
		ch.CorruptEvery = &v
	}
	if f.cut || f.heal {
		ch.Cut = &f.cut
	}
	return ch, nil
}

func newLabLinkCommand(a *app, f *labFlags) *cobra.Command {
	flags := &linkFlags{}
	c := &cobra.Command{
		Use:   "link A B | LINK",
		Short: "Show a WAN link, and change it while it runs",
		Long: "Show a WAN link, named by its two sites or by its own name, and change it while it runs.\n" +
			"Settings hold for each direction; what is not given stays as it is.",
		Args: func(c *cobra.Command, args []string) error {
			if len(args) < 1 || len(args) > 2 {
				return drover.Errorf(drover.Invalid, "", "want two sites or the name of a link: drover lab link north south")
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			ch, err := flags.change()
			if err != nil {
				return err
			}
			l, err := f.open(a)
			if err != nil {
				return err
			}
			s, err := setLink(c, l, args, ch)
			if err != nil {
				return err
			}
			return a.linkTable(newLinkResult(s))
		},
	}
	c.Flags().StringVar(&flags.rate, "rate", "", "rate, such as 200Mbit, or unlimited")
	c.Flags().StringVar(&flags.delay, "delay", "", "one-way delay, such as 25ms")
	c.Flags().StringVar(&flags.jitter, "jitter", "", "jitter to either side of the delay, such as 1ms")
	c.Flags().StringVar(&flags.loss, "loss", "", "share of packets lost, such as 0.1%")
	c.Flags().StringVar(&flags.corrupt, "corrupt", "", "flip a bit in every so many TCP packets with data, unseen by TCP; 0 ends it")
	c.Flags().BoolVar(&flags.cut, "cut", false, "drop everything, both ways")
	c.Flags().BoolVar(&flags.heal, "heal", false, "end a cut")
	c.MarkFlagsMutuallyExclusive("cut", "heal")
	labFlag(a, c, f)
	return c
}

func setLink(c *cobra.Command, l *lab.Lab, ends []string, ch wanem.ShapeChange) (wanem.Status, error) {
	k, err := l.LinkNamed(ends...)
	if err != nil {
		return wanem.Status{}, err
	}
	if ch == (wanem.ShapeChange{}) {
		return l.LinkStatus(c.Context(), k.Name)
	}
	return l.SetLink(c.Context(), k.Name, ch)
}

func (a *app) linkTable(r linkResult) error {
	if a.output == formatJSON {
		return a.json(r)
	}
	state := "up"
	switch {
	case r.Cut:
		state = "cut"
	case r.Corrupt > 0:
		state = fmt.Sprintf("corrupt 1/%d", r.Corrupt)
	}
	row := func(from, to string, n wanem.Counters) []string {
		return []string{
			r.Name, from, to, state, wanem.FormatRate(r.RateBps), fmt.Sprintf("%g ms ±%g", r.DelayMs, r.JitterMs),
			fmt.Sprintf("%g%%", 100*r.Loss), drover.Bytes(n.Bytes).String(), fmt.Sprint(n.Packets), fmt.Sprint(n.DroppedPackets),
		}
	}
	return a.table([]string{"LINK", "FROM", "TO", "STATE", "RATE", "DELAY", "LOSS", "BYTES", "PACKETS", "DROPPED"},
		[][]string{row(r.A, r.B, r.AToB), row(r.B, r.A, r.BToA)})
}
