// Package executortest is a fleet in memory whose agents do what package
// executor asks for: hosts with VMs, volumes and an agent's journal each. It
// keeps watch over what must never happen (a VM running twice, or from an old
// disk) and can lose calls, fail them, and crash agents.
//
// It stands in for agents in the tests of whoever uses an executor. It models
// what of a host a move can tell apart, and no hypervisor: libvirt's
// in-memory twin is driver/memory's.
package executortest

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/executor"
)

// World is the fleet. The zero value is not usable; see NewWorld.
type World struct {
	// Pace is how long each part of an action takes; a transfer has several.
	// Set it before the first call.
	Pace time.Duration

	jobs sync.WaitGroup

	mu    sync.Mutex
	hosts map[string]*host
	// written counts the writes that each VM's guest has had acknowledged, by
	// UUID.
	written  map[string]int
	fault    Fault
	sick     map[string]string // why VMs are not well, by name
	network  layout
	service  *service // nil for none
	guests   map[string]*guest
	sessions int // of old addresses
	wrong    []string
	finished bool
}

// host is a machine and its agent.
type host struct {
	name    string
	up      bool
	cut     chan struct{}      // closed while servers do not reach it
	vms     map[string]*vm     // by name
	volumes map[string]*volume // by path
	// lent are disks here of VMs elsewhere, ways those to disks elsewhere: moves,
	// by the VM's UUID.
	lent, ways map[string]string
	// facts are what an edge has in its networks; nil for a host that is none.
	facts map[string]string

	// moves is the agent's journal, which survives its crash; jobs does not.
	moves map[string]*journal
	jobs  map[jobKey]*job
}

type vm struct {
	name, uuid string
	state      drover.VMState
	paths      []string
	disksAt    string // the host of its volumes, where that is another
}

// volume holds the number of the last write in it; torn while being copied.
type volume struct {
	write int
	torn  bool
}

// journal is what an agent remembers of a move.
type journal struct {
	generation int64
	vm         string
	uuid       string
	reserved   bool
	released   bool // nothing of the move is taken up any more
	results    map[string]executor.Result
	actions    map[string]string // the type of action that a step's name means
	created    []string          // volumes
	rates      []drover.BitRate  // told while it sent
	// Cold: what was found, and taken away.
	wasRunning *bool
	kept       *vm
	ran        bool // at the target: it has run since it was defined
	// before is how many writes there were when it was started at the target,
	// committed and uncommitted what was said about it, both for good.
	before                 int
	committed, uncommitted bool
	// Warm: the source records changes; the target has a round complete.
	recording, synced bool
	// Live, at the source: the guest is paused and given up; moved; aborted
	// for good. At the target: accepted or refused, both for good.
	given, moved, aborted bool
	accepted, refused     bool
	// stays: the disks do not come along. disksOnly: they come to the VM; pivoting:
	// it goes on with them, for good.
	stays, disksOnly, pivoting bool
	// At an edge: what is to be done at the cut-over, when that host calls.
	staged    []drover.EdgeOp
	stagedFor string
}

// NewWorld returns a fleet of those hosts.
func NewWorld(hosts ...string) *World {
	w := &World{hosts: make(map[string]*host), written: make(map[string]int)}
	for _, name := range hosts {
		w.hosts[name] = &host{
			name: name, up: true, cut: make(chan struct{}),
			vms: make(map[string]*vm), volumes: make(map[string]*volume),
			moves: make(map[string]*journal), jobs: make(map[jobKey]*job),
			lent: make(map[string]string), ways: make(map[string]string),
		}
	}
	return w
}

// Close ends every action and waits for them.
func (w *World) Close() {
	w.mu.Lock()
	w.finished = true
	for _, h := range w.hosts {
		h.killJobs()
	}
	w.mu.Unlock()
	w.jobs.Wait()
}

// AddVM puts a VM on its host, with volumes for its disks that are not shared.
func (w *World) AddVM(v drover.VM) {
	w.mu.Lock()
	defer w.mu.Unlock()
	h := w.hosts[v.Host]
	n := &vm{name: v.Name, uuid: v.UUID, state: drover.VMOff}
	for _, d := range v.Disks {
		if !d.Shared {
			n.paths = append(n.paths, d.Path)
			h.volumes[d.Path] = &volume{}
		}
	}
	h.vms[n.name] = n
	if v.State == drover.VMRunning {
		w.run(h, n)
	}
}

// Crash ends the host's agent and starts it again: its actions are gone, its
// journal is not. VMs run on.
func (w *World) Crash(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hosts[name].killJobs()
}

// SetUp says whether the host's agent answers. One that goes down crashes.
func (w *World) SetUp(name string, up bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	h := w.hosts[name]
	if h.up = up; !up {
		h.killJobs()
	}
}

// Destroy makes the VM and its definition vanish from the host, as if a person
// had deleted it behind the agent's back.
func (w *World) Destroy(hostName, vmName string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	h := w.hosts[hostName]
	delete(h.vms, vmName)
	for _, j := range h.moves {
		if j.vm == vmName {
			j.kept = nil
		}
	}
}

// SetSick makes health checks of the VM fail, with why; empty: it is well.
func (w *World) SetSick(vmName, why string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.sick == nil {
		w.sick = make(map[string]string)
	}
	w.sick[vmName] = why
}

// Rename gives a move another name in every agent's journal, so that a record
// from elsewhere can be carried on here.
func (w *World) Rename(from, to string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, h := range w.hosts {
		if j := h.moves[from]; j != nil {
			delete(h.moves, from)
			h.moves[to] = j
		}
	}
}

// StartByHand starts the VM where it is defined, as a person might.
func (w *World) StartByHand(hostName, vmName string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	h := w.hosts[hostName]
	if v := h.vms[vmName]; v != nil && v.state == drover.VMOff {
		w.run(h, v)
	}
}

// VM returns the state of the VM on the host, or "" where it is not.
func (w *World) VM(hostName, vmName string) drover.VMState {
	w.mu.Lock()
	defer w.mu.Unlock()
	if v := w.hosts[hostName].vms[vmName]; v != nil {
		return v.state
	}
	return ""
}

// run makes the VM run, which must never happen twice, nor from an old disk.
// w.mu is held.
func (w *World) run(h *host, v *vm) {
	if v.state == drover.VMRunning {
		return
	}
	for _, other := range w.hosts {
		for _, o := range other.vms {
			if o != v && o.uuid == v.uuid && o.state == drover.VMRunning {
				w.wrongf("%s runs on %s and on %s at once", v.name, other.name, h.name)
			}
		}
	}
	for _, p := range v.paths {
		switch vol := w.volumesOf(h, v).volumes[p]; {
		case vol == nil:
			w.wrongf("%s runs on %s without its volume %s", v.name, h.name, p)
		case vol.torn:
			w.wrongf("%s runs on %s from %s, which is half copied", v.name, h.name, p)
		case vol.write != w.written[v.uuid]:
			w.wrongf("%s runs on %s from %s with write %d, where %d were acknowledged", v.name, h.name, p, vol.write, w.written[v.uuid])
		}
	}
	v.state = drover.VMRunning
	w.guestWrites(h, v)
}

// stop ends or pauses the VM's execution; its guest has written until then.
func (w *World) stop(h *host, v *vm, to drover.VMState) {
	if v.state == drover.VMRunning {
		w.guestWrites(h, v)
	}
	v.state = to
	w.serves()
}

func (w *World) guestWrites(h *host, v *vm) {
	w.written[v.uuid]++
	for _, p := range v.paths {
		if vol := w.volumesOf(h, v).volumes[p]; vol != nil {
			vol.write = w.written[v.uuid]
		} else {
			w.wrongf("%s writes on %s to %s, which is gone", v.name, h.name, p)
		}
	}
}

func (w *World) wrongf(format string, args ...any) {
	w.wrong = append(w.wrong, fmt.Sprintf(format, args...))
}

// Check returns what is wrong: what should never have happened, and what the
// final move has left behind on either side. Nothing when all is well. running
// is whether the VM ran when the move began.
func (w *World) Check(m drover.Move, disks []executor.DiskPlan, running bool) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	wrong := slices.Clone(w.wrong)
	say := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	home, other := m.From.Host, m.To.Host
	switch m.State {
	case drover.MoveDone:
		home, other = other, home
	case drover.MoveUndone:
	default:
		say("the move is %s: %s", m.State, m.Fault)
		return wrong
	}
	// Where its disks are, and are not.
	disksAt, noDisksAt := home, other
	way := ""
	switch {
	case m.Method == drover.Disks:
		disksAt, noDisksAt = home, other
		home, other = m.To.Host, m.From.Host
		if m.State == drover.MoveUndone {
			way = disksAt
		}
	case w.hosts[m.From.Host].lent[m.VMUUID] != "":
		disksAt, noDisksAt = m.From.Host, m.To.Host
		way = disksAt
		if m.State == drover.MoveUndone {
			say("disks of %s are still lent by %s", m.VM, disksAt)
		}
	}
	for _, h := range w.hosts {
		if (h.lent[m.VMUUID] != "") != (way != "" && h.name == way) {
			say("%s lends disks of %s: %q, want them at %q", h.name, m.VM, h.lent[m.VMUUID], way)
		}
		if (h.ways[m.VMUUID] != "") != (way != "" && h.name == home) {
			say("%s has a way to disks of %s: %q, want them at %q", h.name, m.VM, h.ways[m.VMUUID], way)
		}
	}
	want := drover.VMOff
	if running {
		want = drover.VMRunning
	}
	if v := w.hosts[home].vms[m.VM]; v == nil {
		say("%s is not on %s", m.VM, home)
	} else if v.state != want {
		say("%s is %s on %s, want %s", m.VM, v.state, home, want)
	}
	if v := w.hosts[other].vms[m.VM]; v != nil {
		say("%s is %s on %s, want nothing of it", m.VM, v.state, other)
	}
	for _, d := range disks {
		switch v := w.hosts[disksAt].volumes[d.Path]; {
		case v == nil:
			say("volume %s is missing on %s", d.Path, disksAt)
		case v.torn || v.write != w.written[m.VMUUID]:
			say("volume %s on %s has write %d (torn: %v), want %d", d.Path, disksAt, v.write, v.torn, w.written[m.VMUUID])
		}
		if keep := m.KeepSource && m.State == drover.MoveDone; (w.hosts[noDisksAt].volumes[d.Path] != nil) != keep {
			say("volume %s on %s: there %v, want %v", d.Path, noDisksAt, !keep, keep)
		}
	}
	w.left(say)
	return wrong
}

// left says what a move that is over has left with agents.
func (w *World) left(say func(string, ...any)) {
	for _, h := range w.hosts {
		for name, j := range h.moves {
			if !j.released {
				say("%s still has %s reserved", h.name, name)
			}
			if j.recording {
				say("%s still records what %s changes", h.name, j.vm)
			}
		}
		for k := range h.jobs {
			say("%s still runs %s", h.name, k.step)
		}
	}
}
