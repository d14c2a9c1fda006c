package network_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/network"
)

var green = drover.Segment{
	Name: "green", Home: "south", Sites: []string{"south"}, Bridge: "br-green",
	Subnets:  []netip.Prefix{netip.MustParsePrefix("10.60.0.0/24"), netip.MustParsePrefix("fd00:60::/64")},
	Gateways: []netip.Addr{netip.MustParseAddr("10.60.0.1"), netip.MustParseAddr("fd00:60::1")},
}

func addresses(texts ...string) []netip.Addr {
	var list []netip.Addr
	for _, s := range texts {
		list = append(list, netip.MustParseAddr(s))
	}
	return list
}

func prefixes(texts ...string) []netip.Prefix {
	var list []netip.Prefix
	for _, s := range texts {
		list = append(list, netip.MustParsePrefix(s))
	}
	return list
}

func renumberWorld() network.World {
	return network.World{Segments: []drover.Segment{blue, green}, Edges: edges, VMs: []drover.VM{vm(1)}}
}

func renumberWish() network.RenumberWish {
	return network.RenumberWish{
		RenumberWish: drover.RenumberWish{DNSName: "Web1.Example.net."}, VM: vm(1), From: "north", To: "south",
	}
}

func TestRenumberPlan(t *testing.T) {
	r, err := network.MakeRenumber(renumberWish(), renumberWorld())
	if err != nil {
		t.Fatal(err)
	}
	fresh := prefixes("10.60.0.9/24", "fd00:60::9/64")
	if err := r.CheckNew(fresh); err != nil {
		t.Error(err)
	}
	r.OldLease = true
	const move, vmOwner, name, mac = "move/m1", "vm/uuid1", "web1.example.net", "52:54:00:00:00:01"
	old := addresses("10.50.0.11", "fd00:50::1")
	five := 5 * time.Second
	north, south := edges[0], edges[1]
	forward := drover.EdgeOp{Do: drover.ForwardOld, Owner: move, Segment: "blue", Addresses: old, Site: "south", Limit: time.Hour + time.Minute}
	accept := drover.EdgeOp{
		Do: drover.AcceptOld, Owner: move, Segment: "green", Addresses: old, Site: "north", Subnets: blue.Subnets,
		Gateways: slices.Concat(blue.Gateways, green.Gateways),
	}
	setName := drover.EdgeOp{Do: drover.SetName, Owner: move, Name: name, Addresses: addresses("10.60.0.9", "fd00:60::9"), Limit: five}
	forget := drover.EdgeOp{Do: drover.ForgetAddresses, Owner: move}
	want := network.Plan{
		Extend: []network.Task{
			{Edge: north, Ops: []drover.EdgeOp{{Do: drover.WatchSessions, Owner: move, Addresses: old}, {Do: drover.MeterTraffic, Owner: move, Addresses: old}}},
			{Edge: south, Ops: []drover.EdgeOp{{Do: drover.LowerName, Owner: move, Name: name, Limit: five}}},
		},
		Unextend: []network.Task{
			{Edge: north, Ops: []drover.EdgeOp{forget}},
			{Edge: south, Ops: []drover.EdgeOp{{Do: drover.RestoreName, Owner: move, Name: name}}},
		},
		Source: network.Task{Edge: north, Ops: []drover.EdgeOp{forward}},
		Target: network.Task{Edge: south, Ops: []drover.EdgeOp{accept, setName}},
		Retract: []network.Task{
			{Edge: north, Ops: []drover.EdgeOp{forget, {Do: drover.ReleaseLease, Owner: vmOwner, Segment: "blue", MAC: mac}}},
			{Edge: south, Ops: []drover.EdgeOp{forget, {Do: drover.SettleName, Owner: move, Name: name}}},
		},
	}
	plan := r.Plan(move, fresh)
	compare := cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})
	if diff := cmp.Diff(want, plan, compare); diff != "" {
		t.Error(diff)
	}
	reserve := []drover.EdgeOp{{Do: drover.ReserveLease, Owner: vmOwner, Segment: "green", MAC: mac, Name: "vm1"}}
	if diff := cmp.Diff(network.Task{Edge: south, Ops: reserve}, r.Reserve(), compare); diff != "" {
		t.Error(diff)
	}
	all := slices.Concat(plan.Extend, plan.Unextend, []network.Task{plan.Source, plan.Target, r.Reserve(), r.Release()}, plan.Retract, r.Open(move), r.Narrow(move, fresh))
	for _, task := range all {
		for _, op := range task.Ops {
			if err := op.Validate(); err != nil {
				t.Errorf("%s: %v", task.Site, err)
			}
		}
	}
	for _, task := range r.Open(move) {
		if !task.Ops[0].Force {
			t.Errorf("what opens old addresses: %+v", task)
		}
	}
	if keys := strings.Join(r.Keys(), " "); keys != "address/10.50.0.11 address/fd00:50::1 lease/green/52:54:00:00:00:01 name/web1.example.net" {
		t.Errorf("keys %s", keys)
	}
	if got := r.Gateways(prefixes("10.60.0.9/24")); !slices.Equal(got, green.Gateways[:1]) {
		t.Errorf("gateways %v, want that of the one family", got)
	}
}

// Without a name there is none to change.
func TestRenumberNameless(t *testing.T) {
	w := renumberWish()
	w.DNSName = ""
	r, err := network.MakeRenumber(w, renumberWorld())
	if err != nil {
		t.Fatal(err)
	}
	p := r.Plan("move/m1", prefixes("10.60.0.9/24", "fd00:60::9/64"))
	for _, task := range slices.Concat(p.Extend, p.Unextend, []network.Task{p.Source, p.Target}, p.Retract, r.Open("move/m1")) {
		for _, op := range task.Ops {
			if op.Name != "" {
				t.Errorf("%s of %q", op.Do, op.Name)
			}
		}
	}
}

func TestRenumberCheckNew(t *testing.T) {
	r, err := network.MakeRenumber(renumberWish(), renumberWorld())
	if err != nil {
		t.Fatal(err)
	}
	for _, got := range [][]netip.Prefix{
		nil, prefixes("10.60.0.9/24"), prefixes("fd00:60::9/64"), prefixes("10.50.0.9/24", "fd00:60::9/64"),
	} {
		if err := r.CheckNew(got); drover.KindOf(err) != drover.Refused {
			t.Errorf("%v: %v, want it refused", got, err)
		}
	}
	r.To.Gateways = r.To.Gateways[:1]
	if err := r.CheckNew(prefixes("10.60.0.9/24", "fd00:60::9/64")); drover.KindOf(err) != drover.Refused {
		t.Errorf("no gateway for IPv6: %v, want it refused", err)
	}
	r.Old = r.Old[:1]
	if err := r.CheckNew(prefixes("10.60.0.9/24")); err != nil {
		t.Errorf("a guest without IPv6: %v", err)
	}
}

func TestRenumberRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(*network.RenumberWish, *network.World)
		want  string
	}{
		"same site":       {func(w *network.RenumberWish, _ *network.World) { w.To = "north" }, "stays at site"},
		"no edge":         {func(_ *network.RenumberWish, w *network.World) { w.Edges = edges[:1] }, "site south has no edge"},
		"unknown segment": {func(_ *network.RenumberWish, w *network.World) { w.Segments = w.Segments[1:] }, "no edge knows the segment"},
		"own segment":     {func(w *network.RenumberWish, _ *network.World) { w.Segment = "blue" }, "the one that it is in"},
		"not there":       {func(w *network.RenumberWish, _ *network.World) { w.Segment = "red" }, "segment red is not at south"},
		"which":           {func(w *network.RenumberWish, _ *network.World) { w.To = "west" }, "not said in which segment"},
		"no address":      {func(w *network.RenumberWish, _ *network.World) { w.VM.NICs[0].Addresses = nil }, "no address of"},
		"joined": {func(_ *network.RenumberWish, w *network.World) {
			s := blue
			s.Joined = true
			w.Segments[0] = s
		}, "take live"},
		"two cards": {func(w *network.RenumberWish, _ *network.World) {
			w.VM.NICs = append(w.VM.NICs, drover.NIC{MAC: "52:54:00:00:00:77", Network: "br-blue"})
		}, "2 of its network cards"},
		"wished outside": {func(w *network.RenumberWish, _ *network.World) { w.Addresses = addresses("10.50.0.9") }, "not one of segment green"},
		"wished gateway": {func(w *network.RenumberWish, _ *network.World) { w.Addresses = addresses("10.60.0.1") }, "not one of segment green"},
		"wished twice":   {func(w *network.RenumberWish, _ *network.World) { w.Addresses = addresses("10.60.0.8", "10.60.0.9") }, "one of each family"},
		"limit":          {func(w *network.RenumberWish, _ *network.World) { w.OldLimit = 31 * 24 * time.Hour }, "old limit"},
		"name":           {func(w *network.RenumberWish, _ *network.World) { w.DNSName = "web 1" }, "DNS name"},
		"away by route": {func(_ *network.RenumberWish, w *network.World) {
			w.Standing = []network.Standing{{Site: "north", Routes: true}}
		}, "away from home by route"},
		"away by stretch": {func(_ *network.RenumberWish, w *network.World) {
			w.Extended = []network.Extent{{Site: "north", Segment: "blue", Owners: []string{"vm/uuid1"}}}
		}, "away from home by stretch"},
		"no gateway": {func(_ *network.RenumberWish, w *network.World) {
			s := green
			s.Gateways = nil
			w.Segments[1] = s
		}, "segment green has no gateway"},
	} {
		wish, world := renumberWish(), renumberWorld()
		c.spoil(&wish, &world)
		if _, err := network.MakeRenumber(wish, world); drover.KindOf(err) != drover.Invalid || err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want invalid with %q", name, err, c.want)
		}
	}
}

func TestRenumberProbe(t *testing.T) {
	r, err := network.MakeRenumber(renumberWish(), renumberWorld())
	if err != nil {
		t.Fatal(err)
	}
	fresh := prefixes("10.60.0.9/24", "fd00:60::9/64")
	for _, c := range []struct{ was, want *drover.ProbeTarget }{
		{nil, nil},
		{&drover.ProbeTarget{TCP: "192.0.2.1:7"}, nil},
		{&drover.ProbeTarget{TCP: "web1.example.net:7"}, nil},
		{&drover.ProbeTarget{TCP: "10.50.0.11:7", Kind: "line"}, &drover.ProbeTarget{TCP: "10.60.0.9:7", Kind: "line"}},
		{&drover.ProbeTarget{TCP: "[fd00:50::1]:7", HTTP: "http://[fd00:50::1]/x"}, &drover.ProbeTarget{TCP: "[fd00:60::9]:7", HTTP: "http://[fd00:60::9]/x"}},
		{&drover.ProbeTarget{HTTP: "http://10.50.0.11:8080/healthz"}, &drover.ProbeTarget{HTTP: "http://10.60.0.9:8080/healthz"}},
	} {
		if diff := cmp.Diff(c.want, r.Probe(c.was, fresh)); diff != "" {
			t.Errorf("%+v: %s", c.was, diff)
		}
	}
}
