package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// Limits of an edge's operations.
const (
	// opLimit bounds one operation: drivers notice servers that do not answer
	// within a few seconds each, and a loop guard looks for a second.
	opLimit = 30 * time.Second
	// answersLimit bounds the wait until all of a zone's servers answer a change:
	// its secondaries are told at once, so what takes longer is broken.
	answersLimit = 5 * time.Second
)

// carryOut does one operation. patient waits for what others have to take in
// too, which the cut-over does not.
func (e *edge) carryOut(ctx context.Context, op drover.EdgeOp, out *edgeOutcome, patient bool) error {
	ctx, cancel := context.WithTimeout(ctx, opLimit)
	defer cancel()
	owner := driver.Owner(op.Owner)
	switch op.Do {
	case drover.ExtendSegment, drover.RetractSegment, drover.SetStation, drover.DropStation:
		return e.doSegment(ctx, owner, op)
	case drover.AnnounceRoutes, drover.WithdrawRoutes:
		return e.doRoutes(ctx, owner, op)
	case drover.DeliverHere, drover.Elsewhere, drover.ProxyRest, drover.WatchSessions, drover.MeterTraffic,
		drover.ForwardOld, drover.AcceptOld, drover.ForgetAddresses:
		return e.doAddresses(ctx, owner, op)
	case drover.LowerName, drover.SetName, drover.SettleName, drover.RestoreName:
		return e.doName(ctx, owner, op, out, patient)
	case drover.ReserveLease, drover.ReleaseLease:
		return e.doLease(ctx, owner, op, out)
	case drover.AddServer, drover.ReadyServer, drover.WeighServer, drover.DrainServer, drover.RemoveServer:
		return e.doServer(ctx, owner, op, out)
	case drover.ForgetOwner:
		return e.forget(ctx, owner)
	default:
		return drover.Errorf(drover.Invalid, "edge operation", "%q is none that this agent knows", string(op.Do))
	}
}

func (e *edge) doSegment(ctx context.Context, owner driver.Owner, op drover.EdgeOp) error {
	d, err := e.extender()
	if err != nil {
		return err
	}
	switch op.Do {
	case drover.ExtendSegment:
		ext, err := e.extension(ctx, op)
		if err != nil {
			return err
		}
		return d.Extend(ctx, owner, ext)
	case drover.RetractSegment:
		return d.Retract(ctx, owner, op.Segment)
	default:
		return e.setStation(ctx, d, op)
	}
}

// extension is what a segment's extension to other sites is made of.
func (e *edge) extension(ctx context.Context, op drover.EdgeOp) (driver.Extension, error) {
	s, err := e.segment(op.Segment)
	if err != nil {
		return driver.Extension{}, err
	}
	if s.VNI == 0 {
		return driver.Extension{}, e.lacks("segment %q has no VNI in its file, so it cannot be extended", s.Name)
	}
	local, err := e.meshSelf(ctx)
	if err != nil {
		return driver.Extension{}, err
	}
	ext := driver.Extension{
		Segment: s.Name, Bridge: s.Bridge, VNI: s.VNI, Local: local, MTU: s.MTU, LocalEgress: op.LocalEgress,
		Gateway: driver.SegmentGateway{MAC: s.GatewayMAC, Addresses: s.Gateways},
	}
	for _, site := range op.Sites {
		if site == e.a.config.Site {
			continue
		}
		r, err := e.remote(site, local.Is4())
		if err != nil {
			return driver.Extension{}, err
		}
		ext.Remotes = append(ext.Remotes, r)
	}
	return ext, ext.Validate()
}

// setStation changes one of the segment's stations and leaves the others.
func (e *edge) setStation(ctx context.Context, d driver.Segments, op drover.EdgeOp) error {
	mac, err := driver.NormalMAC(op.MAC)
	if err != nil {
		return err
	}
	s := driver.Station{MAC: mac, Addresses: op.Addresses}
	if op.Do == drover.SetStation {
		for site, at := range map[string]*netip.Addr{op.Site: &s.At, op.Next: &s.Next} {
			if site == "" || site == e.a.config.Site {
				continue
			}
			local, err := e.meshSelf(ctx)
			if err != nil {
				return err
			}
			r, err := e.remote(site, local.Is4())
			if err != nil {
				return err
			}
			*at = r.Address
		}
	}
	e.stations.Lock()
	defer e.stations.Unlock()
	all, err := d.List(ctx)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(all, func(x driver.ExtendedSegment) bool { return x.Segment == op.Segment })
	if i < 0 {
		if op.Do == drover.DropStation {
			return nil // it went with the extension
		}
		return drover.Errorf(drover.NotFound, "segment "+op.Segment, "it is not extended at site %s", e.a.config.Site)
	}
	stations := slices.DeleteFunc(slices.Clone(all[i].Stations), func(x driver.Station) bool { return x.MAC == mac })
	if op.Do == drover.SetStation {
		stations = append(stations, s)
	}
	return d.SetStations(ctx, op.Segment, stations)
}

func hostRoutes(addresses []netip.Addr) []netip.Prefix {
	list := make([]netip.Prefix, len(addresses))
	for i, a := range addresses {
		list[i] = netip.PrefixFrom(a, a.BitLen())
	}
	return list
}

func (e *edge) doRoutes(ctx context.Context, owner driver.Owner, op drover.EdgeOp) error {
	d, err := e.router()
	if err != nil {
		return err
	}
	prefixes := hostRoutes(op.Addresses)
	if op.Do == drover.AnnounceRoutes {
		return d.Announce(ctx, owner, prefixes...)
	}
	err = d.Withdraw(ctx, owner, prefixes...)
	if drover.KindOf(err) != drover.Unavailable || err == nil {
		return err
	}
	// No router is there to be told. The routes are off the record: none will
	// hear of them again, and nothing more can be done.
	all, lerr := d.List(ctx)
	if lerr != nil {
		return errors.Join(err, lerr)
	}
	if slices.ContainsFunc(all, func(r driver.Route) bool { return r.Owner == owner && slices.Contains(prefixes, r.Prefix) }) {
		return err
	}
	e.a.log.Warn("routes are withdrawn, and no router was there to be told", "owner", owner, "err", err)
	return nil
}

func (e *edge) doAddresses(ctx context.Context, owner driver.Owner, op drover.EdgeOp) error {
	d, err := e.addresses()
	if err != nil {
		return err
	}
	switch op.Do {
	case drover.WatchSessions:
		return d.Watch(ctx, owner, op.Addresses)
	case drover.MeterTraffic:
		return d.Meter(ctx, owner, op.Addresses)
	case drover.ForgetAddresses:
		return d.Remove(ctx, owner)
	}
	s, err := e.segment(op.Segment)
	if err != nil {
		return err
	}
	switch op.Do {
	case drover.DeliverHere:
		return d.DeliverHere(ctx, owner, driver.Delivery{Addresses: op.Addresses, Bridge: s.Bridge, MAC: op.MAC, Neighbors: op.Neighbors})
	case drover.Elsewhere:
		return d.Elsewhere(ctx, owner, op.Addresses, s.Bridge)
	case drover.ProxyRest:
		return d.ProxyRest(ctx, owner, s.Subnets, s.Bridge)
	}
	path, err := e.meshPath(ctx, op.Site)
	if err != nil {
		return err
	}
	if op.Do == drover.ForwardOld {
		return d.ForwardOld(ctx, owner, driver.OldForward{Addresses: op.Addresses, Bridge: s.Bridge, To: path, Limit: op.Limit, All: op.Force})
	}
	return d.AcceptOld(ctx, owner, driver.OldAccept{Addresses: op.Addresses, Bridge: s.Bridge, From: path, Subnets: op.Subnets, Gateways: op.Gateways, All: op.Force})
}

func (e *edge) doName(ctx context.Context, owner driver.Owner, op drover.EdgeOp, out *edgeOutcome, patient bool) error {
	d, err := e.zone(op.Name)
	if err != nil {
		return err
	}
	switch op.Do {
	case drover.LowerName:
		_, err := d.Lower(ctx, owner, op.Name, op.Limit)
		return err
	case drover.SettleName:
		return d.Settle(ctx, owner, op.Name)
	case drover.RestoreName:
		return d.Restore(ctx, owner, op.Name)
	}
	now, err := d.Set(ctx, owner, op.Name, op.Addresses, op.Limit)
	if err != nil || !patient {
		return err
	}
	// A secondary that lags or is down does not undo a move: the primary has the
	// change, and clients of the others come with the next transfer.
	wait, cancel := context.WithTimeout(ctx, answersLimit)
	defer cancel()
	if _, err := d.WaitAnswers(wait, op.Name, now.Now); err != nil {
		out.add(func() { out.details = append(out.details, fmt.Sprintf("name %s: %v", op.Name, err)) })
		e.a.log.Warn("not every name server answers the change", "name", op.Name, "err", err)
	}
	return nil
}

func (e *edge) doLease(ctx context.Context, owner driver.Owner, op drover.EdgeOp, out *edgeOutcome) error {
	d, err := e.leases(op.Segment)
	if err != nil {
		return err
	}
	if op.Do == drover.ReleaseLease {
		return d.Release(ctx, owner, op.Segment, op.MAC)
	}
	s, err := e.segment(op.Segment)
	if err != nil {
		return err
	}
	avoid, err := e.reservable(ctx, d, op)
	if err != nil {
		return err
	}
	lease, err := d.Reserve(ctx, owner, driver.LeaseRequest{
		Segment: op.Segment, MAC: op.MAC, Hostname: op.Name, Addresses: op.Addresses, Avoid: avoid, DUID: op.DUID, IAID: op.IAID,
	})
	if drover.KindOf(err) == drover.Exhausted && len(avoid) > 0 {
		return fmt.Errorf("%w (but for those that VMs have taken elsewhere, which %s leads there: bring one of them home, or make the pool larger)", err, e.a.config.Name)
	}
	if err != nil {
		return err
	}
	out.add(func() {
		for _, a := range lease.Addresses {
			for _, p := range s.Subnets {
				if p.Contains(a) {
					out.addresses = append(out.addresses, netip.PrefixFrom(a, p.Bits()))
				}
			}
		}
		for _, g := range s.Gateways {
			if !slices.Contains(out.gateways, g) && slices.ContainsFunc(lease.Addresses, func(a netip.Addr) bool { return a.Is4() == g.Is4() }) {
				out.gateways = append(out.gateways, g)
			}
		}
	})
	return nil
}

func (e *edge) doServer(ctx context.Context, owner driver.Owner, op drover.EdgeOp, out *edgeOutcome) error {
	d, err := e.balancer(op.Backend)
	if err != nil {
		return err
	}
	full := driver.ServerName(owner, op.Name)
	if op.Do == drover.AddServer {
		at, err := netip.ParseAddrPort(op.Target)
		if err != nil {
			return drover.Errorf(drover.Invalid, "target", "%q: want IP:PORT", op.Target)
		}
		// Checked by the rules that the backend has for its own servers.
		spec := driver.ServerSpec{Name: op.Name, Address: at, Weight: op.Weight, Check: &driver.ServerCheck{}}
		return d.Add(ctx, owner, op.Backend, spec)
	}
	all, err := d.Servers(ctx, op.Backend)
	if err != nil {
		return err
	}
	has := func(name string) bool {
		return slices.ContainsFunc(all, func(s driver.Server) bool { return s.Name == name })
	}
	name, added := op.Name, false
	switch {
	case has(full):
		name, added = full, true
	case op.Do == drover.RemoveServer && !has(name):
		return nil
	}
	switch op.Do {
	case drover.ReadyServer:
		return d.Ready(ctx, owner, op.Backend, name)
	case drover.WeighServer:
		return d.SetWeight(ctx, owner, op.Backend, name, op.Weight)
	case drover.DrainServer:
		return d.Drain(ctx, owner, op.Backend, name)
	}
	if !added && !strings.HasPrefix(name, driver.ServerName(owner, "")) {
		return d.Restore(ctx, owner, op.Backend, name)
	}
	ended, err := d.Remove(ctx, owner, op.Backend, name, op.Force)
	out.add(func() { out.sessions += ended })
	return err
}
