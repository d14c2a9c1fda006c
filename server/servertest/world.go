// Package servertest is a small installation for tests: agents that speak the
// real API over mutual TLS on loopback, with hosts and VMs that exist in
// memory only. It is for package server and for the command line; what an
// agent does with a hypervisor is tested in package agent.
package servertest

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/pki"
	"github.com/drover-vm/drover/server"
)

// World is an installation: one authority and its agents.
type World struct {
	t      testing.TB
	ca     *pki.CA
	dir    string
	Agents map[string]*Agent
}

// Place says where an agent of the world stands.
type Place struct{ Name, Site string }

// New makes a world with an agent for each place. They are stopped when the
// test ends.
func New(t testing.TB, places ...Place) *World {
	t.Helper()
	// Short, because of the length that a unix socket's path may have.
	dir := t.TempDir()
	ca, err := pki.NewCA(filepath.Join(dir, "ca"), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	w := &World{t: t, ca: ca, dir: dir, Agents: map[string]*Agent{}}
	for _, p := range places {
		w.Agents[p.Name] = newAgent(w, p)
	}
	for _, a := range w.Agents {
		a.Start()
		t.Cleanup(a.Stop)
	}
	return w
}

// Files issues a certificate.
func (w *World) Files(role pki.Role, name string) pki.Files {
	w.t.Helper()
	f, err := w.ca.Issue(pki.Identity{Role: role, Name: name}, nil, filepath.Join(w.dir, string(role)+"-"+name), time.Now())
	if err != nil {
		w.t.Fatal(err)
	}
	return f
}

// Config is a server's, with every agent of the world, on a unix socket only.
// Links join the sites in the order given.
func (w *World) Config(sites ...string) server.Config {
	c := server.Config{
		Name: "s", Socket: filepath.Join(w.dir, "s.sock"), State: filepath.Join(w.dir, "state"),
		TLS: w.Files(pki.Server, "s"),
	}
	for i, s := range sites {
		c.Sites = append(c.Sites, server.SiteConfig{Name: s, Latitude: float64(10 * i), Longitude: float64(i)})
		if i > 0 {
			c.Links = append(c.Links, server.LinkConfig{
				Name: sites[i-1] + "-" + s, A: sites[i-1], B: s,
				Rate: server.Rate(200 * drover.Mbps), RTT: server.Duration(50 * time.Millisecond),
			})
		}
	}
	for _, a := range w.Agents {
		c.Agents = append(c.Agents, server.AgentConfig{Name: a.Name, Site: a.Site, Address: a.Addr})
	}
	return c
}

// Host is a hypervisor's host as its agent would observe it.
func Host(name, site string) drover.Host {
	return drover.Host{
		Name: name, Site: site, UUID: "host-" + name, Arch: "x86_64", CPUModel: "Test CPU", CPUs: 4,
		MemoryBytes: 8 * drover.GiB, MemoryFreeBytes: 6 * drover.GiB, VolumesFreeBytes: 100 * drover.GiB,
		HypervisorVersion: "10.0.2", ManagerVersion: "11.3.0", Accelerators: []string{"tcg"},
		Machines: []string{"pc-q35-10.0"}, Networks: []string{"lan"},
	}
}

// Edge is a site's edge, which runs no VMs.
func Edge(name, site string) drover.Host {
	return drover.Host{Name: name, Site: site, Edge: true}
}

// VM is a running VM with one disk of its own, a golden image below it, and a
// shared disk.
func VM(name string) drover.VM {
	return drover.VM{
		Name: name, UUID: "uuid-" + name, State: drover.VMRunning, VCPUs: 1, MemoryBytes: 256 * drover.MiB,
		Machine: "pc-q35-10.0", Accelerator: "tcg", CPU: "max", Persistent: true,
		Disks: []drover.Disk{
			{
				Target: "vda", Path: "/images/" + name + ".qcow2", Format: "qcow2",
				VirtualBytes: 512 * drover.MiB, AllocatedBytes: 40 * drover.MiB,
				Backing: []drover.Backing{{Path: "/images/golden.raw", Format: "raw", VirtualBytes: 512 * drover.MiB}},
			},
			{Target: "vdb", Path: "/nfs/data.raw", Format: "raw", VirtualBytes: drover.GiB, Shared: true},
		},
		NICs:  []drover.NIC{{MAC: "52:54:00:00:00:01", Network: "lan", Model: "virtio"}},
		Probe: &drover.ProbeTarget{TCP: "10.20.0.10:7000", Kind: "sheep"},
	}
}

func (w *World) peer(name string) (*Agent, error) {
	a := w.Agents[name]
	if a == nil {
		return nil, drover.Errorf(drover.Invalid, "peer", "there is no agent %s", name)
	}
	return a, nil
}

// vm takes a VM from wherever it was last known, for definitions that are
// only a name here.
func (w *World) vm(name string) (drover.VM, error) {
	for _, a := range w.Agents {
		if v, ok := a.remembered(name); ok {
			return v, nil
		}
	}
	return drover.VM{}, fmt.Errorf("no agent has ever had vm %s", name)
}
