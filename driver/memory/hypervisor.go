package memory

import (
	"context"
	"encoding/json"
	"maps"
	"slices"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// Hypervisor is one host of a Fleet. A Definition is the VM as JSON; make one
// with NewDefinition.
type Hypervisor struct {
	fleet *Fleet
	host  drover.Host
	// What follows is guarded by the fleet's lock.
	guests  map[string]*guest
	files   map[string]bool
	watches []*watch
	down    bool
	volumes *Volumes // nil: its disks have no content
}

// guest is a VM on a host: defined, running, or being received.
type guest struct {
	vm         drover.VM
	state      drover.VMState
	persistent bool
	// next is what the guest's next start is by, where it is not what it runs by.
	next      *drover.VM
	sending   *outgoing
	receiving *incoming
	// backup is under way; checkpoints are known of.
	backup      *backup
	checkpoints []driver.Checkpoint
	// copies under way, by the disks' targets.
	copies map[string]driver.DiskCopy
}

var _ driver.Hypervisor = (*Hypervisor)(nil)

// NewDefinition makes the definition of a VM. What is observed and not
// configured (host, site, state) is left out of it.
func NewDefinition(vm drover.VM) driver.Definition {
	vm.Host, vm.Site, vm.State, vm.Persistent = "", "", "", false
	data, err := json.Marshal(vm)
	if err != nil {
		panic("memory: a VM is always JSON: " + err.Error())
	}
	return data
}

func parseDefinition(def driver.Definition) (drover.VM, error) {
	var vm drover.VM
	if err := json.Unmarshal(def, &vm); err != nil {
		return vm, drover.Errorf(drover.Invalid, "definition", "%w", err)
	}
	if vm.UUID == "" {
		return vm, drover.Errorf(drover.Invalid, "definition", "vm %q has no UUID", vm.Name)
	}
	return vm, drover.CheckName("vm", vm.Name)
}

// call frames one call with its faults: f runs with the fleet's lock held.
func (h *Hypervisor) call(ctx context.Context, op, name string, f func() error) error {
	if err := ctx.Err(); err != nil {
		return drover.E(drover.Canceled, op+" "+name, err)
	}
	if err := h.fleet.strike(h.host.Name, op, name, Before); err != nil {
		return err
	}
	err := func() error {
		h.fleet.mu.Lock()
		defer h.fleet.mu.Unlock()
		if h.down {
			return drover.Errorf(drover.Unavailable, op+" "+name, "the manager of %s does not answer", h.host.Name)
		}
		return f()
	}()
	if err != nil {
		return err
	}
	return h.fleet.strike(h.host.Name, op, name, After)
}

// find returns the guest of that name. The lock is held.
func (h *Hypervisor) find(op, name string) (*guest, error) {
	g := h.guests[name]
	if g == nil {
		return nil, drover.Errorf(drover.NotFound, op, "there is no vm %s on %s", name, h.host.Name)
	}
	return g, nil
}

// Host returns the host as it was added; MemoryFreeBytes is what the active
// guests leave.
func (h *Hypervisor) Host(ctx context.Context) (drover.Host, error) {
	var host drover.Host
	err := h.call(ctx, "host", "", func() error {
		host = h.host
		host.Accelerators, host.Machines = slices.Clone(host.Accelerators), slices.Clone(host.Machines)
		host.Networks = slices.Clone(host.Networks)
		host.MemoryFreeBytes = h.memoryFree()
		return nil
	})
	return host, err
}

func (h *Hypervisor) memoryFree() drover.Bytes {
	free := h.host.MemoryBytes
	for _, g := range h.guests {
		if active(g.state) {
			free -= g.vm.MemoryBytes
		}
	}
	return max(0, free)
}

func active(s drover.VMState) bool { return s == drover.VMRunning || s == drover.VMPaused }

// List observes every VM in the order of their names.
func (h *Hypervisor) List(ctx context.Context) ([]drover.VM, error) {
	var vms []drover.VM
	err := h.call(ctx, "list", "", func() error {
		vms = make([]drover.VM, 0, len(h.guests))
		for _, name := range slices.Sorted(maps.Keys(h.guests)) {
			vms = append(vms, h.guests[name].observe())
		}
		return nil
	})
	return vms, err
}

// VM observes one.
func (h *Hypervisor) VM(ctx context.Context, name string) (drover.VM, error) {
	var vm drover.VM
	err := h.call(ctx, "vm", name, func() error {
		g, err := h.find("observe "+name, name)
		if err == nil {
			vm = g.observe()
		}
		return err
	})
	return vm, err
}

func (g *guest) observe() drover.VM {
	vm := clone(g.vm)
	vm.State, vm.Persistent = g.state, g.persistent
	return vm
}

// stored is the VM as the next start will have it.
func (g *guest) stored() drover.VM {
	if g.next != nil {
		return *g.next
	}
	return g.vm
}

// clone copies a VM deeply, so that no two places share a slice or map.
func clone(vm drover.VM) drover.VM {
	vm.Disks = slices.Clone(vm.Disks)
	for i := range vm.Disks {
		vm.Disks[i].Backing = slices.Clone(vm.Disks[i].Backing)
	}
	vm.NICs = slices.Clone(vm.NICs)
	vm.Files = slices.Clone(vm.Files)
	vm.Labels, vm.Requirements = maps.Clone(vm.Labels), maps.Clone(vm.Requirements)
	if vm.Probe != nil {
		probe := *vm.Probe
		vm.Probe = &probe
	}
	return vm
}

// Definition returns the configuration.
func (h *Hypervisor) Definition(ctx context.Context, name string) (driver.Definition, error) {
	var def driver.Definition
	err := h.call(ctx, "definition", name, func() error {
		g, err := h.find("read definition of "+name, name)
		if err == nil {
			def = NewDefinition(g.stored())
		}
		return err
	})
	return def, err
}

// Define makes def known.
func (h *Hypervisor) Define(ctx context.Context, def driver.Definition) (string, error) {
	vm, err := parseDefinition(def)
	if err != nil {
		return "", err
	}
	err = h.call(ctx, "define", vm.Name, func() error {
		if err := h.taken("define "+vm.Name, vm); err != nil {
			return err
		}
		g := h.guests[vm.Name]
		if g == nil {
			g = &guest{state: drover.VMOff}
			h.guests[vm.Name] = g
		}
		if active(g.state) {
			next := clone(vm)
			g.next = &next
		} else {
			g.vm = clone(vm)
		}
		g.persistent = true
		h.notify(vm.Name, "defined")
		return nil
	})
	if err != nil {
		return "", err
	}
	return vm.Name, nil
}

// taken says whether the name or the UUID belongs to another VM.
func (h *Hypervisor) taken(op string, vm drover.VM) error {
	for _, g := range h.guests {
		if (g.vm.Name == vm.Name) != (g.vm.UUID == vm.UUID) {
			return drover.Errorf(drover.Exists, op, "vm %s has UUID %s", g.vm.Name, g.vm.UUID)
		}
	}
	return nil
}

// Undefine forgets the configuration.
func (h *Hypervisor) Undefine(ctx context.Context, name string) error {
	return h.call(ctx, "undefine", name, func() error {
		g := h.guests[name]
		if g == nil {
			return nil
		}
		if active(g.state) {
			return drover.Errorf(drover.Refused, "undefine "+name, "it is running; shut it down first")
		}
		delete(h.guests, name)
		h.notify(name, "undefined")
		return nil
	})
}

// Start boots the VM.
func (h *Hypervisor) Start(ctx context.Context, name string) error {
	return h.call(ctx, "start", name, func() error {
		g, err := h.find("start "+name, name)
		if err != nil || active(g.state) {
			return err
		}
		h.fleet.set(h, g, drover.VMRunning, "started")
		return nil
	})
}

// Shutdown powers the guest off at once: guests in memory always obey.
func (h *Hypervisor) Shutdown(ctx context.Context, name string) error {
	return h.call(ctx, "shutdown", name, func() error {
		g, err := h.find("shut down "+name, name)
		if err != nil {
			return err
		}
		h.stop(g)
		return nil
	})
}

// Destroy ends the VM's execution.
func (h *Hypervisor) Destroy(ctx context.Context, name string) error {
	return h.call(ctx, "destroy", name, func() error {
		if g := h.guests[name]; g != nil {
			h.stop(g)
		}
		return nil
	})
}

// stop ends a guest; a transient one is gone then.
func (h *Hypervisor) stop(g *guest) {
	if g.sending != nil {
		g.sending.broken = true
		g.sending.abort()
		g.sending = nil
	}
	if g.receiving != nil {
		g.receiving.dead = true
		g.receiving = nil
	}
	g.backup, g.copies = nil, nil
	h.fleet.set(h, g, drover.VMOff, "stopped")
	g.vm, g.next = g.stored(), nil
	if !g.persistent {
		delete(h.guests, g.vm.Name)
	}
}

// Close ends nothing: the fleet is the owner.
func (h *Hypervisor) Close() error { return nil }
