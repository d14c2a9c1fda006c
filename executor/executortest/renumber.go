package executortest

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/executor"
)

// guest is the inside of a VM: its addresses, and what became of them.
type guest struct {
	addresses map[netip.Addr]string // "primary", "standby" or "old"
	lease     []netip.Prefix        // what DHCP would give it
	deaf      bool                  // it takes no addresses from outside
}

// SetGuest gives a VM's guest addresses. A guest that is deaf takes no others;
// lease is what it gets when it asks DHCP.
func (w *World) SetGuest(uuid string, deaf bool, lease []netip.Prefix, addresses ...netip.Addr) {
	w.mu.Lock()
	defer w.mu.Unlock()
	g := &guest{addresses: map[netip.Addr]string{}, lease: lease, deaf: deaf}
	for _, a := range addresses {
		g.addresses[a] = "primary"
	}
	if w.guests == nil {
		w.guests = map[string]*guest{}
	}
	w.guests[uuid] = g
}

// SetGuestDeaf makes a guest take no other addresses from now on.
func (w *World) SetGuestDeaf(uuid string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.guests[uuid].deaf = true
}

// Help does by hand what a guest that is deaf does not do by itself.
func (w *World) Help(uuid string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	g := w.guests[uuid]
	g.deaf = false
	g.primary(g.lease)
}

// GuestAddresses returns the addresses of a guest, one line each, sorted.
func (w *World) GuestAddresses(uuid string) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var lines []string
	if g := w.guests[uuid]; g != nil {
		for a, how := range g.addresses {
			lines = append(lines, how+" "+a.String())
		}
	}
	slices.Sort(lines)
	return lines
}

// SetOldSessions says how many sessions of old addresses are open.
func (w *World) SetOldSessions(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sessions = n
}

// primary makes addresses those of new sessions; w.mu is held.
func (g *guest) primary(add []netip.Prefix) {
	for a := range g.addresses {
		g.addresses[a] = "old"
	}
	for _, p := range add {
		g.addresses[p.Addr()] = "primary"
	}
}

// change does what the guest lets be done, and says whether it did; w.mu is held.
func (g *guest) change(c executor.GuestChange) bool {
	switch {
	case g.deaf:
		return c.Ask // a cable can be taken out of any guest
	case c.Ask:
		g.primary(g.lease)
	case c.Primary:
		g.primary(c.Add)
	}
	for _, p := range c.Add {
		if g.addresses[p.Addr()] == "" {
			g.addresses[p.Addr()] = "standby"
		}
	}
	for _, a := range c.Drop {
		delete(g.addresses, a)
	}
	return true
}

func (j *job) changeGuest(a executor.ChangeGuest) (executor.Result, error) {
	if a.Undo {
		if err := j.endOthers(); err != nil {
			return executor.Result{}, err
		}
	}
	if err := j.hold(); err != nil {
		return executor.Result{}, err
	}
	var r executor.Result
	return r, j.part(func() error {
		v, err := j.vm()
		switch {
		case a.Undo && (err != nil || v.state != drover.VMRunning):
			return nil
		case err != nil:
			return err
		case v.state != drover.VMRunning:
			return drover.Errorf(drover.Refused, "change-guest", "%s is %s", v.name, v.state)
		}
		if r.Healthy = j.w.guests[v.uuid].change(a.GuestChange); !r.Healthy {
			r.Detail = "the guest is deaf"
		}
		return nil
	})
}

// callGuest is what the destination's agent does by itself when the guest runs.
// Nobody waits for it: it may not come about.
func (j *job) callGuest(a executor.Transfer) {
	if a.Guest == nil {
		return
	}
	j.w.jobs.Go(func() {
		if err := j.w.faulty(Call{Host: a.PeerHost, Step: "call-guest", Action: executor.ChangeGuest{}}); err != nil {
			return
		}
		j.w.mu.Lock()
		defer j.w.mu.Unlock()
		if h := j.w.hosts[a.PeerHost]; h != nil && h.vms[j.j.vm] != nil && !j.w.finished {
			j.w.guests[j.j.uuid].change(*a.Guest)
		}
	})
}

func (j *job) findStation(a executor.FindStation) (executor.Result, error) {
	var r executor.Result
	return r, j.part(func() error {
		g := j.w.guests[j.j.uuid]
		r.Healthy = true
		for _, addr := range a.Addresses {
			if g == nil || g.addresses[addr] == "" {
				r.Healthy, r.Detail = false, fmt.Sprintf("nobody has %v in %s", addr, a.Segment)
			}
		}
		return nil
	})
}

func (j *job) countSessions() (executor.Result, error) {
	var r executor.Result
	return r, j.part(func() error {
		r.Sessions = j.w.sessions
		return nil
	})
}

// renumberOp makes the facts of what ends with a move; w.mu is held.
func (h *host) renumberOp(op drover.EdgeOp) error {
	list := strings.Trim(fmt.Sprint(op.Addresses), "[]")
	switch op.Do {
	case drover.WatchSessions:
		h.facts[fmt.Sprintf("placed %s watch", op.Owner)] = list
	case drover.ForwardOld, drover.AcceptOld:
		if op.Do == drover.ForwardOld && h.facts[fmt.Sprintf("placed %s watch", op.Owner)] == "" {
			return drover.Errorf(drover.Internal, "forward-old", "nobody has watched the sessions of %s", list)
		}
		which := "known"
		if op.Force {
			which = "all"
		}
		h.facts[fmt.Sprintf("placed %s %s %s", op.Owner, op.Do, list)] = which
	case drover.LowerName:
		if h.facts["name "+op.Name] == "" {
			h.facts["was "+op.Name] = h.facts["answers "+op.Name]
		}
		h.facts["name "+op.Name] = op.Owner
	case drover.SetName:
		if h.facts["name "+op.Name] != op.Owner {
			return drover.Errorf(drover.Internal, "set-name", "%s was not lowered", op.Name)
		}
		h.facts["answers "+op.Name] = list
	case drover.SettleName, drover.RestoreName:
		if h.facts["name "+op.Name] != op.Owner {
			return nil
		}
		if op.Do == drover.RestoreName {
			h.facts["answers "+op.Name] = h.facts["was "+op.Name]
		}
		maps.DeleteFunc(h.facts, func(f, _ string) bool { return f == "name "+op.Name || f == "was "+op.Name })
	default:
		return drover.Errorf(drover.Invalid, "edge", "%s is none of those that edges here can do", op.Do)
	}
	return nil
}

// SetName has the edge's name server answer addresses for a name.
func (w *World) SetName(edge, name string, addresses ...netip.Addr) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hosts[edge].facts["answers "+name] = strings.Trim(fmt.Sprint(addresses), "[]")
}
