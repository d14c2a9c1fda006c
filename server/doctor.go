package server

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/store"
)

// edgeLimit bounds a question to one agent about all it works with: a name
// server or a DHCP service that does not answer takes a few seconds to notice.
const edgeLimit = 30 * time.Second

// askAll asks all agents at once; the answers are in their order.
func askAll[T any](agents []*agent, ask func(*agent) T) []T {
	out := make([]T, len(agents))
	var wg sync.WaitGroup
	for i, a := range agents {
		wg.Go(func() { out[i] = ask(a) })
	}
	wg.Wait()
	return out
}

// Diagnose implements DroverService.
func (s service) Diagnose(ctx context.Context, r *droverv1.DiagnoseRequest) (*droverv1.DiagnoseResponse, error) {
	d, err := s.diagnose(ctx, r.GetRemove())
	if err != nil {
		return nil, err
	}
	return &droverv1.DiagnoseResponse{Ok: d.OK, Findings: api.ListToProto(d.Findings, api.FindingToProto)}, nil
}

// Kinds of findings that are the server's own; the others are the agents'.
const (
	findUnreachable = "unreachable"  // an agent that does not answer
	findFault       = "fault"        // something that it could not look at
	findNeeds       = "requirements" // what a VM was said to need
)

// The fixes of what diagnose may remove: now, and once nothing can be hidden.
const (
	fixByDoctor = "drover doctor --remove"
	fixLater    = "wait until every agent answers, then drover doctor --remove"
)

// diagnose looks for what stands without being needed, and removes it if asked
// to. What belongs to a VM is judged only while every host answers: a VM that
// nobody sees may be on the one that does not.
func (s *Server) diagnose(ctx context.Context, remove bool) (drover.Diagnosis, error) {
	before, err := s.needs(ctx)
	if err != nil {
		return drover.Diagnosis{}, err
	}
	answers := askAll(s.fleet.sorted(), func(a *agent) owned { return a.owned(ctx) })
	// A move that begins or ends meanwhile has what it made needed.
	after, err := s.needs(ctx)
	if err != nil {
		return drover.Diagnosis{}, err
	}
	complete := s.fleet.allUp() && !slices.ContainsFunc(answers, func(o owned) bool { return o.err != nil })
	found := drover.Diagnosis{OK: true, Findings: []drover.Finding{}}
	for _, o := range answers {
		for _, f := range o.findings(before, after, complete) {
			if remove && f.Fix == fixByDoctor {
				f = o.agent.remove(ctx, f, s.removal(ctx, f))
			}
			found.OK = found.OK && f.Removed
			found.Findings = append(found.Findings, f)
		}
	}
	own, err := s.orphanedNeeds(ctx, before, after, complete, remove)
	for _, f := range own {
		found.OK = found.OK && f.Removed
		found.Findings = append(found.Findings, f)
	}
	return found, err
}

// needs is who may own something: the VMs, with the site where each is, and the
// unfinished moves, by name and by VM. Moves that are stuck wait for a person:
// what is theirs is told, and left.
type needs struct {
	vms    map[string]string
	moves  map[string]bool
	moving map[string]bool
	stuck  map[string]bool
}

func (s *Server) needs(ctx context.Context) (needs, error) {
	moves, err := s.moving(ctx)
	if err != nil {
		return needs{}, err
	}
	n := needs{vms: map[string]string{}, moves: map[string]bool{}, moving: map[string]bool{}, stuck: map[string]bool{}}
	for uuid, m := range moves {
		n.moves[m.Name], n.moving[uuid] = true, true
	}
	// To agents a replica is like a move that goes on.
	replicas, err := replicaNames(ctx, s.deps.Inventory.Protections())
	if err != nil {
		return needs{}, err
	}
	for _, name := range replicas {
		n.moves[name] = true
	}
	all, err := s.exec.List(ctx, store.Filter{})
	if err != nil {
		return needs{}, err
	}
	for _, m := range all {
		if m.State == drover.MoveStuck {
			n.stuck[m.Name], n.moving[m.VMUUID] = true, true
		}
	}
	for _, v := range s.fleet.viewVMs(moves) {
		n.vms[v.UUID] = v.Site
	}
	return n, nil
}

// owned is what one agent says stands at it.
type owned struct {
	agent  *agent
	things []*droverv1.OwnedThing
	faults []string
	err    error
}

func (a *agent) owned(ctx context.Context) owned {
	ctx, cancel := context.WithTimeout(ctx, edgeLimit)
	defer cancel()
	r, err := a.client.Owned(ctx, &droverv1.OwnedRequest{})
	return owned{agent: a, things: r.GetThings(), faults: r.GetFaults(), err: err}
}

// findings judges what stands at one agent.
func (o owned) findings(before, after needs, complete bool) []drover.Finding {
	if o.err != nil {
		return []drover.Finding{{
			Where: o.agent.Name, Kind: findUnreachable, What: o.err.Error(), Fix: "bring its agent up and run this again",
		}}
	}
	var list []drover.Finding
	for _, fault := range o.faults {
		list = append(list, drover.Finding{Where: o.agent.Name, Kind: findFault, What: fault, Fix: "mend it and run this again"})
	}
	for _, t := range o.things {
		why := leftover(t, before, after)
		if why == "" {
			continue
		}
		f := drover.Finding{Where: o.agent.Name, Kind: t.GetKind(), Owner: t.GetOwner(), What: t.GetWhat() + ": " + why}
		switch {
		case f.Owner == "":
			f.Fix = "remove it by hand"
		case after.stuck[strings.TrimPrefix(f.Owner, "move/")]:
			f.Fix = "see what the move says; what it left is for a person to judge"
		case complete:
			f.Fix = fixByDoctor
		default:
			f.Fix = fixLater
		}
		list = append(list, f)
	}
	slices.SortStableFunc(list, func(a, b drover.Finding) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Owner, b.Owner), cmp.Compare(a.What, b.What))
	})
	return list
}

// leftover says why something is not needed; empty when it is.
func leftover(t *droverv1.OwnedThing, before, after needs) string {
	kind, name, _ := strings.Cut(t.GetOwner(), "/")
	switch kind {
	case "":
		return "it has no owner"
	case "move":
		if after.stuck[name] {
			return fmt.Sprintf("move %s is stuck", name)
		}
		if before.moves[name] || after.moves[name] {
			return ""
		}
		if strings.HasPrefix(name, replicaNamePrefix) {
			return "it belongs to no protection"
		}
		return fmt.Sprintf("move %s is over or unknown", name)
	case "vm":
	default:
		return fmt.Sprintf("its owner %q is neither a VM nor a move", t.GetOwner())
	}
	if before.moving[name] || after.moving[name] {
		return ""
	}
	at, known := after.vms[name]
	if earlier, was := before.vms[name]; was && (!known || at != earlier) {
		return "" // it was being moved or removed while this was found
	}
	switch {
	case !known:
		return "its VM is nowhere"
	case t.GetAt() != "" && at != t.GetAt(), t.GetOff() != "" && at == t.GetOff():
		return "its VM is at site " + at
	}
	return ""
}

// Kinds of names in agents' words: one that is put back, and one that stays as
// it is, because the move that changed it was done.
const (
	nameChange = "name"
	nameKept   = "kept-name"
)

// removal is the kind under which an agent removes a finding.
func (s *Server) removal(ctx context.Context, f drover.Finding) string {
	name, ofMove := strings.CutPrefix(f.Owner, "move/")
	if f.Kind != nameChange || !ofMove {
		return f.Kind
	}
	if m, err := s.exec.Get(ctx, name); err == nil && m.State == drover.MoveDone {
		return nameKept
	}
	return f.Kind
}

// remove has the agent remove what was found.
func (a *agent) remove(ctx context.Context, f drover.Finding, kind string) drover.Finding {
	ctx, cancel := context.WithTimeout(ctx, edgeLimit)
	defer cancel()
	if _, err := a.client.RemoveOwned(ctx, &droverv1.RemoveOwnedRequest{Owner: f.Owner, Kind: kind}); err != nil {
		f.Fix = "it could not be removed: " + err.Error()
		return f
	}
	f.Removed, f.Fix = true, ""
	return f
}

// allUp reports whether every host has been observed and answers.
func (f *fleet) allUp() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, a := range f.agents {
		if !a.host.Up {
			return false
		}
	}
	return true
}

// edges returns the agents that are sites' edges: those that have segments or a
// mesh.
func (f *fleet) edges() []*agent {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.DeleteFunc(f.sorted(), func(a *agent) bool { return !a.edge() })
}

// edge reports whether the agent has said that it is a site's edge; fleet.mu is
// held.
func (a *agent) edge() bool { return len(a.segments) > 0 || a.mesh != nil }
