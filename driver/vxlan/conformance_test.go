package vxlan_test

import (
	"fmt"
	"testing"

	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/driver/drivertest"
	"github.com/drover-vm/drover/driver/vxlan"
)

func TestSegments(t *testing.T) {
	drivertest.Segments(t, drivertest.SegmentsSetup{New: func(t *testing.T) drivertest.SegmentsEdge {
		w := newWorld(t, 1600)
		w.ip("a", "link", "add", "br-green", "address", "02:00:00:00:01:fe", "type", "bridge")
		w.ip("a", "link", "set", "br-green", "up")
		return drivertest.SegmentsEdge{
			Open: func() (s driver.Segments, err error) {
				w.inside("a", func() error {
					s, err = vxlan.Open(t.Context(), vxlan.Config{})
					return nil
				})
				return s, err
			},
			Snapshot: func() string { return w.kernel("a") },
			Occupy:   func(vni uint32) { w.ip("a", "link", "add", fmt.Sprintf("dvx%d", vni), "type", "bridge") },
			Break:    func(vni uint32) { w.ip("a", "link", "del", fmt.Sprintf("dvx%d", vni)) },
		}
	}})
}
