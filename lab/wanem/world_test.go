package wanem_test

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/drover-vm/drover/lab/wanem"
)

// place is a network namespace without a name: it lives as long as a process
// that waits for the test's end of a pipe to close, so a test that is killed
// leaves nothing behind.
type place struct {
	name, addr string
	pid        int
}

const device = "wan0"

func (p place) netns() string { return fmt.Sprintf("/proc/%d/ns/net", p.pid) }

func (p place) end() wanem.End {
	return wanem.End{Name: p.name, NetNS: p.netns(), Interface: device}
}

func (p place) command(name string, args ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{"--net=" + p.netns(), name}, args...)...)
}

func (p place) run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := p.command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %s %s: %v\n%s", p.name, name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// newPlace makes a namespace with loopback up, IPv6's own chatter off, and send
// buffers that fill a link of 1 Gbit/s and 50 ms.
func newPlace(t testing.TB, name, addr string) place {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test creates network namespaces and TAP devices: run it as root")
	}
	holder := exec.Command("unshare", "--net", "cat")
	stdin, err := holder.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatalf("create a network namespace: %v", err)
	}
	t.Cleanup(func() {
		_ = stdin.Close()
		if err := holder.Wait(); err != nil {
			t.Errorf("namespace holder: %v", err)
		}
	})
	// cat's echo says that unshare has done its part.
	if _, err := stdin.Write([]byte{'\n'}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(stdout, make([]byte, 1)); err != nil {
		t.Fatalf("network namespace of %s: %v", name, err)
	}
	p := place{name: name, addr: addr, pid: holder.Process.Pid}
	p.run(t, "ip", "link", "set", "lo", "up")
	p.run(t, "sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1", "net.ipv6.conf.all.disable_ipv6=1",
		"net.ipv4.tcp_no_metrics_save=1", "net.ipv4.tcp_wmem=4096 16384 33554432")
	return p
}

// newLink joins two new namespaces by a link with addresses at both ends.
func newLink(t testing.TB, shape wanem.Shape) (*wanem.Link, place, place) {
	t.Helper()
	a, b := newPlace(t, "a", "10.99.0.1"), newPlace(t, "b", "10.99.0.2")
	l, err := wanem.Open(t.Context(), slog.New(slog.NewTextHandler(t.Output(), nil)), "a-b", 1500, a.end(), b.end(), shape)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, p := range []place{a, b} {
		p.run(t, "ip", "addr", "add", p.addr+"/24", "dev", device)
	}
	// The first packet waits for ARP, which would count as its round trip.
	a.run(t, "ping", "-n", "-q", "-c", "1", b.addr)
	return l, a, b
}

// iperf3 is what the tests read of iperf3's report.
type iperf3 struct {
	Error string
	End   struct {
		Sent struct {
			Retransmits int
		} `json:"sum_sent"`
		Received struct {
			Bytes int64
			Rate  float64 `json:"bits_per_second"`
		} `json:"sum_received"`
	}
}

// iperf runs a TCP stream from a to b and returns its report.
func iperf(t testing.TB, a, b place, seconds int, args ...string) iperf3 {
	t.Helper()
	server := b.command("iperf3", "--server", "--one-off", "--forceflush")
	stdout, err := server.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = server.Process.Kill()
		_, _ = io.Copy(io.Discard, stdout)
		_ = server.Wait()
	}()
	// The second line of the banner says that it listens.
	for seen, buf := "", make([]byte, 1); !strings.Contains(seen, "listening"); seen += string(buf) {
		if _, err := io.ReadFull(stdout, buf); err != nil {
			t.Fatalf("iperf3 server: %v, after %q", err, seen)
		}
	}
	go func() { _, _ = io.Copy(io.Discard, stdout) }()
	args = append([]string{"--client", b.addr, "--json", "--time", strconv.Itoa(seconds)}, args...)
	out, err := a.command("iperf3", args...).Output()
	var report iperf3
	if jsonErr := json.Unmarshal(out, &report); jsonErr != nil {
		t.Fatalf("iperf3 report: %v\n%s", jsonErr, out)
	}
	if err != nil || report.Error != "" {
		t.Fatalf("iperf3: %v: %s", err, report.Error)
	}
	return report
}

// pings is what the tests read of ping's summary; round trips in milliseconds.
type pings struct {
	back     int
	min, avg float64
}

// ping sends n packets from a to b.
func ping(t testing.TB, a, b place, n int, args ...string) (p pings) {
	t.Helper()
	args = append([]string{"-n", "-q", "-c", strconv.Itoa(n), "-i", "0.02", "-W", "1"}, args...)
	// Its status says that a packet was lost; the summary says how many.
	out, _ := a.command("ping", append(args, b.addr)...).Output()
	for line := range strings.Lines(string(out)) {
		var err error
		if strings.Contains(line, "packets transmitted") {
			_, err = fmt.Sscanf(line, "%d packets transmitted, %d received", new(int), &p.back)
		} else if strings.HasPrefix(line, "rtt ") {
			_, err = fmt.Sscanf(line, "rtt min/avg/max/mdev = %f/%f/", &p.min, &p.avg)
		}
		if err != nil {
			t.Fatalf("ping: %q: %v", line, err)
		}
	}
	return p
}
