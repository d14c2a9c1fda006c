package server_test

import (
	"maps"
	"net"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/server/servertest"
)

// TestDetours: what a stretched VM pays is shown while its edges count, in the
// inventory and the metrics, and not known before and after.
func TestDetours(t *testing.T) {
	in := newInstallation(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	in.cfg.Metrics = l.Addr().String()
	l.Close()
	in.end()
	in.start()
	in.withEdges()
	in.allUp()
	const name, uuid = "away", "0a0a0a0a-0000-4000-8000-000000000001"
	host := in.Agents["s1"]
	in.Agents["s1"].Set(func(s *servertest.State) {
		s.VMs = maps.Clone(s.VMs)
		s.VMs[name] = drover.VM{Name: name, UUID: uuid, State: drover.VMRunning, NICs: []drover.NIC{{MAC: "52:54:00:00:00:99", Network: "br-blue"}}}
	})
	get := func() drover.VM {
		t.Helper()
		r, err := in.client.ListVMs(t.Context(), &droverv1.ListVMsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range api.ListFromProto(r.GetVms(), api.VMFromProto) {
			if v.UUID == uuid {
				return v
			}
		}
		return drover.VM{}
	}
	in.until("the VM", func() bool { return get().UUID == uuid && get().RemoteIOBPS != nil })
	if v := get(); v.HairpinBPS != nil || v.ExtraRTT != nil || *v.RemoteIOBPS != 0 {
		t.Errorf("with nobody who counts: %+v", v.Detour)
	}
	passage := drover.EdgePassage{Owner: "vm/" + uuid, Method: drover.Stretch, LocalEgress: true}
	say := func(in_, crossed drover.Bytes) {
		in.Agents["ne"].Set(func(s *servertest.State) {
			p := passage
			p.In, p.Crossed = in_, crossed
			s.Edge.Passages, s.Edge.Trips = []drover.EdgePassage{p}, map[string]float64{"south": 50}
		})
		in.Agents["se"].Set(func(s *servertest.State) {
			p := passage
			p.Here = true
			s.Edge.Passages = []drover.EdgePassage{p}
		})
		host.Set(func(s *servertest.State) {
			s.VMs = maps.Clone(s.VMs)
			v := s.VMs[name]
			v.RemoteIO = &drover.RemoteIO{ReadBytes: in_, WrittenBytes: crossed - in_}
			s.VMs[name] = v
		})
	}
	say(0, 0)
	in.until("the passage", func() bool { return len(get().Ways) == 1 })
	began := time.Now()
	var sent drover.Bytes
	in.until("rates", func() bool {
		sent += 1000
		say(sent, 3*sent)
		time.Sleep(20 * time.Millisecond) // readings are apart in time
		v := get()
		return v.HairpinBPS != nil && v.NeighborsBPS != nil && v.RemoteIOBPS != nil && *v.RemoteIOBPS > 0
	})
	v := get()
	most := int64(float64(sent) * 8 / time.Second.Seconds())
	if *v.HairpinBPS <= 0 || *v.HairpinBPS > most || *v.NeighborsBPS < *v.HairpinBPS || v.ExtraRTT == nil || *v.ExtraRTT != 25 ||
		v.Ways[0].Site != "north" || !v.Ways[0].Ingress || v.Ways[0].Egress || v.Metered.Before(began.Add(-time.Minute)) {
		t.Errorf("after %v and %v bytes: %+v", time.Since(began), sent, v.Detour)
	}
	got := in.scrape()
	labels := "{uuid=" + uuid + ",vm=" + name + "}"
	for _, metric := range []string{"hairpin_bits_per_second", "neighbors_bits_per_second", "extra_round_trip_seconds", "remote_io_bits_per_second"} {
		if got["drover_vm_"+metric+labels] <= 0 {
			t.Errorf("%s is %v", metric, got["drover_vm_"+metric+labels])
		}
	}
	// Its edges do not have it any more: it is as if nobody counted.
	for _, edge := range []string{"ne", "se"} {
		in.Agents[edge].Set(func(s *servertest.State) { s.Edge.Passages = nil })
	}
	in.until("nobody to count", func() bool { return get().HairpinBPS == nil && len(get().Ways) == 0 })
}
