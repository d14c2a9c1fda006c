package server

import (
	"cmp"
	"context"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/driver"
	"github.com/drover-vm/drover/executor"
	"github.com/drover-vm/drover/network"
)

// wholeWeight is the weight of a server that takes everything of a backend: what
// percentages are parts of.
const wholeWeight = 100

// service looks at the backend that the new VM becomes a server of.
func (k *cloneCheck) service(ctx context.Context) {
	name := k.wish.Backend
	if name == "" {
		return
	}
	edge := k.edge(drover.EdgeBalancer, func(s drover.EdgeServer) bool { return s.Name == name })
	if edge == "" {
		k.bad("backend", "take one of "+orNone(k.backends()), "no edge has a load balancer with a backend %s", name)
		return
	}
	before := len(*k.findings)
	servers := k.ask(ctx, edge, &droverv1.CheckEdgeRequest{Backend: name})
	if !(*k.findings)[before:].holds() {
		return
	}
	v := &executor.Service{Edge: edge, Backend: name, Server: serverName(k.clone.Name, servers), Weight: wholeWeight}
	k.clone.Service = v
	if k.r.Method == drover.Redirect {
		k.redirect(v, servers)
		return
	}
	for _, s := range servers {
		if s.Address.IsValid() && s.Address.Port() != 0 {
			v.Port, v.Weight = s.Address.Port(), max(1, s.Weight)
			k.ok("backend", "the new vm serves port %d with weight %d, as %s does", v.Port, v.Weight, s.Name)
			return
		}
	}
	k.bad("backend", "give it a server with an address first", "backend %s has no server that tells at which port the new vm is to be reached", name)
}

// serverName is the new VM's, or one like it where the load balancer has that by
// itself: an operation on one must not be taken for one on the other.
func serverName(vm string, servers []drover.BackendServer) string {
	name := vm
	for n := 2; slices.ContainsFunc(servers, func(s drover.BackendServer) bool { return s.Name == name }); n++ {
		name = vm[:min(len(vm), 58)] + "-" + strconv.Itoa(n) // names have 63 bytes at most
	}
	return name
}

func (k *cloneCheck) backends() []string {
	var all []string
	for _, e := range k.edges {
		for _, s := range e.Servers {
			if s.Kind == drover.EdgeBalancer {
				all = append(all, s.Name)
			}
		}
	}
	slices.Sort(all)
	return all
}

// redirect plans how the new server takes over from the old one.
func (k *cloneCheck) redirect(v *executor.Service, servers []drover.BackendServer) {
	at := slices.IndexFunc(servers, func(s drover.BackendServer) bool { return slices.Contains(k.own, s.Address.Addr()) })
	if at < 0 {
		at = slices.IndexFunc(servers, func(s drover.BackendServer) bool { return s.Name == k.r.VM.Name })
	}
	if at < 0 {
		names := make([]string, len(servers))
		for i, s := range servers {
			names[i] = s.Name
		}
		k.bad("server", "name the VM's addresses in its metadata, or run a guest agent in it",
			"%s is none of the servers of backend %s (%s): none has one of its addresses or its name", k.r.VM.Name, v.Backend, strings.Join(names, ", "))
		return
	}
	old, owner := servers[at], network.Owner(k.r.VM.UUID)
	if old.ChangedBy != "" && old.ChangedBy != owner || old.State != string(driver.ServerReady) {
		k.bad("server", "let what changed it end, or set it ready", "server %s of backend %s is in state %s, changed for %q", old.Name, v.Backend, old.State, old.ChangedBy)
		return
	}
	if !old.Address.IsValid() || old.Address.Port() == 0 {
		k.bad("server", "give it an address", "server %s of backend %s has no address that tells the port", old.Name, v.Backend)
		return
	}
	v.Port = old.Address.Port()
	v.Old = executor.OldServer{Name: old.Name, Full: old.Name, Owner: old.Owner, Weight: old.Weight}
	if o, short, ok := driver.ParseServerName(old.Name); ok {
		v.Old.Name, v.Old.Owner = short, string(o)
	}
	alone := !slices.ContainsFunc(servers, func(s drover.BackendServer) bool {
		return s.Name != old.Name && s.State == string(driver.ServerReady) && s.Weight > 0
	})
	if !alone {
		v.Weight = max(1, old.Weight)
	}
	v.StepTime = cmp.Or(k.wish.StepTime, drover.DefaultStepTime)
	v.DrainCap = cmp.Or(k.wish.DrainCap, drover.DefaultDrainCap)
	steps := k.wish.WeightSteps
	if len(steps) == 0 {
		steps = drover.DefaultWeightSteps()
	}
	v.Steps = weights(steps, v.Weight)
	for _, s := range servers {
		if s.ChangedBy == owner && s.Name != old.Name {
			v.Handed = append(v.Handed, s.Name)
		}
	}
	k.ok("server", "%s is server %s of backend %s, with %d sessions", k.r.VM.Name, old.Name, v.Backend, old.Sessions)
	if !alone && v.Weight < wholeWeight/10 {
		*k.findings = append(*k.findings, drover.Check{
			Name: "weights", Warning: true, Detail: "the backend has other servers, and a weight of " + strconv.Itoa(v.Weight) + " cannot be divided as asked",
			Fix: "give the backend's servers weights of about " + strconv.Itoa(wholeWeight),
		})
	}
}

// weights divides a weight by percentages. Until the last step nobody gets
// nothing.
func weights(percent []int, whole int) []executor.WeightStep {
	steps := make([]executor.WeightStep, 0, len(percent))
	for _, p := range percent {
		w := executor.WeightStep{New: whole}
		if p < 100 {
			w.New = max(1, (whole*p+50)/100)
			w.Old = max(1, whole-w.New)
		}
		steps = append(steps, w)
	}
	return steps
}

// health settles how the new VM is seen to be well, and by whom.
func (k *cloneCheck) health() {
	c, h := k.clone, k.wish.health
	var probe drover.ProbeTarget
	if k.r.VM.Probe != nil {
		probe = *k.r.VM.Probe
		c.Probe = &drover.ProbeTarget{TCP: k.anyAddress(probe.TCP), Kind: probe.Kind, HTTP: k.anyURL(probe.HTTP)}
	}
	switch {
	case h != nil:
		own := *h
		if own.Kind == drover.HealthTCP && !strings.Contains(own.Target, ":") {
			own.Target = net.JoinHostPort(netip.IPv4Unspecified().String(), own.Target)
		}
		own.Target = map[drover.HealthKind]func(string) string{
			drover.HealthTCP: k.anyAddress, drover.HealthHTTP: k.anyURL, drover.HealthCommand: func(s string) string { return s },
		}[own.Kind](own.Target)
		c.Health = &own
	case c.Service != nil && !servesPort(probe.HTTP, c.Service.Port):
		c.Health = &drover.HealthCheck{Kind: drover.HealthTCP, Target: netip.AddrPortFrom(netip.IPv4Unspecified(), c.Service.Port).String()}
	case probe.HTTP != "":
		c.Health = &drover.HealthCheck{Kind: drover.HealthHTTP, Target: k.anyURL(probe.HTTP)}
	case probe.TCP != "":
		c.Health = &drover.HealthCheck{Kind: drover.HealthTCP, Target: k.anyAddress(probe.TCP)}
	}
	if c.Health != nil {
		if err := c.Health.Validate(); err != nil {
			k.bad("health", "name another check with --health", "%s", err)
			return
		}
	}
	from := ""
	if h != nil {
		from = h.From
	}
	switch {
	case k.r.Method == drover.Redirect:
		c.Checker = c.Service.Edge
		if from != "" && from != c.Checker {
			k.bad("health", "leave the agent out", "the new vm is checked by %s, from where its traffic will come, not by %s", c.Checker, from)
			return
		}
	case from != "":
		c.Checker = from
	case c.Service != nil:
		c.Checker = c.Service.Edge
	case len(c.NICs) > 0 && c.Health != nil:
		c.Checker = c.NICs[0].Edge
	default:
		c.Checker = k.r.To.Host
	}
	if _, known := k.s.fleet.host(c.Checker); !known {
		k.bad("health", "see drover hosts", "there is no agent %s", c.Checker)
		return
	}
	how := "that it runs"
	if c.Health != nil {
		how = c.Health.String()
	}
	k.ok("health", "%s checks %s (0.0.0.0 stands for the new vm's address)", c.Checker, how)
}

func servesPort(target string, port uint16) bool {
	u, err := url.Parse(target)
	if err != nil || target == "" {
		return false
	}
	return u.Port() == strconv.Itoa(int(port)) || u.Port() == "" && (u.Scheme == "http" && port == 80 || u.Scheme == "https" && port == 443)
}

// anyAddress puts zero, which stands for the new VM's, in place of the VM's own
// address.
func (k *cloneCheck) anyAddress(target string) string {
	at, err := netip.ParseAddrPort(target)
	if err != nil || !slices.Contains(k.own, at.Addr()) {
		return target
	}
	return netip.AddrPortFrom(netip.IPv4Unspecified(), at.Port()).String()
}

func (k *cloneCheck) anyURL(target string) string {
	u, err := url.Parse(target)
	if err != nil || target == "" {
		return target
	}
	a, err := netip.ParseAddr(u.Hostname())
	if err != nil || !slices.Contains(k.own, a) {
		return target
	}
	zero, port := netip.IPv4Unspecified().String(), u.Port()
	if u.Host = zero; port != "" {
		u.Host = net.JoinHostPort(zero, port)
	}
	return u.String()
}

// cloneActions fills the request's action for those that make a VM; ok is false for
// others.
func cloneActions(req *droverv1.RunRequest, action executor.Action) (ok bool) {
	switch v := action.(type) {
	case executor.DefineClone:
		def := &droverv1.CloneDefinition{Definition: v.Definition, Paths: v.Paths}
		for _, n := range v.NICs {
			def.Nics = append(def.Nics, &droverv1.CloneNIC{Mac: n.MAC, NewMac: n.NewMAC, Network: n.Network})
		}
		for _, a := range v.Addresses {
			def.Addresses = append(def.Addresses, a.String())
		}
		for _, g := range v.Gateways {
			def.Gateways = append(def.Gateways, g.String())
		}
		if v.Probe != nil {
			def.Probe = &droverv1.ProbeTarget{Tcp: v.Probe.TCP, Kind: v.Probe.Kind, Http: v.Probe.HTTP}
		}
		req.Action = &droverv1.RunRequest_DefineClone{DefineClone: &droverv1.DefineClone{Clone: def}}
	case executor.CopyClone:
		req.Action = &droverv1.RunRequest_CopyClone{CopyClone: &droverv1.CopyClone{
			PeerAddress: v.PeerAddress, PeerHost: v.PeerHost, Name: v.Name, Uuid: v.UUID, Disks: plansToProto(v.Disks), BandwidthBps: int64(v.Bandwidth),
		}}
	case executor.Attend:
		req.Action = &droverv1.RunRequest_Attend{Attend: &droverv1.Attend{
			Kind: string(v.Kind), Target: v.Target, ForMillis: int64(v.For / time.Millisecond), Backend: v.Backend, Server: v.Server,
		}}
	default:
		return false
	}
	return true
}
