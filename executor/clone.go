package executor

import (
	"net"
	"net/netip"
	"net/url"
	"slices"
	"time"

	"github.com/drover-vm/drover"
)

// Methods that make another VM at the destination (spawn, redirect) are about two
// VMs. The new one has a name, a UUID, MACs and addresses of its own, and everything
// that edges do for it has it as the owner. The destination's host knows the
// move by the new VM's name, the source's by that of the VM that the move is of.

// Clone is the VM to be made, with all that is to be done for it.
type Clone struct {
	Name string `json:"name"`
	UUID string `json:"uuid"`
	// Fresh disks begin anew above their golden images; others are copies of
	// the VM's as they are at one moment.
	Fresh bool       `json:"fresh,omitempty"`
	NICs  []CloneNIC `json:"nics"`
	// Disks are the new VM's, with their paths at the destination. Request.Disks
	// are the VM's own.
	Disks []DiskPlan `json:"disks"`
	// Health is how the new VM is seen to be well; nil: that it runs. It is asked
	// by the agent of the host Checker. An address of zero in Health and Probe
	// stands for the new VM's own.
	Health  *drover.HealthCheck `json:"health,omitempty"`
	Checker string              `json:"checker"`
	// Probe is where clients will see the new VM answer; nil: not known.
	Probe *drover.ProbeTarget `json:"probe,omitempty"`
	// Name in the DNS, nil for none.
	DNS *CloneDNS `json:"dns,omitempty"`
	// Service is nil where no load balancer has to do with it.
	Service *Service `json:"service,omitempty"`
	// Forget are the edges where something stands for the VM that redirect
	// takes out of service.
	Forget []string `json:"forget,omitempty"`
	// ServiceProbe is where clients reach the service.
	ServiceProbe *drover.ProbeTarget `json:"service_probe,omitempty"`
}

// CloneNIC is a network card of the new VM.
type CloneNIC struct {
	// MAC is that of the VM's card, NewMAC the new one's.
	MAC    string `json:"mac"`
	NewMAC string `json:"new_mac"`
	// Network is the bridge or network that it is attached to.
	Network string `json:"network"`
	// Segment is where it gets its addresses, from the edge of that host.
	Segment string `json:"segment"`
	Edge    string `json:"edge"`
}

// CloneDNS is a name that is made to answer with the new VM's addresses.
type CloneDNS struct {
	Name string `json:"name"`
	Edge string `json:"edge"` // host
}

// Service is a backend of a load balancer.
type Service struct {
	Edge    string `json:"edge"` // host
	Backend string `json:"backend"`
	// Server is what the new VM's server is called; no server that the load
	// balancer has by itself has that name.
	Server string `json:"server"`
	// Port of the new server, and its weight once it is on its own.
	Port   uint16 `json:"port"`
	Weight int    `json:"weight"`
	// Old is the server that redirect drains.
	Old OldServer `json:"old,omitzero"`
	// Steps are the shares that the two servers get, one after the other, each for
	// StepTime. The old one's sessions may go on for DrainCap.
	Steps    []WeightStep  `json:"steps,omitempty"`
	StepTime time.Duration `json:"step_time_ns,omitempty"`
	DrainCap time.Duration `json:"drain_cap_ns,omitempty"`
	// Handed are servers that are there without Drover and were taken out of
	// service for the old VM; they stay so for the new one.
	Handed []string `json:"handed,omitempty"`
}

// OldServer is the server that a VM is so far.
type OldServer struct {
	// Name is the balancer's; of one that Drover added, what tells it apart from
	// others of the same owner, and Owner is that.
	Name  string `json:"name"`
	Owner string `json:"owner,omitempty"`
	// Full is the balancer's own name for it in any case.
	Full   string `json:"full"`
	Weight int    `json:"weight"`
}

// WeightStep is the weights that the new and the old server have for a while.
type WeightStep struct {
	New int `json:"new"`
	Old int `json:"old"`
}

// cloneState is what the steps have found out.
type cloneState struct {
	// Leases are the addresses reserved, by network card.
	Leases []cloneLease `json:"leases,omitempty"`
	// Lost are the sessions that were cut; nil until that is known.
	Lost *int64 `json:"lost,omitempty"`
}

type cloneLease struct {
	Addresses []netip.Prefix `json:"addresses"`
	Gateways  []netip.Addr   `json:"gateways,omitempty"`
}

// DefineClone makes the definition of another VM at the target out of one.
type DefineClone struct {
	// Definition of the VM that the new one is like. The move's name for the VM
	// at the target is the new one's.
	Definition []byte
	NICs       []CloneNIC
	// Paths of disks, old to new.
	Paths map[string]string
	// Addresses, Gateways and Hostname are told to a guest that reads them from its
	// kernel's command line.
	Addresses []netip.Prefix
	Gateways  []netip.Addr
	Probe     *drover.ProbeTarget
}

// CopyClone sends the disks of a VM that runs on, as they were at one moment, to
// the peer, where they become those of the new VM.
type CopyClone struct {
	PeerAddress, PeerHost string
	// Name and UUID are the new VM's, by which the peer knows the move.
	Name, UUID string
	Disks      []DiskPlan     // with their paths at the source
	Bandwidth  drover.BitRate // zero: unlimited
}

// Attend stays with a server of a load balancer that takes over sessions: its
// Result says as soon as it is not Healthy, with Detail. It ends well after For, or
// earlier when another server, Server, has no session any more; Sessions are what
// that had in the end. It needs no reservation and is asked of the balancer's
// edge.
type Attend struct {
	Kind            drover.HealthKind
	Target          string
	For             time.Duration
	Backend, Server string
}

func (DefineClone) isAction() {}
func (CopyClone) isAction()   {}
func (Attend) isAction()      {}

// owner is whose everything is that is done for the new VM.
func (c *Clone) owner() string { return "vm/" + c.UUID }

// addresses are the new VM's, of its first network card that has any, IPv4 first.
func (s *state) addresses() []netip.Addr {
	for _, l := range s.Made.Leases {
		var list []netip.Addr
		for _, p := range l.Addresses {
			list = append(list, p.Addr())
		}
		if len(list) > 0 {
			slices.SortFunc(list, netip.Addr.Compare)
			return list
		}
	}
	return nil
}

// address is what the load balancer and checks reach it by.
func (s *state) address() netip.Addr {
	if list := s.addresses(); len(list) > 0 {
		return list[0]
	}
	return netip.Addr{}
}

// health is the check with the new VM's address filled in.
func (s *state) health() drover.HealthCheck {
	c := s.Request.Clone
	if c.Health == nil {
		return drover.HealthCheck{}
	}
	h := *c.Health
	switch h.Kind {
	case drover.HealthTCP:
		h.Target = ownAddress(h.Target, s.address())
	case drover.HealthHTTP:
		h.Target = ownURL(h.Target, s.address())
	}
	return h
}

// probe likewise.
func (s *state) probe() *drover.ProbeTarget {
	p := s.Request.Clone.Probe
	if p == nil || !s.address().IsValid() {
		return nil
	}
	return &drover.ProbeTarget{TCP: ownAddress(p.TCP, s.address()), Kind: p.Kind, HTTP: ownURL(p.HTTP, s.address())}
}

// ownAddress puts the address in place of zero.
func ownAddress(target string, own netip.Addr) string {
	host, port, err := net.SplitHostPort(target)
	if a, aerr := netip.ParseAddr(host); err != nil || aerr != nil || !a.IsUnspecified() || !own.IsValid() {
		return target
	}
	return net.JoinHostPort(own.String(), port)
}

func ownURL(target string, own netip.Addr) string {
	u, err := url.Parse(target)
	if err != nil || !own.IsValid() {
		return target
	}
	if a, err := netip.ParseAddr(u.Hostname()); err != nil || !a.IsUnspecified() {
		return target
	}
	switch port := u.Port(); {
	case port != "":
		u.Host = net.JoinHostPort(own.String(), port)
	case own.Is6():
		u.Host = "[" + own.String() + "]"
	default:
		u.Host = own.String()
	}
	return u.String()
}

// releaseClone is release, for the edges as well.
func releaseClone(source bool) step {
	st := release()
	st.do = func(s *state) []call {
		calls := []call{{host: s.Request.To.Host, action: Release{Target: true}}}
		if source {
			calls = append(calls, call{host: s.Request.From.Host, action: Release{}})
		}
		return append(calls, s.releaseCloneEdges()...)
	}
	return st
}

// releaseCloneEdges has the edges forget the move.
func (s *state) releaseCloneEdges() []call {
	var calls []call
	for _, host := range s.Request.Clone.edges() {
		if host != s.Request.To.Host && host != s.Request.From.Host {
			calls = append(calls, call{host: host, part: "release", action: Release{}})
		}
	}
	return calls
}

// edges are the hosts whose agents have something to do for the new VM as edges,
// or check it.
func (c *Clone) edges() []string {
	hosts := append([]string{c.Checker}, c.Forget...)
	for _, n := range c.NICs {
		hosts = append(hosts, n.Edge)
	}
	if c.DNS != nil {
		hosts = append(hosts, c.DNS.Edge)
	}
	if c.Service != nil {
		hosts = append(hosts, c.Service.Edge)
	}
	hosts = slices.DeleteFunc(hosts, func(h string) bool { return h == "" })
	slices.Sort(hosts)
	return slices.Compact(hosts)
}

// projectClone shows the new VM in the move.
func projectClone(s *state) *drover.Clone {
	c := s.Request.Clone
	if c == nil {
		return nil
	}
	return &drover.Clone{Name: c.Name, UUID: c.UUID, Addresses: s.addresses(), Probe: c.ServiceProbe}
}

// known is by which name the agent of a host knows the move's VM.
func (s *state) known(host string, ref Ref) Ref {
	if c := s.Request.Clone; c != nil && host == s.Request.To.Host {
		ref.VM, ref.VMUUID = c.Name, c.UUID
	}
	return ref
}

// validate reports what of the new VM could not be carried out.
func (c *Clone) validate(r Request, bad func(string, ...any) error) error {
	switch {
	case !r.Method.Makes() && c == nil:
		return nil
	case !r.Method.Makes():
		return bad("clone: method %s makes no other VM", r.Method)
	case c == nil:
		return bad("clone is missing: method %s makes another VM", r.Method)
	case c.UUID == "" || c.UUID == r.VM.UUID || c.Name == r.VM.Name:
		return bad("clone %s (%s): want a name and a UUID of its own", c.Name, c.UUID)
	case len(r.Definition) == 0:
		return bad("definition is missing: the new VM is made out of it")
	case c.Checker == "":
		return bad("clone: nobody is to check its health")
	case len(c.NICs) != len(r.VM.NICs):
		return bad("clone: %d network cards, the VM has %d", len(c.NICs), len(r.VM.NICs))
	}
	if err := drover.CheckName("clone", c.Name); err != nil {
		return bad("%v", err)
	}
	for _, n := range c.NICs {
		if n.MAC == "" || n.NewMAC == "" || n.MAC == n.NewMAC || n.Network == "" || n.Segment == "" || n.Edge == "" {
			return bad("clone: network card %+v: want a new MAC, a network, a segment and an edge", n)
		}
	}
	for _, d := range c.Disks {
		if d.Target == "" || d.Path == "" || d.VirtualBytes <= 0 || d.Fresh != c.Fresh {
			return bad("clone: disk %q at %q of %d bytes, fresh %v: want all of it", d.Target, d.Path, int64(d.VirtualBytes), d.Fresh)
		}
		if slices.ContainsFunc(r.VM.Disks, func(v drover.Disk) bool { return v.Path == d.Path }) {
			return bad("clone: disk %s at %s, which is the VM's own", d.Target, d.Path)
		}
	}
	if r.Method == drover.Spawn && !c.Fresh {
		return bad("clone: spawn begins with fresh disks")
	}
	return c.validateService(r, bad)
}

func (c *Clone) validateService(r Request, bad func(string, ...any) error) error {
	v := c.Service
	switch {
	case v == nil && r.Method == drover.Redirect:
		return bad("clone: redirect needs a backend of a load balancer")
	case v == nil:
		return nil
	case v.Edge == "" || v.Backend == "" || v.Server == "" || v.Port == 0 || len(c.NICs) == 0:
		return bad("clone: service %+v: want edge, backend, server, port and a network card", *v)
	case slices.Contains(append(v.Handed, v.Old.Full), v.Server):
		return bad("clone: server %s is another's name in backend %s", v.Server, v.Backend)
	case r.Method == drover.Spawn:
		return nil
	case v.Old.Full == "" || v.Old.Name == "" || len(v.Steps) == 0 || v.DrainCap <= 0:
		return bad("clone: service %+v: want the server that is drained, steps and a cap", *v)
	case c.Checker != v.Edge:
		return bad("clone: checked by %s: want the load balancer's edge %s, from where its traffic will come", c.Checker, v.Edge)
	}
	return nil
}
