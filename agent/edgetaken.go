package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// takenAddress is for whom an edge leads an address somewhere, and how. The DHCP
// service does not know of it: the VM may have its address from elsewhere, or its
// lease may have ended while it was away.
type takenAddress struct {
	owner driver.Owner
	how   string
}

type takenAddresses map[netip.Addr]takenAddress

// of counts those in a segment.
func (t takenAddresses) of(e *edge, segment string) int {
	s, err := e.segment(segment)
	if err != nil {
		return 0
	}
	n := 0
	for a := range t {
		if slices.ContainsFunc(s.Subnets, func(p netip.Prefix) bool { return p.Contains(a) }) {
			n++
		}
	}
	return n
}

// takenHow says how an edge leads an address by what it was asked to do for it.
var takenHow = map[drover.EdgeVerb]string{
	drover.DeliverHere: "is delivered here", drover.Elsewhere: "is led to another site", drover.AnnounceRoutes: "is announced here",
	drover.ForwardOld: "is an old one, of which sessions go on,", drover.AcceptOld: "is an old one, of which sessions go on,",
	drover.SetStation: "is at another site of the extended segment",
}

// takenBut returns the addresses that this edge leads somewhere for others than
// the owner: by what it has been asked for, in case that the kernel has lost it,
// and by what stands. What cannot be read is an error: it might be any address.
func (e *edge) takenBut(ctx context.Context, owner driver.Owner) (takenAddresses, error) {
	own, err := e.ownersOf(owner)
	if err != nil {
		return nil, err
	}
	taken := takenAddresses{}
	add := func(a netip.Addr, o driver.Owner, do drover.EdgeVerb) {
		if how := takenHow[do]; how != "" && !own[o] {
			taken[a.Unmap()] = takenAddress{o, how}
		}
	}
	e.standing.mu.Lock()
	for _, h := range e.standing.all {
		// A station that is here is one like any other.
		if h.Op.Do == drover.SetStation && (h.Op.Site == "" || h.Op.Site == e.a.config.Site) {
			continue
		}
		for _, a := range h.Op.Addresses {
			add(a, driver.Owner(h.Op.Owner), h.Op.Do)
		}
	}
	e.standing.mu.Unlock()
	var faults error
	if e.Routes != nil {
		all, err := e.Routes.List(ctx)
		faults = errors.Join(faults, err)
		for _, r := range all {
			add(r.Prefix.Addr(), r.Owner, drover.AnnounceRoutes)
		}
	}
	if e.Addresses != nil {
		all, err := e.Addresses.List(ctx)
		faults = errors.Join(faults, err)
		for _, p := range all {
			if p.Prefix.IsSingleIP() {
				add(p.Prefix.Addr(), p.Owner, roleVerbs[p.Role])
			}
		}
	}
	if faults != nil {
		return nil, fmt.Errorf("which addresses are led elsewhere: %w", faults)
	}
	return taken, nil
}

// ownersOf returns the owner, and the moves of its VM that this edge knows.
func (e *edge) ownersOf(owner driver.Owner) (map[driver.Owner]bool, error) {
	own := map[driver.Owner]bool{owner: true}
	moves, err := e.a.journal.edgeMoves()
	for _, r := range moves {
		if driver.VMOwner(r.VMUUID) == owner {
			own[driver.MoveOwner(r.Move)] = true
		}
	}
	return own, err
}

// reservable refuses to reserve an address that this edge leads somewhere for
// another VM: one that is wished, or that the MAC has been given by the DHCP
// service itself. It returns those that must not be picked.
func (e *edge) reservable(ctx context.Context, d driver.Leases, op drover.EdgeOp) ([]netip.Addr, error) {
	taken, err := e.takenBut(ctx, driver.Owner(op.Owner))
	if err != nil || len(taken) == 0 {
		return nil, err
	}
	for _, a := range op.Addresses {
		if t, is := taken[a.Unmap()]; is {
			return nil, e.isTaken(a, t, "name another address")
		}
	}
	held, err := d.Find(ctx, op.MAC)
	if err != nil {
		return nil, err
	}
	for _, l := range held {
		for _, a := range l.Addresses {
			if t, is := taken[a]; is && l.Segment == op.Segment {
				return nil, e.isTaken(a, t, fmt.Sprintf("end the lease that the DHCP service has given to %s", l.MAC))
			}
		}
	}
	return slices.SortedFunc(maps.Keys(taken), netip.Addr.Compare), nil
}

// untaken refuses to lead an address to a VM that this edge leads somewhere for
// another.
func (e *edge) untaken(ctx context.Context, op drover.EdgeOp) error {
	taken, err := e.takenBut(ctx, driver.Owner(op.Owner))
	if err != nil {
		return err
	}
	for _, a := range op.Addresses {
		if t, is := taken[a.Unmap()]; is {
			return e.isTaken(a, t, "give one of the two VMs another")
		}
	}
	return nil
}

// isTaken is the refusal of an address, with what to do about it.
func (e *edge) isTaken(a netip.Addr, t takenAddress, instead string) error {
	free := "bring that VM home first"
	if name, is := t.owner.Move(); is {
		free = "end its old sessions first (drover move end-old " + name + ")"
	}
	return drover.Errorf(drover.Exists, "address "+a.String(), "it %s for %s: %s, or %s", t.how, e.ownerName(t.owner), instead, free)
}

// ownerName names the VM of an owner by what this edge has been told in moves.
func (e *edge) ownerName(owner driver.Owner) string {
	moves, _ := e.a.journal.edgeMoves() // without them the owner itself is said
	for _, r := range moves {
		if driver.VMOwner(r.VMUUID) == owner || driver.MoveOwner(r.Move) == owner {
			return fmt.Sprintf("vm %s (%s)", r.VM, strings.TrimPrefix(string(driver.VMOwner(r.VMUUID)), "vm/"))
		}
	}
	return string(owner)
}
