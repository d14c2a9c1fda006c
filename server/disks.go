package server

import (
	"fmt"
	"strings"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api/droverv1"
	"github.com/drover-vm/drover/executor"
)

// storageStay is the wish that a VM's disks stay where they are.
const storageStay = "stay"

// checkStorage checks what is wished of the disks.
func checkStorage(method drover.Method, storage string, disksOnly bool) error {
	switch {
	case storage != "" && storage != storageStay:
		return drover.Errorf(drover.Invalid, "storage", "%q: want %s, or nothing for disks that come along", storage, storageStay)
	case storage != "" && disksOnly:
		return drover.Errorf(drover.Invalid, "storage", "%s and disks_only are contrary wishes: want one of the two", storage)
	case disksOnly && method != "":
		return drover.Errorf(drover.Invalid, "method", "%q: with disks_only the VM stays where it is, want nothing", method)
	case storage != "" && !keepsRunning(method):
		return drover.Errorf(drover.Invalid, "storage", "%s is for the methods %s, %s, %s and %s, which keep the VM running: want one of them, not %q",
			storage, drover.Stretch, drover.Route, drover.Renumber, drover.Live, method)
	}
	return nil
}

// checkLeft refuses a VM whose disks are elsewhere already: no method takes the way
// to them along.
func checkLeft(c *findings, vm drover.VM) {
	for _, d := range vm.Disks {
		if d.Left != nil {
			c.bad("storage", fmt.Sprintf("bring it to the VM first: drover move %s --disks-only", vm.Name),
				"disk %s of %s was left behind at %s", d.Target, vm.Name, d.Left.Host)
		}
	}
}

// leaveDisks has the request leave behind what it would take along.
func leaveDisks(c *findings, r *executor.Request) {
	r.Left, r.Disks = r.Disks, nil
	if len(r.Left) == 0 {
		c.bad("storage", "move it without", "%s has no disk of its own that could stay", r.VM.Name)
		return
	}
	var names []string
	for _, d := range r.Left {
		names = append(names, d.Target)
	}
	c.ok("storage", "%s stays at %s; what %s reads and writes there crosses the WAN", strings.Join(names, ", "), r.From, r.VM.Name)
}

// preflightDisks checks whether the disks that a VM has left behind can come.
func (s *Server) preflightDisks(vm drover.VM, moves movesByVM) plan {
	var c findings
	host := s.checkVM(&c, vm, moves)
	here := drover.Place{Site: vm.Site, Host: vm.Host}
	p := plan{request: executor.Request{
		VM: vm, To: here, ToAddress: host.Address, Method: drover.Disks, Reasons: []string{"its disks were asked for"},
	}}
	if vm.State != drover.VMRunning {
		c.bad("vm-state", "start it", "%s is %s: its disks come while it runs", vm.Name, vm.State)
	}
	var needs drover.Bytes
	var at string
	for _, d := range vm.Disks {
		switch {
		case d.Left == nil:
			continue
		case at != "" && at != d.Left.Host:
			c.bad("storage", "bring them by hand", "its disks are at two hosts, %s and %s", at, d.Left.Host)
			continue
		}
		at = d.Left.Host
		needs += d.VirtualBytes
		p.request.Disks = append(p.request.Disks, executor.DiskPlan{
			Target: d.Target, Path: d.Left.Path, Format: d.Left.Format, VirtualBytes: d.VirtualBytes, AllocatedBytes: d.VirtualBytes,
		})
	}
	s.checkLeftAt(&c, &p.request, at)
	if free := host.VolumesFreeBytes; at != "" && needs > free {
		c.bad("disk-space", fmt.Sprintf("free %s on host %s", needs-free, host.Name), "its disks take up to %s, %s has %s free", needs, host.Name, free)
	}
	p.report = drover.Preflight{VM: vm.Name, To: here, Method: drover.Disks, OK: c.holds(), Checks: c}
	if p.report.OK {
		if err := p.request.Validate(); err != nil {
			c.bad("request", "", "%s", err)
			p.report.OK, p.report.Checks = false, c
		}
	}
	return p
}

// checkLeftAt completes the request with the host where the disks are.
func (s *Server) checkLeftAt(c *findings, r *executor.Request, at string) {
	if at == "" {
		c.bad("storage", "there is nothing to bring", "%s has left no disk behind", r.VM.Name)
		return
	}
	from, known := s.fleet.host(at)
	switch {
	case !known:
		c.bad("storage", "add it to the hosts again", "its disks are at %s, which is no host (any more)", at)
	case !from.Up:
		c.bad("storage", fmt.Sprintf("start drover agent on %s, or mend the network to %s", from.Name, from.Address), "its disks are at %s, which does not answer: %s", at, from.Fault)
	default:
		c.ok("storage", "%d disks are at %s/%s", len(r.Disks), from.Site, from.Name)
		r.From, r.FromAddress = drover.Place{Site: from.Site, Host: from.Name}, from.Address
	}
}

// diskActions fills actions on disks that stay, or come later; false for any other.
func diskActions(req *droverv1.RunRequest, action executor.Action) bool {
	switch v := action.(type) {
	case executor.LendDisks:
		req.Action = &droverv1.RunRequest_LendDisks{LendDisks: &droverv1.LendDisks{PeerHost: v.PeerHost, Disks: plansToProto(v.Disks)}}
	case executor.ReclaimDisks:
		req.Action = &droverv1.RunRequest_ReclaimDisks{ReclaimDisks: &droverv1.ReclaimDisks{}}
	case executor.AttachDisks:
		req.Action = &droverv1.RunRequest_AttachDisks{AttachDisks: &droverv1.AttachDisks{
			PeerAddress: v.PeerAddress, PeerHost: v.PeerHost, Disks: plansToProto(v.Disks),
		}}
	case executor.DetachDisks:
		req.Action = &droverv1.RunRequest_DetachDisks{DetachDisks: &droverv1.DetachDisks{}}
	case executor.BringDisks:
		req.Action = &droverv1.RunRequest_BringDisks{BringDisks: &droverv1.BringDisks{Disks: plansToProto(v.Disks), BandwidthBps: int64(v.Bandwidth)}}
	case executor.AbortBring:
		req.Action = &droverv1.RunRequest_AbortBring{AbortBring: &droverv1.AbortBring{}}
	default:
		return false
	}
	return true
}

func remoteToProto(in []executor.RemoteDisk) []*droverv1.RemoteDisk {
	var out []*droverv1.RemoteDisk
	for _, d := range in {
		out = append(out, &droverv1.RemoteDisk{Target: d.Target, Socket: d.Socket})
	}
	return out
}

func remoteFromProto(in []*droverv1.RemoteDisk) []executor.RemoteDisk {
	var out []executor.RemoteDisk
	for _, d := range in {
		out = append(out, executor.RemoteDisk{Target: d.GetTarget(), Socket: d.GetSocket()})
	}
	return out
}
