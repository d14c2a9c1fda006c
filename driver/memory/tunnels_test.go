package memory_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/driver/drivertest"
	"github.com/drover-vm/drover/driver/memory"
)

func TestTunnels(t *testing.T) {
	drivertest.Tunnels(t, drivertest.TunnelsSetup{New: func(t *testing.T, n int) []drivertest.TunnelsEdge {
		mesh := memory.NewMesh()
		var all []drivertest.TunnelsEdge
		for i := range n {
			cfg := memory.TunnelsConfig{
				Endpoint: netip.MustParseAddrPort(fmt.Sprintf("203.0.113.%d:51820", i+1)),
				Addresses: []netip.Prefix{
					netip.MustParsePrefix(fmt.Sprintf("10.99.0.%d/24", i+1)), netip.MustParsePrefix(fmt.Sprintf("fd99::%d/64", i+1)),
				},
			}
			var open *memory.Tunnels
			all = append(all, drivertest.TunnelsEdge{
				Endpoint: cfg.Endpoint, Addresses: cfg.Addresses,
				Open: func() (driver.Tunnels, error) {
					var err error
					open, err = mesh.Open(cfg)
					return open, err
				},
				Reaches:  func(to netip.Addr) bool { return open.Send(to, 100) },
				Occupy:   func() { mesh.Occupy(cfg.Endpoint) },
				Occupied: func() bool { _, err := mesh.Open(cfg); return err != nil },
			})
		}
		return all
	}})
}
