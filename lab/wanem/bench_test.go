package wanem_test

import (
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/drover-vm/drover/lab/wanem"
)

// BenchmarkLink measures a real link with iperf3 and ping, 5 s of TCP after
// 2 s of start for each row:
//
//	go test ./lab/wanem -run '^$' -bench Link -benchtime 1x
//
// Mbit/s is TCP payload received, of_set its ratio to the rate set, rtt_ms an
// idle ping's round trip, cpu the share of one core that the emulator used while
// TCP ran, retrans the segments that TCP sent again.
func BenchmarkLink(b *testing.B) {
	for _, row := range []struct {
		rate       int64
		delay      time.Duration
		congestion string
	}{
		{0, 0, "cubic"},
		{0, 25 * time.Millisecond, "cubic"},
		{10e6, 25 * time.Millisecond, "cubic"},
		{100e6, 25 * time.Millisecond, "cubic"},
		{200e6, 25 * time.Millisecond, "cubic"},
		{622e6, 25 * time.Millisecond, "cubic"},
		{1e9, 25 * time.Millisecond, "cubic"},
		{10e6, 0, "cubic"},
		{622e6, 0, "cubic"},
		{1e9, 0, "cubic"},
		{10e6, 25 * time.Millisecond, "bbr"},
		{100e6, 25 * time.Millisecond, "bbr"},
		{200e6, 25 * time.Millisecond, "bbr"},
		{622e6, 25 * time.Millisecond, "bbr"},
		{1e9, 25 * time.Millisecond, "bbr"},
	} {
		name := fmt.Sprintf("rate=%dM/delay=%s/%s", row.rate/1e6, row.delay, row.congestion)
		b.Run(name, func(b *testing.B) {
			_, from, to := newLink(b, wanem.Shape{RateBps: row.rate, Delay: row.delay})
			for b.Loop() {
				idle := ping(b, from, to, 50)
				if idle.back != 50 {
					b.Fatalf("%d of 50 pings came back", idle.back)
				}
				cpu, start := cpuTime(b), time.Now()
				r := iperf(b, from, to, 5, "--omit", "2", "--congestion", row.congestion)
				b.ReportMetric(r.End.Received.Rate/1e6, "Mbit/s")
				if row.rate > 0 {
					b.ReportMetric(r.End.Received.Rate/float64(row.rate), "of_set")
				}
				b.ReportMetric(idle.avg, "rtt_ms")
				b.ReportMetric(float64(cpuTime(b)-cpu)/float64(time.Since(start)), "cpu")
				b.ReportMetric(float64(r.End.Sent.Retransmits), "retrans")
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

// cpuTime is what this process, and so the emulator, has used.
func cpuTime(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
