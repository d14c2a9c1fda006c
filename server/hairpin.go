package server

import (
	"context"
	"slices"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/driver"
)

// hairpinLeast is the shortest time over which a rate says something: probes
// send a few times a second.
const hairpinLeast = time.Second

// moved is the move's VM as it is seen now, nil when it is not.
func (t *truth) moved(ctx context.Context, m drover.Move) *drover.VM {
	moves, err := t.s.moving(ctx)
	if err != nil {
		return nil
	}
	for _, v := range t.s.fleet.viewVMs(moves) {
		if v.UUID == m.VMUUID {
			return &v
		}
	}
	return nil
}

// hairpin begins to measure what goes to and from a stretched VM by way of its
// segment's home, and returns what ends that. It is nil for a VM that is not
// stretched, and where the home's edge does not tell. The VM's addresses are those
// of before: where it is now its guest may not have been asked yet.
func (t *truth) hairpin(ctx context.Context, m drover.Move, b *before) func() *int64 {
	none := func() *int64 { return nil }
	if m.Method != drover.Stretch || m.State != drover.MoveDone || b == nil || b.vm == nil {
		return none
	}
	vm := *b.vm
	first, at, ok := t.detoured(ctx, m, vm)
	if !ok {
		return none
	}
	return func() *int64 {
		last, end, ok := t.detoured(ctx, m, vm)
		if !ok || last < first || end.Sub(at) < hairpinLeast {
			return nil
		}
		bps := int64(float64(last-first) * 8 / end.Sub(at).Seconds())
		return &bps
	}
}

// detoured reads what the edges of the homes of the VM's segments have carried
// for it since they began to count, and when that was.
func (t *truth) detoured(ctx context.Context, m drover.Move, vm drover.VM) (sum drover.Bytes, at time.Time, ok bool) {
	vm.Site = m.From.Site
	for _, seg := range t.s.apart(vm, m.To.Site) {
		j := slices.IndexFunc(t.s.fleet.siteEdges(), func(a *agent) bool { return a.Site == seg.Home })
		if seg.Home == m.To.Site || j < 0 {
			continue
		}
		bytes, metered := t.s.fleet.siteEdges()[j].metered(ctx, vm)
		sum, at, ok = sum+bytes, t.s.now(), ok || metered
	}
	return sum, at, ok
}

// metered asks an edge what it has carried for the VM in vain, and whether it
// counts that.
func (a *agent) metered(ctx context.Context, vm drover.VM) (sum drover.Bytes, metered bool) {
	ctx, cancel := context.WithTimeout(ctx, edgeLimit)
	defer cancel()
	r, err := a.client.EdgeStatus(ctx, &droverv1.EdgeStatusRequest{})
	if err != nil {
		return 0, false
	}
	for _, x := range api.EdgeStateFromProto(r.GetState()).Traffic {
		if slices.ContainsFunc(vm.NICs, func(n drover.NIC) bool { return slices.Contains(n.Addresses, x.Address) }) {
			sum += driver.AddressTraffic{To: driver.AddressPaths(x.To), From: driver.AddressPaths(x.From)}.Hairpin(true)
			metered = true
		}
	}
	return sum, metered
}
