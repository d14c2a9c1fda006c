package server_test

import (
	"encoding/json"
	"net/netip"
	"slices"
	"testing"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/server/servertest"
)

// withGreen is withNetwork, and a segment at home at south, in which a VM gets a
// new address.
func (in *installation) withGreen() {
	in.withNetwork()
	in.Agents["se"].Set(func(s *servertest.State) {
		s.Edge.Segments = append(slices.Clone(s.Edge.Segments), drover.Segment{
			Name: "green", Home: "south", Sites: []string{"south"}, Bridge: "lan2",
			Subnets: []netip.Prefix{netip.MustParsePrefix("10.60.0.0/24")}, Gateways: []netip.Addr{netip.MustParseAddr("10.60.0.1")},
		})
		s.Edge.Servers = []drover.EdgeServer{{Kind: drover.EdgeDHCP, Name: "green"}}
	})
	in.Agents["ne"].Set(func(s *servertest.State) { // its address is from the DHCP service there
		s.Edge.Leases = []*droverv1.HeldLease{{Segment: "blue", Addresses: []string{"10.50.0.11"}}}
	})
	in.Agents["s1"].Set(func(s *servertest.State) { s.Host.Networks = []string{"lan", "lan2"} })
	in.until("both segments to be known", func() bool {
		r, err := in.client.ListSegments(in.t.Context(), &droverv1.ListSegmentsRequest{})
		return err == nil && len(r.GetSegments()) == 2 && slices.Contains(in.hosts()["s1"].Networks, "lan2")
	})
}

// TestMoveDocument: a move by each method is one document with what others rely
// on, as move -o json prints it.
func TestMoveDocument(t *testing.T) {
	none := func(*installation) {}
	for _, c := range []struct {
		method drover.Method
		given  func(*installation)
		wish   *droverv1.StartMoveRequest
		own    string // what only this method's document has
	}{
		{drover.Live, none, &droverv1.StartMoveRequest{}, ""},
		{drover.Cold, none, &droverv1.StartMoveRequest{}, ""},
		{drover.Warm, none, &droverv1.StartMoveRequest{}, ""},
		{drover.Stretch, (*installation).withNetwork, &droverv1.StartMoveRequest{}, ""},
		{drover.Route, (*installation).withNetwork, &droverv1.StartMoveRequest{}, ""},
		{drover.Renumber, (*installation).withGreen, &droverv1.StartMoveRequest{Renumber: &droverv1.RenumberWish{Segment: "green"}}, "renumber"},
		{drover.Spawn, (*installation).withService, &droverv1.StartMoveRequest{}, "clone"},
		{drover.Redirect, (*installation).withService, &droverv1.StartMoveRequest{
			Clone: &droverv1.CloneWish{Backend: "web", WeightSteps: []int32{50, 100}, StepTimeMillis: 10, DrainCapMillis: 20},
		}, "clone"},
	} {
		t.Run(string(c.method), func(t *testing.T) {
			in := newInstallation(t)
			in.allUp()
			c.given(in)
			c.wish.Vm, c.wish.To, c.wish.Method = "web1", to("south", "s1"), string(c.method)
			m := in.follow(in.startMove(c.wish).Name, final)
			got, err := in.client.GetMove(t.Context(), &droverv1.GetMoveRequest{Name: m.Name})
			if err != nil {
				t.Fatal(err)
			}
			text, err := json.Marshal(api.MoveFromProto(got.GetMove()))
			if err != nil {
				t.Fatal(err)
			}
			checkMoveDocument(t, text, string(c.method), c.own)
		})
	}
}

// checkMoveDocument compares a document with what is promised of it.
func checkMoveDocument(t *testing.T, text []byte, method, own string) {
	t.Helper()
	var doc struct {
		Move, VM, Method, State string
		From, To                struct{ Site, Host string }
		Forecast, Measured      map[string]json.RawMessage
		Steps                   []struct{ Name, State string }
	}
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &keys); err != nil {
		t.Fatal(err)
	}
	if doc.Move == "" || doc.VM != "web1" || doc.Method != method || doc.State != "done" {
		t.Errorf("move %q of %q by %q is %q: %s", doc.Move, doc.VM, doc.Method, doc.State, text)
	}
	if doc.From.Site != "north" || doc.From.Host != "n1" || doc.To.Site != "south" || doc.To.Host != "s1" {
		t.Errorf("from %+v to %+v", doc.From, doc.To)
	}
	for _, figure := range []string{"total_s", "wire_bytes"} {
		var r map[string]float64
		if err := json.Unmarshal(doc.Forecast[figure], &r); err != nil || len(r) != 3 || r["p10"] > r["p50"] || r["p50"] > r["p90"] {
			t.Errorf("forecast of %s: %s (%v), want p10, p50 and p90", figure, doc.Forecast[figure], err)
		}
		var v float64
		if err := json.Unmarshal(doc.Measured[figure], &v); err != nil || v < 0 {
			t.Errorf("measured %s: %s (%v), want a number", figure, doc.Measured[figure], err)
		}
	}
	if !slices.ContainsFunc(doc.Steps, func(s struct{ Name, State string }) bool { return s.Name == "verify" && s.State == "done" }) {
		t.Errorf("steps %+v: want verify among them, done", doc.Steps)
	}
	for _, s := range doc.Steps {
		if s.Name == "" || s.State != "done" {
			t.Errorf("step %+v", s)
		}
	}
	for _, key := range []string{"clone", "renumber"} {
		if _, has := keys[key]; has != (key == own) {
			t.Errorf("%s is there: %v", key, has)
		}
	}
}
