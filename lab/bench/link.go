package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"time"

	"github.com/drover-vm/drover/lab"
	"github.com/drover-vm/drover/lab/labfile"
	"github.com/drover-vm/drover/lab/wanem"
)

// fillLinks are the links that have to be filled, and by how much.
var fillLinks = []struct {
	name  string
	loss  float64
	share float64
}{
	{"622M50ms-0.01%", 0.0001, 0.90},
	{"622M50ms-1%", 0.01, 0.80},
}

// fillWays are what fills them. iperf3 shows what the kernel alone does, with
// its default and with the data path's congestion control.
var fillWays = []string{"iperf3-cubic", "iperf3-bbr", "iperf3-bbr-4", "drover"}

const (
	fillRate = 622e6
	fillRTT  = 50 * time.Millisecond
	// fillRise is how long a stream gets to find the rate, fillTime how long it
	// is measured then.
	fillRise = 5 * time.Second
	fillTime = 15 * time.Second
	fillPort = 7100
	// fillFrame is the share of a link's rate that TCP's payload can have at
	// most: 1548 of 1600 bytes with timestamps, at the labs' default MTU.
	fillFrame = 1548.0 / 1600
)

// linkFill measures how much of a link the data path fills with data that
// cannot be compressed.
func linkFill(ctx context.Context, o Options) (rows []Row, summary map[string]any, err error) {
	if o.Runs == 0 {
		o.Runs = 1
	}
	f, err := labfile.Parse("link.yaml", []byte(emulatorLab))
	if err != nil {
		return nil, nil, err
	}
	f.Name = wanLabName
	f.Links[0].MTU = 1600
	l, err := lab.Up(ctx, lab.Options{Exe: o.Bin, Bare: true}, f)
	if err != nil {
		return nil, nil, err
	}
	w := &wanLab{Lab: l, exe: o.Bin, file: f}
	defer func() { err = errors.Join(err, w.down(ctx)) }()
	near, far := labfile.EdgeName("a"), labfile.EdgeName("b")
	random := rand.New(rand.NewPCG(uint64(o.Seed), 0))
	summary = map[string]any{}
	for _, k := range fillLinks {
		_, err := l.SetLink(ctx, l.Links[0].Name, wanem.ShapeChange{RateBps: new(int64(fillRate)), Delay: new(fillRTT / 2), Loss: new(k.loss)})
		if err != nil {
			return rows, nil, err
		}
		for run := range o.Runs {
			for _, i := range random.Perm(len(fillWays)) {
				row := Row{"link": k.name, "way": fillWays[i], "loss": k.loss, "payload_bps": -1.0, "fill": -1.0, "ok": false, "fault": ""}
				if !o.wants(row) {
					continue
				}
				row["run"] = run
				bps, err := w.fill(ctx, fillWays[i], near, far)
				if ctx.Err() != nil {
					return rows, nil, ctx.Err()
				}
				if err != nil {
					row["fault"] = err.Error()
				} else {
					row["payload_bps"], row["fill"], row["ok"] = bps, bps/(fillRate*fillFrame), true
				}
				o.logf("%s %s: %.1f Mbit/s, %.1f %% of what TCP can have %v", k.name, fillWays[i], bps/1e6, 100*row["fill"].(float64), row["fault"])
				rows = append(rows, row)
			}
		}
		var own []Row
		for _, r := range rows {
			if r["link"] == k.name && r["way"] == "drover" {
				own = append(own, r)
			}
		}
		if fill := medianOf(own, "fill"); fill >= 0 {
			summary[k.name] = map[string]any{"fill": fill, "target": k.share, "ok": fill >= k.share}
		}
	}
	return rows, summary, nil
}

// fill returns the payload's rate in bits per second.
func (w *wanLab) fill(ctx context.Context, way, near, far string) (float64, error) {
	n, err := w.Node(far)
	if err != nil {
		return 0, err
	}
	if way == "drover" {
		return w.fillDrover(ctx, near, far, net.JoinHostPort(n.Address, strconv.Itoa(fillPort)))
	}
	args := map[string][]string{
		"iperf3-cubic": {"--congestion", "cubic"},
		"iperf3-bbr":   {"--congestion", "bbr"},
		"iperf3-bbr-4": {"--congestion", "bbr", "--parallel", "4"},
	}[way]
	server, err := w.start(ctx, far, "iperf3", "--server", "--one-off", "--bind", n.Address)
	if err != nil {
		return 0, err
	}
	defer server.stop()
	if err := server.await(ctx, tunnelReady, func(ctx context.Context) error {
		_, err := w.exec(ctx, far, "sh", "-c", "ss -Hltn sport = :5201 | grep -q .")
		return err
	}); err != nil {
		return 0, err
	}
	out, err := w.exec(ctx, near, append([]string{
		"iperf3", "--client", n.Address, "--json",
		"--omit", strconv.Itoa(int(fillRise.Seconds())), "--time", strconv.Itoa(int(fillTime.Seconds())),
	}, args...)...)
	if err != nil {
		return 0, err
	}
	var result struct {
		End struct {
			Received struct {
				Rate float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		} `json:"end"`
	}
	err = json.Unmarshal([]byte(out), &result)
	return result.End.Received.Rate, err
}

// fillDrover runs both ends of the data path for a while.
func (w *wanLab) fillDrover(ctx context.Context, near, far, address string) (float64, error) {
	cmd, err := w.Command(context.WithoutCancel(ctx), far, "drover", FillSubcommand, "serve", address)
	if err != nil {
		return 0, err
	}
	var out bytes.Buffer
	cmd.Stdout = &out
	server, err := startChild(cmd)
	if err != nil {
		return 0, err
	}
	err = server.await(ctx, tunnelReady, func(ctx context.Context) error {
		_, err := w.exec(ctx, far, "sh", "-c", fmt.Sprintf("ss -Hltn sport = :%d | grep -q .", fillPort))
		return err
	})
	if err == nil {
		err = w.fillFor(ctx, near, address, fillRise+fillTime+2*fillReport)
	}
	server.stop()
	if err != nil {
		return 0, err
	}
	return fillOf(out.Bytes())
}

// fillFor sends for a time.
func (w *wanLab) fillFor(ctx context.Context, near, address string, d time.Duration) error {
	client, err := w.start(ctx, near, "drover", FillSubcommand, "send", address)
	if err != nil {
		return err
	}
	defer client.stop()
	select {
	case <-client.done:
		return fmt.Errorf("the sender ended early: %w: %s", errors.Join(errEnded, client.err), client.stderr.String())
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// fillOf is the rate between the notes after the rise and the last one.
func fillOf(out []byte) (float64, error) {
	var first, last fillNote
	for d := json.NewDecoder(bytes.NewReader(out)); d.More(); {
		var n fillNote
		if err := d.Decode(&n); err != nil {
			return 0, fmt.Errorf("receiver: %w", err)
		}
		switch {
		case n.Seconds < fillRise.Seconds():
		case first.Seconds == 0:
			first = n
		case n.Seconds <= (fillRise + fillTime + fillReport).Seconds():
			last = n
		}
	}
	if last.Seconds <= first.Seconds {
		return 0, errors.New("the receiver has said too little")
	}
	return float64(8*(last.Bytes-first.Bytes)) / (last.Seconds - first.Seconds), nil
}
