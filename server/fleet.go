package server

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/store"
)

const (
	// defaultDoubleGrace is how long two hosts may say that they have the same
	// VM before it is taken as a fault: their observations arrive apart, and
	// at a switchover one of them is always a little late.
	defaultDoubleGrace = 3 * time.Second
	// storeLimit bounds keeping one observation; the next one is written anew.
	storeLimit = 5 * time.Second
	// forgetAfter is how long a VM that vanished is remembered, in case that a
	// move explains it.
	forgetAfter = time.Minute
	// storeEvery is how often what changes all the time (free memory, bytes
	// carried) is kept: after a restart it is observed again at once anyway.
	storeEvery = time.Minute
)

// fleet is everything observed, by host.
type fleet struct {
	log         *slog.Logger
	inventory   store.Inventory
	now         func() time.Time
	doubleGrace time.Duration
	sites       []SiteConfig
	links       []LinkConfig
	agents      map[string]*agent // never changes
	meshChanged chan struct{}     // has one when the mesh is to be looked at

	mu sync.Mutex
	// vanished are VMs that no host has any more, by UUID. During a cold move
	// there is a time when neither end has the VM.
	vanished map[string]gone
	// doubled says since when more than one host has a VM, by UUID.
	doubled map[string]time.Time
}

// gone is a VM as it was before it vanished.
type gone struct {
	vm    drover.VM
	since time.Time
}

// agent is one agent: how it is reached and what its host was seen to be.
type agent struct {
	AgentConfig
	client *api.AgentClient

	// Guarded by fleet.mu.
	host  drover.Host
	vms   []drover.VM
	links []*droverv1.LinkCounters
	// segments are those that an edge knows, mesh is its end of the mesh, nil
	// for none.
	segments []drover.Segment
	mesh     *drover.MeshState
	// meshTold is what the edge was told of the mesh, heard that its agent has
	// answered since the server's start.
	meshTold string
	heard    bool
	gauges   gauges

	// Of the goroutine that keeps what was observed.
	keeping  sync.Mutex
	kept     map[string]drover.VM
	keptHost time.Time
}

func newFleet(c Config, d Deps, cfg *tls.Config) *fleet {
	f := &fleet{
		log: d.Log, inventory: d.Inventory, now: d.Now, doubleGrace: defaultDoubleGrace,
		sites: c.Sites, links: c.Links, agents: map[string]*agent{},
		vanished: map[string]gone{}, doubled: map[string]time.Time{}, meshChanged: make(chan struct{}, 1),
	}
	for _, a := range c.Agents {
		f.agents[a.Name] = &agent{
			AgentConfig: a,
			client:      api.NewAgentClient(a.Address, cfg, a.Name),
			host: drover.Host{
				Name: a.Name, Site: a.Site, Address: a.Address,
				Fault: "its agent has not answered since the server started",
			},
			kept: map[string]drover.VM{},
		}
	}
	return f
}

func (f *fleet) close() {
	for _, a := range f.agents {
		a.client.Close()
	}
}

// agent finds an agent by its host's name.
func (f *fleet) agent(name string) (*agent, error) {
	a := f.agents[name]
	if a == nil {
		// Not NotFound: to a move under way that would say that its VM is lost.
		return nil, drover.Errorf(drover.Unavailable, "agent "+name, "there is no such agent in the server's file")
	}
	return a, nil
}

// load takes over what an earlier server observed. Hosts are down until their
// agents answer; those that are not in the server's file any more are
// forgotten.
func (f *fleet) load(ctx context.Context) error {
	hosts, _, err := f.inventory.Hosts().List(ctx)
	if err != nil {
		return fmt.Errorf("load hosts: %w", err)
	}
	for _, h := range hosts {
		a := f.agents[h.Name]
		if a == nil {
			if err := f.inventory.Hosts().Delete(ctx, store.HostKey(h)); err != nil {
				return fmt.Errorf("forget host %s: %w", h.Name, err)
			}
			continue
		}
		fault := a.host.Fault
		a.host = h
		a.host.Site, a.host.Address, a.host.Up, a.host.Fault = a.Site, a.Address, false, fault
	}
	vms, _, err := f.inventory.VMs().List(ctx)
	if err != nil {
		return fmt.Errorf("load vms: %w", err)
	}
	for _, v := range vms {
		a := f.agents[v.Host]
		if a == nil {
			if err := f.inventory.VMs().Delete(ctx, store.VMKey(v)); err != nil {
				return fmt.Errorf("forget vm %s: %w", v.Name, err)
			}
			continue
		}
		a.vms = append(a.vms, v)
		a.kept[store.VMKey(v)] = v
	}
	return f.loadLayout(ctx)
}

// loadLayout keeps sites and links as the server's file has them, and forgets
// others.
func (f *fleet) loadLayout(ctx context.Context) error {
	sites, _, err := f.inventory.Sites().List(ctx)
	if err != nil {
		return fmt.Errorf("load sites: %w", err)
	}
	now := map[string]bool{}
	for _, s := range f.viewSites() {
		now[s.Name] = true
		if err := f.inventory.Sites().Put(ctx, s); err != nil {
			return fmt.Errorf("keep site %s: %w", s.Name, err)
		}
	}
	for _, s := range sites {
		if !now[s.Name] {
			if err := f.inventory.Sites().Delete(ctx, store.SiteKey(s)); err != nil {
				return fmt.Errorf("forget site %s: %w", s.Name, err)
			}
		}
	}
	links, _, err := f.inventory.Links().List(ctx)
	if err != nil {
		return fmt.Errorf("load links: %w", err)
	}
	now = map[string]bool{}
	for _, l := range f.viewLinks() {
		now[l.Name] = true
	}
	for _, l := range links {
		if !now[l.Name] {
			if err := f.inventory.Links().Delete(ctx, store.LinkKey(l)); err != nil {
				return fmt.Errorf("forget link %s: %w", l.Name, err)
			}
		}
	}
	return nil
}

// observed takes over what an agent says of its host.
func (f *fleet) observed(a *agent, r *droverv1.DescribeResponse) {
	h := api.HostFromProto(r.GetHost())
	if h.Name != a.Name || h.Site != a.Site {
		h.Fault = fmt.Sprintf("its agent calls it %s at site %s, the server's file says %s at %s", h.Name, h.Site, a.Name, a.Site)
	}
	h.Name, h.Site, h.Address = a.Name, a.Site, a.Address
	h.Up, h.LastSeen = true, f.now().UTC()
	vms := api.ListFromProto(r.GetVms(), api.VMFromProto)
	for i := range vms {
		vms[i].Host, vms[i].Site = a.Name, a.Site
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !a.host.Up {
		f.log.Info("host is up", "host", a.Name)
	}
	for _, v := range a.vms {
		f.vanished[v.UUID] = gone{v, f.now()}
	}
	a.host, a.vms, a.links = h, vms, r.GetLinks()
	a.segments = api.ListFromProto(r.GetSegments(), api.SegmentFromProto)
	// An edge that cannot say it for once stays in the mesh as it was.
	mesh := cmp.Or(api.MeshFromProto(r.GetMesh()), a.mesh)
	if !a.heard || !sameMesh(a.mesh, mesh) || mesh != nil && a.meshTold == "" {
		a.mesh, a.heard = mesh, true
		f.wakeMesh()
	}
	a.gauges.take(r, f.now())
	f.compare()
}

// lost notes that an agent does not answer any more.
func (f *fleet) lost(a *agent, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if a.host.Up {
		f.log.Warn("host is down", "host", a.Name, "error", err)
	}
	a.host.Up, a.host.Fault, a.meshTold = false, err.Error(), ""
	f.compare()
}

// compare brings vanished and doubled in line with the hosts; f.mu is held.
func (f *fleet) compare() {
	at := map[string]int{}
	for _, a := range f.agents {
		for _, v := range a.vms {
			delete(f.vanished, v.UUID)
			if a.host.Up {
				at[v.UUID]++
			}
		}
	}
	for uuid, n := range at {
		if _, known := f.doubled[uuid]; n > 1 && !known {
			f.doubled[uuid] = f.now()
		}
	}
	maps.DeleteFunc(f.doubled, func(uuid string, _ time.Time) bool { return at[uuid] < 2 })
}

// keep stores what was observed last of a host, for the next server. moving
// says whether a VM is being moved: one that vanished then is not forgotten.
func (f *fleet) keep(ctx context.Context, a *agent, moving func(context.Context, string) bool) error {
	a.keeping.Lock()
	defer a.keeping.Unlock()
	ctx, cancel := context.WithTimeout(ctx, storeLimit)
	defer cancel()
	f.mu.Lock()
	h, vms := a.host, a.vms
	f.mu.Unlock()
	present := map[string]bool{}
	for _, v := range vms {
		key := store.VMKey(v)
		present[key] = true
		if old, ok := a.kept[key]; ok && sameVM(old, v) {
			continue
		}
		v.RemoteIO = nil // of now alone
		if err := f.inventory.VMs().Put(ctx, v); err != nil {
			return fmt.Errorf("keep vm %s: %w", v.Name, err)
		}
		a.kept[key] = v
	}
	for key, v := range a.kept {
		if present[key] || moving(ctx, v.UUID) {
			continue
		}
		if err := f.inventory.VMs().Delete(ctx, key); err != nil {
			return fmt.Errorf("forget vm %s: %w", v.Name, err)
		}
		delete(a.kept, key)
	}
	if f.now().Sub(a.keptHost) < storeEvery {
		return nil
	}
	if err := f.inventory.Hosts().Put(ctx, h); err != nil {
		return fmt.Errorf("keep host %s: %w", h.Name, err)
	}
	for _, l := range f.viewLinks() {
		if err := f.inventory.Links().Put(ctx, l); err != nil {
			return fmt.Errorf("keep link %s: %w", l.Name, err)
		}
	}
	a.keptHost = f.now()
	return nil
}

// sameVM compares as far as an operator would see a difference: the space
// that disks take grows all the time.
func sameVM(a, b drover.VM) bool {
	if a.Name != b.Name || a.UUID != b.UUID || a.State != b.State || a.MemoryBytes != b.MemoryBytes || a.VCPUs != b.VCPUs {
		return false
	}
	return slices.EqualFunc(a.Disks, b.Disks, func(x, y drover.Disk) bool {
		return x.Path == y.Path && x.VirtualBytes == y.VirtualBytes
	}) && slices.EqualFunc(a.NICs, b.NICs, sameNIC) && maps.Equal(a.Labels, b.Labels) && maps.Equal(a.Requirements, b.Requirements)
}

func sameNIC(a, b drover.NIC) bool {
	return a.MAC == b.MAC && a.Network == b.Network && a.Model == b.Model && slices.Equal(a.Addresses, b.Addresses)
}

// host returns one host as it was last observed.
func (f *fleet) host(name string) (drover.Host, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a := f.agents[name]
	if a == nil {
		return drover.Host{}, false
	}
	return a.host, true
}

// sorted returns the agents by name.
func (f *fleet) sorted() []*agent {
	return slices.SortedFunc(maps.Values(f.agents), func(a, b *agent) int { return cmp.Compare(a.Name, b.Name) })
}
