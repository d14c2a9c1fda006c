package api_test

import (
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
)

// sameAddresses lets cmp compare addresses, whose fields are their own.
var sameAddresses = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
}

// filled fails unless every field is set, also those of nested structs.
func filled(t *testing.T, v reflect.Value) {
	t.Helper()
	switch v.Kind() {
	case reflect.Pointer:
		filled(t, v.Elem())
		return
	case reflect.Struct:
	default:
		return
	}
	for i := range v.NumField() {
		f := v.Field(i)
		if f.IsZero() {
			t.Errorf("%s.%s is not set", v.Type(), v.Type().Field(i).Name)
		}
		if f.Kind() == reflect.Slice && f.Len() > 0 && f.Type().Elem().PkgPath() == v.Type().PkgPath() {
			filled(t, f.Index(0))
		}
	}
}

func TestEdgeStateCrosses(t *testing.T) {
	at := time.Unix(0, 1795381876249170330).UTC()
	prefix, addr := netip.MustParsePrefix("fd64::1/64"), netip.MustParseAddr("10.0.0.1")
	want := drover.EdgeState{
		Name: "e", Site: "s", Up: true,
		Mesh: &drover.MeshState{Interface: "i", Addresses: []netip.Prefix{prefix}, Port: 1, Key: "k", NextKey: "n", MTU: 2, Kernel: true},
		Peers: []drover.MeshPeer{{
			Site: "p", Key: "k", NextKey: "n", Endpoint: netip.MustParseAddrPort("[fd00::1]:9"), Addresses: []netip.Prefix{prefix},
			Handshake: at, ReceivedBytes: 3, SentBytes: 4, RTTMillis: 5,
		}},
		Segments: []drover.Segment{{
			Name: "b", Home: "h", Sites: []string{"s"}, Subnets: []netip.Prefix{prefix}, Gateways: []netip.Addr{addr}, GatewayMAC: "m",
			Joined: true, Bridge: "br", VNI: 5,
		}},
		Extended: []drover.ExtendedSegment{{
			Segment: "b", Owners: []string{"o"}, Sites: []string{"s"}, LocalEgress: true, ReceivedBytes: 6, SentBytes: 7, Fault: "f",
		}},
		Neighbors: []drover.EdgeNeighbor{{Address: addr, AS: 8, State: "idle", Since: at, Advertised: 9, Fault: "f"}},
		Servers:   []drover.EdgeServer{{Kind: "dns", Name: "z", Fault: "f"}},
		Traffic: []drover.EdgeTraffic{{
			Address: addr, To: drover.EdgePaths{RouterBridge: 1, BridgeRouter: 2, RouterTunnel: 3, TunnelRouter: 4, BridgeTunnel: 5, TunnelBridge: 6, Inside: 7, RouterRouter: 8},
			From: drover.EdgePaths{RouterBridge: 11, BridgeRouter: 12, RouterTunnel: 13, TunnelRouter: 14, BridgeTunnel: 15, TunnelBridge: 16, Inside: 17},
		}},
		Faults: []string{"f"},
	}
	filled(t, reflect.ValueOf(want))
	filled(t, reflect.ValueOf(want.Traffic[0].To))
	raw, err := proto.Marshal(api.EdgeStateToProto(want))
	if err != nil {
		t.Fatal(err)
	}
	var got droverv1.EdgeState
	if err := proto.Unmarshal(raw, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, api.EdgeStateFromProto(&got), sameAddresses); diff != "" {
		t.Error(diff)
	}
	if s := api.EdgeStateFromProto(nil); s.Mesh != nil || s.Peers == nil || s.Faults == nil {
		t.Errorf("nothing is read as %+v", s)
	}
}

func TestEdgeOpCrosses(t *testing.T) {
	want := drover.EdgeOp{
		Do: drover.AcceptOld, Owner: "vm/u", Segment: "s", Sites: []string{"a"}, Site: "b", Next: "c", MAC: "m",
		Addresses: []netip.Addr{netip.MustParseAddr("fd00::1")}, Subnets: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")},
		Name: "n", Backend: "k", Target: "t", Weight: 1, LocalEgress: true, Limit: time.Second, Force: true,
		Gateways: []netip.Addr{netip.MustParseAddr("10.0.0.1")}, Neighbors: []netip.Addr{netip.MustParseAddr("10.0.0.2")},
	}
	got, err := api.EdgeOpFromProto(api.EdgeOpToProto(want))
	if diff := cmp.Diff(want, got, sameAddresses); diff != "" || err != nil {
		t.Error(diff, err)
	}
	for what, p := range map[string]*droverv1.EdgeOp{
		"nothing":   nil,
		"a verb":    {Do: "dance", Owner: "vm/u"},
		"an owner":  {Do: string(drover.ForgetAddresses)},
		"addresses": {Do: string(drover.AnnounceRoutes), Owner: "vm/u", Addresses: []string{"here"}},
		"subnets":   {Do: string(drover.ForgetAddresses), Owner: "vm/u", Subnets: []string{"10.0.0.1"}},
	} {
		if _, err := api.EdgeOpFromProto(p); drover.KindOf(err) != drover.Invalid {
			t.Errorf("%s: got %v, want it invalid", what, err)
		}
	}
}

func TestFindingAndNICCross(t *testing.T) {
	f := drover.Finding{Where: "w", Kind: "k", Owner: "o", What: "x", Fix: "f", Removed: true}
	filled(t, reflect.ValueOf(f))
	if got := api.FindingFromProto(api.FindingToProto(f)); got != f {
		t.Errorf("got %+v", got)
	}
	n := drover.NIC{MAC: "m", Network: "n", Model: "d", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}}
	if diff := cmp.Diff(n, api.NICFromProto(api.NICToProto(n)), sameAddresses); diff != "" {
		t.Error(diff)
	}
}
