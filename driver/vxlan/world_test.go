package vxlan_test

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/driver/vxlan"
	"github.com/drover-vm/drover/namespace"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	bridgeName  = "br-blue"
	gatewayMAC  = "02:00:00:00:00:fe"
	gateway4    = "192.168.7.1"
	gateway6    = "fd07::1"
	segmentName = "blue"
	testVNI     = 77
)

var (
	owner1 = driver.VMOwner("6f9619ff-8b86-d011-b42d-00c04fc964ff")
	owner2 = driver.MoveOwner("move-1")
	meshA  = netip.MustParseAddr("10.99.0.1")
	meshB  = netip.MustParseAddr("10.99.0.2")
	mesh6A = netip.MustParseAddr("fd99::1")
	mesh6B = netip.MustParseAddr("fd99::2")
)

var worlds atomic.Int32

// world is two edges, each with a segment's bridge, joined by a WAN, and guests.
type world struct {
	t      *testing.T
	prefix string
}

// newWorld joins the edges by a veth with the MTU.
func newWorld(t *testing.T, mtu int) *world {
	t.Helper()
	w := &world{t: t, prefix: fmt.Sprintf("dvt%d-%d-", os.Getpid(), worlds.Add(1))}
	w.namespace("a")
	w.namespace("b")
	w.ip("", "link", "add", "wan", "mtu", fmt.Sprint(mtu), "netns", w.prefix+"a", "type", "veth", "peer", "name", "wan", "mtu", fmt.Sprint(mtu), "netns", w.prefix+"b")
	for edge, number := range map[string]string{"a": "1", "b": "2"} {
		w.ip(edge, "addr", "add", "10.99.0."+number+"/24", "dev", "wan")
		w.ip(edge, "addr", "add", "fd99::"+number+"/64", "dev", "wan", "nodad")
		w.ip(edge, "link", "set", "wan", "up")
		w.ip(edge, "link", "add", bridgeName, "address", gatewayMAC, "type", "bridge")
		w.ip(edge, "link", "set", bridgeName, "up")
	}
	return w
}

func (w *world) namespace(name string) {
	w.t.Helper()
	w.ip("", "netns", "add", w.prefix+name)
	w.t.Cleanup(func() { w.ip("", "netns", "del", w.prefix+name) })
	w.ip(name, "link", "set", "lo", "up")
}

// try runs a command in a namespace.
func (w *world) try(name, command string, args ...string) (string, error) {
	if name != "" {
		args = append([]string{"netns", "exec", w.prefix + name, command}, args...)
		command = "ip"
	}
	out, err := exec.Command(command, args...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s %s: %w: %s", command, strings.Join(args, " "), err, out)
	}
	return string(out), err
}

func (w *world) run(name, command string, args ...string) string {
	w.t.Helper()
	out, err := w.try(name, command, args...)
	if err != nil {
		w.t.Fatalf("this test needs root, iproute2, nftables and ping: %v", err)
	}
	return out
}

func (w *world) ip(name string, args ...string) string {
	w.t.Helper()
	return w.run(name, "ip", args...)
}

// guest puts one with the number behind an edge's bridge.
func (w *world) guest(name, edge string, number int) driver.Station {
	w.t.Helper()
	w.namespace(name)
	st := driver.Station{
		MAC: fmt.Sprintf("52:54:00:00:00:%02x", number),
		Addresses: []netip.Addr{
			netip.MustParseAddr(fmt.Sprintf("192.168.7.%d", number)), netip.MustParseAddr(fmt.Sprintf("fd07::%x", number)),
		},
	}
	w.ip("", "link", "add", "eth0", "address", st.MAC, "netns", w.prefix+name, "type", "veth", "peer", "name", "p-"+name, "netns", w.prefix+edge)
	w.ip(edge, "link", "set", "p-"+name, "master", bridgeName, "up")
	w.ip(name, "addr", "add", st.Addresses[0].String()+"/24", "dev", "eth0")
	w.ip(name, "addr", "add", st.Addresses[1].String()+"/64", "dev", "eth0", "nodad")
	w.ip(name, "link", "set", "eth0", "up")
	return st
}

// inside runs f in the namespace.
func (w *world) inside(name string, f func() error) {
	w.t.Helper()
	if err := namespace.InNamed(w.prefix+name, f); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) open(edge string, cfg vxlan.Config) *vxlan.Segments {
	w.t.Helper()
	var s *vxlan.Segments
	w.inside(edge, func() (err error) {
		s, err = vxlan.Open(w.t.Context(), cfg)
		return err
	})
	w.t.Cleanup(func() {
		if err := s.Close(); err != nil {
			w.t.Error(err)
		}
	})
	return s
}

func extensionOf(local, remote netip.Addr) driver.Extension {
	return driver.Extension{
		Segment: segmentName, Bridge: bridgeName, VNI: testVNI, Local: local, Remotes: []driver.Remote{{Address: remote}},
	}
}

func withGateway(ext driver.Extension) driver.Extension {
	ext.LocalEgress = true
	ext.Gateway = driver.SegmentGateway{MAC: gatewayMAC, Addresses: []netip.Addr{netip.MustParseAddr(gateway4), netip.MustParseAddr(gateway6)}}
	return ext
}

// stretched returns both edges' drivers with the segment extended between them.
func (w *world) stretched(egress bool) (a, b *vxlan.Segments) {
	w.t.Helper()
	a, b = w.open("a", vxlan.Config{}), w.open("b", vxlan.Config{})
	ea, eb := extensionOf(meshA, meshB), extensionOf(meshB, meshA)
	if egress {
		ea, eb = withGateway(ea), withGateway(eb)
	}
	w.must(a.Extend(w.t.Context(), owner1, ea))
	w.must(b.Extend(w.t.Context(), owner1, eb))
	return a, b
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// know tells both edges of stations at a and at b.
func (w *world) know(a, b *vxlan.Segments, atA, atB []driver.Station) {
	w.t.Helper()
	place := func(list []driver.Station, at netip.Addr) (out []driver.Station) {
		for _, st := range list {
			st.At = at
			out = append(out, st)
		}
		return out
	}
	var here netip.Addr
	w.must(a.SetStations(w.t.Context(), segmentName, append(place(atA, here), place(atB, meshB)...)))
	w.must(b.SetStations(w.t.Context(), segmentName, append(place(atA, meshA), place(atB, here)...)))
}

// ping sends n, with the prohibition of fragments, until all are answered or
// it is clear that they are not.
func (w *world) ping(name string, to netip.Addr, n, size int) error {
	args := []string{"-n", "-q", "-c", fmt.Sprint(n), "-i", "0.01", "-W", "1", "-M", "do", "-s", fmt.Sprint(size), to.String()}
	out, err := w.try(name, "ping", args...)
	if err == nil && !strings.Contains(out, " 0% packet loss") {
		err = fmt.Errorf("ping: %s", out)
	}
	return err
}

// pings sends n until all of them are answered. A port that is just coming up
// may lose one; what is wrong loses them every time.
func (w *world) pings(name string, to netip.Addr, n, size int) {
	w.t.Helper()
	err := w.ping(name, to, n, size)
	for try := 0; err != nil && try < 3; try++ {
		err = w.ping(name, to, n, size)
	}
	w.must(err)
}
