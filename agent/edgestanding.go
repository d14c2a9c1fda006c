package agent

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"

	"go.etcd.io/bbolt"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/network"
)

// standingBucket has what the edge's kernel has to hold: network.Holding by the
// keys of network.Holdings.
var standingBucket = []byte("standing")

// mendEvery is how often an edge looks whether its kernel still holds what it
// should: a firewall's reload may have emptied it, a reboot has.
const mendEvery = 15 * time.Second

// standing is what the edge has made and nobody has taken back.
type standing struct {
	// work is held for reading by who carries out operations, and for writing by
	// who makes again what is lost: that must not see a switchover half done.
	work sync.RWMutex

	mu  sync.Mutex
	all network.Holdings
}

// openStanding reads what stood when the agent ended.
func (e *edge) openStanding() error {
	e.standing.mu.Lock()
	defer e.standing.mu.Unlock()
	e.standing.all = network.Holdings{}
	err := e.a.journal.db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket(standingBucket).ForEach(func(k, raw []byte) error {
			var s network.Holding
			if err := json.Unmarshal(raw, &s); err != nil {
				return drover.Errorf(drover.Corrupt, "journal", "what stands, %s: %w", k, err)
			}
			e.standing.all[string(k)] = s
			return nil
		})
	})
	return journalError(err)
}

// stood notes operations that have been carried out.
func (e *edge) stood(ops ...drover.EdgeOp) error {
	return e.changeStanding(func(all network.Holdings) []string {
		var changed []string
		for _, op := range ops {
			changed = append(changed, all.Apply(op, e.a.clock())...)
		}
		return changed
	})
}

func (e *edge) changeStanding(change func(network.Holdings) []string) error {
	e.standing.mu.Lock()
	defer e.standing.mu.Unlock()
	changed := change(e.standing.all)
	if len(changed) == 0 {
		return nil
	}
	return e.a.journal.write("standing", func(tx *bbolt.Tx) error {
		b := tx.Bucket(standingBucket)
		for _, key := range changed {
			s, there := e.standing.all[key]
			if !there {
				if err := b.Delete([]byte(key)); err != nil {
					return err
				}
				continue
			}
			raw, err := json.Marshal(s)
			if err != nil {
				return err
			}
			if err := b.Put([]byte(key), raw); err != nil {
				return err
			}
		}
		return nil
	})
}

// roleVerbs are the operations that place addresses, by what they place them as.
var roleVerbs = map[driver.AddressRole]drover.EdgeVerb{
	driver.RoleDeliver: drover.DeliverHere, driver.RoleElsewhere: drover.Elsewhere, driver.RoleRest: drover.ProxyRest,
	driver.RoleForwardOld: drover.ForwardOld, driver.RoleAcceptOld: drover.AcceptOld,
	driver.RoleWatch: drover.WatchSessions, driver.RoleMeter: drover.MeterTraffic,
}

// removedStanding notes that what the owner had of a kind was removed.
func (e *edge) removedStanding(owner driver.Owner, kind string) error {
	verb := roleVerbs[driver.AddressRole(kind)]
	switch kind {
	case ownedExtension:
		verb = drover.ExtendSegment
	case ownedRoute:
		verb = drover.AnnounceRoutes
	}
	return e.changeStanding(func(all network.Holdings) []string {
		return all.Remove(func(_ string, op drover.EdgeOp) bool { return op.Owner == string(owner) && op.Do == verb })
	})
}

// keepStanding makes again what the kernel has lost, at once and until ctx ends.
func (e *edge) keepStanding(ctx context.Context) {
	last := ""
	for {
		err := e.mend(ctx)
		said := ""
		if err != nil {
			said = err.Error()
		}
		if said != last && ctx.Err() == nil {
			// Said once: until a bridge is there again it is the same each time.
			e.a.log.Warn("what the kernel has lost is not all made again", "err", err)
			last = said
		}
		if sleep(ctx, mendEvery, nil) != nil {
			return
		}
	}
}

// mend makes again what the kernel has lost. It gives way to operations that are
// under way: they change what should stand.
func (e *edge) mend(ctx context.Context) error {
	if ops, err := e.lost(ctx); err != nil || len(ops) == 0 {
		return err
	}
	if !e.standing.work.TryLock() {
		return nil // the next time
	}
	defer e.standing.work.Unlock()
	ops, err := e.lost(ctx)
	if err != nil || len(ops) == 0 {
		return err
	}
	e.a.log.Warn("the kernel has lost what this edge has made; it is made again", "ops", len(ops))
	var faults error
	for i, op := range ops {
		if err := e.carryOut(ctx, op, new(edgeOutcome), false); err != nil {
			faults = errors.Join(faults, opError(i, op, err))
		}
	}
	return faults
}

// lost returns the operations to be carried out again, in their order.
func (e *edge) lost(ctx context.Context) ([]drover.EdgeOp, error) {
	e.standing.mu.Lock()
	ops := e.standing.all.Again(e.a.clock())
	e.standing.mu.Unlock()
	if len(ops) == 0 {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, opLimit)
	defer cancel()
	holds, err := e.holds(ctx)
	if err != nil {
		return nil, err
	}
	// A tunnel that is made again has no stations.
	bare := map[string]bool{}
	return slices.DeleteFunc(ops, func(op drover.EdgeOp) bool {
		if op.Do == drover.SetStation {
			return !bare[op.Segment]
		}
		there := holds(op)
		if op.Do == drover.ExtendSegment && !there {
			bare[op.Segment] = true
		}
		return there
	}), nil
}

// holds reads the kernel, and says whether what an operation makes is there.
func (e *edge) holds(ctx context.Context) (func(drover.EdgeOp) bool, error) {
	type place struct {
		owner  driver.Owner
		role   driver.AddressRole
		prefix netip.Prefix
	}
	extended, placed, announced := map[[2]string]bool{}, map[place]bool{}, map[place]bool{}
	if e.Segments != nil {
		all, err := e.Segments.List(ctx)
		if err != nil {
			return nil, err
		}
		for _, x := range all {
			for _, o := range x.Owners {
				extended[[2]string{x.Segment, string(o)}] = !x.Missing
			}
		}
	}
	if e.Addresses != nil {
		all, err := e.Addresses.List(ctx)
		if err != nil {
			return nil, err
		}
		for _, p := range all {
			placed[place{p.Owner, p.Role, p.Prefix}] = !p.Missing
		}
	}
	if e.Routes != nil {
		all, err := e.Routes.List(ctx)
		if err != nil {
			return nil, err
		}
		for _, r := range all {
			announced[place{owner: r.Owner, prefix: r.Prefix}] = true
		}
	}
	return func(op drover.EdgeOp) bool {
		owner := driver.Owner(op.Owner)
		switch op.Do {
		case drover.ExtendSegment:
			return extended[[2]string{op.Segment, op.Owner}]
		case drover.AnnounceRoutes:
			return announced[place{owner: owner, prefix: hostRoutes(op.Addresses)[0]}]
		case drover.ProxyRest:
			s, err := e.segment(op.Segment)
			return err != nil || !slices.ContainsFunc(s.Subnets, func(p netip.Prefix) bool {
				return !placed[place{owner, driver.RoleRest, p}]
			})
		}
		for role, verb := range roleVerbs {
			if verb == op.Do {
				return placed[place{owner, role, hostRoutes(op.Addresses)[0]}]
			}
		}
		return true
	}, nil
}
