package memory_test

import (
	"net/netip"
	"testing"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/driver/drivertest"
	"github.com/drover-vm/drover/driver/memory"
)

func TestSegments(t *testing.T) {
	drivertest.Segments(t, drivertest.SegmentsSetup{New: func(*testing.T) drivertest.SegmentsEdge {
		kernel := memory.NewSegmentsKernel("br-blue", "br-green")
		return drivertest.SegmentsEdge{
			Open:     func() (driver.Segments, error) { return memory.OpenSegments(kernel, nil), nil },
			Snapshot: kernel.String,
			Occupy:   kernel.Occupy,
			Break:    kernel.Break,
		}
	}})
}

func TestSegmentsLoopAndCount(t *testing.T) {
	kernel := memory.NewSegmentsKernel("br-blue")
	s := memory.OpenSegments(kernel, nil)
	far := netip.MustParseAddr("10.99.0.2")
	ext := driver.Extension{
		Segment: "blue", Bridge: "br-blue", VNI: 7, Local: netip.MustParseAddr("10.99.0.1"),
		Remotes: []driver.Remote{{Address: far, Others: []netip.Addr{netip.MustParseAddr("203.0.113.2")}}},
	}
	if err := s.Extend(t.Context(), driver.MoveOwner("m"), ext); err != nil {
		t.Fatal(err)
	}
	if err := s.SetStations(t.Context(), "blue", []driver.Station{{MAC: "52:54:00:00:00:01", At: far}}); err != nil {
		t.Fatal(err)
	}
	kernel.Count(7, "52:54:00:00:00:01", driver.TrafficCount{Frames: 2, Bytes: 3000}, driver.TrafficCount{Frames: 1, Bytes: 60})
	c, err := s.Counters(t.Context(), "blue")
	if err != nil || c.Sent.Bytes != 3000 || c.Stations["52:54:00:00:00:01"].Received.Bytes != 60 {
		t.Errorf("counters %+v, %v", c, err)
	}
	kernel.Join("br-blue", netip.MustParseAddr("203.0.113.2"))
	if err := s.Extend(t.Context(), driver.MoveOwner("m"), ext); drover.KindOf(err) != drover.Refused {
		t.Errorf("a loop: %v", err)
	}
}
