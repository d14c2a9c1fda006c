package drover_test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/drover-vm/drover"
)

func TestEdgeOpValidate(t *testing.T) {
	address := []netip.Addr{netip.MustParseAddr("10.50.0.11")}
	for _, c := range []struct {
		op   drover.EdgeOp
		want string // in the error; empty: none
	}{
		{drover.EdgeOp{Do: drover.ExtendSegment, Owner: "vm/u", Segment: "blue", Sites: []string{"south"}}, ""},
		{drover.EdgeOp{Do: drover.ExtendSegment, Owner: "vm/u", Segment: "blue"}, "sites is missing"},
		{drover.EdgeOp{Do: drover.AnnounceRoutes, Owner: "vm/u", Addresses: address}, ""},
		{drover.EdgeOp{Do: drover.AnnounceRoutes, Owner: "vm/u"}, "addresses is missing"},
		{drover.EdgeOp{Do: drover.AnnounceRoutes, Addresses: address}, "owner is missing"},
		{drover.EdgeOp{Do: drover.AnnounceRoutes, Owner: "vm/u", Addresses: []netip.Addr{{}}}, "address"},
		{drover.EdgeOp{Do: drover.ForwardOld, Owner: "vm/u", Segment: "blue", Addresses: address, Site: "south"}, "limit is missing"},
		{drover.EdgeOp{Do: drover.ForwardOld, Owner: "vm/u", Segment: "blue", Addresses: address, Site: "south", Limit: time.Hour}, ""},
		{drover.EdgeOp{Do: drover.ProxyRest, Owner: "vm/u", Segment: "bad name"}, "not a name"},
		{drover.EdgeOp{Do: "shake", Owner: "vm/u"}, `"shake" is none`},
	} {
		err := c.op.Validate()
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%+v: %v, want %q", c.op, err, c.want)
		}
		if err != nil && drover.KindOf(err) != drover.Invalid {
			t.Errorf("%+v: kind %v", c.op, drover.KindOf(err))
		}
	}
}
