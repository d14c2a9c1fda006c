package executor

import (
	"net/netip"
	"slices"
	"strconv"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/saga"
)

// The steps that spawn and redirect share.

// reserveAddresses has each network card get its addresses by DHCP.
func reserveAddresses() step {
	return step{
		Step: saga.Step{
			Name: "reserve-addresses",
			Why:  "before anything is made: a pool without a free address is the likeliest refusal after the host's",
		},
		do: func(s *state) []call {
			c := s.Request.Clone
			var calls []call
			for i, n := range c.NICs {
				calls = append(calls, call{host: n.Edge, part: part(i), action: Edge{Ops: []drover.EdgeOp{{
					Do: drover.ReserveLease, Owner: c.owner(), Segment: n.Segment, MAC: n.NewMAC, Name: hostname(c.Name),
				}}}})
			}
			return calls
		},
		note: func(s *state, n int, r Result) error {
			if len(r.Addresses) == 0 {
				return drover.Errorf(drover.Exhausted, "", "segment %s has no address for the new VM", s.Request.Clone.NICs[n].Segment)
			}
			leases := slices.Clone(s.Made.Leases)
			for len(leases) <= n {
				leases = append(leases, cloneLease{})
			}
			leases[n] = cloneLease{Addresses: r.Addresses, Gateways: r.Gateways}
			s.Made.Leases = leases
			return nil
		},
		// Edges have no reservation with which they would forget the move.
		undo: func(s *state) []call {
			c := s.Request.Clone
			var calls []call
			for i, n := range c.NICs {
				calls = append(calls, call{host: n.Edge, part: part(i), action: Edge{Undo: true, Ops: []drover.EdgeOp{{
					Do: drover.ReleaseLease, Owner: c.owner(), Segment: n.Segment, MAC: n.NewMAC,
				}}}})
			}
			return append(calls, s.releaseCloneEdges()...)
		},
	}
}

// part tells the calls of one step apart.
func part(i int) string {
	if i == 0 {
		return ""
	}
	return strconv.Itoa(i)
}

// hostname is a VM's name as DHCP takes it: dots would be a domain.
func hostname(name string) string {
	b := []byte(name)
	for i, c := range b {
		if c != '-' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
			b[i] = '-'
		}
	}
	for len(b) > 0 && b[len(b)-1] == '-' {
		b = b[:len(b)-1]
	}
	return string(b)
}

func createClone() step {
	st := createVolumes("under names of their own; fresh ones above the golden images that are there")
	st.do = func(s *state) []call {
		return []call{{host: s.Request.To.Host, action: CreateVolumes{Disks: s.Request.Clone.Disks}}}
	}
	return st
}

func defineClone() step {
	return step{
		Step: saga.Step{
			Name: "define",
			Why:  "when its addresses are known, which the guest is told, and its disks are there",
		},
		do: func(s *state) []call {
			r, c := s.Request, s.Request.Clone
			a := DefineClone{Definition: r.Definition, NICs: c.NICs, Paths: map[string]string{}, Probe: s.probe()}
			for _, d := range r.VM.Disks {
				at := slices.IndexFunc(c.Disks, func(p DiskPlan) bool { return p.Target == d.Target })
				if at >= 0 {
					a.Paths[d.Path] = c.Disks[at].Path
				}
			}
			if len(s.Made.Leases) > 0 {
				a.Addresses, a.Gateways = s.Made.Leases[0].Addresses, s.Made.Leases[0].Gateways
			}
			return []call{{host: r.To.Host, action: a}}
		},
		undo: func(s *state) []call {
			return []call{{host: s.Request.To.Host, action: Undefine{}}}
		},
	}
}

func startClone() step {
	return step{
		Step: saga.Step{
			Name: "start",
			Why:  "nobody knows it yet, and the VM that it is like goes on",
		},
		do: func(s *state) []call {
			return []call{{host: s.Request.To.Host, action: StartVM{}}}
		},
		undo: func(s *state) []call {
			return []call{{host: s.Request.To.Host, action: StopVM{}}}
		},
	}
}

func cloneHealth() step {
	return step{
		Step: saga.Step{
			Name: "health",
			Why:  "before any client is sent there",
		},
		idle: true,
		do: func(s *state) []call {
			h := s.health()
			if h.Limit == 0 {
				h.Limit = drover.DefaultHealthLimit
			}
			return []call{{host: s.Request.Clone.Checker, action: CheckHealth{Kind: h.Kind, Target: h.Target, Limit: h.Limit}}}
		},
		note: func(s *state, _ int, r Result) error { return s.well(r, "") },
	}
}

// well fails a step that has seen the new VM not well.
func (s *state) well(r Result, then string) error {
	if r.Healthy {
		return nil
	}
	return drover.Errorf(drover.Refused, "", "the new vm %s is not well at %s: %s%s", s.Request.Clone.Name, s.Request.To, r.Detail, then)
}

// setName makes the name answer with the new VM's addresses; a step without a
// name has nothing to do.
func setName() step {
	ops := func(s *state, do drover.EdgeVerb, undo bool) []call {
		c := s.Request.Clone
		if c.DNS == nil {
			return nil
		}
		op := drover.EdgeOp{Do: do, Owner: c.owner(), Name: c.DNS.Name}
		if do == drover.SetName {
			op.Addresses = s.addresses()
		}
		return []call{{host: c.DNS.Edge, action: Edge{Ops: []drover.EdgeOp{op}, Undo: undo}}}
	}
	return step{
		Step: saga.Step{
			Name: "set-name",
			Why:  "when the new VM is well; a name that is another's is refused",
		},
		do:   func(s *state) []call { return ops(s, drover.SetName, false) },
		undo: func(s *state) []call { return ops(s, drover.RestoreName, true) },
	}
}

// addServer puts the new VM behind the load balancer, which checks it and sends it
// nothing yet.
func addServer(why string) step {
	return step{
		Step: saga.Step{Name: "add-server", Why: why},
		do: func(s *state) []call {
			v := s.Request.Clone.Service
			if v == nil {
				return nil
			}
			op := s.newServer(drover.AddServer)
			op.Target, op.Weight = netip.AddrPortFrom(s.address(), v.Port).String(), v.Weight
			if len(v.Steps) > 0 {
				op.Weight = v.Steps[0].New
			}
			return []call{{host: v.Edge, action: Edge{Ops: []drover.EdgeOp{op}}}}
		},
		// It goes with its sessions: whoever has one with a VM that goes loses it.
		undo: func(s *state) []call {
			v := s.Request.Clone.Service
			if v == nil {
				return nil
			}
			op := s.newServer(drover.RemoveServer)
			op.Force = true
			return []call{{host: v.Edge, action: Edge{Ops: []drover.EdgeOp{op}, Undo: true}}}
		},
	}
}

// newServer is an operation on the new VM's server.
func (s *state) newServer(do drover.EdgeVerb) drover.EdgeOp {
	c := s.Request.Clone
	return drover.EdgeOp{Do: do, Owner: c.owner(), Backend: c.Service.Backend, Name: c.Service.Server}
}
