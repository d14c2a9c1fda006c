package wireguard_test

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/driver/drivertest"
	"github.com/drover-vm/drover/driver/wireguard"
)

func TestTunnels(t *testing.T) {
	drivertest.Tunnels(t, drivertest.TunnelsSetup{New: func(t *testing.T, n int) []drivertest.TunnelsEdge {
		w := newWorld(t, n, 1500)
		var all []drivertest.TunnelsEdge
		for i := range n {
			endpoint := fmt.Sprintf("203.0.113.%d:51820", i+1)
			if i == 2 {
				endpoint = fmt.Sprintf("[2001:db8::%d]:51820", i+1)
			}
			all = append(all, drivertest.TunnelsEdge{
				Endpoint: netip.MustParseAddrPort(endpoint), Addresses: addresses(i),
				Open:    func() (driver.Tunnels, error) { return w.open(i, w.config(i, 1500)) },
				Reaches: func(to netip.Addr) bool { return w.ping(w.edge(i), to, 1, 56) == nil },
				Occupy:  func() { w.ip(w.edge(i), "tuntap", "add", "dev", wireguard.DefaultInterface, "mode", "tun") },
				Occupied: func() bool {
					out, err := w.try(w.edge(i), "ip", "link", "show", wireguard.DefaultInterface)
					return err == nil && strings.Contains(out, "mtu 1500") && !strings.Contains(out, "alias")
				},
			})
		}
		return all
	}})
}

// pair is two edges that are peers.
func pair(tb testing.TB, wan int, change func(*wireguard.Config)) (w *world, a, b *wireguard.Tunnels) {
	tb.Helper()
	w = newWorld(tb, 2, wan)
	open := make([]*wireguard.Tunnels, 2)
	for i := range open {
		cfg := w.config(i, wan)
		if change != nil {
			change(&cfg)
		}
		t, err := w.open(i, cfg)
		if err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(func() {
			if err := t.Close(); err != nil {
				tb.Error(err)
			}
		})
		open[i] = t
	}
	for i := range open {
		t := open[1-i]
		if err := t.SetPeers(tb.Context(), []driver.Peer{peerOf(tb, open[i], i)}); err != nil {
			tb.Fatal(err)
		}
	}
	return w, open[0], open[1]
}

func peerOf(tb testing.TB, t *wireguard.Tunnels, i int) driver.Peer {
	tb.Helper()
	self, err := t.Self(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	p := driver.Peer{
		Name: fmt.Sprintf("e%d", i), Key: self.Key, Next: self.Next, Keepalive: 25 * time.Second,
		Endpoint: netip.AddrPortFrom(netip.MustParseAddr(fmt.Sprintf("203.0.113.%d", i+1)), self.Port),
	}
	for _, a := range self.Addresses {
		p.Addresses = append(p.Addresses, netip.PrefixFrom(a.Addr(), a.Addr().BitLen()))
	}
	return p
}

// TestMTU: whatever the WAN has, what VXLAN makes of a packet of 1,500 bytes
// passes in one piece through the interface.
func TestMTU(t *testing.T) {
	for _, wan := range []int{1500, 1600, 1650} {
		t.Run(fmt.Sprint(wan), func(t *testing.T) {
			w, a, _ := pair(t, wan, nil)
			self, err := a.Self(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if self.MTU != wireguard.MinMTU {
				t.Fatalf("MTU %d", self.MTU)
			}
			for _, try := range []struct {
				to   string
				size int
			}{{"10.99.0.2", self.MTU - 28}, {"fd99::2", self.MTU - 48}} {
				to := netip.MustParseAddr(try.to)
				for end := time.Now().Add(time.Minute); w.ping("e0", to, 1, 56) != nil && time.Now().Before(end); {
				}
				if err := w.ping("e0", to, 20, try.size); err != nil {
					t.Error(err)
				}
				if w.ping("e0", to, 1, try.size+1) == nil {
					t.Errorf("%d bytes went through an interface of %d", try.size+1, self.MTU)
				}
			}
		})
	}
}

// TestRotateUnderTraffic: of a ping every 10 ms, few are lost when the key changes.
func TestRotateUnderTraffic(t *testing.T) {
	w, a, b := pair(t, 1500, nil)
	to := netip.MustParseAddr("10.99.0.2")
	// Until there is a way: the first call may be lost.
	for end := time.Now().Add(time.Minute); w.ping("e0", to, 1, 56) != nil; {
		if time.Now().After(end) {
			t.Fatal("no way to the peer")
		}
	}
	next, err := a.Rotate(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := b.SetPeers(t.Context(), []driver.Peer{peerOf(t, a, 0)}); err != nil {
		t.Fatal(err)
	}
	pinged := make(chan string, 1)
	go func() {
		out, _ := w.try("e0", "ping", "-n", "-q", "-c", "200", "-i", "0.01", "-W", "1", to.String())
		pinged <- out
	}()
	time.Sleep(500 * time.Millisecond)
	if err := a.Adopt(t.Context(), next.Next); err != nil {
		t.Fatal(err)
	}
	out := <-pinged
	var sent, received int
	for line := range strings.Lines(out) {
		fmt.Sscanf(line, "%d packets transmitted, %d received", &sent, &received)
	}
	t.Logf("%d of %d pings answered", received, sent)
	if sent != 200 || received < 180 {
		t.Errorf("%d of %d pings answered: %s", received, sent, out)
	}
	states, err := b.Peers(t.Context())
	if err != nil || len(states) != 1 || states[0].Active != next.Next {
		t.Errorf("after the change: %+v, %v", states, err)
	}
}

func TestKeys(t *testing.T) {
	w := newWorld(t, 1, 1500)
	a, err := w.open(0, w.config(0, 0))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	if out := w.ip("e0", "link", "show", wireguard.DefaultInterface); !strings.Contains(out, "drover:mesh") {
		t.Errorf("no mark: %s", out)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.try("e0", "ip", "link", "show", wireguard.DefaultInterface); err == nil {
		t.Error("a closed tunnel left its interface")
	}
	key := filepath.Join(w.keys[0], "wireguard.key")
	for _, f := range []string{key, filepath.Join(w.keys[0], "wireguard.next")} {
		if info, err := os.Stat(f); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", f, info, err)
		}
	}
	if err := os.Chmod(key, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := w.open(0, w.config(0, 0)); drover.KindOf(err) != drover.Refused {
		t.Errorf("a key that others may read: %v", err)
	}
	if err := os.Chmod(key, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(key, []byte("nonsense\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := w.open(0, w.config(0, 0)); drover.KindOf(err) != drover.Corrupt {
		t.Errorf("a key that is none: %v", err)
	}
}

// TestRoutes: routes to what is behind a peer come and go with it; others stay.
func TestRoutes(t *testing.T) {
	w, a, b := pair(t, 1500, nil)
	w.ip("e0", "route", "add", "198.51.100.0/24", "dev", wireguard.DefaultInterface)
	p := peerOf(t, b, 1)
	p.Addresses = append(p.Addresses, netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8:7::/64"))
	for range 2 {
		if err := a.SetPeers(t.Context(), []driver.Peer{p}); err != nil {
			t.Fatal(err)
		}
	}
	out := w.ip("e0", "route", "show", "proto", "215") + w.ip("e0", "-6", "route", "show", "proto", "215")
	if !strings.Contains(out, "192.0.2.0/24 ") || !strings.Contains(out, "2001:db8:7::/64 ") || strings.Count(out, "\n") != 2 {
		t.Errorf("routes:\n%s", out)
	}
	if err := a.SetPeers(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	out = w.ip("e0", "route", "show", "proto", "215") + w.ip("e0", "-6", "route", "show", "proto", "215")
	if out != "" {
		t.Errorf("routes left:\n%s", out)
	}
	if out := w.ip("e0", "route"); !strings.Contains(out, "198.51.100.0/24") {
		t.Errorf("somebody else's route is gone:\n%s", out)
	}
}

func TestConfig(t *testing.T) {
	good := wireguard.Config{Addresses: addresses(0), KeyDir: "/nowhere"}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*wireguard.Config){
		"no address":     func(c *wireguard.Config) { c.Addresses = nil },
		"long name":      func(c *wireguard.Config) { c.Interface = "drover0123456789" },
		"bad name":       func(c *wireguard.Config) { c.Interface = "a b" },
		"relative":       func(c *wireguard.Config) { c.KeyDir = "keys" },
		"small WAN":      func(c *wireguard.Config) { c.WANMTU = 1280 },
		"small MTU":      func(c *wireguard.Config) { c.MTU = 576 },
		"not an address": func(c *wireguard.Config) { c.Addresses = []netip.Prefix{{}} },
	} {
		c := good
		change(&c)
		if err := c.Validate(); drover.KindOf(err) != drover.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}
