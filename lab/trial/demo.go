package trial

import (
	"context"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/lab/guest/control"
)

// demoMove is one row of the demo: a guest, its load and its method.
type demoMove struct {
	vm, title string
	method    drover.Method
	memory    control.Memory
	disk      control.Disk
}

// settle is how long a guest works before it is moved, so that there is
// something to lose.
const settle = 3 * time.Second

// Demo shows, on the ready lab "pair", a live and a cold move of working
// guests between two data centers, as a client saw them, and takes the lab
// down. The table goes to out. It fails when a move failed or lost data.
func Demo(ctx context.Context, bin string, out, log io.Writer) (err error) {
	l := &Lab{Bin: bin, Name: "demo", Log: log}
	say := func(format string, args ...any) { fmt.Fprintf(log, "\n== "+format+"\n", args...) }
	defer func() {
		say("Taking both data centers down")
		err = errors.Join(err, l.Down(context.WithoutCancel(ctx)))
	}()
	say("Two data centers, 200 Mbit/s and 50 ms apart, and a client at a third place")
	if err := Up(ctx, l, "pair"); err != nil {
		return err
	}
	var rows []string
	for _, d := range []demoMove{
		{
			"sheep1", "live, while it dirties 10 MB/s of memory and writes to its disk, under open client sessions",
			drover.Live,
			control.Memory{WorkingSetBytes: 32 << 20, RateBytesPerS: 10e6, Compressible: 0.5},
			control.Disk{RateBytesPerS: 400e3},
		},
		{
			"sheep2", "cold: shut down, copied, compared, started",
			drover.Cold,
			control.Memory{},
			control.Disk{RateBytesPerS: 400e3},
		},
	} {
		say("Moving %s %s", d.vm, d.title)
		row, moveErr := l.demoRow(ctx, d)
		if moveErr != nil {
			return fmt.Errorf("%s: %w", d.vm, moveErr)
		}
		rows = append(rows, row)
	}
	fmt.Fprintln(out)
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "VM\tMETHOD\tTO\tTOTAL\tPAUSE\tOUTAGE SEEN\tON THE WIRE\tSESSIONS LOST\tDATA INTACT")
	for _, r := range rows {
		fmt.Fprintln(w, r)
	}
	return w.Flush()
}

// demoRow moves one guest and returns its line of the table.
func (l *Lab) demoRow(ctx context.Context, d demoMove) (string, error) {
	client, err := l.Client()
	if err != nil {
		return "", err
	}
	guest, err := l.Guest(client, d.vm)
	if err != nil {
		return "", err
	}
	load, err := StartLoad(ctx, guest, d.memory, d.disk)
	if err != nil {
		return "", err
	}
	select {
	case <-ctx.Done():
		return "", ctx.Err()
	case <-time.After(settle):
	}
	_, to, err := l.Opposite(ctx, d.vm)
	if err != nil {
		return "", err
	}
	m, err := l.Move(ctx, d.vm, to.Site, "--method", string(d.method))
	if err != nil {
		return "", err
	}
	if err := l.OnlyAt(ctx, d.vm, m.To.Host, "running"); err != nil {
		return "", err
	}
	if err := WaitHealthy(ctx, guest); err != nil {
		return "", err
	}
	acks, err := load.Stop(ctx)
	if err != nil {
		return "", err
	}
	check, err := guest.CheckDiskAgainst(ctx, acks)
	if err != nil {
		return "", err
	}
	if !check.Verdict.OK {
		return "", fmt.Errorf("data lost: %s", check.Verdict.Reason)
	}
	f := m.Measured
	return fmt.Sprintf("%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\tyes, %d writes", d.vm, m.Method, m.To,
		seconds(f.TotalSeconds), millis(f.PauseMillis), millis(f.OutageMillis), sized(f.WireBytes), lost(f), acks.Count()), nil
}

// healthyTime is what a guest may take to boot on a busy machine without KVM.
const healthyTime = 2 * time.Minute

// WaitHealthy waits until the guest's services answer.
func WaitHealthy(ctx context.Context, guest *control.Client) error {
	ctx, cancel := context.WithTimeout(ctx, healthyTime)
	defer cancel()
	for {
		attempt, stop := context.WithTimeout(ctx, 5*time.Second)
		err := guest.Health(attempt)
		stop()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the guest did not come up: %w", err)
		case <-time.After(ackRetry):
		}
	}
}

func seconds(v *float64) string {
	if v == nil {
		return "not measured"
	}
	return fmt.Sprintf("%.1f s", *v)
}

func millis(v *float64) string {
	if v == nil {
		return "not measured"
	}
	if *v >= 10e3 {
		return fmt.Sprintf("%.1f s", *v/1e3)
	}
	return fmt.Sprintf("%.0f ms", *v)
}

func sized(v *int64) string {
	if v == nil {
		return "not measured"
	}
	return drover.Bytes(*v).String()
}

func lost(f drover.Figures) string {
	if f.SessionsLost == nil {
		return "not measured"
	}
	if f.Sessions == nil {
		return fmt.Sprint(*f.SessionsLost)
	}
	return fmt.Sprintf("%d of %d", *f.SessionsLost, *f.Sessions)
}
