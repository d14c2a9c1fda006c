package wireguard_test

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/drover-vm/drover/driver/wireguard"
	"github.com/drover-vm/drover/namespace"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var worlds atomic.Int32

// world is edges on one WAN: a bridge in a namespace of its own.
type world struct {
	tb     testing.TB
	prefix string
	keys   []string
}

func newWorld(tb testing.TB, edges, mtu int) *world {
	tb.Helper()
	w := &world{tb: tb, prefix: fmt.Sprintf("dwg%d-%d-", os.Getpid(), worlds.Add(1))}
	w.namespace("wan")
	w.ip("wan", "link", "add", "net", "type", "bridge")
	w.ip("wan", "link", "set", "net", "up")
	for i := range edges {
		edge := w.edge(i)
		w.namespace(edge)
		w.keys = append(w.keys, tb.TempDir())
		w.ip("", "link", "add", "wan", "mtu", fmt.Sprint(mtu), "netns", w.prefix+edge, "type", "veth", "peer", "name", edge, "mtu", fmt.Sprint(mtu), "netns", w.prefix+"wan")
		w.ip("wan", "link", "set", edge, "master", "net", "up")
		w.ip(edge, "addr", "add", fmt.Sprintf("203.0.113.%d/24", i+1), "dev", "wan")
		w.ip(edge, "addr", "add", fmt.Sprintf("2001:db8::%d/64", i+1), "dev", "wan", "nodad")
		w.ip(edge, "link", "set", "wan", "up")
	}
	return w
}

func (w *world) edge(i int) string { return fmt.Sprintf("e%d", i) }

func (w *world) namespace(name string) {
	w.tb.Helper()
	w.ip("", "netns", "add", w.prefix+name)
	w.tb.Cleanup(func() { w.ip("", "netns", "del", w.prefix+name) })
	w.ip(name, "link", "set", "lo", "up")
}

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

func (w *world) ip(name string, args ...string) string {
	w.tb.Helper()
	out, err := w.try(name, "ip", args...)
	if err != nil {
		w.tb.Fatalf("this test needs root, /dev/net/tun, iproute2 and ping: %v", err)
	}
	return out
}

// inside runs f in the namespace.
func (w *world) inside(name string, f func() error) error {
	return namespace.InNamed(w.prefix+name, f)
}

func (w *world) config(i, mtu int) wireguard.Config {
	return wireguard.Config{
		Addresses: addresses(i), KeyDir: w.keys[i], WANMTU: mtu,
	}
}

func addresses(i int) []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix(fmt.Sprintf("10.99.0.%d/24", i+1)), netip.MustParsePrefix(fmt.Sprintf("fd99::%d/64", i+1)),
	}
}

func (w *world) open(i int, cfg wireguard.Config) (t *wireguard.Tunnels, err error) {
	err = w.inside(w.edge(i), func() (err error) {
		t, err = wireguard.Open(w.tb.Context(), cfg)
		return err
	})
	return t, err
}

// ping sends n packets of the size without fragments.
func (w *world) ping(edge string, to netip.Addr, n, size int) error {
	_, err := w.try(edge, "ping", "-n", "-q", "-c", fmt.Sprint(n), "-i", "0.01", "-W", "0.4", "-M", "do", "-s", fmt.Sprint(size), to.String())
	return err
}
