package server

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/executor"
)

// plan is a move as far as a preflight decides it. When the report is OK,
// nothing is left to choose.
type plan struct {
	report  drover.Preflight
	request executor.Request
}

// findings are a report in the making, in the order of checking.
type findings []drover.Check

func (f *findings) ok(name, format string, args ...any) {
	*f = append(*f, drover.Check{Name: name, OK: true, Detail: fmt.Sprintf(format, args...)})
}

func (f *findings) bad(name, fix, format string, args ...any) {
	*f = append(*f, drover.Check{Name: name, Detail: fmt.Sprintf(format, args...), Fix: fix})
}

// holds reports whether nothing forbids the move.
func (f findings) holds() bool {
	return !slices.ContainsFunc(f, func(c drover.Check) bool { return !c.OK && !c.Warning })
}

// preflight checks a move from both ends; it changes nothing. A VM that does
// not exist is drover.NotFound; everything else that is wrong is a finding.
func (s *Server) preflight(ctx context.Context, name string, to drover.Place, ask asked) (plan, error) {
	moves, err := s.moving(ctx)
	if err != nil {
		return plan{}, err
	}
	vm, err := s.fleet.find(name, moves)
	if err != nil {
		return plan{}, err
	}
	if ask.disksOnly {
		return s.preflightDisks(vm, moves), nil
	}
	if ask.makes != nil {
		return s.preflightClone(ctx, vm, moves, to, ask)
	}
	var checks findings
	source := s.checkVM(&checks, vm, moves)
	checkLeft(&checks, vm)
	to, kept := s.nearReplica(vm, to)
	target, chosen := s.checkTarget(&checks, vm, to)
	chosen = append(chosen, kept...)
	way, reasons := s.checkMethod(&checks, vm, source, target, ask)
	p := plan{
		request: executor.Request{
			VM: vm, From: drover.Place{Site: vm.Site, Host: vm.Host}, To: drover.Place{Site: to.Site, Host: to.Host},
			Method: way, Reasons: append(reasons, chosen...), LocalEgress: ask.localEgress,
		},
	}
	if checks.holds() {
		p.request.To = drover.Place{Site: target.Site, Host: target.Name}
		p.request.FromAddress, p.request.ToAddress = source.Address, target.Address
		if way == drover.Renumber {
			s.placeRenumber(&checks, &p.request, ask)
		}
	}
	var guest guestWord
	if checks.holds() {
		if guest, err = s.checkEnds(ctx, &checks, &p.request, ask.stay); err != nil {
			return plan{}, err
		}
	}
	switch {
	case !checks.holds():
	case way == drover.Renumber:
		if err := s.checkRenumber(ctx, &checks, &p.request, ask, guest); err != nil {
			return plan{}, err
		}
	default:
		if err := s.checkNetwork(ctx, &checks, &p.request, ask); err != nil {
			return plan{}, err
		}
	}
	p.report = drover.Preflight{VM: vm.Name, To: p.request.To, Method: way, OK: checks.holds(), Checks: checks}
	if p.report.OK {
		if err := p.request.Validate(); err != nil {
			checks.bad("request", "", "%s", err)
			p.report.OK, p.report.Checks = false, checks
		}
	}
	return p, nil
}

// nearReplica names the host of a site that has the VM's replica, and says so,
// where no other was asked for.
func (s *Server) nearReplica(vm drover.VM, to drover.Place) (drover.Place, []string) {
	host := s.protector.prefers(vm.UUID, to.Site)
	if host == "" || to.Host != "" || s.reachable(host) != "" {
		return to, nil
	}
	to.Host = host
	return to, []string{fmt.Sprintf("%s has the replica of %s", host, vm.Name)}
}

// checkVM looks at the VM where it is.
func (s *Server) checkVM(c *findings, vm drover.VM, moves movesByVM) drover.Host {
	host, _ := s.fleet.host(vm.Host)
	if host.Up {
		c.ok("vm", "%s is %s on %s/%s", vm.Name, vm.State, vm.Site, vm.Host)
	} else {
		c.bad("vm", fmt.Sprintf("start drover agent on %s, or mend the network to %s", vm.Host, host.Address),
			"its host %s does not answer: %s", vm.Host, host.Fault)
	}
	if m, busy := moves[vm.UUID]; busy {
		c.bad("moves", fmt.Sprintf("wait for it (drover move watch %s) or cancel it (drover move cancel %s)", m.Name, m.Name),
			"move %s of it to %s is %s", m.Name, m.To, m.State)
	} else {
		c.ok("moves", "it has no unfinished move")
	}
	return host
}

// checkTarget resolves where the VM shall be. With a site alone, it takes the
// host there with the most free memory, and says so.
func (s *Server) checkTarget(c *findings, vm drover.VM, to drover.Place) (drover.Host, []string) {
	sites := s.fleet.viewSites()
	i := slices.IndexFunc(sites, func(x drover.Site) bool { return x.Name == to.Site })
	if i < 0 {
		names := make([]string, len(sites))
		for i, x := range sites {
			names[i] = x.Name
		}
		c.bad("target", "take one of "+strings.Join(names, ", "), "there is no site %s", to.Site)
		return drover.Host{}, nil
	}
	if to.Host == "" {
		return s.chooseHost(c, vm, to.Site)
	}
	h, known := s.fleet.host(to.Host)
	switch {
	case !known || h.Site != to.Site:
		c.bad("target", fmt.Sprintf("take one of %s, or leave the host out", orNone(sites[i].Hosts)), "there is no host %s at site %s", to.Host, to.Site)
	case h.Name == vm.Host:
		c.bad("target", "take another host", "%s is on %s already", vm.Name, to)
	case !h.Up:
		c.bad("target", fmt.Sprintf("start drover agent on %s, or mend the network to %s", h.Name, h.Address), "%s does not answer: %s", to, h.Fault)
	case !runsVMs(h):
		c.bad("target", "take a host with a hypervisor", "%s runs no VMs", to)
	default:
		c.ok("target", "%s is up, %s memory free", to, h.MemoryFreeBytes)
		return h, nil
	}
	return drover.Host{}, nil
}

func (s *Server) chooseHost(c *findings, vm drover.VM, site string) (drover.Host, []string) {
	var best drover.Host
	var others []string
	for _, h := range s.fleet.viewHosts(nil) {
		if h.Site != site || h.Name == vm.Host || h.Edge {
			continue
		}
		switch {
		case !h.Up:
			others = append(others, h.Name+" does not answer")
		case !runsVMs(h):
		case best.Name == "" || h.MemoryFreeBytes > best.MemoryFreeBytes:
			best = h
		}
	}
	if best.Name == "" {
		detail := "no host at " + site + " could take it"
		if len(others) > 0 {
			detail += ": " + strings.Join(others, ", ")
		}
		if site == vm.Site {
			detail += " (it is on " + vm.Host + " there already)"
		}
		c.bad("target", "start drover agent on a host there, or take another site", "%s", detail)
		return best, nil
	}
	c.ok("target", "%s/%s is up and has the most memory free there, %s", site, best.Name, best.MemoryFreeBytes)
	return best, []string{fmt.Sprintf("%s has the most memory free at %s", best.Name, site)}
}

// runsVMs tells a hypervisor's host from an edge or a client.
func runsVMs(h drover.Host) bool { return !h.Edge && h.HypervisorVersion != "" }

func orNone(names []string) string {
	if len(names) == 0 {
		return "no host"
	}
	return strings.Join(names, ", ")
}

// checkMethod settles the method: the one asked for, or live where the VM
// runs and both ends have its segments, else cold.
func (s *Server) checkMethod(c *findings, vm drover.VM, source, target drover.Host, ask asked) (drover.Method, []string) {
	method, reasons := ask.method, ask.why
	if method == "" {
		if target.Name == "" {
			return "", nil // cannot be told without a target, which is what is wrong
		}
		method, reasons = s.defaultMethod(vm, source, target)
	} else if reasons == nil {
		reasons = []string{fmt.Sprintf("method %s was asked for", method)}
	}
	switch {
	case !canMove(method):
		c.bad("method", "take live, stretch, route, renumber, warm or cold", "method %s is not available in this version", method)
	case method != drover.Cold && vm.State != drover.VMRunning:
		c.bad("method", "take cold", "%s is %s, and only a running VM moves %s", vm.Name, vm.State, method)
	default:
		c.ok("method", "%s: %s", method, strings.Join(reasons, "; "))
	}
	return method, reasons
}

// canMove reports whether there are moves by the method.
func canMove(m drover.Method) bool { return keepsRunning(m) || m == drover.Warm || m == drover.Cold }

func (s *Server) defaultMethod(vm drover.VM, source, target drover.Host) (drover.Method, []string) {
	if vm.State != drover.VMRunning {
		return drover.Cold, []string{fmt.Sprintf("%s is %s, so there is nothing to keep running", vm.Name, vm.State)}
	}
	for _, n := range vm.NICs {
		for _, h := range []drover.Host{source, target} {
			if !slices.Contains(h.Networks, n.Network) {
				return drover.Cold, []string{fmt.Sprintf("segment %s is not on %s, so open sessions could not be kept", n.Network, h.Name)}
			}
		}
	}
	if apart := s.apart(vm, target.Site); len(apart) > 0 {
		return drover.Route, []string{fmt.Sprintf("%s is running, and %s is not joined between %s and %s, so its addresses follow as host routes", vm.Name, segmentNames(apart), vm.Site, target.Site)}
	}
	return drover.Live, []string{fmt.Sprintf("%s is running and its segments are at both ends", vm.Name)}
}

// checkEnds asks the two agents, first the source's, whose answer the
// target's needs. It completes the request with what it learns.
func (s *Server) checkEnds(ctx context.Context, c *findings, r *executor.Request, stay bool) (guest guestWord, err error) {
	from, err := s.fleet.agent(r.From.Host)
	if err != nil {
		return guest, err
	}
	to, err := s.fleet.agent(r.To.Host)
	if err != nil {
		return guest, err
	}
	src, err := from.client.CheckSource(ctx, &droverv1.CheckSourceRequest{
		Vm: r.VM.Name, Method: string(r.Method), TargetAddress: to.Address, TargetHost: to.Name, Retarget: retargetOf(r),
	})
	if err != nil {
		return guest, unanswered(ctx, c, "source agent", r.From.Host, err)
	}
	*c = append(*c, api.ChecksFromProto(src.GetChecks())...)
	guest = guestWord{src.GetGuestAgent(), src.GetGuestFault()}
	if src.GetVm() == nil {
		if c.holds() {
			c.bad("source agent", "look at the log of drover agent on "+r.From.Host, "it does not describe %s", r.VM.Name)
		}
		return guest, nil
	}
	dst, err := to.client.CheckTarget(ctx, &droverv1.CheckTargetRequest{
		Vm: src.GetVm(), Method: string(r.Method), Definition: src.GetDefinition(), Source: src.GetHost(),
		BackingIds: src.GetBackingIds(), SourceAddress: from.Address, DisksStay: stay,
	})
	if err != nil {
		return guest, unanswered(ctx, c, "target agent", r.To.Host, err)
	}
	*c = append(*c, api.ChecksFromProto(dst.GetChecks())...)

	vm := api.VMFromProto(src.GetVm())
	vm.Host, vm.Site = r.From.Host, r.From.Site
	if vm.UUID != r.VM.UUID {
		c.bad("vm", "look at drover vms again", "%s is another VM than a moment ago (UUID %s, not %s)", vm.Name, vm.UUID, r.VM.UUID)
	}
	r.VM, r.Definition = vm, src.GetDefinition()
	r.Disks = diskPlans(vm, dst.GetSameBacking())
	if stay {
		leaveDisks(c, r)
	}
	return guest, nil
}

// unanswered turns an agent's failure into a finding. The caller's own end is
// an error.
func unanswered(ctx context.Context, c *findings, check, host string, err error) error {
	if ctx.Err() != nil {
		return drover.E(drover.Canceled, "preflight", ctx.Err())
	}
	fix := "look at the log of drover agent on " + host
	if drover.KindOf(err).Retryable() {
		fix = "start drover agent on " + host + ", or mend the network to it"
	}
	c.bad(check, fix, "%s", err)
	return nil
}

// diskPlans says how each disk crosses. Shared disks are reachable from both
// ends and read-only ones are at both: neither is copied. Where the target
// has the same backing files, only what is above them crosses.
func diskPlans(vm drover.VM, sameBacking map[string]bool) []executor.DiskPlan {
	plans := []executor.DiskPlan{}
	for _, d := range vm.Disks {
		if d.Shared || d.ReadOnly {
			continue
		}
		p := executor.DiskPlan{
			Target: d.Target, Path: d.Path, Format: d.Format,
			VirtualBytes: d.VirtualBytes, AllocatedBytes: d.AllocatedBytes,
		}
		if len(d.Backing) > 0 && sameBacking[d.Target] {
			p.TopOnly, p.BackingPath, p.BackingFormat = true, d.Backing[0].Path, d.Backing[0].Format
		}
		plans = append(plans, p)
	}
	return plans
}
