package agent

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/driver"
)

// maxFindWait bounds how long a FindStation action asks.
const maxFindWait = time.Minute

// answerWait bounds how long it is asked who has the addresses of a VM that comes
// with them. Who is there answers within milliseconds; unlike an address that is
// wished, they have been the VM's all the time, so most often nobody does.
const answerWait = 500 * time.Millisecond

// CheckOps implements AgentService.
func (a agentService) CheckOps(ctx context.Context, req *droverv1.CheckOpsRequest) (*droverv1.CheckOpsResponse, error) {
	e, err := a.siteEdge()
	if err != nil {
		return nil, err
	}
	ops, err := edgeOps(req.GetOps())
	if err != nil {
		return nil, err
	}
	var checks []drover.Check
	for _, op := range ops {
		checks = append(checks, e.checkOp(ctx, op)...)
	}
	resp := &droverv1.CheckOpsResponse{Checks: api.ChecksToProto(checks)}
	if req.GetMac() == "" {
		return resp, nil
	}
	mac, err := driver.NormalMAC(req.GetMac())
	if err != nil {
		return nil, err
	}
	resp.Leases, err = e.leasesOf(ctx, mac)
	return resp, err
}

// checkOp says whether the operation could be carried out.
func (e *edge) checkOp(ctx context.Context, op drover.EdgeOp) []drover.Check {
	c := drover.Check{Name: string(op.Do), OK: true, Detail: fmt.Sprintf("the edge of %s can do it", e.a.config.Site)}
	if err := e.could(ctx, op); err != nil {
		c.OK, c.Detail = false, fmt.Sprintf("the edge of %s: %v", e.a.config.Site, err)
		c.Fix = fmt.Sprintf("see to edge %s and what it works with (drover edges get %s)", e.a.config.Name, e.a.config.Site)
		if drover.KindOf(err) == drover.Exists {
			c.Fix = "take another address, or see to who has this one (drover doctor finds what is left of VMs that are gone)"
		}
		return []drover.Check{c}
	}
	switch {
	case op.Do == drover.ReserveLease && len(op.Addresses) > 0:
		return []drover.Check{c, e.checkUnused(ctx, op)}
	case op.Do == drover.DeliverHere && op.MAC != "":
		ctx, cancel := context.WithTimeout(ctx, answerWait)
		defer cancel()
		return []drover.Check{c, e.checkUnused(ctx, op)}
	}
	return []drover.Check{c}
}

// checkUnused says whether nobody answers for the addresses in their segment but
// the MAC that is to have them.
func (e *edge) checkUnused(ctx context.Context, op drover.EdgeOp) drover.Check {
	c := drover.Check{Name: "address-unused", OK: true, Detail: fmt.Sprintf("nobody in segment %s answers for %s", op.Segment, api.AddressesToProto(op.Addresses))}
	found, err := e.whoHas(ctx, op)
	if err != nil {
		return drover.Check{Name: c.Name, Warning: true, Detail: err.Error(), Fix: "make sure that nobody has the address"}
	}
	gateway := ""
	if s, err := e.segment(op.Segment); err == nil {
		gateway = s.GatewayMAC
	}
	for _, s := range found {
		// An edge may answer for the VM where it is now.
		if !strings.EqualFold(s.MAC, op.MAC) && (op.Do == drover.ReserveLease || !strings.EqualFold(s.MAC, gateway)) {
			c.OK, c.Fix = false, "name another address, or take it away from there"
			c.Detail = fmt.Sprintf("%s in segment %s is used by the station %s", s.Address, op.Segment, s.MAC)
		}
	}
	return c
}

func (e *edge) whoHas(ctx context.Context, op drover.EdgeOp) ([]driver.AddressStation, error) {
	s, err := e.segment(op.Segment)
	if err != nil {
		return nil, err
	}
	d, err := e.addresses()
	if err != nil {
		return nil, err
	}
	return d.Stations(ctx, s.Bridge, op.Addresses)
}

func (e *edge) leasesOf(ctx context.Context, mac string) ([]*droverv1.HeldLease, error) {
	var out []*droverv1.HeldLease
	asked := map[driver.Leases]bool{}
	for _, d := range e.Leases {
		if asked[d] {
			continue
		}
		asked[d] = true
		ctx, cancel := context.WithTimeout(ctx, checkLimit)
		list, err := d.Find(ctx, mac)
		cancel()
		if err != nil {
			return nil, err
		}
		for _, l := range list {
			out = append(out, &droverv1.HeldLease{
				Segment: l.Segment, Owner: string(l.Owner), Addresses: api.AddressesToProto(l.Addresses), Duid: l.DUID, Iaid: l.IAID,
			})
		}
	}
	slices.SortFunc(out, func(a, b *droverv1.HeldLease) int { return strings.Compare(a.GetSegment(), b.GetSegment()) })
	return out, nil
}

// findStation carries out a FindStation action.
func (a *Agent) findStation(ctx context.Context, _ *job, _ moveRef, m *droverv1.FindStation) (*droverv1.RunResult, error) {
	e, err := a.siteEdge()
	if err != nil {
		return nil, err
	}
	mac, err := driver.NormalMAC(m.GetMac())
	if err != nil {
		return nil, err
	}
	addresses, err := api.ParseAddresses("addresses", m.GetAddresses())
	if err != nil {
		return nil, err
	}
	s, err := e.segment(m.GetSegment())
	if err != nil {
		return nil, err
	}
	d, err := e.addresses()
	if err != nil {
		return nil, err
	}
	until := a.clock().Add(min(time.Duration(m.GetWaitMillis())*time.Millisecond, maxFindWait))
	for {
		found, err := d.Stations(ctx, s.Bridge, addresses)
		if err != nil {
			return nil, err
		}
		r := &droverv1.RunResult{Healthy: true}
		for _, addr := range addresses {
			i := slices.IndexFunc(found, func(s driver.AddressStation) bool { return s.Address == addr })
			switch {
			case i < 0:
				r.Healthy, r.Detail = false, fmt.Sprintf("nobody in segment %s answers for %s", s.Name, addr)
			case found[i].MAC != mac:
				r.Healthy, r.Detail = false, fmt.Sprintf("%s in segment %s is used by the station %s", addr, s.Name, found[i].MAC)
			}
		}
		if r.Healthy || !a.clock().Before(until) {
			return r, nil
		}
		if err := sleep(ctx, guestRetry, nil); err != nil {
			return nil, err
		}
	}
}
