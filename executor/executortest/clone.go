package executortest

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/executor"
)

// service is a load balancer's backend, of which clients must be served at all
// times.
type service struct {
	edge, backend string
	servers       map[string]*server // by the balancer's names
}

type server struct {
	owner, changedBy string
	vm               string
	state            string // "ready", "drain", "maint"
	weight           int
	sessions         int
}

// SetService makes a host the edge of a load balancer with a backend of one
// server, with sessions, which is that VM.
func (w *World) SetService(edgeHost, backend string, old executor.OldServer, vmName string, sessions int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := &server{owner: old.Owner, vm: vmName, state: "ready", weight: old.Weight, sessions: sessions}
	w.service = &service{edge: edgeHost, backend: backend, servers: map[string]*server{old.Full: s}}
	w.edge(edgeHost)
}

// SetEdge makes a host an edge.
func (w *World) SetEdge(hostName string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.edge(hostName)
}

func (w *World) edge(hostName string) {
	if h := w.hosts[hostName]; h.facts == nil {
		h.facts = make(map[string]string)
	}
}

// SetSessions changes how many sessions a server has, by the balancer's name.
func (w *World) SetSessions(name string, n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.service.servers[name].sessions = n
}

// Facts returns what stands at a host that is an edge, one line each, sorted.
func (w *World) Facts(hostName string) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var facts []string
	for f, v := range w.hosts[hostName].facts {
		facts = append(facts, f+" = "+v)
	}
	if s := w.service; s != nil && s.edge == hostName {
		for name, x := range s.servers {
			facts = append(facts, fmt.Sprintf("server %s = %s weight %d owner %q changed by %q", name, x.state, x.weight, x.owner, x.changedBy))
		}
	}
	slices.Sort(facts)
	return facts
}

// cloneOp carries out what edges do for VMs that are made; ok is false for other
// operations. w.mu is held.
func (j *job) cloneOp(op drover.EdgeOp) (ok bool, err error) {
	lease := fmt.Sprintf("lease %s %s", op.Segment, op.MAC)
	switch op.Do {
	case drover.ReserveLease:
		j.h.facts[lease] = op.Owner
	case drover.ReleaseLease:
		delete(j.h.facts, lease)
	case drover.SetName:
		if was := j.h.facts["name "+op.Name]; was != "" && was != op.Owner {
			return true, drover.Errorf(drover.Exists, "set-name", "%s is %s's", op.Name, was)
		}
		j.h.facts["name "+op.Name] = op.Owner
	case drover.RestoreName:
		delete(j.h.facts, "name "+op.Name)
	case drover.ForgetOwner:
		maps.DeleteFunc(j.h.facts, func(_, owner string) bool { return owner == op.Owner })
		if s := j.w.service; s != nil && s.edge == j.h.name {
			s.forget(op.Owner)
		}
	case drover.AddServer, drover.ReadyServer, drover.WeighServer, drover.DrainServer, drover.RemoveServer:
		err = j.balance(op)
	default:
		return false, nil
	}
	j.w.serves()
	return true, err
}

func (s *service) forget(owner string) {
	for name, x := range s.servers {
		switch {
		case x.owner == owner:
			delete(s.servers, name)
		case x.changedBy == owner:
			x.changedBy, x.state, x.weight = "", "ready", 100
		}
	}
}

func (j *job) balance(op drover.EdgeOp) error {
	s := j.w.service
	if s == nil || s.edge != j.h.name || s.backend != op.Backend {
		return drover.Errorf(drover.NotFound, string(op.Do), "%s has no backend %s", j.h.name, op.Backend)
	}
	full := "drover-" + strings.Replace(op.Owner, "/", ":", 1) + ":" + op.Name
	x := s.servers[full]
	if op.Do == drover.AddServer {
		if _, err := netip.ParseAddrPort(op.Target); err != nil {
			return drover.E(drover.Invalid, "add-server", err)
		}
		if x == nil {
			s.servers[full] = &server{owner: op.Owner, vm: j.w.named(op.Owner), state: "maint", weight: op.Weight}
		}
		return nil
	}
	if x == nil {
		if x = s.servers[op.Name]; x != nil {
			if x.changedBy != "" && x.changedBy != op.Owner {
				return drover.Errorf(drover.Exists, string(op.Do), "%s has changed it", x.changedBy)
			}
			x.changedBy = op.Owner
		}
	}
	if x == nil {
		if op.Do == drover.RemoveServer {
			return nil
		}
		return drover.Errorf(drover.NotFound, string(op.Do), "there is no server %s", op.Name)
	}
	switch op.Do {
	case drover.ReadyServer:
		x.state = "ready"
	case drover.WeighServer:
		x.weight = op.Weight
	case drover.DrainServer:
		x.state = "drain"
	case drover.RemoveServer:
		if x.owner == op.Owner {
			delete(s.servers, full)
		} else {
			x.changedBy, x.state, x.weight = "", "ready", 100
		}
	}
	return nil
}

// serves notes when new sessions would be refused: no server takes any, or one
// that does has no VM behind it. w.mu is held.
func (w *World) serves() {
	if w.service == nil {
		return
	}
	takes := 0
	for name, x := range w.service.servers {
		if x.state != "ready" || x.weight == 0 {
			continue
		}
		takes++
		if !w.runsAnywhere(x.vm) {
			w.wrongf("the load balancer sends sessions to %s, whose VM %s does not run", name, x.vm)
		}
	}
	if takes == 0 {
		w.wrongf("no server of %s takes new sessions", w.service.backend)
	}
}

// named finds a VM by what edges call its owner; w.mu is held.
func (w *World) named(owner string) string {
	for _, h := range w.hosts {
		for _, v := range h.vms {
			if "vm/"+v.uuid == owner {
				return v.name
			}
		}
	}
	return ""
}

func (w *World) runsAnywhere(name string) bool {
	for _, h := range w.hosts {
		if v := h.vms[name]; v != nil && v.state == drover.VMRunning {
			return true
		}
	}
	return false
}

// leased is what an Edge action says of the addresses that it has reserved.
func leased(a executor.Edge) executor.Result {
	var r executor.Result
	for i, op := range a.Ops {
		if op.Do == drover.ReserveLease {
			r.Addresses = append(r.Addresses, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 60, 0, byte(21 + i)}), 24))
			r.Gateways = append(r.Gateways, netip.MustParseAddr("10.60.0.1"))
		}
	}
	return r
}

// defineClone makes the new VM's definition. Its disks are as they were copied, or
// as they were made.
func (j *job) defineClone(a executor.DefineClone) error {
	if err := j.rest(); err != nil {
		return err
	}
	return j.part(func() error {
		if j.h.vms[j.j.vm] != nil {
			return nil
		}
		if len(a.Addresses) == 0 || len(a.Definition) == 0 {
			return drover.Errorf(drover.Invalid, "define", "addresses %v, a definition of %d bytes", a.Addresses, len(a.Definition))
		}
		paths := slices.Sorted(maps.Values(a.Paths))
		if want := slices.Sorted(slices.Values(j.j.created)); !slices.Equal(paths, want) {
			return drover.Errorf(drover.Invalid, "define", "disks at %v, made are %v", paths, want)
		}
		for _, p := range paths {
			j.w.written[j.j.uuid] = j.h.volumes[p].write
		}
		j.h.vms[j.j.vm] = &vm{name: j.j.vm, uuid: j.j.uuid, state: drover.VMOff, paths: paths}
		return nil
	})
}

// copyClone sends the disks as they were when it began.
func (j *job) copyClone(a executor.CopyClone) (executor.Result, error) {
	write := 0
	err := j.part(func() error {
		v, err := j.vm()
		if err != nil {
			return err
		}
		if v.state != drover.VMRunning {
			return drover.Errorf(drover.Refused, "copy", "%s is %s", v.name, v.state)
		}
		j.j.recording, write = true, j.w.written[v.uuid]
		return nil
	})
	if err != nil {
		return executor.Result{}, err
	}
	for i, d := range a.Disks {
		j.tell("copy", i, len(a.Disks))
		for _, torn := range []bool{true, false} {
			if err := j.rest(); err != nil {
				return executor.Result{}, err
			}
			err := j.part(func() error {
				peer, there, err := j.peer(a.PeerHost)
				if err != nil {
					return err
				}
				if there.vm != a.Name || there.uuid != a.UUID {
					return drover.Errorf(drover.Refused, "copy", "%s knows the move as that of %s", a.PeerHost, there.vm)
				}
				if i >= len(there.created) {
					return drover.Errorf(drover.Internal, "copy", "%s has no volume for %s", a.PeerHost, d.Target)
				}
				to := peer.volumes[there.created[i]]
				to.write, to.torn = write, torn
				j.w.guestWrites(j.h, j.h.vms[j.j.vm])
				return nil
			})
			if err != nil {
				return executor.Result{}, err
			}
		}
	}
	n := drover.Bytes(len(a.Disks))
	return executor.Result{DiskBytes: n, PathWireBytes: n}, j.part(func() error { j.j.recording = false; return nil })
}

// attend watches as long as it is asked to, or until the server is empty.
func (j *job) attend(a executor.Attend) (executor.Result, error) {
	r := executor.Result{Healthy: true}
	for over := time.Now().Add(a.For); ; {
		if err := j.rest(); err != nil {
			return executor.Result{}, err
		}
		done := false
		err := j.part(func() error {
			s := j.w.service
			if s == nil || s.edge != j.h.name {
				return drover.Errorf(drover.Refused, "attend", "%s has no load balancer", j.h.name)
			}
			if why := j.w.sick[j.j.vm]; why != "" {
				r.Healthy, r.Detail, done = false, why, true
				return nil
			}
			if a.Server != "" {
				x := s.servers[a.Server]
				if x == nil {
					return drover.Errorf(drover.NotFound, "attend", "there is no server %s", a.Server)
				}
				if x.state != "drain" {
					j.w.wrongf("%s is waited for to drain and is %s", a.Server, x.state)
				}
				r.Sessions, done = x.sessions, x.sessions == 0
			}
			return nil
		})
		if err != nil || done || !time.Now().Before(over) {
			return r, err
		}
	}
}

// CheckClone returns what is wrong after a final move that makes another VM.
func (w *World) CheckClone(m drover.Move, r executor.Request) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	wrong := slices.Clone(w.wrong)
	say := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	made, done := w.hosts[m.To.Host].vms[r.Clone.Name], m.State == drover.MoveDone
	switch {
	case m.State != drover.MoveDone && m.State != drover.MoveUndone:
		say("the move is %s: %s", m.State, m.Fault)
		return wrong
	case done && (made == nil || made.state != drover.VMRunning || made.uuid != r.Clone.UUID):
		say("the new VM does not run at %s: %+v", m.To.Host, made)
	case !done && made != nil:
		say("the new VM is left at %s: %+v", m.To.Host, made)
	}
	for _, d := range r.Clone.Disks {
		if there := w.hosts[m.To.Host].volumes[d.Path] != nil; there != done {
			say("volume %s of the new VM: there %v", d.Path, there)
		}
	}
	w.checkOriginal(m, r, done, say)
	w.left(say)
	return wrong
}

// checkOriginal says what is wrong with the VM that the new one is like.
func (w *World) checkOriginal(m drover.Move, r executor.Request, done bool, say func(string, ...any)) {
	old := w.hosts[m.From.Host].vms[m.VM]
	gone := done && m.Method == drover.Redirect
	switch {
	case !gone && (old == nil || old.state != drover.VMRunning):
		say("%s does not run at %s: %+v", m.VM, m.From.Host, old)
	case gone && !m.KeepSource && old != nil:
		say("%s is %s at %s", m.VM, old.state, m.From.Host)
	case gone && m.KeepSource && (old == nil || old.state != drover.VMOff):
		say("%s is not kept at %s: %+v", m.VM, m.From.Host, old)
	}
	for _, d := range r.Disks {
		if there, want := w.hosts[m.From.Host].volumes[d.Path] != nil, !gone || m.KeepSource; there != want {
			say("volume %s of %s: there %v, want %v", d.Path, m.VM, there, want)
		}
	}
}
