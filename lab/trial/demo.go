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

// demoMove is one row of the demo.
type demoMove struct {
	method drover.Method
	vm, to string
	as     string
	title  string
	// why is for whom the method is, in a word.
	why   string
	flags []string
}

// demoMoves are in an order in which each begins where those before have ended.
func demoMoves() []demoMove {
	return []demoMove{
		{drover.Live, "db1", "frankfurt/fra2", "", "to the other host of its site", "maintenance", nil},
		{drover.Stretch, "db1", "virginia", "", "its segment is extended over the encrypted mesh", "neighbours", nil},
		{drover.Route, "db1", "singapore", "", "its address follows by BGP, with no segment extended", "address", nil},
		{drover.Renumber, "api1", "virginia", "", "it gets a new address and keeps its old sessions", "provider", nil},
		{drover.Redirect, "web1", "virginia", "web2", "a clone takes new sessions, the old ones end by themselves", "service", []string{"--weight-steps", "50,100", "--step-time", "2s", "--drain-cap", "1m"}},
		{drover.Warm, "batch1", "virginia", "", "its disk goes first, then a short shutdown", "restartable", nil},
		{drover.Cold, "batch1", "singapore", "", "shut down, copied, compared, started", "idle", nil},
		{drover.Spawn, "web2", "singapore", "web3", "one more like it, while nothing stops", "burst", nil},
	}
}

// What the guests do meanwhile.
var (
	demoMemory = control.Memory{WorkingSetBytes: 16 << 20, RateBytesPerS: 2e6, Compressible: 0.5}
	demoDisk   = control.Disk{RateBytesPerS: 200e3}
)

// settle is how long a guest works before it is moved, so that there is
// something to lose.
const settle = time.Second

// Demo shows on the ready lab "world" every method once, as clients saw it, and
// takes the lab down. The table goes to out. It fails when a move failed, or lost
// what its method keeps.
func Demo(ctx context.Context, bin string, out, log io.Writer) (err error) {
	began := time.Now()
	l := &Lab{Bin: bin, Name: "demo", Log: log}
	say := func(format string, args ...any) { fmt.Fprintf(log, "\n== "+format+"\n", args...) }
	defer func() {
		say("Taking the three data centers down")
		l.Log = nil
		err = errors.Join(err, l.Down(context.WithoutCancel(ctx)))
		fmt.Fprintf(log, "   all is gone after %s\n", time.Since(began).Round(time.Second))
	}()
	say("Three data centers on this machine: Frankfurt, Virginia, Singapore, with routers, DNS, DHCP and a load balancer")
	if err := Up(ctx, l, "world"); err != nil {
		return err
	}
	scene, err := OpenScene(l, "world", "c-fra")
	if err != nil {
		return err
	}
	l.Log = nil // of the moves our own lines say what there is to know
	moves := demoMoves()
	rows := make([]string, 0, len(moves))
	for i, d := range moves {
		from, err := scene.VM(ctx, d.vm)
		if err != nil {
			return err
		}
		say("%d of %d, %s: %s from %s/%s to %s; %s", i+1, len(moves), d.method, d.vm, from.Site, from.Host, d.to, d.title)
		seen, err := scene.Go(ctx, Journey{
			VM: d.vm, Method: d.method, To: d.to, As: d.as, Flags: d.flags, Memory: demoMemory, Disk: demoDisk, Settle: settle,
		})
		if err != nil {
			return fmt.Errorf("%s of %s: %w", d.method, d.vm, err)
		}
		f := seen.Move.Measured
		fmt.Fprintf(log, "   done in %s: pause %s, outage %s, %s\n", seconds(f.TotalSeconds), millis(f.PauseMillis), millis(f.OutageMillis), sessions(seen))
		rows = append(rows, demoRow(d, seen))
	}
	return errors.Join(demoTable(out, rows), demoTidy(ctx, scene, log))
}

// demoTidy asks whether anything is left of the moves that no VM needs.
func demoTidy(ctx context.Context, s *Scene, log io.Writer) error {
	var d drover.Diagnosis
	if err := s.Drover(ctx, &d, "doctor"); err != nil || !d.OK {
		return fmt.Errorf("doctor: %w, %+v", err, d.Findings)
	}
	fmt.Fprintln(log, "\n   drover doctor: nothing is left that no VM needs")
	return nil
}

func demoTable(out io.Writer, rows []string) error {
	fmt.Fprintln(out)
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "METHOD\tVM\tFROM → TO\tTOTAL\tPAUSE\tOUTAGE\tSESSIONS\tON THE WIRE\tFOR")
	for _, r := range rows {
		fmt.Fprintln(w, r)
	}
	return w.Flush()
}

func demoRow(d demoMove, seen Seen) string {
	m, f := seen.Move, seen.Move.Measured
	vm := d.vm
	if d.as != "" {
		vm += " → " + d.as
	}
	wire := f.WireBytes
	if wire == nil || m.From.Site == m.To.Site { // no link between sites
		wire = f.PathWireBytes
	}
	return fmt.Sprintf("%s\t%s\t%s → %s\t%s\t%s\t%s\t%s\t%s\t%s", m.Method, vm, m.From.Host, m.To.Host,
		seconds(f.TotalSeconds), millis(f.PauseMillis), millis(f.OutageMillis), sessions(seen), sized(wire), d.why)
}

// sessions says in a few words what became of clients' sessions.
func sessions(seen Seen) string {
	f := seen.Move.Measured
	switch {
	case f.SessionsLost == nil:
		return "not measured"
	case seen.Move.Method == drover.Redirect:
		n := 0
		for _, k := range seen.Visits.By {
			n += k
		}
		return fmt.Sprintf("%d cut, 0 of %d refused", *f.SessionsLost, n)
	case f.Sessions == nil:
		return fmt.Sprintf("%d lost", *f.SessionsLost)
	case *f.SessionsLost == 0:
		return fmt.Sprintf("%d kept", *f.Sessions)
	default:
		return fmt.Sprintf("%d of %d lost", *f.SessionsLost, *f.Sessions)
	}
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
		return "–"
	}
	return fmt.Sprintf("%.1f s", *v)
}

func millis(v *float64) string {
	if v == nil {
		return "–"
	}
	if *v >= 10e3 {
		return fmt.Sprintf("%.1f s", *v/1e3)
	}
	return fmt.Sprintf("%.0f ms", *v)
}

func sized(v *int64) string {
	if v == nil {
		return "–"
	}
	return drover.Bytes(*v).String()
}
