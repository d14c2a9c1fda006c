package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.etcd.io/bbolt"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/driver"
)

// Kinds of what stands on a host or an edge. What driver.Addresses has is of
// the kind of its role.
const (
	ownedReservation = "reservation"
	ownedStaged      = "staged"
	ownedExtension   = "extension"
	ownedRoute       = "route"
	ownedName        = "name"
	ownedNameKept    = "kept-name" // only for RemoveOwned: the change stays, its mark goes
	ownedLease       = "lease"
	ownedServer      = "server"
)

// Owned implements AgentService. On hosts it returns the reservations of moves,
// replicas, and what moves and replicas have made.
func (a agentService) Owned(ctx context.Context, _ *droverv1.OwnedRequest) (*droverv1.OwnedResponse, error) {
	moves, err := a.journal.moves()
	if err != nil {
		return nil, err
	}
	r := &droverv1.OwnedResponse{Things: ownedMoves(moves)}
	here, err := a.ownedHere(ctx, moves)
	r.Things, r.Faults = append(r.Things, here...), errorLines(err)
	disks, derr := a.ownedDisks()
	r.Things, r.Faults = append(r.Things, disks...), append(r.Faults, errorLines(derr)...)
	if a.siteedge == nil {
		return r, nil
	}
	things, err := a.siteedge.owned(ctx)
	r.Things, r.Faults = append(r.Things, things...), append(r.Faults, errorLines(err)...)
	return r, nil
}

// owned returns all that stands on the edge. What could be read is returned with
// an error, too.
func (e *edge) owned(ctx context.Context) ([]*droverv1.OwnedThing, error) {
	var all []*droverv1.OwnedThing
	var faults error
	for _, read := range []func(context.Context) ([]*droverv1.OwnedThing, error){
		e.ownedStaged, e.ownedExtensions, e.ownedRoutes, e.ownedAddresses, e.ownedNames, e.ownedLeases, e.ownedServers,
	} {
		things, err := read(ctx)
		all, faults = append(all, things...), errors.Join(faults, err)
	}
	return all, faults
}

func (e *edge) ownedStaged(context.Context) ([]*droverv1.OwnedThing, error) {
	moves, err := e.a.journal.edgeMoves()
	var list []*droverv1.OwnedThing
	for _, m := range moves {
		if len(m.Staged) > 0 {
			list = append(list, &droverv1.OwnedThing{
				Kind: ownedStaged, Owner: string(driver.MoveOwner(m.Move)), What: fmt.Sprintf("%d operations for a cut-over", len(m.Staged)),
			})
		}
	}
	return list, err
}

func (e *edge) ownedExtensions(ctx context.Context) ([]*droverv1.OwnedThing, error) {
	if e.Segments == nil {
		return nil, nil
	}
	all, err := e.Segments.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("extensions: %w", err)
	}
	var list []*droverv1.OwnedThing
	for _, x := range all {
		// A VM that is at home needs no other site to be in its segment.
		thing := droverv1.OwnedThing{Kind: ownedExtension, What: fmt.Sprintf("extension of segment %s, interface %s", x.Segment, x.Interface)}
		if s, err := e.segment(x.Segment); err == nil {
			thing.Off = s.Home
		}
		if len(x.Owners) == 0 {
			list = append(list, &thing)
		}
		for _, o := range x.Owners {
			list = append(list, &droverv1.OwnedThing{Kind: thing.Kind, What: thing.What, Off: thing.Off, Owner: string(o)})
		}
	}
	return list, nil
}

func (e *edge) ownedRoutes(ctx context.Context) ([]*droverv1.OwnedThing, error) {
	if e.Routes == nil {
		return nil, nil
	}
	all, err := e.Routes.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("routes: %w", err)
	}
	var list []*droverv1.OwnedThing
	for _, r := range all {
		list = append(list, &droverv1.OwnedThing{
			Kind: ownedRoute, Owner: string(r.Owner), What: fmt.Sprintf("announced route %s", r.Prefix), At: e.a.config.Site,
		})
	}
	return list, nil
}

func (e *edge) ownedAddresses(ctx context.Context) ([]*droverv1.OwnedThing, error) {
	if e.Addresses == nil {
		return nil, nil
	}
	all, err := e.Addresses.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("addresses: %w", err)
	}
	var list []*droverv1.OwnedThing
	for _, p := range all {
		t := &droverv1.OwnedThing{Kind: string(p.Role), Owner: string(p.Owner), What: fmt.Sprintf("%s %s", p.Role, p.Prefix)}
		if p.Bridge != "" {
			t.What += " at " + p.Bridge
		}
		switch p.Role {
		case driver.RoleDeliver, driver.RoleRest, driver.RoleAcceptOld:
			t.At = e.a.config.Site
		case driver.RoleElsewhere, driver.RoleForwardOld:
			t.Off = e.a.config.Site
		}
		list = append(list, t)
	}
	return list, nil
}

func (e *edge) ownedNames(ctx context.Context) ([]*droverv1.OwnedThing, error) {
	var list []*droverv1.OwnedThing
	var faults error
	for zone, d := range e.Names {
		all, err := d.List(ctx)
		if err != nil {
			faults = errors.Join(faults, fmt.Errorf("zone %s: %w", zone, err))
		}
		for _, n := range all {
			list = append(list, &droverv1.OwnedThing{Kind: ownedName, Owner: string(n.Owner), What: "change of name " + n.Name})
		}
	}
	return list, faults
}

// distinct returns each driver once.
func distinct[D comparable](by map[string]D) []D {
	var list []D
	for _, d := range by {
		if !slices.Contains(list, d) {
			list = append(list, d)
		}
	}
	return list
}

func (e *edge) ownedLeases(ctx context.Context) ([]*droverv1.OwnedThing, error) {
	var list []*droverv1.OwnedThing
	var faults error
	for _, d := range distinct(e.Leases) {
		all, err := d.List(ctx)
		if err != nil {
			faults = errors.Join(faults, fmt.Errorf("leases: %w", err))
		}
		for _, l := range all {
			// Wherever its VM is: one that was moved by a host route or a stretched
			// segment has the address of this site on, and it may be given to nobody
			// else. A move into another segment gives it back itself.
			list = append(list, &droverv1.OwnedThing{
				Kind: ownedLease, Owner: string(l.Owner),
				What: fmt.Sprintf("lease of %v for %s in segment %s", l.Addresses, l.MAC, l.Segment),
			})
		}
	}
	return list, faults
}

func (e *edge) ownedServers(ctx context.Context) ([]*droverv1.OwnedThing, error) {
	var list []*droverv1.OwnedThing
	var faults error
	for _, d := range distinct(e.Balancers) {
		all, err := d.List(ctx)
		if err != nil {
			faults = errors.Join(faults, fmt.Errorf("load balancer: %w", err))
		}
		for _, s := range all {
			list = append(list, &droverv1.OwnedThing{
				Kind: ownedServer, Owner: string(s.Owner), What: fmt.Sprintf("server %s of backend %s", s.Name, s.Backend),
			})
		}
	}
	return list, faults
}

// RemoveOwned implements AgentService.
func (a agentService) RemoveOwned(ctx context.Context, req *droverv1.RemoveOwnedRequest) (*droverv1.RemoveOwnedResponse, error) {
	owner := driver.Owner(req.GetOwner())
	if err := owner.Validate(); err != nil {
		return nil, err
	}
	switch kind := req.GetKind(); {
	case kind == ownedReservation || kind == ownedReplica:
		return &droverv1.RemoveOwnedResponse{}, a.removeReservation(ctx, owner)
	case slices.Contains(hostKinds, kind):
		if err := a.needHypervisor(); err != nil {
			return nil, err
		}
		return &droverv1.RemoveOwnedResponse{}, a.removeHere(ctx, owner, kind)
	}
	if kind := req.GetKind(); kind == ownedLent || kind == ownedRemote {
		return &droverv1.RemoveOwnedResponse{}, errors.Join(a.needHypervisor(), a.removeDisks(ctx, owner, kind))
	}
	e, err := a.siteEdge()
	if err != nil {
		return nil, err
	}
	e.standing.work.RLock()
	defer e.standing.work.RUnlock()
	if err := e.remove(ctx, owner, req.GetKind()); err != nil {
		return nil, err
	}
	return &droverv1.RemoveOwnedResponse{}, e.removedStanding(owner, req.GetKind())
}

// removeReservation releases a move that no server knows any more, as Release
// does: what a VM still depends on makes it fail.
func (a *Agent) removeReservation(ctx context.Context, owner driver.Owner) error {
	name, ok := owner.Move()
	if !ok {
		return drover.Errorf(drover.Invalid, "owner", "%q: want move/NAME for a reservation", string(owner))
	}
	r, err := a.journal.move(name)
	if err != nil || r == nil {
		return err
	}
	ref := moveRef{move: r.Move, generation: r.Generation, vm: r.VM, uuid: r.VMUUID}
	_, err = a.release(ctx, nil, ref, &droverv1.Release{Target: r.Target})
	return err
}

// remove removes what the owner has of a kind.
func (e *edge) remove(ctx context.Context, owner driver.Owner, kind string) error {
	ctx, cancel := context.WithTimeout(ctx, opLimit)
	defer cancel()
	switch kind {
	case ownedStaged:
		return e.removeStaged(owner)
	case ownedExtension:
		return e.removeExtensions(ctx, owner)
	case ownedRoute:
		return e.removeRoutes(ctx, owner)
	case ownedName:
		return e.removeNames(ctx, owner, driver.Names.Restore)
	case ownedNameKept:
		return e.removeNames(ctx, owner, driver.Names.Settle)
	case ownedLease:
		return e.removeLeases(ctx, owner)
	case ownedServer:
		return e.removeServers(ctx, owner)
	}
	role := driver.AddressRole(kind)
	if !slices.Contains(driver.AddressRoles, role) {
		return drover.Errorf(drover.Invalid, "kind", "%q is none that an edge removes", kind)
	}
	d, err := e.addresses()
	if err != nil {
		return err
	}
	return d.Remove(ctx, owner, role)
}

func (e *edge) removeStaged(owner driver.Owner) error {
	name, ok := owner.Move()
	if !ok {
		return drover.Errorf(drover.Invalid, "owner", "%q: want move/NAME for what is staged", string(owner))
	}
	return e.a.journal.write("unstage", func(tx *bbolt.Tx) error {
		return tx.Bucket(edgeBucket).Delete(edgeKey(name))
	})
}

func (e *edge) removeExtensions(ctx context.Context, owner driver.Owner) error {
	d, err := e.extender()
	if err != nil {
		return err
	}
	all, err := d.List(ctx)
	for _, x := range all {
		if slices.Contains(x.Owners, owner) {
			err = errors.Join(err, d.Retract(ctx, owner, x.Segment))
		}
	}
	return err
}

func (e *edge) removeRoutes(ctx context.Context, owner driver.Owner) error {
	d, err := e.router()
	if err != nil {
		return err
	}
	all, err := d.List(ctx)
	if err != nil {
		return err
	}
	op := drover.EdgeOp{Do: drover.WithdrawRoutes, Owner: string(owner)}
	for _, r := range all {
		if r.Owner == owner {
			op.Addresses = append(op.Addresses, r.Prefix.Addr())
		}
	}
	if len(op.Addresses) == 0 {
		return nil
	}
	return e.doRoutes(ctx, owner, op)
}

// removeNames ends the owner's changes: by Restore, which puts back what was
// there before, or by Settle.
func (e *edge) removeNames(ctx context.Context, owner driver.Owner, end func(driver.Names, context.Context, driver.Owner, string) error) error {
	var faults error
	for _, d := range e.Names {
		all, err := d.List(ctx)
		faults = errors.Join(faults, err)
		for _, n := range all {
			if n.Owner == owner {
				faults = errors.Join(faults, end(d, ctx, owner, n.Name))
			}
		}
	}
	return faults
}

func (e *edge) removeLeases(ctx context.Context, owner driver.Owner) error {
	var faults error
	for _, d := range distinct(e.Leases) {
		all, err := d.List(ctx)
		faults = errors.Join(faults, err)
		for _, l := range all {
			if l.Owner == owner {
				faults = errors.Join(faults, d.Release(ctx, owner, l.Segment, l.MAC))
			}
		}
	}
	return faults
}

func (e *edge) removeServers(ctx context.Context, owner driver.Owner) error {
	var faults error
	for _, d := range distinct(e.Balancers) {
		all, err := d.List(ctx)
		faults = errors.Join(faults, err)
		for _, s := range all {
			switch {
			case s.Owner != owner:
			case s.Added || strings.HasPrefix(s.Name, driver.ServerName(owner, "")):
				// Nobody answers there any more, or soon nobody will.
				_, err := d.Remove(ctx, owner, s.Backend, s.Name, true)
				faults = errors.Join(faults, err)
			default:
				faults = errors.Join(faults, d.Restore(ctx, owner, s.Backend, s.Name))
			}
		}
	}
	return faults
}
