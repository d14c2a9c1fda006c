package vxlan_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/driver/vxlan"
	"github.com/drover-vm/drover/driver/wireguard"
)

// TestInsideWireGuard: a full packet of a guest crosses in one piece, inside of
// the encrypted mesh, whatever the WAN's MTU.
func TestInsideWireGuard(t *testing.T) {
	for _, wan := range []int{1500, 1600} {
		t.Run(fmt.Sprint(wan), func(t *testing.T) {
			w := newWorld(t, wan)
			g1, g2 := w.guest("g1", "a", 11), w.guest("g2", "b", 12)
			w.mesh(wan)
			a, b := w.open("a", vxlan.Config{}), w.open("b", vxlan.Config{})
			near, far := netip.MustParseAddr("10.98.0.1"), netip.MustParseAddr("10.98.0.2")
			w.must(a.Extend(t.Context(), owner1, withGateway(extensionOf(near, far))))
			w.must(b.Extend(t.Context(), owner1, withGateway(extensionOf(far, near))))
			there1, there2 := g1, g2
			there1.At, there2.At = near, far
			w.must(a.SetStations(t.Context(), segmentName, []driver.Station{g1, there2}))
			w.must(b.SetStations(t.Context(), segmentName, []driver.Station{g2, there1}))
			for end := time.Now().Add(15 * time.Second); w.ping("a", far, 1, 56) != nil; {
				if time.Now().After(end) {
					t.Fatal("no way through the mesh")
				}
			}
			w.pings("g1", g2.Addresses[0], 10, full4)
			w.pings("g2", g1.Addresses[0], 10, full4)
			w.pings("g1", g2.Addresses[1], 10, full6)
			w.pings("g2", g1.Addresses[1], 10, full6)
		})
	}
}

// mesh joins both edges by WireGuard on their WAN.
func (w *world) mesh(wan int) {
	w.t.Helper()
	tunnels := make([]*wireguard.Tunnels, 2)
	peers := make([]driver.Peer, 2)
	for i, edge := range []string{"a", "b"} {
		cfg := wireguard.Config{
			Addresses: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.98.0.%d/24", i+1))},
			KeyDir:    w.t.TempDir(), WANMTU: wan,
		}
		w.inside(edge, func() (err error) {
			tunnels[i], err = wireguard.Open(w.t.Context(), cfg)
			return err
		})
		w.t.Cleanup(func() { w.must(tunnels[i].Close()) })
		self, err := tunnels[i].Self(w.t.Context())
		w.must(err)
		peers[i] = driver.Peer{
			Name: edge, Key: self.Key, Keepalive: 25 * time.Second,
			Endpoint:  netip.AddrPortFrom(netip.MustParseAddr(fmt.Sprintf("10.99.0.%d", i+1)), self.Port),
			Addresses: []netip.Prefix{netip.PrefixFrom(cfg.Addresses[0].Addr(), 32)},
		}
	}
	w.must(tunnels[1].SetPeers(w.t.Context(), peers[:1]))
	w.must(tunnels[0].SetPeers(w.t.Context(), peers[1:]))
}
