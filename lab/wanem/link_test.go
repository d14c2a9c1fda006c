package wanem_test

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"math/bits"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/lab/wanem"
)

func TestMain(m *testing.M) {
	// Other packages' tests may keep every core busy. The tests without devices
	// also run without root.
	if os.Geteuid() == 0 {
		if err := wanem.RaisePriority(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	goleak.VerifyTestMain(m)
}

func TestRaisePriority(t *testing.T) {
	for range 4 {
		runtime.LockOSThread() // each on a thread of its own
		done := make(chan int, 1)
		go func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			nice, err := unix.Getpriority(unix.PRIO_PROCESS, unix.Gettid())
			if err != nil {
				t.Error(err)
			}
			done <- 20 - nice // the system call's result is 20 - nice
		}()
		if nice := <-done; nice != -15 {
			t.Errorf("a thread has niceness %d", nice)
		}
		runtime.UnlockOSThread()
	}
}

func set(t testing.TB, l *wanem.Link, s wanem.Shape) {
	t.Helper()
	if err := l.SetShape(s); err != nil {
		t.Fatal(err)
	}
}

func within(t testing.TB, what string, got, want, share float64) {
	t.Helper()
	t.Logf("%s: %.4g, set %.4g", what, got, want)
	if math.Abs(got-want) > share*want {
		t.Errorf("%s: %.4g, want %.4g within %.0f %%", what, got, want, share*100)
	}
}

// The set rate and round trip are what iperf3 and ping find, also after they
// have been changed while the link runs.
func TestSetValuesAreDelivered(t *testing.T) {
	l, a, b := newLink(t, wanem.Shape{})
	for _, s := range []wanem.Shape{
		{RateBps: 10e6, Delay: 5 * time.Millisecond},
		{RateBps: 200e6, Delay: 25 * time.Millisecond},
		{RateBps: 100e6},
	} {
		set(t, l, s)
		p := ping(t, a, b, 20)
		if p.back != 20 {
			t.Errorf("%s: %d of 20 pings came back", s, p.back)
		}
		// The shortest: the others may have waited for a core.
		want := 2 * s.Delay.Seconds() * 1000
		t.Logf("%s: round trip %.2f ms, %.2f on average", s, p.min, p.avg)
		if p.min < want-0.3 || p.min > want+2 {
			t.Errorf("%s: round trip %.2f ms, want %.2f", s, p.min, want)
		}
		checkRate(t, a, b, s)
	}
}

// checkRate wants no stream above the set rate, and one of three to reach it
// within 10 %: on a busy machine the ends themselves may not get to send.
func checkRate(t *testing.T, a, b place, s wanem.Shape) {
	t.Helper()
	set, best := float64(s.RateBps), 0.0
	for range 3 {
		got := iperf(t, a, b, 3, "--omit", "1").End.Received.Rate
		t.Logf("%s: %.4g bit/s", s, got)
		if got > 1.1*set {
			t.Errorf("%s: %.4g bit/s is more than set", s, got)
		}
		if best = max(best, got); best >= 0.9*set {
			return
		}
	}
	t.Errorf("%s: %.4g bit/s at best", s, best)
}

// What iperf3 received is what the counters say: payload, plus a header of 66
// bytes (Ethernet 14, IP 20, TCP with timestamps 32) for every 1448 bytes.
func TestCountersMatchIperf(t *testing.T) {
	l, a, b := newLink(t, wanem.Shape{})
	before := l.Status()
	r := iperf(t, a, b, 2)
	after := l.Status()
	wire := float64(after.Forward.Bytes - before.Forward.Bytes)
	packets := float64(after.Forward.Packets - before.Forward.Packets)
	within(t, "bytes on the wire", wire, float64(r.End.Received.Bytes)*1514/1448, 0.02)
	within(t, "bytes per packet", wire/packets, 1514, 0.02)
	if after.Forward.DroppedPackets != 0 {
		t.Errorf("%d packets dropped without a queue or loss", after.Forward.DroppedPackets)
	}
	if acks := after.Reverse.Packets - before.Reverse.Packets; acks == 0 {
		t.Error("no acknowledgement was counted")
	}
}

func TestCutAndHeal(t *testing.T) {
	l, a, b := newLink(t, wanem.Shape{Delay: 10 * time.Millisecond})
	if p := ping(t, a, b, 10); p.back != 10 {
		t.Fatalf("%d of 10 pings came back before the cut", p.back)
	}
	set(t, l, wanem.Shape{Delay: 10 * time.Millisecond, Cut: true})
	before := l.Status()
	for _, way := range [][2]place{{a, b}, {b, a}} {
		if p := ping(t, way[0], way[1], 10); p.back != 0 {
			t.Errorf("%d pings from %s crossed a cut link", p.back, way[0].name)
		}
	}
	after := l.Status()
	if after.Forward.Bytes != before.Forward.Bytes || after.Reverse.Bytes != before.Reverse.Bytes {
		t.Error("a cut link delivered bytes")
	}
	if after.Forward.DroppedPackets == 0 || after.Reverse.DroppedPackets == 0 {
		t.Errorf("a cut link counts what it drops: %+v", after)
	}
	set(t, l, wanem.Shape{Delay: 10 * time.Millisecond})
	// The neighbours may first have to find each other again.
	ping(t, a, b, 5, "-w", "5")
	if p := ping(t, a, b, 10); p.back != 10 {
		t.Errorf("%d of 10 pings came back after healing", p.back)
	}
}

// A shorter delay also reaches the frames that were to arrive much later, and
// the timer that waits for them.
func TestShorterDelayHastensFrames(t *testing.T) {
	l, a, b := newLink(t, wanem.Shape{})
	set(t, l, wanem.Shape{Delay: wanem.MaxDelay})
	answered := make(chan pings, 1)
	go func() { answered <- ping(t, a, b, 1, "-W", "60") }()
	time.Sleep(500 * time.Millisecond) // the request is on its way
	set(t, l, wanem.Shape{})
	// After 5 s the neighbour table's probe would have woken the link anyway.
	if p := <-answered; p.back != 1 || p.min >= wanem.MaxDelay.Seconds()*1000/3 {
		t.Errorf("%d answer after %.0f ms", p.back, p.min)
	}
}

func TestLoss(t *testing.T) {
	l, a, b := newLink(t, wanem.Shape{})
	set(t, l, wanem.Shape{Loss: 0.2})
	const n = 300
	back := ping(t, a, b, n, "-i", "0.005").back
	// A ping is lost on either way: 64 % come back, sigma is 2.8 %.
	within(t, "pings that came back", float64(back)/n, 0.64, 0.22)
}

// digest sends n bytes from a to b over TCP and returns what was sent and what
// was received as digests.
func digest(t *testing.T, a, b place, n int64, target string) (sent, received string) {
	t.Helper()
	receiver := b.command("socat", "-u", "-T", "20", strings.Replace(target, "CONNECT", "LISTEN", 1)+",reuseaddr", "-")
	out, err := receiver.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := receiver.Start(); err != nil {
		t.Fatal(err)
	}
	address := strings.Replace(target, "CONNECT:", "CONNECT:"+b.addr+":", 1)
	if strings.HasPrefix(target, "TCP6") {
		address = strings.Replace(target, "CONNECT:", "CONNECT:[fd99::2]:", 1)
	}
	sender := a.command("socat", "-u", "-", address+",retry=50,interval=0.1")
	in, err := sender.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := sender.Start(); err != nil {
		t.Fatal(err)
	}
	wrote := make(chan error, 1)
	sum := sha256.New()
	go func() {
		// The stream is a hash chain, so that no two segments are alike.
		block := sha256.Sum256([]byte("start"))
		var err error
		for left := n; left > 0 && err == nil; left -= int64(len(block)) {
			block = sha256.Sum256(block[:])
			_, err = io.MultiWriter(sum, in).Write(block[:])
		}
		wrote <- errors.Join(err, in.Close())
	}()
	got := sha256.New()
	if _, err := io.Copy(got, out); err != nil {
		t.Error(err)
	}
	if err := errors.Join(<-wrote, sender.Wait(), receiver.Wait()); err != nil {
		t.Error(err)
	}
	return hex.EncodeToString(sum.Sum(nil)), hex.EncodeToString(got.Sum(nil))
}

// A stream arrives unchanged when packets are divided for loss, for a slow
// link and for a short queue: by IPv4, by IPv6, and inside VXLAN.
func TestDividedStreamsArriveIntact(t *testing.T) {
	l, a, b := newLink(t, wanem.Shape{})
	for i, p := range []place{a, b} {
		p.run(t, "sysctl", "-qw", "net.ipv6.conf."+device+".disable_ipv6=0")
		p.run(t, "ip", "addr", "add", []string{"fd99::1/64", "fd99::2/64"}[i], "dev", device, "nodad")
		p.run(t, "ip", "link", "add", "vx0", "mtu", "1450", "type", "vxlan", "id", "7", "dev", device, "dstport", "4789",
			"remote", []string{b.addr, a.addr}[i])
		p.run(t, "ip", "addr", "add", []string{"10.98.0.1/24", "10.98.0.2/24"}[i], "dev", "vx0")
		p.run(t, "ip", "link", "set", "vx0", "up")
	}
	set(t, l, wanem.Shape{RateBps: 100e6, Delay: time.Millisecond, Jitter: time.Millisecond, Loss: 0.002, QueueBytes: 40_000})
	inner := b
	inner.addr = "10.98.0.2"
	for name, c := range map[string]struct {
		to     place
		target string
	}{
		"ipv4":  {b, "TCP4-CONNECT:5000"},
		"ipv6":  {b, "TCP6-CONNECT:5000"},
		"vxlan": {inner, "TCP4-CONNECT:5001"},
	} {
		t.Run(name, func(t *testing.T) {
			before := l.Status().Forward
			sent, received := digest(t, a, c.to, 8<<20, c.target)
			if sent != received {
				t.Error("the stream arrived changed")
			}
			if l.Status().Forward.DroppedPackets == before.DroppedPackets {
				t.Error("nothing was lost: the test has not divided anything")
			}
		})
	}
}

func TestStatusAndClose(t *testing.T) {
	shape := wanem.Shape{RateBps: 1e6, Delay: time.Second}
	l, a, _ := newLink(t, wanem.Shape{})
	set(t, l, shape)
	if s := l.Status(); s.Name != "a-b" || s.Ends != [2]string{"a", "b"} || s.Shape != shape {
		t.Errorf("%+v", s)
	}
	if err := l.SetShape(wanem.Shape{Loss: 2}); drover.KindOf(err) != drover.Invalid {
		t.Errorf("loss 2: %v", err)
	}
	if s := l.Status(); s.Shape != shape {
		t.Errorf("a refused change left %+v", s.Shape)
	}
	for range 2 {
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := a.command("ip", "link", "show", device).CombinedOutput(); err == nil {
		t.Errorf("the device is still there: %s", out)
	}
	if err := l.SetShape(shape); drover.KindOf(err) != drover.Unavailable {
		t.Errorf("set on a closed link: %v", err)
	}
	if s := l.Status(); s.Forward.Packets == 0 {
		t.Error("a closed link forgot its counters")
	}
}

// A device that somebody else removes ends the link with an error, and does
// not spin.
func TestDeviceRemovedFromOutside(t *testing.T) {
	a, b := newPlace(t, "a", "10.99.0.1"), newPlace(t, "b", "10.99.0.2")
	l, err := wanem.Open(t.Context(), slog.New(slog.DiscardHandler), "a-b", 1500, a.end(), b.end(), wanem.Shape{})
	if err != nil {
		t.Fatal(err)
	}
	b.run(t, "ip", "link", "delete", device)
	if err := l.Close(); err == nil {
		t.Error("Close does not say that the device was gone")
	}
}

func TestOpenErrors(t *testing.T) {
	a, b := newPlace(t, "a", "10.99.0.1"), newPlace(t, "b", "10.99.0.2")
	taken := newPlace(t, "c", "10.99.0.3")
	taken.run(t, "ip", "tuntap", "add", device, "mode", "tap")
	long, unnamed, template, gone, plainFile := b.end(), b.end(), b.end(), b.end(), b.end()
	unnamed.Interface, template.Interface = "", "wan%d"
	long.Interface = "sixteen-bytes-xx"
	gone.NetNS = "/proc/1/ns/nothing"
	plainFile.NetNS = os.Args[0]
	for name, c := range map[string]struct {
		end   wanem.End
		mtu   int
		shape wanem.Shape
		kind  drover.Kind
		says  string
	}{
		"negative delay":    {b.end(), 1500, wanem.Shape{Delay: -1}, drover.Invalid, "delay -1ns"},
		"small mtu":         {b.end(), 100, wanem.Shape{}, drover.Invalid, "mtu 100: want 1280 to 65521"},
		"long name":         {long, 1500, wanem.Shape{}, drover.Invalid, "1 to 15 bytes"},
		"no name":           {unnamed, 1500, wanem.Shape{}, drover.Invalid, "1 to 15 bytes"},
		"name template":     {template, 1500, wanem.Shape{}, drover.Invalid, "1 to 15 bytes"},
		"no such namespace": {gone, 1500, wanem.Shape{}, drover.NotFound, "/proc/1/ns/nothing"},
		"not a namespace":   {plainFile, 1500, wanem.Shape{}, drover.Invalid, "namespace"},
		"name taken":        {taken.end(), 1500, wanem.Shape{}, drover.Exists, "interface wan0"},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := wanem.Open(t.Context(), slog.New(slog.DiscardHandler), "a-b", c.mtu, a.end(), c.end, c.shape)
			if err == nil {
				t.Fatal(l.Close(), "opened")
			}
			if drover.KindOf(err) != c.kind || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%s error: %v", drover.KindOf(err), err)
			}
			if out, err := a.command("ip", "link", "show", device).CombinedOutput(); err == nil {
				t.Errorf("the first end's device is left: %s", out)
			}
		})
	}
}

// A flipped bit reaches the reader of a TCP stream: the kernels in between
// neither notice nor repair it.
func TestCorruptionIsDelivered(t *testing.T) {
	l, a, b := newLink(t, wanem.Shape{})
	set(t, l, wanem.Shape{RateBps: 200e6, CorruptEvery: 50})
	const size = 8 << 20
	dir := t.TempDir()
	sent, received := filepath.Join(dir, "sent"), filepath.Join(dir, "received")
	if err := os.WriteFile(sent, make([]byte, size), 0o600); err != nil {
		t.Fatal(err)
	}
	server := b.command("socat", "-u", "TCP-LISTEN:7777,reuseaddr", "CREATE:"+received)
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	before := l.Status().Forward
	a.run(t, "socat", "-u", "OPEN:"+sent, "TCP:"+b.addr+":7777,retry=50,interval=0.1")
	if err := server.Wait(); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(received)
	if err != nil {
		t.Fatal(err)
	}
	flipped := 0
	for _, c := range got {
		flipped += bits.OnesCount8(c)
	}
	after := l.Status().Forward
	corrupted := int(after.CorruptedPackets - before.CorruptedPackets)
	t.Logf("%d of %d packets corrupted, %d bits flipped in %d bytes", corrupted, after.Packets-before.Packets, flipped, len(got))
	if len(got) != size || corrupted == 0 || flipped != corrupted {
		t.Errorf("%d bytes with %d flipped bits arrived, want %d with %d", len(got), flipped, size, corrupted)
	}
}
