package main

import (
	"bytes"
	"compress/flate"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/goleak"

	"github.com/drover-vm/drover/lab/guest/control"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestParseSettings(t *testing.T) {
	got, err := parseSettings("console=ttyS0 quiet drover.name=web1 drover.ip=10.20.0.10/24,fd00::10/64 drover.ip=10.30.0.1/32 " +
		"drover.gw=10.20.0.1 drover.gw=fd00::1 drover.dns=10.0.0.1,10.0.0.2 drover.mtu=1400 root=/dev/vda ro init=/bin/sh\n")
	if err != nil {
		t.Fatal(err)
	}
	want := settings{
		name:     "web1",
		prefixes: []netip.Prefix{netip.MustParsePrefix("10.20.0.10/24"), netip.MustParsePrefix("fd00::10/64"), netip.MustParsePrefix("10.30.0.1/32")},
		gateways: []netip.Addr{netip.MustParseAddr("10.20.0.1"), netip.MustParseAddr("fd00::1")},
		dns:      []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")},
		mtu:      1400, root: "/dev/vda", rootType: "ext4", rootRO: true, init: "/bin/sh",
	}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(settings{}), cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); d != "" {
		t.Error(d)
	}
}

func TestBadSettings(t *testing.T) {
	for line, want := range map[string]string{
		"drover.ip=10.0.0.1":                     "drover.ip=10.0.0.1: want ADDRESS/BITS, dhcp, dhcp6 or ra",
		"drover.ip=dhcp,10.0.0.1/8":              "want one way for IPv4",
		"drover.gw=router":                       "drover.gw=router: want IP addresses",
		"drover.gw=10.0.0.1,10.0.0.2":            "want one per address family",
		"drover.dns=x":                           "drover.dns=x",
		"drover.mtu=10":                          "want 576 to 65535",
		"drover.dhcp=never":                      "want once",
		"drover.agent=on":                        "want off or hang",
		"drover.adress=10.0.0.1/8":               "unknown setting",
		"root=UUID=1":                            "want a device",
		"drover.ip=dhcp drover.ip=10.0.0.1/8 ro": "want one way for IPv4",
	} {
		if _, err := parseSettings(line); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %q", line, err, want)
		}
	}
	s, err := parseSettings("drover.ip=dhcp drover.ip=dhcp6,ra drover.dhcp=once drover.agent=hang")
	if err != nil || !s.dhcp || !s.dhcp6 || !s.ra || !s.dhcpOnce || s.agent != agentHang {
		t.Errorf("settings %+v, %v", s, err)
	}
	if _, err := parseSettings("drover.ip=dhcp,fd00::1/64"); err != nil {
		t.Errorf("dhcp beside a static IPv6 address: %v", err)
	}
}

func TestPace(t *testing.T) {
	start := time.Now()
	p := pace{perSecond: 1000, last: start}
	var units, dropped int64
	for i := 1; i <= 100; i++ { // ten seconds, in steps that hold no whole number of units
		u, d := p.take(start.Add(time.Duration(i) * 99700 * time.Microsecond))
		units, dropped = units+u, dropped+d
	}
	if units < 9969 || units > 9970 || dropped != 0 {
		t.Errorf("%d units, %d dropped in 9.97 s at 1000/s", units, dropped)
	}
	// After a long pause only what is recent is made up for.
	u, d := p.take(start.Add(20 * time.Second))
	if u > 101 || u+d < 10029 || u+d > 10031 {
		t.Errorf("after a pause of 10.03 s: %d units, %d dropped", u, d)
	}
}

func TestMemoryWriter(t *testing.T) {
	for _, share := range []float64{0, 0.5, 1} {
		w := newMemoryWriter()
		const pages = 64
		if err := w.start(control.Memory{WorkingSetBytes: pages * pageBytes, RateBytesPerS: 100 * 10 * pageBytes, Compressible: share}); err != nil {
			t.Fatal(err)
		}
		before := bytes.Clone(w.set)
		w.pace.last = time.Now()
		w.write(w.pace.last.Add(32*time.Millisecond + 100*time.Microsecond)) // half a pass
		changed := 0
		for off := 0; off < len(before); off += pageBytes {
			if !bytes.Equal(before[off:off+pageBytes], w.set[off:off+pageBytes]) {
				changed++
			}
		}
		if changed != 32 || w.stats().WrittenBytes != 32*pageBytes {
			t.Errorf("%d distinct pages changed, %d bytes counted, want 32 pages", changed, w.stats().WrittenBytes)
		}
		var packed bytes.Buffer
		z, err := flate.NewWriter(&packed, flate.BestCompression)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := z.Write(w.set); err != nil || z.Close() != nil {
			t.Fatal(err)
		}
		if ratio := float64(packed.Len()) / float64(len(w.set)); ratio < 0.97*(1-share) || ratio > 1.03*(1-share)+0.03 {
			t.Errorf("compressible %v: packs to %v of its size", share, ratio)
		}
		if err := w.stop(); err != nil || w.set != nil {
			t.Errorf("stop: %v", err)
		}
		if w.write(time.Now()) {
			t.Error("a stopped writer writes")
		}
	}
}

func TestMemoryWriterRefuses(t *testing.T) {
	w := newMemoryWriter()
	for _, m := range []control.Memory{
		{},
		{WorkingSetBytes: 4096, RateBytesPerS: -1},
		{WorkingSetBytes: 4096, Compressible: 1.1},
		{WorkingSetBytes: 1 << 60},
	} {
		if err := w.start(m); err == nil || w.stats().Running {
			t.Errorf("%+v: error %v, running %v", m, err, w.stats().Running)
		}
	}
	if err := w.start(control.Memory{WorkingSetBytes: 1 << 60}); !errors.Is(err, errNoMemory) {
		t.Errorf("too large: %v", err)
	}
}

func TestReadButton(t *testing.T) {
	event := func(kind, code uint16, value uint32) []byte {
		b := make([]byte, inputEventBytes)
		binary.NativeEndian.PutUint16(b[16:], kind)
		binary.NativeEndian.PutUint16(b[18:], code)
		binary.NativeEndian.PutUint32(b[20:], value)
		return b
	}
	others := bytes.Join([][]byte{event(eventKey, 30, 1), event(eventKey, keyPower, 0), event(0, 0, 0)}, nil)
	if err := readButton(bytes.NewReader(others)); !errors.Is(err, io.EOF) {
		t.Errorf("other events: %v", err)
	}
	if err := readButton(bytes.NewReader(append(others, event(eventKey, keyPower, 1)...))); !errors.Is(err, errPowerButton) {
		t.Errorf("power button: %v", err)
	}
}

func TestGapMeter(t *testing.T) {
	g := newGapMeter()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { g.run(ctx); close(done) }()
	g.reset()
	for g.stats().MaxMS == 0 { // until it measures
		time.Sleep(time.Millisecond)
	}
	g.mu.Lock() // what keeps the meter's own goroutine from running is a gap
	time.Sleep(200 * time.Millisecond)
	g.mu.Unlock()
	for g.stats().MaxMS < 100 { // runs into the test's own limit when it is not seen
		time.Sleep(time.Millisecond)
	}
	g.reset()
	cancel()
	<-done
}
