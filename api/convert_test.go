package api_test

import (
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
)

// generators are what the reflected values need besides their types: times
// have a private shape, and the messages' counts are 32 bits wide.
var generators = rapid.MakeConfig{
	Types: map[reflect.Type]*rapid.Generator[any]{
		reflect.TypeFor[time.Time](): rapid.Custom(func(t *rapid.T) any {
			return time.Unix(0, rapid.Int64Range(1, 1<<62).Draw(t, "nanos")).UTC()
		}),
		reflect.TypeFor[netip.Addr](): rapid.Custom(func(t *rapid.T) any {
			return netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "address")))
		}),
		reflect.TypeFor[netip.AddrPort](): rapid.Custom(func(t *rapid.T) any {
			return netip.AddrPortFrom(netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "address"))), rapid.Uint16().Draw(t, "port"))
		}),
		reflect.TypeFor[int](): rapid.Custom(func(t *rapid.T) any {
			return int(rapid.Int32().Draw(t, "count"))
		}),
	},
}

// roundTrip checks that every field of a domain type survives the way through
// its message's bytes. The values are made by reflection, so a field added to
// the domain and forgotten in a conversion fails here.
func roundTrip[D any, P proto.Message](t *testing.T, to func(D) P, from func(P) D) {
	t.Helper()
	t.Run(reflect.TypeFor[D]().Name(), func(t *testing.T) {
		gen := rapid.MakeCustom[D](generators)
		rapid.Check(t, func(t *rapid.T) {
			want := gen.Draw(t, "value")
			raw, err := proto.Marshal(to(want))
			if err != nil {
				t.Fatal(err)
			}
			var zero P
			msg := zero.ProtoReflect().New().Interface().(P)
			if err := proto.Unmarshal(raw, msg); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, from(msg), cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{})); diff != "" {
				t.Fatalf("(-sent +received)\n%s", diff)
			}
		})
		// Nil messages come from peers that left a field out.
		var none P
		var empty D
		if diff := cmp.Diff(empty, from(none), cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{})); diff != "" {
			t.Errorf("nil message (-want +got)\n%s", diff)
		}
	})
}

func TestRoundTrip(t *testing.T) {
	roundTrip(t, api.SiteToProto, api.SiteFromProto)
	roundTrip(t, api.AdviceToProto, api.AdviceFromProto)
	roundTrip(t, api.HostToProto, api.HostFromProto)
	roundTrip(t, api.LinkToProto, api.LinkFromProto)
	roundTrip(t, api.VMToProto, api.VMFromProto)
	roundTrip(t, api.DiskToProto, api.DiskFromProto)
	roundTrip(t, api.NICToProto, api.NICFromProto)
	roundTrip(t, api.ProbeTargetToProto, api.ProbeTargetFromProto)
	roundTrip(t, api.ServiceToProto, api.ServiceFromProto)
	roundTrip(t, api.PlaceToProto, api.PlaceFromProto)
	roundTrip(t, api.MoveToProto, api.MoveFromProto)
	roundTrip(t, api.StepRecordToProto, api.StepRecordFromProto)
	roundTrip(t, api.FiguresToProto, api.FiguresFromProto)
	roundTrip(t, api.ProgressToProto, api.ProgressFromProto)
	roundTrip(t, api.PathFiguresToProto, api.PathFiguresFromProto)
	roundTrip(t, api.CheckToProto, api.CheckFromProto)
	roundTrip(t, api.PreflightToProto, api.PreflightFromProto)
	roundTrip(t, api.EdgePassageToProto, api.EdgePassageFromProto)
	roundTrip(t, api.DetourToProto, api.DetourFromProto)
	roundTrip(t, api.BackendServerToProto, api.BackendServerFromProto)
}

func TestMeasuredZeroIsNotMissing(t *testing.T) {
	zero := 0.0
	got := api.FiguresFromProto(api.FiguresToProto(drover.Figures{PauseMillis: &zero}))
	if got.PauseMillis == nil || *got.PauseMillis != 0 {
		t.Errorf("pause: got %v, want a measured zero", got.PauseMillis)
	}
	if got.OutageMillis != nil {
		t.Errorf("outage: got %v, want not measured", *got.OutageMillis)
	}
}
