package memory

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/driver"
)

// Moment is when a Fault strikes: before a call has had any effect, or when it
// has had all of it and only the answer is missing.
type Moment int

// The moments.
const (
	Before Moment = iota
	After
)

// Fault decides whether a call on a hypervisor fails. Op is the method's name
// in lower case ("define", "start", "begin", "prepare", "perform", "finish",
// "confirm", "abandon", "settle", …), name the VM's. It runs without any lock
// held, so it may call back into the fleet, block, or crash a host. A nil
// error lets the call go on.
//
// The driver's promises hold under faults: a failed Perform leaves the guest
// running, a failed Finish destroys what was received, unless the error's
// kind is drover.Unknown, which leaves things as they are. An error After
// Finish always gets that kind, since the guest runs.
type Fault func(host, op, name string, moment Moment) error

// Transfer stands for the bytes of a Perform: it is called while the guest
// runs at its source and returns when all is across, or with an error when
// the transfer broke. It has to return when ctx ends.
type Transfer func(ctx context.Context, name, from, to string) error

// Fleet is any number of hypervisors in memory among which VMs migrate, with
// a monitor that knows what no single host can: whether a VM ever ran twice,
// and whether a guest ever ran without a write that it had been told was on
// its disk. It has no clock and no randomness of its own.
type Fleet struct {
	clock func() time.Time

	mu       sync.Mutex // guards what follows and everything in the hosts
	fault    Fault
	transfer Transfer
	hosts    map[string]*Hypervisor
	serial   int
	// sending are the open migrations by the cookie of Begin.
	sending map[string]*outgoing
	// receiving are the open migrations by the cookie of Prepare.
	receiving map[string]*incoming
	// acknowledged counts the writes each guest was told are on its disks.
	acknowledged map[string]uint64 // by UUID
	// disks says how many of them each image holds.
	disks      map[image]uint64
	violations []string
	throttle   int // percent
}

// image is a disk image on a host; the host of a shared one is empty.
type image struct{ host, path string }

// NewFleet returns a fleet without hosts. Clock gives events and statistics
// their times; nil stops it at the zero time.
func NewFleet(clock func() time.Time) *Fleet {
	if clock == nil {
		clock = func() time.Time { return time.Time{} }
	}
	return &Fleet{
		clock:        clock,
		hosts:        map[string]*Hypervisor{},
		sending:      map[string]*outgoing{},
		receiving:    map[string]*incoming{},
		acknowledged: map[string]uint64{},
		disks:        map[image]uint64{},
	}
}

// AddHost adds a host as it shall be observed and returns its hypervisor. The
// host's MemoryFreeBytes is computed.
func (f *Fleet) AddHost(host drover.Host) *Hypervisor {
	h := &Hypervisor{fleet: f, host: host, guests: map[string]*guest{}, files: map[string]bool{}}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hosts[host.Name] = h
	return h
}

// Hypervisor returns a host's hypervisor, nil if there is no such host.
func (f *Fleet) Hypervisor(host string) *Hypervisor {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.hosts[host]
}

// SetFault installs the fault function; nil takes it away.
func (f *Fleet) SetFault(fault Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fault = fault
}

// SetTransfer installs the transfer function; nil moves everything at once.
func (f *Fleet) SetTransfer(transfer Transfer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.transfer = transfer
}

// SetThrottle sets by how much guests whose migration allows it are held back.
func (f *Fleet) SetThrottle(percent int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.throttle = percent
}

// AddFile makes a kernel, firmware or other file exist on a host.
func (f *Fleet) AddFile(host, path string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hosts[host].files[path] = true
}

// Write lets the guest write to its disks and be told that the write is
// durable. A VM that does not run on the host cannot write: drover.Refused.
func (f *Fleet) Write(host, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	h := f.hosts[host]
	if h == nil || h.guests[name] == nil || h.guests[name].state != drover.VMRunning {
		return drover.Errorf(drover.Refused, "write", "%s does not run on %s", name, host)
	}
	vm := &h.guests[name].vm
	f.acknowledged[vm.UUID]++
	for _, disk := range vm.Disks {
		if !disk.ReadOnly {
			f.disks[imageOf(host, *vm, disk)] = f.acknowledged[vm.UUID]
			if c, ok := h.guests[name].copies[disk.Target]; ok {
				f.disks[image{host, c.Path}] = f.acknowledged[vm.UUID]
			}
		}
	}
	return nil
}

// CopyDisk makes the image at path on one host hold what it holds on the
// other, as a copy outside of a migration does.
func (f *Fleet) CopyDisk(path, from, to string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.disks[image{to, path}] = f.disks[image{from, path}]
}

// DeleteDisk forgets an image's content.
func (f *Fleet) DeleteDisk(host, path string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.disks, image{host, path})
}

// RunsAt returns the hosts where the VM of that name runs, in order.
func (f *Fleet) RunsAt(name string) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var hosts []string
	for host, h := range f.hosts {
		if g := h.guests[name]; g != nil && g.state == drover.VMRunning {
			hosts = append(hosts, host)
		}
	}
	slices.Sort(hosts)
	return hosts
}

// Violations returns what the monitor has seen: a VM running at two places,
// or running without writes that its guest was told are durable.
func (f *Fleet) Violations() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.violations)
}

// Crash ends the client on a host as kill -9 of the process that holds the
// driver: its open migrations are left as libvirt leaves them. The
// hypervisor itself can be used again at once, by the client's next life.
func (f *Fleet) Crash(host string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hosts[host].dropClients()
}

// StopManager kills the host's manager: calls give drover.Unavailable and
// watches end until StartManager. Guests run on.
func (f *Fleet) StopManager(host string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	h := f.hosts[host]
	h.down = true
	h.endWatches()
	for _, g := range h.guests {
		if g.sending != nil && g.sending.phase == performing {
			g.sending.broken = true
			g.sending.cancel()
		}
	}
}

// StartManager starts it again; like libvirtd it then ends what was being
// received and leaves paused what was given up.
func (f *Fleet) StartManager(host string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	h := f.hosts[host]
	h.down = false
	h.dropClients()
}

// PowerOff takes the host's power away: every guest ends, with its memory.
// The host is down until StartManager.
func (f *Fleet) PowerOff(host string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	h := f.hosts[host]
	h.dropClients()
	h.down = true
	h.endWatches()
	for name, g := range h.guests {
		g.backup = nil
		f.set(h, g, drover.VMOff, "stopped")
		h.spoil(g)
		if !g.persistent {
			delete(h.guests, name)
		}
	}
}

func imageOf(host string, vm drover.VM, disk drover.Disk) image {
	switch {
	case disk.Path == driver.RemoteDiskPath(disk.Target): // wherever that is
		return image{"nbd:" + vm.UUID, disk.Target}
	case disk.Shared:
		return image{"", disk.Path}
	}
	return image{host, disk.Path}
}

// strike asks the fault function. The fleet's lock is not held.
func (f *Fleet) strike(host, op, name string, moment Moment) error {
	f.mu.Lock()
	fault := f.fault
	f.mu.Unlock()
	if fault == nil {
		return nil
	}
	return fault(host, op, name, moment)
}

// set changes a guest's state, tells the watchers and lets the monitor look.
func (f *Fleet) set(h *Hypervisor, g *guest, state drover.VMState, what string) {
	if g.state == state {
		return
	}
	g.state = state
	h.occupy(g)
	h.notify(g.vm.Name, what)
	if state == drover.VMRunning {
		f.inspect(h, g)
	}
}

// inspect is the monitor, called whenever a guest begins to run.
func (f *Fleet) inspect(h *Hypervisor, g *guest) {
	for name, other := range f.hosts {
		for _, twin := range other.guests {
			if twin != g && twin.vm.UUID == g.vm.UUID && twin.state == drover.VMRunning {
				f.violations = append(f.violations, fmt.Sprintf(
					"%s began to run on %s while it runs on %s", g.vm.Name, h.host.Name, name))
			}
		}
	}
	for _, disk := range g.vm.Disks {
		have, want := f.disks[imageOf(h.host.Name, g.vm, disk)], f.acknowledged[g.vm.UUID]
		if !disk.ReadOnly && have != want {
			f.violations = append(f.violations, fmt.Sprintf(
				"%s began to run on %s with %d of %d acknowledged writes on %s", g.vm.Name, h.host.Name, have, want, disk.Target))
		}
	}
}
