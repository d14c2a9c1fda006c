package server

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/executor"
	"github.com/drover-vm/drover/store"
)

// protectWorld is what keeping replicas has to know of everything else.
type protectWorld interface {
	// protectedVM finds a VM by its UUID; ok is false while no host has it.
	protectedVM(ctx context.Context, uuid string) (vm drover.VM, ok bool, err error)
	// movingVM is the unfinished move that has the VM; ok is false for none.
	movingVM(ctx context.Context, uuid string) (m drover.Move, ok bool, err error)
	// retired reports whether the VM's sessions went to another one, for good.
	retired(ctx context.Context, uuid string) (bool, error)
	// reachable says why a host's agent cannot be asked; empty when it can.
	reachable(host string) string
	// planReplica settles how the VM's disks cross. What is in the way is an error.
	planReplica(ctx context.Context, vm string, to drover.Place) (executor.Request, error)
	// linkOf is the rate of the link between two sites, zero when not known, and
	// whether a move crosses it.
	linkOf(ctx context.Context, from, to string) (rate drover.BitRate, moving bool)
}

// replica is one set of images under a name that agents know it by. A VM that has
// moved, and one whose record of changes is lost, gets another: the earlier stays
// until the new one is complete, whose content mostly is the same.
type replica struct {
	Name        string              `json:"name"`
	From        drover.Place        `json:"from"`
	To          drover.Place        `json:"to"`
	FromAddress string              `json:"from_address"`
	ToAddress   string              `json:"to_address"`
	Disks       []executor.DiskPlan `json:"disks"`
	// Made says that its volumes are, Rounds how many are complete.
	Made   bool  `json:"made,omitempty"`
	Rounds int64 `json:"rounds,omitempty"`
	// Lost says that no round can be built on those before.
	Lost bool `json:"lost,omitempty"`
}

// protectState is the server's part of a kept protection.
type protectState struct {
	// Name begins the names of the replicas, Next is the number of the next.
	Name string `json:"name"`
	Next int    `json:"next"`
	// Generation fences what an earlier server may still ask for.
	Generation int64 `json:"generation"`
	// Current is nil before the first. Old are those to be removed.
	Current *replica  `json:"current,omitempty"`
	Old     []replica `json:"old,omitempty"`
}

// replicaNamePrefix begins the names of replicas, which moves have not.
const replicaNamePrefix = "replica-"

// protector keeps the replicas that are wanted, while this server leads.
type protector struct {
	store  store.Collection[store.Protection]
	agents executor.Agents
	world  protectWorld
	log    *slog.Logger
	now    func() time.Time

	mu sync.Mutex
	// ctx is of all work; nil before start. by is by the VM's UUID.
	ctx   context.Context
	by    map[string]*protecting
	group sync.WaitGroup
}

func newProtector(kept store.Collection[store.Protection], agents executor.Agents, world protectWorld, log *slog.Logger, now func() time.Time) *protector {
	return &protector{store: kept, agents: agents, world: world, log: log, now: now, by: map[string]*protecting{}}
}

// run takes up what is kept, and works until ctx ends.
func (k *protector) run(ctx context.Context) error {
	defer k.group.Wait()
	all, _, err := k.store.List(ctx)
	if err != nil {
		return err
	}
	k.mu.Lock()
	k.ctx = ctx
	k.mu.Unlock()
	for _, kept := range all {
		var st protectState
		if err := json.Unmarshal(kept.State, &st); err != nil {
			k.log.ErrorContext(ctx, "a protection cannot be read", "vm", kept.Protection.VM, "error", err)
			continue
		}
		// Whoever led before may have calls under way.
		st.Generation++
		if _, err := k.add(kept.Protection, st); err != nil {
			return err
		}
	}
	<-ctx.Done()
	return nil
}

// add begins to keep one.
func (k *protector) add(p drover.Protection, st protectState) (*protecting, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.ctx == nil || k.ctx.Err() != nil {
		return nil, drover.Errorf(drover.Unavailable, "protect vm "+p.VM, "this server is not leading")
	}
	if w := k.by[p.VMUUID]; w != nil {
		return w, nil
	}
	w := &protecting{k: k, log: k.log.With("vm", p.VM, "to", p.To.String()), shown: p, state: st, wake: make(chan struct{}, 1), gone: make(chan struct{})}
	if err := w.save(k.ctx); err != nil {
		return nil, err
	}
	k.by[p.VMUUID] = w
	k.group.Go(func() {
		w.run(k.ctx)
		k.mu.Lock()
		defer k.mu.Unlock()
		delete(k.by, p.VMUUID)
	})
	return w, nil
}

// protect begins or changes a protection.
func (k *protector) protect(ctx context.Context, p drover.Protection) (drover.Protection, error) {
	op := "protect vm " + p.VM
	w := k.of(p.VMUUID)
	if w == nil {
		var err error
		name := replicaNamePrefix + strings.ToLower(rand.Text()[:8])
		p.State, p.Created = drover.ProtectionStarting, k.now().UTC()
		if w, err = k.add(p, protectState{Name: name, Next: 1, Generation: 1}); err != nil {
			return p, err
		}
	}
	err := w.change(ctx, func(kept *drover.Protection, _ *protectState) error {
		switch {
		case kept.State == drover.ProtectionEnding:
			return drover.Errorf(drover.Unavailable, op, "its protection at %s is ending (%s): wait for that", kept.To, kept.Why)
		case kept.To != p.To:
			return drover.Errorf(drover.Refused, op, "it is protected at %s: end that first (drover protect %s --stop)", kept.To, kept.VM)
		}
		kept.RPOSeconds, kept.Rate = p.RPOSeconds, p.Rate
		return nil
	})
	w.nudge()
	return w.show(), err
}

// end ends one, and waits for that as long as ctx lets it. gone says that nothing
// is left.
func (k *protector) end(ctx context.Context, uuid, vm string) (p drover.Protection, gone bool, err error) {
	w := k.of(uuid)
	if w == nil {
		return p, false, drover.Errorf(drover.NotFound, "end the protection of vm "+vm, "it is not protected")
	}
	if err := w.conclude(ctx, "asked for"); err != nil {
		return w.show(), false, err
	}
	w.nudge()
	select {
	case <-w.gone:
		return w.show(), true, nil
	case <-ctx.Done():
		return w.show(), false, nil
	}
}

func (k *protector) of(uuid string) *protecting {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.by[uuid]
}

// list shows all, by VM.
func (k *protector) list() []drover.Protection {
	k.mu.Lock()
	all := slices.Collect(maps.Values(k.by))
	k.mu.Unlock()
	out := make([]drover.Protection, 0, len(all))
	for _, w := range all {
		out = append(out, w.show())
	}
	slices.SortFunc(out, func(a, b drover.Protection) int {
		return cmp.Or(cmp.Compare(a.VM, b.VM), cmp.Compare(a.VMUUID, b.VMUUID))
	})
	return out
}

// beginsWith is what a move of the VM between two hosts begins with: the name of a
// replica that is complete there; empty for none.
func (k *protector) beginsWith(uuid, from, to string) string {
	w := k.of(uuid)
	if w == nil {
		return ""
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	c := w.state.Current
	if c == nil || c.Lost || c.Rounds == 0 || c.From.Host != from || c.To.Host != to || w.shown.State == drover.ProtectionEnding {
		return ""
	}
	return c.Name
}

// prefers is the host of a site that has the VM's replica; empty for none.
func (k *protector) prefers(uuid, site string) string {
	w := k.of(uuid)
	if w == nil {
		return ""
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if c := w.state.Current; c != nil && c.To.Site == site && w.shown.State != drover.ProtectionEnding {
		return c.To.Host
	}
	return ""
}

// rounds counts those under way between two sites.
func (k *protector) rounds(from, to string) (n int) {
	k.mu.Lock()
	all := slices.Collect(maps.Values(k.by))
	k.mu.Unlock()
	for _, w := range all {
		w.mu.Lock()
		c := w.state.Current
		if w.shown.Sending && c != nil && (c.From.Site == from && c.To.Site == to || c.From.Site == to && c.To.Site == from) {
			n++
		}
		w.mu.Unlock()
	}
	return n
}

// replicaNames are those that kept protections have at agents, whoever leads.
func replicaNames(ctx context.Context, kept store.Collection[store.Protection]) ([]string, error) {
	all, _, err := kept.List(ctx)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, p := range all {
		var st protectState
		if err := json.Unmarshal(p.State, &st); err != nil {
			return nil, drover.E(drover.Corrupt, "protection of vm "+p.Protection.VM, err)
		}
		if st.Current != nil {
			names = append(names, st.Current.Name)
		}
		for _, r := range st.Old {
			names = append(names, r.Name)
		}
	}
	return names, nil
}
