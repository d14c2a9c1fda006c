package server_test

import (
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/server/servertest"
)

// TestSignals: what agents see is merged and told; what nobody has seen is not
// known.
func TestSignals(t *testing.T) {
	at := time.Now().UTC()
	seen := func(v float64) drover.Reading { return drover.Reading{Value: v, At: at, Samples: 7} }
	in := newInstallation(t)
	in.Agents["n1"].Set(func(s *servertest.State) {
		s.Seen = &droverv1.ObserveResponse{
			Vms: []*droverv1.Signals{api.SignalsToProto(drover.Signals{
				VM: "web1", UUID: "uuid-web1", Host: "n1", At: at, ZeroShare: seen(0.25), CompressedShare: seen(0.5),
				KnownShare: map[string]drover.Reading{"south": seen(0.75), "north": seen(1)},
			})},
			Ways: []*droverv1.LinkSignals{
				api.LinkSignalsToProto(drover.LinkSignals{From: "elsewhere", To: "south", At: at, RTTMillis: seen(52), LossShare: seen(0.01)}),
				api.LinkSignalsToProto(drover.LinkSignals{From: "north", To: "nowhere", At: at, RTTMillis: seen(1)}),
			},
			Host: api.HostSignalsToProto(drover.HostSignals{Host: "n1", At: at, CPUFreeShare: seen(0.5)}),
		}
	})
	in.allUp()
	var s drover.Signals
	in.until("signals of the VM", func() bool {
		r, err := in.client.GetSignals(t.Context(), &droverv1.GetSignalsRequest{Vm: "web1"})
		if err != nil {
			t.Fatal(err)
		}
		s = api.SignalsFromProto(r.GetSignals())
		return s.ZeroShare.Known()
	})
	if s.VM != "web1" || s.ZeroShare.Value != 0.25 || s.KnownShare["south"].Value != 0.75 || len(s.KnownShare) != 1 || s.Sessions.Known() {
		t.Errorf("%+v", s)
	}
	r, err := in.client.ListLinkSignals(t.Context(), &droverv1.ListLinkSignalsRequest{Link: "north-south"})
	if err != nil {
		t.Fatal(err)
	}
	ways := api.ListFromProto(r.GetSignals(), api.LinkSignalsFromProto)
	if len(ways) != 2 {
		t.Fatalf("ways %+v, want two", ways)
	}
	there, back := ways[0], ways[1]
	if there.From != "north" || there.To != "south" || there.Link != "north-south" || there.RTTMillis.Value != 52 || len(there.Week) != 1 {
		t.Errorf("%+v", there)
	}
	if c := there.CapacityBPS; c.Value != 200e6 || c.Observed {
		t.Errorf("capacity %+v, want what the file says", c)
	}
	if f := there.FreeBPS; f.Known() && (f.Value < 0 || f.Value > there.CapacityBPS.Value) {
		t.Errorf("%+v of %+v is free", f, there.CapacityBPS)
	}
	if back.From != "south" || back.To != "north" || back.RTTMillis.Known() || back.CapacityBPS.Known() || len(back.Week) != 0 {
		t.Errorf("nobody measured %+v", back)
	}
	in.until("what n1 is to watch", func() (is bool) {
		in.Agents["n1"].Get(func(s *servertest.State) {
			peers := s.Asked.GetPeers()
			is = len(peers) == 2 && peers[0].GetHost() == "s1" && peers[0].GetContent() && peers[0].GetWay() &&
				peers[1].GetHost() == "s2" && peers[1].GetContent() && !peers[1].GetWay()
		})
		return is
	})
	for _, name := range []string{"nobody", "no/name"} {
		_, err := in.client.GetSignals(t.Context(), &droverv1.GetSignalsRequest{Vm: name})
		if k := drover.KindOf(err); k != drover.NotFound && k != drover.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := in.client.ListLinkSignals(t.Context(), &droverv1.ListLinkSignalsRequest{Link: "none"}); drover.KindOf(err) != drover.NotFound {
		t.Errorf("link: %v", err)
	}
}

// TestSignalsFresh: who asks for a fresh look has the agent look, once, and gets
// what it saw; a VM that cannot be looked at is refused in a clear line.
func TestSignalsFresh(t *testing.T) {
	in := newInstallation(t)
	in.allUp()
	fresh := func(vm string) (drover.Signals, error) {
		r, err := in.client.GetSignals(t.Context(), &droverv1.GetSignalsRequest{Vm: vm, Fresh: true})
		return api.SignalsFromProto(r.GetSignals()), err
	}
	if _, err := fresh("web1"); drover.KindOf(err) != drover.NotFound {
		t.Errorf("an agent that does not know the VM: %v", err)
	}
	at := time.Now().UTC()
	in.Agents["n1"].Set(func(s *servertest.State) {
		s.Seen = &droverv1.ObserveResponse{
			Vms: []*droverv1.Signals{api.SignalsToProto(drover.Signals{
				VM: "web1", UUID: "uuid-web1", Host: "n1", At: at, ZeroShare: drover.Reading{Value: 0.5, At: at, Samples: 9},
			})},
			Host: api.HostSignalsToProto(drover.HostSignals{Host: "n1", At: at, CPUFreeShare: drover.Reading{Value: 0.5, At: at}}),
		}
	})
	s, err := fresh("web1")
	if err != nil || s.ZeroShare.Value != 0.5 {
		t.Fatalf("%+v, %v", s, err)
	}
	_, err = in.client.Advise(t.Context(), &droverv1.AdviseRequest{Vm: "web1", Fresh: true, NoPreflight: true})
	if err != nil {
		t.Error(err)
	}
	in.Agents["n1"].Get(func(s *servertest.State) {
		if s.Surveys != 2 {
			t.Errorf("%d surveys, want one for the signals and one for the advice", s.Surveys)
		}
	})
	for _, name := range []string{"nobody", "no/name"} {
		if _, err := fresh(name); drover.KindOf(err) != drover.NotFound && drover.KindOf(err) != drover.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}
