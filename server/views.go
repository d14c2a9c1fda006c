package server

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api/droverv1"
)

// viewSites returns the sites with the hosts that stand there.
func (f *fleet) viewSites() []drover.Site {
	f.mu.Lock()
	defer f.mu.Unlock()
	sites := make([]drover.Site, len(f.sites))
	for i, s := range f.sites {
		sites[i] = drover.Site{Name: s.Name, Latitude: s.Latitude, Longitude: s.Longitude, Country: s.Country, Hosts: []string{}}
		for _, a := range f.sorted() {
			if a.Site == s.Name && !a.host.Edge {
				sites[i].Hosts = append(sites[i].Hosts, a.Name)
			}
		}
	}
	slices.SortFunc(sites, func(a, b drover.Site) int { return cmp.Compare(a.Name, b.Name) })
	return sites
}

// viewHosts returns the hosts. A VM that more than one of them has, although
// no move explains it, is their fault.
func (f *fleet) viewHosts(moves movesByVM) []drover.Host {
	f.mu.Lock()
	defer f.mu.Unlock()
	faults := map[string][]string{}
	for _, g := range f.groups() {
		since, doubled := f.doubled[g[0].UUID]
		if _, moving := moves[g[0].UUID]; !doubled || moving || f.now().Sub(since) < f.doubleGrace {
			continue
		}
		best := g[0]
		for _, v := range g[1:] {
			if !f.agents[v.Host].host.Up || !f.agents[best.Host].host.Up {
				continue
			}
			if v.State == drover.VMRunning && best.State == drover.VMRunning {
				faults[best.Host] = append(faults[best.Host], fmt.Sprintf("vm %s runs here and on %s", v.Name, v.Host))
				faults[v.Host] = append(faults[v.Host], fmt.Sprintf("vm %s runs here and on %s", v.Name, best.Host))
				continue
			}
			faults[v.Host] = append(faults[v.Host], fmt.Sprintf("vm %s is %s here and %s on %s", v.Name, v.State, best.State, best.Host))
		}
	}
	var hosts []drover.Host
	for _, a := range f.sorted() {
		h := a.host
		if more := faults[h.Name]; len(more) > 0 {
			if h.Fault != "" {
				more = append([]string{h.Fault}, more...)
			}
			h.Fault = strings.Join(more, "; ")
		}
		hosts = append(hosts, h)
	}
	return hosts
}

// viewVMs returns each VM once, as the host sees it that has the most of it.
// Two running copies that no move explains are both shown.
func (f *fleet) viewVMs(moves movesByVM) []drover.VM {
	f.mu.Lock()
	defer f.mu.Unlock()
	var vms []drover.VM
	seen := map[string]bool{}
	for _, g := range f.groups() {
		seen[g[0].UUID] = true
		m, moving := moves[g[0].UUID]
		best := g[0]
		if moving && len(g) > 1 && g[1].State == best.State && g[1].Host == m.To.Host && best.State == drover.VMRunning {
			best = g[1] // the source's observation is the older one
		}
		vms = append(vms, best)
		for _, v := range g[1:] {
			twice := v.State == drover.VMRunning && best.State == drover.VMRunning
			if !moving && twice && f.agents[v.Host].host.Up && f.agents[best.Host].host.Up {
				vms = append(vms, v)
			}
		}
	}
	for uuid, g := range f.vanished {
		if m, moving := moves[uuid]; moving && !seen[uuid] {
			// Neither end has it: its definition is on its way.
			v := g.vm
			v.State, v.Host, v.Site = drover.VMOff, m.From.Host, m.From.Site
			vms = append(vms, v)
		} else if !moving && f.now().Sub(g.since) > forgetAfter {
			delete(f.vanished, uuid)
		}
	}
	slices.SortFunc(vms, func(a, b drover.VM) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Host, b.Host))
	})
	return vms
}

// groups returns the VMs observed, those with the same identity together, the
// one that is furthest alive first. f.mu is held.
func (f *fleet) groups() [][]drover.VM {
	by := map[string][]drover.VM{}
	var order []string
	for _, a := range f.sorted() {
		for _, v := range a.vms {
			if by[v.UUID] == nil {
				order = append(order, v.UUID)
			}
			by[v.UUID] = append(by[v.UUID], v)
		}
	}
	groups := make([][]drover.VM, len(order))
	for i, uuid := range order {
		g := by[uuid]
		slices.SortStableFunc(g, func(a, b drover.VM) int { return cmp.Compare(f.rank(a), f.rank(b)) })
		groups[i] = g
	}
	return groups
}

// rank orders observations of one VM: what a host says that answers counts
// more than what one said that does not any more. f.mu is held.
func (f *fleet) rank(v drover.VM) int {
	r := slices.Index([]drover.VMState{drover.VMRunning, drover.VMPaused, drover.VMCrashed, drover.VMOff}, v.State)
	if r < 0 {
		r = 4
	}
	if !f.agents[v.Host].host.Up {
		r += 10
	}
	return r
}

// movesByVM are the unfinished moves, by their VM's UUID.
type movesByVM map[string]drover.Move

// find returns the VM of that name. One that more than one host runs cannot
// be told apart by name.
func (f *fleet) find(name string, moves movesByVM) (drover.VM, error) {
	var found []drover.VM
	for _, v := range f.viewVMs(moves) {
		if v.Name == name {
			found = append(found, v)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return drover.VM{}, drover.Errorf(drover.NotFound, "vm "+name, "no host has it")
	default:
		at := make([]string, len(found))
		for i, v := range found {
			at[i] = v.Site + "/" + v.Host
		}
		return drover.VM{}, drover.Errorf(drover.Refused, "vm "+name, "%s have one each: which is meant is for a person to find out", strings.Join(at, " and "))
	}
}

// viewLinks returns the links of the server's file, and those that only edges
// know of, with the bytes they carried.
func (f *fleet) viewLinks() []drover.Link {
	f.mu.Lock()
	defer f.mu.Unlock()
	links := make([]drover.Link, 0, len(f.links))
	for _, l := range f.links {
		links = append(links, drover.Link{
			Name: l.Name, A: l.A, B: l.B, Rate: drover.BitRate(l.Rate),
			RTTMillis: float64(time.Duration(l.RTT)) / float64(time.Millisecond), PricePerGB: (*float64)(l.Price),
		})
	}
	for _, a := range f.sorted() {
		for _, c := range a.links {
			i := slices.IndexFunc(links, func(l drover.Link) bool { return l.Name == c.GetName() })
			if i < 0 {
				links = append(links, drover.Link{Name: c.GetName(), A: c.GetA(), B: c.GetB()})
				i = len(links) - 1
			}
			count(&links[i], c)
		}
	}
	slices.SortFunc(links, func(a, b drover.Link) int { return cmp.Compare(a.Name, b.Name) })
	return links
}

// count takes a counter over. Both edges of a link may report it; counters
// only grow, so the larger one is the later.
func count(l *drover.Link, c *droverv1.LinkCounters) {
	ab, ba := drover.Bytes(c.GetAbBytes()), drover.Bytes(c.GetBaBytes())
	if c.GetA() == l.B && c.GetB() == l.A && l.A != l.B {
		ab, ba = ba, ab
	}
	l.ABBytes, l.BABytes = max(l.ABBytes, ab), max(l.BABytes, ba)
}

// viewServices returns the addresses that clients use.
func (f *fleet) viewServices(moves movesByVM) []drover.Service {
	services := []drover.Service{}
	for _, v := range f.viewVMs(moves) {
		if v.Probe != nil {
			services = append(services, drover.Service{Name: v.Name, VM: v.Name, Site: v.Site, Probe: *v.Probe})
		}
	}
	return services
}
